"""Twenty images in one batch, through every node that takes pictures: each becomes what it would become alone."""

from __future__ import annotations

import numpy as np
import pytest
from talk import graph, loader, picture, report

COUNT, PLACE = 20, 6
BATCH = picture(fill="noise", batch=COUNT, height=8)
LARGE = picture(fill="noise", batch=COUNT, height=16, width=24)  # for a face
TABLE = {"temperatures": "0, 0.8", "seed": 5, "seeds": 2}
SAMPLES = {"temperature": 0.8, "seed": 5, "samples": 2}
BEST = {"images": "node.0", "source": "image.0", "by": "consistency", "keep": 1}
FACE = {"left_eye": "9, 7", "right_eye": "14, 7", "size": 16}


def one(model, kind, **inputs):
    if model is None:
        return {"node": (kind, inputs)}
    return {"model": loader(f"{model}.safetensors"), "node": (kind, {"model": "model.0"} | inputs)}


UPSCALED = one("small-srflow", "FlowcoreUpscale", image="image.0", **SAMPLES)
ENCODED = one("small-glow", "FlowcoreEncode", image="image.0")
# What is done: nodes after `image`, where the pictures come out, and how many there are of each image.
DONE = {
    "upscale": (UPSCALED, "node.0", 2),
    "grid": (one("small-srflow", "FlowcoreTemperatureGrid", image="image.0", **TABLE), "node.1", 4),
    "sheets": (one("small-srflow", "FlowcoreTemperatureGrid", image="image.0", **TABLE), "node.0", 1),
    "best": (UPSCALED | {"best": ("FlowcoreBestOf", BEST)}, "best.0", 1),
    "diversity": (UPSCALED | {"map": ("FlowcoreDiversityMap", {"images": "node.0", "samples": 2})}, "map.0", 1),
    "colorize": (one("small-color", "FlowcoreColorize", image="image.0", **SAMPLES), "node.0", 2),
    "transfer": (
        one("small-color", "FlowcoreColorize", image="image.0", latents="colors.0", **SAMPLES | {"samples": 1})
        | {"colors": ("FlowcoreEncodeColor", {"image": "image.0", "model": "model.0"})},
        "node.0",
        1,
    ),
    "decode": (ENCODED | {"back": ("FlowcoreDecode", {"latents": "node.0", "model": "model.0"})}, "back.0", 1),
    "heat": (one("small-glow", "FlowcoreScore", image="image.0", seed=5), "node.1", 1),
    "face": (one(None, "FlowcoreAlignFace", image="image.0", **FACE), "node.0", 1),
    "pasted": (
        one(None, "FlowcoreAlignFace", image="image.0", **FACE)
        | {"paste": ("FlowcorePasteFace", {"image": "image.0", "face": "node.0", "place": "node.1"})},
        "paste.0",
        1,
    ),
}


def pictures(host, nodes, wire, image):
    outputs = host.outputs(**image, **nodes, show=report(wire))
    return outputs, outputs["show"]["shape"], np.array(outputs["show"]["rows"])


@pytest.mark.parametrize("name", DONE)
def test_each_of_twenty_images_becomes_what_it_would_become_alone(host, flows, name):
    nodes, wire, each = DONE[name]
    batch = LARGE if name in ("face", "pasted") else BATCH
    outputs, shape, rows = pictures(host, nodes, wire, {"image": batch})
    assert shape[0] == COUNT * each
    first = {"batch": batch, "image": ("ImageFromBatch", {"image": "batch.0", "batch_index": PLACE, "length": 1})}
    _, alone, expected = pictures(host, nodes, wire, first)
    assert alone == [each, *shape[1:]]
    if len(rows):  # else there are more numbers than the report sends
        assert np.abs(rows[PLACE * each : (PLACE + 1) * each] - expected).max() <= 1.001 / 255
        assert len(np.unique(rows, axis=0)) > COUNT - 1  # not one image twenty times
    for shown in (node["flowcore_gallery"] for node in outputs.values() if "flowcore_gallery" in node):
        labels = [(entry["image"], entry.get("temperature"), entry["seed"]) for entry in shown]
        assert len(set(labels)) == len(shown) == len({entry["filename"] for entry in shown})
        assert [entry["number"] for entry in shown] == list(range(1, len(shown) + 1))
        assert [entry["image"] for entry in shown] == sorted(entry["image"] for entry in shown)


def test_a_gallery_shows_sixty_four_of_them_at_most(host, flows):
    values = {**SAMPLES, "samples": 4, "seed": 2**64 - 2, "image": "image.0"}
    asked = one("small-srflow", "FlowcoreUpscale", **values)
    save = ("SaveImage", {"images": "node.0", "filename_prefix": "twenty"})
    workflow = graph(image=BATCH, **asked, save=save)
    outputs = host.outputs(workflow)
    shown = outputs["node"]["flowcore_gallery"]
    seeds = (2**64 - 2, 2**64 - 1, 0, 1)
    assert [(entry["image"], entry["seed"]) for entry in shown] == [(k // 4, seeds[k % 4]) for k in range(64)]
    names = [image["filename"] for image in outputs["save"]["images"]]
    assert len(set(names)) == 80
    last = graph(workflow, node=("FlowcoreUpscale", values | {"model": "model.0", "pick": 80}))
    assert len(host.outputs(last)["save"]["images"]) == 1  # one that is not shown
