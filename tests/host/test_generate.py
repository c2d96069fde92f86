"""Flow Sample, Flow Encode and Flow Decode over the API: the same images as in Python, there and back, and refusals."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import torch
from client import RunError
from PIL import Image
from small_flows import flow
from talk import graph, picture

from flowcore.images.resize import shrink
from flowcore.tasks.sample import decode, encode, sample
from flowcore.tasks.transfer import style_transfer

CLOSE = 1e-5


def noise(*shape, number=0):
    """What the probe pack makes of `fill="noise"`, as (B, C, H, W)."""
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(number)
    made = torch.randint(0, 256, (batch, height, width, channels), generator=generator) / 255
    return made.permute(0, 3, 1, 2)


def sampling(model="small-glow.safetensors", **inputs):
    """Sample, decode again, and report on all of it."""
    return graph(
        model=("FlowcoreLoadModel", {"model_name": model}),
        sample=(
            "FlowcoreSample",
            {"model": "model.0", "samples": 3, "temperature": 0.7, "seed": 5, "snap": False} | inputs,
        ),
        images=("FlowcoreTestReport", {"image": "sample.0"}),
        latents=("FlowcoreTestLatents", {"latents": "sample.1"}),
        decode=("FlowcoreDecode", {"latents": "sample.1", "model": "model.0"}),
        again=("FlowcoreTestReport", {"image": "decode.0"}),
    )


def encoding(model="small-glow.safetensors", image=None, decode=None, **inputs):
    """Encode, decode, and report on all of it."""
    return graph(
        model=("FlowcoreLoadModel", {"model_name": model}),
        image=picture(fill="noise") if image is None else image,
        encode=("FlowcoreEncode", {"image": "image.0", "model": "model.0", "dequantize": "off"} | inputs),
        latents=("FlowcoreTestLatents", {"latents": "encode.0"}),
        encoded=("FlowcoreTestReport", {"image": "encode.2"}),
        decode=("FlowcoreDecode", {"latents": "encode.0", "model": "model.0"} | (decode or {})),
        again=("FlowcoreTestReport", {"image": "decode.0"}),
    )


def pixels(report):
    """The images of a report as (B, C, H, W)."""
    return torch.tensor(report["rows"]).reshape(report["shape"]).permute(0, 3, 1, 2)


def refusal(host, workflow, *words):
    with pytest.raises(RunError) as refused:
        host.run(workflow)
    assert refused.value.detail["exception_type"].split(".")[-1].endswith("Error")
    assert "flowcore" in refused.value.detail["exception_type"]  # our sentence, and not an accident in the depths
    for word in words:
        assert word in str(refused.value)


# --- sample -----------------------------------------------------------------------------------------------------------


def test_samples_are_those_of_python_and_decode_to_themselves(host, flows):
    outputs = host.run(sampling())["outputs"]
    expected = sample(flow("small-glow"), 3, seed=5)
    assert outputs["images"]["shape"] == [3, 12, 16, 3]
    assert 0 <= outputs["images"]["range"][0] < outputs["images"]["range"][1] <= 1
    assert (pixels(outputs["images"]) - expected).abs().max() < CLOSE
    assert (pixels(outputs["again"]) - pixels(outputs["images"])).abs().max() < CLOSE
    name, architecture, sha = outputs["latents"]["model"]
    assert (name, architecture, len(sha)) == ("small-glow.safetensors", "glow", 64)
    assert outputs["latents"]["types"] == ["torch.float32 cpu"]


@pytest.mark.parametrize("model", ["small-glow", "free-glow"])
def test_noise_of_the_training_images_is_taken_off(host, flows, model):
    workflow = sampling(flows[model], width=16, height=12)
    del workflow["sample"]["inputs"]["snap"]  # Flow Sample takes it off unless told otherwise, Flow Decode does not
    workflow["decode"]["inputs"]["snap"] = True
    outputs = host.run(workflow)["outputs"]
    levels = {"small-glow": 255, "free-glow": 31}[model]
    expected = sample(flow(model), 3, size=(12, 16), seed=5, snapped=True)
    for images in (pixels(outputs["images"]), pixels(outputs["again"])):
        assert (images * levels - (images * levels).round()).abs().max() < 1e-3
        off = (images - expected).abs() * levels
        assert off.max() < 1.01  # rounding may carry a value over the edge of its level
        assert (off > 0.5).float().mean() < 0.01


def test_sample_i_is_seed_plus_i(host, flows):
    four = pixels(host.run(sampling(samples=4, seed=2**64 - 3))["outputs"]["images"])
    one = pixels(host.run(sampling(samples=1, seed=2**64 - 1))["outputs"]["images"])
    assert (four[2] - one[0]).abs().max() < CLOSE
    assert (four[2] - four[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0, 1, 2, 0, 1]),
        ("2", [2, 2, 2, 2, 2]),
        ("1, 0", [1, 0, 1, 0, 1]),
        ("0-1,2;2", [0, 1, 2, 2, 0]),
        (" 2 - 0 ", [2, 1, 0, 2, 1]),
    ],
)
def test_labels_are_shown_in_turn(host, flows, text, expected):
    outputs = host.run(sampling("small-digits.safetensors", samples=5, labels=text))["outputs"]
    assert outputs["latents"]["labels"] == expected
    drawn = sample(flow("small-digits"), 5, seed=5, labels=expected)
    assert outputs["images"]["shape"] == [5, 8, 12, 3]  # grey becomes colour, as other nodes expect
    assert (pixels(outputs["images"]) - drawn).abs().max() < CLOSE
    assert (pixels(outputs["again"]) - drawn).abs().max() < CLOSE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", ["whole numbers", "`x`"]),
        ("1.5", ["whole numbers"]),
        ("-1", ["whole numbers"]),
        ("3", ["0 to 2", "got 3"]),
        ("0-999999999", ["0 to 2"]),
        ("0-2," * 2000, ["more than 4096"]),
    ],
)
def test_bad_labels_get_a_sentence(host, flows, text, words):
    refusal(host, sampling("small-digits.safetensors", labels=text), *words)


def test_labels_are_ignored_with_a_note_where_there_are_none(host, flows):
    outputs = host.run(sampling(labels="7"))["outputs"]
    assert "ignored" in outputs["sample"]["text"][0]
    assert outputs["images"]["shape"] == [3, 12, 16, 3]


def test_sizes(host, flows):
    outputs = host.run(sampling("free-glow.safetensors", width=8, height=20))["outputs"]
    assert outputs["images"]["shape"] == [3, 20, 8, 3]
    assert host.run(sampling(width=24))["outputs"]["images"]["shape"] == [3, 12, 24, 3]
    refusal(host, sampling("free-glow.safetensors"), "Set width and height", "multiples of 4")
    refusal(host, sampling("free-glow.safetensors", width=8), "Set width and height")
    refusal(host, sampling(width=10), "divisible by 4", "12x10")
    refusal(host, sampling("small-digits.safetensors", width=8, height=8), "8x12 only")


def test_an_upscaler_is_sent_to_its_own_node(host, flows):
    refusal(host, sampling("small-srflow.safetensors"), "Flow Upscale")


def test_temperatures_per_level(host, flows):
    levels = host.run(sampling(temperatures="0, 1", seed=3))["outputs"]["latents"]["levels"]
    plain = host.run(sampling(temperature=1.0, seed=3))["outputs"]["latents"]["levels"]
    assert np.abs(levels[0]).max() == 0
    assert levels[1] == plain[1]
    refusal(host, sampling(temperatures="1, 1, 1"), "2 levels", "3 temperatures")
    refusal(host, sampling(temperatures="warm"), "temperatures", "`warm`")
    refusal(host, sampling(temperatures="-1, 1"), ">= 0")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"samples": 0}, ["samples", "smaller than min of 1"]),
        ({"samples": 257}, ["samples", "bigger than max of 256"]),
        ({"temperature": 1.6}, ["temperature", "bigger than max of 1.5"]),
        ({"seed": -1}, ["seed", "smaller than min of 0"]),
    ],
)
def test_values_outside_their_range_are_refused(host, flows, inputs, words):
    with pytest.raises(RunError) as refused:
        host.run(sampling(**inputs))
    for word in words:
        assert word in str(refused.value)


def test_progress_moves_and_every_image_is_shown(host, flows):
    events = []
    host.run(sampling("small-digits.safetensors", samples=4, seed=77), events.append)
    values = [
        (event["data"]["value"], event["data"]["max"])
        for event in events
        if isinstance(event, dict) and event["type"] == "progress" and event["data"]["node"] == "sample"
    ]
    assert values == sorted(values)
    assert values[-1][0] == values[-1][1]
    previews = [event for event in events if isinstance(event, bytes) and event[:4] == b"\0\0\0\1"]
    assert [Image.open(io.BytesIO(p[8:])).size for p in previews] == [(12, 8)] * 8  # four of Sample, four of Decode


@pytest.mark.parametrize(("node", "slot"), [("sample", 0), ("encode", 2), ("decode", 0), ("score", 1)])
def test_cancel_stops_and_the_next_run_works(host, flows, node, slot):
    long = graph(
        model=("FlowcoreLoadModel", {"model_name": "glow-photos"}),
        image=picture(fill="noise", batch=64, height=64, width=64),
        noise=("FlowcoreSample", {"model": "model.0", "samples": 1, "temperature": 1.0, "seed": 1}),
        walk=("FlowcoreInterpolate", {"a": "noise.1", "b": "noise.1", "frames": 512, "mode": "linear"}),
        sample=("FlowcoreSample", {"model": "model.0", "samples": 256, "temperature": 1.0, "seed": 1}),
        encode=("FlowcoreEncode", {"image": "image.0", "model": "model.0"}),
        decode=("FlowcoreDecode", {"latents": "walk.0", "model": "model.0"}),
        score=("FlowcoreScore", {"image": "image.0", "model": "model.0", "samples": 64}),
        show=("PreviewImage", {"images": f"{node}.{slot}"}),
    )
    asked = None

    def watch(event):
        nonlocal asked
        if not isinstance(event, dict):
            return
        if asked is None and event["type"] == "executing" and event["data"]["node"] == node:
            time.sleep(0.3)  # let it begin
            host.cancel()
            asked = time.time()

    with pytest.raises(RunError, match="cancelled") as stopped:
        host.run(long, watch)
    assert stopped.value.detail["timestamp"] / 1000 - asked < 3.0  # the server\'s own clock, which is this one
    assert host.run(sampling(seed=1234))["outputs"]["images"]["shape"] == [3, 12, 16, 3]


# --- encode and decode ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "inputs", "facts"),
    [
        ("small-glow", {}, {"batch": 3}),
        ("free-glow", {}, {"batch": 2, "height": 8, "width": 20}),
        ("small-digits", {"label": 2}, {"batch": 2, "height": 8, "width": 12, "channels": 1}),
        ("small-srflow", {}, {"batch": 2, "height": 16, "width": 12}),
    ],
)
def test_an_image_decodes_to_itself(host, flows, model, inputs, facts):
    image = picture(fill="noise", **facts)
    outputs = host.run(encoding(flows[model], image, **inputs))["outputs"]
    expected = noise(*(image[1][side] for side in ("batch", "channels", "height", "width")))
    assert (pixels(outputs["encoded"]) - expected).abs().max() < 1e-6
    assert (pixels(outputs["again"]) - expected).abs().max() < 1e-4
    assert outputs["encode"]["error"][0] < 1e-4
    assert "largest error" in outputs["encode"]["text"][0]
    assert len(outputs["encode"]["mean"]) == len(outputs["encode"]["deviation"]) == len(outputs["latents"]["levels"])
    assert outputs["latents"]["labels"] == [2] * (2 * ("label" in inputs))


def test_encoded_latents_are_those_of_python(host, flows):
    outputs = host.run(encoding(image=picture(fill="noise", batch=2)))["outputs"]
    expected = encode(flow("small-glow"), noise(2, 3, 12, 16))
    for level, known in zip(outputs["latents"]["levels"], expected, strict=True):
        assert (torch.tensor(level) - known).abs().max() < 1e-4
    assert outputs["encode"]["mean"][1] == pytest.approx(float(expected[1].mean()), abs=1e-4)
    assert outputs["encode"]["deviation"][0] == pytest.approx(
        float(expected[0].flatten(1).std(1, correction=0).mean()), rel=1e-4
    )


@pytest.mark.parametrize(
    ("model", "label", "fit", "sides", "expected"),
    [
        ("small-glow", -1, "resize", (30, 64), (12, 16)),
        ("small-glow", -1, "resize", (5, 5), (12, 16)),
        ("small-glow", -1, "crop", (30, 65), (28, 64)),  # its own size is where it is best, not all it takes
        ("free-glow", -1, "resize", (30, 65), (28, 64)),
        ("small-digits", 0, "resize", (20, 20), (8, 12)),
        ("small-digits", 0, "crop", (20, 20), (8, 12)),  # it takes no other
        ("small-srflow", -1, "resize", (19, 21), (16, 20)),
    ],
)
def test_an_image_is_made_to_fit(host, flows, model, label, fit, sides, expected):
    image = picture(height=sides[0], width=sides[1])
    encoded = host.run(encoding(flows[model], image, fit=fit, label=label))["outputs"]["encoded"]
    assert encoded["shape"] == [1, *expected, 3]
    inside = pixels(encoded)
    assert 0 <= inside.min() < inside.max() <= 1
    # The middle of the gradient stays in the middle.
    assert abs(float(inside.mean()) - 0.5) < 0.03


def test_grey_and_alpha(host, flows):
    colour = host.run(encoding(image=picture(fill="noise", channels=4)))["outputs"]["encoded"]
    assert (pixels(colour) - noise(1, 4, 12, 16)[:, :3]).abs().max() < 1e-6
    grey = host.run(encoding(image=picture(fill="noise", channels=1)))["outputs"]["encoded"]
    assert (pixels(grey) - noise(1, 1, 12, 16)).abs().max() < 1e-6
    image = picture(fill="noise", height=8, width=12)
    digits = host.run(encoding(flows["small-digits"], image, label=0))["outputs"]["encoded"]
    red, green, blue = noise(1, 3, 8, 12).unbind(1)
    assert (pixels(digits)[:, 0] - (0.299 * red + 0.587 * green + 0.114 * blue)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("model", "facts", "inputs", "words"),
    [
        ("small-glow", {"batch": 0}, {}, ["empty"]),
        ("small-glow", {"channels": 2}, {}, ["1, 3 or 4", "2"]),
        ("small-glow", {"fill": "nan"}, {}, ["NaN"]),
        ("small-glow", {"dtype": "video"}, {}, ["(batch, height, width, channels)", "frames"]),
        ("small-glow", {"height": 3}, {"fit": "crop"}, ["at least", "3x16", "resize"]),
        ("free-glow", {"width": 3}, {}, ["at least 4x4", "12x3"]),
        ("small-digits", {"height": 6}, {"label": 0, "fit": "crop"}, ["8x12", "6x16"]),
        ("small-digits", {}, {}, ["set label to 0 to 2", "got -1"]),
        ("small-digits", {}, {"label": 3}, ["set label to 0 to 2", "got 3"]),
    ],
)
def test_images_that_cannot_be_encoded_get_a_sentence(host, flows, model, facts, inputs, words):
    refusal(host, encoding(flows[model], picture(**facts), **inputs), *words)


def test_values_outside_the_range_are_clamped_and_half_precision_works(host, flows):
    assert host.run(encoding(image=picture(fill="3.5")))["outputs"]["encoded"]["range"] == [1, 1]
    assert host.run(encoding(image=picture(dtype="float16")))["outputs"]["encode"]["error"][0] < 1e-4


def test_a_label_that_the_model_does_not_know_about_is_ignored_with_a_note(host, flows):
    outputs = host.run(encoding(label=3))["outputs"]
    assert "label is ignored" in outputs["encode"]["text"][0]


def test_other_labels_show_other_things_in_the_same_style(host, flows):
    image = picture(fill="noise", batch=2, height=8, width=12, channels=1)
    for how, snap, seed in (("off", False, None), ("auto", True, 0)):
        workflow = encoding(flows["small-digits"], image, {"labels": "0-2", "snap": snap}, label=1, dequantize=how)
        again = pixels(host.run(workflow)["outputs"]["again"])
        known = style_transfer(flow("small-digits"), noise(2, 1, 8, 12), 1, [0, 1, 2], seed=seed)
        assert again.shape == (6, 3, 8, 12)
        assert (again - known).abs().max() < (1e-4 if seed is None else 1.1 / 255)
        assert (again[1] - noise(2, 1, 8, 12)[0]).abs().max() < (1e-4 if seed is None else 1.1 / 255)


def test_only_models_with_labels_are_given_noise_by_themselves(host, flows):
    for model, label, sides in (("small-glow", -1, (3, 12, 16)), ("small-digits", 1, (1, 8, 12))):
        image = picture(fill="noise", channels=sides[0], height=sides[1], width=sides[2])
        outputs = host.run(encoding(flows[model], image, label=label, dequantize="auto"))["outputs"]
        moved = (pixels(outputs["encoded"])[:, : sides[0]] - noise(1, *sides)).abs().max()
        assert (moved > 1e-4) == (label == 1)
        assert moved < 1.1 / 255


def test_an_upscaler_is_told_the_small_image(host, flows):
    image = picture(fill="noise", height=16, width=12)
    outputs = host.run(encoding(flows["small-srflow"], image))["outputs"]
    assert "shrunk 2 times" in outputs["encode"]["text"][0]
    expected = shrink(noise(1, 3, 16, 12), 2).clamp(0, 1)
    assert (torch.tensor(outputs["latents"]["source"]) - expected).abs().max() < 1e-6
    # With a source of its own, both are cut: 9x7 to 8x6.
    workflow = encoding(flows["small-srflow"], picture(fill="noise", height=18, width=14), source="small.0")
    workflow |= graph(small=picture(fill="noise1", height=9, width=7))
    workflow["encode"]["inputs"]["source"] = ["small", 0]
    outputs = host.run(workflow)["outputs"]
    assert outputs["encoded"]["shape"] == [1, 16, 12, 3]
    assert (torch.tensor(outputs["latents"]["source"]) - noise(1, 3, 9, 7, number=1)[..., :8, :6]).abs().max() == 0
    assert outputs["encode"]["error"][0] < 1e-4
    workflow["small"]["inputs"]["height"] = 8
    refusal(host, workflow, "2 times smaller", "16x14", "18x14")


def test_content_goes_onto_another_small_image(host, flows):
    workflow = encoding(flows["small-srflow"], picture(fill="noise", height=16, width=12))
    workflow |= graph(small=picture(fill="0.25", height=8, width=6))
    own = pixels(host.run(workflow)["outputs"]["again"])
    workflow["decode"]["inputs"]["source"] = ["small", 0]
    outputs = host.run(workflow)["outputs"]
    flow_ = flow("small-srflow")
    latents = [torch.tensor(level) for level in outputs["latents"]["levels"]]
    known = decode(flow_, latents, flow_.encode_condition(torch.full((1, 3, 8, 6), 0.25))).clamp(0, 1)
    assert (pixels(outputs["again"]) - known).abs().max() < 1e-4
    assert (pixels(outputs["again"]) - own).abs().max() > 0.003
    workflow["small"]["inputs"]["width"] = 7
    refusal(host, workflow, "8x6", "8x7")


def test_decoding_at_a_temperature(host, flows):
    workflow = encoding(decode={"temperature": 0.5})
    outputs = host.run(workflow)["outputs"]
    halves = [torch.tensor(level) / 2 for level in outputs["latents"]["levels"]]
    known = decode(flow("small-glow"), halves).clamp(0, 1)
    assert (pixels(outputs["again"]) - known).abs().max() < 1e-5


def test_latents_of_another_model_are_refused_by_name(host, flows):
    workflow = encoding()
    workflow |= graph(other=("FlowcoreLoadModel", {"model_name": "other-glow.safetensors"}))
    workflow["decode"]["inputs"]["model"] = ["other", 0]
    refusal(host, workflow, "made with small-glow.safetensors", "the model given is other-glow.safetensors")


def test_a_copy_of_a_model_under_another_name_takes_its_latents(host, flows):
    folder = host.server.base / "models" / "flows"
    (folder / "copied.safetensors").write_bytes((folder / flows["small-glow"]).read_bytes())
    workflow = encoding()
    workflow |= graph(other=("FlowcoreLoadModel", {"model_name": "copied.safetensors"}))
    workflow["decode"]["inputs"]["model"] = ["other", 0]
    assert host.run(workflow)["outputs"]["again"]["shape"] == [1, 12, 16, 3]


def test_things_that_are_not_what_their_sockets_say_get_a_sentence(host, flows):
    workflow = sampling() | graph(wrong=("FlowcoreTestWrong", {}))
    workflow["decode"]["inputs"]["latents"] = ["wrong", 0]
    refusal(host, workflow, "latents of a flow", "dict")
    workflow = sampling() | graph(wrong=("FlowcoreTestWrong", {}))
    workflow["sample"]["inputs"]["model"] = ["wrong", 1]
    refusal(host, workflow, "Load Flow Model", "Linear")


# --- the shipped models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sides"), [("glow-photos", 64), ("glow-cifar10", 32), ("realnvp-cifar10", 32), ("mnist-styles", 28)]
)
def test_shipped_models_make_images_and_decode_what_they_encode(host, name, sides):
    workflow = sampling(name, samples=2)
    workflow |= graph(encode=("FlowcoreEncode", {"image": None, "model": None, "label": 0}))
    workflow["encode"]["inputs"] |= {"image": ["sample", 0], "model": ["model", 0]}
    workflow |= graph(show=("PreviewAny", {}))
    workflow["show"]["inputs"]["source"] = ["encode", 1]
    outputs = host.run(workflow)["outputs"]
    assert outputs["images"]["shape"] == outputs["again"]["shape"] == [2, sides, sides, 3]
    assert outputs["images"]["range"][1] - outputs["images"]["range"][0] > 0.2
    assert outputs["encode"]["error"][0] < 1e-3
    assert float(outputs["show"]["text"][0]) == outputs["encode"]["error"][0]
