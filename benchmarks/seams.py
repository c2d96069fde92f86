"""Where colorings show the cells of the grids they were decided on: ``seams`` by threshold and grid, beside the truth.

    python -m benchmarks.seams FOLDER [FOLDER ...] [--model color-photos] [--samples 8] [--limit 29]

For thresholds of the luma (``FLAT`` of color_metrics is one of them), and every grid of the model: the change of chroma
across the borders of its cells, relative to the change inside, of the photographs' own chroma, of the colorings at
default temperatures, and, to see that the measure bites, of the photographs' own chroma averaged over cells of that
grid and enlarged again halfway between nearest and bilinear. "kept": share of neighbors below the threshold.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

import flowcore
from flowcore.evaluation.image_set import list_images
from flowcore.images.color import split
from flowcore.images.resize import resize_bilinear
from flowcore.networks.luma import STRIDE
from flowcore.quality.color_metrics import seam_ratio, seam_sums
from flowcore.tasks.chroma import working_sides

from .hints import read

STEPS = (1, 2, 4, 8, 256)  # thresholds, in steps of 8 bits; the last one takes all neighbors


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="photographs in color")
    parser.add_argument("--model", default="color-photos")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    cells = [2**level for level in range(1, len(flow.config.steps) + 1)]
    sums: dict[tuple[int, str, int], Tensor] = {}
    for number, file in enumerate(list_images(options.folders, limit=options.limit)):
        y, truth = split(read(file))
        rows, columns = working_sides(*y.shape[-2:], flow.config.working_size)
        size = rows // STRIDE, columns // STRIDE
        seed = number * options.samples
        drawn = split(flowcore.colorize(flow, y, samples=options.samples, seed=seed, notify=lambda _: None))[1]
        y, truth, drawn = (resize_bilinear(image, size) for image in (y, truth, drawn))
        for cell in cells:
            for name, chroma in (("photographs", truth), ("colorings", drawn), ("cells", in_cells(truth, cell))):
                for step in STEPS:
                    key = step, name, cell
                    sums[key] = sums.get(key, 0) + seam_sums(chroma, y, cell, flat=step / 255)
    say = sys.stdout.write
    strides = " | ".join(str(STRIDE * cell) for cell in cells)
    say(f"| luma below | kept | chroma of | {strides} |\n{'|---' * (3 + len(cells))}|\n")
    for step in STEPS:
        kept, everything = (sums[key, "photographs", 2][1::2].sum() for key in (step, STEPS[-1]))
        for name in ("photographs", "colorings", "cells"):
            ratios = " | ".join(f"{seam_ratio(sums[step, name, cell]):.2f}" for cell in cells)
            say(f"| {step} / 255 | {float(kept / everything):.0%} | {name} | {ratios} |\n")


def in_cells(chroma: Tensor, cell: int) -> Tensor:
    """Average chroma over cells, and enlarge it halfway between nearest and bilinear."""
    coarse = F.avg_pool2d(chroma, cell, ceil_mode=True, count_include_pad=False)
    nearest = coarse.repeat_interleave(cell, 2).repeat_interleave(cell, 3)[..., : chroma.shape[2], : chroma.shape[3]]
    return (nearest + resize_bilinear(coarse, chroma.shape[2:])) / 2


if __name__ == "__main__":
    main()
