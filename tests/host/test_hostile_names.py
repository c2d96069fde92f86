"""Names in prompts: none leads out of the folders that it is for, and each that tries is answered by a sentence."""

from __future__ import annotations

import os

import comfyui
import pytest
from client import RunError
from small_flows import flow
from talk import graph

from flowcore.checkpoints.latents_file import model_sha256, save_latents
from flowcore.prior import sample_latents

GLOW = "small-glow.safetensors"
SHIPPED = comfyui.ROOT / "flowcore" / "weights" / "glow-photos.safetensors"


def everything(base):
    """All files below the server's folder and beside it, with sizes; not what is written there for passing."""
    passing = {"user", "temp"}
    return {
        str(path): path.lstat().st_size
        for path in base.parent.rglob("*")
        if path.name != "console.log"
        and passing.isdisjoint(path.relative_to(base.parent).parts[:2])
        and not path.is_dir()
    }


@pytest.fixture
def outside(host):
    """A folder beside the server's, with a model in it."""
    folder = host.server.base.parent / "outside"
    folder.mkdir(exist_ok=True)
    (folder / "secret.safetensors").write_bytes(SHIPPED.read_bytes())
    yield folder
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()


def refusal(host, workflow):
    """What the server says, in the prompt's errors or while running; and it says it in sentences."""
    with pytest.raises(RunError) as refused:
        host.run(workflow)
    said = str(refused.value)
    assert len(said) < 3000
    assert "Traceback" not in said
    assert said.rstrip().endswith((".", "`"))
    return said


def look(name):
    return graph(model=("FlowcoreLoadModel", {"model_name": name}), show=("PreviewAny", {"source": "model.1"}))


OUTSIDE = ["../../../outside/secret", "a/../../../../outside/secret", r"..\..\..\outside\secret", "OUTSIDE/secret"]
NOWHERE = ["/etc/passwd", "C:/win.ini", "~/x", "file:///x", "a\0b", "x" * 300, "x/" * 3000, "", "..", "/", "\ud800"]
MODELS = [f"{name}.safetensors" for name in OUTSIDE] + NOWHERE + ["srflow-x4/../../extra_model_paths.yaml"]


def test_a_model_name_cannot_leave_the_model_folders(host, outside):
    for name in MODELS:
        assert "there is no flow model" in refusal(host, look(name.replace("OUTSIDE", str(outside)))), ascii(name)[:30]


def test_a_link_in_the_models_folder_is_followed(host, outside):
    """Models on another disk: the person has put the link there."""
    link = host.server.base / "models" / "flows" / "linked.safetensors"
    link.symlink_to(outside / "secret.safetensors")
    try:
        assert "architecture: glow" in host.run(look("linked.safetensors"))["outputs"]["show"]["text"][0]
    finally:
        link.unlink()


@pytest.fixture
def latents(outside):
    made = flow("small-glow")
    drawn = sample_latents(made.latent_shapes(*made.image_size), 1, 1.0, 0)
    path = outside / "secret.latents.safetensors"
    save_latents(path, drawn, model=model_sha256(made), architecture="glow")
    return path


def load(name):
    return graph(load=("FlowcoreLoadLatents", {"file": name}), show=("PreviewAny", {"source": "load.1"}))


SECRET = ["../../outside/secret", "../output/../../outside/secret", "OUTSIDE/secret"]
LATENTS = [f"{name}.latents.safetensors{end}" for name in SECRET for end in ("", " [output]")]


def test_a_latents_name_cannot_leave_the_input_folder(host, latents):
    link = host.server.base / "input" / "link.safetensors"
    link.symlink_to(latents)  # the host's own loaders do not follow it, either
    try:
        for name in [*LATENTS, "a\0b", "x" * 300, "", " [output]", "link.safetensors"]:
            said = refusal(host, load(name.replace("OUTSIDE", str(latents.parent))))
            assert "there is no file" in said, ascii(name)[:30]
            assert "input/latents" in said
    finally:
        link.unlink()


def save(prefix):
    return graph(
        model=("FlowcoreLoadModel", {"model_name": GLOW}),
        sample=("FlowcoreSample", {"model": "model.0", "samples": 1, "temperature": 1.0, "seed": 1}),
        save=("FlowcoreSaveLatents", {"latents": "sample.1", "filename_prefix": prefix}),
    )


OUT = ["../x", "a/../../x", "OUTSIDE/x", "/tmp/x", "link/x", "link/../../x", "link/deeper/x", "a\0b", "..", "\ud800"]


@pytest.fixture
def led_out(host, outside):
    """A link in the output folder that leads out of it, and a file where a folder might be wanted."""
    output = host.server.base / "output"
    (output / "link").symlink_to(outside, target_is_directory=True)
    (output / "taken").write_text("a file")
    yield output
    (output / "link").unlink()
    (output / "taken").unlink()


def test_nothing_is_saved_outside_of_the_output_folder(host, flows, led_out, outside):
    before = everything(host.server.base)
    for prefix in OUT:
        said = refusal(host, save(prefix.replace("OUTSIDE", str(outside))))
        assert said.startswith("FlowcoreSaveLatents: filename_prefix")
        assert "must stay inside the output folder" in said or prefix == "\ud800"
        assert everything(host.server.base) == before, ascii(prefix)
        assert not os.path.lexists("/tmp/x_00001_.safetensors")


def test_an_impossible_file_name_raises_a_readable_error(host, flows, led_out):
    before = everything(host.server.base)
    for prefix in ("x" * 300, "x" * 300 + "/y", "taken/y"):
        assert "save" in refusal(host, save(prefix)).lower()
        assert everything(host.server.base) == before, prefix[-5:]


ODD = ["a/../b", "deep/er/x", "C:x", "%date:yyyy-MM-dd%", "%date:%", "%", "%nothing%", "über", "a b", "....", "x" * 200]


def test_odd_names_inside_the_output_folder_are_fine(host, flows):
    for prefix in ODD:
        before = everything(host.server.base)
        (record,) = host.run(save(prefix))["outputs"]["save"]["latents"]
        new = everything(host.server.base).keys() - before.keys()
        path = host.server.base / "output" / record["subfolder"] / record["filename"]
        assert {os.path.realpath(name) for name in new} == {os.path.realpath(path)}, prefix
        path.unlink()
