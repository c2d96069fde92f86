"""The shipped workflows: listed with a picture, aligned with the live schema, and the same story in both formats."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from unittest.mock import ANY

import comfyui
import numpy as np
import pytest
from PIL import Image
from stories import canvas_file, on_canvas
from talk import WORKFLOWS, examples, inputs

STORIES = sorted(path.stem.split("_")[0] for path in WORKFLOWS.glob("*.json"))
CONTROL = ("fixed", "increment", "decrement", "randomize")
VIRTUAL = {"MarkdownNote", "Note"}


def widgets(info):
    """The widgets of a node in the order in which the frontend stores their values, hidden ones included."""
    for name, kind, properties in inputs(info):
        if isinstance(kind, list) or kind == "COMBO":
            yield name, kind if isinstance(kind, list) else properties["options"], properties
        elif kind in ("INT", "FLOAT", "STRING", "BOOLEAN") and not properties.get("forceInput"):
            yield name, kind, properties
        if properties.get("control_after_generate"):
            yield None, list(CONTROL), {}
        if properties.get("image_upload"):
            yield None, ["image"], {}


def to_api(workflow, every):
    """Turn a workflow from the frontend's format into that of the API, as the frontend does."""
    wires = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    api = {}
    for node in workflow["nodes"]:
        if node["type"] in VIRTUAL:
            continue
        named = list(widgets(every[node["type"]]))
        assert len(named) == len(node["widgets_values"]), node["type"]
        values = {n: value for (n, _, _), value in zip(named, node["widgets_values"], strict=True) if n}
        linked = {i["name"]: wires[i["link"]] for i in node["inputs"] if i.get("link") is not None}
        title = node.get("title") or every[node["type"]]["display_name"]
        api[str(node["id"])] = {"class_type": node["type"], "inputs": values | linked, "_meta": {"title": title}}
    return api


def canonical(api):
    """A workflow with its node ids replaced by the nodes' types and titles."""
    kinds = {name: (node["class_type"], node["_meta"]["title"]) for name, node in api.items()}
    assert len(set(kinds.values())) == len(kinds)
    return {
        kinds[key]: {
            name: [kinds[value[0]], value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        for key, node in api.items()
    }


def on_disk(name):
    """A story for the canvas."""
    return json.loads(canvas_file(name).read_text())


@pytest.fixture(params=STORIES)
def story(request):
    return on_disk(request.param)


def test_the_template_browser_lists_each_story_once_and_nothing_else(host):
    assert sorted(host.get_json("/workflow_templates")[comfyui.PACK_NAME]) == sorted(
        canvas_file(name).stem for name in STORIES
    )
    assert STORIES


@pytest.mark.parametrize("name", STORIES)
def test_a_template_opens_and_has_a_picture(host, name):
    served = host.get_json(f"/api/workflow_templates/{comfyui.PACK_NAME}/{canvas_file(name).name}")
    assert served == on_disk(name)
    thumbnail = f"/api/workflow_templates/{comfyui.PACK_NAME}/{canvas_file(name, '.jpg').name}"
    picture = Image.open(io.BytesIO(host.get(thumbnail)))
    assert picture.format == "JPEG"
    assert min(picture.size) >= 200


def check_values(node_type, valued):
    """Check values against widgets: (name, kind or options, properties, value)."""
    for name, kind, properties, value in valued:
        place = f"{node_type}.{name}: {value!r}"
        if properties.get("image_upload"):
            assert isinstance(value, str), place
        elif isinstance(kind, list):
            assert value in kind, place
        elif kind in ("INT", "FLOAT"):
            assert isinstance(value, int | float), place
            assert not isinstance(value, bool), place
            assert kind == "FLOAT" or isinstance(value, int), place
            assert properties["min"] <= value <= properties["max"], place
        else:
            assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind]), place


def test_app_mode_asks_for_widgets_that_are_there(host, story):
    every = host.get_json("/object_info")
    nodes = {node["id"]: node for node in story["nodes"]}
    data = story["extra"]["linearData"]
    assert data["inputs"]
    for number, widget in data["inputs"]:
        slots = {slot["name"]: slot for slot in nodes[number]["inputs"]}
        brush = widget == "flowcore_brush" and "painting" in slots
        assert brush or (slots[widget].get("widget") and slots[widget]["link"] is None), widget
    saving = [number for number, node in nodes.items() if "images" in [slot["name"] for slot in node["inputs"]]]
    assert data["outputs"] == [number for number in saving if every[nodes[number]["type"]]["output_node"]] != []


def test_values_line_up_with_the_live_schema(host, story, folder_of_photos):
    every = host.get_json("/object_info")
    for node in story["nodes"]:
        if node["type"] not in VIRTUAL:
            named = list(widgets(every[node["type"]]))
            values = zip(named, node["widgets_values"], strict=True)
            check_values(node["type"], [(*described, value) for described, value in values])


