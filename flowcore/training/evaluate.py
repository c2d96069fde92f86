"""Evaluation: a model against test images, in the numbers of the literature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..flow import Flow
from ..metrics import diversity, lr_psnr, psnr, ssim
from ..resize import enlarge, shrink
from ..tasks import image_files
from ..tasks.score import score
from ..tasks.upscale import upscale
from ..transforms import FlowError, ImageError
from .data import read_idx


def evaluate_upscaler(
    flow: Flow,
    folder: Path,
    *,
    temperatures: Sequence[float] = (0.0, 0.8),
    samples: int = 8,
    seed: int = 0,
    log: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Measure bicubic and a model on a folder of HR images.

    LR images are antialiased bicubic, rounded to 8 bits; results are rounded to 8 bits; PSNR and SSIM are over RGB and
    whole images. Diversity is the mean per-pixel standard deviation of the samples.

    Args:
        flow: An SRFlow.
        folder: HR images; sides are cropped to multiples of the scale.
        temperatures: To measure at; one sample each for PSNR, SSIM and LR-PSNR.
        samples: For the diversity of temperatures above 0.
        seed: Of the first sample.
        log: Called with a line per image.

    Returns:
        Method ("bicubic", "tau 0.8", ...) to the means over images of "psnr", "ssim", "lr_psnr" (dB) and "diversity"
        (1/255).

    Raises:
        ImageError: If the folder holds no image.
    """
    files = image_files(folder)
    scale = flow.config.scale
    rows: dict[str, list[dict[str, float]]] = {}
    for file in files:
        hr = _read(file, scale)
        lr = _rounded(shrink(hr, scale))
        rows.setdefault("bicubic", []).append(_row(_rounded(enlarge(lr, scale)), hr, lr))
        for tau in temperatures:
            pictures = _rounded(upscale(flow, lr, temperature=tau, seed=seed, samples=samples if tau else 1))
            row = _row(pictures[:1], hr, lr)
            row["diversity"] = diversity(pictures) if tau else 0.0
            rows.setdefault(f"tau {tau:g}", []).append(row)
        if log is not None:
            log(f"{file.name}: " + ", ".join(f"{name} {values[-1]['psnr']:.2f} dB" for name, values in rows.items()))
    return {
        method: {key: sum(value[key] for value in values) / len(values) for key in values[0]}
        for method, values in rows.items()
    }


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
    if flow.image_size is None:
        raise FlowError("This model does not say which size it was made for. Load it with image_size=..., e.g. 32.")
    height, width = flow.image_size
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("L" if flow.channels == 1 else "RGB")
    except OSError as error:
        raise ImageError(f"Cannot read {path.name} as an image: {error}.") from error
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


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Lay results out as a Markdown table.

    Args:
        results: Set name to what ``evaluate_upscaler`` returned.

    Returns:
        The table.
    """
    lines = ["| set | method | PSNR | SSIM | LR-PSNR | diversity |", "|---|---|---|---|---|---|"]
    for name, methods in results.items():
        for method, row in methods.items():
            lines.append(
                f"| {name} | {method} | {row['psnr']:.2f} | {row['ssim']:.4f} | {row['lr_psnr']:.2f} | "
                f"{row['diversity']:.2f} |"
            )
    return "\n".join(lines)


def _row(picture: Tensor, hr: Tensor, lr: Tensor) -> dict[str, float]:
    values: dict[str, Any] = {"psnr": psnr(picture, hr), "ssim": ssim(picture, hr), "lr_psnr": lr_psnr(picture, lr)}
    return {**{key: float(value) for key, value in values.items()}, "diversity": 0.0}


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
