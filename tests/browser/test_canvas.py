"""Every shipped workflow on the real canvas, in both renderers: what a person sees is what the file says."""

import copy
import io
import json
import operator

import comfyui
import numpy as np
import pytest
from PIL import Image
from talk import graph
from test_workflows import BLUEPRINTS, NOTES, STORIES, canonical, to_api, widgets

SUITING = "upscaler that suits the picture"
PHOTO, MODEL = ("LoadImage", {"image": "example.png"}), ("FlowcoreLoadModel", {"model_name": "srflow-x4"})
LINEAR = "() => app.extensionManager.command.execute('Comfy.ToggleLinear')"  # App mode, and back
RED = io.BytesIO()
Image.new("RGB", (40, 30), (200, 30, 30)).save(RED, "PNG")


def story(name):
    return copy.deepcopy(STORIES[name])


def named(workflow, every):
    """Widget values of a saved workflow: node id to name to value; what has no name is left out."""
    saved = [node for node in workflow["nodes"] if node["type"] not in NOTES]
    pairs = {node["id"]: zip(widgets(every[node["type"]]), node["widgets_values"], strict=False) for node in saved}
    return {str(id): {name: value for (name, _, _), value in found if name} for id, found in pairs.items()}


def positions(workflow):
    """Widget values of a saved workflow, by position."""
    ours = [node for node in workflow["nodes"] if node["type"].startswith("Flowcore")]
    return {node["id"]: node.get("widgets_values", []) for node in ours}  # newer frontends leave out an empty list


def counts(workflow):
    return {number: len(values) for number, values in positions(workflow).items()}


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
        page.evaluate(
            """([first, ids]) => ids.forEach((id, k) => { const node = app.graph.getNodeById(id);
                node.widgets.find(w => w.name === first).value = 0.5 + k / 4; })""",
            [controls[0], [node["id"] for node in placed]],
        )
        sent = [node["inputs"][controls[0]] for node in canvas.prompt().values() if controls[0] in node["inputs"]]
        assert {0.5, 0.75} <= {*sent}
        canvas.run()
        page.wait_for_timeout(1500)
        canvas.fit()
        canvas.shot(f"twice-ran-{path.stem.replace(' ', '-')}")
        shown = "node => node.subgraph && node.imgs?.[0].naturalWidth"
        page.wait_for_function(f"() => app.graph.nodes.filter({shown}).length === 2")


def saved_node(workflow, kind):
    (node,) = [node for node in workflow["nodes"] if node["type"] == kind]
    return node


def of_small_photo(name):
    """A shipped story of a photograph, with a small one."""
    workflow = story(name)
    photo = saved_node(workflow, "FlowcoreExample")
    del photo["outputs"][2]
    photo |= {"type": "LoadImage", "inputs": [], "widgets_values": ["example.png", "image"]}
    return workflow


def upscaling(control="randomize", temperature=0.8):
    """The shipped story with a small model's worth of work."""
    workflow = of_small_photo("upscale")
    saved_node(workflow, "FlowcoreUpscale")["widgets_values"][:4] = [temperature, 40, control, 4]
    return workflow


PICTURES = "() => [...document.querySelectorAll('.flowcore-gallery img')].filter(i => i.naturalWidth).length == 4"


