"""What all LR encoders of upscalers have in common."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LREncoder(nn.Module):
    """Features of an LR image on every grid of a flow, and an ordinary enlargement of it, by the integer ``scale``."""

    scale: int

    @abstractmethod
    def residual_blocks(self) -> nn.ModuleList:
        """Return the blocks in series that are most of the work."""

    @abstractmethod
    def forward(
        self, lr: Tensor, levels: int | Sequence[int], *, with_enlargement: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        """Compute the features of LR images ``(B, 3, h, w)`` in [0, 1] and, on request, ``enlargement(lr)``.

        ``levels`` is the number of grids, finest first, or the numbers of those wanted; grid k has ``scale / 2^k``
        times the sides of LR. Its features are its native ones, then those that all grids share.
        """

    @abstractmethod
    def enlargement(self, lr: Tensor) -> Tensor:
        """Enlarge ``(B, 3, h, w)`` in [0, 1] deterministically, as trained with L1; not clamped."""

    def by_grid(self, native: dict[int, Tensor], shared: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """Join the features of every wanted grid; arguments as for ``sources_by_grid``."""
        return [
            torch.cat([t if f == 1 else F.interpolate(t, scale_factor=f, mode="nearest") for t, f in sources], dim=1)
            for sources in sources_by_grid(native, shared, wanted, self.scale)
        ]


def sources_by_grid(
    native: dict[int, Tensor], shared: Tensor, wanted: Sequence[int], scale: int
) -> Iterator[tuple[tuple[Tensor, int], ...]]:
    """Yield ``native`` features, by factor from the LR grid, and ``shared`` ones of LR, for every wanted grid.

    Beside each stands the factor by which it is to be enlarged.
    """
    for level in wanted:
        if 2**level <= scale:
            factor = scale // 2**level
            sources = (native[factor], 1), (shared, factor)
        else:  # the half-resolution grid; bilinear with half-pixel centers is the mean of 2x2 pixels
            half = F.interpolate(native[1], scale_factor=0.5, mode="bilinear", align_corners=False)
            sources = (half, 1), (shared[:, :, ::2, ::2], 1)
        yield sources if shared.shape[1] else sources[:1]


def grids_wanted(levels: int | Sequence[int]) -> Sequence[int]:
    """List the numbers of grids; ``levels`` is as in ``LREncoder.forward``."""
    return range(1, levels + 1) if isinstance(levels, int) else levels


def doublings(wanted: Sequence[int], scale: int) -> int:
    """Count how often the LR grid must be doubled for the finest of the wanted grids."""
    return max(0, scale.bit_length() - 1 - min(wanted, default=scale.bit_length()))


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """Build the convolution of these encoders, which keeps the grid."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def activate(x: Tensor) -> Tensor:
    """Apply the activation of these encoders."""
    return F.leaky_relu(x, 0.2)
