"""Reading files: what is seen through, what is refused, and what a refusal says."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowcore.checkpoints import catalog, convert, file, load
from flowcore.checkpoints.sources import SRFLOW
from flowcore.errors import CheckpointError, FlowError

STACKED = (2, 0, 3, 1)  # of the fixture small_state


def same(flow, state) -> bool:
    expected = SRFLOW.convert(state, {"stacked_blocks": STACKED})
    pairs = zip(flow.state_dict().values(), expected.state_dict().values(), strict=True)
    return flow.config == expected.config and all(torch.equal(a, b) for a, b in pairs)


def refusal(path, **overrides) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, **overrides)
    message = str(caught.value)
    assert path.name in message
    assert len(message) < 900
    return message


# --- what is seen through ---------------------------------------------------------------------------------------------

WRAPPED = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "module.": lambda state: {f"module.{k}": t for k, t in state.items()},
    "module. here and there": lambda state: {
        (f"module.{k}" if n % 2 else k): t for n, (k, t) in enumerate(state.items())
    },
    "netG.module.": lambda state: {f"netG.module.{k}": t for k, t in state.items()},
    "one key": lambda state: {"anything": state},
    "one key, module.": lambda state: {"weights": {f"module.{k}": t for k, t in state.items()}},
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {"params_ema": state},
    "params_ema before params": lambda state: {"params": {k: t + 1 for k, t in state.items()}, "params_ema": state},
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "name": "x4"},
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
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_wrapped_checkpoints(tmp_path, small_state, wrapping, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save(WRAPPED[wrapping](small_state), path, _use_new_zipfile_serialization=suffix == ".pth")
    assert same(load(path, stacked_blocks=STACKED), small_state)


@pytest.mark.parametrize("wrapping", ["plain", "module.", "float64"])
def test_safetensors(tmp_path, small_state, wrapping):
    path = tmp_path / "model.safetensors"
    save_file(WRAPPED[wrapping](small_state), path, metadata={"format": "pt"})
    assert same(load(path, stacked_blocks=list(STACKED)), small_state)


def test_the_suffix_does_not_matter(tmp_path, small_state):
    torch.save(small_state, tmp_path / "model.safetensors")
    save_file(small_state, tmp_path / "model.pth")
    for name in ("model.safetensors", "model.pth"):
        assert same(load(tmp_path / name, stacked_blocks=STACKED), small_state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path, small_state, dtype):
    halved = {name: t.to(dtype) for name, t in small_state.items()}
    torch.save(halved, tmp_path / "half.pth")
    flow = load(tmp_path / "half.pth", stacked_blocks=STACKED)
    assert {p.dtype for p in flow.parameters()} == {torch.float32}
    assert same(flow, {name: t.float() for name, t in halved.items()})


def test_a_converted_flow_owns_its_tensors_and_is_ready(tmp_path, small_state):
    path = tmp_path / "model.pth"
    torch.save(small_state, path)
    flow = load(path, stacked_blocks=STACKED)
    path.write_bytes(b"\0" * path.stat().st_size)  # a view of the file would see this
    assert same(flow, small_state)
    assert not flow.training
    assert all(p.requires_grad and p.is_contiguous() and p.device.type == "cpu" for p in flow.parameters())


def test_provenance(tmp_path, small_state):
    path = tmp_path / "SRFlow_X4.pth"
    torch.save(small_state, path)
    provenance = load(path, stacked_blocks=STACKED).provenance
    assert "converted from SRFlow_X4.pth" in provenance["source"]
    assert str(tmp_path) not in provenance["source"]
    assert provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "CC BY-NC-SA 4.0" in provenance["licence"]
    assert "check the licence of your file" in provenance["licence"]


def test_a_converted_flow_is_saved_and_loaded_again(tmp_path, small_state):
    torch.save(small_state, tmp_path / "theirs.pth")
    flow = load(tmp_path / "theirs.pth", stacked_blocks=STACKED)
    file.save(flow, tmp_path / "ours.safetensors")
    again = load(str(tmp_path / "ours.safetensors"))
    assert same(again, small_state)
    assert again.provenance == flow.provenance
    assert file.read_header(tmp_path / "ours.safetensors").config["stacked_blocks"] == list(STACKED)


def test_overrides_reach_the_configuration(tmp_path, small_state):
    torch.save(small_state, tmp_path / "model.pth")
    config = load(tmp_path / "model.pth", stacked_blocks=STACKED, quant_bins=256, affine_eps=0.01).config
    assert (config.quant_bins, config.affine_eps) == (256, 0.01)


# --- the field that no file holds -------------------------------------------------------------------------------------


def test_missing_stacked_blocks_are_asked_for(tmp_path, small_state):
    torch.save(small_state, tmp_path / "model.pth")
    message = refusal(tmp_path / "model.pth")
    assert "stacked_blocks is missing" in message
    assert "4 of the encoder's 4 blocks" in message
    assert "stacked_blocks=(0, 1, 2, 3)" in message
    assert "--set stacked_blocks=0,1,2,3" in message


def test_one_stacked_block_may_come_as_a_number(tmp_path, small_flow, export):
    flow = small_flow(stacked_blocks=(3,))
    torch.save(export(flow), tmp_path / "model.pth")
    assert "stacked_blocks=(3,)" in refusal(tmp_path / "model.pth")
    assert load(tmp_path / "model.pth", stacked_blocks=3).config == flow.config


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((0, 1, 2), ["names 3 blocks", "Give 4 indices", "40 channels"]),
        ((0, 1, 2, 3, 0), ["names 5 blocks", "Give 4 indices"]),
        ((0, 1, 2, 4), ["below encoder_blocks=4", "(0, 1, 2, 4)"]),
        ((0, 1, 2, -1), ["below encoder_blocks=4"]),
        ("0123", ["block indices such as (1, 8, 15, 22)", "'0123'"]),
        (("0", 1, 2, 3), ["stacked_blocks must be indices"]),
        ((0, 1.0, 2, 3), ["stacked_blocks must be indices"]),
    ],
)
def test_wrong_stacked_blocks(tmp_path, small_state, given, says):
    torch.save(small_state, tmp_path / "model.pth")
    message = refusal(tmp_path / "model.pth", stacked_blocks=given)
    assert all(part in message for part in says), message


def test_the_table_of_stacked_blocks_needs_the_right_number_of_them(tmp_path, small_flow, export):
    torch.save(export(small_flow(encoder_blocks=23, stacked_blocks=(1, 8))), tmp_path / "model.pth")
    message = refusal(tmp_path / "model.pth")
    assert "2 of the encoder's 23 blocks" in message
    torch.save(export(small_flow(encoder_blocks=23, stacked_blocks=(1, 8, 15, 22))), tmp_path / "model.pth")
    assert load(tmp_path / "model.pth").config.stacked_blocks == (1, 8, 15, 22)


def test_unknown_and_wrong_overrides(tmp_path, small_state):
    torch.save(small_state, tmp_path / "model.pth")
    assert "'stackedblocks'" in refusal(tmp_path / "model.pth", stacked_blocks=STACKED, stackedblocks=(1, 2))
    assert "quant_bins must be" in refusal(tmp_path / "model.pth", stacked_blocks=STACKED, quant_bins=0)
    assert "is missing" in refusal(tmp_path / "model.pth", stacked_blocks=STACKED, scale=8)


# --- tensors that do not fit ------------------------------------------------------------------------------------------


def test_missing_tensors_are_named(tmp_path, small_state):
    gone = ["RRDB.HRconv.bias", "flowUpsamplerNet.layers.2.invconv.weight"]
    torch.save({k: t for k, t in small_state.items() if k not in gone}, tmp_path / "model.pth")
    message = refusal(tmp_path / "model.pth", stacked_blocks=STACKED)
    assert all(f"{name} is missing" in message for name in gone)


def test_unexpected_tensors_are_named_three_at_most(tmp_path, small_state):
    torch.save({**small_state, **{f"extra.{k}": torch.ones(2) for k in range(9)}}, tmp_path / "model.pth")
    message = refusal(tmp_path / "model.pth", stacked_blocks=STACKED)
    assert "in 9 places" in message
    assert [f"extra.{k} is not known" in message for k in range(9)] == [True] * 3 + [False] * 6


@pytest.mark.parametrize(
    "name", ["RRDB.conv_first.bias", "flowUpsamplerNet.layers.1.actnorm.logs", "flowUpsamplerNet.layers.3.conv.weight"]
)
def test_wrong_shapes_are_named(tmp_path, small_state, name):
    torch.save({**small_state, name: torch.ones(5, 5)}, tmp_path / "model.pth")
    assert f"{name} is (5, 5) instead of" in refusal(tmp_path / "model.pth", stacked_blocks=STACKED)


@pytest.mark.parametrize(
    "name",
    [
        "RRDB.conv_first.weight",
        "RRDB.RRDB_trunk.0.RDB1.conv1.weight",
        "flowUpsamplerNet.layers.2.affine.fFeatures.0.weight",
    ],
)
def test_tensors_that_tell_the_configuration_are_missed_by_name(tmp_path, small_state, name):
    for damaged in ({k: t for k, t in small_state.items() if k != name}, {**small_state, name: torch.ones(5)}):
        torch.save(damaged, tmp_path / "model.pth")
        assert name in refusal(tmp_path / "model.pth", stacked_blocks=STACKED)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_missing_layer(tmp_path, small_state, layer):
    prefix = f"flowUpsamplerNet.layers.{layer}."
    torch.save({k: t for k, t in small_state.items() if not k.startswith(prefix)}, tmp_path / "model.pth")
    message = refusal(tmp_path / "model.pth", stacked_blocks=STACKED)
    assert "The file lacks layers" in message


def test_the_encoder_alone_and_the_flow_alone(tmp_path, small_state):
    torch.save({k: t for k, t in small_state.items() if k.startswith("RRDB.")}, tmp_path / "encoder.pth")
    assert "the encoder of an SRFlow without its flow" in refusal(tmp_path / "encoder.pth", stacked_blocks=STACKED)
    torch.save({k: t for k, t in small_state.items() if not k.startswith("RRDB.")}, tmp_path / "flow.pth")
    assert "RRDB." in refusal(tmp_path / "flow.pth", stacked_blocks=STACKED)


def test_the_same_name_twice(tmp_path, small_state):
    name = "RRDB.conv_last.bias"
    torch.save({**small_state, f"module.{name}": torch.ones(3)}, tmp_path / "model.pth")
    assert f"two tensors of the name {name}" in refusal(tmp_path / "model.pth", stacked_blocks=STACKED)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, dtype=torch.int64),
        torch.ones(3, dtype=torch.bool),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3).to_sparse(),
    ],
)
def test_tensors_that_are_no_plain_numbers(tmp_path, small_state, tensor):
    torch.save({**small_state, "RRDB.conv_last.bias": tensor}, tmp_path / "model.pth")
    assert "RRDB.conv_last.bias" in refusal(tmp_path / "model.pth", stacked_blocks=STACKED)


# --- hostile shapes allocate nothing ----------------------------------------------------------------------------------


def test_a_tensor_larger_than_the_file(tmp_path, small_state):
    name = "RRDB.conv_first.weight"
    torch.save({**small_state, name: torch.zeros(1).expand(2**20, 2**10, 3, 3)}, tmp_path / "model.pth")
    assert "damaged" in refusal(tmp_path / "model.pth", stacked_blocks=STACKED)


@pytest.mark.parametrize(
    "name",
    [
        "RRDB.RRDB_trunk.999999999999.RDB1.conv1.weight",
        "RRDB.upconv99.weight",
        "flowUpsamplerNet.layers.9999.actnorm.bias",
        "flowUpsamplerNet.layers.99999999999999.actnorm.bias",
        "flowUpsamplerNet.layers.2.affine.fFeatures.999999.weight",
    ],
)
def test_absurd_indices(tmp_path, small_state, name):
    torch.save({**small_state, name: torch.ones(1)}, tmp_path / "model.pth")
    refusal(tmp_path / "model.pth", stacked_blocks=STACKED)


def test_an_archive_that_unpacks_to_more_than_itself(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("model/data/0", b"\0" * 2**24)
    assert "unpacks to more than its own size" in refusal(tmp_path / "model.pth")


# --- other architectures ----------------------------------------------------------------------------------------------

OTHERS = {
    "ESRGAN": ["conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight", "RRDB_trunk.0.RDB1.conv2.weight"],
    "ESRGAN (RRDB)": ["conv_first.weight", "body.0.rdb1.conv1.weight", "conv_body.weight"],
    "Stable Diffusion": ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"],
    "diffusion model": ["down_blocks.0.resnets.0.conv1.weight", "mid_block.resnets.0.conv1.weight"],
    "LoRA": ["lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.lora_up.weight"],
    "autoencoder": ["encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight"],
    "text encoder": ["text_model.embeddings.token_embedding.weight"],
    "flow of another program": ["net.0.actnorm.loc", "net.0.inv_conv.w_s"],
    "TarFlow, a transformer flow": ["blocks.0.attn_blocks.0.attention.qkv.weight", "blocks.0.pos_embed"],
    "Jet, a transformer flow": ["blocks.0.dnn.init_proj.weight", "channel_projections"],
    "Glow by chrischute": ["module.flows.steps.0.norm.mean", "module.flows.next.steps.0.conv.weight"],
    "without its header": ["levels.0.steps.transforms.0.transforms.0.bias"],
    "No architecture that flowcore knows": ["layer1.weight", "layer1.bias", "layer2.weight", "layer3.weight"],
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_another_architecture(tmp_path, what, suffix):
    state = {name: torch.ones(2) for name in OTHERS[what]}
    path = tmp_path / f"other{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    message = refusal(path)
    assert what in message
    assert OTHERS[what][0] in message
    assert "Supported: flowcore models (.safetensors) and the checkpoints of SRFlow, Glow by y0ast, " in message
    assert "Real NVP by chrischute (.pth, .pt, .safetensors)" in message


def test_another_architecture_within_a_dictionary(tmp_path):
    torch.save({"epoch": 1, "params_ema": {"body.0.rdb1.conv1.weight": torch.ones(2)}}, tmp_path / "other.pth")
    message = refusal(tmp_path / "other.pth")
    assert "epoch, params_ema" in message
    assert "ESRGAN" in message


# --- checkpoints of trainers ------------------------------------------------------------------------------------------


def test_a_trainer_with_two_networks_of_the_kind(tmp_path, small_state):
    torch.save({"step": 9, "net": small_state, "ema": small_state, "optimizer": {}}, tmp_path / "trainer.pth")
    message = refusal(tmp_path / "trainer.pth", stacked_blocks=STACKED)
    assert "step, net, ema, optimizer" in message
    assert "net and ema hold" in message
    # The way out that the message names works.
    extracted = torch.load(tmp_path / "trainer.pth", weights_only=True)["ema"]
    assert "torch.load(FILE, weights_only=True)['ema']" in message
    torch.save(extracted, tmp_path / "model.pth")
    assert same(load(tmp_path / "model.pth", stacked_blocks=STACKED), small_state)


@pytest.mark.parametrize(
    "content",
    [
        {
            "epoch": 1,
            "iter": 100,
            "schedulers": [{"last_epoch": 1}],
            "optimizers": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
        },
        {"step": 1, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}},
        {},
    ],
)
def test_a_trainer_without_a_network(tmp_path, content):
    torch.save(content, tmp_path / "100.state")
    message = refusal(tmp_path / "100.state")
    assert "holds no weights" in message
    assert all(key in message for key in content)


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], 3, "text", None])
def test_not_a_dictionary(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    assert "not a dictionary of tensors" in refusal(tmp_path / "model.pth")


# --- code -------------------------------------------------------------------------------------------------------------


class Payload:
    """What a hostile pickle does: a call, made while it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "form", ["torch", "old torch", "pickle 0", "pickle 2", "pickle 5", "beside weights", "among weights"]
)
def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path, small_state, form):
    marker, path = tmp_path / "marker", tmp_path / "model.pth"
    payload = Payload(marker)
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(payload, protocol=int(form[-1])))
    elif form == "beside weights":
        torch.save({"state_dict": small_state, "extra": payload}, path)
    elif form == "among weights":
        torch.save({**small_state, "RRDB.conv_last.bias": payload}, path)
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "torch")
    message = refusal(path, stacked_blocks=STACKED)
    assert not marker.exists()
    if form == "pickle 0":  # text, which nothing tries to read
        assert "not a model file" in message
    else:
        assert re.search(r"would import (posix|nt)\.mkdir, which could run code; it was not read", message), message
    pickle.loads(pickle.dumps(payload))  # the payload is a real one
    assert marker.exists()