def test_a_run_shows_its_pictures_and_a_click_picks_one(canvas, page, host):
    canvas.open(upscaling())
    before = counts(canvas.saved())
    canvas.run()
    page.wait_for_function(PICTURES)
    page.wait_for_timeout(600)
    buttons = page.locator(".flowcore-gallery button")
    ours = canvas.only("FlowcoreUpscale")
    # Previews are shown in the viewer, and nowhere else.
    assert "$$canvas-image-preview" not in [name for name, _, _ in ours["widgets"]]
    assert page.locator(f"[data-node-id='{ours['id']}'] img.pointer-events-none:visible").count() == 0
    assert [buttons.nth(k).get_attribute("data-seed") for k in range(4)] == ["40", "41", "42", "43"]
    assert canvas.value("FlowcoreUpscale", "seed") not in range(40, 44)  # a random one stands there for the next run
    canvas.fit()
    canvas.shot("gallery")
    if not canvas.vue:
        (_, _, _, bottom), last = canvas.bounds("FlowcoreUpscale"), buttons.nth(3).bounding_box()
        assert last["y"] + last["height"] <= bottom
    save = canvas.only("SaveImage")["id"]
    assert page.evaluate("id => app.nodeOutputs[id].images.length", save) == 4

    buttons.nth(2).click()
    names = ("pick", "seed", "control_after_generate")
    assert canvas.value("FlowcoreUpscale", *names) == [3, 40, "fixed"]  # the seed of the run that the picture is from
    assert [buttons.nth(k).get_attribute("aria-pressed") for k in range(4)] == ["false", "false", "true", "false"]
    assert "42" in buttons.nth(2).get_attribute("title")
    sent = canvas.sent("FlowcoreUpscale")
    assert (sent["seed"], sent["pick"]) == (40, 3)
    assert not [name for name in sent if name.startswith("flowcore_")]
    if canvas.vue:  # which is an icon there, and crossed out
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
    assert counts(kept) == before
    canvas.open(kept)
    assert canvas.value("FlowcoreUpscale", "pick", "control_after_generate") == [3, "fixed"]
    assert positions(canvas.saved()) == after
    canvas.run()  # all is cached, and shown again
    page.wait_for_selector(".flowcore-gallery button[data-seed='42'][aria-pressed='true']")
    page.locator(".flowcore-gallery button").nth(2).click()  # a second click: all go on
    assert canvas.value("FlowcoreUpscale", "pick") == 0


def test_a_pick_of_an_earlier_run_is_what_is_saved_and_ends_with_its_photograph(canvas, page, host, served):
    """With that run's settings and source, whatever stands on the nodes by then; runs are told apart."""
    Image.new("RGB", (72, 48), (90, 40, 160 + canvas.vue)).save(served.base / "input" / "second.png")
    canvas.open(upscaling("fixed"))
    canvas.spread()
    canvas.move("FlowcoreUpscale", "samples", 2)
    low = 0.1 + canvas.vue / 100
    source = canvas.value("LoadImage", "image")
    save = canvas.only("SaveImage")["id"]

    def saved(count):
        files = page.evaluate("id => app.nodeOutputs[id].images.map(image => image.filename)", save)
        assert len(files) == count
        return [np.asarray(Image.open(served.base / "output" / "flowcore" / file)) for file in files]

    pictures = []
    for temperature, photograph in ((low, source), (1.2, source), (1.2, "second.png")):
        canvas.move("FlowcoreUpscale", "temperature", temperature)
        canvas.move("LoadImage", "image", photograph)
        canvas.run()
        pictures.append(saved(2))
    buttons = page.locator(".flowcore-gallery button")
    assert buttons.count() == 6
    titles = page.locator(".flowcore-gallery p").all_inner_texts()
    says = (f"{source} · temperature {low}", f"{source} · temperature 1.2", "second.png · temperature 1.2")
    assert titles == [f"run {k} of 3 · {what}" for k, what in enumerate(says, 1)]
    canvas.look_at("FlowcoreUpscale")
    canvas.shot("runs")
    buttons.nth(1).click()
    page.wait_for_timeout(200)
    assert says[0] in buttons.nth(1).get_attribute("title")
    assert canvas.value("FlowcoreUpscale", "pick", "temperature") == [2, low]
    assert canvas.value("LoadImage", "image") == source
    canvas.run()
    assert np.array_equal(saved(1)[0], pictures[0][1])
    canvas.look_at("FlowcoreUpscale")
    canvas.shot("runs-picked")

    canvas.move("LoadImage", "image", "second.png")
    page.wait_for_timeout(200)
    assert canvas.value("FlowcoreUpscale", "pick") == 0


