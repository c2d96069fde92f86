"""The bicubic resize of the super-resolution literature.

Keys' cubic kernel with a = -0.5, stretched by the factor when shrinking (antialiasing), on an image with symmetric
padding: what MATLAB's ``imresize`` does, which made the papers' LR images. The kernel is torch's; only the padding is
ours, since torch truncates the kernel at the border.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import no_autocast
from ..errors import ShapeError

PADDING = 4  # pixels of the coarser grid; the kernel reaches 2


def shrink(image: Tensor, factor: int) -> Tensor:
    """Shrink ``(B, C, H, W)`` by an integer factor: antialiased bicubic, as LR images are made.

    H and W are multiples of the factor. Not clamped: bicubic overshoots at edges.
    """
    height, width = image.shape[-2:]
    if height % factor or width % factor:
        raise ShapeError(
            f"Shrinking by {factor} needs sides divisible by {factor}; got {height}x{width}. Crop the image first."
        )
    return _resize(image, PADDING * factor, (height // factor, width // factor), PADDING)


def enlarge(image: Tensor, factor: int) -> Tensor:
    """Enlarge ``(B, C, h, w)`` by an integer factor: bicubic, the baseline of every paper; not clamped."""
    height, width = image.shape[-2:]
    return _resize(image, PADDING, (height * factor, width * factor), PADDING * factor)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize ``(B, C, H, W)`` to any size: bicubic, antialiased when shrinking; not clamped.

    If both sides change by the same integer factor this is ``enlarge`` or ``shrink``. Otherwise torch truncates the
    kernel at the border, which affects two pixels of the coarser grid.
    """
    before, after = image.shape[-2:], (height, width)
    for new, old, change in ((after, before, enlarge), (before, after, shrink)):
        factor = new[0] // old[0]
        if factor and new == (old[0] * factor, old[1] * factor):
            return change(image, factor)
    with no_autocast(image.device):
        return F.interpolate(image, after, mode="bicubic", antialias=True)


def _resize(image: Tensor, before: int, size: tuple[int, int], after: int) -> Tensor:
    """Pad by `before` pixels, resize so that the padding becomes `after` pixels, crop it."""
    height, width = size
    with no_autocast(image.device):
        canvas = pad_symmetric(image, before)
        canvas = F.interpolate(canvas, (height + 2 * after, width + 2 * after), mode="bicubic", antialias=True)
    return canvas[..., after : after + height, after : after + width]


def resize_bilinear(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize to any height and width: bilinear, antialiased when shrinking, which leaves the range of the values."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode="bilinear", antialias=True)


def limit_shorter_side(image: Tensor, side: int) -> Tensor:
    """Shrink so that the shorter side has at most so many pixels, as ``resize_bilinear`` does."""
    factor = min(1.0, side / min(image.shape[-2:]))
    return resize_bilinear(image, [max(1, round(n * factor)) for n in image.shape[-2:]])


def pad_symmetric(image: Tensor, border: int | tuple[int, int, int, int]) -> Tensor:
    """Pad by reflection that repeats the border pixel, by any amount, however small the image.

    The border is of all sides; or left, right, top and bottom.
    """
    left, right, top, bottom = (border,) * 4 if isinstance(border, int) else border
    rows = _symmetric(image.shape[-2], top, bottom, image.device)
    columns = _symmetric(image.shape[-1], left, right, image.device)
    return image.index_select(-2, rows).index_select(-1, columns)


def _symmetric(n: int, before: int, after: int, device: torch.device) -> Tensor:
    index = torch.arange(-before, n + after, device=device) % (2 * n)
    return torch.minimum(index, 2 * n - 1 - index)
