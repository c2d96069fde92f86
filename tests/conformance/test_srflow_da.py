"""SRFlow-DA against tensors recorded from the published program; see srflow_da/README.md.

Tolerances, relative to the largest value (at least 1): float64 1e-9; float32 1e-5, logdet 2e-6. The variants -S, -R and
-D are compared with a second implementation of them, written from the description of the layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from builders import build_tiny, srflow_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from flowcore import likelihood, prior
from flowcore.checkpoints import load
from flowcore.checkpoints.sources import SRFLOW_DA
from flowcore.checkpoints.sources.source import Checkpoint
from flowcore.checkpoints.sources.srflow_da import srflow_da_origins
from flowcore.errors import CheckpointError
from flowcore.models.srflow_da import SRFlowDAConfig, split_levels

from . import published
from .published import near

STACKED = (3, 1, 0, 2)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The recorded network, with arbitrary values where the program reads none."""
    stored = load_file(published.SRFLOW_DA / "tiny4x_weights.safetensors")
    return published.with_unread({name: t.float() for name, t in stored.items()}, published.UNREAD)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(published.SRFLOW_DA / "tiny4x_io.safetensors")


@pytest.fixture(scope="module", params=["float32", "float64", "plan"])
def flow(request, state):
    return published.as_ours(SRFLOW_DA, state, request.param, stacked_blocks=STACKED)


@torch.no_grad()
def test_encode_and_decode(flow, recorded):
    dtype = next(flow.parameters()).dtype
    t = "f32" if dtype == torch.float32 else "f64"
    gt, lr = recorded["gt"].to(dtype), recorded["lr"].to(dtype)
    cond = flow.encode_condition(lr)
    latents, logdet = flow(gt, cond)
    near(latents[0], recorded[f"{t}.enc.eps0"])
    near(latents[1], recorded[f"{t}.enc.z"])
    near(logdet + prior.log_prob(latents[:1]), recorded[f"{t}.enc.logdet"], 2e-6)
    nll = -likelihood.log_prob(flow, gt, cond) / (math.log(2) * gt[0, 0].numel())
    near(nll, recorded[f"{t}.enc.nll"])
    near(flow.inverse(latents, cond), recorded[f"{t}.recon.x"])
    near(flow.inverse([torch.zeros_like(z) for z in latents], cond), recorded[f"{t}.tau0.x"])
    given = [recorded[f"given.{name}"].to(dtype) for name in ("eps0", "z")]
    near(flow.inverse(given, cond), recorded[f"{t}.given.x"])


# --- recognized -------------------------------------------------------------------------------------------------------

KEYS = published.keys(published.SRFLOW_DA)
RESIDUAL_BLOCKS = {"DA_": 0, "DA-S": 0, "DA-R": 1, "DA-D": 18}


@pytest.mark.parametrize("name", KEYS)
def test_every_published_file_is_recognized_and_every_tensor_used_once(name):
    state = published.meta(KEYS[name]["shapes"])
    config = SRFLOW_DA.layout(Checkpoint("SRFlow-DA", state), {}).config
    assert config.layers == KEYS[name]["layers"]
    assert config.scale == int(name[-2])
    assert config.stacked_blocks == (1, 8, 15, 22)  # SRFlow's by 8 are (1, 3, 5, 7)
    assert config.residual_blocks == next(n for part, n in RESIDUAL_BLOCKS.items() if part in name)
    assert config.hidden_layers == (36 if "DA-D" in name else 4)
    used = [origin.names[0] for origin in srflow_da_origins(config)]
    assert len(set(used)) == len(used)
    assert state.keys() - set(used) == {"flowUpsamplerNet.f.0.weight", "flowUpsamplerNet.f.0.bias"}
    assert max(config.grids) == math.log2(config.scale)  # any LR size fits


def test_the_default_is_the_published_network():
    assert SRFLOW_DA.convert(published.meta(KEYS["SRFlow-DA_DF2K_4X"]["shapes"]), {}).config == SRFlowDAConfig()


# --- variants ---------------------------------------------------------------------------------------------------------

