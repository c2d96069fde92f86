"""A sheet of colorings to look at, a row a photograph: luma, the file as it is, temperature 0, and some seeds.

    python -m benchmarks.colourings OUT.jpg PHOTOGRAPH_OR_FOLDER [...] [--samples 4] [--limit 10] [--height 160]

Of folders, at most --limit photographs, evenly spread over the names, and with --held-out only those that no shipped
model was trained on. Seeds are drawn at the model's own temperatures unless others are given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

import flowcore
from flowcore.evaluation.image_set import list_images, read_upright
from flowcore.images import color
from flowcore.images.contact_sheet import contact_sheet
from flowcore.images.rounding import to_uint8
from flowcore.training.recipe import held_out_names

LABEL = 18  # characters of a file's name


def main() -> None:
    """Colorize, and save the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("photographs", type=Path, nargs="+", help="files, and folders at any depth")
    parser.add_argument("--model", default="color-photos")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--detail", type=float)
    parser.add_argument("--seed", type=int, default=0, help="of the first column; the same for every row")
    parser.add_argument("--limit", type=int, help="at most so many photographs of a folder")
    parser.add_argument("--held-out", action="store_true", help="of folders, only photographs that are held out")
    parser.add_argument("--height", type=int, default=160, help="of a row, in pixels")
    options = parser.parse_args()
    only = held_out_names("standard") if options.held_out else None
    files = [
        file
        for path in options.photographs
        for file in (list_images(path, only, options.limit) if path.is_dir() else [path])
    ]
    flow = flowcore.load(options.model)
    seeds = range(options.seed, options.seed + options.samples)
    pictures: list[Tensor] = []
    for file in files:
        rgb = torch.from_numpy(np.array(read_upright(file))).permute(2, 0, 1)[None].float() / 255
        y = color.luma(rgb)
        calm = flowcore.colorize(flow, y, temperature=0, detail=0)
        drawn = flowcore.colorize(
            flow, y, samples=len(seeds), seed=seeds[0], temperature=options.temperature, detail=options.detail
        )
        row = torch.cat([y.expand(-1, 3, -1, -1), rgb, calm, drawn])
        pictures += [fit(picture, options.height) for picture in row]
    columns = ["luma", "as it is", "temperature 0", *(f"seed {seed}" for seed in seeds)]
    sheet = contact_sheet(torch.stack(pictures), [file.stem[:LABEL] for file in files], columns)
    Image.fromarray(to_uint8(sheet).permute(1, 2, 0).contiguous().numpy()).save(options.out, quality=90)


def fit(picture: Tensor, height: int) -> Tensor:
    """Fit a picture (3, H, W) on white of that height, half as wide again: (3, height, 3/2 height)."""
    image = Image.fromarray(to_uint8(picture).permute(1, 2, 0).contiguous().numpy())
    padded = ImageOps.pad(image, (height * 3 // 2, height), Image.Resampling.LANCZOS, color="white")
    return torch.from_numpy(np.array(padded)).permute(2, 0, 1).float() / 255


if __name__ == "__main__":
    main()
