"""HCFlow: super-resolution and rescaling; the last three channels of the flow are the LR image.

An unconditional trunk halves the grid at every level and splits channels off, which small flows turn into latents,
conditioned on features of the channels that remain. The last three channels are trained to equal the LR image; their
latents are the deviation from it, which sampling sets to zero.

Source: Liang, Lugmayr, Zhang, Danelljan, Van Gool, Timofte, "Hierarchical Conditional Flow: A Unified Framework for
Image Super-Resolution and Image Rescaling" (ICCV 2021). The density of the LR image is taken as it is; the published
implementation rounds it to 8 bits first.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from ...flows.condition import Condition
from ...flows.flow import Details, Level
from ...flows.model import Capabilities, FlowModel, Task
from ...flows.networks.conditioner import Conditioner, FixedPrior, NormalizedConv, ZeroConv
from ...flows.transforms import (
    ActNorm,
    Center,
    Chain,
    Coupling,
    FixedAffine,
    Haar,
    Injector,
    InvertibleConv,
    Split,
    Standardize,
    Transform,
)
from ..fields import Range, check_fields
from ..inputs import LR, check_source
from ..srflow.rrdb import DenseConvs
from .extractor import HierarchicalExtractor

LR_LOG_STD = -6.0  # a deviation of the LR image of 0.0025, or 0.63 of an 8-bit step
IMAGE_CHANNELS = 3  # channels that the deepest level keeps


@dataclass(frozen=True, kw_only=True)
class HCFlowConfig:
    """Configuration of an HCFlow; the defaults are the published DF2K 4X network."""

    scale: Literal[2, 4, 8] = 4  # integer factor from LR to HR, by log2(scale) levels
    steps: Annotated[int, Range(1, 256)] = 13  # trunk steps per level
    detail_steps: Annotated[int, Range(1, 256)] = 13  # conditional steps per level
    hidden: Annotated[int, Range(1, 4096)] = 64  # width of trunk couplings' networks; in rescaling, their growth
    detail_hidden: Annotated[int, Range(1, 4096)] = 64  # width of conditional couplings' networks
    extractor_blocks: Annotated[tuple[int, int], Range(0, 256)] = (7, 7)  # RRDBs in the halves of a level's extractor
    extractor_width: Annotated[int, Range(1, 4096)] = 64  # channels of its trunk
    extractor_growth: Annotated[int, Range(1, 4096)] = 32  # channels that each of its dense convolutions adds
    quant_bins: Annotated[int, Range(1, 65536)] = 64  # the dequantization noise in training has width 1 / quant_bins
    # Whether the flow makes the LR image itself, to be restored later: with Haar transforms instead of squeezes, trunk
    # couplings between the coarse image and the rest without 1x1 convolutions, and priors of bounded scale.
    rescaling: bool = False
    # Recommended; the published tests have 0.9 at 4x, 0.8 for faces, and 1 for rescaling, where 0 is the mean of what
    # can be restored.
    temperature: Annotated[float, Range(0, 10, open=True)] = 0.9
    calm_edges: Annotated[float, Range(0, 1)] = 0.0  # recommended reduction of the temperature at edges

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def tasks(self) -> frozenset[Task]:
        return frozenset({"rescale" if self.rescaling else "upscale"})

    @property
    def levels(self) -> int:
        """Squeeze scales; the deepest is the LR grid."""
        return self.scale.bit_length() - 1


def hcflow(config: HCFlowConfig) -> FlowModel[HCFlowConfig]:
    """Build an HCFlow of HR, ``(B, 3, scale * h, scale * w)``; its condition is encoded from LR, ``(B, 3, h, w)``."""
    levels: list[Level] = []
    channels = IMAGE_CHANNELS
    for number in range(1, config.levels + 1):
        channels *= 4
        steps: list[Transform] = [FixedAffine(shift=0, width=2)] if config.rescaling else []  # Haar means are doubled
        steps += [Chain(*_step(channels, k, config)) for k in range(config.steps)]
        continuing = IMAGE_CHANNELS if number == config.levels else channels // 2
        details = _details(continuing, channels - continuing, config.levels - number, config)
        squeeze = Haar() if config.rescaling else None
        levels.append(Level(steps, Split(None, kept=continuing), squeeze=squeeze, details=details))
        channels = continuing
    # features of all levels, and at the widest moment the extractor of the finest one
    features = config.extractor_width * (1 if config.rescaling else 2)
    floats = sum(features / 4**level for level in range(1, config.levels + 1)) + 3 / 4 * config.extractor_width
    flow = FlowModel(
        levels,
        channels=IMAGE_CHANNELS,
        config=config,
        architecture="hcflow",
        capabilities=Capabilities(source="low_resolution", tasks=config.tasks, floats_per_pixel=floats),
        top_prior=Chain(Center(), Standardize(FixedPrior(LR_LOG_STD))),
        condition_encoder=_encode_lr,
        condition_scale=config.scale,
        predicts_lr=True,
    )
    # Weights start as published: Xavier normal times 0.1; the output of a dense coupling starts at zero.
    for module in flow.modules():
        if isinstance(module, NormalizedConv):
            nn.init.xavier_normal_(module.weight, 0.1)
        if isinstance(module, DenseConvs):
            for conv in module.convs:
                nn.init.xavier_normal_(conv.get_parameter("weight"), 0.1)
    for module in flow.modules():
        if isinstance(module, Coupling) and isinstance(module.conditioner, DenseConvs):
            nn.init.zeros_(module.conditioner.convs[-1].get_parameter("weight"))
    return flow


def _step(channels: int, number: int, config: HCFlowConfig) -> list[Transform]:
    if not config.rescaling:
        network = Conditioner(channels // 2, config.hidden, channels)
        return [ActNorm(channels), InvertibleConv(channels), Coupling(network, scaling="narrow")]
    rest = channels - IMAGE_CHANNELS
    if number % 2 == 0:
        network = DenseConvs(IMAGE_CHANNELS, config.hidden, 2 * rest)
        return [ActNorm(channels), Coupling(network, scaling="narrow", first=IMAGE_CHANNELS)]
    network = DenseConvs(rest, config.hidden, IMAGE_CHANNELS)
    return [ActNorm(channels), Coupling(network, scaling="none", first=IMAGE_CHANNELS, swap=True)]


def _details(continuing: int, channels: int, deeper: int, config: HCFlowConfig) -> Details:
    """The conditional flow of the channels that a level splits off."""
    width, growth = config.extractor_width, config.extractor_growth
    extractor = HierarchicalExtractor(
        continuing, deeper, config.extractor_blocks, width, growth, both=not config.rescaling
    )
    inputs, outputs = channels // 2 + extractor.features, 2 * (channels - channels // 2)
    steps: list[Transform] = []
    for _ in range(config.detail_steps):
        network = Conditioner(inputs, config.detail_hidden, outputs)
        steps.append(Chain(ActNorm(channels), InvertibleConv(channels), Coupling(network, scaling="narrow")))
    prior = Injector(ZeroConv(extractor.features, 2 * channels), scaling="narrow" if config.rescaling else "exp")
    return Details(extractor, Chain(*steps, prior))


def _encode_lr(flow: FlowModel[HCFlowConfig], lr: Tensor) -> Condition:
    check_source(flow, lr, (IMAGE_CHANNELS,), LR, multiple=1)
    return Condition(features=(None,) * len(flow.levels), lr_mean=lr)
