"""Every SRFlow layout: the published ones by their tensor names, small ones of every shape by a second implementation.

``Published`` below is that second implementation: it reads a state dict under its published names, and shares no code
with flowcore. It is itself held against the recorded tensors first.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flowcore.checkpoints.sources.srflow import SRFLOW, srflow_names, srflow_shape
from flowcore.errors import CheckpointError
from flowcore.models.srflow import SRFlowConfig

RECORDED = Path(__file__).parent / "srflow"


class Published:
    """The published network, written down a second time: from LR image to features, from HR image to latents."""

    def __init__(self, state: dict[str, Tensor], scale: int, stacked: tuple[int, ...]) -> None:
        self.state = {name: t.double() for name, t in state.items()}
        self.scale, self.stacked = scale, stacked
        self.layers = [int(m[1]) for name in state if (m := re.match(r"flowUpsamplerNet\.layers\.(\d+)\.", name))]

    def conv(self, x: Tensor, name: str) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def features(self, lr: Tensor) -> dict[tuple[int, int], Tensor]:
        """By grid size."""
        x = self.conv(lr, "RRDB.conv_first")
        outputs = []
        while f"RRDB.RRDB_trunk.{len(outputs)}.RDB1.conv1.weight" in self.state:
            block = x
            for d in (1, 2, 3):
                grown = x
                for k in (1, 2, 3, 4):
                    new = self.conv(grown, f"RRDB.RRDB_trunk.{len(outputs)}.RDB{d}.conv{k}")
                    grown = torch.cat([grown, torch.where(new > 0, new, 0.2 * new)], 1)
                x = x + 0.2 * self.conv(grown, f"RRDB.RRDB_trunk.{len(outputs)}.RDB{d}.conv5")
            x = block + 0.2 * x
            outputs.append(x)
        native = [x + self.conv(x, "RRDB.trunk_conv")]
        rows, columns = lr.shape[-2] // 2 * 2, lr.shape[-1] // 2 * 2
        half = native[0][..., :rows, :columns]
        half = sum(half[..., i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
        for k in range(1, int(math.log2(self.scale))):
            new = self.conv(native[-1].repeat_interleave(2, -2).repeat_interleave(2, -1), f"RRDB.upconv{k}")
            native.append(torch.where(new > 0, new, 0.2 * new))
        result = {}
        for own in [half, *native]:
            height, width = own.shape[-2:]
            parts = [own]
            for index in self.stacked:
                part = outputs[index]
                if height < part.shape[-2]:
                    part = part[..., ::2, ::2]
                else:
                    part = part.repeat_interleave(height // part.shape[-2], -2)
                    part = part.repeat_interleave(width // part.shape[-1], -1)
                parts.append(part)
            result[height, width] = torch.cat(parts, 1)
        return result

    def subnet(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Shift and scale."""
        k = 0
        while f"{name}.{k}.actnorm.bias" in self.state:
            x = self.conv(x, f"{name}.{k}")
            x = (x + self.state[f"{name}.{k}.actnorm.bias"]) * self.state[f"{name}.{k}.actnorm.logs"].exp()
            x = x.clamp(min=0)
            k += 2
        x = self.conv(x, f"{name}.{k}") * (3 * self.state[f"{name}.{k}.logs"]).exp()
        return x[:, ::2], 1 / (1 + (-2 - x[:, 1::2]).exp()) + 1e-4

    def encode(self, x: Tensor, lr: Tensor) -> tuple[list[Tensor], Tensor]:
        """Latents, whitened, and the sum of log determinants."""
        features = self.features(lr)
        latents, logdet = [], 0
        for index in range(max(self.layers) + 1):
            name = f"flowUpsamplerNet.layers.{index}"
            if index not in self.layers:
                b, c, h, w = x.shape
                x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
                continue
            half = x.shape[1] // 2
            if f"{name}.conv.weight" in self.state:
                x, gone = x[:, :half], x[:, half:]
                prior = self.conv(x, f"{name}.conv") * (3 * self.state[f"{name}.conv.logs"]).exp()
                latents.append((gone - prior[:, ::2]) / prior[:, 1::2].exp())
                logdet = logdet - prior[:, 1::2].sum((1, 2, 3))
                continue
            pixels = x.shape[-2] * x.shape[-1]
            x = (x + self.state[f"{name}.actnorm.bias"]) * self.state[f"{name}.actnorm.logs"].exp()
            weight = self.state[f"{name}.invconv.weight"]
            x = torch.einsum("oc,bchw->bohw", weight, x)
            logdet = logdet + pixels * (self.state[f"{name}.actnorm.logs"].sum() + weight.det().abs().log())
            if f"{name}.affine.fFeatures.0.weight" in self.state:
                feature = features[tuple(x.shape[-2:])]
                shift, scale = self.subnet(feature, f"{name}.affine.fFeatures")
                x = (x + shift) * scale
                logdet = logdet + scale.log().sum((1, 2, 3))
                x1, x2 = x[:, :half], x[:, half:]
                shift, scale = self.subnet(torch.cat([x1, feature], 1), f"{name}.affine.fAffine")
                x = torch.cat([x1, (x2 + shift) * scale], 1)
                logdet = logdet + scale.log().sum((1, 2, 3))
        return [*latents, x], logdet


