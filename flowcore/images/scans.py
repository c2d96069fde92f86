"""Scans of old photographs: the plain border around one, and the tint of its paper."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import color
from .resize import pad_symmetric

BORDER_DEVIATION = 0.06  # deviation of a border's pixels from its color, in any channel
BORDER_OUTLIERS = 0.05  # share of a row or column of the border that may deviate more: dust, scratches
BORDER_BLUR = 2  # pixels over which a border ends
SHARP = 0.4  # share of the photograph's edge that differs from the border; less for a sky
SHARP_SIDES = 3  # sides of 4; the photograph may be as bright as the border on one
MIN_PHOTOGRAPH = 0.25  # share of both sides
TINT_BINS = 16  # bins of luma
TINT_DEVIATION = 0.012  # deviation of chroma from the tint's curve, by noise and JPEG
TINT_RELATIVE_DEVIATION = 0.25  # likewise, relative to the tint
MIN_TINT = 0.01  # chroma below which a tint is invisible

Crop = tuple[Any, slice, slice]  # index of the photograph within its border


def find_border(rgb: Tensor) -> Crop | None:
    """Find a plain border on all four sides of a scan ``(1, 3, H, W)`` that ends sharply on at least three."""
    height, width = rgb.shape[-2:]
    if min(height, width) < 16:
        return None
    ring = torch.cat([rgb[0, :, 0], rgb[0, :, -1], rgb[0, :, :, 0], rgb[0, :, :, -1]], dim=1)
    differs = (rgb[0] - ring.median(1).values[:, None, None]).abs().amax(0) > BORDER_DEVIATION  # (H, W)
    spans: list[slice] = []
    for axis, side in ((1, height), (0, width)):
        inner = (differs.float().mean(axis) > BORDER_OUTLIERS).nonzero()[:, 0].tolist() or [0]
        start, end = inner[0], inner[-1] + 1
        if min(start, side - end) < BORDER_BLUR or end - start < max(2 * BORDER_BLUR + 1, MIN_PHOTOGRAPH * side):
            return None
        spans.append(slice(start, end))
    inside = differs[tuple(spans)]
    last = -1 - BORDER_BLUR
    edges = inside[BORDER_BLUR], inside[last], inside[:, BORDER_BLUR], inside[:, last]
    if sum(float(edge.float().mean()) >= SHARP for edge in edges) < SHARP_SIDES:
        return None
    rows, columns = (slice(span.start + BORDER_BLUR, span.stop - BORDER_BLUR) for span in spans)
    return ..., rows, columns


def fill_borders(images: Tensor, crops: Sequence[Crop | None]) -> Tensor:
    """Continue each photograph symmetrically over its border; those without one stay as they are."""
    if not any(crops):
        return images
    height, width = images.shape[-2:]
    filled = list(images.split(1))
    for number, crop in enumerate(crops):
        if crop is not None:
            _, rows, columns = crop
            border = (columns.start, width - columns.stop, rows.start, height - rows.stop)
            filled[number] = pad_symmetric(filled[number][crop], border)
    return torch.cat(filled)


def clear_borders(chroma: Tensor, crops: Sequence[Crop | None]) -> Tensor:
    """Set the border of each photograph to gray; those without one stay as they are."""
    if not any(crops):
        return chroma
    result = torch.zeros_like(chroma)
    for cleared, image, crop in zip(result, chroma, crops, strict=True):
        inside = ... if crop is None else crop
        cleared[inside] = image[inside]
    return result


def is_tinted(rgb: Tensor) -> bool:
    """Tell whether a picture ``(1, 3, H, W)`` has one tint, such as sepia: its chroma is a function of luma alone."""
    y, chroma = color.split(rgb)
    bins = (y * TINT_BINS).long().clamp(0, TINT_BINS - 1).flatten()  # (HW,)
    values = chroma[0].flatten(1).T  # (HW, 2)
    sums = torch.zeros(TINT_BINS, 2).to(values).index_add_(0, bins, values)
    counts = torch.zeros(TINT_BINS).to(values).index_add_(0, bins, torch.ones_like(values[:, 0]))
    curve = (sums / counts.clamp_min(1)[:, None])[bins]
    tint, deviation = (float(x.square().sum(1).mean().sqrt()) for x in (curve, values - curve))
    return tint > MIN_TINT and deviation <= min(TINT_DEVIATION, TINT_RELATIVE_DEVIATION * tint)
