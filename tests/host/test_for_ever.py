"""Saved workflows keep working: schemas are only appended to, and every released version loads and runs."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys

import cases
import comfyui
import numpy as np
import pytest
from PIL import Image
from record_golden import GOLDEN, changes, kept
from talk import WORKFLOWS, Host, graph, newer, picture
from test_workflows import RESULTS, VIRTUAL, canonical, on_disk, run_small, to_api, widgets

from flowcore.checkpoints import catalog

SHIPPED = GOLDEN.parent / "workflows"
STORIES = sorted({path.name.split(".")[0] for path in SHIPPED.rglob("*.json")})

# What stories made when their pictures had to be put into the input folder.
BEFORE = {
    "temperatures": (6, (984, 192)),
    "digits": (10, (112, 712)),
    "rank": (3, (64, 64)),
    "retouched": (1, (516, 516)),
    "content-transfer": (1, (516, 256)),
    "latent-normalisation": (1, (516, 256)),
    "strokes": (2, (1284, 492)),
    "palette-transfer": (2, (1136, 492)),
    "clip": (1, (640, 360)),
    "train": (1, (224, 256)),
    "best-of": (3, (96, 64)),
}


# ---------------------------------------------------------------------------------------------------------------------
# schemas


def test_schemas_are_those_recorded(host):
    now = kept(host.get_json("/object_info"), comfyui.PACK_NAME)
    assert changes(json.loads(GOLDEN.read_text()), now) == []


def test_appended_inputs_and_outputs_are_recorded(host):
    """Or else it could change again before anyone noticed."""
    golden, now = json.loads(GOLDEN.read_text()), kept(host.get_json("/object_info"), comfyui.PACK_NAME)
    for part in ("inputs", "outputs"):
        names = [{node: [x["name"] for x in info[part]] for node, info in side.items()} for side in (golden, now)]
        assert names[0] == names[1], "run `python tests/host/record_golden.py`"


@pytest.mark.parametrize(("before", "now"), catalog.REPLACED.items())
def test_a_model_that_is_no_longer_shipped_is_replaced_and_this_is_said(host, before, now):
    workflow = graph(
        model=("FlowcoreLoadModel", {"model_name": before}),
        image=picture(height=64, width=64),
        score=("FlowcoreScore", {"image": "image.0", "model": "model.0", "seed": 0}),
        show=("PreviewAny", {"source": "score.4"}),
    )
    outputs = host.run(workflow)["outputs"]
    assert f"{before} is no longer shipped: {now} takes its place" in outputs["model"]["text"][0]
    workflow["model"]["inputs"]["model_name"] = now
    again = host.run(workflow)["outputs"]
    assert "no longer" not in again["model"]["text"][0]
    assert again["score"]["bits_per_dim"] == outputs["score"]["bits_per_dim"]


def node(inputs=(), outputs=(), output_node=False):
    return {"inputs": list(inputs), "outputs": list(outputs), "output_node": output_node}


def small():
    """A golden file with one of everything."""
    wire = {"name": "image", "type": "IMAGE", "required": True}
    seed = {"name": "seed", "type": "INT", "required": True, "default": 0, "min": 0, "max": 9}
    tau = {"name": "tau", "type": "FLOAT", "required": False, "default": 0.8, "min": 0.0, "max": 1.5, "step": 0.01}
    mode = {"name": "mode", "type": "COMBO", "required": False, "default": "a", "options": ["a", "b"]}
    outs = [{"name": name, "type": kind, "list": False} for name, kind in (("images", "IMAGE"), ("info", "STRING"))]
    return {"A": node([wire, seed | {"control_after_generate": True}, tau, mode], outs), "B": node(output_node=True)}


def put(place, key, value, part="inputs"):
    """A change of one property of an input or output of A."""
    return lambda now: now["A"][part][place].update({key: value})


NEW = {"name": "new", "type": "INT", "required": False, "default": 0}
BREAKS = {
    "a node is gone": (lambda now: now.pop("B"), ["B is gone"]),
    "an input is gone": (lambda now: now["A"]["inputs"].pop(), ["A: the input mode is gone"]),
    "an input is renamed": (put(2, "name", "heat"), ["input tau is gone", "heat stands before old ones"]),
    "inputs change places": (lambda now: now["A"]["inputs"].reverse(), ["changed places, mode, tau, seed, image"]),
    "an input in the middle": (lambda now: now["A"]["inputs"].insert(3, NEW), ["new stands before old ones"]),
    "a required input": (
        lambda now: now["A"]["inputs"].append(NEW | {"required": True}),
        ["new input new is required"],
    ),
    "another type": (put(2, "type", "STRING"), ["tau was FLOAT and is STRING"]),
    "required": (put(2, "required", True), ["tau was optional and is required"]),
    "optional": (put(1, "required", False), ["seed was required and is optional"]),
    "another default": (put(2, "default", 0.9), ["tau had the default 0.8 and has 0.9"]),
    "no default": (lambda now: now["A"]["inputs"][3].pop("default"), ["mode had the default 'a' and has None"]),
    "a higher minimum": (put(2, "min", 0.1), ["tau could be 0.0 and now begins at 0.1"]),
    "a lower maximum": (put(2, "max", 1.4), ["tau could be 1.5 and now ends at 1.4"]),
    "a first maximum": (put(0, "max", 5), ["image could be anything and now ends at 5"]),
    "other steps": (put(2, "step", 0.05), ["tau had steps of 0.01 and has steps of 0.05"]),
    "an option is gone": (put(3, "options", ["b"]), ["mode does not offer 'a'"]),
    "an option is renamed": (put(3, "options", ["a", "c"]), ["mode does not offer 'b'"]),
    "no control": (put(1, "control_after_generate", False), ["seed had control_after_generate True and has False"]),
    "a control": (put(2, "control_after_generate", True), ["tau had control_after_generate None and has True"]),
    "no widget": (put(2, "forceInput", True), ["tau had forceInput None and has True"]),
    "an output is gone": (lambda now: now["A"]["outputs"].pop(), ["output 1 had the name 'info' and has None"]),
    "outputs change places": (lambda now: now["A"]["outputs"].reverse(), ["output 0", "output 1"]),
    "another type of output": (put(0, "type", "MASK", "outputs"), ["output 0 had the type 'IMAGE' and has 'MASK'"]),
    "a list of outputs": (put(0, "list", True, "outputs"), ["output 0 had the list False"]),
    "no output node": (lambda now: now["B"].__setitem__("output_node", False), ["B is no longer an output node"]),
    "an output node": (lambda now: now["A"].__setitem__("output_node", True), ["A has become an output node"]),
}


@pytest.mark.parametrize("what", BREAKS)
def test_every_breaking_schema_change_is_reported(what):
    change, told = BREAKS[what]
    now = copy.deepcopy(small())
    change(now)
    found = "\n".join(changes(small(), now))
    for sentence in told:
        assert sentence in found


def test_appending_is_no_change():
    now = small()
    now["C"] = node([{"name": "x", "type": "INT", "required": True}])
    now["A"]["inputs"].append(NEW | {"min": 0, "max": 1})
    now["A"]["inputs"][3]["options"].insert(0, "c")
    now["A"]["inputs"][2] |= {"min": -1.0, "max": 2.0}
    now["A"]["inputs"][1]["default"] = 1  # it is required: whoever saved or sent it has stated its value
    now["A"]["outputs"].append({"name": "mask", "type": "MASK", "list": False})
    assert changes(small(), now) == changes(small(), small()) == []


# ---------------------------------------------------------------------------------------------------------------------
# workflows


def meaning(workflow):
    """What a workflow does: not where its nodes lie, nor which release wrote it."""
    if "nodes" not in workflow:
        return {name: (entry["class_type"], entry["inputs"]) for name, entry in workflow.items()}
    nodes = {n["id"]: n for n in workflow["nodes"] if n["type"] not in VIRTUAL}
    inputs = {key: [(i["name"], i.get("link")) for i in n["inputs"]] for key, n in nodes.items()}
    outputs = {key: [(o["name"], o["type"]) for o in n["outputs"]] for key, n in nodes.items()}
    values = {key: (n["type"], n["widgets_values"], n["mode"]) for key, n in nodes.items()}
    return inputs, outputs, values, sorted(workflow["links"])


def versions(folder, story):
    """All released versions of a story, oldest first: name and content."""
    files = sorted(folder.glob(f"{story}.*.json"), key=lambda path: int(path.stem.split(".")[1]))
    return [(path.name, json.loads(path.read_text())) for path in files]


@pytest.mark.parametrize("place", [".", "api"])
def test_every_shipped_workflow_is_kept(place):
    for path in (WORKFLOWS / place).glob("*.json"):
        story = path.stem.split("_")[0]
        kept = [json.dumps(meaning(old), sort_keys=True) for _, old in versions(SHIPPED / place, story)]
        now = json.dumps(meaning(json.loads(path.read_text())), sort_keys=True)
        assert now == kept[-1], f"copy {path.relative_to(comfyui.ROOT)} to {SHIPPED / place} as the next {story}.N.json"
        assert len(set(kept)) == len(kept)


def opened(workflow, every):
    """A workflow as the canvas opens it: widgets that it does not know yet take their defaults."""
    workflow = copy.deepcopy(workflow)
    for entry in workflow["nodes"]:
        if entry["type"] not in VIRTUAL:
            saved, named = entry["widgets_values"], list(widgets(every[entry["type"]]))
            # Hidden ones have no name: what a seed does after a run, and the button of a picture.
            later = [properties.get("default") if name else "fixed" for name, _, properties in named[len(saved) :]]
            entry["widgets_values"] = saved + later
    return workflow


@pytest.mark.parametrize("story", ["upscale", "painted"])
def test_a_saved_temperature_draws_what_it_drew(host, story, photo):
    """The first version of a story, opened where calm_edges and sliders that follow the model came since."""
    every = host.get_json("/object_info")
    (_, old), *_ = versions(SHIPPED, story)
    now = to_api(opened(old, every), every)
    (drawn,) = [node["inputs"] for node in now.values() if node["class_type"] == "FlowcoreUpscale"]
    assert drawn["temperature"] > 0
    assert drawn["calm_edges"] < 0  # its default
    (_, before), *_ = versions(SHIPPED / "api", story)
    for node in before.values():
        if node["class_type"] == "FlowcoreUpscale":
            assert "calm_edges" not in node["inputs"]
            node["inputs"]["calm_edges"] = 0.0
    pictures = [[np.asarray(p) for p in run_small(host, each, photo, None)] for each in (now, before)]
    assert all(np.array_equal(a, b) for a, b in zip(*pictures, strict=True))


@pytest.mark.fuzz
@pytest.mark.parametrize("story", STORIES)
def test_every_released_version_runs(host, story, photo, folder_of_photos):
    """But for the current one, which `test_a_template_runs` runs."""
    every = host.get_json("/object_info")
    released = [(f"api/{name}", api) for name, api in versions(SHIPPED / "api", story)]
    released += [(name, to_api(opened(canvas, every), every)) for name, canvas in versions(SHIPPED, story)]
    done = [canonical(to_api(on_disk(story), every))]
    for name, workflow in released:
        if canonical(workflow) not in done:
            done.append(canonical(workflow))
            pictures = run_small(host, workflow, photo, folder_of_photos)
            assert (len(pictures), pictures[0].size) == BEFORE.get(story, RESULTS[story]), name
        cases.tried("shipped workflows")


# ---------------------------------------------------------------------------------------------------------------------
# nodes that are gone, and hosts that are too old

OLD = """
REPLACEMENTS.append({
    "old_node_id": "FlowcoreEnlarge",
    "new_node_id": "FlowcoreUpscale",
    "old_widget_ids": ["heat", "seed"],
    "input_mapping": [
        {"new_id": "image", "old_id": "picture"},
        {"new_id": "model", "old_id": "model"},
        {"new_id": "temperature", "old_id": "heat"},
        {"new_id": "seed", "old_id": "seed"},
        {"new_id": "samples", "set_value": 2},
    ],
    "output_mapping": [{"old_idx": 1, "new_idx": 0}],
})
"""


def test_the_host_knows_of_no_removed_node(host):
    if newer(host.version, "0.14.0"):
        served = host.get_json("/node_replacements")
        assert [old for old in served if old.startswith("Flowcore")] == []


@pytest.mark.soak
def test_a_removed_node_is_replaced(tmp_path, monkeypatch):
    """On the newest host, with a copy of the pack from whose next release a node has gone."""
    pack = tmp_path / "pack"
    shutil.copytree(comfyui.ROOT / "nodes", pack / "nodes")
    (pack / "nodes" / "__init__.py").write_text((comfyui.ROOT / "nodes" / "__init__.py").read_text() + OLD)
    shutil.copy(comfyui.ROOT / "__init__.py", pack)
    for folder in ("flowcore", "locales", "web", "workflows"):
        (pack / folder).symlink_to(comfyui.ROOT / folder)
    monkeypatch.setattr(comfyui, "ROOT", pack)
    with comfyui.running(comfyui.tree(), tmp_path / "base") as server:
        host = Host(server)
        picture = host.put("small.png", Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((120, 40, 144, 56)))
        new = json.loads((WORKFLOWS / "api" / "upscale.json").read_text())
        new["photo"]["inputs"]["image"] = picture
        new["upscale"]["inputs"] |= {"samples": 2, "temperature": 0.7, "seed": 5}
        old = copy.deepcopy(new)
        old["upscale"] |= {"class_type": "FlowcoreEnlarge"}
        old["upscale"]["inputs"] = {"picture": ["photo", 0], "model": ["model", 0], "heat": 0.7, "seed": 5}
        old["save"]["inputs"]["images"] = ["upscale", 1]
        # What the frontend reads when a workflow is opened.
        assert host.get_json("/node_replacements")["FlowcoreEnlarge"][0]["old_widget_ids"] == ["heat", "seed"]
        before, after = host.images(old), host.images(new)
        assert len(before) == len(after) == 2
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


FLOOR = re.findall(r'requires-comfyui = ">=(.+)"', (comfyui.ROOT / "pyproject.toml").read_text())[0]
OPENS = """
import asyncio, importlib.util, logging, sys
logging.basicConfig(format="%(levelname)s %(message)s")
spec = importlib.util.spec_from_file_location("pack", sys.argv[1], submodule_search_locations=[])
pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
if len(sys.argv) > 2:
    asyncio.run(pack.comfy_entrypoint())
"""


def opens(*arguments, path):
    """What a process says that opens the door of the pack, as a host does that has only what is on the path."""
    command = [sys.executable, "-c", f"{'import folder_paths' if path else ''}\n{OPENS}", comfyui.ROOT / "__init__.py"]
    environment = os.environ | {"PYTHONPATH": str(path or "")}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("part", [None, "comfy_api", "comfy_api/v0_0_1"])
def test_a_host_without_v3_nodes_logs_one_readable_error(tmp_path, part):
    """Such a host never calls the entry point: before 0.3.48 there was none."""
    (tmp_path / "folder_paths.py").touch()
    if part:
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / "comfy_api" / "__init__.py").touch()
    done = opens(path=tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [line for line in done.stderr.splitlines() if line.startswith("ERROR flowcore")]
    assert f"flowcore needs ComfyUI >= {FLOOR}; this one has no V3 nodes" in done.stderr
    called = opens("call", path=tmp_path)
    assert called.returncode == 1
    assert f"ImportError: flowcore needs ComfyUI >= {FLOOR}" in called.stderr
    assert "ModuleNotFoundError" not in called.stderr


def test_without_a_host_the_import_is_silent():
    done = opens(path=None)
    assert (done.returncode, done.stderr) == (0, "")
