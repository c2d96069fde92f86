"""What else one could do with the LR image of ``srflow``: bicubic, and an RRDB network, the ordinary way to enlarge."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
from typing import Any

import torch

import flowcore
from flowcore.images.resize import enlarge

from . import published
from .measure import Program, Settings, by_turns, picture, times_as_fast
from .report import Table
from .srflow import SMALL

RRDB = "RRDB of spandrel"
OURS = "flowcore.upscale, published size"
SHIPPED = "flowcore.upscale, srflow-x4 as shipped"


@torch.no_grad()
def measure(settings: Settings) -> list[Table]:
    """Measure everything.

    Args:
        settings: How often, how large, where.

    Returns:
        One table.
    """
    lr = picture(settings.lr, settings.lr).to(settings.device)
    large = published.random_srflow(**(SMALL if settings.quick else {})).to(settings.device)
    shipped = flowcore.load("srflow-x4", device=settings.device)
    programs: dict[str, Program] = {
        "bicubic": lambda: enlarge(lr, 4),
        OURS: lambda: flowcore.upscale(large, lr),
        SHIPPED: lambda: flowcore.upscale(shipped, lr),
    }
    counts = {OURS: _parameters(large), SHIPPED: _parameters(shipped)}
    if importlib.util.find_spec("spandrel") is not None:
        rrdb = _rrdb(blocks=2 if settings.quick else 23).to(settings.device)
        programs[RRDB] = lambda: rrdb(lr)
        counts[RRDB] = _parameters(rrdb)
    taken = by_turns(programs, settings, warm_up=True)
    rows: list[dict[str, Any]] = []
    for name, own in taken.items():
        row: dict[str, Any] = {"program": name, "parameters": counts.get(name, 0), "s": statistics.median(own)}
        if RRDB in taken:
            row["times as long as RRDB"] = times_as_fast(own, taken[RRDB])
        rows.append(row)
    if RRDB not in taken:
        rows.append({"program": RRDB, "parameters": "not installed: pip install spandrel"})
    notes = [
        f"One sample, float32. Rounds: {settings.pairs}; seconds and ratios are their medians. Weights of RRDB (23 "
        "blocks, width 64, growth 32) and of the published size are random."
    ]
    return [Table(subject="yardsticks", title=f"4x of LR {settings.lr}x{settings.lr}", rows=rows, notes=notes)]


def _rrdb(blocks: int) -> torch.nn.Module:
    architecture: Any = importlib.import_module("spandrel.architectures.ESRGAN")
    torch.manual_seed(0)
    return architecture.ESRGAN(num_filters=64, num_blocks=blocks, scale=4).eval().requires_grad_(False)


def _parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
