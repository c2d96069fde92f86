"""How far a few hints go: error at the hints and elsewhere, by their number and by how they are used.

    python -m benchmarks.hints FOLDER [--model color-photos] [--limit 8]

Hints are discs of a photograph's own colors at random places. "conditioned": they are in the condition; "refined": the
latents are moved until they are met, too (``hint_steps``); "locked": met exactly, as far as luma leaves room. RMSE over
both chroma channels, one coloring per photograph: at the hints against the wanted color, elsewhere against the truth.
Prints JSON, then a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import flowcore
from flowcore.images import color
from flowcore.images.files import image_files
from flowcore.tasks.colorize import colorize
from flowcore.tasks.hints import Point, hints_from_points

COUNTS = (0, 1, 4, 16)
WAYS = {"conditioned": (0, False), "refined": (20, False), "locked": (20, True)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="photographs in colour")
    parser.add_argument("--model", default="color-photos")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--radius", type=int, default=8)
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    rows: dict[str, list[tuple[float, float]]] = {}
    for seed, file in enumerate(image_files(options.folder)[: options.limit]):
        y, truth = color.split(read(file))
        for count in COUNTS:
            points = own_colours(y, truth, count, seed)
            hints = hints_from_points(points, (y.shape[-2], y.shape[-1]), radius=options.radius)
            covered = hints.coverage[0, 0] > 0 if hints.coverage is not None else torch.zeros(y.shape[-2:]) > 0
            for way, (steps, lock) in WAYS.items():
                if count == 0 and way != "conditioned":
                    continue
                wanted = dataclasses.replace(hints, lock=lock) if count else None
                result = colorize(flow, y, seed=seed, hints=wanted, hint_steps=steps)
                chroma = color.split(result)[1]
                missed = (chroma - truth)[0].square().mean(0)  # (H, W)
                at = 0.0
                if hints.chroma is not None and count:
                    at = float((chroma - hints.chroma)[0].square().mean(0)[covered].mean().sqrt())
                rows.setdefault(f"{count} {way}", []).append((at, float(missed[~covered].mean().sqrt())))
    means = {name: [round(float(value), 4) for value in np.mean(values, axis=0)] for name, values in rows.items()}
    lines = [f"| {name} | {at} | {elsewhere} |" for name, (at, elsewhere) in means.items()]
    table = "\n".join(["| hints | RMSE at the hints | elsewhere |", "|---|---|---|", *lines])
    sys.stdout.write(json.dumps(means, indent=2) + "\n\n" + table + "\n")


def own_colours(y: Tensor, chroma: Tensor, count: int, seed: int) -> list[Point]:
    """Take colors off a photograph at random places.

    Args:
        y: Its luma, ``(1, 1, H, W)``.
        chroma: Its chroma, ``(1, 2, H, W)``.
        count: How many.
        seed: Of the places.

    Returns:
        The points.
    """
    rng = np.random.default_rng(seed)
    height, width = y.shape[-2:]
    rgb = color.compress(y, chroma)
    places = [(int(rng.integers(width)), int(rng.integers(height))) for _ in range(count)]
    return [(column, row, tuple(rgb[0, :, row, column].tolist())) for column, row in places]


def read(file: Path) -> Tensor:
    """Read a photograph.

    Args:
        file: Where it is.

    Returns:
        ``(1, 3, H, W)`` in [0, 1].
    """
    with Image.open(file) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


if __name__ == "__main__":
    main()
