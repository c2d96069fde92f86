"""SRFlow-DA: SRFlow with fewer steps and deeper conditioners, down to the LR grid and not beyond.

Source: Jo, Yang, Kim, "SRFlow-DA: Super-Resolution Using Normalizing Flow with Deep Convolutional Block" (NTIRE
workshop, CVPR 2021), with its ablations: -S squeezes once by the whole scale, -R has a skip connection in every
conditioner, -D a residual network of 18 blocks. Ours: uniform training noise, as wide as the paper's Gaussian.
"""

import operator
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from ...errors import FlowError
from ...flows.condition import Condition
from ...flows.flow import Level
from ...flows.model import Capabilities, FlowModel, Task
from ...flows.networks.conditioner import PlainConditioner, ZeroConv
from ...flows.transforms import ActNorm, Chain, Coupling, Injector, InvertibleConv, Split, Squeeze, Transform
from ..fields import Range, block_indices, check_fields, short_repr
from ..inputs import check_lr
from .rrdb import RRDBEncoder

LAYERS = re.compile(r"s[248][pc]+((d|d?s[248])[pc]+)*")


class LevelLayers(NamedTuple):
    """The layers of one level."""

    factor: int  # factor of the squeeze before them; 1 for none
    steps: str  # a letter each: "p" for a plain step, "c" for a conditional one
    splits: bool  # whether half of the channels are factored out after them


def parse_layers(layers: str) -> list[LevelLayers]:
    """Divide ``SRFlowDAConfig.layers`` into levels."""
    matches = re.finditer(r"(?:s(\d))?([pc]+)(d?)", layers)
    return [LevelLayers(int(match[1] or 1), match[2], bool(match[3])) for match in matches]


