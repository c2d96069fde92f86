"""What a pretrained backbone and more photographs are worth to a colorizer: four models of the same training.

    python -m benchmarks.backbone --few photos --data photos-small photos-large photos faces
        --weights efficientnet-lite0.safetensors --keep runs/backbone --length 0.1
        -- --photographs eval/kodak eval/cbsd68 --held-out photos-small -o docs/backbone.md

Trains the recipe color-photos with and without its backbone, on the folder --few and on all of --data, each for the
same share of the recipe's steps (--length); runs in --keep are resumed. Then measures all four by
``benchmarks.colorizers``, which gets what stands behind ``--``. The file of --weights is written by
``benchmarks.read_efficientnet``.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import torch

from flowcore.training.loop import train
from flowcore.training.recipe import Recipe, read_recipe


def main() -> None:
    """Train all four, and measure them."""
    own, separator, rest = list(sys.argv[1:]), "--", list[str]()
    if separator in own:
        own, rest = own[: own.index(separator)], own[own.index(separator) + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=Path, required=True, help="folder of some of the photographs")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of all of them")
    parser.add_argument("--weights", type=Path, required=True, help="file of the backbone")
    parser.add_argument("--keep", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--recipe", default="color-photos", help="a TOML file, or a recipe by name")
    parser.add_argument("--length", type=float, default=0.1, help="share of the recipe's steps (default: 0.1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(own)
    seeing = shortened(read_recipe(options.recipe), options.length)
    blind = dataclasses.replace(seeing, model=dataclasses.replace(seeing.model, backbone="none"))
    models: list[str] = []
    for amount, data in (("few", [options.few]), ("all", options.data)):
        for kind, recipe, encoder in (("without", blind, None), ("with", seeing, options.weights)):
            name = f"{amount} photographs, {kind} backbone"
            folder = options.keep / name.replace(", ", "-").replace(" ", "-")
            model = train(recipe, data, folder, device=options.device, encoder_from=encoder)
            models.append(f"{name}={model}")
    subprocess.run([sys.executable, "-m", "benchmarks.colorizers", *models, *rest], check=True)


def shortened(recipe: Recipe, length: float) -> Recipe:
    """Cut all stages to a share of their steps."""
    stages = tuple(dataclasses.replace(s, steps=max(1, round(s.steps * length))) for s in recipe.stages)
    return dataclasses.replace(recipe, name=f"{recipe.name}-{length:g}", stages=stages)


if __name__ == "__main__":
    main()
