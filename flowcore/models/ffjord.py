"""FFJORD: a flow in continuous time, without couplings: pixels drift along a learned velocity.

Source: Grathwohl et al., "FFJORD: Free-form continuous dynamics for scalable reversible generative models" (ICLR 2019);
its model of images is the default. Steps of the solver are fixed, see ``transforms.ODE``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from ..errors import FlowError
from ..flow import Capabilities, Flow, Level, Task
from ..networks import VectorField
from ..networks.vector_field import Activation, TimeInput
from ..transforms import ODE, ActNorm, BatchNorm, Chain, Logit, PixelMap, Solver, Split, Squeeze, Transform
from .fields import Range, check_fields, short_repr, size_tuple


@dataclass(frozen=True, kw_only=True)
class FFJORDConfig:
    """Configuration of an FFJORD; the defaults are the paper's CIFAR-10 network.

    Attributes:
        channels: 1 or 3.
        scales: Number of scales; all but the last factor out half of the dimensions. 1 for a single grid.
        blocks: ODEs one after the other, before and after every squeeze.
        hidden: Widths between the convolutions of a velocity.
        strides: Of these convolutions, one more than widths: 1, 2 or -2, as many of one as of the other; empty for 1
            throughout. With a single grid only.
        time: How they see the time; see ``networks.vector_field``.
        activation: Between them.
        batch_norm: Whether a batch-norm layer and an actnorm follow the last ODE. With a single grid only.
        steps: Of the solver, for every ODE. Their number is part of the model.
        solver: "rk4" (the classical rule), "rk4_38" (the 3/8 rule), "midpoint" or "euler".
        how: What a log-determinant is: the integrated "trace", estimated where a condition gives probes; or "exact",
            the determinant of the steps, for small images; see ``transforms.ODE``.
        alpha: Of the logit: distance of pixels from 0 and 1. With 0 there is no logit; 1/2 is subtracted from pixels.
        n_bits, grid, image_size: See ``GlowConfig``.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({"sample"})

    channels: Literal[1, 3] = 3
    scales: Annotated[int, Range(1, 8)] = 4
    blocks: Annotated[int, Range(1, 64)] = 2
    hidden: Annotated[tuple[int, ...], Range(1, 4096)] = (64, 64, 64)
    strides: Annotated[tuple[int, ...], Range(-2, 2)] = ()
    time: TimeInput = "concat"
    activation: Activation = "softplus"
    batch_norm: bool = False
    steps: Annotated[int, Range(1, 1024)] = 8
    solver: Solver = "rk4"
    how: Literal["trace", "exact"] = "trace"
    alpha: Annotated[float, Range(0, 0.5, open=True)] = 0.05
    n_bits: Annotated[int, Range(1, 8)] = 8
    grid: Literal["bins", "levels"] = "bins"
    image_size: tuple[int, int] | None = None

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
        multiple = math.prod(2 for stride in self.strides if stride == 2)
        object.__setattr__(self, "image_size", size_tuple(self, multiple * 2 ** (self.scales - 1)))


def ffjord(config: FFJORDConfig) -> Flow[FFJORDConfig]:
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
    return Flow(
        levels,
        channels=config.channels,
        config=config,
        architecture="ffjord",
        capabilities=Capabilities(
            source="none",
            tasks=config.tasks,
            floats_per_pixel=8.0 * sum(config.hidden),  # four stages of a step, each with its slopes
        ),
        prelude=Logit(config.alpha) if config.alpha else PixelMap(0.5),
        image_size=config.image_size,
    )


def _odes(channels: int, config: FFJORDConfig) -> list[Transform]:
    shape: dict[str, Any] = {"time": config.time, "activation": config.activation, "strides": config.strides}
    fields = (VectorField(channels, config.hidden, **shape) for _ in range(config.blocks))
    return [ODE(field, steps=config.steps, solver=config.solver, how=config.how) for field in fields]
