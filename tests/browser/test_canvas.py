"""Every shipped workflow on the real canvas, in both renderers: what a person sees is what the file says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from stories import canvas_file
from talk import WORKFLOWS, graph
from test_workflows import VIRTUAL, canonical, to_api, widgets

STORIES = sorted(path.stem.split("_")[0] for path in WORKFLOWS.glob("*.json"))
RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes2"])


def story(name):
    return json.loads(canvas_file(name).read_text())


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


def of_small_photo(name):
    """A shipped story of a photograph, with a small one."""
    workflow = story(name)
    (photo,) = [node for node in workflow["nodes"] if node["type"] == "FlowcoreExample"]
    del photo["outputs"][2]
    photo |= {"type": "LoadImage", "inputs": [], "widgets_values": ["example.png", "image"]}
    return workflow


def upscaling(control="randomize"):
    """The shipped story with a small model's worth of work."""
    workflow = of_small_photo("upscale")
    (node,) = [node for node in workflow["nodes"] if node["type"] == "FlowcoreUpscale"]
    node["widgets_values"][:4] = [0.8, 40, control, 4]
    return workflow


PICTURES = "() => [...document.querySelectorAll('.flowcore-gallery img')].filter(i => i.naturalWidth).length == 4"


@RENDERERS
def test_a_run_shows_its_pictures_and_a_click_picks_one(canvases, host, vue):
    canvas = canvases(vue=vue)
    canvas.open(upscaling())
    before = positions(canvas.saved())
    canvas.run()
    page = canvas.page
    page.wait_for_function(PICTURES)
    page.wait_for_timeout(600)
    buttons = page.locator(".flowcore-gallery button")
    (ours,) = [node for node in canvas.nodes() if node["type"] == "FlowcoreUpscale"]
    # Previews are shown in the viewer, and nowhere else.
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
    assert canvas.value("FlowcoreUpscale", "pick") == 3
    assert canvas.value("FlowcoreUpscale", "seed") == 40  # of the run that the picture is from
    assert canvas.value("FlowcoreUpscale", "control_after_generate") == "fixed"
    assert [buttons.nth(k).get_attribute("aria-pressed") for k in range(4)] == ["false", "false", "true", "false"]
    assert "42" in buttons.nth(2).get_attribute("title")
    (sent,) = [node["inputs"] for node in canvas.prompt().values() if node["class_type"] == "FlowcoreUpscale"]
    assert (sent["seed"], sent["pick"]) == (40, 3)
    assert not [name for name in sent if name.startswith("flowcore_")]
    if vue:  # which is an icon there, and crossed out
        page.wait_for_selector(f"[data-node-id='{ours['id']}'] [class*='lucide--pencil-off']")
    page.evaluate(
        """() => { window.moved = 0; app.api.addEventListener('b_preview_with_metadata', () => { window.moved++ }) }"""
    )
    canvas.run()
    assert page.evaluate("id => app.nodeOutputs[id].images.length", save) == 1
    assert page.evaluate("() => window.moved") == 0  # nothing was made again
    assert buttons.count() == 4  # to choose another one from
    canvas.fit()
    canvas.shot("gallery-picked")

    # Neither gallery nor viewer is a value: what is saved has the same length, and opens with the same values.
    kept = canvas.saved()
    after = positions(kept)
    assert {number: len(values) for number, values in after.items()} == {
        number: len(values) for number, values in before.items()
    }
    canvas.open(kept)
    assert canvas.value("FlowcoreUpscale", "pick") == 3
    assert canvas.value("FlowcoreUpscale", "control_after_generate") == "fixed"
    assert positions(canvas.saved()) == after
    canvas.run()  # all is cached, and shown again
    page.wait_for_selector(".flowcore-gallery button[data-seed='42'][aria-pressed='true']")
    page.locator(".flowcore-gallery button").nth(2).click()  # a second click: all go on
    assert canvas.value("FlowcoreUpscale", "pick") == 0
    assert canvas.complaints == []


@RENDERERS
def test_a_bad_jpeg_is_enlarged_on_the_first_run(canvases, vue):
    canvas = canvases(vue=vue)
    canvas.open(story("photo"))
    assert canvas.value("FlowcoreLoadModel", "model_name") == "srflow-x4-photo"
    canvas.run()
    canvas.page.wait_for_function(PICTURES)
    canvas.fit()
    canvas.shot("photo")
    assert canvas.overlapping() == []
    assert canvas.complaints == []


