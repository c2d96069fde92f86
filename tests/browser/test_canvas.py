"""Every shipped workflow on the real canvas, in both renderers: what a person sees is what the file says."""

import json
import operator

import comfyui
import numpy as np
import pytest
from opened_workflows import (
    MODEL,
    PHOTO,
    RED,
    SUITING,
    bad_jpeg,
    numbered,
    of_small_photo,
    positions,
    saved_node,
    story,
    upscaling,
)
from PIL import Image
from saved_workflows import BLUEPRINTS, NOTES, STORIES, canonical, to_api, widgets

LINEAR = "() => app.extensionManager.command.execute('Comfy.ToggleLinear')"  # App mode, and back


def named(workflow, every):
    """Widget values of a saved workflow: node id to name to value; what has no name is left out."""
    saved = [node for node in workflow["nodes"] if node["type"] not in NOTES]
    pairs = {node["id"]: zip(widgets(every[node["type"]]), node["widgets_values"], strict=False) for node in saved}
    return {str(id): {name: value for (name, _, _), value in found if name} for id, found in pairs.items()}


def test_shipped_workflows_open_with_every_value_in_its_widget(canvas, host):
    every = host.get_json("/object_info")
    for name in STORIES:
        saved = story(name)
        canvas.open(saved)
        shown = {str(node["id"]): node for node in canvas.nodes()}
        assert len(shown) == len(saved["nodes"]), name
        for node in shown.values():
            assert node["known"], f"{name}: {node['type']} is missing"
            assert not node["red"], f"{name}: {node['type']} is red"
        for number, values in named(saved, every).items():
            # What follows the model shows its number, and is saved as it was.
            follows = {widget for widget, label, _ in shown[number]["widgets"] if "(model's" in (label or "")}
            there = {w: values.get(w) if w in follows else value for w, _, value in shown[number]["widgets"]}
            assert values.items() <= there.items(), f"{name}: {shown[number]['type']}"
        sent = {number: node for number, node in canvas.prompt().items() if node["class_type"] not in NOTES}
        assert canonical(sent) == canonical(to_api(saved, every)), name
        # Saved again, it is the same: no widget of ours counts as a value.
        before, again = positions(saved), positions(canvas.saved())
        assert before.keys() == again.keys(), name
        for number, values in again.items():
            assert all(map(operator.eq, values, before[number])), name
        assert canvas.overlapping() == [], name
        canvas.shot(f"open-{name}")


def test_blueprints_are_placed_twice_in_an_empty_workflow_and_run(canvas, page):
    for path in BLUEPRINTS:
        blueprint = json.loads(path.read_text())
        (outer,) = blueprint["nodes"]
        canvas.open(numbered(photo=PHOTO))
        page.evaluate(
            """text => { app.canvas.setGraph(app.graph); for (const left of [500, 1000]) {
                const {nodes, definitions: {subgraphs}} = JSON.parse(text); // as the library of nodes places it
                const [made] = app.canvas._deserializeItems({nodes, subgraphs}, {position: [left, 100]}).nodes.values();
                app.graph.nodes[0].connect(0, made, 0); } }""",
            path.read_text(),
        )
        canvas.fit()
        canvas.shot(f"twice-{path.stem.replace(' ', '-')}")
        placed = [node for node in canvas.nodes() if node["type"] != "LoadImage"]
        controls = [slot["name"] for slot in outer["inputs"] if "widget" in slot]
        for node in placed:
            assert [(name, value) for name, _, value in node["widgets"] if name in controls] == list(
                zip(controls, outer["widgets_values"], strict=True)
            )
        least = "() => Math.min(...app.graph.nodes.filter(n => n.subgraph)[0].widgets.map(w => w.options.min ?? 0))"
        assert page.evaluate(least) == 0  # no slider has a value for "the model's"
        page.evaluate(
            """([first, ids]) => ids.forEach((id, k) => { const node = app.graph.getNodeById(id);
                node.widgets.find(w => w.name === first).value = 0.5 + k / 4; })""",
            [controls[0], [node["id"] for node in placed]],
        )
        sent = [node["inputs"][controls[0]] for node in canvas.prompt().values() if controls[0] in node["inputs"]]
        assert {0.5, 0.75} <= {*sent}
        canvas.run()
        page.evaluate("() => app.canvas.deselectAll()")
        page.wait_for_timeout(1500)
        canvas.fit()
        shot = np.asarray(Image.open(canvas.shot(f"twice-ran-{path.stem.replace(' ', '-')}")).convert("RGB"))
        for node in placed:
            left, top, right, bottom = map(int, canvas.bounds(node["type"]))
            colors = np.unique(shot[top:bottom, left:right].reshape(-1, 3), axis=0)
            assert len(colors) > 2000  # it shows what was made


