"""The flow of an ODE: pixels drift along a learned velocity for a learned time."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...device import float64, no_autocast
from ..level_condition import LevelCondition
from .stochastic_logdet import StochasticLogdet, fixed_point, require_exact

Solver = Literal["rk4", "rk4_38", "midpoint", "euler"]

CHUNK = 2**22  # most numbers in all directions that are differentiated together


class Tableau(NamedTuple):
    """A Runge-Kutta rule: stage i is evaluated at ``t + nodes[i] h`` and ``y + h sum_j rows[i][j] k_j``."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


TABLEAUS: dict[Solver, Tableau] = {
    "euler": Tableau((0,), ((),), (1,)),
    "midpoint": Tableau((0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "rk4": Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "rk4_38": Tableau((0, 1 / 3, 2 / 3, 1), ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}


class Stage(NamedTuple):
    """One evaluation of the velocity in a step: the time, the velocity, and what its derivative needs (or nothing)."""

    t: Tensor
    k: Tensor
    slopes: list[Tensor]


class ODE(StochasticLogdet):
    """Follow the solution of ``dy/dt = f(t, y)`` from ``y(0) = x`` to ``z = y(T)``, with ``T = sqrt_end_time^2``.

    The velocity f is a network such as ``VectorField``. Forward: ``steps`` equal steps ``y' = y + h phi(t,
    y)``, h = T / steps, with the increment function phi of a Runge-Kutta rule. Inverse: step by step from the last, the
    fixed point of ``y = y' - h phi(t, y)``, exact up to rounding; integrating backward would add the rule's error.

    Logdet, by ``how``:

    - "trace" with a probe e: ``integral of e^T (df/dy) e dt``, by the same rule, one e for all steps: an unbiased
      estimate of the exact trace below;
    - "trace" without probe, for small images: ``integral of tr(df/dy) dt``, the logdet of the ODE, from which that of
      the steps differs by the rule's error;
    - "exact", for small images: ``sum over steps of log|det(I + h dphi/dy)|``, that of what forward returns.

    Source: Chen et al., "Neural ordinary differential equations" (2018); Grathwohl et al., "FFJORD" (2019), which adapt
    the steps.
    """

    has_series = False

    def __init__(
        self, field: nn.Module, *, steps: int, solver: Solver = "rk4", how: Literal["trace", "exact"] = "trace"
    ) -> None:
        super().__init__()
        self.field: Any = field
        self.steps = steps
        self.solver: Solver = solver
        self.how: Literal["trace", "exact"] = how
        self.sqrt_end_time = nn.Parameter(torch.ones(()))
        self.costs: list[Tensor] | None = None

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        with no_autocast(z.device):
            for number in reversed(range(self.steps)):
                z = self.step_back(z, number)
        return z

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        probe = None if self.how == "exact" else self.probe(x, cond)
        if probe is None:
            require_exact(x[0].numel())
        logdet = x.new_zeros(x.shape[0], *x.shape[2:])
        costs = x.new_zeros(2, x.shape[0])
        with no_autocast(x.device):
            for number in range(self.steps):
                x, change, cost = self.step(x, number, probe)
                logdet, costs = logdet + change, costs + cost
        if self.costs is not None:
            self.costs.append(costs)
        return x, logdet

    def encode(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        with no_autocast(x.device):
            for number in range(self.steps):
                x = self.move(x, number)
        return x

    def move(self, y: Tensor, number: int) -> Tensor:
        """Make step ``number``, from 0, without its logdet."""
        return y + self._increment(self._stages(y, number, 1))

    def step(self, y: Tensor, number: int, probe: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Make step ``number``, given a probe e ``(B, C, H, W)``, or None for an exact logdet.

        Returns y after the step, its logdet ``(B, H, W)``, and its share of ``path_costs``, zero without a probe.
        """
        stages = self._stages(y, number, 1, slopes=True)
        z = y + self._increment(stages)
        if probe is None:
            return z, self._exact_logdet(y, stages), y.new_zeros(2, y.shape[0])
        logdet, costs = y.new_zeros(y.shape[0], *y.shape[2:]), y.new_zeros(2, y.shape[0])
        for weight, stage in zip(self._weights(), stages, strict=True):
            derivative = self.field.derivative(stage.t, stage.slopes, probe[:, None])[:, 0]
            logdet = logdet + weight * (probe * derivative).sum(1)
            costs = costs + weight * torch.stack([t.square().flatten(1).mean(1) for t in (stage.k, derivative)])
        return z, logdet, costs

    def step_back(self, z: Tensor, number: int) -> Tensor:
        """Undo step ``number``, from 0."""
        start = z - self._increment(self._stages(z, number + 1, -1))  # an explicit step backward
        advice = f"Give it more than {self.steps} steps."
        return fixed_point(lambda y: z - self._increment(self._stages(y, number, 1)), start, advice)

    # --- one step of the rule

    @property
    def _h(self) -> Tensor:
        return self.sqrt_end_time.square() / self.steps

    def _stages(self, y: Tensor, number: int, direction: int, *, slopes: bool = False) -> list[Stage]:
        """Evaluate the velocity at all stages of step ``number``, from its start, forward or backward."""
        h, tableau = self._h, TABLEAUS[self.solver]
        stages: list[Stage] = []
        for node, row in zip(tableau.nodes, tableau.rows, strict=True):
            at = y
            for factor, earlier in zip(row, stages, strict=True):
                at = at + direction * factor * h * earlier.k if factor else at
            t = (number + direction * node) * h
            stages.append(Stage(t, *self.field.linearized(t, at)) if slopes else Stage(t, self.field(t, at), []))
        return stages

    def _weights(self) -> list[Tensor]:
        h = self._h
        return [weight * h for weight in TABLEAUS[self.solver].weights]

    def _increment(self, stages: Sequence[Stage]) -> Tensor:
        """Compute h phi from the stages of a step."""
        return torch.stack([w * s.k for w, s in zip(self._weights(), stages, strict=True)]).sum(0)

    # --- its logdet, along all directions

    def _exact_logdet(self, y: Tensor, stages: Sequence[Stage]) -> Tensor:
        """Without a probe: the trace integral, or log|det| of the step's Jacobian; (B, H, W)."""
        identity = torch.eye(y[0].numel(), dtype=y.dtype, device=y.device)
        chunk = max(1, CHUNK // max(s.numel() for s in (y, *stages[0].slopes)))
        directions = [
            part.reshape(1, -1, *y.shape[1:]).expand(len(y), -1, -1, -1, -1) for part in identity.split(chunk)
        ]
        logdet = y.new_zeros(y.shape[0], *y.shape[2:])
        if self.how == "exact":
            # (J - I)^T, with the step's Jacobian J; transposing does not change the determinant
            rows = torch.cat([self._step_derivative(stages, v).flatten(2) for v in directions], 1)
            total = torch.linalg.slogdet(float64(rows + identity))[1].to(y)
            return logdet + (total / logdet[0].numel())[:, None, None]
        for v in directions:
            for weight, stage in zip(self._weights(), stages, strict=True):
                derivative = self.field.derivative(stage.t, stage.slopes, v)
                logdet = logdet + weight * (v * derivative).sum((1, 2))
        return logdet

    def _step_derivative(self, stages: Sequence[Stage], v: Tensor) -> Tensor:
        """The derivative of h phi along directions v, (B, K, C, H, W)."""
        h = self._h
        rates: list[Tensor] = []
        for row, stage in zip(TABLEAUS[self.solver].rows, stages, strict=True):
            at = v
            for factor, rate in zip(row, rates, strict=True):
                at = at + factor * h * rate if factor else at
            rates.append(self.field.derivative(stage.t, stage.slopes, at))
        return torch.stack([w * r for w, r in zip(self._weights(), rates, strict=True)]).sum(0)


@contextmanager
def path_costs(model: nn.Module) -> Generator[list[Tensor], None, None]:
    """Collect the costs of all paths that the ODEs of a model take inside this context, while it is trained.

    From every ODE with a probe e: integrals over time of ``|f|^2`` and ``|(df/dy) e|^2``, per dimension, ``(2, B)``.

    Source: Finlay et al., "How to train your neural ODE" (RNODE, 2020): paths that are nearly straight need few steps.
    """
    odes = [module for module in model.modules() if isinstance(module, ODE)]
    costs: list[Tensor] = []
    for ode in odes:
        ode.costs = costs
    try:
        yield costs
    finally:
        for ode in odes:
            ode.costs = None
