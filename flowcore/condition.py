"""Condition: what a flow is told about the image, made once and passed in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Features for every level of a flow, and the image that it measures from.

    Attributes:
        features: Per level, finest first, ``(B, C_l, H_l, W_l)``.
        origin: ``(B, C, H, W)`` in image units, subtracted from the image before the first level; None for nothing.
    """

    features: tuple[Tensor, ...]
    origin: Tensor | None = None

    @property
    def batch(self) -> int:
        """Number of images."""
        return self.features[0].shape[0]

    def expand(self, samples: int) -> Condition:
        """Give one image's condition to several samples without copying it.

        Args:
            samples: Number of samples; the condition must be of one image.

        Returns:
            A condition of batch ``samples`` that shares memory with this one.
        """
        return Condition(
            features=tuple(f.expand(samples, -1, -1, -1) for f in self.features),
            origin=None if self.origin is None else self.origin.expand(samples, -1, -1, -1),
        )
