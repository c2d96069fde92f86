"""Colorizer: the two chroma channels of a photograph from its luma, in many ways.

A Haar pyramid decomposes the chroma. The coarsest grid is one conditional flow with a global view: it decides the
colors. Each finer grid is a flow of the details, given the coarser image.

    p(chroma | luma) = p(means_K, details_K | luma) * product over l < K of p(details_l | means_l, luma)

Source: Ardizzone et al., "Guided Image Generation with Conditional Invertible Neural Networks" (2019), section 4.2
(colorization by one multi-scale flow); Yu et al., "Wavelet Flow" (2020), section 3 (the factorization); Winkler et al.,
"Learning Likelihoods with Conditional Normalizing Flows" (2019), section 3.1 (conditional priors). The rest is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from ...errors import FlowError
from ...flows.condition import Condition
from ...flows.flow import Level
from ...flows.model import Capabilities, FlowModel, Task
from ...flows.networks.conditioner import Conditioner
from ...flows.transforms import (
    ActNorm,
    Chain,
    ChannelWhitening,
    ConditionOnChannels,
    Coupling,
    Haar,
    Injector,
    InterpolatedDetails,
    InvertibleConv,
    Split,
    Transform,
)
from ...images.color import NEUTRAL
from ..fields import Range, check_fields
from ..inputs import check_source
from .luma import CHROMA_UNIT, STRIDE, LumaEncoder, split_source, working_sides

SOURCE_CHANNELS = (1, 4, 8)  # see ``colorizer``: luma, then hints, a palette


@dataclass(frozen=True, kw_only=True)
class ColorizerConfig:
    """Configuration of a colorizer; the defaults are the shipped network."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"colorize"})

    structure: Literal["pyramid", "single"] = "pyramid"  # "single": one flow on the finest grid, the ablation
    steps: Annotated[tuple[int, ...], Range(1, 64)] = (4, 6, 8, 8, 10)  # steps of each grid, finest first
    hidden: Annotated[tuple[int, ...], Range(1, 4096)] = (48, 64, 80, 96, 96)  # width of couplings' networks
    # Channels of the luma encoder at strides 4, 8, ...: one more than there are grids.
    widths: Annotated[tuple[int, ...], Range(1, 4096)] = (32, 48, 64, 96, 128, 128)
    merged: Annotated[int, Range(1, 1024)] = 64  # channels of the encoder's upward path
    features: Annotated[int, Range(1, 1024)] = 32  # channels of luma features per grid
    dropout: Annotated[float, Range(0, 1, open=True)] = 0.0  # the encoder's; see ``LumaEncoder``
    backbone: Literal["none", "efficientnet-lite0"] = "none"  # the encoder's pretrained network
    predicts_chroma: bool = False  # whether the encoder also predicts mean chroma
    # Whether the flow models the chroma's difference from this prediction, so that latents of 0 are near it.
    residual: bool = False
    # Whether finer grids start from interpolated coarser ones, in the encoder and in the flow; otherwise from blocks,
    # whose borders show where the flow does not remove them.
    smooth: bool = False
    working_size: Annotated[int, Range(16, 4096)] = 256  # shorter side of the luma at which colors are decided
    # Recommended for the palette (the coarsest grid) and for detail (the finest).
    temperatures: Annotated[tuple[float, float], Range(0, 10)] = (0.9, 0.3)
    # Recommended share of the coarsest grid's noise that similar places share; see ``tasks.chroma``.
    coherence: Annotated[float, Range(0, 1)] = 0.0
    # Length scales of that similarity: in the features, and in cells of the coarsest grid.
    coherence_scales: Annotated[tuple[float, float], Range(0.01, 1000)] = (0.6, 4.0)
    saturation: Annotated[float, Range(0, 10)] = 1.0  # recommended factor on chroma, except what the caller gives
    starter_memory: bool = False  # recommended: whether to use the shipped memory; see ``colorize``

    def __post_init__(self) -> None:
        check_fields(self)
        grids = len(self.steps)
        if not 1 <= grids <= 8 or len(self.hidden) != grids or len(self.widths) != grids + 1:
            raise FlowError(
                f"steps and hidden must have a number per grid, at most 8, and widths one more; got {len(self.steps)}, "
                f"{len(self.hidden)} and {len(self.widths)}."
            )
        if self.widths[-1] % 4:
            raise FlowError(f"The last of widths must be a multiple of 4; got {self.widths[-1]}.")
        if self.residual and not self.predicts_chroma:
            raise FlowError("residual = true needs predicts_chroma = true: it subtracts what the encoder predicts.")
        if self.backbone != "none" and grids < 3:
            raise FlowError(f"A backbone needs at least 3 grids, for its strides 8, 16 and 32; got {grids}.")

    @property
    def source_multiple(self) -> int:
        return STRIDE * 2 ** len(self.steps)

    def working_sides(self, height: int, width: int, working_size: int | None = None) -> tuple[int, int]:
        """Compute the size at which the colors of a photograph are decided; see ``luma.working_sides``."""
        return working_sides(height, width, working_size or self.working_size)


