"""The shipped workflows and blueprints: listed, aligned with the live schema, alike in both formats; and they run."""

import io
import json
import operator
from urllib.parse import quote

import av
import comfyui
import numpy as np
import pytest
from PIL import Image
from record_golden import NOTES
from saved_workflows import (
    BLUEPRINTS,
    RESULTS,
    STORIES,
    canonical,
    check_values,
    known,
    run_small,
    to_api,
    valued,
    widgets,
)
from stories import TITLES, canvas_file, on_canvas, opened
from talk import WORKFLOWS, inputs


def test_the_template_browser_lists_the_front_page_first_and_serves_each_story_with_its_picture(host):
    """In the order in which the frontend shows them, since its sorting by default keeps that of the server."""
    for folder in ("", "/api"):
        listed = host.get_json(f"{folder}/workflow_templates")[comfyui.PACK_NAME]
        assert listed == [*TITLES.values()]
    assert len(listed) <= 16
    assert [title.startswith("Experiment - ") for title in listed] == [False] * 8 + [True] * (len(listed) - 8)
    assert max(map(len, listed)) <= 36  # longer titles are cut
    folder = f"/api/workflow_templates/{comfyui.PACK_NAME}"
    for name in STORIES:
        assert host.get_json(f"{folder}/{quote(canvas_file(name).name)}") == STORIES[name]
        picture = Image.open(io.BytesIO(host.get(f"{folder}/{quote(canvas_file(name, '.jpg').name)}")))
        assert picture.format == "JPEG", name
        assert min(picture.size) >= 200, name


def test_app_mode_asks_for_widgets_that_are_there(host):
    every = host.get_json("/object_info")
    for name, story in STORIES.items():
        nodes = {node["id"]: node for node in story["nodes"]}
        data = story["extra"]["linearData"]
        assert data["inputs"], name
        for number, widget in data["inputs"]:
            slots = {slot["name"]: slot for slot in nodes[number]["inputs"]}
            ours = {"flowcore_brush": "painting", "flowcore_eyes": "left_eye"}.get(widget) in slots
            assert ours or (slots[widget].get("widget") and slots[widget]["link"] is None), f"{name}: {widget}"
        named = {number: {slot["name"] for slot in node["inputs"]} for number, node in nodes.items()}
        saving = [number for number, names in named.items() if names & {"images", "video"}]
        kinds = {number: nodes[number]["type"] for number in saving}
        shown = [n for n, kind in kinds.items() if every[kind]["output_node"] and not kind.startswith("Flowcore")]
        assert data["outputs"] == shown != [], name


def test_values_slots_and_wires_agree_with_each_other_and_with_the_live_schema(host, folder_of_photos):
    every = host.get_json("/object_info")
    for story in STORIES.values():
        nodes = {node["id"]: node for node in story["nodes"]}
        for node in [node for node in nodes.values() if node["type"] not in NOTES]:
            info, ours = every[node["type"]], node["type"].startswith("Flowcore")
            assert len(node["widgets_values"]) == len(list(widgets(info))) or not ours
            check_values(node["type"], valued(node, info))
            known, named = [name for name, _, _ in inputs(info)], [i["name"] for i in node["inputs"]]
            assert [name for name in named if name in known or (ours and name != "upload")] == known
            # Core nodes have grown outputs from version to version; ours are named in full.
            kinds = [o["type"] for o in node["outputs"]]
            assert kinds == info["output"] if ours else all(map(operator.eq, kinds, info["output"]))
            assert not ours or (node["properties"]["cnr_id"] == "flowcore" and node["properties"]["ver"])
        for link, source, output, target, slot, kind in story["links"]:
            assert link in nodes[source]["outputs"][output]["links"]
            assert nodes[source]["outputs"][output]["type"] == kind
            assert nodes[target]["inputs"][slot]["link"] == link
            assert {kind, "*"} & set(nodes[target]["inputs"][slot]["type"].split(","))
        assert any(node["type"].startswith("Flowcore") for node in nodes.values())
        assert story["last_node_id"] == max(nodes)
        assert story["last_link_id"] == max(link[0] for link in story["links"])


def test_both_formats_tell_the_same_story(host):
    every = host.get_json("/object_info")
    for name, story in STORIES.items():
        api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
        assert canonical(to_api(story, every)) == canonical(known(on_canvas(api), every)), name
        # A host that replaces nodes reads the titles without asking whether there are any.
        assert all(node["_meta"]["title"] for node in api.values()), name


SEVERAL_SIZES = {"old-scan"}


@pytest.mark.parametrize("name", STORIES)
def test_a_template_runs(host, name, photo, folder_of_photos):
    workflow = to_api(STORIES[name], host.get_json("/object_info"))
    pictures = run_small(host, workflow, photo, folder_of_photos)
    assert (len(pictures), pictures[0].size) == RESULTS[name]
    assert (len({picture.size for picture in pictures}) > 1) == (name in SEVERAL_SIZES)
    if name == "morph-faces":
        assert pictures[0].n_frames == 30  # from each to the next, and back
    if name == "retouched":  # grain was painted into the sky: the model needs more bits there
        before, after = (np.asarray(sheet.convert("L"), dtype=float) for sheet in pictures)
        patch, rest = (slice(20, 40), slice(150, 190)), (slice(140, 250), slice(10, 120))
        assert after[patch].mean() > 1.5 * before[patch].mean()
        assert abs(after[rest].mean() - before[rest].mean()) < 12
    if name == "old-scan":  # black and white, colored, and enlarged
        assert sorted(picture.size for picture in pictures) == [(24, 16), (24, 16), (96, 64)]
    if name in ("old-scan", "strokes", "palette-transfer"):
        rgb = np.asarray(pictures[-1].convert("RGB"), dtype=float)
        assert np.ptp(rgb, axis=2).mean() > 1  # in color


