"""The folded network of TarFlow."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...flows.networks.strips import Folded, StripBudget, report, stop_before
from .causal_transformer import CausalTransformer


class ReportingPredictor(Folded):
    """``CausalTransformer`` in its own precision, which reports every patch; gradients recompute its activations."""

    def __init__(self, network: CausalTransformer, dtype: torch.dtype, _budget: StripBudget) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).to(dtype)
        self.units, self._dtype = len(network.position), dtype
        for layer in network.layers:
            stop_before(layer)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        predicted = checkpoint(self.network, x.to(self._dtype), labels, use_reentrant=False, preserve_rng_state=False)
        report(self.units)
        return predicted

    def stepwise(self, labels: Tensor | None, temperature: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        predict = self.network.stepwise(labels, temperature)

        def step(x: Tensor) -> Tensor:
            predicted = predict(x.to(self._dtype))
            report(1)
            return predicted

        return step

    def seconds(self, batch: int) -> float:
        """Time the prediction of one patch of a batch: the fastest of four, since the first is slow."""
        weight = self.network.proj_in.weight
        step, patch = self.network.stepwise(None), weight.new_zeros(batch, weight.shape[1])
        times: list[float] = []
        for _ in range(4):
            start = time.perf_counter()
            float(step(patch)[0, 0])  # waits for the device
            times.append(time.perf_counter() - start)
        return min(times)