def test_one_click_takes_the_model_for_a_damaged_photograph(classic):
    classic.open(bad_jpeg())
    classic.move("FlowcoreLoadModel", "model_name", "srflow-x4")
    classic.move("FlowcoreUpscale", "samples", 1)
    classic.run()
    classic.page.get_by_text("Use srflow-x4-photo").click()
    assert classic.value("FlowcoreLoadModel", "model_name") == "srflow-x4-photo"
    assert classic.page.get_by_text("Use srflow-x4-photo").count() == 0


def test_a_story_is_an_app_with_its_brush(canvases):
    canvas = canvases(vue=True)
    workflow = of_small_photo("strokes")
    saved_node(workflow, "FlowcoreColorize")["widgets_values"][1:4] = [21, "fixed", 1]
    canvas.open(workflow)
    page = canvas.page
    page.evaluate(LINEAR)
    board = page.locator(".flowcore-brush-board:visible")
    page.wait_for_function("() => document.querySelector('.flowcore-brush-board img')?.naturalWidth > 0")
    for words in ("Paint", "seed", "samples"):
        page.get_by_text(words, exact=True).locator("visible=true").first.wait_for()
    page.wait_for_timeout(500)  # until nothing moves
    before = len(json.loads(canvas.value("FlowcorePaintHints", "painting")))
    box, steps = board.bounding_box(), canvas.undo_steps()
    canvas.drag(*((box["x"] + share * box["width"], box["y"] + 0.5 * box["height"]) for share in (0.3, 0.7)))
    assert len(json.loads(canvas.value("FlowcorePaintHints", "painting"))) == before + 1
    assert canvas.undo_steps() == steps + 1
    canvas.run()
    shown = "() => [...document.images].some(i => i.src.includes('filename=strokes') && i.naturalWidth == 72)"
    page.wait_for_function(shown)
    canvas.shot("app")
    page.evaluate(LINEAR)  # and back: the brush is on its node again
    canvas.look_at("FlowcorePaintHints", scale=1.2)
    assert board.count() == 1
    assert len(json.loads(canvas.value("FlowcorePaintHints", "painting"))) == before + 1


def test_a_picture_is_dropped_on_the_story_and_on_its_app(canvas, page, host):
    canvas.open(story("strokes"))
    shown = (
        "name => document.querySelector('.flowcore-brush-board img')?.src.includes(`filename=${name}`)"
        " && (!LiteGraph.vueNodesMode || document.querySelector(`img[src*='${name}']`)?.naturalWidth == 40)"
    )
    for name, kind in (("own.png", "FlowcoreExample"), ("next.png", "FlowcorePaintHints")):
        left, top, right, _ = canvas.bounds(kind)
        canvas.drop(RED.getvalue(), name, ((left + right) / 2, top + 45))
        page.wait_for_function(shown, arg=name)
        assert canvas.sent("FlowcoreExample") == {"picture": name}
        assert canvas.value("FlowcorePaintHints", "painting") == ""  # its strokes were the sample's
        canvas.shot(f"dropped-{kind}")
    assert not any(node["type"] == "LoadImage" for node in canvas.nodes())
    if canvas.vue:
        page.evaluate(LINEAR)
        page.get_by_text("next.png").locator("visible=true").first.wait_for()
        canvas.drop(RED.getvalue(), "third.png", (1400, 300))
        page.get_by_text("third.png").locator("visible=true").first.wait_for()
        assert canvas.sent("FlowcoreExample") == {"picture": "third.png"}
        page.evaluate(LINEAR)


