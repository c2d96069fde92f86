"""Solving ``x = g(x)`` to rounding, item by item: the inverse of transforms that have no formula for it."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import FlowError

ROUNDS = 2000
PATIENCE = 50  # rounds without progress, after which an item does not settle


def fixed_point(g: Callable[[Tensor], Tensor], start: Tensor, advice: str) -> Tensor:
    """Iterate a contraction ``x <- g(x)`` of ``(B, ...)`` until nothing changes but rounding.

    An item stops by itself, whatever the others of its batch do: when no element changes by more than 4 units of
    rounding, when its change is below their square root and falls no further, or when it is not finite. FlowError, with
    ``advice``, if an item does not settle: then g is no contraction there.
    """
    if start.is_meta:
        return g(start)  # without values nothing settles
    x, eps = start, torch.finfo(start.dtype).eps
    best = x.new_full((len(x),), torch.inf)
    waited = torch.zeros_like(best, dtype=torch.int64)
    done = torch.zeros_like(best, dtype=torch.bool)
    for _ in range(ROUNDS):
        new = g(x)
        change = ((new - x).abs() / (1 + x.abs())).detach().flatten(1).amax(1)
        x = torch.where(done.reshape(-1, *[1] * (x.ndim - 1)), x, new)
        waited = torch.where(change < best, 0, waited + 1)
        best = torch.minimum(best, change)
        done = done | (change <= 4 * eps) | ((waited >= 3) & (change <= eps**0.5)) | ~change.isfinite()
        if bool(done.all()):
            return x
        if bool((~done & (waited >= PATIENCE)).any()):
            break
    raise FlowError(
        f"The inverse did not settle: its iteration still changes values by {float(best[~done].max()):.2g}, so this "
        f"step of the model is no contraction there. {advice}"
    )
