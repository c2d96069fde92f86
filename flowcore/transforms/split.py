"""Split: some channels (half, by default) leave as standard-normal latents; Whiten: all that is left does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .transform import Transform


class Split(Transform):
    """Send the second part of the channels out, whitened by a prior that the first part predicts.

    With ``x = [kept, gone]`` and ``mean, log_std = conditioner(kept)`` (even and odd channels):
    forward: ``latent = (gone - mean) * exp(-log_std)``; logdet: ``-sum log_std``; inverse: ``gone = mean + exp(log_std)
    * latent``. Without a conditioner, mean and log_std are zero.
    The latent side is the pair ``(kept, latent)``.

    Source: Dinh et al., "Real NVP", section 3.6; the learned prior of Kingma & Dhariwal's program for Glow, written as
    an affine map, which makes its log-determinant honest and every latent standard normal.
    """

    def __init__(self, conditioner: nn.Module | None, *, labeled: bool = False, kept: int | None = None) -> None:
        """Hold the conditioner.

        Args:
            conditioner: Network from ``(B, K, H, W)``, K the channels that stay, to ``(B or 1, 2 * (C - K), H, W)``;
                None for a standard-normal prior.
            labeled: Whether it is given the labels, too.
            kept: How many channels stay; None for half of them (rounded down).
        """
        super().__init__()
        self.conditioner = conditioner
        self.labeled = labeled
        self.kept = kept

    def stay(self, channels: int) -> int:
        """Say how many channels stay.

        Args:
            channels: C.

        Returns:
            Their number; the other ``C - stay(C)`` leave.
        """
        return channels // 2 if self.kept is None else self.kept

    def forward(self, x: Tensor, cond: Any = None) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Map data to latent; see the class.

        Args:
            x: ``(B, C, H, W)``.
            cond: Labels, one-hot ``(B, K)``; not used unless ``labeled``.

        Returns:
            ``(kept, latent)``, ``(B, K, H, W)`` and ``(B, C - K, H, W)``, and logdet ``(B,)``.
        """
        z, log_density = self._part(x, cond)
        return z, log_density.sum((1, 2))

    def inverse(self, z: tuple[Tensor, Tensor], cond: Any = None) -> Tensor:
        """Map latent to data; see the class.

        Args:
            z: ``(kept, latent)``.
            cond: As in ``forward``.

        Returns:
            ``(B, C, H, W)``.
        """
        kept, latent = z
        if self.conditioner is None:
            return torch.cat([kept, latent], dim=1)
        mean, log_std = _prior(self.conditioner, kept, cond if self.labeled else None)
        return torch.cat([kept, mean + torch.exp(log_std) * latent], dim=1)

    def by_position(self, x: Tensor, cond: Any = None) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Map data to latent with the logdet by position: minus the log-deviations, summed over channels."""
        return self._part(x, cond)

    def _part(self, x: Tensor, cond: Any) -> tuple[tuple[Tensor, Tensor], Tensor]:
        stay = self.stay(x.shape[1])
        kept, gone = x[:, :stay], x[:, stay:]
        if self.conditioner is None:
            return (kept, gone), x.new_zeros(x.shape[0], *x.shape[2:])
        mean, log_std = _prior(self.conditioner, kept, cond if self.labeled else None)
        log_density = -log_std.sum(1).expand(x.shape[0], -1, -1)  # a prior may be one for the whole batch
        return (kept, (gone - mean) * torch.exp(-log_std)), log_density


class Whiten(Transform):
    """Turn what a flow ends with into standard-normal latents, by a prior that sees at most the labels.

    With ``mean, log_std = prior(grid, labels)``: forward: ``z = (x - mean) * exp(-log_std)``; logdet: ``-sum log_std``;
    inverse: ``x = mean + exp(log_std) * z``.

    Source: the learned and class-conditional top prior of Kingma & Dhariwal's program for Glow, as an affine map.
    """

    def __init__(self, prior: nn.Module) -> None:
        """Hold the prior.

        Args:
            prior: Network that is given a tensor ``(B, C, H, W)``, of which it may read shape, dtype and device only,
                and the labels, and returns ``(B or 1, 2 * C, H, W)``: means on even, log-deviations on odd channels.
        """
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; see the class.

        Args:
            x: ``(B, C, H, W)``.
            cond: Labels, one-hot ``(B, K)``, or None.

        Returns:
            ``(B, C, H, W)`` and logdet ``(B,)``.
        """
        mean, log_std = _prior(self.prior, x, cond)
        return (x - mean) * torch.exp(-log_std), -log_std.flatten(1).sum(1).expand(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Map latent to data; see the class.

        Args:
            z: ``(B, C, H, W)``.
            cond: As in ``forward``.

        Returns:
            ``(B, C, H, W)``.
        """
        mean, log_std = _prior(self.prior, z, cond)
        return mean + torch.exp(log_std) * z

    def by_position(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent with the logdet by position: minus the log-deviations, summed over channels."""
        mean, log_std = _prior(self.prior, x, cond)
        return (x - mean) * torch.exp(-log_std), -log_std.sum(1).expand(x.shape[0], -1, -1)


def _prior(network: nn.Module, kept: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
    raw = (network(kept) if labels is None else network(kept, labels)).to(kept.dtype)
    return raw[:, 0::2], raw[:, 1::2]
