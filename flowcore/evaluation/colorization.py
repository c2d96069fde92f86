"""Colorizers, measured on photographs in color."""

from __future__ import annotations

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
from ..flow import Flow
from ..images.color import NEUTRAL, luma, split
from ..images.resize import resize_bilinear
from ..networks.luma import STRIDE
from ..prior import sample_latents
from ..quality.color_metrics import (
    chroma_rmse,
    coherence_parts,
    colorfulness,
    fog,
    seam_ratio,
    seam_sums,
    skin_verdict,
)
from ..tasks.chroma import clamp_level, schedule, share_noise, working_sides
from ..tasks.colorize import colorize
from ..tasks.intake import resolve
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
    flow: Flow,
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

    Two kinds of measurements, each a mean over images unless stated otherwise, each image with seeds of its own (image
    i from ``seed + i * samples`` on); of more than ``limit`` images, so many, evenly spread over the sorted names.

    On the grid that the model works on (chroma at a quarter of the working size; the photograph is resized so that both
    sides are the nearest multiples that the model takes, and center-cropped): "bits_per_dim" (uniform noise) and its
    "standard_error", "coherence" (all levels at temperature 1) and "coherence_default" (at the requested temperatures),
    see ``coherence_parts``: both are ratios of means, "global_share" over "global_share_truth", and those with
    "_default".

    On what ``colorize`` makes of the photograph's luma, rounded to 8 bits, at the photograph's own size, with K =
    ``samples`` colorings (at least 2): "rmse" (``chroma_rmse`` of one coloring: the mean of all K), "rmse_best" (of the
    best image, never the best pixel of each), "rmse_mean" (of the mean of K), "rmse_calm" (of the one at temperature
    0), "rmse_grey" (of no color), "diversity" (standard deviation of the K, mean over pixels and channels),
    "colourfulness", "colourfulness_truth" and "colourfulness_gap" (the one relative to the other, minus 1: negative is
    washed out). "rmse_consensus" and "rmse_likelihood" are means of the first 2 of the K by these criteria, see
    ``ranking.By``, "colourfulness_consensus" and "colourfulness_likelihood" their colorfulness. "luma_error" is the
    largest of all pixels of all images, "luma_kept" the share of the images whose 8-bit colorings have exactly the
    8-bit luma that went in. "rmse_of_grey", "rmse_best_of_grey" and "rmse_calm_of_grey" are sum of RMSE over sum of
    gray's RMSE, below 1 if colors help.

    Also on these pictures, since they are what is seen, at the resolution of the grid: "seams_8", "seams_16", ..., the
    change of chroma across the borders of cells of so many pixels of the working size, relative to the change inside,
    see ``seam_ratio``; "seams", the worst of them, "seams_truth" that of the photographs; and "fog", the change of
    chroma where luma has none over that of the photographs, see ``fog``. With ``portraits``, all aligned as
    ``skin_color`` states, also "skin_outside" and "skin_grey", the shares of colorings whose skin has a hue of no human
    skin, or none, see ``skin_verdict``, and "skin_outside_truth", that of the photographs.
    """
    flow.require("colorize")
    if samples < 2 or limit < 1:
        raise FlowError(f"Expected at least 2 samples and a limit of at least 1 image; got {samples} and {limit}.")
    rows: list[dict[str, float]] = []
    seams = torch.zeros(2, len(flow.config.steps), 4, dtype=torch.float64)
    asked = {"temperature": temperature, "detail": detail, "coherence": coherence, "working_size": working_size}
    for number, file, image in read_each(list_images(folder, only, limit), read_upright, skip or log):
        first_seed = (seed + number * samples) % 2**64
        settings: dict[str, Any] = {**asked, "samples": samples, "seed": first_seed}
        row, sums = _measure_colorings(flow, image, settings, portraits=portraits)
        row |= _measure_grid(flow, image, **settings)
        rows.append(row)
        seams += sums
        if log is not None:
            log(
                f"{file.name}: {row['bits_per_dim']:.3f} bits/dim, RMSE {row['rmse']:.4f}, best of {samples} "
                f"{row['rmse_best']:.4f}, gray {row['rmse_grey']:.4f}"
            )
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    bits = torch.tensor([row["bits_per_dim"] for row in rows], dtype=torch.float64)
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
        **_seam_ratios(seams),
    }


def colorizer_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Format results of colorizers: set name to model name to what ``evaluate_colorizer`` returned."""
    counts = sorted({round(row["samples"]) for models in results.values() for row in models.values()})
    number = "/".join(map(str, counts)) or "K"
    present = {key for models in results.values() for row in models.values() for key in row}
    columns = {key: column for key, column in COLUMNS.items() if key in present}
    titles = [title.replace("of K", f"of {number}") for title, _ in columns.values()]
    rows = [
        [
            name,
            f"{row['images']:.0f}",
            model,
            *(format(row[key], style) if key in row else "-" for key, (_, style) in columns.items()),
        ]
        for name, models in results.items()
        for model, row in models.items()
    ]
    return markdown(["set", "images", "model", *titles], rows)


