"""Cost of shipped models: the upscaler by output size and samples, the colorizer at 12 megapixels."""

from typing import Any, cast

import flowcore

from .fresh import Cost, fresh
from .measure import Program, Settings, Table, picture

UPSCALER, COLORIZER = "srflow-x4", "color-photos"
PRECISIONS = ("float32", "bfloat16")
SIDES = (64, 128, 256, 512, 1024, 2048, 4096)
SAMPLES = (1, 2, 4, 8, 16, 32)
SIDE = 512  # of the output for which samples are counted
NOTE = (
    "A fresh process for each. Beyond model: the peak of the first run, results included, less what the process held "
    "before. Seconds: the median of three further runs, or the first if that took 5 or more."
)


def measure(settings: Settings) -> list[Table]:
    """Measure everything."""
    sides, counts, side = ((64, 128), SAMPLES[:2], 64) if settings.quick else (SIDES, SAMPLES, SIDE)
    by_size = [_enlarged(settings, s, 1, p) for p in PRECISIONS for s in sides]
    by_samples = [_enlarged(settings, side, n, p) for p in PRECISIONS for n in counts]
    width, height = (400, 300) if settings.quick else (4000, 3000)
    how = {"timed": True, "width": width, "height": height}
    colored = [{"precision": p, **_cells(fresh(prepare_coloring, settings, precision=p, **how))} for p in PRECISIONS]
    result = f"The photograph counts as the model does. The result alone: {3 * 4 * width * height / 2**20:.0f} MiB."
    return [
        Table(subject="sizes", title=f"{UPSCALER} by size, 1 sample", rows=by_size, notes=[NOTE]),
        Table(subject="sizes", title=f"{UPSCALER} by samples, {side}x{side} output", rows=by_samples, notes=[NOTE]),
        Table(subject="sizes", title=f"{width}x{height} with {COLORIZER}", rows=colored, notes=[NOTE, result]),
    ]


def prepare(*, device: str, side: int, samples: int, precision: str) -> Program:
    """Get one enlargement to ``side`` ready, for a fresh process."""
    flow = flowcore.load(UPSCALER, device=device)
    lr = picture(side // 4, side // 4).to(device)
    return lambda: flowcore.upscale(flow, lr, samples=samples, precision=cast(Any, precision))


def prepare_coloring(*, device: str, width: int, height: int, precision: str) -> Program:
    """Get one coloring of a synthetic picture ready, for a fresh process."""
    flow = flowcore.load(COLORIZER, device=device)
    image = picture(height, width).to(device)
    return lambda: flowcore.colorize(flow, image, precision=cast(Any, precision), notify=lambda _: None)


def _enlarged(settings: Settings, side: int, samples: int, precision: str) -> dict[str, Any]:
    cost = fresh(prepare, settings, timed=True, side=side, samples=samples, precision=precision)
    return {"precision": precision, "output side": side, "samples": samples, **_cells(cost)}


def _cells(cost: Cost) -> dict[str, float | None]:
    return {"s, first": cost.first, "s": cost.seconds, "peak MiB": cost.peak, "beyond model MiB": cost.beyond}
