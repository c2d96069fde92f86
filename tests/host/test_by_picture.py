"""The upscaler that suits the picture: which model nodes take, what they say of it, and that a batch may take both."""

import json
import shutil

import numpy as np
import pytest
from talk import SUITING, graph, loader, newest, opened, piece, refusal, shows

from flowcore.batch.provenance import read as read_provenance

pytestmark = newest
CLEAN, DAMAGED = "srflow-x4", "srflow-x4-photo"
BLOCKS = "JPEG blocks (about quality 50)"
UPSCALE = {"image": "photos.0", "model": "model.0", "temperature": 0.8, "seed": 3}


@pytest.fixture
def mixed(host):
    """A folder of the input folder: a clean picture, one with blocks, and another clean one."""
    folder = host.server.base / "input" / "mixed"
    folder.mkdir(exist_ok=True)
    for number, quality in enumerate((None, 50, None)):
        piece(number, quality).save(folder / f"{number}.png")
    yield folder
    shutil.rmtree(folder)
    shutil.rmtree(host.server.base / "output" / "mixed", ignore_errors=True)


def enlarging(picture="mixed", model=SUITING, node="FlowcoreUpscale", **more):
    return graph(
        photos=("FlowcoreExample", {"picture": picture}),
        model=loader(model),
        node=(node, UPSCALE | more),
        save=("SaveImage", {"images": "node.0", "filename_prefix": "suits"}),
    )


def same(one, other):
    return np.array_equal(*(np.asarray(opened(data)) for data in (one, other)))