def _seam_ratios(sums: Tensor) -> dict[str, float]:
    drawn, truth = ([seam_ratio(grid) for grid in grids] for grids in sums)
    worst = [max((ratio for ratio in ratios if not math.isnan(ratio)), default=math.nan) for ratios in (drawn, truth)]
    each = {f"seams_{STRIDE * 2**level}": ratio for level, ratio in enumerate(drawn, start=1)}
    return {"seams": worst[0], "seams_truth": worst[1], **each}


@torch.no_grad()
def chroma_on_grid(flow: Flow, image: Image.Image, working_size: int | None = None) -> tuple[Tensor, Condition]:
    """Chroma ``(1, 2, h, w)`` of an RGB photograph on the grid that a colorizer works on, and its luma's condition.

    Of a photograph with other proportions than the grid's, the middle.
    """
    config: Any = flow.config
    multiple = config.source_multiple
    factor = (working_size or config.working_size) / min(image.size)
    width, height = (max(1, round(side * factor / multiple)) * multiple for side in image.size)
    y, chroma = split(_pixels(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)).float() / 255)
    cond = flow.encode_condition(y.to(next(flow.parameters()).device))
    return F.avg_pool2d(chroma, STRIDE), cond  # height / 4, width / 4


@torch.no_grad()
def _measure_grid(
    flow: Flow,
    image: Image.Image,
    *,
    samples: int,
    seed: int,
    temperature: float | None,
    detail: float | None,
    coherence: float | None,
    working_size: int | None,
) -> dict[str, float]:
    """Measure a colorizer on the grid that it works on."""
    truth, cond = chroma_on_grid(flow, image, working_size)
    device = next(flow.parameters()).device
    shapes = flow.latent_shapes(*truth.shape[-2:])
    own = resolve(flow, {"temperature": temperature, "detail": detail, "coherence": coherence})
    row = {"bits_per_dim": float(score(flow, truth + NEUTRAL, cond, seed=seed, complexity=False).bits_per_dim)}
    for name, tau in (("", 1.0), ("_default", schedule(own["temperature"], own["detail"], len(shapes)))):
        latents = sample_latents(shapes, samples, tau, seed=seed)
        if name:
            latents[-1] = share_noise(flow, latents[-1], cond, own["coherence"])
        latents = [z.to(device) for z in latents]
        shared = cond.expand(samples)
        drawn = flow.inverse(latents, shared, partial(clamp_level, flow, shared)).cpu() - NEUTRAL
        row[f"global_share{name}"], row[f"global_share_truth{name}"] = coherence_parts(drawn, truth)
    return row


def _measure_colorings(
    flow: Flow, image: Image.Image, settings: dict[str, Any], *, portraits: bool
) -> tuple[dict[str, float], Tensor]:
    """Measure what ``colorize`` makes of a photograph's luma at its own size.

    The other result is ``seam_sums`` of colorings and truth for the cells of every grid, (2, grids, 4).
    """
    y, truth = split(_pixels(image).double() / 255)
    gray = (y * 255).round()  # (1, 1, H, W), as a grayscale file stores it
    stored, working_size = gray.to(torch.uint8), settings["working_size"]
    colorings = colorize(flow, stored, **settings).double()
    calm = colorize(flow, stored, temperature=0, detail=0, working_size=working_size).double()
    result_luma, chroma = split(colorings)  # (K, 1, H, W), (K, 2, H, W)
    errors = chroma_rmse(chroma, truth)
    luma_kept = luma((colorings * 255).round()).round() == gray
    chosen: list[By] = ["consensus", "likelihood"]
    best = {by: ranked(colorings, gray / 255, by, flow)[1][0, :KEPT] for by in chosen}
    row = {
        "rmse": float(errors.mean()),
        "rmse_best": float(errors.min()),
        "rmse_mean": float(chroma_rmse(chroma.mean(0, keepdim=True), truth)),
        "rmse_calm": float(chroma_rmse(split(calm)[1], truth)),
        "rmse_grey": float(chroma_rmse(torch.zeros_like(truth), truth)),
        "diversity": float(chroma.std(0, correction=0).mean()),
        "colourfulness": float(colorfulness(chroma).mean()),
        "colourfulness_truth": float(colorfulness(truth)),
        "luma_error": float((result_luma - gray / 255).abs().max()),
        "luma_kept": float(luma_kept.all()),
        **{f"rmse_{by}": float(errors[order].mean()) for by, order in best.items()},
        **{f"colourfulness_{by}": float(colorfulness(chroma[order]).mean()) for by, order in best.items()},
    }
    if portraits:
        outside, without = skin_verdict(chroma)
        row["skin_outside"], row["skin_grey"] = float(outside.double().mean()), float(without.double().mean())
        row["skin_outside_truth"] = float(skin_verdict(truth)[0])
    height, width = working_sides(y.shape[-2], y.shape[-1], working_size or flow.config.working_size)
    size = height // STRIDE, width // STRIDE
    y, chroma, truth = (resize_bilinear(plane, size) for plane in (gray / 255, chroma, truth))
    row["fog"], row["fog_truth"] = float(fog(chroma, y).nanmean()), float(fog(truth, y).nan_to_num())
    cells = [2**level for level in range(1, len(flow.config.steps) + 1)]
    return row, torch.stack([torch.stack([seam_sums(c, y, cell) for cell in cells]) for c in (chroma, truth)])


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, H, W) uint8
