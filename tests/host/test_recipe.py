"""Recipes: every PNG says what made it, and from that alone it is made again, bit for bit."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import urllib.error

import comfyui
import numpy as np
import pytest
import small_flows
from client import RunError
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from talk import Host, graph, upscale
from test_for_ever import opened
from test_workflows import on_disk, to_api, with_photo

from flowcore import __version__, load
from flowcore.checkpoints import save
from flowcore.checkpoints.latents_file import model_sha256


def run_from_canvas(host, prompt, pnginfo=None):
    """Run a prompt as the frontend posts it, with the canvas beside it, and return the files that it saves."""
    return host.pictures(host.wait(posted(host, prompt, pnginfo), timeout=120))


def posted(host, prompt, pnginfo=None):
    extra = {"extra_pnginfo": {"workflow": {"nodes": []}} if pnginfo is None else pnginfo}
    return json.loads(host.post("/prompt", {"prompt": prompt, "client_id": host.id, "extra_data": extra}))["prompt_id"]


def cached_nodes(entry):
    (nodes,) = [data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached"]
    return nodes


def opened_file(data):
    return Image.open(io.BytesIO(data))


def recipes(data):
    return json.loads(opened_file(data).text["flowcore"])


def pixels(data):
    return np.asarray(opened_file(data))


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """A server of the host's other version, which has run nothing."""
    started = {}
    with contextlib.ExitStack() as stack:

        def start(version):
            others = [name for name in comfyui.trees() if name != version] or [version]
            if others[0] not in started:
                base = tmp_path_factory.mktemp("fresh")
                started[others[0]] = Host(stack.enter_context(comfyui.running(comfyui.tree(others[0]), base)))
            return started[others[0]]

        yield start


def test_a_picture_is_reproduced_from_its_file_alone(host, photo, fresh):
    every = host.get_json("/object_info")
    canvas = on_disk("upscale")
    prompt = with_photo(host, to_api(opened(canvas, every), every), photo)  # as the frontend does
    files = run_from_canvas(host, prompt, {"workflow": canvas})
    assert len(files) == 4
    assert json.loads(opened_file(files[0]).text["workflow"]) == canvas
    (recipe,) = recipes(files[0])
    stated = load("srflow-x4").config  # which the sliders follow: the recipe has the numbers
    known = {"node": "FlowcoreUpscale", "model": "srflow-x4", "seed": 1, "temperature": stated.temperature}
    assert {key: recipe[key] for key in known} == known
    assert recipe["settings"]["calm_edges"] == stated.calm_edges
    assert recipe["model_sha256"] == model_sha256(load("srflow-x4"))
    assert recipe["version"] == __version__
    assert recipe["settings"]["precision"] == "float32"
    assert {name: value["shape"] for name, value in recipe["sources"].items()} == {"image": [1, 16, 24, 3]}
    assert len(set(recipe["pictures"])) == 4

    other = fresh(host.version)
    shutil.copy(host.server.base / "input" / photo, other.server.base / "input" / photo)
    again = run_from_canvas(other, json.loads(opened_file(files[0]).text["prompt"]))
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(files, again, strict=True))
    assert recipes(again[0]) == [recipe]

    # And each alone, from what Load Flow Recipe reads out of its file.
    for number, data in enumerate(files[:3:2]):
        (other.server.base / "input" / "made.png").write_bytes(data)
        asked = {"image": "photo.0", "model": "recipe.0", "temperature": "recipe.1", "seed": "recipe.2"}
        asked["calm_edges"] = "recipe.5"
        follow = graph(
            photo=("LoadImage", {"image": photo}),
            recipe=("FlowcoreLoadRecipe", {"image": "made.png"}),
            upscale=("FlowcoreUpscale", asked),
            save=("SaveImage", {"images": "upscale.0", "filename_prefix": "again"}),
            same=("SaveImage", {"images": "recipe.4", "filename_prefix": "same"}),
        )
        entry = other.run(follow)
        alone, same = other.pictures({"outputs": {k: entry["outputs"][k] for k in ("save", "same")}})
        assert np.array_equal(pixels(alone), pixels(data))
        assert np.array_equal(pixels(same), pixels(data))
        assert entry["outputs"]["recipe"]["seed"] == [1 + 2 * number]
        assert entry["outputs"]["recipe"]["model"] == ["srflow-x4"]


