"""Transforms without closed forms: estimated or exact log-determinants, and inverses by fixed-point iteration."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import ConditionError, FlowError
from ..level_condition import LevelCondition, Probes
from ..transform import Transform

MAX_DIMENSIONS = 4096  # most dimensions for an exact logdet: its Jacobian then takes 134 MB in float64
PROBE_STREAM = 0x9E3779B9  # changes seeds, so that probes differ from other noise of the same seed
MAX_ITERATIONS = 2000  # most iterations toward a fixed point
PATIENCE = 50  # iterations without progress before giving up


class StochasticLogdet(Transform):
    """A bijection whose logdet has no closed form: estimated if the condition has ``probes``, else exact."""

    number = 0  # index of its probe; set by ``Flow``, which numbers its estimated transforms
    has_series = True  # whether the estimate is a power series, with a choice of terms

    def probe(self, x: Tensor, cond: LevelCondition | None) -> Tensor | None:
        """Select this transform's probe, in the precision of ``x``, or None; ConditionError if it does not fit."""
        if cond is None or cond.probes is None:
            return None
        if self.number >= len(cond.probes.vectors):
            raise ConditionError(
                "The probes are not this flow's. Draw them with likelihood.with_probes(flow, image.shape)."
            )
        vector = cond.probes.vectors[self.number]
        if vector.shape != x.shape:
            raise ConditionError(
                f"Expected a probe of shape {tuple(x.shape)}; got {tuple(vector.shape)}. Draw probes for images of "
                "this batch and size: likelihood.with_probes(flow, image.shape)."
            )
        return vector.to(x)


def require_exact(dimensions: int) -> None:
    """Raise ConditionError if an item has too many dimensions for an exact logdet."""
    if dimensions > MAX_DIMENSIONS:
        raise ConditionError(
            f"An exact log-determinant of {dimensions} dimensions is out of reach; at most {MAX_DIMENSIONS} are "
            "allowed. Use an estimate instead: pass cond=likelihood.with_probes(flow, image.shape), or probes=4 in the "
            "task score."
        )


def draw_probes(
    shapes: list[tuple[int, int, int]], seeds: list[int], coefficients: tuple[tuple[float, ...], ...]
) -> Probes:
    """Draw Rademacher probes, with entries +1 and -1: float32, on the CPU, one item per seed."""
    vectors_by_item: list[list[Tensor]] = []
    for seed in seeds:
        generator = torch.Generator("cpu").manual_seed((seed ^ PROBE_STREAM) % 2**64)
        vectors_by_item.append([torch.randint(0, 2, shape, generator=generator).float() * 2 - 1 for shape in shapes])
    vectors = tuple(map(torch.stack, zip(*vectors_by_item, strict=True)))  # each (B, C, H, W)
    return Probes(vectors=vectors, coefficients=coefficients)


def fixed_point(g: Callable[[Tensor], Tensor], start: Tensor, advice: str) -> Tensor:
    """Iterate a contraction ``x <- g(x)`` of ``(B, ...)`` until only rounding changes it.

    Items stop independently: when no element changes by more than 4 eps, when the change is below sqrt(eps) and its
    norm, which a contraction lowers every time, has not decreased for 3 iterations, or when it is not finite, as with
    NaN in the data, which is returned. FlowError, with ``advice``, if an item does not converge, which means that g is
    not a contraction there.
    """
    if start.is_meta:
        return g(start)  # meta tensors have no values that could converge; this has the right shape
    x, eps = start, torch.finfo(start.dtype).eps
    best = x.new_full((len(x),), torch.inf)
    waited = torch.zeros_like(best, dtype=torch.int64)
    finished = torch.zeros_like(best, dtype=torch.bool)
    for _ in range(MAX_ITERATIONS):
        new = g(x)
        difference = (new - x).detach()
        change = (difference.abs() / (1 + x.detach().abs())).flatten(1).amax(1)
        norm = difference.flatten(1).norm(dim=1)
        x = torch.where(finished.reshape(-1, *[1] * (x.ndim - 1)), x, new)
        waited = torch.where(norm < best, 0, waited + 1)
        best = torch.minimum(best, norm)
        stalled = (waited >= 3) & (change <= eps**0.5)
        finished = finished | (change <= 4 * eps) | stalled | ~change.isfinite()
        if bool(finished.all()):
            return x
        if bool((~finished & (waited >= PATIENCE)).any()):
            break
    raise FlowError(
        f"The inverse did not converge: its iteration still changes values by {float(best[~finished].max()):.2g}, so "
        f"this step of the model is not a contraction there. {advice}"
    )
