"""Exact rewrites of a flow's parts, for use: the same numbers to rounding, fewer operations.

- Everything that treats each pixel alike (actnorm, 1x1 convolution, permutation) is a matrix and a vector; neighbours
  are multiplied together, and inverses are taken once, in float64 (``Mixing``).
- A conditioner's actnorms, ``exp(3 log_scale)`` and the 2 of ``sigmoid(r + 2)`` go into weights and biases
  (``Network``).
- ``conv([x, c]) = conv_x(x) + conv_c(c)``: what depends on the condition alone is computed once for all samples.
- A convolution of features that were enlarged by nearest neighbour needs the small features only
  (``convolve_enlarged``): most of its products are the same.
- Everything is computed in strips of rows. A 3x3 convolution reads one row more on either side, and beyond the image
  there are zeros: so strips give what the whole canvas gives, and need memory for their own height only.

Source: the structure of Kingma & Dhariwal, "Glow", and Lugmayr et al., "SRFlow"; the rewrites are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..condition import MultiScaleFeatures, Source
from ..device import float64
from ..images.resize import enlarge
from ..networks import Conditioner, Edge, PlainConditioner, ResidualConditioner, RRDBEncoder, ScaledConv
from ..networks.conditioner import NormalizedConv
from ..networks.residual import NetworkNorm, ResidualBlock, WeightNormConv
from ..networks.rrdb import DenseBlock
from ..transforms import ActNorm, BatchNorm, ChannelWhitening, InvertibleConv, Permutation, SignedActNorm, Transform
from .progress import report

NHWC = torch.channels_last
Rows = Callable[[int, int], Tensor]
"""From a first row and the row after the last to these rows of a canvas, ``(B, C, rows, W)``; both may lie beyond the
image, where the values mean nothing."""
DENSE_BYTES = 2**27
"""How large what a dense block holds of a strip may be: its strips overlap, so that low ones cost time."""


class Mixing(nn.Module):
    """One matrix and one vector for every pixel: actnorms, 1x1 convolutions and permutations, multiplied together.

    Forward: ``z = W x + b``; logdet: ``log|det W|`` per position; inverse: ``x = W^-1 z - W^-1 b``. All four are
    computed in float64 and rounded once.
    """

    def __init__(self, matrix: Tensor, bias: Tensor, log_det: Tensor, like: Tensor) -> None:
        """Hold the map and its inverse.

        Args:
            matrix: W, ``(C, C)``, float64.
            bias: b, ``(C,)``, float64.
            log_det: ``log|det W|``, float64.
            like: A parameter of the flow: the dtype and device to compute in.
        """
        super().__init__()
        back = torch.linalg.inv(matrix)
        self.exact = matrix, bias, log_det
        self.log_det = float(log_det.detach())
        self.there = matrix.to(like), bias.to(like)
        self.back = back.to(like), -(back @ bias).to(like)

    def after(self, first: Mixing, like: Tensor) -> Mixing:
        """Compose: first the other, then this one.

        Args:
            first: What comes before, in the data-to-latent direction.
            like: As above.

        Returns:
            One map for the two.
        """
        (matrix, bias, log_det), (before, shift, change) = self.exact, first.exact
        return Mixing(matrix @ before, matrix @ shift + bias, log_det + change, like)

    def forward(self, x: Tensor) -> Tensor:
        """Mix channels, data to latent.

        Args:
            x: ``(B, C, H, W)``.

        Returns:
            ``(B, C, H, W)``.
        """
        return _mix(x, *self.there)

    def inverse(self, z: Tensor) -> Tensor:
        """Mix channels, latent to data.

        Args:
            z: ``(B, C, H, W)``.

        Returns:
            ``(B, C, H, W)``.
        """
        return _mix(z, *self.back)


def mixing(transform: Transform, like: Tensor) -> Mixing | None:
    """Turn a transform that treats every pixel alike into a matrix and a vector.

    Args:
        transform: Any.
        like: A parameter of the flow.

    Returns:
        The map, or None if the transform is something else.
    """
    if isinstance(transform, ActNorm):
        logs = float64(transform.logs())
        return Mixing(torch.diag(logs.exp()), float64(transform.bias) * logs.exp(), logs.sum(), like)
    if isinstance(transform, SignedActNorm):
        scale = float64(transform.scale)
        return Mixing(torch.diag(scale), float64(transform.bias) * scale, scale.abs().log().sum(), like)
    if isinstance(transform, BatchNorm):
        mean, var = float64(transform.get_buffer("mean")), float64(transform.get_buffer("var"))
        scale = torch.rsqrt(var + transform.eps)
        return Mixing(torch.diag(scale), -mean * scale, scale.log().sum(), like)
    if isinstance(transform, InvertibleConv):
        matrix = float64(transform.matrix())
        return Mixing(matrix, torch.zeros_like(matrix[0]), torch.linalg.slogdet(matrix)[1], like)
    if isinstance(transform, ChannelWhitening):
        matrix, mean = float64(transform.get_buffer("matrix")), float64(transform.get_buffer("mean"))
        return Mixing(matrix, -matrix @ mean, torch.linalg.slogdet(matrix)[1], like)
    if isinstance(transform, Permutation):
        order = transform.get_buffer("order")
        matrix = float64(torch.eye(len(order), device=order.device))[order]
        return Mixing(matrix, torch.zeros_like(matrix[0]), torch.zeros_like(matrix[0, 0]), like)
    return None


class FoldedConv(nn.Module):
    """A convolution with its weight and bias as they are used, in the precision that they are used in.

    It reads as many rows more as its kernel reaches, and returns fewer: rows beyond the image are the caller's to give.
    Columns beyond it are zeros.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Hold them.

        Args:
            weight: ``(outputs, inputs, k, k)``.
            bias: ``(outputs,)`` or None.
            dtype: To compute in.
        """
        super().__init__()
        self.reach = weight.shape[-1] // 2
        self.weight = weight.to(dtype=dtype, memory_format=NHWC)
        self.bias = None if bias is None else bias.to(dtype)

    @classmethod
    def of(cls, conv: nn.Module, dtype: torch.dtype) -> FoldedConv:
        """Take over an ordinary convolution.

        Args:
            conv: With a kernel of odd side and padding to keep the grid.
            dtype: To compute in.

        Returns:
            The same, without the padding of rows.
        """
        assert isinstance(conv, nn.Conv2d)
        return cls(conv.weight, conv.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: ``(B, inputs, rows + 2 * reach, W)``.

        Returns:
            ``(B, outputs, rows, W)``.
        """
        report()
        return F.conv2d(x.to(self.weight.dtype), self.weight, self.bias, padding=(0, self.reach))