def test_the_provenance_names_every_node_once(host, photo, flows):
    host.forget()
    models = {"srflow": "small-srflow", "color": "small-color", "glow": "free-glow"}
    upscaled = {"image": "photo.0", "model": "srflow.0", "temperature": 0.5, "seed": 3}
    colored = {
        "image": "upscale.0",
        "model": "color.0",
        "temperature": 0.6,
        "seed": 4,
        "samples": 2,
        "hints": "hints.0",
        "precision": "auto",
    }
    drawn = {"model": "glow.0", "samples": 3, "temperature": 0.7, "seed": 5, "width": 16, "height": 12}
    prompt = graph(
        photo=("LoadImage", {"image": photo}),
        **{key: ("FlowcoreLoadModel", {"model_name": flows[name]}) for key, name in models.items()},
        upscale=("FlowcoreUpscale", upscaled),
        hints=("FlowcoreColorHints", {"image": "upscale.0", "palette": "#c08040"}),
        colorize=("FlowcoreColorize", colored),
        sample=("FlowcoreSample", drawn | {"temperatures": "0.3, 0.9"}),
        save=("SaveImage", {"images": "colorize.0", "filename_prefix": "three"}),
        other=("SaveImage", {"images": "sample.0", "filename_prefix": "three"}),
    )
    files = run_from_canvas(host, prompt)
    colored = next(data for data in files if opened_file(data).size == (48, 32))
    told = {entry["node_id"]: entry for entry in recipes(colored)}
    assert {"upscale", "colorize"} <= told.keys() <= {"upscale", "colorize", "sample"}  # not what runs later
    assert told["colorize"]["samples"] == 2
    assert told["colorize"]["settings"]["detail"] == 0.3
    assert told["colorize"]["settings"]["precision"] in ("float32", "bfloat16")  # what auto was here
    assert told["colorize"]["sources"]["hints"]["palette"]["shape"] == [1, 4]
    sampled = next(data for data in files if opened_file(data).size == (16, 12))
    told = {entry["node_id"]: entry for entry in recipes(sampled)}
    assert told["sample"]["settings"]["temperatures"] == "0.3, 0.9"
    assert told["sample"]["seed"] == 5


def test_a_second_run_replaces_the_provenance_of_the_first(host, photo, flows):
    prompt = upscale(photo=photo, model_name=flows["small-srflow"], seed=31)
    (first,) = run_from_canvas(host, prompt)
    pnginfo = {"workflow": {}, "flowcore": recipes(first)}
    prompt["upscale"]["inputs"]["seed"] = 32
    (second,) = run_from_canvas(host, prompt, pnginfo)
    (entry,) = recipes(second)
    assert entry["seed"] == 32


def test_a_cached_picture_is_saved_with_its_provenance(host, photo, flows):
    """The node does not run again, and yet the new file says what made it."""
    prompt = upscale(photo=photo, model_name=flows["small-srflow"], seed=33, temperature=1)
    (first,) = run_from_canvas(host, prompt)
    prompt["save"]["inputs"]["filename_prefix"] = "elsewhere"
    entry = host.wait(posted(host, prompt), timeout=60)
    assert "upscale" in cached_nodes(entry)
    (second,) = host.pictures(entry)
    assert recipes(second) == recipes(first)
    assert np.array_equal(pixels(first), pixels(second))
    # Two that are posted before the first has run: neither waits for the other.
    prompt["upscale"]["inputs"]["seed"] = 34
    runs = []
    for name in ("one", "two"):
        prompt["save"]["inputs"]["filename_prefix"] = name
        runs.append(posted(host, prompt))
    for run in runs:
        (data,) = host.pictures(host.wait(run, timeout=60))
        assert [entry["seed"] for entry in recipes(data)] == [34]


def test_provenance_does_not_invalidate_the_cache(host, photo, flows):
    """The canvas is no part of what decides whether a node runs again."""
    prompt = upscale(photo=photo, model_name=flows["small-srflow"], seed=35)
    run_from_canvas(host, prompt)
    for pnginfo in ({"workflow": {"nodes": [1]}}, {"workflow": {}, "flowcore": "nonsense"}, {}):
        assert set(cached_nodes(host.wait(posted(host, prompt, pnginfo), timeout=60))) == set(prompt)


@pytest.mark.parametrize("extra", [{}, {"extra_pnginfo": None}, {"extra_pnginfo": {"flowcore": 7}}])
def test_prompts_without_a_canvas_run(host, photo, flows, extra):
    host.forget()
    prompt = upscale(photo=photo, model_name=flows["small-srflow"], seed=36)
    run = json.loads(host.post("/prompt", {"prompt": prompt, "client_id": host.id, "extra_data": extra}))["prompt_id"]
    (data,) = host.pictures(host.wait(run, timeout=60))
    assert ("flowcore" in opened_file(data).text) == bool(extra.get("extra_pnginfo"))
    if extra.get("extra_pnginfo"):
        assert [entry["seed"] for entry in recipes(data)] == [36]
    assert "flowcore could not" not in host.server.console()


