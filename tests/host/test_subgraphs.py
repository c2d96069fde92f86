"""The subgraph blueprints: offered by the host, in line with its live schemas, and they do what they say."""

from __future__ import annotations

import io
import json

import comfyui
import numpy as np
import pytest
from PIL import Image
from talk import inputs
from test_workflows import check_values, valued

BLUEPRINTS = sorted((comfyui.ROOT / "subgraphs").glob("*.json"))
NAMES = [path.stem for path in BLUEPRINTS]
INSIDE, OUTSIDE = -10, -20  # what the host calls the two ends of a subgraph


@pytest.fixture(params=BLUEPRINTS, ids=NAMES)
def blueprint(request):
    return json.loads(request.param.read_text())


def graph_of(blueprint):
    (definition,) = blueprint["definitions"]["subgraphs"]
    return definition


def expanded(blueprint, every, source):
    """The prompt that the frontend makes of it, for a source image; and what its outputs are."""
    definition = graph_of(blueprint)
    wires = {link["id"]: (link["origin_id"], link["origin_slot"]) for link in definition["links"]}

    def end(number):
        origin, slot = wires[number]
        return source if origin == INSIDE else [f"1:{origin}", slot]

    prompt = {}
    for node in definition["nodes"]:
        values = {name: value for name, _, _, value in valued(node, every[node["type"]]) if name}
        wired = [slot for slot in node["inputs"] if slot.get("link") is not None and "widget" not in slot]
        linked = {slot["name"]: end(slot["link"]) for slot in wired}
        title = {"title": node["title"]}
        prompt[f"1:{node['id']}"] = {"class_type": node["type"], "inputs": values | linked, "_meta": title}
    return prompt, {output["name"]: end(output["linkIds"][0]) for output in definition["outputs"]}


def test_the_host_lists_and_serves_them(host):
    listed = host.get_json("/global_subgraphs")
    ours = {entry["name"]: key for key, entry in listed.items() if comfyui.PACK_NAME in entry["info"]["node_pack"]}
    assert sorted(ours) == NAMES == ["4x with comparison", "colorize four ways"]
    for path in BLUEPRINTS:
        served = host.get_json(f"/global_subgraphs/{ours[path.stem]}")
        assert json.loads(served["data"]) == json.loads(path.read_text())


def test_values_slots_wires_and_promoted_widgets_agree_with_the_live_schema(host, blueprint):
    every = host.get_json("/object_info")
    definition, (outer,) = graph_of(blueprint), blueprint["nodes"]
    nodes = {node["id"]: node for node in definition["nodes"]}
    wires = {link["id"]: link for link in definition["links"]}
    assert outer["type"] == definition["id"]
    assert (definition["inputNode"]["id"], definition["outputNode"]["id"]) == (INSIDE, OUTSIDE)
    for side in ("inputs", "outputs"):
        assert [(s["name"], s["type"]) for s in outer[side]] == [(s["name"], s["type"]) for s in definition[side]]
    for link in wires.values():
        if link["origin_id"] == INSIDE:
            assert link["id"] in definition["inputs"][link["origin_slot"]]["linkIds"]
            assert definition["inputs"][link["origin_slot"]]["type"] == link["type"]
        else:
            node, slot = nodes[link["origin_id"]], link["origin_slot"]
            assert link["id"] in node["outputs"][slot]["links"]
            assert node["outputs"][slot]["type"] == link["type"] == every[node["type"]]["output"][slot]
        if link["target_id"] == OUTSIDE:
            assert definition["outputs"][link["target_slot"]]["linkIds"] == [link["id"]]
            assert definition["outputs"][link["target_slot"]]["type"] == link["type"]
        else:
            slot = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert (slot["link"], slot["type"]) == (link["id"], link["type"])
    for node in nodes.values():
        check_values(node["type"], valued(node, every[node["type"]]))
        assert not node["type"].startswith("Flowcore") or node["properties"]["cnr_id"] == "flowcore"
        known = {name for name, _, _ in inputs(every[node["type"]])}
        # Old hosts lack the pictures that are compared; nothing hangs on them.
        unknown = [(slot["type"], slot["link"]) for slot in node["inputs"] if slot["name"] not in known]
        assert set(unknown) <= {("IMAGECOMPARE", None)}
        assert all(slot.get("link") is None or slot["link"] in wires for slot in node["inputs"])
    # Controls are inputs: the frontend numbers inner nodes anew, and what is promoted by its node's number gets lost.
    controls = [slot["name"] for slot in outer["inputs"] if "widget" in slot]
    assert outer["properties"]["proxyWidgets"] == [["-1", name] for name in controls]
    assert "seed" in controls
    assert len(outer["widgets_values"]) == len(controls)
    state = definition["state"]
    assert (state["lastNodeId"], state["lastLinkId"]) == (max(nodes), max(wires))


# Of a photograph of 24x16: the pictures and their size, and the size of the sheet (gaps of 4 pixels).
RESULTS = {
    "4x with comparison": ("comparison", 1, (96, 64), (196, 64)),
    "colorize four ways": ("sheet", 4, (24, 16), (52, 36)),
}


def test_a_blueprint_runs(host, photo, blueprint):
    every = host.get_json("/object_info")
    prompt, outputs = expanded(blueprint, every, ["photo", 0])
    sheet, count, size, whole = RESULTS[blueprint["nodes"][0]["title"]]
    prompt["photo"] = {"class_type": "LoadImage", "inputs": {"image": photo}}
    for name, wire in outputs.items():
        prompt[name] = {"class_type": "SaveImage", "inputs": {"images": wire, "filename_prefix": "blueprint"}}
    entry = host.run(prompt)
    pictures = [np.asarray(image) for image in opened(host, entry, "images")]
    (together,) = opened(host, entry, sheet)
    assert [picture.shape[1::-1] for picture in pictures] == [size] * count
    assert together.size == whole
    # The pictures are the parts of the sheet: on the right, or in two rows of two.
    parts = np.asarray(together.convert("RGB"))
    if count == 1:
        assert np.abs(parts[:, 100:].astype(int) - pictures[0]).max() <= 1
        assert np.abs(parts[:, :96].astype(int) - pictures[0]).mean() > 1
    else:
        for number, picture in enumerate(pictures):
            top, left = number // 2 * 20, number % 2 * 28
            assert np.abs(parts[top : top + 16, left : left + 24].astype(int) - picture).max() <= 1
        assert len({picture.tobytes() for picture in pictures}) == 4


def opened(host, entry, name):
    files = host.pictures({"outputs": {name: entry["outputs"][name]}})
    return [Image.open(io.BytesIO(data)) for data in files]