@RENDERERS
def test_training_is_cancelled_by_the_button(canvases, vue):
    canvas, page = canvases(vue=vue), canvases(vue=vue).page
    canvas.open(story("train"))
    canvas.watch_end()
    page.evaluate(
        """() => { window.steps = 0; app.api.addEventListener('progress', () => { window.steps++ });
            app.queuePrompt(0, 1); }"""
    )
    page.wait_for_function("() => window.steps")
    page.get_by_label("Cancel current run").click()
    page.wait_for_function("() => window.ended")
    assert page.evaluate("() => window.ended") == "execution_interrupted"
    assert canvas.complaints == []


def test_a_story_is_an_app_with_its_brush(canvases):
    canvas = canvases(vue=True)
    workflow = of_small_photo("strokes")
    (node,) = [node for node in workflow["nodes"] if node["type"] == "FlowcoreColorize"]
    node["widgets_values"][1:4] = [21, "fixed", 1]
    canvas.open(workflow)
    page, command = canvas.page, "() => app.extensionManager.command.execute('Comfy.ToggleLinear')"
    page.evaluate(command)
    board = page.locator(".flowcore-brush-board:visible")
    page.wait_for_function("() => document.querySelector('.flowcore-brush-board img')?.naturalWidth > 0")
    for words in ("Paint", "seed", "samples"):
        page.get_by_text(words, exact=True).locator("visible=true").first.wait_for()
    page.wait_for_timeout(500)  # until nothing moves
    before = len(json.loads(canvas.value("FlowcorePaintHints", "painting")))
    box = board.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()
    assert len(json.loads(canvas.value("FlowcorePaintHints", "painting"))) == before + 1
    canvas.run()
    shown = "() => [...document.images].some(i => i.src.includes('filename=strokes') && i.naturalWidth == 72)"
    page.wait_for_function(shown)
    canvas.shot("app")
    page.evaluate(command)  # and back: the brush is on its node again
    canvas.look_at("FlowcorePaintHints", scale=1.2)
    assert board.count() == 1
    assert len(json.loads(canvas.value("FlowcorePaintHints", "painting"))) == before + 1
    assert canvas.complaints == []


WHERE = """() => {
    const v = document.querySelector('.flowcore-viewer'), r = v.getBoundingClientRect(), k = r.width / v.offsetWidth;
    const [before, after] = ['before', 'after'].map(c => v.querySelector(`.${c} img`));
    return {line: parseFloat(v.querySelector('hr').style.left) * k + r.left, left: r.left, top: r.top, width: r.width,
        height: r.height, wide: parseFloat(after.style.width) * k, x: parseFloat(after.style.left) * k,
        before: before.src, after: after.src, sides: [before.naturalWidth, after.naturalWidth],
        names: [...v.querySelectorAll('select')].map(s => s.selectedOptions[0].text),
        full: Boolean(document.fullscreenElement), open: Boolean(document.querySelector('dialog[open]'))} }"""


