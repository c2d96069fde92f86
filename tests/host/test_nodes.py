"""What all nodes have in common: odd and bad images, wrong wires, progress, previews, Cancel, and large batches."""

import time

import numpy as np
import pytest
from client import RunError
from small_flows import USED_BY
from talk import graph, loader, newest, opened, picture, refusal, report, shows

# Node to its other inputs, and the output that is a picture.
NODES = {
    "FlowcoreUpscale": ({"temperature": 0.8, "seed": 5}, 0),
    "FlowcoreUpscaleVideo": ({"temperature": 0.8, "seed": 5, "steadiness": 0.9}, 0),
    "FlowcoreColorize": ({"temperature": 1.0, "seed": 5}, 0),
    "FlowcoreScore": ({}, 3),
}
DRAWING = ("FlowcoreUpscale", "FlowcoreColorize")


def making(node, image, **more):
    """Run a node on an image, and report on the picture that it makes."""
    values, slot = NODES[node]
    return graph(
        model=loader(f"{USED_BY.get(node, 'small-glow')}.safetensors"),
        image=image,
        node=(node, {"image": "image.0", "model": "model.0"} | values | more),
        report=report(f"node.{slot}"),
    )


@pytest.mark.parametrize("node", ["FlowcoreUpscaleVideo", "FlowcoreColorize"])
def test_a_video_is_worked_on_as_one_clip_and_keeps_its_frame_rate(host, flows, node):
    frames = picture(fill="noise", batch=3, height=8)
    more = {"frames": "video"} if node == "FlowcoreColorize" else {}
    expected = host.outputs(making(node, frames, **more))["report"]["rows"]
    workflow = making(node, ("CreateVideo", {"images": "frames.0", "fps": 7.0}))
    parts = ("GetVideoComponents", {"video": "node.1"})
    outputs = host.outputs(workflow, frames=frames, parts=parts, **shows(fps="parts.2"))
    assert outputs["report"]["rows"] == expected
    assert outputs["fps"]["text"] == ["7.0"]


def test_a_video_of_pictures_with_odd_sides_and_alpha_can_be_saved(host, flows):
    video = ("SaveVideo", {"video": "node.1", "filename_prefix": "odd", "format": "auto", "codec": "auto"})
    workflow = making("FlowcoreColorize", picture(height=7, width=5, channels=4))
    assert host.outputs(workflow, save=video)["save"]["images"]


# A preview of the first would have no width; tests/core/test_hostile_images.py tries many more.
UNUSUAL = [{"height": 500, "width": 2}, {"height": 1, "width": 1}, {"channels": 4}, {"dtype": "float16"}]


@pytest.mark.parametrize("node", DRAWING)
@newest
def test_unusual_images_work(host, flows, node):
    scale = 2 if node == "FlowcoreUpscale" else 1
    for facts in UNUSUAL:
        report = host.outputs(making(node, picture(**facts)))["report"]
        sides = [scale * facts.get(side, usual) for side, usual in (("height", 12), ("width", 16))]
        assert report["shape"] == [1, *sides, 4 if facts.get("channels") == 4 else 3]
        assert report["dtype"] == ["float32"]
        assert 0 <= report["range"][0] <= report["range"][1] <= 1


def test_wires_of_a_wrong_type_raise_a_readable_error(host, flows):
    for node, key, output, words in (
        ("FlowcoreColorize", "model", 1, ["Load Flow Model", "Linear"]),
        ("FlowcoreUpscale", "model", 1, ["Load Flow Model", "Linear"]),
        ("FlowcoreColorize", "hints", 2, ["Flow Color Hints", "int"]),
        ("FlowcoreColorize", "latents", 0, ["latents of a flow", "dict"]),
    ):
        workflow = making(node, picture(), **{key: f"wrong.{output}"})
        refusal(host, graph(workflow, wrong=("FlowcoreTestWrong", {})), *words)
    video = ["(batch, height, width, channels)", "(1, 1, 12, 16, 3)", "frames"]
    for node in ("FlowcoreUpscale", "FlowcoreUpscaleVideo"):
        refusal(host, making(node, picture(dtype="video")), *video)


