"""Split: half of the channels leave the flow as standard-normal latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .coupling import halves
from .transform import Transform


class Split(Transform):
    """Send the second part of the channels out, whitened by a prior that the first part predicts.

    With ``x = [kept, gone]`` and ``mean, log_std = conditioner(kept)`` (even and odd channels):
    forward: ``latent = (gone - mean) * exp(-log_std)``; logdet: ``-sum log_std``; inverse: ``gone = mean + exp(log_std)
        * latent``.
    The latent side is the pair ``(kept, latent)``.

    Source: Dinh et al., "Real NVP", section 3.6; the learned prior of Kingma & Dhariwal's program for Glow, written as
        an affine
    map, which makes its log-determinant honest and every latent standard normal.
    """

    def __init__(self, conditioner: nn.Module) -> None:
        """Hold the conditioner.

        Args:
            conditioner: Network from ``(B, C // 2, H, W)`` to ``(B, 2 * (C - C // 2), H, W)``.
        """
        super().__init__()
        self.conditioner = conditioner

    def forward(self, x: Tensor, cond: Any = None) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Map data to latent; see the class.

        Args:
            x: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            ``(kept, latent)``, ``(B, C // 2, H, W)`` and ``(B, C - C // 2, H, W)``, and logdet ``(B,)``.
        """
        kept, gone = halves(x)
        mean, log_std = self._prior(kept)
        return (kept, (gone - mean) * torch.exp(-log_std)), -log_std.flatten(1).sum(1)

    def inverse(self, z: tuple[Tensor, Tensor], cond: Any = None) -> Tensor:
        """Map latent to data; see the class.

        Args:
            z: ``(kept, latent)``.
            cond: Not used.

        Returns:
            ``(B, C, H, W)``.
        """
        kept, latent = z
        mean, log_std = self._prior(kept)
        return torch.cat([kept, mean + torch.exp(log_std) * latent], dim=1)

    def _prior(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.conditioner(kept).to(kept.dtype)
        return raw[:, 0::2], raw[:, 1::2]