def test_several_pictures_that_are_dropped_become_a_folder(canvas, page, served):
    canvas.open(story("morph-faces"))
    left, top, right, _ = canvas.bounds("FlowcoreMorph")
    canvas.drop(RED.getvalue(), "one.png two.png", ((left + right) / 2, top + 45))
    shown = "() => app.graph.nodes.find(n => n.type === 'FlowcoreExample').imgs?.[0].naturalWidth == 80"
    if canvas.vue:
        shown = "() => [...document.images].some(i => i.src.includes('subfolder=flowcore') && i.naturalWidth == 80)"
    page.wait_for_function(shown)
    canvas.shot("dropped-several")

    def sent():
        folder = canvas.sent("FlowcoreExample")["picture"]
        return folder[:13], sorted(file.name for file in (served.base / "input" / folder).iterdir())

    assert sent() == ("flowcore/one ", ["0001 one.png", "0002 two.png"])
    holiday = served.base / "holiday"
    (holiday / "more").mkdir(parents=True, exist_ok=True)
    for name in ("b.png", "more/a.png", "a.txt"):
        (holiday / name).write_bytes(RED.getvalue())
    canvas.drop_folder(holiday, ((left + right) / 2, top + 45))
    page.wait_for_function(
        "() => app.graph.nodes.find(n => n.type === 'FlowcoreExample').widgets[0].value.includes('holiday')"
    )
    assert sent()[1] == ["0001 b.png", "0002 a.png"]


MENU = """() => { const w = app.graph.nodes.find(n => n.type === 'FlowcoreLoadModel').widgets[0];
    return [w.value, [...w.options.values]] }"""
WIRE = """([target, on]) => { const of = kind => app.graph.nodes.find(n => n.type === kind);
    if (on) of('FlowcoreLoadModel').connect(0, of(target), 'model'); else of(target).disconnectInput('model'); }"""


def test_a_loader_offers_what_the_nodes_at_its_wire_can_use(canvas, page):
    made = {"image": "photo.0", "temperature": 0.5, "seed": 1}
    uses = {"up": ("FlowcoreUpscale", made | {"model": "model.0"}), "color": ("FlowcoreColorize", made)}
    canvas.open(numbered(photo=PHOTO, model=MODEL, **uses))
    kept = canvas.saved()
    saved_node(kept, "FlowcoreLoadModel")["widgets_values"] = ["glow-photos"]
    canvas.open(kept)
    upscalers = [SUITING, "srflow-faces-x8", "srflow-faces-x8-photo", "srflow-x4", "srflow-x4-photo", "srflow-x8"]

    def wired(kind, on):
        page.evaluate(WIRE, [kind, on])
        page.wait_for_timeout(100)
        return page.evaluate(MENU)

    # What a workflow says stays, even where it is wrong: the run names a model to choose.
    assert page.evaluate(MENU) == ["glow-photos", [SUITING, "glow-photos", *upscalers[1:]]]
    value, every = wired("FlowcoreUpscale", False)
    assert value == "glow-photos"
    assert {"color-photos", "mnist-styles", *upscalers} < set(every)
    assert wired("FlowcoreColorize", True) == ["color-photos", ["color-photos"]]
    assert wired("FlowcoreUpscale", True) == ["color-photos", ["color-photos"]]  # no model is for both
    assert wired("FlowcoreColorize", False) == [SUITING, upscalers]
    assert canvas.prompt()["2"]["inputs"]["model_name"] == SUITING


SAID = """() => { const node = app.graph.nodes.find(n => n.type === 'FlowcoreLoadModel');
    const box = node.widgets.find(w => w.name === 'flowcore_area')?.element.querySelector('.flowcore-text');
    return box && [box.textContent, box.offsetHeight - box.parentElement.offsetHeight] }"""


def test_a_loader_says_what_its_model_is_for_and_its_text_stays_inside(canvas, page, host):
    uses = host.get_json("/i18n")["en"]["flowcore"]["uses"]

    def says(words, begins):
        page.wait_for_function(f"words => ({SAID})()?.[0].startsWith(words)", arg=words)
        page.wait_for_timeout(500)
        text, beyond = page.evaluate(SAID)
        assert text.startswith(begins)
        assert beyond <= 0, f"{beyond} pixels below its frame: {text}"

    canvas.open(upscaling("fixed"))
    says("Enlarges", uses[SUITING][:1].upper() + uses[SUITING][1:])
    canvas.move("FlowcoreLoadModel", "model_name", "srflow-x8")
    says(uses["srflow-x8"].capitalize(), uses["srflow-x8"].capitalize())
    canvas.run()
    says(uses["srflow-x8"].capitalize(), uses["srflow-x8"].capitalize())
    canvas.shot("loader-says")


