"""LLFlow: many well-lit versions of a dark photograph.

SRFlow's flow at scale 1, without splits. The prior of its one latent is normal around a map of the scene's colors: this
mean decodes to the published result, and the noise around it is ours.

Source: Wang, Wan, Yang, Li, Chau, Kot, "Low-Light Image Enhancement with Normalizing Flow" (AAAI 2022).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ...flows.condition import Condition
from ...flows.flow import Level
from ...flows.model import Capabilities, FlowModel, Task
from ...flows.networks.conditioner import Conditioner
from ...flows.transforms import ActNorm, Center, Chain, Coupling, Injector, InvertibleConv, Transform
from ...images.gain_grid import MAX_CELLS
from ..fields import Range, block_indices, check_fields
from ..inputs import check_source
from .low_light import LowLightEncoder, network_input

LEVELS = 3  # the encoder has as many grids
MULTIPLE = 2**LEVELS


@dataclass(frozen=True, kw_only=True)
class LLFlowConfig:
    """Configuration of an LLFlow; the defaults are the published LOL network."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"brighten"})

    steps: Annotated[int, Range(1, 256)] = 12  # conditional steps per level
    transition_steps: Annotated[int, Range(0, 16)] = 2  # steps before the conditional ones; no injector, no coupling
    hidden: Annotated[int, Range(1, 4096)] = 64  # width of the networks in injectors and couplings
    encoder_blocks: Annotated[int, Range(1, 256)] = 24  # RRDBs of the encoder
    encoder_width: Annotated[int, Range(1, 4096)] = 64  # channels of its trunk
    encoder_growth: Annotated[int, Range(1, 4096)] = 32  # channels that each of its dense convolutions adds
    stacked_blocks: tuple[int, ...] = (1, 3, 5, 7)  # indices of RRDBs whose outputs are in every level's condition
    affine_eps: Annotated[float, Range(0, 1, open=True)] = 1e-4  # smallest scale of injectors and couplings
    quant_bins: Annotated[int, Range(1, 65536)] = 32  # the dequantization noise in training has width 1 / quant_bins
    temperature: Annotated[float, Range(0, 10, open=True)] = 0.0  # recommended; the published program has 0
    gain_cells: Annotated[int, Range(0, MAX_CELLS)] = 0  # recommended number along the grid of gains; 0 as published

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "stacked_blocks", block_indices(self.stacked_blocks, self.encoder_blocks))


def llflow(config: LLFlowConfig) -> FlowModel[LLFlowConfig]:
    """Build an LLFlow of well-lit images, ``(B, 3, H, W)``.

    Its condition is encoded from the dark photograph, ``(B, 3, H, W)`` in [0, 1], whose histogram is equalized as a
    whole; or from ``low_light.network_input`` of it, ``(B, 6, H, W)``.
    """
    features = config.encoder_width * (1 + len(config.stacked_blocks))
    levels: list[Level] = []
    channels = 3
    for _ in range(LEVELS):
        channels *= 4
        steps: list[Transform] = []
        for k in range(config.transition_steps + config.steps):
            parts: list[Transform] = [ActNorm(channels), InvertibleConv(channels)]
            if k >= config.transition_steps:
                parts.append(Injector(Conditioner(features, config.hidden, 2 * channels), eps=config.affine_eps))
                network = Conditioner(channels // 2 + features, config.hidden, channels)
                parts.append(Coupling(network, eps=config.affine_eps))
            steps.append(Chain(*parts))
        levels.append(Level(steps, None))
    encoder = LowLightEncoder(config.encoder_blocks, config.encoder_width, config.encoder_growth, config.stacked_blocks)
    # the first two convolutions see every pixel; later ones, and the features of all levels, see few
    floats = config.encoder_width * max(3, 1 / 4 + 1 / 16 + 1 / 64 + len(config.stacked_blocks) / 4)
    return FlowModel(
        levels,
        channels=3,
        config=config,
        architecture="llflow",
        capabilities=Capabilities(source="low_light", tasks=config.tasks, floats_per_pixel=floats),
        top_prior=Center(),
        encoder=encoder,
        condition_encoder=_encode_dark,
        source_input=network_input,  # the histogram is that of the whole photograph
    )


def _encode_dark(flow: FlowModel[LLFlowConfig], source: Tensor) -> Condition:
    check_source(flow, source, (3, 6), "a dark photograph of shape (B, 3, H, W)", MULTIPLE)
    x = network_input(source) if source.shape[1] == 3 else source
    assert flow.encoder is not None  # a LowLightEncoder, or a compiled flow's folded one
    features, color = flow.encoder(x)
    return Condition(features=tuple(features), lr_mean=F.pixel_unshuffle(color.to(source.dtype), MULTIPLE))
