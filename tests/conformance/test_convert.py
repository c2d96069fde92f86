"""Reading published files: wrappers, missing fields, damaged tensors, other architectures, and hostile content."""

import argparse
import hashlib
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from flowcore import CheckpointError, FlowError, load
from flowcore.models import catalog, model_file
from flowcore.models.published import convert
from flowcore.models.srflow.published import SRFLOW

from .published import SMALL, same, small_srflow

STACKED = SMALL["stacked_blocks"]
BLOCKS = {"stacked_blocks": STACKED}


@pytest.fixture(scope="module")
def expected(small_state):
    return SRFLOW.load(small_state, BLOCKS)


def refusal(path, **overrides) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, **overrides)
    message = str(caught.value)
    assert path.name in message
    assert len(message) < 900
    return message


@pytest.fixture
def refused(tmp_path):
    """Save a content with torch, and return the message with which loading refuses it."""

    def refused(content, **overrides) -> str:
        torch.save(content, tmp_path / "model.pth")
        return refusal(tmp_path / "model.pth", **{**BLOCKS, **overrides})

    return refused


WRAPPED = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "module.": lambda state: {f"module.{k}": t for k, t in state.items()},
    "module. here and there": lambda state: {
        (f"module.{k}" if n % 2 else k): t for n, (k, t) in enumerate(state.items())
    },
    "netG.module.": lambda state: {f"netG.module.{k}": t for k, t in state.items()},
    "one key": lambda state: {"anything": state},
    "params_ema before params": lambda state: {"params": {k: t + 1 for k, t in state.items()}, "params_ema": state},
    "dictionaries in dictionaries": lambda state: {"checkpoint": {"model": {"params_ema": state}}},
    "beside an optimizer": lambda state: {
        "iter": 5,
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
    },
    "beside another network": lambda state: {"G": state, "D": {"conv.weight": torch.ones(3, 3, 3, 3)}},
    "parameters": lambda state: {k: torch.nn.Parameter(t) for k, t in state.items()},
    "channels last": lambda state: {
        k: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for k, t in state.items()
    },
    "float64": lambda state: {k: t.double() for k, t in state.items()},
    "with a note": lambda state: {**state, "note": "trained on photographs"},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_wrapped_checkpoints(tmp_path, small_state, expected, wrapping):
    for old in (False, True):
        torch.save(WRAPPED[wrapping](small_state), tmp_path / "model.pth", _use_new_zipfile_serialization=not old)
        assert same(load(tmp_path / "model.pth", **BLOCKS), expected)


def test_safetensors_and_half_precision(tmp_path, small_state, expected):
    path = tmp_path / "model.safetensors"
    for wrapping in ("plain", "module.", "float64"):
        save_file(WRAPPED[wrapping](small_state), path, metadata={"format": "pt"})
        assert same(load(path, stacked_blocks=list(STACKED)), expected)
    for dtype in (torch.float16, torch.bfloat16):
        halved = {name: t.to(dtype) for name, t in small_state.items()}
        torch.save(halved, tmp_path / "half.pth")
        flow = load(tmp_path / "half.pth", **BLOCKS)
        assert {p.dtype for p in flow.parameters()} == {torch.float32}
        assert same(flow, SRFLOW.load({name: t.float() for name, t in halved.items()}, BLOCKS))


def test_converted_flow_owns_its_tensors(tmp_path, small_state, expected):
    path = tmp_path / "model.pth"
    torch.save(small_state, path)
    flow = load(path, **BLOCKS)
    path.write_bytes(b"\0" * path.stat().st_size)  # a view of the file would change
    assert same(flow, expected)
    assert not flow.training
    assert all(p.requires_grad and p.is_contiguous() and p.device.type == "cpu" for p in flow.parameters())


def test_provenance_and_saving_again(tmp_path, small_state, expected):
    path = tmp_path / "SRFlow_X4.pth"
    torch.save(small_state, path)
    flow = load(path, **BLOCKS)
    assert "converted from SRFlow_X4.pth" in flow.provenance["source"]
    assert str(tmp_path) not in flow.provenance["source"]
    assert flow.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "CC BY-NC-SA 4.0" in flow.provenance["licence"]
    assert "check the license of your file" in flow.provenance["licence"]
    model_file.save(flow, tmp_path / "ours.safetensors")
    again = load(str(tmp_path / "ours.safetensors"))
    assert same(again, expected)
    assert again.provenance == flow.provenance
    assert model_file.read_header(tmp_path / "ours.safetensors").config["stacked_blocks"] == list(STACKED)
    with pytest.raises(CheckpointError, match="flowcore model already"):
        convert(tmp_path / "ours.safetensors")
    config = load(path, **BLOCKS, quant_bins=256, affine_eps=0.01).config
    assert (config.quant_bins, config.affine_eps) == (256, 0.01)


