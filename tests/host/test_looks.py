"""Flow Upscale: one picture of each look, from one seed, and each with the recipe of its own."""

import numpy as np
import pytest
from talk import graph, live, loader, newest, picture, recipes, report

import flowcore

LOOKS = [*flowcore.looks]


def upscaled(flows, **more):
    asked = {"image": "image.0", "model": "model.0", "temperature": -0.1, "seed": 5, "samples": 1}
    return graph(
        image=picture(fill="photo", height=24, width=32),
        model=loader(flows["small-srflow"]),
        node=("FlowcoreUpscale", asked | more),
        show=report("node.0"),
    )


def rows(host, flows, **more):
    return host.outputs(upscaled(flows, **more))["show"]["rows"]


def test_all_looks_are_those_of_runs_with_one(host, flows):
    assert rows(host, flows, look="all looks") == [row for look in LOOKS for row in rows(host, flows, look=look)]
    assert rows(host, flows) == rows(host, flows, look="natural")


def test_every_image_has_all_samples_of_a_look_then_of_the_next(host, flows):
    story = upscaled(flows, look="all looks", samples=2)
    story["image"] = graph(image=picture(fill="photo", height=24, width=32, batch=2))["image"]
    together = host.outputs(story)
    names = [(each["image"], each["look"], each["seed"]) for each in together["node"]["flowcore_gallery"]]
    assert names == [(image, look, seed) for image in (0, 1) for look in LOOKS for seed in (5, 6)]


def test_a_picked_look_has_its_own_recipe(host, flows):
    crisp = 1 + LOOKS.index("crisp")
    story = graph(
        upscaled(flows, look="all looks", pick=crisp),
        save=("SaveImage", {"images": "node.0", "filename_prefix": "looks"}),
    )
    (image,) = host.pictures(host.run_from_canvas(story))
    entries = recipes(image)
    assert [entry["settings"]["look"] for entry in entries] == LOOKS
    assert len({mark for entry in entries for mark in entry["pictures"]}) == len(LOOKS)
    assert entries[LOOKS.index("faithful")]["temperature"] == 0
    assert entries[crisp - 1]["settings"]["sharpness"] == flowcore.looks["crisp"].sharpness


@newest
@pytest.mark.parametrize("look", ["crisp", "lively"])
def test_a_live_picture_has_the_look_that_is_seen(host, flows, look):
    story = upscaled(flows, look="all looks")
    del story["show"]
    (run,) = host.run_from_canvas(story)["outputs"]["node"]["flowcore_live"]
    alone = graph(
        upscaled(flows, look=look, calm_edges=0.2), save=("SaveImage", {"images": "node.0", "filename_prefix": "looks"})
    )
    (whole,) = host.images(alone)
    seen = live(host, run, number=LOOKS.index(look), calm_edges=0.2)
    assert np.abs(np.asarray(whole.convert("RGB"), dtype=int) - seen).max() <= 1
