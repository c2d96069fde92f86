"""SRFlow: super-resolution as sampling from a conditional flow.

Source: Lugmayr, Danelljan, Van Gool, Timofte, "SRFlow: Learning the Super-Resolution Space with Normalizing Flow" (ECCV
2020). Two fields go beyond the paper: with ``residual`` the flow models the difference from the encoder's own
enlargement, and ``mixing`` chooses how the 1x1 convolutions start. Two remove parts of the network, as the paper's
ablations do: ``injector`` and ``transition_steps``. All default to the published behavior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..condition import Condition
from ..flow import Capabilities, Flow, Level, Task
from ..networks import Conditioner, RRDBEncoder, ScaledConv
from ..transforms import ActNorm, Chain, Coupling, Injector, InvertibleConv, Split, Transform
from .fields import check_choice, check_integer, check_number, check_share, integer_tuple
from .low_resolution import check_lr


@dataclass(frozen=True, kw_only=True)
class SRFlowConfig:
    """Configuration of an SRFlow; the defaults are the published DF2K 4X network.

    Attributes:
        scale: Integer factor from LR to HR: 2, 4 or 8.
        levels: Squeeze scales; at most log2(scale) + 1. The deepest may work at half the LR resolution.
        steps: Conditional steps per level.
        transition_steps: Steps without injector and coupling at the start of each level.
        injector: Whether conditional steps have an affine injector. Without, only the coupling sees the condition.
        hidden: Width of the networks in injectors and couplings.
        hidden_layers: Hidden convolutions of these networks.
        hidden_kernel: Side of those convolutions: 1 or 3.
        encoder_blocks: RRDBs of the encoder.
        encoder_width: Channels of its trunk.
        encoder_growth: Channels that each of its dense convolutions adds.
        stacked_blocks: Indices of the RRDBs whose outputs are part of every level's condition.
        affine_eps: Smallest scale of injectors and couplings.
        quant_bins: Width of the dequantization noise in training is 1 / quant_bins.
        residual: Whether to subtract the encoder's own enlargement from the image first.
        mixing: How 1x1 convolutions start: "orthogonal" at random as published, or "principal": the first of each level
            from the principal axes of the first batch, the others as channel reversals.
        temperature: Temperature at which the model is meant to be sampled; that of files which do not state one.
        calm_edges: How much lower it is meant to be at edges, in [0, 1]; see ``tasks.calm_edges``.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({"upscale"})

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
    temperature: float = 0.8
    calm_edges: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self, scale=(2, 4, 8), hidden_kernel=(1, 3), mixing=("orthogonal", "principal"))
        check_choice(self, injector=(True, False), residual=(True, False))
        check_integer(self, levels=(1, round(math.log2(self.scale)) + 1), steps=(1, 256), transition_steps=(0, 16))
        check_integer(self, hidden=(1, 4096), hidden_layers=(0, 64), quant_bins=(1, 65536))
        check_integer(self, encoder_blocks=(1, 256), encoder_width=(1, 4096), encoder_growth=(1, 4096))
        check_number(self, affine_eps=(0, 1), temperature=(0, 10))
        check_share(self, "calm_edges")
        blocks = integer_tuple(self, "stacked_blocks", 0, self.encoder_blocks - 1)
        object.__setattr__(self, "stacked_blocks", blocks)

    @property
    def grids(self) -> range:
        """The grids of its levels, finest first: 1 for half as many pixels a side as HR, 2 for a quarter."""
        return range(1, self.levels + 1)


def srflow(config: SRFlowConfig) -> Flow[SRFlowConfig]:
    """Build an SRFlow.

    Args:
        config: See ``SRFlowConfig``.

    Returns:
        The flow, with random weights. Its images are HR, ``(B, 3, scale * h, scale * w)``; its condition is encoded
        from the LR image, ``(B, 3, h, w)`` in [0, 1].
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
        capabilities=Capabilities(source="low_resolution", tasks=config.tasks),
        encoder=encoder,
        condition_encoder=_encode_lr,
        condition_scale=config.scale,
    )


def _encode_lr(flow: Flow[SRFlowConfig], lr: Tensor) -> Condition:
    check_lr(flow, lr)
    assert flow.encoder is not None  # an RRDBEncoder, or a plan's folded one
    features, origin = flow.encoder(lr, len(flow.levels), with_enlargement=flow.config.residual)
    return Condition(features=tuple(features), origin=origin)


def _mixing(channels: int, config: SRFlowConfig, *, first: bool) -> InvertibleConv:
    if config.mixing == "orthogonal":
        return InvertibleConv(channels)
    return InvertibleConv(channels, start="principal" if first else "reverse")


def _conditioner(inputs: int, outputs: int, config: SRFlowConfig) -> Conditioner:
    return Conditioner(inputs, config.hidden, outputs, layers=config.hidden_layers, kernel=config.hidden_kernel)
