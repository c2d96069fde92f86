"""SRFlow: super-resolution as sampling from a conditional flow.

Source: Lugmayr, Danelljan, Van Gool, Timofte, "SRFlow: Learning the Super-Resolution Space with Normalizing Flow" (ECCV
2020). Some fields go beyond the paper; all default to the published behavior.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from ...flows.condition import Condition
from ...flows.flow import Level
from ...flows.model import Capabilities, FlowModel, Task
from ...flows.networks.conditioner import Conditioner, ZeroConv
from ...flows.transforms import ActNorm, Chain, Coupling, Injector, InvertibleConv, Split, Transform
from ..fields import Range, block_indices, check_fields, check_value
from ..inputs import check_lr
from .imdn import CompactUpscaler, IMDNEncoder
from .rrdb import RRDBEncoder


@dataclass(frozen=True, kw_only=True)
class SRFlowConfig:
    """Configuration of an SRFlow; the defaults are the published DF2K 4X network."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"upscale"})

    scale: Literal[2, 4, 8] = 4  # integer factor from LR to HR
    levels: int = 3  # each halves the sides; at most log2(scale) + 1: the deepest may work at half the LR resolution
    steps: Annotated[int, Range(1, 256)] = 16  # conditional steps per level
    transition_steps: Annotated[int, Range(0, 16)] = 2  # steps before the conditional ones; no injector, no coupling
    injector: bool = True  # whether conditional steps have one; otherwise only the coupling sees the condition
    hidden: Annotated[int, Range(1, 4096)] = 64  # width of the networks in injectors and couplings
    hidden_layers: Annotated[int, Range(0, 64)] = 1  # hidden convolutions of the same networks
    hidden_kernel: Literal[1, 3] = 1  # side of the kernels of these convolutions
    encoder: Literal["rrdb", "imdn"] = "rrdb"  # "imdn": with an adapter, see ``IMDNEncoder``
    encoder_blocks: Annotated[int, Range(1, 256)] = 23  # RRDBs, or blocks of the IMDN
    # Channels of the features that the encoder makes for each level alone, and of the trunk of RRDBs.
    encoder_width: Annotated[int, Range(1, 4096)] = 64
    # Channels that each dense convolution of an RRDB adds, or that each convolution of an IMDN keeps.
    encoder_growth: Annotated[int, Range(1, 4096)] = 32
    # Indices of the RRDBs whose outputs are in every level's condition, or of the blocks that an IMDN's adapter reads.
    stacked_blocks: tuple[int, ...] = (1, 8, 15, 22)
    affine_eps: Annotated[float, Range(0, 1, open=True)] = 1e-4  # smallest scale of injectors and couplings
    quant_bins: Annotated[int, Range(1, 65536)] = 32  # the dequantization noise in training has width 1 / quant_bins
    residual: bool = False  # whether to subtract the encoder's own enlargement from the image first
    mixing: Literal["orthogonal", "principal"] = "orthogonal"  # start of 1x1 convolutions; see Glow's ``mixing_start``
    temperature: Annotated[float, Range(0, 10, open=True)] = 0.8  # recommended, also for files that do not state it
    # at the bold end of the slider from faithful to bold; 0 for ``engine.defaults.BOLDEST`` times the temperature above
    boldest_temperature: Annotated[float, Range(0, 10)] = 0.0
    calm_edges: Annotated[float, Range(0, 1)] = 0.0  # recommended reduction of the temperature at edges
    # Convolutions of ``CompactUpscaler``, which makes a guide (``engine.guide``); 0 for none.
    guide_layers: Annotated[int, Range(0, 256)] = 0
    guide_width: Annotated[int, Range(1, 4096)] = 64  # channels between them
    guide_strength: Annotated[float, Range(0, 1)] = 0.5  # recommended share of the guide's latents
    # between which temperatures the share of the model's own guide rises from 0 to that; if equal, it is always that
    guide_temperatures: Annotated[tuple[float, float], Range(0, 10)] = (0.0, 0.0)
    guide_match: Annotated[float, Range(0, 1)] = 1.0  # how far a guide is changed to shrink to the LR image
    guide_sharpness: Annotated[float, Range(0, 5)] = 0.0  # amount of an unsharp mask on the model's own guide
    # from mid gray, of what it draws of photographs at low temperatures, see ``overflow.CALM``; 0 for not known
    plausible_deviation: Annotated[float, Range(0, 10)] = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_value("levels", self.levels, int, Range(1, round(math.log2(self.scale)) + 1))
        object.__setattr__(self, "stacked_blocks", block_indices(self.stacked_blocks, self.encoder_blocks))

    @property
    def grids(self) -> range:
        """The grids of its levels, finest first: grid l has the size of HR divided by 2^l."""
        return range(1, self.levels + 1)

    @property
    def features(self) -> int:
        """Channels of the condition of each level."""
        return self.encoder_width * (2 if self.encoder == "imdn" else 1 + len(self.stacked_blocks))


def srflow(config: SRFlowConfig) -> FlowModel[SRFlowConfig]:
    """Build an SRFlow of HR, ``(B, 3, scale * h, scale * w)``; its condition is encoded from LR, ``(B, 3, h, w)``."""
    features = config.features
    levels: list[Level] = []
    channels = 3
    for number in range(1, config.levels + 1):
        channels *= 4
        steps: list[Transform] = []
        for k in range(config.transition_steps + config.steps):
            start = config.mixing if k == 0 or config.mixing == "orthogonal" else "reverse"
            parts: list[Transform] = [ActNorm(channels), InvertibleConv(channels, start=start)]
            if k >= config.transition_steps:
                if config.injector:
                    parts.append(Injector(_conditioner(features, 2 * channels, config), eps=config.affine_eps))
                parts.append(Coupling(_conditioner(channels // 2 + features, channels, config), eps=config.affine_eps))
            steps.append(Chain(*parts))
        splits = number < config.levels - 1  # the published model has none after the last two levels
        levels.append(Level(steps, Split(ZeroConv(channels // 2, channels)) if splits else None))
        channels = channels // 2 if splits else channels
    floats = config.encoder_width * (1 if config.encoder == "imdn" else len(config.stacked_blocks)) / config.scale**2
    floats += config.encoder_width * sum(1 / 4**grid for grid in config.grids)
    make_encoder = IMDNEncoder if config.encoder == "imdn" else RRDBEncoder
    encoder = make_encoder(
        config.scale, config.encoder_blocks, config.encoder_width, config.encoder_growth, config.stacked_blocks
    )
    return FlowModel(
        levels,
        channels=3,
        config=config,
        architecture="srflow",
        capabilities=Capabilities(source="low_resolution", tasks=config.tasks, floats_per_pixel=floats),
        encoder=encoder,
        condition_encoder=_encode_lr,
        condition_scale=config.scale,
        guide=CompactUpscaler(config.scale, config.guide_layers, config.guide_width) if config.guide_layers else None,
    )


def _encode_lr(flow: FlowModel[SRFlowConfig], lr: Tensor) -> Condition:
    check_lr(flow, lr)
    assert flow.encoder is not None  # an LREncoder, or a compiled flow's folded one
    features, origin = flow.encoder(lr, flow.config.grids, with_enlargement=flow.config.residual)
    return Condition(features=tuple(features), origin=origin)


def _conditioner(inputs: int, outputs: int, config: SRFlowConfig) -> Conditioner:
    return Conditioner(inputs, config.hidden, outputs, layers=config.hidden_layers, kernel=config.hidden_kernel)
