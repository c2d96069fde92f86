"""Flow Sample, Flow Encode and Flow Decode over the API: the same images as in Python, there and back, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_flows import flow
from talk import graph, noise, picture, pixels, refusal

from flowcore.tasks.sample import decode, encode, sample
from flowcore.tasks.transfer import style_transfer

CLOSE = 1e-5
DIGITS = "small-digits.safetensors"
FREE = "free-glow.safetensors"
SRFLOW = "small-srflow.safetensors"


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


# --- sample -----------------------------------------------------------------------------------------------------------


def test_samples_equal_those_of_python_and_decode_to_themselves(host, flows):
    outputs = host.run(sampling())["outputs"]
    images = pixels(outputs["images"])
    assert outputs["images"]["shape"] == [3, 12, 16, 3]
    assert (images - sample(flow("small-glow"), 3, seed=5)).abs().max() < CLOSE
    assert (pixels(outputs["again"]) - images).abs().max() < CLOSE
    name, architecture, sha = outputs["latents"]["model"]
    assert (name, architecture, len(sha)) == ("small-glow.safetensors", "glow", 64)
    assert outputs["latents"]["types"] == ["torch.float32 cpu"]


@pytest.mark.parametrize(("model", "levels"), [("small-glow", 255), ("free-glow", 31)])
def test_images_snap_to_the_gray_levels_of_the_model(host, flows, model, levels):
    workflow = sampling(flows[model], width=16, height=12)
    del workflow["sample"]["inputs"]["snap"]  # on by default in Flow Sample, off in Flow Decode
    workflow["decode"]["inputs"]["snap"] = True
    outputs = host.run(workflow)["outputs"]
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
        ("0-1,2;2", [0, 1, 2, 2, 0]),
        (" 2 - 0 ", [2, 1, 0, 2, 1]),
    ],
)
def test_labels_are_shown_in_turn(host, flows, text, expected):
    outputs = host.run(sampling(DIGITS, samples=5, labels=text))["outputs"]
    assert outputs["latents"]["labels"] == expected
    drawn = sample(flow("small-digits"), 5, seed=5, labels=expected)
    assert outputs["images"]["shape"] == [5, 8, 12, 3]  # gray becomes color, as other nodes expect
    for name in ("images", "again"):
        assert (pixels(outputs[name]) - drawn).abs().max() < CLOSE


def test_temperatures_per_level(host, flows):
    levels = host.run(sampling(temperatures="0, 1", seed=3))["outputs"]["latents"]["levels"]
    plain = host.run(sampling(temperature=1.0, seed=3))["outputs"]["latents"]["levels"]
    assert np.abs(levels[0]).max() == 0
    assert levels[1] == plain[1]


def test_sizes(host, flows):
    assert host.run(sampling(FREE, width=8, height=20))["outputs"]["images"]["shape"] == [3, 20, 8, 3]
    assert host.run(sampling(width=24))["outputs"]["images"]["shape"] == [3, 12, 24, 3]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"model": DIGITS, "labels": "x"}, ["whole numbers", "`x`"]),
        ({"model": DIGITS, "labels": "1.5"}, ["whole numbers"]),
        ({"model": DIGITS, "labels": "-1"}, ["whole numbers"]),
        ({"model": DIGITS, "labels": "3"}, ["0 to 2", "got 3"]),
        ({"model": DIGITS, "labels": "0-999999999"}, ["0 to 2"]),
        ({"model": DIGITS, "labels": "0-2," * 2000}, ["more than 4096"]),
        ({"model": FREE}, ["Set width and height", "multiples of 4"]),
        ({"model": FREE, "width": 8}, ["Set width and height"]),
        ({"width": 10}, ["divisible by 4", "12x10"]),
        ({"model": DIGITS, "width": 8, "height": 8}, ["8x12 only"]),
        ({"model": SRFLOW}, ["glow-photos", "Flow Upscale"]),
        ({"temperatures": "1, 1, 1"}, ["2 levels", "3 temperatures"]),
        ({"temperatures": "warm"}, ["temperatures", "`warm`"]),
        ({"temperatures": "-1, 1"}, [">= 0"]),
    ],
)
def test_invalid_values_raise_a_readable_error(host, flows, inputs, words):
    refusal(host, sampling(**inputs), *words)


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


def test_encoded_latents_equal_those_of_python(host, flows):
    outputs = host.run(encoding(image=picture(fill="noise", batch=2)))["outputs"]
    expected = encode(flow("small-glow"), noise(2, 3, 12, 16))
    for level, known in zip(outputs["latents"]["levels"], expected, strict=True):
        assert (torch.tensor(level) - known).abs().max() < 1e-4
    assert outputs["encode"]["mean"][1] == pytest.approx(float(expected[1].mean()), abs=1e-4)
    deviation = float(expected[0].flatten(1).std(1, correction=0).mean())
    assert outputs["encode"]["deviation"][0] == pytest.approx(deviation, rel=1e-4)


def test_unused_values_are_ignored_with_a_note(host, flows):
    outputs = host.run(sampling(labels="7"))["outputs"]
    assert "ignored" in outputs["sample"]["text"][0]
    assert outputs["images"]["shape"] == [3, 12, 16, 3]
    assert "label is ignored" in host.run(encoding(label=3))["outputs"]["encode"]["text"][0]


def test_fit_and_label_reach_the_task(host, flows):
    image = picture(height=30, width=65)
    assert host.run(encoding(image=image))["outputs"]["encoded"]["shape"] == [1, 12, 16, 3]
    assert host.run(encoding(image=image, fit="crop"))["outputs"]["encoded"]["shape"] == [1, 28, 64, 3]
    refusal(host, encoding(image=picture(height=3), fit="crop"), "at least", "3x16", "resize")
    refusal(host, encoding(DIGITS), "set label to 0 to 2", "got -1")


@pytest.mark.parametrize(("how", "snap", "seed", "close"), [("off", False, None, 1e-4), ("auto", True, 0, 1.1 / 255)])
def test_other_labels_show_other_things_in_the_same_style(host, flows, how, snap, seed, close):
    image = picture(fill="noise", batch=2, height=8, width=12, channels=1)
    workflow = encoding(DIGITS, image, {"labels": "0-2", "snap": snap}, label=1, dequantize=how)
    again = pixels(host.run(workflow)["outputs"]["again"])
    known = style_transfer(flow("small-digits"), noise(2, 1, 8, 12), 1, [0, 1, 2], seed=seed)
    assert again.shape == (6, 3, 8, 12)
    assert (again - known).abs().max() < close
    assert (again[1] - noise(2, 1, 8, 12)[0]).abs().max() < close


@pytest.mark.parametrize(
    ("model", "label", "sides"), [("small-glow", -1, (3, 12, 16)), ("small-digits", 1, (1, 8, 12))]
)
def test_only_images_of_models_with_labels_are_dequantized_by_default(host, flows, model, label, sides):
    image = picture(fill="noise", channels=sides[0], height=sides[1], width=sides[2])
    outputs = host.run(encoding(flows[model], image, label=label, dequantize="auto"))["outputs"]
    moved = (pixels(outputs["encoded"])[:, : sides[0]] - noise(1, *sides)).abs().max()
    assert (moved > 1e-4) == (label == 1)
    assert moved < 1.1 / 255


def test_content_goes_onto_another_small_image(host, flows):
    workflow = encoding(SRFLOW, picture(fill="noise", height=18, width=14))
    workflow |= graph(own=picture(fill="noise1", height=9, width=7), other=picture(fill="0.25", height=8, width=6))
    workflow["encode"]["inputs"]["source"] = ["own", 0]
    first = host.run(workflow)["outputs"]
    assert first["encoded"]["shape"] == [1, 16, 12, 3]  # both are cut to what the model takes
    assert (torch.tensor(first["latents"]["source"]) - noise(1, 3, 9, 7, number=1)[..., :8, :6]).abs().max() == 0
    assert first["encode"]["error"][0] < 1e-4
    workflow["decode"]["inputs"]["source"] = ["other", 0]
    again = pixels(host.run(workflow)["outputs"]["again"])
    latents, small = [torch.tensor(level) for level in first["latents"]["levels"]], flow("small-srflow")
    known = decode(small, latents, small.encode_condition(torch.full((1, 3, 8, 6), 0.25))).clamp(0, 1)
    assert (again - known).abs().max() < 1e-4
    assert (again - pixels(first["again"])).abs().max() > 0.003
    workflow["other"]["inputs"]["width"] = 7
    refusal(host, workflow, "8x6", "8x7")


def test_decoding_at_a_temperature(host, flows):
    outputs = host.run(encoding(decode={"temperature": 0.5}))["outputs"]
    halves = [torch.tensor(level) / 2 for level in outputs["latents"]["levels"]]
    known = decode(flow("small-glow"), halves).clamp(0, 1)
    assert (pixels(outputs["again"]) - known).abs().max() < 1e-5


def test_latents_of_another_model_are_refused_and_those_of_a_copy_are_not(host, flows):
    folder = host.server.base / "models" / "flows"
    (folder / "copied.safetensors").write_bytes((folder / flows["small-glow"]).read_bytes())
    workflow = encoding() | graph(other=("FlowcoreLoadModel", {"model_name": "other-glow.safetensors"}))
    workflow["decode"]["inputs"]["model"] = ["other", 0]
    refusal(host, workflow, "made with small-glow.safetensors", "the model given is other-glow.safetensors")
    workflow["other"]["inputs"]["model_name"] = "copied.safetensors"
    assert host.run(workflow)["outputs"]["again"]["shape"] == [1, 12, 16, 3]


@pytest.mark.parametrize("model", ["small-ffjord", "small-residual"])
def test_a_flow_without_couplings_samples_encodes_interpolates_and_decodes(host, flows, model):
    """It has no log-determinant in closed form, which none of these needs."""
    workflow = graph(
        encoding(flows[model]),
        sample=("FlowcoreSample", {"model": "model.0", "samples": 1, "temperature": 0.7, "seed": 5, "snap": False}),
        sampled=("FlowcoreTestReport", {"image": "sample.0"}),
        walk=("FlowcoreInterpolate", {"a": "encode.0", "b": "sample.1", "frames": 3, "mode": "linear"}),
        walked=("FlowcoreTestLatents", {"latents": "walk.0"}),
        frames=("FlowcoreDecode", {"latents": "walk.0", "model": "model.0"}),
        decoded=("FlowcoreTestReport", {"image": "frames.0"}),
    )
    outputs = host.run(workflow)["outputs"]
    image, drawn = noise(1, 3, 12, 16), sample(flow(model), 1, seed=5)
    for level, known in zip(outputs["latents"]["levels"], encode(flow(model), image), strict=True):
        assert (torch.tensor(level) - known).abs().max() < 1e-4
    assert outputs["encode"]["error"][0] < 1e-4
    assert (pixels(outputs["sampled"]) - drawn).abs().max() < CLOSE
    walked = [torch.tensor(level) for level in outputs["walked"]["levels"]]
    middle = decode(flow(model), [(z[:1] + z[2:]) / 2 for z in walked]).clamp(0, 1)
    assert (pixels(outputs["decoded"]) - torch.cat([image, middle, drawn])).abs().max() < 1e-4


# --- the shipped models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sides"),
    [("glow-photos", 64), ("glow-faces", 64), ("realnvp-photos", 32), ("mnist-styles", 28)],
)
def test_shipped_models_make_images_and_decode_what_they_encode(host, name, sides):
    workflow = sampling(name, samples=2) | graph(encode=("FlowcoreEncode", {"label": 0}), show=("PreviewAny", {}))
    workflow["encode"]["inputs"] |= {"image": ["sample", 0], "model": ["model", 0]}
    workflow["show"]["inputs"]["source"] = ["encode", 1]
    outputs = host.run(workflow)["outputs"]
    assert outputs["images"]["shape"] == outputs["again"]["shape"] == [2, sides, sides, 3]
    assert outputs["images"]["range"][1] - outputs["images"]["range"][0] > 0.2
    assert outputs["encode"]["error"][0] < 1e-3
    assert float(outputs["show"]["text"][0]) == outputs["encode"]["error"][0]
