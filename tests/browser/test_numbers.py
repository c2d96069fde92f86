"""What the page makes of numbers: seen live, followed, stepped and folded; and of films and large pictures."""

import io
import json

import av
import numpy as np
import pytest
from canvas import PAD
from comfyui import ROOT
from opened_workflows import PHOTO, counts, digits, numbered, story, upscaling

LAID = """() => { const over = document.querySelector('.flowcore-viewer .after img:nth-of-type(2)');
    return !over.hidden && over.naturalWidth > 0 && document.querySelector('.flowcore-viewer .head').textContent }"""


def test_numbers_move_the_picture_of_a_run_before_the_next_one(canvas, page):
    light = {"image": "photo.0", "model": "model.0", "temperature": 0, "seed": 1 + canvas.vue}
    dark = ("FlowcoreLoadModel", {"model_name": "brighten-photos"})
    canvas.open(numbered(photo=PHOTO, model=dark, light=("FlowcoreBrighten", light)))
    canvas.spread()
    canvas.run()
    assert not page.evaluate(LAID)
    canvas.move("FlowcoreBrighten", "exposure", -0.5, -1.5)
    page.wait_for_function(LAID)
    assert page.evaluate(LAID).startswith("A preview")
    canvas.look_at("FlowcoreBrighten")
    canvas.shot("live-exposure")
    canvas.move("FlowcoreBrighten", "exposure", 0)  # that of the run: its own picture
    page.wait_for_function(f"() => !({LAID})()")


def test_a_detail_follows_the_temperature(canvas, page):
    canvas.open(upscaling("fixed"))
    canvas.run()
    canvas.move("FlowcoreUpscale", "boldness", 0)
    page.wait_for_timeout(100)
    canvas.move("FlowcoreUpscale", "temperature", 0.2)
    page.wait_for_function(LAID)
    canvas.run()
    assert not page.evaluate(LAID)


VISIBLE = """() => { const node = app.graph.nodes.find(n => n.type === 'FlowcoreRestore');
    return node.widgets.filter(w => node.isWidgetVisible(w)).map(w => w.name) }"""


def test_advanced_inputs_are_folded_in_the_classic_renderer_but_those_with_a_wire(classic):
    small = {"image": "photo.0", "model": "model.0"}
    restore = {"small": "small.0", "model": "model.0", "width": "small.1", "height": "small.2", "seed": 1}
    model = ("FlowcoreLoadModel", {"model_name": "rescale-x4"})
    nodes = {"small": ("FlowcoreShrink", small), "restore": ("FlowcoreRestore", restore)}
    classic.open(numbered(photo=PHOTO, model=model, **nodes))
    classic.page.wait_for_timeout(500)  # until the wires are there
    shown = classic.page.evaluate(VISIBLE)
    assert {"width", "height", "pick", "flowcore_more"} <= set(shown)
    assert not {"tile", "precision"} & set(shown)
    more = "() => { const [w] = app.graph.nodes.flatMap(n => n.type === 'FlowcoreRestore' ? n.widgets : []).filter("
    more += "w => w.name === 'flowcore_more'); w.callback(); return w.label }"
    assert classic.page.evaluate(more).startswith("Show advanced")
    assert {"tile", "precision"} <= set(classic.page.evaluate(VISIBLE))


def test_a_fresh_node_shows_the_numbers_of_the_model_that_it_would_get(classic):
    classic.open(numbered(photo=PHOTO))
    classic.page.evaluate("() => { app.graph.add(LiteGraph.createNode('FlowcoreUpscale')); }")
    classic.page.wait_for_timeout(1500)
    shown = {name: (label, value) for name, label, value in classic.only("FlowcoreUpscale")["widgets"]}
    assert shown["temperature"] == ("temperature (model's)", 0.6)
    assert shown["factor"] == ("enlarge by (model's scale)", 4)
    assert classic.sent("FlowcoreUpscale")["temperature"] == -0.1


