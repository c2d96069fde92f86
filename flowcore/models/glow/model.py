"""Glow: images from noise and back, by levels of actnorm, 1x1 convolution and coupling.

Source: Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (NeurIPS 2018). The fields from
``pixels`` on are where published implementations differ; their defaults are ours.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...errors import FlowError
from ...flows.condition import Condition
from ...flows.dequantization import VariationalDequantizer
from ...flows.flow import Level
from ...flows.model import Capabilities, FlowModel, Task
from ...flows.networks.conditioner import Conditioner, Edge, PlainConditioner, TablePrior, TopPrior, ZeroConv
from ...flows.transforms import (
    ActNorm,
    Chain,
    Coupling,
    FixedAffine,
    InvertibleConv,
    Permutation,
    SignedActNorm,
    Split,
    Standardize,
)
from ..fields import Range, check_fields, short_repr, size_tuple
from ..inputs import label_weights

Mixing = Literal["reverse", "shuffle", "conv", "lu"]


@dataclass(frozen=True, kw_only=True)
class GlowConfig:
    """Configuration of a Glow; the defaults are the paper's CIFAR-10 network."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"sample"})

    channels: Literal[1, 3] = 3
    levels: Annotated[int, Range(1, 8)] = 3  # each halves the sides
    steps: Annotated[int, Range(1, 256)] = 32  # steps per level
    hidden: Annotated[int, Range(1, 4096)] = 512  # width of the networks in couplings
    coupling: Literal["affine", "additive"] = "affine"
    # Before every coupling: a fixed permutation, a 1x1 convolution, or its LU factors; the paper's ablation.
    mixing: Mixing = "lu"
    # Initialization of "conv" and "lu": random orthogonal as in the paper; or "principal": the first of each level as
    # the principal axes of the first batch, the others as channel reversals.
    mixing_start: Literal["orthogonal", "principal"] = "orthogonal"
    affine_eps: Annotated[float, Range(0, 1, open=True)] = 0.0  # smallest scale of affine couplings; 0 in the paper
    learned_top: bool = True  # whether mean and standard deviation of the last latents are learned
    classes: Annotated[int, Range(0, 10_000)] = 0  # labels that the last latents' prior depends on; 0 for none
    n_bits: Annotated[int, Range(1, 8)] = 8  # bits per subpixel of the images that it models
    # Where pixel values lie in [0, 1]: value k fills [k, k + 1) / 2^n_bits ("bins"), or k / (2^n_bits - 1) is the
    # middle of its bin ("levels").
    grid: Literal["bins", "levels"] = "bins"
    image_size: tuple[int, int] | None = None  # height and width, or the side of a square, of the training images
    dequantizer_steps: Annotated[int, Range(0, 64)] = 0  # steps of a dequantizer, trained with the flow; 0: none
    pixels: Literal["centred", "unit"] = "centred"  # what the first level sees: x - 1/2 or x; files spell it so
    edge: Edge = "zeros"  # what convolutions see beyond the border; "flag" is one more channel
    network: Literal["actnorm", "plain"] = "actnorm"  # inside couplings: convolutions with actnorms or with biases
    actnorm: Literal["log", "log3", "signed"] = "log"  # how scales are stored; "log3": the logarithm divided by 3
    scaled: bool = True  # whether the last convolution of couplings has a learned scale
    split_prior: Literal["conv", "table"] = "conv"  # a convolution of the kept half, or a table by position and label
    last_mixing: Literal["", "reverse", "shuffle", "conv", "lu"] = ""  # mixing of the last level, if it differs
    styles: tuple[str, ...] = ()  # names of the style directions stored with the weights; they need ``image_size``

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "image_size", size_tuple(self.image_size, 2**self.levels))
        if self.styles and self.image_size is None:
            raise FlowError(
                "styles must be empty without image_size, e.g. 64: they hold a number per subpixel; got "
                f"{short_repr(self.styles)}."
            )
        if self.split_prior == "table" and self.image_size is None:
            raise FlowError('split_prior "table" stores a number per pixel, so it needs image_size, e.g. 32.')
        if self.network == "plain" and self.edge == "flag":
            raise FlowError('edge must be "zeros" or "ones" for network "plain".')


