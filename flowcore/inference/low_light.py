"""The folded encoder of LLFlow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..condition import MultiScaleFeatures
from ..networks import LowLightEncoder
from ..networks.rrdb import DenseBlock
from .encoder import FoldedDenseBlock
from .progress import report
from .strips import StripBudget, canvas


class FoldedLowLightEncoder(nn.Module):
    """``LowLightEncoder`` whose blocks concatenate nothing and run in strips; it shares the weights.

    Attributes:
        units: Units of work that one run reports.
    """

    def __init__(self, encoder: LowLightEncoder, budget: StripBudget) -> None:
        super().__init__()
        self.encoder = encoder
        self.dense = nn.ModuleList(
            FoldedDenseBlock(part, budget) for part in encoder.blocks.modules() if isinstance(part, DenseBlock)
        )
        self.units = len(self.dense) + 1

    def forward(self, x: Tensor) -> tuple[list[MultiScaleFeatures], Tensor]:
        """Compute the features for the flow and the color map; see ``LowLightEncoder.forward``."""
        native, stacks, color = self.encoder.by_source(x, self._run_blocks)
        report(1)
        features: list[MultiScaleFeatures] = []
        for own, stack in zip(native, stacks, strict=True):
            sources = tuple((t, 1) for t in (own, stack) if t.shape[1])
            features.append(MultiScaleFeatures(sources=sources))
        return features, color

    def _run_blocks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        stacked, width = self.encoder.stacked_blocks, x.shape[1]
        stack = canvas(x, width * len(stacked))
        for number in range(len(self.dense) // 3):
            inner = x
            for dense in self.dense[3 * number : 3 * number + 3]:
                inner = dense(inner)
                report(1)
            x = inner.mul_(0.2).add_(x)
            for place, block in enumerate(stacked):
                if block == number:
                    stack[:, place * width : (place + 1) * width] = x
        return x, stack