HIDDEN = """() => app.graph.nodes.find(n => n.type === 'FlowcoreUpscale').widgets
    .filter(w => w.options.hidden && w.options.min !== undefined && w.name !== 'outside').map(w => w.name)"""


def test_sliders_show_the_numbers_of_the_picture_the_look_and_other_sliders(canvas, page):
    photo = ("FlowcoreExample", {"picture": "bad JPEG"})
    node = {"image": "photo.0", "model": "model.0", "temperature": -0.1, "seed": 1, "boldness": -0.1}
    model = ("FlowcoreLoadModel", {"model_name": "upscaler that suits the picture"})
    canvas.open(numbered(photo=photo, model=model, node=("FlowcoreUpscale", node | {"guide_strength": -0.1})))

    def shown():
        page.wait_for_timeout(1500)
        return canvas.value("FlowcoreUpscale", "temperature", "guide_strength", "boldness")

    assert shown() == [0.6, 0.9, 0.5]
    canvas.move("FlowcoreExample", "picture", "painted photograph")
    assert shown() == [0.6, 0, 0.5]
    canvas.move("FlowcoreUpscale", "look", "faithful")
    assert shown() == [0, 0, 0]
    canvas.move("FlowcoreUpscale", "look", "all looks")
    assert shown()[0] == -0.1  # every look has its own, so it is not shown at all
    assert page.evaluate(HIDDEN) == ["temperature", "guide_strength", "boldness", "calm_faces"]
    canvas.move("FlowcoreUpscale", "look", "natural")
    assert shown() == [0.6, 0, 0.5]
    assert page.evaluate(HIDDEN) == []
    canvas.move("FlowcoreUpscale", "boldness", 0.9)
    assert shown()[0] > 1
    assert canvas.sent("FlowcoreUpscale")["temperature"] == -0.1


def test_a_seed_steps_by_the_samples_and_is_typed_freely(canvas, page):
    canvas.open(upscaling("fixed"))
    canvas.move("FlowcoreUpscale", "seed", 41)
    assert canvas.value("FlowcoreUpscale", "seed") == 44
    canvas.move("FlowcoreUpscale", "seed", 43)
    assert canvas.value("FlowcoreUpscale", "seed") == 40
    canvas.move("FlowcoreUpscale", "seed", 90)
    assert canvas.value("FlowcoreUpscale", "seed") == 90


def test_incrementing_after_a_run_steps_by_the_samples(canvas, page):
    canvas.open(upscaling("increment"))
    for first in (40, 44):
        assert canvas.value("FlowcoreUpscale", "seed") == first
        canvas.run()
    assert canvas.value("FlowcoreUpscale", "seed") == 48
    seeds = page.locator(".flowcore-gallery button:enabled").evaluate_all("every => every.map(b => b.dataset.seed)")
    assert seeds == [str(seed) for seed in range(40, 48)]


def test_a_film_that_is_dropped_on_a_story_is_connected(canvas, page):
    file = io.BytesIO()
    with av.open(file, "w", "mp4") as film:
        video = film.add_stream("h264", rate=8)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        for k in range(3):
            film.mux(video.encode(av.VideoFrame.from_ndarray(np.full((32, 48, 3), 80 * k, np.uint8))))
        film.mux(video.encode(None))
    canvas.open(story("steady-clip"))
    left, _, right, bottom = canvas.bounds()
    canvas.drop(file.getvalue(), "own.mp4", ((left + right) / 2, min(bottom + 60, 900)), "video/mp4")
    page.wait_for_function("() => app.graph.nodes.some(n => n.type === 'LoadVideo')")
    page.wait_for_timeout(1500)
    film = str(canvas.only("LoadVideo")["id"])
    assert canvas.sent("FlowcoreUpscaleVideo")["image"] == [film, 0]
    assert canvas.overlapping() == []
    canvas.fit()
    canvas.shot("film-dropped")


