"""Directions among latents: the styles that a model carries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import FlowError
from ..flow import Flow
from ..latents import add, scale

MESSY_RATE = 0.15  # of the temperature's logarithm per unit of the style "messy": 2 units are a factor of 1.35

# How far along a style latents go, in standard deviations. Of 107 portraits that glow-faces has not seen, none lies
# beyond 5 along smile and age, and six along gender, up to 5.6; from 6 on lips turn red, teeth cyan, and specks appear.
MAX_DEVIATION = 5.0


def apply_style(flow: Flow, latents: Sequence[Tensor], styles: Mapping[str, float | Sequence[float]]) -> list[Tensor]:
    """Move latents along directions that the model carries, by name: ``z + sum over styles of strength d``.

    A messy hand is messy in all its details at once, so "messy" is also a temperature: it multiplies the latents by
    ``exp(MESSY_RATE * strength)`` first. A strength is one number, or one per level; negative for the opposite. Each
    item stops at ``MAX_DEVIATION`` along a style: beyond, the model has seen nothing. What lies there stays.
    """
    known: dict[str, list[Tensor]] = flow.styles
    unknown = [name for name in styles if name not in known]
    if unknown:
        raise FlowError(
            f"This model has no style {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(sorted(known)) or 'none at all'}."
        )
    messy = styles.get("messy", 0.0)
    strengths = [messy] * len(latents) if isinstance(messy, (int, float)) else messy
    result = scale(latents, [math.exp(MESSY_RATE * strength) for strength in strengths])
    for name, strength in styles.items():
        result = _bounded(result, add(result, known[name], strength), known[name])
    return result


def _bounded(start: Sequence[Tensor], end: list[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    """Shorten the way from start to end, of every item, so that it stays within MAX_DEVIATION along a direction."""
    length = math.sqrt(sum(float(d.square().sum()) for d in direction))
    if not length:
        return end
    first, last = (
        torch.stack([(z * d).flatten(1).sum(1) for z, d in zip(levels, direction, strict=True)]).sum(0) / length
        for levels in (start, end)
    )  # (B,)
    bound = first.abs().clamp_min(MAX_DEVIATION)
    share = ((last.clamp(-bound, bound) - first) / (last - first)).nan_to_num(1.0)  # 1: all of the way
    return [torch.lerp(x, y, share.view(-1, *[1] * (x.dim() - 1))) for x, y in zip(start, end, strict=True)]
