"""Likelihoods: log densities, bounds on discrete probabilities, bits per dimension.

A flow is a density over real numbers; an image consists of integers k in {0, ..., 2^n - 1}. The probability of an image
is that of its bin,

    P(k) = integral over [0, 1)^D of p_bins(k + u) du,      log p_bins = log_prob + D log(width),

which is intractable, but noise u ~ q(u | k) (see ``dequantization.py``) bounds it from below. One draw gives

    w = log p_bins(k + u) - log q(u | k),      E[w] <= log P(k),

with equality where ``q(u | k) = p_bins(k + u) / P(k)``: then every draw gives log P. Several draws give the
importance-weighted bound ``log mean exp(w)``, which in expectation never falls as draws are added, and tends to log P.

Source: Burda et al., "Importance weighted autoencoders", section 3 (several draws); Hoogeboom et al., "Learning
discrete distributions by dequantization" (all of it together).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from . import prior
from .dequantization import Dequantizer, Uniform, dequantized_batches, quantization
from .device import float64
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
    """Convert a log density to bits per dimension: ``-(log_prob + D log(bin_width)) / (D log 2)``.

    Args:
        log_probs: Nats per image, ``(B,)``.
        dimensions: D, the number of subpixels: ``C * H * W``.
        bin_width: Quantization step in image units, 1/256 for 8 bits; 1 for the bare density.

    Returns:
        ``(B,)``.
    """
    return -(log_probs + dimensions * math.log(bin_width)) / (dimensions * math.log(2))


def log_weight(
    flow: Flow,
    k: Tensor,
    cond: Any = None,
    *,
    dequantizer: Dequantizer | None = None,
    noise: Tensor | torch.Generator | None = None,
) -> Tensor:
    """Evaluate one draw per image: ``w = log p_bins(k + u) - log q(u | k)``; differentiable, also in the dequantizer.

    The mean of ``-w / (D log 2)`` is the loss that trains a flow and its variational dequantizer together.

    Args:
        flow: The model.
        k: Integers as floats, ``(B, C, H, W)``, on the flow's device; see ``dequantization.to_integers``.
        cond: The model's condition.
        dequantizer: None for uniform noise.
        noise: Random numbers of the draw, or a CPU generator to take them from; None for torch's own.

    Returns:
        Nats per image, ``(B,)``.
    """
    bins = quantization(flow)
    u, log_q = (dequantizer or Uniform()).draw(k, noise)
    parameter = next(flow.parameters(), k)
    log_p = log_prob(flow, bins.place(k, u.to(parameter)), cond)
    return log_p + k[0].numel() * math.log(bins.width) - log_q.to(log_p)


@torch.no_grad()
def log_weights(
    flow: Flow,
    k: Tensor,
    cond: Any = None,
    *,
    dequantizer: Dequantizer | None = None,
    samples: int = 1,
    seed: int = 0,
    batch: int = 16,
    noise: Tensor | None = None,
) -> Tensor:
    """Evaluate several draws per image, in memory that does not grow with their number.

    Args:
        flow: The model.
        k: Integers as floats, ``(B, C, H, W)``; see ``dequantization.to_integers``.
        cond: The model's condition, for the B images.
        dequantizer: None for uniform noise.
        samples: Draws per image.
        seed: Image i is drawn with ``seed + i``; see ``dequantization.dequantized_batches``.
        batch: Draws that go through the flow at once.
        noise: ``(samples, B, C, H, W)``, used instead of random numbers; sets ``samples``.

    Returns:
        w of every draw in nats, float64, ``(B, samples)``, on the CPU.
    """
    bins = quantization(flow)
    parameter = next(flow.parameters(), k)
    weights = torch.empty(k.shape[0], samples if noise is None else noise.shape[0], dtype=torch.float64)
    for chunk in dequantized_batches(
        k, bins, dequantizer or Uniform(), samples=samples, seed=seed, batch=batch, noise=noise
    ):
        log_p = log_prob(flow, chunk.x.to(parameter), select_items(cond, chunk.items)).cpu().double()
        weights[chunk.items, chunk.draws] = log_p + k[0].numel() * math.log(bins.width) - chunk.log_q
    return weights


def importance_weighted(log_weights: Tensor) -> Tensor:
    """Bound log P by several draws: ``logsumexp(w) - log(number of draws)``, in float64.

    With one draw it is the plain bound w, whose mean over draws is the evidence lower bound (ELBO). Its expectation
    never falls with the number of draws and tends to log P.

    Args:
        log_weights: w in nats, ``(..., draws)``.

    Returns:
        Nats, ``(...)``.

    Source: Burda et al., "Importance weighted autoencoders", section 3 and theorem 1.
    """
    return torch.logsumexp(float64(log_weights), -1) - math.log(log_weights.shape[-1])


def effective_samples(log_weights: Tensor) -> Tensor:
    """Count the draws that dominate the importance-weighted bound: ``(sum exp w)^2 / sum exp(2 w)``.

    Near the number of draws, all of them count alike, and more would change little; near 1, a single draw decides, and
    the bound is not tight.

    Args:
        log_weights: w in nats, ``(..., draws)``.

    Returns:
        From 1 to the number of draws, ``(...)``.
    """
    w = float64(log_weights)
    return torch.exp(2 * torch.logsumexp(w, -1) - torch.logsumexp(2 * w, -1))


def select_items(cond: Any, items: Tensor) -> Any:
    """Select some items of a condition's batch.

    Args:
        cond: A tensor ``(B, ...)``, a ``Condition``, a nest of them, or None. A batch of one serves every item.
        items: Indices, ``(N,)``.

    Returns:
        The same structure with batch N.
    """
    if isinstance(cond, Tensor):
        return cond.expand(len(items), *cond.shape[1:]) if cond.shape[0] == 1 else cond[items.to(cond.device)]
    if isinstance(cond, (list, tuple)):
        parts = [select_items(part, items) for part in cond]
        return parts if isinstance(cond, list) else tuple(parts)
    if dataclasses.is_dataclass(cond) and not isinstance(cond, type):
        changes = {f.name: select_items(getattr(cond, f.name), items) for f in dataclasses.fields(cond)}
        return dataclasses.replace(cond, **changes)
    return cond
