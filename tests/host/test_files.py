"""Model files: where they are found, and how those that are not flows are refused, without harm to the server."""

from __future__ import annotations

import os
import shutil

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


OTHER = {"conv_first.weight": torch.zeros(64, 3, 3, 3), "conv_first.bias": torch.zeros(64)}
REFUSED = {  # tests/core/test_hostile_files.py has many more
    "notes.safetensors": lambda path: path.write_text("This is a shopping list.\n" * 40),
    "half.safetensors": lambda path: path.write_bytes(SHIPPED.read_bytes()[:5_000_000]),
    "esrgan.safetensors": lambda path: save_file(OTHER, path),
    "esrgan.pth": lambda path: torch.save(OTHER, path),
    "picture.safetensors": lambda path: Image.new("RGB", (64, 64)).save(path, format="png"),
}


def test_files_that_are_no_flows_are_refused(host, folder):
    for name, write in REFUSED.items():
        write(folder / name)
        refusal(host, name)
