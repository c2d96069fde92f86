"""The recorded network, and small networks under published names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowcore.checkpoints.sources.srflow import SRFLOW, srflow_names
from flowcore.flow import Flow
from flowcore.models import build, configure

RECORDED = Path(__file__).parent / "srflow"

# Present in every published file, read by nothing: what they hold must not matter.
DEAD = {
    "RRDB.upconv2": (64, 64, 3, 3),
    "RRDB.HRconv": (64, 64, 3, 3),
    "RRDB.conv_last": (3, 64, 3, 3),
    "flowUpsamplerNet.f.0": (96, 320, 3, 3),
}

SMALL = {
    "scale": 4, "levels": 3, "steps": 1, "transition_steps": 1, "hidden": 6,
    "encoder_blocks": 4, "encoder_width": 8, "encoder_growth": 4, "stacked_blocks": (2, 0, 3, 1),
}  # fmt: skip


@pytest.fixture(scope="session")
def recorded() -> dict[str, Tensor]:
    """Everything that was recorded of the published program."""
    files = ("tiny4x_io", "tiny4x_intermediates", "tiny4x_train")
    return {name: t for file in files for name, t in load_file(RECORDED / f"{file}.safetensors").items()}


@pytest.fixture(scope="session")
def published() -> dict[str, Tensor]:
    """The recorded network's state dict, under its published names."""
    state = load_file(RECORDED / "tiny4x_weights.safetensors")
    for name, shape in DEAD.items():
        state[f"{name}.weight"] = torch.full(shape, 7.0)
        state[f"{name}.bias"] = torch.full(shape[:1], 7.0)
    return state


@pytest.fixture(scope="session", params=["float32", "float64"])
def flow(request, published) -> Flow:
    """The recorded network as ours, in two precisions; tests leave it as it is."""
    return SRFLOW.convert(published, {"stacked_blocks": (0, 1, 2, 3)}).to(dtype=getattr(torch, request.param))


@pytest.fixture
def flow64(published) -> Flow:
    """The recorded network as ours in float64, for tests that change it."""
    return SRFLOW.convert(published, {"stacked_blocks": (0, 1, 2, 3)}).to(dtype=torch.float64)


@pytest.fixture(scope="session")
def small_flow():
    """Build a small network with no parameter at its initial value."""

    def make(**fields) -> Flow:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            flow = build("srflow", configure("srflow", {**SMALL, **fields}))
            with torch.no_grad():
                for p in flow.parameters():
                    p.add_(0.1 * torch.randn(p.shape) / max(1, p[0].numel()) ** 0.5)
        return flow.eval()

    return make


@pytest.fixture(scope="session")
def export():
    """Turn a network of ours into a state dict of the published layout."""

    def make(flow: Flow) -> dict[str, Tensor]:
        names = dict(srflow_names(flow.config))
        state = {}
        for ours, t in flow.state_dict().items():
            name = names.pop(ours)
            if ".actnorm." in name:
                state[name] = t[None, :, None, None].clone()
            elif name.endswith(".logs"):
                state[name] = t[:, None, None].clone()
            else:
                state[name] = t.clone()
        assert not names
        state["flowUpsamplerNet.f.0.weight"] = torch.full((3, 4, 3, 3), 7.0)
        state["flowUpsamplerNet.f.0.bias"] = torch.full((3,), 7.0)
        return state

    return make


@pytest.fixture(scope="session")
def small_state(small_flow, export) -> dict[str, Tensor]:
    """A small network under published names; its stacked blocks are (2, 0, 3, 1)."""
    return export(small_flow())
