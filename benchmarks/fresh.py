"""Measure memory and seconds of one program in a fresh process; the subjects of ``python -m benchmarks`` use it.

On a CPU, memory is read from the kernel (``VmHWM`` and ``VmRSS``; Linux only), not from ``ru_maxrss``, which a child
inherits from its parent. On a GPU it is the memory that torch's allocator has handed out, without the context and the
allocator's reserve.
"""

import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .measure import Program, Settings, say, seconds

WARM_ANYWAY = 5.0  # seconds: a run this long is little changed by being the first, and is not repeated
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a program; None if it could not be measured, or the process was killed."""

    peak: float | None = None  # MiB that the process ever held: interpreter, torch, model, work and result
    beyond: float | None = None  # MiB at the peak of the first run, less what the process held just before it
    first: float | None = None  # seconds of the first run
    seconds: float | None = None  # median of three further runs; the first, if that was long


def fresh(prepare: Callable[..., Program], settings: Settings, *, timed: bool = False, **arguments: Any) -> Cost:
    """Measure a program in a fresh process.

    ``prepare``, at the top of a module, builds what is needed and returns the program; it is called with ``device=``
    and ``arguments``, which travel as JSON. ``timed`` runs a short program more often, for its seconds.
    """
    order = {"module": prepare.__module__, "prepare": prepare.__name__, "threads": settings.threads, "timed": timed}
    order["arguments"] = {"device": settings.device, **arguments}
    say(f"alone: {prepare.__module__}.{prepare.__name__} {arguments}")
    command = [sys.executable, "-m", "benchmarks.fresh", json.dumps(order)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    if ended.returncode:
        say(f"it ended with {ended.returncode}")
        return Cost()
    return Cost(**json.loads(ended.stdout.splitlines()[-1]))


def main() -> None:
    """Run the measurement that ``fresh`` requested."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    device = order["arguments"]["device"]
    program: Program = getattr(importlib.import_module(order["module"]), order["prepare"])(**order["arguments"])
    peak_of = _gauge(device)
    taken = [seconds(program, device)]
    peak, beyond = peak_of()
    if order["timed"] and taken[0] < WARM_ANYWAY:
        taken += [seconds(program, device) for _ in range(3)]
    cost = Cost(peak=peak, beyond=beyond, first=taken[0], seconds=statistics.median(taken[1:] or taken))
    sys.stdout.write(json.dumps(vars(cost)) + "\n")


def _gauge(device: str) -> Callable[[], tuple[float | None, float | None]]:
    """Reset the peak; the returned function gives the total peak, and the peak beyond the present use, in MiB."""
    if device.startswith("cuda"):
        peak = partial(torch.cuda.max_memory_allocated, device)
        built = peak()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    elif STATUS.exists():
        peak = partial(_status, "VmHWM")
        built = peak()
        Path("/proc/self/clear_refs").write_text("5")
        held = _status("VmRSS")
    else:
        return lambda: (None, None)
    return lambda: (max(built, peak()) / 2**20, (peak() - held) / 2**20)


def _status(which: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[which].split()[0]) * 1024


if __name__ == "__main__":
    main()