def follow(host, name):
    """Load a recipe, and use nothing of it but what reaches the history."""
    prompt = graph(
        recipe=("FlowcoreLoadRecipe", {"image": name}),
        save=("PreviewImage", {"images": "recipe.4"}),
    )
    return host.run(prompt)["outputs"]["recipe"]


@pytest.fixture
def made(host, photo, flows):
    """A picture of a small flow, in the input folder: its name there, and its recipe."""
    (data,) = run_from_canvas(host, upscale(photo=photo, model_name=flows["small-srflow"], seed=40))
    (host.server.base / "input" / "made.png").write_bytes(data)
    return data


def test_models_are_found_by_fingerprint_not_by_name(host, made, store):
    models = host.server.base / "models" / "flows"
    file = models / "small-srflow.safetensors"
    flow = small_flows.flow("small-srflow")
    other = copy.deepcopy(flow)
    next(iter(other.parameters())).data.flatten()[0] += 1
    save(other, store / "another-srflow.safetensors")
    try:
        shutil.move(file, models / "renamed.safetensors")
        assert follow(host, "made.png")["model"] == ["renamed.safetensors"]
        # Another one under its name, and the right one gone.
        (models / "renamed.safetensors").unlink()
        shutil.copy(store / "another-srflow.safetensors", file)
        host.forget()
        with pytest.raises(RunError) as refused:
            follow(host, "made.png")
    finally:
        (models / "renamed.safetensors").unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        small_flows.install("small-srflow", models, store)
    assert all(model_sha256(known)[:12] in str(refused.value) for known in (flow, other))


def test_a_resized_picture_keeps_its_provenance(host, made):
    picture, text = opened_file(made), PngInfo()
    text.add_text("flowcore", picture.text["flowcore"])
    picture.resize((20, 20)).save(host.server.base / "input" / "resized.png", pnginfo=text)
    told = follow(host, "resized.png")
    assert told["seed"] == [40]
    assert "was changed" in told["text"][0]
    assert "precision: 'float32'" in told["text"][0]


def test_hostile_files_raise_a_readable_error_and_the_next_run_works(host, made):
    folder, text = host.server.base / "input", PngInfo()
    Image.new("RGB", (8, 8)).save(folder / "plain.png")
    text.add_text("flowcore", '[{"node_id": {}, "node": [], "seed": "x"}]')
    Image.new("RGB", (8, 8)).save(folder / "types.png", pnginfo=text)
    (folder / "photo-of-a-cat.png").write_bytes(b"\xff\xd8\xff\xe0 no PNG")
    (folder / "cut.png").write_bytes(made[: len(made) // 2])
    for name, words in {
        "plain.png": "holds no recipe",
        "types.png": "has no model",
        "photo-of-a-cat.png": "not a PNG",
        "cut.png": "damaged",
        "../console.log": "there is no file",
        "missing.png": "there is no file",
        "/etc/passwd": "there is no file",
    }.items():
        with pytest.raises(RunError, match=words):
            follow(host, name)
    assert follow(host, "made.png")["seed"] == [40]
    # Files of the output folder are named as everywhere in the host.
    shutil.copy(folder / "made.png", host.server.base / "output" / "there.png")
    assert follow(host, "there.png [output]")["seed"] == [40]


def test_a_prompt_of_thousands_of_our_nodes_does_not_stop_the_server(host, photo, flows):
    """It is looked at before the host looks at it, and while the server answers nobody else."""
    inputs = ({"image": [str(k - 1), 0], "seed": [[[k]]], "text": "x" * 1000} for k in range(20_000))
    prompt = {str(k): {"class_type": "FlowcoreUpscale", "inputs": values} for k, values in enumerate(inputs)}
    for node in (prompt, {"1": {"class_type": ["FlowcoreUpscale"], "inputs": {"image": ["1", 0]}}}):
        with pytest.raises(urllib.error.HTTPError):  # nothing in it is an output
            host.post("/prompt", {"prompt": node, "extra_data": {"extra_pnginfo": {"workflow": {}}}})
    assert "flowcore could not" not in host.server.console()
    assert len(run_from_canvas(host, upscale(photo=photo, model_name=flows["small-srflow"], seed=41))) == 1
