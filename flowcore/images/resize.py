"""The bicubic resize of the super-resolution literature.

The kernel is Keys' cubic with a = -0.5, stretched by the factor when shrinking (antialiased), over an image continued
symmetrically beyond its border: what MATLAB's ``imresize`` does and what the papers' LR images were made with. The
kernel is torch's; only the border is ours, since torch cuts the kernel off there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError

REACH = 4  # pixels of the coarser grid that are continued beyond the border; the kernel reaches 2


def shrink(image: Tensor, factor: int) -> Tensor:
    """Make an LR image: antialiased bicubic, an integer factor smaller.

    Args:
        image: ``(B, C, H, W)``, float, H and W multiples of ``factor``.
        factor: At least 1.

    Returns:
        ``(B, C, H / factor, W / factor)``, not clamped: bicubic overshoots at edges.

    Raises:
        ShapeError: If a side is not a multiple of the factor.
    """
    height, width = image.shape[-2:]
    if height % factor or width % factor:
        raise ShapeError(
            f"Shrinking by {factor} needs sides divisible by {factor}; got {height}x{width}. Crop the image first."
        )
    return _resize(image, REACH * factor, (height // factor, width // factor), REACH)


def enlarge(image: Tensor, factor: int) -> Tensor:
    """Enlarge by an integer factor: bicubic, the ordinary way and every paper's baseline.

    Args:
        image: ``(B, C, h, w)``, float.
        factor: At least 1.

    Returns:
        ``(B, C, factor * h, factor * w)``, not clamped.
    """
    height, width = image.shape[-2:]
    return _resize(image, REACH, (height * factor, width * factor), REACH * factor)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize to any size: bicubic, antialiased when shrinking.

    Where both sides become a whole number of times longer or shorter this is ``enlarge`` or ``shrink``. Otherwise the
    kernel is cut off at the border, within two pixels of the coarser grid.

    Args:
        image: ``(B, C, H, W)``, float.
        height: Wanted, at least 1.
        width: Likewise.

    Returns:
        ``(B, C, height, width)``, not clamped.
    """
    before, after = image.shape[-2:], (height, width)
    for new, old, change in ((after, before, enlarge), (before, after, shrink)):
        factor = new[0] // old[0]
        if factor and new == (old[0] * factor, old[1] * factor):
            return change(image, factor)
    with torch.autocast(image.device.type, enabled=False):
        return F.interpolate(image, after, mode="bicubic", antialias=True)


def _resize(image: Tensor, before: int, size: tuple[int, int], after: int) -> Tensor:
    """Continue by `before` pixels, resize so that the border becomes `after` pixels, cut that off."""
    height, width = size
    with torch.autocast(image.device.type, enabled=False):
        canvas = continued(image, before)
        canvas = F.interpolate(canvas, (height + 2 * after, width + 2 * after), mode="bicubic", antialias=True)
    return canvas[..., after : after + height, after : after + width]


def resize_bilinear(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize to any size: bilinear, antialiased when shrinking, which leaves the range of the values.

    Args:
        image: ``(B, C, H, W)``, float.
        size: Height and width of the result.

    Returns:
        ``(B, C, *size)``; the image itself if it has that size.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode="bilinear", antialias=True)


def continued(image: Tensor, border: int) -> Tensor:
    """Continue an image symmetrically (the border pixel is repeated) on all sides, however small the image.

    Args:
        image: ``(..., H, W)``.
        border: Pixels to add on each side.

    Returns:
        ``(..., H + 2 * border, W + 2 * border)``.
    """
    rows, columns = (_symmetric(n, border, image.device) for n in image.shape[-2:])
    return image.index_select(-2, rows).index_select(-1, columns)


def _symmetric(n: int, border: int, device: torch.device) -> Tensor:
    index = torch.arange(-border, n + border, device=device) % (2 * n)
    return torch.minimum(index, 2 * n - 1 - index)