VARIANTS = {
    "-S by 4": {"layers": "s4ppcdccdc"},
    "-S by 8": {"layers": "s8pcdcdcdc", "scale": 8},
    "-R": {"layers": "s2ppccds2pcc", "hidden_layers": 4, "residual_blocks": 1},
    "-D": {"layers": "s2pcds2pc", "hidden_layers": 6, "residual_blocks": 3},
    "-D of one block": {"layers": "s2pcds2pc", "hidden_layers": 2, "residual_blocks": 1},
    "by 8": {"layers": "s2pccds2pccds2pcc", "scale": 8, "hidden_layers": 4},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_compute_what_a_second_implementation_does(variant, tmp_path):
    made = build_tiny("srflow_da", perturb=0.03, encoder_blocks=3, **{**VARIANTS[variant], "stacked_blocks": (2, 0)})
    state = srflow_checkpoint(made)
    if variant == "-D of one block":  # it is numbered, unlike that of -R
        state = {re.sub(r"(fAffine2|fFeatures2)\.", r"\1.0.", name): t for name, t in state.items()}
    torch.save({f"module.{name}": t for name, t in state.items()}, tmp_path / "da.pth")
    flow = load(tmp_path / "da.pth", stacked_blocks=(2, 0)).double()
    assert flow.config == made.config
    assert "SRFlow-DA" in flow.provenance["source"]
    assert "CC BY-NC-SA" in flow.provenance["licence"]
    scale = flow.config.scale
    x, lr = published.image(1, 2, 3, 3 * scale, 5 * scale), published.image(2, 2, 3, 3, 5)
    state = {name: t.double() for name, t in state.items()}
    z, log_density = x, x.new_zeros(2)
    index, latents = 0, []
    for grid, layers in split_levels(flow.config.layers):
        ft = features(state, lr, scale, grid)
        if layers[0] == "s":
            z, index = F.pixel_unshuffle(z, int(layers[1])), index + 1
        for kind in layers.lstrip("s248"):
            name = f"flowUpsamplerNet.layers.{index}"
            if kind == "d":
                z, latent, change = split(state, f"{name}.conv", z)
                latents.append(latent)
            else:
                z, change = step(state, name, z, ft)
            log_density, index = log_density + change, index + 1
    cond = flow.encode_condition(lr)
    ours, logdet = flow(x, cond)
    for one, two in zip(ours, [*latents, z], strict=True):
        torch.testing.assert_close(one, two, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(logdet, log_density, atol=1e-9, rtol=1e-10)
    torch.testing.assert_close(flow.inverse(ours, cond), x, atol=1e-6, rtol=0)


def conv(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
    return y * torch.exp(3 * state[f"{name}.logs"]) if f"{name}.logs" in state else y


def features(state, lr, scale, grid):
    f, stack = conv(state, "RRDB.conv_first", lr), {}
    for n in range(3):
        x = f
        for d in (1, 2, 3):
            y = [x]
            for k in range(1, 5):
                y.append(F.leaky_relu(conv(state, f"RRDB.RRDB_trunk.{n}.RDB{d}.conv{k}", torch.cat(y, 1)), 0.2))
            x = 0.2 * conv(state, f"RRDB.RRDB_trunk.{n}.RDB{d}.conv5", torch.cat(y, 1)) + x
        f = stack[n] = 0.2 * x + f
    native = f + conv(state, "RRDB.trunk_conv", f)
    ratio = scale // 2**grid
    for k in range(1, ratio.bit_length()):
        native = F.leaky_relu(
            conv(state, f"RRDB.upconv{k}", native.repeat_interleave(2, 2).repeat_interleave(2, 3)), 0.2
        )
    repeated = [s.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3) for s in (stack[2], stack[0])]
    return torch.cat([native, *repeated], 1)


def subnet(state, name, x):
    if f"{name}.0.weight" in state:
        convs = sorted(int(key.split(".")[-2]) for key in state if key.startswith(f"{name}.") and "weight" in key)
        for k in convs[:-1]:
            x = F.relu(conv(state, f"{name}.{k}", x))
        return conv(state, f"{name}.{convs[-1]}", x)
    h = F.relu(conv(state, f"{name}1.0", x))
    if f"{name}2.0.weight" in state:  # -R
        first = h
        for k in (0, 2, 4, 6):
            h = F.relu(conv(state, f"{name}2.{k}", h))
        h = h + first
    else:  # -D
        for n in range(sum(re.fullmatch(rf"{name}2\.\d+\.0\.weight", key) is not None for key in state)):
            h = h + F.relu(conv(state, f"{name}2.{n}.2", F.relu(conv(state, f"{name}2.{n}.0", h))))
    return conv(state, f"{name}3.0", h)


def step(state, name, z, ft):
    pixels = z.shape[2] * z.shape[3]
    logs, weight = state[f"{name}.actnorm.logs"], state[f"{name}.invconv.weight"]
    z = (z + state[f"{name}.actnorm.bias"]) * logs.exp()
    z = torch.einsum("oc,bchw->bohw", weight, z)
    logdet = pixels * (logs.sum() + torch.linalg.slogdet(weight)[1])
    if f"{name}.affine.fFeatures.0.weight" in state or f"{name}.affine.fFeatures1.0.weight" in state:
        raw = subnet(state, f"{name}.affine.fFeatures", ft)
        scale = torch.sigmoid(raw[:, 1::2] + 2) + 1e-4
        z, logdet = (z + raw[:, 0::2]) * scale, logdet + scale.log().sum((1, 2, 3))
        half = z.shape[1] // 2
        raw = subnet(state, f"{name}.affine.fAffine", torch.cat([z[:, :half], ft], 1))
        scale = torch.sigmoid(raw[:, 1::2] + 2) + 1e-4
        z = torch.cat([z[:, :half], (z[:, half:] + raw[:, 0::2]) * scale], 1)
        logdet = logdet + scale.log().sum((1, 2, 3))
    return z, logdet


def split(state, name, z):
    kept, gone = z.chunk(2, 1)
    raw = conv(state, name, kept)
    return kept, (gone - raw[:, 0::2]) * torch.exp(-raw[:, 1::2]), -raw[:, 1::2].sum((1, 2, 3))


# --- nearly one -------------------------------------------------------------------------------------------------------


def test_files_that_are_nearly_an_srflow_da_are_named_so(state):
    def refusal(change, **overrides):
        with pytest.raises(CheckpointError, match="SRFlow-DA") as caught:
            SRFLOW_DA.convert({k: t for k, t in state.items() if change(k)}, {"stacked_blocks": STACKED, **overrides})
        return str(caught.value)

    with pytest.raises(CheckpointError, match=r"stacked_blocks is missing.*no released SRFlow-DA 4x has 4 blocks"):
        SRFLOW_DA.convert(state, {})  # of 4 blocks; no published network has so few
    assert "upconv1.weight is missing" in refusal(lambda k: "upconv1.weight" not in k, scale=4)
    assert "fAffine.4.weight is missing" in refusal(lambda k: "layers.4.affine.fAffine.4.weight" not in k)
    assert "no channels after a squeeze" in refusal(lambda k: "layers.7.invconv" not in k)
    assert "no conditional steps" in refusal(lambda k: "fFeatures" not in k and "fAffine" not in k)