@torch.no_grad()
def test_the_second_implementation_is_the_published_one(published, recorded):
    network = Published(published, 4, (0, 1, 2, 3))
    latents, logdet = network.encode(recorded["gt"].double(), recorded["lr"].double())
    assert (latents[0] - recorded["f64.enc.eps0"]).abs().max() < 1e-9
    assert (latents[1] - recorded["f64.enc.z"]).abs().max() < 1e-9
    density = logdet - sum(0.5 * (z**2 + math.log(2 * math.pi)).sum((1, 2, 3)) for z in latents)
    assert (density + recorded["f64.enc.nll"] * math.log(2) * 48 * 40).abs().max() < 1e-9


LAYOUTS = {
    "4x": {},
    "4x stacked in order": {"stacked_blocks": (0, 1, 2, 3)},
    "4x one block twice": {"stacked_blocks": (1, 1)},
    "4x nothing stacked": {"stacked_blocks": ()},
    "8x": {"scale": 8, "levels": 4, "steps": 2, "transition_steps": 2},
    "8x of five blocks": {"scale": 8, "levels": 4, "encoder_blocks": 5, "stacked_blocks": (4, 1, 0)},
    "8x on three levels": {"scale": 8, "levels": 3, "transition_steps": 0},
    "2x": {"scale": 2, "levels": 2, "steps": 2},
    "subnets of four 3x3 convolutions": {"hidden_layers": 4, "hidden_kernel": 3},
    "subnets of one more 3x3 convolution": {"hidden_layers": 1, "hidden_kernel": 3, "steps": 2},
    "subnets without hidden convolutions": {"hidden_layers": 0},
    "other widths": {"encoder_width": 10, "encoder_growth": 3, "hidden": 5},
}


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_survives_the_round_trip_and_means_the_same(layout, small_flow, export):
    flow = small_flow(**LAYOUTS[layout])
    state = export(flow)
    back = SRFLOW.convert(state, {"stacked_blocks": flow.config.stacked_blocks})
    assert back.config == flow.config
    assert all(torch.equal(t, flow.state_dict()[name]) for name, t in back.state_dict().items())

    back = back.to(dtype=torch.float64)
    scale, generator = flow.config.scale, torch.Generator().manual_seed(1)
    lr = torch.rand(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    hr = torch.rand(2, 3, 4 * scale, 6 * scale, generator=generator, dtype=torch.float64)
    theirs, their_logdet = Published(state, scale, flow.config.stacked_blocks).encode(hr, lr)
    cond = back.encode_condition(lr)
    ours, logdet = back(hr, cond)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-9
    assert (logdet - their_logdet).abs().max() < 1e-9
    assert (back.inverse(theirs, cond) - hr).abs().max() < 1e-9


PUBLISHED = {
    "SRFlow_DF2K_4X": SRFlowConfig(),
    "SRFlow_DF2K_8X": SRFlowConfig(scale=8, levels=4, stacked_blocks=(1, 3, 5, 7)),
    "SRFlow_CelebA_8X": SRFlowConfig(scale=8, levels=4, encoder_blocks=8, stacked_blocks=(1, 3, 5, 7)),
}


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((RECORDED / f"keys_{name}.json").read_text()).items()}


def meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_layout_is_recognised_and_every_tensor_consumed(name):
    shapes = shapes_of(name)
    flow = SRFLOW.convert(meta(shapes), {})
    assert flow.config == PUBLISHED[name]
    ours = {key: tuple(t.shape) for key, t in flow.state_dict().items()}
    consumed = {theirs: srflow_shape(theirs, ours[key]) for key, theirs in srflow_names(flow.config)}
    dead = {key: shape for key, shape in shapes.items() if key.startswith("flowUpsamplerNet.f.")}
    assert consumed | dead == shapes
    assert len(consumed) == len(ours)


def test_names_pair_one_to_one():
    pairs = list(srflow_names(SRFlowConfig()))
    assert len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs}) == len(pairs)


def test_very_deep_subnets_are_recognised(small_flow, export):
    config = {"hidden_layers": 36, "hidden_kernel": 3}
    shapes = {name: tuple(t.shape) for name, t in export(small_flow(**config)).items()}
    flow = SRFLOW.convert(meta(shapes), {"stacked_blocks": [2, 0, 3, 1]})
    assert (flow.config.hidden_layers, flow.config.hidden_kernel) == (36, 3)


def test_a_published_network_is_not_read_without_its_injectors(small_flow, export):
    flow = small_flow()
    with pytest.raises(CheckpointError, match=r"affine\.fFeatures\.\S+ is not known"):
        SRFLOW.convert(export(flow), {"stacked_blocks": flow.config.stacked_blocks, "injector": False})
