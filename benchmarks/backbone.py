"""What a pretrained backbone and more photographs are worth to a colorizer: four models of the same training.

    python -m benchmarks.backbone --few photos --data photos-small photos-large photos faces
        --weights efficientnet-lite0.safetensors --keep runs/backbone --length 0.1
        -- --photographs eval/kodak eval/cbsd68 --held-out photos-small -o docs/backbone.md

Trains the recipes color-photos-encoder and color-photos, one after the other, with and without their backbone, on the
folder --few and on all of --data, each for the same share of the steps (--length); runs in --keep are resumed. Then
measures all four by ``benchmarks.colorizers``, which gets what stands behind ``--``. The file of --weights is written
by ``benchmarks.read_efficientnet``.
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
    recipes = ["color-photos-encoder", "color-photos"]
    parser.add_argument("--recipes", nargs="+", default=recipes, help="whose stages are trained one after the other")
    parser.add_argument("--length", type=float, default=0.1, help="share of the recipe's steps (default: 0.1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(own)
    seeing = joined([read_recipe(name) for name in options.recipes], options.length)
    blind = dataclasses.replace(seeing, model=dataclasses.replace(seeing.model, backbone="none"))
    models: list[str] = []
    for amount, data in (("few", [options.few]), ("all", options.data)):
        for kind, recipe, encoder in (("without", blind, None), ("with", seeing, options.weights)):
            name = f"{amount} photographs, {kind} backbone"
            folder = options.keep / name.replace(", ", "-").replace(" ", "-")
            model = train(recipe, data, folder, device=options.device, encoder_from=encoder)
            models.append(f"{name}={model}")
    subprocess.run([sys.executable, "-m", "benchmarks.colorizers", *models, *rest], check=True)


def joined(recipes: list[Recipe], length: float) -> Recipe:
    """Make one recipe of the stages of all, cut to a share of their steps; the rest is that of the last."""
    stages = [dataclasses.replace(s, steps=max(1, round(s.steps * length))) for r in recipes for s in r.stages]
    return dataclasses.replace(recipes[-1], name=f"{recipes[-1].name}-{length:g}", stages=tuple(stages))


if __name__ == "__main__":
    main()
