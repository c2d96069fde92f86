"""Damage of photographs: the JPEG quality at which they were stored, and noise; nothing is found in clean ones."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.color import luma

SIDE, MIN_SIDE = 192, 32  # pixels: the middle that is measured, and the least shorter side of images that are
BLOCK = 8
# JPEG's quantization steps of luma at quality 50 (Annex K of ITU-T T.81), of frequencies (row, column)
STEPS = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
FINE = 6  # sum of row and column from which on frequencies are fine: few of their coefficients are 0 by chance
ZERO = 0.7  # amplitude, of 255, below which a coefficient was set to 0
CHANCE = 0.144  # standard deviation of the distance of a random number to the nearest whole one, whose mean is 0.25
SURE = 15.0  # standard errors by which coefficients are nearer to multiples of their steps than by chance; clean: 10
PATCH, CALM = 5, 0.25  # pixels of the side of patches, and the share of them in which noise is measured: the calmest
BIAS = 1.17  # times as much noise is in all patches as in these
WHITE = 1.4  # times the second smallest deviation that of the middle may be: noise goes in all directions alike
MIN_COLOR, MIN_GRAY, MAX_NOISE = 2.6, 4.5, 40.0  # deviations, of 255, that count as noise; above, it is no photograph


def jpeg_quality(image: Tensor) -> float | None:
    """Estimate the quality, 1 to 100, at which a photograph was stored as JPEG, also where it was cut out of one.

    In one of the 64 grids of 8x8 pixels most fine coefficients of the cosine transform are 0, and the others near
    multiples of the quantization steps, which tell the quality: of standard tables exactly. None where there is no
    grid, also if it was resized since. Source: the idea of Fan & de Queiroz, "Identification of bitmap compression
    history", IEEE TIP 2003.
    """
    if min(image.shape[-2:]) < MIN_SIDE:
        return None
    spectra = F.conv2d(255 * luma(_middle(image)[None]) - 128, _waves())[0]  # (64, h - 7, w - 7)
    zeros = (spectra[_is_fine()].abs() < ZERO).float().mean(0)
    rows, columns = (side // BLOCK for side in zeros.shape)
    shares = zeros[: rows * BLOCK, : columns * BLOCK].unflatten(0, (rows, BLOCK)).unflatten(2, (columns, BLOCK))
    top, left = divmod(int(shares.mean((0, 2)).argmax()), BLOCK)
    values = spectra[:, top::BLOCK, left::BLOCK].flatten(1)  # (64, N)
    sure = [_nearness(values, steps_at(quality)) for quality in range(1, 100)]
    best = max(range(len(sure)), key=sure.__getitem__)
    return float(best + 1) if sure[best] > SURE else None


def steps_at(quality: int) -> Tensor:
    """Quantization steps of luma at a quality, 1 to 100, as libjpeg scales them: (8, 8)."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((STEPS * percent + 50) // 100).clamp(1, 255)


def noise_level(image: Tensor) -> float:
    """Estimate the standard deviation of the noise of a photograph, in [0, 1]; 0 where none is told from detail.

    Noise fills all directions of the space of small patches, and what photographs show only some: the smallest
    eigenvalues of the covariance of calm patches are its variance. Differences of channels show less detail and as much
    noise, unless that is gray. Source: the idea of Liu, Tanaka & Okutomi, "Noise level estimation using weak textured
    patches", ICIP 2012.
    """
    if min(image.shape[-2:]) < MIN_SIDE:
        return 0.0
    red, green, blue = 255 * _middle(image).double().expand(3, -1, -1)
    for channels, least in (((red - green, blue - green), MIN_COLOR), ((red, green, blue), MIN_GRAY)):
        levels = [_noise(channel) for channel in channels]
        level = sum(levels) / len(levels) / (math.sqrt(2) if least == MIN_COLOR else 1)
        if min(levels) > 0 and least <= level <= MAX_NOISE:
            return level / 255
    return 0.0


def _middle(image: Tensor) -> Tensor:
    top, left = (max(0, (side - SIDE) // 2) for side in image.shape[-2:])
    return image[:3, top : top + SIDE, left : left + SIDE].float().cpu()


@functools.cache
def _waves() -> Tensor:
    """The cosine transform of all blocks, as a kernel ``(64, 1, 8, 8)``."""
    n = torch.arange(BLOCK)
    waves = torch.cos(math.pi / BLOCK * (n + 0.5) * n[:, None]) / 2
    waves[0] /= math.sqrt(2)
    return torch.einsum("ui,vj->uvij", waves, waves).flatten(0, 1)[:, None]


def _is_fine() -> Tensor:
    n = torch.arange(BLOCK)
    return (n[:, None] + n >= FINE).flatten()


def _nearness(values: Tensor, steps: Tensor) -> float:
    """Tell by how many standard errors values (64, N) are nearer to multiples of their steps than by chance."""
    multiples = values / steps.flatten()[:, None]
    counts = ((multiples.abs() > 0.6) & (steps.flatten()[:, None] > 1)).float()  # 0 is a multiple of all
    nearer = ((0.25 - (multiples - multiples.round()).abs()) * counts).sum()
    return float(nearer / counts.sum().clamp(min=1).sqrt()) / CHANCE


def _noise(channel: Tensor) -> float:
    """Measure the noise of a channel ``(H, W)``; 0 where its patches show something in every direction."""
    patches = F.unfold(channel[None, None], PATCH)[0].T
    patches = patches - patches.mean(1, keepdim=True)
    loudness = patches.square().mean(1)
    calm = patches[loudness <= loudness.quantile(CALM)]
    calm = calm - calm.mean(0)
    deviations = torch.linalg.eigvalsh(calm.T @ calm / len(calm)).clamp(min=0).sqrt()[1:]  # without the mean's
    low, middle = float(deviations[1]), float(deviations[len(deviations) // 2])
    return BIAS * low if middle < WHITE * low else 0.0
