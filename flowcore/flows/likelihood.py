"""Likelihoods: log densities, bounds on discrete probabilities, bits per dimension; probes for estimated logdets.

A flow is a density over real numbers; an image consists of integers k in {0, ..., 2^n - 1}. The probability of an image
is that of its bin, with sides of ``width``; noise u ~ q(u | k) (see ``dequantization.py``) bounds it from below:

    P(k) = integral over [0, 1)^D of p_bins(k + u) du,      log p_bins = log_prob + D log(width),
    w = log p_bins(k + u) - log q(u | k),      E[w] <= log P(k),

with equality where ``q(u | k) = p_bins(k + u) / P(k)``: then every draw gives log P.

Source: Burda et al., "Importance weighted autoencoders", section 3 (several draws); Hoogeboom et al., "Learning
discrete distributions by dequantization" (all of it together).
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..device import float64
from .condition import Condition
from .dequantization import Dequantizer, Uniform, quantization
from .flow import Flow, Level
from .prior import Shape, seeds_of
from .transforms import StochasticLogdet, draw_probes, flat_parts, map_tensors

T = TypeVar("T")


def log_prob(flow: Flow, x: Tensor, cond: Condition | None = None) -> Tensor:
    """Evaluate a flow's log density; see ``Flow.log_prob``."""
    return flow.log_prob(x, cond)


def bits_per_dim(log_probs: Tensor, dimensions: int, bin_width: float = 1.0) -> Tensor:
    """Convert a log density to bits per dimension: ``-(log_prob + D log(bin_width)) / (D log 2)``, ``D = C * H * W``.

    ``bin_width`` is the quantization step in image units, 1/256 for 8 bits, or 1 for the bare density.
    """
    return -(log_probs + dimensions * math.log(bin_width)) / (dimensions * math.log(2))


def log_weight(
    flow: Flow,
    k: Tensor,
    cond: Condition | None = None,
    *,
    dequantizer: Dequantizer | None = None,
    noise: Tensor | torch.Generator | None = None,
) -> Tensor:
    """Evaluate one draw per image: ``w = log p_bins(k + u) - log q(u | k)``, in nats; gradients reach the dequantizer.

    w is a single-sample evidence lower bound (ELBO); the mean of ``-w / (D log 2)`` is the loss that trains a flow and
    its variational dequantizer together. ``k`` are integers as floats; without a dequantizer the noise is uniform;
    ``noise`` is as in ``Dequantizer.draw``.
    """
    bins = quantization(flow)
    u, log_q = (dequantizer or Uniform()).draw(k, noise)
    parameter = next(flow.parameters(), k)
    log_p = log_prob(flow, bins.place(k, u.to(parameter)), cond)
    return log_p + k[0].numel() * math.log(bins.width) - log_q.to(log_p)


def importance_weighted(log_weights: Tensor) -> Tensor:
    """Bound log P by several draws w, ``(..., draws)``: ``logsumexp(w) - log(number of draws)``, in float64.

    With one draw it is the plain bound w, whose mean over draws is the evidence lower bound (ELBO). Its expectation
    never falls with the number of draws and tends to log P: Burda et al., theorem 1.
    """
    return torch.logsumexp(float64(log_weights), -1) - math.log(log_weights.shape[-1])


def effective_samples(log_weights: Tensor) -> Tensor:
    """Effective sample size of the importance-weighted bound: ``(sum exp w)^2 / sum exp(2 w)``.

    Near 1, a single draw decides, and the bound is not tight.
    """
    w = float64(log_weights)
    return torch.exp(2 * torch.logsumexp(w, -1) - torch.logsumexp(2 * w, -1))


def select_items(cond: T, items: Tensor) -> T:
    """Select items of a batch by index, in a ``Condition`` or another nest of tensors; a batch of 1 is broadcast."""
    return map_tensors(lambda t: t.expand(len(items), *t.shape[1:]) if len(t) == 1 else t[items.to(t.device)], cond)


def with_probes(flow: Flow, shape: Sequence[int], seed: int | Sequence[int] = 0, *, terms: int = 20) -> Condition:
    """Draw probes for images of a shape, as a condition with which a flow estimates its log-determinant.

    Probes are the random vectors of Hutchinson's trace estimator; those of item i are drawn with ``seed + i``, or with
    ``seed[i]``. Power series are cut off after ``terms``.
    """
    batch, _, height, width = shape
    probes = draw_probes(probe_shapes(flow, height, width), seeds_of(seed, batch), series_coefficients(flow, terms))
    return Condition(features=(), probes=probes)


def series_coefficients(flow: Flow, terms: int = 20) -> tuple[tuple[float, ...], ...]:
    """List the coefficients of truncated power series, for every estimated step; see ``Probes``."""
    parts = [part for part in flow.levels.modules() if isinstance(part, StochasticLogdet)]
    return tuple((1.0,) * terms if part.has_series else () for part in parts)


def probe_shapes(flow: Flow, height: int, width: int) -> list[Shape]:
    """Compute the shapes of the probes of an image: those of the inputs of all estimated steps."""
    flow.require_probes()
    flow.latent_shapes(height, width)  # raises ShapeError for a size that does not fit
    shapes: list[Shape] = []
    at: Shape = (flow.channels, height, width)
    for level in flow.levels:
        assert isinstance(level, Level)
        for part in [level.squeeze, *flat_parts(level.steps)]:
            if isinstance(part, StochasticLogdet):
                shapes.append(at)
            at = part.output_shape(at)
        if level.split is not None:
            at = (level.split.kept_channels(at[0]), *at[1:])
    return shapes
