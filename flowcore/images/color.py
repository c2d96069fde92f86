"""Luma and chroma as in JPEG, and back to RGB in gamut without a change of luma; rounding to 8 bits per channel.

Full-range BT.601 (JFIF, ITU-T T.871): ``Y = 0.299 R + 0.587 G + 0.114 B`` in [0, 1], ``Cb = (B - Y) / 1.772`` and
``Cr = (R - Y) / 1.402`` in [-1/2, 1/2].
"""

import re
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ImageError, ShapeError

RED, GREEN, BLUE = 0.299, 0.587, 0.114  # weights of luma
NEUTRAL = 128 / 255  # chroma 0 as stored in 8 bits


def luma(rgb: Tensor) -> Tensor:
    """Compute the luma of RGB: ``(B, 3, H, W)`` to ``(B, 1, H, W)``, in [0, 1] for RGB in [0, 1]."""
    if rgb.ndim != 4 or rgb.shape[1] != 3:
        raise ShapeError(f"Expected RGB of shape (B, 3, H, W); got {tuple(rgb.shape)}.")
    red, green, blue = rgb.split(1, 1)
    return RED * red + GREEN * green + BLUE * blue


def split(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Convert RGB ``(B, 3, H, W)`` to luma ``(B, 1, H, W)`` and chroma (Cb, Cr) ``(B, 2, H, W)``."""
    y = luma(rgb)
    return y, torch.cat([(rgb[:, 2:] - y) / (2 * (1 - BLUE)), (rgb[:, :1] - y) / (2 * (1 - RED))], dim=1)


def merge(y: Tensor, chroma: Tensor) -> Tensor:
    """Invert ``split`` exactly. A quarter of all (Y, Cb, Cr) are in gamut; see ``compress`` for the others."""
    if y.ndim != 4 or y.shape[1] != 1 or chroma.ndim != 4 or chroma.shape[1] != 2 or y.shape[2:] != chroma.shape[2:]:
        raise ShapeError(
            f"Expected luma (B, 1, H, W) and chroma (B, 2, H, W) of one size; got {tuple(y.shape)} and "
            f"{tuple(chroma.shape)}. Resize the chroma to the luma's size."
        )
    blue, red = 2 * (1 - BLUE) * chroma[:, :1], 2 * (1 - RED) * chroma[:, 1:]
    return y + torch.cat([red, -(RED * red + BLUE * blue) / GREEN, blue], dim=1)  # an offset of luma 0


def compress(y: Tensor, chroma: Tensor) -> Tensor:
    """Convert luma and chroma to RGB in gamut by reducing saturation, which keeps luma and hue."""
    offset = merge(y, chroma) - y  # distance from gray
    room = torch.where(offset > 0, 1 - y, y)
    length = offset.abs().clamp_min(torch.finfo(offset.dtype).tiny)
    k = (room / length).amin(1, keepdim=True).clamp(0, 1)  # the largest factor that keeps RGB in [0, 1]
    return (y + k * offset).clamp(0, 1)  # rounding only


def clip(y: Tensor, chroma: Tensor) -> Tensor:
    """Convert luma and chroma to RGB and clamp, as most programs do; out of gamut this changes luma and hue."""
    return merge(y, chroma).clamp(0, 1)


def enlarge_chroma(chroma: Tensor, small_luma: Tensor, y: Tensor) -> Tensor:
    """Enlarge chroma ``(B, 2, h, w)`` to the size of luma ``y``, by its detail; ``small_luma`` is ``y`` at (h, w).

    ``bicubic(chroma) + a * (y - bicubic(small_luma))``, with a the slope of the ridge regression (0.01) of chroma on
    luma in each 3x3 neighborhood: the local linear model of He, Sun, Tang, "Guided Image Filtering" (2013), section
    3.1, for the residual of a bicubic enlargement.
    """
    if chroma.shape[2:] != small_luma.shape[2:]:
        raise ShapeError(
            f"Expected chroma and luma of one size; got {tuple(chroma.shape)} and {tuple(small_luma.shape)}."
        )
    size = (y.shape[-2], y.shape[-1])
    mean = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    variance = mean(small_luma.square()) - mean(small_luma).square()
    slope = (mean(small_luma * chroma) - mean(small_luma) * mean(chroma)) / (variance + 0.01)
    detail = y - F.interpolate(small_luma, size, mode="bicubic")
    return F.interpolate(chroma, size, mode="bicubic") + F.interpolate(slope, size, mode="bilinear") * detail


def palette_from_chroma(chroma: Tensor) -> Tensor:
    """Compute palettes ``(B, 4)`` of chroma ``(B, 2, H, W)``: 1 (there is one), mean Cb, mean Cr, rms length."""
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


def as_gray(picture: Tensor) -> Tensor:
    """Return gray, and alpha if there is any, of pictures ``(..., C, H, W)`` with equal colors; others unchanged."""
    channels = picture.shape[-3]
    if channels < 3 or not bool((picture[..., 1:3, :, :] == picture[..., :1, :, :]).all()):
        return picture
    return picture[..., [0, *range(3, channels)], :, :]


def to_uint8(pixels: Tensor) -> Tensor:
    """Round values in [0, 1] to uint8 in [0, 255], after clamping."""
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8)


def to_levels(pixels: Tensor, bits: int) -> Tensor:
    """Round values in [0, 1] to what a file of 8 or 16 bits stores: uint8, or int32 in [0, 65535]."""
    return to_uint8(pixels) if bits == 8 else pixels.clamp(0, 1).double().mul(65535).round().to(torch.int32)


def as_stored(pixels: Tensor) -> Tensor:
    """Round values to multiples of 1/255 in [0, 1], after clamping; the type stays."""
    return pixels.clamp(0, 1).mul(255).round() / 255
