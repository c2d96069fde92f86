"""HCFlow: samples of one LR image by a plan, and by a plain program of the same network that decodes each anew.

    python -m benchmarks.hcflow --lr 64 --threads 1          processor seconds
    python -m benchmarks.hcflow --lr 96 --threads 1 --memory peaks of fresh processes

The plain program is the readable reference (``Flow``): layer by layer, with concatenations, whole images, and the
inverse of every 1x1 convolution in float64 per call, as published. Random weights of the published 4x network.
Processor seconds are those of all threads, so that other programs on the machine matter less.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from flowcore.flow import Flow
from flowcore.inference.plan import Plan
from flowcore.models import build, configure
from flowcore.prior import sample_latents

from .measure import picture, times_as_fast

SMALL = {"steps": 2, "detail_steps": 1, "hidden": 8, "detail_hidden": 8, "extractor_blocks": (1, 1)}


def network(*, quick: bool = False) -> Flow:
    """The published 4x network with random weights, or a small one."""
    torch.manual_seed(0)
    return build("hcflow", configure("hcflow", SMALL if quick else {})).eval()


@torch.no_grad()
def plain(flow: Flow, lr: torch.Tensor, samples: int) -> torch.Tensor:
    """Decode every sample by itself, each with its own encoding of the LR image."""
    shapes = flow.latent_shapes(4 * lr.shape[2], 4 * lr.shape[3])
    drawn = sample_latents(shapes, samples, 0.9, anchored=True)
    return torch.cat([flow.inverse([z[k, None] for z in drawn], flow.encode_condition(lr)) for k in range(samples)])


def shared(plan: Plan, lr: torch.Tensor, samples: int) -> torch.Tensor:
    """Decode all samples at once, as ``flowcore.upscale`` does."""
    shapes = plan.latent_shapes(4 * lr.shape[2], 4 * lr.shape[3])
    return plan.inverse(sample_latents(shapes, samples, 0.9, anchored=True), plan.encode_condition(lr))


def processor_seconds(program: Callable[[], object]) -> float:
    """Run a program once and return the processor time that it took."""
    begun = time.process_time()
    program()
    return time.process_time() - begun


def peak(which: str, lr: int, samples: int, quick: bool) -> float:
    """Peak memory in MiB that one program adds in this process, which must be fresh."""
    flow, image = network(quick=quick), picture(lr, lr)
    plan = Plan(flow) if which == "flowcore" else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _ = plain(flow, image, samples) if plan is None else shared(plan, image, samples)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Print a table and, as the last line, JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=int, default=64, help="side of the LR image")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--memory", action="store_true", help="measure memory instead, each in a fresh process")
    parser.add_argument("--quick", action="store_true", help="a small network: shows that it runs, and no more")
    parser.add_argument("--peak", choices=["plain", "flowcore"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        sys.stdout.write(f"{peak(options.peak, options.lr, options.samples[0], options.quick):.1f}\n")
        return
    rows: list[dict[str, float]] = []
    flow, image = network(quick=options.quick), picture(options.lr, options.lr)
    plan = None if options.memory else Plan(flow, options.precision)
    for samples in options.samples:
        if plan is None:
            words = [sys.executable, "-m", "benchmarks.hcflow", "--lr", str(options.lr), "--samples", str(samples)]
            words += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
            made = {
                name: float(subprocess.run([*words, "--peak", name], check=True, capture_output=True).stdout)
                for name in ("plain", "flowcore")
            }
            rows.append({"samples": samples, **made, "part": round(made["flowcore"] / made["plain"], 2)})
            continue
        programs = {
            "plain": lambda n=samples: plain(flow, image, n),
            "flowcore": lambda n=samples: shared(plan, image, n),
        }
        turns = [{name: processor_seconds(run) for name, run in programs.items()} for _ in range(options.rounds)]
        by = {name: [turn[name] for turn in turns] for name in programs}
        made = {name: round(sorted(times)[len(times) // 2], 2) for name, times in by.items()}
        rows.append({"samples": samples, **made, "times": round(times_as_fast(by["plain"], by["flowcore"]), 2)})
    for row in rows:
        sys.stdout.write("  ".join(f"{name} {value:g}" for name, value in row.items()) + "\n")
    sys.stdout.write(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
