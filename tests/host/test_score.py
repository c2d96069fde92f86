"""Flow Score over the API: the numbers are those of Python, the pictures show them, and lists are ranked together."""

import numpy as np
import pytest
import torch
from small_flows import flow
from talk import graph, loader, newest, noise, picture, pixels, report, shows

from flowcore import score
from flowcore.images.resize import downsample

pytestmark = newest
GLOW = "small-glow.safetensors"


def scoring(model=GLOW, image=None, second=None, **values):
    """Score one image, or a list of two, and report on all outputs."""
    listed = {"second": second, "list": ("FlowcoreTestImages", {"first": "image.0", "second": "second.0"})}
    return graph(
        **(listed if second else {}),
        model=loader(model),
        image=image or picture(fill="noise", batch=3),
        score=("FlowcoreScore", {"image": "list.0" if second else "image.0", "model": "model.0"} | values),
        gray=("MaskToImage", {"mask": "score.2"}),
        heat=report("score.1"),
        mask=report("gray.0"),
        ranked=report("score.3"),
        **shows(bits="score.0", report="score.4"),
    )


def agree(ui, known):
    assert ui["bits_per_dim"] == pytest.approx(known.bits_per_dim.tolist(), abs=1e-4)
    assert ui["corrected"] == pytest.approx(known.complexity_corrected.tolist(), abs=1e-4)
    assert np.array(ui["per_level"]) == pytest.approx(known.per_level.numpy(), abs=1e-4)


def test_scores_and_heat_maps_equal_those_of_python(host, flows):
    outputs = host.outputs(scoring(seed=7))
    known = score(flow("small-glow"), noise(3, 3, 12, 16), seed=7)
    agree(outputs["score"], known)
    assert outputs["score"]["spread"] == [None] * 3
    assert len(outputs["bits"]["text"]) in (1, 3)
    order = known.complexity_corrected.argsort().tolist()
    assert outputs["score"]["order"] == order
    assert outputs["ranked"]["shape"] == [3, 12, 16, 3]
    assert (pixels(outputs["ranked"]) - noise(3, 3, 12, 16)[order]).abs().max() < 1e-6
    table = outputs["report"]["text"][0].splitlines()
    assert [int(line.split()[1]) for line in table[1:4]] == order
    bits = [float(line.split()[2]) for line in table[1:4]]
    assert bits == pytest.approx(known.bits_per_dim[order].tolist(), abs=1e-4)
    # The heat map is bright where the bits go.
    known = known.map.numpy()
    assert outputs["heat"]["shape"] == outputs["mask"]["shape"] == [3, 12, 16, 3]
    mask, heat = pixels(outputs["mask"])[:, 0].numpy(), pixels(outputs["heat"]).numpy()
    low, high = (np.percentile(known, p, axis=(1, 2), keepdims=True) for p in (2, 98))
    assert np.abs(mask - ((known - low) / (high - low)).clip(0, 1)).max() < 1e-3
    assert (mask.min(), mask.max()) == (0, 1)
    assert 0 <= heat.min() <= heat.max() <= 1
    # Brighter, to the eye, wherever the mask is higher.
    linear = np.where(heat <= 0.04045, heat / 12.92, ((heat + 0.055) / 1.055) ** 2.4)
    luminance = np.tensordot([0.2126, 0.7152, 0.0722], linear, (0, 1)).ravel()
    assert (np.diff(luminance[np.argsort(mask.ravel())]) > -1e-6).all()
    assert luminance.max() - luminance.min() > 0.9


def test_more_draws_and_other_noise(host, flows):
    options = {"samples": 4, "dequantization": "gaussian", "seed": 3}
    outputs = host.outputs(scoring(image=picture(fill="noise"), **options))
    known = score(flow("small-glow"), noise(1, 3, 12, 16), **options)
    agree(outputs["score"], known)
    assert outputs["score"]["spread"] == pytest.approx(known.spread.tolist(), rel=1e-3)


def test_a_list_of_any_sizes_is_ranked_together(host, flows):
    workflow = scoring("free-glow.safetensors", picture(fill="noise", batch=2), picture(height=24, width=9), seed=5)
    outputs = host.outputs(workflow)
    known = score(flow("free-glow"), noise(2, 3, 12, 16), seed=5)
    ui = outputs["score"]
    assert len(ui["bits_per_dim"]) == 3
    assert ui["bits_per_dim"][:2] == pytest.approx(known.bits_per_dim.tolist(), abs=1e-4)
    assert sorted(ui["order"]) == [0, 1, 2]
    assert [ui["corrected"][i] for i in ui["order"]] == sorted(ui["corrected"])
    # Sizes differ, so pictures come as a list, in the order of the images; and the ranked ones in theirs.
    shapes = [[1, 12, 16, 3], [1, 12, 16, 3], [1, 24, 8, 3]]
    assert outputs["heat"]["shape"] == outputs["mask"]["shape"] == [n for shape in shapes for n in shape]
    assert outputs["ranked"]["shape"] == [n for i in ui["order"] for n in shapes[i]]
    assert "1 of 3 images were resized or cropped" in outputs["report"]["text"][0]
    assert "5 bits" in outputs["report"]["text"][0]


def test_a_list_under_a_model_of_one_size_becomes_one_batch(host, flows):
    workflow = scoring(image=picture(fill="noise", batch=2), second=picture(height=30, width=30), seed=5)
    outputs = host.outputs(workflow)
    assert outputs["heat"]["shape"] == outputs["ranked"]["shape"] == [3, 12, 16, 3]
    assert "1 of 3 images were resized or cropped" in outputs["score"]["notes"][0]
    workflow["score"]["inputs"]["fit"] = "crop"  # to the largest that it takes
    assert host.outputs(workflow)["heat"]["shape"] == [1, 12, 16, 3] * 2 + [1, 28, 28, 3]


def test_an_enlarged_image_is_not_ranked(host, flows):
    outputs = host.outputs(scoring(image=picture(height=4, width=4), second=picture(fill="noise")))
    assert outputs["score"]["order"] == [1, 0]
    assert outputs["report"]["text"][0].splitlines()[2].split()[0] == "-"


def test_labels_and_small_images(host, flows):
    image = picture(fill="noise", height=8, width=12, channels=1)
    outputs = host.outputs(scoring(flows["small-digits"], image, label=2))
    digits = flow("small-digits")
    agree(outputs["score"], score(digits, noise(1, 1, 8, 12), torch.tensor([2])))
    assert outputs["heat"]["shape"] == [1, 8, 12, 3]
    image = picture(fill="noise", height=16, width=12, batch=2)
    outputs = host.outputs(scoring(flows["small-srflow"], image))
    large = noise(2, 3, 16, 12)
    agree(outputs["score"], score(flow("small-srflow"), large, downsample(large, 2).clamp(0, 1)))
    assert "shrunk 2 times" in outputs["report"]["text"][0]


def test_an_estimated_score_says_from_what(host, flows):
    outputs = host.outputs(scoring(flows["small-ffjord"], seed=7, probes=3))
    agree(outputs["score"], score(flow("small-ffjord"), noise(3, 3, 12, 16), seed=7, probes=3))
    assert "3 random probes" in outputs["report"]["text"][0]


def test_pictures_of_flow_example_are_called_by_their_files(host, flows):
    workflow = scoring(image=("FlowcoreExample", {"picture": "three landscapes"}), fit="crop")
    said = host.outputs(workflow)["score"]["text"][-1]
    assert {"lake.jpg", "desert.jpg", "canyon.jpg"} == {word for word in said.split() if word.endswith(".jpg")}
    assert said.startswith("Most usual for this model: ")
