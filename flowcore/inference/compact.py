"""The folded network that makes a guide."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.compact import CompactUpscaler, enlarge_nearest
from .convolutions import Conv, StreamedConv, rows_of, weights_of
from .progress import report
from .strips import Rows, StripBudget, strips

IN_FLIGHT = 4  # tensors: what a convolution reads, and what it makes, before the PReLU, after it, and with older rows


class FoldedCompactUpscaler(nn.Module):
    """``CompactUpscaler`` in strips that compute no row twice; of every layer but two, two rows are held."""

    def __init__(self, network: CompactUpscaler, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.budget, self.scale = budget, network.scale
        self.units = -(-len(network.convs) // 4)  # four are as much work as a coupling or injector of srflow-x4-photo
        self.convs = [Conv(*weights_of(conv), dtype) for conv in network.convs]
        self.slopes = [slope.detach().to(dtype) for slope in network.activations.parameters()]

    def forward(self, lr: Tensor) -> Tensor:
        batch, _, height, width = lr.shape
        rows = rows_of(lr)
        *convs, last = self.convs
        for conv, slope in zip(convs, self.slopes, strict=True):
            rows = _read_once(StreamedConv(conv, rows, height, slope))
        row = IN_FLIGHT * batch * width * max(len(conv.weight) for conv in self.convs) * last.weight.element_size()
        result = enlarge_nearest(lr, self.scale)
        for top, bottom in strips(height, self.budget.dense_rows(row)):
            reads = last.reads(top, bottom, height)
            added = last(rows(reads.start, reads.stop), top, bottom, height)
            result[:, :, top * self.scale : bottom * self.scale] += F.pixel_shuffle(added, self.scale)
            report(self.units * bottom // height - self.units * top // height)
        return result


def _read_once(stream: StreamedConv) -> Rows:
    """Return the rows of a convolution that only one other reads, and hold no more than the two that it reads again."""

    def rows(start: int, stop: int) -> Tensor:
        result = stream(start, stop)
        stream.forget(stop - 2)
        stream.held = [t.clone() for t in stream.held]
        return result

    return rows