def test_missing_and_released_stacked_blocks(refused, small_state, tmp_path):
    message = refused(small_state, stacked_blocks=None)
    advice = ("stacked_blocks=(0, 1, 2, 3)", "--set stacked_blocks=0,1,2,3")
    for part in ("stacked_blocks is missing", "4 of the encoder's 4 blocks", *advice):
        assert part in message
    assert "stacked_blocks=(3,)" in refused(small_srflow(stacked_blocks=(3,)), stacked_blocks=None)
    assert load(tmp_path / "model.pth", stacked_blocks=3).config.stacked_blocks == (3,)
    state = small_srflow(encoder_blocks=23, stacked_blocks=(1, 8))
    assert "2 of the encoder's 23 blocks" in refused(state, stacked_blocks=None)
    torch.save(small_srflow(encoder_blocks=23, stacked_blocks=(1, 8, 15, 22)), tmp_path / "model.pth")
    assert load(tmp_path / "model.pth").config.stacked_blocks == (1, 8, 15, 22)


def test_invalid_fields(refused, small_state):
    for given, says in (
        ((0, 1, 2), ["names 3 blocks", "Give 4 indices", "40 channels"]),
        ((0, 1, 2, 4), ["whole numbers from 0 to 3", "(0, 1, 2, 4)"]),
        ((0, 1, 2, -1), ["whole numbers from 0 to 3"]),
        ("0123", ["block indices such as (1, 8, 15, 22)", "'0123'"]),
        ((0, 1.0, 2, 3), ["stacked_blocks must be whole numbers"]),
    ):
        message = refused(small_state, stacked_blocks=given)
        assert all(part in message for part in says), message
    assert "'stackedblocks'" in refused(small_state, stackedblocks=(1, 2))
    assert "quant_bins must be" in refused(small_state, quant_bins=0)
    assert "is missing" in refused(small_state, scale=8)


def test_missing_misshapen_and_odd_tensors_are_named(refused, small_state):
    def without(prefix):
        return {k: t for k, t in small_state.items() if not k.startswith(prefix)}

    for name in (
        *("RRDB.HRconv.bias", "flowUpsamplerNet.layers.2.invconv.weight", "RRDB.conv_first.bias"),
        *("flowUpsamplerNet.layers.1.actnorm.logs", "flowUpsamplerNet.layers.3.conv.weight"),
    ):
        assert f"{name} is missing" in refused(without(name))
        shown = "(25,)" if name.endswith(".logs") else "(5, 5)"  # as a vector, which ours is
        assert f"{name} is {shown} instead of" in refused({**small_state, name: torch.ones(5, 5)})
    features = "flowUpsamplerNet.layers.2.affine.fFeatures.0.weight"
    for name in ("RRDB.conv_first.weight", "RRDB.RRDB_trunk.0.RDB1.conv1.weight", features):  # they tell the fields
        assert name in refused(without(name))
        assert name in refused({**small_state, name: torch.ones(5)})
    for prefix, says in (
        *((f"flowUpsamplerNet.layers.{layer}.", "The file lacks layers") for layer in (1, 2, 3)),
        ("flowUpsamplerNet.", "the encoder of an SRFlow without its flow"),
        ("RRDB.", "RRDB."),
    ):
        assert says in refused(without(prefix))
    for dtype in (torch.int64, torch.bool, torch.complex64):
        assert "RRDB.conv_last.bias" in refused({**small_state, "RRDB.conv_last.bias": torch.ones(3, dtype=dtype)})
    assert "_rebuild_sparse_tensor" in refused({**small_state, "RRDB.conv_last.bias": torch.ones(3).to_sparse()})
    for name in (
        "RRDB.RRDB_trunk.999999999999.RDB1.conv1.weight",
        "flowUpsamplerNet.layers.99999999999999.actnorm.bias",
        "flowUpsamplerNet.layers.2.affine.fFeatures.999999.weight",
    ):
        refused({**small_state, name: torch.ones(1)})


def test_unknown_duplicate_and_oversized_tensors_are_named(refused, small_state):
    message = refused({**small_state, **{f"extra.{k}": torch.ones(2) for k in range(9)}})
    assert "in 9 places" in message
    assert [f"extra.{k} is not known" in message for k in range(9)] == [True] * 3 + [False] * 6
    name = "RRDB.conv_last.bias"
    assert f"two tensors of the name {name}" in refused({**small_state, f"module.{name}": torch.ones(3)})
    expanded = torch.zeros(1).expand(2**20, 2**10, 3, 3)
    assert "damaged" in refused({**small_state, "RRDB.conv_first.weight": expanded})


OTHERS = {
    "ESRGAN": ["conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight", "RRDB_trunk.0.RDB1.conv2.weight"],
    "Stable Diffusion": ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"],
    "diffusion model": ["down_blocks.0.resnets.0.conv1.weight", "mid_block.resnets.0.conv1.weight"],
    "LoRA": ["lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.lora_up.weight"],
    "autoencoder": ["encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight"],
    "text encoder": ["text_model.embeddings.token_embedding.weight"],
    "flow of another program": ["net.0.actnorm.loc", "net.0.inv_conv.w_s"],
    "Glow by chrischute": ["module.flows.steps.0.norm.mean", "module.flows.next.steps.0.conv.weight"],
    "without its header": ["levels.0.steps.transforms.0.transforms.0.bias"],
    "No architecture that flowcore knows": ["layer1.weight", "layer1.bias", "layer2.weight", "layer3.weight"],
}


