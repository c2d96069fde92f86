"""What is left of an image in a file of 8 bits per channel."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(pixels: Tensor) -> Tensor:
    """Round values in [0, 1] to uint8 in [0, 255], after clamping."""
    return _steps(pixels).to(torch.uint8)


def as_stored(pixels: Tensor) -> Tensor:
    """Round values to multiples of 1/255 in [0, 1], after clamping; the type stays."""
    return _steps(pixels) / 255


def _steps(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 1).mul(255).round()
