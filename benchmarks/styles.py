"""How far the styles of a digits model do what their names say: measured attributes against the strength of each.

    python -m benchmarks.styles [--model mnist-styles] [--count 400]

Prints JSON: style -> strength -> change of every attribute, in its standard deviations over plain samples.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

import flowcore
from flowcore.dequantization import quantize
from flowcore.prior import sample_latents
from flowcore.tasks.directions import apply_style
from flowcore.training.styles import STYLES, attributes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist-styles")
    parser.add_argument("--count", type=int, default=400)
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    assert flow.image_size is not None
    cond = flow.encode_condition(torch.arange(options.count) % flow.classes)
    latents = sample_latents(flow.latent_shapes(*flow.image_size), options.count, 0.8, seed=100)

    def measured(styles: dict[str, float]) -> torch.Tensor:
        return attributes(quantize(flow, flowcore.decode(flow, apply_style(flow, latents, styles), cond)))

    plain = measured({})
    rows = {
        style: {
            strength: dict(
                zip(STYLES, ((measured({style: strength}) - plain).mean(0) / plain.std(0)).tolist(), strict=True)
            )
            for strength in (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0)
        }
        for style in STYLES
    }
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
