"""Seconds, peak memory and the cost of low precision of one enlargement, in a fresh process.

python -m benchmarks.upscale --size 256 --samples 1 4 --threads 2
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import torch

import flowcore
from flowcore.tasks.upscale import memory_required


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="srflow-x4")
    parser.add_argument("--size", type=int, default=256, help="side of the LR image")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    flow = flowcore.load(options.model)
    noise = torch.rand(1, 3, options.size // 8 + 1, options.size // 8 + 1, generator=torch.Generator().manual_seed(0))
    lr = torch.nn.functional.interpolate(noise, (options.size, options.size), mode="bicubic").clamp(0, 1)
    flowcore.upscale(flow, lr[..., :16, :16])
    before = _peak()
    result: dict[str, float | int | str] = {"torch": torch.__version__, "threads": options.threads, "lr": options.size}
    full = lr
    for samples in options.samples:
        start = time.perf_counter()
        full = flowcore.upscale(flow, lr, temperature=0.8, samples=samples, tile=options.size)
        result[f"seconds, {samples} samples"] = round(time.perf_counter() - start, 2)
        result[f"peak memory MB, {samples} samples, pictures included"] = round((_peak() - before) / 1e6)
    result["estimate MB, without pictures"] = round(memory_required(flow, options.size, options.size) / 1e6)
    start = time.perf_counter()
    low = flowcore.upscale(
        flow, lr, temperature=0.8, samples=options.samples[-1], tile=options.size, precision="bfloat16"
    )
    result[f"bfloat16 seconds, {options.samples[-1]} samples"] = round(time.perf_counter() - start, 2)
    error = (low - full).abs() * 255
    result["bfloat16 error, mean, in 1/255"] = round(float(error.mean()), 3)
    result["bfloat16 error, 99.9 %, in 1/255"] = round(float(error.flatten()[::7].quantile(0.999)), 3)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
