"""Glow beside other libraries' of the same configuration: sampling, scoring, a training step."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flowcore
from flowcore.checkpoints.sources.normflows import NORMFLOWS
from flowcore.inference.plan import Plan
from flowcore.likelihood import log_prob
from flowcore.prior import sample_latents

from . import peers, train
from .measure import Program, Settings, by_turns, say, times_as_fast
from .report import Table

TASK = "flowcore"
LOW = "flowcore, bfloat16"
PLAIN = "flowcore, plain path"
OURS = (TASK, PLAIN, LOW)
FIXED = ("w_perm", "w_perm_inv", "downsample_kernel")  # of FrEIA: held as parameters, but not trained


HEAPS = {
    "": {},
    ", freed memory kept": {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"},
}
"""Where memory that is freed goes back to the kernel, as is usual, it comes again page by page: what holds much and
lets it go often may take twice as long. A process that has held larger tensors before keeps it by itself; with glibc's
allocator these variables keep it from the start."""


def measure(settings: Settings) -> list[Table]:
    """Measure everything.

    Args:
        settings: How often, how large, where.

    Returns:
        Tables of sampling and of scoring, each in a fresh process of either kind, and of a training step.
    """
    tables: list[Table] = []
    for title, variables in HEAPS.items() if settings.device == "cpu" else [("", {})]:
        say(f"sampling and scoring{title}")
        order = {"pairs": settings.pairs, "threads": settings.threads, "device": settings.device}
        command = [sys.executable, "-m", "benchmarks.glow", json.dumps({**order, "quick": settings.quick})]
        options = {"env": os.environ | variables, "cwd": Path(__file__).parents[1]}
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options)
        for table in json.loads(ended.stdout.splitlines()[-1]):
            tables.append(Table(**{**table, "title": table["title"] + title}))
    return [*tables, _training(settings, _setting(settings.quick))]


def main() -> None:
    """Measure sampling and scoring, as ``measure`` ordered."""
    order = json.loads(sys.argv[1])
    settings = Settings(**order, lr=0, samples=(), peak_tflops=None, photograph=None, out=Path())
    torch.set_num_threads(settings.threads)
    tables = _inference(settings, _setting(settings.quick))
    sys.stdout.write(json.dumps([vars(table) for table in tables]) + "\n")


def _setting(quick: bool) -> train.Setting:
    size = {"levels": 2, "steps": 2, "hidden": 16, "size": 16, "batch": 4} if quick else {}
    return train.Setting(
        **{"levels": 3, "steps": 32, "hidden": 512, "size": 32, "batch": 16, "own_network": False, **size}
    )


@torch.no_grad()
def _inference(settings: Settings, setting: train.Setting) -> list[Table]:
    torch.manual_seed(0)
    built = {name: _build(name, setting) for name in peers.PEERS}
    theirs = built["normflows"]
    flow = NORMFLOWS.convert(theirs.model.state_dict(), {}) if theirs else train.build_ours(setting, None).flow
    flow.to(settings.device).eval().requires_grad_(False)
    found = {name: peer for name, peer in built.items() if peer is not None}
    for peer in found.values():
        peer.model.to(settings.device)
    images = (setting.images() * 255).round().to(torch.uint8)
    k = images.to(settings.device).float()
    n, shapes = setting.batch, flow.latent_shapes(setting.size, setting.size)

    def dequantized() -> Tensor:
        return (k + torch.rand_like(k)) / 256

    def bits(nats: Tensor) -> Tensor:
        return 8 - nats / k[0].numel() / math.log(2)

    def plain_sample() -> Tensor:
        return flow.inverse([z.to(settings.device) for z in sample_latents(shapes, n, 1.0)])

    low = Plan(flow, "bfloat16")
    samplers: dict[str, Program] = {
        TASK: lambda: flowcore.sample(flow, n, temperature=1.0, batch=n),
        LOW: lambda: flowcore.sample(low, n, temperature=1.0, batch=n),
        PLAIN: plain_sample,
        **{name: lambda peer=peer: peer.sample(n) for name, peer in found.items()},
    }
    scorers: dict[str, Program] = {
        TASK: lambda: flowcore.score(flow, images, batch=n, complexity=False).bits_per_dim,
        PLAIN: lambda: bits(log_prob(flow, dequantized())),
        **{name: lambda peer=peer: bits(peer.log_prob(dequantized())) for name, peer in found.items()},
    }
    notes = [
        f"{setting.levels} levels of {setting.steps} steps, hidden {setting.hidden}, {setting.size}x{setting.size}, "
        f"batch {n}, affine couplings, LU 1x1 convolutions, float32. Rounds: {settings.pairs}; seconds and ratios are "
        "their medians.",
        f"{PLAIN}: flow.inverse and likelihood.log_prob of the same model, without the tasks.",
    ]
    if theirs is not None:
        x = dequantized()
        apart = float((theirs.log_prob(x) - log_prob(flow, x)).abs().max())
        notes.append(f"flowcore has normflows' weights; log densities are at most {apart:.2g} nats apart.")
    notes += [f"{name} differs: {peer.differs}." for name, peer in found.items() if peer.differs]
    counts = dict.fromkeys(OURS, _parameters(flow))
    counts |= {name: _parameters(peer.model) for name, peer in found.items()}
    tables = []
    for title, programs in (("sampling", samplers), ("scoring, one dequantization draw", scorers)):
        taken = by_turns(programs, settings, warm_up=True)
        rows = [_row(name, counts, taken) for name in programs]
        rows += [_missing(name) for name in built if name not in found]
        tables.append(Table(subject="glow", title=title, rows=rows, notes=[*notes, *_best(taken)]))
    return tables


def _missing(name: str) -> dict[str, Any]:
    return {"program": name, "parameters": f"not installed: pip install {name}"}


def _row(name: str, counts: dict[str, int], taken: dict[str, list[float]]) -> dict[str, Any]:
    row = {"program": name, "parameters": counts[name], "s": statistics.median(taken[name])}
    if name not in OURS:
        row["flowcore is times as fast"] = times_as_fast(taken[name], taken[TASK])
    return row


def _best(taken: dict[str, list[float]]) -> list[str]:
    others = [name for name in taken if name not in OURS]
    if not others:
        return []
    best = min(others, key=lambda name: statistics.median(taken[name]))
    return [f"The best peer is {best}: flowcore is {times_as_fast(taken[best], taken[TASK]):.2f} times as fast."]


def _build(name: str, setting: train.Setting) -> peers.Peer | None:
    module, builder = peers.PEERS[name]
    if importlib.util.find_spec(module) is None:
        return None
    say(f"building {name}")
    return builder(setting)


def _parameters(model: torch.nn.Module) -> int:
    """Those that training moves; not by requires_grad, which has been taken from all by now."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith(FIXED))


def _training(settings: Settings, setting: train.Setting) -> Table:
    title = "a training step"
    if importlib.util.find_spec("normflows") is None:
        return Table(subject="glow", title=title, rows=[_missing("normflows")])
    if settings.device != "cpu":
        return Table(subject="glow", title=title, rows=[{"program": "benchmarks.train measures on a CPU only"}])
    measured = train.measure(setting, settings.pairs, with_compiled=False)
    rows = [
        {
            "program": name,
            "parameters": measured["parameters"][name.split(",")[0]],
            "s of processor": row["processor_seconds"],
            "s": row["clock_seconds"],
            f"times as fast as {train.BASELINE}": row["speed_up"],
        }
        for name, row in measured["variants"].items()
    ]
    notes = [
        "As python -m benchmarks.train, which also measures memory; its help says what a step is. Ratios of processor "
        "seconds.",
        f"Log densities are at most {measured['nats apart, at most']:.2g} nats apart.",
    ]
    return Table(subject="glow", title=title, rows=rows, notes=notes)


if __name__ == "__main__":
    main()
