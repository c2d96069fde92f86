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
    "FlowcoreSample": [
        ("model", "FLOW_MODEL"),
        ("samples", "INT"),
        ("temperature", "FLOAT"),
        ("seed", "INT"),
        ("labels", "STRING"),
        ("width", "INT"),
        ("height", "INT"),
        ("temperatures", "STRING"),
        ("snap", "BOOLEAN"),
    ],
    "FlowcoreEncode": [
        ("image", "IMAGE"),
        ("model", "FLOW_MODEL"),
        ("fit", "COMBO"),
        ("label", "INT"),
        ("source", "IMAGE"),
        ("dequantize", "COMBO"),
    ],
    "FlowcoreDecode": [
        ("latents", "FLOW_LATENTS"),
        ("model", "FLOW_MODEL"),
        ("labels", "STRING"),
        ("source", "IMAGE"),
        ("temperature", "FLOAT"),
        ("snap", "BOOLEAN"),
    ],
    "FlowcoreInterpolate": [
        ("a", "FLOW_LATENTS"),
        ("b", "FLOW_LATENTS"),
        ("frames", "INT"),
        ("mode", "COMBO"),
        ("coarse_first", "FLOAT"),
        ("loop", "BOOLEAN"),
    ],
    "FlowcoreMixLatents": [
        ("a", "FLOW_LATENTS"),
        ("b", "FLOW_LATENTS"),
        ("coarse", "FLOAT"),
        ("fine", "FLOAT"),
        ("levels", "STRING"),
    ],
    "FlowcoreVaryLatents": [
        ("latents", "FLOW_LATENTS"),
        ("seed", "INT"),
        ("strength", "FLOAT"),
        ("temperature", "FLOAT"),
    ],
    "FlowcoreNormalizeLatents": [
        ("latents", "FLOW_LATENTS"),
        ("strength", "FLOAT"),
        ("per", "COMBO"),
        ("window", "INT"),
    ],
    "FlowcoreScaleLatents": [
        ("latents", "FLOW_LATENTS"),
        ("temperature", "FLOAT"),
        ("temperatures", "STRING"),
    ],
    "FlowcoreStyle": [
        ("latents", "FLOW_LATENTS"),
        ("model", "FLOW_MODEL"),
        ("bold", "FLOAT"),
        ("wide", "FLOAT"),
        ("slanted", "FLOAT"),
        ("messy", "FLOAT"),
        ("direction", "FLOW_LATENTS"),
        ("strength", "FLOAT"),
    ],
    "FlowcoreAttributeDirection": [
        ("model", "FLOW_MODEL"),
        ("with_attribute", "IMAGE"),
        ("without_attribute", "IMAGE"),
        ("fit", "COMBO"),
        ("label", "INT"),
    ],
    "FlowcoreSaveLatents": [("latents", "FLOW_LATENTS"), ("filename_prefix", "STRING")],
    "FlowcoreLoadLatents": [("file", "COMBO")],
    "FlowcoreScore": [
        ("image", "IMAGE"),
        ("model", "FLOW_MODEL"),
        ("dequantization", "COMBO"),
        ("samples", "INT"),
        ("seed", "INT"),
        ("fit", "COMBO"),
        ("label", "INT"),
        ("source", "IMAGE"),
    ],
    "FlowcoreColorize": [
        ("image", "IMAGE"),
        ("model", "FLOW_MODEL"),
        ("temperature", "FLOAT"),
        ("seed", "INT"),
        ("samples", "INT"),
        ("detail", "FLOAT"),
        ("saturation", "FLOAT"),
        ("working_size", "INT"),
        ("hints", "FLOW_HINTS"),
        ("hint_steps", "INT"),
        ("latents", "FLOW_LATENTS"),
        ("latents_strength", "FLOAT"),
        ("latents_levels", "INT"),
        ("frames", "COMBO"),
        ("carry", "FLOAT"),
        ("gamut", "COMBO"),
        ("precision", "COMBO"),
    ],
    "FlowcoreColorHints": [
        ("image", "IMAGE"),
        ("strokes", "IMAGE"),
        ("mask", "MASK"),
        ("points", "STRING"),
        ("radius", "INT"),
        ("palette", "STRING"),
        ("palette_image", "IMAGE"),
        ("lock", "BOOLEAN"),
        ("hints", "FLOW_HINTS"),
    ],
    "FlowcoreEncodeColor": [("image", "IMAGE"), ("model", "FLOW_MODEL"), ("working_size", "INT")],
    "FlowcoreApplyChroma": [
        ("luma_from", "IMAGE"),
        ("colors_from", "IMAGE"),
        ("saturation", "FLOAT"),
        ("gamut", "COMBO"),
    ],
    "FlowcoreTrain": [
        ("folder", "STRING"),
        ("recipe", "COMBO"),
        ("name", "STRING"),
        ("minutes", "FLOAT"),
        ("start", "COMBO"),
        ("restart", "BOOLEAN"),
    ],
}
OUTPUTS = {
    "FlowcoreLoadModel": [("model", "FLOW_MODEL"), ("info", "STRING")],
    "FlowcoreUpscale": [("images", "IMAGE")],
    "FlowcoreSample": [("images", "IMAGE"), ("latents", "FLOW_LATENTS")],
    "FlowcoreEncode": [("latents", "FLOW_LATENTS"), ("error", "FLOAT"), ("image", "IMAGE")],
    "FlowcoreDecode": [("images", "IMAGE")],
    "FlowcoreInterpolate": [("latents", "FLOW_LATENTS")],
    "FlowcoreMixLatents": [("latents", "FLOW_LATENTS")],
    "FlowcoreVaryLatents": [("latents", "FLOW_LATENTS")],
    "FlowcoreNormalizeLatents": [("latents", "FLOW_LATENTS")],
    "FlowcoreScaleLatents": [("latents", "FLOW_LATENTS")],
    "FlowcoreStyle": [("latents", "FLOW_LATENTS")],
    "FlowcoreAttributeDirection": [("direction", "FLOW_LATENTS")],
    "FlowcoreSaveLatents": [],
    "FlowcoreLoadLatents": [("latents", "FLOW_LATENTS"), ("info", "STRING")],
    "FlowcoreScore": [
        ("bits_per_dim", "FLOAT"),
        ("heat_map", "IMAGE"),
        ("mask", "MASK"),
        ("ranked", "IMAGE"),
        ("report", "STRING"),
    ],
    "FlowcoreColorize": [("images", "IMAGE")],
    "FlowcoreColorHints": [("hints", "FLOW_HINTS")],
    "FlowcoreEncodeColor": [("latents", "FLOW_LATENTS")],
    "FlowcoreApplyChroma": [("image", "IMAGE")],
    "FlowcoreTrain": [("model", "FLOW_MODEL"), ("sheet", "IMAGE"), ("curve", "IMAGE"), ("info", "STRING")],
}
# What an API prompt may leave out; all else is required.
OPTIONAL = {
    "FlowcoreUpscale": {"samples", "tile", "precision"},
    "FlowcoreSample": {"labels", "width", "height", "temperatures", "snap"},
    "FlowcoreEncode": {"fit", "label", "source", "dequantize"},
    "FlowcoreDecode": {"labels", "source", "temperature", "snap"},
    "FlowcoreInterpolate": {"coarse_first", "loop"},
    "FlowcoreMixLatents": {"levels"},
    "FlowcoreVaryLatents": {"temperature"},
    "FlowcoreNormalizeLatents": {"window"},
    "FlowcoreScaleLatents": {"temperatures"},
    "FlowcoreStyle": {"direction", "strength"},
    "FlowcoreAttributeDirection": {"fit", "label"},
    "FlowcoreScore": {"dequantization", "samples", "seed", "fit", "label", "source"},
    "FlowcoreColorize": {
        "samples",
        "detail",
        "saturation",
        "working_size",
        "hints",
        "hint_steps",
        "latents",
        "latents_strength",
        "latents_levels",
        "frames",
        "carry",
        "gamut",
        "precision",
    },
    "FlowcoreColorHints": {
        "strokes",
        "mask",
        "points",
        "radius",
        "palette",
        "palette_image",
        "lock",
        "hints",
    },
    "FlowcoreEncodeColor": {"working_size"},
    "FlowcoreApplyChroma": {"saturation", "gamut"},
    "FlowcoreTrain": {"start", "restart"},
}
# Whether a seed has a widget behind it for what comes after a run: it shifts the values of those that follow.
CONTROLS = {
    ("FlowcoreUpscale", "seed"): True,
    ("FlowcoreSample", "seed"): True,
    ("FlowcoreVaryLatents", "seed"): True,
    ("FlowcoreScore", "seed"): False,
    ("FlowcoreColorize", "seed"): True,
}


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
        assert list(zip(info["output_name"], info["output"], strict=True)) == OUTPUTS[name]
        assert set(info["input"].get("optional", {})) == OPTIONAL.get(name, set())
        for i, _, properties in inputs(info):
            assert properties.get("control_after_generate") == CONTROLS.get((name, i))


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
    shipped = sorted(file.stem for file in (comfyui.ROOT / "flowcore" / "weights").glob("*.safetensors"))
    assert options[: len(shipped)] == shipped
    assert properties["default"] == "srflow-x4"
    assert "elsewhere.safetensors" in options
    assert "notes.txt" not in options


def test_help_pages_are_served_and_name_every_input(host):
    for name, listed in INPUTS.items():
        page = host.get(f"/extensions/{comfyui.PACK_NAME}/docs/{name}.md").decode()
        for input_name, _ in listed:
            assert f"**{input_name}**" in page
