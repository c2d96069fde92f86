"""Bounds on the probability of images, draw by draw: what the score task is compared with."""

import math

import torch
from torch import Tensor

from flowcore import Flow
from flowcore.flows.dequantization import Dequantizer, Uniform, dequantized_batches, quantization
from flowcore.flows.likelihood import log_prob, select_items


@torch.no_grad()
def log_weights(
    flow: Flow,
    k: Tensor,
    cond=None,
    *,
    dequantizer: Dequantizer | None = None,
    samples: int = 1,
    seed: int = 0,
    batch: int = 16,
    noise: Tensor | None = None,
) -> Tensor:
    """w of every draw in nats, float64, ``(B, samples)``; see ``likelihood.log_weight``."""
    bins = quantization(flow)
    parameter = next(flow.parameters(), k)
    weights = torch.empty(k.shape[0], samples if noise is None else noise.shape[0], dtype=torch.float64)
    for chunk in dequantized_batches(
        k, bins, dequantizer or Uniform(), samples=samples, seed=seed, batch=batch, noise=noise
    ):
        log_p = log_prob(flow, chunk.x.to(parameter), select_items(cond, chunk.items)).cpu().double()
        weights[chunk.items, chunk.draws] = log_p + k[0].numel() * math.log(bins.width) - chunk.log_q
    return weights
