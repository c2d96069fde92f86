"""Coherence: noise of colorings that similar places share, so that what belongs together gets one color."""

import torch
from torch import Tensor

from ..device import float64
from ..flows.condition import Condition
from ..flows.model import FlowModel

MAX_POSITIONS = 4096  # positions with coherent noise: its Cholesky factor takes time by their cube
JITTER = 1e-4  # added to the diagonal of that noise's covariance, so that the factor exists


def noise_cholesky(features: Tensor, coherence: float, scales: tuple[float, float]) -> Tensor | None:
    """Factorize the covariance of noise that similar places share, so that what belongs together gets one color.

    The noise of the coarsest grid is a Gaussian process over its positions, each standard normal, with the covariance

        K_ij = rho exp(-|f_i - f_j|^2 / (2 s^2 C)) exp(-|p_i - p_j|^2 / (2 l^2)) + (1 - rho) delta_ij

    of the C features f ``(1, C, h, w)``, standardized over the photograph, and places p in cells; s and l are the
    scales, rho the coherence. Lower triangular, ``(h * w, h * w)``; None if the noise stays independent.

    Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), chapters 2 and 4; Ardizzone et al.
    2019, section 4.2, whose dense tail shares one draw over the picture. Telling by the features what belongs
    together is ours.
    """
    _, channels, height, width = features.shape
    if coherence == 0 or not 1 < height * width <= MAX_POSITIONS:
        return None
    f = float64(features[0].flatten(1)).cpu().T  # (positions, C)
    f = (f - f.mean(0)) / f.std(0, correction=0).clamp_min(1e-6)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    length, reach = scales
    unlike, apart = (torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square() for x in (f, places))
    covariance = coherence * torch.exp(-unlike / (2 * length**2 * channels) - apart / (2 * reach**2))
    covariance.diagonal().fill_(1 + JITTER)
    factor: Tensor = torch.linalg.cholesky(covariance)
    return factor / factor.norm(dim=1, keepdim=True)


def correlate_noise(flow: FlowModel, noise: Tensor, cond: Condition, coherence: float) -> Tensor:
    """Let similar places share the coarsest noise ``(B, C, h, w)``, with the scales that the colorizer states."""
    features, config = cond.features[-1], flow.config
    assert isinstance(features, Tensor)
    factor = noise_cholesky(features[:, : config.features], coherence, config.coherence_scales)
    if factor is None:
        return noise
    return (float64(noise).flatten(2) @ factor.to(noise.device).T).view(noise.shape).to(noise.dtype)
