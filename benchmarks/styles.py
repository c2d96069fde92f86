"""Measure whether the styles of digits and faces have the effect that they are named after.

    python -m benchmarks.styles [--model mnist-styles] [--count 400] [--sheet FILE.jpg]
    python -m benchmarks.styles --model glow-faces --data faces [--strength 2] [--sheet FILE.jpg]

Digits: prints JSON, style -> strength -> change of every measured attribute, in standard deviations over plain
samples. The sheet shows one digit of every class, one row per style: unchanged, then every style at -2 and 2, the last
one at -3 and 3.

Faces: for each attribute a simple classifier is fitted to the training faces, a ridge regression on gradient histograms
and small colors. Its accuracy on held-out faces (the sign for words and for 0 and 1, the half for other numbers) is
printed first, with that of always giving the most frequent answer. Held-out faces are then moved along every style. The
first table has the change of each attribute according to the classifier, in standard deviations over held-out faces,
and the share of faces whose named attribute changes in the right direction. The second has the distance that a face
moves, relative to the mean distance to another person with the same attribute, and the share of faces that are still
closest to themselves among all held-out ones. Distances are between the classifier's features. Between the tables is
the error of encoding and decoding the faces.

Source: Dalal & Triggs, "Histograms of oriented gradients for human detection" (2005): gradients in 9 orientations by
cells of 8 pixels, here normalized by cell.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import flowcore
from flowcore.flows.dequantization import quantize
from flowcore.flows.flow import Flow
from flowcore.flows.prior import sample_latents
from flowcore.images.color import luma
from flowcore.images.contact_sheet import contact_sheet
from flowcore.tasks.styles import apply_style
from flowcore.training.recipe import held_out_names
from flowcore.training.styles import FACES, STYLES, attributes, parse_attribute, read_attribute_table, read_images

from .measure import arguments, as_image

CELL, ORIENTATIONS = 8, 9
RIDGES = tuple(10.0**k for k in range(7))
FOLDS = 5
SHOWN = 8  # faces of the sheet


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="mnist-styles", help="a model file with styles, or a shipped model by name")
    parser.add_argument("--sheet", type=Path, help="picture of the styles")
    parser.add_argument("--count", type=int, default=400, help="digits to measure (default: 400)")
    parser.add_argument("--data", type=Path, help="of faces: folder of images and attributes.tsv")
    parser.add_argument("--attribute", action="append", metavar="ATTRIBUTE", help="of faces: as of the command styles")
    parser.add_argument("--held-out", default="standard", metavar="FILE", help="of faces: names of held-out images")
    parser.add_argument("--strength", type=float, default=2.0, help="of faces (default: 2)")
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    if not flow.classes and options.data is None:
        parser.error("--data is missing: the faces to measure on")
    sheet = digits(flow, options.count) if flow.classes else faces(flow, options)
    if options.sheet is not None:
        as_image(sheet).save(options.sheet, quality=90)


# --- digits -----------------------------------------------------------------------------------------------------------


def digits(flow: Flow, count: int) -> Tensor:
    """Measure and print, and draw one digit of every class in every style, ``(3, height, width)``."""
    assert flow.image_size is not None
    cond = flow.encode_condition(torch.arange(count) % flow.classes)
    latents = sample_latents(flow.latent_shapes(*flow.image_size), count, 0.8, seed=100)

    def measured(styles: dict[str, float]) -> Tensor:
        return attributes(quantize(flow, flowcore.decode(flow, apply_style(flow, latents, styles), cond)))

    plain = measured({})
    rows = {
        style: {
            strength: dict(
                zip(STYLES, ((measured({style: strength}) - plain).mean(0) / plain.std(0)).tolist(), strict=True)
            )
            for strength in (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0)
        }
        for style in STYLES
    }
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    cond = flow.encode_condition(torch.arange(flow.classes))
    latents = sample_latents(flow.latent_shapes(*flow.image_size), flow.classes, 0.8, seed=3)
    ways: list[dict[str, float]] = [{}]
    for style in STYLES:
        strength = 3.0 if style == STYLES[-1] else 2.0
        ways += [{style: -strength}, {style: strength}]
    drawn = torch.cat([quantize(flow, flowcore.decode(flow, apply_style(flow, latents, way), cond)) for way in ways])
    shown = drawn.expand(-1, 3, -1, -1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    titles = [", ".join(f"{style} {strength:+g}" for style, strength in way.items()) or "as drawn" for way in ways]
    return contact_sheet(shown, titles, [str(label) for label in range(flow.classes)])


# --- faces ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classifier:
    """A linear prediction of one attribute from standardized features."""

    weights: Tensor  # ``(D,)``
    bias: float  # added to the weighted sum
    middle: float  # predictions above it are a yes

    def __call__(self, features: Tensor) -> Tensor:
        """Predict the attribute from features ``(B, D)``."""
        return features @ self.weights + self.bias


def faces(flow: Flow, options: argparse.Namespace) -> Tensor:
    """Measure and print, and draw the moved faces, ``(3, height, width)``: weaker, unchanged, stronger."""
    named = [parse_attribute(text) for text in options.attribute or FACES]
    names = held_out_names(options.held_out)
    table = options.data / "attributes.tsv"
    training = read_attribute_table(table, named, held_out=names)
    held = read_attribute_table(table, named, held_out=names, keep=True)
    subjects = quantize(flow, read_images(flow, held.paths))
    portraits = quantize(flow, read_images(flow, training.paths))
    raw = torch.cat([features(portraits), features(portraits.flip(-1))])
    mean, deviation = raw.mean(0), raw.std(0).clamp_min(1e-6)
    known, seen = (raw - mean) / deviation, (features(subjects) - mean) / deviation

    classifiers: dict[str, Classifier] = {}
    lines = ["| attribute | training faces | held-out faces | right | most frequent |", "|---|---|---|---|---|"]
    for k, attribute in enumerate(named):
        values = training.values[:, k].repeat(2)
        there, tested = values.isfinite(), held.values[:, k].isfinite()
        classifiers[attribute.name] = one = fit(known[there], values[there])
        answers, truth = one(seen[tested]) > one.middle, held.values[tested, k] > one.middle
        share = float(truth.double().mean())
        right = float((answers == truth).double().mean())
        lines.append(
            f"| {attribute.name} | {int(there.sum()) // 2} | {int(tested.sum())} | {right:.0%} | "
            f"{max(share, 1 - share):.0%} |"
        )

    latents = flowcore.encode(flow, subjects)
    missed = float((flowcore.decode(flow, latents) - subjects).abs().max())
    spread = {name: float(one(seen).std()) for name, one in classifiers.items()}
    lines += [
        "",
        f"{len(subjects)} held-out faces come back to {missed:.1e} of the pixel range.",
        "",
        f"| style | {' | '.join(classifiers)} | right direction | distance, of another person's | nearest to itself |",
        f"|---|{'---|' * len(classifiers)}---|---|---|",
    ]
    shown = range(0, len(subjects), -(-len(subjects) // SHOWN))
    columns, labels = [subjects[shown]], list[str]()
    for name, one in classifiers.items():
        for strength in (-options.strength, options.strength):
            moved = quantize(flow, flowcore.decode(flow, apply_style(flow, latents, {name: strength})))
            columns.append(moved[shown])
            labels.append(f"{name} {strength:+g}")
            after = (features(moved) - mean) / deviation
            changes = {other: (each(after) - each(seen)) / spread[other] for other, each in classifiers.items()}
            direction = float((changes[name] * strength > 0).double().mean())
            between = torch.cdist(after, seen)
            same = (one(seen) > one.middle)[:, None] == (one(seen) > one.middle)[None]
            others = torch.cdist(seen, seen)[same & ~torch.eye(len(seen), dtype=torch.bool)].mean()
            itself = float((between.argmin(1) == torch.arange(len(seen))).double().mean())
            lines.append(
                f"| {name} {strength:+g} | {' | '.join(f'{float(c.mean()):+.2f}' for c in changes.values())} | "
                f"{direction:.0%} | {float(between.diagonal().mean() / others):.2f} | {itself:.0%} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")
    images = torch.stack(columns, 1).flatten(0, 1)
    stems = [path.stem for path in (held.paths[k] for k in shown)]
    return contact_sheet(images, stems, ["as it is", *labels])


def features(images: Tensor) -> Tensor:
    """Describe images ``(B, C, H, W)`` in [0, 1]: gradient histograms by cell, and colors of a quarter of the size."""
    y = luma(images) if images.shape[1] == 3 else images
    padded = F.pad(y, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2])[:, 0]
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1])[:, 0]
    strength = torch.sqrt(across.square() + down.square() + 1e-12)
    angle = torch.atan2(down, across) % torch.pi * ORIENTATIONS / torch.pi  # without sign
    position = torch.arange(ORIENTATIONS).view(1, -1, 1, 1) + 0.5
    apart = (angle[:, None] - position).abs()
    weight = (1 - torch.minimum(apart, ORIENTATIONS - apart)).clamp_min(0)  # shared by the two nearest
    cells = F.avg_pool2d(weight * strength[:, None], CELL)  # (B, 9, H / 8, W / 8)
    cells = cells / (cells.norm(dim=1, keepdim=True) + 0.02)
    return torch.cat([cells.flatten(1), F.avg_pool2d(images, 4).flatten(1)], 1).double()


def fit(x: Tensor, y: Tensor) -> Classifier:
    """Ridge regression on images and, in the same order, their mirror images; the ridge is cross-validated by image."""
    middle = float(y.min() + y.max()) / 2 if len(y.unique()) == 2 else float(y.median())
    fold = torch.arange(len(y) // 2).repeat(2) % FOLDS
    errors = torch.zeros(len(RIDGES), dtype=torch.float64)
    for k in range(FOLDS):
        for number, (weights, bias) in enumerate(_solve(x[fold != k], y[fold != k])):
            errors[number] += (x[fold == k] @ weights + bias - y[fold == k]).square().sum()
    weights, bias = _solve(x, y)[int(errors.argmin())]
    return Classifier(weights, bias, middle)


def _solve(x: Tensor, y: Tensor) -> list[tuple[Tensor, float]]:
    """Weights and bias for every ridge."""
    center, mean = x.mean(0), y.mean()
    values, vectors = torch.linalg.eigh((x - center).T @ (x - center))
    projected = vectors.T @ ((x - center).T @ (y - mean))
    every = [vectors @ (projected / (values.clamp_min(0) + ridge)) for ridge in RIDGES]
    return [(weights, float(mean - center @ weights)) for weights in every]


if __name__ == "__main__":
    main()
