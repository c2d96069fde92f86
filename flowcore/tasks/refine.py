"""Refinement: a search for latents whose coloring meets the hints, near those that were drawn.

Minimizes ``sum of coverage (chroma - wanted)^2 / (2 sigma^2) + |z - drawn|^2 / 2`` by gradient descent: the maximum a
posteriori estimate with the drawn latents as the prior's mean, so that seeds still differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]

from ..condition import Condition
from ..flow import Flow
from ..images.color import NEUTRAL
from .chroma import Change, Colorization, HintPlanes

SIGMA = 0.01  # chroma by which a hint may be missed
RATE = 0.08  # of Adam


def refine_latents(
    job: Colorization, z: Sequence[Tensor], cond: Condition, hints: HintPlanes, steps: int
) -> list[Tensor]:
    """Move latents as little as it takes for the covered places to have the wanted colors; a step counts as a unit."""
    with torch.inference_mode(False), torch.enable_grad():
        # copies, because tensors that were made in inference mode have no gradients
        tensors = [*job.flow.named_parameters(), *job.flow.named_buffers()]
        weights = {f"flow.{name}": t.detach().clone() for name, t in tensors}
        shared = cond.map_tensors(lambda t: t.detach().clone())
        covered, chroma = (t.detach().clone() for t in hints.pooled(job.grid))
        drawn = [level.detach().clone() for level in z]
        moved = [level.clone().requires_grad_() for level in drawn]
        optimizer = torch.optim.Adam(moved, lr=RATE)
        inverse = _Inverse(job.flow, job.clamp)
        for _ in range(steps):
            job.run.check_cancelled()
            optimizer.zero_grad()
            decoded = cast(Tensor, functional_call(inverse, weights, (moved, shared)))
            missed = (covered * (decoded - NEUTRAL - chroma).square()).sum() / (2 * SIGMA**2)
            loss = missed + sum(((a - b).square().sum() / 2 for a, b in zip(moved, drawn, strict=True)), missed * 0)
            loss.backward()
            for level in moved:
                assert level.grad is not None
                level.grad.nan_to_num_(0, 0, 0)  # of values that were out of bounds
            optimizer.step()
            job.run.advance()
        return [level.detach() for level in moved]


class _Inverse(nn.Module):
    """A flow whose call is its inverse, for ``functional_call``."""

    def __init__(self, flow: Flow, change: Change) -> None:
        super().__init__()
        self.flow, self.change = flow, change

    def forward(self, z: Sequence[Tensor], cond: Condition) -> Tensor:
        return self.flow.inverse(z, cond, partial(self.change, cond))
