"""What installing the pack does to a ComfyUI: nothing but add it. No server needed."""

from __future__ import annotations

import ast
import sys

import comfyui

ROOT = comfyui.ROOT
# What every ComfyUI brings along; the pack has no requirements of its own. (tomllib is in Python from 3.11 on.)
BROUGHT = {"PIL", "kornia", "numpy", "psutil", "safetensors", "torch", "tqdm", "typing_extensions"} | {"tomli"}
FILES = sorted((ROOT / "flowcore").rglob("*.py"))


def test_flowcore_needs_only_what_the_host_brings():
    needed = set()
    for node in (node for file in FILES for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            needed |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            needed.add(node.module.split(".")[0])
    assert needed - BROUGHT - sys.stdlib_module_names == set()
    assert needed >= {"PIL", "kornia", "torch"}


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
