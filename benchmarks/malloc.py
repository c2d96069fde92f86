"""What `device.keep_freed_memory` saves: processor time of a training step with it and without, a process each.

    python -m benchmarks.malloc --data FOLDER

Trains the encoder of `srflow-x4` (16 crops of 96 pixels) on one thread for 32 steps, of which the first 6 do not count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from flowcore.device import keep_freed_memory
from flowcore.training.loop import train
from flowcore.training.recipe import read_recipe

FIRST, LAST = 6, 31


def main() -> None:
    """Compare both ways, or measure one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--measure", choices=["keep", "return"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.data, keep=options.measure == "keep")
        return
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", "benchmarks.malloc", "--data", str(options.data), "--measure"]
    for way in ("return", "keep"):
        subprocess.run([*command, way], env=environment, check=True)


def measure(data: Path, *, keep: bool) -> None:
    """Print seconds of processor time per step."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    times: dict[int, float] = {}

    def progress(done: int, total: int, preview: torch.Tensor | None = None) -> None:
        times.setdefault(done, time.process_time())

    with tempfile.TemporaryDirectory() as run:
        train(read_recipe("srflow-x4"), data, Path(run), stop_after=LAST + 1, log=lambda _: None, progress=progress)
    print(f"{'kept' if keep else 'returned'}: {(times[LAST] - times[FIRST]) / (LAST - FIRST):.3f} s per step")


if __name__ == "__main__":
    main()
