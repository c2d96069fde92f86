"""The folded IMDN encoder of SRFlow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..condition import MultiScaleFeatures
from ..device import no_autocast
from ..networks.imdn import DistillationBlock, IMDNEncoder
from ..networks.lr_encoder import doublings, grids_wanted
from .convolutions import NHWC, Conv, StreamedConv, rows_of, weights_of
from .encoder import features_by_grid
from .progress import report
from .strips import StripBudget, canvas, strips


class FoldedIMDNEncoder(nn.Module):
    """``IMDNEncoder`` in strips; the skips, which carry the image itself, stay in the encoder's own precision."""

    def __init__(self, encoder: IMDNEncoder, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        backbone = encoder.backbone
        self.budget, self.own_dtype = budget, backbone.conv_first.weight.dtype
        self.scale, self.own_scale, self.at_scale = encoder.scale, backbone.own_scale, backbone.at_scale
        self.first, self.last = (
            Conv(*weights_of(conv), self.own_dtype) for conv in (backbone.conv_first, backbone.conv_last)
        )
        self.blocks = [FoldedDistillation(block, dtype, budget) for block in backbone.distillation_blocks()]
        self.trunk, *self.mix = (Conv(*weights_of(conv), dtype) for conv in (backbone.conv_trunk, *encoder.mix))
        weight, bias = weights_of(encoder.gather)
        self.gather_trunk, *gather = (
            Conv(part, None if number else bias, dtype)
            for number, part in enumerate(weight.split(backbone.conv_trunk.out_channels, dim=1))
        )
        self.gather = list(zip(encoder.stacked_blocks, gather, strict=True))
        self.up, self.fine = (
            [Conv(*weights_of(conv), dtype) for conv in convs] for convs in (encoder.conv_up, encoder.conv_fine)
        )
        self.units = len(self.blocks) + 1

    def forward(
        self, lr: Tensor, levels: int | Sequence[int], *, with_enlargement: bool = False
    ) -> tuple[list[MultiScaleFeatures], Tensor | None]:
        """Compute features per level, on their own grids, and the enlargement or None; see ``IMDNEncoder.forward``."""
        wanted = grids_wanted(levels)
        with no_autocast(lr.device):  # every convolution states its own precision
            trunk, x = self._trunk(lr.to(self.own_dtype).contiguous(memory_format=NHWC))
            picture = self._picture(trunk).to(lr.dtype) if with_enlargement else None
            self._mix(x)
            own, shared = x.chunk(2, dim=1)
            native = {1: own}
            for k in range(doublings(wanted, self.scale)):
                native[2 ** (k + 1)] = x = self._double(x, self.up[k], self.fine[k])
        report(1)
        return features_by_grid(native, shared, wanted, self.scale), picture

    def _trunk(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk's features, in its own precision, and the sum that the adapter gathers from it and the blocks."""
        first = self.first.on_canvas(lr, self.budget)
        x = first.clone()
        gathered = canvas(first.to(self.gather_trunk.weight.dtype), len(self.gather_trunk.weight)).zero_()
        for number, block in enumerate(self.blocks):
            block(x)
            for stacked, conv in self.gather:
                if stacked == number:
                    self._add(conv, x, gathered)
            report(1)
        self._add(self.trunk, x, first)
        self._add(self.gather_trunk, first, gathered)
        return first, F.leaky_relu_(gathered, 0.2)

    def _add(self, conv: Conv, x: Tensor, result: Tensor) -> None:
        for top, bottom in self._strips(result):
            reads = conv.reads(top, bottom, x.shape[2])
            result[:, :, top:bottom] += conv(x[:, :, reads], top, bottom, x.shape[2])

    def _picture(self, trunk: Tensor) -> Tensor:
        batch, _, height, width = trunk.shape
        scale = self.own_scale
        result = trunk.new_empty(batch, 3, height * scale, width * scale)
        for top, bottom in self._strips(trunk):
            rows = self.last(trunk[:, :, self.last.reads(top, bottom, height)], top, bottom, height)
            result[:, :, top * scale : bottom * scale] = F.pixel_shuffle(rows, scale)
        return self.at_scale(result)

    def _mix(self, x: Tensor) -> None:
        """Run the two convolutions beside the identity, in place: rows of a strip have been read before they change."""
        (first, second), height = self.mix, x.shape[2]
        inner = StreamedConv(first, rows_of(x), height, 0.2)
        for top, bottom in self._strips(x):
            reads = second.reads(top, bottom, height)
            inner.forget(reads.start)
            x[:, :, top:bottom] += second(inner(reads.start, reads.stop), top, bottom, height)

    def _double(self, x: Tensor, up: Conv, fine: Conv) -> Tensor:
        """Compute the features of the next finer grid."""
        height = 2 * x.shape[2]
        small = StreamedConv(up, rows_of(x), x.shape[2], 0.2)
        result = canvas(x.new_empty(len(x), 0, height, 2 * x.shape[3]), len(fine.weight))
        for top, bottom in self._strips(result):
            reads = fine.reads(top, bottom, height)
            first, end = reads.start // 2, -(-reads.stop // 2)
            small.forget(first)
            rows = F.pixel_shuffle(small(first, end), 2)[:, :, reads.start - 2 * first : reads.stop - 2 * first]
            result[:, :, top:bottom] = F.leaky_relu_(fine(rows, top, bottom, height), 0.2)
        return result

    def _strips(self, t: Tensor) -> list[tuple[int, int]]:
        return strips(t.shape[2], self.budget.rows(t[:, :, 0].numel() * t.element_size()))


class FoldedDistillation(nn.Module):
    """A ``DistillationBlock`` in strips that compute no row twice, in place."""

    def __init__(self, block: DistillationBlock, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.budget, self.kept = budget, block.kept
        self.convs = [Conv(*weights_of(conv), dtype) for conv in block.convs]
        self.fuse = Conv(*weights_of(block.fuse), dtype)

    def forward(self, x: Tensor) -> None:
        """Change ``(B, 4 * kept, h, w)`` in place: the convolutions have read a strip's rows before they change."""
        height, kept = x.shape[2], self.kept
        *convs, last = self.convs
        rows, streams = rows_of(x), list[StreamedConv]()
        for conv in convs:
            stream = StreamedConv(conv, rows, height, 0.05)
            streams.append(stream)
            rows = stream.channels(kept)
        row_bytes = 6 * x[:, :, 0].numel() * last.weight.element_size()  # of three outputs, and of what is read
        for top, bottom in strips(height, self.budget.dense_rows(row_bytes)):
            reads = last.reads(top, bottom, height)
            for stream in streams:
                stream.forget(reads.start)
            parts = [last(rows(reads.start, reads.stop), top, bottom, height)]
            parts = [stream(top, bottom)[:, :kept] for stream in streams] + parts
            x[:, :, top:bottom] += self.fuse(torch.cat(parts, dim=1), top, bottom, height)
