"""Flow Colorize and its companions over the API: colors drawn and asked for, exact luma, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_flows import flow
from talk import graph, loader, noise, picture, pixels, refusal, report

import flowcore
from flowcore.images import color
from flowcore.latents import interpolate
from flowcore.tasks.hints import Hints, hints_from_points, hints_from_strokes, palette_from, parse_points

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
    return flowcore.colorize(
        flow("small-color"), noise(1, 1, 32, 48) if image is None else image, samples=samples, **asked
    )


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 4},
        {"temperature": 0.0, "detail": 0.0},
        {"detail": 1.2},
        {"saturation": 0.0},
        {"saturation": 2.5, "gamut": "clip"},
        {"working_size": 32},
        {"seed": 2**64 - 2},
        {"cast": -1.0},
        {"cast": -0.02},
        {"cast": -0.1},  # which a key once took for the one before: both looked like sliders that follow the model
        {"vivid": 1.6},
    ],
)
def test_every_widget_reaches_the_task(host, flows, options):
    made = colored(host, coloring(**options))
    assert apart(made, known(**options)) < CLOSE
    assert options == {"samples": 4} or apart(made, known()) > 1 / 255


def test_low_precision_changes_the_colors_slightly(host, flows):
    wide, narrow = (colored(host, coloring(precision=p)) for p in ("float32", "bfloat16"))
    assert 0 < (wide - narrow).abs().mean() < 0.02


# --- hints ------------------------------------------------------------------------------------------------------------


def misses(image, hints):
    """How far the chroma of pictures is from that of hints where they cover, each."""
    covered = hints.coverage[0, 0] > 0.5
    return (color.split(image)[1] - hints.chroma)[..., covered].square().sum(1).sqrt().mean(1)


MILD = picture(fill="0.5", **SIDES)


def test_points_are_followed_in_inference_mode_and_met_exactly_when_locked(host, flows):
    wanted = hints_from_points(parse_points(POINTS), (32, 48), radius=6)
    hints = {"points": POINTS, "radius": 6}
    outputs = host.run(coloring(MILD, samples=2, hints=hints, hint_steps=10))["outputs"]
    made = pixels(outputs["report"])
    assert (made[0] - made[1]).abs().mean() > 5 / 255
    options = {"image": torch.full((1, 3, 32, 48), 0.5), "samples": 2, "hints": wanted}
    assert apart(made, known(hint_steps=10, **options)) < 1e-3
    unspread = colored(host, coloring(MILD, samples=2, hints=hints, hint_steps=0))
    assert apart(unspread, known(hint_steps=0, **options)) < CLOSE
    assert "hints cover" in outputs["hints"]["text"][0]
    outputs = host.run(coloring(MILD, hints=hints | {"lock": True}))["outputs"]
    assert misses(pixels(outputs["report"]), wanted).max() < 1e-4
    assert "locked" in outputs["hints"]["text"][0]


def test_strokes_of_another_size_are_stretched_and_need_no_mask(host, flows):
    strokes = Image.new("RGB", (24, 16), "gray")
    strokes.paste((200, 60, 20), (2, 2, 10, 10))
    workflow = coloring(MILD, hints={"strokes": ["strokes", 0], "lock": True}, hint_steps=0)
    workflow |= graph(strokes=("LoadImage", {"image": host.put("strokes.png", strokes)}))
    rgb = torch.from_numpy(np.array(strokes)).permute(2, 0, 1)[None] / 255
    wanted = hints_from_strokes(rgb, size=(32, 48), lock=True)
    made = colored(host, workflow)
    assert apart(made, known(torch.full((1, 3, 32, 48), 0.5), hints=wanted, hint_steps=0)) < CLOSE
    assert apart(color.split(made)[1][..., 6:18, 6:18], wanted.chroma[..., 6:18, 6:18]) < 1e-4


def test_a_mask_says_where_strokes_are(host, flows):
    workflow = coloring(MILD, hints={"strokes": ["strokes", 0], "mask": ["mask", 0], "lock": True}, hint_steps=0)
    mask = ("SolidMask", {"value": 1.0, "width": 12, "height": 8})
    workflow = graph(workflow, strokes=picture(fill="noise7", **SIDES), mask=mask)
    outputs = host.run(workflow)["outputs"]
    assert "cover 100 %" in outputs["hints"]["text"][0]
    room = color.compress(torch.full((1, 1, 32, 48), 0.5), color.split(noise(1, 3, 32, 48, number=7))[1])
    assert apart(pixels(outputs["report"]), room) < 1e-4
    del workflow["hints"]["inputs"]["strokes"]
    assert "mask is ignored" in host.run(workflow)["outputs"]["hints"]["text"][0]


def test_a_palette_of_colors_or_of_an_image(host, flows):
    typed = coloring(hints={"palette": "#c04020, 2040c0;#8a8"})
    taken = coloring(hints={"palette_image": ["palette", 0]})
    taken = graph(taken, palette=picture(fill="noise3", height=16, width=16))
    for workflow, palette in (
        (typed, palette_from(["#c04020", "#2040c0", "#88aa88"])),
        (taken, palette_from(image=noise(1, 3, 16, 16, number=3))),
    ):
        expected = known(hints=Hints(palette=palette))
        assert apart(colored(host, workflow), expected) < CLOSE
        assert apart(expected, known()) > 1e-3
    taken["hints"]["inputs"]["palette"] = "#c04020"
    refusal(host, taken, "one of the two")


def test_new_hints_lie_over_earlier_ones(host, flows):
    workflow = coloring(MILD, hints={"points": "10, 10, #c04020", "lock": True}, hint_steps=0)
    earlier = {"image": "image.0", "points": "10, 10, #2040c0; 40, 20, #20c040", "palette": "#888888"}
    workflow = graph(workflow, earlier=("FlowcoreColorHints", earlier))
    workflow["hints"]["inputs"]["hints"] = ["earlier", 0]
    made = color.split(colored(host, workflow))[1]
    for x, y, value in ((10, 10, "#c04020"), (40, 20, "#20c040")):
        wanted = hints_from_points([(x, y, value)], (32, 48)).chroma[..., y, x]
        assert apart(made[..., y, x], wanted) < 1e-4


def test_no_hints_at_all_are_a_note_and_change_nothing(host, flows):
    outputs = host.run(coloring(hints={}))["outputs"]
    assert "no hints yet" in outputs["hints"]["text"][0]
    assert apart(pixels(outputs["report"]), colored(host, coloring())) < CLOSE


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"model": "small-glow.safetensors"}, ["colorizer", "color-photos", "glow"]),
        ({"model": "srflow-x4"}, ["colorizer", "srflow"]),
        ({"image": MILD, "model": "small-glow.safetensors", "latents": {"image": ["image", 0]}}, ["colorizer", "glow"]),
        ({"working_size": 8}, ["working_size", "16", "8"]),
        ({"hints": {"points": "48, 10, #c04020"}}, ["Hint 1", "x 48", "48x32"]),
    ],
)
def test_invalid_inputs_raise_a_readable_error(host, flows, inputs, words):
    refusal(host, coloring(**inputs), *words)


# --- latents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"latents_strength": 0.5, "latents_levels": 1}, {"latents_strength": 0.0}])
def test_a_palette_is_transferred(host, flows, options):
    workflow = coloring(latents={"image": ["other", 0]}, samples=2, **options)
    made = colored(host, graph(workflow, other=picture(fill="noise4", height=40, width=40)))
    names = {"latents_strength": "strength", "latents_levels": "levels"}
    asked = {"temperature": 1.0, "detail": 0.3, "seed": 5, "samples": 2} | {names[k]: v for k, v in options.items()}
    images = noise(1, 1, 32, 48), noise(1, 3, 40, 40, number=4)
    assert apart(made, flowcore.transfer_palette(flow("small-color"), *images, **asked)) < CLOSE


def test_latents_of_colors_are_walked_mixed_varied_and_kept_like_others(host, flows):
    rgb = [noise(1, 3, 40, 40, number=k) for k in (4, 6)]
    workflow = coloring(picture(fill="noise", channels=1, height=24, width=32), latents_levels=0)
    workflow = graph(
        workflow,
        one=picture(fill="noise4", height=40, width=40),
        two=picture(fill="noise6", height=40, width=40),
        a=("FlowcoreEncodeColor", {"image": "one.0", "model": "model.0"}),
        b=("FlowcoreEncodeColor", {"image": "two.0", "model": "model.0"}),
        walk=("FlowcoreInterpolate", {"a": "a.0", "b": "b.0", "frames": 5, "mode": "slerp"}),
        mix=("FlowcoreMixLatents", {"a": "a.0", "b": "b.0", "coarse": 1.0, "fine": 0.0}),
        vary=("FlowcoreVaryLatents", {"latents": "mix.0", "seed": 9, "strength": 0.3}),
        show=("FlowcoreTestLatents", {"latents": "vary.0"}),
        keep=("FlowcoreSaveLatents", {"latents": "a.0", "filename_prefix": "latents/colors"}),
    )
    workflow["color"]["inputs"]["latents"] = ["walk", 0]
    outputs = host.run(workflow)["outputs"]
    made, small = pixels(outputs["report"]), flow("small-color")
    assert made.shape == (5, 3, 24, 32)  # a single picture in the colors of every item
    image = noise(1, 1, 24, 32)
    a, b = (flowcore.encode_colors(small, x) for x in rgb)
    assert apart(made[:1], flowcore.decode_colors(small, a, image)) < 1e-4
    assert apart(made[4:], flowcore.decode_colors(small, b, image)) < 1e-4
    assert apart(made[2:3], flowcore.decode_colors(small, interpolate(a, b, 0.5), image)) < 1e-4
    assert [torch.tensor(z).shape for z in outputs["show"]["levels"]] == [z.shape for z in a]
    # and back from the file
    record = outputs["keep"]["latents"][0]
    name = f"{record['subfolder']}/{record['filename']} [output]"
    loaded = coloring(picture(fill="noise", channels=1, height=24, width=32), latents_levels=0)
    loaded |= graph(load=("FlowcoreLoadLatents", {"file": name}))
    loaded["color"]["inputs"]["latents"] = ["load", 0]
    assert apart(colored(host, loaded), made[:1]) < CLOSE


def test_latents_of_another_model_are_refused(host, flows):
    workflow = coloring(picture(fill="noise", **SIDES), latents={"image": ["image", 0]})
    workflow = graph(workflow, other=loader("other-color.safetensors"))
    workflow["encode"]["inputs"]["model"] = ["other", 0]
    refusal(host, workflow, "other-color", "small-color")


# --- clips ------------------------------------------------------------------------------------------------------------


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


# --- apply chroma -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"saturation": 1.7}, {"gamut": "clip"}])
def test_chroma_is_put_on_luma_as_in_python(host, options):
    asked = {"luma_from": "luma.0", "colors_from": "colors.0"} | options
    workflow = graph(
        luma=picture(fill="noise", **SIDES),
        colors=picture(fill="noise1", height=50, width=31),
        apply=("FlowcoreApplyChroma", asked),
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


def test_a_memory_of_nothing_is_refused(host, flows):
    refusal(host, remembering(), "connect images, or name a folder")
    refusal(host, remembering(folder="../.."), "leads out of")
