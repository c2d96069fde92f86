"""Haar: every 2x2 block of pixels as its mean and three differences."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .squeeze import require_blocks
from .transform import Transform


class Haar(Transform):
    """Orthonormal Haar transform of each 2x2 block: ``(B, C, H, W)``, even sides, to ``(B, 4C, H/2, W/2)``.

    With a, b above c, d the four pixels of a block, forward: the channels of ``z`` are, for all C channels of ``x``
    each, ``(a + b + c + d) / 2``, then ``(a - b + c - d) / 2``, ``(a + b - c - d) / 2`` and ``(a - b - c + d) / 2``;
    logdet: 0, an orthonormal matrix; inverse: the same matrix, which is symmetric. The first C channels are the image
    at half the size, times two.

    Source: Yu, Derpanis, Brubaker, "Wavelet Flow: Fast Training of High Resolution Normalizing Flows" (NeurIPS 2020),
    section 3; used inside flows by Ardizzone et al. 2019.
    """

    uniform_logdet = True

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        require_blocks(x, 2, "Haar")
        a, b, c, d = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2)  # each (B, C, H/2, W/2)
        return torch.cat(_bands(a, b, c, d), dim=1), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        blocks = torch.stack(_bands(*z.chunk(4, dim=1)), dim=2)  # (B, C, 4, H/2, W/2)
        return F.pixel_shuffle(blocks.flatten(1, 2), 2)

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return shape[0] * 4, shape[1] // 2, shape[2] // 2


class InterpolatedDetails(Transform):
    """Subtract from Haar details what interpolation of the means predicts for them.

    ``x = [means, details]`` are the channels of ``Haar``. Forward: ``z = [means, details - d]``, where d are the
    details of ``Haar(up(means / 2))``, with ``up`` bicubic; logdet: 0; inverse: the sum. Where all details are 0, the
    image is then smooth instead of made of blocks.

    Source: the prediction step of lifting schemes, Sweldens, "The Lifting Scheme" (1996), in two dimensions.
    """

    uniform_logdet = True

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        means, details = self._parts(x)
        return torch.cat([means, details - _interpolated(means)], dim=1), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        means, details = self._parts(z)
        return torch.cat([means, details + _interpolated(means)], dim=1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : x.shape[1] // 4], x[:, x.shape[1] // 4 :]


def _interpolated(means: Tensor) -> Tensor:
    enlarged = F.interpolate(means / 2, scale_factor=2.0, mode="bicubic")
    return Haar()(enlarged)[0][:, means.shape[1] :]


def _bands(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> list[Tensor]:
    left, right, up, down = a + c, b + d, a + b, c + d
    return [(up + down) / 2, (left - right) / 2, (up - down) / 2, (a + d - b - c) / 2]
