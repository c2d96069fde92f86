"""Flow: levels of steps between an image and a list of standard-normal latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import Field
from typing import Any, ClassVar, Generic, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from .capabilities import SUITABLE_MODELS, UNGUIDED, Capabilities, Task
from .condition import Condition
from .errors import ConditionError, FlowError, PrecisionError, ShapeError
from .level import Level
from .prior import Shape, Temperature, height_and_width, log_density, log_prob, sample_latents
from .transforms import Estimated, LevelCondition, Residual, Transform, batch_moments, spread

WIDE = (torch.float32, torch.float64)  # in which a flow is invertible


class Config(Protocol):
    """A model's frozen dataclass of JSON types; see ``models``."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


C = TypeVar("C", bound=Config, default=Any)


class Flow(Transform[list[Tensor], Condition], Generic[C]):
    """A bijection between images and lists of latents, finest first, with or without a condition.

    Forward: ``x = prelude(x)``; per level ``x = steps(squeeze(x)); (x, latent) = split(x)``; the last latent is
    ``top(x)``. Logdet: the sum over all of them. Levels without a split pass on all their channels. Where levels have
    ``details``, these turn what was factored out into latents, from the deepest level up. A plain Glow has levels, a
    prelude and a top; all else is None.

    Attributes:
        estimated: Whether its log-determinant has no closed form, so that ``forward`` takes probes for an estimate (see
            ``likelihood.with_probes``); without them it is exact, which is for small images.

    >>> flow = flowcore.load("glow-photos")
    >>> x = torch.rand(2, 3, 64, 64)
    >>> latents, logdet = flow(x)
    >>> torch.allclose(flow.inverse(latents), x, atol=1e-4), flow.log_prob(x).shape
    (True, torch.Size([2]))

    Source: Dinh et al., "Real NVP", section 3.6; Kingma & Dhariwal, "Glow", section 3; details: Liang et al., "HCFlow".
    """

    style_directions: Tensor

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        channels: int,
        config: C,
        architecture: str,
        capabilities: Capabilities,
        prelude: Transform | None = None,
        top: Transform | None = None,
        image_size: int | Sequence[int] | None = None,
        fixed_size: bool = False,
        encoder: nn.Module | None = None,
        condition_encoder: Callable[[Flow[C], Tensor], Condition] | None = None,
        condition_scale: int = 1,
        classes: int = 0,
        anchored: bool = False,
        dequantizer: nn.Module | None = None,
        styles: Sequence[str] = (),
        guide: nn.Module | None = None,
    ) -> None:
        """Assemble a flow; the builders in ``models`` call this.

        Args:
            levels: Finest first.
            channels: Channels of the image.
            config: The frozen configuration that the flow was built from.
            architecture: Its registered name; see ``models.register``.
            capabilities: What it can do.
            prelude: From pixels in [0, 1] to the range of the first level; None for the identity.
            top: Whitens the output of the last level; None for the identity. Gets the labels, as splits do, or the
                condition's anchor if there is one.
            image_size: Height and width of the training images, or the side of squares; None if unknown.
            fixed_size: Whether the flow accepts images of that size only.
            encoder: Network that ``condition_encoder`` uses, if any.
            condition_encoder: From this flow and the source to the condition; None for an unconditional flow.
            condition_scale: Integer factor from the source's sides to the image's.
            classes: Number of labels that the flow is conditioned on; 0 for none.
            anchored: Whether the condition has an anchor, so that the last latents are the deviation from it, which is
                zero when sampling.
            dequantizer: Model of the dequantization noise that is trained with the flow; no part of the bijection.
            styles: Names of directions in the latent space of ``image_size``, which are stored with the weights.
            guide: Network from the source to a plain HR image, whose latents may guide those that are drawn; no part of
                the bijection.
        """
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.config, self.architecture, self.capabilities = config, architecture, capabilities
        self.channels, self.condition_scale, self.classes = channels, condition_scale, classes
        self.prelude, self.top, self.encoder = prelude, top, encoder
        self.image_size = None if image_size is None else height_and_width(image_size)
        self.fixed_size = fixed_size
        self.dequantizer, self.guide, self.anchored = dequantizer, guide, anchored
        self.provenance: dict[str, Any] = {}
        self.condition_encoder = condition_encoder
        self._style_names = tuple(styles)
        estimated = [part for part in self.levels.modules() if isinstance(part, Estimated)]
        for number, part in enumerate(estimated):
            part.number = number
        self.estimated = bool(estimated)
        if styles:
            assert self.image_size is not None
            dimensions = sum(math.prod(shape) for shape in self.latent_shapes(*self.image_size))
            self.register_buffer("style_directions", torch.zeros(len(styles), dimensions))

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
            ConditionError: If the condition is missing, superfluous or of another image size.
        """
        latents, shares = self._walk(x, cond, lambda part, data, seen: part(data, seen))
        logdet = x.new_zeros(x.shape[0])
        for _, share in shares:
            logdet = logdet + share
        return latents, logdet

    def _walk(
        self,
        x: Tensor,
        cond: Condition | None,
        apply: Callable[[Transform[Any], Tensor, LevelCondition | None], tuple[Any, Any]],
    ) -> tuple[list[Tensor], list[tuple[int, Any]]]:
        """Encode by applying every part in turn; return latents, and shares of the logdet with their levels' numbers.

        ``apply`` goes from a part, its data and what it sees of the condition to its latent and its share, in any form.
        """
        self._check_image(x)
        given = self._check_condition(cond, x.shape[0])
        if given.guidance is not None:
            raise ConditionError("Guidance is for decoding alone: encode with the condition before it was guided.")
        latents: list[Tensor] = []
        shares: list[tuple[int, Any]] = []

        def applied(part: Transform[Any], data: Tensor, seen: LevelCondition | None) -> Any:
            latent, share = apply(part, data, seen)
            shares.append((len(latents), share))
            return latent

        if self.prelude is not None:
            x = applied(self.prelude, x, None)
        x = given.relative(x)
        splitting: list[tuple[Level, Tensor]] = []
        for number, level in enumerate(self._levels()):
            x = level.squeeze(x)[0]  # (B, 4C, H/2, W/2); its logdet is 0
            seen = self._at_level(given, number)
            x = applied(level.steps, x, seen)
            if level.split is not None:
                x, latent = applied(level.split, x, seen)  # each (B, 2C, H/2, W/2)
                latents.append(latent)
                splitting.append((level, x))
        deeper: list[Any] = []
        for number, (level, kept) in reversed(list(enumerate(splitting))):
            if level.details is not None:
                deeper.insert(0, level.details.extractor(kept, deeper))
                seen = LevelCondition(features=deeper[0])
                latents[number], share = apply(level.details.transform, latents[number], seen)
                shares.append((number, share))
        if self.top is not None:
            x = applied(self.top, x, given.at_level(-1, merge=False))
        return [*latents, x], shares

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
            ConditionError: If the condition is missing, superfluous or of another image size.
        """
        self._check_latents(z)
        given = self._check_condition(cond, z[0].shape[0])
        remaining = list(z)
        x = remaining.pop()
        if self.top is not None:
            x = self.top.inverse(x, given.at_level(-1, merge=False))
        deeper: list[Any] = []
        for number, level in reversed(list(enumerate(self._levels()))):
            seen = self._at_level(given, number)
            if level.split is not None:
                latent = remaining.pop()
                if level.details is not None:
                    deeper.insert(0, level.details.extractor(x, deeper))
                    latent = level.details.transform.inverse(latent, LevelCondition(features=deeper[0]))
                x = level.split.inverse((x, latent), seen)
            x = level.steps.inverse(x, seen)
            x = level.squeeze.inverse(x)
            if between is not None:
                x = between(number, x)
        x = given.absolute(x)
        return x if self.prelude is None else self.prelude.inverse(x)

    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Evaluate the log density in nats, ``(B,)``, at temperature 1: that of the latents plus the log-determinant.

        Arguments and errors are those of ``forward``; ``likelihood.bits_per_dim`` converts the result. In training
        mode with gradients, batch norms (Real NVP) normalize by the moments of this batch, which the running moments
        follow; otherwise, and always in ``forward``, by the running moments.
        """
        with batch_moments(self) if self.training and torch.is_grad_enabled() else nullcontext():
            latents, logdet = self(x, cond)
        return log_prob(latents) + logdet

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

        Args:
            n: Number of images.
            cond: As in ``inverse``; that of one image serves all.
            size: Height and width, or the side of a square; None for ``image_size``.
            temperature: Of the latents; see ``prior.sample_latents``.
            seed: Image i is drawn with ``seed + i``.

        Returns:
            ``(n, C, H, W)``, not clamped.

        Raises:
            FlowError: If the size is missing, or an argument is out of its range.
            ShapeError: If the model cannot make that size.
            ConditionError: As in ``inverse``.
        """
        shapes = self.latent_shapes(*self.sides(size))
        latents = sample_latents(shapes, n, temperature, seed, anchored=self.anchored)
        like = next(self.parameters(), latents[0])
        if cond is not None and cond.batch == 1:
            cond = cond.expand(n)
        return self.inverse([z.to(like) for z in latents], cond)

    def encode(self, x: Tensor, cond: Condition | None = None) -> list[Tensor]:
        """Encode images, without the log-determinant; see ``forward``."""
        return self._walk(x, cond, lambda part, data, seen: (part.encode(data, seen), None))[0]

    def by_position(self, x: Tensor, cond: Condition | None = None) -> tuple[list[Tensor], list[Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Encode images, with the log density resolved by level and pixel; arguments and errors are ``forward``'s.

        A level's share is the logdet of its grid plus the prior of its latents; what has no position (an actnorm, a 1x1
        convolution) is spread evenly. Receptive fields overlap: this shows where the image is likely, not why.

        Returns:
            Latents, finest first, and for each the log density in nats by pixel, ``(B, H, W)``; the sum over all levels
            and pixels is ``log_prob``.
        """
        latents, shares = self._walk(x, cond, lambda part, data, seen: part.by_position(data, seen))
        height, width = x.shape[-2:]
        logdets = [x.new_zeros(x.shape[0], height, width) for _ in latents]
        for number, share in shares:
            logdets[number] = logdets[number] + spread(share, height, width)
        densities = [spread(log_density(latent).sum(1), height, width) for latent in latents]
        return latents, [logdet + density for logdet, density in zip(logdets, densities, strict=True)]

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Condition | None = None) -> list[Tensor]:
        """Set every data-dependent parameter from a first batch, and return its latents; training calls this once."""
        return self._walk(x, cond, lambda part, data, seen: (part.initialize(data, seen), None))[0]

    def normalize(self, tolerance: float = 1e-4) -> None:
        """Measure, to a relative tolerance, the norms that keep residual blocks invertible, after weights changed."""
        for part in self.levels.modules():
            if isinstance(part, Residual):
                part.normalize(tolerance)

    @property
    def size_multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        return math.prod(max(1, level.downscale) for level in self._levels())

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
                kept = level.split.kept_channels(channels)
                shapes.append((channels - kept, height, width))
                channels = kept
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

    def encode_condition(self, source: Tensor) -> Condition:
        """Encode the condition from its source; once per image, for any number of samples.

        Args:
            source: As the model's builder says (SRFlow: LR image, ``(B, 3, h, w)`` in [0, 1]; class-conditional models:
                labels, whole numbers ``(B,)`` or weights ``(B, classes)``).

        Returns:
            The condition for ``forward`` and ``inverse``.

        Raises:
            ConditionError: If the flow is unconditional.
            ShapeError: If the model does not accept a source of that shape, or there is none.
            PrecisionError: If an image is not in the precision of the model's parameters.
        """
        if self.condition_encoder is None:
            raise ConditionError(f"This {self.architecture} model is unconditional; call it without a condition.")
        if self.capabilities.source != "labels":
            self._check_values(source)
        return self.condition_encoder(self, source)

    def require(self, task: Task) -> None:
        """Raise FlowError unless the model is made for a task; the message names one that is."""
        if task not in self.capabilities.tasks:
            raise FlowError(f"{task} needs {SUITABLE_MODELS[task]}; got a {self.architecture} model.")

    def require_probes(self) -> None:
        """Raise ConditionError unless the flow's log-determinant is estimated."""
        if not self.estimated:
            raise ConditionError(f"The log-determinant of this {self.architecture} model is exact; it takes no probes.")

    @property
    def styles(self) -> dict[str, list[Tensor]]:
        """Named directions in latent space, each a list of latents of batch 1; see ``latents.add``."""
        if not self._style_names:
            return {}
        assert self.image_size is not None
        shapes = self.latent_shapes(*self.image_size)
        sizes = [math.prod(shape) for shape in shapes]
        return {
            name: [part.reshape(1, *shape) for part, shape in zip(direction.split(sizes), shapes, strict=True)]
            for name, direction in zip(self._style_names, self.style_directions, strict=True)
        }

    def reduce(self, x: Tensor) -> Tensor:
        """Compute an anchored flow's own LR image ``(B, C, h, w)``, not clamped: its last output, without a condition.

        Raises:
            ShapeError: If the model does not accept images of that shape.
            ConditionError: If the flow is not anchored.
        """
        self._check_image(x)
        if not self.anchored:
            raise ConditionError(f"The last level of a {self.architecture} model is no image; encode it instead.")
        x = x if self.prelude is None else self.prelude(x)[0]
        for level in self._levels():
            x = level.steps(level.squeeze(x)[0])[0]
            x = x if level.split is None else level.split(x)[0][0]
        return x

    def _levels(self) -> list[Level]:
        return list(self.levels)  # pyright: ignore[reportReturnType]

    def _check_condition(self, cond: Condition | None, batch: int) -> Condition:
        """Return a condition with what each level sees; for None, one that holds nothing."""
        if cond is not None and cond.probes is not None:
            self.require_probes()
            return Condition(features=(None,) * len(self.levels), probes=cond.probes)
        if (cond is None) != (self.condition_encoder is None):
            takes = "a condition; make one with flow.encode_condition(source)"
            takes = takes if cond is None else "no condition; pass None"
            raise ConditionError(f"This {self.architecture} model takes {takes}.")
        if cond is None:
            return Condition(features=(None,) * len(self.levels))
        if len(cond.features) != len(self.levels):
            raise ConditionError(
                f"This model has {len(self.levels)} levels; the condition has {len(cond.features)}. Use this model's "
                "encode_condition."
            )
        cond.check_batch(batch, self.classes)
        if cond.guidance is not None and not self.capabilities.guided:
            raise ConditionError(f"{UNGUIDED}; got a {self.architecture} model.")
        return cond

    def _at_level(self, cond: Condition, number: int) -> LevelCondition:
        return cond.at_level(number)

    def _check_values(self, x: Tensor) -> None:
        """Refuse an empty batch, and other types of numbers than the model's."""
        if not len(x):
            raise ShapeError(f"The batch is empty, {tuple(x.shape)}. Pass at least one image.")
        own = next((p.dtype for p in self.parameters() if p.dtype in WIDE), x.dtype)
        if x.dtype not in WIDE:
            raise PrecisionError(f"A flow takes floats in [0, 1], of {own}; got {x.dtype}. Convert the image.")
        if x.dtype != own:
            way = f"Convert the image, or flow.to({x.dtype})."
            raise PrecisionError(f"This model computes in {own}; got {x.dtype}. {way}")

    def _check_image(self, x: Tensor) -> None:
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
        deepest = latents[-1] if latents else None
        if deepest is None or deepest.ndim != 4:
            raise ShapeError("Expected a list of latents, finest first, each (B, C, H, W).")
        m = self.size_multiple
        sides = deepest.shape[-2] * m, deepest.shape[-1] * m
        expected = self.latent_shapes(*(self.image_size if self.fixed_size and self.image_size else sides))
        actual = [tuple(z.shape[1:]) for z in latents]
        if actual != expected:
            raise ShapeError(f"Expected latents of shapes {expected} per item, finest first; got {actual}.")
        batches = [z.shape[0] for z in latents]
        if len(set(batches)) > 1:
            raise ShapeError(f"Expected latents of one batch; got {batches} items, finest level first.")
