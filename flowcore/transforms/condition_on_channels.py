"""Given: transform some channels on the condition of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from .coupling import beside
from .transform import Transform


class ConditionOnChannels(Transform):
    """Leave the first channels as they are, and transform the others, which see the first as part of their condition.

    With ``x = [kept, rest]``: forward: ``z = [kept, f(rest; [kept, cond])]``; logdet: that of f; inverse: f's. With
    standard-normal latents, f is then a density ``p(rest | kept, cond)``.

    Source: Yu et al., "Wavelet Flow" (2020), section 3, where ``kept`` is the coarse image and ``rest`` its details.
    """

    def __init__(self, kept: int, transform: Transform) -> None:
        """Hold the transform.

        Args:
            kept: How many channels stay.
            transform: f, of the ``C - kept`` other channels, which keeps their grid.
        """
        super().__init__()
        self.kept = kept
        self.transform = transform

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; see the class.

        Args:
            x: ``(B, C, H, W)``.
            cond: Features on the same grid, ``(B, Cc, H, W)``, or None.

        Returns:
            ``(B, C, H, W)`` and logdet ``(B,)``.
        """
        kept, rest = self._parts(x)
        z, logdet = self.transform(rest, beside(kept, cond))
        return torch.cat([kept, z], dim=1), logdet

    def inverse(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map latent to data; see the class.

        Args:
            z: ``(B, C, H, W)``.
            cond: As in ``forward``.

        Returns:
            ``(B, C, H, W)``.
        """
        kept, rest = self._parts(z)
        return torch.cat([kept, self.transform.inverse(rest, beside(kept, cond))], dim=1)

    def by_position(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent with the logdet by position: that of the inner transform."""
        kept, rest = self._parts(x)
        z, log_density = self.transform.by_position(rest, beside(kept, cond))
        return torch.cat([kept, z], dim=1), log_density

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Initialise the inner transform from this batch.

        Args:
            x: ``(B, C, H, W)``.
            cond: As in ``forward``.

        Returns:
            The transformed batch.
        """
        kept, rest = self._parts(x)
        return torch.cat([kept, self.transform.initialize(rest, beside(kept, cond))], dim=1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : self.kept], x[:, self.kept :]
