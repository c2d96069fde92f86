"""The folded encoder of SRFlow, and the folded feature extractors of HCFlow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..condition import MultiScaleFeatures
from ..images.resize import enlarge
from ..networks import HierarchicalExtractor, RRDBEncoder
from ..networks.lr_encoder import doublings, grids_wanted
from ..networks.rrdb import DenseBlock
from .convolutions import ConditionConv, Conv, StreamedConv, weights_of
from .progress import report
from .strips import StripBudget, canvas, strips


class FoldedEncoder(nn.Module):
    """``RRDBEncoder`` in strips, with nothing enlarged early; it shares the weights."""

    def __init__(self, encoder: RRDBEncoder, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.dtype, self.budget = dtype, budget
        self.scale = encoder.scale
        # with weights of that precision, because not every device has autocast
        self.conv_first, self.conv_trunk = (
            Conv(*weights_of(conv), dtype) for conv in (encoder.conv_first, encoder.conv_trunk)
        )
        self.blocks = FoldedBlocks(encoder.blocks, budget, encoder.stacked_blocks)
        self.up = nn.ModuleList(ConditionConv(*weights_of(conv), dtype) for conv in encoder.conv_up)
        self.fine, self.last = (Conv(*weights_of(conv), dtype) for conv in (encoder.conv_hr, encoder.conv_last))
        self.units = self.blocks.units + len(self.up)

    def forward(
        self, lr: Tensor, levels: int | Sequence[int], *, with_enlargement: bool = False
    ) -> tuple[list[MultiScaleFeatures], Tensor | None]:
        """Compute features per level, on their own grids, and the enlargement or None; see ``RRDBEncoder.forward``."""
        scale, wanted = self.scale, grids_wanted(levels)
        trunk, stack = self._trunk(lr.to(self.dtype).contiguous(memory_format=torch.channels_last))
        native = {1: trunk}  # features by their scale
        features = trunk
        for k, conv in enumerate(self.up[: len(self.up) - 1 if with_enlargement else doublings(wanted, scale)]):
            assert isinstance(conv, ConditionConv)
            (enlarged,) = conv.on_canvas(MultiScaleFeatures(sources=((features, 2),)), self.budget)
            native[2 ** (k + 1)] = features = F.leaky_relu_(enlarged, 0.2)
            report(1)
        picture = self._picture(lr, features) if with_enlargement else None
        report(1)
        return features_by_grid(native, stack, wanted, scale), picture

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


class FoldedExtractor(nn.Module):
    """``HierarchicalExtractor`` in strips, some images at a time; it shares the weights.

    Where all images have the same input (expanded tensors), it is computed once: at the deepest level of an HCFlow all
    samples of an LR image share their features.
    """

    def __init__(self, extractor: HierarchicalExtractor, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.dtype, self.budget, self.both = dtype, budget, extractor.both
        self.features = extractor.features
        self.conv_first = ConditionConv(*weights_of(extractor.conv_first), dtype)
        self.first, self.second = (FoldedBlocks(half, budget) for half in (extractor.first, extractor.second))
        self.last = Conv(*weights_of(extractor.conv_last), dtype)
        self.units = self.first.units + self.second.units

    def forward(self, kept: Tensor, deeper: Sequence[Tensor]) -> Tensor:
        batch = len(kept)
        if batch > 1 and all(t.stride(0) == 0 for t in (kept, *deeper)):
            return self(kept[:1], [t[:1] for t in deeper]).expand(batch, -1, -1, -1)
        result = canvas(kept.new_empty((batch, 0, *kept.shape[2:]), dtype=self.dtype), self.features)
        several = max(1, self.budget.dense // (16 * result[0].numel() * result.element_size()))
        for start in range(0, batch, several):
            items = slice(start, start + several)
            self._run(kept[items], [t[items] for t in deeper], result[items])
        return result

    def _run(self, kept: Tensor, deeper: Sequence[Tensor], result: Tensor) -> None:
        width = self.conv_first.outputs
        sources = [(kept, 1), *((t, 2 ** (k + 1)) for k, t in enumerate(deeper))]
        (x,) = self.conv_first.on_canvas(MultiScaleFeatures(sources=tuple(sources)), self.budget)
        end = result[:, -width:]  # holds the start of the long skip until the end
        end.copy_(x)
        x, _ = self.first(x)
        if self.both:
            result[:, :width] = x
        x, _ = self.second(x)
        height = x.shape[2]
        for items, top, bottom in self.budget.tiles(len(x), height, x.shape[3] * width * x.element_size()):
            rows = x[items, :, self.last.reads(top, bottom, height)]
            end[items, :, top:bottom] += self.last(rows, top, bottom, height)


class FoldedBlocks(nn.Module):
    """RRDBs, of three folded dense blocks each."""

    def __init__(self, blocks: nn.Module, budget: StripBudget, stacked_blocks: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.dense = nn.ModuleList(
            FoldedDenseBlock(part, budget) for part in blocks.modules() if isinstance(part, DenseBlock)
        )
        self.stacked_blocks = stacked_blocks
        self.units = len(self.dense)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features ``(B, width, h, w)``, and the stacked blocks' outputs, ``(B, stacked * width, h, w)``."""
        width = x.shape[1]
        stack = canvas(x, width * len(self.stacked_blocks))
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
    """A dense block in strips that compute no row twice; it shares the weights.

    Each of its five convolutions reads the input and all earlier outputs, and a row more above and below. The earlier
    ones therefore compute more rows than the strip has, and keep the few that the next strip reads, too.
    """

    def __init__(self, block: DenseBlock, budget: StripBudget) -> None:
        super().__init__()
        self.budget = budget
        self.convs = [conv for conv in block.convs if isinstance(conv, nn.Conv2d)]
        self.widest = 2 * sum(conv.weight.shape[0] for conv in self.convs)  # what a convolution reads, and all outputs

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        *convs, last = (Conv(conv.weight, conv.bias, x.dtype) for conv in self.convs)

        def rows(earlier: Sequence[StreamedConv], start: int, stop: int) -> Tensor:
            """Concatenate the input with all earlier outputs, computing the latest first."""
            outputs = [stream(start, stop) for stream in reversed(earlier)][::-1]
            return torch.cat([x[:, :, start:stop], *outputs], dim=1) if earlier else x[:, :, start:stop]

        streams: list[StreamedConv] = []
        for conv in convs:  # each refers to earlier ones only: a cycle would keep its rows until garbage collection
            streams.append(StreamedConv(conv, partial(rows, tuple(streams)), height, 0.2))
        result = torch.empty_like(x)
        for top, bottom in strips(height, self.budget.dense_rows(x.shape[0] * x.shape[3] * self.widest * x.itemsize)):
            reads = last.reads(top, bottom, height)
            for stream in streams:
                stream.forget(reads.start)
            y = last(rows(streams, reads.start, reads.stop), top, bottom, height)
            torch.add(x[:, :, top:bottom], y, alpha=0.2, out=result[:, :, top:bottom])
        return result


def features_by_grid(
    native: dict[int, Tensor], shared: Tensor, wanted: Sequence[int], scale: int
) -> list[MultiScaleFeatures]:
    """Put the features of every grid together, with nothing enlarged; see ``LREncoder.by_grid``."""
    result: list[MultiScaleFeatures] = []
    for level in wanted:
        if 2**level <= scale:
            factor = scale // 2**level
            sources = [(native[factor], 1), (shared, factor)]
        else:
            half = F.interpolate(native[1], scale_factor=0.5, mode="bilinear", align_corners=False)
            sources = [(half, 1), (shared[:, :, ::2, ::2], 1)]
        result.append(MultiScaleFeatures(sources=tuple(source for source in sources if source[0].shape[1])))
    return result
