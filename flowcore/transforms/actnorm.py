"""Actnorm: a learned shift and scale per channel, in two parametrisations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .transform import Transform


class ActNorm(Transform):
    """Shift and scale every channel.

    With ``s = log_factor * log_scale``: forward: ``z = (x + bias) * exp(s)``; logdet: ``H * W * sum(s)``;
    inverse: ``x = z * exp(-s) - bias``.

    Source: Kingma & Dhariwal, "Glow", section 3.1. Initialisation is an explicit call, so it can neither be repeated by
    accident nor be lost with a flag.
    """

    def __init__(self, channels: int, *, log_factor: float = 1.0) -> None:
        """Start as the identity.

        Args:
            channels: C.
            log_factor: Factor from the stored to the used log-scale; 3 in the program of Glow's authors.
        """
        super().__init__()
        self.log_factor = log_factor
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def logs(self) -> Tensor:
        """Give the log-scale that is used.

        Returns:
            s, ``(C,)``.
        """
        return self.log_factor * self.log_scale

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; see the class.

        Args:
            x: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, H, W)`` and logdet ``(B,)``.
        """
        logs = self.logs()
        z = (x + self.bias[:, None, None]) * logs.exp()[:, None, None]
        return z, (x.shape[-2] * x.shape[-1] * logs.sum()).expand(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Map latent to data; see the class.

        Args:
            z: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, H, W)``.
        """
        return z * torch.exp(-self.logs())[:, None, None] - self.bias[:, None, None]

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Any = None) -> Tensor:
        """Choose bias and scale so that this batch leaves with mean 0 and (population) variance 1 per channel.

        Args:
            x: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            The normalised batch.
        """
        mean, deviation = _moments(x)
        self.bias.copy_(-mean)
        self.log_scale.copy_(-torch.log(deviation) / self.log_factor)
        return self.forward(x)[0]


class SignedActNorm(Transform):
    """Shift and scale every channel; the scale is stored as it is, and may be negative.

    Forward: ``z = (x + bias) * scale``; logdet: ``H * W * sum(log|scale|)``; inverse: ``x = z / scale - bias``.

    Source: as ``ActNorm``; this parametrisation is that of a widely used re-implementation of Glow, whose checkpoints
    need it.
    """

    def __init__(self, channels: int) -> None:
        """Start as the identity.

        Args:
            channels: C.
        """
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; see the class.

        Args:
            x: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, H, W)`` and logdet ``(B,)``.
        """
        z = (x + self.bias[:, None, None]) * self.scale[:, None, None]
        return z, (x.shape[-2] * x.shape[-1] * self.scale.abs().log().sum()).expand(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Map latent to data; see the class.

        Args:
            z: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            ``(B, C, H, W)``.
        """
        return z / self.scale[:, None, None] - self.bias[:, None, None]

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Any = None) -> Tensor:
        """Choose bias and scale as ``ActNorm.initialize`` does.

        Args:
            x: ``(B, C, H, W)``.
            cond: Not used.

        Returns:
            The normalised batch.
        """
        mean, deviation = _moments(x)
        self.bias.copy_(-mean)
        self.scale.copy_(1 / deviation)
        return self.forward(x)[0]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population deviation per channel."""
    mean = x.mean(dim=(0, 2, 3))
    deviation = (x - mean[:, None, None]).square().mean(dim=(0, 2, 3)).sqrt()
    return mean, deviation + 1e-6  # 1e-6 keeps a constant channel finite
