"""The explorer between images, and the gallery that nodes leave for the canvas, over the API."""

from __future__ import annotations

import io

from PIL import Image
from talk import graph, loader, refusal, upscale
from test_latents import DIGITS, GLOW, drawn, levels, same, working

from flowcore import latents as material


def explore(anchors="abcd", model=GLOW, other=None, labels=("", ""), **values):
    """The explorer between samplings of the seeds 10, 20, 30 and 40; or fewer of them."""
    workflow = working("FlowcoreLatentExplorer", model, other, labels=labels, **values)
    for name, seed in (("three", 30), ("four", 40)):
        draw = {"model": ["model", 0], "samples": 1, "temperature": 1.0, "seed": seed}
        workflow[name] = {"class_type": "FlowcoreSample", "inputs": draw}
    for anchor, sampling in zip("abcd", ("one", "two", "three", "four"), strict=True):
        if anchor in anchors:
            workflow["node"]["inputs"][anchor] = [sampling, 1]
    return workflow


def test_a_place_is_a_walk_along_both_edges_and_between_them(host, flows):
    a, b, c, d = (drawn(1, seed) for seed in (10, 20, 30, 40))
    for x, y, corner in ((0, 0, a), (1, 0, b), (0, 1, c), (1, 1, d)):
        same(levels(host, explore(x=x, y=y)), corner)
    upper, lower = material.interpolate(a, b, 0.25), material.interpolate(c, d, 0.25)
    same(levels(host, explore(x=0.25, y=0.75)), material.interpolate(upper, lower, 0.75), 1e-6)
    middle = material.interpolate(material.interpolate(a, b, 0.5), material.interpolate(c, d, 0.5), 0.5)
    same(levels(host, explore()), middle, 1e-6)  # what the widgets say at first


def test_two_anchors_are_a_line_and_three_a_triangle(host, flows):
    a, b, c, d = (drawn(1, seed) for seed in (10, 20, 30, 40))
    for y in (0.0, 0.9):
        same(levels(host, explore("ab", x=0.3, y=y)), material.interpolate(a, b, 0.3), 1e-6)
    for third, latents in (("c", c), ("d", d)):
        same(levels(host, explore("ab" + third, x=0.3, y=1.0)), latents)
        expected = material.interpolate(material.interpolate(a, b, 0.3), latents, 0.4)
        same(levels(host, explore("ab" + third, x=0.3, y=0.4)), expected, 1e-6)


def test_labels_are_those_of_the_nearest_and_other_models_are_refused(host, flows):
    outputs = host.outputs(explore("ab", DIGITS, labels=("1", "2"), x=0.2))
    assert outputs["report"]["labels"] == [1]
    assert "that of the nearest is kept" in outputs["node"]["text"][0]
    assert host.outputs(explore("ab", DIGITS, labels=("1", "2"), x=0.8))["report"]["labels"] == [2]
    refusal(host, explore("ab", other="other-glow.safetensors"), "different models")


def gallery(host, workflow, node):
    entries = host.outputs(workflow)[node]["flowcore_gallery"]
    for entry in entries:
        address = "&".join(f"{key}={entry[key]}" for key in ("filename", "subfolder", "type"))
        yield entry, Image.open(io.BytesIO(host.get(f"/view?{address}"))).convert("RGB")


def test_large_pictures_are_shrunk(host):
    host.put("wide.png", Image.new("RGB", (700, 90), (200, 100, 50)))
    coloring = graph(
        photo=("LoadImage", {"image": "wide.png"}),
        model=loader("color-photos"),
        color=("FlowcoreColorize", {"image": "photo.0", "model": "model.0", "temperature": 0.9, "seed": 3}),
        show=("PreviewImage", {"images": "color.0"}),
    )
    ((entry, thumbnail),) = gallery(host, coloring, "color")
    assert entry["seed"] == 3
    assert thumbnail.size == (256, 33)


def test_a_gallery_that_cannot_be_saved_does_not_fail_the_run(host, photo):
    folder = host.server.base / "temp" / "flowcore"
    moved = folder.with_name("aside")
    host.forget()
    if folder.exists():
        folder.rename(moved)
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("no folder")
    try:
        outputs = host.outputs(upscale(photo=photo, seed=91))
    finally:
        folder.unlink()
        if moved.exists():
            moved.rename(folder)
    assert outputs["upscale"]["flowcore_gallery"] == []
    assert outputs["save"]["images"]
    assert "The gallery on the node is not shown" in host.server.console()