@RENDERERS
def test_two_pictures_are_compared_by_mouse_and_keyboard(canvases, vue):
    canvas = canvases(vue=vue)
    canvas.open(upscaling("fixed"))
    canvas.run()
    page = canvas.page
    page.wait_for_function(PICTURES)
    canvas.look_at("FlowcoreUpscale", scale=0.8)
    page.wait_for_function(f"() => ({WHERE})().sides[1] == 288")

    def where():
        page.wait_for_timeout(60)
        return page.evaluate(WHERE)

    scale = "() => app.canvas.ds.scale"
    start, zoomed = where(), page.evaluate(scale)
    assert start["sides"] == [72, 288]
    assert start["names"] == ["source", "seed 40"]
    assert start["width"] > 200
    middle = (start["left"] + start["width"] / 2, start["top"] + start["height"] / 2)
    assert start["line"] == pytest.approx(middle[0], abs=2)

    # wipe
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1], steps=4)
    page.mouse.up()
    assert where()["line"] == pytest.approx(middle[0] + 60, abs=3)
    assert not where()["open"]
    # zoom where the pointer is, and pan; the canvas of nodes stays
    for _ in range(4):
        page.mouse.wheel(0, -200)
    page.wait_for_function(f"wide => ({WHERE})().wide > wide", arg=2 * start["wide"])
    page.wait_for_timeout(300)
    near = where()
    page.mouse.move(middle[0] - 50, middle[1])
    page.mouse.down()
    page.mouse.move(middle[0] - 80, middle[1], steps=4)
    page.mouse.up()
    assert where()["x"] == pytest.approx(near["x"] - 30, abs=3)
    assert page.evaluate(scale) == zoomed
    canvas.shot("viewer-zoomed")
    page.keyboard.press("0")
    assert where()["wide"] == pytest.approx(start["wide"], abs=1)
    # step through the samples, on both sides
    page.keyboard.press("ArrowRight")
    assert where()["names"] == ["source", "seed 41"]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert where()["names"] == ["source", "seed 43"]
    page.keyboard.press("ArrowDown")
    assert where()["names"] == ["seed 40", "seed 43"]
    page.wait_for_function(f"() => ({WHERE})().sides[0] == 288")
    assert where()["before"] != where()["after"] != start["after"]
    page.locator(".flowcore-viewer select").nth(0).select_option("1")
    assert where()["names"] == ["seed 41", "seed 43"]

    # full screen
    page.mouse.click(middle[0] - 60, middle[1] + 20)
    page.wait_for_function(f"() => ({WHERE})().full")
    page.wait_for_timeout(300)
    big = where()
    assert big["open"]
    assert (big["left"], big["top"]) == (0, 0)
    assert big["width"] >= 1200
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert where()["names"] == ["seed 40", "seed 40"]
    page.keyboard.press("ArrowUp")
    canvas.shot("viewer-full")
    page.keyboard.press("1")
    assert where()["wide"] == pytest.approx(288, abs=1) or where()["wide"] == pytest.approx(big["wide"], abs=1)
    page.keyboard.press("Enter")
    assert canvas.value("FlowcoreUpscale", "pick") == 1
    page.keyboard.press("f")
    page.wait_for_function(f"() => {{ const w = ({WHERE})(); return !w.open && !w.full }}")
    assert where()["width"] == pytest.approx(start["width"], abs=2)  # back on the node
    assert page.locator(".flowcore-frame .flowcore-viewer").count() == 1
    assert canvas.complaints == []


@RENDERERS
def test_every_picture_is_shown_as_soon_as_it_is_ready(canvases, vue):
    canvas = canvases(vue=vue)
    canvas.open(upscaling("fixed"))
    # How many pictures the gallery has as each preview comes.
    canvas.page.evaluate(
        """() => { window.seen = []; app.api.addEventListener('b_preview_with_metadata', () => queueMicrotask(() =>
            window.seen.push(document.querySelectorAll('.flowcore-gallery button').length))) }"""
    )
    # A seed of its own: the server remembers the pictures of the other renderer, and shows no previews of them.
    canvas.page.evaluate(
        """seed => { const node = app.graph.nodes.find(n => n.type === 'FlowcoreUpscale');
            node.widgets.find(w => w.name === 'seed').value = seed; }""",
        7000 + vue,
    )
    canvas.run()
    assert canvas.page.evaluate("() => window.seen") == [0, 1, 2, 3, 4]  # first what is enlarged
    assert canvas.complaints == []


