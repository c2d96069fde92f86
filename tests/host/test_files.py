"""Model files, and names in prompts: where they are found, and how others are refused, without harm to the server."""

import os
import shutil

import comfyui
import pytest
import torch
from client import RunError
from PIL import ImageChops
from safetensors.torch import save_file
from small_flows import flow
from talk import PLUG_INS, graph, loader, shows, upscale

from flowcore.flows.prior import sample_latents
from flowcore.models.identity import model_sha256
from flowcore.models.latents_file import save_latents

SHIPPED = comfyui.ROOT / "flowcore" / "weights" / "srflow-x4.safetensors"


@pytest.fixture
def folder(host):
    """The server's models/flows, emptied afterwards of all but the models of its plug-ins."""
    folder = host.server.base / "models" / "flows"
    yield folder
    for entry in [*folder.iterdir(), *host.server.extra_flows.iterdir()]:
        if entry.stem not in PLUG_INS:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def look(name):
    return graph(model=loader(name), **shows(show="model.1"))


def refusal(host, workflow):
    """The error of the server, in the prompt's errors or while running; it says it in sentences."""
    with pytest.raises(RunError) as refused:
        host.run(workflow)
    said = str(refused.value)
    assert len(said) < 3000
    assert "Traceback" not in said
    assert said.rstrip().endswith((".", "`"))
    return refused.value


# --- model files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["models", "sub-folder", "extra_model_paths"])
def test_a_file_works_wherever_the_host_looks(host, folder, photo, place):
    name = "four/mine.safetensors" if place == "sub-folder" else "mine.safetensors"
    target = (host.server.extra_flows if place == "extra_model_paths" else folder) / name
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(SHIPPED, target)
    (own,) = host.images(upscale(photo=photo, model_name=name, seed=3))
    (ours,) = host.images(upscale(photo=photo, seed=3))
    assert ImageChops.difference(own, ours).getbbox() is None


def test_a_missing_file_is_named_with_the_folder_it_belongs_into(host):
    with pytest.raises(RunError) as refused:
        host.queue(upscale(model_name="nope.safetensors"))
    for words in ("nope.safetensors", str(host.server.base / "models" / "flows"), "srflow-x4"):
        assert words in str(refused.value)


def refused(host, name):
    """A sentence of flowcore, not a key error from the depths; and the server lives on, and so does the pack."""
    error = refusal(host, look(name))
    assert error.detail["exception_type"].endswith("CheckpointError")
    assert name in str(error)
    assert "srflow" in host.outputs(look("srflow-x4"))["show"]["text"][0]


OTHER = {"conv_first.weight": torch.zeros(64, 3, 3, 3), "conv_first.bias": torch.zeros(64)}
REFUSED = {  # tests/core/test_hostile_files.py has many more
    "half.safetensors": lambda path: path.write_bytes(SHIPPED.read_bytes()[:5_000_000]),
    "esrgan.safetensors": lambda path: save_file(OTHER, path),
    "esrgan.pth": lambda path: torch.save(OTHER, path),
}


def test_files_that_are_no_flows_are_refused(host, folder):
    for name, write in REFUSED.items():
        write(folder / name)
        refused(host, name)


# --- names: none leads out of the folders that it is for --------------------------------------------------------------


def everything(base):
    """All files below the server's folder and beside it, with sizes; not what is written there for passing."""
    found = {path: path.relative_to(base.parent).parts for path in base.parent.rglob("*") if not path.is_dir()}
    passing = {"user", "temp", "console.log"}
    return {str(path): path.lstat().st_size for path, parts in found.items() if passing.isdisjoint(parts[:2])}


@pytest.fixture
def outside(host):
    """A folder beside the server's, with a model and latents in it."""
    folder, made = host.server.base.parent / "outside", flow("small-glow")
    folder.mkdir(exist_ok=True)
    shutil.copyfile(SHIPPED.with_stem("glow-photos"), folder / "secret.safetensors")
    drawn = sample_latents(made.latent_shapes(*made.image_size), 1, 1.0, 0)
    save_latents(folder / "secret.latents.safetensors", drawn, model=model_sha256(made), architecture="glow")
    yield folder
    shutil.rmtree(folder)


