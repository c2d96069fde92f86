"""Hints: the wanted colors, by strokes, points or a palette; and how they spread over objects."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.image_batch import ImageBatch
from ..engine.ranges import nonnegative
from ..errors import FlowError, ImageError, ShapeError
from ..images import color
from ..images.resize import resize_bilinear

Color = str | Sequence[float]  # such as "#e0b080", or red, green and blue in [0, 1]
Point = tuple[float, float, Color]  # column, row and color; pixels from the top left corner

STROKE = 8 / 255  # chroma above which a pixel of strokes counts as painted, where there is no mask
NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (dy, dx); the opposite four are covered by symmetry
FEATURE_SCALE, LUMA_SCALE = 0.35, 0.03  # s and t of ``spread_hints``
MIN_REACH = 0.5  # reach of hints, of 1, below which their colors fade; see ``spread_hints``
HINT_WEIGHT = 100.0  # weight of meeting a hint
ITERATIONS = 150  # iterations of conjugate gradients
RADIUS = nonnegative("It is in pixels.")  # radius of the disc of a point


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Which colors are wanted, and where.

    >>> flow, gray = flowcore.load("color-photos"), torch.rand(1, 1, 64, 64)
    >>> palette = flowcore.Hints(palette=torch.tensor([[0.1, -0.1, 0.05, 0.05]]))
    >>> flowcore.colorize(flow, gray, hints=palette).shape
    torch.Size([1, 3, 64, 64])

    Attributes:
        coverage: Where, in [0, 1], ``(1 or B, 1, H, W)``; None for nowhere.
        chroma: The chroma wanted there, centered on 0, ``(1 or B, 2, H, W)``; ignored where coverage is 0.
        palette: Of the picture as a whole, ``(1 or B, 4)``; see ``color.palette_from_chroma``. None for any palette.
        lock: Whether the wanted chroma is met exactly where coverage is 1, as far as the luma leaves room for it.
    """

    coverage: Tensor | None = None
    chroma: Tensor | None = None
    palette: Tensor | None = None
    lock: bool = False

    def expand(self, images: int) -> Hints:
        """Check the shapes for so many images, and give coverage and chroma the same number of items."""
        coverage, chroma = self.coverage, self.chroma
        if (coverage is None) != (chroma is None):
            raise ShapeError("Hints need coverage and chroma, or neither of the two.")
        if coverage is not None and chroma is not None:
            same = coverage.ndim == chroma.ndim == 4 and coverage.shape[2:] == chroma.shape[2:]
            if not same or coverage.shape[1] != 1 or chroma.shape[1] != 2:
                raise ShapeError(
                    f"Expected hints of coverage (B, 1, H, W) and chroma (B, 2, H, W); got {tuple(coverage.shape)} and "
                    f"{tuple(chroma.shape)}."
                )
            for plane in (coverage, chroma):
                check_items("hints", len(plane), images)
            items = max(len(coverage), len(chroma))
            coverage, chroma = coverage.expand(items, -1, -1, -1), chroma.expand(items, -1, -1, -1)
        if self.palette is not None:
            if self.palette.ndim != 2 or self.palette.shape[1] != 4:
                raise ShapeError(f"Expected a palette of shape (B, 4); got {tuple(self.palette.shape)}.")
            check_items("palettes", len(self.palette), images)
        return replace(self, coverage=coverage, chroma=chroma)


def hints_from_strokes(
    strokes: Tensor, mask: Tensor | None = None, *, size: tuple[int, int] | None = None, lock: bool = False
) -> Hints:
    """Make hints of strokes ``(B, 3 or 4, H, W)``: their chroma under a mask, or wherever they have color."""
    images = ImageBatch(strokes)
    rgb, alpha = images.rgb, images.alpha
    if strokes.shape[1] < 3:
        raise ImageError(f"Strokes need colors: expected (B, 3, H, W); got {tuple(strokes.shape)}.")
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
        coverage, chroma = unpremultiply(resize_bilinear(premultiply(coverage, chroma), size))
    return Hints(coverage=coverage, chroma=chroma, lock=lock)


