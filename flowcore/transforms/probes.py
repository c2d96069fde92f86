"""Log-determinants without a closed form: estimated with probes, or exact, from the whole Jacobian of small images."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..device import float64
from ..errors import ConditionError
from .level_condition import LevelCondition, Probes
from .transform import Transform

MAX_DIMENSIONS = 4096  # of an exact logdet: a Jacobian of 134 MB in float64
ROWS_AT_ONCE = 256  # of a Jacobian


class Estimated(Transform):
    """A bijection whose logdet has no closed form: estimated if the condition has ``probes``, else exact."""

    number = 0  # among the estimated transforms of its flow, which sets it; and so of its probe
    has_series = True  # whether the estimate is a power series, with a choice of terms

    def probe(self, x: Tensor, cond: LevelCondition | None) -> Tensor | None:
        """Select this transform's probe, in the precision of ``x``, or None; ConditionError if it does not fit."""
        probes = None if cond is None else cond.probes
        if probes is None:
            return None
        if self.number >= len(probes.vectors):
            raise ConditionError(
                "The probes are not this flow's. Draw them with likelihood.with_probes(flow, image.shape)."
            )
        vector = probes.vectors[self.number]
        if vector.shape != x.shape:
            raise ConditionError(
                f"Expected a probe of shape {tuple(x.shape)}; got {tuple(vector.shape)}. Draw probes for images of "
                "this batch and size: likelihood.with_probes(flow, image.shape)."
            )
        return vector.to(x)


def exact_logdet(transposed_product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Compute ``log|det J|``, ``(1,)``, of one item from its whole Jacobian, in float64; ConditionError if too large.

    ``transposed_product`` maps N vectors e, ``(N, C, H, W)``, to ``J^T e``.
    """
    dimensions = x[0].numel()
    require_exact(dimensions)
    rows = torch.eye(dimensions, dtype=x.dtype, device=x.device).reshape(dimensions, *x.shape[1:])
    jacobian = torch.cat([transposed_product(part).flatten(1) for part in rows.split(ROWS_AT_ONCE)])  # (D, D)
    return torch.linalg.slogdet(float64(jacobian))[1].to(x)[None]


def require_exact(dimensions: int) -> None:
    """Raise ConditionError if an item has too many dimensions for an exact logdet."""
    if dimensions > MAX_DIMENSIONS:
        raise ConditionError(
            f"An exact log-determinant of {dimensions} dimensions is out of reach; at most {MAX_DIMENSIONS} are "
            "allowed. Estimate it: pass the condition likelihood.with_probes(flow, image.shape); the task score does "
            "so with probes=4."
        )


def draw_probes(
    shapes: list[tuple[int, int, int]], seeds: list[int], coefficients: tuple[tuple[float, ...], ...]
) -> Probes:
    """Draw probes of entries +1 and -1, which have the least variance; float32, on the CPU, one item per seed."""
    items: list[list[Tensor]] = []
    for seed in seeds:
        # differs from other noise of the same seed
        generator = torch.Generator("cpu").manual_seed((seed ^ 0x9E3779B9) % 2**64)
        items.append([torch.randint(0, 2, shape, generator=generator).float() * 2 - 1 for shape in shapes])
    return Probes(vectors=tuple(map(torch.stack, zip(*items, strict=True))), coefficients=coefficients)
