"""The permutation ablation of Glow: reversal, fixed shuffle and learned 1x1 convolution, at the same budget each.

    python -m benchmarks.permutation --data FOLDER [--steps 600]

Trains the same small Glow (3 levels of 4 steps, hidden 64, affine, 8 bits, 32x32) on images of FOLDER in all three
variants, with the same crops, noise and schedule, and prints bits per dimension of held-out images; JSON, then a table.

Source: Kingma & Dhariwal, "Glow", figure 3.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from flowcore.checkpoints.file import read_header
from flowcore.training.loop import train
from flowcore.training.recipe import parse_recipe

RECIPE = """
name = "ablation"
architecture = "glow"
seed = 1
validation = 1000
ema = 0.99
checkpoint_every = 100000
init_batch = 256
turn = false

[model]
levels = 3
steps = 4
hidden = 64
mixing = "{mixing}"
image_size = 32

[[stages]]
name = "flow"
objective = "likelihood"
steps = {steps}
batch = 32
crop = 32
learning_rate = 1e-3
clip = 1.0
"""
NAMES = {"reverse": "reversal", "shuffle": "fixed shuffle", "conv": "1x1 convolution", "lu": "1x1 convolution, LU"}


def main() -> None:
    """Train all variants and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of images of at least 32x32, any depth")
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for mixing in NAMES:
            begun = time.monotonic()
            recipe = parse_recipe(RECIPE.format(mixing=mixing, steps=options.steps))
            model = train(recipe, options.data, Path(folder) / mixing)
            metrics = read_header(model).provenance["metrics"]
            rows[mixing] = {
                "bits_per_dim": metrics["validation_bits_per_dim"],
                "minutes": round((time.monotonic() - begun) / 60, 1),
            }
    sys.stdout.write(json.dumps(rows) + "\n\n| permutation | bits per dimension, held out |\n|---|---|\n")
    for mixing, row in rows.items():
        sys.stdout.write(f"| {NAMES[mixing]} | {row['bits_per_dim']:.3f} |\n")


if __name__ == "__main__":
    main()
