"""Damage of photographs: JPEG compression and noise."""

import functools
import io
import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .color import luma
from .opening import open_image

MEASURED_SIDE = 192  # pixels of the square in the middle in which JPEG and noise are measured
MIN_SIDE = 32  # pixels of the smallest image that is measured
BLOCK = 8  # pixels of JPEG's blocks
FINE = 6  # lowest row + column of a frequency that counts as fine: its coefficients are rarely near 0 in photographs
ZERO = 0.7  # amplitude, in 1/255, below which a coefficient was rounded to 0
CHANCE = 0.144  # standard deviation of a random number's distance to the nearest integer; the mean is 0.25
SIGNIFICANT = 15.0  # z-score of ``_nearness`` from which a photograph was stored as JPEG; clean ones have up to 10
# A drawing repeats few coefficients, so steps that fit them by accident fit other grids as well. Relative to the best
# grid, ``_nearness`` of the others is at most 0.4 in most JPEG files, and at least 0.49 in drawings;
ELSEWHERE = 0.4
# ``_agreement`` is higher by at least 0.2 in JPEG files of photographs, by at most 0.05 in drawings.
AHEAD = 0.12
ROUNDING = 1.0  # distance, in 1/255, within which coefficients of a JPEG file are multiples of their steps
MIN_STEP = 3  # smallest step that tells such multiples from chance


