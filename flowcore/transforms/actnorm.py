"""Actnorm: a learned shift and scale per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .transform import Transform


class ActNorm(Transform):
    """Shift and scale every channel.

    Forward: ``z = (x + bias) * exp(log_scale)``; logdet: ``H * W * sum(log_scale)``;
    inverse: ``x = z * exp(-log_scale) - bias``.

    Source: Kingma & Dhariwal, "Glow", section 3.1. Initialisation is an explicit call, so it can neither be repeated by
    accident nor be lost with a flag.
    """

    def __init__(self, channels: int) -> None:
        """Start as the identity.

        Args:
            channels: C.
        """
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; see the class.

        Args:
            x: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, H, W)`` and logdet ``(B,)``.
        """
        z = (x + self.bias[:, None, None]) * self.log_scale.exp()[:, None, None]
        logdet = x.shape[-2] * x.shape[-1] * self.log_scale.sum()
        return z, logdet.expand(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Map latent to data; see the class.

        Args:
            z: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, H, W)``.
        """
        return z * torch.exp(-self.log_scale)[:, None, None] - self.bias[:, None, None]

    @torch.no_grad()
    def initialise(self, x: Tensor, cond: Any = None) -> Tensor:
        """Choose bias and scale so that this batch leaves with mean 0 and (population) variance 1 per channel.

        Args:
            x: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            The normalised batch.
        """
        mean = x.mean(dim=(0, 2, 3))
        deviation = (x - mean[:, None, None]).square().mean(dim=(0, 2, 3)).sqrt()
        self.bias.copy_(-mean)
        self.log_scale.copy_(-torch.log(deviation + 1e-6))  # 1e-6 keeps a constant channel finite
        return self.forward(x)[0]
