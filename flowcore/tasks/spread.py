"""Spread: hints color the thing that they are painted on, and stop at its edges.

What a hint asks for beyond the colors that were drawn is continued over the picture by the field d that minimizes

    100 sum_i c_i |d_i - h_i|^2 + sum_ij a_ij |d_i - d_j|^2 + sum_i |d_i|^2 / steps^2
    a_ij = exp(-|f_i - f_j|^2 / (2 s^2 C) - (y_i - y_j)^2 / (2 t^2)) / |p_i - p_j|^2,    j one of the 8 neighbors of i

with h the difference at a hint and c its coverage, f the encoder's C features, y the luma and p the place. So it is the
hint's where it is painted, passes to neighbors that look alike, hardly crosses an edge, and fades over some ``steps``
positions of the finest grid where there is none. Continued in the same way, 1 at every hint becomes how far hints
reach; d is divided by it, at least by ``HELD``: so a color holds to the end of a thing instead of fading on the way.

Source: Levin, Lischinski and Weiss, "Colorization using Optimization" (SIGGRAPH 2004), for luma alone and without a
coloring to start from; the features, the fading and that it corrects a draw are ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))  # the other four see these from their side
FEATURE_SCALE, LUMA_SCALE = 0.35, 0.03  # s and t
HELD = 0.5  # of a hint's reach, from which on its color is whole
MET = 100.0  # weight of meeting a hint
ITERATIONS = 150


def spread_hints(
    missing: Tensor,
    coverage: Tensor,
    features: Tensor,
    luma: Tensor,
    steps: float,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Continue what hints ask for beyond what was drawn: ``(B, 2, h, w)``, to be added to the drawn chroma.

    ``missing`` is wanted minus drawn chroma, ignored where nothing is covered. Coverage and luma are in [0, 1],
    features standardized, ``(1, C, h, w)``; ``steps`` is above 0. ``check`` is called as the work advances; what it
    raises ends it.
    """
    asked = torch.cat([missing, torch.ones_like(missing[:, :1])], dim=1)
    field = minimize(asked, coverage, features, luma, steps, check)
    return field[:, :-1] / field[:, -1:].clamp_min(HELD)


def minimize(
    asked: Tensor, coverage: Tensor, features: Tensor, luma: Tensor, steps: float, check: Callable[[], None]
) -> Tensor:
    """Minimize the energy above for each channel of what is asked for, ``(B, C, h, w)``."""
    affinities = [_affinity(features.float(), luma.float(), *offset) for offset in NEIGHBORS]
    held = MET * coverage.float() + 1 / steps**2
    diagonal = held + sum(
        weight + _shift(weight, -dy, -dx) for weight, (dy, dx) in zip(affinities, NEIGHBORS, strict=True)
    )

    def apply(d: Tensor) -> Tensor:
        check()
        result = held * d
        for weight, (dy, dx) in zip(affinities, NEIGHBORS, strict=True):
            difference = weight * (d - _shift(d, dy, dx))
            result = result + difference - _shift(difference, -dy, -dx)
        return result

    return _conjugate_gradient(apply, MET * coverage.float() * asked.float(), diagonal)


def _affinity(features: Tensor, luma: Tensor, dy: int, dx: int) -> Tensor:
    """How alike each position and a neighbor are, in [0, 1], ``(1, 1, h, w)``; 0 where the neighbor is outside."""
    unlike = (_shift(features, dy, dx) - features).square().mean(1, keepdim=True) / (2 * FEATURE_SCALE**2)
    darker = (_shift(luma, dy, dx) - luma).square() / (2 * LUMA_SCALE**2)
    weight = torch.exp(-unlike - darker) / (dy * dy + dx * dx)
    if dy:
        weight[..., -1:, :] = 0
    if dx:
        weight[..., -1 if dx > 0 else 0] = 0
    return weight


def _shift(t: Tensor, dy: int, dx: int) -> Tensor:
    """At each position the value dy below and dx to the right; beyond the border that of the other side."""
    return t.roll((-dy, -dx), (-2, -1))


def _conjugate_gradient(apply: Callable[[Tensor], Tensor], b: Tensor, diagonal: Tensor) -> Tensor:
    """Solve ``apply(x) = b`` for each item, from 0, preconditioned by the diagonal; as many steps for every batch."""
    x, rest = torch.zeros_like(b), b
    scaled = rest / diagonal
    direction, size = scaled, _dot(rest, scaled)
    for _ in range(ITERATIONS):
        image = apply(direction)
        length = size / _dot(direction, image).clamp_min(1e-30)
        x, rest = x + length * direction, rest - length * image
        scaled = rest / diagonal
        before, size = size, _dot(rest, scaled)
        direction = scaled + size / before.clamp_min(1e-30) * direction
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2, 3), keepdim=True)
