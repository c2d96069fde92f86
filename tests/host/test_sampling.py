"""Flow Sample, Flow Encode and Flow Decode over the API: the same images as in Python, there and back, and refusals."""

import json

import comfyui
import numpy as np
import pytest
import torch
from client import RunError
from latent_graphs import encoding, sampling, tensors
from PIL import Image
from small_flows import flow
from talk import array, graph, loader, newest, noise, picture, pixels, refusal, report

from flowcore.flows.dequantization import quantize
from flowcore.images.resize import downsample
from flowcore.tasks.sample import decode, dequantized_image, encode, sample

pytestmark = newest
CLOSE = 1e-5
DIGITS = "small-digits.safetensors"
FREE = "free-glow.safetensors"
SRFLOW = "small-srflow.safetensors"


def apart(ours, known):
    """The largest difference of pictures, or of lists of latents."""
    pairs = zip(ours, known, strict=True) if isinstance(ours, list) else [(ours, known)]
    return max(float((a - b).abs().max()) for a, b in pairs)


ANIMALS = "small-animals.safetensors"
GRAPHS = sorted((comfyui.ROOT / "docs" / "tarflow").glob("*.json"))


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_graphs_name_the_file_that_they_miss_and_run_with_a_model_of_its_kind(host, flows, path):
    for name in ("cat.png", "other-cat.png"):
        host.put(name, Image.effect_noise((40, 30), 60).convert("RGB"))
    workflow = json.loads(path.read_text())
    with pytest.raises(RunError, match=r"there is no flow model 'afhq_model_8_768_8_8_0.07.pth'. Put the file into"):
        host.run(workflow)
    workflow["model"]["inputs"]["model_name"] = ANIMALS
    made = host.images(workflow)
    assert [image.size for image in made] == [(16, 12)] * {"animals": 3, "cat-to-dog": 2, "morph": 8}[path.stem]
    if path.stem != "animals":  # the photograph comes back
        ends = [made[0]] if path.stem == "cat-to-dog" else [made[0], made[-1]]
        outputs = host.outputs(workflow, seen=report("encode.2" if len(ends) == 1 else "a.2"))
        assert apart(pixels(outputs["seen"])[0].permute(1, 2, 0), torch.tensor(array(ends[0]))) < 1 / 254


def test_guidance_and_noise_reach_the_task_and_other_models_ignore_them(host, flows):
    asked = {"samples": 2, "labels": "dog, wild", "guidance": 2.0, "denoise": False}
    made = pixels(host.outputs(sampling(flows["small-animals"], **asked))["images"])
    expected = sample(flow("small-animals"), 2, seed=5, labels=[1, 2], guidance=2, denoise=False)
    assert apart(made, expected) < CLOSE
    outputs = host.outputs(sampling(guidance=2.0))
    assert "guidance is ignored: this model was not made for it." in outputs["sample"]["text"][0]


def test_samples_equal_those_of_python_and_decode_to_themselves(host, flows):
    outputs = host.outputs(sampling())
    images = pixels(outputs["images"])
    assert outputs["images"]["shape"] == [3, 12, 16, 3]
    assert apart(images, sample(flow("small-glow"), 3, seed=5)) < CLOSE
    assert apart(pixels(outputs["again"]), images) < CLOSE
    name, architecture, sha = outputs["latents"]["model"]
    assert (name, architecture, len(sha)) == ("small-glow.safetensors", "glow", 64)
    assert outputs["latents"]["types"] == ["torch.float32 cpu"]


def test_images_snap_to_the_gray_levels_of_the_model(host, flows):
    workflow, levels = sampling(FREE, width=16, height=12), 31
    del workflow["sample"]["inputs"]["snap"]  # on by default in Flow Sample, off in Flow Decode
    workflow["decode"]["inputs"]["snap"] = True
    outputs = host.outputs(workflow)
    expected = sample(flow("free-glow"), 3, size=(12, 16), seed=5, snapped=True)
    for images in (pixels(outputs["images"]), pixels(outputs["again"])):
        assert apart(images * levels, (images * levels).round()) < 1e-3
        off = (images - expected).abs() * levels
        assert off.max() < 1.01  # rounding may carry a value over the edge of its level
        assert (off > 0.5).float().mean() < 0.01