def test_a_cell_of_the_grid_goes_where_the_image_is_enlarged(canvases):
    canvas = canvases(vue=True)
    canvas.open(
        numbered(
            photo=("LoadImage", {"image": "example.png"}),
            model=("FlowcoreLoadModel", {"model_name": "srflow-x4"}),
            grid=(
                "FlowcoreTemperatureGrid",
                {"image": "photo.0", "model": "model.0", "temperatures": "0, 0.7", "seed": 5, "seeds": 2},
            ),
            preview=("PreviewImage", {"images": "grid.1"}),
            up=("FlowcoreUpscale", {"image": "photo.0", "model": "model.0", "temperature": 0.3, "seed": 1}),
            save=("PreviewImage", {"images": "up.0"}),
        )
    )
    canvas.spread()
    canvas.run()
    page = canvas.page
    cell = page.locator(".flowcore-gallery button", has_text="0.7 · 6")
    boxes = [button.bounding_box() for button in page.locator(".flowcore-gallery button").all()]
    assert len(boxes) == 4
    assert boxes[0]["x"] == pytest.approx(boxes[1]["x"], abs=1)  # a column is a temperature
    assert boxes[2]["y"] == pytest.approx(boxes[0]["y"], abs=1)
    canvas.fit()
    assert canvas.overlapping() == []
    canvas.shot("grid")
    cell.click()
    assert canvas.value("FlowcoreTemperatureGrid", "pick") == 4
    assert [canvas.value("FlowcoreUpscale", name) for name in ("temperature", "seed")] == [0.7, 6]
    canvas.run()
    canvas.shot("grid-picked")
    (preview,) = [node["id"] for node in canvas.nodes() if node["type"] == "PreviewImage"][:1]
    assert page.evaluate("id => app.nodeOutputs[id].images.length", preview) == 1
    assert canvas.complaints == []


def test_picking_the_best_keeps_the_seed_of_what_it_was_chosen_from(canvases):
    canvas = canvases(vue=False)
    workflow = story("best-of")
    for node in workflow["nodes"]:
        if node["type"] == "FlowcoreUpscale":
            node["widgets_values"][:4] = [0.8, 40, "randomize", 3]
    canvas.open(workflow)
    canvas.run()
    canvas.fit()
    assert canvas.overlapping() == []
    page = canvas.page
    (best,) = [node["id"] for node in canvas.nodes() if node["type"] == "FlowcoreBestOf"]
    labels = page.evaluate("id => app.nodeOutputs[id].flowcore_gallery.map(e => [e.seed, e.score])", best)
    button = page.locator(".flowcore-gallery button", has_text=f"{labels[1][0]} · {labels[1][1]}")
    canvas.shot("best-of")
    button.click()
    assert canvas.value("FlowcoreBestOf", "pick") == 2
    assert canvas.value("FlowcoreUpscale", "pick") == 0
    assert [canvas.value("FlowcoreUpscale", name) for name in ("seed", "control_after_generate")] == [40, "fixed"]
    assert canvas.complaints == []


@RENDERERS
def test_what_an_old_view_has_saved_is_no_pick(canvases, vue):
    """As frontends saved it where `pick` stands now: the last value, and the slot of the view."""
    canvas = canvases(vue=vue)
    for value in ({"beforeImages": ["/api/view?a"], "afterImages": []}, None, ""):
        workflow = upscaling("fixed")
        (node,) = [node for node in workflow["nodes"] if node["type"] == "FlowcoreUpscale"]
        node["inputs"][-1] = {
            "name": "compare", "type": "IMAGECOMPARE", "widget": {"name": "compare"}, "link": None, "shape": 7
        }  # fmt: skip
        node["widgets_values"][-1] = value
        canvas.open(workflow)
        assert canvas.value("FlowcoreUpscale", "pick") == 0
        assert canvas.value("FlowcoreUpscale", "calm_edges") == -0.1
        (sent,) = [each["inputs"] for each in canvas.prompt().values() if each["class_type"] == "FlowcoreUpscale"]
        assert sent["pick"] == 0
        assert "compare" not in sent
        (shown,) = [node for node in canvas.nodes() if node["type"] == "FlowcoreUpscale"]
        assert "compare" not in [name for name, _, _ in shown["widgets"]]
        (kept,) = [node for node in canvas.saved()["nodes"] if node["type"] == "FlowcoreUpscale"]
        assert "compare" not in [slot["name"] for slot in kept["inputs"]]
    canvas.shot("old-compare")
    assert canvas.complaints == []


def test_a_digit_is_picked_with_its_label(canvases):
    canvas = canvases(vue=False)
    canvas.open(
        digits("FlowcoreSample", {"model": "model.0", "samples": 4, "temperature": 0.7, "seed": 5, "labels": "3, 8"})
    )
    canvas.run()
    canvas.fit()
    canvas.page.locator(".flowcore-gallery button[data-seed='7']").click()
    assert [canvas.value("FlowcoreSample", name) for name in ("pick", "seed", "labels")] == [3, 5, "3, 8"]
    canvas.shot("digits")
    assert canvas.complaints == []