def test_arrows_stay_within_a_run_and_a_pick_says_what_it_brings_back(canvas, page, served):
    Image.new("RGB", (72, 48), (40, 90, 160 + canvas.vue)).save(served.base / "input" / "other.png")
    canvas.open(upscaling("fixed"))
    canvas.spread()
    canvas.move("FlowcoreUpscale", "samples", 2)
    source = canvas.value("LoadImage", "image")
    for photograph in (source, "other.png"):
        canvas.move("LoadImage", "image", photograph)
        canvas.run()
    heads = [f"run 1 of 2 · {source}", "run 2 of 2 · other.png"]
    assert page.locator(".flowcore-gallery p").all_inner_texts() == heads
    canvas.look_at("FlowcoreUpscale", scale=0.8)
    page.locator(".flowcore-viewer").hover()
    page.locator(".flowcore-viewer button.open").click()
    page.wait_for_timeout(300)
    head = page.locator(".flowcore-viewer .head")

    def after(key):
        page.keyboard.press(key)
        page.wait_for_timeout(60)
        return page.evaluate(WHERE)["names"][1].split(" · ")[0], head.inner_text()

    assert [after("ArrowRight") for _ in range(3)] == [(f"seed {k}", heads[1]) for k in (41, 40, 41)]
    assert after("ArrowRight") == ("seed 40", heads[1])
    assert after("PageUp") == ("seed 40", heads[0])
    assert after("ArrowLeft") == ("seed 41", heads[0])
    assert after("PageDown") == ("seed 41", heads[1])
    after("PageUp")
    canvas.shot("viewer-other-run")
    assert canvas.value("LoadImage", "image") == "other.png"  # only looked at
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.flowcore-viewer .head').innerText.includes('Ctrl+Z')")
    assert canvas.value("FlowcoreUpscale", "pick") == 2
    assert canvas.value("LoadImage", "image") == source
    told = f"Picked. The nodes are set back to the values of its run: {source}. Ctrl+Z undoes this."
    assert head.inner_text() == told
    canvas.shot("viewer-pick-says")
    page.keyboard.press("f")
    page.wait_for_function("() => !document.fullscreenElement")
    page.keyboard.press("Control+z")
    page.wait_for_timeout(1000)
    assert canvas.value("LoadImage", "image") == "other.png"
    assert canvas.value("FlowcoreUpscale", "pick") == 0


def test_a_click_on_a_frame_looks_at_it_and_the_film_stays_whole(canvas, page):
    film = {"film": ("RepeatImageBatch", {"image": "photo.0", "amount": 3})}
    values = {"image": "film.0", "model": "model.0", "temperature": 0, "seed": 40, "steadiness": 0}
    video, show = ("FlowcoreUpscaleVideo", values), ("PreviewImage", {"images": "video.0"})
    canvas.open(numbered(photo=PHOTO, model=MODEL, **film, video=video, show=show))
    canvas.spread()
    canvas.run()
    buttons = page.locator(".flowcore-gallery button:enabled")
    assert buttons.all_inner_texts() == ["frame 1", "frame 2", "frame 3"]
    buttons.nth(2).click()
    assert page.evaluate(WHERE)["names"][1] == "frame 3"
    assert buttons.nth(2).get_attribute("title") == "frame 3"
    page.keyboard.press("Enter")
    assert canvas.value("FlowcoreUpscaleVideo", "pick") == 0
    assert not page.locator(".flowcore-viewer button.choose").is_visible()
    canvas.look_at("FlowcoreUpscaleVideo")
    canvas.shot("frames")


HEIGHT = "() => document.querySelector('.flowcore-area:has(.flowcore-viewer)').offsetHeight"
SAVED = "() => /^Saved as output.flowcore.saved_/.test(document.querySelector('.flowcore-gallery ~ div').textContent)"


