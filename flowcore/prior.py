"""The prior of every flow: independent standard normals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .transforms import FlowError, ShapeError

Shape = tuple[int, int, int]


def log_prob(latents: Sequence[Tensor]) -> Tensor:
    """Evaluate the standard-normal log density.

    ``sum over all elements of -(z^2 + log(2 pi)) / 2``.

    Args:
        latents: Finest first, each ``(B, C_l, H_l, W_l)``.

    Returns:
        Nats per image, ``(B,)``.
    """
    return torch.stack([log_density(z).flatten(1).sum(1) for z in latents]).sum(0)


def log_density(z: Tensor) -> Tensor:
    """Evaluate the standard-normal log density, element by element.

    Args:
        z: Any shape.

    Returns:
        ``-(z^2 + log(2 pi)) / 2`` in nats, the same shape.
    """
    return -0.5 * (z.square() + math.log(2 * math.pi))


def sample_latents(
    shapes: Sequence[Shape],
    n: int,
    temperature: float | Sequence[float] = 1.0,
    seed: int = 0,
    *,
    order: Literal["item", "published"] = "item",
) -> list[Tensor]:
    """Draw latents: ``tau * N(0, 1)``.

    All draws are float32 from generators on the CPU, over the whole image, so that a seed means the same image on every
    device, at every batch position and at every tile size.

    Args:
        shapes: ``(C_l, H_l, W_l)`` per level, finest first, as ``flow.latent_shapes`` gives them.
        n: Number of items.
        temperature: Standard deviation tau: one for all levels, or one per level. 0 gives the mode of the latents.
        seed: Item i is drawn from a generator of its own, seeded with ``seed + i``. On the CPU torch reads 32 bits of a
            seed: those that differ by a multiple of 2^32 give the same noise.
        order: "item" as above; "published" draws all items from one generator, deepest level first, as the published
            program of SRFlow does (with temperature 0 that program still consumes the split draws, which makes no
            difference here).

    Returns:
        Latents, finest first, each ``(n, C_l, H_l, W_l)``, float32, on the CPU.

    Raises:
        FlowError: If a temperature is negative or not finite, the seed lies outside [0, 2^64), or n is less than 1.
        ShapeError: If there are not as many temperatures as levels.
    """
    taus = (
        [float(temperature)] * len(shapes) if isinstance(temperature, (int, float)) else [float(t) for t in temperature]
    )
    if len(taus) != len(shapes):
        raise ShapeError(
            f"This model has {len(shapes)} levels of latents; got {len(taus)} temperatures. Give one, or one per level."
        )
    for tau in taus:
        if not (math.isfinite(tau) and tau >= 0):
            raise FlowError(
                f"Temperature must be a finite number >= 0; got {tau}. 0 is the calmest, 1 the model's own spread."
            )
    if not isinstance(seed, int) or not 0 <= seed < 2**64:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise FlowError(f"A seed must be a whole number in [0, 2^64); got {seed!r}.")
    if n < 1:
        raise FlowError(f"The number of samples must be at least 1; got {n}.")
    if order == "published":
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn = [_normal((n, *shape), generator) for shape in reversed(shapes)]
        return [tau * z for tau, z in zip(taus, reversed(drawn), strict=True)]
    items: list[list[Tensor]] = []
    for i in range(n):
        generator = torch.Generator("cpu").manual_seed((seed + i) % 2**64)
        items.append([tau * _normal(shape, generator) for tau, shape in zip(taus, shapes, strict=True)])
    return [torch.stack([item[level] for item in items]) for level in range(len(shapes))]


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
