"""Check that flowcore still computes the same, after a change that must not change results: one line for each part.

    make equal                                                  everything
    .venv/bin/python -m benchmarks.equal --only pictures tiles  parts of it
    .venv/bin/python -m benchmarks.equal --record               record, before a change or after an intended one

pictures   golden pictures of the shipped models in float32, bit for bit
tasks      every task on small flows of every architecture, bit for bit
training   the model of a small run that was stopped and resumed three times, bit for bit
peak       memory of one enlargement in a fresh process, within 5 %
models     fingerprints of the shipped models, as they load
tiles      tile sizes and memory estimates, by model, size and free memory
nodes      tests/golden/object_info.json, byte for byte, as served by ComfyUI
published  tests/conformance: published layouts and recorded tensors of other programs
laws       tests/core/test_laws_bite.py: the laws still catch every wrong transform

The record is tests/golden/equal.json. The first four parts depend on the processor and torch: if yours differ, record
them before the change. Takes two minutes on one core of a Xeon with AVX-512.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import flowcore
from flowcore import device
from flowcore.engine import tiles
from flowcore.engine.memory import memory_in_tiles, memory_required
from flowcore.models import catalog
from flowcore.models.identity import model_sha256
from flowcore.training.loop import train
from flowcore.training.recipe import parse_recipe

from . import sizes
from .fresh import fresh
from .measure import Settings, arguments, processor

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "golden" / "equal.json"
sys.path += [str(ROOT / folder) for folder in ("tests", "tests/host", "workflows/api")]

FREE = 8 * 2**30  # bytes that count as free, so that no choice depends on what else the machine does
SIZES = ((48, 64), (300, 200), (768, 1024), (3000, 4000))
TESTS = {"published": "tests/conformance", "laws": "tests/core/test_laws_bite.py"}


def main() -> int:
    """Compare or record, and return 1 if anything differs."""
    parser = arguments(__doc__)
    parts = [*BY_MACHINE, *ANYWHERE, "nodes", *TESTS]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    record: dict[str, dict[str, Any]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    failed = False
    for part in options.only:
        if part in TESTS or part == "nodes":
            found = _test(TESTS[part]) if part in TESTS else _schemas()
        else:
            known = record.setdefault(_machine() if part in BY_MACHINE else "any", {})
            with patch.object(device, "_free_main_memory", lambda: FREE):
                now = (BY_MACHINE | ANYWHERE)[part]()
            if options.record:
                known[part] = now
            found = _differences(known[part], now) if part in known else [f"nothing is recorded for {_machine()}"]
        failed |= bool(found)
        sys.stdout.write(f"{part:10} {'equal' if not found else 'DIFFERENT: ' + '; '.join(found)}\n")
        sys.stdout.flush()
    if options.record:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        from core.golden_pictures import record_version

        record_version()
    return int(failed)


def _pictures() -> dict[str, str]:
    from core.golden_pictures import MAKERS

    return {name: _digest([make(flowcore.load(name))]) for name, make in MAKERS.items()}


def _tasks() -> dict[str, str]:
    from every_task import TASKS, Place, run

    return {name: _digest(run(name, Place("cpu", "cpu"))) for name in TASKS}


def _training() -> dict[str, str]:
    from core.photographs import photographs
    from core.test_training_loop import RECIPE

    with tempfile.TemporaryDirectory(prefix="flowcore-equal-") as folder:
        photos = photographs(Path(folder) / "photos", [(48, 64), (56, 40), (40, 48)])
        for stop in (3, 8, 21, None):
            torch.manual_seed(stop or 99)
            model = train(parse_recipe(RECIPE), photos, Path(folder) / "run", stop_after=stop, log=lambda _: None).model
        return {"model": _digest(flowcore.load(model).state_dict().values())}


def _peak() -> dict[str, float | None]:
    settings = Settings(pairs=1, threads=1, device="cpu", quick=True, lr=32, samples=(1,))
    return {"MiB": fresh(sizes.prepare, settings, side=512, samples=1, precision="float32").beyond}


def _tiles() -> dict[str, str]:
    from every_task import BUILDERS

    made: dict[str, list[int]] = {}
    flows = {name: flowcore.load(name) for name in ("srflow-x4", "srflow-x8", "color-photos", "glow-photos")}
    for name, flow in (flows | {each: BUILDERS[each]() for each in ("hcflow", "llflow")}).items():
        for h, w in SIZES:
            made[f"{name} {h}x{w}"] = [memory_required(flow, n, h, w) for n in (1, 4)]
            if name not in ("color-photos", "glow-photos"):
                made[f"{name} {h}x{w}"] += [memory_in_tiles(flow, h, w, tile) for tile in (192, 10_000)]
                made[f"{name} {h}x{w}"] += _sides(
                    flowcore.brighten if name == "llflow" else flowcore.upscale, flow, h, w
                )
    return {name: " ".join(map(str, numbers)) for name, numbers in made.items()}


class _Chosen(Exception):
    """Ends a task as soon as it has chosen the side of its tiles."""


def _sides(task: Callable[..., Tensor], flow: flowcore.Flow, height: int, width: int) -> list[int]:
    """Sides of tiles that a task chooses with 256 MiB, 1 GiB and 4 GiB of free memory."""
    chosen: list[int] = []

    def stop(*_sides: int, tile: int, **_others: int) -> Any:
        chosen.append(tile)
        raise _Chosen

    for free in (2**28, 2**30, 2**32):
        with patch.object(device, "_free_main_memory", lambda free=free: free), patch.object(tiles, "tile_grid", stop):
            try:
                task(flow, torch.zeros(1, 3, height, width))
            except _Chosen:
                continue
    return chosen


BY_MACHINE = {"pictures": _pictures, "tasks": _tasks, "training": _training, "peak": _peak}
ANYWHERE = {"models": lambda: {name: model_sha256(flowcore.load(name)) for name in catalog.names()}, "tiles": _tiles}


def _schemas() -> list[str]:
    from record_golden import GOLDEN, as_text, served

    return [] if as_text(served()) == GOLDEN.read_text() else ["run `python tests/host/record_golden.py`"]


def _test(path: str) -> list[str]:
    pytest = Path(sys.executable).with_name("pytest")  # not `python -m pytest`: see the Makefile
    options = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    ended = subprocess.run([pytest, "-q", "--no-header", "-x", path], stdout=subprocess.PIPE, text=True, **options)
    return [ended.stdout.strip()] if ended.returncode else []


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(f"{t.dtype} {tuple(t.shape)}".encode() + t.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = [f"{name} is {'gone' if name in before else 'new'}" for name in before.keys() ^ now.keys()]
    for name in before.keys() & now.keys():
        one, other = before[name], now[name]
        near = isinstance(one, float) and isinstance(other, float) and abs(other - one) <= 0.05 * one
        if one != other and not near:
            found.append(f"{name}: {one} -> {other}")
    return sorted(found)


def _machine() -> str:
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