def test_labels_are_shown_in_turn(host, flows):
    labels = {"": [0, 1, 2, 0, 1], "2": [2] * 5, "0-1,2;2": [0, 1, 2, 2, 0], " 2 - 0 ": [2, 1, 0, 2, 1]}
    for text, expected in labels.items():
        outputs = host.outputs(sampling(DIGITS, samples=5, labels=text))
        assert outputs["latents"]["labels"] == expected
        drawn = sample(flow("small-digits"), 5, seed=5, labels=expected)
        assert outputs["images"]["shape"] == [5, 8, 12, 3]  # gray becomes color, as other nodes expect
        for name in ("images", "again"):
            assert apart(pixels(outputs[name]), drawn.expand(-1, 3, -1, -1)) < CLOSE


def test_temperatures_per_level_and_sizes_reach_the_task(host, flows):
    levels, plain = (
        host.outputs(sampling(seed=3, **values))["latents"]["levels"]
        for values in ({"temperatures": "0, 1"}, {"temperature": 1.0})
    )
    assert np.abs(levels[0]).max() == 0
    assert levels[1] == plain[1]
    assert host.outputs(sampling(FREE, width=8, height=20))["images"]["shape"] == [3, 20, 8, 3]
    assert host.outputs(sampling(width=24))["images"]["shape"] == [3, 12, 24, 3]


REFUSED = [
    ({"model": DIGITS, "labels": "x"}, ["whole numbers", "`x`"]),
    ({"model": DIGITS, "labels": "3"}, ["0 to 2", "got 3"]),
    ({"model": DIGITS, "labels": "0-999999999"}, ["0 to 2"]),
    ({"model": DIGITS, "labels": "0-2," * 2000}, ["more than 4096"]),
    ({"model": FREE}, ["Set width and height", "multiples of 4"]),
    ({"model": FREE, "width": 8}, ["Set width and height"]),
    ({"model": SRFLOW}, ["sample needs", "glow-photos"]),
    ({"temperatures": "warm"}, ["temperatures", "`warm`"]),
]


def test_invalid_values_raise_a_readable_error(host, flows):
    for inputs, words in REFUSED:
        refusal(host, sampling(**inputs), *words)
    asked = {"model": "model.0", "temperatures": "1", "seed": 1, "seeds": 1}
    grid = graph(model=loader(FREE), grid=("FlowcoreSampleGrid", asked), images=report("grid.1"))
    refusal(host, grid, "Use Flow Sample, which has width and height")


@pytest.mark.parametrize(
    ("model", "inputs", "facts"),
    [
        ("small-glow", {}, {"batch": 3}),
        ("small-ffjord", {}, {}),
        ("small-digits", {"label": 2}, {"batch": 2, "height": 8, "width": 12, "channels": 1}),
        ("small-srflow", {}, {"batch": 2, "height": 16, "width": 12}),
    ],
)
def test_an_image_is_encoded_as_in_python_and_decodes_to_itself(host, flows, model, inputs, facts):
    image = picture(fill="noise", **facts)
    outputs = host.outputs(encoding(flows[model], image, **inputs))
    given = noise(*(image[1][side] for side in ("batch", "channels", "height", "width")))
    assert apart(pixels(outputs["encoded"]), given.expand(-1, 3, -1, -1)) < 1e-6
    assert apart(pixels(outputs["again"]), given.expand(-1, 3, -1, -1)) < 1e-4
    ui, made = outputs["encode"], flow(model)
    assert ui["error"][0] < 1e-4
    assert "largest error" in ui["text"][-1]
    assert outputs["latents"]["labels"] == [2] * (2 * ("label" in inputs))
    source = torch.tensor([2]) if made.classes else downsample(given, 2).clamp(0, 1)
    latents = encode(made, given, made.encode_condition(source) if made.classes or model == "small-srflow" else None)
    assert apart(tensors(outputs["latents"]), latents) < 1e-4
    assert ui["mean"] == pytest.approx([float(z.mean()) for z in latents], abs=1e-4)
    deviation = [float(z.flatten(1).std(1, correction=0).mean()) for z in latents]
    assert ui["deviation"] == pytest.approx(deviation, rel=1e-4)


def test_unused_values_are_ignored_with_a_note(host, flows):
    outputs = host.outputs(sampling(labels="7"))
    assert "ignored" in outputs["sample"]["text"][0]
    assert outputs["images"]["shape"] == [3, 12, 16, 3]
    assert "label is ignored" in host.outputs(encoding(label=3))["encode"]["text"][0]


