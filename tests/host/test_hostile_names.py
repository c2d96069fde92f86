"""Names in prompts: none leads out of the folders that it is for, and each that tries is answered by a sentence."""

from __future__ import annotations

import os

import comfyui
import pytest
from client import RunError
from small_flows import flow
from talk import graph, loader, shows

from flowcore.checkpoints.latents_file import model_sha256, save_latents
from flowcore.prior import sample_latents

SHIPPED = comfyui.ROOT / "flowcore" / "weights" / "glow-photos.safetensors"


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
    (folder / "secret.safetensors").write_bytes(SHIPPED.read_bytes())
    drawn = sample_latents(made.latent_shapes(*made.image_size), 1, 1.0, 0)
    save_latents(folder / "secret.latents.safetensors", drawn, model=model_sha256(made), architecture="glow")
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
    return graph(model=loader(name), **shows(show="model.1"))


OUTSIDE = ["../../../outside/secret", "a/../../../../outside/secret", r"..\..\..\outside\secret", "OUTSIDE/secret"]
NOWHERE = ["/etc/passwd", "C:/win.ini", "~/x", "file:///x", "a\0b", "x" * 300, "x/" * 3000, "", "..", "/", "\ud800"]
MODELS = [f"{name}.safetensors" for name in OUTSIDE] + NOWHERE + ["srflow-x4/../../extra_model_paths.yaml"]


def test_a_model_name_cannot_leave_the_model_folders_but_by_a_link(host, outside):
    for name in MODELS:
        assert "there is no flow model" in refusal(host, look(name.replace("OUTSIDE", str(outside)))), ascii(name)[:30]
    link = host.server.base / "models" / "flows" / "linked.safetensors"
    link.symlink_to(outside / "secret.safetensors")  # on another disk: the person has put the link there
    try:
        assert "architecture: glow" in host.run(look(link.name))["outputs"]["show"]["text"][0]
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
            said = refusal(host, graph(load=load, **shows(show="load.1")))
            assert "there is no file" in said, ascii(name)[:30]
            assert "input/latents" in said
    finally:
        link.unlink()


def save(prefix):
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
            said = refusal(host, save(prefix.replace("OUTSIDE", str(outside))))
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
        (record,) = host.run(save(prefix))["outputs"]["save"]["latents"]
        path = output / record["subfolder"] / record["filename"]
        new = everything(host.server.base).keys() - before.keys()
        assert {os.path.realpath(name) for name in new} == {os.path.realpath(path)}, prefix
        path.unlink()
