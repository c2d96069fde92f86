"""Forecast the size of the results of ``upscale`` or ``restore``, and the memory and time that they take."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..device import actual_precision
from ..inference.plan import planned
from ..model import FlowModel
from . import Precision, duration
from .rescale import restore
from .settings import HALO, model_defaults
from .tiles import ENCODING, Size, TileSize
from .upscale import TILING, memory_required, upscale
from .video import upscale_video

NOTEWORTHY = 16  # megapixels of all results; below, a forecast is not worth its time
PROBE = 64  # side of the LR image whose enlargement is timed
PICTURE_BYTES = 2 * 4 * 3  # per pixel: a float32 picture, and a rounded or resized copy

log = logging.getLogger("flowcore")


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
    flow: FlowModel,
    sources: Sequence[Size],
    results: Sequence[Size],
    *,
    samples: int = 1,
    tile: int = 0,
    precision: Precision = "float32",
    guided: bool = False,
    guide_strength: float | None = None,
    steadiness: float | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Forecast:
    """Estimate what it takes to enlarge images, or with ``steadiness`` frames, by sizes of sources and results.

    ``guided`` says whether guides are given; ``guide_strength`` is that of the model's own, None for its default.
    """
    areas = [height * width for height, width in results]
    device = next(flow.parameters()).device
    rows, columns = max(sources, key=lambda size: size[0] * size[1])
    tiles = TileSize(tile, HALO, TILING)
    usual = model_defaults(flow, {"temperature": None, "guide_strength": None}).get("guide_strength", 0.0)
    makes_guide = bool(usual if guide_strength is None else guide_strength) and not guided and flow.guide is not None
    needed = partial(memory_required, flow, rows, columns, guided=guided or makes_guide or bool(steadiness))
    working = needed(tiles.choose(max(rows, columns), needed, device))
    options: dict[str, Any] = {"precision": precision, "cancelled": cancelled, "notify": log.debug}
    if steadiness:  # a later frame of a clip: two enlargements, the guide's pass and the motion
        options |= {"steadiness": steadiness, "before": list[Tensor]()}
        _seconds_per_pixel(upscale_video, flow, options)  # the first frame, which has no guide
        seconds = _seconds_per_pixel(upscale_video, flow, options)
    else:  # one sample; further ones share what depends only on the image and its guide
        plan = planned(flow, actual_precision(precision, device))  # folded before the clock starts
        seconds = _seconds_per_pixel(upscale if "upscale" in flow.capabilities.tasks else restore, flow, options)
        encoding = ENCODING * (plan.encoder_units + plan.prepare_units)
        model_guide = plan.guide_units + plan.units
        guide = plan.units if guided else model_guide if makes_guide else 0
        # from one sample with the defaults to all of them with their guide
        usual_guide = model_guide if usual and flow.guide is not None else 0
        seconds *= (encoding + guide + samples * plan.units) / (encoding + usual_guide + plan.units)
    return Forecast(
        pictures=samples * len(results),
        largest=max(results, key=lambda size: size[0] * size[1]),
        megapixels=samples * sum(areas) / 1e6,
        memory=working + PICTURE_BYTES * samples * max(areas),
        seconds=seconds * sum(height * width for height, width in sources),
    )


def _seconds_per_pixel(task: Callable[..., Tensor], flow: FlowModel, options: dict[str, Any]) -> float:
    """Time a task on a small gray image; on noise a model may overflow, which takes longer."""
    start = time.perf_counter()
    task(flow, torch.full((1, 3, PROBE, PROBE), 0.5), **options)
    return (time.perf_counter() - start) / PROBE**2
