"""Lines on two logarithmic axes, drawn with Pillow."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Points = list[tuple[float, float]]

FINER = 3  # drawn so many times as large, and shrunk: smooth lines
WIDTH, HEIGHT = 560, 420  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 72, 62
INK, PALE, PAPER = "#222222", "#e3e3e3", "#ffffff"
COLOURS = ("#0b6fb8", "#d1560a", "#5a5a5a", "#2f8f4e")


@dataclass(frozen=True)
class Line:
    """Points that belong together.

    Attributes:
        name: For the legend.
        points: Both coordinates above 0.
        dashed: For what was calculated and not measured.
    """

    name: str
    points: Points
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it.
        across: What the horizontal axis shows; every point of the first line gets a tick.
        unit: Of the vertical axis.
        lines: At least one.
    """

    title: str
    across: str
    unit: str
    lines: list[Line]


def draw(panels: list[Panel], path: Path) -> None:
    """Draw panels side by side.

    Args:
        panels: Those without lines are left out; without any, nothing is drawn.
        path: Of the PNG.
    """
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        return
    canvas = Image.new("RGB", (FINER * WIDTH * len(panels), FINER * HEIGHT), PAPER)
    for number, panel in enumerate(panels):
        _Axes(panel, ImageDraw.Draw(canvas), FINER * WIDTH * number).draw()
    canvas.resize((WIDTH * len(panels), HEIGHT), Image.Resampling.LANCZOS).save(path)


class _Axes:
    def __init__(self, panel: Panel, pen: ImageDraw.ImageDraw, offset: int) -> None:
        self.panel, self.pen, self.offset = panel, pen, offset
        xs = [x for line in panel.lines for x, _ in line.points]
        ys = [y for line in panel.lines for _, y in line.points]
        self.x_range = math.log(min(xs)), math.log(max(xs)) if max(xs) > min(xs) else math.log(2 * max(xs))
        self.ticks = _ticks(min(ys), max(ys))
        self.y_range = math.log(self.ticks[0]), math.log(self.ticks[-1])

    def draw(self) -> None:
        left, right = self._x(math.exp(self.x_range[0])), self._x(math.exp(self.x_range[1]))
        inset = 12 * FINER
        for tick in self.ticks:
            y = self._y(tick)
            self.pen.line([(left - inset, y), (right + inset, y)], PALE, FINER)
            self._write((left - inset - 6 * FINER, y), _short(tick), 12, "rm")
        for x, _ in self.panel.lines[0].points:
            self._write((self._x(x), FINER * (HEIGHT - BOTTOM + 16)), _short(x), 12, "mt")
        bottom = FINER * (HEIGHT - BOTTOM + 6)
        self.pen.line([(left - inset, bottom), (right + inset, bottom)], INK, FINER)
        self._write(((left + right) / 2, FINER * (HEIGHT - 20)), self.panel.across, 13, "mm")
        self._write((left - inset, FINER * 18), self.panel.title, 15, "lm")
        self._write((left - inset - 6 * FINER, FINER * (TOP - 18)), self.panel.unit, 12, "rm")
        at = left - inset
        for colour, line in zip(COLOURS, self.panel.lines, strict=False):
            self._line(line, colour)
            key = FINER * 44
            self._stroke((at, key), (at + 22 * FINER, key), colour, line.dashed)
            self._write((at + 28 * FINER, key), line.name, 12, "lm")
            at += 28 * FINER + _font(12).getlength(line.name) + 18 * FINER

    def _line(self, line: Line, colour: str) -> None:
        places = [(self._x(x), self._y(y)) for x, y in line.points]
        for a, b in itertools.pairwise(places):
            self._stroke(a, b, colour, line.dashed)
        for x, y in [] if line.dashed else places:
            r = 4 * FINER
            self.pen.ellipse([x - r, y - r, x + r, y + r], colour, PAPER, FINER)

    def _stroke(self, a: tuple[float, float], b: tuple[float, float], colour: str, dashed: bool) -> None:
        pieces = max(1, round(math.dist(a, b) / (5 * FINER))) if dashed else 1
        for k in range(0, pieces, 2):
            ends = [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t) for t in (k / pieces, (k + 1) / pieces)]
            self.pen.line(ends, colour, 2 * FINER)

    def _write(self, place: tuple[float, float], text: str, size: int, anchor: str) -> None:
        self.pen.text(place, text, INK, font=_font(size), anchor=anchor)

    def _x(self, x: float) -> float:
        part = (math.log(x) - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        return self.offset + FINER * (LEFT + 12 + part * (WIDTH - LEFT - RIGHT - 24))

    def _y(self, y: float) -> float:
        part = (math.log(y) - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        return FINER * (HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM))


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... or the powers of ten alone if those are many, from below the lowest to above the highest."""
    steps = (1, 2, 5) if high / low < 200 else (1,)
    found = [
        m * 10.0**e for e in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2) for m in steps
    ]
    start = max(i for i, tick in enumerate(found) if tick <= low)
    end = min(i for i, tick in enumerate(found) if tick >= high and i > start)
    return found[min(start, end - 2) : end + 1]  # three at least


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * FINER)
