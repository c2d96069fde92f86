"""Condition: what a flow is conditioned on, such as features of a source image, computed once per image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import ConditionError
from .transforms import Guidance, LevelCondition, MultiScaleFeatures, Probes, map_tensors, tensors


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Conditioning features for a flow, computed once per source image.

    >>> flow = flowcore.load("srflow-x4")
    >>> cond = flow.encode_condition(torch.rand(1, 3, 16, 16))
    >>> flow.sample(3, cond.expand(3), size=64).shape
    torch.Size([3, 3, 64, 64])

    Attributes:
        features: Per level, finest first, what its steps see: ``(B, C_l, H_l, W_l)``, or features on several grids;
            None where they see nothing.
        origin: ``(B, C, H, W)`` in image units, subtracted from the image before the first level; None if unused.
        labels: Weights of the classes, ``(B or 1, K)``, read by priors or by a TarFlow's steps; None if unused.
        lr_mean: Mean of the flow's last output, ``(B, C, h, w)``: the LR image, or an LLFlow's map of colors; the last
            latents are the deviation from it. None for other flows.
        probes: Random vectors to estimate a log-determinant without a closed form, see ``likelihood.with_probes``.
            None for an exact log-determinant, and for other flows.
        guidance: Classifier-free guidance of decoding, see ``guided``; None if unused.
    """

    features: tuple[Tensor | MultiScaleFeatures | None, ...]
    origin: Tensor | None = None
    labels: Tensor | None = None
    lr_mean: Tensor | None = None
    probes: Probes | None = None
    guidance: Guidance | None = None

    @property
    def batch(self) -> int:
        """Number of images."""
        return tensors(self)[0].shape[0]

    def at_level(self, number: int, *, merge: bool = True) -> LevelCondition:
        """Return what the transforms of a level see, 0 for the finest; ``merge`` enlarges features on several grids."""
        features, multi_scale = self.features[number], None
        if isinstance(features, MultiScaleFeatures):
            multi_scale, features = features, features.merged() if merge else None
        return LevelCondition(
            features=features,
            multi_scale=multi_scale,
            labels=self.labels,
            lr_mean=self.lr_mean,
            probes=self.probes,
            guidance=self.guidance,
        )

    def subtract_origin(self, x: Tensor) -> Tensor:
        """Subtract the origin, if there is one, from images ``(B, C, H, W)``; ConditionError if it has other sides."""
        return x if self.origin is None else x - self._origin_of(x)

    def add_origin(self, x: Tensor) -> Tensor:
        """Undo ``subtract_origin``."""
        return x if self.origin is None else x + self._origin_of(x)

    def check_batch(self, batch: int) -> None:
        """Raise ConditionError unless the condition is of ``batch`` images, or of one for all."""
        if self.batch not in (1, batch):
            raise ConditionError(
                f"The condition is of {self.batch} images; got {batch}. Encode the condition of the same images, or of "
                "one for all."
            )

    @property
    def prepared(self) -> bool:
        """Whether it holds what ``prepare`` computes."""
        return any(isinstance(f, MultiScaleFeatures) and f.precomputed is not None for f in self.features)

    @property
    def nbytes(self) -> int:
        """Memory in bytes; storage that tensors share counts once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(self)}
        return sum(storages.values())

    def prepare(self, compiled: Any) -> Condition:
        """Precompute what depends on the condition alone; the result is valid only for this ``CompiledFlow``.

        These are an injector's shift and scale, and the condition's term of a coupling's first convolution, which all
        samples of an image share. It is worth its memory (``nbytes``) if several samples follow, and changes no result.
        """
        return replace(self, features=compiled.precompute(self.features))

    def expand(self, samples: int) -> Condition:
        """Expand the condition of one image to ``samples`` items, without copying."""
        return self.map_tensors(lambda tensor: tensor.expand(samples, *tensor.shape[1:]))

    def guided(self, guidance: float | Guidance) -> Condition:
        """Return the condition with classifier-free guidance; a number is the weight of a ``Guidance``, 0 for none."""
        guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        return replace(self, guidance=guidance if guidance.weight else None)

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Apply a function to every tensor of the condition."""
        return map_tensors(change, self)

    def _origin_of(self, x: Tensor) -> Tensor:
        assert self.origin is not None
        if self.origin.shape[1:] != x.shape[1:] or self.origin.shape[0] not in (1, x.shape[0]):
            raise ConditionError(
                f"The condition belongs to images of shape {tuple(self.origin.shape)}; got {tuple(x.shape)}. "
                "Encode the condition from the matching source."
            )
        return self.origin
