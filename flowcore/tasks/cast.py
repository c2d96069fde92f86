"""What all of a coloring has in common: its cast, and how far its colors are apart.

With w = y (1 - y), which is large in the midtones and 0 in black and white, and m the mean of the chroma weighted by w:
the cast is changed by adding a multiple of w, so that m becomes what is asked for; a coloring becomes more vivid by
moving its chroma away from m. Black and white keep their color.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import FlowError


def check_cast(cast: float, vivid: float) -> None:
    """Raise FlowError if either is out of its range."""
    if not -1 <= cast <= 1:
        raise FlowError(
            f"cast must lie in [-1, 1]: 1 as drawn, 0 that of the calmest coloring, -1 no cast at all; got {cast}."
        )
    if not (math.isfinite(vivid) and vivid >= 0):
        raise FlowError(f"vivid must be a finite number >= 0, 1 for as drawn; got {vivid}.")


def change_cast(chroma: Tensor, calm: Tensor, y: Tensor, cast: float) -> Tensor:
    """Change the cast of colorings ``(B, 2, h, w)``: 1 as it is; 0 that of ``calm``; -1 none; between linearly.

    ``calm`` is the coloring at temperature 0, ``(1, 2, h, w)``, y their luma, ``(1, 1, h, w)``.
    """
    own, theirs = _mean(chroma, y), _mean(calm, y)
    wanted = theirs + cast * (own - theirs) if cast >= 0 else (1 + cast) * theirs
    weight = y * (1 - y)
    met = weight.square().sum() / weight.sum().clamp_min(1e-6)  # the weighted mean of the weight itself
    return chroma + (wanted - own) * weight / met.clamp_min(1e-6)


def make_vivid(chroma: Tensor, y: Tensor, vivid: float) -> Tensor:
    """Move chroma ``(B, 2, h, w)`` away from its mean by a factor; of luma ``(1, 1, h, w)``."""
    weight = (4 * y * (1 - y)).clamp(0, 1)
    return chroma + (vivid - 1) * weight * (chroma - _mean(chroma, y))


def _mean(chroma: Tensor, y: Tensor) -> Tensor:
    """The mean chroma of midtones, (B, 2, 1, 1)."""
    weight = y * (1 - y)
    return (weight * chroma).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1e-6)
