"""Autoregression: every position in turn is shifted and scaled by a prediction from the positions before it."""

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConditionError
from ..level_condition import LevelCondition
from ..transform import Transform


class Autoregression(Transform):
    """Shift and scale every position by functions of those before it, in raster order or in reverse.

    With the grid as a sequence ``x_0, ..., x_(T-1)``, ``(a_t, b_t) = network(x_0, ..., x_(t-1))``, ``a_0 = b_0 = 0``;
    forward: ``z_t = (x_t - b_t) exp(-a_t)``; logdet: ``-sum a``; inverse, one position after the other: ``x_t = z_t
    exp(a_t) + b_t``. The network, such as ``CausalTransformer``, predicts ``2 C`` numbers, log-scales first;
    with ``scale=False``, only C shifts (a = 0). It also sees the condition's labels, if there are any.

    With ``guidance`` the inverse uses ``a + w (a - a')`` and ``b + w (b - b')``, where ``a', b'`` are predicted
    without label, at the given attention temperature. It is then no longer the inverse of forward.

    Source: Zhai et al., "Normalizing flows are capable generative models" (TarFlow, 2024), sections 3.1 and 3.4.
    """

    def __init__(self, network: nn.Module, *, scale: bool = True, reverse: bool = False) -> None:
        super().__init__()
        self.network: Any = network
        self.scale, self.reverse = scale, reverse

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        sequence = self._sequence(x)  # (B, T, C)
        predicted = self.network(sequence, self._labels(cond, x.shape[0])).to(x.dtype)
        shifted = torch.cat([torch.zeros_like(predicted[:, :1]), predicted[:, :-1]], dim=1)
        a, b = self._log_scale_shift(shifted)
        z = (sequence - b) * torch.exp(-a)
        logdet = -a.sum(2, keepdim=True).expand(x.shape[0], -1, -1)  # (B, T, 1)
        return self._grid(z, x), self._grid(logdet, x)[:, 0]

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        latents = self._sequence(z)  # (B, T, C)
        batch, length, _ = latents.shape
        labels, temperatures = self._labels(cond, batch), None
        guidance = None if cond is None or labels is None else cond.guidance
        if guidance is not None and labels is not None:  # predictions with the labels, and without
            no_label = torch.full_like(labels, 1 / labels.shape[1])
            labels = torch.cat([labels.expand(batch, -1), no_label.expand(batch, -1)])
            temperatures = labels.new_tensor([1.0, guidance.temperature]).repeat_interleave(batch)
        step = self.network.stepwise(labels, temperatures)
        x = [latents[:, 0]]
        for t in range(1, length):
            if guidance is None:
                predicted = step(x[-1]).to(z.dtype)
            else:
                labeled, unlabeled = step(x[-1].repeat(2, 1)).to(z.dtype).chunk(2)
                difference = guidance.weight * (labeled - unlabeled)
                if guidance.annealed:
                    difference = difference * (t / (length - 1))
                if self.scale and not guidance.scale:
                    difference[:, : latents.shape[2]] = 0  # log-scales come first
                predicted = labeled + difference
            a, b = self._log_scale_shift(predicted)
            x.append(latents[:, t] * torch.exp(a) + b)
        return self._grid(torch.stack(x, dim=1), z)

    def _log_scale_shift(self, predicted: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale:
            a, b = predicted.chunk(2, dim=-1)
            return a, b
        return torch.zeros_like(predicted), predicted

    def _sequence(self, x: Tensor) -> Tensor:
        sequence = x.flatten(2).mT
        return sequence.flip(1) if self.reverse else sequence

    def _grid(self, sequence: Tensor, like: Tensor) -> Tensor:
        sequence = sequence.flip(1) if self.reverse else sequence
        return sequence.mT.unflatten(2, like.shape[2:])

    def _labels(self, cond: LevelCondition | None, batch: int) -> Tensor | None:
        labels = None if cond is None else cond.labels
        if labels is not None and len(labels) not in (1, batch):
            raise ConditionError(
                f"Expected labels of 1 or {batch} items; the condition has {len(labels)}. Encode a label for every "
                "image, or one for all."
            )
        return labels
