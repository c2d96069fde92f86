"""Kernels of networks in 8 bits: whole numbers from -127 to 127, and scales that multiply them.

Each output channel has a scale for every 64 of its numbers: with one scale for all of them, one large weight would make
all others of the channel coarse.

Only networks inside a flow are rounded like this. What a flow inverts or keeps bounded (1x1 convolutions, actnorms,
whitening, contractions) is not, so that the rounded flow is as invertible as the one before.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..flow import Flow
from ..networks.conditioner import NormalizedConv, ScaledConv
from ..networks.residual import WeightNormConv

SCALE = ".scale"  # suffix of a kernel's name; no tensor of a flow is called so
BLOCK = 64  # numbers of an output channel that share a scale
MIN_SIZE = 1024  # numbers; smaller kernels save little beside their scales and entries in the header


def kernels(flow: Flow) -> set[str]:
    """Return the names of the tensors that may be stored in 8 bits, of any size."""
    names: set[str] = set()
    for path, module in flow.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, NormalizedConv, ScaledConv)):
            names.add(f"{path}.weight")
        elif isinstance(module, WeightNormConv):
            names.add(f"{path}.direction")
    return names & flow.state_dict().keys()  # a ScaledConv without inputs has no kernel


def scales_shape(kernel: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of the scales of a kernel of that shape."""
    return kernel[0], math.ceil(math.prod(kernel[1:]) / BLOCK)


def to_eight_bits(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Round a kernel ``(outputs, ...)`` to int8, with bfloat16 scales ``scales_shape(kernel.shape)``.

    Products with such scales are exact in float32, so that rounding twice changes nothing.
    """
    rows = kernel.flatten(1).float()
    width = rows.shape[1]
    blocks = F.pad(rows, (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
    scale = (blocks.abs().amax(2) / 127).bfloat16()
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)  # of blocks of zeros
    values = (blocks / scale.float()[..., None]).round().clamp(-127, 127).to(torch.int8)
    return values.flatten(1)[:, :width].reshape(kernel.shape).contiguous(), scale


def from_eight_bits(values: Tensor, scale: Tensor) -> Tensor:
    """Multiply a kernel of whole numbers by its scales, in float32."""
    kernel, scale = values.to(torch.float32, copy=True), scale.float()
    rows = kernel.flatten(1)
    whole = rows.shape[1] // BLOCK
    # In place, since one kernel may be most of a file.
    rows[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)).mul_(scale[:, :whole, None])
    rows[:, whole * BLOCK :].mul_(scale[:, whole:])
    return kernel
