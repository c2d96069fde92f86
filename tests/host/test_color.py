"""Flow Colorize, its companions and the brush over the API: colors drawn, asked for and painted, and refusals."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_flows import flow
from talk import graph, loader, newest, noise, picture, pixels, refusal, report

import flowcore
from flowcore import Hints, interpolate
from flowcore.images.color import parse_color
from flowcore.images.strokes import paint_colors, paint_mask, parse_strokes
from flowcore.tasks.hints import combine_hints, hints_from_points, hints_from_strokes, palette_from, parse_points

pytestmark = newest
CLOSE = 1e-5
COLOR = "small-color.safetensors"
SIDES = {"height": 32, "width": 48}
GRAY = picture(fill="noise", channels=1, **SIDES)
POINTS = "10, 10, #c04020\n40, 8, #2040c0"


MADE = {"hints": ("FlowcoreColorHints", {"image": "image.0"}), "latents": ("FlowcoreEncodeColor", {"model": "model.0"})}


def coloring(image=GRAY, model=COLOR, **inputs):
    """Color, and report on it; instead of a wire, hints and latents may be the inputs of the node that makes them."""
    given = {name: value for name, value in inputs.items() if isinstance(value, dict)}
    made = {name: (MADE[name][0], MADE[name][1] | value) for name, value in given.items()}
    asked = {"image": "image.0", "model": "model.0", "temperature": 1.0, "seed": 5} | inputs
    asked |= {name: f"{name}.0" for name in made}
    return graph(model=loader(model), image=image, color=("FlowcoreColorize", asked), report=report("color.0"), **made)


def colored(host, workflow):
    return pixels(host.outputs(workflow)["report"])


def apart(one, other):
    return float((one - other).abs().max())


def known(image=None, samples=1, **options):
    """Color in Python with the same defaults, (B, C, H, W)."""
    asked = {"temperature": 1.0, "detail": 0.3, "seed": 5} | options
    image = noise(1, 1, 32, 48) if image is None else image
    return flowcore.colorize(flow("small-color"), image, samples=samples, **asked)


WIDGETS = [{"samples": 4}, {"temperature": 0.0, "detail": 0.0}, {"saturation": 2.5, "gamut": "clip"}, {"vivid": 1.6}]
WIDGETS += [{"working_size": 32}, {"precision": "bfloat16"}, {"seed": 6}]
WIDGETS += [{"cast": -0.02}, {"cast": -0.1}]  # a key once took them for the model's own


@pytest.mark.parametrize("options", WIDGETS)
def test_every_widget_reaches_the_task(host, flows, options):
    made = colored(host, coloring(**options))
    close, far = (2e-3, CLOSE) if "precision" in options else (CLOSE, 1 / 255)  # bfloat16 rounds as threads share
    assert apart(made, known(**options)) < close
    assert options == {"samples": 4} or apart(made, known()) > far


MILD, MIDDLE = picture(fill="0.5", **SIDES), torch.full((1, 3, 32, 48), 0.5)


def test_hints_of_every_kind_reach_the_task(host, flows):
    size, one = (32, 48), "10, 10, #c04020"
    strokes = Image.new("RGB", (24, 16), "gray")
    strokes.paste((200, 60, 20), (2, 2, 10, 10))
    rgb, painted = torch.from_numpy(np.array(strokes)).permute(2, 0, 1)[None] / 255, noise(1, 3, *size, number=7)
    over = {"image": "image.0", "points": "10, 10, #2040c0; 40, 20, #20c040", "radius": 4, "palette": "#888888"}
    below = hints_from_points(parse_points(over["points"]), size, radius=4)
    below = dataclasses.replace(below, palette=palette_from(["#888888"]))
    point = hints_from_points(parse_points(one), size, radius=4)
    over_below = combine_hints(point, below)
    whole = hints_from_strokes(painted, torch.ones(1, 1, 8, 12), size=size)
    colored = hints_from_strokes(torch.tensor(parse_color("#c04020")).view(1, 3, 1, 1).expand(-1, -1, *size))
    nodes = {
        "strokes": ("LoadImage", {"image": host.put("strokes.png", strokes)}),
        "painted": picture(fill="noise7", **SIDES),
        "mask": ("SolidMask", {"value": 1.0, "width": 12, "height": 8}),
        "palette": picture(fill="noise3", height=16, width=16),
        "earlier": ("FlowcoreColorHints", over),
    }
    for inputs, wanted, note in (
        ({"points": POINTS, "radius": 6}, hints_from_points(parse_points(POINTS), size, radius=6), "hints cover"),
        ({"strokes": "strokes.0", "lock": True}, hints_from_strokes(rgb, size=size, lock=True), "locked"),
        ({"strokes": "painted.0", "mask": "mask.0"}, whole, "cover 100 %"),
        ({"palette": "#c04020, 2040c0;#8a8"}, Hints(palette=palette_from(["#c04020", "#2040c0", "#88aa88"])), ""),
        ({"palette_image": "palette.0"}, Hints(palette=palette_from(image=noise(1, 3, 16, 16, number=3))), ""),
        ({"points": one, "radius": 4, "hints": "earlier.0"}, over_below, ""),
        ({"mask": "mask.0", "color": "#c04020ff"}, colored, "cover 100 %"),
        ({"points": "10, 10", "radius": 4, "color": "#c04020"}, point, "hints cover"),
        ({}, None, "no hints yet"),
    ):
        outputs = host.outputs(coloring(MILD, hints=inputs, hint_steps=0), **nodes)
        expected = known(MIDDLE, hints=wanted, hint_steps=0)
        assert apart(pixels(outputs["report"]), expected) < CLOSE, inputs
        assert wanted is None or apart(expected, known(MIDDLE)) > 1e-3, inputs
        assert note in " ".join(outputs["hints"].get("text", [])), inputs
    masked = host.outputs(coloring(MILD, hints={"mask": "mask.0"}), **nodes)
    assert "mask is ignored" in masked["hints"]["text"][0]
    both = {"palette": "#c04020", "palette_image": "palette.0"}
    refusal(host, graph(coloring(hints=both), **nodes), "one of the two")


def test_invalid_inputs_raise_a_readable_error(host, flows):
    for inputs, words in (
        ({"model": "small-glow.safetensors"}, ["colorizer", "color-photos", "glow"]),
        ({"model": "srflow-x4"}, ["colorizer", "srflow"]),
        ({"image": MILD, "model": "small-glow.safetensors", "latents": {"image": "image.0"}}, ["colorizer", "glow"]),
        ({"working_size": 8}, ["working_size", "16", "8"]),
        ({"hints": {"points": "48, 10, #c04020"}}, ["Hint 1", "x 48", "48x32"]),
    ):
        refusal(host, coloring(**inputs), *words)
    latents = {"image": "image.0", "model": "other.0"}
    workflow = graph(coloring(picture(fill="noise", **SIDES), latents=latents), other=loader("other-color.safetensors"))
    refusal(host, workflow, "other-color", "small-color")
    refusal(host, remembering(), "or name a folder in the input folder")
    refusal(host, remembering(folder="../.."), "leads out of")


@pytest.mark.parametrize("options", [{}, {"latents_strength": 0.5, "latents_levels": 1}])
def test_a_palette_is_transferred(host, flows, options):
    other = picture(fill="noise4", height=40, width=40)
    made = colored(host, graph(coloring(latents={"image": "other.0"}, samples=2, **options), other=other))
    names = {"latents_strength": "strength", "latents_levels": "levels"}
    asked = {"temperature": 1.0, "detail": 0.3, "seed": 5, "samples": 2} | {names[k]: v for k, v in options.items()}
    images = noise(1, 1, 32, 48), noise(1, 3, 40, 40, number=4)
    assert apart(made, flowcore.transfer_palette(flow("small-color"), *images, **asked)) < CLOSE


def test_latents_of_colors_are_walked_and_kept_like_others(host, flows):
    gray = picture(fill="noise", channels=1, height=24, width=32)
    outputs = host.outputs(
        coloring(gray, latents="walk.0", latents_levels=0),
        one=picture(fill="noise4", height=40, width=40),
        two=picture(fill="noise6", height=40, width=40),
        a=("FlowcoreEncodeColor", {"image": "one.0", "model": "model.0"}),
        b=("FlowcoreEncodeColor", {"image": "two.0", "model": "model.0"}),
        walk=("FlowcoreInterpolate", {"a": "a.0", "b": "b.0", "frames": 5, "mode": "slerp"}),
        keep=("FlowcoreSaveLatents", {"latents": "a.0", "filename_prefix": "latents/colors"}),
    )
    made, small, image = pixels(outputs["report"]), flow("small-color"), noise(1, 1, 24, 32)
    assert made.shape == (5, 3, 24, 32)  # a single picture in the colors of every item
    a, b = (flowcore.encode_colors(small, noise(1, 3, 40, 40, number=k)) for k in (4, 6))
    for place, latents in ((0, a), (2, interpolate(a, b, 0.5)), (4, b)):
        assert apart(made[place : place + 1], flowcore.decode_colors(small, latents, image)) < 1e-4
    record = outputs["keep"]["latents"][0]
    load = ("FlowcoreLoadLatents", {"file": f"{record['subfolder']}/{record['filename']} [output]"})
    loaded = graph(coloring(gray, latents="load.0", latents_levels=0), load=load)
    assert apart(colored(host, loaded), made[:1]) < CLOSE


def test_a_clip_is_colored_as_in_python(host, flows):
    image = picture(fill="noise", channels=1, batch=3, height=24, width=32)
    made = []
    for carry in (0.0, 0.8):
        outputs = host.outputs(coloring(image, frames="video", carry=carry))
        assert outputs["color"]["text"] == []
        made.append(pixels(outputs["report"]))
        options = {"temperature": 1.0, "detail": 0.3, "seed": 5, "carry": carry}
        expected = flowcore.colorize_video(flow("small-color"), noise(3, 1, 24, 32), **options)
        assert apart(made[-1], expected) < CLOSE
    assert apart(*made) > 1e-3


def test_unused_values_get_a_note(host, flows):
    outputs = host.outputs(coloring(frames="video", samples=2, hints={"points": POINTS}))
    assert outputs["report"]["shape"] == [1, 32, 48, 3]
    assert [text.split(" is ignored")[0] for text in outputs["color"]["text"]] == ["samples", "hint_steps"]
    (text,) = host.outputs(coloring(carry=0.5))["color"]["text"]
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
    return graph(
        coloring(model="color-photos", memory="remember.0"),
        album=picture(fill="noise", **SIDES),
        remember=("FlowcoreColorMemory", {"model": "model.0", **inputs}),
    )


def test_a_memory_of_ones_own_reaches_the_task(host, flows):
    shipped = flowcore.load("color-photos")
    memory = flowcore.remember(shipped, noise(1, 3, 32, 48))
    expected = flowcore.colorize(shipped, noise(1, 1, 32, 48), temperature=1.0, seed=5, memory=memory)
    assert apart(colored(host, remembering(images="album.0")), expected) < CLOSE


# --- painted ----------------------------------------------------------------------------------------------------------

SIZE = (SIDES["height"], SIDES["width"])
COLORS = [
    {"color": "#c04020", "size": 0.2, "points": [[0.2, 0.3], [0.5, 0.35]]},
    {"color": "#2040c0", "size": 0.1, "points": [[0.8, 0.25]]},
    {"erase": True, "size": 0.05, "points": [[0.2, 0.3]]},
]
AMOUNTS = [{"amount": 0.75, "size": 0.3, "points": [[0.5, 0.5]]}, {"erase": True, "size": 0.1, "points": [[0.5, 0.5]]}]
COVERAGE, RGB = paint_colors(parse_strokes(json.dumps(COLORS)), SIZE)


def painting(strokes=COLORS, **values):
    asked = {"image": "image.0", "painting": json.dumps(strokes)} | values
    return graph(image=GRAY, paint=("FlowcorePaintHints", asked))


def test_painted_colors_are_shown_and_are_the_hints_of_a_coloring(host, flows):
    outputs = host.outputs(
        coloring(hints="paint.0") | painting(lock=True), gray=report("image.0"), shown=report("paint.1")
    )
    assert apart(pixels(outputs["report"]), known(hints=hints_from_strokes(RGB, COVERAGE, lock=True))) < CLOSE
    assert outputs["paint"]["text"] == [f"strokes cover {100 * float(COVERAGE.mean()):.3g} % of the picture, locked"]
    shown, gray = pixels(outputs["shown"]), pixels(outputs["gray"])
    assert apart(shown, gray + COVERAGE * (RGB - gray)) < 1e-5
    assert apart(shown, gray) > 0.2


def test_painted_hints_lie_over_others_and_nothing_painted_leaves_them(host, flows):
    point = "24, 16, #20c040"
    others = hints_from_points(parse_points(point), SIZE, radius=30)
    both = combine_hints(hints_from_strokes(RGB, COVERAGE), others)
    for strokes, hints in ((COLORS, both), ([], others)):
        below = ("FlowcoreColorHints", {"image": "image.0", "points": point, "radius": 30})
        outputs = host.outputs(coloring(hints="paint.0") | painting(strokes, hints="below.0"), below=below)
        assert apart(pixels(outputs["report"]), known(hints=hints)) < CLOSE
    assert "Nothing is painted yet" in outputs["paint"]["text"][0]


def test_painted_temperature_is_a_mask(host):
    outputs = host.outputs(
        image=picture(height=9, width=14),
        paint=("FlowcorePaintTemperature", {"image": "image.0", "painting": json.dumps(AMOUNTS), "ground": 0.25}),
        shown=("MaskToImage", {"mask": "paint.0"}),
        report=report("shown.0"),
    )
    expected = paint_mask(parse_strokes(json.dumps(AMOUNTS)), (9, 14), ground=0.25)
    assert apart(pixels(outputs["report"])[:, 0], expected) < CLOSE
    assert 0.25 <= float(expected.min()) < float(expected.max()) <= 0.75
    assert outputs["paint"]["text"][0].partition("\n\n")[2].startswith("mask from 0.25 to")


def test_the_canvas_gets_the_picture_to_paint_on_and_scripts_do_not(host):
    workflow = graph(painting(), show=("PreviewImage", {"images": "paint.1"}))
    assert "flowcore_canvas" not in host.outputs(workflow)["paint"]
    host.forget()
    (saved,) = host.run_from_canvas(workflow)["outputs"]["paint"]["flowcore_canvas"]
    assert saved["type"] == "temp"
