"""The folded encoder of LLFlow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..condition import MultiScaleFeatures
from ..networks import LowLightEncoder
from .encoder import FoldedBlocks
from .progress import report
from .strips import StripBudget


class FoldedLowLightEncoder(nn.Module):
    """``LowLightEncoder`` whose blocks run in strips; it shares the weights."""

    def __init__(self, encoder: LowLightEncoder, budget: StripBudget) -> None:
        super().__init__()
        self.encoder = encoder
        self.blocks = FoldedBlocks(encoder.blocks, budget, encoder.stacked_blocks)
        self.units = self.blocks.units + 1

    def forward(self, x: Tensor) -> tuple[list[MultiScaleFeatures], Tensor]:
        native, stacks, color = self.encoder.by_source(x, self._run_blocks)
        report(1)
        features: list[MultiScaleFeatures] = []
        for own, stack in zip(native, stacks, strict=True):
            sources = tuple((t, 1) for t in (own, stack) if t.shape[1])
            features.append(MultiScaleFeatures(sources=sources))
        return features, color

    def _run_blocks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.blocks(x.contiguous(memory_format=torch.channels_last))
