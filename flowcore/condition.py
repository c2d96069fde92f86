"""Condition: what a flow is told about the image, made once and passed in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What every level of a flow is told, and the image that it measures from.

    Attributes:
        features: Per level, finest first, what its steps see, ``(B, C_l, H_l, W_l)``; None where they see nothing.
        origin: ``(B, C, H, W)`` in image units, subtracted from the image before the first level; None for nothing.
        labels: What the priors see, one-hot ``(B, K)``; None for nothing.
    """

    features: tuple[Tensor | None, ...]
    origin: Tensor | None = None
    labels: Tensor | None = None

    @property
    def batch(self) -> int:
        """Number of images."""
        return next(t for t in (*self.features, self.labels) if t is not None).shape[0]

    def expand(self, samples: int) -> Condition:
        """Give one image's condition to several samples without copying it.

        Args:
            samples: Number of samples; the condition must be of one image.

        Returns:
            A condition of batch ``samples`` that shares memory with this one.
        """

        def several(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.expand(samples, *t.shape[1:])

        return Condition(
            features=tuple(map(several, self.features)), origin=several(self.origin), labels=several(self.labels)
        )
