"""Folded weights, multiplied in float64 on the CPU: per-pixel affine maps, and conditioners as plain convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device import float64_on_cpu, no_autocast
from ..flows.networks.conditioner import Conditioner, Edge, NormalizedConv, PlainConditioner, ZeroConv
from ..flows.transforms import (
    ActNorm,
    BatchNorm,
    ChannelWhitening,
    InvertibleConv,
    LevelCondition,
    Permutation,
    SignedActNorm,
    Transform,
)

PIXELWISE = (ActNorm, SignedActNorm, BatchNorm, InvertibleConv, ChannelWhitening, Permutation)  # see ``channel_affine``


class ChannelAffine(NamedTuple):
    """``z = matrix x + bias`` at every pixel, in float64 on the CPU: ``(C, C)``, ``(C,)``; and ``log|det matrix|``."""

    matrix: Tensor
    bias: Tensor
    log_det: Tensor

    def then(self, second: ChannelAffine) -> ChannelAffine:
        """Compose: first this map, then ``second``."""
        bias = second.matrix @ self.bias + second.bias
        return ChannelAffine(second.matrix @ self.matrix, bias, second.log_det + self.log_det)


class Mixing(Transform):
    """Several per-pixel transforms, as one matrix and one vector.

    Forward: ``z = W x + b``; logdet: ``H W log|det W|``; inverse: ``x = W^-1 z - W^-1 b``.
    """

    uniform_logdet = True

    def __init__(self, maps: Sequence[ChannelAffine], like: Tensor) -> None:
        """Multiply maps in the data-to-latent direction, and take the dtype and device of a parameter of the flow."""
        super().__init__()
        matrix, bias, log_det = reduce(ChannelAffine.then, maps)
        inverse = torch.linalg.inv(matrix)
        self.log_det = float(log_det)
        self.to_latent = matrix.to(like), bias.to(like)  # not buffers: ``.to()`` of a compiled flow raises
        self.to_data = inverse.to(like), -(inverse @ bias).to(like)

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        log_det = self.log_det * x.shape[-2] * x.shape[-1]
        return _mix(x, *self.to_latent), x.new_full((x.shape[0],), log_det)

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return _mix(z, *self.to_data)


def channel_affine(transform: Transform) -> ChannelAffine:
    """Describe a transform of one of the ``PIXELWISE`` types as a matrix and a vector."""
    if isinstance(transform, ActNorm):
        logs = float64_on_cpu(transform.effective_log_scale())
        return ChannelAffine(torch.diag(logs.exp()), float64_on_cpu(transform.bias) * logs.exp(), logs.sum())
    if isinstance(transform, SignedActNorm):
        scale = float64_on_cpu(transform.scale)
        return ChannelAffine(torch.diag(scale), float64_on_cpu(transform.bias) * scale, scale.abs().log().sum())
    if isinstance(transform, BatchNorm):
        scale = torch.rsqrt(float64_on_cpu(transform.var) + transform.eps)
        return ChannelAffine(torch.diag(scale), -float64_on_cpu(transform.mean) * scale, scale.log().sum())
    if isinstance(transform, InvertibleConv):
        matrix = float64_on_cpu(transform.matrix())
        return ChannelAffine(matrix, torch.zeros_like(matrix[0]), torch.linalg.slogdet(matrix)[1])
    if isinstance(transform, ChannelWhitening):
        matrix = float64_on_cpu(transform.matrix)
        return ChannelAffine(matrix, -matrix @ float64_on_cpu(transform.mean), torch.linalg.slogdet(matrix)[1])
    assert isinstance(transform, Permutation)
    matrix = torch.eye(len(transform.order), dtype=torch.float64)[transform.order.cpu()]
    return ChannelAffine(matrix, torch.zeros_like(matrix[0]), torch.zeros_like(matrix[0, 0]))


class ConvWeights(NamedTuple):
    """A convolution in float64 on the CPU, with all that follows it up to the next ReLU folded in."""

    weight: Tensor  # (outputs, inputs, k, k); for the edge "flag", with one input more
    bias: Tensor  # (outputs,)
    edge: Edge

    def shifts_first(self, offset: float) -> ConvWeights:
        """Reorder the outputs: shifts, which come interleaved, before raw scales, and add an offset to the latter."""
        weight = torch.cat([self.weight[0::2], self.weight[1::2]])
        return ConvWeights(weight, torch.cat([self.bias[0::2], self.bias[1::2] + offset]), self.edge)


def conv_weights(network: nn.Module) -> list[ConvWeights]:
    """Fold a conditioner, actnorms and scales included, into convolutions with ReLU between; empty if it has others."""
    if isinstance(network, (Conditioner, PlainConditioner)):
        return [_folded(conv) for conv in (*network.hidden, network.last)]
    return [_folded(network)] if isinstance(network, ZeroConv) and network.weight is not None else []


def _folded(conv: nn.Module) -> ConvWeights:
    if isinstance(conv, NormalizedConv):
        scale, weight, bias, edge = conv.actnorm.effective_log_scale(), conv.weight, conv.actnorm.bias, conv.edge
    elif isinstance(conv, ZeroConv):
        scale, weight, bias, edge = 3 * conv.log_scale, conv.weight, conv.bias, conv.edge
    else:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        scale, weight, bias, edge = torch.zeros_like(conv.bias), conv.weight, conv.bias, "zeros"
    assert weight is not None
    factor = float64_on_cpu(scale).exp()
    return ConvWeights(float64_on_cpu(weight) * factor[:, None, None, None], float64_on_cpu(bias) * factor, edge)


def _mix(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    with no_autocast(x.device):
        if x.device.type == "cpu":
            return F.conv2d(x, matrix[:, :, None, None], bias)
        return F.linear(x.movedim(1, -1), matrix, bias).movedim(-1, 1)  # a GPU's convolutions may be less precise
