"""Upscalers and bicubic enlargement, measured on HR images."""

import logging
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import FlowError, ShapeError, printable
from ...flows.model import FlowModel
from ...images import metrics, perceptual
from ...images.color import as_stored, to_uint8
from ...images.resize import downsample, enlarge
from ...tasks.score import score
from ...tasks.upscale import UpscaleSettings, upscale
from .feature_distance import feature_distance
from .image_set import list_images, markdown, read_cropped, read_each

COLUMNS = {  # title and format by measure. Append only: programs that read tables rely on the order.
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lr_psnr": ("LR-PSNR", ".2f"),
    "diversity": ("diversity", ".2f"),
    "gain": ("gain", "+.2f"),
    "diversity_score": ("diversity score (LPIPS)", ".2f"),
    "lpips": ("LPIPS", ".4f"),
    "bits_per_dim": ("bits/dim", ".4f"),
    "false_specks": ("false specks, per mille", ".2f"),
    "feature_distance": ("feature distance", ".3f"),
    "grid": ("grid energy", ".0f"),
}
MEASURES = tuple(COLUMNS)
USUAL_MEASURES = tuple(name for name in MEASURES if name != "bits_per_dim")  # it takes as long as all the others
OF_ORIGINALS = ("false_specks", "grid")  # what an original can be measured in, too


