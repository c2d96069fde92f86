"""A sheet with one row per photograph: the results of an upscaler or a colorizer, beside the original.

    python -m benchmarks.sheets OUT.jpg PHOTOGRAPH_OR_FOLDER [...] --model srflow-x4 [--samples 4] [--limit 10]

For an upscaler, the original is a center square shrunk to --side. It is shrunk by the model's scale, rounded to 8 bits,
and enlarged again: bicubic, temperature 0, seeds, the original. For a colorizer, the row shows luma, the original,
temperature 0 and seeds, fitted into 1.5 times --side by --side.

Seeds use the model's default temperatures unless you set others. From folders, at most --limit photographs are used,
evenly spread over the names, with --held-out only held-out ones.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

import flowcore
from flowcore.flows.flow import Flow
from flowcore.images.color import as_stored, luma
from flowcore.images.contact_sheet import contact_sheet
from flowcore.images.files import fit
from flowcore.images.resize import downsample, enlarge
from flowcore.training.evaluation.image_set import list_images, read_upright
from flowcore.training.recipe import held_out_names

from .measure import arguments, as_image

LABEL = 18  # characters of a file's name


def main() -> None:
    """Enlarge or colorize, and save the sheet."""
    parser = arguments(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("photographs", type=Path, nargs="+", help="files, and folders at any depth")
    parser.add_argument("--model", default="srflow-x4", help="an upscaler or a colorizer (default: srflow-x4)")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--detail", type=float, help="temperature of a colorizer's finer grids")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample; the same for every row")
    parser.add_argument("--limit", type=int, help="at most so many photographs of a folder")
    parser.add_argument("--held-out", action="store_true", help="of folders, only photographs that are held out")
    parser.add_argument("--side", type=int, default=192, help="of the pictures, in pixels (default: 192)")
    options = parser.parse_args()
    only = held_out_names("standard") if options.held_out else None
    files = [f for p in options.photographs for f in (list_images(p, only, options.limit) if p.is_dir() else [p])]
    flow = flowcore.load(options.model)
    row = colorings if "colorize" in flow.capabilities.tasks else enlargements
    pictures = torch.cat([row(flow, read_upright(file), options) for file in files])
    seeds = [f"seed {seed}" for seed in range(options.seed, options.seed + options.samples)]
    columns = ["bicubic", "temperature 0", *seeds, "original"]
    if row is colorings:
        columns = ["luma", "as it is", "temperature 0", *seeds]
    sheet = contact_sheet(pictures, [file.stem[:LABEL] for file in files], columns)
    as_image(sheet).save(options.out, quality=88)


def enlargements(flow: Flow, image: Image.Image, options: argparse.Namespace) -> Tensor:
    """Shrink and enlarge a photograph, ``(pictures, 3, side, side)``."""
    hr = fit(image, (options.side, options.side), 3)[None].float() / 255
    lr = as_stored(downsample(hr, flow.condition_scale))
    calm = flowcore.upscale(flow, lr, temperature=0.0, calm_edges=0.0)
    drawn = flowcore.upscale(flow, lr, samples=options.samples, seed=options.seed, temperature=options.temperature)
    return torch.cat([enlarge(lr, flow.condition_scale), calm, drawn, hr])


def colorings(flow: Flow, image: Image.Image, options: argparse.Namespace) -> Tensor:
    """Color a photograph from its luma, ``(pictures, 3, side, 3/2 side)``."""
    rgb = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    y = luma(rgb)
    calm = flowcore.colorize(flow, y, temperature=0, detail=0)
    given = {name: getattr(options, name) for name in ("samples", "seed", "temperature", "detail")}
    row = torch.cat([y.expand(-1, 3, -1, -1), rgb, calm, flowcore.colorize(flow, y, **given)])
    size = (options.side * 3 // 2, options.side)
    fitted = [ImageOps.pad(as_image(picture), size, Image.Resampling.LANCZOS, color="white") for picture in row]
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).float() / 255


if __name__ == "__main__":
    main()
