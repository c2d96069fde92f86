"""Residual blocks: the image plus a contraction of it."""

from typing import Any

import torch
from torch import Tensor, nn

from ...device import float64
from ..level_condition import LevelCondition, Probes
from .stochastic_logdet import StochasticLogdet, fixed_point, require_exact

ROWS_AT_ONCE = 256  # rows of a Jacobian that are computed together
ADVICE = "Call flow.normalize(), which bounds the norms of its weights; if the model comes from a file, fetch it again."


class Residual(StochasticLogdet):
    """Add a contraction g, such as a ``ContractiveNetwork``, whose Jacobian J has a norm below 1.

    Forward: ``z = x + g(x)``; inverse: the fixed point of ``x = z - g(x)``, to rounding.

    Logdet without probes: ``log|det(I + J)|`` of the whole Jacobian, for small images. With a probe e and coefficients
    c: the power series ``sum_k c_k (-1)^(k+1) / k e^T J^k e``, an estimate that is unbiased up to truncation. Gradients
    are by default the estimate's own; with ``neumann`` they are those of ``w^T J e`` with the constant ``w = sum_{k >=
    0} (-1)^k c_k (J^T)^k e``, c_0 = 1, which have the same mean and take one graph instead of one for each term.

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
        value, vjp = g.linearize(x)
        x = z - value  # the same numbers, now with the graph of a single step

        @torch.no_grad()
        def implicit_gradient(gradient: Tensor) -> Tensor:
            """Solve ``(I + J^T) v = gradient`` (implicit function theorem): the step passes on v."""
            return fixed_point(lambda v: gradient - vjp(v), gradient, ADVICE)

        if x.requires_grad:
            x.register_hook(implicit_gradient)
        return x

    def encode(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return x + self.network(x)

    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        self.normalize()
        return self.encode(x)

    def normalize(self, tolerance: float = 1e-4) -> None:
        """Update the norms of the weights, by which g divides them; needed after every change of the weights."""
        self.network.normalize(tolerance)

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        probe = self.probe(x, cond)
        if probe is not None and cond is not None and cond.probes is not None:
            return self._estimate(x, probe, cond.probes)
        dimensions = x[0].numel()
        require_exact(dimensions)
        identity = torch.eye(dimensions, dtype=x.dtype, device=x.device)
        rows = identity.unflatten(1, x.shape[1:]).split(ROWS_AT_ONCE)
        logdets: list[Tensor] = []
        for item in x.split(1):
            vjp = self.network.linearize(item)[1]
            jacobian = identity + torch.cat([vjp(part).flatten(1) for part in rows])  # (D, D), of the block
            logdets.append(torch.linalg.slogdet(float64(jacobian))[1].to(x))
        logdet = torch.stack(logdets) / x[0, 0].numel()  # a logdet of the whole Jacobian, so spread evenly
        return self.encode(x), logdet[:, None, None].expand(-1, *x.shape[2:])

    def _estimate(self, x: Tensor, probe: Tensor, probes: Probes) -> tuple[Tensor, Tensor]:
        value, vjp = self.network.linearize(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not probes.neumann):
            power, series, w = probe, torch.zeros_like(probe), probe
            for k, c in enumerate(probes.coefficients[self.number], 1):
                power = -vjp(power)  # (-J^T)^k e
                series = series - c / k * power
                w = w + c * power
        logdet = (probe * series).sum(1)
        if probes.neumann and torch.is_grad_enabled():
            surrogate = (probe * vjp(w)).sum(1)
            logdet = logdet + surrogate - surrogate.detach()  # the value of one, the gradient of the other
        return x + value, logdet