@dataclass(frozen=True, kw_only=True)
class SRFlowDAConfig:
    """Configuration of an SRFlow-DA; the defaults are the published DF2K 4X network."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"upscale"})
    residual: ClassVar[bool] = False  # see ``SRFlowConfig``: the image itself is modeled

    scale: Literal[2, 4, 8] = 4  # integer factor from LR to HR
    # From HR to latents, one letter per layer: "s2", "s4" or "s8" squeezes by that factor, "p" is a plain step, without
    # injector and coupling, "c" a conditional step, and "d" factors out half of the channels.
    layers: str = "s2ppccccccds2ppcccccc"
    hidden: Annotated[int, Range(1, 4096)] = 64  # width of the networks in injectors and couplings
    hidden_layers: Annotated[int, Range(0, 256)] = 4  # hidden convolutions of these networks, but the first; 36 in -D
    residual_blocks: Annotated[int, Range(0, 256)] = 0  # residual blocks that they form: 1 in -R, 18 in -D
    encoder_blocks: Annotated[int, Range(1, 256)] = 23  # RRDBs of the encoder
    encoder_width: Annotated[int, Range(1, 4096)] = 64  # channels of its trunk
    encoder_growth: Annotated[int, Range(1, 4096)] = 32  # channels that each of its dense convolutions adds
    stacked_blocks: tuple[int, ...] = (1, 8, 15, 22)  # indices of RRDBs whose outputs are in every level's condition
    affine_eps: Annotated[float, Range(0, 1, open=True)] = 1e-4  # smallest scale of injectors and couplings
    quant_bins: Annotated[int, Range(1, 65536)] = 32  # the dequantization noise in training has width 1 / quant_bins
    temperature: Annotated[float, Range(0, 10, open=True)] = 0.9  # recommended; the published tests have 0.9
    calm_edges: Annotated[float, Range(0, 1)] = 0.0  # recommended reduction of the temperature at edges

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "stacked_blocks", block_indices(self.stacked_blocks, self.encoder_blocks))
        if self.residual_blocks and (not self.hidden_layers or self.hidden_layers % self.residual_blocks):
            raise FlowError(
                f"residual_blocks must divide the number of hidden_layers, {self.hidden_layers}; got "
                f"{self.residual_blocks}."
            )
        layers: Any = self.layers
        if not isinstance(layers, str) or len(layers) > 1024 or not LAYERS.fullmatch(layers):
            raise FlowError(
                "layers must be squeezes (s2, s4 or s8), plain steps (p), conditional steps (c) and splits (d), such "
                f"as s2ppccds2ppcc; got {short_repr(layers)}."
            )
        channels = 3
        for level in parse_layers(layers):
            channels *= level.factor**2
            if level.splits:
                if channels % 2:
                    raise FlowError(f"layers must split an even number of channels; got {short_repr(layers)}.")
                channels //= 2
        if 2 ** max(self.grids_by_level) > 2 * self.scale:
            raise FlowError(
                f"layers must squeeze by at most {2 * self.scale} in all, as the encoder has no coarser features; got "
                f"{short_repr(layers)}."
            )

    @property
    def grids_by_level(self) -> list[int]:
        """The grid of each level, finest first: 1 for half as many pixels a side as HR, 2 for a quarter."""
        factors = accumulate((level.factor for level in parse_layers(self.layers)), operator.mul)
        return [factor.bit_length() - 1 for factor in factors]

    @property
    def grids(self) -> list[int]:
        """The grids of its levels, each once."""
        return list(dict.fromkeys(self.grids_by_level))


def srflow_da(config: SRFlowDAConfig) -> FlowModel[SRFlowDAConfig]:
    """Build an SRFlow-DA of HR, ``(B, 3, scale * h, scale * w)``; its condition is encoded from LR ``(B, 3, h, w)``."""
    features = config.encoder_width * (1 + len(config.stacked_blocks))
    levels: list[Level] = []
    channels = 3
    for level in parse_layers(config.layers):
        channels *= level.factor**2
        steps: list[Transform] = []
        for kind in level.steps:
            step: list[Transform] = [ActNorm(channels), InvertibleConv(channels)]
            if kind == "c":
                step.append(Injector(_conditioner(features, 2 * channels, config), eps=config.affine_eps))
                outputs = 2 * (channels - channels // 2)
                network = _conditioner(channels // 2 + features, outputs, config)
                step.append(Coupling(network, eps=config.affine_eps))
            steps.append(Chain(*step))
        split = Split(ZeroConv(channels // 2, channels)) if level.splits else None
        squeeze = Chain() if level.factor == 1 else Squeeze(level.factor)
        levels.append(Level(steps, split, squeeze=squeeze, downscale=level.factor))
        channels = channels // 2 if split else channels
    floats = config.encoder_width * len(config.stacked_blocks) / config.scale**2
    floats += config.encoder_width * sum(1 / 4**grid for grid in config.grids)
    return FlowModel(
        levels,
        channels=3,
        config=config,
        architecture="srflow_da",
        capabilities=Capabilities(source="low_resolution", tasks=config.tasks, floats_per_pixel=floats),
        encoder=RRDBEncoder(
            config.scale, config.encoder_blocks, config.encoder_width, config.encoder_growth, config.stacked_blocks
        ),
        condition_encoder=_encode_lr,
        condition_scale=config.scale,
    )


def _encode_lr(flow: FlowModel[SRFlowDAConfig], lr: Tensor) -> Condition:
    check_lr(flow, lr)
    assert flow.encoder is not None  # an RRDBEncoder, or a compiled flow's folded one
    grids = flow.config.grids
    by_grid = dict(zip(grids, flow.encoder(lr, grids)[0], strict=True))
    return Condition(features=tuple(by_grid[grid] for grid in flow.config.grids_by_level))


def _conditioner(inputs: int, outputs: int, config: SRFlowDAConfig) -> PlainConditioner:
    return PlainConditioner(
        inputs, config.hidden, outputs, layers=config.hidden_layers, kernel=3, residual_blocks=config.residual_blocks
    )