def test_a_batch_takes_both_in_its_order_and_files_hold_the_one_that_was_taken(host, mixed):
    entry = host.run_from_canvas(enlarging(samples=2))
    files = host.pictures(entry)
    alone = [
        data
        for number, model in enumerate((CLEAN, DAMAGED, CLEAN))
        for data in host.pictures(host.run(enlarging(f"mixed/{number}.png", model, samples=2)))
    ]
    assert [np.array_equal(*map(np.asarray, map(opened, pair))) for pair in zip(files, alone, strict=True)] == 6 * [
        True
    ]
    recipes = json.loads(opened(files[0]).text["flowcore"])
    assert {recipe["model"]: len(recipe["pictures"]) for recipe in recipes} == {CLEAN: 4, DAMAGED: 2}
    shown = entry["outputs"]["node"]
    assert [line for line in shown["text"] if "srflow" in line] == [
        f"{CLEAN}: no JPEG blocks and no noise in images 1, 3",
        f"{DAMAGED}: image 2 has {BLOCKS}",
    ]
    damaged = shown["flowcore_messages"][shown["text"].index(f"{DAMAGED}: image 2 has {BLOCKS}")]
    assert damaged["template"] == "{model}: image {number} has {damage}"  # for the page to translate, as its values
    (blocks,) = damaged["values"]["damage"]
    assert blocks["template"] == "JPEG blocks (about quality {quality})"
    assert [(p["number"], p["image"]) for p in shown["flowcore_gallery"]] == [(k + 1, k // 2) for k in range(6)]
    assert len(shown["each"]) == 6
    assert shown["flowcore_better"] == []
    (third,) = host.pictures(host.run(enlarging(samples=2, pick=3)))
    assert same(third, files[2])


def test_a_recipe_of_a_picture_loads_the_model_that_it_took(host, mixed):
    (data,) = host.pictures(host.run_from_canvas(enlarging("mixed/1.png")))
    (host.server.base / "input" / "suited.png").write_bytes(data)
    stated = {"temperature": "recipe.1", "seed": "recipe.2", "calm_edges": "recipe.5", "guide_strength": "recipe.6"}
    workflow = graph(enlarging("mixed/1.png", **stated), recipe=("FlowcoreLoadRecipe", {"image": "suited.png"}))
    workflow["node"]["inputs"]["model"] = ["recipe", 0]
    (again,) = host.pictures(host.run(workflow))
    assert same(again, data)


def test_a_grid_of_a_batch_has_a_sheet_of_each_image(host, mixed):
    grid = {"node": "FlowcoreTemperatureGrid", "temperatures": "0, 0.8", "seeds": 2}
    entry = host.outputs(enlarging(**grid), **shows(taus="node.2", seeds="node.3"))
    assert len(entry["save"]["images"]) == 3
    assert entry["taus"]["text"] == 3 * ["0.0", "0.0", "0.8", "0.8"]
    assert entry["seeds"]["text"] == 6 * ["3", "4"]
    assert {"rows"} & {key for picture in entry["node"]["flowcore_gallery"] for key in picture} == set()


def test_a_clip_takes_one_model_for_all_frames(host, mixed):
    video = {"node": "FlowcoreUpscaleVideo", "steadiness": 0.0}
    text = host.outputs(enlarging(**video))["node"]["text"]
    assert f"{DAMAGED}: this clip has {BLOCKS}" in text


def test_samples_are_ranked_by_the_model_that_suits_their_source(host, mixed):
    best = {"images": "node.0", "source": "photos.0", "by": "likelihood", "keep": 1}

    def scores(workflow, model):
        outputs = host.outputs(workflow, best=("FlowcoreBestOf", best | {"model": model}))
        return outputs["best"]["scores"]

    together = scores(enlarging(samples=2), "model.0")
    for number, model in enumerate((CLEAN, DAMAGED, CLEAN)):
        alone = scores(enlarging(f"mixed/{number}.png", model, samples=2), "model.0")
        assert together[2 * number : 2 * number + 2] == pytest.approx(alone, rel=1e-4)


def test_flow_folder_names_each_file_after_the_model_that_it_took(host, mixed):
    (mixed / "bad.png").write_bytes(b"nothing")
    values = {"model": "model.0", "folder": "mixed", "subfolder": "mixed", "temperature": -0.1, "seed": 7}
    workflow = graph(model=loader(SUITING), folder=("FlowcoreFolder", values))
    info = host.outputs(workflow)["folder"]["text"][-1]
    assert info == f"4 pictures: 3 made, 1 failed; in output/mixed; 3 by {CLEAN}, 1 by {DAMAGED}"
    out = host.server.base / "output" / "mixed"
    taken = {path.name: read_provenance(path)[0].model for path in out.glob("*.png")}
    models = {f"{number}_{model}_seed7.png": model for number, model in enumerate((CLEAN, DAMAGED, CLEAN))}
    assert taken == models
    assert "3 there already" in host.outputs(workflow)["folder"]["text"][-1]


def test_an_upscale_model_is_the_one_for_damaged_pictures_and_says_why(host, mixed):
    values = {"model": "model.0", "temperature": 0.0, "seed": 0}
    made = ("ImageUpscaleWithModel", {"upscale_model": "node.0", "image": "photos.0"})
    workflow = graph(enlarging("mixed/0.png"), node=("FlowcoreAsUpscaleModel", values), made=made)
    workflow["save"]["inputs"]["images"] = ["made", 0]
    outputs = host.outputs(workflow)
    assert outputs["node"]["text"][0].startswith(f"{DAMAGED}: ")
    assert outputs["save"]["images"]


def test_nodes_that_do_not_enlarge_ask_for_a_certain_model(host, mixed):
    suitable = {"FlowcoreEncode": "glow-photos", "FlowcoreColorize": "color-photos", "FlowcoreHarmonize": "srflow-x4"}
    slots = {"FlowcoreEncode": 2, "FlowcoreColorize": 0, "FlowcoreHarmonize": 0, "FlowcoreScore": 1}
    for node, slot in slots.items():
        workflow = enlarging(node=node, strength=1.0)
        workflow["save"]["inputs"]["images"][1] = slot
        refusal(host, workflow, f"such as {suitable.get(node, 'glow-photos')}. Choose one")


def test_a_picture_that_is_too_small_to_be_measured_is_not_called_clean(host, mixed):
    piece(0).crop((0, 0, 20, 20)).save(mixed / "tiny.png")
    assert host.outputs(enlarging("mixed/tiny.png"))["node"]["text"][0] == (
        f"{CLEAN}: too small to measure JPEG blocks or noise"
    )


def test_clean_says_what_it_measured(host, mixed):
    workflow = enlarging("mixed/1.png", DAMAGED, "FlowcoreClean", strength=0.5)
    assert f"Measured: {BLOCKS}." in host.outputs(workflow)["node"]["text"]
    workflow["photos"]["inputs"]["picture"] = "mixed/0.png"
    assert "No JPEG blocks and no noise were measured." in host.outputs(workflow)["node"]["text"]
