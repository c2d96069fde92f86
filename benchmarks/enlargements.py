"""A sheet of enlargements to look at, a row a photograph: bicubic, temperature 0, some seeds, the original.

    python -m benchmarks.enlargements OUT.jpg PHOTOGRAPH_OR_FOLDER [...] --model srflow-faces-x8 [--samples 3]

Photographs are cropped to a square around their center and shrunk to --side; that is the original. It is shrunk by the
model's scale, rounded to 8 bits, and enlarged again; seeds at the model's own temperature unless another is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import flowcore
from flowcore.evaluation.image_set import list_images, read_upright
from flowcore.images.contact_sheet import contact_sheet
from flowcore.images.files import fit
from flowcore.images.resize import enlarge, shrink
from flowcore.images.rounding import as_stored, to_uint8

LABEL = 18  # characters of a file's name


def main() -> None:
    """Enlarge, and save the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("photographs", type=Path, nargs="+", help="files, and folders at any depth")
    parser.add_argument("--model", default="srflow-x4")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")
    parser.add_argument("--side", type=int, default=192, help="of the originals, in pixels")
    options = parser.parse_args()
    files = [file for path in options.photographs for file in (list_images(path) if path.is_dir() else [path])]
    flow = flowcore.load(options.model)
    seeds = range(options.seed, options.seed + options.samples)
    pictures: list[Tensor] = []
    for file in files:
        hr = fit(read_upright(file), (options.side, options.side), 3)[None].float() / 255
        lr = as_stored(shrink(hr, flow.condition_scale))
        calm = flowcore.upscale(flow, lr, temperature=0.0, calm_edges=0.0)
        drawn = flowcore.upscale(flow, lr, samples=len(seeds), seed=seeds[0], temperature=options.temperature)
        pictures += [enlarge(lr, flow.condition_scale), calm, drawn, hr]
    columns = ["bicubic", "temperature 0", *(f"seed {seed}" for seed in seeds), "original"]
    sheet = contact_sheet(torch.cat(pictures), [file.stem[:LABEL] for file in files], columns)
    Image.fromarray(to_uint8(sheet).permute(1, 2, 0).contiguous().numpy()).save(options.out, quality=88)


if __name__ == "__main__":
    main()
