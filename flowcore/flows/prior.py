"""The prior of every flow: independent standard normals; seeds and temperatures for sampling from it."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FlowError, ShapeError
from .mark import mark_key, mark_noise

Shape = tuple[int, int, int]

MARK_SHARE = 0.3  # share of a mark's noise, in standard deviations
MAX_DRAWS = 2**20  # draws of an image; far more than anyone waits for
DRAWS_PER_CHECK = 2**22  # numbers drawn between two calls of ``check``; a multiple of 16

Temperature: TypeAlias = float | Tensor | Sequence[float | Tensor]
"""Standard deviation of latents: one for all levels, or one per level, finest first. Each is a number, or a map
``(1 or n, 1, h, w)`` of any resolution that covers the whole image."""


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size, which may be the side of a square; FlowError unless it is valid."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise FlowError(f"size must be (height, width), or the side of a square, in whole pixels; got {size!r}.")
    return sides


def log_prob(latents: Sequence[Tensor]) -> Tensor:
    """Evaluate the standard-normal log density in nats, ``(B,)``: ``sum over all z of -(z^2 + log(2 pi)) / 2``."""
    return torch.stack([log_density(z).flatten(1).sum(1) for z in latents]).sum(0)


def log_density(z: Tensor) -> Tensor:
    """Evaluate the standard-normal log density elementwise, in nats: ``-(z^2 + log(2 pi)) / 2``."""
    return -0.5 * (z.square() + math.log(2 * math.pi))


def sample_latents(
    shapes: Sequence[Shape],
    n: int,
    temperature: Temperature = 1.0,
    seed: int = 0,
    *,
    predicts_lr: bool = False,
    mark: str | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Draw latents of the shapes ``(C_l, H_l, W_l)``, finest first: ``tau * N(0, 1)``, each ``(n, C_l, H_l, W_l)``.

    All draws are float32 from generators on the CPU, over the whole image, so that a seed means the same image on every
    device, at every batch position and at every tile size. Item i has its own generator, seeded with ``seed + i``;
    torch's CPU generator uses only the low 32 bits of a seed.

    Maps of temperatures are resized to each level; 0 gives the mode of the latents. ``predicts_lr`` is the flow's
    attribute: then the last latents are a deviation, which is zero. ``check`` is called every few million draws; it
    may raise to cancel.

    ``mark`` is a phrase that ``tasks.verify`` finds in pictures without their seed: with b = ``MARK_SHARE`` and its
    noise e (see ``mark``), the same for every item, draws are ``sqrt(1 - b^2) n + b e``, which is standard normal as n.
    """
    if predicts_lr:
        deviation = torch.zeros(1, *shapes[-1]).expand(max(n, 1), -1, -1, -1)
        return [*sample_latents(shapes[:-1], n, temperature, seed, mark=mark, check=check), deviation]
    taus = [
        resize_temperature_map(tau, *shape[1:]) if isinstance(tau, Tensor) else tau
        for tau, shape in zip(level_temperatures(temperature, len(shapes), n), shapes, strict=True)
    ]
    if isinstance(n, bool) or not isinstance(n, Integral) or not 1 <= n <= MAX_DRAWS:
        raise FlowError(f"The number of samples must be a whole number in [1, {MAX_DRAWS}]; got {n!r}.")
    seeds = seeds_of(check_seed(seed), n)
    # explicit, whatever torch's default type and device are
    levels = [torch.empty(n, *shape, dtype=torch.float32, device="cpu") for shape in shapes]
    for i, item_seed in enumerate(seeds):
        generator = torch.Generator("cpu").manual_seed(item_seed)
        for level in levels:
            values = level[i].view(-1)  # below 16 numbers, normal_ draws differently: no piece is shorter
            for start, stop in pairwise([*range(0, max(1, len(values) - 15), DRAWS_PER_CHECK), len(values)]):
                check()
                values[start:stop].normal_(generator=generator)
    if mark is not None:
        for level, noise in zip(levels, mark_noise(mark_key(mark), shapes, check), strict=True):
            level.mul_(math.sqrt(1 - MARK_SHARE**2)).add_(noise.mul_(MARK_SHARE))
    for level, tau in zip(levels, taus, strict=True):
        check()
        level.mul_(tau)
    return levels


def check_seed(seed: int) -> int:
    """Return a seed as Python's integer; FlowError unless it is a whole number in [0, 2^64), also one of NumPy."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**64:
        raise FlowError(f"A seed must be a whole number in [0, 2^64); got {seed!r}.")
    return int(seed)


def seeds_of(seed: int | Sequence[int], n: int) -> list[int]:
    """List the seeds of n items: those given, or ``seed + i``."""
    return list(seed) if isinstance(seed, Sequence) else [(check_seed(seed) + i) % 2**64 for i in range(n)]


def level_temperatures(temperature: Temperature, levels: int, n: int) -> list[float | Tensor]:
    """Validate temperatures and list them by level: a number, or a map ``(1 or n, 1, h, w)``, float32 on the CPU."""
    given: Any = temperature
    if isinstance(temperature, (int, float, str, Tensor)) or not hasattr(temperature, "__iter__"):
        taus: list[float | Tensor] = [number_or_map(given, n)] * levels
    else:
        taus = [number_or_map(tau, n) for tau in given]
    if len(taus) != levels:
        raise ShapeError(
            f"This model has {levels} levels of latents; got {len(taus)} temperatures. Give one, or one per level."
        )
    for tau in taus:
        values = torch.as_tensor(tau, dtype=torch.float64, device="cpu")  # whatever the default device is
        wrong = values[~(values.isfinite() & (values >= 0))]
        if len(wrong):
            raise FlowError(
                f"Temperature must be a finite number >= 0; got {float(wrong[0])}. 0 is the calmest, 1 the model's own "
                "spread."
            )
    return taus


def masked_temperature(mask: Tensor, inside: float, outside: float) -> Tensor:
    """Convert masks ``(B, 1, h, w)`` in [0, 1] to maps of temperatures: ``outside + (inside - outside) * mask``."""
    return inside * mask + outside * (1 - mask)


def resize_temperature_map(tau: Tensor, height: int, width: int) -> Tensor:
    """Resize a temperature map ``(B, 1, h, w)``, bilinear and antialiased, which stays within its range."""
    if tau.shape[-2:] == (height, width):
        return tau
    return F.interpolate(tau, (height, width), mode="bilinear", antialias=True)


def number_or_map(tau: float | Tensor, n: int, name: str = "temperatures") -> float | Tensor:
    """Return a number as a float, and a map ``(1 or n, 1, h, w)`` in float32 on the CPU; else ShapeError."""
    if not isinstance(tau, Tensor) or tau.ndim == 0:
        if isinstance(tau, (bool, str, bytes)) or not hasattr(tau, "__float__"):
            raise FlowError(
                f"Expected {name} as numbers, or maps of them in tensors; got {tau!r}, a {type(tau).__name__}. Pass a "
                "number."
            )
        return float(tau)
    if tau.ndim != 4 or tau.shape[0] not in (1, n) or tau.shape[1] != 1 or 0 in tau.shape:
        raise ShapeError(
            f"A map of {name} must have the shape (1 or {n}, 1, height, width); got {tuple(tau.shape)}. Give one for "
            "all, or one per image."
        )
    return tau.detach().to("cpu", torch.float32)
