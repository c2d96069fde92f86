"""Flow: levels of steps between an image and a list of standard-normal latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .condition import Condition, MultiScaleFeatures
from .errors import ConditionError, FlowError, ShapeError
from .prior import Shape, log_density
from .transforms import Chain, Split, Squeeze, Transform, spread

Source = Literal["none", "low_resolution", "luma", "labels"]
Task = Literal["upscale", "colorize", "sample"]
NEEDS: dict[Task, str] = {
    "upscale": "a model that enlarges images, such as srflow-x4",
    "colorize": "a colorizer, such as color-photos",
    "sample": "a model that makes images from latents alone, such as glow-photos",
}


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a model can do and what it needs; its builder states them.

    Attributes:
        source: What its condition is computed from: nothing, a low-resolution image, luma with hints, or labels.
        tasks: The tasks that it is made for. Any flow encodes, decodes and scores, given its condition.
        network_floats: Peak working memory of its networks per pixel of the image, in floats; 0 if it is negligible.
    """

    source: Source = "none"
    tasks: frozenset[Task] = frozenset({"sample"})
    network_floats: float = 0.0


class Level(nn.Module):
    """One grid of a flow: squeeze, steps, and a split unless all channels go on."""

    def __init__(
        self, steps: Sequence[Transform], split: Split | None, *, squeeze: Transform | None = None, fold: int = 2
    ) -> None:
        """Hold the parts.

        Args:
            steps: In the data-to-latent direction.
            split: What sends half of the channels out; None for none.
            squeeze: What comes first; None for ``Squeeze``. An empty ``Chain()`` for nothing.
            fold: By how much squeeze and steps together shrink the sides: 2, 1, or 0 for all of it, to a single
                position.
        """
        super().__init__()
        self.squeeze = Squeeze() if squeeze is None else squeeze
        self.steps = Chain(*steps)
        self.split = split
        self.fold = fold

    def shape(self, channels: int, height: int, width: int) -> Shape:
        """Say what squeeze and steps make of an image.

        Args:
            channels: C.
            height: H.
            width: W.

        Returns:
            Channels and sides after them.
        """
        if self.fold == 0:
            return channels * height * width, 1, 1
        return channels * self.fold**2, height // self.fold, width // self.fold