def hints_from_points(
    points: Sequence[Point], size: tuple[int, int], *, radius: float = 8, lock: bool = False
) -> Hints:
    """Make hints of colored discs at (column, row, color); where two overlap, the first counts. Radius 0: one pixel."""
    height, width = size
    RADIUS.check("radius", radius)
    coverage, chroma = torch.zeros(1, 1, height, width), torch.zeros(1, 2, height, width)
    radius = min(radius, height + width)
    reach = math.ceil(radius)
    for number, (x, y, wanted) in reversed(list(enumerate(points, start=1))):
        if not (0 <= x < width and 0 <= y < height):
            raise ImageError(
                "Hint {number} is at x {x}, y {y}, outside the image of {size} pixels. Move it inside.",
                number=number,
                x=f"{x:g}",
                y=f"{y:g}",
                size=f"{width}x{height}",
            )
        rows = slice(max(0, int(y) - reach), int(y) + reach + 1)  # rows of the box around the disc
        columns = slice(max(0, int(x) - reach), int(x) + reach + 1)
        dy, dx = torch.arange(height)[rows, None] - int(y), torch.arange(width)[columns] - int(x)
        disc = dy**2 + dx**2 <= radius**2
        box = (0, slice(None), rows, columns)
        coverage[box][:, disc] = 1
        chroma[box][:, disc] = _chroma_of(wanted)[:, None]
    return Hints(coverage=coverage, chroma=chroma, lock=lock)


def parse_points(text: str, color: str | None = None) -> list[Point]:
    """Read lines "x, y, #rrggbb" (or with ";" between the points), or a JSON list ``[[x, y, "#rrggbb"], ...]``.

    ``color`` is that of points without one.
    """
    points: list[Point] = []
    part: Any = text.strip()  # what is read: all, then point by point
    try:
        parts = json.loads(text) if part.startswith("[") else re.split(r"\s*[;\n]\s*", part)
        for part in filter(None, parts):
            point = re.split(r"[,\s]+", part) if isinstance(part, str) else list(part)
            x, y, wanted = [*point, color] if color is not None and len(point) == 2 else point
            points.append((float(x), float(y), str(wanted)))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FlowError(
            'A point is `x, y, #rrggbb`, such as `120, 80, #c03020`, one per line, or in JSON [[x, y, "#rrggbb"], '
            "...]; got `{point}`.",
            point=str(part)[:60],
        ) from error
    return points


def palette_from(colors: Sequence[Color] | None = None, image: Tensor | None = None) -> Tensor:
    """Make a palette ``(1 or B, 4)`` of colors in equal parts, or of an image; see ``color.palette_from_chroma``."""
    if (image is None) == (not colors):
        raise FlowError("A palette is made of colors or of an image: give one of the two.")
    if image is not None:
        return color.palette_from_chroma(color.split(ImageBatch(image).extended_rgb)[1])
    return color.palette_from_chroma(torch.stack([_chroma_of(c) for c in colors or ()], dim=1)[None, :, None])


def combine_hints(*hints: Hints | None) -> Hints | None:
    """Stack hints of one size, the topmost first; the first palette counts, and one lock locks all."""
    present = [hint for hint in hints if hint is not None]
    if not present:
        return None
    layers = [(h.coverage, h.chroma) for h in present if h.coverage is not None and h.chroma is not None]
    coverage, chroma = layers.pop() if layers else (None, None)
    for over, wanted in reversed(layers):
        assert coverage is not None
        assert chroma is not None
        if coverage.shape[-2:] != over.shape[-2:]:
            raise ShapeError(
                "Hints of {size} and {other_size} pixels do not go together. Make both for one image.",
                size=f"{coverage.shape[-1]}x{coverage.shape[-2]}",
                other_size=f"{over.shape[-1]}x{over.shape[-2]}",
            )
        below = (1 - over) * coverage
        coverage, mixed = over + below, over * wanted + below * chroma
        chroma = mixed / coverage.clamp_min(1e-6)
    palette = next((hint.palette for hint in present if hint.palette is not None), None)
    return Hints(coverage=coverage, chroma=chroma, palette=palette, lock=any(hint.lock for hint in present))


def premultiply(coverage: Tensor, chroma: Tensor) -> Tensor:
    """Join coverage and chroma times coverage to planes ``(B, 3, H, W)``, which may be resized or averaged."""
    return torch.cat([coverage, coverage * chroma], dim=1)