WARNED = """() => { const box = document.querySelector('.flowcore-gallery ~ .flowcore-text');
    const [warning, fact] = box.childNodes, color = element => getComputedStyle(element).color;
    const [inner, outer, area] = [warning, box, box.parentElement].map(e => e.getBoundingClientRect());
    return { said: warning.innerText, measured: fact.textContent, colored: color(warning) !== color(box),
        below: Math.max(inner.bottom - outer.bottom, outer.bottom - area.bottom), above: outer.top - inner.top,
        picture: document.querySelector('.flowcore-viewer').offsetHeight, bottom: area.bottom } }"""


def test_warnings_come_first_and_are_seen_whole(canvas, page):
    asked = {"image": "photo.0", "model": "model.0", "temperature": 0.5, "seed": 1}
    up = ("FlowcoreUpscale", asked | {"factor": 5, "mask": "photo.1"})
    canvas.open(numbered(photo=PHOTO, model=MODEL, up=up, show=("PreviewImage", {"images": "up.0"})))
    canvas.spread()
    canvas.run()
    canvas.look_at("FlowcoreUpscale")
    page.wait_for_function(f"() => ({WARNED})().said")
    page.wait_for_timeout(500)
    shown = page.evaluate(WARNED)
    canvas.shot("warnings")
    assert shown["said"].startswith("The mask is black")
    assert shown["said"].endswith("the rest, to 360x240, is an ordinary resize (bicubic).")
    assert shown["measured"].startswith("True to the original: ")
    assert shown["colored"]
    assert shown["above"] <= 0
    assert shown["below"] <= 0
    assert shown["bottom"] <= canvas.bounds("FlowcoreUpscale")[3]
    assert shown["picture"] > 180  # as high as without them


FAILED = """() => [...document.querySelectorAll('.flowcore-text.failed')].map(box => box.textContent)"""


def test_a_node_says_why_it_failed_until_the_next_run(canvas, page):
    canvas.open(
        numbered(
            photo=("EmptyImage", {"width": 6000, "height": 4500, "batch_size": 1, "color": 0}),
            model=MODEL,
            up=(
                "FlowcoreUpscale",
                {"image": "photo.0", "model": "model.0", "temperature": 0.5, "seed": 1, "factor": 0},
            ),
            show=("PreviewImage", {"images": "up.0"}),
        )
    )
    with pytest.raises(AssertionError):
        canvas.run()
    page.wait_for_function(f"() => ({FAILED})().length")
    canvas.shot("failed")
    (said,) = page.evaluate(FAILED)
    assert said.startswith("A picture would have 24000x18000 pixels, 432 megapixels. Without “longest side”, Flow")
    for side in ("width", "height"):
        canvas.move("EmptyImage", side, 16)
    canvas.run()
    assert page.evaluate(FAILED) == []


