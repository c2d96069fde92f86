"""A sheet of colourings to look at: luma, some seeds, and the photograph's own colours, a row a photograph.

python -m benchmarks.colourings OUT.jpg PHOTOGRAPH [PHOTOGRAPH ...] [--samples 4] [--height 160]

The strip in the README was made with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

import flowcore
from flowcore.images import color

from .hints import read


def main() -> None:
    """Colour, and save the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("photographs", type=Path, nargs="+")
    parser.add_argument("--model", default="color-photos")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--detail", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int, default=160, help="of a row, in pixels")
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    rows: list[Image.Image] = []
    for file in options.photographs:
        rgb = read(file)
        y = color.luma(rgb)
        colourings = flowcore.colorize(
            flow, y, samples=options.samples, seed=options.seed, temperature=options.temperature, detail=options.detail
        )
        pictures = torch.cat([y.expand(-1, 3, -1, -1), colourings, rgb])
        row = torch.cat(list(pictures), dim=2)  # (3, H, (samples + 2) * W)
        image = Image.fromarray((row * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
        width = round(image.width * options.height / image.height)
        rows.append(image.resize((width, options.height), Image.Resampling.LANCZOS))
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(options.out, quality=85)


if __name__ == "__main__":
    main()
