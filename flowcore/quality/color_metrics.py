"""Measures of colorization: distance, coherence, colorfulness, seams, and color of skin.

Chroma is ``(B, 2, H, W)`` as ``color.split`` returns it: centered on 0, 1 is the range from darkest to brightest. All
measures are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..device import float64

FLAT = 4 / 255
"""Change of luma between neighboring positions below which there is no edge: a change of chroma there may be a seam.

Half of all neighbors in 29 test photographs, on a grid of 64 positions for the shorter side. At half or twice this
threshold photographs have no seams either, and colorings have (docs/decisions/0014).
"""

ROUNDING = 1e-6  # mean change of chroma that is none

SKIN_PATCH = (0.50, 0.64, 0.40, 0.60)
"""Top, bottom, left and right, over the side, of nose and cheeks in a portrait whose eyes are at 0.45 of its height."""

SKIN_HUES = (80.0, 136.0)
"""Range of the hue of human skin: angle of (Cb, Cr), in degrees. Blue is below 60, green above 180.

The 0.1st and 99.9th percentile, rounded, of the mean chroma of ``SKIN_PATCH`` in 1,171 portraits, none of them black
and white. The two faces below have a magenta cast, the two above a yellow one. All 107 held-out portraits are within.
"""

SKIN_MIN_CHROMA = 0.02
"""Length of the mean chroma below which skin counts as gray, whatever its hue; the palest of these portraits has 0.027.
"""


def chroma_rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of chroma, over both channels and all pixels: ``sqrt(mean (a - b)^2)``, ``(B,)``.

    The tables of Ardizzone et al. 2019 (arXiv 1907.02392) take the least of several samples per pixel and channel,
    which noise improves; it does not improve the least of these numbers, one per image.
    """
    return (a - b).square().flatten(1).mean(1).sqrt()


def global_share(residual: Tensor) -> Tensor:
    """Share of a chroma difference r, ``(B, 2, H, W)``, that is one shift of the entire image (its DC fraction).

    ``HW |mean over pixels of r|^2 / sum over pixels of |r|^2``, ``(B,)``: 1 if all pixels differ alike, 1/(HW) on
    average for independent noise, NaN where there is no difference at all.
    """
    return residual.mean((2, 3)).square().sum(1) / residual.square().sum(1).mean((1, 2))


def coherence_parts(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    """Compare how samples differ from each other with how the truth differs from them: globally, or in patches.

    With m the mean of the samples (chroma ``(N, 2, H, W)``, N at least 2; truth ``(1, 2, H, W)``) and g
    ``global_share``: ``mean over samples of g(sample - m)``, and ``g(truth - m)``. The coherence of many images is the
    mean of the first over the mean of the second. If the truth is one more draw from the samples' distribution, both
    have the same expectation: 1 is ideal, and near 0 every patch chooses a color of its own. One image says little.
    """
    mean = samples.mean(0, keepdim=True)
    return float(global_share(samples - mean).mean()), float(global_share(truth - mean))


def colorfulness(chroma: Tensor) -> Tensor:
    """Root mean square length of chroma: ``sqrt(mean over pixels of (Cb^2 + Cr^2))``, ``(B,)``; 0 for gray.

    Simpler than Hasler & Suesstrunk, "Measuring colourfulness in natural images" (2003), which weighs spread and mean
    of opponent colors.
    """
    return chroma.square().sum(1).mean((1, 2)).sqrt()


def seam_sums(chroma: Tensor, luma: Tensor, cell: int) -> Tensor:
    """Add up changes of chroma across the borders of a grid's cells, and inside them, for ``seam_ratio``.

    Sum and number of ``|chroma[i + 1] - chroma[i]|`` (mean of both channels, rows and columns) of neighboring positions
    in different cells, then of neighbors in one cell: ``(4,)`` float64, to be added up over images. Only neighbors with
    ``|luma[i + 1] - luma[i]| < FLAT`` count, where a change of color has no edge to follow. Chroma is ``(B, 2, h, w)``
    on the finest grid that a colorizer decides on (what is finer is interpolated), luma ``(B or 1, 1, h, w)``; cells of
    ``cell >= 2`` positions start at the top left.

    Source: the idea of Wu and Yuen, "A generalized block-edge impairment metric for video coding" (1997), applied to
    chroma.
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

    A photograph knows nothing of cells: 1, or up to 1.1 where cells are so large that their borders pass through the
    subject in the middle. Cells that disagree: more. Infinite if chroma changes across borders only; NaN if it does not
    change at all, or without neighbors on either side.
    """
    across, across_number, inside, inside_number = sums.tolist()
    if not across_number or not inside_number:
        return math.nan
    across, inside = across / across_number, inside / inside_number
    if inside < ROUNDING:
        return math.nan if across < ROUNDING else math.inf
    return across / inside


def fog(chroma: Tensor, luma: Tensor) -> Tensor:
    """Measure how much color changes where luma does not: root mean square over both channels of those neighbors.

    ``(B,)`` float64, of chroma as in ``seam_sums``; NaN where luma changes everywhere. Relative to that of the
    photograph's own colors, above 1 means blobs that follow no object.
    """
    squares, number = torch.zeros(len(chroma), dtype=torch.float64), torch.zeros(len(chroma), dtype=torch.float64)
    for dim in (2, 3):
        change = float64(chroma).diff(dim=dim).square().mean(1, keepdim=True).cpu()
        still = (luma.diff(dim=dim).abs() < FLAT).cpu().expand_as(change)
        squares += (change * still).flatten(1).sum(1)
        number += still.flatten(1).sum(1)
    return (squares / number).sqrt()


def skin_color(chroma: Tensor) -> tuple[Tensor, Tensor]:
    """Measure the color of the skin in portraits: hue and strength of the mean chroma of ``SKIN_PATCH``.

    That is the angle of (Cb, Cr) in degrees, in [0, 360), and its length; ``(B,)`` each. Portraits are aligned: irises
    at 0.45 of the height, 0.38 and 0.61 of the width.
    """
    top, bottom, left, right = (
        round(part * side) for part, side in zip(SKIN_PATCH, [chroma.shape[2]] * 2 + [chroma.shape[3]] * 2, strict=True)
    )
    patch = chroma[:, :, top : max(bottom, top + 1), left : max(right, left + 1)].mean((2, 3))
    return torch.rad2deg(torch.atan2(patch[:, 1], patch[:, 0])) % 360, patch.norm(dim=1)


def skin_verdict(chroma: Tensor) -> tuple[Tensor, Tensor]:
    """Judge the skin in portraits, see ``skin_color``: whether its hue is that of no human skin, and if it is gray.

    Outside ``SKIN_HUES``; or shorter than ``SKIN_MIN_CHROMA``, and then not outside. ``(B,)`` bool each.
    """
    hue, strength = skin_color(chroma)
    gray = strength < SKIN_MIN_CHROMA
    return ~gray & ((hue < SKIN_HUES[0]) | (hue > SKIN_HUES[1])), gray
