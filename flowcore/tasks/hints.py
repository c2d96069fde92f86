"""Hints: which colors are wanted where, from strokes, points, or a palette."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import FlowError, ImageError, ShapeError
from ..images import color
from ..images.resize import resize_bilinear
from .runner import validate_image

Colour = str | Sequence[float]
Point = tuple[float, float, Colour]
STROKE = 8 / 255  # chroma above which a pixel of strokes counts as painted, where there is no mask


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Which colours are wanted, and where.

    Attributes:
        coverage: Where, in [0, 1], ``(1 or B, 1, H, W)``; None for nowhere in particular.
        chroma: Which chroma is wanted there, centred on 0, ``(1 or B, 2, H, W)``; read only where covered.
        palette: Of the whole picture, ``(1 or B, 4)``; see ``color.palette_from_chroma``. None for any palette.
        lock: Whether the wanted chroma is met exactly where coverage is 1, as far as the luma leaves room for it.
    """

    coverage: Tensor | None = None
    chroma: Tensor | None = None
    palette: Tensor | None = None
    lock: bool = False


def hints_from_strokes(
    strokes: Tensor, mask: Tensor | None = None, *, size: tuple[int, int] | None = None, lock: bool = False
) -> Hints:
    """Take coloured strokes as hints; their luma does not matter.

    Args:
        strokes: Painted on anything, ``(B, 3 or 4, H, W)`` in [0, 1].
        mask: Where they are painted, in [0, 1], ``(1 or B, 1, h, w)`` of any size; None for wherever that image is in
            colour, as far as its alpha, if it has one, is opaque there.
        size: Height and width of the hints; None for those of the strokes.
        lock: See ``Hints``.

    Returns:
        The hints.

    Raises:
        ImageError: If the strokes are no colour image, or the mask no mask of as many items.
    """
    rgb, alpha = validate_image(strokes)
    if strokes.shape[1] < 3:
        raise ImageError(f"Strokes need colours: expected (B, 3, H, W); got {tuple(strokes.shape)}.")
    chroma = color.split(rgb)[1]
    if mask is None:
        coverage = (chroma.abs().amax(1, keepdim=True) > STROKE).to(rgb) * (1 if alpha is None else alpha)
    else:
        fits = mask.ndim == 4 and mask.shape[1] == 1 and 0 not in mask.shape and mask.shape[0] in (1, len(rgb))
        if not fits or not bool(mask.isfinite().all()):
            raise ImageError(
                f"Expected a mask (1 or {len(rgb)}, 1, h, w) of finite numbers for these strokes; got "
                f"{tuple(mask.shape)}."
            )
        coverage = resize_bilinear(mask.float().clamp(0, 1), chroma.shape[-2:]).to(rgb).expand(len(rgb), -1, -1, -1)
    if size is not None:
        # colours are averaged over what is painted only
        painted = resize_bilinear(torch.cat([coverage, coverage * chroma], dim=1), size)
        coverage, chroma = painted[:, :1], painted[:, 1:] / painted[:, :1].clamp_min(1e-6)
    return Hints(coverage=coverage, chroma=chroma, lock=lock)


def hints_from_points(
    points: Sequence[Point], size: tuple[int, int], *, radius: float = 8, lock: bool = False
) -> Hints:
    """Take discs of colours as hints.

    Args:
        points: Column, row and colour of each: pixels from the top left corner, and "#rrggbb" or red, green and blue in
            [0, 1]. Where two overlap the first counts.
        size: Height and width of the image.
        radius: Of the discs, in pixels; 0 for single pixels.
        lock: See ``Hints``.

    Returns:
        The hints.

    Raises:
        ImageError: If a point lies outside the image, or a colour is none.
        FlowError: If the radius is negative.
    """
    height, width = size
    if not radius >= 0 or not math.isfinite(radius):
        raise FlowError(f"The radius of a hint must be a number of pixels, at least 0; got {radius}.")
    coverage, chroma = torch.zeros(1, 1, height, width), torch.zeros(1, 2, height, width)
    radius = min(radius, height + width)
    reach = math.ceil(radius)
    for number, (x, y, colour) in reversed(list(enumerate(points, start=1))):
        if not (0 <= x < width and 0 <= y < height):
            raise ImageError(
                f"Hint {number} is at x {x:g}, y {y:g}, outside the image of {width}x{height} pixels. Move it inside."
            )
        top, left = max(0, int(y) - reach), max(0, int(x) - reach)  # of the box that holds the disc
        rows = torch.arange(top, min(height, int(y) + reach + 1))[:, None]
        columns = torch.arange(left, min(width, int(x) + reach + 1))[None]
        disc = (columns - int(x)) ** 2 + (rows - int(y)) ** 2 <= radius**2
        box = (0, slice(None), slice(top, top + len(rows)), slice(left, left + columns.shape[1]))
        coverage[box][:, disc] = 1
        chroma[box][:, disc] = _chroma(colour)[:, None]
    return Hints(coverage=coverage, chroma=chroma, lock=lock)


