"""Seconds, memory and errors of flowcore, compared with a plain program, other libraries and other methods.

    pip install -e '.[benchmarks]'
    python -m benchmarks [--only srflow glow sizes] [--threads 2] [--pairs 5]

Prints a table for each subject, and everything as JSON on the last line. After every subject, the same is written to
benchmarks.json and benchmarks.md in the folder of ``--out``. The other libraries are optional: a missing one gets a row
that says so.

srflow      a network of the published size with random weights, against benchmarks/published.py, bicubic and RRDB
glow        sampling, scoring and a training step, against normflows, nflows and FrEIA
sizes       the shipped upscaler by output size and samples, the colorizer at 12 megapixels

Run it on an idle machine, because other programs disturb the measurements. ``--device cuda`` synchronizes with the GPU
around every measurement and counts the memory that torch allocates, and ``--lr 256`` makes srflow's output a megapixel.
None of this has been run on a GPU yet; ``python -m benchmarks.gpu`` makes a report about a GPU.
"""

import importlib
import sys
from pathlib import Path

import torch

from .measure import Settings, Table, arguments, machine, say, write

SUBJECTS = ("srflow", "glow", "sizes")


def main() -> None:
    """Measure, write and print."""
    parser = arguments(__doc__)
    parser.prog = "python -m benchmarks"
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=SUBJECTS, metavar="SUBJECT")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's")
    parser.add_argument("--pairs", type=int, help="rounds in which every program runs once; default 5")
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument("--lr", type=int, help="side of the LR image of srflow; default 160")
    parser.add_argument("--samples", type=int, nargs="+", help="of srflow; default 1 4 8")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder; default runs/benchmarks")
    text = "small sizes and one pair: shows that it runs, and no more"
    parser.add_argument("--quick", action="store_true", help=text)
    options = parser.parse_args()
    settings = Settings(
        pairs=options.pairs or (1 if options.quick else 5),
        threads=options.threads,
        device=options.device,
        quick=options.quick,
        lr=options.lr or (32 if options.quick else 160),
        samples=tuple(options.samples or ((1, 2) if options.quick else (1, 4, 8))),
    )
    torch.set_num_threads(settings.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    found = machine(settings)
    tables: list[Table] = []
    for subject in SUBJECTS:
        if subject not in options.only:
            continue
        say(f"--- {subject}")
        tables += importlib.import_module(f".{subject}", __package__).measure(settings)
        text, result = write(options.out / "benchmarks", found, settings, tables)
    sys.stdout.write(f"{text}\n{result}\n")


if __name__ == "__main__":
    main()
