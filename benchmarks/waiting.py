"""How long enlargements take by how threads of OpenMP wait for each other, beside programs that keep the cores busy.

    python -m benchmarks.waiting PICTURE [--load 0 2 6] [--rounds 2]

``flowcore upscale`` enlarges four pictures of 64x48 pixels, and one of 256x256, cut from a picture of at least 256x256,
in processes of their own. Settings take turns, so that other load affects all of them alike. Prints seconds and seconds
of processor time, the median of the rounds; whatever else the machine does is beside ``--load``, and its load average
is in the table.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from flowcore.cli.main import WAITING

from .measure import arguments, markdown, say

SETTINGS = {
    "spinning, as OpenMP does by default": {"GOMP_SPINCOUNT": "300000"},  # what libgomp takes if it is not set
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
}
SIZES = {"four of 64x48": (4, (64, 48)), "one of 256x256": (1, (256, 256))}
BUSY = "x = 0\nwhile True: x += 1"
LIMIT = 280  # seconds after which a run is stopped


def enlarge(folder: Path, variables: dict[str, str]) -> tuple[float, float]:
    """Return seconds and seconds of processor time of a run; infinite if it was stopped."""
    unset = {name: value for name, value in os.environ.items() if name not in {*WAITING, "OMP_NUM_THREADS"}}
    with tempfile.TemporaryDirectory() as out:
        words = ["-m", "flowcore", "upscale", str(folder), "-o", out, "--model", "srflow-x4", "--quiet"]
        before, start = os.times(), time.monotonic()
        with subprocess.Popen([sys.executable, *words], env=unset | variables, stdout=subprocess.DEVNULL) as run:
            try:
                run.wait(LIMIT)
            except subprocess.TimeoutExpired:
                run.kill()
        taken, after = time.monotonic() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return (taken, used) if run.returncode == 0 else (float("inf"), used)


def main() -> None:
    """Measure, and print a table."""
    parser = arguments(__doc__, "waiting")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--load", type=int, nargs="+", default=[0, 2, 6], help="busy programs beside the runs")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    lines = list[list[str]]()
    with tempfile.TemporaryDirectory() as temporary, Image.open(options.picture) as opened:
        for name, (count, (width, height)) in SIZES.items():
            folder = Path(temporary, name)
            folder.mkdir()
            for number in range(count):
                part = opened.convert("RGB").crop((number, 0, number + width, height))
                part.save(folder / f"{number}.png")
        for load in options.load:
            busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(load)]
            try:
                for name in SIZES:
                    runs = {setting: list[tuple[float, float]]() for setting in SETTINGS}
                    for setting in [*SETTINGS] * options.rounds:
                        runs[setting].append(enlarge(Path(temporary, name), SETTINGS[setting]))
                        say(f"load {load}, {name}, {setting}: {runs[setting][-1]}")
                    medians = [[statistics.median(part) for part in zip(*each, strict=True)] for each in runs.values()]
                    cells = [f"{taken:.1f} ({used:.1f})" for taken, used in medians]
                    lines.append([f"{load}, load average {os.getloadavg()[0]:.1f}", name, *cells])
            finally:
                for each in busy:
                    each.kill()
                    each.wait()
    sys.stdout.write(markdown(["busy programs", "pictures", *SETTINGS], lines) + "\n")


if __name__ == "__main__":
    main()
