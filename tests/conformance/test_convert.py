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
    "ordered": OrderedDict,
    "module. here and there": lambda state: {
        (f"module.{k}" if n % 2 else k): t for n, (k, t) in enumerate(state.items())
    },
    "netG.module.": lambda state: {f"netG.module.{k}": t for k, t in state.items()},
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
    for wrapping in ("netG.module.", "float64"):
        save_file(WRAPPED[wrapping](small_state), path, metadata={"format": "pt"})
        assert same(load(path, stacked_blocks=list(STACKED)), expected)
    for dtype in (torch.float16, torch.bfloat16):
        halved = {name: t.to(dtype) for name, t in small_state.items()}
        torch.save(halved, tmp_path / "half.pth")
        widened = SRFLOW.load({name: t.float() for name, t in halved.items()}, BLOCKS)
        assert same(load(tmp_path / "half.pth", **BLOCKS), widened)


def test_converted_flow_owns_its_tensors(tmp_path, small_state, expected):
    path = tmp_path / "model.pth"
    torch.save(small_state, path)
    flow = load(path, **BLOCKS)
    path.write_bytes(b"\0" * path.stat().st_size)  # a view of the file would change
    assert same(flow, expected)
    assert not flow.training
    assert all(p.requires_grad and p.is_contiguous() and p.dtype == torch.float32 for p in flow.parameters())


def test_provenance_and_saving_again(tmp_path, small_state, expected):
    path = tmp_path / "SRFlow_X4.pth"
    torch.save(small_state, path)
    flow = load(path, **BLOCKS)
    assert "converted from SRFlow_X4.pth" in flow.provenance["source"]
    assert str(tmp_path) not in flow.provenance["source"]
    assert flow.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "CC BY-NC-SA 4.0" in flow.provenance["licence"]
    model_file.save(flow, tmp_path / "ours.safetensors")
    again = load(str(tmp_path / "ours.safetensors"))
    assert same(again, expected)
    assert again.provenance == flow.provenance
    with pytest.raises(CheckpointError, match="flowcore model already"):
        convert(tmp_path / "ours.safetensors")
    assert load(path, **BLOCKS, quant_bins=256).config.quant_bins == 256


def test_missing_and_released_stacked_blocks(refused, small_state, tmp_path):
    message = refused(small_state, stacked_blocks=None)
    for part in ("4 of the encoder's 4 blocks", "stacked_blocks=(0, 1, 2, 3)", "--set stacked_blocks=0,1,2,3"):
        assert part in message
    assert "stacked_blocks=(3,)" in refused(small_srflow(stacked_blocks=(3,)), stacked_blocks=None)
    assert load(tmp_path / "model.pth", stacked_blocks=3).config.stacked_blocks == (3,)
    torch.save(small_srflow(encoder_blocks=23, stacked_blocks=(1, 8, 15, 22)), tmp_path / "model.pth")
    assert load(tmp_path / "model.pth").config.stacked_blocks == (1, 8, 15, 22)


def test_invalid_fields(refused, small_state):
    for given, says in (((0, 1, 2), "Give 4 indices"), ((0, 1, 2, 4), "(0, 1, 2, 4)"), ("0123", "'0123'")):
        assert says in refused(small_state, stacked_blocks=given)
    assert "'stackedblocks'" in refused(small_state, stackedblocks=(1, 2))
    assert "quant_bins must be" in refused(small_state, quant_bins=0)
    assert "is missing" in refused(small_state, scale=8)


def test_missing_misshapen_and_odd_tensors_are_named(refused, small_state):
    def without(prefix):
        return {k: t for k, t in small_state.items() if not k.startswith(prefix)}

    for name, shown in (
        ("RRDB.HRconv.bias", "(5, 5)"),
        ("flowUpsamplerNet.layers.1.actnorm.logs", "(25,)"),  # as a vector, which ours is
    ):
        assert f"{name} is missing" in refused(without(name))
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
    assert "RRDB.conv_last.bias is a torch.bool" in refused({**small_state, "RRDB.conv_last.bias": torch.ones(3) > 0})
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
        for part in (what, OTHERS[what][0], "Supported: ", "HCFlow, LLFlow, ", "docs/published-weights.md"):
            assert part in message


def test_trainer_with_two_networks(refused, tmp_path, small_state, expected):
    message = refused({"step": 9, "net": small_state, "ema": small_state, "optimizer": {}})
    # The advice in the message works.
    assert "torch.load(FILE, weights_only=True)['ema']" in message
    torch.save(torch.load(tmp_path / "model.pth", weights_only=True)["ema"], tmp_path / "model.pth")
    assert same(load(tmp_path / "model.pth", **BLOCKS), expected)


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}}


CONTENTS = [
    ({"epoch": 1, "schedulers": [{"last_epoch": 1}], "optimizers": [OPTIMIZER]}, "epoch, schedulers, optimizers"),
    ({"step": 1, "optimizer": {**OPTIMIZER, "param_groups": []}}, "holds no weights"),
    ({}, "holds no weights"),
    ({"epoch": 1, "params_ema": {"body.0.rdb1.conv1.weight": torch.ones(2)}}, "ESRGAN"),
    *((value, "not a dictionary of tensors") for value in (torch.ones(3), [torch.ones(3)], 3, "text", None)),
    (torch.nn.Tanh(), "torch.save(model.state_dict()"),
    ({"args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
]


def test_other_contents(refused):
    for content, says in CONTENTS:
        assert says in refused(content)


NOT_MODELS = {
    "the file is empty": b"",
    "web page": b"\n<!DOCTYPE html><html><body>Google Drive can't scan this file for viruses</body></html>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 158000000\n",
    "not a model file": b"\x07\x11" * 300,
}


@pytest.mark.filterwarnings("ignore")
def test_other_files_folders_archives_and_missing_files_are_named(tmp_path):
    for what, content in NOT_MODELS.items():
        for suffix in (".pth", ".safetensors"):
            path = tmp_path / f"photo{suffix}"
            path.write_bytes(content)
            assert what in refusal(path)
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "script.pt"))
    assert "TorchScript" in refusal(tmp_path / "script.pt")
    (tmp_path / "models").mkdir()
    assert "this is a folder" in refusal(tmp_path / "models")
    assert "no shipped model" in refusal(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        convert(tmp_path / "nowhere.pth")
    with zipfile.ZipFile(tmp_path / "pretrained_models.zip", "w") as archive:
        archive.writestr("pretrained_models/SRFlow_DF2K_4X.pth", b"x" * 100)
    assert "it holds pretrained_models/SRFlow_DF2K_4X.pth" in refusal(tmp_path / "pretrained_models.zip")
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
