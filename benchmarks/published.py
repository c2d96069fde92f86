"""A plain SRFlow as described by its paper and program, the baseline of our measurements.

It does everything that the published network does, without folding or sharing between samples: the encoder's HR branch
runs, features are concatenated for every grid up to the HR image's (which no level reads), every 1x1 inverse (in
float64) and determinant is computed each time, the logdet is computed while decoding, and every sample is decoded
separately. It was written from the paper, uses the weights of our flow, and must give the same pictures
(``tests/core/test_benchmarks.py``).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowcore.flows.flow import Flow
from flowcore.models import build, configure


def random_srflow(**fields: Any) -> Flow:
    """Build a network with fixed random weights that decodes to finite images.

    ``fields`` are those of ``SRFlowConfig``; the defaults are the published DF2K 4X network. It uses seed 0 and the
    usual initialization; then every last convolution of a conditioner gets weights of N(0, 0.001^2) and raw scales of 2
    (a scale of 0.98), and every actnorm N(0, 0.02^2). The output has a deviation of about 3.4, so the actnorm next to
    the image divides by 20 and adds 1/2. Like those of a trained network, its results are in [0, 1], so its errors are
    errors of pixels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = build("srflow", configure("srflow", fields)).eval().requires_grad_(False)
        for name, p in flow.named_parameters():
            if ".last.weight" in name:
                p.normal_(0, 0.001)
            elif ".last.bias" in name:
                p[1::2] = 2.0
            elif "actnorm" in name or name.endswith(("transforms.0.bias", "transforms.0.log_scale")):
                p.normal_(0, 0.02)
        outermost: Any = flow.levels[0].steps.transforms[0].transforms[0]  # type: ignore[union-attr]
        outermost.log_scale.fill_(math.log(20))
        outermost.bias.fill_(-0.5)
    return flow


@torch.no_grad()
def decode(flow: Flow, lr: Tensor, latents: list[Tensor]) -> Tensor:
    """Enlarge one image ``(1, 3, h, w)`` of even sides once, the way the published program does; not clamped.

    ``flow`` is an SRFlow of ours, for its weights; ``latents`` are finest first, as ``flow.inverse`` takes them.
    """
    features = _encode(flow, lr)  # the first are of the HR image's grid: no level's, but kept
    rest = list(latents)
    x = rest.pop()
    logdet = x.new_zeros(1)
    for level, cond in zip(reversed(list(flow.levels)), reversed(features[1 : 1 + len(flow.levels)]), strict=True):
        if level.split is not None:  # type: ignore[union-attr]
            raw = _zero_conv(level.split.conditioner, x)
            mean, log_std = raw[:, 0::2], raw[:, 1::2]
            drawn = mean + log_std.exp() * rest.pop()
            density = -0.5 * ((drawn - mean) ** 2 * torch.exp(-2 * log_std) + 2 * log_std + 1.8378770664093453)
            logdet = logdet - density.sum((1, 2, 3))
            x = torch.cat([x, drawn], dim=1)
        for step in reversed(list(level.steps.transforms)):  # type: ignore[union-attr]
            x, logdet = _step(step, x, cond, logdet)
        x = F.pixel_shuffle(x, 2)
    return x


def _step(step: Any, x: Tensor, cond: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
    actnorm, mixing, *affine = step.transforms
    pixels = x.shape[-2] * x.shape[-1]
    if affine:
        injector, coupling = affine
        x1, x2 = x.chunk(2, dim=1)
        shift, scale = _affine(coupling.conditioner, torch.cat([x1, cond], dim=1), coupling.eps)
        x2 = x2 / scale
        x2 = x2 - shift
        logdet = logdet - scale.log().sum((1, 2, 3))
        x = torch.cat([x1, x2], dim=1)
        shift, scale = _affine(injector.conditioner, cond, injector.eps)
        x = x / scale
        x = x - shift
        logdet = logdet - scale.log().sum((1, 2, 3))
    weight = mixing.weight
    logdet = logdet - torch.slogdet(weight)[1] * pixels
    x = F.conv2d(x, torch.inverse(weight.double()).to(x.dtype)[:, :, None, None])
    x = x * torch.exp(-actnorm.log_scale)[None, :, None, None]
    x = x - actnorm.bias[None, :, None, None]
    return x, logdet - actnorm.log_scale.sum() * pixels


def _affine(network: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    for layer in network.hidden:
        x = F.conv2d(x, layer.weight, padding=layer.weight.shape[-1] // 2)
        x = (x + layer.actnorm.bias[None, :, None, None]) * layer.actnorm.log_scale.exp()[None, :, None, None]
        x = F.relu(x, inplace=True)
    raw = _zero_conv(network.last, x)
    return raw[:, 0::2], torch.sigmoid(raw[:, 1::2] + 2.0) + eps


def _zero_conv(layer: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=1) * torch.exp(3 * layer.log_scale)[None, :, None, None]


def _encode(flow: Flow, lr: Tensor) -> list[Tensor]:
    """Features of all grids, finest first. Those of the HR grid, and the picture made from them, are not used."""
    encoder: Any = flow.encoder
    x = _conv(encoder.conv_first, lr)
    kept = {}
    for number, block in enumerate(encoder.blocks):
        inner = x
        for dense in block.dense:
            seen = [inner]
            for conv in dense.convs[:-1]:
                seen.append(F.leaky_relu(_conv(conv, torch.cat(seen, dim=1)), 0.2, inplace=True))
            inner = _conv(dense.convs[-1], torch.cat(seen, dim=1)) * 0.2 + inner
        x = inner * 0.2 + x
        kept[number] = x
    last = x + _conv(encoder.conv_trunk, x)
    stack = torch.cat([kept[i] for i in encoder.stacked_blocks], dim=1)
    native, up = [last], last
    for conv in encoder.conv_up:
        up = F.leaky_relu(_conv(conv, F.interpolate(up, scale_factor=2, mode="nearest")), 0.2, inplace=True)
        native.append(up)
    _conv(encoder.conv_last, F.leaky_relu(_conv(encoder.conv_hr, up), 0.2, inplace=True))
    half = F.interpolate(last, scale_factor=0.5, mode="bilinear", align_corners=False)
    own = [*reversed(native), half]
    return [torch.cat([t, F.interpolate(stack, t.shape[-2:], mode="nearest")], dim=1) for t in own]


def _conv(layer: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=1)
