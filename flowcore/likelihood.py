"""Likelihoods: log densities, dequantization noise, bits per dimension."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import prior
from .flow import Flow


def log_prob(flow: Flow, x: Tensor, cond: Any = None) -> Tensor:
    """Evaluate a flow's log density: prior plus log-determinant, at temperature 1.

    Args:
        flow: The model.
        x: ``(B, C, H, W)``, in the model's image units.
        cond: Its condition.

    Returns:
        Nats per image, ``(B,)``.
    """
    latents, logdet = flow(x, cond)
    return prior.log_prob(latents) + logdet


def bits_per_dim(log_probs: Tensor, dimensions: int, bin_width: float = 1.0) -> Tensor:
    """Turn a log density into bits per dimension.

    ``-(log_prob + D log(bin_width)) / (D log 2)``.

    Args:
        log_probs: Nats per image, ``(B,)``.
        dimensions: D, the number of subpixels: ``C * H * W``.
        bin_width: Quantisation step in image units, 1/256 for 8 bits; 1 for the bare density.

    Returns:
        ``(B,)``.
    """
    return -(log_probs + dimensions * math.log(bin_width)) / (dimensions * math.log(2))


def dequantize(x: Tensor, bins: int, generator: torch.Generator | None = None) -> Tensor:
    """Spread every pixel over one quantisation bin, centred: ``x + (u - 0.5) / bins``, u uniform in [0, 1).

    Args:
        x: Image, ``(B, C, H, W)`` in [0, 1].
        bins: Number of bins in [0, 1]; SRFlow uses 32, wider than the 8-bit step on purpose: it keeps densities
            bounded.
        generator: A CPU generator to draw from; None for torch's own.

    Returns:
        The noisy image, same shape, up to half a bin outside [0, 1].

    Source: Theis et al., "A note on the evaluation of generative models", section 3.1; SRFlow, section 4.1.
    """
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return x + (noise - 0.5) / bins
