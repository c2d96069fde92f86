"""Condition: what a flow is told about the image, made once and passed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Source = tuple[Tensor, int]
"""Features, and the factor by which they are to be enlarged by nearest neighbour."""

ConditionTerms = tuple[Tensor | None, Tensor | None]
"""What a step draws from the condition alone: its first convolution's part; or all of its network's output."""


@dataclass(frozen=True, kw_only=True)
class MultiScaleFeatures:
    """What a level is told, in parts that need not be put together: those that are enlarged are kept small.

    Attributes:
        sources: Features ``(B, C_i, H / factor, W / factor)`` and factors; their channels follow each other.
        told: What every step draws from them alone, by the step's number; None unless prepared.
    """

    sources: tuple[Source, ...]
    told: tuple[ConditionTerms, ...] | None = None

    def whole(self) -> Tensor:
        """Enlarge, and put the parts together.

        Returns:
            ``(B, C, H, W)``.
        """
        parts = [t if f == 1 else F.interpolate(t, scale_factor=f, mode="nearest") for t, f in self.sources]
        return torch.cat(parts, dim=1)

    def tensors(self) -> list[Tensor]:
        """List what it holds.

        Returns:
            All tensors.
        """
        return [t for t, _ in self.sources] + [t for step in self.told or () for t in step if t is not None]


class Preparer(Protocol):
    """What can prepare a condition: ``plan.Plan``."""

    def prepared(
        self, features: Sequence[Tensor | MultiScaleFeatures | None]
    ) -> tuple[Tensor | MultiScaleFeatures | None, ...]:
        """Compute what every step draws from the condition alone.

        Args:
            features: Of all levels.

        Returns:
            The same, with that.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What every level of a flow is told, and the image that it measures from.

    Attributes:
        features: Per level, finest first, what its steps see, ``(B, C_l, H_l, W_l)``, or that in parts; None where they
            see nothing.
        origin: ``(B, C, H, W)`` in image units, subtracted from the image before the first level; None for nothing.
        labels: What the priors see, one-hot ``(B, K)``; None for nothing.
    """

    features: tuple[Tensor | MultiScaleFeatures | None, ...]
    origin: Tensor | None = None
    labels: Tensor | None = None

    @property
    def batch(self) -> int:
        """Number of images."""
        return self._tensors()[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Memory that it holds, in bytes; what several tensors share counts once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self._tensors()}
        return sum(storages.values())

    def prepare(self, plan: Preparer) -> Condition:
        """Compute, for every step of a plan, what depends on the condition alone.

        Samples of one image share it: an injector's shift and scale, and the condition's part of a coupling's first
        convolution. Worth its memory (``Condition.nbytes``) if more samples are to follow later; decoding without it
        computes the same, step by step.

        Args:
            plan: The plan that will decode.

        Returns:
            The same condition with all of that, for this plan only.
        """
        return replace(self, features=plan.prepared(self.features))

    def expand(self, samples: int) -> Condition:
        """Give one image's condition to several samples without copying it.

        Args:
            samples: Number of samples; the condition must be of one image.

        Returns:
            A condition of batch ``samples`` that shares memory with this one.
        """

        def several(t: Tensor | None) -> Any:
            return None if t is None else t.expand(samples, *t.shape[1:])

        def feature(f: Tensor | MultiScaleFeatures | None) -> Tensor | MultiScaleFeatures | None:
            if isinstance(f, MultiScaleFeatures):
                told = None if f.told is None else tuple((several(first), several(raw)) for first, raw in f.told)
                return MultiScaleFeatures(sources=tuple((several(t), factor) for t, factor in f.sources), told=told)
            return several(f)

        return Condition(
            features=tuple(map(feature, self.features)),
            origin=several(self.origin),
            labels=several(self.labels),
        )

    def _tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        for f in self.features:
            found += f.tensors() if isinstance(f, MultiScaleFeatures) else [] if f is None else [f]
        return found + [t for t in (self.origin, self.labels) if t is not None]