def test_a_pick_that_comes_along_a_wire_is_not_written(canvases):
    canvas = canvases(vue=False)
    values = {"model": "model.0", "samples": 2, "temperature": 0.7, "seed": 12, "labels": "4", "pick": "number.0"}
    canvas.open(digits("FlowcoreSample", values, number=("PrimitiveInt", {"value": 1})))
    canvas.run()
    canvas.fit()
    before = [canvas.value("FlowcoreSample", name) for name in ("pick", "seed", "control_after_generate")]
    picked = canvas.page.locator(".flowcore-gallery button[data-seed='13']")
    picked.click()
    names = ("pick", "seed", "control_after_generate")
    assert [canvas.value("FlowcoreSample", name) for name in names] == before
    assert "wire" in picked.get_attribute("title")
    assert canvas.complaints == []


def digits(kind, values, **more):
    """A workflow in API format that ends in a preview of the node `last`."""
    return numbered(
        model=("FlowcoreLoadModel", {"model_name": "mnist-styles"}),
        last=(kind, values),
        preview=("PreviewImage", {"images": "last.0"}),
        **more,
    )


def numbered(**nodes):
    """A workflow in API format for the frontend, which takes numbers as ids."""
    made = graph(**nodes)
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


PAD = ".flowcore-pad section > div"


@RENDERERS
def test_the_pad_moves_x_and_y_and_they_move_it(canvases, vue):
    canvas = canvases(vue=vue)
    canvas.open(exploring())
    canvas.look_at("FlowcoreLatentExplorer", scale=1.3)
    page, pad = canvas.page, canvas.page.locator(PAD)
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
    assert dot(page.locator(PAD)) == (pytest.approx(x + 0.01, abs=0.02), pytest.approx(y, abs=0.02))
    # Numbers that come from elsewhere move the point.
    page.evaluate(
        """() => { const node = app.graph.nodes.find(n => n.type === 'FlowcoreLatentExplorer');
            const w = node.widgets.find(w => w.name === 'x'); w.value = 1; w.callback(1, app.canvas, node); }"""
    )
    assert dot(page.locator(PAD))[0] == pytest.approx(1, abs=0.02)
    canvas.run()
    canvas.fit()
    canvas.shot("explorer-run")
    assert canvas.complaints == []


def seen(canvas, picture):
    """The colors of a picture on the page."""
    return canvas.page.evaluate(
        """async selector => { const image = document.querySelector(selector); await image.decode();
            const table = Object.assign(document.createElement('canvas'), {width: 28, height: 28});
            const context = table.getContext('2d'); context.drawImage(image, 0, 0, 28, 28);
            return [...context.getImageData(0, 0, 28, 28).data]; }""",
        picture,
    )


@RENDERERS
def test_pictures_follow_the_point_on_the_pad(canvases, vue):
    canvas = canvases(vue=vue)
    canvas.open(exploring())
    page = canvas.page
    assert page.locator(".flowcore-pad img").count() == 0  # before a run there is nothing to see
    canvas.run()
    page.wait_for_function("() => document.querySelectorAll('.flowcore-pad img').length === 5")
    canvas.look_at("FlowcoreLatentExplorer", scale=1.3)
    box = page.locator(PAD).bounding_box()

    def drag(x, y):
        src = page.locator(f"{PAD} > img").get_attribute("src")
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        page.wait_for_function("([pad, src]) => document.querySelector(`${pad} > img`).src !== src", arg=[PAD, src])
        page.wait_for_timeout(600)  # until the last place is there
        return seen(canvas, f"{PAD} > img")

    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    corners = [seen(canvas, f".flowcore-pad b:nth-of-type({k}) img") for k in (1, 2, 3, 4)]
    assert len({tuple(corner) for corner in corners}) == 4
    middle = drag(0.45, 0.6)
    assert drag(1.2, 1.2) == corners[3] != middle  # beyond the corner is the corner
    canvas.shot("explorer-live")
    page.mouse.up()
    assert "flowcore_live" not in json.dumps(canvas.saved())
    # A node that is removed while it waits for a picture asks for no other one.
    page.wait_for_timeout(300)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/flowcore/live" in request.url else None)
    page.evaluate(
        """() => { const node = app.graph.nodes.find(n => n.type === 'FlowcoreLatentExplorer');
            const w = node.widgets.find(w => w.name === 'x');
            for (w.value of [0.1, 0.2]) w.callback(w.value, app.canvas, node);
            app.graph.remove(node); }"""
    )
    page.wait_for_timeout(600)
    assert len(asked) == 1
    assert canvas.complaints == []


