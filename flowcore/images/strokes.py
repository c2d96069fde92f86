"""Brush strokes, read from a JSON list (those below first) and painted.

Places and sizes are shares of the picture, so that the same text paints a picture and a smaller copy of it::

[{"color": "#c03020", "size": 0.05, "points": [[0.31, 0.42], [0.35, 0.44]]},
 {"amount": 0.5, "size": 0.1, "points": [[0.7, 0.2]]},
 {"erase": true, "size": 0.02, "points": [[0.33, 0.43]]}]
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import FlowError
from .color import parse_color

MAX_POINTS = 100_000  # all strokes together
Check = Callable[[], bool] | None  # called before every segment; raises to stop
Box = tuple[slice, slice, slice]  # a region of planes (C, H, W)
EXAMPLE = '[{"color": "#c03020", "size": 0.05, "points": [[0.31, 0.42], [0.35, 0.44]]}]'


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """A stroke of a round brush; without a color and an amount, of an eraser."""

    points: tuple[tuple[float, float], ...]  # (x, y) in shares of width and height; they may lie outside
    size: float  # diameter, as a share of the picture's longer side
    color: tuple[float, float, float] | None = None  # red, green and blue in [0, 1]
    amount: float | None = None  # the mask's value, in [0, 1]


def parse_strokes(text: str) -> list[Stroke]:
    """Read strokes from a text, empty for none; FlowError names the first invalid one."""
    if not text.strip():
        return []
    try:
        entries: Any = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise FlowError(f"Strokes are a JSON list such as {EXAMPLE}; got {text.strip()[:60]!r}.")
    strokes = [_parse_stroke(entry, number) for number, entry in enumerate(entries, start=1)]
    if sum(len(stroke.points) for stroke in strokes) > MAX_POINTS:
        raise FlowError(f"The strokes have more than {MAX_POINTS} points. Leave out points that lie close together.")
    return strokes


def paint_colors(strokes: Sequence[Stroke], size: tuple[int, int], *, cancelled: Check = None) -> tuple[Tensor, Tensor]:
    """Paint colors: coverage ``(1, 1, H, W)`` in [0, 1], and the color, ``(1, 3, H, W)``, 0 if not covered."""
    planes = torch.zeros(4, *size)  # coverage, and the color times it
    for number, stroke in enumerate(strokes, start=1):
        if stroke.amount is not None:
            raise FlowError(f'Stroke {number} has an amount, which is for masks. Give it a "color".')
        _paint(planes, stroke, [0.0, 0, 0, 0] if stroke.color is None else [1.0, *stroke.color], cancelled)
    coverage = planes[None, :1]
    return coverage, planes[None, 1:] / coverage.clamp_min(1e-6)


def paint_mask(
    strokes: Sequence[Stroke], size: tuple[int, int], *, ground: float = 0.0, cancelled: Check = None
) -> Tensor:
    """Paint amounts on a ground in [0, 1], which an eraser brings back: ``(1, H, W)``."""
    mask = torch.full((1, *size), float(ground))
    for number, stroke in enumerate(strokes, start=1):
        if stroke.color is not None:
            raise FlowError(f'Stroke {number} has a color, which is for hints. Give it an "amount" from 0 to 1.')
        _paint(mask, stroke, [ground if stroke.amount is None else stroke.amount], cancelled)
    return mask


def _paint(planes: Tensor, stroke: Stroke, values: list[float], cancelled: Check) -> None:
    """Draw a stroke over planes ``(C, H, W)``, in place, with a value for each; its edge is antialiased."""
    height, width = size = planes.shape[-2:]
    radius = max(0.5, stroke.size * max(size) / 2)
    path = [(x * width, y * height) for x, y in stroke.points]
    box = _box(path, radius, size)
    top, left = box[1].start, box[2].start
    coverage = torch.zeros(box[1].stop - top, box[2].stop - left)
    for (x, y), (u, v) in zip(path, path[1:] or path, strict=False):  # a single point is joined to itself
        if cancelled is not None:
            cancelled()
        _, rows, columns = _box([(x, y), (u, v)], radius, size)
        # distance from the first point to the pixels' centers
        down = torch.arange(rows.start, rows.stop)[:, None] + 0.5 - y
        right = torch.arange(columns.start, columns.stop)[None] + 0.5 - x
        squared_length = (u - x) ** 2 + (v - y) ** 2
        along = ((right * (u - x) + down * (v - y)) / squared_length).clamp(0, 1) if squared_length else torch.zeros(())
        distance = torch.hypot(right - along * (u - x), down - along * (v - y))
        part = coverage[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        torch.maximum(part, (radius + 0.5 - distance).clamp(0, 1), out=part)
    planes[box] += coverage * (torch.tensor(values)[:, None, None] - planes[box])


def _box(path: Sequence[tuple[float, float]], radius: float, size: Sequence[int]) -> Box:
    """Find the pixels that a brush can reach on its path; none if that lies outside."""
    ranges: list[slice] = []
    for places, end in zip(zip(*path, strict=True), reversed(size), strict=True):  # x in columns, then y in rows
        first = min(max(math.floor(min(places) - radius - 1), 0), end)
        last = min(max(math.ceil(max(places) + radius + 1), first), end)
        ranges.append(slice(first, last))
    return slice(None), ranges[1], ranges[0]


def _parse_stroke(entry: Any, number: int) -> Stroke:
    try:
        points = tuple((float(x), float(y)) for x, y in entry["points"])
        size, color, amount = float(entry["size"]), entry.get("color"), entry.get("amount")
        amount = None if amount is None else float(amount)
        kinds = (color is not None) + (amount is not None) + (entry.get("erase") is True)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise FlowError(f"Stroke {number} is invalid: {str(entry)[:60]}. Strokes are such as {EXAMPLE}.") from error
    places = [share for point in points for share in point]
    if not places or not all(-10 <= share <= 10 for share in places):
        raise FlowError(f"Stroke {number} needs points in shares of the picture, 0 to 1, such as [[0.31, 0.42]].")
    if not 0 < size <= 2:
        raise FlowError(f"The size of stroke {number} is a share of the picture's longer side; got {size:g}.")
    if kinds != 1 or (amount is not None and not 0 <= amount <= 1):
        raise FlowError(
            f'Stroke {number} needs a "color", an "amount" from 0 to 1, or "erase": true; one of the three.'
        )
    return Stroke(points=points, size=size, color=None if color is None else parse_color(str(color)), amount=amount)
