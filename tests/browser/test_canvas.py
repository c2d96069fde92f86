"""Every shipped workflow on the real canvas, in both renderers: what a person sees is what the file says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from talk import WORKFLOWS, graph
from test_workflows import VIRTUAL, canonical, to_api, widgets

STORIES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes2"])


def story(name):
    return json.loads((WORKFLOWS / f"{name}.json").read_text())


def named(workflow, every):
    """Widget values of a saved workflow: node id to name to value; what has no name is left out."""
    return {
        str(node["id"]): {
            name: value
            for (name, _, _), value in zip(widgets(every[node["type"]]), node["widgets_values"], strict=False)
            if name
        }
        for node in workflow["nodes"]
        if node["type"] not in VIRTUAL
    }


def positions(workflow):
    """Widget values of a saved workflow, by position."""
    return {node["id"]: node["widgets_values"] for node in workflow["nodes"] if node["type"].startswith("Flowcore")}


@RENDERERS
def test_shipped_workflows_open_with_every_value_in_its_widget(canvases, host, vue):
    canvas, every = canvases(vue=vue), host.get_json("/object_info")
    for name in STORIES:
        saved = story(name)
        canvas.open(saved)
        shown = {str(node["id"]): node for node in canvas.nodes()}
        assert len(shown) == len(saved["nodes"]), name
        for node in shown.values():
            assert node["known"], f"{name}: {node['type']} is missing"
            assert not node["red"], f"{name}: {node['type']} is red"
        for number, values in named(saved, every).items():
            there = {widget: value for widget, _, value in shown[number]["widgets"]}
            assert values.items() <= there.items(), f"{name}: {shown[number]['type']}"
        sent = {number: node for number, node in canvas.prompt().items() if node["class_type"] not in VIRTUAL}
        assert canonical(sent) == canonical(to_api(saved, every)), name
        # Saved again, it is the same: no widget of ours counts as a value.
        again = positions(canvas.saved())
        assert {number: values[: len(again[number])] for number, values in positions(saved).items()} == {
            number: values[: len(positions(saved)[number])] for number, values in again.items()
        }, name
        assert canvas.overlapping() == [], name
        canvas.shot(f"open-{name}")
    assert canvas.complaints == []


@RENDERERS
def test_blueprints_open_and_all_of_their_nodes_are_known(canvases, vue):
    canvas = canvases(vue=vue)
    for path in sorted((WORKFLOWS.parent / "subgraphs").glob("*.json")):
        blueprint = json.loads(path.read_text())
        canvas.open(blueprint)
        (outer,) = canvas.nodes()
        assert outer["known"]
        assert not outer["red"]
        inner = canvas.page.evaluate(
            "() => [...app.graph.subgraphs.values()].flatMap(s => s.nodes.map(n => [n.type, !!n.has_errors]))"
        )
        (definition,) = blueprint["definitions"]["subgraphs"]
        assert sorted(kind for kind, _ in inner) == sorted(node["type"] for node in definition["nodes"])
        assert [kind for kind, red in inner if red] == []
        unknown = "types => types.filter(type => !(type in LiteGraph.registered_node_types))"
        assert canvas.page.evaluate(unknown, [kind for kind, _ in inner]) == []
        canvas.page.evaluate("() => app.canvas.openSubgraph([...app.graph.subgraphs.values()][0], app.graph.nodes[0])")
        canvas.page.wait_for_timeout(300)
        canvas.fit()
        assert canvas.page.evaluate("() => app.canvas.graph.nodes.length") == len(definition["nodes"])
        canvas.shot(f"blueprint-{path.stem.replace(' ', '-')}")
    assert canvas.complaints == []


def upscaling(control="randomize"):
    """The shipped story with a small model's worth of work."""
    workflow = story("upscale")
    (node,) = [node for node in workflow["nodes"] if node["type"] == "FlowcoreUpscale"]
    node["widgets_values"][:4] = [0.8, 40, control, 4]
    return workflow


