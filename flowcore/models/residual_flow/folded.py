"""The folded network of Residual Flow."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...flows.networks.strips import StripBudget, report
from .contractive import ContractiveNetwork, LipschitzConv


class FoldedContraction(ContractiveNetwork):
    """``ContractiveNetwork`` with weights divided by their norms once, in its own precision; a run can be stopped."""

    def __init__(self, network: ContractiveNetwork, _dtype: torch.dtype, _budget: StripBudget) -> None:
        nn.Module.__init__(self)
        self.layers = nn.ModuleList(
            nn.Identity() if isinstance(layer, LipschitzConv) else layer for layer in network.layers
        )
        self._weights = network.weights()

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        return self._weights

    def forward(self, x: Tensor, weights: Sequence[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        report()
        return super().forward(x, weights)
