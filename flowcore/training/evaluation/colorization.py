"""Colorizers, measured on photographs in color."""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...engine.defaults import with_defaults
from ...errors import FlowError
from ...flows.model import FlowModel
from ...flows.prior import sample_latents
from ...images import metrics
from ...images.color import NEUTRAL, luma, split
from ...images.resize import resize_bilinear
from ...models.colorizer.luma import STRIDE
from ...tasks.chroma import chroma_and_condition, clamp_level, schedule, working_sides
from ...tasks.coherence import correlate_noise
from ...tasks.colorize import colorize
from ...tasks.ranking import By, ranked
from ...tasks.score import score
from .image_set import list_images, markdown, read_each, read_upright

PORTRAIT_SAMPLES = 20  # usual number of colorings of a portrait, as less than one in eight has wrong skin
CHOSEN = 2  # samples that ``ranking`` chooses
RELATIVE_TO_GRAY = ("rmse", "rmse_best", "rmse_calm", "rmse_consensus", "rmse_likelihood")

COLUMNS = {  # key of the results, whose spelling is that of earlier files: title and format
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

    The result has means over images, ratios of means, and the largest "luma_error". Image i has the seeds from
    ``seed + i * samples`` on; if there are more than ``limit`` images, some are taken, evenly spread.

    Two measures are of the grid that the model works on: "bits_per_dim", and "coherence", see ``coherence_parts``, at
    temperature 1 and ("coherence_default") at the requested temperatures.

    The others are of what ``colorize`` makes from the 8-bit luma at its own size, K = ``samples`` colorings per image:

    - "rmse": mean ``chroma_rmse`` of all K; "rmse_best": of the best; "rmse_mean": of their mean; "rmse_calm": at
      temperature 0; "rmse_grey": without color; "rmse_consensus", "rmse_likelihood": of the first 2 by ``ranking``;
    - "..._of_grey": relative to "rmse_grey"; "colourfulness_gap": relative to the truth, minus 1;
    - "luma_kept": share of images whose colorings have exactly the original luma;
    - "seams_8": ``seam_ratio`` of cells of 8 pixels, and so on; "fog": relative to the photographs;
    - with ``portraits``, which must be aligned, "skin_outside" and "skin_grey": shares of colorings.
    """
    flow.require("colorize")
    if samples < 2 or limit < 1:
        raise FlowError(f"Expected at least 2 samples and a limit of at least 1 image; got {samples} and {limit}.")
    rows: list[dict[str, float]] = []
    # seams of colorings and truth, for every grid
    seams = torch.zeros(2, len(flow.config.steps), 2, 2, dtype=torch.float64)
    options = {"temperature": temperature, "detail": detail, "coherence": coherence, "working_size": working_size}
    for number, file, image in read_each(list_images(folder, only, limit), read_upright, skip or log):
        settings: dict[str, Any] = {**options, "samples": samples, "seed": (seed + number * samples) % 2**64}
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
    seams_of_colorings, seams_of_truth = [[metrics.seam_ratio(sums) for sums in of_grids] for of_grids in seams]
    return {
        "images": len(rows),
        "samples": samples,
        **means,  # some are replaced by what follows
        "standard_error": float(bits.std()) / len(bits) ** 0.5 if len(bits) > 1 else math.nan,
        "coherence": _ratio(means["global_share"], means["global_share_truth"]),
        "coherence_default": _ratio(means["global_share_default"], means["global_share_truth_default"]),
        "colourfulness_gap": _ratio(means["colourfulness"], means["colourfulness_truth"]) - 1,
        "luma_error": max(row["luma_error"] for row in rows),
        **{f"{key}_of_grey": _ratio(means[key], means["rmse_grey"]) for key in RELATIVE_TO_GRAY},
        "fog": _ratio(means["fog"], means["fog_truth"]),
        "seams": _worst(seams_of_colorings),
        "seams_truth": _worst(seams_of_truth),
        **{f"seams_{STRIDE * 2**level}": ratio for level, ratio in enumerate(seams_of_colorings, start=1)},
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
def _measure_grid(flow: FlowModel, image: Image.Image, settings: dict[str, Any]) -> dict[str, float]:
    """Measure a colorizer on the grid that it works on."""
    samples, seed = settings["samples"], settings["seed"]
    truth, cond = chroma_and_condition(flow, image, settings["working_size"])
    device, shared = next(flow.parameters()).device, cond.expand(samples)
    shapes = flow.latent_shapes(*truth.shape[-2:])
    sampling = with_defaults(flow, {name: settings[name] for name in ("temperature", "detail", "coherence")})
    taus = schedule(sampling["temperature"], sampling["detail"], len(shapes))
    at_default = sample_latents(shapes, samples, taus, seed)
    at_default[-1] = correlate_noise(flow, at_default[-1], cond, sampling["coherence"])
    row = {"bits_per_dim": float(score(flow, truth + NEUTRAL, cond, seed=seed, complexity=False).bits_per_dim)}
    at_1 = sample_latents(shapes, samples, 1.0, seed)
    for suffix, latents in (("", at_1), ("_default", at_default)):
        clamp = partial(clamp_level, flow, shared)  # limits every level, as ``colorize`` does
        decoded = flow.inverse([z.to(device) for z in latents], shared, clamp)
        parts = metrics.coherence_parts(decoded.cpu() - NEUTRAL, truth)
        row[f"global_share{suffix}"], row[f"global_share_truth{suffix}"] = parts
    return row


def _measure_colorings(
    flow: FlowModel, image: Image.Image, settings: dict[str, Any], *, portraits: bool
) -> tuple[dict[str, float], Tensor]:
    """Measure what ``colorize`` makes from a photograph's luma; also ``seam_sums`` of both, ``(2, grids, 2, 2)``."""
    exact_y, truth = split(_pixels(image).double() / 255)
    gray = (exact_y * 255).round()  # (1, 1, H, W), 0 to 255, as a grayscale file stores it
    y, photograph, working_size = gray / 255, gray.to(torch.uint8), settings["working_size"]
    colorings = colorize(flow, photograph, **settings).double()
    calm = colorize(flow, photograph, temperature=0, detail=0, working_size=working_size).double()
    result_luma, chroma = split(colorings)  # (K, 1, H, W), (K, 2, H, W)
    errors = metrics.chroma_rmse(chroma, truth)
    criteria: tuple[By, ...] = ("consensus", "likelihood")
    best = {by: ranked(colorings, y, by, flow)[1][0, :CHOSEN] for by in criteria}
    row = {
        "rmse": float(errors.mean()),
        "rmse_best": float(errors.min()),
        "rmse_mean": float(metrics.chroma_rmse(chroma.mean(0, keepdim=True), truth)),
        "rmse_calm": float(metrics.chroma_rmse(split(calm)[1], truth)),
        "rmse_grey": float(metrics.chroma_rmse(torch.zeros_like(truth), truth)),
        "diversity": float(chroma.std(0, correction=0).mean()),
        "colourfulness": float(metrics.colorfulness(chroma).mean()),
        "colourfulness_truth": float(metrics.colorfulness(truth)),
        "luma_error": float((result_luma - y).abs().max()),
        "luma_kept": float((luma((colorings * 255).round()).round() == gray).all()),
        **{f"rmse_{by}": float(errors[order].mean()) for by, order in best.items()},
    }
    if portraits:
        is_outside, is_gray = metrics.skin_verdict(chroma)
        row["skin_outside"], row["skin_grey"] = float(is_outside.double().mean()), float(is_gray.double().mean())
    height, width = working_sides(y.shape[-2], y.shape[-1], working_size or flow.config.working_size)
    size = height // STRIDE, width // STRIDE
    small_y, small_chroma, small_truth = (resize_bilinear(planes, size) for planes in (y, chroma, truth))
    row["fog"] = float(metrics.fog(small_chroma, small_y).nanmean())
    row["fog_truth"] = float(metrics.fog(small_truth, small_y).nan_to_num())
    cells = [2**level for level in range(1, len(flow.config.steps) + 1)]
    both = (small_chroma, small_truth)
    seams = [torch.stack([metrics.seam_sums(planes, small_y, cell) for cell in cells]) for planes in both]
    return row, torch.stack(seams)


def _worst(ratios: list[float]) -> float:
    return max((ratio for ratio in ratios if not math.isnan(ratio)), default=math.nan)


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, H, W) uint8
