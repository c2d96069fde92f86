"""Affine injector: the condition alone determines how every channel is shifted and scaled."""

import torch
from torch import Tensor, nn

from ..errors import ConditionError
from .coupling import Scaling, affine, initialize_network
from .transform import Transform


class Injector(Transform):
    """Shift and scale all channels by what a conditioner computes from the condition.

    With ``shift, scale = affine(conditioner(cond))``: forward: ``z = (x + shift) * scale``; logdet: ``sum log scale``;
    inverse: ``x = z / scale - shift``. ``cond`` is ``(B, Cc, H, W)``, on the grid of ``x``. With the scaling "exp" it
    is a learned Gaussian prior given the condition: mean ``-shift``, standard deviation ``1 / scale``.

    Source: Lugmayr et al., "SRFlow", section 3.3 ("affine injector"); with "exp", the conditional prior of Winkler et
    al., "Learning Likelihoods with Conditional Normalizing Flows" (2019), section 3.1.
    """

    def __init__(self, conditioner: nn.Module, *, eps: float = 0.0, scaling: Scaling = "sigmoid") -> None:
        super().__init__()
        self.conditioner, self.eps = conditioner, eps
        self.scaling: Scaling = scaling

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, scale, log_scale = self._affine(x, cond)
        return (x + shift) * scale, log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        shift, scale, _ = self._affine(z, cond)
        return z / scale - shift

    def by_position(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, scale, log_scale = self._affine(x, cond)
        return (x + shift) * scale, log_scale.sum(1)

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        initialize_network(self.conditioner, _require_condition(x, cond))
        return self.forward(x, cond)[0]

    def _affine(self, x: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return affine(self.conditioner(_require_condition(x, cond)), self.eps, like=x, scaling=self.scaling)


def _require_condition(x: Tensor, cond: Tensor | None) -> Tensor:
    if cond is None or cond.shape[0] != x.shape[0] or cond.shape[2:] != x.shape[2:]:
        actual = "none" if cond is None else f"{cond.shape[0]} items on a {cond.shape[2]}x{cond.shape[3]} grid"
        raise ConditionError(
            f"An injector needs a condition of {x.shape[0]} items on a {x.shape[2]}x{x.shape[3]} grid; got {actual}. "
            "Pass flow.encode_condition(source) of a source of the matching size and batch."
        )
    return cond
