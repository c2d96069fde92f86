"""Realistic degradation of photographs: blur, shrinking, noise and JPEG for upscalers, darkness for low-light models.

Source: the idea of Zhang et al., "Designing a Practical Degradation Model for Deep Blind Image Super-Resolution"
(2021), and Wang et al., "Real-ESRGAN" (2021), here in one round, with the amounts of people's own photographs.
"""

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

from ..images.opening import open_image

DegradationKind = Literal["bicubic", "realistic", "dark"]
Kernel = Literal["bicubic", "bilinear", "area"]

# probabilities, and amounts at strength 1
BLURRED, ANISOTROPIC = 0.5, 0.4  # share of all crops; share of blurred ones
MAX_BLUR = 0.6  # standard deviation, in LR pixels
OTHER_KERNEL = 0.1  # share of each of the two kernels besides bicubic
NOISY, GRAY = 0.6, 0.4  # share of all crops; share of noisy ones
MAX_PHOTON, MAX_READ = 10 / 255, 3 / 255  # standard deviations at middle gray
SMOOTHED, MAX_SMOOTHNESS = 0.5, 0.8  # share of noisy crops, as cameras smooth noise; standard deviation, in LR pixels
# share of all crops, as web sites sharpen what they shrink; added share of fine detail
SHARPENED, MAX_SHARPENING = 0.2, 1.0
SHARPENING_WIDTH = 0.8  # standard deviation, in LR pixels, of the blur whose difference is fine detail
COMPRESSED, SUBSAMPLED = 0.75, 0.8  # share of all crops; share of compressed ones
MAX_QUALITY, MIN_QUALITY = 95, 30  # qualities of JPEG
COMPRESSED_BEFORE = 0.25  # share of compressed crops, as pictures that were cropped and stored again

# of darkness: gains of linear light, drawn log-uniformly, and how far they vary within an unevenly lit picture
MIN_GAIN, MAX_GAIN = 0.04, 0.5
UNEVEN, UNEVENNESS = 0.5, 0.7  # probability; standard deviation of the logarithm of the gain
DARK_COMPRESSED, DARK_MIN_QUALITY = 0.5, 60  # probability; of JPEG
LIGHT_CELLS = 4  # cells along a side of the map of light

GRID = 16  # LR pixels: a block of JPEG with subsampled chroma
KERNEL_REACH = 2  # LR pixels that the kernels of shrinking reach
BLACK, GAMMA = 0.15, 2.2  # below BLACK the slope of the gamma curve is taken to be constant


@dataclass(frozen=True)
class Degradation:
    """Parameters of one degradation."""

    blur: tuple[float, float] = (0.0, 0.0)  # standard deviations along and across a direction, in LR pixels
    direction: float = 0.0  # radians
    kernel: Kernel = "bicubic"  # kernel of shrinking; all kernels are antialiased
    photon: float = 0.0  # standard deviation of photon shot noise, in units of [0, 1]; after gamma about uniform
    read: float = 0.0  # standard deviation of read noise at middle gray; after gamma strong in shadows
    gray: bool = False  # whether noise is the same in all channels
    quality: int | None = None  # JPEG quality; None for none
    subsampled: bool = False  # whether JPEG stores chroma at half resolution (4:2:0)
    grid: tuple[int, int] = (0, 0)  # row and column of the crop in the grid of JPEG's blocks
    smoothness: float = 0.0  # standard deviation, in LR pixels, of the blur of the noise; its amount stays
    sharpening: float = 0.0  # share of the fine detail of the LR image that is added to it, before noise
    earlier_quality: int | None = None  # quality of a JPEG before the last one; None for none
    earlier_grid: tuple[int, int] = (0, 0)  # row and column of its blocks relative to those of the last one


