"""Colorizers, measured on photographs in color."""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..condition import Condition
from ..errors import FlowError
from ..images.color import NEUTRAL, luma, split
from ..images.resize import resize_bilinear
from ..model import FlowModel
from ..networks.luma import STRIDE
from ..prior import sample_latents
from ..quality import metrics
from ..tasks.chroma import clamp_level, schedule, share_noise, working_sides
from ..tasks.colorize import colorize
from ..tasks.defaults import with_defaults
from ..tasks.ranking import By, ranked
from ..tasks.score import score
from .image_set import list_images, markdown, read_each, read_upright

PORTRAIT_SAMPLES = 20  # usual number of colorings of a portrait: wrong skin is rarer than one in eight
KEPT = 2  # samples that are chosen automatically
RELATIVE_TO_GRAY = ("rmse", "rmse_best", "rmse_calm", "rmse_consensus", "rmse_likelihood")

COLUMNS = {
    "bits_per_dim": ("bits/dim", ".3f"),
    "coherence": ("coherence, tau 1", ".3f"),
    "coherence_default": ("coherence", ".3f"),
    "rmse": ("RMSE of 1", ".4f"),
    "rmse_best": ("best of K", ".4f"),
    "rmse_mean": ("mean of K", ".4f"),
    "rmse_calm": ("tau 0", ".4f"),
    "rmse_grey": ("gray", ".4f"),
    "diversity": ("diversity", ".4f"),
    "colourfulness": ("colorfulness", ".4f"),
    "colourfulness_truth": ("truth", ".4f"),
    "colourfulness_gap": ("gap", "+.0%"),
    "luma_error": ("luma error", ".1e"),
    "luma_kept": ("8-bit luma kept", ".0%"),
    "rmse_of_grey": ("RMSE of 1 / gray", ".2f"),
    "rmse_best_of_grey": ("best of K / gray", ".2f"),
    "rmse_calm_of_grey": ("tau 0 / gray", ".2f"),
    "rmse_consensus_of_grey": ("2 of K by consensus / gray", ".2f"),
    "rmse_likelihood_of_grey": ("2 of K by likelihood / gray", ".2f"),
    "fog": ("fog", ".2f"),
    "seams": ("seams", ".2f"),
    "seams_truth": ("seams of truth", ".2f"),
    "skin_outside": ("not skin", ".1%"),  # these two of portraits only
    "skin_grey": ("gray skin", ".1%"),
}


