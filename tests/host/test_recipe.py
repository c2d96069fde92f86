"""Recipes: every PNG says what made it, and from that alone it is made again, bit for bit."""

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
from saved_workflows import STORIES, to_api, with_photo
from talk import Host, graph, loader, newer, newest, opened, recipes, upscale

from flowcore import __version__, load
from flowcore.cli.main import main
from flowcore.models.identity import model_sha256


def saved(host, prompt, canvas=None):
    """Run a prompt as the frontend posts it, with the canvas beside it, and return the files that it saves."""
    return host.pictures(host.run_from_canvas(prompt, canvas))


def cached_nodes(entry):
    (nodes,) = [data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached"]
    return nodes


def pixels(data):
    return np.asarray(opened(data))


@pytest.fixture
def oldest(tmp_path):
    """A server of the oldest version, which has run nothing."""
    with comfyui.running(comfyui.tree([*comfyui.trees()][-1]), tmp_path) as server:
        yield Host(server)


@newest
def test_a_picture_is_reproduced_from_its_file_alone(host, photo, oldest):
    every = host.get_json("/object_info")
    canvas = STORIES["upscale"]
    prompt = with_photo(host, to_api(canvas, every), photo)  # as the frontend does
    for node in prompt.values():
        if node["class_type"] == "FlowcoreUpscale":
            node["inputs"] |= {"look": "natural", "samples": 4}
    files = saved(host, prompt, {"workflow": canvas})
    assert len(files) == 4
    assert json.loads(opened(files[0]).text["workflow"]) == canvas
    (recipe,) = recipes(files[0])
    stated = load("srflow-x4").config  # which the sliders follow: the recipe has the numbers
    known = {"node": "FlowcoreUpscale", "model": "srflow-x4", "seed": 1, "temperature": stated.temperature}
    assert {key: recipe[key] for key in known} == known
    assert recipe["settings"]["calm_edges"] == stated.calm_edges
    assert recipe["model_sha256"] == model_sha256(load("srflow-x4"))
    assert recipe["version"] == __version__
    assert recipe["settings"]["precision"] == "float32"
    assert {name: value["shape"] for name, value in recipe["sources"].items()} == {"image": [1, 3, 16, 24]}
    assert len(set(recipe["pictures"])) == 4

    inputs = oldest.server.base / "input"
    shutil.copy(host.server.base / "input" / photo, inputs / photo)
    again = saved(oldest, json.loads(opened(files[0]).text["prompt"]))
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(files, again, strict=True))
    assert recipes(again[0]) == [recipe]

    # And each alone, from what Load Flow Recipe reads out of its file.
    asked = {"image": "photo.0", "model": "recipe.0", "temperature": "recipe.1", "seed": "recipe.2"}
    follow = graph(
        photo=("LoadImage", {"image": photo}),
        recipe=("FlowcoreLoadRecipe", {"image": "made.png"}),
        upscale=("FlowcoreUpscale", asked | {"calm_edges": "recipe.5"}),
        save=("SaveImage", {"images": "upscale.0", "filename_prefix": "again"}),
        same=("SaveImage", {"images": "recipe.4", "filename_prefix": "same"}),
    )
    for number, data in enumerate(files[:3:2]):
        (inputs / "made.png").write_bytes(data)
        outputs = oldest.outputs(follow)
        for alone in oldest.pictures({"outputs": {k: outputs[k] for k in ("save", "same")}}):
            assert np.array_equal(pixels(alone), pixels(data))
        assert (outputs["recipe"]["seed"], outputs["recipe"]["model"]) == ([1 + 2 * number], ["srflow-x4"])


def test_the_provenance_names_every_node_once(host, photo, flows):
    host.forget()
    models = {"srflow": "small-srflow", "color": "small-color", "glow": "free-glow"}
    colored = {"image": "upscale.0", "model": "color.0", "temperature": 0.6, "seed": 4, "samples": 2}
    drawn = {"model": "glow.0", "samples": 3, "temperature": 0.7, "seed": 5, "width": 16, "height": 12}
    prompt = graph(
        photo=("LoadImage", {"image": photo}),
        **{key: loader(flows[name]) for key, name in models.items()},
        upscale=("FlowcoreUpscale", {"image": "photo.0", "model": "srflow.0", "temperature": 0.5, "seed": 3}),
        hints=("FlowcoreColorHints", {"image": "upscale.0", "palette": "#c08040"}),
        colorize=("FlowcoreColorize", colored | {"hints": "hints.0", "precision": "auto"}),
        sample=("FlowcoreSample", drawn | {"temperatures": "0.3, 0.9"}),
        save=("SaveImage", {"images": "colorize.0", "filename_prefix": "three"}),
        other=("SaveImage", {"images": "sample.0", "filename_prefix": "three"}),
    )
    files = {opened(data).size: data for data in saved(host, prompt)}
    told = {entry["node_id"]: entry for entry in recipes(files[48, 32])}
    assert {"upscale", "colorize"} <= told.keys() <= {"upscale", "colorize", "sample"}  # not what runs later
    assert told["colorize"]["samples"] == 2
    assert told["colorize"]["settings"]["detail"] == 0.3
    assert told["colorize"]["settings"]["precision"] in ("float32", "bfloat16")  # what auto was here
    assert told["colorize"]["sources"]["hints"]["palette"]["shape"] == [1, 4]
    told = {entry["node_id"]: entry for entry in recipes(files[16, 12])}
    assert told["sample"]["settings"]["temperatures"] == "0.3, 0.9"
    assert told["sample"]["seed"] == 5