def test_slots_and_wires_agree_with_each_other_and_with_the_live_schema(host, story):
    every = host.get_json("/object_info")
    nodes = {node["id"]: node for node in story["nodes"]}
    for node in nodes.values():
        if node["type"] not in VIRTUAL:
            names = [name for name, _, _ in inputs(every[node["type"]])]
            assert [i["name"] for i in node["inputs"] if i["name"] != "upload"] == names
            kinds = [o["type"] for o in node["outputs"]]
            live = every[node["type"]]["output"]
            # Core nodes have grown outputs from version to version; ours are named in full.
            assert (
                kinds == live if "Flowcore" in node["type"] else all(a == b for a, b in zip(kinds, live, strict=False))
            )
    for link, source, output, target, slot, kind in story["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][slot]["link"] == link
        assert nodes[target]["inputs"][slot]["type"] in (kind, "*")
    assert story["last_node_id"] == max(nodes)
    assert story["last_link_id"] == max(link[0] for link in story["links"])


def test_our_nodes_say_which_pack_they_come_from(story):
    ours = [node for node in story["nodes"] if node["type"].startswith("Flowcore")]
    assert ours
    for node in ours:
        assert node["properties"]["cnr_id"] == "flowcore"
        assert node["properties"]["ver"]


@pytest.mark.parametrize("name", STORIES)
def test_both_formats_tell_the_same_story(host, name):
    story = on_disk(name)
    api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    assert canonical(to_api(story, host.get_json("/object_info"))) == canonical(on_canvas(api))
    # A host that replaces nodes reads the titles without asking whether there are any.
    assert all(node["_meta"]["title"] for node in api.values())


# What each story saves from a photograph of 24x16: number of pictures, and their size.
RESULTS = {
    "upscale": (4, (96, 64)),
    "photo": (4, (96, 64)),
    "temperatures": (1, ANY),  # its labels are as wide as the font that Pillow brings
    "morph": (1, (256, 256)),
    "digits": (10, (112, 112)),
    "handwriting": (50, (112, 112)),
    "rank": (6, (64, 64)),
    "retouched": (2, (256, 256)),
    "content-transfer": (1, (24, 16)),
    "latent-normalisation": (1, (24, 16)),
    "colourings": (4, (24, 16)),
    "strokes": (2, (24, 16)),
    "palette-transfer": (3, (24, 16)),
    "clip": (1, (24, 16)),
    "train": (1, (224, 256)),  # the sheet of Flow Train; what Flow Sample makes is shown, not saved
    "painted": (1, (96, 64)),
    "grid": (1, ANY),
    "best-of": (2, (96, 64)),
    "faces": (4, (398, 536)),
    "smile": (4, (64, 64)),
    "morph-faces": (1, (256, 256)),
}

# The story of training, with a recipe of as few pixels and steps as the photographs of the tests allow.
QUICK = """
name = "quick"
architecture = "glow"
validation = 1
precision = "float32"
checkpoint_every = 2
init_batch = 8
evaluate = 8

[model]
levels = 2
steps = 1
hidden = 8
image_size = 32

[[stages]]
name = "flow"
objective = "likelihood"
steps = 2
batch = 4
crop = 32
"""


def with_photo(host, workflow, photo):
    """Give a workflow a small photograph in place of every single one; batches stay as they are."""
    files = examples(host)
    for node in workflow.values():
        kind, values = node["class_type"], node["inputs"]
        if kind == "FlowcoreExample" and values["picture"] == "small face":
            continue  # small already, and its eyes are where the story says
        if kind == "LoadImage" or (kind == "FlowcoreExample" and len(files[values["picture"]]) == 1):
            node |= {"class_type": "LoadImage", "inputs": {"image": photo}}
    return workflow


def run_small(host, workflow, photo, folder_of_photos):
    """Run a story with small photographs and the quick recipe; the pictures, which show something."""
    for node in with_photo(host, workflow, photo).values():
        if node["class_type"] == "FlowcoreTrain":
            (host.server.base / "models" / "flows" / "quick.toml").write_text(QUICK)
            node["inputs"] |= {"folder": folder_of_photos, "recipe": "quick.toml", "start": "nothing", "restart": True}
    pictures = host.images(workflow)
    assert all(np.asarray(picture.convert("RGB")).std() > 5 for picture in pictures)
    return pictures


@pytest.mark.parametrize("name", STORIES)
def test_a_template_runs(host, name, photo, folder_of_photos):
    workflow = to_api(on_disk(name), host.get_json("/object_info"))
    pictures = run_small(host, workflow, photo, folder_of_photos)
    assert (len(pictures), pictures[0].size) == RESULTS[name]
    assert len({picture.size for picture in pictures}) == 1
    if name == "morph":
        assert pictures[0].n_frames == 45  # from each of three to the next, and back to the first
    if name == "morph-faces":
        assert pictures[0].n_frames == 30
    if name == "retouched":  # what was pasted in is softer than its surroundings: the model needs fewer bits there
        before, after = (np.asarray(sheet.convert("L"), dtype=float) for sheet in pictures)
        patch, rest = (slice(80, 120), slice(160, 208)), (slice(140, 250), slice(10, 120))
        assert after[patch].mean() < 0.7 * before[patch].mean()
        assert abs(after[rest].mean() - before[rest].mean()) < 12
    if name in ("colourings", "strokes", "palette-transfer", "clip"):
        rgb = np.asarray(pictures[0].convert("RGB"), dtype=float)
        assert np.ptp(rgb, axis=2).mean() > 1  # in color


def test_the_script_beside_the_workflow_runs_it(host, tmp_path):
    photo = Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((120, 40, 144, 56))
    photo.save(tmp_path / "corner.png")
    command = [sys.executable, WORKFLOWS / "api" / "client.py", tmp_path / "corner.png", "--url", host.url]
    command += ["--seed", "7", "--samples", "2", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["corner-7.png", "corner-8.png"]
    assert [Image.open(file).size for file in files] == [(96, 64)] * 2
    assert "100%" in done.stdout
    refused = subprocess.run([*command, "--model", "nope"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "no flow model 'nope'" in refused.stderr
