"""Residual Flow: residual blocks with free-form Jacobians instead of couplings.

Source: Chen, Behrmann, Duvenaud, Jacobsen, "Residual flows for invertible generative modeling" (NeurIPS 2019). Every
block adds a contraction, whose log-determinant is estimated and whose inverse is found by iteration: see
``transforms.Residual``. Norms are spectral; the program's mixed and learned ones are left out.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ...errors import FlowError
from ...flows.flow import Level
from ...flows.model import Capabilities, FlowModel, Task
from ...flows.transforms import ActNorm, Chain, Flatten, Logit, Residual, Split, Squeeze, Transform, Unflatten
from ..fields import Range, check_fields, short_repr, size_tuple
from .contractive import ContractiveNetwork

MIN_VARIANCE = 0.2  # least variance of a channel or element at the start: nearly constant pixels are not amplified


@dataclass(frozen=True, kw_only=True)
class ResidualFlowConfig:
    """Configuration of a Residual Flow; the defaults are the paper's CIFAR-10 network."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"sample"})

    channels: Literal[1, 3] = 3
    blocks: Annotated[tuple[int, ...], Range(1, 256)] = (16, 16, 16)  # convolutional blocks per scale
    hidden: Annotated[int, Range(1, 4096)] = 512  # width of their networks
    full_blocks: Annotated[int, Range(0, 64)] = 4  # fully connected blocks at the end of the last scale
    full_hidden: Annotated[int, Range(1, 4096)] = 128  # width of their networks
    kernels: Annotated[tuple[int, ...], Range(1, 15)] = (3, 1, 3)  # sides of a block's layers; full ones have as many
    activation: Literal["lipswish", "elu"] = "lipswish"
    leading: bool = True  # whether the network of a block begins with an activation
    first_leading: bool = False  # whether that of the very first block does
    coefficient: Annotated[float, Range(1e-3, 1, open=True)] = 0.98  # bound on the norm of every layer
    # How that norm is measured: on the grid of ``image_size``, or over all frequencies, which bounds it at any size but
    # overestimates it by up to a fifth.
    lipschitz: Literal["grid", "frequencies"] = "grid"
    factor_out: bool = False  # whether every scale but the last factors out half of its channels
    squeeze_first: bool = False  # whether the image is squeezed before the first scale
    first_actnorm: bool = True  # whether an actnorm precedes the first block
    # Of the logit: distance of pixels from 0 and 1; 0.05 for colors and 1e-6 for digits in the paper.
    alpha: Annotated[float, Range(1e-6, 0.5, open=True)] = 0.05
    n_bits: Annotated[int, Range(1, 8)] = 8  # bits per subpixel of the images that it models
    grid: Literal["bins", "levels"] = "bins"  # where pixel values lie in [0, 1]; see ``GlowConfig``
    image_size: tuple[int, int] | None = (32, 32)  # height and width, or the side of a square, of the training images

    def __post_init__(self) -> None:
        check_fields(self)
        for name, values, most in (("blocks", self.blocks, 8), ("kernels", self.kernels, 16)):
            if not 1 <= len(values) <= most:
                raise FlowError(f"{name} must be 1 to {most} numbers; got {short_repr(values)}.")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise FlowError(f"kernels must be odd; got {short_repr(self.kernels)}.")
        object.__setattr__(self, "image_size", size_tuple(self.image_size, self.size_multiple))
        if self.image_size is None and (self.full_blocks or self.lipschitz == "grid"):
            raise FlowError(
                'image_size must be given, e.g. 32: full blocks, and norms on the "grid", are for one size. A model '
                'for any size has full_blocks = 0 and lipschitz = "frequencies".'
            )

    @property
    def size_multiple(self) -> int:
        return 2 ** (len(self.blocks) - 1 + self.squeeze_first)


def residual_flow(config: ResidualFlowConfig) -> FlowModel[ResidualFlowConfig]:
    """Build a Residual Flow with random weights; its images are ``(B, channels, H, W)`` in [0, 1]."""
    levels: list[Level] = []
    height, width = config.image_size or (0, 0)
    shape = (config.channels, height, width)
    for number, blocks in enumerate(config.blocks):
        first, last = number == 0, number == len(config.blocks) - 1
        # published models squeeze at the end of a scale: the same as before the next, unless it factors out
        squeeze = Squeeze() if (config.squeeze_first if first else not config.factor_out) else Chain()
        shape = squeeze.output_shape(shape)
        factor = 2 if isinstance(squeeze, Squeeze) else 1
        steps: list[Transform] = [_actnorm(shape[0])] if first and config.first_actnorm else []
        for k in range(blocks):
            leading = config.first_leading if first and k == 0 else config.leading
            steps += [_block(shape, config.hidden, config.kernels, config, leading=leading), _actnorm(shape[0])]
        if last and config.full_blocks:  # flattened images: an element is a channel, a layer a 1x1 convolution
            flat = Flatten(*shape)
            flattened, kernels = flat.output_shape(shape), (1,) * len(config.kernels)
            steps.append(flat)
            for _ in range(config.full_blocks):
                steps.append(_block(flattened, config.full_hidden, kernels, config, leading=config.leading))
                steps.append(_actnorm(flattened[0]))
            steps.append(Unflatten(*shape))
        split = None
        if config.factor_out and not last:
            steps.append(Squeeze())
            shape, factor, split = steps[-1].output_shape(shape), 2 * factor, Split(None)
        levels.append(Level(steps, split, squeeze=squeeze, downscale=factor))
        shape = (shape[0] // 2, shape[1], shape[2]) if split else shape
    floats = 4.0 * config.hidden / (4 if config.squeeze_first else 1)  # two layers, and their slopes
    flow = FlowModel(
        levels,
        channels=config.channels,
        config=config,
        architecture="residual_flow",
        capabilities=Capabilities(source="none", tasks=config.tasks, floats_per_pixel=floats),
        preprocess=Logit(config.alpha),
        image_size=config.image_size,
        fixed_size=bool(config.full_blocks) or config.lipschitz == "grid",
    )
    flow.normalize()
    return flow


def _block(
    shape: tuple[int, int, int], hidden: int, kernels: tuple[int, ...], config: ResidualFlowConfig, *, leading: bool
) -> Residual:
    network = ContractiveNetwork(
        shape[0],
        hidden,
        kernels=kernels,
        activation=config.activation,
        leading=leading,
        grid=shape[1:] if config.lipschitz == "grid" else None,
        coefficient=config.coefficient,
    )
    return Residual(network)


def _actnorm(channels: int) -> ActNorm:
    return ActNorm(channels, min_variance=MIN_VARIANCE)