def jpeg_quality(image: Tensor) -> float | None:
    """Estimate the quality, 1 to 100, at which a photograph was stored as JPEG; it may have been cropped since.

    In one of the 64 grids of 8x8 pixels most fine coefficients of the cosine transform are 0, and the others near
    multiples of the quantization steps, which tell the quality, exactly so for standard tables. None if there is no
    such grid, as in resized photographs, or if the steps fit the other grids nearly as well, as in drawings, whose few
    colors repeat a few coefficients everywhere. Source: the idea of Fan & de Queiroz, "Identification of bitmap
    compression history", IEEE TIP 2003.
    """
    if min(image.shape[-2:]) < MIN_SIDE:
        return None
    y = 255 * luma(crop_middle(image[None, :3]).float().cpu()) - 128
    spectra = F.conv2d(y, _cosines())[0]  # spectra of the blocks that start at every pixel, (64, h - 7, w - 7)
    n = torch.arange(BLOCK)
    zeros = (spectra[(n[:, None] + n >= FINE).flatten()].abs() < ZERO).float().mean(0)  # share of fine coefficients
    rows, columns = (side // BLOCK for side in zeros.shape)
    shares = zeros[: rows * BLOCK, : columns * BLOCK].unflatten(0, (rows, BLOCK)).unflatten(2, (columns, BLOCK))
    top, left = divmod(int(shares.mean((0, 2)).argmax()), BLOCK)  # the start of the grid with the most zeros
    # the blocks of every grid, (63, N), without their means, which are round numbers in pixel art
    grids = {(i, j): spectra[1:, i::BLOCK, j::BLOCK].flatten(1) for i in range(BLOCK) for j in range(BLOCK)}
    values = grids.pop((top, left))
    scores = {quality: _nearness(values, quantization_steps(quality)[1:]) for quality in range(1, 100)}
    best = max(scores, key=scores.__getitem__)
    if scores[best] <= SIGNIFICANT:
        return None
    steps = quantization_steps(best)[1:]
    if all(_nearness(others, steps) < ELSEWHERE * scores[best] for others in grids.values()):
        return float(best)
    agreement = max(_agreement(others, steps) for others in grids.values())
    return float(best) if _agreement(values, steps) > agreement + AHEAD else None


@functools.cache
def quantization_steps(quality: int) -> Tensor:
    """Read the steps of luma, (64, 1), with which libjpeg stores photographs at a quality, 1 to 100."""
    file = io.BytesIO()
    Image.new("L", (BLOCK, BLOCK)).save(file, "JPEG", quality=quality)
    with open_image(file.getvalue()) as opened:
        return torch.tensor(opened.quantization[0])[:, None]  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _cosines() -> Tensor:
    """Return the basis of the DCT-II of 8x8 pixels, as a kernel ``(64, 1, 8, 8)``."""
    n = torch.arange(BLOCK)
    waves = torch.cos(math.pi / BLOCK * (n + 0.5) * n[:, None]) / 2
    waves[0] /= math.sqrt(2)
    return torch.einsum("ui,vj->uvij", waves, waves).flatten(0, 1)[:, None]


def _nearness(values: Tensor, steps: Tensor) -> float:
    """Compute the z-score of how much nearer values (K, N) are to multiples of their steps than by chance."""
    multiples = values / steps
    counts = ((multiples.abs() > 0.6) & (steps > 1)).float()  # 0 is a multiple of all
    nearer = ((0.25 - (multiples - multiples.round()).abs()) * counts).sum()
    return float(nearer / counts.sum().clamp(min=1).sqrt()) / CHANCE


def _agreement(values: Tensor, steps: Tensor) -> float:
    """Compute the share of values (K, N), but for those near 0, that are multiples of their steps; 0 is chance."""
    multiples = values / steps
    counts = ((multiples.abs() > 0.6) & (steps >= MIN_STEP)).float()
    chance = 2 * ROUNDING / steps
    hits = ((multiples - multiples.round()).abs() * steps < ROUNDING).float()
    return float(((hits - chance) * counts).sum() / ((1 - chance) * counts).sum().clamp(min=1))


def crop_middle(image: Tensor) -> Tensor:
    """Return the middle of images ``(..., H, W)`` that is measured."""
    top, left = (max(0, (side - MEASURED_SIDE) // 2) for side in image.shape[-2:])
    return image[..., top : top + MEASURED_SIDE, left : left + MEASURED_SIDE]


# --- noise ------------------------------------------------------------------------------------------------------------

PATCH = 5  # pixels of the side of patches
CALM = 0.25  # share of the patches, those of least variance, in which noise is measured
BIAS = 1.17  # noise of all patches relative to that of these
WHITE = 1.4  # highest ratio of the median deviation to the second smallest; those of white noise are nearly equal
MIN_COLOR, MIN_GRAY = 2.6, 4.5  # standard deviations, in 1/255, from which colored and gray noise count
MAX_NOISE = 40.0  # standard deviation, in 1/255, above which an image is no photograph
EQUAL = 0.25  # share of pixels that equal their neighbor from which an image is no photograph, but pixel art


def noise_level(image: Tensor) -> float:
    """Estimate the standard deviation of the noise of a photograph, in [0, 1]; 0 if it cannot be told from detail.

    Noise fills all directions of the space of small patches, detail only some: the smallest eigenvalues of the
    covariance of calm patches are the noise's variance. Differences of channels cancel detail but not noise, unless the
    noise is gray. Source: the idea of Liu, Tanaka & Okutomi, "Noise level estimation using weak textured patches",
    ICIP 2012.
    """
    if min(image.shape[-2:]) < MIN_SIDE:
        return 0.0
    pixels = crop_middle(image[:3]).cpu().float()
    if float((pixels[..., 1:] == pixels[..., :-1]).all(0).float().mean()) > EQUAL:
        return 0.0
    red, green, blue = 255 * pixels.double().expand(3, -1, -1)
    differences, colors = (red - green, blue - green), (red, green, blue)
    # noise in color if it is seen in the differences of channels, which add the noise of two; else gray noise
    for channels, gain, least in ((differences, math.sqrt(2), MIN_COLOR), (colors, 1, MIN_GRAY)):
        levels = [_noise(channel) for channel in channels]
        level = sum(levels) / len(levels) / gain
        if min(levels) > 0 and least <= level <= MAX_NOISE:
            return level / 255
    return 0.0


def _noise(channel: Tensor) -> float:
    """Measure the noise of a channel ``(H, W)``; 0 if its patches have detail in every direction."""
    patches = F.unfold(channel[None, None], PATCH)[0].T
    patches = patches - patches.mean(1, keepdim=True)
    power = patches.square().mean(1)
    calm = patches[power <= power.quantile(CALM)]
    calm = calm - calm.mean(0)
    variances = torch.linalg.eigvalsh(calm.T @ calm / len(calm)).clamp(min=0)
    deviations = variances[1:].sqrt()  # without the 0 of their means
    low, middle = float(deviations[1]), float(deviations[len(deviations) // 2])
    return BIAS * low if middle < WHITE * low else 0.0