def glow(config: GlowConfig) -> FlowModel[GlowConfig]:
    """Build a Glow of images ``(B, channels, H, W)`` in [0, 1]; with ``classes``, it is conditioned on labels."""
    levels: list[Level] = []
    channels = config.channels
    for number in range(1, config.levels + 1):
        channels *= 4
        last = number == config.levels
        steps = [_step(channels, config, first=k == 0, last=last) for k in range(config.steps)]
        if last:
            split = None
        elif config.split_prior == "table":
            split = Split(_table(channels // 2, number, config), labeled=config.classes > 0)
        else:
            split = Split(ZeroConv(channels // 2, channels, edge=config.edge))
        levels.append(Level(steps, split))
        channels = channels if last else channels // 2
    top_prior = None
    if config.split_prior == "table":
        top_prior = Standardize(_table(channels, config.levels, config))
    elif config.learned_top or config.classes:
        top_prior = Standardize(
            TopPrior(channels, learned=config.learned_top, edge=config.edge, classes=config.classes)
        )
    source = "labels" if config.classes else "none"
    floats = 3 / 4 * config.hidden  # activations: three tensors of the hidden width, at a quarter of the pixels
    dequantizer = None
    if config.dequantizer_steps:
        dequantizer = VariationalDequantizer(config.channels, n_bits=config.n_bits, steps=config.dequantizer_steps)
    return FlowModel(
        levels,
        channels=config.channels,
        config=config,
        architecture="glow",
        capabilities=Capabilities(source=source, tasks=config.tasks, floats_per_pixel=floats),
        preprocess=FixedAffine(0.5) if config.pixels == "centred" else None,
        top_prior=top_prior,
        condition_encoder=_encode_labels if config.classes else None,
        classes=config.classes,
        image_size=config.image_size,
        fixed_size=config.split_prior == "table",
        dequantizer=dequantizer,
        styles=config.styles,
    )


def _step(channels: int, config: GlowConfig, *, first: bool, last: bool) -> Chain:
    inputs, outputs = channels // 2, channels - channels // 2
    outputs *= 2 if config.coupling == "affine" else 1
    log_factor = 3.0 if config.actnorm == "log3" else 1.0
    hidden, edge, scaled = config.hidden, config.edge, config.scaled
    if config.network == "actnorm":
        network: nn.Module = Conditioner(inputs, hidden, outputs, edge=edge, log_factor=log_factor, scaled=scaled)
    else:
        network = PlainConditioner(inputs, hidden, outputs, edge=edge, scaled=scaled)
    actnorm = SignedActNorm(channels) if config.actnorm == "signed" else ActNorm(channels, log_factor=log_factor)
    mixing = _mixing(channels, (config.last_mixing if last else "") or config.mixing, config, first=first)
    scaling = "sigmoid" if config.coupling == "affine" else "none"
    return Chain(actnorm, mixing, Coupling(network, eps=config.affine_eps, scaling=scaling))


def _mixing(channels: int, kind: Mixing, config: GlowConfig, *, first: bool) -> Permutation | InvertibleConv:
    if kind == "reverse":
        return Permutation(torch.arange(channels).flip(0))
    if kind == "shuffle":
        return Permutation(torch.randperm(channels))
    start = config.mixing_start if first or config.mixing_start == "orthogonal" else "reverse"
    return InvertibleConv(channels, lu=kind == "lu", start=start)


def _table(channels: int, level: int, config: GlowConfig) -> TablePrior:
    assert config.image_size is not None
    height, width = (side // 2**level for side in config.image_size)
    return TablePrior(channels, height, width, classes=config.classes)


def _encode_labels(flow: FlowModel, labels: Tensor) -> Condition:
    return Condition(features=(None,) * len(flow.levels), labels=label_weights(labels, flow.classes))
