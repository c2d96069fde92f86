"""Affine coupling: one half of the channels decides how the other half is shifted and scaled."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transform import ConditionError, Transform


class Coupling(Transform):
    """Shift and scale the second part of the channels by what a conditioner makes of the first part and the condition.

    With ``x = [x1, x2]`` and ``shift, scale = affine(conditioner([x1, cond]))``:
    forward: ``z = [x1, (x2 + shift) * scale]``; logdet: ``sum log scale``; inverse: ``x2 = z2 / scale - shift``.
    ``x1`` has ``C // 2`` channels.

    Source: Dinh et al., "Real NVP", section 3.2, in Glow's parametrisation; with a condition, SRFlow section 3.3
    ("conditional affine coupling").
    """

    def __init__(self, conditioner: nn.Module, *, eps: float = 0.0) -> None:
        """Hold the conditioner.

        Args:
            conditioner: Network from ``(B, C // 2 + condition channels, H, W)`` to ``(B, 2 * (C - C // 2), H, W)``.
            eps: Added to every scale; see ``affine``.
        """
        super().__init__()
        self.conditioner = conditioner
        self.eps = eps

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; see the class.

        Args:
            x: ``(B, C, H, W)``.
            cond: Features on the same grid, ``(B, Cc, H, W)``, or None.

        Returns:
            ``(B, C, H, W)`` and logdet ``(B,)``.
        """
        x1, x2 = halves(x)
        shift, scale, log_scale = affine(self.conditioner(beside(x1, cond)), self.eps, like=x)
        return torch.cat([x1, (x2 + shift) * scale], dim=1), log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map latent to data; see the class.

        Args:
            z: ``(B, C, H, W)``.
            cond: As in ``forward``.

        Returns:
            ``(B, C, H, W)``.
        """
        z1, z2 = halves(z)
        shift, scale, _ = affine(self.conditioner(beside(z1, cond)), self.eps, like=z)
        return torch.cat([z1, z2 / scale - shift], dim=1)

    @torch.no_grad()
    def initialise(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Initialise the conditioner (if it has anything to initialise) from this batch.

        Args:
            x: ``(B, C, H, W)``.
            cond: As in ``forward``.

        Returns:
            The coupled batch.
        """
        initialise_network(self.conditioner, beside(halves(x)[0], cond))
        return self.forward(x, cond)[0]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Part the channels.

    Args:
        x: ``(B, C, H, W)``.

    Returns:
        The first ``C // 2`` channels and the rest.
    """
    return x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]


def beside(x: Tensor, cond: Tensor | None) -> Tensor:
    """Put the condition's channels behind those of ``x``.

    Args:
        x: ``(B, C, H, W)``.
        cond: ``(B, Cc, H, W)`` or None.

    Returns:
        ``(B, C + Cc, H, W)``.

    Raises:
        ConditionError: If the grids or batch sizes differ.
    """
    if cond is None:
        return x
    if cond.shape[0] != x.shape[0] or cond.shape[2:] != x.shape[2:]:
        raise ConditionError(
            f"A condition of {cond.shape[0]} items on a {cond.shape[2]}x{cond.shape[3]} grid came with "
            f"{x.shape[0]} items on a {x.shape[2]}x{x.shape[3]} grid. Encode the condition from an image of the "
            "matching size and batch."
        )
    return torch.cat([x, cond], dim=1)


def affine(raw: Tensor, eps: float, *, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Read shift and scale off a conditioner's output.

    Even channels are the shift, odd channels the raw scale r, with ``scale = sigmoid(r + 2) + eps``, so that a
    conditioner that outputs zeros is nearly the identity and no scale exceeds ``1 + eps``.

    Args:
        raw: ``(B, 2C, H, W)``, possibly in low precision.
        eps: The smallest scale (SRFlow: 1e-4; Glow: 0).
        like: A tensor of the precision in which to go on.

    Returns:
        Shift, scale and log scale, each ``(B, C, H, W)``.
    """
    raw = raw.to(like.dtype)
    shift, logit = raw[:, 0::2], raw[:, 1::2] + 2
    log_scale = F.logsigmoid(logit)
    if eps == 0:
        return shift, log_scale.exp(), log_scale
    floor = torch.full((), math.log(eps), dtype=raw.dtype, device=raw.device)
    return shift, torch.sigmoid(logit) + eps, torch.logaddexp(log_scale, floor)


def initialise_network(network: nn.Module, x: Tensor) -> None:
    """Give a network the chance to set its data-dependent parameters.

    Args:
        network: With or without a method ``initialise(x)``.
        x: The network's input of the first batch.
    """
    initialise: Any = getattr(network, "initialise", None)
    if initialise is not None:
        initialise(x)
