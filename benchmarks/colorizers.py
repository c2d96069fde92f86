"""Compare colorizers with each other and with targets.

    python -m benchmarks.colorizers MODEL [NAME=MODEL ...] -o docs/colorizers.md --json runs/colorizers.json
        --photographs eval/kodak eval/cbsd68 --held-out photos-small --portraits faces/heldout

Models are files or names of shipped models; NAME labels the rows. All are measured by ``evaluate_colorizer`` at
their default temperatures: on photographs (all folders together are one set), on the held-out photographs of the
--held-out folders, and on aligned portraits. Prints a table of the measurements that have targets, bold if met, and a
table of all measurements; -o also writes them to a file. "/ gray" is the sum of RMSE over the sum of that of gray;
lower is better.

The numbers are written to the file of --json after every set. Numbers that it already has for the same weights, images
and settings are not measured again, so the program can be interrupted, and run again with one more model.

    python -m benchmarks.colorizers MODEL --hints eval/kodak [--limit 12]

measures how far a few hints reach: discs with a photograph's own colors at random places. "conditioned": hints are only
part of the condition; "spread": they also color the object they lie on (``hint_steps``); "locked": they are met exactly
where luma permits. RMSE over both chroma channels, one coloring per photograph: at the hints against their color,
elsewhere against the original.

    python -m benchmarks.colorizers MODEL [NAME=MODEL ...] --objects eval/kodak photos-large photos-small [--limit 48]

measures whether objects get their own colors, on held-out photographs. All numbers are means over pictures, in cells of
16 pixels at a shorter side of 192, or as many cells of larger pictures (--side 384). At temperature 0: the squared
error of chroma over that of gray and, after subtracting the mean chroma of each picture, the correlation with the
original and the strength relative to it. For samples: the mean error, the error of the best, and the standard deviation
after subtracting the mean chroma, in 1/255.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import flowcore
from flowcore.flows.flow import Flow
from flowcore.images import color
from flowcore.images.resize import resize_bilinear
from flowcore.models.identity import model_sha256
from flowcore.tasks.hints import hints_from_points
from flowcore.training.evaluation.colorization import PORTRAIT_SAMPLES, colorizer_table, evaluate_colorizer
from flowcore.training.evaluation.image_set import list_images, read_cropped
from flowcore.training.recipe import held_out_names

from .measure import arguments, markdown, recall, say

Results = dict[str, dict[str, dict[str, float]]]  # set to model to what evaluate_colorizer returned

PHOTOGRAPHS, HELD_OUT, PORTRAITS = "photographs", "held out", "portraits"
ROUNDING = 1e-6  # of luma, in float32
COUNTS = (0, 1, 4, 16)  # of hints
WAYS = {"conditioned": (0, False), "spread": (20, False), "locked": (20, True)}  # to hint_steps and lock


@dataclass(frozen=True)
class Target:
    """A column: a number of a set, and the range it should be in."""

    group: str
    key: str
    title: str
    style: str
    low: float = -math.inf
    high: float = math.inf

    def text(self) -> str:
        """Format the range."""
        if math.isinf(self.low):
            return "" if math.isinf(self.high) else f"at most {self.high:{self.style}}"
        return f"{self.low:{self.style}} to {self.high:{self.style}}"

    def cell(self, row: dict[str, float] | None) -> str:
        """Format the number, bold if it is within."""
        if row is None or self.key not in row:
            return "-"
        number = row[self.key]
        text = format(number, self.style)
        return f"**{text}**" if self.text() and self.low <= number <= self.high else text


TARGETS = (
    Target(PHOTOGRAPHS, "rmse_calm_of_grey", "tau 0 / gray", ".3f", high=0.85),
    Target(PHOTOGRAPHS, "rmse_of_grey", "1 / gray", ".3f", high=1.0),
    Target(PHOTOGRAPHS, "rmse_best_of_grey", "best of K / gray", ".3f", high=0.8),
    Target(PHOTOGRAPHS, "colourfulness_gap", "colorfulness", "+.0%", low=-0.15, high=0.15),
    Target(PHOTOGRAPHS, "coherence_default", "coherence", ".2f", low=0.7, high=1.4),
    Target(PHOTOGRAPHS, "seams", "seams", ".2f", high=1.2),
    Target(PHOTOGRAPHS, "luma_error", "luma error", ".0e", high=ROUNDING),
    Target(PHOTOGRAPHS, "bits_per_dim", "bits/dim", ".3f"),
    Target(HELD_OUT, "rmse_calm_of_grey", "tau 0 / gray", ".3f", high=0.8),
    Target(HELD_OUT, "rmse_of_grey", "1 / gray", ".3f"),
    Target(HELD_OUT, "rmse_best_of_grey", "best of K / gray", ".3f"),
    Target(HELD_OUT, "seams", "seams", ".2f"),
    Target(HELD_OUT, "bits_per_dim", "bits/dim", ".3f"),
    Target(PORTRAITS, "skin_outside", "not skin", ".1%", high=0.0),
    Target(PORTRAITS, "skin_grey", "gray skin", ".1%"),
)


def main() -> None:
    """Measure all models on all sets, and print."""
    parser = arguments(__doc__)
    parser.add_argument("models", nargs="+", metavar="[NAME=]MODEL")
    parser.add_argument("--photographs", type=Path, nargs="+", metavar="FOLDER", help="test photographs")
    parser.add_argument("--held-out", type=Path, nargs="+", metavar="FOLDER", help="the data of the training")
    parser.add_argument("--portraits", type=Path, nargs="+", metavar="FOLDER", help="see SKIN_PATCH of quality/metrics")
    parser.add_argument("--hints", type=Path, metavar="FOLDER", help="photographs to color with hints instead")
    parser.add_argument("--objects", type=Path, nargs="+", metavar="FOLDER", help="photographs with objects to compare")
    parser.add_argument("--side", type=int, default=192, help="shorter side, in pixels, of photographs with objects")
    parser.add_argument("--samples", type=int, default=8, help=f"colorings each; of portraits {PORTRAIT_SAMPLES}")
    parser.add_argument("--limit", type=int, default=10_000, help="at most so many images of each set")
    parser.add_argument("-o", "--out", type=Path, help="a Markdown file")
    parser.add_argument("--json", type=Path, help="file of numbers; existing ones are kept")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    models = dict(map(parse_model, options.models))
    if options.hints:
        for model, file in models.items():
            sys.stdout.write(f"{model}\n\n{hints_table(flowcore.load(file, options.device), options)}\n")
        return
    if options.objects:
        rows = [objects_row(name, file, folder, options) for folder in options.objects for name, file in models.items()]
        titles = [
            "model",
            "photographs",
            "error / gray",
            "correlation",
            "strength",
            "samples / gray",
            "best / gray",
            "diversity",
        ]
        sys.stdout.write(markdown(titles, rows) + "\n")
        return
    folders = {PHOTOGRAPHS: options.photographs, HELD_OUT: options.held_out, PORTRAITS: options.portraits}
    sets: dict[str, list[Path]] = {name: given for name, given in folders.items() if given}
    if not sets:
        parser.error("nothing to measure on: give --photographs, --held-out, --portraits or --hints")
    measured: dict[str, Any] = recall(options.json)
    results: Results = {name: {} for name in sets}
    for model, file in models.items():
        flow = flowcore.load(file, options.device)
        weights = model_sha256(flow)
        for name, folders in sets.items():
            settings = {
                "samples": PORTRAIT_SAMPLES if name == PORTRAITS else options.samples,
                "limit": options.limit,
                "only": held_out_names("standard") if name == HELD_OUT else None,
                "portraits": name == PORTRAITS,
            }
            key = f"{name}, {fingerprint(weights, folders, settings)}"
            if key not in measured:
                begun = time.monotonic()
                measured[key] = {"model": model, **evaluate_colorizer(flow, folders, **settings, log=say)}
                say(f"{model}, {name}: {(time.monotonic() - begun) / 60:.1f} minutes")
                if options.json:
                    options.json.write_text(json.dumps(measured, indent=1) + "\n")
            results[name][model] = {field: value for field, value in measured[key].items() if field != "model"}
    text = f"{targets_table(results, list(models))}\n\n{colorizer_table(results)}\n"
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(text)


def parse_model(text: str) -> tuple[str, str]:
    """Split NAME=MODEL; the default name of a file is its stem."""
    name, separator, file = text.partition("=")
    return (name, file) if separator and not Path(text).exists() else (Path(text).stem, text)


def fingerprint(weights: str, folders: list[Path], settings: dict[str, Any]) -> str:
    """Identify a measurement by its weights, the names and sizes of the images, and the settings."""
    images = [(file.name, file.stat().st_size) for file in list_images(folders, settings["only"], settings["limit"])]
    return hashlib.sha256(json.dumps([weights, images, settings["samples"]]).encode()).hexdigest()[:16]


def targets_table(results: Results, models: list[str]) -> str:
    """Format the measurements that have targets: a row of targets, then one row per model."""
    columns = [target for target in TARGETS if target.group in results]
    samples = {name: f"{next(iter(rows.values()))['samples']:.0f}" for name, rows in results.items()}
    titles = [f"{target.group}: {target.title}".replace("of K", f"of {samples[target.group]}") for target in columns]
    return markdown(
        ["model", *titles],
        [
            ["target", *(target.text() for target in columns)],
            *([model, *(target.cell(results[target.group].get(model)) for target in columns)] for model in models),
        ],
    )


# --- objects ----------------------------------------------------------------------------------------------------------


def objects_row(name: str, file: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """Measure how well a model distinguishes objects by color, on photographs of one shorter side."""
    flow = flowcore.load(file, options.device)
    held = held_out_names("standard")
    images = [image for image in list_images(folder) if image.name in held] or list_images(folder)
    images = images[:: max(1, len(images) // options.limit)][: options.limit]
    results: list[tuple[float, ...]] = []
    for image in images:
        rgb = read_cropped(image, 1).to(options.device)
        factor, cell = options.side / min(rgb.shape[-2:]), options.side // 12
        sides = [max(1, round(side * factor / (2 * cell))) * 2 * cell for side in rgb.shape[-2:]]
        y, truth = color.split(resize_bilinear(rgb, sides))
        truth = F.avg_pool2d(truth, cell)
        calm = F.avg_pool2d(
            color.split(flowcore.colorize(flow, y, temperature=0, detail=0, notify=lambda _: None))[1], cell
        )
        drawn = flowcore.colorize(flow, y, samples=options.samples, notify=lambda _: None)
        drawn = F.avg_pool2d(color.split(drawn)[1], cell)
        gray = truth.square().mean()
        errors = (drawn - truth).square().mean((1, 2, 3)) / gray
        own, theirs, inner = (c - c.mean((2, 3), keepdim=True) for c in (calm, truth, drawn))
        results.append(
            (
                float((calm - truth).square().mean() / gray),
                float((own * theirs).sum() / (own.norm() * theirs.norm()).clamp_min(1e-9)),
                float(own.norm() / theirs.norm()),
                float(errors.mean()),
                float(errors.min()),
                255 * float(inner.var(0).mean().sqrt()),
            )
        )
    means = np.mean(results, axis=0)
    return [name, f"{folder.name} ({len(images)})", *(f"{mean:.2f}" for mean in means)]


# --- hints ------------------------------------------------------------------------------------------------------------


def hints_table(flow: Flow, options: argparse.Namespace) -> str:
    """Color the photographs of ``--hints`` with more and more of their own colors, and format the errors."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for seed, file in enumerate(list_images(options.hints, limit=options.limit)):
        y, truth = color.split(read_cropped(file, 1).to(options.device))
        rgb, (height, width) = color.compress(y, truth), y.shape[-2:]
        for count in COUNTS:
            rng = np.random.default_rng(seed)
            places = [(int(rng.integers(width)), int(rng.integers(height))) for _ in range(count)]
            points = [(column, row, tuple(rgb[0, :, row, column].tolist())) for column, row in places]
            hints = hints_from_points(points, (height, width), radius=8)
            covered = hints.coverage[0, 0] > 0 if hints.coverage is not None else torch.zeros(y.shape[-2:]) > 0
            for way, (steps, lock) in WAYS.items():
                if count == 0 and way != "conditioned":
                    continue
                wanted = dataclasses.replace(hints, lock=lock) if count else None
                chroma = color.split(flowcore.colorize(flow, y, seed=seed, hints=wanted, hint_steps=steps))[1]
                at = 0.0 if hints.chroma is None else _rmse(chroma - hints.chroma.to(chroma), covered)
                rows.setdefault(f"{count} {way}", []).append((at, _rmse(chroma - truth, ~covered)))
    means = {name: np.mean(values, axis=0) for name, values in rows.items()}
    lines = [[name, f"{at:.4f}", f"{elsewhere:.4f}"] for name, (at, elsewhere) in means.items()]
    return markdown(["hints", "RMSE at the hints", "elsewhere"], lines)


def _rmse(difference: Tensor, mask: Tensor) -> float:
    """Root mean square of ``(1, 2, H, W)`` within a mask ``(H, W)``; 0 if the mask is empty."""
    return float(difference[0].square().mean(0)[mask].mean().sqrt()) if mask.any() else 0.0


if __name__ == "__main__":
    main()
