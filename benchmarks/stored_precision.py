"""What storing a model in float16 or in 8 bits changes in its pictures.

The numbers of flowcore/weights/README.md:

    python -m benchmarks.stored_precision FOLDER [FOLDER ...] --model MODEL [MODEL ...]

Upscalers enlarge the images, shrunk by antialiased bicubic and rounded to 8 bits; colorizers color their gray versions.
PSNR is against the originals, of the mean squared error over all images. Changes are from the pictures of the model as
it is, in 1/255. At temperature 0 and at the model's default, one seed. Bits per dimension of other models: ``python -m
flowcore eval``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import flowcore
from flowcore.checkpoints.file import save
from flowcore.flow import Flow
from flowcore.images.color import luma
from flowcore.images.resize import shrink
from flowcore.images.rounding import as_stored

from .calm_edges import add_crop_options, crops

DTYPES = {"float16": torch.float16, "8 bits": torch.int8}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["srflow-x4"], help="upscalers and colorizers")
    add_crop_options(parser)
    options = parser.parse_args()
    images = [hr for _, hr in crops(options)]
    heads = ["model", "stored as", "MB", *(f"{head}, {tau}" for tau in ("tau 0", "default") for head in HEADS)]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for model in options.model:
        own = flowcore.load(model)
        before = {tau: [paint(own, hr, tau) for hr in images] for tau in (0.0, None)}
        for name, dtype in DTYPES.items():
            stored, size = store(own, dtype)
            cells = [Path(model).stem, name, f"{size / 1e6:.2f}"]
            for tau, pictures in before.items():
                cells += compare(images, pictures, [paint(stored, hr, tau) for hr in images])
            print("| " + " | ".join(cells) + " |", flush=True)


def store(flow: Flow, dtype: torch.dtype) -> tuple[Flow, int]:
    """Return a flow as it comes back from a file, and the size of that file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(flow, path, dtype=dtype)
        return flowcore.load(path), path.stat().st_size


def paint(flow: Flow, hr: Tensor, tau: float | None) -> Tensor:
    """Enlarge an image that was shrunk, or color its gray version."""
    if "colorize" in flow.capabilities.tasks:
        return flowcore.colorize(flow, luma(hr), temperature=tau, detail=tau)
    return flowcore.upscale(flow, as_stored(shrink(hr, flow.condition_scale)), temperature=tau)


HEADS = ("PSNR before", "PSNR", "RMS change", "99.9 % below", "largest")


def compare(originals: list[Tensor], before: list[Tensor], after: list[Tensor]) -> list[str]:
    """Write the columns ``HEADS`` of pictures."""
    pixels = [torch.cat([t.flatten() for t in images]) for images in (originals, before, after)]
    hr, old, new = pixels
    change = (new - old).abs() * 255
    psnrs = [float(-10 * (t - hr).square().mean().log10()) for t in (old, new)]
    rank = max(1, round(0.999 * len(change)))
    numbers = [change.square().mean().sqrt(), change.kthvalue(rank)[0], change.max()]
    return [*(f"{p:.3f}" for p in psnrs), *(f"{float(n):.2f}" for n in numbers)]


if __name__ == "__main__":
    main()