def test_a_pickled_module_and_foreign_classes(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    message = refusal(tmp_path / "module.pth")
    assert "torch.nn.modules.linear.Linear" in message
    assert "torch.save(model.state_dict()" in message
    torch.save({"args": argparse.Namespace(lr=1)}, tmp_path / "args.pth")
    assert "argparse.Namespace" in refusal(tmp_path / "args.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program(tmp_path):
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "script.pt"))
    assert "TorchScript" in refusal(tmp_path / "script.pt")


# --- not a model ------------------------------------------------------------------------------------------------------

NOT_MODELS = {
    "the file is empty": b"",
    "JPEG image": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(200),
    "PNG image": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "web page": b"\n<!DOCTYPE html><html><body>Google Drive can't scan this file for viruses</body></html>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 158000000\n",
    "GGUF": b"GGUF" + bytes(100),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "JSON": b'{"scale": 4}',
    "not a model file": b"\x07\x11" * 300,
}


@pytest.mark.parametrize("what", NOT_MODELS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_not_a_model(tmp_path, what, suffix):
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(NOT_MODELS[what])
    message = refusal(path)
    assert what in message
    assert "Supported" in message or "Fetch it again" in message


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("start", [b"", b"\x80\x02", b"PK\x03\x04", b"\x40\0\0\0\0\0\0\0{"])
def test_random_bytes(tmp_path, seed, start):
    noise = torch.randint(256, (1000,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    path = tmp_path / "random.pth"
    path.write_bytes(start + noise.numpy().tobytes())
    refusal(path)


def test_a_zip_archive_of_models(tmp_path):
    with zipfile.ZipFile(tmp_path / "pretrained_models.zip", "w") as archive:
        archive.writestr("pretrained_models/SRFlow_DF2K_4X.pth", b"x" * 100)
    message = refusal(tmp_path / "pretrained_models.zip")
    assert "it holds pretrained_models/SRFlow_DF2K_4X.pth" in message
    assert "Unpack it" in message


@pytest.mark.parametrize("form", ["torch", "old torch", "safetensors", "ours"])
def test_truncated_at_any_place(tmp_path, small_state, form):
    whole = tmp_path / "whole.bin"
    if form == "safetensors":
        save_file(small_state, whole)
    elif form == "ours":
        file.save(SRFLOW.convert(small_state, {"stacked_blocks": STACKED}), whole)
    else:
        torch.save(small_state, whole, _use_new_zipfile_serialization=form == "torch")
    data = whole.read_bytes()
    path = tmp_path / "model.pth"
    for length in (len(data) - 1, len(data) - 100, len(data) // 2, 5000, 300, 20):
        path.write_bytes(data[:length])
        assert "truncated or damaged" in refusal(path, stacked_blocks=STACKED)
    path.write_bytes(data[:5])
    refusal(path, stacked_blocks=STACKED)


def test_a_folder_and_nothing(tmp_path):
    (tmp_path / "models").mkdir()
    assert "this is a folder" in refusal(tmp_path / "models")
    message = refusal(tmp_path / "nowhere.pth")
    assert "no file" in message
    assert "no shipped model" in message
    with pytest.raises(CheckpointError, match="no such file"):
        convert(tmp_path / "nowhere.pth")


def test_ours_is_not_converted_again(tmp_path, small_state):
    flow = SRFLOW.convert(small_state, {"stacked_blocks": STACKED})
    file.save(flow, tmp_path / "ours.safetensors")
    with pytest.raises(CheckpointError, match="flowcore model already"):
        convert(tmp_path / "ours.safetensors")


def test_every_refusal_is_an_error_that_callers_may_catch_as_value_error():
    assert issubclass(CheckpointError, FlowError)
    assert issubclass(FlowError, ValueError)


# --- the catalog ------------------------------------------------------------------------------------------------------


def test_catalog(tmp_path, monkeypatch, small_state):
    monkeypatch.setattr(catalog, "FOLDER", tmp_path)
    assert catalog.names() == []
    with pytest.raises(CheckpointError, match="none is shipped"):
        catalog.path("srflow-x4")
    flow = SRFLOW.convert(small_state, {"stacked_blocks": STACKED})
    for name in ("small", "another"):
        file.save(flow, tmp_path / f"{name}.safetensors", provenance={"source": name})
    assert catalog.names() == ["another", "small"]
    assert catalog.path("small") == tmp_path / "small.safetensors"
    with pytest.raises(CheckpointError, match="choose another or small"):
        catalog.path("large")
    loaded = load("small")
    assert same(loaded, small_state)
    assert loaded.provenance == {"source": "small"}
    with pytest.raises(CheckpointError, match="another, small"):
        load("large")


def test_every_shipped_model_has_a_file_and_a_header():
    for name in catalog.names():
        assert file.read_header(catalog.path(name)).provenance["licence"]
