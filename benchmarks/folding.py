"""What folding the conditioners of shipped models gives: the plain flow, its plan, and a plan of plain conditioners.

    OMP_NUM_THREADS=1 python -m benchmarks.folding [MODEL ...] [--batch 8]

Prints processor seconds as JSON, the least of 5 rounds. For memory that stays with the process set
MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from unittest import mock

import torch

import flowcore
from flowcore.inference import conditioners
from flowcore.prior import sample_latents

MODELS = ("glow-photos", "realnvp-photos", "mnist-styles", "color-photos")


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    for name in options.models:
        flow = flowcore.load(name).eval()
        with (
            mock.patch.object(conditioners, "conv_weights", return_value=[]),
            mock.patch.object(conditioners, "FoldedResidual", side_effect=lambda network, *_: network),
        ):
            unfolded = flowcore.Plan(flow)
        programs = {"plain": flow, "plan": flowcore.Plan(flow), "plan, plain conditioners": unfolded}
        height, width = flow.image_size or (64, 64)
        latents = sample_latents(flow.latent_shapes(height, width), options.batch, 0.7, 1)
        source = torch.arange(options.batch) % flow.classes if flow.classes else None
        if flow.capabilities.source == "luma":  # without hints
            source = torch.cat([torch.rand(1, 1, 4 * height, 4 * width), torch.zeros(1, 7, 4 * height, 4 * width)], 1)
        cond = None if source is None else flow.encode_condition(source)
        if flow.capabilities.source == "luma" and cond is not None:
            cond = cond.expand(options.batch)
        image = flow.inverse(latents, cond)
        seconds: dict[str, float] = {}
        for _ in range(6):  # the first is slower, and never the least
            for program, model in programs.items():
                for what, run, data in (("sample", model.inverse, latents), ("score", model.forward, image)):
                    start = time.process_time()
                    run(data, cond)
                    taken = time.process_time() - start
                    seconds[f"{what}, {program}"] = min(taken, seconds.get(f"{what}, {program}", taken))
        sys.stdout.write(json.dumps({"model": name, **{key: round(s, 4) for key, s in seconds.items()}}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
