"""The ablation of the colorizer: a pyramid against one conditional flow on the finest grid, at the same budget each.

    python -m benchmarks.pyramid --data FOLDER --eval FOLDER [FOLDER ...] [--steps 600]

Trains both by the recipe color-photos without its backbone, for as many steps, on the same crops and noise; the flow on
one grid has the steps and the width at which it comes nearest to the parameters of the pyramid's flows (they share the
luma encoder).
Then measures both with ``evaluate_colorizer``: bits per dimension, coherence, best of 8. Prints JSON, then a table.

With --keep FOLDER, the models stay there, and
`python -m flowcore eval PHOTOGRAPHS --model FOLDER/pyramid/model.safetensors --model FOLDER/single/model.safetensors`
measures them again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from flowcore.checkpoints import load
from flowcore.evaluation.colorization import evaluate_colorizer
from flowcore.evaluation.tables import colorizer_table
from flowcore.models import build
from flowcore.models.colorizer import ColorizerConfig
from flowcore.training.loop import train
from flowcore.training.recipe import Recipe, read_recipe


def main() -> None:
    """Train both, and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, any depth")
    parser.add_argument("--eval", type=Path, nargs="+", required=True, metavar="FOLDER", help="to measure on")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=192, help="side of the crops in pixels (default: 192)")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--limit", type=int, default=10_000, help="at most so many images of each folder")
    parser.add_argument("--single-steps", type=int, default=16, help="steps of the flow on one grid (default: 16)")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"], help="of networks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the runs there, and resume them")
    options = parser.parse_args()
    brought = read_recipe("color-photos")
    pyramid: ColorizerConfig = dataclasses.replace(
        brought.model, backbone="none", predicts_chroma=False, residual=False
    )
    structures = {"pyramid": pyramid, "single": matched(pyramid, options.single_steps)}
    trained: dict[str, dict[str, Any]] = {}
    results: dict[str, dict[str, dict[str, float]]] = {folder.name: {} for folder in options.eval}
    with tempfile.TemporaryDirectory() as temporary:
        runs = options.keep or Path(temporary)
        for name, config in structures.items():
            begun = time.monotonic()
            recipe = smaller(brought, config, options.steps, options.batch, options.crop)
            recipe = dataclasses.replace(recipe, precision=options.precision)
            flow = load(train(recipe, options.data, runs / name, device=options.device), options.device)
            grids = len(config.steps) if config.structure == "pyramid" else 1
            trained[name] = {
                "flow_parameters": flow_parameters(config),
                "parameters": sum(parameter.numel() for parameter in flow.parameters()),
                "steps_by_grid": config.steps[:grids],
                "hidden_by_grid": config.hidden[:grids],
                "minutes": round((time.monotonic() - begun) / 60, 1),
            }
            for folder in options.eval:
                results[folder.name][name] = evaluate_colorizer(
                    flow, folder, samples=options.samples, limit=options.limit
                )
    budget = {"steps": options.steps, "batch": options.batch, "crop": options.crop}
    sys.stdout.write(json.dumps({"budget": budget, "models": trained, "results": results}) + "\n\n")
    sys.stdout.write("| model | parameters of the flow | with encoder | minutes |\n|---|---|---|---|\n")
    for name, row in trained.items():
        sys.stdout.write(f"| {name} | {row['flow_parameters']:,} | {row['parameters']:,} | {row['minutes']} |\n")
    sys.stdout.write("\n" + colorizer_table(results) + "\n")


def smaller(recipe: Recipe, config: ColorizerConfig, steps: int, batch: int, crop: int) -> Recipe:
    """Cut the recipe down to one short stage, with another model; its text is kept as where it came from."""
    stage = dataclasses.replace(
        recipe.stages[-1],
        steps=steps,
        batch=batch,
        crop=crop,
        train_encoder_after=0.0,
        encoder_rate=1.0,
        calm_weight=0.0,
    )
    return dataclasses.replace(
        recipe, name=f"ablation-{config.structure}", model=config, stages=(stage,), checkpoint_every=max(1, steps)
    )


def matched(pyramid: ColorizerConfig, steps: int) -> ColorizerConfig:
    """Make the flow on one grid that comes nearest to the parameters of a pyramid's flows, with so many steps."""
    wanted = flow_parameters(pyramid)
    low, high = 1, 1
    others = (1,) * (len(pyramid.steps) - 1)  # not used, but the encoder has its grids

    def single(width: int) -> ColorizerConfig:
        return dataclasses.replace(pyramid, structure="single", steps=(steps, *others), hidden=(width, *others))

    while flow_parameters(single(high)) < wanted and high < 4096:
        low, high = high, min(2 * high, 4096)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if flow_parameters(single(middle)) < wanted else (low, middle)
    return min(single(low), single(high), key=lambda config: abs(flow_parameters(config) - wanted))


def flow_parameters(config: ColorizerConfig) -> int:
    """Count the parameters of a colorizer's flows, without its luma encoder."""
    with torch.device("meta"):
        flow = build("colorizer", config)
    return sum(parameter.numel() for parameter in flow.levels.parameters())


if __name__ == "__main__":
    main()
