"""What the shipped upscaler costs, by the size of its output and by the number of samples: a table and two plots."""

from __future__ import annotations

from typing import Any, cast

import flowcore

from .fresh import Cost, fresh
from .measure import Program, Settings, picture
from .plot import Line, Panel, draw
from .report import Table

MODEL = "srflow-x4"
SIDES = (64, 128, 256, 512, 1024, 2048, 4096)
SAMPLES = (1, 2, 4, 8, 16, 32)
SIDE = 512  # of the output for which samples are counted


def measure(settings: Settings) -> list[Table]:
    """Measure everything, and draw it.

    Args:
        settings: Where, and the folder of the plots.

    Returns:
        A table by size and one by samples.
    """
    sides = (64, 128) if settings.quick else SIDES
    counts = SAMPLES[:2] if settings.quick else SAMPLES
    side = 64 if settings.quick else SIDE
    precisions = ("float32", "bfloat16")
    by_size = {p: {s: _cost(settings, s, 1, p) for s in sides} for p in precisions}
    by_samples = {p: {n: _cost(settings, side, n, p) for n in counts} for p in precisions}
    first = by_samples["float32"][1].seconds
    loop = Line("one by one, float32", [(n, n * first) for n in counts], dashed=True) if first else None
    settings.out.mkdir(parents=True, exist_ok=True)
    draw(_panels(by_size, "output, pixels a side", "1 sample"), settings.out / "cost-by-size.png")
    draw(_panels(by_samples, "samples", f"{side}x{side} output", loop), settings.out / "cost-by-samples.png")
    return [
        _table(by_size, "output side", f"{MODEL} by size, 1 sample", "cost-by-size.png"),
        _table(by_samples, "samples", f"{MODEL} by samples, {side}x{side} output", "cost-by-samples.png"),
    ]


def prepare(*, device: str, side: int, samples: int, precision: str) -> Program:
    """Get one enlargement ready, for a fresh process.

    Args:
        device: Where.
        side: Of the output.
        samples: How many.
        precision: Of ``upscale``.

    Returns:
        What enlarges.
    """
    flow = flowcore.load(MODEL, device=device)
    lr = picture(side // 4, side // 4).to(device)
    return lambda: flowcore.upscale(flow, lr, samples=samples, precision=cast(Any, precision))


def _cost(settings: Settings, side: int, samples: int, precision: str) -> Cost:
    return fresh(prepare, settings, timed=True, side=side, samples=samples, precision=precision)


def _panels(costs: dict[str, dict[int, Cost]], across: str, what: str, extra: Line | None = None) -> list[Panel]:
    def lines(attribute: str) -> list[Line]:
        found = {
            name: [(x, getattr(cost, attribute)) for x, cost in of.items() if getattr(cost, attribute)]
            for name, of in costs.items()
        }
        return [Line(name, points) for name, points in found.items() if points]

    seconds = [*lines("seconds"), *([extra] if extra else [])]
    return [
        Panel(title=f"Seconds, {what}", across=across, unit="s", lines=seconds),
        Panel(title=f"Memory beyond the model, {what}", across=across, unit="MiB", lines=lines("beyond")),
    ]


def _table(costs: dict[str, dict[int, Cost]], column: str, title: str, plot: str) -> Table:
    rows = [
        {
            "precision": precision,
            column: x,
            "s, first": cost.first,
            "s": cost.seconds,
            "peak MiB": cost.peak,
            "beyond model MiB": cost.beyond,
        }
        for precision, of in costs.items()
        for x, cost in of.items()
    ]
    notes = [
        f"A fresh process for each; plot: {plot}. Beyond model: the peak of the first run, results included, less what "
        "the process held before. Seconds: the median of three further runs, or the first if that took 5 or more."
    ]
    return Table(subject="sizes", title=title, rows=rows, notes=notes)