def evaluate_colorizer(
    flow: FlowModel,
    folder: Path | Sequence[Path],
    *,
    samples: int = 8,
    seed: int = 0,
    temperature: float | None = None,
    detail: float | None = None,
    coherence: float | None = None,
    working_size: int | None = None,
    limit: int = 10_000,
    log: Callable[[str], None] | None = None,
    skip: Callable[[str], None] | None = None,
    only: Collection[str] | None = None,
    portraits: bool = False,
) -> dict[str, float]:
    """Measure a colorizer on a folder of photographs in color; several folders are one set.

    The result has means over images, ratios of means, and the largest "luma_error". Image i has seeds from ``seed + i *
    samples`` on; of more than ``limit`` images, so many, evenly spread.

    On the grid that the model works on, see ``chroma_on_grid``: "bits_per_dim", and the coherence at temperature 1 and
    at the requested temperatures, see ``coherence_parts``.

    On what ``colorize`` makes of the 8-bit luma at its own size, with K = ``samples`` colorings: "rmse" is the mean
    ``chroma_rmse`` of all K, "rmse_best" that of the best image, "rmse_mean" of their mean, "rmse_calm" of the one at
    temperature 0, "rmse_grey" of no color, "rmse_consensus" and "rmse_likelihood" of the first 2 by ``ranking``;
    "_of_grey" is relative to gray, "colourfulness_gap" to the truth, minus 1; "luma_kept" is the share of images whose
    colorings have exactly the luma that went in, "seams_8" the ``seam_ratio`` of cells of 8 pixels, "fog" relative to
    the photographs; with ``portraits``, all aligned, "skin_outside" and "skin_grey" are shares of colorings.
    """
    flow.require("colorize")
    if samples < 2 or limit < 1:
        raise FlowError(f"Expected at least 2 samples and a limit of at least 1 image; got {samples} and {limit}.")
    rows: list[dict[str, float]] = []
    seams = torch.zeros(2, len(flow.config.steps), 4, dtype=torch.float64)
    asked = {"temperature": temperature, "detail": detail, "coherence": coherence, "working_size": working_size}
    for number, file, image in read_each(list_images(folder, only, limit), read_upright, skip or log):
        settings: dict[str, Any] = {**asked, "samples": samples, "seed": (seed + number * samples) % 2**64}
        row, sums = _measure_colorings(flow, image, settings, portraits=portraits)
        rows.append(row | _measure_grid(flow, image, settings))
        seams += sums
        if log is not None:
            log(
                f"{file.name}: {rows[-1]['bits_per_dim']:.3f} bits/dim, RMSE {row['rmse']:.4f}, best of {samples} "
                f"{row['rmse_best']:.4f}, gray {row['rmse_grey']:.4f}"
            )
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    bits = torch.tensor([row["bits_per_dim"] for row in rows], dtype=torch.float64)
    drawn, truth = ([metrics.seam_ratio(grid) for grid in grids] for grids in seams)
    return {
        "images": len(rows),
        "samples": samples,
        **means,
        "standard_error": float(bits.std()) / len(rows) ** 0.5 if len(rows) > 1 else math.nan,
        "coherence": _ratio(means["global_share"], means["global_share_truth"]),
        "coherence_default": _ratio(means["global_share_default"], means["global_share_truth_default"]),
        "colourfulness_gap": _ratio(means["colourfulness"], means["colourfulness_truth"]) - 1,
        "luma_error": max(row["luma_error"] for row in rows),
        **{f"{key}_of_grey": _ratio(means[key], means["rmse_grey"]) for key in RELATIVE_TO_GRAY},
        "fog": _ratio(means["fog"], means["fog_truth"]),
        "seams": _worst(drawn),
        "seams_truth": _worst(truth),
        **{f"seams_{STRIDE * 2**level}": ratio for level, ratio in enumerate(drawn, start=1)},
    }


def colorizer_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Format results of colorizers: set name to model name to what ``evaluate_colorizer`` returned."""
    counts = sorted({round(row["samples"]) for models in results.values() for row in models.values()})
    number = "/".join(map(str, counts)) or "K"
    present = {key for models in results.values() for row in models.values() for key in row}
    columns = {key: column for key, column in COLUMNS.items() if key in present}
    titles = [title.replace("of K", f"of {number}") for title, _ in columns.values()]
    rows: list[list[str]] = []
    for name, models in results.items():
        for model, row in models.items():
            cells = (format(row[key], style) if key in row else "-" for key, (_, style) in columns.items())
            rows.append([name, f"{row['images']:.0f}", model, *cells])
    return markdown(["set", "images", "model", *titles], rows)


@torch.no_grad()
def chroma_on_grid(flow: FlowModel, image: Image.Image, working_size: int | None = None) -> tuple[Tensor, Condition]:
    """Chroma ``(1, 2, h, w)`` of an RGB photograph, cropped to a colorizer's grid, and the condition of its luma."""
    config: Any = flow.config
    multiple = config.source_multiple
    factor = (working_size or config.working_size) / min(image.size)
    width, height = (max(1, round(side * factor / multiple)) * multiple for side in image.size)
    y, chroma = split(_pixels(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)).float() / 255)
    cond = flow.encode_condition(y.to(next(flow.parameters()).device))
    return F.avg_pool2d(chroma, STRIDE), cond  # height / 4, width / 4


