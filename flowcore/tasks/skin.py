"""Skin for the faces in a photograph that is colorized: a soft hint, drawn per seed from the skin of portraits.

Between the features of a small face and those of a wall, a colorizer finds little difference, so small faces stay gray.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..flows.condition import Condition
from ..images.resize import resize_bilinear
from .chroma import Colorization
from .finders.faces import Oval, find_faces
from .hints import premultiply, unpremultiply

SMALLEST = 12  # pixels: width of the smallest box from eyebrows to chin that gets skin
SEARCHED = 576  # pixels: longest side of the picture in which faces are looked for
# Of the skin of 1,278 portraits by its luma: length of the chroma, and hue in degrees from Cb towards Cr. The length is
# the median from .46 to .69. The others are pale in the studio's light, brighter ones overexposed, so there it is the
# 75th, at .81 the 90th percentile, and the hue that of these.
LUMA = (0.34, 0.46, 0.56, 0.63, 0.69, 0.75, 0.81)
LENGTH = (0.100, 0.114, 0.132, 0.141, 0.132, 0.141, 0.111)
HUE = (122.0, 122.0, 123.0, 123.0, 122.0, 122.0, 120.0)
LENGTH_SPREAD = 0.3  # standard deviation of the logarithm of that length
HUE_SPREAD, HUE_FOLLOWS = 7.0, 0.6  # standard deviation of the hue, and its correlation with the length
LEAST, MOST = -0.6, 1.0  # standard deviations that a face differs from the mean
ALIKE = 0.85  # correlation between the faces of a picture: they are in the same light
WIDE, HIGH, RISE = 0.44, 0.6, 0.1  # radii of the oval, in widths of the box from eyebrows to chin; and how far it rises
DARK = 0.45, 0.7  # luma relative to the face: below is hair or an eye, above it is skin
WEIGHT = 0.1  # relative to that of hints
STEPS = 4.0  # how far the colors spread, in positions of the finest grid: to neck and ears
SEED_XOR = 0x51C0FACE  # mixed into seeds: skin does not depend on latents of that seed


def find_ovals(y: Tensor, check: Callable[[], None]) -> tuple[Oval, ...]:
    """Find the faces in a photograph's luma ``(1, 1, H, W)``, the largest first."""
    factor = min(1.0, SEARCHED / max(y.shape[-2:]))
    sides = [max(1, round(side * factor)) for side in y.shape[-2:]]
    small = (255 * resize_bilinear(y.float().cpu(), sides)).round().clamp(0, 255).byte()
    check()
    return _find(small.numpy().tobytes(), *sides)


@lru_cache(maxsize=16)  # a picture is often colorized again, with other settings
def _find(pixels: bytes, height: int, width: int) -> tuple[Oval, ...]:
    image = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, 1, height, width)
    (faces,) = find_faces(image, smallest=SMALLEST, turned=False)
    return tuple(face.oval(height, width, high=HIGH, wide=WIDE, rise=RISE) for face in faces)


def add_skin(
    job: Colorization, chroma: Tensor, faces: Sequence[Oval], batch: slice, cond: Condition, seeds: Sequence[int | None]
) -> Tensor:
    """Give the faces of one image a color of skin, for each of its colorings that of a seed; None for the mean."""
    y = job.working_luma[batch].to(job.run.device)
    hints = [hint_skin(faces, y, job.chroma_size, seed) for seed in seeds]
    pairs = zip(chroma.split(1), hints, strict=True)
    return torch.cat([job.spread_colors(one, batch, cond, each, STEPS) for one, each in pairs])


def hint_skin(ovals: Sequence[Oval], y: Tensor, grid: Sequence[int], seed: int | None) -> tuple[Tensor, Tensor]:
    """Draw the skin of faces: coverage ``(1, 1, h, w)`` and chroma ``(1, 2, h, w)`` on a grid; seed None: the mean.

    ``y`` is the luma ``(1, 1, H, W)``, whose sides are multiples of the grid's.
    """
    generator = torch.Generator().manual_seed((seed or 0) ^ SEED_XOR)
    shared = torch.randn(2, generator=generator)
    covered, tinted = torch.zeros_like(y), torch.zeros_like(y).expand(-1, 2, -1, -1).clone()
    for oval in ovals:
        own = torch.randn(2, generator=generator)
        draw = torch.zeros(2) if seed is None else math.sqrt(ALIKE) * shared + math.sqrt(1 - ALIKE) * own
        distance = oval.distances(y.shape[-2], y.shape[-1], y.device)
        inner = y[0, 0][distance < 0.6]
        if not len(inner):
            continue
        light = float(inner.median())
        relative = y[0, 0] / max(light, 0.02)
        low, high = DARK
        coverage = (3 * (1 - distance)).clamp(0, 1) * ((relative - low) / (high - low)).clamp(0, 1)
        chroma = skin_chroma(light, *draw.clamp(LEAST, MOST).tolist())
        covered[0, 0] = torch.maximum(covered[0, 0], coverage)
        tint = torch.tensor(chroma, device=y.device, dtype=y.dtype)[:, None, None] * relative.clamp(max=1)
        tinted[0] = torch.where(coverage > 0, tint, tinted[0])
    coverage, chroma = unpremultiply(F.adaptive_avg_pool2d(premultiply(covered, tinted), (grid[0], grid[1])))
    return WEIGHT * coverage, chroma


def skin_chroma(luma: float, length: float, hue: float) -> tuple[float, float]:
    """Compute the chroma of skin of a luma; length and hue are in standard deviations from the mean, the lowest hue."""
    long = float(np.interp(luma, LUMA, LENGTH)) * math.exp(LENGTH_SPREAD * length)
    turn = HUE_SPREAD * (HUE_FOLLOWS * length + math.sqrt(1 - HUE_FOLLOWS**2) * hue)
    angle = math.radians(float(np.interp(luma, LUMA, HUE)) + max(0.0, turn))  # skin below that mean looks mauve
    return long * math.cos(angle), long * math.sin(angle)