class ConditionConv(nn.Module):
    """The condition's part of first convolutions, those of one network or of all networks of a level."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        """Hold weight and bias.

        Args:
            weight: ``(outputs, condition channels, k, k)``.
            bias: ``(outputs,)``.
            dtype: To compute in.
        """
        super().__init__()
        self.weight = weight.to(dtype=dtype, memory_format=NHWC)
        self.bias = bias.to(dtype)

    def forward(self, sources: Sequence[Source], top: int, bottom: int, out: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            sources: The condition's parts, as many channels together as the weight takes.
            top: First row, a multiple of every factor.
            bottom: Row after the last, likewise.
            out: Where to write; None for room of its own.

        Returns:
            ``(B, outputs, bottom - top, W)``.
        """
        report()
        weights = self.weight.split([t.shape[1] for t, _ in sources], dim=1)
        parts = sorted(zip(sources, weights, strict=True), key=lambda part: part[0][1])
        (t, factor), weight = parts.pop()  # the coarsest, which can write where it is wanted
        total = convolve_enlarged(t, weight, factor, top, bottom, self.bias, out)
        for (t, factor), weight in parts:
            total.add_(convolve_enlarged(t, weight, factor, top, bottom))
        return total

    @classmethod
    def of(cls, conv: nn.Module, dtype: torch.dtype) -> ConditionConv:
        """Take over an ordinary convolution.

        Args:
            conv: 3x3, with padding to keep the grid.
            dtype: To compute in.

        Returns:
            The same, for parts that are to be enlarged.
        """
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        return cls(conv.weight, conv.bias, dtype)

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return self.weight.shape[0]

    @classmethod
    def together(cls, parts: Sequence[ConditionConv]) -> ConditionConv | None:
        """Make one convolution of several, which become views of it.

        Args:
            parts: Of the same condition.

        Returns:
            Their outputs, one after the other; None if there are no parts.
        """
        if not parts:
            return None
        weight = torch.cat([part.weight for part in parts])
        result = cls(weight, torch.cat([part.bias for part in parts]), weight.dtype)
        widths = [part.outputs for part in parts]
        for part, weight, bias in zip(parts, result.weight.split(widths), result.bias.split(widths), strict=True):
            part.weight, part.bias = weight, bias
        return result


