"""Flow Colorize and its companions over the API: colors drawn and asked for, exact luma, and refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from small_flows import flow
from talk import graph, loader, noise, picture, pixels, refusal, report

import flowcore
from flowcore.latents import interpolate
from flowcore.tasks.hints import Hints, combine_hints, hints_from_points, hints_from_strokes, palette_from, parse_points

CLOSE = 1e-5
COLOR = "small-color.safetensors"
SIDES = {"height": 32, "width": 48}
GRAY = picture(fill="noise", channels=1, **SIDES)
POINTS = "10, 10, #c04020\n40, 8, #2040c0"


def coloring(image=GRAY, model=COLOR, hints=None, latents=None, **inputs):
    """Color, and report on it; `hints` are the inputs of Flow Color Hints, `latents` those of Flow Encode Color."""
    workflow = graph(
        model=loader(model),
        image=image,
        color=("FlowcoreColorize", {"image": "image.0", "model": "model.0", "temperature": 1.0, "seed": 5} | inputs),
        report=report("color.0"),
    )
    if hints is not None:
        workflow = graph(workflow, hints=("FlowcoreColorHints", {"image": "image.0", **hints}))
        workflow["color"]["inputs"]["hints"] = ["hints", 0]
    if latents is not None:
        workflow = graph(workflow, encode=("FlowcoreEncodeColor", {"model": "model.0", **latents}))
        workflow["color"]["inputs"]["latents"] = ["encode", 0]
    return workflow


def colored(host, workflow):
    return pixels(host.run(workflow)["outputs"]["report"])


def apart(one, other):
    return float((one - other).abs().max())


def known(image=None, samples=1, **options):
    """Color in Python with the same defaults, (B, C, H, W)."""
    asked = {"temperature": 1.0, "detail": 0.3, "seed": 5} | options
    image = noise(1, 1, 32, 48) if image is None else image
    return flowcore.colorize(flow("small-color"), image, samples=samples, **asked)


WIDGETS = [{"samples": 4}, {"temperature": 0.0, "detail": 0.0}, {"detail": 1.2}, {"saturation": 0.0}, {"vivid": 1.6}]
WIDGETS += [{"saturation": 2.5, "gamut": "clip"}, {"working_size": 32}, {"seed": 2**64 - 2}, {"cast": -1.0}]
WIDGETS += [{"cast": -0.02}, {"cast": -0.1}]  # a key once took them for the model's own


@pytest.mark.parametrize("options", WIDGETS)
def test_every_widget_reaches_the_task(host, flows, options):
    made = colored(host, coloring(**options))
    assert apart(made, known(**options)) < CLOSE
    assert options == {"samples": 4} or apart(made, known()) > 1 / 255


def test_low_precision_changes_the_colors_slightly(host, flows):
    wide, narrow = (colored(host, coloring(precision=p)) for p in ("float32", "bfloat16"))
    assert 0 < (wide - narrow).abs().mean() < 0.02


MILD, MIDDLE = picture(fill="0.5", **SIDES), torch.full((1, 3, 32, 48), 0.5)


def test_points_are_followed_in_inference_mode(host, flows):
    hints = {"points": POINTS, "radius": 6}
    outputs = host.run(coloring(MILD, samples=2, hints=hints, hint_steps=10))["outputs"]
    made = pixels(outputs["report"])
    assert (made[0] - made[1]).abs().mean() > 5 / 255
    wanted = hints_from_points(parse_points(POINTS), (32, 48), radius=6)
    assert apart(made, known(MIDDLE, samples=2, hints=wanted, hint_steps=10)) < 1e-3
    assert "hints cover" in outputs["hints"]["text"][0]


def test_hints_of_every_kind_reach_the_task(host, flows):
    size, one = (32, 48), "10, 10, #c04020"
    strokes = Image.new("RGB", (24, 16), "gray")
    strokes.paste((200, 60, 20), (2, 2, 10, 10))
    rgb, painted = torch.from_numpy(np.array(strokes)).permute(2, 0, 1)[None] / 255, noise(1, 3, *size, number=7)
    over = {"image": "image.0", "points": "10, 10, #2040c0; 40, 20, #20c040", "radius": 4, "palette": "#888888"}
    below = hints_from_points(parse_points(over["points"]), size, radius=4)
    below = dataclasses.replace(below, palette=palette_from(["#888888"]))
    nodes = {
        "strokes": ("LoadImage", {"image": host.put("strokes.png", strokes)}),
        "painted": picture(fill="noise7", **SIDES),
        "mask": ("SolidMask", {"value": 1.0, "width": 12, "height": 8}),
        "palette": picture(fill="noise3", height=16, width=16),
        "earlier": ("FlowcoreColorHints", over),
    }
    for inputs, wanted, note in (
        ({"points": POINTS, "radius": 6}, hints_from_points(parse_points(POINTS), size, radius=6), "hints cover"),
        ({"strokes": ["strokes", 0], "lock": True}, hints_from_strokes(rgb, size=size, lock=True), "locked"),
        (
            {"strokes": ["painted", 0], "mask": ["mask", 0]},
            hints_from_strokes(painted, torch.ones(1, 1, 8, 12), size=size),
            "cover 100 %",
        ),
        ({"palette": "#c04020, 2040c0;#8a8"}, Hints(palette=palette_from(["#c04020", "#2040c0", "#88aa88"])), ""),
        ({"palette_image": ["palette", 0]}, Hints(palette=palette_from(image=noise(1, 3, 16, 16, number=3))), ""),
        (
            {"points": one, "radius": 4, "hints": ["earlier", 0]},
            combine_hints(hints_from_points(parse_points(one), size, radius=4), below),
            "",
        ),
        ({}, None, "no hints yet"),
    ):
        outputs = host.run(graph(coloring(MILD, hints=inputs, hint_steps=0), **nodes))["outputs"]
        expected = known(MIDDLE, hints=wanted, hint_steps=0)
        assert apart(pixels(outputs["report"]), expected) < CLOSE, inputs
        assert wanted is None or apart(expected, known(MIDDLE)) > 1e-3, inputs
        assert note in " ".join(outputs["hints"].get("text", [])), inputs
    masked = graph(coloring(MILD, hints={"mask": ["mask", 0]}), **nodes)
    assert "mask is ignored" in host.run(masked)["outputs"]["hints"]["text"][0]
    both = {"palette": "#c04020", "palette_image": ["palette", 0]}
    refusal(host, graph(coloring(hints=both), **nodes), "one of the two")


def test_invalid_inputs_raise_a_readable_error(host, flows):
    for inputs, words in (
        ({"model": "small-glow.safetensors"}, ["colorizer", "color-photos", "glow"]),
        ({"model": "srflow-x4"}, ["colorizer", "srflow"]),
        ({"image": MILD, "model": "small-glow.safetensors", "latents": {"image": ["image", 0]}}, ["colorizer", "glow"]),
        ({"working_size": 8}, ["working_size", "16", "8"]),
        ({"hints": {"points": "48, 10, #c04020"}}, ["Hint 1", "x 48", "48x32"]),
    ):
        refusal(host, coloring(**inputs), *words)
    latents = {"image": ["image", 0], "model": ["other", 0]}
    workflow = coloring(picture(fill="noise", **SIDES), latents=latents)
    refusal(host, graph(workflow, other=loader("other-color.safetensors")), "other-color", "small-color")
    refusal(host, remembering(), "connect images, or name a folder")
    refusal(host, remembering(folder="../.."), "leads out of")


@pytest.mark.parametrize("options", [{}, {"latents_strength": 0.5, "latents_levels": 1}, {"latents_strength": 0.0}])
def test_a_palette_is_transferred(host, flows, options):
    workflow = coloring(latents={"image": ["other", 0]}, samples=2, **options)
    made = colored(host, graph(workflow, other=picture(fill="noise4", height=40, width=40)))
    names = {"latents_strength": "strength", "latents_levels": "levels"}
    asked = {"temperature": 1.0, "detail": 0.3, "seed": 5, "samples": 2} | {names[k]: v for k, v in options.items()}
    images = noise(1, 1, 32, 48), noise(1, 3, 40, 40, number=4)
    assert apart(made, flowcore.transfer_palette(flow("small-color"), *images, **asked)) < CLOSE


def test_latents_of_colors_are_walked_and_kept_like_others(host, flows):
    gray = picture(fill="noise", channels=1, height=24, width=32)
    workflow = graph(
        coloring(gray, latents_levels=0),
        one=picture(fill="noise4", height=40, width=40),
        two=picture(fill="noise6", height=40, width=40),
        a=("FlowcoreEncodeColor", {"image": "one.0", "model": "model.0"}),
        b=("FlowcoreEncodeColor", {"image": "two.0", "model": "model.0"}),
        walk=("FlowcoreInterpolate", {"a": "a.0", "b": "b.0", "frames": 5, "mode": "slerp"}),
        keep=("FlowcoreSaveLatents", {"latents": "a.0", "filename_prefix": "latents/colors"}),
    )
    workflow["color"]["inputs"]["latents"] = ["walk", 0]
    outputs = host.run(workflow)["outputs"]
    made, small, image = pixels(outputs["report"]), flow("small-color"), noise(1, 1, 24, 32)
    assert made.shape == (5, 3, 24, 32)  # a single picture in the colors of every item
    a, b = (flowcore.encode_colors(small, noise(1, 3, 40, 40, number=k)) for k in (4, 6))
    for place, latents in ((0, a), (2, interpolate(a, b, 0.5)), (4, b)):
        assert apart(made[place : place + 1], flowcore.decode_colors(small, latents, image)) < 1e-4
    record = outputs["keep"]["latents"][0]
    load = ("FlowcoreLoadLatents", {"file": f"{record['subfolder']}/{record['filename']} [output]"})
    loaded = graph(coloring(gray, latents_levels=0), load=load)
    loaded["color"]["inputs"]["latents"] = ["load", 0]
    assert apart(colored(host, loaded), made[:1]) < CLOSE


def test_a_clip_is_colored_as_in_python(host, flows):
    image = picture(fill="noise", channels=1, batch=3, height=24, width=32)
    made = []
    for carry in (0.0, 0.8):
        outputs = host.run(coloring(image, frames="video", carry=carry))["outputs"]
        assert outputs["color"]["text"] == []
        made.append(pixels(outputs["report"]))
        options = {"temperature": 1.0, "detail": 0.3, "seed": 5, "carry": carry}
        expected = flowcore.colorize_video(flow("small-color"), noise(3, 1, 24, 32), **options)
        assert apart(made[-1], expected) < CLOSE
    assert apart(*made) > 1e-3


def test_unused_values_get_a_note(host, flows):
    outputs = host.run(coloring(frames="video", samples=2, hints={"points": POINTS}))["outputs"]
    assert outputs["report"]["shape"] == [1, 32, 48, 3]
    assert [text.split(" is ignored")[0] for text in outputs["color"]["text"]] == ["samples", "hint_steps"]
    (text,) = host.run(coloring(carry=0.5))["outputs"]["color"]["text"]
    assert text.startswith("carry is ignored")


def test_chroma_is_put_on_luma_as_in_python(host):
    for options in ({}, {"saturation": 1.7}, {"gamut": "clip"}):
        workflow = graph(
            luma=picture(fill="noise", **SIDES),
            colors=picture(fill="noise1", height=50, width=31),
            apply=("FlowcoreApplyChroma", {"luma_from": "luma.0", "colors_from": "colors.0"} | options),
            report=report("apply.0"),
        )
        wanted = flowcore.apply_chroma(noise(1, 3, 32, 48), noise(1, 3, 50, 31, number=1), **options)
        assert apart(colored(host, workflow), wanted) < CLOSE


def remembering(**inputs):
    workflow = coloring(model="color-photos")
    workflow = graph(workflow, album=picture(fill="noise", **SIDES))
    workflow = graph(workflow, remember=("FlowcoreColorMemory", {"model": "model.0", **inputs}))
    workflow["color"]["inputs"]["memory"] = ["remember", 0]
    return workflow


def test_a_memory_of_ones_own_reaches_the_task(host, flows):
    shipped = flowcore.load("color-photos")
    memory = flowcore.remember(shipped, noise(1, 3, 32, 48))
    expected = flowcore.colorize(shipped, noise(1, 1, 32, 48), temperature=1.0, seed=5, memory=memory)
    assert apart(colored(host, remembering(images="album.0")), expected) < CLOSE