OUTSIDE = ["../../../outside/secret", "a/../../../../outside/secret", r"..\..\..\outside\secret", "OUTSIDE/secret"]
NOWHERE = ["/etc/passwd", "C:/win.ini", "~/x", "file:///x", "a\0b", "x" * 300, "x/" * 3000, "", "..", "/", "\ud800"]
MODELS = [f"{name}.safetensors" for name in OUTSIDE] + NOWHERE + ["srflow-x4/../../extra_model_paths.yaml"]


def test_a_model_name_cannot_leave_the_model_folders_but_by_a_link(host, outside):
    for name in MODELS:
        assert "there is no flow model" in str(refusal(host, look(name.replace("OUTSIDE", str(outside))))), ascii(name)[
            :30
        ]
    link = host.server.base / "models" / "flows" / "linked.safetensors"
    link.symlink_to(outside / "secret.safetensors")  # on another disk: the person has put the link there
    try:
        assert "architecture: glow" in host.outputs(look(link.name))["show"]["text"][0]
    finally:
        link.unlink()


SECRET = ["../../outside/secret", "../output/../../outside/secret", "OUTSIDE/secret"]
LATENTS = [f"{name}.latents.safetensors{end}" for name in SECRET for end in ("", " [output]")]


def test_a_latents_name_cannot_leave_the_input_folder(host, outside):
    link = host.server.base / "input" / "link.safetensors"
    link.symlink_to(outside / "secret.latents.safetensors")  # the host's own loaders do not follow it, either
    try:
        for name in [*LATENTS, "a\0b", "x" * 300, "", " [output]", link.name]:
            load = ("FlowcoreLoadLatents", {"file": name.replace("OUTSIDE", str(outside))})
            said = str(refusal(host, graph(load=load, **shows(show="load.1"))))
            assert "there is no file" in said, ascii(name)[:30]
            assert "input/latents" in said
    finally:
        link.unlink()


def saving(prefix):
    return graph(
        model=loader("small-glow.safetensors"),
        sample=("FlowcoreSample", {"model": "model.0", "samples": 1, "temperature": 1.0, "seed": 1}),
        save=("FlowcoreSaveLatents", {"latents": "sample.1", "filename_prefix": prefix}),
    )


OUT = ["../x", "a/../../x", "OUTSIDE/x", "/tmp/x", "link/x", "link/../../x", "link/deeper/x", "a\0b", "..", "\ud800"]
IMPOSSIBLE = ["x" * 300, "x" * 300 + "/y", "taken/y"]
ODD = ["a/../b", "deep/er/x", "C:x", "%date:yyyy-MM-dd%", "%date:%", "%", "%nothing%", "über", "a b", "....", "x" * 200]


def test_nothing_is_saved_outside_of_the_output_folder_and_odd_names_inside_are_fine(host, flows, outside):
    output = host.server.base / "output"
    (output / "link").symlink_to(outside, target_is_directory=True)
    (output / "taken").write_text("a file")
    before = everything(host.server.base)
    try:
        for prefix in OUT + IMPOSSIBLE:
            said = str(refusal(host, saving(prefix.replace("OUTSIDE", str(outside)))))
            assert prefix in IMPOSSIBLE or said.startswith("FlowcoreSaveLatents: filename_prefix")
            assert "must stay inside the output folder" in said or prefix in (*IMPOSSIBLE, "\ud800")
            assert "save" in said.lower()
            assert everything(host.server.base) == before, ascii(prefix)
            assert not os.path.lexists("/tmp/x_00001_.safetensors")
    finally:
        (output / "link").unlink()
        (output / "taken").unlink()
    for prefix in ODD:
        before = everything(host.server.base)
        (record,) = host.outputs(saving(prefix))["save"]["latents"]
        path = output / record["subfolder"] / record["filename"]
        new = everything(host.server.base).keys() - before.keys()
        assert {os.path.realpath(name) for name in new} == {os.path.realpath(path)}, prefix
        path.unlink()