@RENDERERS
def test_a_run_shows_its_pictures_and_a_click_keeps_a_seed(canvases, host, vue):
    canvas = canvases(vue=vue)
    canvas.open(upscaling())
    before = positions(canvas.saved())
    canvas.run()
    page = canvas.page
    page.wait_for_function(
        "() => [...document.querySelectorAll('.flowcore-gallery img')].filter(i => i.naturalWidth).length == 4"
    )
    page.wait_for_timeout(600)
    buttons = page.locator(".flowcore-gallery button")
    (ours,) = [node for node in canvas.nodes() if node["type"] == "FlowcoreUpscale"]
    # The preview is shown while it runs, and no more.
    assert "$$canvas-image-preview" not in [name for name, _, _ in ours["widgets"]]
    assert page.locator(f"[data-node-id='{ours['id']}'] img.pointer-events-none:visible").count() == 0
    assert [buttons.nth(k).get_attribute("data-seed") for k in range(4)] == ["40", "41", "42", "43"]
    assert canvas.value("FlowcoreUpscale", "seed") not in range(40, 44)  # a random one stands there for the next run
    canvas.fit()
    canvas.shot("gallery")
    if not vue:
        (_, _, _, bottom), last = canvas.bounds("FlowcoreUpscale"), buttons.nth(3).bounding_box()
        assert last["y"] + last["height"] <= bottom
    (save,) = [node["id"] for node in canvas.nodes() if node["type"] == "SaveImage"]
    assert page.evaluate("id => app.nodeOutputs[id].images.length", save) == 4

    buttons.nth(2).click()
    assert canvas.value("FlowcoreUpscale", "seed") == 42
    assert canvas.value("FlowcoreUpscale", "control_after_generate") == "fixed"
    assert [buttons.nth(k).get_attribute("aria-pressed") for k in range(4)] == ["false", "false", "true", "false"]
    assert "42" in buttons.nth(2).get_attribute("title")
    (sent,) = [node["inputs"] for node in canvas.prompt().values() if node["class_type"] == "FlowcoreUpscale"]
    assert sent["seed"] == 42
    assert not [name for name in sent if name.startswith("flowcore_")]
    if vue:  # which is an icon there, and crossed out
        page.wait_for_selector(f"[data-node-id='{ours['id']}'] [class*='lucide--pencil-off']")
    canvas.shot("gallery-picked")

    # The gallery is no value: what is saved has the same length, and opens with the same values.
    kept = canvas.saved()
    after = positions(kept)
    assert {number: len(values) for number, values in after.items()} == {
        number: len(values) for number, values in before.items()
    }
    canvas.open(kept)
    assert canvas.value("FlowcoreUpscale", "seed") == 42
    assert canvas.value("FlowcoreUpscale", "control_after_generate") == "fixed"
    assert positions(canvas.saved()) == after
    canvas.run()  # the first picture is the one that was picked, and marked
    page.wait_for_selector(".flowcore-gallery button[data-seed='42']")
    assert page.locator(".flowcore-gallery button").nth(0).get_attribute("aria-pressed") == "true"
    assert canvas.complaints == []


def test_before_and_after_are_shown_and_cost_no_second_run(canvases):
    """Nodes 2.0 only: the classic canvas says so itself."""
    canvas = canvases(vue=True)
    canvas.open(upscaling("fixed"))
    canvas.run()
    canvas.page.wait_for_function(
        """() => { const node = app.graph.nodes.find(n => n.type === 'FlowcoreUpscale');
            const value = node.widgets.find(w => w.type === 'imagecompare').value;
            return value?.beforeImages?.length === 1 && value?.afterImages?.length === 1; }"""
    )
    (sent,) = [node["inputs"] for node in canvas.prompt().values() if node["class_type"] == "FlowcoreUpscale"]
    assert "compare" not in sent
    canvas.page.evaluate("""() => { window.cached = [];
        app.api.addEventListener('execution_cached', event => window.cached.push(...event.detail.nodes)); }""")
    canvas.run()
    (node,) = [node["id"] for node in canvas.nodes() if node["type"] == "FlowcoreUpscale"]
    assert str(node) in canvas.page.evaluate("() => window.cached")
    canvas.look_at("FlowcoreUpscale", scale=1.2)
    canvas.shot("compare")
    assert canvas.complaints == []


def test_a_click_on_a_digit_brings_its_label_along(canvases):
    canvas = canvases(vue=False)
    canvas.open(
        digits("FlowcoreSample", {"model": "model.0", "samples": 4, "temperature": 0.7, "seed": 5, "labels": ""})
    )
    canvas.run()
    canvas.page.locator(".flowcore-gallery button[data-seed='7']").click()
    assert canvas.value("FlowcoreSample", "seed") == 7
    assert canvas.value("FlowcoreSample", "labels") == "2, 3, 0, 1"
    assert canvas.complaints == []


def test_a_seed_that_comes_along_a_wire_is_not_written(canvases):
    canvas = canvases(vue=False)
    values = {"model": "model.0", "samples": 2, "temperature": 0.7, "seed": "number.0", "labels": "4"}
    canvas.open(digits("FlowcoreSample", values, number=("PrimitiveInt", {"value": 12})))
    canvas.run()
    before = [canvas.value("FlowcoreSample", name) for name in ("seed", "control_after_generate")]
    picked = canvas.page.locator(".flowcore-gallery button[data-seed='13']")
    picked.click()
    assert [canvas.value("FlowcoreSample", name) for name in ("seed", "control_after_generate")] == before
    assert "wire" in picked.get_attribute("title")
    assert canvas.complaints == []


def digits(kind, values, **more):
    """A workflow in API format that ends in a preview of the node `last`."""
    made = graph(
        model=("FlowcoreLoadModel", {"model_name": "mnist-styles"}),
        last=(kind, values),
        preview=("PreviewImage", {"images": "last.0"}),
        **more,
    )
    # The frontend takes numbers as ids.
    numbers = {name: str(k + 1) for k, name in enumerate(made)}
    return {
        numbers[name]: {
            **node,
            "inputs": {
                key: [numbers[value[0]], value[1]] if isinstance(value, list) else value
                for key, value in node["inputs"].items()
            },
            "_meta": {"title": node["class_type"]},
        }
        for name, node in made.items()
    }