@torch.no_grad()
def _measure_grid(flow: FlowModel, image: Image.Image, settings: dict[str, Any]) -> dict[str, float]:
    """Measure a colorizer on the grid that it works on."""
    samples, seed = settings["samples"], settings["seed"]
    truth, cond = chroma_on_grid(flow, image, settings["working_size"])
    device, shared = next(flow.parameters()).device, cond.expand(samples)
    shapes = flow.latent_shapes(*truth.shape[-2:])
    own = with_defaults(flow, {name: settings[name] for name in ("temperature", "detail", "coherence")})
    row = {"bits_per_dim": float(score(flow, truth + NEUTRAL, cond, seed=seed, complexity=False).bits_per_dim)}
    for name, tau in (("", 1.0), ("_default", schedule(own["temperature"], own["detail"], len(shapes)))):
        latents = sample_latents(shapes, samples, tau, seed=seed)
        if name:
            latents[-1] = share_noise(flow, latents[-1], cond, own["coherence"])
        latents = [z.to(device) for z in latents]
        drawn = flow.inverse(latents, shared, partial(clamp_level, flow, shared)).cpu() - NEUTRAL
        row[f"global_share{name}"], row[f"global_share_truth{name}"] = metrics.coherence_parts(drawn, truth)
    return row


def _measure_colorings(
    flow: FlowModel, image: Image.Image, settings: dict[str, Any], *, portraits: bool
) -> tuple[dict[str, float], Tensor]:
    """Measure what ``colorize`` makes of a photograph's luma; and ``seam_sums`` of it and the truth, (2, grids, 4)."""
    y, truth = split(_pixels(image).double() / 255)
    gray = (y * 255).round()  # (1, 1, H, W), as a grayscale file stores it
    stored, working_size = gray.to(torch.uint8), settings["working_size"]
    colorings = colorize(flow, stored, **settings).double()
    calm = colorize(flow, stored, temperature=0, detail=0, working_size=working_size).double()
    result_luma, chroma = split(colorings)  # (K, 1, H, W), (K, 2, H, W)
    errors = metrics.chroma_rmse(chroma, truth)
    luma_kept = luma((colorings * 255).round()).round() == gray
    chosen: list[By] = ["consensus", "likelihood"]
    best = {by: ranked(colorings, gray / 255, by, flow)[1][0, :KEPT] for by in chosen}
    row = {
        "rmse": float(errors.mean()),
        "rmse_best": float(errors.min()),
        "rmse_mean": float(metrics.chroma_rmse(chroma.mean(0, keepdim=True), truth)),
        "rmse_calm": float(metrics.chroma_rmse(split(calm)[1], truth)),
        "rmse_grey": float(metrics.chroma_rmse(torch.zeros_like(truth), truth)),
        "diversity": float(chroma.std(0, correction=0).mean()),
        "colourfulness": float(metrics.colorfulness(chroma).mean()),
        "colourfulness_truth": float(metrics.colorfulness(truth)),
        "luma_error": float((result_luma - gray / 255).abs().max()),
        "luma_kept": float(luma_kept.all()),
        **{f"rmse_{by}": float(errors[order].mean()) for by, order in best.items()},
        **{f"colourfulness_{by}": float(metrics.colorfulness(chroma[order]).mean()) for by, order in best.items()},
    }
    if portraits:
        outside, without = metrics.skin_verdict(chroma)
        row["skin_outside"], row["skin_grey"] = float(outside.double().mean()), float(without.double().mean())
        row["skin_outside_truth"] = float(metrics.skin_verdict(truth)[0])
    height, width = working_sides(y.shape[-2], y.shape[-1], working_size or flow.config.working_size)
    size = height // STRIDE, width // STRIDE
    y, chroma, truth = (resize_bilinear(plane, size) for plane in (gray / 255, chroma, truth))
    row["fog"], row["fog_truth"] = float(metrics.fog(chroma, y).nanmean()), float(metrics.fog(truth, y).nan_to_num())
    cells = [2**level for level in range(1, len(flow.config.steps) + 1)]
    return row, torch.stack([torch.stack([metrics.seam_sums(c, y, cell) for cell in cells]) for c in (chroma, truth)])


def _worst(ratios: list[float]) -> float:
    return max((ratio for ratio in ratios if not math.isnan(ratio)), default=math.nan)


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, H, W) uint8