def draw_degradation(rng: np.random.Generator, strength: float = 1.0) -> Degradation:
    """Draw a degradation of a strength in (0, 1], always from as many random numbers; each part may be left out."""
    blurred, anisotropic, width, ratio, direction, choice = rng.random(6).tolist()
    noisy, gray, photon, read = rng.random(4).tolist()
    compressed, subsampled, quality = rng.random(3).tolist()
    row, column = rng.integers(GRID, size=2).tolist()
    smoothed, smoothness, sharpened, sharpening, before, earlier_quality = rng.random(6).tolist()
    earlier_row, earlier_column = rng.integers(GRID, size=2).tolist()
    width = strength * MAX_BLUR * width if blurred < BLURRED else 0.0
    across = width * (0.2 + 0.8 * ratio) if anisotropic < ANISOTROPIC else width
    noise = strength if noisy < NOISY else 0.0
    stored, earlier = (
        round(MAX_QUALITY - strength * (MAX_QUALITY - MIN_QUALITY) * q) for q in (quality, earlier_quality)
    )
    return Degradation(
        blur=(width, across),
        direction=math.pi * direction,
        kernel="bilinear" if choice < OTHER_KERNEL else "area" if choice < 2 * OTHER_KERNEL else "bicubic",
        photon=noise * MAX_PHOTON * photon,
        read=noise * MAX_READ * read**2,  # mostly little
        gray=gray < GRAY,
        quality=stored if compressed < COMPRESSED else None,
        subsampled=subsampled < SUBSAMPLED,
        grid=(row, column),
        smoothness=MAX_SMOOTHNESS * smoothness if smoothed < SMOOTHED else 0.0,
        sharpening=strength * MAX_SHARPENING * sharpening if sharpened < SHARPENED else 0.0,
        earlier_quality=earlier if before < COMPRESSED_BEFORE and compressed < COMPRESSED else None,
        earlier_grid=(earlier_row, earlier_column),
    )


def degrade(
    image: np.ndarray, scale: int, row: int, column: int, side: int, params: Degradation, rng: np.random.Generator
) -> np.ndarray:
    """Make a crop ``(side, side, 3)`` of the LR image of a photograph; rows, columns and sides are in LR pixels.

    It degrades complete JPEG blocks and what kernels reach around them, so that crops have no border effects.
    """
    has_blocks = params.quality is not None
    above, before = params.grid if has_blocks else (0, 0)  # pixels of the first JPEG blocks that are outside the crop
    rows, columns = (GRID * math.ceil((n + side) / GRID) if has_blocks else side for n in (above, before))
    reach = (
        KERNEL_REACH + math.ceil(3 * max(params.blur)) + (math.ceil(3 * SHARPENING_WIDTH) if params.sharpening else 0)
    )
    first = (row - above - reach) * scale, (column - before - reach) * scale
    last = first[0] + (rows + 2 * reach) * scale, first[1] + (columns + 2 * reach) * scale
    inside = image[max(first[0], 0) : last[0], max(first[1], 0) : last[1]]
    missing = [(max(-a, 0), max(b - side, 0)) for a, b, side in zip(first, last, image.shape, strict=False)]
    hr = np.pad(inside, [*missing, (0, 0)], mode="symmetric")
    x = torch.from_numpy(hr).permute(2, 0, 1)[None].float() / 255  # (1, 3, rows + 2 reach, columns + 2 reach) x scale
    x = _blur(x.contiguous(), params, scale)
    size = rows + 2 * reach, columns + 2 * reach
    if params.kernel == "area":
        lr = F.avg_pool2d(x, scale)
    else:
        lr = F.interpolate(x, size, mode=params.kernel, antialias=True)
    if params.sharpening:
        lr = lr + params.sharpening * (lr - _smooth(lr, SHARPENING_WIDTH))
    lr = lr[..., reach:-reach, reach:-reach]
    pixels = lr[0].permute(1, 2, 0).clamp(0, 1).numpy()  # (rows, columns, 3)
    if params.photon or params.read:
        noise = _noise((rows, columns, 1 if params.gray else 3), params.smoothness, rng)
        slope = (0.5 / pixels.clip(BLACK)) ** (GAMMA - 1)  # slope of the gamma curve, relative to middle gray
        pixels = pixels + noise * np.sqrt(params.photon**2 + (params.read * slope) ** 2)
    eight_bit = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    if params.earlier_quality is not None:
        (down, right), subsampled = params.earlier_grid, params.subsampled
        shifted = np.pad(eight_bit, ((down, 0), (right, 0), (0, 0)), mode="symmetric")
        eight_bit = _compress(shifted, params.earlier_quality, subsampled=subsampled)[down:, right:]
    if params.quality is not None:
        eight_bit = _compress(eight_bit, params.quality, subsampled=params.subsampled)
    return eight_bit[above : above + side, before : before + side]


