"""How far the fast path is from the plain path in float64, by precision, on the shipped models.

The numbers of the nodes' help and of benchmarks/README.md:

    python -m benchmarks.precision IMAGE [IMAGE ...]

Errors are in steps of 8 bits (1/255): of an image's values, of a colouring's chroma. An upscaler is given the middle
96x96 pixels of a picture as LR, a colorizer the luma of the middle 256x256, other models a seed for every picture;
latents have the usual temperature.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

import flowcore
from flowcore.images.color import luma
from flowcore.inference.plan import Plan, Precision
from flowcore.prior import sample_latents
from flowcore.tasks.chroma import schedule

PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16", "float16")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument(
        "--models", nargs="+", default=["srflow-x4", "srflow-x8", "color-photos", "glow-photos", "mnist-styles"]
    )
    parser.add_argument("--device", default="cpu", help="of the fast path")
    options = parser.parse_args()
    for name in options.models:
        flow = flowcore.load(name)
        exact = copy.deepcopy(flow).double()
        cases = [_case(flow, path, seed) for seed, path in enumerate(options.images)]
        expected = [_decoded(exact, source, [t.double() for t in z], "cpu") for source, z in cases]
        flow.to(options.device)
        for precision in PRECISIONS:
            if options.device == "cpu" and precision in ("tf32", "float16"):
                continue  # on a CPU both are float32
            plan = Plan(flow, precision)
            errors: list[Tensor] = []
            for (source, z), wanted in zip(cases, expected, strict=True):
                errors.append(255 * (_decoded(plan, source, z, options.device) - wanted).abs().flatten())
            together = torch.cat(errors)
            row = {
                "mean": float(together.mean()),
                "999 of 1000 below": float(np.quantile(together.numpy(), 0.999)),
                "largest": float(together.max()),
            }
            sys.stdout.write(json.dumps({"model": name, "precision": precision} | row) + "\n")


@torch.no_grad()
def _decoded(flow: flowcore.Flow, source: Tensor | None, z: list[Tensor], device: str) -> Tensor:
    if source is not None:
        source = source.to(device, z[0].dtype if source.is_floating_point() else source.dtype)
    cond = None if source is None else flow.encode_condition(source)
    return flow.inverse([t.to(device) for t in z], cond).cpu().double().clamp(0, 1)


def _case(flow: flowcore.Flow, path: Path, seed: int) -> tuple[Tensor | None, list[Tensor]]:
    """What the model is conditioned on, and latents."""
    if flow.image_size is not None:
        labels = torch.tensor([seed % flow.classes]) if flow.classes else None
        return labels, sample_latents(flow.latent_shapes(*flow.image_size), 1, 0.7, seed=seed)
    colours = flow.architecture == "colorizer"
    side = 256 if colours else 96
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if colours:
        image = ImageOps.fit(image, (2 * side, 2 * side))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    if not colours:
        scale = flow.condition_scale
        return pixels, sample_latents(flow.latent_shapes(side * scale, side * scale), 1, 0.8, seed=1)
    shapes = flow.latent_shapes(side // 4, side // 4)
    return luma(pixels), sample_latents(shapes, 1, schedule(*flow.config.temperatures, len(shapes)), seed=1)


if __name__ == "__main__":
    main()
