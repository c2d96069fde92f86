"""Colouring a photograph of 12 megapixels: seconds and memory."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

import flowcore

from .fresh import fresh
from .measure import Program, Settings, picture
from .report import Table

MODEL = "color-photos"


def measure(settings: Settings) -> list[Table]:
    """Measure everything.

    Args:
        settings: How large, where.

    Returns:
        One table.
    """
    width, height = (400, 300) if settings.quick else (4000, 3000)
    photograph = None if settings.photograph is None else str(settings.photograph.resolve())
    rows = []
    for precision in ("float32", "bfloat16"):
        cost = fresh(
            prepare, settings, timed=True, width=width, height=height, photograph=photograph, precision=precision
        )
        rows.append(
            {
                "precision": precision,
                "s, first": cost.first,
                "s": cost.seconds,
                "peak MiB": cost.peak,
                "beyond model and photograph MiB": cost.beyond,
            }
        )
    result = 3 * 4 * width * height / 2**20
    notes = [
        f"A fresh process for each; seconds of its first run, and of later ones. The result alone: {result:.0f} MiB.",
        "The picture is made up." if photograph is None else "The picture is a photograph, enlarged.",
    ]
    return [Table(subject="colorize", title=f"{width}x{height} with {MODEL}", rows=rows, notes=notes)]


def prepare(*, device: str, width: int, height: int, photograph: str | None, precision: str) -> Program:
    """Get one coloring ready, for a fresh process.

    Args:
        device: Where.
        width: Of the picture.
        height: Likewise.
        photograph: File to be enlarged to that; None makes something up.
        precision: Of ``colorize``.

    Returns:
        What colors.
    """
    flow = flowcore.load(MODEL, device=device)
    image = picture(height, width) if photograph is None else _enlarged(photograph, width, height)
    image = image.to(device)
    return lambda: flowcore.colorize(flow, image, precision=cast(Any, precision), notify=lambda _: None)


def _enlarged(photograph: str, width: int, height: int) -> Tensor:
    with Image.open(photograph) as opened:
        pixels = np.array(ImageOps.fit(opened.convert("RGB"), (width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
