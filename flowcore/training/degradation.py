"""What turns HR photographs into LR ones as cameras and the web do: blur, shrinking, noise and JPEG, in random amounts.

Models that only ever saw bicubic LR images take the noise of a camera and the blocks of a JPEG file for detail, and
draw them out. So each crop is degraded in another way here, from not at all to strongly. HR stays as it is.

Source: the idea of random degradations of many kinds is that of Zhang, Liang, Van Gool, Timofte, "Designing a Practical
Degradation Model for Deep Blind Image Super-Resolution" (2021), and of Wang, Xie, Dong, Shan, "Real-ESRGAN" (2021).
Simpler here: one round, in a fixed order, with amounts that are common in people's own photographs.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from kornia.filters import filter2d, filter2d_separable, get_gaussian_kernel1d
from PIL import Image
from torch import Tensor

DegradationKind = Literal["bicubic", "realistic"]
Shrinking = Literal["bicubic", "bilinear", "area"]

# how often, and how much at strength 1
BLURRED, ANISOTROPIC = 0.75, 0.4  # the latter of those that are blurred
WIDEST = 0.9  # standard deviation of the blur, in LR pixels
OTHERWISE_SHRUNK = 0.2  # by each of the two other kernels
NOISY, GREY = 0.6, 0.4  # the latter of those that are noisy
MOST_PHOTON, MOST_READ = 10 / 255, 3 / 255  # standard deviations at mid grey
COMPRESSED, HALVED = 0.75, 0.6  # the latter of those that are compressed
BEST, WORST = 95, 40  # quality of JPEG

GRID = 16  # LR pixels: a block of JPEG at half resolution
KERNEL = 2  # LR pixels that the kernels of shrinking reach
BLACK, GAMMA = 0.15, 2.2  # below this brightness the slope of the encoding is taken to be constant


@dataclass(frozen=True)
class Degradation:
    """One way from HR to LR.

    Attributes:
        blur: Standard deviations of a Gaussian along and across a direction, in LR pixels; zeros for none.
        direction: In radians.
        shrinking: Kernel; all of them are antialiased.
        photon: Standard deviation of the noise of counted photons, in units of [0, 1]. Its variance is in proportion
            to light, but encoding by gamma evens that out: it is nearly the same at all brightnesses.
        read: Standard deviation at mid grey of the sensor's own noise. It is the same in light, so gamma makes it
            strong in shadows and weak in highlights.
        grey: Whether noise is the same in all channels.
        quality: Of JPEG; None for none.
        halved: Whether JPEG keeps chroma at half resolution (4:2:0).
        grid: Row and column of the crop in the grid of JPEG's blocks.
    """

    blur: tuple[float, float] = (0.0, 0.0)
    direction: float = 0.0
    shrinking: Shrinking = "bicubic"
    photon: float = 0.0
    read: float = 0.0
    grey: bool = False
    quality: int | None = None
    halved: bool = False
    grid: tuple[int, int] = (0, 0)


def draw_degradation(rng: np.random.Generator, strength: float = 1.0) -> Degradation:
    """Draw one way from HR to LR; every part of it is left out of some.

    Args:
        rng: What to draw from; how many numbers are drawn is always the same.
        strength: Factor on the amounts, in (0, 1].

    Returns:
        What to do.
    """
    blurred, anisotropic, width, ratio, direction, kernel = rng.random(6).tolist()
    noisy, grey, photon, read = rng.random(4).tolist()
    compressed, halved, quality = rng.random(3).tolist()
    row, column = rng.integers(GRID, size=2).tolist()
    width = strength * WIDEST * width if blurred < BLURRED else 0.0
    across = width * (0.2 + 0.8 * ratio) if anisotropic < ANISOTROPIC else width
    noise = strength if noisy < NOISY else 0.0
    return Degradation(
        blur=(width, across),
        direction=math.pi * direction,
        shrinking="bilinear" if kernel < OTHERWISE_SHRUNK else "area" if kernel < 2 * OTHERWISE_SHRUNK else "bicubic",
        photon=noise * MOST_PHOTON * photon**2,  # mostly little
        read=noise * MOST_READ * read**2,
        grey=grey < GREY,
        quality=round(BEST - strength * (BEST - WORST) * quality) if compressed < COMPRESSED else None,
        halved=halved < HALVED,
        grid=(row, column),
    )


def degrade(
    image: np.ndarray, scale: int, top: int, left: int, side: int, way: Degradation, rng: np.random.Generator
) -> np.ndarray:
    """Make a crop of the LR image of a photograph.

    More is degraded than is returned, whole blocks of JPEG and what blur and kernels reach beyond them, so a crop has
    no border effects; beyond its own border a photograph is continued symmetrically.

    Args:
        image: HR, ``(H, W, 3)``, uint8; sides are multiples of the scale.
        scale: Factor between HR and LR.
        top: Row of the crop in the LR image.
        left: Its column.
        side: Of the crop, in LR pixels.
        way: What to do.
        rng: What noise is drawn from.

    Returns:
        ``(side, side, 3)``, uint8.
    """
    above, before = way.grid if way.quality is not None else (0, 0)
    rows, columns = (GRID * math.ceil((n + side) / GRID) if way.quality is not None else side for n in (above, before))
    reach = KERNEL + math.ceil(3 * max(way.blur))
    hr = _cut(
        image,
        (top - above - reach) * scale,
        (left - before - reach) * scale,
        (rows + 2 * reach) * scale,
        (columns + 2 * reach) * scale,
    )
    x = torch.from_numpy(hr).permute(2, 0, 1)[None].float() / 255  # (1, 3, rows + 2 reach, columns + 2 reach) x scale
    lr = _shrunk(_blurred(x.contiguous(), way, scale), scale, way.shrinking)[..., reach:-reach, reach:-reach]
    pixels = lr[0].permute(1, 2, 0).clamp(0, 1).numpy()  # (rows, columns, 3)
    if way.photon or way.read:
        drawn = rng.standard_normal((rows, columns, 1 if way.grey else 3), dtype=np.float32)
        slope = (0.5 / pixels.clip(BLACK)) ** (GAMMA - 1)  # of the encoding, relative to that at mid grey
        pixels = pixels + drawn * np.sqrt(way.photon**2 + (way.read * slope) ** 2)
    eight_bit = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    if way.quality is not None:
        eight_bit = _compressed(eight_bit, way.quality, halved=way.halved)
    return eight_bit[above : above + side, before : before + side]


def _cut(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    bottom, right = top + height, left + width
    inside = image[max(top, 0) : bottom, max(left, 0) : right]
    missing = [(max(-top, 0), max(bottom - image.shape[0], 0)), (max(-left, 0), max(right - image.shape[1], 0)), (0, 0)]
    return np.pad(inside, missing, mode="symmetric")


def _blurred(x: Tensor, way: Degradation, scale: int) -> Tensor:
    if not any(way.blur):
        return x
    along, across = (max(width * scale, 1e-3) for width in way.blur)  # in HR pixels
    radius = math.ceil(3 * max(along, across))
    size = 2 * radius + 1
    if along == across:
        kernel = get_gaussian_kernel1d(size, along)
        return filter2d_separable(x, kernel, kernel, border_type="replicate")
    offsets = torch.arange(-radius, radius + 1.0)
    v, u = torch.meshgrid(offsets, offsets, indexing="ij")
    cos, sin = math.cos(way.direction), math.sin(way.direction)
    exponent = ((u * cos + v * sin) / along) ** 2 + ((v * cos - u * sin) / across) ** 2
    kernel = torch.exp(-0.5 * exponent)[None]
    return filter2d(x, kernel / kernel.sum(), border_type="replicate")


def _shrunk(x: Tensor, scale: int, shrinking: Shrinking) -> Tensor:
    if shrinking == "area":
        return F.avg_pool2d(x, scale)
    size = x.shape[-2] // scale, x.shape[-1] // scale
    return F.interpolate(x, size, mode=shrinking, antialias=True)


def _compressed(pixels: np.ndarray, quality: int, *, halved: bool) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2 if halved else 0)
    with Image.open(buffer) as opened:
        return np.asarray(opened.convert("RGB"))