@RENDERERS
def test_styles_are_seen_while_their_sliders_move(canvases, vue):
    canvas = canvases(vue=vue)
    canvas.open(story("digits"))
    before = positions(canvas.saved())
    canvas.run()
    page, picture = canvas.page, ".flowcore-live img"
    page.wait_for_function("selector => document.querySelector(selector)?.naturalWidth === 140", arg=picture)
    first, src = seen(canvas, picture), page.locator(picture).get_attribute("src")
    page.evaluate(
        """() => { const node = app.graph.nodes.find(n => n.type === 'FlowcoreStyle');
            const w = node.widgets.find(w => w.name === 'bold');
            for (let k = 0; k <= 30; k++) { w.value = k / -10; w.callback(w.value, app.canvas, node); } }"""
    )
    page.wait_for_function("([picture, src]) => document.querySelector(picture).src !== src", arg=[picture, src])
    page.wait_for_timeout(600)
    assert sum(seen(canvas, picture)) < sum(first)  # thinner strokes
    assert canvas.overlapping() == []
    canvas.look_at("FlowcoreStyle", scale=1.2)
    canvas.shot("style-live")
    after = positions(canvas.saved())
    assert {number: len(values) for number, values in after.items()} == {
        number: len(values) for number, values in before.items()
    }
    assert canvas.complaints == []


MENU = """() => { const w = app.graph.nodes.find(n => n.type === 'FlowcoreLoadModel').widgets[0];
    return [w.value, [...w.options.values]] }"""
WIRE = """([target, on]) => { const of = kind => app.graph.nodes.find(n => n.type === kind);
    if (on) of('FlowcoreLoadModel').connect(0, of(target), 'model'); else of(target).disconnectInput('model'); }"""


@RENDERERS
def test_a_loader_offers_what_the_nodes_at_its_wire_can_use(canvases, vue):
    canvas = canvases(vue=vue)
    made = {"image": "photo.0", "temperature": 0.5, "seed": 1}
    canvas.open(
        numbered(
            photo=("LoadImage", {"image": "example.png"}),
            model=("FlowcoreLoadModel", {"model_name": "srflow-x4"}),
            up=("FlowcoreUpscale", made | {"model": "model.0"}),
            color=("FlowcoreColorize", made),
        )
    )
    kept, page = canvas.saved(), canvas.page
    for node in kept["nodes"]:
        if node["type"] == "FlowcoreLoadModel":
            node["widgets_values"] = ["glow-photos"]
    canvas.open(kept)
    upscalers = ["srflow-faces-x8", "srflow-x4", "srflow-x8"]
    # What a workflow says stays, even where it is wrong: the run names a model to choose.
    assert page.evaluate(MENU) == ["glow-photos", ["glow-photos", *upscalers]]
    page.evaluate(WIRE, ["FlowcoreUpscale", False])
    page.wait_for_timeout(100)
    value, every = page.evaluate(MENU)
    assert value == "glow-photos"
    assert {"color-photos", "mnist-styles", *upscalers} < set(every)
    page.evaluate(WIRE, ["FlowcoreColorize", True])
    page.wait_for_timeout(100)
    assert page.evaluate(MENU) == ["color-photos", ["color-photos"]]
    page.evaluate(WIRE, ["FlowcoreUpscale", True])  # no model is for both
    page.wait_for_timeout(100)
    assert page.evaluate(MENU) == ["color-photos", ["color-photos"]]
    page.evaluate(WIRE, ["FlowcoreColorize", False])
    page.wait_for_timeout(100)
    assert page.evaluate(MENU) == ["srflow-x4", upscalers]
    assert canvas.prompt()["2"]["inputs"]["model_name"] == "srflow-x4"
    assert canvas.complaints == []


SAID = """() => { const node = app.graph.nodes.find(n => n.type === 'FlowcoreLoadModel');
    const box = node.widgets.find(w => w.name === 'flowcore_text')?.element.firstElementChild;
    return box && [box.textContent, box.offsetHeight - box.parentElement.offsetHeight] }"""