def test_a_number_that_the_model_decides_says_so(canvas):
    canvas.open(upscaling("fixed", -0.1))

    def shown(*names):
        canvas.page.wait_for_timeout(1500)  # the server answers what a run would use
        there = {name: [label, value] for name, label, value in canvas.only("FlowcoreUpscale")["widgets"]}
        if canvas.vue:
            words = "temperature (model's)"
            assert canvas.page.get_by_text(words, exact=True).count() == (words == there["temperature"][0])
        return [there[name] for name in names]

    canvas.fit()
    names = ("temperature", "factor", "calm_edges", "pick")
    factor, own, everything = "enlarge by (model's scale)", "calm edges (model's)", ["pick (all)", 0]
    usual = [["temperature (model's)", 0.6], [factor, 4], [own, 0.3], everything]
    assert shown(*names) == usual  # those of the picture are known in a run
    canvas.move("FlowcoreLoadModel", "model_name", "srflow-x4")
    assert shown(*names) == [["temperature (model's)", 0.6], [factor, 4], [own, 0.3], everything]
    canvas.shot("own-temperature")
    canvas.move("FlowcoreLoadModel", "model_name", "srflow-faces-x8")
    assert shown(*names) == [["temperature (model's)", 0.35], [factor, 8], [own, 0], everything]
    # What is saved and sent says only that they follow the model.
    saved, sent = positions(canvas.saved())[3], canvas.sent("FlowcoreUpscale")
    assert [saved[place] for place in (0, 8, 11, 12)] == [sent[name] for name in names] == [-0.1, 0, -0.1, 0]
    canvas.move("FlowcoreUpscale", "temperature", 0.4)
    canvas.move("FlowcoreUpscale", "factor", 2)
    canvas.move("FlowcoreLoadModel", "model_name", "srflow-x4")
    assert shown(*names) == [["temperature", 0.4], ["enlarge by", 2], [own, 0.3], everything]
    canvas.move("FlowcoreUpscale", "factor", 0)
    assert shown(*names) == [["temperature", 0.4], [factor, 4], [own, 0.3], everything]


def test_numbers_in_a_subgraph_show_what_the_model_states(classic):
    classic.open(upscaling("fixed", -0.1))
    classic.close_up("FlowcoreUpscale", "FlowcoreLoadModel")
    classic.enter()
    shown = """() => Object.fromEntries(
        app.canvas.graph.nodes.find(n => n.type === 'FlowcoreUpscale').widgets.map(w => [w.name, w.value]))"""
    names = ("temperature", "factor", "calm_edges")
    classic.page.wait_for_function(f"() => ({shown})().factor")
    values = classic.page.evaluate(shown)
    assert [values[name] for name in names] == [0.6, 4, 0.3]
    sent = classic.sent("FlowcoreUpscale")
    assert [sent[name] for name in names] == [-0.1, 0, -0.1]
    (inside,) = classic.saved()["definitions"]["subgraphs"]
    saved = saved_node(inside, "FlowcoreUpscale")["widgets_values"]
    assert [saved[place] for place in (0, 8, 11)] == [-0.1, 0, -0.1]


def test_a_wire_that_is_dragged_from_a_model_input_gets_a_loader(classic):
    page = classic.page
    settings = {"Comfy.LinkRelease.Action": "search box", "Comfy.NodeSearchBoxImpl.FollowCursor": False}
    for name, value in settings.items():
        page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])
    classic.open(numbered(up=("FlowcoreUpscale", {"temperature": 0.3, "seed": 1})))
    classic.look_at("FlowcoreUpscale")
    left, top, _, _ = classic.bounds("FlowcoreUpscale")
    place = page.evaluate(
        """() => { const [node] = app.graph.nodes, slot = node.inputs.findIndex(({name}) => name === 'model');
            const [x, y] = node.getConnectionPos(true, slot), [left, top] = node.boundingRect;
            return [x - left, y - top]; }"""
    )
    start = (left + place[0], top + place[1])
    classic.drag(start, (start[0] - 60, start[1] + 300))
    page.wait_for_timeout(1000)
    classic.shot("loader-first")
    page.keyboard.press("Enter")
    page.wait_for_function("() => app.graph.nodes.length === 2")
    page.wait_for_timeout(500)
    assert classic.sent("FlowcoreUpscale")["model"] == [str(classic.only("FlowcoreLoadModel")["id"]), 0]


def test_a_node_is_found_by_another_word_on_the_first_screen_of_the_search(canvas, page):
    canvas.open(numbered(photo=PHOTO))
    page.mouse.dblclick(900, 930)
    page.wait_for_timeout(500)
    page.keyboard.type("inpaint")
    rows = page.get_by_role("option")
    rows.nth(11).wait_for(state="attached")  # the first that is seen only after scrolling
    canvas.shot("search-inpaint")
    assert any("Flow Repair" in text for text in rows.all_inner_texts()[:11])
    page.keyboard.press("Escape")


