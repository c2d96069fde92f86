"""What all LR encoders of upscalers have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LREncoder(nn.Module):
    """Features of an LR image on every grid of a flow, and an ordinary enlargement of it.

    Attributes:
        scale: Integer factor from LR to HR.
    """

    scale: int

    @abstractmethod
    def residual_blocks(self) -> nn.ModuleList:
        """Return the blocks in series that are most of the work."""

    @abstractmethod
    def forward(
        self, lr: Tensor, levels: int | Sequence[int], *, with_enlargement: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        """Compute the features for the flow.

        Args:
            lr: ``(B, 3, h, w)`` in [0, 1], even sides where ``levels`` includes the half-resolution grid.
            levels: Number of grids, finest first; the first has half as many pixels a side as HR. Or the numbers of
                those wanted: 1 for that one, 2 for the next.
            with_enlargement: Whether to compute the enlargement as well.

        Returns:
            Per level a tensor ``(B, features, scale * h / 2^level, scale * w / 2^level)``: the native features first,
            then what all grids share, resized by nearest neighbor. And ``enlargement(lr)``, or None.
        """

    @abstractmethod
    def enlargement(self, lr: Tensor) -> Tensor:
        """Enlarge the image the ordinary way: one sharp guess, trained with L1.

        Args:
            lr: ``(B, 3, h, w)`` in [0, 1].

        Returns:
            ``(B, 3, scale * h, scale * w)``, not clamped.
        """

    def by_grid(self, native: dict[int, Tensor], shared: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """Put the features of every grid together.

        Args:
            native: Features by factor from the LR grid, of the LR grid and all that are finer and wanted.
            shared: Features of the LR grid that are part of all grids' features.
            wanted: Numbers of the grids.
        """
        result: list[Tensor] = []
        for level in wanted:
            if 2**level <= self.scale:
                own = native[self.scale // 2**level]
            else:  # the half-resolution grid; bilinear with half-pixel centers is the mean of 2x2 pixels
                own = F.interpolate(native[1], scale_factor=0.5, mode="bilinear", align_corners=False)
            if shared.shape[1]:
                own = torch.cat([own, F.interpolate(shared, own.shape[-2:], mode="nearest")], dim=1)
            result.append(own)
        return result


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
