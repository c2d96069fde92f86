"""The folded encoder of SRFlow, and the folded feature extractors of HCFlow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..condition import MultiScaleFeatures
from ..images.resize import enlarge
from ..networks import HierarchicalExtractor, RRDBEncoder
from ..networks.rrdb import DenseBlock, grids_wanted, up_convolutions
from .convolutions import ConditionConv, Conv, convolve_rows
from .progress import report
from .strips import StripBudget, canvas, strips


class FoldedEncoder(nn.Module):
    """``RRDBEncoder`` in strips, with nothing enlarged early; it shares that one's weights.

    Attributes:
        units: Units of work that one run reports.
    """

    def __init__(self, encoder: RRDBEncoder, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.dtype, self.budget = dtype, budget
        self.scale = encoder.scale
        # with weights of that precision, because not every device has autocast
        self.conv_first, self.conv_trunk = (
            Conv(*_weights(conv), dtype) for conv in (encoder.conv_first, encoder.conv_trunk)
        )
        self.blocks = FoldedBlocks(encoder.blocks, budget, encoder.stacked_blocks)
        self.up = nn.ModuleList(ConditionConv(*_weights(conv), dtype) for conv in encoder.conv_up)
        self.fine, self.last = (Conv(*_weights(conv), dtype) for conv in (encoder.conv_hr, encoder.conv_last))
        self.units = self.blocks.units + len(self.up)

    def forward(
        self, lr: Tensor, levels: int | Sequence[int], *, with_enlargement: bool = False
    ) -> tuple[list[MultiScaleFeatures], Tensor | None]:
        """Compute the features for the flow; see ``RRDBEncoder.forward``.

        Returns:
            Per level the features on their own grids, and the enlargement or None.
        """
        scale, wanted = self.scale, grids_wanted(levels)
        trunk, stack = self._trunk(lr.to(self.dtype).contiguous(memory_format=torch.channels_last))
        native = {1: trunk}  # features by their scale
        features = trunk
        for k, conv in enumerate(self.up[: up_convolutions(wanted, len(self.up), with_enlargement)]):
            assert isinstance(conv, ConditionConv)
            (enlarged,) = conv.on_canvas(MultiScaleFeatures(sources=((features, 2),)), self.budget)
            native[2 ** (k + 1)] = features = F.leaky_relu_(enlarged, 0.2)
            report(1)
        picture = self._picture(lr, features) if with_enlargement else None
        report(1)
        result: list[MultiScaleFeatures] = []
        for level in wanted:
            if 2**level <= scale:
                factor = scale // 2**level
                sources = [(native[factor], 1), (stack, factor)]
            else:
                half = F.interpolate(trunk, scale_factor=0.5, mode="bilinear", align_corners=False)
                sources = [(half, 1), (stack[:, :, ::2, ::2], 1)]
            result.append(MultiScaleFeatures(sources=tuple(source for source in sources if source[0].shape[1])))
        return result, picture

    def _trunk(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(B, width, h, w)``, and the outputs of the stacked blocks, ``(B, stacked * width, h, w)``."""
        rows = 0, lr.shape[2], lr.shape[2]  # all of them
        x, stack = self.blocks(self.conv_first(lr, *rows))
        return self.conv_trunk(x, *rows).add_(x), stack

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

    Attributes:
        units: Units of work that one run reports.
    """

    def __init__(self, extractor: HierarchicalExtractor, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.dtype, self.budget, self.both = dtype, budget, extractor.both
        self.features = extractor.features
        self.conv_first = ConditionConv(*_weights(extractor.conv_first), dtype)
        self.first, self.second = (FoldedBlocks(half, budget) for half in (extractor.first, extractor.second))
        self.last = Conv(*_weights(extractor.conv_last), dtype)
        self.units = self.first.units + self.second.units

    def forward(self, kept: Tensor, deeper: Sequence[Tensor]) -> Tensor:
        """Compute the features; see ``HierarchicalExtractor.forward``."""
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
    """RRDBs, of three folded dense blocks each.

    Attributes:
        units: Units of work that one run reports.
    """

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

    Each of its five convolutions sees the input and all outputs before it, and a row more above and below. So the
    earlier ones run ahead of a strip, and the few rows of theirs that the next strip reads too are held.
    """

    def __init__(self, block: DenseBlock, budget: StripBudget) -> None:
        super().__init__()
        self.budget = budget
        self.convs = [conv for conv in block.convs if isinstance(conv, nn.Conv2d)]
        self.widest = 2 * sum(conv.weight.shape[0] for conv in self.convs)  # what a convolution reads, and all outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, width, h, w)`` to the same shape."""
        height, last = x.shape[2], len(self.convs) - 1
        weights = [conv.weight.to(dtype=x.dtype, memory_format=torch.channels_last) for conv in self.convs]
        biases = [None if conv.bias is None else conv.bias.to(x.dtype) for conv in self.convs]
        result = torch.empty_like(x)
        held = [x.new_empty(0)] * last  # the outputs' rows from `first` on
        ends, first = [0] * len(self.convs), 0  # rows that each convolution has computed
        for top, bottom in strips(height, self.budget.dense_rows(x.shape[0] * x.shape[3] * self.widest * x.itemsize)):
            report()
            held, first = [y[:, :, max(0, top - 1) - first :] if top else y for y in held], max(0, top - 1)
            for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                begin, ends[k] = ends[k], min(height, bottom + last - k)
                if begin == ends[k]:
                    continue  # the image has ended
                start, stop = max(0, begin - 1), min(height, ends[k] + 1)
                seen = [x[:, :, start:stop], *(y[:, :, start - first : stop - first] for y in held[:k])]
                y = convolve_rows(torch.cat(seen, dim=1) if k else seen[0], weight, bias, begin, ends[k], height)
                if k == last:
                    torch.add(x[:, :, top:bottom], y, alpha=0.2, out=result[:, :, top:bottom])
                else:
                    y = F.leaky_relu_(y, 0.2)
                    held[k] = torch.cat([held[k], y], dim=2) if begin else y
        return result


def _weights(conv: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    return conv.weight, conv.bias
