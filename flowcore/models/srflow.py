"""SRFlow: super-resolution as sampling from a conditional flow.

Source: Lugmayr, Danelljan, Van Gool, Timofte, "SRFlow: Learning the Super-Resolution Space with Normalizing Flow" (ECCV
2020). Two fields go beyond the paper: ``residual`` measures the image from the encoder's own enlargement instead of
from zero, and ``mixing`` chooses how the 1x1 convolutions start. Two take parts of the network away, as the paper's
ablations do: ``injector`` and ``transition_steps``. All default to the published behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..condition import Condition
from ..errors import FlowError, ShapeError
from ..flow import Capabilities, Flow, Level
from ..networks import Conditioner, RRDBEncoder, ScaledConv
from ..transforms import ActNorm, Chain, Coupling, Injector, InvertibleConv, Split, Transform
from .fields import shown


@dataclass(frozen=True, kw_only=True)
class SRFlowConfig:
    """Everything that says how an SRFlow is built; the defaults are the published DF2K 4X network.

    Attributes:
        scale: Integer factor from LR to HR: 2, 4 or 8.
        levels: Squeeze scales; at most log2(scale) + 1. The deepest may work at half the LR resolution.
        steps: Conditional steps per level.
        transition_steps: Steps without injector and coupling at the start of each level.
        injector: Whether conditional steps have an affine injector. Without, a step's parts are actnorm, 1x1
            convolution and coupling, and the coupling alone sees the condition.
        hidden: Width of the networks in injectors and couplings.
        hidden_layers: Hidden convolutions of these networks.
        hidden_kernel: Side of those convolutions: 1 or 3.
        encoder_blocks: RRDBs of the encoder.
        encoder_width: Its channels.
        encoder_growth: Channels that each of its dense convolutions adds.
        stacked_blocks: Indices of the RRDBs whose outputs all levels see.
        affine_eps: Smallest scale of injectors and couplings.
        quant_bins: Width of the dequantization noise in training is 1 / quant_bins.
        residual: Measure the image from the encoder's own enlargement.
        mixing: How 1x1 convolutions start: "orthogonal" at random as published, or "principal": the first of each level
            from the principal axes of the first batch, the others as channel reversals.
    """

    scale: int = 4
    levels: int = 3
    steps: int = 16
    transition_steps: int = 2
    injector: bool = True
    hidden: int = 64
    hidden_layers: int = 1
    hidden_kernel: int = 1
    encoder_blocks: int = 23
    encoder_width: int = 64
    encoder_growth: int = 32
    stacked_blocks: tuple[int, ...] = (1, 8, 15, 22)
    affine_eps: float = 1e-4
    quant_bins: int = 32
    residual: bool = False
    mixing: Literal["orthogonal", "principal"] = "orthogonal"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            FlowError: Naming the field, its value and what it may be.
        """
        given: Any = self.stacked_blocks
        blocks: tuple[Any, ...] | None = tuple(given) if type(given) in (list, tuple) else None  # JSON has lists
        if _not_in(self.scale, (2, 4, 8)):
            raise FlowError(f"scale must be 2, 4 or 8; got {shown(self.scale)}.")
        if _not_in(self.levels, range(1, round(math.log2(self.scale)) + 2)):
            raise FlowError(
                f"levels must be 1 to {round(math.log2(self.scale)) + 1} at scale {self.scale}; got "
                f"{shown(self.levels)}."
            )
        limits = {
            "steps": (1, 256),
            "transition_steps": (0, 16),
            "hidden": (1, 4096),
            "hidden_layers": (0, 64),
            "encoder_blocks": (1, 256),
            "encoder_width": (1, 4096),
            "encoder_growth": (1, 4096),
            "quant_bins": (1, 65536),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if _not_in(value, range(low, high + 1)):
                raise FlowError(f"{name} must be a whole number from {low} to {high}; got {shown(value)}.")
        if _not_in(self.hidden_kernel, (1, 3)):
            raise FlowError(f"hidden_kernel must be 1 or 3; got {shown(self.hidden_kernel)}.")
        if blocks is None or any(_not_in(i, range(self.encoder_blocks)) for i in blocks):
            raise FlowError(
                f"stacked_blocks must be indices below encoder_blocks={self.encoder_blocks}; got {shown(given)}."
            )
        object.__setattr__(self, "stacked_blocks", blocks)
        if type(self.affine_eps) not in (int, float) or not 0 <= self.affine_eps < 1:
            raise FlowError(f"affine_eps must lie in [0, 1); got {shown(self.affine_eps)}.")
        for name in ("injector", "residual"):
            if type(getattr(self, name)) is not bool:
                raise FlowError(f"{name} must be true or false; got {shown(getattr(self, name))}.")
        if self.mixing not in ("orthogonal", "principal"):
            raise FlowError(f"mixing must be 'orthogonal' or 'principal'; got {shown(self.mixing)}.")


def srflow(config: SRFlowConfig) -> Flow:
    """Build an SRFlow.

    Its condition's source is the LR image, ``(B, 3, h, w)`` in [0, 1]; its images are HR, ``(B, 3, scale * h, scale *
    w)``.

    Args:
        config: See ``SRFlowConfig``.

    Returns:
        The flow, with random weights.
    """
    features = config.encoder_width * (1 + len(config.stacked_blocks))
    levels: list[Level] = []
    channels = 3
    for number in range(1, config.levels + 1):
        channels *= 4
        steps: list[Transform] = []
        for k in range(config.transition_steps + config.steps):
            parts: list[Transform] = [ActNorm(channels), _mixing(channels, config, first=k == 0)]
            if k >= config.transition_steps:
                if config.injector:
                    parts.append(Injector(_conditioner(features, 2 * channels, config), eps=config.affine_eps))
                parts.append(Coupling(_conditioner(channels // 2 + features, channels, config), eps=config.affine_eps))
            steps.append(Chain(*parts))
        splits = number < config.levels - 1  # as published: none after the last two levels
        levels.append(Level(steps, Split(ScaledConv(channels // 2, channels)) if splits else None))
        channels = channels // 2 if splits else channels
    encoder = RRDBEncoder(
        config.scale, config.encoder_blocks, config.encoder_width, config.encoder_growth, config.stacked_blocks
    )

    return Flow(
        levels,
        channels=3,
        config=config,
        architecture="srflow",
        capabilities=Capabilities(source="low_resolution", tasks=frozenset({"upscale"})),
        encoder=encoder,
        encode=_encode,
        condition_scale=config.scale,
    )


def _encode(flow: Flow, lr: Tensor) -> Condition:
    scale = flow.condition_scale
    multiple = max(1, flow.size_multiple // scale)
    if lr.ndim != 4 or lr.shape[1] != 3:
        raise ShapeError(f"Expected an RGB source of shape (B, 3, h, w); got {tuple(lr.shape)}.")
    if min(lr.shape[-2:]) < 1 or lr.shape[-2] % multiple or lr.shape[-1] % multiple:
        raise ShapeError(
            f"srflow {scale}x needs sides divisible by {multiple} here; got {lr.shape[-2]}x{lr.shape[-1]}. "
            "Use flowcore.upscale, which pads for you."
        )
    assert flow.encoder is not None  # an RRDBEncoder, or what a plan has made of it
    features, origin = flow.encoder(lr, len(flow.levels), with_enlargement=flow.config.residual)
    return Condition(features=tuple(features), origin=origin)


def _not_in(value: Any, allowed: Container[int]) -> bool:
    return type(value) is not int or value not in allowed  # True and 4.0 are equal to whole numbers, but are none


def _mixing(channels: int, config: SRFlowConfig, *, first: bool) -> InvertibleConv:
    if config.mixing == "orthogonal":
        return InvertibleConv(channels)
    return InvertibleConv(channels, start="principal" if first else "reverse")


def _conditioner(inputs: int, outputs: int, config: SRFlowConfig) -> Conditioner:
    return Conditioner(inputs, config.hidden, outputs, layers=config.hidden_layers, kernel=config.hidden_kernel)
