"""Residual blocks: the image plus a contraction of it."""

from typing import Any

import torch
from torch import Tensor, nn

from .fixed_point import fixed_point
from .level_condition import LevelCondition, Probes
from .probes import Estimated, exact_logdet

ADVICE = "Call flow.normalize(), which bounds the norms of its weights; if the model comes from a file, fetch it again."


class Residual(Estimated):
    """Add a contraction g, such as a ``networks.ContractiveNetwork``, whose Jacobian J has a norm below 1.

    Forward: ``z = x + g(x)``; inverse: the fixed point of ``x = z - g(x)``, to rounding.

    Logdet without probes: ``log|det(I + J)|`` of the whole Jacobian, for small images. With a probe e and coefficients
    c: ``sum_k c_k (-1)^(k+1) / k e^T J^k e``, whose mean over probes is that, but for terms that are left out. Its
    gradient is that of the estimate; or, of Neumann's series, of ``w^T J e`` with the constant ``w = sum_{k >= 0}
    (-1)^k c_k (J^T)^k e``, c_0 = 1, which has the same mean and takes one graph instead of one for each term.

    Source: Behrmann et al., "Invertible residual networks" (ICML 2019); Chen et al., "Residual flows for invertible
    generative modeling" (NeurIPS 2019), sections 3.1 and 3.2.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        g = self.network
        with torch.no_grad():
            weights = g.weights()
            x = fixed_point(lambda x: z - g(x, weights), z - g(z, weights), ADVICE)
        if not torch.is_grad_enabled():
            return x
        value, transposed = g.linearize(x)
        x = z - value  # the same numbers, with a graph of one step

        @torch.no_grad()
        def whole(gradient: Tensor) -> Tensor:
            """Solve ``(I + J^T) v = gradient``: the step's gradient for that of the fixed point."""
            return fixed_point(lambda v: gradient - transposed(v), gradient, ADVICE)

        if x.requires_grad:
            x.register_hook(whole)
        return x

    def encode(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return x + self.network(x)

    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        self.normalize()
        return self.encode(x)

    def normalize(self, tolerance: float = 1e-4) -> None:
        """Measure the norms of the weights, which bound g; needed after every change of the weights."""
        self.network.normalize(tolerance)

    def by_position(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        probe = self.probe(x, cond)
        if probe is not None and cond is not None and cond.probes is not None:
            return self._estimate(x, probe, cond.probes)
        logdets: list[Tensor] = []
        for item in x.split(1):
            transposed = self.network.linearize(item)[1]
            logdets.append(exact_logdet(lambda e, product=transposed: e + product(e), item))
        logdet = torch.cat(logdets) / x[0, 0].numel()
        return self.encode(x), logdet[:, None, None].expand(-1, *x.shape[2:])

    def _estimate(self, x: Tensor, probe: Tensor, probes: Probes) -> tuple[Tensor, Tensor]:
        value, transposed = self.network.linearize(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not probes.neumann):
            power, series, neumann = probe, torch.zeros_like(probe), probe
            for k, factor in enumerate(probes.coefficients[self.number], 1):
                power = -transposed(power)  # (-J^T)^k e
                series = series - factor / k * power
                neumann = neumann + factor * power
        logdet = (probe * series).sum(1)
        if probes.neumann and torch.is_grad_enabled():
            surrogate = (probe * transposed(neumann)).sum(1)
            logdet = logdet + surrogate - surrogate.detach()
        return x + value, logdet
