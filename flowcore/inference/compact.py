"""The folded network that makes a guide."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.compact import CompactUpscaler, enlarge_nearest
from .convolutions import Conv, StreamedConv, rows_of, weights_of
from .progress import report
from .strips import StripBudget, strips


class FoldedCompactUpscaler(nn.Module):
    """``CompactUpscaler`` in strips that compute no row twice."""

    def __init__(self, network: CompactUpscaler, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.budget, self.scale = budget, network.scale
        self.units = -(-len(network.convs) // 4)  # four are as much work as a coupling or injector of srflow-x4-photo
        self.convs = [Conv(*weights_of(conv), dtype) for conv in network.convs]
        self.slopes = [slope.detach().to(dtype) for slope in network.activations.parameters()]

    def forward(self, lr: Tensor) -> Tensor:
        batch, _, height, width = lr.shape
        rows, streams = rows_of(lr), list[StreamedConv]()
        *convs, last = self.convs
        for conv, slope in zip(convs, self.slopes, strict=True):
            streams.append(StreamedConv(conv, rows, height, slope))
            rows = streams[-1]
        held = sum(len(conv.weight) for conv in self.convs) * last.weight.element_size()
        result = enlarge_nearest(lr, self.scale)
        for top, bottom in strips(height, self.budget.dense_rows(batch * width * held)):
            reads = last.reads(top, bottom, height)
            added = last(rows(reads.start, reads.stop), top, bottom, height)
            for stream in streams:
                stream.forget(reads.start)
            result[:, :, top * self.scale : bottom * self.scale] += F.pixel_shuffle(added, self.scale)
            report(self.units * bottom // height - self.units * top // height)
        return result
