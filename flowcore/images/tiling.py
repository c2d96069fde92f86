"""Tiles: windows over an image that is too large to process at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..errors import FlowError


@dataclass(frozen=True)
class Window:
    """A tile, and the larger area (the halo) that is read to compute it. Rows and columns in pixels, ends exclusive."""

    top: int
    bottom: int
    left: int
    right: int
    halo_top: int
    halo_bottom: int
    halo_left: int
    halo_right: int


def windows(height: int, width: int, *, tile: int, halo: int, multiple: int) -> list[Window]:
    """Cover an image with tiles that do not overlap, each with a halo that does, row by row.

    Args:
        height: Of the image, a multiple of ``multiple``.
        width: Of the image, a multiple of ``multiple``.
        tile: Largest side of a tile, without its halo.
        halo: Pixels read on every side of a tile, less at the image's border.
        multiple: All edges are multiples of this, so that every tile is squeezed on the image's own grid.

    Raises:
        FlowError: If the tile is smaller than ``multiple`` or the halo negative.
    """
    if tile < multiple or halo < 0:
        raise FlowError(
            f"A tile must be at least {multiple} pixels and its halo at least 0; got tile {tile}, halo {halo}."
        )
    rows, columns = (_axis(n, tile, halo, multiple) for n in (height, width))
    return [
        Window(top, bottom, left, right, halo_top, halo_bottom, halo_left, halo_right)
        for top, bottom, halo_top, halo_bottom in rows
        for left, right, halo_left, halo_right in columns
    ]


def _axis(n: int, tile: int, halo: int, multiple: int) -> list[tuple[int, int, int, int]]:
    """Divide one axis into equal tiles: (start, end, start with halo, end with halo)."""
    units, largest = n // multiple, tile // multiple
    count = -(-units // largest)
    edges = [units * k // count * multiple for k in range(count + 1)]
    reach = -(-halo // multiple) * multiple
    return [(a, b, max(0, a - reach), min(n, b + reach)) for a, b in pairwise(edges)]
