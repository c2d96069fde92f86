"""Damage of a photograph: JPEG blocks, and noise. Both measures find nothing in clean photographs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.color import luma

SIDE, MIN_SIDE = 192, 32  # pixels: the middle that is measured, and the least shorter side of images that are
BLOCK = 8
# Quantization steps of JPEG's luma at quality 50, of the lowest frequencies (u, v).
STEPS = {
    **{(0, 1): 11, (0, 2): 10, (0, 3): 16, (0, 4): 24, (1, 0): 12, (1, 1): 12, (1, 2): 14, (1, 3): 19, (2, 0): 14},
    **{(2, 1): 13, (2, 2): 16, (3, 0): 14, (3, 1): 17, (4, 0): 18},
}
MAX_STEP = 64
ZERO = 1.0  # amplitude, of 255, below which a coefficient was set to 0
CHANCE = 0.144  # standard deviation of the distance of a random number to the nearest whole one, whose mean is 0.25
SURE = 15.0  # standard errors by which coefficients are nearer to multiples of their steps than by chance; clean: 11
CERTAIN = 4.0  # the same of one coefficient
PATCH, CALM = 5, 0.25  # pixels of the side of patches, and the share of them in which noise is measured: the calmest
BIAS = 1.13  # times as much noise is in all patches as in these
WHITE = 1.45  # times the second smallest deviation that of the middle may be: noise goes in all directions alike
MIN_NOISE, MAX_NOISE = 4.5, 40.0  # deviations, of 255, that count as noise; above, a picture is no photograph


def jpeg_quality(image: Tensor) -> float | None:
    """Estimate the quality, 1 to 100, at which a photograph was stored as JPEG, also where it was cut out of one.

    In one of the 64 grids of 8x8 pixels most coefficients of the cosine transform are 0 and the others near multiples
    of the quantization steps; the quality is that whose table has these steps. None where there is no grid: in files
    that were never stored so, or were resized since.

    Source: the idea of Fan & de Queiroz, "Identification of bitmap compression history", IEEE TIP 2003.
    """
    if min(image.shape[-2:]) < MIN_SIDE:
        return None
    y = 255 * luma(_middle(image)[None])[0, 0] - 128
    grids = [_spectrum(y[top:, left:]) for top in range(BLOCK) for left in range(BLOCK)]
    spectrum = max(grids, key=lambda each: float((each.abs() < ZERO).float().mean()))
    found = [_step(spectrum[:, u, v], step) for (u, v), step in STEPS.items()]
    if math.hypot(*(sure for _, sure in found)) < SURE:
        return None
    ratios = sorted(ratio for ratio, sure in found if sure > CERTAIN)
    if not ratios:
        return None
    ratio = ratios[len(ratios) // 2]
    return 100 - 50 * ratio if ratio <= 1 else max(1.0, 50 / ratio)


def noise_level(image: Tensor) -> float:
    """Estimate the standard deviation of the noise of a photograph, in [0, 1]; 0 where none is told from detail.

    Noise fills all directions of the space of small patches, and what photographs show only some: the smallest
    eigenvalues of the covariance of calm patches are its variance. Source: the idea of Liu, Tanaka & Okutomi, "Noise
    level estimation using weak textured patches", ICIP 2012.
    """
    if min(image.shape[-2:]) < MIN_SIDE:
        return 0.0
    levels = [_noise(255 * channel) for channel in _middle(image).double()]
    level = sum(levels) / len(levels)
    return level / 255 if min(levels) > 0 and MIN_NOISE <= level <= MAX_NOISE else 0.0


def _middle(image: Tensor) -> Tensor:
    top, left = (max(0, (side - SIDE) // 2) for side in image.shape[-2:])
    return image[:3, top : top + SIDE, left : left + SIDE].float().cpu()


def _spectrum(y: Tensor) -> Tensor:
    """Transform the blocks of a grid that begins at the corner: ``(N, 8, 8)``."""
    n = torch.arange(BLOCK)
    waves = torch.cos(math.pi / BLOCK * (n + 0.5) * n[:, None]) / 2
    waves[0] /= math.sqrt(2)
    height, width = (side // BLOCK * BLOCK for side in y.shape)
    blocks = y[:height, :width].unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).transpose(1, 2).flatten(0, 1)
    return waves @ blocks @ waves.T


def _step(values: Tensor, usual: int) -> tuple[float, float]:
    """Find the step of which values are multiples: as a ratio to the usual one, and by how many standard errors."""
    steps = torch.arange(2, MAX_STEP + 1)
    multiples = values / steps[:, None]  # (steps, N)
    counts = (multiples.abs() > 0.6).float()  # 0 is a multiple of all
    nearer = ((0.25 - (multiples - multiples.round()).abs()) * counts).sum(1) / counts.sum(1).clamp(min=1).sqrt()
    best = int(nearer.argmax())
    return float(steps[best]) / usual, float(nearer[best]) / CHANCE


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