def test_a_cached_picture_is_saved_with_its_provenance_and_another_with_its_own(host, photo, flows):
    """The node does not run again, whatever the canvas is, and yet the new file says what made it."""
    prompt = upscale(photo=photo, model_name=flows["small-srflow"], seed=33, temperature=1)
    (first,) = saved(host, prompt)
    for canvas in ({"workflow": {"nodes": [1]}}, {"workflow": {}, "flowcore": "nonsense"}, {}):
        assert set(cached_nodes(host.run_from_canvas(prompt, canvas))) == set(prompt)
    prompt["save"]["inputs"]["filename_prefix"] = "elsewhere"
    entry = host.run_from_canvas(prompt)
    assert "upscale" in cached_nodes(entry)
    (second,) = host.pictures(entry)
    assert recipes(second) == recipes(first)
    assert np.array_equal(pixels(first), pixels(second))
    # Two that are posted before the first has run: neither waits for the other, and what the canvas holds is replaced.
    prompt["upscale"]["inputs"]["seed"] = 34
    runs = []
    for name in ("one", "two"):
        prompt["save"]["inputs"]["filename_prefix"] = name
        runs.append(host.queue(prompt, extra_pnginfo={"workflow": {}, "flowcore": recipes(first)}))
    for run in runs:
        (data,) = host.pictures(host.wait(run, timeout=60))
        assert [entry["seed"] for entry in recipes(data)] == [34]


def test_prompts_without_a_canvas_run(host, photo, flows):
    prompt = upscale(photo=photo, model_name=flows["small-srflow"], seed=36)
    for extra in ({}, {"extra_pnginfo": None}, {"extra_pnginfo": {"flowcore": 7}}):
        host.forget()
        (data,) = host.pictures(host.run(prompt, timeout=60, **extra))
        found = recipes(data) if "flowcore" in opened(data).text else []
        assert [entry["seed"] for entry in found] == ([36] if extra.get("extra_pnginfo") else [])
    assert "flowcore could not" not in host.server.console()


def follow(host, name):
    """Load a recipe, and use nothing of it but what reaches the history."""
    show = ("PreviewImage", {"images": "recipe.4"})
    return host.outputs(recipe=("FlowcoreLoadRecipe", {"image": name}), show=show)["recipe"]


@pytest.fixture
def made(host, photo, flows):
    """A picture of a small flow, in the input folder: its name there, and its recipe."""
    (data,) = saved(host, upscale(photo=photo, model_name=flows["small-srflow"], seed=40))
    (host.server.base / "input" / "made.png").write_bytes(data)
    return data


def test_models_are_found_by_fingerprint_not_by_name(host, made, store):
    models = host.server.base / "models" / "flows"
    file, renamed = models / "small-srflow.safetensors", models / "renamed.safetensors"
    try:
        shutil.move(file, renamed)
        shutil.copy(store / "small-glow.safetensors", file)  # another one under its name
        assert follow(host, "made.png")["model"] == [renamed.name]
        renamed.unlink()
        host.forget()
        with pytest.raises(RunError, match=model_sha256(small_flows.flow("small-srflow"))[:12]):
            follow(host, "made.png")
    finally:
        renamed.unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        small_flows.install("small-srflow", models, store)


def test_a_recipe_of_another_picture_version_says_so(host, made):
    text = PngInfo()
    text.add_text("flowcore", json.dumps([recipe | {"picture_version": 0} for recipe in recipes(made)]))
    opened(made).save(host.server.base / "input" / "older.png", pnginfo=text)
    assert "draws otherwise than the one that made the picture" in " ".join(follow(host, "older.png")["text"])
    assert "draws otherwise" not in " ".join(follow(host, "made.png")["text"])


