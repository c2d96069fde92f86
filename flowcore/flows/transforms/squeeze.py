"""Squeezes: space to depth in two channel orders or as a Haar transform, and back; flattening, and back."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ShapeError
from ..level_condition import LevelCondition
from ..transform import Transform


class Squeeze(Transform):
    """Trade each block of f x f pixels for f^2 channels: ``(B, C, H, W)`` to ``(B, f^2 C, H/f, W/f)``; f is mostly 2.

    Forward: ``z[:, f^2 c + f dy + dx, i, j] = x[:, c, f i + dy, f j + dx]``; logdet: 0, a permutation.

    Source: Dinh et al., "Density estimation using Real NVP", section 3.6; channel order as in Glow.
    """

    uniform_logdet = True

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        require_blocks(x, self.factor, "Squeeze")
        return F.pixel_unshuffle(x, self.factor), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return F.pixel_shuffle(z, self.factor)

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return shape[0] * self.factor**2, shape[1] // self.factor, shape[2] // self.factor


class CheckerboardSqueeze(Squeeze):
    """Trade each 2x2 block of pixels for four groups of C channels, diagonal neighbors first.

    Forward: group g of ``z`` is ``x[:, :, 2i + dy, 2j + dx]`` with (dy, dx) = (0, 0), (1, 1), (0, 1), (1, 0) for
    g = 0 to 3; logdet: 0. The first half, which Real NVP does not factor out, is then a checkerboard of the image.

    Source: Dinh et al., "Real NVP", section 3.6 and its reference implementation.
    """

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        require_blocks(x, 2, "Squeeze")
        groups = [x[:, :, dy::2, dx::2] for dy, dx in ((0, 0), (1, 1), (0, 1), (1, 0))]
        return torch.cat(groups, dim=1), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        first, diagonal, right, below = z.chunk(4, dim=1)
        return F.pixel_shuffle(torch.stack([first, right, below, diagonal], dim=2).flatten(1, 2), 2)


class Unsqueeze(Transform):
    """Undo a ``Squeeze`` in the middle of a flow: forward is ``Squeeze.inverse``; logdet: 0."""

    uniform_logdet = True

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(x, 2), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return F.pixel_unshuffle(z, 2)

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return shape[0] // 4, shape[1] * 2, shape[2] * 2


class Flatten(Transform):
    """Flatten an image of fixed size to the channels of a single position, ``(B, C * H * W, 1, 1)``.

    Forward: ``z[:, (c * H + i) * W + j, 0, 0] = x[:, c, i, j]``; logdet: 0. The next transform mixes the whole image.
    """

    uniform_logdet = True

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.shape = (channels, height, width)

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        if x.shape[1:] != self.shape:
            raise ShapeError(f"Expected images of shape (B, {', '.join(map(str, self.shape))}); got {tuple(x.shape)}.")
        return x.reshape(x.shape[0], -1, 1, 1), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return z.reshape(z.shape[0], *self.shape)

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return math.prod(shape), 1, 1


class Unflatten(Flatten):
    """Undo a ``Flatten`` in the middle of a flow: forward is ``Flatten.inverse``; logdet: 0."""

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        return super().inverse(x), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return super().forward(z)[0]

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return self.shape


class Haar(Squeeze):
    """Orthonormal Haar transform of each 2x2 block: ``(B, C, H, W)``, even sides, to ``(B, 4C, H/2, W/2)``.

    With a, b above c, d the four pixels of a block, forward: ``z`` stacks four bands of C channels each: ``(a + b + c +
    d) / 2``, ``(a - b + c - d) / 2``, ``(a + b - c - d) / 2`` and ``(a - b - c + d) / 2``; logdet: 0, an orthonormal
    matrix; inverse: the same matrix, which is symmetric. The first band is the downscaled image, multiplied by 2.

    Source: Yu, Derpanis, Brubaker, "Wavelet Flow: Fast Training of High Resolution Normalizing Flows" (NeurIPS 2020),
    section 3; used inside flows by Ardizzone et al. 2019.
    """

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        require_blocks(x, 2, "Haar")
        return torch.cat(_haar_bands(x), dim=1), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        blocks = torch.stack(_transform_blocks(*z.chunk(4, dim=1)), dim=2)  # (B, C, 4, H/2, W/2)
        return F.pixel_shuffle(blocks.flatten(1, 2), 2)


class InterpolatedDetails(Transform):
    """Predict Haar details by bicubic interpolation of the means, and subtract the prediction.

    ``x = [means, details]`` are the channels of ``Haar``. Forward: ``z = [means, details - d]``, where d are the
    details of ``Haar(up(means / 2))``, with ``up`` bicubic; logdet: 0; inverse: add d. Where z's details are 0, the
    image is smooth instead of blocky.

    Source: the prediction step of lifting schemes, Sweldens, "The Lifting Scheme" (1996), in two dimensions.
    """

    uniform_logdet = True

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        means, details = x.tensor_split([x.shape[1] // 4], dim=1)
        return torch.cat([means, details - _predicted_details(means)], dim=1), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        means, details = z.tensor_split([z.shape[1] // 4], dim=1)
        return torch.cat([means, details + _predicted_details(means)], dim=1)


def _predicted_details(means: Tensor) -> Tensor:
    return torch.cat(_haar_bands(F.interpolate(means / 2, scale_factor=2.0, mode="bicubic"))[1:], dim=1)


def _haar_bands(x: Tensor) -> list[Tensor]:
    return _transform_blocks(*F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2))  # each (B, C, H/2, W/2)


def _transform_blocks(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> list[Tensor]:
    """Multiply blocks by the symmetric Haar matrix."""
    top, bottom = a + b, c + d
    return [(top + bottom) / 2, (a + c - (b + d)) / 2, (top - bottom) / 2, (a + d - b - c) / 2]


def require_blocks(x: Tensor, factor: int, name: str) -> None:
    """Raise ShapeError unless images consist of square blocks of a side ``factor``."""
    if x.shape[-2] % factor or x.shape[-1] % factor:
        sides = "even sides" if factor == 2 else f"sides divisible by {factor}"
        raise ShapeError(f"{name} needs {sides}; got {x.shape[-2]}x{x.shape[-1]}. Pad the image to {sides}.")
