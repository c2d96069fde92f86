"""Compare the models for dark photographs and for small pictures with methods that need no model.

The tables of flowcore/weights/README.md:

    python -m benchmarks.light_and_size brighten FOLDER [FOLDER ...] [--model brighten-photos] [--crop 320] [--limit 12]
    python -m benchmarks.light_and_size restore FOLDER [FOLDER ...] [--model rescale-x4] [--crop 0] [--limit 0]

``brighten`` darkens each photograph once (``training/degradation.darken``, seeded by its position) and compares with
the single gain that fits the original best, without and with denoising by a bilateral filter. It only uses held-out
photographs. ``restore`` shrinks to 8 bits, and compares with srflow-x4 at temperature 0, without its guide, from a
bicubic small picture.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kornia.filters import bilateral_blur
from torch import Tensor

import flowcore
from flowcore.images.color import as_stored, to_uint8
from flowcore.images.metrics import psnr
from flowcore.images.resize import downsample
from flowcore.training.degradation import darken
from flowcore.training.evaluation.feature_distance import feature_distance
from flowcore.training.evaluation.image_set import list_images, read_cropped
from flowcore.training.recipe import held_out_names

from .measure import arguments, markdown, middle, say

SPREADS = (0.05, 0.1, 0.2)  # of values, in the bilateral filters that are tried; the best one on each picture counts


def brighten(flow: flowcore.Flow, x: Tensor, number: int) -> dict[str, float]:
    """Measure one photograph ``(1, 3, H, W)``: PSNR by method, and feature distances."""
    pixels = to_uint8(x)[0].permute(1, 2, 0).numpy()
    dark = torch.from_numpy(darken(pixels, np.random.default_rng([number, 5])))[None].permute(0, 3, 1, 2).float() / 255
    gained = (dark * (x * dark).sum() / dark.square().sum().clamp_min(1e-6)).clamp(0, 1)
    filtered = [bilateral_blur(gained, (7, 7), spread, (2.0, 2.0)) for spread in SPREADS]
    made = as_stored(flowcore.brighten(flow, dark, temperature=0.0))
    default = as_stored(flowcore.brighten(flow, dark, seed=7))
    fitted = (made * (x * made).sum() / made.square().sum()).clamp(0, 1)
    rows = {"dark": dark, "best gain": gained, "temperature 0": made, "its best gain": fitted, "default": default}
    values = {name: psnr(picture, x).item() for name, picture in rows.items()}
    values["best gain, denoised"] = max(psnr(picture, x).item() for picture in filtered)
    distances = {name: feature_distance(rows[name], x).item() for name in ("temperature 0", "default")}
    return values | {f"feature distance of {name}": value for name, value in distances.items()}


def restore(flow: flowcore.Flow, x: Tensor, _: int, *, upscaler: flowcore.Flow) -> dict[str, float]:
    """Measure one photograph ``(1, 3, H, W)``, whose sides are multiples of the scale: PSNR by method."""
    small, bicubic = flowcore.shrink(flow, x), as_stored(downsample(x, flow.condition_scale))
    enlarged = flowcore.upscale(upscaler, bicubic, temperature=0.0, guide_strength=0)
    values = {"srflow-x4": psnr(as_stored(enlarged), x).item()}
    values["restored"] = psnr(as_stored(flowcore.restore(flow, small, temperature=0.0)), x).item()
    return values | {"small picture beside the bicubic one": psnr(small, bicubic).item()}


def main() -> None:
    """Measure and print means."""
    parser = arguments(__doc__, "light_and_size")
    option = parser.add_argument
    option("what", choices=["brighten", "restore"])
    option("folders", nargs="+", type=Path, help="photographs")
    option("--model", help="(default: brighten-photos or rescale-x4)")
    option("--crop", type=int, default=320, help="side of the central crops; 0 for whole images (default: 320)")
    option("--limit", type=int, default=12, help="photographs of each folder, evenly spread (default: 12)")
    options = parser.parse_args()
    brightens = options.what == "brighten"
    flow = flowcore.load(options.model or ("brighten-photos" if brightens else "rescale-x4"))
    measure = brighten if brightens else partial(restore, upscaler=flowcore.load("srflow-x4"))
    rows: list[tuple[str, str, str]] = []
    for folder in options.folders:
        paths = list_images(folder, held_out_names("standard") if brightens else None, options.limit)
        found: dict[str, list[float]] = {}
        for number, path in enumerate(paths):
            x = read_cropped(path, 8)
            for name, value in measure(flow, middle(x, options.crop or max(x.shape)), number).items():
                found.setdefault(name, []).append(value)
            say(path.name)
        rows += [(f"{folder.name} ({len(paths)})", name, f"{np.mean(values):.2f}") for name, values in found.items()]
    sys.stdout.write(markdown(("set", "picture", "dB, or feature distance"), rows) + "\n")


if __name__ == "__main__":
    main()
