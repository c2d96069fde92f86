"""Artifacts of scans: a plain border around the photograph, and a tint of its paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..images import color
from ..images.resize import pad_symmetric

PLAIN = 0.06  # how far a border's pixels are from its color, in any channel
OUTLIERS = 0.05  # share of a row or column of the border that may be further: dust, scratches
SHARP = 0.4  # share of the photograph's edge that differs from the border; a sky's does only where something stands out
SHARP_SIDES = 3  # of 4; the photograph may be as bright as the border on one
EDGE = 2  # pixels in which a border ends
INSIDE = 0.25  # least share of both sides that is photograph
BINS = 16  # of luma, for the tint
TINT = 0.012, 0.25  # deviation from the tint's curve, in chroma and relative to the tint, that noise and JPEG make
VISIBLE = 0.01  # chroma below which a tint is not worth mentioning


@dataclass(frozen=True)
class Inside:
    """Where the photograph of a picture with a border lies, in pixels: rows top to bottom, columns left to right."""

    top: int
    bottom: int
    left: int
    right: int

    def cut(self, image: Tensor) -> Tensor:
        """Return the photograph alone."""
        return image[..., self.top : self.bottom, self.left : self.right]


def find_border(rgb: Tensor) -> Inside | None:
    """Find a plain border on all four sides of a picture ``(1, 3, H, W)``, from which it stands out by straight edges.

    What merely stands in front of a plain background (a bird in the sky) has no border, nor have bars on two sides.
    """
    height, width = rgb.shape[-2:]
    if min(height, width) < 16:
        return None
    ring = torch.cat([rgb[0, :, 0], rgb[0, :, -1], rgb[0, :, :, 0], rgb[0, :, :, -1]], dim=1)
    differs = (rgb[0] - ring.median(1).values[:, None, None]).abs().amax(0) > PLAIN  # (H, W)
    rows, columns = (differs.float().mean(axis) > OUTLIERS for axis in (1, 0))
    if not (rows.any() and columns.any()):
        return None
    inner_rows, inner_columns = rows.nonzero()[:, 0], columns.nonzero()[:, 0]
    top, bottom = int(inner_rows[0]), int(inner_rows[-1]) + 1
    left, right = int(inner_columns[0]), int(inner_columns[-1]) + 1
    if min(top, height - bottom, left, width - right) < EDGE:
        return None
    if bottom - top < max(2 * EDGE + 1, INSIDE * height) or right - left < max(2 * EDGE + 1, INSIDE * width):
        return None
    photograph = differs[top:bottom, left:right]
    edges = photograph[EDGE], photograph[-1 - EDGE], photograph[:, EDGE], photograph[:, -1 - EDGE]
    if sum(float(edge.float().mean()) >= SHARP for edge in edges) < SHARP_SIDES:
        return None
    return Inside(top + EDGE, bottom - EDGE, left + EDGE, right - EDGE)


def fill_borders(images: Tensor, inside: Sequence[Inside | None]) -> Tensor:
    """Continue each photograph symmetrically over its border; those without one stay as they are."""
    if not any(inside):
        return images
    height, width = images.shape[-2:]
    return torch.cat(
        [
            one if i is None else pad_symmetric(i.cut(one), (i.left, width - i.right, i.top, height - i.bottom))
            for one, i in zip(images.split(1), inside, strict=True)
        ]
    )


def clear_borders(chroma: Tensor, inside: Sequence[Inside | None]) -> Tensor:
    """Set the border of each photograph to gray; those without one stay as they are."""
    if not any(inside):
        return chroma
    result = torch.zeros_like(chroma)
    for cleared, one, i in zip(result.split(1), chroma.split(1), inside, strict=True):
        (cleared if i is None else i.cut(cleared)).copy_(one if i is None else i.cut(one))
    return result


def is_tinted(rgb: Tensor) -> bool:
    """Tell whether a picture ``(1, 3, H, W)`` has one tint, such as sepia: its chroma is a function of luma alone."""
    y, chroma = color.split(rgb)
    bins = (y * BINS).long().clamp(0, BINS - 1).flatten()  # (HW,)
    values = chroma[0].flatten(1).T  # (HW, 2)
    sums = torch.zeros(BINS, 2).to(values).index_add_(0, bins, values)
    counts = torch.zeros(BINS).to(values).index_add_(0, bins, torch.ones_like(values[:, 0]))
    curve = (sums / counts.clamp_min(1)[:, None])[bins]
    tint, deviation = (float(x.square().sum(1).mean().sqrt()) for x in (curve, values - curve))
    return tint > VISIBLE and deviation <= min(TINT[0], TINT[1] * tint)
