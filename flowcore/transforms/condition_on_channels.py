"""ConditionOnChannels: transform some channels, conditioned on the others."""

from typing import Any

import torch
from torch import Tensor

from .coupling import append_condition
from .transform import Transform


class ConditionOnChannels(Transform):
    """Leave the first channels unchanged and transform the others, with the first as part of the condition.

    With ``x = [kept, rest]``: forward: ``z = [kept, f(rest; [kept, cond])]``; logdet: that of f; inverse: f's. With
    standard-normal latents, f is then a density ``p(rest | kept, cond)``. ``cond`` is ``(B, Cc, H, W)``, on the grid of
    ``x``, or None.

    Source: Yu et al., "Wavelet Flow" (2020), section 3, where ``kept`` is the coarse image and ``rest`` its details.
    """

    def __init__(self, kept: int, transform: Transform) -> None:
        super().__init__()
        self.kept, self.transform = kept, transform

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, rest = self._parts(x)
        z, logdet = self.transform(rest, self._condition(kept, cond))
        return torch.cat([kept, z], dim=1), logdet

    def inverse(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        kept, rest = self._parts(z)
        return torch.cat([kept, self.transform.inverse(rest, self._condition(kept, cond))], dim=1)

    def by_position(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, rest = self._parts(x)
        z, logdet = self.transform.by_position(rest, self._condition(kept, cond))
        return torch.cat([kept, z], dim=1), logdet

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        kept, rest = self._parts(x)
        return torch.cat([kept, self.transform.initialize(rest, self._condition(kept, cond))], dim=1)

    def _condition(self, kept: Tensor, cond: Any) -> Any:  # overridden by plans
        return append_condition(kept, cond)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : self.kept], x[:, self.kept :]