def test_a_resized_picture_keeps_its_provenance(host, made):
    picture, text = opened(made), PngInfo()
    text.add_text("flowcore", picture.text["flowcore"])
    picture.resize((20, 20)).save(host.server.base / "input" / "resized.png", pnginfo=text)
    told = follow(host, "resized.png")
    assert told["seed"] == [40]
    assert "was changed" in told["text"][0]
    assert "precision: 'float32'" in "\n".join(told["text"])


def test_16_bits_and_exr_keep_the_provenance(host, photo, flows, capsys):
    if not newer(host.version, "0.30.0"):
        pytest.skip("a node of later hosts")
    prompt = upscale(photo=photo, model_name=flows["small-srflow"], seed=40, samples=2)
    asked = {"images": ["upscale", 0], "filename_prefix": "deep", "format.input_color_space": "sRGB"}
    for kind, depth in (("png", "16-bit"), ("exr", "32-bit float")):
        prompt["save"] = {
            "class_type": "SaveImageAdvanced",
            "inputs": asked | {"format": kind, "format.bit_depth": depth},
        }
        _, second = saved(host, prompt)
        (host.server.base / "input" / f"deep.{kind}").write_bytes(second)
        assert main(["inspect", str(host.server.base / "input" / f"deep.{kind}")]) == 0
        (told,) = json.loads(capsys.readouterr().out)
        assert (told["seed"], len(told["pictures"])) == (40, 2)
    told = follow(host, "deep.png")
    assert told["seed"] == [41]
    assert "was changed" not in told["text"][0]
    with pytest.raises(RunError, match="not a PNG file"):
        follow(host, "deep.exr")


def test_every_pass_of_a_loop_has_its_own_seed_and_provenance(host, photo, flows):
    start = graph(photo=("LoadImage", {"image": photo}), model=loader(flows["small-srflow"]))
    loops = {"expanded": graph(start, made=("FlowcoreTestLoop", {"image": "photo.0", "model": "model.0", "passes": 3}))}
    if newer(host.version, "0.30.0"):  # the host itself repeats nodes over a list
        seeds = {f"seed{k}": ("SeedNode", {"seed": k}) for k in range(3)}
        listed = ("CreateList", {f"inputs.input{k}": f"seed{k}.0" for k in range(3)})
        drawn = {"image": "photo.0", "model": "model.0", "temperature": 0.8, "seed": "listed.0"}
        loops["listed"] = graph(start, **seeds, listed=listed, made=("FlowcoreUpscale", drawn))
    for name, loop in loops.items():
        files = saved(host, graph(loop, save=("SaveImage", {"images": "made.0", "filename_prefix": name})))
        assert len({pixels(data).tobytes() for data in files}) == 3, name
        assert {entry["seed"] for entry in recipes(files[-1])} >= {0, 1, 2}, name
        for k, data in enumerate(files):
            (host.server.base / "input" / "pass.png").write_bytes(data)
            assert follow(host, "pass.png")["seed"] == [k], name


def test_other_files_raise_a_readable_error_and_those_of_the_output_folder_are_found(host, made):
    Image.new("RGB", (8, 8)).save(host.server.base / "input" / "plain.png")
    refused = {"plain.png": "holds no recipe"}
    refused |= dict.fromkeys(("../console.log", "missing.png", "/etc/passwd"), "there is no file")
    for name, words in refused.items():
        with pytest.raises(RunError, match=words):
            follow(host, name)
    shutil.copy(host.server.base / "input" / "made.png", host.server.base / "output" / "there.png")
    assert follow(host, "there.png [output]")["seed"] == [40]


def test_a_prompt_of_thousands_of_our_nodes_does_not_stop_the_server(host, photo, flows):
    """It is looked at before the host looks at it, and while the server answers nobody else."""
    inputs = ({"image": [str(k - 1), 0], "seed": [[[k]]], "text": "x" * 1000} for k in range(20_000))
    prompt = {str(k): {"class_type": "FlowcoreUpscale", "inputs": values} for k, values in enumerate(inputs)}
    prompt["unknown"] = {"class_type": "NoSuchNode", "inputs": {}}  # the host refuses it without a look at the others
    for node in (prompt, {"1": {"class_type": ["FlowcoreUpscale"], "inputs": {"image": ["1", 0]}}}):
        with pytest.raises(urllib.error.HTTPError):
            host.post("/prompt", {"prompt": node, "extra_data": {"extra_pnginfo": {"workflow": {}}}})
    assert "flowcore could not" not in host.server.console()
    assert len(saved(host, upscale(photo=photo, model_name=flows["small-srflow"], seed=41))) == 1