def exploring():
    """Four digits, and the pad between them."""
    draw = {"model": "model.0", "samples": 1, "temperature": 0.7, "seed": 3}
    drawn = {name: ("FlowcoreSample", draw | {"labels": str(k)}) for k, name in enumerate("abcd")}
    place = {name: f"{name}.1" for name in "abcd"} | {"x": 0.5, "y": 0.5}
    return digits(
        "FlowcoreDecode",
        {"latents": "explore.0", "model": "model.0"},
        explore=("FlowcoreLatentExplorer", place),
        **drawn,
    )


@RENDERERS
def test_the_pad_moves_x_and_y_and_they_move_it(canvases, vue):
    canvas = canvases(vue=vue)
    canvas.open(exploring())
    canvas.look_at("FlowcoreLatentExplorer", scale=1.3)
    page, pad = canvas.page, canvas.page.locator(".flowcore-pad > div")
    length = len(positions(canvas.saved())[node_id(canvas)])
    box = pad.bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=2)
    assert box["width"] > 100
    if not vue:  # which lays it out by itself, some time later
        (_, _, _, bottom) = canvas.bounds("FlowcoreLatentExplorer")
        assert box["y"] + box["height"] <= bottom  # on the node, not across its edge
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.75 * box["height"], steps=5)
    page.mouse.up()
    x, y = (canvas.value("FlowcoreLatentExplorer", name) for name in "xy")
    assert (x, y) == (pytest.approx(0.25, abs=0.02), pytest.approx(0.75, abs=0.02))
    assert dot(pad) == (pytest.approx(x, abs=0.02), pytest.approx(y, abs=0.02))
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"])  # the button is up: nothing moves
    assert canvas.value("FlowcoreLatentExplorer", "x") == x
    page.keyboard.press("ArrowRight")
    assert canvas.value("FlowcoreLatentExplorer", "x") == pytest.approx(x + 0.01, abs=0.002)
    assert page.locator(".flowcore-pad b.open").count() == 0
    canvas.shot("explorer")

    kept = canvas.saved()
    assert len(positions(kept)[node_id(canvas)]) == length == 2
    canvas.open(kept)
    canvas.look_at("FlowcoreLatentExplorer", scale=1.3)
    assert canvas.value("FlowcoreLatentExplorer", "y") == y
    assert dot(page.locator(".flowcore-pad > div")) == (pytest.approx(x + 0.01, abs=0.02), pytest.approx(y, abs=0.02))
    # Numbers that come from elsewhere move the point.
    page.evaluate(
        """() => { const node = app.graph.nodes.find(n => n.type === 'FlowcoreLatentExplorer');
            const w = node.widgets.find(w => w.name === 'x'); w.value = 1; w.callback(1, app.canvas, node); }"""
    )
    assert dot(page.locator(".flowcore-pad > div"))[0] == pytest.approx(1, abs=0.02)
    canvas.run()
    canvas.fit()
    canvas.shot("explorer-run")
    assert canvas.complaints == []


def node_id(canvas):
    (node,) = [node for node in canvas.saved()["nodes"] if node["type"] == "FlowcoreLatentExplorer"]
    return node["id"]


def dot(pad):
    """Where the point is drawn on the pad, as shares of its sides."""
    return tuple(
        pad.evaluate(
            """pad => { const p = pad.getBoundingClientRect(), d = pad.querySelector('i').getBoundingClientRect();
                return [(d.x + d.width / 2 - p.x) / p.width, (d.y + d.height / 2 - p.y) / p.height]; }"""
        )
    )


@RENDERERS
def test_a_canvas_in_korean(canvases, host, vue):
    canvas = canvases(vue=vue, language="ko")
    words = host.get_json("/i18n")["ko"]["nodeDefs"]
    canvas.open(upscaling("fixed"))
    (node,) = [node for node in canvas.nodes() if node["type"] == "FlowcoreUpscale"]
    assert node["title"] == words["FlowcoreUpscale"]["display_name"]
    labels = {name: label for name, label, _ in node["widgets"]}
    for name in ("temperature", "samples", "tile"):
        assert labels[name] == words["FlowcoreUpscale"]["inputs"][name]["name"]
    canvas.run()
    canvas.page.wait_for_selector(".flowcore-gallery button[data-seed='43']")
    assert host.get_json("/i18n")["ko"]["flowcore"]["take"].split("{seed}")[0] in (
        canvas.page.locator(".flowcore-gallery button").nth(0).get_attribute("title")
    )
    canvas.page.wait_for_timeout(600)
    canvas.fit()
    picture = canvas.shot("gallery")
    assert np.asarray(Image.open(picture).convert("L")).std() > 10
    assert canvas.complaints == []