def evaluate_upscaler(
    flow: FlowModel,
    folder: Path,
    *,
    temperatures: Sequence[float | None] = (0.0, None),
    calm_edges: float | None = None,
    samples: int = 8,
    log: Callable[[str], None] | None = None,
    skip: Callable[[str], None] | None = None,
    measures: Sequence[str] = USUAL_MEASURES,
    only: Collection[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Measure bicubic and a model on a folder of HR images, whose sides are cropped to multiples of the scale.

    LR images are antialiased bicubic; they and results are rounded to 8 bits. The diversity measures take all samples
    at a temperature, the others the first. "gain" is the PSNR minus that of bicubic.

    The result maps a method ("bicubic", "tau 0", "tau 0.8, calm 0.75", ..., "original") to the means over images of the
    requested ones of ``MEASURES``; for "original", of those that need no reference. The mean of a measure leaves out
    images that are too small for it, and those for which it is infinite in any method, so that methods are compared on
    the same images; a measure for which no image is left is missing, and so are those that need LPIPS without it.
    """
    flow.require("upscale")
    check_measures(measures)
    scale = flow.condition_scale
    given = [UpscaleSettings(temperature=tau, calm_edges=calm_edges) for tau in temperatures]
    settings: Any = [(each.temperature, each.calm_edges) for each in (each.resolved(flow) for each in given)]
    rows: dict[str, list[dict[str, float]]] = {}  # one row per image, by method
    for _, file, hr in read_each(list_images(folder, only), lambda file: read_cropped(file, scale), skip or log):
        lr = as_stored(downsample(hr, scale))
        bicubic = as_stored(enlarge(lr, scale))
        with_psnr = {"psnr", *measures}  # the log needs it
        by_method = {"bicubic": _measure(bicubic, hr, lr, bicubic, with_psnr)}
        bits = _bits_per_dim(flow, hr) if "bits_per_dim" in measures else {}
        for tau, calm in settings:
            samples_hr = upscale(flow, lr, seed=0, temperature=tau, calm_edges=calm, samples=samples if tau else 1)
            method = f"tau {tau:g}, calm {calm:g}" if tau and calm else f"tau {tau:g}"
            by_method[method] = {**_measure(as_stored(samples_hr), hr, lr, bicubic, with_psnr), **bits}
        if log is not None:
            log(f"{file.name}: " + ", ".join(f"{method} {row['psnr']:.2f} dB" for method, row in by_method.items()))
        if of_originals := {name for name in measures if name in OF_ORIGINALS}:
            by_method["original"] = _measure(hr, hr, lr, bicubic, of_originals)
        infinite = {key for row in by_method.values() for key, value in row.items() if math.isinf(value)}
        if infinite:
            (log or logging.getLogger("flowcore").warning)(
                f"{printable(file.name)}: {', '.join(sorted(infinite))} left out of the means: a picture equals what "
                "it is compared with."
            )
        for method, row in by_method.items():
            rows.setdefault(method, []).append(row | dict.fromkeys(infinite & row.keys(), math.nan))
    means: dict[str, dict[str, float]] = {}
    for method, of_images in rows.items():
        values = {key: [row[key] for row in of_images if not math.isnan(row[key])] for key in of_images[0]}
        means[method] = {
            key: sum(numbers) / len(numbers) for key, numbers in values.items() if numbers and key in measures
        }
    return means


def check_measures(measures: Sequence[str]) -> None:
    """Raise FlowError unless all are names of ``MEASURES``."""
    if unknown := [name for name in measures if name not in MEASURES]:
        raise FlowError(f"Unknown measure {unknown[0]!r}; choose from {', '.join(MEASURES)}.")


def missing_measures(measures: Sequence[str] = USUAL_MEASURES) -> str | None:
    """Say which measures this machine lacks, and how to get them; None if it has all."""
    based_on_lpips = {"lpips": "LPIPS", "diversity_score": "the diversity score on LPIPS"}
    titles = [title for name, title in based_on_lpips.items() if name in measures]
    advice = perceptual.lpips_missing()
    return f"Missing: {' and '.join(titles)}. To get it: {advice}." if titles and advice else None


def _measure(images: Tensor, hr: Tensor, lr: Tensor, bicubic: Tensor, measures: Collection[str]) -> dict[str, float]:
    """Measure samples of one image: all of them for the diversities, the first for the rest."""
    first, several = images[:1], len(images) > 1
    ways: dict[str, Callable[[], Any]] = {
        "psnr": lambda: metrics.psnr(first, hr),
        "ssim": lambda: metrics.ssim(first, hr),
        "lr_psnr": lambda: metrics.lr_psnr(first, lr),
        "diversity": lambda: metrics.diversity(images) if several else 0.0,
        "gain": lambda: metrics.psnr(first, hr) - metrics.psnr(bicubic, hr),
        "false_specks": lambda: metrics.false_specks(first, hr),
        "feature_distance": lambda: feature_distance(first, hr),
        "grid": lambda: metrics.grid_energy(first),
    }
    if perceptual.lpips_missing() is None:
        ways["lpips"] = lambda: perceptual.lpips(first, hr)
        ways["diversity_score"] = lambda: perceptual.diversity_score(images, hr) if several else 0.0
    row: dict[str, float] = {}
    for name, measure in ways.items():
        if name in measures:
            try:
                row[name] = float(measure())
            except ShapeError:
                row[name] = math.nan  # the image is too small for this one
    return row


def _bits_per_dim(flow: FlowModel, hr: Tensor) -> dict[str, float]:
    """Bits per dimension of an HR image, cropped to what the model takes."""
    height, width = (side // flow.size_multiple * flow.size_multiple for side in hr.shape[-2:])
    hr = hr[..., :height, :width]
    cond = flow.encode_condition(as_stored(downsample(hr, flow.condition_scale)).to(next(flow.parameters()).device))
    return {"bits_per_dim": float(score(flow, to_uint8(hr), cond, complexity=False).bits_per_dim)}


def upscaler_table(results: dict[str, dict[str, dict[str, float]]], measures: Sequence[str] = ()) -> str:
    """Format results: set name to what ``evaluate_upscaler`` returned; "missing" if nothing has a requested measure."""
    present = {key for methods in results.values() for row in methods.values() for key in row}
    columns = {key: column for key, column in COLUMNS.items() if key in present or key in measures}
    rows: list[list[str]] = []
    for name, methods in results.items():
        for method, row in methods.items():
            cells = {key: "-" if key in present or method == "original" else "missing" for key in columns}
            cells |= {key: format(row[key], style) for key, (_, style) in columns.items() if key in row}
            rows.append([name, method, *cells.values()])
    return markdown(["set", "method", *(title for title, _ in columns.values())], rows)