def test_a_colorizer_is_sent_to_its_own_nodes(host, flows):
    sides = {"with_attribute": "image.0", "without_attribute": "image.0"}
    for kind, inputs in (
        ("FlowcoreSample", {"samples": 1, "temperature": 1.0, "seed": 0}),
        ("FlowcoreEncode", {"image": "image.0"}),
        ("FlowcoreDecode", {"latents": "colors.0"}),
        ("FlowcoreScore", {"image": "image.0"}),
        ("FlowcoreAttributeDirection", sides),
    ):
        workflow = graph(
            model=loader("small-color.safetensors"),
            image=picture(fill="noise"),
            colors=("FlowcoreEncodeColor", {"image": "image.0", "model": "model.0"}),
            node=(kind, {"model": "model.0"} | inputs),
            **shows(show="node.0"),
        )
        refusal(host, workflow, "Flow Colorize", "Flow Encode Color")


HINTED = making("FlowcoreColorize", picture(), samples=3, hints="hints.0", hint_steps=7)
SAMPLED = ("FlowcoreSample", {"model": "model.0", "samples": 4, "temperature": 0.7, "seed": 77})
RUNS = {  # and the sizes of the previews
    "upscale": (making("FlowcoreUpscale", picture(), samples=3), [(16, 12)] + [(32, 24)] * 3),  # first the source
    "colorize": (
        graph(HINTED, hints=("FlowcoreColorHints", {"image": "image.0", "points": "1, 1, #c04020"})),
        {(16, 12)},
    ),
    "sample": (graph(model=loader("small-digits.safetensors"), node=SAMPLED, report=report("node.0")), [(12, 8)] * 4),
    "score": (making("FlowcoreScore", picture(fill="noise3", batch=2), samples=3), None),
}


@pytest.mark.parametrize("name", RUNS)
def test_progress_moves_to_its_end_and_results_are_shown_as_they_are_finished(host, flows, name):
    workflow, sizes = RUNS[name]
    host.forget()
    events = []
    host.run(workflow, events.append)
    values = [
        (event["data"]["value"], event["data"]["max"])
        for event in events
        if isinstance(event, dict) and event["type"] == "progress" and event["data"]["node"] == "node"
    ]
    assert values == sorted(values)
    assert values[-1][0] == values[-1][1]
    previews = [event for event in events if isinstance(event, bytes) and event[:4] == b"\0\0\0\1"]
    shown = [opened(preview[8:]).size for preview in previews]
    assert sizes is None or (set(shown) if isinstance(sizes, set) else shown) == sizes


@newest
def test_cancel_stops_and_the_next_run_works(host, flows):
    """That every task stops is tested without a host; nodes pass it on together with their progress."""
    values = {"image": "large.0", "model": "srflow.0", "temperature": 0.9, "seed": 1, "samples": 64}
    long = graph(
        srflow=loader("srflow-x4"),
        large=picture(batch=4, height=96, width=96),
        node=("FlowcoreUpscale", values),
        show=("PreviewImage", {"images": "node.0"}),
    )
    asked = None

    def watch(event):
        nonlocal asked
        begun = isinstance(event, dict) and event["type"] == "executing" and event["data"]["node"] == "node"
        if begun and asked is None:
            time.sleep(0.7)  # let it begin
            host.cancel()
            asked = time.time()

    with pytest.raises(RunError, match="cancelled") as stopped:
        host.run(long, watch)
    assert stopped.value.detail["timestamp"] / 1000 - asked < 3.0  # the server's own clock, which is this one
    assert host.outputs(making("FlowcoreUpscale", picture(), seed=78))["report"]["shape"] == [1, 24, 32, 3]


# --- twenty images in one batch: each becomes what it would become alone ----------------------------------------------

COUNT, PLACE = 20, 6
BATCH = picture(fill="noise", batch=COUNT, height=8)
LARGE = picture(fill="noise", batch=COUNT, height=16, width=24)  # for a face
TABLE = {"temperatures": "0, 0.8", "seed": 5, "seeds": 2}
SAMPLES = {"temperature": 0.8, "seed": 5, "samples": 2}
BEST = {"images": "node.0", "source": "image.0", "by": "consistency", "keep": 1}
FACE = {"left_eye": "9, 7", "right_eye": "14, 7", "size": 16}