def test_results_of_every_run_stay_in_one_area_of_one_height_and_one_is_saved(canvas, page, host, served):
    Image.new("RGB", (3, 400), "teal").save(served.base / "input" / "thin.png")
    canvas.open(upscaling("fixed"))
    page.set_viewport_size({"width": 1366, "height": 768})
    canvas.fit()
    heights = [page.evaluate(HEIGHT)]
    canvas.move("FlowcoreUpscale", "samples", 1)
    first = 4274389000 + 10 * canvas.vue  # others than in the other renderer, which are cached
    seeds = [str(first + k) for k in range(5)]
    for seed in seeds:
        canvas.move("FlowcoreUpscale", "seed", int(seed))
        page.evaluate("() => app.queuePrompt(0, 1)")
    buttons = page.locator(".flowcore-gallery button:enabled")
    page.wait_for_function("() => document.querySelectorAll('.flowcore-gallery button:enabled').length === 5")
    assert [button.get_attribute("data-seed") for button in buttons.all()] == seeds
    assert [button.inner_text() for button in buttons.all()] == [f"…{seed[-4:]}" for seed in seeds]
    heights.append(page.evaluate(HEIGHT))
    buttons.nth(1).click()
    assert canvas.value("FlowcoreUpscale", "pick", "seed") == [1, int(seeds[1])]
    page.locator(".flowcore-viewer").hover()
    page.locator(".flowcore-viewer button.save").click()
    page.wait_for_function(SAVED)
    assert [button.get_attribute("data-seed") for button in buttons.all()] == seeds
    canvas.shot("saved")
    assert max(button.bounding_box()["y"] for button in buttons.all()) < 700  # seen without scrolling
    (path,) = (served.base / "output" / "flowcore").glob("saved_*.png")
    with Image.open(path) as saved:
        assert saved.size == (288, 192)
        (node,) = [n for n in json.loads(saved.info["prompt"]).values() if n["class_type"] == "FlowcoreUpscale"]
        assert (node["inputs"]["seed"], node["inputs"]["pick"]) == (int(seeds[1]), 1)
        assert "workflow" in saved.info
    path.unlink()
    canvas.move("LoadImage", "image", "thin.png")
    canvas.run()
    assert page.evaluate("() => document.querySelector('.flowcore-gallery ~ div.flowcore-text').innerText")  # below it
    heights.append(page.evaluate(HEIGHT))
    canvas.open(canvas.saved() | {"id": f"again-{canvas.vue}"})
    heights.append(page.evaluate(HEIGHT))
    canvas.shot("area-again")
    page.set_viewport_size({"width": 1600, "height": 1000})
    assert len(set(heights)) == 1, heights


def test_a_bad_jpeg_is_enlarged_on_the_first_run(canvas):
    canvas.open(story("photo"))
    assert canvas.value("FlowcoreLoadModel", "model_name") == SUITING
    canvas.run()
    canvas.page.wait_for_function(PICTURES)
    canvas.fit()
    canvas.shot("photo")
    assert canvas.overlapping() == []


def test_one_click_takes_the_model_for_a_damaged_photograph(classic):
    classic.open(story("photo"))
    classic.move("FlowcoreLoadModel", "model_name", "srflow-x4")
    classic.move("FlowcoreUpscale", "samples", 1)
    classic.run()
    classic.page.get_by_text("Use srflow-x4-photo").click()
    assert classic.value("FlowcoreLoadModel", "model_name") == "srflow-x4-photo"
    assert classic.page.get_by_text("Use srflow-x4-photo").count() == 0


def test_training_is_cancelled_by_the_button(canvas, page):
    canvas.open(story("train"))
    canvas.watch_end()
    page.evaluate(
        """() => { window.steps = 0; app.api.addEventListener('progress', () => { window.steps++ });
            app.queuePrompt(0, 1); }"""
    )
    page.wait_for_function("() => window.steps", timeout=240_000)
    page.get_by_label("Cancel current run").click()
    assert page.wait_for_function("() => window.ended").json_value() == "execution_interrupted"


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
    canvas.open(story("morph"))
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


WHERE = """() => {
    const v = document.querySelector('.flowcore-viewer'), r = v.getBoundingClientRect(), k = r.width / v.offsetWidth;
    const [before, after] = ['before', 'after'].map(c => v.querySelector(`.${c} img`));
    return {line: parseFloat(v.querySelector('hr').style.left) * k + r.left, left: r.left, top: r.top, width: r.width,
        height: r.height, wide: parseFloat(after.style.width) * k, x: parseFloat(after.style.left) * k,
        before: before.src, after: after.src, sides: [before.naturalWidth, after.naturalWidth],
        names: [...v.querySelectorAll('select')].map(s => s.selectedOptions[0].text),
        full: Boolean(document.fullscreenElement), open: v.classList.contains('full')} }"""


