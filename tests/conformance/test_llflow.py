"""LLFlow against tensors recorded from the published program; see llflow/README.md.

Tolerances, relative to the largest value (at least 1): float64 1e-9; float32 1e-5, logdet 5e-6.
"""

import math

import pytest
import torch
from torch import Tensor

from flowcore import CheckpointError, load
from flowcore.flows import likelihood
from flowcore.models.llflow.low_light import equalize, network_input
from flowcore.models.llflow.published import LLFLOW

from .published import PRECISIONS, as_ours, given, near, recording, same, with_unread

STACKED = (2, 0)
UNREAD = {"RRDB.downconv3": (16, 16, 3, 3), "RRDB.HRconv": (16, 16, 3, 3), "RRDB.conv_last": (3, 16, 3, 3)}
UNREAD |= {"RRDB.awb_para": (3, 16), "flowUpsamplerNet.f.0": (384, 192, 3, 3)}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The recorded network, with arbitrary values where the program reads none."""
    return with_unread(recording("llflow/tiny_weights"), UNREAD)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return recording("llflow/tiny_io")


@pytest.fixture(scope="module", params=PRECISIONS)
def flow(request, state):
    return as_ours(LLFLOW, state, request.param, stacked_blocks=STACKED)


def image(bytes_: Tensor) -> Tensor:
    return bytes_.permute(2, 0, 1)[None].float() / 255


def test_the_input_of_the_network(recorded):
    padded = image(recorded["padded"])
    assert torch.equal((equalize(padded) * 255).round(), image(recorded["equalised"]) * 255)
    assert float((network_input(padded) - recorded["input"]).abs().max()) < 1e-6


def test_encode_and_decode(flow, recorded):
    t, source, gt, noise = given(flow, recorded, "input", "gt", "given.noise")
    cond = flow.encode_condition(source)
    for number, feature in enumerate(cond.features, start=1):
        near(feature, recorded[f"{t}.condition{number}"])
    near(flow.encoder(source)[1], recorded[f"{t}.color_map"])
    near(cond.lr_mean, recorded[f"{t}.prior_mean"])
    (eps,), logdet = flow(gt, cond)
    near(eps + cond.lr_mean, recorded[f"{t}.enc.z"])
    near(logdet, recorded[f"{t}.enc.logdet"], 5e-6)
    nll = -likelihood.log_prob(flow, gt, cond) / (math.log(2) * gt[0, 0].numel())
    near(nll, recorded[f"{t}.enc.nll"], 5e-6)
    near(flow.inverse([eps], cond), recorded[f"{t}.recon.x"], 2e-5)
    near(flow.inverse([torch.zeros_like(eps)], cond), recorded[f"{t}.enhance.x"])
    near(flow.inverse([noise], cond), recorded[f"{t}.given.x"])


def test_a_wrapped_file_is_found_and_another_depth_asks_for_the_field(tmp_path, state):
    torch.save({"net": {f"module.{name}": t for name, t in state.items()}}, tmp_path / "LOL.pth")
    flow = load(tmp_path / "LOL.pth", stacked_blocks=STACKED)
    assert same(flow, LLFLOW.load(state, {"stacked_blocks": STACKED}))
    assert "LLFlow" in flow.provenance["source"]
    assert "CC BY-NC-SA" in flow.provenance["licence"]
    with pytest.raises(CheckpointError, match="no released LLFlow model has 3 blocks and stacks 2"):
        load(tmp_path / "LOL.pth")


NEARLY = {
    "without its encoder's last block": (lambda name: "RRDB_trunk.2." not in name, "stacked_blocks must"),
    "without a step": (lambda name: "layers.8." not in name, "other layers than the known variants"),
    "without the flow": (lambda name: name.startswith("RRDB."), "other layers than the known variants"),
    "without its color map": (lambda name: "fine_tune" not in name, r"RRDB\.fine_tune_color_map\.0\.bias is missing"),
}


def test_files_that_are_nearly_an_llflow_are_named_so(tmp_path, state):
    for keep, sentence in NEARLY.values():
        torch.save({name: t for name, t in state.items() if keep(name)}, tmp_path / "LOL.pth")
        with pytest.raises(CheckpointError, match=sentence) as caught:
            load(tmp_path / "LOL.pth", stacked_blocks=STACKED)
        assert "LLFlow" in str(caught.value) or "stacked_blocks" in str(caught.value)
