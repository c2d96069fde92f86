"""Rounding to 8 bits per channel, and what 8 bits hold of a file's 16."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(pixels: Tensor) -> Tensor:
    """Round values in [0, 1] to uint8 in [0, 255], after clamping."""
    return _steps(pixels).to(torch.uint8)


def truncate_16_bits(pixels: Tensor) -> Tensor:
    """Truncate values in [0, 1] that a file stores in 8 or 16 bits to uint8: 255 v of what was written as 65535 v."""
    return pixels.clamp(0, 1).double().mul(65535).round().div(257, rounding_mode="floor").to(torch.uint8)


def as_stored(pixels: Tensor) -> Tensor:
    """Round values to multiples of 1/255 in [0, 1], after clamping; the type stays."""
    return _steps(pixels) / 255


def _steps(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 1).mul(255).round()
