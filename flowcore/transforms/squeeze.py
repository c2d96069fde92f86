"""Squeeze: space to depth, without loss."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .transform import ShapeError, Transform


class Squeeze(Transform):
    """Trade each 2x2 block of pixels for four channels.

    Forward: ``z[:, 4c + 2dy + dx, i, j] = x[:, c, 2i + dy, 2j + dx]``; logdet: 0, a permutation.

    Source: Dinh et al., "Density estimation using Real NVP", section 3.6; channel order as in Glow.
    """

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Fold 2x2 blocks into channels.

        Args:
            x: ``(B, C, H, W)`` with even H and W.
            cond: Not used.

        Returns:
            ``(B, 4C, H/2, W/2)`` and zeros ``(B,)``.

        Raises:
            ShapeError: If H or W is odd.
        """
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise ShapeError(f"Squeeze needs even sides; got {x.shape[-2]}x{x.shape[-1]}. Pad the image to even sides.")
        return F.pixel_unshuffle(x, 2), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Unfold channels into 2x2 blocks.

        Args:
            z: ``(B, 4C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, 2H, 2W)``.
        """
        return F.pixel_shuffle(z, 2)
