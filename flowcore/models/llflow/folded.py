"""LLFlow's folded network."""

import torch
from torch import Tensor

from ...flows.networks.convolutions import NHWC
from ...flows.networks.strips import Folded, StripBudget, report
from ...flows.transforms import MultiScaleFeatures
from ..srflow.folded import FoldedBlocks
from .low_light import LowLightEncoder


class FoldedLowLightEncoder(Folded):
    """``LowLightEncoder`` whose blocks run in strips; it shares the weights, and their precision."""

    def __init__(self, encoder: LowLightEncoder, _dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.encoder = encoder
        self.blocks = FoldedBlocks(encoder.blocks, budget, encoder.stacked_blocks)
        self.units = self.blocks.units + 1

    def forward(self, x: Tensor) -> tuple[list[MultiScaleFeatures], Tensor]:
        head = self.encoder.head(x)
        pairs, color = self.encoder.tail(head, *self.blocks(head.contiguous(memory_format=NHWC)))
        report(1)
        return [MultiScaleFeatures(sources=tuple((t, 1) for t in pair if t.shape[1])) for pair in pairs], color
