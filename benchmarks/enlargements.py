"""A sheet of enlargements to look at, a row a photograph: bicubic, temperature 0, some seeds, the original.

    python -m benchmarks.enlargements OUT.jpg PHOTOGRAPH_OR_FOLDER [...] --model srflow-faces-x8 [--samples 3]

Photographs are cropped to a square around their center and shrunk to --side; that is the original. It is shrunk by the
model's scale, rounded to 8 bits, and enlarged again; seeds at the model's own temperature unless another is given.
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
from flowcore.images.resize import enlarge, shrink


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
    flow = flowcore.load(options.model)
    rows: list[Tensor] = []
    for path in options.photographs:
        for file in list_images(path) if path.is_dir() else [path]:
            square = ImageOps.fit(read_upright(file), (options.side, options.side), Image.Resampling.LANCZOS)
            hr = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 255
            lr = shrink(hr, flow.condition_scale).clamp(0, 1).mul(255).round().div(255)
            calm = flowcore.upscale(flow, lr, temperature=0.0, calm_edges=0.0)
            drawn = flowcore.upscale(
                flow, lr, samples=options.samples, seed=options.seed, temperature=options.temperature
            )
            row = torch.cat([enlarge(lr, flow.condition_scale).clamp(0, 1), calm, drawn, hr])
            rows.append(torch.cat(list(row), dim=2))
    pixels = torch.cat(rows, dim=1).mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(options.out, quality=88)


if __name__ == "__main__":
    main()