def test_another_architecture(tmp_path):
    for what, suffix in [*((what, ".pth") for what in OTHERS), ("ESRGAN", ".safetensors")]:
        state = {name: torch.ones(2) for name in OTHERS[what]}
        path = tmp_path / f"other{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        message = refusal(path)
        assert what in message
        assert OTHERS[what][0] in message
        assert "Supported: flowcore models (.safetensors) and the checkpoints of " in message
        assert "Glow of normflows, HCFlow, LLFlow, " in message
        assert "docs/published-weights.md" in message
        assert "SRFlow, SRFlow-DA, TarFlow (.pth, .pt, .safetensors)" in message


def test_trainer_with_two_networks(refused, tmp_path, small_state, expected):
    message = refused({"step": 9, "net": small_state, "ema": small_state, "optimizer": {}})
    assert "step, net, ema, optimizer" in message
    assert "net and ema hold" in message
    # The advice in the message works.
    assert "torch.load(FILE, weights_only=True)['ema']" in message
    torch.save(torch.load(tmp_path / "model.pth", weights_only=True)["ema"], tmp_path / "model.pth")
    assert same(load(tmp_path / "model.pth", **BLOCKS), expected)


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}}


CONTENTS = [
    (
        {"epoch": 1, "iter": 100, "schedulers": [{"last_epoch": 1}], "optimizers": [OPTIMIZER]},
        ["holds no weights", "epoch", "iter", "schedulers", "optimizers"],
    ),
    ({"step": 1, "optimizer": {**OPTIMIZER, "param_groups": []}}, ["holds no weights", "step", "optimizer"]),
    ({}, ["holds no weights"]),
    ({"epoch": 1, "params_ema": {"body.0.rdb1.conv1.weight": torch.ones(2)}}, ["epoch, params_ema", "ESRGAN"]),
    *((value, ["not a dictionary of tensors"]) for value in (torch.ones(3), [torch.ones(3)], 3, "text", None)),
    (torch.nn.Tanh(), ["torch.nn.modules.activation.Tanh", "torch.save(model.state_dict()"]),
    ({"args": argparse.Namespace(lr=1)}, ["argparse.Namespace"]),
]


def test_other_contents(refused):
    for content, says in CONTENTS:
        message = refused(content)
        assert all(part in message for part in says), message


@pytest.mark.filterwarnings("ignore")
def test_torchscript(tmp_path):
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "script.pt"))
    assert "TorchScript" in refusal(tmp_path / "script.pt")


NOT_MODELS = {
    "the file is empty": b"",
    "web page": b"\n<!DOCTYPE html><html><body>Google Drive can't scan this file for viruses</body></html>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 158000000\n",
    "not a model file": b"\x07\x11" * 300,
}


def test_not_a_model(tmp_path):
    for what, content in NOT_MODELS.items():
        for suffix in (".pth", ".safetensors"):
            path = tmp_path / f"photo{suffix}"
            path.write_bytes(content)
            message = refusal(path)
            assert what in message
            assert "Supported" in message or "Fetch it again" in message


def test_folders_archives_and_missing_files(tmp_path):
    (tmp_path / "models").mkdir()
    assert "this is a folder" in refusal(tmp_path / "models")
    message = refusal(tmp_path / "nowhere.pth")
    assert "no file" in message
    assert "no shipped model" in message
    with pytest.raises(CheckpointError, match="no such file"):
        convert(tmp_path / "nowhere.pth")
    with zipfile.ZipFile(tmp_path / "pretrained_models.zip", "w") as archive:
        archive.writestr("pretrained_models/SRFlow_DF2K_4X.pth", b"x" * 100)
    message = refusal(tmp_path / "pretrained_models.zip")
    assert "it holds pretrained_models/SRFlow_DF2K_4X.pth" in message
    assert "Unpack it" in message
    assert issubclass(CheckpointError, FlowError)
    assert issubclass(FlowError, ValueError)


def test_catalog(tmp_path, monkeypatch, expected):
    monkeypatch.setattr(catalog, "FOLDER", tmp_path)
    assert catalog.names() == []
    with pytest.raises(CheckpointError, match="none is shipped"):
        catalog.path("srflow-x4")
    for name in ("small", "another"):
        model_file.save(expected, tmp_path / f"{name}.safetensors", provenance={"source": name})
    assert catalog.names() == ["another", "small"]
    assert catalog.path("small") == tmp_path / "small.safetensors"
    for find, said in ((catalog.path, "choose another or small"), (load, "another, small")):
        with pytest.raises(CheckpointError, match=said):
            find("large")
    assert same(load("small"), expected)
    assert load("small").provenance == {"source": "small"}
