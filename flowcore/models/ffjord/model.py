"""FFJORD: a flow in continuous time, without couplings: pixels drift along a learned velocity.

Source: Grathwohl et al., "FFJORD: Free-form continuous dynamics for scalable reversible generative models" (ICLR 2019);
its model of images is the default. Steps of the solver are fixed, see ``transforms.ODE``.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ...errors import FlowError
from ...flows.flow import Level
from ...flows.model import Capabilities, FlowModel, Task
from ...flows.transforms import ODE, ActNorm, BatchNorm, Chain, FixedAffine, Logit, Solver, Split, Squeeze, Transform
from ..fields import Range, check_fields, short_repr, size_tuple
from .vector_field import Activation, TimeInput, VectorField


@dataclass(frozen=True, kw_only=True)
class FFJORDConfig:
    """Configuration of an FFJORD; the defaults are the paper's CIFAR-10 network."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"sample"})

    channels: Literal[1, 3] = 3
    scales: Annotated[int, Range(1, 8)] = 4  # all but the last factor out half of the dimensions; 1 for a single grid
    blocks: Annotated[int, Range(1, 64)] = 2  # ODEs in a row, before and again after every squeeze
    hidden: Annotated[tuple[int, ...], Range(1, 4096)] = (64, 64, 64)  # widths between the convolutions of a velocity
    # Strides of the convolutions, len(hidden) + 1 of them: 1, 2, or -2 to double the sides, as many 2 as -2; empty for
    # 1 throughout. Only with a single grid.
    strides: Annotated[tuple[int, ...], Range(-2, 2)] = ()
    time: TimeInput = "concat"  # how convolutions see the time; see ``vector_field``
    activation: Activation = "softplus"  # activation of the hidden layers
    batch_norm: bool = False  # whether a batch norm and an actnorm follow the last ODE; only with a single grid
    steps: Annotated[int, Range(1, 1024)] = 8  # the solver's steps, for every ODE; part of the model
    solver: Solver = "rk4"  # "rk4" is the classical rule, "rk4_38" the 3/8 rule
    # The log-determinant: the integrated trace, estimated if a condition gives probes; or that of the steps, for small
    # images; see ``transforms.ODE``.
    how: Literal["trace", "exact"] = "trace"
    # Of the logit: distance of pixels from 0 and 1; with 0, 1/2 is subtracted.
    alpha: Annotated[float, Range(0, 0.5, open=True)] = 0.05
    n_bits: Annotated[int, Range(1, 8)] = 8  # bits per subpixel of the images that it models
    grid: Literal["bins", "levels"] = "bins"  # where pixel values lie in [0, 1]; see ``GlowConfig``
    image_size: tuple[int, int] | None = None  # height and width, or the side of a square, of the training images

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.hidden) > 16:
            raise FlowError(f"hidden must be at most 16 widths; got {len(self.hidden)}.")
        if self.strides and (
            len(self.strides) != len(self.hidden) + 1
            or set(self.strides) - {1, 2, -2}
            or self.strides.count(2) != self.strides.count(-2)
        ):
            raise FlowError(
                f"strides must be empty or {len(self.hidden) + 1} of 1, 2 and -2, as many 2 as -2; got "
                f"{short_repr(self.strides)}."
            )
        if self.scales > 1 and (self.strides or self.batch_norm):
            raise FlowError(f"strides and batch_norm are for a single grid, scales = 1; got scales = {self.scales}.")
        multiple = 2 ** (self.strides.count(2) + self.scales - 1)
        object.__setattr__(self, "image_size", size_tuple(self.image_size, multiple))


def ffjord(config: FFJORDConfig) -> FlowModel[FFJORDConfig]:
    """Build an FFJORD with a velocity of zero; its images are ``(B, channels, H, W)`` in [0, 1]."""
    levels: list[Level] = []
    channels = config.channels
    for _ in range(config.scales - 1):
        steps = [*_odes(channels, config), Squeeze(), *_odes(4 * channels, config)]
        levels.append(Level(steps, Split(None), squeeze=Chain()))
        channels *= 2
    last = _odes(channels, config)
    if config.batch_norm:
        last += [BatchNorm(channels), ActNorm(channels)]
    levels.append(Level(last, None, squeeze=Chain(), downscale=1))
    return FlowModel(
        levels,
        channels=config.channels,
        config=config,
        architecture="ffjord",
        # four stages of a step, each with its slopes
        capabilities=Capabilities(source="none", tasks=config.tasks, floats_per_pixel=8.0 * sum(config.hidden)),
        preprocess=Logit(config.alpha) if config.alpha else FixedAffine(0.5),
        image_size=config.image_size,
    )


def _odes(channels: int, config: FFJORDConfig) -> list[Transform]:
    odes: list[Transform] = []
    for _ in range(config.blocks):
        field = VectorField(
            channels, config.hidden, time=config.time, activation=config.activation, strides=config.strides
        )
        odes.append(ODE(field, steps=config.steps, solver=config.solver, how=config.how))
    return odes
