"""Density of images under a model: bits per dimension of a test set."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FlowError
from ..flow import Flow
from ..tasks.score import Dequantization, score
from ..training.data import read_idx
from .image_set import list_images, markdown, read_each, read_upright, resize_to_own


def evaluate_density(
    flow: Flow,
    data: Path,
    *,
    dequantization: Dequantization = "uniform",
    samples: int = 1,
    seed: int = 0,
    limit: int = 10_000,
    batch: int = 50,
    only: Collection[str] | None = None,
    log: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Measure the bits per dimension of images under a model that has an ``image_size``: mean and standard error.

    ``data`` is a folder of images at any depth; for models of digits, of the test files of MNIST. Images larger than
    the model's size are shrunk (antialiased) until their shorter side fits, and center-cropped; of more than ``limit``,
    so many, evenly spread over the sorted names. More than one of ``samples`` gives the importance-weighted bound.
    """
    labels = None
    if flow.channels == 1 and (flow.classes or any(data.glob("t10k-images-idx3-ubyte*"))):
        if only is not None:
            raise FlowError("Digits are not files with names; their held-out part is MNIST's own test set. Use all.")
        images, labels = _test_digits(data, limit, labeled=flow.classes > 0)
    else:
        each = read_each(list_images(data, only, limit), lambda file: resize_to_own(flow, read_upright(file)), log)
        images = torch.stack([image for _, _, image in each])
    values: list[Tensor] = []
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        cond = None if labels is None else flow.encode_condition(labels[part])
        settings: dict[str, Any] = {"dequantization": dequantization, "samples": samples, "seed": seed}
        values.append(score(flow, images[part], cond, **settings, complexity=False).bits_per_dim)
    bits = torch.cat(values).double()
    return {
        "images": len(bits),
        "bits_per_dim": float(bits.mean()),
        "standard_error": float(bits.std()) / len(bits) ** 0.5 if len(bits) > 1 else math.nan,
    }


def density_table(results: dict[str, dict[str, float]]) -> str:
    """Format densities: set name to what ``evaluate_density`` returned."""
    rows = [
        [name, f"{row['images']:.0f}", f"{row['bits_per_dim']:.4f}", f"{row['standard_error']:.4f}"]
        for name, row in results.items()
    ]
    return markdown(["set", "images", "bits per dimension", "standard error"], rows)


def _test_digits(folder: Path, limit: int, *, labeled: bool) -> tuple[Tensor, Tensor | None]:
    images = torch.from_numpy(read_idx(folder, "t10k-images-idx3-ubyte")[:limit])[:, None]
    labels = read_idx(folder, "t10k-labels-idx1-ubyte")[:limit] if labeled else None
    return images, None if labels is None else torch.from_numpy(labels).long()