@RENDERERS
def test_a_loader_says_what_its_model_is_for_and_its_text_stays_inside(canvases, host, vue):
    canvas, page = canvases(vue=vue), canvases(vue=vue).page
    uses = host.get_json("/i18n")["en"]["flowcore"]["uses"]

    def says(words, begins):
        page.wait_for_function(f"words => ({SAID})()?.[0].startsWith(words)", arg=words)
        page.wait_for_timeout(500)
        text, beyond = page.evaluate(SAID)
        assert text.startswith(begins)
        assert beyond <= 0, f"{beyond} pixels below its frame: {text}"

    canvas.open(upscaling("fixed"))
    says("Enlarges", uses["srflow-x4"].capitalize())
    page.evaluate(
        """() => { const node = app.graph.nodes.find(n => n.type === 'FlowcoreLoadModel'), w = node.widgets[0];
            w.value = 'srflow-x8'; w.callback('srflow-x8', app.canvas, node); }"""
    )
    says(uses["srflow-x8"].capitalize(), uses["srflow-x8"].capitalize())
    canvas.run()
    says("use: ", f"use: {uses['srflow-x8']}\narchitecture: srflow")
    canvas.shot("loader-says")
    assert canvas.complaints == []


FAILED = """() => [...document.querySelectorAll('.flowcore-text.failed')].map(box => box.textContent)"""


@RENDERERS
def test_a_node_says_why_it_failed_until_the_next_run(canvases, vue):
    canvas, page = canvases(vue=vue), canvases(vue=vue).page
    canvas.open(
        numbered(
            photo=("EmptyImage", {"width": 6000, "height": 4500, "batch_size": 1, "color": 0}),
            model=("FlowcoreLoadModel", {"model_name": "srflow-x4"}),
            up=("FlowcoreUpscale", {"image": "photo.0", "model": "model.0", "temperature": 0.5, "seed": 1}),
            show=("PreviewImage", {"images": "up.0"}),
        )
    )
    with pytest.raises(AssertionError):
        canvas.run()
    page.wait_for_function(f"() => ({FAILED})().length")
    canvas.shot("failed")
    (said,) = page.evaluate(FAILED)
    assert said.startswith("A picture would have 24000x18000 pixels, 432 megapixels. Set longest_side")
    page.evaluate(
        """() => { for (const w of app.graph.nodes.find(n => n.type === 'EmptyImage').widgets.slice(0, 2))
            { w.value = 16; w.callback?.(16, app.canvas); } }"""
    )
    canvas.run()
    assert page.evaluate(FAILED) == []
    assert canvas.complaints == []


@RENDERERS
def test_a_number_that_the_model_decides_says_so(canvases, vue):
    canvas = canvases(vue=vue)
    workflow = upscaling("fixed")
    (node,) = [node for node in workflow["nodes"] if node["type"] == "FlowcoreUpscale"]
    node["widgets_values"][0] = -0.1
    canvas.open(workflow)

    def label():
        canvas.page.wait_for_timeout(200)
        (shown,) = [node for node in canvas.nodes() if node["type"] == "FlowcoreUpscale"]
        if vue:
            assert canvas.page.get_by_text("temperature (auto)", exact=True).count() == (
                "temperature (auto)" in [label for _, label, _ in shown["widgets"]]
            )
        return {name: label for name, label, _ in shown["widgets"]}["temperature"]

    canvas.fit()
    assert label() == "temperature (auto)"
    canvas.shot("own-temperature")
    canvas.page.evaluate(
        """() => { const node = app.graph.nodes.find(n => n.type === 'FlowcoreUpscale');
            const w = node.widgets.find(w => w.name === 'temperature');
            w.value = 0.4; w.callback(0.4, app.canvas, node); }"""
    )
    assert label() == "temperature"
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
    assert host.get_json("/i18n")["ko"]["flowcore"]["pick"].split("{name}")[1] in (
        canvas.page.locator(".flowcore-gallery button").nth(0).get_attribute("title")
    )
    canvas.page.wait_for_timeout(600)
    canvas.fit()
    picture = canvas.shot("gallery")
    assert np.asarray(Image.open(picture).convert("L")).std() > 10
    assert canvas.complaints == []
