"""Styles: directions in latents that a model carries by name, such as bold digits or smiling faces."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import FlowError, say
from ..flows.latents import add, scale
from ..flows.model import FlowModel
from ..models.fields import Range, check_value

MESSY_RATE = 0.15  # rise of log(temperature) per unit of the style "messy": 2 units are a factor of 1.35
# How far latents go along a style, in standard deviations. Of 107 portraits that glow-faces has not seen, none lies
# beyond 5 along smile and age, and six along gender, up to 5.6; from 6 on lips turn red, teeth cyan, and specks appear.
MAX_STYLE = 5.0
MAX_STRENGTH = Range(-100, 100)  # strengths of a style; beyond, everything has long stopped at MAX_STYLE


def check_styles(flow: FlowModel, styles: Mapping[str, object]) -> None:
    """Raise FlowError unless the model has these styles, and each has a strength, or one per level."""
    known = flow.styles
    if unknown := [name for name in styles if name not in known]:
        there = ", ".join(sorted(known)) or say("none at all")
        raise FlowError(
            "This model has no style {style}; it has {styles}.", style=", ".join(map(repr, unknown)), styles=there
        )
    for name, strength in styles.items():
        for number in strength if isinstance(strength, (tuple, list)) else [strength]:
            check_value(
                f"The strength of style {name}", number, float, MAX_STRENGTH, "1 or 2 are usual; or one per level."
            )


def apply_style(
    flow: FlowModel, latents: Sequence[Tensor], styles: Mapping[str, float | Sequence[float]]
) -> list[Tensor]:
    """Move latents along directions that the model carries, by name: ``z + sum over styles of strength d``.

    A strength is one number, or one per level; "messy" also multiplies the latents by ``exp(MESSY_RATE * strength)``,
    since a messy hand is messy in every detail. Along a style no item is moved beyond ``MAX_STYLE``.
    """
    check_styles(flow, styles)
    known: dict[str, list[Tensor]] = flow.styles
    messy = styles.get("messy", 0.0)
    strengths = [messy] * len(latents) if isinstance(messy, (int, float)) else messy
    result = scale(latents, [math.exp(MESSY_RATE * strength) for strength in strengths])
    for name, strength in styles.items():
        result = _limit_style(result, add(result, known[name], strength), known[name])
    return result


def _limit_style(start: Sequence[Tensor], end: list[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    """Shorten each item's way from start to end so that it stays within MAX_STYLE along a direction."""
    length = math.sqrt(sum(float(d.square().sum()) for d in direction))
    if not length:
        return end
    first, last = (
        torch.stack([(z * d).flatten(1).sum(1) for z, d in zip(levels, direction, strict=True)]).sum(0) / length
        for levels in (start, end)
    )  # (B,)
    bound = first.abs().clamp_min(MAX_STYLE)
    share = ((last.clamp(-bound, bound) - first) / (last - first)).nan_to_num(1.0)  # 1: all of the way
    return [torch.lerp(x, y, share.view(-1, *[1] * (x.dim() - 1))) for x, y in zip(start, end, strict=True)]