SLIDER = """([kind, name]) => {
    const track = document.querySelector(`.lg-node-widget:has([aria-label=${name}]) [role=slider]`)?.parentElement;
    const box = track?.getBoundingClientRect(), half = 8; // of the thumb, which stays inside
    if (box) return {left: box.left + half, width: box.width - 2 * half, top: box.top, height: box.height};
    const {scale, offset} = app.canvas.ds, node = app.graph.nodes.find(n => n.type === kind);
    const widget = node.widgets.find(w => w.name === name), page = app.canvas.canvas.getBoundingClientRect();
    return {left: page.left + (node.pos[0] + 15 + offset[0]) * scale, width: (node.size[0] - 30) * scale,
        top: page.top + (node.pos[1] + widget.y + offset[1]) * scale, height: 20 * scale}; }"""


def test_a_slider_begins_at_zero_and_a_double_click_gives_it_back_to_the_model(canvas, page):
    canvas.open(upscaling("fixed", -0.1))
    page.evaluate("() => app.graph.nodes.find(n => n.type === 'FlowcoreUpscale').toggleAdvanced()")
    canvas.look_at("FlowcoreUpscale", scale=0.75)

    def shown(name):
        page.wait_for_timeout(200)
        (label,) = [label for each, label, _ in canvas.only("FlowcoreUpscale")["widgets"] if each == name]
        return label, canvas.sent("FlowcoreUpscale")[name]

    for name in ("temperature", "calm_faces"):  # the model's has more digits than the slider of the second
        track = page.evaluate(SLIDER, ["FlowcoreUpscale", name])
        height = track["top"] + track["height"] / 2
        page.mouse.click(track["left"] + 0.05 * track["width"], height)  # which once was the model's
        label, value = shown(name)
        assert label == name.replace("_", " ")
        assert 0.02 < value < 0.11
        page.wait_for_timeout(500)
        page.mouse.dblclick(track["left"] + 0.5 * track["width"], height)
        assert shown(name) == (f"{label} (model's)", -0.1)


def test_a_double_click_on_a_slider_without_a_number_of_the_model_brings_back_the_default(canvas, page):
    canvas.open(numbered(clean=("FlowcoreClean", {"strength": 0.9})))
    canvas.look_at("FlowcoreClean")
    track = page.evaluate(SLIDER, ["FlowcoreClean", "strength"])
    page.mouse.dblclick(track["left"] + 0.2 * track["width"], track["top"] + track["height"] / 2)
    page.wait_for_timeout(200)
    assert canvas.sent("FlowcoreClean")["strength"] == 0.5


def test_a_double_click_on_a_slider_of_a_blueprint_brings_back_the_number_inside(canvas, page):
    canvas.open(numbered(photo=PHOTO))
    kind = page.evaluate(
        """text => { app.canvas.setGraph(app.graph); const {nodes, definitions: {subgraphs}} = JSON.parse(text);
            const [made] = app.canvas._deserializeItems({nodes, subgraphs}, {position: [500, 100]}).nodes.values();
            app.canvas.deselectAll(); return made.type; }""",
        (ROOT / "subgraphs" / "restore old photo.json").read_text(),
    )
    canvas.look_at(kind)
    for inner, name, usual in (("FlowcoreFindScratches", "sensitivity", 0.5), ("FlowcoreColorize", "saturation", 1.1)):
        track = page.evaluate(SLIDER, [kind, name])
        height = track["top"] + track["height"] / 2
        page.mouse.click(track["left"] + 0.8 * track["width"], height)
        page.wait_for_timeout(700)
        assert canvas.sent(inner)[name] > 1.2 * usual
        page.mouse.dblclick(track["left"] + 0.2 * track["width"], height)
        page.wait_for_timeout(200)
        assert canvas.sent(inner)[name] == canvas.value(kind, name) == usual


