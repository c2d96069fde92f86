"""Colorizers in one table, with the targets: what a backbone is worth, and what more photographs are.

    python -m benchmarks.colorizers MODEL [NAME=MODEL ...] -o docs/colorizers.md --json runs/colorizers.json
        --photographs eval/kodak eval/cbsd68 --held-out photos-small --portraits faces/heldout

Models are files, or shipped ones by name; NAME is what the rows say. All are measured by ``evaluate_colorizer`` at
their default temperatures: on photographs (all folders together are one set), on the photographs of the --held-out
folders that are on flowcore's list of images that no shipped model was trained on, and on aligned portraits. Prints a
table of what there are targets for, bold where they are met, and one of everything; with -o, into a file, too. "/ gray"
is the sum of RMSE over the sum of that of gray; lower is better.

The numbers go to the file of --json after every set. Those that it holds already, of the same weights, images and
settings, are not measured again: so it can be interrupted, and called again with one more model.

    python -m benchmarks.colorizers MODEL --hints eval/kodak [--limit 12]

tells how far a few hints go: discs of a photograph's own colors at random places. "conditioned": they are in the
condition; "spread": they color what they are on (``hint_steps``); "locked": met exactly, as far as
luma leaves room. RMSE over both chroma channels, one coloring per photograph: at the hints against the wanted color,
elsewhere against the truth.

    python -m benchmarks.colorizers MODEL [NAME=MODEL ...] --objects eval/kodak photos-large photos-small [--limit 48]

tells whether things get their own colors; photographs of training data are the held-out ones. All is the mean over
pictures of cells of 16 pixels at a shorter side of 192. At temperature 0: squared error of chroma over that of gray;
with the mean chroma of a picture taken away, the correlation with the truth and how strong it is, relative to the
truth. Of the samples: the same error of all, and of the best; their standard deviation, mean chroma taken away, in
1/255.
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
from flowcore.checkpoints.latents_file import model_sha256
from flowcore.evaluation.colorization import PORTRAIT_SAMPLES, colorizer_table, evaluate_colorizer
from flowcore.evaluation.image_set import list_images, read_cropped
from flowcore.flow import Flow
from flowcore.images import color
from flowcore.images.resize import resize_bilinear
from flowcore.tasks.hints import hints_from_points
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
        """Say what is wanted."""
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
    parser.add_argument("--objects", type=Path, nargs="+", metavar="FOLDER", help="photographs to compare things of")
    parser.add_argument("--samples", type=int, default=8, help=f"colorings each; of portraits {PORTRAIT_SAMPLES}")
    parser.add_argument("--limit", type=int, default=10_000, help="at most so many images of each set")
    parser.add_argument("-o", "--out", type=Path, help="a Markdown file")
    parser.add_argument("--json", type=Path, help="the numbers; those that are there already are kept")
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
    """Split NAME=MODEL; without a name, that of a file is its own without suffix."""
    name, separator, file = text.partition("=")
    return (name, file) if separator and not Path(text).exists() else (Path(text).stem, text)


def fingerprint(weights: str, folders: list[Path], settings: dict[str, Any]) -> str:
    """Name what is measured: the weights, names and sizes of the images, and the settings."""
    images = [(file.name, file.stat().st_size) for file in list_images(folders, settings["only"], settings["limit"])]
    return hashlib.sha256(json.dumps([weights, images, settings["samples"]]).encode()).hexdigest()[:16]


def targets_table(results: Results, models: list[str]) -> str:
    """Format what there are targets for: a row of targets, and a row a model."""
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
    """Measure how well a model tells things apart by color, on photographs with a shorter side of 192."""
    flow = flowcore.load(file, options.device)
    held = held_out_names("standard")
    images = [image for image in list_images(folder) if image.name in held] or list_images(folder)
    images = images[:: max(1, len(images) // options.limit)][: options.limit]
    results: list[tuple[float, ...]] = []
    for image in images:
        rgb = read_cropped(image, 1).to(options.device)
        factor = 192 / min(rgb.shape[-2:])
        sides = [max(1, round(side * factor / 32)) * 32 for side in rgb.shape[-2:]]
        y, truth = color.split(resize_bilinear(rgb, sides))
        truth = F.avg_pool2d(truth, 16)
        calm = F.avg_pool2d(
            color.split(flowcore.colorize(flow, y, temperature=0, detail=0, notify=lambda _: None))[1], 16
        )
        drawn = flowcore.colorize(flow, y, samples=options.samples, notify=lambda _: None)
        drawn = F.avg_pool2d(color.split(drawn)[1], 16)
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
    """Root mean square of ``(1, 2, H, W)`` where ``(H, W)`` says so; 0 if that is nowhere."""
    return float(difference[0].square().mean(0)[mask].mean().sqrt()) if mask.any() else 0.0


if __name__ == "__main__":
    main()
