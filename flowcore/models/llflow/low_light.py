"""The encoder of LLFlow: features of a dark photograph, and a map of the colors that it would have in good light."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...device import float64
from ..srflow.rrdb import RRDB, run_blocks

DARKEST = 1e-3  # added to intensities before their logarithm
EPSILON = 1e-4  # added to sums of channels before a division


class LowLightEncoder(nn.Module):
    """Features on three grids, and the color map that is the mean of the flow's prior.

    Besides the photograph it sees the chroma ``c = rgb / (r + g + b)``, which light does not change, and its
    ``noise_map``. The color map ``sigmoid(conv(features))`` estimates the well-lit chroma. The RRDBs run on the grid of
    half the sides; the outputs of ``stacked_blocks`` are part of every grid's features, in this order.

    Source: Wang et al., "Low-Light Image Enhancement with Normalizing Flow" (AAAI 2022), section 3.2.
    """

    def __init__(self, blocks: int, width: int, growth: int, stacked_blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stacked_blocks = stacked_blocks
        self.conv_first = nn.Conv2d(12, width, 3, padding=1)
        self.conv_second = nn.Conv2d(width, width, 3, padding=1)
        self.blocks = nn.ModuleList(RRDB(width, growth) for _ in range(blocks))
        self.conv_trunk = nn.Conv2d(width, width, 3, padding=1)
        self.conv_down = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.conv_color = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compute features ``(B, width * (1 + stacked), H / f, W / f)`` for f = 2, 4, 8, and the color map."""
        head = self.head(x)
        pairs, color = self.tail(head, *run_blocks(self.blocks, head, self.stacked_blocks))
        return [torch.cat(pair, dim=1) for pair in pairs], color

    def head(self, x: Tensor) -> Tensor:
        """Compute what the blocks read, ``(B, width, H/2, W/2)``.

        ``x`` is ``(B, 6, H, W)``, sides multiples of 8: the logarithm of the intensities, and the equalized photograph
        in [0, 1].
        """
        light = x[:, :3].exp()
        chroma = light / (light.sum(1, keepdim=True) + EPSILON)
        features = F.leaky_relu(self.conv_first(torch.cat([x, chroma, noise_map(chroma)], dim=1)), 0.2)
        return F.max_pool2d(self.conv_second(features), 2)

    def tail(self, head: Tensor, outer: Tensor, stack: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Compute pairs of native features and stacked outputs for f = 2, 4, 8, and the color map ``(B, 3, H, W)``.

        ``outer`` and ``stack`` are what ``run_blocks`` returns.
        """
        half = head + self.conv_trunk(outer)
        color = torch.sigmoid(self.conv_color(F.interpolate(half, scale_factor=2, mode="nearest")))
        quarter = F.leaky_relu(self.conv_down[0](F.avg_pool2d(half, 2)), 0.2)
        eighth = self.conv_down[1](F.avg_pool2d(quarter, 2))
        return [(x, stack[:, :, ::f, ::f]) for x, f in ((half, 1), (quarter, 2), (eighth, 4))], color


def noise_map(chroma: Tensor) -> Tensor:
    """Measure the noise of chroma: ``max(|c[y, x+1] - c[y, x-1]|, |c[y+1, x] - c[y-1, x]|) / 2``, zeros outside."""
    padded = F.pad(chroma, (1, 1, 1, 1))
    rows = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    columns = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    return torch.maximum(rows.abs(), columns.abs())


def network_input(rgb: Tensor) -> Tensor:
    """Concatenate ``log(rgb + 0.001)`` and ``equalize(rgb)`` of photographs in [0, 1]: ``(B, 6, H, W)``."""
    return torch.cat([(rgb + DARKEST).clamp_min(DARKEST).log(), equalize(rgb)], dim=1)


def equalize(rgb: Tensor) -> Tensor:
    """Equalize the histogram of every channel of images in [0, 1], in 8 bits.

    As OpenCV's equalizeHist, which LLFlow is trained with: with counts n and the first occupied gray level v0, level v
    becomes ``255 sum_{v0 < k <= v} n_k / (N - n_v0)``, rounded half to even, over 255. One level alone stays.
    """
    levels = (rgb.detach() * 255).round().clamp(0, 255).long().flatten(2)  # (B, C, H * W)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=rgb.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    first = (counts > 0).long().argmax(2, keepdim=True)
    darkest = counts.gather(2, first)
    others = levels.shape[2] - darkest
    factor = (255.0 / float64(others.clamp_min(1))).to(rgb.device, torch.float32)
    table = ((counts.cumsum(2) - darkest).clamp_min(0).float() * factor).round().clamp(0, 255)
    table = torch.where(others > 0, table, torch.arange(256.0, device=rgb.device))
    return (table.gather(2, levels).reshape(rgb.shape) / 255).to(rgb.dtype)