class StreamedConditionConv:
    """The condition's part of a first convolution, computed as its rows are asked for; only the latest are held."""

    def __init__(self, told: ConditionConv, parts: MultiScaleFeatures, reach: int, strip_bytes: int) -> None:
        """Compute nothing yet.

        Args:
            told: The convolution.
            parts: As in ``on_canvas``.
            reach: How many rows beyond the image will be asked for.
            strip_bytes: How much may be computed at once.
        """
        self.told = told
        self.sources, (batch, height, width) = _shared(parts)
        self.end = height + reach
        self.coarsest = max(factor for _, factor in self.sources)
        self.each = rows_of(batch * told.outputs * width * told.weight.element_size(), strip_bytes)
        self.top, self.latest = 0, told.weight.new_empty(0, 0, 0, 0)

    def __call__(self, start: int, stop: int) -> Tensor:
        """See ``Rows``; going down the image, little is computed twice."""
        if start < self.top or stop > self.top + self.latest.shape[2]:
            f = self.coarsest
            self.top = start // f * f
            bottom = max(stop, min(self.top + self.each, self.end))
            self.latest = self.told(self.sources, self.top, -(-bottom // f) * f)
        return self.latest[:, :, start - self.top : stop - self.top]


class Network(nn.Module):
    """A conditioner made of convolutions with zeros beyond the border, folded and split.

    The first convolution is two: of what the flow holds, and of the condition, with the bias. Of the outputs, shifts
    come first, then raw scales, where the conditioner has them interleaved.
    """

    def __init__(
        self, weights: Sequence[tuple[Tensor, Tensor]], inputs: int, offset: float | None, dtype: torch.dtype
    ) -> None:
        """Fold.

        Args:
            weights: Weight and bias of every convolution, actnorms and scales already in them.
            inputs: How many channels of the first convolution's input the flow holds; the rest is the condition.
            offset: Added to the raw scales; None if all outputs are shifts.
            dtype: To compute in.
        """
        super().__init__()
        if offset is not None:
            *others, (weight, bias) = weights
            weights = [*others, (_halves(weight), _halves(bias, offset))]
        (weight, bias), *rest = weights
        told = inputs < weight.shape[1]
        self.own = FoldedConv(weight[:, :inputs], None if told else bias, dtype) if inputs else None
        self.told = ConditionConv(weight[:, inputs:], bias, dtype) if told else None
        self.rest = nn.ModuleList(FoldedConv(*pair, dtype) for pair in rest)
        self.reach = sum(pair[0].shape[-1] // 2 for pair in rest)
        self.outputs = weights[-1][0].shape[0]
        self.widest = max(pair[0].shape[0] for pair in weights)

    def forward(self, own: Tensor | None, first: Rows | None, top: int, bottom: int, height: int) -> Tensor:
        """Compute a strip of the output.

        Args:
            own: What the flow holds, ``(B, inputs, H, W)``, the whole canvas; None if nothing.
            first: The condition's part of the first convolution, batch B or 1; None if there is none.
            top: First row to compute.
            bottom: Row after the last.
            height: H.

        Returns:
            ``(B, outputs, bottom - top, W)``.
        """
        start, stop = top - self.reach, bottom + self.reach  # the rows that what follows the first convolution reads
        if own is None:
            assert first is not None
            h = first(start, stop)
        else:
            assert self.own is not None
            h = self.own(rows(own, start - self.own.reach, stop + self.own.reach))
            h = h if first is None else h.add_(first(start, stop))
        for number, conv in enumerate(self.rest):
            h = F.relu(h) if number == 0 and own is None else F.relu_(h)
            h = conv(_blank(h, start, height))
            start += conv.reach  # pyright: ignore[reportOperatorIssue, reportAssignmentType]
        return h


class UnsplitConditioner(nn.Module):
    """A conditioner that takes everything together, on the whole canvas; shifts and raw scales are put in halves.

    It is folded if it is of a kind that we know, else run as it is. A few images go through at a time, as many as a
    core's cache holds.
    """

    def __init__(self, network: nn.Module, offset: float | None, dtype: torch.dtype, strip_bytes: int = 2**20) -> None:
        """Fold the network.

        Args:
            network: The conditioner.
            offset: Added to the raw scales; None if all outputs are shifts.
            dtype: To compute in.
            strip_bytes: How large its widest tensor may be.
        """
        super().__init__()
        folded = _folded_whole(network, offset, dtype, strip_bytes)
        self.network = network if folded is None else folded
        self.offset = offset
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Run.

        Args:
            x: ``(B, inputs, H, W)``.

        Returns:
            ``(B, outputs, H, W)``.
        """
        report()
        if isinstance(self.network, Convolutions):
            return self.network(x)
        low = self.dtype not in (torch.float32, torch.float64)
        with torch.autocast(x.device.type, self.dtype if low else None, enabled=low):
            raw = self.network(x).to(x.dtype)
        if self.offset is None:
            return raw
        return torch.cat([raw[:, 0::2], raw[:, 1::2] + self.offset], dim=1)


class BorderConv(nn.Module):
    """A folded convolution that knows what lies beyond the image, and gives itself the rows of it that it needs."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, edge: Edge = "zeros") -> None:
        """Hold weight and bias.

        Args:
            weight: ``(outputs, inputs, k, k)``; for the edge "flag" with one input more.
            bias: ``(outputs,)`` or None.
            dtype: To compute in.
            edge: See ``networks.conditioner.convolve``.
        """
        super().__init__()
        self.reach = weight.shape[-1] // 2
        self.weight = weight.to(dtype=dtype, memory_format=NHWC)
        self.bias = None if bias is None else bias.to(dtype)
        self.edge: Edge = edge

    def forward(self, x: Tensor, above: int, below: int) -> Tensor:
        """Convolve.

        Args:
            x: ``(B, inputs, rows, W)``.
            above: How many rows of what lies beyond the image come before.
            below: How many follow.

        Returns:
            ``(B, outputs, rows + above + below - 2 * reach, W)``.
        """
        report()
        x = x.to(self.weight.dtype)
        if self.edge == "zeros":
            if above != below:
                x, above = F.pad(x, (0, 0, above, below)), 0
            return F.conv2d(x, self.weight, self.bias, padding=(above, self.reach))
        around = (self.reach, self.reach, above, below)
        if self.edge == "ones":
            return F.conv2d(F.pad(x, around, value=1), self.weight, self.bias)
        flag = F.pad(x.new_zeros(x.shape[0], 1, *x.shape[2:]), around, value=1)
        return F.conv2d(torch.cat([F.pad(x, around), flag], dim=1), self.weight, self.bias)


class Convolutions(nn.Module):
    """A conditioner of convolutions with ReLU between, folded, for inputs that belong together.

    A few images go through at a time; one that is large goes in strips. No row is computed that is not needed.
    """

    def __init__(self, convs: Sequence[BorderConv], pool: tuple[Tensor, Tensor] | None, strip_bytes: int) -> None:
        """Hold the convolutions.

        Args:
            convs: In order.
            pool: Weight and bias of the linear map by which the mean of the first hidden layer is told to every
                position; None for none.
            strip_bytes: How large the widest tensor may be.
        """
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.pool = pool
        self.piece_bytes = strip_bytes // 2  # a convolution reads one and writes one
        self.reaches = [sum(conv.reach for conv in convs[k:]) for k in range(len(convs) + 1)]
        self.outputs = convs[-1].weight.shape[0]
        self.widest = max(conv.weight.shape[0] for conv in convs)

    def forward(self, x: Tensor) -> Tensor:
        """Run.

        Args:
            x: ``(B, inputs, H, W)``.

        Returns:
            ``(B, outputs, H, W)``, of the dtype of ``x``.
        """
        count, _, height, width = x.shape
        row = width * self.widest * self.convs[0].weight.element_size()  # pyright: ignore[reportCallIssue]
        each = height if self.pool is not None else rows_of(row, self.piece_bytes)
        several = max(1, self.piece_bytes // (row * height))
        if several >= count and each >= height:
            return self._strip(x, 0, height).to(x.dtype)
        result = canvas(x, self.outputs)
        for items in (slice(start, start + several) for start in range(0, count, several)):
            for top, bottom in strips(height, each):
                result[items, :, top:bottom] = self._strip(x[items], top, bottom)
        return result

    def _strip(self, x: Tensor, top: int, bottom: int) -> Tensor:
        height = x.shape[2]
        start, stop = max(0, top - self.reaches[0]), min(height, bottom + self.reaches[0])
        h = x[:, :, start:stop]
        for number, conv in enumerate(self.convs):
            if number:
                h = F.relu_(h)
            if number == 1 and self.pool is not None:
                h = h + F.linear(h.mean((2, 3)), *self.pool)[:, :, None, None]
            assert isinstance(conv, BorderConv)
            reach = self.reaches[number + 1]
            first, last = max(0, top - reach), min(height, bottom + reach)  # the rows that come out
            h = conv(h, start - first + conv.reach, last + conv.reach - stop)
            start, stop = first, last
        return h


class FoldedResidual(nn.Module):
    """``ResidualConditioner`` with weight norms taken once, and normalisations in the convolutions beside them.

    One with a convolution only after the ReLU is a scale and a shift. The last goes into all the skip convolutions,
    whose sum it normalises.
    """

    def __init__(self, network: ResidualConditioner, dtype: torch.dtype, strip_bytes: int) -> None:
        """Fold.

        Args:
            network: In use, not in training.
            dtype: To compute in.
            strip_bytes: How large its widest tensor may be.
        """
        super().__init__()
        self.piece_bytes = strip_bytes // 4  # beside it are the sum, and what a block adds
        scale, shift = _normalising(network.norm_in)
        self.norm_in = _planes(scale * network.gain, shift * network.gain, dtype)
        self.conv_in = _unnormed(network.conv_in, dtype)
        self.first, self.norms, self.second = nn.ModuleList(), [], nn.ModuleList()
        for block in network.blocks:
            assert isinstance(block, ResidualBlock)
            before, between = block.norms
            self.norms.append(_planes(*_normalising(before), dtype))
            self.first.append(_unnormed(block.convs[0], dtype, *_normalising(between)))
            self.second.append(_unnormed(block.convs[1], dtype))
        scale, shift = _normalising(network.norm_out)
        nothing = torch.zeros_like(shift)
        self.skips = nn.ModuleList(
            _unnormed(skip, dtype, scale, nothing if k else shift) for k, skip in enumerate(network.skips)
        )
        self.conv_out = _unnormed(network.conv_out, dtype)
        self.rescale = network.rescale.detach().to(dtype)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Run.

        Args:
            x: ``(B, inputs, H, W)``.

        Returns:
            ``(B, 2 * outputs, H, W)``: shift on even, log-scale on odd channels; of the dtype of ``x``.
        """
        weight = self.conv_in.weight
        each = max(1, self.piece_bytes // (weight.shape[0] * x.shape[2] * x.shape[3] * weight.element_size()))
        return torch.cat([self._some(items).to(x.dtype) for items in x.split(each)])

    def _some(self, x: Tensor) -> Tensor:
        scale, shift = self.norm_in
        x = torch.addcmul(shift, _nhwc(x.to(shift.dtype)), scale)
        x = _around(self.conv_in, F.relu_(torch.cat([x, -x], dim=1)))  # (B, hidden, H, W)
        total = _around(self.skips[0], x)
        for (scale, shift), first, second, skip in zip(
            self.norms, self.first, self.second, self.skips[1:], strict=True
        ):
            y = F.relu_(_around(first, F.relu_(torch.addcmul(shift, x, scale))))
            x = _around(second, y).add_(x)
            total.add_(_around(skip, x))
        raw = _around(self.conv_out, F.relu_(total))
        raw[:, 1::2] = self.rescale * torch.tanh(raw[:, 1::2])
        return raw


def _folded_whole(network: nn.Module, offset: float | None, dtype: torch.dtype, strip_bytes: int) -> nn.Module | None:
    """Fold a network that takes everything together, if it is of a kind that we know."""
    if isinstance(network, ResidualConditioner):
        return FoldedResidual(network, dtype, strip_bytes)
    weights = _weights(network)
    if weights is None:
        return None
    if offset is not None:
        *others, (weight, bias) = weights
        weights = [*others, (_halves(weight), _halves(bias, offset))]
    pool = network.pool if isinstance(network, Conditioner) else None
    convs = [BorderConv(*pair, dtype, edge) for pair, edge in zip(weights, _edges(network), strict=True)]
    told = None if pool is None else (pool.weight.detach().to(dtype), pool.bias.detach().to(dtype))
    return Convolutions(convs, told, strip_bytes)


def folded_residual(network: nn.Module, dtype: torch.dtype, strip_bytes: int) -> nn.Module:
    """Fold the network of a checkerboard coupling.

    Args:
        network: Any.
        dtype: To compute in.
        strip_bytes: How large its widest tensor may be.

    Returns:
        The same function, folded if it is a ``ResidualConditioner``.
    """
    return FoldedResidual(network, dtype, strip_bytes) if isinstance(network, ResidualConditioner) else network


def _normalising(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of a ``NetworkNorm``, (C,) each, float64."""
    assert isinstance(norm, NetworkNorm)
    mean, var = (float64(norm.norm.get_buffer(name)) for name in ("mean", "var"))
    scale = float64(norm.weight) * torch.rsqrt(var + norm.norm.eps)
    return scale, float64(norm.bias) - mean * scale


def _planes(scale: Tensor, shift: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return scale.to(dtype)[:, None, None], shift.to(dtype)[:, None, None]


def _unnormed(
    conv: nn.Module, dtype: torch.dtype, scale: Tensor | None = None, shift: Tensor | None = None
) -> BorderConv:
    """Take the norm of a ``WeightNormConv`` into its weight, and scale and shift of what comes out into both."""
    assert isinstance(conv, WeightNormConv)
    direction = float64(conv.direction)
    weight = direction * (float64(conv.length) / direction.flatten(1).norm(dim=1))[:, None, None, None]
    bias = None if conv.bias is None else float64(conv.bias)
    if scale is not None:
        weight = weight * scale[:, None, None, None]
        bias = shift if bias is None else bias * scale + (0 if shift is None else shift)
    return BorderConv(weight, bias, dtype)


def _around(conv: nn.Module, x: Tensor) -> Tensor:
    """Convolve the whole canvas."""
    assert isinstance(conv, BorderConv)
    return conv(x, conv.reach, conv.reach)


def folded_weights(network: nn.Module) -> list[tuple[Tensor, Tensor]] | None:
    """Fold a conditioner into plain convolutions with ReLU between.

    Args:
        network: Any.

    Returns:
        Weight and bias of each, in float64; None if the network is something else, or sees more than zeros beyond the
        border.
    """
    pooled = isinstance(network, Conditioner) and network.pool is not None
    return None if pooled or set(_edges(network)) != {"zeros"} else _weights(network)


def _convs(network: nn.Module) -> list[nn.Module]:
    """The convolutions of a conditioner that is made of nothing else; empty for others."""
    if isinstance(network, ScaledConv):
        return [] if network.weight is None else [network]
    return [*network.hidden, network.last] if isinstance(network, (Conditioner, PlainConditioner)) else []


def _edges(network: nn.Module) -> list[Edge]:
    """What its convolutions see beyond the border."""
    return [conv.edge if isinstance(conv, (NormalizedConv, ScaledConv)) else "zeros" for conv in _convs(network)]


def _weights(network: nn.Module) -> list[tuple[Tensor, Tensor]] | None:
    """Weights and biases of its convolutions, with what follows them, in float64; None if it is made of others."""
    result: list[tuple[Tensor, Tensor]] = []
    for conv in _convs(network):
        if isinstance(conv, NormalizedConv):
            scale = float64(conv.actnorm.logs()).exp()
            weight, bias = conv.weight, conv.actnorm.bias
        elif isinstance(conv, ScaledConv):
            scale = float64(3 * conv.log_scale).exp()
            weight, bias = conv.weight, conv.bias
        else:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            scale, weight, bias = float64(torch.ones_like(conv.bias)), conv.weight, conv.bias
        assert weight is not None
        result.append((float64(weight) * scale[:, None, None, None], float64(bias) * scale))
    return result or None


def convolve_enlarged(
    x: Tensor,
    weight: Tensor,
    factor: int,
    top: int,
    bottom: int,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve features enlarged by nearest neighbour, without enlarging them.

    In one dimension, with the kernel ``(a, b, c)`` and the factor f, the outputs that belong to pixel i are
    ``a x[i-1] + b x[i] + c x[i]`` at its first place, ``(a + b + c) x[i]`` in its middle and
    ``a x[i] + b x[i] + c x[i+1]`` at its last. With the pairs ``s[i] = a x[i-1] + c x[i]`` these are ``s[i] + b x[i]``,
    ``(a + b + c) x[i]`` and ``s[i+1] + b x[i]``: for f = 2 three products instead of six, and in two dimensions 9
    instead of 36.

    Args:
        x: ``(B, C, h, w)``, the whole canvas.
        weight: ``(outputs, C, 3, 3)``.
        factor: f; 1 for an ordinary convolution.
        top: First row of the enlarged grid to compute, a multiple of f.
        bottom: Row after the last, likewise.
        bias: ``(outputs,)`` or None.
        out: Where to write; None for room of its own.

    Returns:
        ``(B, outputs, bottom - top, f * w)``.
    """
    top, bottom = top // factor, bottom // factor
    if top <= 0 and bottom >= x.shape[2] and -top == bottom - x.shape[2]:  # then there is no need to copy
        x, beyond = x.to(weight.dtype), 1 - top
    else:
        x, beyond = rows(x, top - 1, bottom + 1).to(weight.dtype), 0
    if factor == 1:
        result = F.conv2d(x, weight, bias, padding=(beyond, 1))
        return result if out is None else out.copy_(result)
    pairs = _columns(x, weight[:, :, 0::2], factor, beyond)  # (B, outputs, h + 1, f * w)
    x, beyond = (x, beyond - 1) if beyond else (x[:, :, 1:-1], 0)
    own = _columns(x, weight[:, :, 1:2], factor, beyond)
    if bias is not None:
        own += bias[:, None, None]
    size = (*own.shape[:2], factor * (bottom - top), own.shape[-1])
    result = out if out is not None else torch.empty(size, dtype=own.dtype, device=own.device, memory_format=NHWC)
    torch.add(pairs[:, :, :-1], own, out=result[:, :, 0::factor])
    torch.add(pairs[:, :, 1:], own, out=result[:, :, factor - 1 :: factor])
    if factor > 2:
        middle = _columns(x, weight.sum(2, keepdim=True), factor, beyond)
        middle = middle if bias is None else middle + bias[:, None, None]
        for p in range(1, factor - 1):
            result[:, :, p::factor] = middle
    return result


def _columns(x: Tensor, kernel: Tensor, factor: int, beyond: int = 0) -> Tensor:
    """The same along rows: ``(B, C, rows + k - 1, w)`` and ``(outputs, C, k, 3)`` to ``(B, outputs, rows, f * w)``.

    So many rows of zeros as `beyond` says come before and after.
    """
    pairs = F.conv2d(x, _nhwc(kernel[..., 0::2]), padding=(beyond, 1))  # (B, outputs, rows, w + 1)
    own = F.conv2d(x, _nhwc(kernel[..., 1:2]), padding=(beyond, 0))
    size = (*own.shape[:3], factor * x.shape[-1])
    result = torch.empty(size, dtype=own.dtype, device=own.device, memory_format=NHWC)
    torch.add(pairs[..., :-1], own, out=result[..., 0::factor])
    torch.add(pairs[..., 1:], own, out=result[..., factor - 1 :: factor])
    if factor > 2:
        middle = F.conv2d(x, _nhwc(kernel.sum(-1, keepdim=True)), padding=(beyond, 0))
        for q in range(1, factor - 1):
            result[..., q::factor] = middle
    return result


def rows(x: Tensor, top: int, bottom: int) -> Tensor:
    """Take rows; those beyond the image are zeros.

    Args:
        x: ``(B, C, H, W)``.
        top: First row; may be negative.
        bottom: Row after the last; may exceed H.

    Returns:
        ``(B, C, bottom - top, W)``, a view where nothing is missing.
    """
    height = x.shape[2]
    inside = x[:, :, max(top, 0) : min(bottom, height)]
    above, below = max(-top, 0), max(bottom - height, 0)
    return F.pad(inside, (0, 0, above, below)) if above or below else inside


def strips(height: int, each: int) -> list[tuple[int, int]]:
    """Part rows into strips.

    Args:
        height: Number of rows.
        each: Rows of a strip; the last may have fewer.

    Returns:
        First row, and row after the last, of each.
    """
    return [(top, min(top + each, height)) for top in range(0, height, each)]


def rows_of(bytes_per_row: int, strip_bytes: int) -> int:
    """Choose the height of strips.

    Args:
        bytes_per_row: Of the widest tensor.
        strip_bytes: How large it may be.

    Returns:
        Rows, at least 8: the rows above and below that are read besides should not be most of the work.
    """
    return max(8, strip_bytes // max(1, bytes_per_row))


def on_canvas(
    told: ConditionConv, parts: MultiScaleFeatures, strip_bytes: int, widths: Sequence[int] | None = None
) -> list[Tensor]:
    """Compute the condition's part of first convolutions on the whole canvas, strip by strip.

    Args:
        told: The convolution.
        parts: The condition, of one image or as many as there are; one that was expanded counts as one.
        strip_bytes: How large a strip of the result may be.
        widths: How the outputs are shared out; None for one share.

    Returns:
        Each ``(B or 1, width, H, W)``.
    """
    sources, (batch, height, width) = _shared(parts)
    coarsest = max(factor for _, factor in sources)
    each = rows_of(batch * told.outputs * width * told.weight.element_size(), strip_bytes)
    each = max(coarsest, each // coarsest * coarsest)
    if each >= height and widths is None:
        return [told(sources, 0, height)]
    shares = [told.outputs] if widths is None else list(widths)
    result = [canvas(told.weight.new_empty((batch, 0, height, width)), n) for n in shares]
    for top, bottom in strips(height, each):
        if widths is None:
            told(sources, top, bottom, result[0][:, :, top:bottom])
            continue
        for whole, share in zip(result, told(sources, top, bottom).split(shares, dim=1), strict=True):
            whole[:, :, top:bottom] = share
    return result


def _shared(parts: MultiScaleFeatures) -> tuple[list[Source], tuple[int, int, int]]:
    """Sources of which one that was expanded counts as one image; and batch, height and width of the canvas."""
    sources = [(_single(t) if t.stride(0) == 0 else t, factor) for t, factor in parts.sources]
    t, factor = sources[0]
    return sources, (t.shape[0], t.shape[2] * factor, t.shape[3] * factor)


def _single(t: Tensor) -> Tensor:
    """One item of a batch that was expanded, with the strides of a batch of one: with others torch would copy it."""
    return t.as_strided((1, *t.shape[1:]), (t[0].numel(), *t.stride()[1:]))


def canvas(like: Tensor, channels: int) -> Tensor:
    """Make room for something to be written strip by strip.

    Args:
        like: ``(B, any, H, W)``.
        channels: C.

    Returns:
        ``(B, C, H, W)`` of the same dtype, not initialised.
    """
    shape = (like.shape[0], channels, *like.shape[2:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=NHWC)


def _blank(x: Tensor, first: int, height: int) -> Tensor:
    """Set rows beyond the image to zero, as padding would; `x` begins with row `first` and is written to."""
    if first < 0:
        x[:, :, :-first] = 0
    if first + x.shape[2] > height:
        x[:, :, height - first :] = 0
    return x


def _halves(x: Tensor, offset: float | None = None) -> Tensor:
    """Put even outputs (shifts) before odd ones (raw scales), and add the offset to the latter."""
    first, second = x[0::2], x[1::2]
    return torch.cat([first, second if offset is None else second + offset])


def _mix(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # the flow itself stays in float32 or wider
        if x.device.type == "cpu":  # on a GPU, convolutions may be allowed to be less precise
            return F.conv2d(x, matrix[:, :, None, None], bias)
        return F.linear(x.movedim(1, -1), matrix, bias).movedim(-1, 1)


def _nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=NHWC)


class FoldedEncoder(nn.Module):
    """``RRDBEncoder``, with every feature convolved once by all that read it, in strips, and nothing enlarged early.

    A dense block's five convolutions see the block's input and all outputs before them. Here the input goes through the
    five of them at once, then each output through those that remain, and the parts are added up: no concatenation.
    """

    def __init__(self, encoder: RRDBEncoder, dtype: torch.dtype, strip_bytes: int) -> None:
        """Hold the encoder's convolutions.

        Args:
            encoder: They are shared with it.
            dtype: To compute in.
            strip_bytes: How large the widest tensor of a strip of the enlargement may be.
        """
        super().__init__()
        self.dtype, self.strip_bytes, self.dense_bytes = dtype, strip_bytes, DENSE_BYTES
        self.scale, self.stacked_blocks = encoder.scale, encoder.stacked_blocks
        self.conv_first, self.conv_trunk = encoder.conv_first, encoder.conv_trunk
        self.dense = nn.ModuleList(FoldedDense(part) for part in encoder.modules() if isinstance(part, DenseBlock))
        self.up = nn.ModuleList(ConditionConv.of(conv, dtype) for conv in encoder.conv_up)
        self.units = len(self.dense) + len(self.up)
        self.fine, self.last = FoldedConv.of(encoder.conv_hr, dtype), FoldedConv.of(encoder.conv_last, dtype)

    def forward(
        self, lr: Tensor, levels: int, *, with_enlargement: bool = False
    ) -> tuple[list[MultiScaleFeatures], Tensor | None]:
        """Compute the features for the flow; see ``RRDBEncoder.forward``.

        Args:
            lr: ``(B, 3, h, w)`` in [0, 1].
            levels: Number of grids, finest first.
            with_enlargement: Whether to compute the enlargement as well.

        Returns:
            Per level the features in parts, and the enlargement or None.
        """
        scale = self.scale
        trunk, stack = self._trunk(lr.to(self.dtype).contiguous(memory_format=NHWC))
        native = {1: trunk}
        features = trunk
        for k, conv in enumerate(self.up[:-1]):
            (enlarged,) = on_canvas(conv, MultiScaleFeatures(sources=((features, 2),)), self.strip_bytes)  # pyright: ignore[reportArgumentType]
            features = F.leaky_relu_(enlarged, 0.2)
            report(1)
            native[2 ** (k + 1)] = features
        picture = self._picture(lr, features) if with_enlargement else None
        report(1)
        result: list[MultiScaleFeatures] = []
        for level in range(1, levels + 1):
            if 2**level <= scale:
                factor = scale // 2**level
                sources = [(native[factor], 1), (stack, factor)]
            else:
                half = F.interpolate(trunk, scale_factor=0.5, mode="bilinear", align_corners=False)
                sources = [(half, 1), (stack[:, :, ::2, ::2], 1)]
            result.append(MultiScaleFeatures(sources=tuple(source for source in sources if source[0].shape[1])))
        return result, picture

    def _trunk(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv_first(lr)
        width = x.shape[1]
        stack = canvas(x, width * len(self.stacked_blocks))
        dense = iter(self.dense)
        for number in range(len(self.dense) // 3):
            inner = x
            for _ in range(3):
                inner = self._in_strips(next(dense), inner)
                report(1)
            x = inner.mul_(0.2).add_(x)
            for place, kept in enumerate(self.stacked_blocks):
                if kept == number:
                    stack[:, place * width : (place + 1) * width] = x
        return self.conv_trunk(x).add_(x), stack

    def _in_strips(self, dense: nn.Module, x: Tensor) -> Tensor:
        """Run a dense block in strips that overlap by what its convolutions reach."""
        assert isinstance(dense, FoldedDense)
        height, reach = x.shape[2], dense.reach
        each = max(8 * reach, self.dense_bytes // (x.shape[0] * x.shape[3] * dense.widest * x.element_size()))
        if each >= height:
            return dense(x)
        result = torch.empty_like(x)
        for top, bottom in strips(height, each):
            start, stop = max(0, top - reach), min(height, bottom + reach)
            result[:, :, top:bottom] = dense(x[:, :, start:stop])[:, :, top - start : bottom - start]
        return result

    def _picture(self, lr: Tensor, features: Tensor) -> Tensor:
        """The enlargement; its widest tensors are as large as HR, and never whole."""
        up = self.up[-1]
        result = enlarge(lr, self.scale)
        height, width = result.shape[2:]
        each = rows_of(result.shape[0] * width * self.fine.weight.shape[0] * features.element_size(), self.strip_bytes)
        for top, bottom in strips(height, each // 2 * 2):
            stop = bottom + bottom % 2
            x = F.leaky_relu_(up([(features, 2)], top - 2, stop + 2), 0.2)
            x = F.leaky_relu_(self.fine(_blank(x, top - 2, height)), 0.2)
            x = self.last(_blank(x, top - 1, height))
            result[:, :, top:bottom] += x[:, :, : bottom - top]
        return result


class FoldedDense(nn.Module):
    """A dense block whose features are each convolved once, by all the convolutions that read them."""

    def __init__(self, block: DenseBlock) -> None:
        """Hold the block; its weights are sorted anew at every run, which costs little and keeps no copy.

        Args:
            block: From the encoder.
        """
        super().__init__()
        self.convs = [conv for conv in block.convs if isinstance(conv, nn.Conv2d)]
        self.reach = len(self.convs)
        self.widest = 2 * sum(conv.weight.shape[0] for conv in self.convs)  # sums before and after an addition

    def forward(self, x: Tensor) -> Tensor:
        """Run the block.

        Args:
            x: ``(B, width, rows, W)``; beyond them are zeros.

        Returns:
            ``(B, width, rows, W)``.
        """
        report()
        edges = [0, *(conv.weight.shape[1] for conv in self.convs)]
        bias = torch.cat([conv.bias for conv in self.convs if conv.bias is not None]).to(x.dtype)
        sums = y = x
        for k, (start, stop) in enumerate(pairwise(edges)):
            weight = torch.cat([conv.weight[:, start:stop] for conv in self.convs[k:]])
            weight = weight.to(dtype=x.dtype, memory_format=NHWC)
            if k == 0:
                sums = F.conv2d(x, weight, bias, padding=1)
            else:
                sums = F.conv2d(y, weight, padding=1).add_(sums[:, stop - start :])
            y = F.leaky_relu(sums[:, : edges[k + 2] - stop], 0.2) if k + 2 < len(edges) else sums
        return sums.mul_(0.2).add_(x)
