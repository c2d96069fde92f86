"""Measures of colorization, all ours: distance, coherence, colorfulness, seams, and color of skin.

Chroma is ``(B, 2, H, W)`` as ``color.split`` returns it: centered on 0, 1 is the range from darkest to brightest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..device import float64

FLAT = 4 / 255  # change of luma to a neighbor below which there is no edge, see docs/decisions/0014: half of them
ROUNDING = 1e-6  # mean change of chroma that is none
# top, bottom, left and right, over the side, of nose and cheeks in a portrait whose eyes are at 0.45 of its height
SKIN_PATCH = (0.50, 0.64, 0.40, 0.60)
# The hue of human skin, an angle of (Cb, Cr) in degrees: the 0.1st and 99.9th percentile, rounded, of SKIN_PATCH in
# 1,171 portraits in color. All 107 held-out ones are within. Blue is below 60, green above 180.
SKIN_HUES = (80.0, 136.0)
SKIN_MIN_CHROMA = 0.02  # below which skin counts as gray; the palest of these portraits has 0.027


def chroma_rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of chroma, over both channels and all pixels: ``sqrt(mean (a - b)^2)``, ``(B,)``."""
    return (a - b).square().flatten(1).mean(1).sqrt()


def global_share(residual: Tensor) -> Tensor:
    """Share of a chroma difference r, ``(B, 2, H, W)``, that is one shift of the entire image (its DC fraction).

    ``HW |mean over pixels of r|^2 / sum over pixels of |r|^2``, ``(B,)``: 1 if all pixels differ alike, 1/(HW) on
    average for independent noise, NaN where there is no difference at all.
    """
    return residual.mean((2, 3)).square().sum(1) / residual.square().sum(1).mean((1, 2))


def coherence_parts(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    """Compare how samples differ from their mean with how the truth does: globally, or in patches.

    With m the mean of the samples ``(N, 2, H, W)`` and g ``global_share``: ``mean over samples of g(sample - m)``, and
    ``g(truth - m)``. The coherence of many images is the mean of the first over that of the second: 1 is ideal, and
    near 0 every patch chooses a color of its own.
    """
    mean = samples.mean(0, keepdim=True)
    return float(global_share(samples - mean).mean()), float(global_share(truth - mean))


def colorfulness(chroma: Tensor) -> Tensor:
    """Root mean square length of chroma: ``sqrt(mean over pixels of (Cb^2 + Cr^2))``, ``(B,)``; 0 for gray."""
    return chroma.square().sum(1).mean((1, 2)).sqrt()


def seam_sums(chroma: Tensor, luma: Tensor, cell: int) -> Tensor:
    """Add up changes of chroma across the borders of a grid's cells, and inside them, for ``seam_ratio``.

    Sum and number of ``|chroma[i + 1] - chroma[i]|`` of neighbors in different cells, then of neighbors in one cell:
    ``(4,)`` float64, to be added up over images. Only neighbors whose lumas differ by less than ``FLAT`` count, where a
    change of color has no edge to follow. Luma is ``(B or 1, 1, h, w)``; cells of ``cell >= 2`` positions start at the
    top left.

    Source: the idea of Wu and Yuen, "A generalized block-edge impairment metric for video coding" (1997).
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for dim in (2, 3):
        change = chroma.diff(dim=dim).abs().mean(1, keepdim=True).movedim(dim, 0)  # (h - 1 or w - 1, B, 1, ...)
        still = (luma.diff(dim=dim).abs() < FLAT).movedim(dim, 0).expand_as(change)
        border = torch.arange(1, len(change) + 1, device=change.device) % cell == 0
        for first, part in ((0, border), (2, ~border)):
            counted = change[part][still[part]]
            sums[first] += float(float64(counted).sum())
            sums[first + 1] += counted.numel()
    return sums


def seam_ratio(sums: Tensor) -> float:
    """Ratio of the mean change across borders to that inside cells, of the ``seam_sums`` of all images.

    Photographs have 1 to 1.1, cells that disagree more. Infinite if chroma changes across borders only; NaN if it does
    not change at all, or without neighbors on either side.
    """
    across, across_number, inside, inside_number = sums.tolist()
    if not across_number or not inside_number:
        return math.nan
    across, inside = across / across_number, inside / inside_number
    if inside < ROUNDING:
        return math.nan if across < ROUNDING else math.inf
    return across / inside


def fog(chroma: Tensor, luma: Tensor) -> Tensor:
    """Root mean square change of color between neighbors where luma does not change, ``(B,)`` float64.

    NaN where luma changes everywhere. More than in the photograph's own colors means blobs that follow no object.
    """
    squares, number = torch.zeros(len(chroma), dtype=torch.float64), torch.zeros(len(chroma), dtype=torch.float64)
    for dim in (2, 3):
        change = float64(chroma).diff(dim=dim).square().mean(1, keepdim=True).cpu()
        still = (luma.diff(dim=dim).abs() < FLAT).cpu().expand_as(change)
        squares += (change * still).flatten(1).sum(1)
        number += still.flatten(1).sum(1)
    return (squares / number).sqrt()


def skin_color(chroma: Tensor) -> tuple[Tensor, Tensor]:
    """Measure the skin in aligned portraits: hue in degrees, and length, of the mean chroma of ``SKIN_PATCH``.

    Irises are at 0.45 of the height, 0.38 and 0.61 of the width.
    """
    height, width = chroma.shape[2:]
    top, bottom = (round(part * height) for part in SKIN_PATCH[:2])
    left, right = (round(part * width) for part in SKIN_PATCH[2:])
    patch = chroma[:, :, top : max(bottom, top + 1), left : max(right, left + 1)].mean((2, 3))
    return torch.rad2deg(torch.atan2(patch[:, 1], patch[:, 0])) % 360, patch.norm(dim=1)


def skin_verdict(chroma: Tensor) -> tuple[Tensor, Tensor]:
    """Judge the skin in portraits, see ``skin_color``: whether its hue is that of no human skin, or if it is gray."""
    hue, strength = skin_color(chroma)
    gray = strength < SKIN_MIN_CHROMA
    return ~gray & ((hue < SKIN_HUES[0]) | (hue > SKIN_HUES[1])), gray