def test_a_selected_picture_is_enlarged_from_its_toolbox(canvas, page):
    canvas.open(numbered(photo=PHOTO))
    page.evaluate("() => app.canvas.selectItems([app.graph.nodes[0]])")
    button = page.get_by_label("Enlarge this picture")
    button.wait_for()
    canvas.shot("toolbox")
    button.click()
    page.wait_for_function("() => app.graph.nodes.length === 4")
    page.wait_for_timeout(300)
    canvas.fit()
    canvas.shot("toolbox-enlarged")
    photo, loader = (str(canvas.only(kind)["id"]) for kind in ("LoadImage", "FlowcoreLoadModel"))
    sent = canvas.sent("FlowcoreUpscale")
    assert (sent["image"], sent["model"]) == ([photo, 0], [loader, 0])
    assert canvas.sent("SaveImage")["images"] == [str(canvas.only("FlowcoreUpscale")["id"]), 0]
    assert canvas.value("FlowcoreLoadModel", "model_name") == SUITING
    assert canvas.overlapping() == []


def message(template, **values):
    """A message as the server sends it."""
    return {"template": template, "values": values}


def test_a_canvas_in_korean(canvases, host):
    canvas = canvases(vue=True, language="ko")
    words = host.get_json("/i18n")["ko"]["nodeDefs"]
    canvas.open(upscaling("fixed"))
    node = canvas.only("FlowcoreUpscale")
    assert node["title"] == words["FlowcoreUpscale"]["display_name"]
    labels = {name: label for name, label, _ in node["widgets"]}
    for name in ("temperature", "samples", "tile"):
        assert labels[name] == words["FlowcoreUpscale"]["inputs"][name]["name"]
    canvas.run()
    canvas.page.wait_for_selector(".flowcore-gallery button[data-seed='43']")
    assert host.get_json("/i18n")["ko"]["flowcore"]["pick"].split("{name}")[1] in (
        canvas.page.locator(".flowcore-gallery button").nth(0).get_attribute("title")
    )
    own, japanese = (host.get_json("/i18n")[language]["flowcore"] for language in ("ko", "ja"))
    exact = "True to the original: made as small as it was again, it is the same picture."
    said = canvas.page.locator(".flowcore-gallery ~ .flowcore-text").inner_text()
    assert own["messages"][exact] in said
    canvas.page.wait_for_timeout(600)
    canvas.fit()
    picture = canvas.shot("gallery")
    assert np.asarray(Image.open(picture).convert("L")).std() > 10
    workflow = story("upscale")  # as it is saved on a canvas in Japanese
    note = saved_node(workflow, "MarkdownNote")
    note |= {"title": japanese["stories"]["note"], "widgets_values": [japanese["stories"]["upscale"]]}
    canvas.open(workflow)
    note = canvas.only("MarkdownNote")
    assert (note["title"], note["widgets"][0][2]) == (own["stories"]["note"], own["stories"]["upscale"])
    translate = "async ([path, said]) => (await import(path)).translateMessage(said, { comfyClass: 'FlowcoreUpscale' })"
    faces = message("Of {count} faces, {larger} of more than {largest} pixels", count="3", larger="2", largest="36")
    refused = message(
        "{name} must be from {least} to {most}; got {value}. Choose a value in that range.",
        name={"argument": "factor"},
        least="0",
        most="16",
        value="20",
    )
    kinds = [
        message("JPEG blocks (about quality {quality})", quality="30"),
        message("noise (about {noise}/255)", noise="5"),
    ]
    text = [
        message("{which}: left to the upscaler of the picture, which draws large ones better.", which=faces),
        refused,
        message("{model}: images {numbers} have {damage}", model="x", numbers="1, 2", damage=kinds),
        "noise (about 5/255)",
    ]
    messages = f"/extensions/{comfyui.PACK_NAME}/js/messages.js"
    assert [canvas.page.evaluate(translate, [messages, each]) for each in text] == [
        "얼굴 3개 중 36픽셀보다 큰 2개: 큰 얼굴을 더 잘 그리는, 사진 업스케일러에 맡깁니다.",
        "'배율'은(는) 0부터 16까지여야 하는데 20입니다. 그 범위에서 고르세요.",
        "x: 이미지 1, 2에 JPEG 블록(품질 약 30) 및 노이즈(약 5/255)이(가) 있습니다",
        "noise (about 5/255)",  # a plain text stays as it is
    ]
