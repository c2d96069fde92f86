"""A shipped file that is missing, damaged or only a pointer of Git LFS costs that model, not the pack."""

import json
import shutil

import comfyui
import pytest
from talk import Host, graph, loader, options, refusal, shows

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 158000000\n"
GOLDEN = json.loads((comfyui.ROOT / "tests" / "golden" / "object_info.json").read_text())


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The newest ComfyUI with a copy of the pack, most of whose weights are damaged."""
    pack, base = tmp_path_factory.mktemp("copy") / "flowcore", tmp_path_factory.mktemp("comfyui")
    pack.mkdir()
    for entry in ("__init__.py", "prestartup_script.py", "pyproject.toml"):
        shutil.copy(comfyui.ROOT / entry, pack / entry)
    for folder in ("nodes", "flowcore"):
        shutil.copytree(comfyui.ROOT / folder, pack / folder, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    for folder in ("locales", "web", "subgraphs", "workflows"):
        (pack / folder).symlink_to(comfyui.ROOT / folder, target_is_directory=True)
    weights = pack / "flowcore" / "weights"
    weights.mkdir()
    for file in (comfyui.ROOT / "flowcore" / "weights").iterdir():
        (weights / file.name).symlink_to(file)
    for name, content in {"srflow-x4": POINTER, "glow-photos": b"\x10", "face-finder": POINTER}.items():
        (weights / f"{name}.safetensors").unlink()
        (weights / f"{name}.safetensors").write_bytes(content)
    for name in ("srflow-x4-photo", "color-photos-memory"):
        (weights / f"{name}.safetensors").unlink()
    with comfyui.running(comfyui.tree(), base, pack=pack) as server:
        yield Host(server)


def look(name):
    return graph(model=loader(name), **shows(show="model.1"))


def test_every_node_registers(host):
    registered = {name for name in host.get_json("/object_info") if name.startswith("Flowcore")}
    assert registered == {name for name in GOLDEN if name.startswith("Flowcore")}


def test_other_models_are_offered_and_load(host):
    offered = options(host.info("FlowcoreLoadModel"), "model_name")
    assert "srflow-x8" in offered
    assert "srflow-x4-photo" not in offered
    assert "srflow" in host.outputs(look("srflow-x8"))["show"]["text"][0]


def test_a_damaged_model_says_how_to_fetch_it(host):
    for name in ("srflow-x4", "glow-photos"):
        refusal(host, look(name), f"The file of the shipped model {name} is damaged", "git lfs pull")
