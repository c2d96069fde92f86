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
from talk import graph, loader, shows, upscale

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
    return graph(model=loader(name), **shows(show="model.1"))


def refusal(host, name):
    with pytest.raises(RunError) as refused:
        host.run(look(name))
    # A sentence of flowcore, not a key error from the depths.
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
    name = "four/mine.safetensors" if place == "sub-folder" else "mine.safetensors"
    target = (host.server.extra_flows if place == "extra_model_paths" else folder) / name
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


class Command(str):
    """Its pickle runs the text as a command when it is read."""

    def __reduce__(self):
        return os.system, (str(self),)


def test_a_pickle_does_not_run_code(host, folder, tmp_path):
    trace = tmp_path / "ran"
    for new in (False, True):
        torch.save({"weight": Command(f"touch {trace}")}, folder / "evil.pth", _use_new_zipfile_serialization=new)
        refusal(host, "evil.pth")
        assert not trace.exists()


def _torch_file(folder, state, name="other.pth", share=1.0):
    torch.save(state, folder / name)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])


def _archive(folder):
    with zipfile.ZipFile(folder / "pictures.pth", "w") as archive:
        archive.writestr("holiday.txt", "sun")


def _without_a_tensor(folder):
    tensors, metadata = shipped()
    del tensors[next(iter(tensors))]
    save_file(tensors, folder / "gaps.safetensors", metadata=metadata)


def _header(folder, **change):
    tensors, metadata = shipped()
    header = json.dumps(json.loads(metadata["flowcore"]) | change)
    save_file(tensors, folder / "odd.safetensors", metadata={"flowcore": header})


TEXT = b"This is a shopping list.\n" * 40
OTHER = {"conv_first.weight": torch.zeros(64, 3, 3, 3), "conv_first.bias": torch.zeros(64)}
REFUSED = {
    "a text": lambda folder: (folder / "notes.safetensors").write_bytes(TEXT),
    "a text as .pth": lambda folder: (folder / "notes.pth").write_bytes(TEXT),
    "nothing": lambda folder: (folder / "nothing.safetensors").write_bytes(b""),
    "nothing as .pt": lambda folder: (folder / "nothing.pt").write_bytes(b""),
    "a download that broke off": lambda folder: (folder / "half.safetensors").write_bytes(
        SHIPPED.read_bytes()[:5_000_000]
    ),
    "a torch file that broke off": lambda folder: _torch_file(folder, {"a": torch.zeros(1000)}, share=0.5),
    "a checkpoint of a trainer": lambda folder: _torch_file(folder, {"model": shipped()[0], "epoch": 7}),
    "another architecture": lambda folder: save_file(OTHER, folder / "esrgan.safetensors"),
    "another architecture as .pth": lambda folder: _torch_file(folder, OTHER),
    "an archive": _archive,
    "a picture": lambda folder: Image.new("RGB", (64, 64)).save(folder / "picture.safetensors", format="png"),
    "a missing tensor": _without_a_tensor,
    "an unknown architecture": lambda folder: _header(folder, architecture="warpflow"),
    "a newer format": lambda folder: _header(folder, format=99),
    "a model of a billion steps": lambda folder: _header(folder, config={"steps": 10**9}),
}


def test_files_that_are_no_flows_are_refused(host, folder):
    for write in REFUSED.values():
        before = set(folder.iterdir())
        write(folder)
        (file,) = set(folder.iterdir()) - before
        refusal(host, file.name)
        file.unlink()
