"""Luma and chroma as in JPEG, and back to RGB in gamut without a change of luma; rounding to 8 bits per channel.

Full-range BT.601: with R, G, B in [0, 1], ``Y = 0.299 R + 0.587 G + 0.114 B``, ``Cb = (B - Y) / 1.772``,
``Cr = (R - Y) / 1.402``, both centered on 0, in [-1/2, 1/2]. The inverse solves these equations instead of using
rounded constants, so it keeps luma exactly.

Source: ITU-R BT.601; ITU-T T.871 (JFIF).
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ImageError, ShapeError

RED, GREEN, BLUE = 0.299, 0.587, 0.114  # weights of luma
NEUTRAL = 128 / 255  # chroma 0 as stored in 8 bits


def luma(rgb: Tensor) -> Tensor:
    """Compute the luma of RGB: ``(B, 3, H, W)`` to ``(B, 1, H, W)``, in [0, 1] for RGB in [0, 1]."""
    red, green, blue = _channels(rgb)
    return RED * red + GREEN * green + BLUE * blue


def split(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Convert RGB ``(B, 3, H, W)`` to luma ``(B, 1, H, W)`` and chroma (Cb, Cr) ``(B, 2, H, W)``."""
    red, _, blue = _channels(rgb)
    y = luma(rgb)
    return y, torch.cat([(blue - y) / (2 * (1 - BLUE)), (red - y) / (2 * (1 - RED))], dim=1)


def merge(y: Tensor, chroma: Tensor) -> Tensor:
    """Convert luma ``(B, 1, H, W)`` and chroma ``(B, 2, H, W)`` to RGB: the exact inverse of ``split``.

    Only a quarter of all (Y, Cb, Cr) are in gamut, so the result may lie outside [0, 1]; see ``compress``.
    """
    if y.ndim != 4 or y.shape[1] != 1 or chroma.ndim != 4 or chroma.shape[1] != 2 or y.shape[2:] != chroma.shape[2:]:
        raise ShapeError(
            f"Expected luma (B, 1, H, W) and chroma (B, 2, H, W) of one size; got {tuple(y.shape)} and "
            f"{tuple(chroma.shape)}. Resize the chroma to the luma's size."
        )
    return y + _offset(chroma)


def compress(y: Tensor, chroma: Tensor) -> Tensor:
    """Convert luma and chroma to RGB in gamut by reducing saturation, which keeps luma and hue.

    ``rgb = y + k d``, with d the offset of the color from gray and k <= 1 the largest factor that keeps rgb in [0, 1].
    """
    offset = merge(y, chroma) - y
    room = torch.where(offset > 0, 1 - y, y)
    wanted = offset.abs().clamp_min(torch.finfo(offset.dtype).tiny)
    k = (room / wanted).amin(1, keepdim=True).clamp(0, 1)
    return (y + k * offset).clamp(0, 1)  # rounding only


def clip(y: Tensor, chroma: Tensor) -> Tensor:
    """Convert luma and chroma to RGB and clamp, as most programs do; out of gamut this changes luma and hue."""
    return merge(y, chroma).clamp(0, 1)


def enlarge_chroma(chroma: Tensor, small_luma: Tensor, y: Tensor) -> Tensor:
    """Enlarge chroma ``(B, 2, h, w)`` to the size of an image with the luma y, ``(B or 1, 1, H, W)``, guided by it.

    ``bicubic(chroma) + a * (y - bicubic(small_luma))``, with a the slope of the ridge regression (0.01) of chroma on
    luma in each 3x3 neighborhood of the small grid: where color varies with brightness, it gains the luma's detail.
    ``small_luma`` is that luma at the size of the chroma.

    Source: the local linear model of He, Sun, Tang, "Guided Image Filtering" (2013), section 3.1, for the residual of a
    bicubic enlargement.
    """
    if chroma.shape[2:] != small_luma.shape[2:]:
        raise ShapeError(
            f"Expected chroma and luma of one size; got {tuple(chroma.shape)} and {tuple(small_luma.shape)}."
        )
    size = (y.shape[-2], y.shape[-1])
    mean_y, mean_c = _local_mean(small_luma), _local_mean(chroma)
    slope = (_local_mean(small_luma * chroma) - mean_y * mean_c) / (
        _local_mean(small_luma.square()) - mean_y.square() + 0.01
    )
    detail = y - F.interpolate(small_luma, size, mode="bicubic")
    return F.interpolate(chroma, size, mode="bicubic") + F.interpolate(slope, size, mode="bilinear") * detail


def palette_from_chroma(chroma: Tensor) -> Tensor:
    """Compute the palettes that a colorizer takes, ``(B, 4)``, of chroma ``(B, 2, H, W)``.

    They are 1, mean Cb, mean Cr, and colorfulness: the root mean square of the chroma's length.
    """
    colorfulness = chroma.square().sum(1).mean((1, 2)).sqrt()
    return torch.stack([torch.ones_like(colorfulness), *chroma.mean((2, 3)).unbind(1), colorfulness], dim=1)


def parse_color(text: str) -> tuple[float, float, float]:
    """Parse a color of the web, "#e0b080" or "#eb8", with or without "#", to red, green and blue in [0, 1]."""
    digits = text.strip().removeprefix("#")
    if not re.fullmatch(r"[0-9a-fA-F]{3}|[0-9a-fA-F]{6}", digits):
        raise ImageError(f"Expected a color such as #e0b080; got {text.strip()[:40]!r}. Write it as # and 6 digits.")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    red, green, blue = (int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4))
    return red, green, blue


def _local_mean(x: Tensor) -> Tensor:
    """Mean over the 3x3 neighborhood, smaller at the border."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _offset(chroma: Tensor) -> Tensor:
    blue, red = 2 * (1 - BLUE) * chroma[:, :1], 2 * (1 - RED) * chroma[:, 1:]
    return torch.cat([red, -(RED * red + BLUE * blue) / GREEN, blue], dim=1)  # of luma 0


def _channels(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if rgb.ndim != 4 or rgb.shape[1] != 3:
        raise ShapeError(f"Expected RGB of shape (B, 3, H, W); got {tuple(rgb.shape)}.")
    return rgb[:, :1], rgb[:, 1:2], rgb[:, 2:]


def to_uint8(pixels: Tensor) -> Tensor:
    """Round values in [0, 1] to uint8 in [0, 255], after clamping."""
    return _steps(pixels).to(torch.uint8)


def truncate_16_bits(pixels: Tensor) -> Tensor:
    """Truncate values in [0, 1] that a file stores in 8 or 16 bits to uint8: 255 v of what was written as 65535 v."""
    return pixels.clamp(0, 1).double().mul(65535).round().div(257, rounding_mode="floor").to(torch.uint8)


def as_stored(pixels: Tensor) -> Tensor:
    """Round values to multiples of 1/255 in [0, 1], after clamping; the type stays."""
    return _steps(pixels) / 255


def _steps(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 1).mul(255).round()
