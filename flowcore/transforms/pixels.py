"""From pixels in [0, 1] to the range in which a flow works: a fixed affine map, or the logit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .transform import Transform


class PixelMap(Transform):
    """Shift and scale all pixels by fixed numbers.

    Forward: ``z = (x - shift) / width``; logdet: ``-D log(width)``, D = C * H * W; inverse: ``x = z * width + shift``.
    """

    def __init__(self, shift: float, width: float = 1.0) -> None:
        """Fix the numbers.

        Args:
            shift: What becomes 0.
            width: What becomes 1, above the shift; positive.
        """
        super().__init__()
        self.shift = shift
        self.width = width

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; see the class.

        Args:
            x: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, H, W)`` and logdet ``(B,)``.
        """
        return (x - self.shift) / self.width, x.new_full((x.shape[0],), -x[0].numel() * math.log(self.width))

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Map latent to data; see the class.

        Args:
            z: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, H, W)``.
        """
        return z * self.width + self.shift


class Logit(Transform):
    """Spread the unit interval over the whole line, so that no density is lost beyond black and white.

    With ``p = alpha + (1 - 2 alpha) x``: forward: ``z = log p - log(1 - p)``;
    logdet: ``sum log(1 - 2 alpha) - log p - log(1 - p)``; inverse: ``x = (sigmoid(z) - alpha) / (1 - 2 alpha)``, which
    lies up to alpha / (1 - 2 alpha) outside [0, 1].

    Source: Dinh et al., "Real NVP", section 4.1 (alpha = 0.05).
    """

    def __init__(self, alpha: float) -> None:
        """Fix alpha.

        Args:
            alpha: In (0, 0.5).
        """
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; see the class.

        Args:
            x: ``(B, C, H, W)``, each value in (-alpha / (1 - 2 alpha), 1 + alpha / (1 - 2 alpha)).
            cond: Not used.

        Returns:
            ``(B, C, H, W)`` and logdet ``(B,)``.
        """
        z, log_density = self.by_position(x, cond)
        return z, log_density.sum((1, 2))

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Map latent to data; see the class.

        Args:
            z: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, H, W)``.
        """
        return (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)

    def by_position(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent with the logdet by position: that of every pixel, summed over channels."""
        p = self.alpha + (1 - 2 * self.alpha) * x
        log_p, log_q = torch.log(p), torch.log1p(-p)
        return log_p - log_q, (math.log(1 - 2 * self.alpha) - log_p - log_q).sum(1)
