"""Permutation: the channels in another, fixed order."""

from typing import Any

import torch
from torch import Tensor

from ..errors import FlowError
from .transform import Transform


class Permutation(Transform):
    """Reorder the channels.

    Forward: ``z[:, c] = x[:, order[c]]``; logdet: 0; inverse: ``x[:, order[c]] = z[:, c]``.

    Source: Kingma & Dhariwal, "Glow", section 3.2.
    """

    uniform_logdet = True
    order: Tensor

    def __init__(self, order: Tensor) -> None:
        """Fix the order: ``(C,)`` whole numbers, each of 0 to C - 1 once; FlowError otherwise."""
        super().__init__()
        on_meta = order.device.type == "meta"  # no values to check
        if order.ndim != 1 or not (on_meta or torch.equal(order.sort()[0], torch.arange(len(order)))):
            raise FlowError(f"A permutation lists each of 0 to C - 1 once; got {order.tolist()}.")
        self.register_buffer("order", order.long())

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        return x[:, self.order], x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        return z[:, self.order.argsort()]
