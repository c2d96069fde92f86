"""Folded conditioners: the networks of couplings and injectors, as convolutions that run strip by strip."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device import autocast, float64_on_cpu
from ..flows.networks.conditioner import Conditioner, PlainConditioner
from ..flows.networks.convolutions import NHWC, ConditionConv, Conv
from ..flows.networks.residual import AffineBatchNorm, ResidualBlock, ResidualConditioner, WeightNormConv
from ..flows.networks.strips import Rows, StripBudget, Tile, report
from .fold import ConvWeights, conv_weights

PixelScale = tuple[Tensor, Tensor]  # scale and shift of every channel, (C,) in float64 on the CPU, or (C, 1, 1)


class FoldedConditioner(nn.Module):
    """A conditioner of convolutions with ReLU between, folded and split; see ``flows.networks.Conditioner``.

    The first convolution is split, ``conv([x, c]) = conv_x(x) + conv_c(c)``: ``conv_flow`` is conv_x, of the flow's
    channels, and ``condition`` conv_c, with the bias; either may be None. Shifts come first, then raw scales.
    """

    def __init__(
        self,
        weights: Sequence[ConvWeights],
        inputs: int,
        dtype: torch.dtype,
        device: torch.device,
        pool: nn.Linear | None = None,
        block_layers: int = 0,
    ) -> None:
        """Split the first convolution: its first ``inputs`` channels are the flow's; the rest is the condition."""
        super().__init__()
        first, *rest = weights
        conditional = first.weight.shape[1] > inputs + (first.edge == "flag")  # the flag is one more channel
        weight, bias = (first.weight[:, :inputs], None) if conditional else (first.weight, first.bias)
        self.conv_flow = Conv(weight, bias, dtype, first.edge, device) if inputs else None
        self.condition = ConditionConv(first.weight[:, inputs:], first.bias, dtype, device) if conditional else None
        self.rest = nn.ModuleList(Conv(*conv[:2], dtype, conv.edge, device) for conv in rest)
        self.pool = None if pool is None else (pool.weight.to(dtype, copy=True), pool.bias.to(dtype, copy=True))
        self.outputs = weights[-1].weight.shape[0]
        self.block_layers = block_layers
        self.halo = sum(conv.weight.shape[-1] // 2 for conv in rest)  # rows of terms read on either side of a strip
        self.widest = max(conv.weight.shape[0] for conv in weights)

    def forward(self, x: Tensor) -> Tensor:
        """Run on whole images without a condition, as the prior of a split does."""
        return self.strip(x, None, 0, x.shape[2], x.shape[2])

    def strip(self, x: Tensor | None, terms: Rows | None, top: int, bottom: int, height: int) -> Tensor:
        """Compute the rows from ``top`` to ``bottom`` of the output, ``(B, outputs, bottom - top, W)``.

        ``x`` are the flow's channels, ``(B, inputs, H, W)``, or None; ``terms`` is the condition's term of the first
        convolution, or None.
        """
        convs = [conv for conv in self.rest if isinstance(conv, Conv)]
        spans = [(top, bottom)]  # rows that each convolution computes, the last convolution first
        for conv in reversed(convs):
            reads = conv.reads(*spans[-1], height)
            spans.append((reads.start, reads.stop))
        start, stop = spans.pop()
        if x is None:
            assert terms is not None
            h = terms(start, stop)
        else:
            assert self.conv_flow is not None
            h = self.conv_flow(x[:, :, self.conv_flow.reads(start, stop, height)], start, stop, height)
            h = h if terms is None else h.add_(terms(start, stop))
        block, first = h, start  # input of the residual block, and its first row
        for number, conv in enumerate(convs):
            h = F.relu(h) if number == 0 and x is None else F.relu_(h)  # terms may be read again
            if number == 0 and self.pool is not None:
                h = h + F.linear(h.mean((2, 3)), *self.pool)[:, :, None, None]
            if self.block_layers and number % self.block_layers == 0:
                h = h.add_(block[:, :, start - first : start - first + h.shape[2]]) if number else h
                block, first = h, start
            start, stop = spans.pop()
            h = conv(h, start, stop, height)
        return h

    def tiles(self, x: Tensor, budget: StripBudget) -> list[Tile]:
        """Split a batch ``(B, C, H, W)`` into tiles that run through the network one at a time."""
        batch, _, height, width = x.shape
        if self.pool is not None:
            return [(slice(batch), 0, height)]  # the mean is over the whole image
        row_bytes = width * self.widest * x.element_size()
        if self.condition is None:
            return budget.tiles(batch, height, row_bytes, 2 * self.halo)
        return budget.strips(batch, height, row_bytes, 2 * self.halo)  # the condition's term serves the whole batch


class UnsplitConditioner(nn.Module):
    """A conditioner that cannot be folded: it runs on whole images. Shifts come first, then raw scales."""

    condition = None

    def __init__(self, network: nn.Module, offset: float | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.offset, self.dtype = network, offset, dtype

    def forward(self, x: Tensor) -> Tensor:
        report()
        with autocast(x.device, self.dtype):
            raw = self.network(x).to(x.dtype)
        return raw if self.offset is None else torch.cat([raw[:, 0::2], raw[:, 1::2] + self.offset], dim=1)

    def tiles(self, x: Tensor, budget: StripBudget) -> list[Tile]:
        return [(slice(x.shape[0]), 0, x.shape[2])]


def folded_conditioner(
    network: nn.Module, inputs: int, offset: float | None, dtype: torch.dtype, budget: StripBudget
) -> FoldedConditioner | UnsplitConditioner:
    """Fold a conditioner if its layers allow it, or else run it unchanged.

    Its first ``inputs`` channels are the flow's. ``offset`` is added to raw scales; None keeps the order of outputs.
    """
    if isinstance(network, ResidualConditioner):
        network = FoldedResidualConditioner(network, dtype, budget)
    weights = conv_weights(network)
    conditional = bool(weights) and inputs + (weights[0].edge == "flag") < weights[0].weight.shape[1]
    if not weights or (conditional and weights[0].edge != "zeros"):
        return UnsplitConditioner(network, offset, dtype)
    if offset is not None:
        weights[-1] = weights[-1].shifts_first(offset)
    pool = network.pool if isinstance(network, Conditioner) else None
    block_layers = network.block_layers if isinstance(network, PlainConditioner) else 0
    device = next(network.parameters()).device
    return FoldedConditioner(weights, inputs, dtype, device, pool, block_layers)


class FoldedResidualConditioner(nn.Module):
    """``ResidualConditioner`` with weight norms computed once, and normalizations folded into convolutions.

    Those before a ReLU stay scale and shift; the last one is folded into the skip convolutions.
    """

    def __init__(self, network: ResidualConditioner, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.budget = budget
        scale, shift = _normalization(network.norm_in)
        self.norm_in = _planes((scale * network.gain, shift * network.gain), network.rescale, dtype)
        self.conv_in = _conv(network.conv_in, dtype)
        self.blocks: list[tuple[PixelScale, Conv, Conv]] = []
        for block in network.blocks:
            assert isinstance(block, ResidualBlock)
            before, between = (_normalization(norm) for norm in block.norms)
            first, second = _conv(block.convs[0], dtype, between), _conv(block.convs[1], dtype)
            self.blocks.append((_planes(before, network.rescale, dtype), first, second))
        scale, shift = _normalization(network.norm_out)
        self.skips = nn.ModuleList(
            _conv(skip, dtype, (scale, shift if k == 0 else torch.zeros_like(shift)))
            for k, skip in enumerate(network.skips)
        )
        self.conv_out = _conv(network.conv_out, dtype)
        self.rescale = network.rescale.detach().to(dtype)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, H, W)`` to shifts and log-scales, ``(B, 2 * outputs, H, W)``, some images at a time."""
        weight = self.conv_in.weight
        image = weight.shape[0] * x.shape[2] * x.shape[3] * weight.element_size()
        several = max(1, self.budget.strip // 4 // image)  # a block holds its input and output, a sum and a term of it
        return torch.cat([self._run(items).to(x.dtype) for items in x.split(several)])

    def _run(self, x: Tensor) -> Tensor:
        rows = 0, x.shape[2], x.shape[2]  # all of them
        scale, shift = self.norm_in
        x = torch.addcmul(shift, x.to(shift.dtype).contiguous(memory_format=NHWC), scale)
        x = self.conv_in(F.relu_(torch.cat([x, -x], dim=1)), *rows)  # (B, hidden, H, W)
        total = self.skips[0](x, *rows)
        for ((scale, shift), first, second), skip in zip(self.blocks, self.skips[1:], strict=True):
            y = F.relu_(first(F.relu_(torch.addcmul(shift, x, scale)), *rows))
            x = second(y, *rows).add_(x)
            total.add_(skip(x, *rows))
        raw = self.conv_out(F.relu_(total), *rows)
        raw[:, 1::2] = self.rescale * torch.tanh(raw[:, 1::2])
        return raw


def _normalization(norm: nn.Module) -> PixelScale:
    assert isinstance(norm, AffineBatchNorm)
    mean, var = (float64_on_cpu(norm.norm.get_buffer(name)) for name in ("mean", "var"))
    scale = float64_on_cpu(norm.weight) * torch.rsqrt(var + norm.norm.eps)
    return scale, float64_on_cpu(norm.bias) - mean * scale


def _planes(normalization: PixelScale, like: Tensor, dtype: torch.dtype) -> PixelScale:
    scale, shift = (t.to(like.device, dtype)[:, None, None] for t in normalization)
    return scale, shift


def _conv(conv: nn.Module, dtype: torch.dtype, after: PixelScale | None = None) -> Conv:
    """Fold the weight norm of a convolution, and the normalization after it."""
    assert isinstance(conv, WeightNormConv)
    direction = float64_on_cpu(conv.direction)
    weight = direction * (float64_on_cpu(conv.length) / direction.flatten(1).norm(dim=1))[:, None, None, None]
    bias = None if conv.bias is None else float64_on_cpu(conv.bias)
    if after is not None:
        scale, shift = after
        weight = weight * scale[:, None, None, None]
        bias = shift if bias is None else bias * scale + shift
    return Conv(weight, bias, dtype, device=conv.direction.device)
