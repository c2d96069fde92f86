"""Evaluation: a model against test images, in the numbers of the literature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import FlowError, ImageError, ShapeError
from ..flow import Flow
from ..images.color import NEUTRAL, luma, split
from ..images.files import image_files
from ..images.resize import enlarge, shrink
from ..networks.luma import STRIDE
from ..prior import sample_latents
from ..quality.metrics import (
    chroma_rmse,
    coherence_parts,
    colourfulness,
    diversity,
    diversity_score,
    lpips,
    lpips_map,
    lpips_missing,
    lr_psnr,
    psnr,
    squared_error,
    ssim,
)
from ..quality.no_reference import brisque, niqe, piqe
from ..tasks.chroma import bounded, schedule
from ..tasks.colorize import colorize
from ..tasks.score import score
from ..tasks.upscale import upscale
from ..training.data import read_idx

# What upscalers are measured in, by name. The last costs as much as all others together, and is only measured if asked
# for.
MEASURES = (
    "psnr",
    "ssim",
    "lr_psnr",
    "diversity",
    "gain",
    "diversity_score",
    "niqe",
    "brisque",
    "piqe",
    "lpips",
    "bits_per_dim",
)
USUAL_MEASURES = MEASURES[:-1]
# The columns of their table: key of the results, title and format. The first ones stay where they are; append.
COLUMNS = {
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lr_psnr": ("LR-PSNR", ".2f"),
    "diversity": ("diversity", ".2f"),
    "gain": ("gain", "+.2f"),
    "diversity_score_lpips": ("diversity score (LPIPS)", ".2f"),
    "diversity_score_mse": ("diversity score (MSE)", ".2f"),
    "niqe": ("NIQE", ".2f"),
    "brisque": ("BRISQUE", ".2f"),
    "piqe": ("PIQE", ".2f"),
    "lpips": ("LPIPS", ".4f"),
    "bits_per_dim": ("bits/dim", ".4f"),
}


def evaluate_upscaler(
    flow: Flow,
    folder: Path,
    *,
    temperatures: Sequence[float] = (0.0, 0.8),
    samples: int = 8,
    seed: int = 0,
    log: Callable[[str], None] | None = None,
    measures: Sequence[str] = USUAL_MEASURES,
) -> dict[str, dict[str, float]]:
    """Measure bicubic and a model on a folder of HR images.

    LR images are antialiased bicubic, rounded to 8 bits; results are rounded to 8 bits; PSNR, SSIM and LPIPS are over
    RGB and whole images. Diversity is the mean per-pixel standard deviation of the samples; the diversity score is the
    challenge's if LPIPS is installed, and otherwise the same formula with squared differences, under another key.

    Args:
        flow: An SRFlow.
        folder: HR images; sides are cropped to multiples of the scale.
        temperatures: To measure at; the first sample each for all but the diversities.
        samples: For the diversities of temperatures above 0; the challenge takes 10.
        seed: Of the first sample.
        log: Called with a line per image.
        measures: Some of ``MEASURES``. LPIPS is left out where it is missing, see ``missing_measures``.

    Returns:
        Method ("bicubic", "tau 0.8", ...) to the means over images of "psnr", "ssim", "lr_psnr" (dB), "diversity"
        (1/255), "gain" (PSNR over that of bicubic, dB), "diversity_score_lpips" or "diversity_score_mse" (percent),
        "niqe", "brisque", "piqe", "lpips" and "bits_per_dim" (of HR under the model, given LR; not for bicubic): those
        that were asked for. Images that are too small for a measure are left out of its mean, and the measure if all
        are.

    Raises:
        FlowError: If there is no such measure.
        ImageError: If the folder holds no image.
    """
    if unknown := [name for name in measures if name not in MEASURES]:
        raise FlowError(f"There is no measure {unknown[0]!r}; choose from {', '.join(MEASURES)}.")
    files = image_files(folder)
    scale = flow.config.scale
    rows: dict[str, list[dict[str, float]]] = {}
    for file in files:
        hr = _read(file, scale)
        lr = _rounded(shrink(hr, scale))
        bicubic = _rounded(enlarge(lr, scale))
        base = float(psnr(bicubic, hr))
        rows.setdefault("bicubic", []).append(_row(bicubic, hr, lr, base, measures))
        bits = _bits(flow, hr) if "bits_per_dim" in measures else {}
        for tau in temperatures:
            pictures = _rounded(upscale(flow, lr, temperature=tau, seed=seed, samples=samples if tau else 1))
            rows.setdefault(f"tau {tau:g}", []).append({**_row(pictures, hr, lr, base, measures), **bits})
        if log is not None:
            log(f"{file.name}: " + ", ".join(f"{name} {values[-1]['psnr']:.2f} dB" for name, values in rows.items()))
    return {
        method: {
            key: mean
            for key in values[0]
            if (key != "psnr" or key in measures) and not math.isnan(mean := _measured_mean(values, key))
        }
        for method, values in rows.items()
    }


def missing_measures(measures: Sequence[str] = USUAL_MEASURES) -> str | None:
    """Say in a line which of some measures of upscalers this machine lacks, and how to get them.

    Args:
        measures: Some of ``MEASURES``.

    Returns:
        The line; None if nothing is missing.
    """
    stand_on_it = {"lpips": "LPIPS", "diversity_score": "the diversity score on LPIPS"}
    lacking = [title for name, title in stand_on_it.items() if name in measures]
    missing = lpips_missing() if lacking else None
    return None if missing is None else f"Missing: {' and '.join(lacking)}. To get it: {missing}."


def evaluate_density(
    flow: Flow, data: Path, *, samples: int = 1, seed: int = 0, limit: int = 10_000, batch: int = 50
) -> dict[str, float]:
    """Measure the bits per dimension of images under a model, with uniform noise.

    Images larger than the model's size are shrunk (antialiased) until their shorter side fits, and cut to the middle.

    Args:
        flow: A model with an ``image_size``.
        data: A folder of images at any depth, or, for class-conditional models, of the test files of MNIST.
        samples: Draws per image for the importance-weighted bound; 1 for the plain bound.
        seed: Image i is scored with ``seed + i``.
        limit: At most so many images, evenly spread over the sorted names.
        batch: Images scored at once.

    Returns:
        "images", "bits_per_dim" (mean) and "standard_error" of that mean.

    Raises:
        FlowError: If the model has no size.
        ImageError: If the folder holds no image.
    """
    images, labels = (
        _labelled_digits(data) if flow.classes and flow.channels == 1 else (_sized(flow, data, limit), None)
    )
    images, labels = images[:limit], None if labels is None else labels[:limit]
    values: list[Tensor] = []
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        cond = None if labels is None else flow.encode_condition(labels[part])
        values.append(
            score(flow, images[part], cond, samples=samples, seed=seed + start, complexity=False).bits_per_dim
        )
    bits = torch.cat(values).double()
    return {
        "images": len(bits),
        "bits_per_dim": float(bits.mean()),
        "standard_error": float(bits.std() / len(bits) ** 0.5),
    }


def evaluate_colorizer(
    flow: Flow,
    folder: Path,
    *,
    samples: int = 8,
    seed: int = 0,
    temperature: float | None = None,
    detail: float | None = None,
    working_size: int | None = None,
    limit: int = 10_000,
    log: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Measure a colorizer on a folder of photographs in colour.

    Two kinds of measurements, each a mean over images unless said otherwise, each image with seeds of its own:

    On the grid that the model decides on (chroma at a quarter of the working size; the photograph is resized so that
    both sides are the nearest multiples that the model takes, and cut to the middle): bits per dimension and coherence.

    On what ``colorize`` makes of the photograph's luma, rounded to 8 bits, at the photograph's own size: everything
    else. RMSE is ``metrics.chroma_rmse``, a number per picture; the best of several is the best picture, never the best
    pixel of each.

    Args:
        flow: A colorizer.
        folder: Photographs in colour, at any depth.
        samples: K, colourings per image, at least 2.
        seed: Image i takes the seeds from ``seed + i * samples`` on.
        temperature: Of the palette; None for what the model was made for.
        detail: Likewise, of the detail.
        working_size: Likewise.
        limit: At most so many images, evenly spread over the sorted names.
        log: Called with a line per image.

    Returns:
        "images" and "samples", the numbers of both; on the grid, "bits_per_dim" (uniform noise) and its
        "standard_error", "coherence" (all levels at temperature 1) and "coherence_default" (at the temperatures asked
        for), see ``metrics.coherence``: both are ratios of means, "global_share" over "global_share_truth", and those
        with "_default". At full size,
        "rmse" (of one colouring: the mean of all K), "rmse_best" (of the best of K), "rmse_mean" (of the mean of K),
        "rmse_calm" (of the one at temperature 0), "rmse_grey" (of no colour), "diversity" (standard deviation of the K,
        mean over pixels and channels), "colourfulness", "colourfulness_truth" and "colourfulness_gap" (the one relative
        to the other, minus 1: negative is washed out), "luma_error" (the largest of all pixels of all images) and
        "luma_kept" (share of the images whose 8-bit colourings have exactly the 8-bit luma that went in).

    Raises:
        ImageError: If the folder holds no image, or one that cannot be read.
        FlowError: If the model is no colorizer, or another argument is out of its range.
    """
    if flow.architecture != "colorizer":
        raise FlowError(f"These are measures of colorizers; got a {flow.architecture} model. Use another evaluation.")
    if samples < 2 or limit < 1:
        raise FlowError(f"Expected at least 2 samples and a limit of at least 1 image; got {samples} and {limit}.")
    files = image_files(folder)
    chosen = files[:: max(1, -(-len(files) // limit))]
    rows: list[dict[str, float]] = []
    for number, file in enumerate(chosen):
        first = (seed + number * samples) % 2**64
        image = _upright(file)
        row = _coloured(flow, image, samples, first, temperature, detail, working_size)
        row |= _decided(flow, image, samples, first, temperature, detail, working_size)
        rows.append(row)
        if log is not None:
            log(
                f"{file.name}: {row['bits_per_dim']:.3f} bits/dim, RMSE {row['rmse']:.4f}, best of {samples} "
                f"{row['rmse_best']:.4f}, grey {row['rmse_grey']:.4f}"
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
    }


def color_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Lay results out as a Markdown table.

    Args:
        results: Set name to model name to what ``evaluate_colorizer`` returned.

    Returns:
        The table.
    """
    titles = [
        "set", "images", "model", "bits/dim", "coherence, tau 1", "coherence", "RMSE of 1", "best of K", "mean of K",
        "tau 0", "grey", "diversity", "colourfulness", "truth", "gap", "luma error", "8-bit luma kept",
    ]  # fmt: skip
    numbers = ["rmse", "rmse_best", "rmse_mean", "rmse_calm", "rmse_grey", "diversity", "colourfulness"]
    counts = sorted({round(row["samples"]) for models in results.values() for row in models.values()})
    many = "/".join(map(str, counts)) or "K"
    lines = [f"| {' | '.join(titles)} |".replace("of K", f"of {many}"), "|---" * len(titles) + "|"]
    for name, models in results.items():
        for model, row in models.items():
            cells = [name, f"{row['images']:.0f}", model]
            cells += [f"{row[key]:.3f}" for key in ("bits_per_dim", "coherence", "coherence_default")]
            cells += [f"{row[key]:.4f}" for key in [*numbers, "colourfulness_truth"]]
            cells += [f"{row['colourfulness_gap']:+.0%}", f"{row['luma_error']:.1e}", f"{row['luma_kept']:.0%}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read_sized(flow: Flow, path: Path) -> Tensor:
    """Read an image at a model's size: shrunk or enlarged to cover it, and cut to the middle.

    Args:
        flow: A model with an ``image_size``.
        path: The file.

    Returns:
        ``(C, H, W)`` uint8.

    Raises:
        FlowError: If the model has no size.
        ImageError: If the file cannot be read.
    """
    return sized(flow, path, path.name)


def sized(flow: Flow, file: Path | IO[bytes], name: str) -> Tensor:
    """Do what ``read_sized`` does, with a file that may be open.

    Args:
        flow: See there.
        file: The file.
        name: What to call it when something is wrong.

    Returns:
        See there.

    Raises:
        FlowError: See there.
        ImageError: See there.
    """
    if flow.image_size is None:
        raise FlowError("This model does not say which size it was made for. Load it with image_size=..., e.g. 32.")
    height, width = flow.image_size
    try:
        with Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened).convert("L" if flow.channels == 1 else "RGB")
    except OSError as error:
        why = "it is of no kind that Pillow reads" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(f"Cannot read {name} as an image: {why}.") from error
    pixels = torch.from_numpy(np.array(ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC)))
    return pixels.reshape(height, width, flow.channels).permute(2, 0, 1)


def density_table(results: dict[str, dict[str, float]]) -> str:
    """Lay results out as a Markdown table.

    Args:
        results: Set name to what ``evaluate_density`` returned.

    Returns:
        The table.
    """
    lines = ["| set | images | bits per dimension | standard error |", "|---|---|---|---|"]
    for name, row in results.items():
        lines.append(f"| {name} | {row['images']:.0f} | {row['bits_per_dim']:.4f} | {row['standard_error']:.4f} |")
    return "\n".join(lines)


def table(results: dict[str, dict[str, dict[str, float]]], measures: Sequence[str] | None = None) -> str:
    """Lay results out as a Markdown table.

    Args:
        results: Set name to what ``evaluate_upscaler`` returned.
        measures: Those that were asked for: one that nothing holds has cells that say "missing". None for those that
            are there.

    Returns:
        The table.
    """
    there = {key for methods in results.values() for row in methods.values() for key in row}
    asked = {"diversity_score_mse" if name == "diversity_score" else name for name in measures or ()}
    if "diversity_score_lpips" in there:
        asked.discard("diversity_score_mse")
    keys = [key for key in COLUMNS if key in there | asked]
    titles = ["set", "method", *(COLUMNS[key][0] for key in keys)]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for name, methods in results.items():
        for method, row in methods.items():
            cells = [_cell(row, key, "-" if key in there else "missing") for key in keys]
            lines.append("| " + " | ".join([name, method, *cells]) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, float], key: str, otherwise: str) -> str:
    return format(row[key], COLUMNS[key][1]) if key in row else otherwise


def _row(pictures: Tensor, hr: Tensor, lr: Tensor, base: float, measures: Sequence[str]) -> dict[str, float]:
    """Measure samples of one image: all of them for the diversities, the first for the rest."""
    picture = pictures[:1]
    ways: dict[str, Callable[[], Any]] = {
        "psnr": lambda: psnr(picture, hr),
        "ssim": lambda: ssim(picture, hr),
        "lr_psnr": lambda: lr_psnr(picture, lr),
        "diversity": lambda: diversity(pictures) if len(pictures) > 1 else 0.0,
        "gain": lambda: psnr(picture, hr) - base,
        "niqe": lambda: niqe(picture),
        "brisque": lambda: brisque(picture),
        "piqe": lambda: piqe(picture),
    }
    if lpips_missing() is None:
        ways["lpips"] = lambda: lpips(picture, hr)
        scored, distance = "diversity_score_lpips", lpips_map
    else:
        scored, distance = "diversity_score_mse", squared_error
    ways[scored] = lambda: diversity_score(pictures, hr, distance) if len(pictures) > 1 else 0.0
    asked = {"psnr", scored if "diversity_score" in measures else "", *measures}  # PSNR is for the log, too
    row: dict[str, float] = {}
    for key, measure in ways.items():
        if key in asked:
            try:
                row[key] = float(measure())
            except ShapeError:
                row[key] = math.nan  # too small for this one
    return row


def _bits(flow: Flow, hr: Tensor) -> dict[str, float]:
    """Bits per dimension of an HR image, cropped to what the model takes."""
    multiple = flow.size_multiple
    height, width = (side // multiple * multiple for side in hr.shape[-2:])
    hr = hr[..., :height, :width]
    device = next(flow.parameters()).device
    cond = flow.encode_condition(_rounded(shrink(hr, flow.config.scale)).to(device))
    return {"bits_per_dim": float(score(flow, (hr * 255).round().byte(), cond, complexity=False).bits_per_dim)}


def _measured_mean(rows: list[dict[str, float]], key: str) -> float:
    values = [row[key] for row in rows if not math.isnan(row[key])]
    return sum(values) / len(values) if values else math.nan


def _rounded(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round() / 255


def _read(file: Path, multiple: int) -> Tensor:
    with Image.open(file) as opened:
        array = np.asarray(opened.convert("RGB"))
    height, width = (side // multiple * multiple for side in array.shape[:2])
    return torch.from_numpy(array[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255


def _labelled_digits(folder: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(folder, "t10k-images-idx3-ubyte"), read_idx(folder, "t10k-labels-idx1-ubyte")
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()


def _sized(flow: Flow, folder: Path, limit: int) -> Tensor:
    """Read images at a model's size: (N, C, H, W) uint8."""
    files = image_files(folder)
    chosen = files[:: max(1, -(-len(files) // limit))]
    return torch.stack([read_sized(flow, file) for file in chosen])


@torch.no_grad()
def _decided(
    flow: Flow,
    image: Image.Image,
    samples: int,
    seed: int,
    temperature: float | None,
    detail: float | None,
    working_size: int | None,
) -> dict[str, float]:
    """Measure a colorizer on the grid that it decides on."""
    multiple, short = flow.config.source_multiple, working_size or flow.config.working_size
    factor = short / min(image.size)
    width, height = (max(1, round(side * factor / multiple)) * multiple for side in image.size)
    y, chroma = split(_pixels(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)).float() / 255)
    truth = F.avg_pool2d(chroma, STRIDE)  # (1, 2, height / 4, width / 4)
    device = next(flow.parameters()).device
    cond = flow.encode_condition(y.to(device))
    shapes = flow.latent_shapes(*truth.shape[-2:])
    usual = flow.config.temperatures
    asked = usual[0] if temperature is None else temperature, usual[1] if detail is None else detail
    row = {"bits_per_dim": float(score(flow, truth + NEUTRAL, cond, seed=seed, complexity=False).bits_per_dim)}
    for name, taus in (("", 1.0), ("_default", schedule(*asked, len(shapes)))):
        latents = [z.to(device) for z in sample_latents(shapes, samples, taus, seed=seed)]
        drawn = flow.inverse(latents, cond.expand(samples), partial(bounded, flow)).cpu() - NEUTRAL
        row[f"global_share{name}"], row[f"global_share_truth{name}"] = coherence_parts(drawn, truth)
    return row


def _coloured(
    flow: Flow,
    image: Image.Image,
    samples: int,
    seed: int,
    temperature: float | None,
    detail: float | None,
    working_size: int | None,
) -> dict[str, float]:
    """Measure what a colorizer makes of a photograph's luma at its own size."""
    y, truth = split(_pixels(image).double() / 255)
    grey = (y * 255).round()  # (1, 1, H, W), what a grey file holds
    black_and_white = grey.to(torch.uint8)
    pictures = colorize(
        flow,
        black_and_white,
        temperature=temperature,
        detail=detail,
        seed=seed,
        samples=samples,
        working_size=working_size,
    ).double()
    calm = colorize(flow, black_and_white, temperature=0, detail=0, working_size=working_size).double()
    came, chroma = split(pictures)  # (K, 1, H, W), (K, 2, H, W)
    each = chroma_rmse(chroma, truth)
    kept = luma((pictures * 255).round()).round() == grey
    return {
        "rmse": float(each.mean()),
        "rmse_best": float(each.min()),
        "rmse_mean": float(chroma_rmse(chroma.mean(0, keepdim=True), truth)),
        "rmse_calm": float(chroma_rmse(split(calm)[1], truth)),
        "rmse_grey": float(chroma_rmse(torch.zeros_like(truth), truth)),
        "diversity": float(chroma.std(0, correction=0).mean()),
        "colourfulness": float(colourfulness(chroma).mean()),
        "colourfulness_truth": float(colourfulness(truth)),
        "luma_error": float((came - grey / 255).abs().max()),
        "luma_kept": float(kept.all()),
    }


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _upright(file: Path) -> Image.Image:
    try:
        with Image.open(file) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        raise ImageError(f"Cannot read {file.name} as an image: {error}. Mend it, or take it out.") from error


def _pixels(image: Image.Image) -> Tensor:
    """An RGB picture as (1, 3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
