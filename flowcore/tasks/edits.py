"""Where a picture that a flow made was edited since: where its latents agree less with their noise than elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import say
from ..images.motion import blur

SMOOTH = 9, 65  # positions of the finest latents: smallest and largest window of the map of agreement
USUAL = 0.6  # share of the expected agreement below which a place counts as edited
EVIDENCE = 5.0  # z of a window of that map where the picture is unchanged
# Mean agreement, and the share of glowing pixels from which on a picture counts as edited: the weaker the agreement,
# the more of an unedited picture glows, measured by ``python -m benchmarks.traceable FOLDER --unedited``. Below
# ``CERTAIN``, some of them glow more.
EDITED = ((0.5, 0.0005), (0.1, 0.005), (-1.0, 0.02))
CERTAIN = 0.1
BOXES = 3

Box = tuple[int, int, int, int]  # left, top, right and bottom


def describe_edits(share: float, agreement: float) -> str:
    """Say that a share of a picture of this mean agreement was edited, as far as that is certain."""
    percent = f"{100 * share:.2g}"
    if agreement >= CERTAIN:
        return say("About {percent} % was edited since.", percent=percent)
    return say("About {percent} % of it may have been edited since.", percent=percent)


def least_share(agreement: float) -> float:
    """Return the share of a picture of this mean agreement from which on it counts as edited."""
    return next(share for least, share in EDITED if agreement >= least)


def largest_boxes(excess: Tensor, size: tuple[int, int]) -> list[Box]:
    """Find where a map ``(H, W)`` has most, the largest first, without overlap, in a picture of another size."""
    height, width = excess.shape
    side = min(max(16, max(height, width) // 8), height, width)
    step, boxes = max(1, side // 8), list[Box]()
    sums = F.avg_pool2d(excess[None, None], side, stride=step)[0, 0]
    while len(boxes) < BOXES and float(sums.max()) > 0:
        row, column = divmod(int(sums.argmax()), sums.shape[1])
        box = column * step, row * step, column * step + side, row * step + side
        left, top, right, bottom = (round(n * size[k % 2 == 0] / (width, height)[k % 2]) for k, n in enumerate(box))
        boxes.append((left, top, right, bottom))
        reach = math.ceil(side / step)
        sums[max(0, row - reach + 1) : row + reach, max(0, column - reach + 1) : column + reach] = 0
    return boxes


class _Local(NamedTuple):
    """Statistics around every position of the finest latents, each ``(1, 1, h, w)``."""

    agreement: Tensor  # correlation of latents and noise
    rms: Tensor  # root mean square of the latents
    window: int  # positions, side
    deviation: float  # standard deviation of the agreement by chance


def local_statistics(pairs: Sequence[tuple[Tensor, Tensor]]) -> _Local:
    """Compare latents with noise around every position of the finest latents."""
    finest = pairs[0][0].shape[-2:]
    sums, values = torch.zeros(1, 3, *finest), 0.0  # z n, z^2 and n^2 per finest position; and their number there
    for z, n in pairs:
        cells = torch.stack([(z * n).sum(1), z.square().sum(1), n.square().sum(1)], 1)
        share = math.prod(z.shape[-2:]) / math.prod(finest)
        sums += share * F.interpolate(cells, finest, mode="nearest")
        values += share * z.shape[1]
    overall = sums.sum((0, 2, 3))
    correlation = float(overall[0] / (overall[1] * overall[2]).sqrt().clamp_min(1e-6))
    side = EVIDENCE / (max(correlation, 1e-3) * math.sqrt(values))  # z is about EVIDENCE within
    window = 2 * round(min(max(side, SMOOTH[0]), SMOOTH[1], *finest) / 2) + 1
    products, powers, noise = blur(sums, window).split(1, 1)
    agreement = products / (powers * noise).sqrt().clamp_min(1e-6)
    return _Local(agreement, (powers / values).sqrt(), window, 1 / math.sqrt(values * window**2))


def edited_map(local: _Local, detail: Tensor) -> Tensor:
    """Compute how far agreement is below what the picture's detail lets expect there, ``(1, 1, h, w)`` in [0, 1].

    JPEG and resizing weaken it where there is little ``detail`` ``(1, 1, h, w)``, or latents are unusually small or
    large. So the expectation is a quadratic polynomial in both, fitted to the picture itself, robustly. 0 where even
    that is not above chance.
    """
    planes = [_standardized(plane) for plane in (local.rms, detail.clamp_min(1e-9).log())]
    one, (a, b) = torch.ones(local.agreement.numel(), dtype=torch.float64), planes
    terms = torch.stack([one, a, b, a * a, b * b, a * b], 1)
    values = local.agreement.flatten().double()
    weights, expected = one, values
    for _ in range(4):  # iteratively reweighted least squares, with Cauchy's weights
        rows = weights.sqrt()[:, None]
        expected = (terms @ torch.linalg.lstsq(terms * rows, values[:, None] * rows).solution)[:, 0]
        errors = values - expected
        weights = 1 / (1 + (errors / (3 * errors.abs().median()).clamp_min(1e-6)).square())
    fallen = ((USUAL - values / expected.clamp_min(1e-6)) / USUAL).clamp(0, 1)
    return torch.where(expected > 3 * local.deviation, fallen, 0.0).view_as(local.agreement).float()


def _standardized(plane: Tensor) -> Tensor:
    flat = plane.flatten().double()
    return (flat - flat.mean()) / flat.std().clamp_min(1e-6)
