"""Convolutions of strips: of the flow's channels, and of conditioning features, which may have to be enlarged.

They know transforms and networks only. Compiled flows and the folded networks of families are made of them.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transforms import MultiScaleFeatures, ScaledFeatures
from .conditioner import Edge, with_border
from .strips import Rows, StripBudget, canvas, report, strips

NHWC = torch.channels_last


class Conv(nn.Module):
    """A convolution of a strip, in its own precision; ``edge`` is as in ``flows.networks.conditioner.convolve``.

    The weight is ``(outputs, inputs, k, k)``, k odd. The device is where it runs; None for the weight's.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        edge: Edge = "zeros",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        device = weight.device if device is None else device
        self.reach = weight.shape[-1] // 2  # rows above and below that an output row depends on
        self.weight = weight.to(device=device, dtype=dtype, memory_format=NHWC)
        self.bias = None if bias is None else bias.to(device, dtype)
        self.edge: Edge = edge

    def reads(self, top: int, bottom: int, height: int) -> slice:
        """The input rows, of an image of ``height``, that the output's rows from ``top`` to ``bottom`` depend on."""
        return slice(max(0, top - self.reach), min(height, bottom + self.reach))

    def forward(self, x: Tensor, top: int, bottom: int, height: int) -> Tensor:
        """Compute the rows from ``top`` to ``bottom``, ``(B, outputs, bottom - top, W)``, of an image of ``height``.

        ``x`` holds the rows of ``reads(top, bottom, height)``, ``(B, inputs, rows, W)``.
        """
        report()
        x = x.to(self.weight.dtype)
        above, below = max(0, self.reach - top), max(0, bottom + self.reach - height)  # rows beyond the border
        if self.edge != "zeros":
            return F.conv2d(with_border(x, (self.reach, self.reach, above, below), self.edge), self.weight, self.bias)
        y = F.conv2d(x, self.weight, self.bias, padding=(max(above, below), self.reach))
        # Both borders were padded alike, for the one that needs more: cheaper than a padded copy of x.
        first = max(0, below - above)  # rows too many at the top; those at the bottom are cut off, too
        return y[:, :, first : first + bottom - top]

    def in_strips(
        self, rows: Rows, height: int, each: int, streams: Sequence["StreamedConv"] = ()
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Compute an image in strips of ``each`` rows; yield the first row, the row after the last, and the strip.

        ``rows`` looks up the input. ``streams`` are convolutions before this one: they drop what is not read again.
        """
        for top, bottom in strips(height, each):
            reads = self.reads(top, bottom, height)
            for stream in streams:
                stream.drop_rows_before(reads.start)
            yield top, bottom, self(rows(reads.start, reads.stop), top, bottom, height)

    def on_canvas(self, x: Tensor, budget: StripBudget) -> Tensor:
        """Convolve whole images strip by strip, so that a caller can stop it in between."""
        batch, _, height, width = x.shape
        result = canvas((batch, len(self.weight), height, width), self.weight)
        each = budget.rows(result[:, :, 0].numel() * result.element_size())
        for top, bottom, strip in self.in_strips(rows_of(x), height, each):
            result[:, :, top:bottom] = strip
        return result


class StreamedConv:
    """The rows of a convolution and its leaky ReLU, each computed once, when first requested (see ``Rows``).

    Strips are requested from top to bottom. In a chain of such convolutions each reads a halo of one row; so rows stay
    here until ``drop_rows_before``, for the next strip; or, where a single other convolution reads them, all but the
    last ``keep`` are freed at once. The slope is a number, or one per channel.
    """

    def __init__(
        self, conv: Conv, source: Rows, height: int, slope: float | Tensor, *, keep: int | None = None
    ) -> None:
        self.conv, self.source, self.height, self.slope, self.keep = conv, source, height, slope, keep
        self.first = 0  # number of the first stored row
        self.stored: Tensor | None = None

    def __call__(self, start: int, stop: int) -> Tensor:
        """Return the rows of a range that has not been dropped, ``(B, outputs, stop - start, W)``."""
        stored, slope = self.stored, self.slope
        end = self.first + (0 if stored is None else stored.shape[2])
        if stored is None or stop > end:
            reads = self.conv.reads(end, stop, self.height)
            rows = self.conv(self.source(reads.start, reads.stop), end, stop, self.height)
            rows = F.prelu(rows, slope) if isinstance(slope, Tensor) else F.leaky_relu_(rows, slope)
            self.stored = stored = rows if stored is None else torch.cat([stored, rows], dim=2)
        result = stored[:, :, start - self.first : stop - self.first]
        if self.keep is not None:
            self.drop_rows_before(stop - self.keep)
        return result

    def drop_rows_before(self, first: int) -> None:
        """Free the rows above ``first``."""
        if self.stored is not None:
            rest = self.stored[:, :, first - self.first :]
            if self.keep is not None:
                rest = rest.clone()  # else the rows above would stay in memory
            self.stored = rest if rest.shape[2] else None
        self.first = first

    def channels(self, first: int) -> Rows:
        """Return the rows of the channels from ``first`` on."""
        return lambda start, stop: self(start, stop)[:, first:]


class ConditionConv(nn.Module):
    """A 3x3 convolution of conditioning features: the condition's term of one or more first convolutions."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, device: torch.device | None = None) -> None:
        super().__init__()
        device = weight.device if device is None else device
        self.weight = weight.to(device=device, dtype=dtype, memory_format=NHWC)
        self.bias = bias.to(device, dtype)
        self.outputs = weight.shape[0]

    def forward(self, sources: Sequence[ScaledFeatures], top: int, bottom: int) -> Tensor:
        """Compute the rows from ``top`` to ``bottom``, multiples of every source's factor, without enlarging."""
        report()
        weights = self.weight.split([t.shape[1] for t, _ in sources], dim=1)
        parts = sorted(zip(sources, weights, strict=True), key=lambda part: part[0][1])
        (t, factor), weight = parts.pop()  # the coarsest
        total = convolve_enlarged(t, weight, factor, top, bottom, self.bias)
        for (t, factor), weight in parts:
            term = convolve_enlarged(t, weight, factor, top, bottom)
            total = total.add_(term) if len(term) <= len(total) else term.add_(total)
        return total

    def on_canvas(
        self, features: MultiScaleFeatures, budget: StripBudget, widths: Sequence[int] = (), units: int = 0
    ) -> list[Tensor]:
        """Convolve images strip by strip, into tensors ``(B or 1, width, H, W)`` of the given widths; by default, one.

        An expanded batch counts as one image. ``units`` of work are reported on the way.
        """
        sources, (batch, height, width) = _deduplicated(features)
        shares = list(widths) or [self.outputs]
        result = [canvas((batch, share, height, width), self.weight) for share in shares]
        coarsest = max(factor for _, factor in sources)
        each = budget.rows(batch * self.outputs * width * self.weight.element_size())
        for top, bottom in strips(height, max(coarsest, each // coarsest * coarsest)):
            for image, share in zip(result, self(sources, top, bottom).split(shares, dim=1), strict=True):
                image[:, :, top:bottom] = share
            report(units * bottom // height - units * top // height)
        return result


class StreamedConditionConv:
    """A ``ConditionConv`` computed when its rows are requested (see ``Rows``); only the latest are held."""

    def __init__(self, conv: ConditionConv, features: MultiScaleFeatures, budget: StripBudget) -> None:
        self.conv = conv
        self.sources, (batch, self.height, width) = _deduplicated(features)
        self.coarsest = max(factor for _, factor in self.sources)
        self.each = budget.rows(batch * conv.outputs * width * conv.weight.element_size())
        self.top, self.latest = 0, conv.weight.new_empty(0, 0, 0, 0)

    def __call__(self, start: int, stop: int) -> Tensor:
        if start < self.top or stop > self.top + self.latest.shape[2]:
            factor = self.coarsest
            self.top = start // factor * factor
            bottom = max(stop, min(self.top + self.each, self.height))
            self.latest = self.conv(self.sources, self.top, -(-bottom // factor) * factor)
        return self.latest[:, :, start - self.top : stop - self.top]


def weights_of(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of a convolution that has both."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    return conv.weight, conv.bias


def rows_of(x: Tensor) -> Rows:
    """Look rows up in a tensor ``(B, C, H, W)``."""
    return lambda start, stop: x[:, :, start:stop]


def convolve_enlarged(
    x: Tensor, weight: Tensor, factor: int, top: int, bottom: int, bias: Tensor | None = None
) -> Tensor:
    """Convolve features ``(B, C, h, w)`` enlarged by nearest neighbor, 3x3, without enlarging them.

    Each place in an enlarged pixel has its own kernel. In one dimension, with the kernel ``(a, b, c)`` and the pairs
    ``s[i] = a x[i-1] + c x[i]``, the outputs that belong to pixel i are ``s[i] + b x[i]`` at its first place, ``(a + b
    + c) x[i]`` in its middle and ``s[i+1] + b x[i]`` at its last: for the factor f = 2, 3 products per pixel instead of
    6, and in two dimensions 9 instead of 36. Returns the rows from ``top`` to ``bottom``, multiples of f: ``(B,
    outputs, bottom - top, f * w)``.
    """
    top, bottom, height = top // factor, bottom // factor, x.shape[2]
    if top == 0 and bottom == height:
        x, beyond = x.to(weight.dtype), 1  # convolutions add a row of zeros above and below
    else:
        above, below = max(0, 1 - top), max(0, bottom + 1 - height)
        x, beyond = x[:, :, max(0, top - 1) : bottom + 1].to(weight.dtype), 0
        x = F.pad(x, (0, 0, above, below)) if above or below else x
    if factor == 1:
        return F.conv2d(x, weight, bias, padding=(beyond, 1))
    pairs = _columns(x, weight[:, :, 0::2], factor, beyond)  # (B, outputs, h + 1, f * w)
    x, beyond = (x, beyond - 1) if beyond else (x[:, :, 1:-1], 0)
    center = _columns(x, weight[:, :, 1:2], factor, beyond)
    middle = _columns(x, weight.sum(2, keepdim=True), factor, beyond) if factor > 2 else None
    if bias is not None:
        center += bias[:, None, None]
        middle = None if middle is None else middle.add_(bias[:, None, None])
    return _interleave(pairs, center, middle, factor, 2)


def _columns(x: Tensor, kernel: Tensor, factor: int, beyond: int) -> Tensor:
    """The same along rows: ``(B, C, rows + k - 1, w)`` and ``(outputs, C, k, 3)`` to ``(B, outputs, rows, f * w)``."""
    pairs = F.conv2d(x, kernel[..., 0::2].contiguous(memory_format=NHWC), padding=(beyond, 1))  # w + 1 columns
    center = F.conv2d(x, kernel[..., 1:2].contiguous(memory_format=NHWC), padding=(beyond, 0))
    middle = None
    if factor > 2:
        kernel = kernel.sum(-1, keepdim=True).contiguous(memory_format=NHWC)
        middle = F.conv2d(x, kernel, padding=(beyond, 0))
    return _interleave(pairs, center, middle, factor, 3)


def _interleave(pairs: Tensor, center: Tensor, middle: Tensor | None, factor: int, dim: int) -> Tensor:
    """Lay out the places of enlarged pixels along a dimension; see ``convolve_enlarged``."""
    count = center.shape[dim]
    size = [side * factor if d == dim else side for d, side in enumerate(center.shape)]
    result = torch.empty(size, dtype=center.dtype, device=center.device, memory_format=NHWC)
    first, *between, last = result.unflatten(dim, (count, factor)).unbind(dim + 1)
    torch.add(pairs.narrow(dim, 0, count), center, out=first)
    torch.add(pairs.narrow(dim, 1, count), center, out=last)
    for place in between:
        assert middle is not None
        place.copy_(middle)
    return result


def _deduplicated(features: MultiScaleFeatures) -> tuple[list[ScaledFeatures], tuple[int, int, int]]:
    """Sources in which an expanded batch counts as one image; and batch, height and width of their common grid."""
    sources: list[ScaledFeatures] = []
    for t, factor in features.sources:
        if t.stride(0) == 0:  # the first item, with the strides of a batch of one: with those of t[:1] torch would copy
            t = t.as_strided((1, *t.shape[1:]), (t[0].numel(), *t.stride()[1:]))
        sources.append((t, factor))
    t, factor = sources[0]
    return sources, (max(len(t) for t, _ in sources), t.shape[2] * factor, t.shape[3] * factor)