def test_marks_of_scratches_follow_the_slider(canvas, page):
    find = ("FlowcoreFindScratches", {"image": "photo.0", "sensitivity": 0.3 + canvas.vue / 100})
    canvas.open(numbered(photo=PHOTO, find=find, show=("MaskPreview", {"mask": "find.0"})))
    canvas.run()
    shown = "() => app.graph.nodes.find(n => n.type === 'FlowcoreFindScratches').imgs?.[0].src"
    if canvas.vue:
        shown = "() => [...document.querySelectorAll('[data-node-id=\"2\"] img')].map(image => image.src).join()"
    said = page.get_by_text("of the picture is marked").filter(visible=True)
    assert said.count() == 1
    canvas.move("FlowcoreFindScratches", "sensitivity", 0.6, 0.9)
    page.wait_for_function(f"() => (({shown})() ?? '').startsWith('blob:')")  # in place of the first picture
    assert not canvas.vue or page.locator('[data-node-id="2"] img').count() == 1
    assert said.count() == 0  # which was said of the first picture
    canvas.run()  # with it: its own picture
    page.wait_for_function(f"() => (({shown})() ?? '').includes('/view?')")
    assert said.count() == 1


SIZES = "() => Object.fromEntries(app.graph.nodes.map(n => [n.type, [...n.size]]))"


def test_new_nodes_have_room_for_their_samples_and_for_what_a_run_shows(canvas, page):
    """A row of four thumbnails, and a picture or a text that no other node is under."""
    kinds = ("FlowcoreUpscale", "FlowcoreShrink", "FlowcorePaintTemperature")
    page.evaluate(
        """kinds => { app.canvas.setGraph(app.graph); app.graph.clear();
            const put = (kind, left, top) => { const node = LiteGraph.createNode(kind); node.pos = [left, top];
                return app.graph.add(node) ?? node; };
            const photo = put('LoadImage', 0, 0), shown = put('PreviewAny', 0, 600);
            photo.widgets[0].value = 'example.png';
            for (const [k, kind] of kinds.entries()) { const node = put(kind, 400 + 500 * k, 0);
                photo.connect(0, node, 'image');
                if (!node.inputs.some(({name}) => name === 'model')) { node.connect(0, shown, 0); continue; }
                const loader = put('FlowcoreLoadModel', 400 + 500 * k, 900); loader.connect(0, node, 'model');
                loader.widgets[0].value = kind === 'FlowcoreShrink' ? 'rescale-x4' : 'srflow-x4'; }
            const upscale = app.graph.nodes.find(n => n.type === kinds[0]);
            upscale.connect(0, put('FlowcoreSave', 1900, 0), 'images');
            upscale.widgets.find(w => w.name === 'samples').value = 4; }""",
        kinds,
    )
    page.wait_for_timeout(500)
    before = page.evaluate(SIZES)
    assert before["FlowcoreUpscale"][0] >= 400
    page.evaluate(
        """() => { const shown = LiteGraph.createNode('PreviewImage'); shown.pos = [900, 700]; app.graph.add(shown);
            app.graph.nodes.find(n => n.type === 'FlowcoreShrink').connect(0, shown, 0); }"""
    )
    canvas.run()
    page.wait_for_timeout(1000)
    after = page.evaluate(SIZES)
    canvas.fit()
    canvas.shot("new-nodes")
    assert after["FlowcoreSave"][1] - before["FlowcoreSave"][1] < 100  # four pictures have two rows in Nodes 2.0
    for kind in kinds:
        assert after[kind][1] - before[kind][1] < 40, kind
    tops = [button.bounding_box()["y"] for button in page.locator(".flowcore-gallery button").all()]
    assert len(tops) == 4
    assert max(tops) - min(tops) < 2


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


def dot(pad):
    """Where the point is drawn on the pad, as shares of its sides."""
    return tuple(
        pad.evaluate(
            """pad => { const p = pad.getBoundingClientRect(), d = pad.querySelector('i').getBoundingClientRect();
                return [(d.x + d.width / 2 - p.x) / p.width, (d.y + d.height / 2 - p.y) / p.height]; }"""
        )
    )


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
