"""Which automatic choice among colorings is nearest to the truth, by criterion.

    python -m benchmarks.choose FOLDER ... [--model color-photos] [--samples 64]

Colorings are drawn at the model's own temperatures, on the third finest grid only (16x24 of a 4:6 photograph), which is
quick and holds their colors. Of every 8 the best 2 by each criterion, relative to the mean of the 8: RMSE of chroma,
RMSE after all are scaled to the same colorfulness, and colorfulness. A choice that only finds the grayest has an RMSE
below 1, and not the second number. Prints a table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import flowcore
from flowcore.flow import Flow
from flowcore.images import color
from flowcore.images.color import NEUTRAL
from flowcore.images.files import image_files
from flowcore.images.resize import resize_bilinear
from flowcore.prior import log_density, sample_latents
from flowcore.quality.color_metrics import colorfulness
from flowcore.tasks.chroma import schedule, working_sides
from flowcore.tasks.plausibility import relative_distance, without_trend
from flowcore.transforms import Haar

from .hints import read

GROUP, KEPT, FIRST = 8, 2, 2  # samples, chosen ones, finest level that is drawn


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="photographs in color")
    parser.add_argument("--model", default="color-photos")
    parser.add_argument("--samples", type=int, default=64, help="per photograph, a multiple of 8")
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    files = [file for folder in options.folders for file in image_files(folder)]
    rows: dict[str, list[list[float]]] = {}
    for number, file in enumerate(files):
        for name, row in measure(flow, read(file), options.samples, number * options.samples).items():
            rows.setdefault(name, []).append(row)
    lines = ["| criterion | RMSE | at equal colorfulness | colorfulness |", "|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(f'{v:.2f}' for v in np.mean(row, axis=0))} |" for name, row in rows.items()]
    sys.stdout.write(f"{len(files)} photographs, {options.samples} samples each\n" + "\n".join(lines) + "\n")


def measure(flow: Flow, rgb: Tensor, samples: int, seed: int) -> dict[str, list[float]]:
    """Draw colorings of a photograph, and measure what each criterion chooses.

    Args:
        flow: A colorizer.
        rgb: The photograph, ``(1, 3, H, W)``.
        samples: How many to draw.
        seed: Of the first.
    """
    config = flow.config
    multiple = config.source_multiple
    sides = working_sides(rgb.shape[-2], rgb.shape[-1], config.working_size)
    height, width = (max(1, round(side / multiple)) * multiple for side in sides)
    y, truth = color.split(resize_bilinear(rgb, (height, width)))
    truth = F.avg_pool2d(truth, 4 * 2**FIRST)
    cond = flow.encode_condition(y).expand(samples)
    shapes = flow.latent_shapes(height // 4, width // 4)
    z = sample_latents(shapes, samples, schedule(*config.temperatures, len(shapes)), seed=seed)
    x, levels = z[-1], list(flow.levels)
    for level in range(len(levels) - 1, FIRST - 1, -1):
        if levels[level].split is not None:
            x = levels[level].split.inverse((x, z[level]), None)
        x = levels[level].squeeze.inverse(levels[level].steps.inverse(x, cond.features[level]))
    assert flow.prelude is not None
    chroma = flow.prelude.inverse(x / 2**FIRST) - NEUTRAL
    strength = colorfulness(chroma).double()
    equal = chroma * (strength.mean() / strength).float()[:, None, None, None]
    density, densities = log_densities(flow, chroma, cond), log_densities(flow, equal, cond)

    def grouped(values: Tensor) -> Tensor:
        return values.unflatten(0, (-1, GROUP))

    trendless = [without_trend(-d, s.log()) for d, s in zip(grouped(densities[:, -1]), grouped(strength), strict=True)]
    costs = {
        f"log density, {len(shapes) - FIRST} grids": -density.sum(1),
        "log density, the coarsest grid": -density[:, -1],
        "least colorful, without a model": strength,
        "energy of the coarsest latents": z[-1].square().flatten(1).sum(1),
        "palette_bits": torch.cat(trendless),
        "consensus": torch.cat([relative_distance(part.flatten(1).double()) for part in grouped(chroma)]),
    }
    errors = [grouped((c - truth).square().flatten(1).mean(1).sqrt().double()) for c in (chroma, equal)]
    measured = [*errors, grouped(strength)]
    return {
        name: [float(m.gather(1, grouped(cost).argsort(1)[:, :KEPT]).mean() / m.mean()) for m in measured]
        for name, cost in costs.items()
    }


def log_densities(flow: Flow, chroma: Tensor, cond: flowcore.Condition) -> Tensor:
    """Log density of each level from FIRST on, of chroma on its grid: (N, levels)."""
    assert flow.prelude is not None
    x = flow.prelude(chroma + NEUTRAL)[0] * 2**FIRST
    shares: list[Tensor] = []
    for number, level in list(enumerate(flow.levels))[FIRST:]:
        x = Haar()(x)[0]
        x, logdet = level.steps(x, cond.features[number])
        latent = x
        if level.split is not None:
            (x, latent), change = level.split(x, None)
            logdet = logdet + change
        shares.append(logdet.double() + log_density(latent).double().flatten(1).sum(1))
    return torch.stack(shares, 1)


if __name__ == "__main__":
    main()
