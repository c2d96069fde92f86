"""SRFlow-DA against tensors recorded from the published program; see srflow_da/README.md.

Tolerances, relative to the largest value (at least 1): float64 1e-9; float32 1e-5, logdet 2e-6. The variants -S, -R and
-D are compared with ``layouts.safetensors``: numbers of a second implementation, written from the description of the
layers, which was last part of the tests at commit 9b50902.
"""

import math
import re

import pytest
import torch
from builders import build_tiny, srflow_checkpoint
from torch import Tensor

from flowcore import CheckpointError, load
from flowcore.flows import likelihood, prior
from flowcore.models.source import Checkpoint
from flowcore.models.srflow.published import SRFLOW_DA

from . import published
from .published import PRECISIONS, given, near, recording

STACKED = (3, 1, 0, 2)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The recorded network, with arbitrary values where the program reads none."""
    return published.with_unread(recording("srflow_da/tiny4x_weights"), published.UNREAD)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return recording("srflow_da/tiny4x_io")


@pytest.fixture(scope="module", params=PRECISIONS)
def flow(request, state):
    return published.as_ours(SRFLOW_DA, state, request.param, stacked_blocks=STACKED)


def test_encode_and_decode(flow, recorded):
    t, gt, lr, *drawn = given(flow, recorded, "gt", "lr", "given.eps0", "given.z")
    cond = flow.encode_condition(lr)
    latents, logdet = flow(gt, cond)
    near(latents[0], recorded[f"{t}.enc.eps0"])
    near(latents[1], recorded[f"{t}.enc.z"])
    near(logdet + prior.log_prob(latents[:1]), recorded[f"{t}.enc.logdet"], 2e-6)
    nll = -likelihood.log_prob(flow, gt, cond) / (math.log(2) * gt[0, 0].numel())
    near(nll, recorded[f"{t}.enc.nll"])
    near(flow.inverse(latents, cond), recorded[f"{t}.recon.x"])
    near(flow.inverse([torch.zeros_like(z) for z in latents], cond), recorded[f"{t}.tau0.x"])
    near(flow.inverse(drawn, cond), recorded[f"{t}.given.x"])


def test_the_fields_of_every_published_file_are_recognized():
    residual_blocks = {"DA_": 0, "DA-S": 0, "DA-R": 1, "DA-D": 18}
    for name, known in published.keys("srflow_da").items():
        config = SRFLOW_DA.layout(Checkpoint("SRFlow-DA", published.meta(known["shapes"])), {}).config
        assert config.layers == known["layers"]
        assert config.scale == int(name[-2])
        assert config.stacked_blocks == (1, 8, 15, 22)  # SRFlow's by 8 are (1, 3, 5, 7)
        assert config.residual_blocks == next(n for part, n in residual_blocks.items() if part in name)
        assert config.hidden_layers == (36 if "DA-D" in name else 4)
        assert max(config.grids) == math.log2(config.scale)  # any LR size fits


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
    made = build_tiny("srflow_da", encoder_blocks=3, **{**VARIANTS[variant], "stacked_blocks": (2, 0)})
    state = published.random_state({name: tuple(t.shape) for name, t in srflow_checkpoint(made).items()})
    if variant == "-D of one block":  # it is numbered, unlike that of -R
        state = {re.sub(r"(fAffine2|fFeatures2)\.", r"\1.0.", name): t for name, t in state.items()}
    torch.save({f"module.{name}": t for name, t in state.items()}, tmp_path / "da.pth")
    flow = load(tmp_path / "da.pth", stacked_blocks=(2, 0)).double()
    assert flow.config == made.config
    assert "SRFlow-DA" in flow.provenance["source"]
    assert "CC BY-NC-SA" in flow.provenance["licence"]
    scale, expected = flow.config.scale, recording("srflow_da/layouts")
    x, lr = published.image(1, 2, 3, 3 * scale, 5 * scale), published.image(2, 2, 3, 3, 5)
    cond = flow.encode_condition(lr)
    latents, logdet = flow(x, cond)
    for i, z in enumerate(published.sample_of(latents)):
        near(z, expected[f"{variant}.latent{i}"])
    near(logdet, expected[f"{variant}.logdet"])
    near(flow.inverse(latents, cond), x)


def test_files_that_are_nearly_an_srflow_da_are_named_so(state):
    def refusal(change, **overrides):
        with pytest.raises(CheckpointError, match="SRFlow-DA") as caught:
            SRFLOW_DA.load({k: t for k, t in state.items() if change(k)}, {"stacked_blocks": STACKED, **overrides})
        return str(caught.value)

    with pytest.raises(CheckpointError, match=r"stacked_blocks is missing.*no released SRFlow-DA 4x has 4 blocks"):
        SRFLOW_DA.load(state, {})  # of 4 blocks; no published network has so few
    assert "upconv1.weight is missing" in refusal(lambda k: "upconv1.weight" not in k, scale=4)
    assert "fAffine.4.weight is missing" in refusal(lambda k: "layers.4.affine.fAffine.4.weight" not in k)
    assert "no channels in layer 7, after a squeeze" in refusal(lambda k: "layers.7.invconv" not in k)
    assert "no conditional steps" in refusal(lambda k: "fFeatures" not in k and "fAffine" not in k)
