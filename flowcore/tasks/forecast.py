"""How large the results of ``upscale`` or ``restore`` will be, and the memory and time that they take, beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..device import actual_precision
from ..flow import Flow
from ..inference.plan import planned
from . import Precision
from .duration import duration
from .rescale import restore
from .tile_size import TileSize
from .tiles import ANALYSIS
from .upscale import HALO, TILING, memory_required, upscale

NOTEWORTHY = 16  # megapixels of all results; for fewer, the forecast costs more than it tells
PROBE = 64  # side of the LR image whose enlargement is timed
PICTURE_BYTES = 2 * 4 * 3  # per pixel: a float32 picture, and a copy in which it is rounded, resized or handed on

Size = tuple[int, int]


@dataclass(frozen=True)
class Forecast:
    """What enlarging images is expected to take."""

    pictures: int  # number of results
    largest: Size  # height and width
    megapixels: float  # of all results together
    memory: int  # bytes: working memory, and all results of one image
    seconds: float

    def sentence(self) -> str:
        """Summarize in one sentence."""
        height, width = self.largest
        many = self.pictures > 1
        size = f"{self.pictures} pictures of up to {width}x{height}" if many else f"A picture of {width}x{height}"
        return (
            f"{size}, {self.megapixels:.0f} megapixels{' in all' if many else ''}, will take about "
            f"{self.memory / 1e9:.1f} GB of memory and {duration(self.seconds)}."
        )


def forecast(
    flow: Flow,
    sources: Sequence[Size],
    results: Sequence[Size],
    *,
    samples: int = 1,
    tile: int = 0,
    precision: Precision = "float32",
    cancelled: Callable[[], bool] | None = None,
) -> Forecast:
    """Estimate what enlarging images takes, from heights and widths of LR images and of results, resized or not."""
    areas = [height * width for height, width in results]
    device = next(flow.parameters()).device
    rows, columns = max(sources, key=lambda size: size[0] * size[1])
    tiles = TileSize(tile, HALO, TILING)
    side = tiles.choose(max(rows, columns), lambda side: memory_required(flow, rows, columns, side), device)
    working = memory_required(flow, rows, columns, side)
    per_pixel = _seconds_per_pixel(flow, samples, precision, cancelled)
    return Forecast(
        pictures=samples * len(results),
        largest=max(results, key=lambda size: size[0] * size[1]),
        megapixels=samples * sum(areas) / 1e6,
        memory=working + PICTURE_BYTES * samples * max(areas),
        seconds=per_pixel * sum(height * width for height, width in sources),
    )


def _seconds_per_pixel(flow: Flow, samples: int, precision: Precision, cancelled: Callable[[], bool] | None) -> float:
    """Time one sample of a small image; all samples of an image share what depends on it alone."""
    image = torch.full((1, 3, PROBE, PROBE), 0.5)  # flat gray: noise could overflow, and retries distort the timing
    task = upscale if "upscale" in flow.capabilities.tasks else restore
    # build the cached plan before timing
    plan = planned(flow, actual_precision(precision, next(flow.parameters()).device))
    start = time.perf_counter()
    task(flow, image, precision=precision, cancelled=cancelled, notify=lambda _: None)
    once = time.perf_counter() - start
    shared = ANALYSIS * (plan.encoder_units + plan.prepare_units)
    return once * (shared + samples * plan.units) / (shared + plan.units) / PROBE**2