def test_a_film_of_ones_own_keeps_its_sound_and_speed(host):
    """As the note of the story says: Load Video takes the place of the film that comes with the pack."""
    with av.open(str(host.server.base / "input" / "own.mp4"), "w") as film:
        video, sound = film.add_stream("h264", rate=12), film.add_stream("aac", rate=44100, layout="mono")
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        for k in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 40 * k, np.uint8))
            film.mux(video.encode(frame))
        tone = av.AudioFrame.from_ndarray(np.sin(np.arange(22050, dtype=np.float32) / 9)[None], "fltp", "mono")
        tone.sample_rate = 44100
        for stream, part in ((sound, tone), (sound, None), (video, None)):
            film.mux(stream.encode(part))
    api = json.loads((WORKFLOWS / "api" / "steady-clip.json").read_text())
    api["clip"] = {"class_type": "LoadVideo", "inputs": {"file": "own.mp4"}, "_meta": {"title": "Load Video"}}
    (data,) = host.pictures(host.run(api))
    with av.open(io.BytesIO(data)) as made:
        assert (made.streams.video[0].average_rate, made.streams.video[0].frames) == (12, 6)
        assert made.streams.audio[0].duration


# --- blueprints -------------------------------------------------------------------------------------------------------

NAMES = [path.stem for path in BLUEPRINTS]
INSIDE, OUTSIDE = -10, -20  # what the host calls the two ends of a subgraph


@pytest.fixture(params=BLUEPRINTS, ids=NAMES)
def blueprint(request):
    return json.loads(request.param.read_text())


def expanded(blueprint, every, source):
    """The prompt that the frontend makes of it, for a source image; and what its outputs are."""
    (definition,) = blueprint["definitions"]["subgraphs"]
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
    assert sorted(ours) == NAMES == ["4x with comparison", "colorize four ways", "restore old photo"]
    for path in BLUEPRINTS:
        served = host.get_json(f"/global_subgraphs/{ours[path.stem]}")
        assert json.loads(served["data"]) == json.loads(path.read_text())


def test_values_slots_wires_and_promoted_widgets_agree_with_the_live_schema(host, blueprint):
    every = host.get_json("/object_info")
    (definition,), (outer,) = blueprint["definitions"]["subgraphs"], blueprint["nodes"]
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
    assert "seed" not in controls  # as long as it is fixed inside, another run gives the same
    (viewer,) = [node for node in nodes.values() if node["type"] == "PreviewImage"]  # which the frontend shows outside
    (shown,) = [wires[slot["link"]]["origin_id"] for slot in viewer["inputs"]]
    assert shown == wires[definition["outputs"][1]["linkIds"][0]]["origin_id"]
    assert len(outer["widgets_values"]) == len(controls)
    state = definition["state"]
    assert (state["lastNodeId"], state["lastLinkId"]) == (max(nodes), max(wires))


# Of a photograph of 24x16: the pictures and their size, and the size of the sheet (gaps of 4 pixels).
MADE = {
    "4x with comparison": ("comparison", 1, (96, 64), (196, 64)),
    "colorize four ways": ("sheet", 4, (24, 16), (52, 36)),
}


def run_blueprint(host, photo, name):
    """The pictures of each output of a blueprint."""
    blueprint = json.loads((comfyui.ROOT / "subgraphs" / f"{name}.json").read_text())
    prompt, outputs = expanded(blueprint, host.get_json("/object_info"), ["photo", 0])
    prompt["photo"] = {"class_type": "LoadImage", "inputs": {"image": photo}}
    for output, wire in outputs.items():
        prompt[output] = {"class_type": "SaveImage", "inputs": {"images": wire, "filename_prefix": "blueprint"}}
    made = host.outputs(prompt)
    return {output: [*map(opened, host.pictures({"outputs": {output: made[output]}}))] for output in outputs}


def test_an_old_photo_is_restored_in_one_node(host, photo):
    made = run_blueprint(host, photo, "restore old photo")
    assert {name: [picture.size for picture in pictures] for name, pictures in made.items()} == {
        "images": [(48, 32)],
        "colored": [(24, 16)],
    }
    assert np.ptp(np.asarray(made["colored"][0].convert("RGB")).astype(int), axis=-1).max() > 0


@pytest.mark.parametrize("name", MADE)
def test_a_blueprint_runs(host, photo, name):
    sheet, count, size, whole = MADE[name]
    made = run_blueprint(host, photo, name)
    *pictures, together = [*made["images"], *made[sheet]]
    pictures = [np.asarray(picture) for picture in pictures]
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
