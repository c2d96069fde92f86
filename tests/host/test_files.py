"""Model files: where they are found, and how those that are not flows are refused, without harm to the server."""

from __future__ import annotations

import json
import os
import shutil
import zipfile

import comfyui
import pytest
import torch
from client import RunError
from PIL import Image, ImageChops
from safetensors import safe_open
from safetensors.torch import save_file
from talk import upscale

SHIPPED = comfyui.ROOT / "flowcore" / "weights" / "srflow-x4.safetensors"


@pytest.fixture
def folder(host):
    """The server's models/flows, emptied afterwards."""
    folder = host.server.base / "models" / "flows"
    yield folder
    for entry in [*folder.iterdir(), *host.server.extra_flows.iterdir()]:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def look(name):
    """A workflow that loads a model and shows what it is."""
    return {
        "model": {"class_type": "FlowcoreLoadModel", "inputs": {"model_name": name}},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["model", 1]}},
    }


def refusal(host, name):
    with pytest.raises(RunError) as refused:
        host.run(look(name))
    # A sentence, and the one that flowcore gave: not a key error from the depths.
    assert refused.value.detail["exception_type"].endswith("CheckpointError")
    text = str(refused.value)
    assert name.split("/")[-1] in text
    assert text.rstrip().endswith(".")
    # The server lives on, and so does the pack.
    assert "srflow" in host.run(look("srflow-x4"))["outputs"]["show"]["text"][0]
    return text


def shipped():
    with safe_open(SHIPPED, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("place", ["models", "sub-folder", "extra_model_paths"])
def test_a_file_works_wherever_the_host_looks(host, folder, photo, place):
    target, name = {
        "models": (folder / "mine.safetensors", "mine.safetensors"),
        "sub-folder": (folder / "four" / "mine.safetensors", "four/mine.safetensors"),
        "extra_model_paths": (host.server.extra_flows / "other.safetensors", "other.safetensors"),
    }[place]
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(SHIPPED, target)
    (own,) = host.images(upscale(photo=photo, model_name=name, seed=3))
    (ours,) = host.images(upscale(photo=photo, seed=3))
    assert ImageChops.difference(own, ours).getbbox() is None


def test_a_file_that_changes_is_loaded_again(host, folder, photo):
    file = folder / "changing.safetensors"
    shutil.copyfile(SHIPPED, file)
    (before,) = host.images(upscale(photo=photo, model_name=file.name, seed=3))
    tensors, metadata = shipped()
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim == 4)
    save_file(tensors | {name: tensors[name] * 1.5}, file, metadata=metadata)
    (after,) = host.images(upscale(photo=photo, model_name=file.name, seed=3))
    assert ImageChops.difference(before, after).getbbox() is not None


def test_a_missing_file_is_named_with_the_folder_it_belongs_into(host):
    with pytest.raises(RunError) as refused:
        host.queue(upscale(model_name="nope.safetensors"))
    assert "nope.safetensors" in str(refused.value)
    assert str(host.server.base / "models" / "flows") in str(refused.value)
    assert "srflow-x4" in str(refused.value)


@pytest.mark.parametrize("name", ["../../extra_model_paths.yaml", "/etc/hostname"])
def test_a_name_does_not_lead_out_of_the_folders(host, name):
    with pytest.raises(RunError):
        host.run(look(name))


@pytest.mark.parametrize("name", ["notes.safetensors", "notes.pth", "nothing.safetensors", "nothing.pt"])
def test_a_file_that_is_not_a_model_is_refused(host, folder, name):
    (folder / name).write_bytes(b"" if name.startswith("nothing") else b"This is a shopping list, not a model.\n" * 40)
    refusal(host, name)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_download_that_broke_off_is_refused(host, folder, share):
    data = SHIPPED.read_bytes()
    (folder / "half.safetensors").write_bytes(data[: int(len(data) * share)])
    refusal(host, "half.safetensors")


def test_a_torch_file_that_broke_off_is_refused(host, folder):
    torch.save({"a": torch.zeros(1000)}, folder / "half.pth")
    data = (folder / "half.pth").read_bytes()
    (folder / "half.pth").write_bytes(data[: len(data) // 2])
    refusal(host, "half.pth")


class Command:
    """What a pickle looks like that runs a command when it is read."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_does_not_run_code(host, folder, tmp_path, old):
    trace = tmp_path / "ran"
    torch.save({"weight": Command(f"touch {trace}")}, folder / "evil.pth", _use_new_zipfile_serialization=not old)
    refusal(host, "evil.pth")
    assert not trace.exists()


def test_a_trainer_checkpoint_is_refused(host, folder):
    tensors, _ = shipped()
    state = {"model": tensors, "optimizer": {"state": {}, "param_groups": []}, "epoch": 7}
    torch.save(state, folder / "trainer.pth")
    refusal(host, "trainer.pth")


def test_another_architecture_is_refused(host, folder):
    upscaler = {"conv_first.weight": torch.zeros(64, 3, 3, 3), "conv_first.bias": torch.zeros(64)}
    upscaler |= {f"body.{i}.rdb1.conv1.weight": torch.zeros(32, 64, 3, 3) for i in range(3)}
    save_file(upscaler, folder / "esrgan.safetensors")
    torch.save(upscaler, folder / "esrgan.pth")
    refusal(host, "esrgan.safetensors")
    refusal(host, "esrgan.pth")


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "warpflow"},
        {"format": 99},
        {"config": {"scale": 4, "flux_capacity": 1.21}},
        {"config": {"scale": "four"}},
        {"config": {"steps": 10**9}},
        {"config": None},
    ],
    ids=str,
)
def test_a_header_that_flowcore_does_not_know_is_refused(host, folder, change):
    tensors, metadata = shipped()
    header = json.loads(metadata["flowcore"]) | change
    save_file(tensors, folder / "odd.safetensors", metadata={"flowcore": json.dumps(header)})
    refusal(host, "odd.safetensors")


def test_tensors_that_do_not_fit_are_refused(host, folder):
    tensors, metadata = shipped()
    name = next(iter(tensors))
    del tensors[name]
    save_file(tensors, folder / "gaps.safetensors", metadata=metadata)
    refusal(host, "gaps.safetensors")


def test_an_archive_that_is_no_torch_file_is_refused(host, folder):
    with zipfile.ZipFile(folder / "pictures.pth", "w") as archive:
        archive.writestr("holiday.txt", "sun")
    refusal(host, "pictures.pth")


def test_a_picture_with_a_models_name_is_refused(host, folder):
    Image.new("RGB", (64, 64), "red").save(folder / "picture.png")
    (folder / "picture.png").rename(folder / "picture.safetensors")
    refusal(host, "picture.safetensors")