class Flow(Transform):
    """A bijection between images and lists of latents, finest first, with or without a condition.

    Forward: ``x = prelude(x)``; per level ``x = steps(squeeze(x)); (x, latent) = split(x)``; the last latent is
    ``top(x)``. Logdet: the sum over all of them. Levels without a split hand all their channels on.

    Source: Dinh et al., "Real NVP", section 3.6; Kingma & Dhariwal, "Glow", section 3.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        channels: int,
        config: Any,
        architecture: str,
        capabilities: Capabilities = Capabilities(),
        prelude: Transform | None = None,
        top: Transform | None = None,
        encoder: nn.Module | None = None,
        encode: Callable[[Flow, Tensor], Condition] | None = None,
        condition_scale: int = 1,
        classes: int = 0,
        image_size: tuple[int, int] | None = None,
        fixed_size: bool = False,
        dequantizer: nn.Module | None = None,
        styles: Sequence[str] = (),
    ) -> None:
        """Hold the parts; recipes in ``models`` build them.

        Args:
            levels: Finest first.
            channels: Channels of the image.
            config: The frozen configuration that the flow was built from.
            architecture: Name of the recipe.
            capabilities: What it can do.
            prelude: From pixels in [0, 1] to the range of the first level; None for nothing.
            top: Whitens what the last level ends with; None for nothing. It is given the labels, as splits are.
            encoder: Network that reads the condition's source, if one is needed.
            encode: From this flow and the source to the condition; None for an unconditional flow.
            condition_scale: Integer factor from the source's sides to the image's.
            classes: Number of labels that the flow is conditioned on; 0 for none.
            image_size: Height and width of the images that it was made for; None if it tells nothing.
            fixed_size: Whether it takes images of that size only.
            dequantizer: Model of the dequantization noise that was trained with the flow; no part of the bijection.
            styles: Names of directions among the latents of ``image_size``, to be stored with the weights.
        """
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.channels = channels
        self.config = config
        self.architecture = architecture
        self.capabilities = capabilities
        self.prelude = prelude
        self.top = top
        self.encoder = encoder
        self.condition_scale = condition_scale
        self.classes = classes
        self.image_size = image_size
        self.fixed_size = fixed_size
        self.dequantizer = dequantizer
        self.provenance: dict[str, Any] = {}
        self.encoding = encode
        self._style_names = tuple(styles)
        if styles:
            assert image_size is not None
            dimensions = sum(math.prod(shape) for shape in self.latent_shapes(*image_size))
            self.register_buffer("style_directions", torch.zeros(len(styles), dimensions))

    def require(self, task: Task) -> None:
        """Refuse a task that the model is not made for.

        Args:
            task: The task.

        Raises:
            FlowError: Naming what the task needs and what the model is.
        """
        if task not in self.capabilities.tasks:
            raise FlowError(f"{task} needs {NEEDS[task]}; got a {self.architecture} model.")

    @property
    def size_multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        return math.prod(max(1, level.fold) for level in self._levels())

    def latent_shapes(self, height: int, width: int) -> list[Shape]:
        """Say which latents an image has.

        Args:
            height: Of the image (HR for upscalers), a multiple of ``size_multiple``.
            width: Likewise.

        Returns:
            ``(C_l, H_l, W_l)``, finest first.

        Raises:
            ShapeError: If a side does not fit.
        """
        self._check_sides(height, width)
        shapes: list[Shape] = []
        channels = self.channels
        for level in self._levels():
            channels, height, width = level.shape(channels, height, width)
            if level.split is not None:
                shapes.append((channels - level.split.kept_channels(channels), height, width))
                channels = level.split.kept_channels(channels)
        return [*shapes, (channels, height, width)]

    @property
    def styles(self) -> dict[str, list[Tensor]]:
        """Named directions among the latents, each a list of latents of batch 1, to be added with a strength."""
        if not self._style_names:
            return {}
        assert self.image_size is not None
        shapes = self.latent_shapes(*self.image_size)
        sizes = [math.prod(shape) for shape in shapes]
        return {
            name: [part.reshape(1, *shape) for part, shape in zip(direction.split(sizes), shapes, strict=True)]
            for name, direction in zip(self._style_names, self.get_buffer("style_directions"), strict=True)
        }

    def encode_condition(self, source: Tensor) -> Condition:
        """Read what the flow is conditioned on; once per image, whatever the number of samples.

        Args:
            source: What the model's recipe says (SRFlow: LR image, ``(B, 3, h, w)`` in [0, 1]; class-conditional
                models: labels, whole numbers ``(B,)`` or weights ``(B, classes)``).

        Returns:
            The condition to pass to ``forward`` and ``inverse``.

        Raises:
            ConditionError: If the flow is unconditional.
            ShapeError: If the source does not fit.
        """
        if self.encoding is None:
            raise ConditionError(f"This {self.architecture} model is unconditional; call it without a condition.")
        return self.encoding(self, source)

    def forward(self, x: Tensor, cond: Condition | None = None) -> tuple[list[Tensor], Tensor]:
        """Encode images.

        Args:
            x: ``(B, C, H, W)``, sides multiples of ``size_multiple``.
            cond: From ``encode_condition``; None for unconditional flows.

        Returns:
            Latents, finest first, and logdet in nats, ``(B,)``.

        Raises:
            ShapeError: If the image does not fit.
            ConditionError: If the condition does not.
        """
        self._check_image(x)
        features, labels = self._told(cond, x.shape[0])
        x, logdet = self._start(x, cond)
        latents: list[Tensor] = []
        for level, feature in zip(self._levels(), features, strict=True):
            x = level.squeeze(x)[0]  # (B, 4C, H/2, W/2)
            x, change = level.steps(x, feature)
            logdet = logdet + change
            if level.split is not None:
                (x, latent), change = level.split(x, labels)  # each (B, 2C, H/2, W/2)
                latents.append(latent)
                logdet = logdet + change
        if self.top is not None:
            x, change = self.top(x, labels)
            logdet = logdet + change
        return [*latents, x], logdet

    def inverse(
        self,
        z: Sequence[Tensor],
        cond: Condition | None = None,
        between: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Decode latents.

        Args:
            z: Latents, finest first, as ``forward`` returned them or ``sample_latents`` drew them.
            cond: As in ``forward``.
            between: What looks at the image between levels, and may change it: called after every level with its
                number, 0 for the finest, and what it has been decoded to, ``(B, C, h, w)``; returns what goes on. None
                for nothing, which makes this the inverse of ``forward``.

        Returns:
            Images, ``(B, C, H, W)``, not clamped.

        Raises:
            ShapeError: If the latents do not fit.
            ConditionError: If the condition does not.
        """
        self._check_latents(z)
        features, labels = self._told(cond, z[0].shape[0])
        rest = list(z)
        x = rest.pop()
        if self.top is not None:
            x = self.top.inverse(x, labels)
        for number, level in reversed(list(enumerate(self._levels()))):
            if level.split is not None:
                x = level.split.inverse((x, rest.pop()), labels)
            x = level.steps.inverse(x, features[number])
            x = level.squeeze.inverse(x)
            if between is not None:
                x = between(number, x)
        if cond is not None and cond.origin is not None:
            self._check_origin(cond.origin, x.shape)
            x = x + cond.origin
        return x if self.prelude is None else self.prelude.inverse(x)

    def by_position(self, x: Tensor, cond: Condition | None = None) -> tuple[list[Tensor], list[Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Encode images, and say which level and which pixel their log density comes from.

        Every level's share holds the logdet of its grid and the prior of its latents; what has no place (an actnorm, a
        1x1 convolution) is spread evenly, and what belongs to a coarse position evenly over its pixels. Receptive
        fields overlap, so this shows where the model finds the image likely, not why.

        Args:
            x: As in ``forward``.
            cond: As in ``forward``.

        Returns:
            Latents, finest first, and for each the log density in nats by pixel, ``(B, H, W)``; the sum over all levels
            and pixels is ``likelihood.log_prob``.
        """
        self._check_image(x)
        features, labels = self._told(cond, x.shape[0])
        height, width = x.shape[-2:]
        latents: list[Tensor] = []
        pending = x.new_zeros(x.shape[0], height, width)
        if self.prelude is not None:
            pending = self.prelude.by_position(x)[1]
        x = self._start(x, cond)[0]
        shares: list[Tensor] = []
        for level, feature in zip(self._levels(), features, strict=True):
            x = level.squeeze(x)[0]
            x, change = level.steps.by_position(x, feature)
            pending = pending + spread(change, height, width)
            if level.split is not None:
                (x, latent), change = level.split.by_position(x, labels)
                latents.append(latent)
                shares.append(pending + spread(change + log_density(latent).sum(1), height, width))
                pending = torch.zeros_like(pending)
        if self.top is not None:
            x, change = self.top.by_position(x, labels)
            pending = pending + spread(change, height, width)
        return [*latents, x], [*shares, pending + spread(log_density(x).sum(1), height, width)]

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Condition | None = None) -> list[Tensor]:
        """Set every data-dependent parameter from a first batch; training calls this once.

        Args:
            x: ``(B, C, H, W)``.
            cond: The batch's condition.

        Returns:
            The batch's latents.
        """
        features, labels = self._told(cond, x.shape[0])
        if self.prelude is not None:
            self.prelude.initialize(x)
        x = self._start(x, cond)[0]
        latents: list[Tensor] = []
        for level, feature in zip(self._levels(), features, strict=True):
            x = level.steps.initialize(level.squeeze(x)[0], feature)
            if level.split is not None:
                x, latent = level.split.initialize(x, labels)
                latents.append(latent)
        return [*latents, x if self.top is None else self.top.initialize(x, labels)]

    def _start(self, x: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor]:
        """From pixels to what the first level takes, with the logdet so far."""
        logdet = x.new_zeros(x.shape[0])
        if self.prelude is not None:
            x, logdet = self.prelude(x)
        if cond is not None and cond.origin is not None:
            self._check_origin(cond.origin, x.shape)
            x = x - cond.origin
        return x, logdet

    def _levels(self) -> list[Level]:
        return list(self.levels)  # pyright: ignore[reportReturnType]

    def _told(self, cond: Condition | None, batch: int) -> tuple[Sequence[Any], Tensor | None]:
        """Features by level, and labels."""
        if (cond is None) != (self.encoding is None):
            expected = (
                "a condition; make one with flow.encode_condition(source)"
                if cond is None
                else "no condition; pass None"
            )
            raise ConditionError(f"This {self.architecture} model takes {expected}.")
        if cond is None:
            return [None] * len(self.levels), None
        if len(cond.features) != len(self.levels):
            raise ConditionError(
                f"This model has {len(self.levels)} levels; the condition has {len(cond.features)}. Use this model's "
                "encode_condition."
            )
        if cond.labels is not None and tuple(cond.labels.shape) not in ((1, self.classes), (batch, self.classes)):
            raise ConditionError(
                f"Expected labels of {batch} items and {self.classes} classes; the condition has "
                f"{' and '.join(map(str, cond.labels.shape))}. Use this model's encode_condition, a label an image."
            )
        return [self._feature(f) for f in cond.features], cond.labels

    def _feature(self, feature: Tensor | MultiScaleFeatures | None) -> Any:
        """What the steps of a level take as their condition."""
        return feature.merged() if isinstance(feature, MultiScaleFeatures) else feature

    def _check_image(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ShapeError(f"This model takes images of shape (B, {self.channels}, H, W); got {tuple(x.shape)}.")
        self._check_sides(x.shape[-2], x.shape[-1])

    def _check_sides(self, height: int, width: int) -> None:
        if self.fixed_size and (height, width) != self.image_size:
            raise ShapeError(
                f"This model takes images of {'x'.join(map(str, self.image_size or ()))} only; got {height}x{width}. "
                "Resize the image."
            )
        m = self.size_multiple
        if height < 1 or width < 1 or height % m or width % m:
            fits = "x".join(f"{max(m, side // m * m)}" for side in (height, width))
            raise ShapeError(
                f"This model takes images with sides divisible by {m}; got {height}x{width}. "
                f"Crop (to {fits}) or pad it."
            )

    def _check_latents(self, latents: Sequence[Tensor]) -> None:
        deepest = latents[-1] if latents else None
        if deepest is None or deepest.ndim != 4:
            raise ShapeError("Expected a list of latents, finest first, each (B, C, H, W).")
        m = self.size_multiple
        sides = deepest.shape[-2] * m, deepest.shape[-1] * m
        expected = self.latent_shapes(*(self.image_size if self.fixed_size and self.image_size else sides))
        came = [tuple(z.shape[1:]) for z in latents]
        if came != expected:
            raise ShapeError(f"Expected latents of shapes {expected} per item, finest first; got {came}.")
        batches = [z.shape[0] for z in latents]
        if len(set(batches)) > 1:
            raise ShapeError(f"Expected latents of one batch; got {batches} items, finest level first.")

    def _check_origin(self, origin: Tensor, shape: torch.Size) -> None:
        if origin.shape[1:] != shape[1:] or origin.shape[0] not in (1, shape[0]):
            raise ConditionError(
                f"The condition belongs to images of shape {tuple(origin.shape)}; got {tuple(shape)}. "
                "Encode the condition from the matching source."
            )
