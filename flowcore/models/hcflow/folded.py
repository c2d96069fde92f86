"""HCFlow's folded network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...flows.networks.convolutions import ConditionConv, Conv, weights_of
from ...flows.networks.strips import Folded, StripBudget, canvas
from ...flows.transforms import MultiScaleFeatures
from ..srflow.folded import FoldedBlocks
from .extractor import HierarchicalExtractor


class FoldedExtractor(Folded):
    """``HierarchicalExtractor`` in strips, some images at a time, and once for all if they share one expanded input."""

    def __init__(self, extractor: HierarchicalExtractor, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.dtype, self.budget, self.both = dtype, budget, extractor.both
        self.features = extractor.features
        self.conv_first = ConditionConv(*weights_of(extractor.conv_first), dtype)
        self.first, self.second = (FoldedBlocks(half, budget) for half in (extractor.first, extractor.second))
        self.last = Conv(*weights_of(extractor.conv_last), dtype)
        self.units = self.first.units + self.second.units

    def forward(self, x: Tensor, deeper: Sequence[Tensor]) -> Tensor:
        batch = len(x)
        if batch > 1 and all(t.stride(0) == 0 for t in (x, *deeper)):
            return self(x[:1], [t[:1] for t in deeper]).expand(batch, -1, -1, -1)
        result = canvas((batch, self.features, *x.shape[2:]), self.last.weight)
        several = max(1, self.budget.dense // (16 * result[0].numel() * result.element_size()))
        for start in range(0, batch, several):
            items = slice(start, start + several)
            self._run(x[items], [t[items] for t in deeper], result[items])
        return result

    def _run(self, x: Tensor, deeper: Sequence[Tensor], result: Tensor) -> None:
        width = self.conv_first.outputs
        sources = [(x, 1), *((t, 2 ** (k + 1)) for k, t in enumerate(deeper))]
        (h,) = self.conv_first.on_canvas(MultiScaleFeatures(sources=tuple(sources)), self.budget)
        total = result[:, -width:]  # sum of the long skip and of what the last convolution adds
        total.copy_(h)
        h, _ = self.first(h)
        if self.both:
            result[:, :width] = h
        h, _ = self.second(h)
        height = h.shape[2]
        for items, top, bottom in self.budget.tiles(len(h), height, h.shape[3] * width * h.element_size()):
            rows = h[items, :, self.last.reads(top, bottom, height)]
            total[items, :, top:bottom] += self.last(rows, top, bottom, height)
