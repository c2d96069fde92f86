"""The pack as the host sees it: it loads, its nodes describe themselves, its pages are served."""

from __future__ import annotations

import json
import re

import comfyui
from talk import inputs, options

# test_for_ever.py compares the live schemas with it.
GOLDEN = json.loads((comfyui.ROOT / "tests" / "golden" / "object_info.json").read_text())


def test_the_pack_loads_without_complaint(host):
    console = host.server.console()
    assert "IMPORT FAILED): " not in console
    (seconds,) = re.findall(rf"(\d+\.\d+) seconds: .*{comfyui.PACK_NAME}", console)
    print(f"ComfyUI {host.version} loads the pack in {seconds} s")  # noqa: T201
    assert "flowcore needs ComfyUI" not in console


def test_every_node_has_a_place_in_the_menu(host):
    for name in GOLDEN:
        info = host.get_json(f"/object_info/{name}")[name]
        assert info["category"].startswith("flowcore/")
        assert info["search_aliases"]
        essential = name in ("FlowcoreUpscale", "FlowcoreColorize")
        assert info["essentials_category"] == ("Image Tools" if essential else None)


def test_temperature_is_a_gradient_slider(host):
    info = host.get_json("/object_info/FlowcoreUpscale")["FlowcoreUpscale"]
    temperature = info["input"]["required"]["temperature"][1]
    own = -0.1  # the model's own, at the left end
    assert [temperature[key] for key in ("default", "min", "max", "step")] == [own, own, 1.5, 0.01]
    assert temperature["display"] == "gradientslider"
    _, _, cold, *_, hot = (stop["color"] for stop in temperature["gradient_stops"])  # gray before 0
    assert cold[2] > cold[0]
    assert hot[0] > hot[2]


def test_shipped_models_come_first_and_files_of_all_folders_follow(host):
    other = host.server.extra_flows / "elsewhere.safetensors"
    notes = host.server.base / "models" / "flows" / "notes.txt"
    other.write_bytes(b"")
    notes.write_text("not offered")
    try:
        info = host.get_json("/object_info/FlowcoreLoadModel")["FlowcoreLoadModel"]
    finally:
        other.unlink()
        notes.unlink()
    listed = options(info, "model_name")
    _, _, properties = next(inputs(info))
    shipped = sorted(file.stem for file in (comfyui.ROOT / "flowcore" / "weights").glob("*.safetensors"))
    shipped.remove("face-finder")  # a network that no node loads by name
    assert listed[: len(shipped)] == shipped
    assert properties["default"] == "srflow-x4"
    assert "elsewhere.safetensors" in listed
    assert "notes.txt" not in listed


def test_help_pages_are_served_and_name_every_input_and_output(host):
    for name, kept in GOLDEN.items():
        page = host.get(f"/extensions/{comfyui.PACK_NAME}/docs/{name}.md").decode()
        words = host.get_json("/i18n")["en"]["nodeDefs"][name]
        for described in kept["inputs"]:
            label = words["inputs"][described["name"]]["name"]
            assert f"**{label}**" in page
            assert label == described["name"] or f"(`{described['name']}`)" in page
        outputs = page.partition("\n## Output")[2].partition("\n## ")[0]
        for described in words["outputs"].values():
            assert f"**{described['name']}**" in outputs
