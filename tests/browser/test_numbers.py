"""What the page makes of numbers: seen live, followed, stepped and folded; and of films and large pictures."""

import io

import av
import numpy as np
from test_canvas import PHOTO, numbered, story, upscaling

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
    classic.open(story("thumbnail"))
    shown = classic.page.evaluate(VISIBLE)
    assert {"width", "height", "pick", "flowcore_more"} <= set(shown)
    assert not {"tile", "precision"} & set(shown)
    more = "() => { const [w] = app.graph.nodes.flatMap(n => n.type === 'FlowcoreRestore' ? n.widgets : []).filter("
    more += "w => w.name === 'flowcore_more'); w.callback(); return w.label }"
    assert classic.page.evaluate(more).startswith("Show advanced")
    assert {"tile", "precision"} <= set(classic.page.evaluate(VISIBLE))


def test_a_fresh_node_shows_the_numbers_of_the_model_that_it_would_get(classic):
    classic.open(numbered(photo=PHOTO))
    classic.page.evaluate("() => app.graph.add(LiteGraph.createNode('FlowcoreUpscale'))")
    classic.page.wait_for_timeout(500)
    shown = {name: (label, value) for name, label, value in classic.only("FlowcoreUpscale")["widgets"]}
    assert shown["temperature"] == ("temperature (model's)", 0.6)
    assert shown["factor"] == ("enlarge by (model's scale)", 4)
    assert classic.sent("FlowcoreUpscale")["temperature"] == -0.1


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


SLIDER = """() => { const track = document.querySelector('[aria-label=temperature][role=slider]')?.parentElement;
    const box = track?.getBoundingClientRect(), half = 8; // of the thumb, which stays inside
    if (box) return {left: box.left + half, width: box.width - 2 * half, top: box.top, height: box.height};
    const {scale, offset} = app.canvas.ds, node = app.graph.nodes.find(n => n.type === 'FlowcoreUpscale');
    const widget = node.widgets.find(w => w.name === 'temperature'), page = app.canvas.canvas.getBoundingClientRect();
    return {left: page.left + (node.pos[0] + 15 + offset[0]) * scale, width: (node.size[0] - 30) * scale,
        top: page.top + (node.pos[1] + widget.y + offset[1]) * scale, height: 20 * scale}; }"""


def test_a_slider_begins_at_zero_and_a_double_click_gives_it_back_to_the_model(canvas, page):
    canvas.open(upscaling("fixed", -0.1))
    canvas.look_at("FlowcoreUpscale")
    track = page.evaluate(SLIDER)
    height = track["top"] + track["height"] / 2

    def shown():
        page.wait_for_timeout(200)
        (label,) = [label for name, label, _ in canvas.only("FlowcoreUpscale")["widgets"] if name == "temperature"]
        return label, canvas.sent("FlowcoreUpscale")["temperature"]

    page.mouse.click(track["left"] + 0.05 * track["width"], height)  # which once was the model's
    label, value = shown()
    assert label == "temperature"
    assert 0.04 < value < 0.11
    page.wait_for_timeout(500)
    page.mouse.dblclick(track["left"] + 0.5 * track["width"], height)
    assert shown() == ("temperature (model's)", -0.1)


def test_marks_of_scratches_follow_the_slider(canvas, page):
    find = ("FlowcoreFindScratches", {"image": "photo.0", "sensitivity": 0.3 + canvas.vue / 100})
    canvas.open(numbered(photo=PHOTO, find=find, show=("MaskPreview", {"mask": "find.0"})))
    canvas.run()
    shown = "() => app.graph.nodes.find(n => n.type === 'FlowcoreFindScratches').imgs?.[0].src"
    if canvas.vue:
        shown = "() => [...document.querySelectorAll('[data-node-id=\"2\"] img')].map(image => image.src).join()"
    canvas.move("FlowcoreFindScratches", "sensitivity", 0.6, 0.9)
    page.wait_for_function(f"() => (({shown})() ?? '').includes('blob:')")
    canvas.run()  # with it: its own picture
    page.wait_for_function(f"() => (({shown})() ?? '').includes('/view?')")


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
    for kind in kinds:
        assert after[kind][1] - before[kind][1] < 40, kind
    tops = [button.bounding_box()["y"] for button in page.locator(".flowcore-gallery button").all()]
    assert len(tops) == 4
    assert max(tops) - min(tops) < 2