def one(kind, **inputs):
    node = (kind, {"image": "image.0", "model": "model.0"} | inputs)
    return {"model": loader(f"{USED_BY.get(kind, 'small-glow')}.safetensors"), "node": node}


ENLARGED = one("FlowcoreUpscale", **SAMPLES)
COLORS = {"colors": ("FlowcoreEncodeColor", {"image": "image.0", "model": "model.0"})}
ALIGNED = {"node": ("FlowcoreAlignFace", {"image": "image.0"} | FACE)}
PASTED = {"paste": ("FlowcorePasteFace", {"image": "image.0", "face": "node.0", "place": "node.1"})}
# What is done: nodes after `image`, where the pictures come out, and how many there are of each image. That tasks do so
# is tested without a host: here is what nodes put together.
DONE = {
    "grid": (one("FlowcoreTemperatureGrid", **TABLE), "node.1", 4),
    "sheets": (one("FlowcoreTemperatureGrid", **TABLE), "node.0", 1),
    "best": (ENLARGED | {"best": ("FlowcoreBestOf", BEST)}, "best.0", 1),
    "diversity": (ENLARGED | {"map": ("FlowcoreDiversityMap", {"images": "node.0", "samples": 2})}, "map.0", 1),
    "transfer": (one("FlowcoreColorize", latents="colors.0", **SAMPLES | {"samples": 1}) | COLORS, "node.0", 1),
    "pasted": (ALIGNED | PASTED, "paste.0", 1),
}


def pictures(host, nodes, wire, image):
    outputs = host.outputs(**image, **nodes, show=report(wire))
    return outputs, outputs["show"]["shape"], np.array(outputs["show"]["rows"])


@pytest.mark.parametrize("name", DONE)
@newest
def test_each_of_twenty_images_becomes_what_it_would_become_alone(host, flows, name):
    nodes, wire, each = DONE[name]
    batch = LARGE if name == "pasted" else BATCH
    outputs, shape, rows = pictures(host, nodes, wire, {"image": batch})
    assert shape[0] == COUNT * each
    first = {"batch": batch, "image": ("ImageFromBatch", {"image": "batch.0", "batch_index": PLACE, "length": 1})}
    _, alone, expected = pictures(host, nodes, wire, first)
    assert alone == [each, *shape[1:]]
    if len(rows):  # else there are more numbers than the report sends
        assert np.abs(rows[PLACE * each : (PLACE + 1) * each] - expected).max() <= 1.001 / 255
        assert len(np.unique(rows, axis=0)) > COUNT - 1  # not one image twenty times
    for shown in (node["flowcore_gallery"] for node in outputs.values() if "flowcore_gallery" in node):
        labels = [(entry["image"], entry.get("temperature"), entry.get("seed")) for entry in shown]
        assert len(set(labels)) == len(shown) == len({entry["filename"] for entry in shown})
        assert [entry["number"] for entry in shown] == list(range(1, len(shown) + 1))
        assert [entry["image"] for entry in shown] == sorted(entry["image"] for entry in shown)


def test_a_gallery_shows_sixty_four_of_them_at_most(host, flows):
    values = SAMPLES | {"samples": 4, "seed": 2**64 - 2}
    save = ("SaveImage", {"images": "node.0", "filename_prefix": "twenty"})
    workflow = graph(image=BATCH, **one("FlowcoreUpscale", **values), save=save)
    outputs = host.outputs(workflow)
    shown = outputs["node"]["flowcore_gallery"]
    seeds = (2**64 - 2, 2**64 - 1, 0, 1)
    assert [(entry["image"], entry["seed"]) for entry in shown] == [(k // 4, seeds[k % 4]) for k in range(64)]
    names = [image["filename"] for image in outputs["save"]["images"]]
    assert len(set(names)) == 80
    last = one("FlowcoreUpscale", **values, pick=80)
    assert len(host.outputs(workflow, **last)["save"]["images"]) == 1  # one that is not shown
