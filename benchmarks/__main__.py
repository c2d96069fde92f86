"""Seconds, memory and errors of what flowcore does, beside a plain program of it, other libraries and other ways.

    pip install -e '.[benchmarks]'
    python -m benchmarks [--only srflow rewrites glow colorize yardsticks sizes] [--threads 2] [--pairs 5]

Prints a table for each subject, and all of it as JSON on the last line; the same goes to benchmarks.json and
benchmarks.md in the folder of ``--out``, beside the plots, after every subject. Asserts nothing. What it compares with
is optional: what is missing is a row that says so.

srflow      a network of the published size with random weights, beside benchmarks/published.py
rewrites    what each change to that network's program gives by itself
glow        beside normflows, nflows and FrEIA: sampling, scoring, a training step
colorize    a photograph of 12 megapixels
yardsticks  bicubic and RRDB on the LR image of srflow
sizes       the shipped upscaler by output size and by samples, with plots

Run it on an idle machine: what runs beside it is measured, too. ``--device cuda`` waits for the GPU around every
measurement and counts the memory that torch gives out; ``--peak-tflops`` adds how far srflow is from what the GPU can
do, and ``--lr 256`` makes its output a megapixel. None of that has been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from .measure import Settings, say
from .report import Table, machine

SUBJECTS = ("srflow", "rewrites", "glow", "colorize", "yardsticks", "sizes")


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=SUBJECTS, metavar="SUBJECT")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's")
    parser.add_argument("--pairs", type=int, help="rounds in which every program runs once; default 5")
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument("--lr", type=int, help="side of the LR image of srflow and yardsticks; default 160")
    parser.add_argument("--samples", type=int, nargs="+", help="of srflow; default 1 4 8")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the roofline of srflow")
    parser.add_argument("--photograph", type=Path, help="for colorize, enlarged to 12 megapixels; default: made up")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder; default runs/benchmarks")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and one pair: shows that it runs, and no more"
    )
    options = parser.parse_args()
    settings = Settings(
        pairs=options.pairs or (1 if options.quick else 5),
        threads=options.threads,
        device=options.device,
        quick=options.quick,
        lr=options.lr or (32 if options.quick else 160),
        samples=tuple(options.samples or ((1, 2) if options.quick else (1, 4, 8))),
        peak_tflops=options.peak_tflops,
        photograph=options.photograph,
        out=options.out,
    )
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine(settings), "settings": _plain(settings), "tables": []}
    tables: list[Table] = []
    for subject in SUBJECTS:
        if subject not in options.only:
            continue
        say(f"--- {subject}")
        measured: list[Table] = importlib.import_module(f".{subject}", __package__).measure(settings)
        tables += measured
        result["tables"] += [dataclasses.asdict(table) for table in measured]
        (settings.out / "benchmarks.json").write_text(json.dumps(result, indent=2) + "\n")
        (settings.out / "benchmarks.md").write_text(_written(result, tables))
    sys.stdout.write(_written(result, tables) + "\n" + json.dumps(result) + "\n")


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON has them; no paths, which say nothing about what was measured."""
    known = {name: value for name, value in vars(settings).items() if name not in ("out", "photograph")}
    return {**known, "photograph": settings.photograph is not None}


def _written(result: dict[str, Any], tables: list[Table]) -> str:
    head = ", ".join(f"{name}: {value}" for name, value in result["machine"].items())
    quick = ["Quick: small networks and pictures; the numbers mean nothing.", ""] if result["settings"]["quick"] else []
    return "\n".join([head, "", *quick, *(table.markdown() for table in tables)])


if __name__ == "__main__":
    main()