def without_memory(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drop the fields by which older files state that the encoder has no memory of its own; none has one today."""
    retired = () if fields.get("memory") else ("memory", "memory_share", "memory_neighbors")
    return {name: value for name, value in fields.items() if name not in retired}


def colorizer(config: ColorizerConfig) -> FlowModel[ColorizerConfig]:
    """Build a colorizer with random weights; its images are chroma, ``(B, 2, H, W)``: Cb and Cr of JPEG, over 255.

    Its condition is encoded from 1, 4 or 8 planes of four times the size, ``(B, C, 4H, 4W)``, in this order:

    - 1, luma in [0, 1];
    - 3, hints: their coverage in [0, 1], and coverage times Cb and Cr, centered on 0;
    - 4, a palette, each constant: whether there is one, and that times mean Cb, mean Cr and root mean square chroma.
    """
    encoder = LumaEncoder(
        config.widths,
        config.merged,
        config.features,
        dropout=config.dropout,
        backbone=config.backbone != "none",
        predicts_chroma=config.predicts_chroma,
        smooth=config.smooth,
    )
    features = encoder.outputs
    grids = len(config.steps)
    levels: list[Level] = []
    if config.structure == "single":
        levels.append(Level(_steps(8, features, config.steps[0], config.hidden[0]), None))
    else:
        for number, (steps, hidden) in enumerate(zip(config.steps, config.hidden, strict=True), start=1):
            if number < grids:
                details = ConditionOnChannels(2, Chain(*_steps(6, features + 2, steps, hidden)))
                parts = [InterpolatedDetails(), details] if config.smooth else [details]
                levels.append(Level(parts, Split(None, kept=2), squeeze=Haar()))
            else:
                levels.append(Level(_steps(8, features, steps, hidden, global_context=True), None, squeeze=Haar()))
    return FlowModel(
        levels,
        channels=2,
        config=config,
        architecture="colorizer",
        capabilities=Capabilities(source="luma", tasks=config.tasks, floats_per_pixel=1 + config.widths[0] / 2),
        preprocess=ChannelWhitening(2),
        encoder=encoder,
        condition_encoder=_encode_luma,
    )


def _steps(channels: int, features: int, steps: int, hidden: int, *, global_context: bool = False) -> list[Transform]:
    inputs, outputs = channels // 2 + features, 2 * (channels - channels // 2)
    parts: list[Transform] = []
    for k in range(steps):
        parts += [
            ActNorm(channels),
            InvertibleConv(channels, start="principal" if k == 0 else "reverse"),
            Coupling(Conditioner(inputs, hidden, outputs, global_context=global_context), scaling="atan"),
        ]
    prior = Conditioner(features, hidden, 2 * channels, global_context=global_context)
    return [*parts, ActNorm(channels), Injector(prior, scaling="exp")]


def _encode_luma(flow: FlowModel[ColorizerConfig], source: Tensor) -> Condition:
    expected = "luma of shape (B, 1, H, W), (B, 4, H, W) with hints or (B, 8, H, W) with hints and a palette"
    check_source(flow, source, SOURCE_CHANNELS, expected, flow.config.source_multiple)
    assert isinstance(flow.encoder, LumaEncoder)
    features = flow.encoder(*split_source(source))
    origin = None
    if flow.config.residual:  # the chroma predicted on the finest grid, at stride 8, enlarged and whitened
        # the encoder appends the prediction to its own features
        preprocess, first = flow.preprocess, flow.config.features
        assert isinstance(preprocess, ChannelWhitening)
        chroma = features[0][:, first : first + 2].to(preprocess.get_buffer("mean")) * CHROMA_UNIT
        origin = preprocess(F.interpolate(chroma, scale_factor=2.0, mode="bicubic") + NEUTRAL)[0]
    return Condition(features=tuple(features if flow.config.structure == "pyramid" else features[:1]), origin=origin)