def test_two_pictures_are_compared_by_mouse_and_keyboard(canvas, page):
    canvas.open(upscaling("fixed"))
    canvas.run()
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
    canvas.drag(middle, (middle[0] + 60, middle[1]))
    assert where()["line"] == pytest.approx(middle[0] + 60, abs=3)
    assert not where()["open"]
    # zoom where the pointer is, and pan; the canvas of nodes stays
    for _ in range(4):
        page.mouse.wheel(0, -200)
    page.wait_for_function(f"wide => ({WHERE})().wide > wide", arg=2 * start["wide"])
    page.wait_for_timeout(300)
    near = where()
    canvas.drag((middle[0] - 50, middle[1]), (middle[0] - 80, middle[1]))
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
    assert page.locator(".flowcore-area .flowcore-viewer").count() == 1


def test_every_picture_is_shown_as_soon_as_it_is_ready(canvas):
    canvas.open(upscaling("fixed"))
    # How many pictures the gallery has as each preview comes.
    canvas.page.evaluate(
        """() => { window.seen = []; app.api.addEventListener('b_preview_with_metadata', async () => {
            for (let k = 0; k < 20; k++) await null; // until all that the message brings about is done
            window.seen.push(document.querySelectorAll('.flowcore-gallery button').length); }) }"""
    )
    # A seed of its own: the server remembers the pictures of the other renderer, and shows no previews of them.
    canvas.move("FlowcoreUpscale", "seed", 7000 + canvas.vue)
    canvas.run()
    assert canvas.page.evaluate("() => window.seen") == [0, 1, 2, 3, 4]  # first what is enlarged


def test_a_cell_of_the_grid_goes_where_the_image_is_enlarged(canvases):
    canvas = canvases(vue=True)
    grid = {"image": "photo.0", "model": "model.0", "temperatures": "0, 0.7", "seed": 5, "seeds": 2}
    up = {"image": "photo.0", "model": "model.0", "temperature": 0.3, "seed": 1}
    nodes = {"grid": ("FlowcoreTemperatureGrid", grid), "preview": ("PreviewImage", {"images": "grid.1"})}
    nodes |= {"up": ("FlowcoreUpscale", up), "save": ("PreviewImage", {"images": "up.0"})}
    canvas.open(numbered(photo=PHOTO, model=MODEL, **nodes))
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
    assert canvas.value("FlowcoreUpscale", "temperature", "seed") == [0.7, 6]
    canvas.run()
    canvas.shot("grid-picked")
    (preview,) = [node["id"] for node in canvas.nodes() if node["type"] == "PreviewImage"][:1]
    assert page.evaluate("id => app.nodeOutputs[id].images.length", preview) == 1


def test_picking_the_best_keeps_the_seed_of_what_it_was_chosen_from(classic):
    workflow = story("best-of")
    saved_node(workflow, "FlowcoreUpscale")["widgets_values"][:4] = [0.8, 40, "randomize", 3]
    classic.open(workflow)
    classic.run()
    classic.fit()
    assert classic.overlapping() == []
    page = classic.page
    best = classic.only("FlowcoreBestOf")["id"]
    labels = page.evaluate("id => app.nodeOutputs[id].flowcore_gallery.map(e => [e.seed, e.score])", best)
    button = page.locator(".flowcore-gallery button", has_text=f"{labels[1][0]} · {labels[1][1]}")
    classic.shot("best-of")
    button.click()
    assert classic.value("FlowcoreBestOf", "pick") == 2
    assert classic.value("FlowcoreUpscale", "pick") == 0
    assert classic.value("FlowcoreUpscale", "seed", "control_after_generate") == [40, "fixed"]


def test_a_digit_is_picked_with_its_label(classic):
    values = {"model": "model.0", "samples": 4, "temperature": 0.7, "seed": 5, "labels": "3, 8"}
    classic.open(digits("FlowcoreSample", values))
    classic.run()
    classic.fit()
    classic.page.locator(".flowcore-gallery button[data-seed='7']").click()
    assert classic.value("FlowcoreSample", "pick", "seed", "labels") == [3, 5, "3, 8"]
    classic.shot("digits")


