"""Flow: levels of steps between an image and a list of standard-normal latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .condition import Condition
from .prior import Shape
from .transforms import Chain, ConditionError, ShapeError, Split, Squeeze, Transform


class Level(nn.Module):
    """One grid of a flow: squeeze, steps, and a split unless all channels go on."""

    def __init__(self, steps: Sequence[Transform], split: Split | None) -> None:
        """Hold the parts.

        Args:
            steps: In the data-to-latent direction.
            split: What sends half of the channels out; None for none.
        """
        super().__init__()
        self.squeeze = Squeeze()
        self.steps = Chain(*steps)
        self.split = split


class Flow(Transform):
    """A bijection between images and lists of latents, finest first, with or without a condition.

    Forward: per level ``x = steps(squeeze(x)); (x, latent) = split(x)``; the last level's ``x`` is the last latent.
    Logdet: the sum over all steps and splits. Levels without a split hand all their channels on.

    Source: Dinh et al., "Real NVP", section 3.6; Kingma & Dhariwal, "Glow", section 3.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        channels: int,
        config: Any,
        architecture: str,
        encoder: nn.Module | None = None,
        encode: Callable[[nn.Module, Tensor], Condition] | None = None,
        condition_scale: int = 1,
    ) -> None:
        """Hold the parts; recipes in ``models`` build them.

        Args:
            levels: Finest first.
            channels: Channels of the image.
            config: The frozen configuration that the flow was built from.
            architecture: Name of the recipe.
            encoder: Network that reads the condition's source; None for an unconditional flow.
            encode: From encoder and source to the condition.
            condition_scale: Integer factor from the source's sides to the image's.
        """
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.channels = channels
        self.config = config
        self.architecture = architecture
        self.encoder = encoder
        self.condition_scale = condition_scale
        self.provenance: dict[str, Any] = {}
        self._encode = encode

    @property
    def size_multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        return 2 ** len(self.levels)

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
        for k, level in enumerate(self._levels()):
            channels *= 4
            height, width = height // 2, width // 2
            if level.split is not None:
                shapes.append((channels - channels // 2, height, width))
                channels //= 2
            if k == len(self.levels) - 1:
                shapes.append((channels, height, width))
        return shapes

    def encode_condition(self, source: Tensor) -> Condition:
        """Read what the flow is conditioned on; once per image, whatever the number of samples.

        Args:
            source: What the model's recipe says (SRFlow: LR image, ``(B, 3, h, w)`` in [0, 1]).

        Returns:
            The condition to pass to ``forward`` and ``inverse``.

        Raises:
            ConditionError: If the flow is unconditional.
            ShapeError: If the source does not fit.
        """
        if self.encoder is None or self._encode is None:
            raise ConditionError(f"This {self.architecture} model is unconditional; call it without a condition.")
        multiple = max(1, self.size_multiple // self.condition_scale)
        if source.ndim != 4 or source.shape[1] != 3:
            raise ShapeError(f"Expected an RGB source of shape (B, 3, h, w); got {tuple(source.shape)}.")
        if min(source.shape[-2:]) < 1 or source.shape[-2] % multiple or source.shape[-1] % multiple:
            raise ShapeError(
                f"{self.architecture} {self.condition_scale}x needs sides divisible by {multiple} here; "
                f"got {source.shape[-2]}x{source.shape[-1]}. Use flowcore.upscale, which pads for you."
            )
        return self._encode(self.encoder, source)

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
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ShapeError(f"This model takes images of shape (B, {self.channels}, H, W); got {tuple(x.shape)}.")
        self._check_sides(x.shape[-2], x.shape[-1])
        features = self._features(cond)
        if cond is not None and cond.origin is not None:
            self._check_origin(cond.origin, x.shape)
            x = x - cond.origin
        latents: list[Tensor] = []
        logdet = x.new_zeros(x.shape[0])
        for level, feature in zip(self._levels(), features, strict=True):
            x = level.squeeze(x)[0]  # (B, 4C, H/2, W/2)
            x, change = level.steps(x, feature)
            logdet = logdet + change
            if level.split is not None:
                (x, latent), change = level.split(x)  # each (B, 2C, H/2, W/2)
                latents.append(latent)
                logdet = logdet + change
        return [*latents, x], logdet

    def inverse(self, z: Sequence[Tensor], cond: Condition | None = None) -> Tensor:
        """Decode latents.

        Args:
            z: Latents, finest first, as ``forward`` returned them or ``sample_latents`` drew them.
            cond: As in ``forward``.

        Returns:
            Images, ``(B, C, H, W)``, not clamped.

        Raises:
            ShapeError: If the latents do not fit.
            ConditionError: If the condition does not.
        """
        self._check_latents(z)
        features = self._features(cond)
        rest = list(z)
        x = rest.pop()
        for level, feature in zip(reversed(self._levels()), reversed(features), strict=True):
            if level.split is not None:
                x = level.split.inverse((x, rest.pop()))
            x = level.steps.inverse(x, feature)
            x = level.squeeze.inverse(x)
        if cond is not None and cond.origin is not None:
            self._check_origin(cond.origin, x.shape)
            x = x + cond.origin
        return x

    @torch.no_grad()
    def initialise(self, x: Tensor, cond: Condition | None = None) -> list[Tensor]:
        """Set every data-dependent parameter from a first batch; training calls this once.

        Args:
            x: ``(B, C, H, W)``.
            cond: The batch's condition.

        Returns:
            The batch's latents.
        """
        if cond is not None and cond.origin is not None:
            x = x - cond.origin
        latents: list[Tensor] = []
        for level, feature in zip(self._levels(), self._features(cond), strict=True):
            x = level.steps.initialise(level.squeeze(x)[0], feature)
            if level.split is not None:
                x, latent = level.split.initialise(x)
                latents.append(latent)
        return [*latents, x]

    def _levels(self) -> list[Level]:
        return list(self.levels)  # pyright: ignore[reportReturnType]

    def _features(self, cond: Condition | None) -> Sequence[Tensor | None]:
        if (cond is None) != (self.encoder is None):
            expected = (
                "a condition; make one with flow.encode_condition(source)"
                if cond is None
                else "no condition; pass None"
            )
            raise ConditionError(f"This {self.architecture} model takes {expected}.")
        if cond is None:
            return [None] * len(self.levels)
        if len(cond.features) != len(self.levels):
            raise ConditionError(
                f"This model has {len(self.levels)} levels; the condition has {len(cond.features)}. Use this model's "
                "encode_condition."
            )
        return cond.features

    def _check_sides(self, height: int, width: int) -> None:
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
        expected = self.latent_shapes(deepest.shape[-2] * m, deepest.shape[-1] * m)
        came = [tuple(z.shape[1:]) for z in latents]
        if came != expected:
            raise ShapeError(f"Expected latents of shapes {expected} per item, finest first; got {came}.")
        batches = [z.shape[0] for z in latents]
        if len(set(batches)) > 1:
            raise ShapeError(f"Expected latents of one batch; got {batches} items, finest level first.")

    def _check_origin(self, origin: Tensor, shape: torch.Size) -> None:
        if origin.shape != shape:
            raise ConditionError(
                f"The condition belongs to images of shape {tuple(origin.shape)}; got {tuple(shape)}. "
                "Encode the condition from the matching source."
            )