def test_fit_and_label_reach_the_task(host, flows):
    image = picture(height=30, width=65)
    assert host.outputs(encoding(image=image))["encoded"]["shape"] == [1, 12, 16, 3]
    assert host.outputs(encoding(image=image, fit="crop"))["encoded"]["shape"] == [1, 28, 64, 3]


@pytest.mark.parametrize(("how", "snap", "close"), [("off", False, 1e-4), ("auto", True, 1.1 / 255)])
def test_other_labels_show_other_things_in_the_same_style(host, flows, how, snap, close):
    image = picture(fill="noise", batch=2, height=8, width=12, channels=1)
    workflow = encoding(DIGITS, image, {"labels": "0-2", "snap": snap}, label=1, dequantize=how)
    again = pixels(host.outputs(workflow)["again"])
    model, drawn = flow("small-digits"), noise(2, 1, 8, 12)
    given = dequantized_image(model, drawn) if snap else drawn
    latents = encode(model, given, model.encode_condition(torch.tensor([1])))
    shown = model.encode_condition(torch.tensor([0, 1, 2, 0, 1, 2]))
    known = decode(model, [z.repeat_interleave(3, 0) for z in latents], shown).clamp(0, 1)
    known = quantize(model, known) if snap else known
    assert again.shape == (6, 3, 8, 12)
    assert apart(again, known.expand(-1, 3, -1, -1)) < close
    assert apart(again[1], drawn[0].expand(3, -1, -1)) < close


def test_only_images_of_models_with_labels_are_dequantized_by_default(host, flows):
    for model, label, sides in (("small-glow", -1, (3, 12, 16)), ("small-digits", 1, (1, 8, 12))):
        image = picture(fill="noise", channels=sides[0], height=sides[1], width=sides[2])
        outputs = host.outputs(encoding(flows[model], image, label=label, dequantize="auto"))
        moved = apart(pixels(outputs["encoded"])[:, : sides[0]], noise(1, *sides))
        assert (moved > 1e-4) == (label == 1)
        assert moved < 1.1 / 255


def test_content_goes_onto_another_small_image(host, flows):
    workflow = encoding(SRFLOW, picture(fill="noise", height=18, width=14), source="own.0")
    workflow = graph(
        workflow, own=picture(fill="noise1", height=9, width=7), other=picture(fill="0.25", height=8, width=6)
    )
    first = host.outputs(workflow)
    assert first["encoded"]["shape"] == [1, 16, 12, 3]  # both are cut to what the model takes
    assert apart(torch.tensor(first["latents"]["source"]), noise(1, 3, 9, 7, number=1)[..., :8, :6]) == 0
    assert first["encode"]["error"][0] < 1e-4
    workflow["decode"]["inputs"]["source"] = ["other", 0]
    again, model = pixels(host.outputs(workflow)["again"]), flow("small-srflow")
    cond = model.encode_condition(torch.full((1, 3, 8, 6), 0.25))
    assert apart(again, decode(model, tensors(first["latents"]), cond).clamp(0, 1)) < 1e-4
    assert apart(again, pixels(first["again"])) > 0.003
    workflow["other"]["inputs"]["width"] = 7
    refusal(host, workflow, "8x6", "8x7")


def test_a_canvas_is_shown_all_pictures_that_were_decoded_and_scripts_none(host, flows):
    workflow = sampling(seed=77)
    assert "images" not in host.outputs(workflow)["decode"]
    host.forget()
    assert len(host.run_from_canvas(workflow)["outputs"]["decode"]["images"]) == 3


def test_decoding_at_a_temperature(host, flows):
    outputs = host.outputs(encoding(decode={"temperature": 0.5}))
    known = decode(flow("small-glow"), [z / 2 for z in tensors(outputs["latents"])]).clamp(0, 1)
    assert apart(pixels(outputs["again"]), known) < 1e-5


def test_latents_of_another_model_are_refused_and_those_of_a_copy_are_not(host, flows):
    folder = host.server.base / "models" / "flows"
    (folder / "copied.safetensors").write_bytes((folder / flows["small-glow"]).read_bytes())
    workflow = graph(encoding(decode={"model": "other.0"}), other=loader("other-glow.safetensors"))
    refusal(host, workflow, "made with small-glow.safetensors", "the connected model is other-glow.safetensors")
    workflow["other"]["inputs"]["model_name"] = "copied.safetensors"
    assert host.outputs(workflow)["again"]["shape"] == [1, 12, 16, 3]
