"""Coherence: noise that similar places share, so that what belongs together gets one color.

With independent noise at every position of the coarsest grid, colors cancel at a low temperature and disagree at a high
one. Here the noise is a Gaussian process over the positions. Its covariance is

    K_ij = rho exp(-|f_i - f_j|^2 / (2 s^2 C)) exp(-|p_i - p_j|^2 / (2 l^2)) + (1 - rho) delta_ij

with f the C features that the encoder has at a position, standardized over the photograph, and p its place in cells.
rho is the coherence, s and l are lengths in features and in cells. Every position keeps a standard normal distribution.

Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), chapters 2 and 4 (the squared
exponential kernel, and draws by a Cholesky factor); Ardizzone et al. 2019, section 4.2, whose dense tail shares one
draw over the picture. That the encoder's features tell which places belong together is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..condition import Condition
from ..device import float64
from ..flow import Flow

MAX_POSITIONS = 4096  # a factor takes the cube of their number
JITTER = 1e-4  # added to the diagonal, so that the Cholesky factor exists


def coherent_factor(features: Tensor, coherence: float, scales: tuple[float, float]) -> Tensor | None:
    """Factorize the covariance of the noise of a photograph: noise times the factor's transpose has it.

    Lower triangular, with rows of length 1, ``(h * w, h * w)``, float64 on the CPU, from the features of the coarsest
    grid, ``(1, C, h, w)``, rho, and (s, l). None if the noise stays independent: at coherence 0, of a single position,
    and of more than 4096.
    """
    _, channels, height, width = features.shape
    if coherence == 0 or not 1 < height * width <= MAX_POSITIONS:
        return None
    f = float64(features[0].flatten(1)).cpu().T  # (positions, C)
    f = (f - f.mean(0)) / f.std(0, correction=0).clamp_min(1e-6)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).double()
    length, reach = scales
    exponent = _squared_distances(f) / (2 * length**2 * channels) + _squared_distances(places) / (2 * reach**2)
    covariance = coherence * torch.exp(-exponent)
    covariance.diagonal().fill_(1 + JITTER)
    factor: Tensor = torch.linalg.cholesky(covariance)
    return factor / factor.norm(dim=1, keepdim=True)


def make_coherent(noise: Tensor, factor: Tensor | None) -> Tensor:
    """Multiply independent noise ``(B, C, h, w)`` by a factor, which keeps the distribution at every position."""
    if factor is None:
        return noise
    return (float64(noise).flatten(2) @ factor.to(noise.device).T).view(noise.shape).to(noise.dtype)


def share_noise(flow: Flow, noise: Tensor, cond: Condition, coherence: float) -> Tensor:
    """Let similar places share the coarsest noise ``(B, C, h, w)``, with the scales that the colorizer states."""
    features, config = cond.features[-1], flow.config
    assert isinstance(features, Tensor)
    return make_coherent(noise, coherent_factor(features[:, : config.features], coherence, config.coherence_scales))


def _squared_distances(x: Tensor) -> Tensor:
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
