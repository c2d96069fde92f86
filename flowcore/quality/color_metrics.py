"""Measures of colorization: distance, coherence, colorfulness, seams, and color of skin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..device import float64
from ..errors import ShapeError

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
    """Root mean square difference of chroma, over both channels and all pixels: ``sqrt(mean (a - b)^2)``.

    Args:
        a: ``(B or 1, 2, H, W)``.
        b: ``(B or 1, 2, H, W)``.

    Returns:
        Per image, ``(B,)``, in the unit of the chroma (1 is the range from darkest to brightest).

    Raises:
        ShapeError: If the two do not fit together.

    Source: ours. The tables of Ardizzone et al. 2019 (arXiv 1907.02392) take the least of several samples per pixel
        and channel, which noise improves; it does not improve the least of these numbers, one per image.
    """
    _check_chroma(a, "chroma")
    _check_chroma(b, "chroma")
    if a.shape[2:] != b.shape[2:] or (a.shape[0] != b.shape[0] and 1 not in (a.shape[0], b.shape[0])):
        raise ShapeError(
            f"Expected chroma of one size, and of one batch or a batch of 1; got {tuple(a.shape)} and "
            f"{tuple(b.shape)}. Resize one to the other."
        )
    return (a - b).square().flatten(1).mean(1).sqrt()


def global_share(residual: Tensor) -> Tensor:
    """Share of a chroma difference that is one shift of the entire image (its DC fraction).

    ``HW |mean over pixels of r|^2 / sum over pixels of |r|^2``: 1 if all pixels differ alike, 1/(HW) on average for
    independent noise.

    Args:
        residual: r, ``(B, 2, H, W)``.

    Returns:
        In [0, 1], ``(B,)``; NaN where there is no difference at all.

    Raises:
        ShapeError: If it is not chroma.

    Source: ours.
    """
    _check_chroma(residual, "a difference of chroma")
    return residual.mean((2, 3)).square().sum(1) / residual.square().sum(1).mean((1, 2))


def coherence_parts(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    """Compare how samples differ from each other with how the truth differs from them: globally, or in patches.

    With m the mean of the samples and g ``global_share``: ``mean over samples of g(sample - m)``, and ``g(truth - m)``.
    The coherence of many images is the mean of the first over the mean of the second. If the truth is one more draw
    from the samples' distribution, both have the same expectation: 1 is ideal, and near 0 every patch chooses a color
    of its own. One image says little.

    Args:
        samples: Chroma of several samples for one image, ``(N, 2, H, W)``, N at least 2.
        truth: The image's own chroma, ``(1, 2, H, W)``.

    Returns:
        Numerator and denominator, each in [0, 1].

    Raises:
        ShapeError: If there is one sample only, or the two do not fit together.

    Source: ours.
    """
    _check_chroma(samples, "samples")
    if len(samples) < 2:
        raise ShapeError(f"Coherence needs at least 2 samples; got {len(samples)}. Draw more, with other seeds.")
    if truth.shape != (1, *samples.shape[1:]):
        raise ShapeError(
            f"Expected the truth as one image of the samples' size, {(1, *samples.shape[1:])}; got "
            f"{tuple(truth.shape)}. Resize it to the samples."
        )
    mean = samples.mean(0, keepdim=True)
    return float(global_share(samples - mean).mean()), float(global_share(truth - mean))


def colorfulness(chroma: Tensor) -> Tensor:
    """Root mean square length of chroma: ``sqrt(mean over pixels of (Cb^2 + Cr^2))``.

    Args:
        chroma: ``(B, 2, H, W)``, centered on 0.

    Returns:
        ``(B,)``; 0 for gray.

    Raises:
        ShapeError: If it is not chroma.

    Source: ours; simpler than Hasler & Suesstrunk, "Measuring colourfulness in natural images" (2003), which weighs
        spread and mean of opponent colors.
    """
    _check_chroma(chroma, "chroma")
    return chroma.square().sum(1).mean((1, 2)).sqrt()


def seams(chroma: Tensor, luma: Tensor, cell: int, *, flat: float = FLAT) -> float:
    """Compare the change of chroma across the borders of a grid's cells with the change inside them.

    Mean ``|chroma[i + 1] - chroma[i]|``, over both channels, rows and columns, of neighboring positions in different
    cells, over the same of neighbors in one cell; in both cases only neighbors with
    ``|luma[i + 1] - luma[i]| < flat``, where a change of color has no edge to follow. A photograph knows nothing of
    cells: 1, or up to 1.1 where cells are so large that their borders pass through the subject in the middle. Cells
    that disagree: more.

    Args:
        chroma: ``(B, 2, h, w)``, on the finest grid that a colorizer decides on: what is finer is interpolated.
        luma: ``(B or 1, 1, h, w)`` in [0, 1].
        cell: Side of a cell, in positions, at least 2; the first cell starts at the top left.
        flat: Changes of luma below this are no edges.

    Returns:
        The ratio of the means over all images; infinite if chroma changes across borders only, NaN if it does not
        change at all, or without such neighbors on either side.

    Raises:
        ShapeError: If the two do not fit together, or a cell is smaller than 2.

    Source: ours; the idea of Wu and Yuen, "A generalized block-edge impairment metric for video coding" (1997), applied
        to chroma.
    """
    return seam_ratio(seam_sums(chroma, luma, cell, flat=flat))


def seam_sums(chroma: Tensor, luma: Tensor, cell: int, *, flat: float = FLAT) -> Tensor:
    """Compute what ``seam_ratio`` needs, to be added up over images.

    Returns:
        ``(4,)`` float64: sum and number of changes across borders, sum and number inside cells.
    """
    _check_chroma(chroma, "chroma")
    if luma.ndim != 4 or luma.shape[1] != 1 or len(luma) not in (1, len(chroma)) or luma.shape[2:] != chroma.shape[2:]:
        raise ShapeError(
            f"Expected chroma (B, 2, h, w) and luma (B or 1, 1, h, w) of one size; got {tuple(chroma.shape)} and "
            f"{tuple(luma.shape)}. Resize both to the grid that colors were decided on."
        )
    if cell < 2:
        raise ShapeError(f"Expected cells of at least 2 positions; got {cell}.")
    sums = torch.zeros(4, dtype=torch.float64)
    for dim in (2, 3):
        change = chroma.diff(dim=dim).abs().mean(1, keepdim=True).movedim(dim, 0)  # (h - 1 or w - 1, B, 1, ...)
        still = (luma.diff(dim=dim).abs() < flat).movedim(dim, 0).expand_as(change)
        border = torch.arange(1, len(change) + 1, device=change.device) % cell == 0
        for first, part in ((0, border), (2, ~border)):
            counted = change[part][still[part]]
            sums[first] += float(float64(counted).sum())
            sums[first + 1] += counted.numel()
    return sums


def seam_ratio(sums: Tensor) -> float:
    """Compute ``seams`` from sums of ``seam_sums``."""
    across, across_number, inside, inside_number = sums.tolist()
    if not across_number or not inside_number:
        return math.nan
    across, inside = across / across_number, inside / inside_number
    if inside < ROUNDING:
        return math.nan if across < ROUNDING else math.inf
    return across / inside


def fog(chroma: Tensor, luma: Tensor, *, flat: float = FLAT) -> Tensor:
    """Measure how much color changes where luma does not: root mean square over both channels of those neighbors.

    Args:
        chroma: ``(B, 2, h, w)``, on the finest grid that a colorizer decides on.
        luma: ``(B or 1, 1, h, w)`` in [0, 1].
        flat: Changes of luma below this are no edges.

    Returns:
        Per image, ``(B,)`` float64; NaN where luma changes everywhere. Relative to that of the photograph's own colors,
        above 1 means blobs that follow no object.

    Raises:
        ShapeError: If it is not chroma.

    Source: ours.
    """
    _check_chroma(chroma, "chroma")
    squares, number = torch.zeros(len(chroma), dtype=torch.float64), torch.zeros(len(chroma), dtype=torch.float64)
    for dim in (2, 3):
        change = float64(chroma).diff(dim=dim).square().mean(1, keepdim=True).cpu()
        still = (luma.diff(dim=dim).abs() < flat).cpu().expand_as(change)
        squares += (change * still).flatten(1).sum(1)
        number += still.flatten(1).sum(1)
    return (squares / number).sqrt()


def skin_color(chroma: Tensor) -> tuple[Tensor, Tensor]:
    """Measure the color of the skin in portraits: hue and strength of the mean chroma of ``SKIN_PATCH``.

    Args:
        chroma: ``(B, 2, H, W)`` of aligned portraits, irises at 0.45 of the height, 0.38 and 0.61 of the width.

    Returns:
        The angle of (Cb, Cr) in degrees, in [0, 360), and its length; ``(B,)`` each.

    Raises:
        ShapeError: If it is not chroma.
    """
    _check_chroma(chroma, "chroma")
    top, bottom, left, right = (
        round(part * side) for part, side in zip(SKIN_PATCH, [chroma.shape[2]] * 2 + [chroma.shape[3]] * 2, strict=True)
    )
    patch = chroma[:, :, top : max(bottom, top + 1), left : max(right, left + 1)].mean((2, 3))
    return torch.rad2deg(torch.atan2(patch[:, 1], patch[:, 0])) % 360, patch.norm(dim=1)


def skin_verdict(chroma: Tensor) -> tuple[Tensor, Tensor]:
    """Judge the color of the skin in portraits.

    Args:
        chroma: See ``skin_color``.

    Returns:
        Whether its hue is that of no human skin (outside ``SKIN_HUES``), and whether it is gray (shorter than
        ``SKIN_MIN_CHROMA``, and then not outside); ``(B,)`` bool each.

    Raises:
        ShapeError: If it is not chroma.
    """
    hue, strength = skin_color(chroma)
    gray = strength < SKIN_MIN_CHROMA
    return ~gray & ((hue < SKIN_HUES[0]) | (hue > SKIN_HUES[1])), gray


def _check_chroma(x: Tensor, what: str) -> None:
    if x.ndim != 4 or x.shape[1] != 2 or 0 in x.shape:
        raise ShapeError(f"Expected {what} of shape (B, 2, H, W); got {tuple(x.shape)}. Use color.split for it.")
