"""The pack as the host sees it: it loads, its schemas are what saved workflows rely on, its pages are served."""

from __future__ import annotations

import re

import comfyui
from talk import inputs, newer

# Saved workflows hold values by position, scripts by name: append to these lists, never change them.
INPUTS = {
    "FlowcoreLoadModel": [("model_name", "COMBO")],
    "FlowcoreUpscale": [
        ("image", "IMAGE"),
        ("model", "FLOW_MODEL"),
        ("temperature", "FLOAT"),
        ("seed", "INT"),
        ("samples", "INT"),
        ("tile", "INT"),
        ("precision", "COMBO"),
    ],
}
OUTPUTS = {"FlowcoreLoadModel": ["FLOW_MODEL", "STRING"], "FlowcoreUpscale": ["IMAGE"]}


def test_the_pack_loads_quickly_and_without_complaint(host):
    console = host.server.console()
    assert "IMPORT FAILED): " not in console
    (seconds,) = re.findall(rf"(\d+\.\d+) seconds: .*{comfyui.PACK_NAME}", console)
    assert float(seconds) < 3.0
    assert ("flowcore needs ComfyUI >= 0.20.0" in console) == (not newer(host.version, "0.20.0"))


def test_ids_inputs_and_outputs_are_the_published_ones(host):
    every = host.get_json("/object_info")
    ours = {name: info for name, info in every.items() if info["python_module"].endswith(comfyui.PACK_NAME)}
    assert set(ours) == set(INPUTS)
    for name, info in ours.items():
        kinds = [(i, "COMBO" if isinstance(kind, list) else kind) for i, kind, _ in inputs(info)]
        assert kinds == INPUTS[name]
        assert info["output"] == OUTPUTS[name]


def test_every_input_has_a_tooltip_and_every_node_a_place_in_the_menu(host):
    for name in INPUTS:
        info = host.get_json(f"/object_info/{name}")[name]
        assert info["category"].startswith("flowcore/")
        assert info["display_name"] != name
        assert info["description"]
        assert all(properties.get("tooltip") for _, _, properties in inputs(info))
        assert all(info["output_tooltips"])
        if newer(host.version, "0.11.0"):
            assert info["search_aliases"]


def test_temperature_is_a_gradient_slider_where_the_host_has_one(host):
    info = host.get_json("/object_info/FlowcoreUpscale")["FlowcoreUpscale"]
    temperature = info["input"]["required"]["temperature"][1]
    assert (temperature["default"], temperature["min"], temperature["max"], temperature["step"]) == (
        0.8,
        0.0,
        1.5,
        0.01,
    )
    if newer(host.version, "0.15.0"):
        assert temperature["display"] == "gradientslider"
        cold, *_, hot = (stop["color"] for stop in temperature["gradient_stops"])
        assert cold[2] > cold[0]
        assert hot[0] > hot[2]
    else:
        assert temperature["display"] == "slider"


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
    _, kind, properties = next(inputs(info))
    options = kind if isinstance(kind, list) else properties["options"]
    assert options[0] == "srflow-x4"
    assert "elsewhere.safetensors" in options
    assert "notes.txt" not in options


def test_help_pages_are_served_and_name_every_input(host):
    for name, listed in INPUTS.items():
        page = host.get(f"/extensions/{comfyui.PACK_NAME}/docs/{name}.md").decode()
        for input_name, _ in listed:
            assert f"**{input_name}**" in page