def parse_points(text: str) -> list[Point]:
    """Read a list of points.

    Args:
        text: Lines "x, y, #rrggbb" (or with ";" between the points), or a JSON list ``[[x, y, "#rrggbb"], ...]``.

    Returns:
        The points.

    Raises:
        FlowError: Naming the line that is none.
    """
    if text.strip().startswith("["):
        try:
            rows: Any = json.loads(text)
            return [(float(x), float(y), str(colour)) for x, y, colour in rows]
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise FlowError(f'Points as JSON are [[x, y, "#rrggbb"], ...]; got {text.strip()[:60]!r}.') from error
    points: list[Point] = []
    for line in re.split(r"[;\n]", text):
        words = re.split(r"[,\s]+", line.strip())
        if words == [""]:
            continue
        try:
            x, y, colour = words
            points.append((float(x), float(y), colour))
        except ValueError as error:
            raise FlowError(
                f"A point is `x, y, #rrggbb`, such as `120, 80, #c03020`; got `{line.strip()[:60]}`. One point a line."
            ) from error
    return points


def palette_from(colours: Sequence[Colour] | None = None, image: Tensor | None = None) -> Tensor:
    """Describe what a whole picture should be like.

    Args:
        colours: Colours that it shall have on the whole, in equal parts, as in ``hints_from_points``.
        image: Or a picture that has them, ``(B, 3, H, W)`` in [0, 1].

    Returns:
        ``(1 or B, 4)``, see ``color.palette_from_chroma``.

    Raises:
        FlowError: If neither or both are given.
        ImageError: If they are no colours, or no picture.
    """
    if (image is None) == (not colours):
        raise FlowError("A palette is made of colours or of an image: give one of the two.")
    if image is not None:
        return color.palette_from_chroma(color.split(validate_image(image)[0])[1])
    return color.palette_from_chroma(torch.stack([_chroma(c) for c in colours or ()], dim=1)[None, :, None])


def combine(*hints: Hints | None) -> Hints | None:
    """Put hints of one size over each other.

    Args:
        hints: The first that covers a pixel counts there, as far as it covers it, and the first palette; None is passed
            over.

    Returns:
        All of them, locked if one is; None if there is none.

    Raises:
        ShapeError: If their sizes differ.
    """
    given = [hint for hint in hints if hint is not None]
    if not given:
        return None
    coverage = chroma = None
    for hint in reversed(given):
        if hint.coverage is None or hint.chroma is None:
            continue
        if coverage is None or chroma is None:
            coverage, chroma = hint.coverage, hint.chroma
            continue
        if coverage.shape[-2:] != hint.coverage.shape[-2:]:
            raise ShapeError(
                f"Hints of {coverage.shape[-1]}x{coverage.shape[-2]} and {hint.coverage.shape[-1]}x"
                f"{hint.coverage.shape[-2]} pixels do not go together. Make both for one image."
            )
        below = (1 - hint.coverage) * coverage
        mixed = hint.coverage * hint.chroma + below * chroma
        coverage = hint.coverage + below
        chroma = mixed / coverage.clamp_min(1e-6)
    found = next((hint.palette for hint in given if hint.palette is not None), None)
    return Hints(coverage=coverage, chroma=chroma, palette=found, lock=any(hint.lock for hint in given))


def _chroma(colour: Colour) -> Tensor:
    """Chroma (2,) of a colour."""
    rgb = color.parse_color(colour) if isinstance(colour, str) else tuple(float(value) for value in colour)
    if len(rgb) != 3 or not all(0 <= value <= 1 for value in rgb):
        raise ImageError(f'Expected a color such as "#e0b080", or red, green and blue in [0, 1]; got {colour!r}.')
    return color.split(torch.tensor(rgb)[None, :, None, None])[1].flatten()