def unpremultiply(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Separate the planes into coverage and chroma."""
    coverage = planes[:, :1]
    return coverage, planes[:, 1:] / coverage.clamp_min(1e-6)


def check_items(what: str, items: int, images: int) -> None:
    """Raise ShapeError unless there is one item for all images, or one per image."""
    if items not in (1, images):
        raise ShapeError(f"Expected {what} for 1 or {images} images; got {items}.")


def _chroma_of(wanted: Color) -> Tensor:
    rgb = color.parse_color(wanted) if isinstance(wanted, str) else tuple(float(value) for value in wanted)
    if len(rgb) != 3 or not all(0 <= value <= 1 for value in rgb):
        raise ImageError(
            'Expected a color such as "#e0b080", or red, green and blue in [0, 1]; got {color}.', color=repr(wanted)
        )
    return color.split(torch.tensor(rgb)[None, :, None, None])[1].flatten()


def spread_hints(
    missing: Tensor,
    coverage: Tensor,
    features: Tensor,
    luma: Tensor,
    steps: float,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Spread what chroma lacks at hints, ``missing`` ``(B, 2, h, w)``, to neighbors that look alike, up to edges.

    The field d, to be added to the chroma, minimizes

        100 sum_i c_i |d_i - h_i|^2 + sum_ij a_ij |d_i - d_j|^2 + sum_i |d_i|^2 / steps^2
        a_ij = exp(-|f_i - f_j|^2 / (2 s^2 C) - (y_i - y_j)^2 / (2 t^2)) / |p_i - p_j|^2,    j one of 8 neighbors of i

    with h what is missing at a hint and c its coverage, f the C standardized features, y the luma and p the place. A
    last channel, 1 at the hints, spreads likewise; d is divided by it, so that colors fade only far from hints.

    Source: Levin, Lischinski and Weiss, "Colorization using Optimization" (SIGGRAPH 2004), for luma alone and without a
    coloring to start from; the features, the fading and that it corrects a draw are ours.
    """
    target = torch.cat([missing, torch.ones_like(missing[:, :1])], dim=1)
    field = minimize_energy(target, coverage, features, luma, steps, check)
    return field[:, :-1] / field[:, -1:].clamp_min(MIN_REACH)


def minimize_energy(
    target: Tensor, coverage: Tensor, features: Tensor, luma: Tensor, steps: float, check: Callable[[], None]
) -> Tensor:
    """Minimize the energy of ``spread_hints`` for each channel of a target, by preconditioned conjugate gradients."""
    affinities = [(_affinity(features.float(), luma.float(), *offset), *offset) for offset in NEIGHBORS]
    own_weight = HINT_WEIGHT * coverage.float() + 1 / steps**2
    diagonal = own_weight + sum(weight + _shift(weight, -dy, -dx) for weight, dy, dx in affinities)

    def apply(d: Tensor) -> Tensor:
        check()
        result = own_weight * d
        for weight, dy, dx in affinities:
            difference = weight * (d - _shift(d, dy, dx))
            result = result + difference - _shift(difference, -dy, -dx)
        return result

    residual = HINT_WEIGHT * coverage.float() * target.float()
    x, preconditioned = torch.zeros_like(residual), residual / diagonal
    direction, rz = preconditioned, _dot(residual, preconditioned)
    for _ in range(ITERATIONS):
        applied = apply(direction)
        step = rz / _dot(direction, applied).clamp_min(1e-30)
        x, residual = x + step * direction, residual - step * applied
        preconditioned = residual / diagonal
        previous_rz, rz = rz, _dot(residual, preconditioned)
        direction = preconditioned + rz / previous_rz.clamp_min(1e-30) * direction
    return x


def _affinity(features: Tensor, luma: Tensor, dy: int, dx: int) -> Tensor:
    """How alike each position and a neighbor are, in [0, 1], ``(1, 1, h, w)``; 0 where the neighbor is outside."""
    unlike = (_shift(features, dy, dx) - features).square().mean(1, keepdim=True) / (2 * FEATURE_SCALE**2)
    contrast = (_shift(luma, dy, dx) - luma).square() / (2 * LUMA_SCALE**2)
    weight = torch.exp(-unlike - contrast) / (dy * dy + dx * dx)
    if dy:
        weight[..., -1:, :] = 0
    if dx:
        weight[..., -1 if dx > 0 else 0] = 0
    return weight


def _shift(t: Tensor, dy: int, dx: int) -> Tensor:
    """Take at each position the value dy below and dx to the right; beyond the border that of the other side."""
    return t.roll((-dy, -dx), (-2, -1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2, 3), keepdim=True)
