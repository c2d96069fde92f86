"""Flow: a bijection between images and lists of standard-normal latents, and the density that it defines."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..device import FULL_PRECISION
from ..errors import ConditionError, FlowError, PrecisionError, ShapeError
from .condition import Condition
from .level import Details as Details
from .level import Level as Level
from .prior import Shape, Temperature, height_and_width, log_density, log_prob, sample_latents
from .transforms import (
    ActNorm,
    LevelCondition,
    Residual,
    SignedActNorm,
    StochasticLogdet,
    Transform,
    spread,
    use_batch_moments,
)


class Flow(Transform[list[Tensor], Condition]):
    """A bijection between images and lists of latents, finest first, with or without a condition.

    Forward: ``x = preprocess(x)``; per level ``x = steps(squeeze(x)); (x, latent) = split(x)``; the last latent is
    ``top_prior(x)``. Logdet: the sum over all of them. Levels without a split pass on all their channels. Where levels
    have ``details``, these turn what was factored out into latents, from the deepest level up. A ``FlowModel`` also has
    a configuration and the networks around the flow; tasks take either.

    Attributes:
        estimated: Whether its log-determinant has no closed form, so that ``forward`` takes probes for an estimate (see
            ``likelihood.with_probes``); without them it is exact, which is for small images.

    >>> from flowcore.flows.flow import Level
    >>> from flowcore.flows.networks import Conditioner
    >>> from flowcore.flows.transforms import ActNorm, Coupling, InvertibleConv
    >>> steps = [ActNorm(12), InvertibleConv(12), Coupling(Conditioner(6, 32, 12))]
    >>> flow = flowcore.Flow([Level(steps)], channels=3)
    >>> x = torch.rand(2, 3, 16, 24)
    >>> latents, logdet = flow(x)
    >>> torch.allclose(flow.inverse(latents), x, atol=1e-4), flow.log_prob(x).shape, flow.sample(1, size=32).shape
    (True, torch.Size([2]), torch.Size([1, 3, 32, 32]))

    Source: Dinh et al., "Real NVP", section 3.6; Kingma & Dhariwal, "Glow", section 3; details: Liang et al., "HCFlow".
    """

    _has_trained = False  # lets ``log_prob`` look at the actnorms once: every look waits for the device
    conditional: bool | None = None  # whether it needs a condition; None leaves that to its transforms

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        channels: int,
        preprocess: Transform | None = None,
        top_prior: Transform | None = None,
        image_size: int | Sequence[int] | None = None,
        fixed_size: bool = False,
        predicts_lr: bool = False,
    ) -> None:
        """Assemble a flow.

        Args:
            levels: Finest first.
            channels: Channels of the image.
            preprocess: From pixels in [0, 1] to the range of the first level; None for the identity.
            top_prior: Whitens the output of the last level; None for the identity. Gets the labels, as splits do, and
                the condition's ``lr_mean``.
            image_size: Height and width of the training images, or the side of squares; None if unknown.
            fixed_size: Whether the flow accepts images of that size only.
            predicts_lr: Whether the last output is the LR image, so that the last latents are the deviation from the
                condition's, which is zero when sampling.
        """
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.channels, self.predicts_lr = channels, predicts_lr
        self.add_module("prelude", preprocess)  # a name in files, as "top" is
        self.add_module("top", top_prior)
        self.image_size = None if image_size is None else height_and_width(image_size)
        self.fixed_size = fixed_size
        estimated = [part for part in self.levels.modules() if isinstance(part, StochasticLogdet)]
        for number, part in enumerate(estimated):
            part.number = number  # its probes in a condition have this index
        self.estimated = bool(estimated)

    def __setattr__(self, name: str, value: Any) -> None:
        # ``nn.Module`` would register a transform under the name of a property, which goes on reading the earlier one
        super().__setattr__({"preprocess": "prelude", "top_prior": "top"}.get(name, name), value)

    @property
    def preprocess(self) -> Transform | None:
        """The transform before the first level; "prelude" in the names of its tensors."""
        return cast("Transform | None", self._modules["prelude"])

    @property
    def top_prior(self) -> Transform | None:
        """The transform after the last level; "top" in the names of its tensors."""
        return cast("Transform | None", self._modules["top"])

    def forward(self, x: Tensor, cond: Condition | None = None) -> tuple[list[Tensor], Tensor]:
        """Encode images.

        Args:
            x: ``(B, C, H, W)``, sides multiples of ``size_multiple``.
            cond: From ``encode_condition``; None for unconditional flows.

        Returns:
            Latents, finest first, and logdet in nats, ``(B,)``.

        Raises:
            ShapeError: If the model does not accept images of that shape, or there are none.
            PrecisionError: If they are not in the precision of the model's parameters.
            ConditionError: If the condition is missing, not expected, or of another image size.
        """
        latents, logdets = self._encode_parts(x, cond, lambda part, data, part_cond: part(data, part_cond))
        return latents, sum((logdet for _, logdet in logdets), x.new_zeros(x.shape[0]))

    def _encode_parts(
        self,
        x: Tensor,
        cond: Condition | None,
        encode: Callable[[Transform[Any], Tensor, LevelCondition | None], tuple[Any, Any]],
    ) -> tuple[list[Tensor], list[tuple[int, Any]]]:
        """Encode part by part, from ``preprocess`` to ``top_prior``; ``encode`` returns a part's latent and its logdet.

        Returns the latents and, for every part, the number of the latent that its logdet belongs to, and the logdet in
        the form in which ``encode`` returned it.
        """
        self._check_image(x)
        condition = self._check_condition(cond, x.shape[0])
        if condition.guidance is not None:
            raise ConditionError("Guidance is for decoding only: encode with the condition before it was guided.")
        latents: list[Tensor] = []
        logdets: list[tuple[int, Any]] = []

        def apply(part: Transform[Any], data: Tensor, part_condition: LevelCondition | None) -> Any:
            latent, logdet = encode(part, data, part_condition)
            logdets.append((len(latents), logdet))  # attributed to the next latent
            return latent

        if self.preprocess is not None:
            x = apply(self.preprocess, x, None)
        x = condition.subtract_origin(x)
        split_levels: list[tuple[Level, Tensor]] = []  # each with the channels that continue
        for number, level in enumerate(self._levels()):
            x = level.squeeze(x)[0]  # (B, 4C, H/2, W/2); its logdet is 0
            level_condition = self._at_level(condition, number)
            x = apply(level.steps, x, level_condition)
            if level.split is not None:
                x, latent = apply(level.split, x, level_condition)  # each (B, 2C, H/2, W/2)
                latents.append(latent)
                split_levels.append((level, x))
        features: list[Tensor] = []  # features of all deeper levels, the next deeper one first
        for number, (level, continuing) in reversed(list(enumerate(split_levels))):
            if level.details is not None:
                features.insert(0, level.details.extractor(continuing, features))
                details_condition = LevelCondition(features=features[0])
                latents[number], logdet = encode(level.details.transform, latents[number], details_condition)
                logdets.append((number, logdet))
        if self.top_prior is not None:
            x = apply(self.top_prior, x, condition.at_level(-1, merge=False))
        return [*latents, x], logdets

    def inverse(
        self, z: Sequence[Tensor], cond: Condition | None = None, between: Callable[[int, Tensor], Tensor] | None = None
    ) -> Tensor:
        """Decode latents.

        Args:
            z: Latents, finest first, as ``forward`` returned them or ``sample_latents`` drew them.
            cond: As in ``forward``.
            between: Called after every level with its number (0 for the finest) and its output, ``(B, C, h, w)``;
                returns the input of the next level. With None this is the inverse of ``forward``.

        Returns:
            Images, ``(B, C, H, W)``, not clamped.

        Raises:
            ShapeError: If the model has no latents of these shapes.
            ConditionError: If the condition is missing, not expected, or of another image size.
        """
        self._check_latents(z)
        condition = self._check_condition(cond, z[0].shape[0])
        remaining = list(z)
        x = remaining.pop()
        if self.top_prior is not None:
            x = self.top_prior.inverse(x, condition.at_level(-1, merge=False))
        features: list[Tensor] = []  # features of all deeper levels, the next deeper one first
        for number, level in reversed(list(enumerate(self._levels()))):
            level_condition = self._at_level(condition, number)
            if level.split is not None:
                latent = remaining.pop()
                if level.details is not None:
                    features.insert(0, level.details.extractor(x, features))
                    latent = level.details.transform.inverse(latent, LevelCondition(features=features[0]))
                x = level.split.inverse((x, latent), level_condition)
            x = level.squeeze.inverse(level.steps.inverse(x, level_condition))
            if between is not None:
                x = between(number, x)
        x = condition.add_origin(x)
        return x if self.preprocess is None else self.preprocess.inverse(x)

    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Evaluate the log density in nats, ``(B,)``, at temperature 1: that of the latents plus the log-determinant.

        It is -inf where the latents of finite numbers overflow, as they may far from the data if a scaling has no bound
        (see ``transforms.coupling.shift_scale``).

        Arguments and errors are those of ``forward``; ``likelihood.bits_per_dim`` converts the result. In training
        mode with gradients, batch norms (Real NVP) normalize by the moments of this batch, and update the running ones.
        Otherwise, and always in ``forward``, they use the running moments. The first time that a flow trains, it warns
        if no actnorm is initialized.
        """
        trains = self.training and torch.is_grad_enabled()
        if trains and not self._has_trained:
            self._has_trained = True
            if uninitialized := self._uninitialized_norms():
                warnings.warn(
                    f"This flow trains, and its {uninitialized} actnorms are not initialized: call flow.initialize(x), "
                    "with a first batch, once before the training.",
                    stacklevel=2,
                )
        with use_batch_moments(self) if trains else nullcontext():
            latents, logdet = self(x, cond)
        density = log_prob(latents) + logdet
        overflowed = density.isnan() & x.flatten(1).isfinite().all(1)
        return torch.where(overflowed, -math.inf, density)

    def _uninitialized_norms(self) -> int:
        """Count the actnorms if all of them are the identity, as they are built; trained ones never all are."""
        norms = [part for part in self.modules() if isinstance(part, (ActNorm, SignedActNorm))]
        return 0 if any(bool(norm.bias.any()) for norm in norms) else len(norms)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        cond: Condition | None = None,
        *,
        size: int | tuple[int, int] | None = None,
        temperature: Temperature = 1.0,
        seed: int = 0,
    ) -> Tensor:
        """Draw latents and decode them, all at once; the tasks do it in batches and tiles.

        As everywhere in flowcore, the same seed gives the same images: another call needs another ``seed`` for others.

        Args:
            n: Number of images.
            cond: As in ``inverse``; a batch of 1 is broadcast.
            size: Height and width, or the side of a square; None for ``image_size``.
            temperature: Of the latents; see ``prior.sample_latents``.
            seed: Image i is drawn with ``seed + i``.

        Returns:
            ``(n, C, H, W)``, not clamped.

        Raises:
            FlowError: If the size is missing, an argument is out of its range, or images overflow, where the task
                ``flowcore.sample`` lowers their temperature.
            ShapeError: If the model cannot make that size.
            ConditionError: As in ``inverse``.
        """
        shapes = self.latent_shapes(*self.sides(size))
        latents = sample_latents(shapes, n, temperature, seed, predicts_lr=self.predicts_lr)
        like = next(self.parameters(), latents[0])
        if cond is not None and cond.batch == 1:
            cond = cond.expand(n)
        images = self.inverse([z.to(like) for z in latents], cond)
        if overflowed := int((~images.flatten(1).isfinite().all(1)).sum()):
            raise FlowError(
                f"{overflowed} of {n} images overflowed: their values are no finite numbers. Lower the temperature, or "
                "use flowcore.sample, which lowers it where needed."
            )
        return images

    def encode(self, x: Tensor, cond: Condition | None = None) -> list[Tensor]:
        """Encode images, without the log-determinant; see ``forward``."""
        return self._encode_parts(x, cond, lambda part, data, part_cond: (part.encode(data, part_cond), None))[0]

    def forward_with_logdet_map(self, x: Tensor, cond: Condition | None = None) -> tuple[list[Tensor], list[Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Encode images, with the log density resolved by level and pixel; arguments and errors are ``forward``'s.

        A level's share is the logdet of its grid plus the prior of its latents; what has no position (an actnorm, a 1x1
        convolution) is spread evenly. Receptive fields overlap: this shows where the image is likely, not why.

        Returns:
            Latents, finest first, and for each the log density in nats by pixel, ``(B, H, W)``; the sum over all levels
            and pixels is ``log_prob``.
        """
        latents, logdets = self._encode_parts(
            x, cond, lambda part, data, part_cond: part.forward_with_logdet_map(data, part_cond)
        )
        height, width = x.shape[-2:]
        maps = [x.new_zeros(x.shape[0], height, width) for _ in latents]
        for number, logdet in logdets:
            maps[number] = maps[number] + spread(logdet, height, width)
        densities = [spread(log_density(latent).sum(1), height, width) for latent in latents]
        return latents, [logdet + density for logdet, density in zip(maps, densities, strict=True)]

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Condition | None = None) -> list[Tensor]:
        """Set every data-dependent parameter from a first batch, and return its latents; training calls this once."""
        return self._encode_parts(x, cond, lambda part, data, part_cond: (part.initialize(data, part_cond), None))[0]

    def normalize(self, tolerance: float = 1e-4) -> None:
        """Update the norms that keep residual blocks invertible, to a relative tolerance; call after weight changes."""
        for part in self.levels.modules():
            if isinstance(part, Residual):
                part.normalize(tolerance)

    @property
    def size_multiple(self) -> int:
        """The sides of an image must be multiples of this."""
        return math.prod([max(1, level.downscale) for level in self._levels()])

    def latent_shapes(self, height: int, width: int) -> list[Shape]:
        """Compute the shapes of the latents of an image (HR for upscalers), ``(C_l, H_l, W_l)``, finest first.

        Raises:
            ShapeError: If the model does not accept images of that size; sides are multiples of ``size_multiple``.
        """
        self._check_sides(height, width)
        shapes: list[Shape] = []
        channels = self.channels
        for level in self._levels():
            channels, height, width = level.shape(channels, height, width)
            if level.split is not None:
                continuing = level.split.kept_channels(channels)
                shapes.append((channels - continuing, height, width))
                channels = continuing
        return [*shapes, (channels, height, width)]

    def sides(self, size: int | Sequence[int] | None) -> tuple[int, int]:
        """Return height and width for a pair, the side of a square, or None: ``image_size``; FlowError if unknown."""
        if size is not None:
            return height_and_width(size)
        if self.image_size is None:
            raise FlowError(
                "This model does not say which size it was made for. Give one: size=(height, width), multiples of "
                f"{self.size_multiple}."
            )
        return self.image_size

    def require_probes(self) -> None:
        """Raise ConditionError unless the flow's log-determinant is estimated."""
        if not self.estimated:
            raise ConditionError("The log-determinant of this model is exact; it takes no probes.")

    def _levels(self) -> list[Level]:
        return list(self.levels)  # pyright: ignore[reportReturnType]

    def _check_condition(self, cond: Condition | None, batch: int) -> Condition:
        """Return the condition if it fits, or its probes alone; an empty one for None; else raise ConditionError."""
        if cond is not None and cond.probes is not None:
            self.require_probes()
            return Condition(features=(None,) * len(self.levels), probes=cond.probes)
        if self.conditional is not None and self.conditional != (cond is not None):
            if self.conditional:
                raise ConditionError("This model takes a condition; make one with flow.encode_condition(source).")
            raise ConditionError("This model takes no condition; pass None.")
        if cond is None:
            return Condition(features=(None,) * len(self.levels))
        if len(cond.features) != len(self.levels):
            raise ConditionError(
                f"This model has {len(self.levels)} levels; the condition has {len(cond.features)}. Use this model's "
                "encode_condition."
            )
        cond.check_batch(batch)
        return cond

    def _at_level(self, cond: Condition, number: int) -> LevelCondition:
        return cond.at_level(number)  # overridden by ``CompiledFlow``

    def _check_values(self, x: Tensor) -> None:
        """Reject an empty batch, and any device and dtype but the model's."""
        self._check_device(x)
        if x.shape[0] < 1:  # `len` would fix the batch of torch.export
            raise ShapeError(f"The batch is empty, {tuple(x.shape)}. Pass at least one image.")
        dtype = next((p.dtype for p in self.parameters() if p.dtype in FULL_PRECISION), x.dtype)
        if x.dtype not in FULL_PRECISION or x.dtype != dtype:
            raise PrecisionError(f"This model takes floats in [0, 1], of {dtype}; got {x.dtype}. Convert the image.")

    def _check_device(self, *values: Tensor) -> None:
        for x in values:
            if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                kind = f"{type(x).__module__}.{type(x).__name__}"
                raise ShapeError(f"This model takes tensors; got {kind}. Convert it: torch.as_tensor(array).")
            device = next((p.device for p in self.parameters()), x.device)
            if x.device != device:
                raise FlowError(
                    f"This model is on {device}; got a tensor on {x.device}. Move one to the other's device."
                )

    def _check_image(self, x: Tensor) -> None:
        self._check_device(x)
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ShapeError(f"This model takes images of shape (B, {self.channels}, H, W); got {tuple(x.shape)}.")
        self._check_values(x)
        self._check_sides(x.shape[-2], x.shape[-1])

    def _check_sides(self, height: int, width: int) -> None:
        if self.fixed_size and (height, width) != self.image_size:
            raise ShapeError(
                f"This model takes images of {'x'.join(map(str, self.image_size or ()))} only; got {height}x{width}. "
                "Resize the image."
            )
        m = self.size_multiple
        if height < 1 or width < 1 or height % m or width % m:
            nearest = "x".join(f"{max(m, side // m * m)}" for side in (height, width))
            raise ShapeError(
                f"This model takes images with sides divisible by {m}; got {height}x{width}. "
                f"Crop (to {nearest}) or pad it."
            )

    def _check_latents(self, latents: Sequence[Tensor]) -> None:
        if not isinstance(latents, (list, tuple)) or not latents:
            got = f"a tensor {tuple(latents.shape)}" if isinstance(latents, Tensor) else f"{latents!r:.60}"
            raise ShapeError(f"Expected a list of latents, finest first, each (B, C, H, W); got {got}.")
        self._check_device(*latents)
        deepest = latents[-1]
        if deepest.ndim != 4:
            raise ShapeError(f"Expected latents (B, C, H, W), finest first; got {tuple(deepest.shape)} as the last.")
        m = self.size_multiple
        sides = deepest.shape[-2] * m, deepest.shape[-1] * m
        expected = self.latent_shapes(*(self.image_size if self.fixed_size and self.image_size else sides))
        actual = [tuple(z.shape[1:]) for z in latents]
        if actual != expected:
            raise ShapeError(f"Expected latents of shapes {expected} per item, finest first; got {actual}.")
        batches = [z.shape[0] for z in latents]
        if any(batch != batches[0] for batch in batches):
            raise ShapeError(f"Expected latents of one batch; got {batches} items, finest level first.")