def test_a_pick_that_comes_along_a_wire_is_not_written(classic):
    values = {"model": "model.0", "samples": 2, "temperature": 0.7, "seed": 12, "labels": "4", "pick": "number.0"}
    classic.open(digits("FlowcoreSample", values, number=("PrimitiveInt", {"value": 1})))
    classic.run()
    classic.fit()
    names = ("pick", "seed", "control_after_generate")
    before = classic.value("FlowcoreSample", *names)
    picked = classic.page.locator(".flowcore-gallery button[data-seed='13']")
    picked.click()
    assert classic.value("FlowcoreSample", *names) == before
    assert "connected" in picked.get_attribute("title")


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
    for node in made.values():
        wires = {key: value for key, value in node["inputs"].items() if isinstance(value, list)}
        node["inputs"] |= {key: [numbers[name], output] for key, (name, output) in wires.items()}
        node["_meta"] = {"title": node["class_type"]}
    return {numbers[name]: node for name, node in made.items()}


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


def test_the_pad_moves_x_and_y_and_they_move_it(canvas, page):
    canvas.open(exploring())
    canvas.look_at("FlowcoreLatentExplorer", scale=1.3)
    pad = page.locator(PAD)
    number = int(canvas.only("FlowcoreLatentExplorer")["id"])
    length = counts(canvas.saved())[number]
    box = pad.bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=2)
    assert box["width"] > 100
    if not canvas.vue:  # which lays it out by itself, some time later
        (_, _, _, bottom) = canvas.bounds("FlowcoreLatentExplorer")
        assert box["y"] + box["height"] <= bottom  # on the node, not across its edge
    canvas.drag(*((box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in ((0.5, 0.5), (0.25, 0.75))))
    x, y = canvas.value("FlowcoreLatentExplorer", "x", "y")
    assert (x, y) == (pytest.approx(0.25, abs=0.02), pytest.approx(0.75, abs=0.02))
    assert dot(pad) == (pytest.approx(x, abs=0.02), pytest.approx(y, abs=0.02))
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"])  # the button is up: nothing moves
    assert canvas.value("FlowcoreLatentExplorer", "x") == x
    page.keyboard.press("ArrowRight")
    assert canvas.value("FlowcoreLatentExplorer", "x") == pytest.approx(x + 0.01, abs=0.002)
    assert page.locator(".flowcore-pad b.open").count() == 0
    canvas.shot("explorer")

    kept = canvas.saved()
    assert counts(kept)[number] == length == 2
    canvas.open(kept)
    canvas.look_at("FlowcoreLatentExplorer", scale=1.3)
    assert canvas.value("FlowcoreLatentExplorer", "y") == y
    assert dot(page.locator(PAD)) == (pytest.approx(x + 0.01, abs=0.02), pytest.approx(y, abs=0.02))
    # Numbers that come from elsewhere move the point.
    canvas.move("FlowcoreLatentExplorer", "x", 1)
    assert dot(page.locator(PAD))[0] == pytest.approx(1, abs=0.02)
    canvas.run()
    canvas.fit()
    canvas.shot("explorer-run")


def seen(canvas, picture):
    return canvas.page.evaluate(
        """async selector => { const image = document.querySelector(selector); await image.decode();
            const table = Object.assign(document.createElement('canvas'), {width: 28, height: 28});
            const context = table.getContext('2d'); context.drawImage(image, 0, 0, 28, 28);
            return [...context.getImageData(0, 0, 28, 28).data]; }""",
        picture,
    )


def test_pictures_follow_the_point_on_the_pad(canvas, page):
    canvas.open(exploring())
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


def test_styles_are_seen_while_their_sliders_move(canvas, page):
    canvas.open(story("digits"))
    before = counts(canvas.saved())
    canvas.run()
    picture = ".flowcore-live img"
    page.wait_for_function("selector => document.querySelector(selector)?.naturalWidth === 140", arg=picture)
    first, src = seen(canvas, picture), page.locator(picture).get_attribute("src")
    canvas.move("FlowcoreStyle", "bold", *(k / -10 for k in range(31)))
    page.wait_for_function("([picture, src]) => document.querySelector(picture).src !== src", arg=[picture, src])
    page.wait_for_timeout(600)
    assert sum(seen(canvas, picture)) < sum(first)  # thinner strokes
    assert canvas.overlapping() == []
    canvas.look_at("FlowcoreStyle", scale=1.2)
    canvas.shot("style-live")
    there = """() => app.graph.nodes.find(n => n.type === 'FlowcoreStyle').widgets
        .filter(w => typeof w.value === 'number' && !w.hidden).map(w => w.name)"""
    assert page.evaluate(there) == ["bold", "wide", "slanted", "messy"]
    for name in ("wide", "slanted", "messy"):
        canvas.move("FlowcoreStyle", name, 0)
    canvas.move("FlowcoreLoadModel", "model_name", "glow-faces")
    page.wait_for_timeout(200)
    assert page.evaluate(there) == ["bold", "smile", "age", "gender"]  # bold is set, and would be refused
    canvas.move("FlowcoreLoadModel", "model_name", "mnist-styles")
    assert counts(canvas.saved()) == before


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
    assert shown["measured"].startswith("Shrunk again, it is ")
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
    assert said.startswith("A picture would have 24000x18000 pixels, 432 megapixels. Without longest_side")
    for side in ("width", "height"):
        canvas.move("EmptyImage", side, 16)
    canvas.run()
    assert page.evaluate(FAILED) == []


def test_a_number_that_the_model_decides_says_so(canvas):
    canvas.open(upscaling("fixed", -0.1))

    def shown(*names):
        canvas.page.wait_for_timeout(200)
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


def test_all_pictures_that_were_decoded_are_shown_on_the_node(canvas):
    drawn = {"model": "model.0", "samples": 3, "temperature": 0.7, "seed": 30 + canvas.vue, "labels": "4"}
    canvas.open(digits("FlowcoreDecode", {"latents": "drawn.1", "model": "model.0"}, drawn=("FlowcoreSample", drawn)))
    canvas.run()
    canvas.spread()
    canvas.shot("decoded")
    shown = "() => app.graph.nodes.find(n => n.type === 'FlowcoreDecode').imgs?.length"
    if canvas.vue:
        shown = "() => document.querySelectorAll('[data-node-id=\"2\"] img').length"
    canvas.page.wait_for_function(f"() => ({shown})() === 3")  # they are loaded after the run


def test_the_wipe_is_there_where_the_source_comes_after_pictures(canvases):
    """As after a reload during a run, whose first preview, the source, was sent to the page before."""
    assert canvases(vue=False).page.evaluate(
        """async path => { const {Viewer} = await import(path), none = () => {}, viewer = new Viewer(none, none, none);
            const picture = {name: '1', url: 'data:,'};
            viewer.show([picture]);
            viewer.show([{...picture, source: 'data:,', sourceName: 'source'}]);
            return [viewer.left, viewer.compared]; }""",
        f"/extensions/{comfyui.PACK_NAME}/js/viewer.js",
    ) == ["source", True]


def dot(pad):
    """Where the point is drawn on the pad, as shares of its sides."""
    return tuple(
        pad.evaluate(
            """pad => { const p = pad.getBoundingClientRect(), d = pad.querySelector('i').getBoundingClientRect();
                return [(d.x + d.width / 2 - p.x) / p.width, (d.y + d.height / 2 - p.y) / p.height]; }"""
        )
    )


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
    said = canvas.page.locator(".flowcore-gallery ~ .flowcore-text").inner_text()
    assert own["messages"]["shrunk_again_it_is_the_picture"] in said
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
    translate = "async ([path, text]) => (await import(path)).translateMessage(text)"
    faces = "Of 3 faces, 2 of more than 36 pixels"
    text = f"a.png: {faces}: left to the upscaler of the picture, which draws large ones better."
    translated = canvas.page.evaluate(translate, [f"/extensions/{comfyui.PACK_NAME}/js/messages.js", text])
    assert translated == "a.png: 얼굴 3개 중 36픽셀보다 큰 2개: 큰 얼굴을 더 잘 그리는, 사진 업스케일러에 맡깁니다."
