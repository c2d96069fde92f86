"""Affine injector: the condition alone determines how every channel is shifted and scaled."""

import torch
from torch import Tensor, nn

from ..errors import ConditionError
from .coupling import Scaling, affine, initialize_network
from .level_condition import LevelCondition
from .transform import Transform


class Injector(Transform):
    """Shift and scale all channels by what a conditioner computes from the condition.

    With ``shift, scale = affine(conditioner(cond))``: forward: ``z = (x + shift) * scale``; logdet: ``sum log scale``;
    inverse: ``x = z / scale - shift``. ``cond`` stands for the condition's ``network_inputs``, ``(B, Cc, H, W)`` on the
    grid of ``x``. With the scaling "exp" it
    is a learned Gaussian prior given the condition: mean ``-shift``, standard deviation ``1 / scale``.

    Source: Lugmayr et al., "SRFlow", section 3.3 ("affine injector"); with "exp", the conditional prior of Winkler et
    al., "Learning Likelihoods with Conditional Normalizing Flows" (2019), section 3.1.
    """

    def __init__(self, conditioner: nn.Module, *, eps: float = 0.0, scaling: Scaling = "sigmoid") -> None:
        super().__init__()
        self.conditioner, self.eps = conditioner, eps
        self.scaling: Scaling = scaling

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        shift, scale, log_scale = self._affine(x, cond)
        return (x + shift) * scale, log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        shift, scale, _ = self._affine(z, cond)
        return z / scale - shift

    def by_position(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        shift, scale, log_scale = self._affine(x, cond)
        return (x + shift) * scale, log_scale.sum(1)

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        initialize_network(self.conditioner, _require_condition(x, cond))
        return self.forward(x, cond)[0]

    def _affine(self, x: Tensor, cond: LevelCondition | None) -> tuple[Tensor, Tensor, Tensor]:
        return affine(self.conditioner(_require_condition(x, cond)), self.eps, like=x, scaling=self.scaling)


def _require_condition(x: Tensor, cond: LevelCondition | None) -> Tensor:
    inputs = [] if cond is None else cond.network_inputs()
    wrong = [t for t in inputs if t.shape[0] != x.shape[0] or t.shape[2:] != x.shape[2:]]
    if wrong or not inputs:
        actual = f"{wrong[0].shape[0]} items on a {wrong[0].shape[2]}x{wrong[0].shape[3]} grid" if wrong else "none"
        raise ConditionError(
            f"An injector needs a condition of {x.shape[0]} items on a {x.shape[2]}x{x.shape[3]} grid; got {actual}. "
            "Pass flow.encode_condition(source) of a source of the matching size and batch."
        )
    return torch.cat(inputs, dim=1)