def darken(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make a picture ``(H, W, 3)``, uint8, as if photographed in little light: dark, uneven, noisy and compressed."""
    uneven, compressed, quality, photon, read = rng.random(5).tolist()
    log_gain = math.log(MIN_GAIN) + rng.random() * math.log(MAX_GAIN / MIN_GAIN)
    light = torch.from_numpy(rng.standard_normal((1, 1, LIGHT_CELLS, LIGHT_CELLS)))
    light = F.interpolate(light, image.shape[:2], mode="bicubic", align_corners=True)[0, 0, :, :, None].numpy()
    gains = np.exp(log_gain + UNEVENNESS * light * (uneven < UNEVEN)).clip(MIN_GAIN / 2, 1)
    linear = (image / 255) ** GAMMA * gains
    middle = 0.5**GAMMA
    slope = 0.5 / (GAMMA * middle)  # slope of the gamma curve at middle gray
    variance = ((MAX_PHOTON * photon**2 / slope) ** 2 / middle) * linear + (MAX_READ * read**2 / slope) ** 2
    linear = linear + np.sqrt(variance) * rng.standard_normal(image.shape)
    dark = (linear.clip(0, 1) ** (1 / GAMMA) * 255).round().astype(np.uint8)
    if compressed < DARK_COMPRESSED:
        dark = _compress(dark, round(MAX_QUALITY - (MAX_QUALITY - DARK_MIN_QUALITY) * quality), subsampled=True)
    return dark


def _noise(shape: tuple[int, int, int], smoothness: float, rng: np.random.Generator) -> np.ndarray:
    """Draw noise ``(rows, columns, channels)`` of standard deviation 1, blurred by a smoothness in pixels."""
    if not smoothness:
        return rng.standard_normal(shape, dtype=np.float32)
    rows, columns, channels = shape
    border = math.ceil(3 * smoothness)
    noise = torch.from_numpy(
        rng.standard_normal((1, channels, rows + 2 * border, columns + 2 * border), dtype=np.float32)
    )
    kernel = get_gaussian_kernel1d(2 * border + 1, smoothness)
    smooth = _smooth(noise, smoothness)[..., border:-border, border:-border] / kernel.square().sum()
    return smooth[0].permute(1, 2, 0).numpy()


def _smooth(x: Tensor, width: float) -> Tensor:
    """Blur images with a Gaussian of a standard deviation in pixels."""
    kernel = get_gaussian_kernel1d(2 * math.ceil(3 * width) + 1, width)
    return filter2d_separable(x, kernel, kernel, border_type="replicate")


def _blur(x: Tensor, params: Degradation, scale: int) -> Tensor:
    if not any(params.blur):
        return x
    along, across = (max(width * scale, 1e-3) for width in params.blur)  # widths in HR pixels
    radius = math.ceil(3 * max(along, across))
    size = 2 * radius + 1
    if along == across:
        kernel = get_gaussian_kernel1d(size, along)
        return filter2d_separable(x, kernel, kernel, border_type="replicate")
    offsets = torch.arange(-radius, radius + 1.0)
    v, u = torch.meshgrid(offsets, offsets, indexing="ij")
    cos, sin = math.cos(params.direction), math.sin(params.direction)
    exponent = ((u * cos + v * sin) / along) ** 2 + ((v * cos - u * sin) / across) ** 2
    kernel = torch.exp(-0.5 * exponent)[None]
    return filter2d(x, kernel / kernel.sum(), border_type="replicate")


def _compress(pixels: np.ndarray, quality: int, *, subsampled: bool) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2 if subsampled else 0)
    with open_image(buffer.getvalue()) as opened:
        return np.asarray(opened.convert("RGB"))
