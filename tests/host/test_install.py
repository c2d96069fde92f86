"""What installing the pack does to a ComfyUI: nothing but add it. No server needed."""

from __future__ import annotations

import ast
import sys

import comfyui
import pytest

ROOT = comfyui.ROOT
# What every ComfyUI brings along; the pack has no requirements of its own. (tomllib is in Python from 3.11 on.)
BROUGHT = {"PIL", "kornia", "numpy", "psutil", "safetensors", "torch", "tqdm", "typing_extensions"} | {"tomli"}
FILES = sorted((ROOT / "flowcore").rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_flowcore_needs_only_what_the_host_brings(file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for name in names:
            assert name.split(".")[0] in BROUGHT | sys.stdlib_module_names


def test_installing_the_pack_installs_nothing_else():
    assert (ROOT / "requirements.txt").read_text() == ""
    assert "\ndependencies = []\n" in (ROOT / "pyproject.toml").read_text()
    assert not (ROOT / "install.py").exists()


def test_the_entry_point_is_not_hidden_by_node_class_mappings():
    # With this name, even empty, the host never calls comfy_entrypoint.
    assert "NODE_CLASS_MAPPINGS =" not in (ROOT / "__init__.py").read_text()


def test_no_other_folder_of_workflows_hides_ours():
    # The host serves templates from the first of these names that it finds.
    for name in ("example_workflows", "example", "examples", "workflow"):
        assert not (ROOT / name).exists(), name
