"""What a level of an HCFlow sees of the deeper ones."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..srflow.rrdb import RRDB, conv3x3


class HierarchicalExtractor(nn.Module):
    """Features of one level of an HCFlow, from the channels that continue and the features of all deeper levels.

    ``start = conv([x, up(deeper)...])``, ``middle = first(start)``, ``end = conv(second(middle)) + start``, where first
    and second are RRDBs; the features are ``[middle, end]``, ``2 * width`` channels, if ``both``, else ``end``.

    Source: Liang et al., "Hierarchical Conditional Flow" (2021), section 3 and its reference implementation.
    """

    def __init__(
        self, channels: int, deeper: int, blocks: tuple[int, int], width: int, growth: int, *, both: bool = True
    ) -> None:
        super().__init__()
        self.both = both
        self.features = width * (2 if both else 1)
        self.conv_first = conv3x3(channels + deeper * self.features, width)
        self.first, self.second = (nn.Sequential(*(RRDB(width, growth) for _ in range(count))) for count in blocks)
        self.conv_last = conv3x3(width, width)

    def forward(self, x: Tensor, deeper: Sequence[Tensor]) -> Tensor:
        """Compute ``(B, features, H, W)``; ``deeper`` lists the next level first, at half the sides, and so on."""
        enlarged = [F.interpolate(f, scale_factor=2 ** (k + 1), mode="nearest") for k, f in enumerate(deeper)]
        start = self.conv_first(torch.cat([x, *enlarged], dim=1))
        middle = self.first(start)
        end = self.conv_last(self.second(middle)) + start
        return torch.cat([middle, end], dim=1) if self.both else end
