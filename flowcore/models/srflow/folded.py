"""SRFlow's folded networks: the encoders, what makes a guide, and the blocks that HCFlow and LLFlow fold, too."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...device import no_autocast
from ...flows.networks.convolutions import NHWC, ConditionConv, Conv, StreamedConv, rows_of, weights_of
from ...flows.networks.strips import Folded, Rows, StripBudget, canvas, report, strips
from ...flows.transforms import MultiScaleFeatures
from ...images.resize import enlarge
from .imdn import CompactUpscaler, DistillationBlock, IMDNEncoder
from .rrdb import DenseBlock, RRDBEncoder, doublings, sources_by_grid

IN_FLIGHT = 4  # tensors: what a convolution reads, and what it makes, before the PReLU, after it, and with older rows


# --- SRFlow -----------------------------------------------------------------------------------------------------------


class FoldedEncoder(Folded):
    """``RRDBEncoder`` in strips, with nothing enlarged early; it shares the weights."""

    def __init__(self, encoder: RRDBEncoder, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.dtype, self.budget = dtype, budget
        self.scale = encoder.scale
        # with weights of that precision, because not every device has autocast
        self.conv_first, self.conv_trunk, self.fine, self.last = (
            Conv(*weights_of(conv), dtype)
            for conv in (encoder.conv_first, encoder.conv_trunk, encoder.conv_hr, encoder.conv_last)
        )
        self.blocks = FoldedBlocks(encoder.blocks, budget, encoder.stacked_blocks)
        self.up = [ConditionConv(*weights_of(conv), dtype) for conv in encoder.conv_up]
        self.units = self.blocks.units + len(self.up)

    def forward(
        self, lr: Tensor, grids: Sequence[int], *, with_enlargement: bool = False
    ) -> tuple[list[MultiScaleFeatures], Tensor | None]:
        """Compute features per level, on their own grids, and the enlargement or None; see ``RRDBEncoder.forward``."""
        features, stack = self._trunk(lr.to(self.dtype).contiguous(memory_format=NHWC))
        native = {1: features}  # keys: factors from the LR grid
        for k, conv in enumerate(self.up[: len(self.up) - 1 if with_enlargement else doublings(grids, self.scale)]):
            (enlarged,) = conv.on_canvas(MultiScaleFeatures(sources=((features, 2),)), self.budget)
            native[2 ** (k + 1)] = features = F.leaky_relu_(enlarged, 0.2)
            report(1)
        picture = self._picture(lr, features) if with_enlargement else None
        report(1)
        return [MultiScaleFeatures(sources=s) for s in sources_by_grid(native, stack, grids, self.scale)], picture

    def _trunk(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(B, width, h, w)``, and the outputs of the stacked blocks, ``(B, stacked * width, h, w)``."""
        x, stack = self.blocks(self.conv_first.on_canvas(lr, self.budget))
        return self.conv_trunk.on_canvas(x, self.budget).add_(x), stack

    def _picture(self, lr: Tensor, features: Tensor) -> Tensor:
        """The enlargement ``(B, 3, scale * h, scale * w)``; its wide tensors exist in strips only."""
        up, fine, last = self.up[-1], self.fine, self.last
        result = enlarge(lr, self.scale)
        height, width = result.shape[2:]
        each = self.budget.rows(result.shape[0] * width * fine.weight.shape[0] * features.element_size())
        for top, bottom in strips(height, each // 2 * 2):
            middle = last.reads(top, bottom, height)
            outer = fine.reads(middle.start, middle.stop, height)
            first, end = outer.start // 2 * 2, -(-outer.stop // 2) * 2  # whole pixels of the features
            x = F.leaky_relu_(up([(features, 2)], first, end), 0.2)[:, :, outer.start - first : outer.stop - first]
            x = F.leaky_relu_(fine(x, middle.start, middle.stop, height), 0.2)
            result[:, :, top:bottom] += last(x, top, bottom, height)
        return result


class FoldedBlocks(nn.Module):
    """RRDBs, of three folded dense blocks each."""

    def __init__(self, blocks: nn.Module, budget: StripBudget, stacked_blocks: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.dense = [FoldedDenseBlock(part, budget) for part in blocks.modules() if isinstance(part, DenseBlock)]
        self.stacked_blocks, self.units = stacked_blocks, len(self.dense)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features ``(B, width, h, w)``, and the stacked blocks' outputs, ``(B, stacked * width, h, w)``."""
        batch, width, *sides = x.shape
        stack = canvas((batch, width * len(self.stacked_blocks), *sides), x)
        for number in range(len(self.dense) // 3):
            inner = x
            for dense in self.dense[3 * number : 3 * number + 3]:
                inner = dense(inner)
                report(1)
            x = inner.mul_(0.2).add_(x)
            for place, stacked in enumerate(self.stacked_blocks):
                if stacked == number:
                    stack[:, place * width : (place + 1) * width] = x
        return x, stack


class FoldedDenseBlock(nn.Module):
    """A dense block in strips that compute no row twice (see ``StreamedConv``); it shares the weights."""

    def __init__(self, block: DenseBlock, budget: StripBudget) -> None:
        super().__init__()
        self.budget = budget
        self.convs = [conv for conv in block.convs if isinstance(conv, nn.Conv2d)]
        self.widest = 2 * sum(conv.weight.shape[0] for conv in self.convs)  # what a convolution reads, and all outputs

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        *convs, last = (Conv(conv.weight, conv.bias, x.dtype) for conv in self.convs)

        def rows(earlier: Sequence[StreamedConv], start: int, stop: int) -> Tensor:
            """Concatenate the input and all earlier outputs; the latest goes first, as it requests rows of others."""
            outputs = [stream(start, stop) for stream in reversed(earlier)][::-1]
            return torch.cat([x[:, :, start:stop], *outputs], dim=1) if earlier else x[:, :, start:stop]

        streams: list[StreamedConv] = []
        for conv in convs:  # each refers to earlier ones only: a cycle would keep its rows until garbage collection
            streams.append(StreamedConv(conv, partial(rows, tuple(streams)), height, 0.2))
        result = torch.empty_like(x)
        each = self.budget.dense_rows(x.shape[0] * x.shape[3] * self.widest * x.itemsize)
        for top, bottom, y in last.in_strips(partial(rows, streams), height, each, streams):
            torch.add(x[:, :, top:bottom], y, alpha=0.2, out=result[:, :, top:bottom])
        return result


# --- SRFlow with an IMDN ----------------------------------------------------------------------------------------------


class FoldedIMDNEncoder(Folded):
    """``IMDNEncoder`` in strips; the skips, which carry the image itself, stay in the encoder's own precision."""

    def __init__(self, encoder: IMDNEncoder, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        backbone = encoder.backbone
        self.budget, self.encoder_dtype = budget, backbone.conv_first.weight.dtype
        self.scale, self.network_scale, self.at_scale = encoder.scale, backbone.network_scale, backbone.at_scale
        self.first, self.last = (
            Conv(*weights_of(conv), self.encoder_dtype) for conv in (backbone.conv_first, backbone.conv_last)
        )
        self.blocks = [FoldedDistillation(block, dtype, budget) for block in backbone.blocks]
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
        self, lr: Tensor, grids: Sequence[int], *, with_enlargement: bool = False
    ) -> tuple[list[MultiScaleFeatures], Tensor | None]:
        """Compute features per level, on their own grids, and the enlargement or None; see ``IMDNEncoder.forward``."""
        with no_autocast(lr.device):  # every convolution states its own precision
            trunk, x = self._trunk(lr.to(self.encoder_dtype).contiguous(memory_format=NHWC))
            picture = self._picture(trunk).to(lr.dtype) if with_enlargement else None
            self._mix(x)
            native_lr, shared = x.chunk(2, dim=1)
            native = {1: native_lr}  # keys: factors from the LR grid
            for k in range(doublings(grids, self.scale)):
                native[2 ** (k + 1)] = x = self._double(x, self.up[k], self.fine[k])
        report(1)
        return [MultiScaleFeatures(sources=s) for s in sources_by_grid(native, shared, grids, self.scale)], picture

    def _trunk(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk's features, in its own precision, and the sum that the adapter gathers from it and the blocks."""
        first = self.first.on_canvas(lr, self.budget)
        x = first.clone()
        weight = self.gather_trunk.weight
        gathered = canvas((len(first), len(weight), *first.shape[2:]), weight).zero_()
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
        for top, bottom, strip in conv.in_strips(rows_of(x), x.shape[2], self._rows(result)):
            result[:, :, top:bottom] += strip

    def _picture(self, trunk: Tensor) -> Tensor:
        batch, _, height, width = trunk.shape
        scale = self.network_scale
        result = trunk.new_empty(batch, 3, height * scale, width * scale)
        for top, bottom, strip in self.last.in_strips(rows_of(trunk), height, self._rows(trunk)):
            result[:, :, top * scale : bottom * scale] = F.pixel_shuffle(strip, scale)
        return self.at_scale(result)

    def _mix(self, x: Tensor) -> None:
        """Run the two convolutions beside the identity, in place: rows of a strip have been read before they change."""
        (first, second), height = self.mix, x.shape[2]
        inner = StreamedConv(first, rows_of(x), height, 0.2)
        for top, bottom, strip in second.in_strips(inner, height, self._rows(x), [inner]):
            x[:, :, top:bottom] += strip

    def _double(self, x: Tensor, up: Conv, fine: Conv) -> Tensor:
        """Compute the features of the next finer grid."""
        height = 2 * x.shape[2]
        small = StreamedConv(up, rows_of(x), x.shape[2], 0.2)
        result = canvas((len(x), len(fine.weight), height, 2 * x.shape[3]), x)
        for top, bottom in strips(height, self._rows(result)):
            reads = fine.reads(top, bottom, height)
            first, end = reads.start // 2, -(-reads.stop // 2)
            small.drop_rows_before(first)
            rows = F.pixel_shuffle(small(first, end), 2)[:, :, reads.start - 2 * first : reads.stop - 2 * first]
            result[:, :, top:bottom] = F.leaky_relu_(fine(rows, top, bottom, height), 0.2)
        return result

    def _rows(self, t: Tensor) -> int:
        return self.budget.rows(t[:, :, 0].numel() * t.element_size())


class FoldedDistillation(nn.Module):
    """A ``DistillationBlock`` in strips that compute no row twice, in place."""

    def __init__(self, block: nn.Module, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        assert isinstance(block, DistillationBlock)
        self.budget, self.distilled = budget, block.distilled
        self.convs = [Conv(*weights_of(conv), dtype) for conv in block.convs]
        self.fuse = Conv(*weights_of(block.fuse), dtype)

    def forward(self, x: Tensor) -> None:
        """Change ``(B, 4 * distilled, h, w)`` in place: a strip's rows are read before they change."""
        height, distilled = x.shape[2], self.distilled
        *convs, last = self.convs
        rows, streams = rows_of(x), list[StreamedConv]()
        for conv in convs:
            stream = StreamedConv(conv, rows, height, 0.05)
            streams.append(stream)
            rows = stream.channels(distilled)
        row_bytes = 6 * x[:, :, 0].numel() * last.weight.element_size()  # three outputs, and what is read
        for top, bottom, remaining in last.in_strips(rows, height, self.budget.dense_rows(row_bytes), streams):
            parts = [*(stream(top, bottom)[:, :distilled] for stream in streams), remaining]
            x[:, :, top:bottom] += self.fuse(torch.cat(parts, dim=1), top, bottom, height)


# --- guides -----------------------------------------------------------------------------------------------------------


class FoldedCompactUpscaler(Folded):
    """``CompactUpscaler`` in strips that compute no row twice; of every layer but two, two rows are held."""

    def __init__(self, network: CompactUpscaler, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.budget, self.scale = budget, network.scale
        self.units = -(-len(network.convs) // 4)  # four are as much work as a coupling or injector of srflow-x4-photo
        self.convs = [Conv(*weights_of(conv), dtype) for conv in network.convs]
        self.slopes = [slope.detach().to(dtype) for slope in network.activations.parameters()]

    def forward(self, lr: Tensor) -> Tensor:
        batch, _, height, width = lr.shape
        rows: Rows = rows_of(lr)
        *convs, last = self.convs
        for conv, slope in zip(convs, self.slopes, strict=True):
            rows = StreamedConv(conv, rows, height, slope, keep=2)
        row = IN_FLIGHT * batch * width * max(len(conv.weight) for conv in self.convs) * last.weight.element_size()
        result = F.interpolate(lr, scale_factor=self.scale, mode="nearest")
        for top, bottom, added in last.in_strips(rows, height, self.budget.dense_rows(row)):
            result[:, :, top * self.scale : bottom * self.scale] += F.pixel_shuffle(added, self.scale)
            report(self.units * bottom // height - self.units * top // height)
        return result
