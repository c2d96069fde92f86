"""Squeeze: space to depth, without loss, in two orders; and what undoes it, as a step of its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from .transform import Transform


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
        _check_even(x)
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


class OrderedSqueeze(Transform):
    """Trade each 2x2 block of pixels for four groups of C channels, diagonal neighbours first.

    Forward: group g of ``z`` is ``x[:, :, 2i + dy, 2j + dx]`` with (dy, dx) = (0, 0), (1, 1), (0, 1), (1, 0) for
    g = 0 to 3; logdet: 0. The first half is then a checkerboard of the image: what Real NVP keeps when it factors
    out.

    Source: Dinh et al., "Real NVP", section 3.6 and its program.
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
        _check_even(x)
        groups = [x[:, :, dy::2, dx::2] for dy, dx in ((0, 0), (1, 1), (0, 1), (1, 0))]
        return torch.cat(groups, dim=1), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Unfold channels into 2x2 blocks.

        Args:
            z: ``(B, 4C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, 2H, 2W)``.
        """
        first, diagonal, right, below = z.chunk(4, dim=1)
        return F.pixel_shuffle(torch.stack([first, right, below, diagonal], dim=2).flatten(1, 2), 2)


class Unsqueeze(Transform):
    """Undo a ``Squeeze`` in the middle of a flow: its forward is ``Squeeze.inverse``; logdet: 0.

    Source: as ``Squeeze``.
    """

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Unfold channels into 2x2 blocks.

        Args:
            x: ``(B, 4C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, 2H, 2W)`` and zeros ``(B,)``.
        """
        return F.pixel_shuffle(x, 2), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Fold 2x2 blocks into channels.

        Args:
            z: ``(B, C, H, W)`` with even H and W.
            cond: Not used.

        Returns:
            ``(B, 4C, H/2, W/2)``.
        """
        return F.pixel_unshuffle(z, 2)


class Flatten(Transform):
    """Lay all pixels of an image of fixed size out as channels of a single position; logdet: 0.

    Forward: ``z[:, (c * H + i) * W + j, 0, 0] = x[:, c, i, j]``. What follows mixes the whole image at once.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        """Fix the size.

        Args:
            channels: C.
            height: H.
            width: W.
        """
        super().__init__()
        self.shape = (channels, height, width)

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Flatten.

        Args:
            x: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C * H * W, 1, 1)`` and zeros ``(B,)``.

        Raises:
            ShapeError: If the image has another size.
        """
        if x.shape[1:] != self.shape:
            raise ShapeError(f"Expected images of shape (B, {', '.join(map(str, self.shape))}); got {tuple(x.shape)}.")
        return x.reshape(x.shape[0], -1, 1, 1), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Make an image again.

        Args:
            z: ``(B, C * H * W, 1, 1)``.
            cond: Not used.

        Returns:
            ``(B, C, H, W)``.
        """
        return z.reshape(z.shape[0], *self.shape)


def _check_even(x: Tensor) -> None:
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ShapeError(f"Squeeze needs even sides; got {x.shape[-2]}x{x.shape[-1]}. Pad the image to even sides.")
