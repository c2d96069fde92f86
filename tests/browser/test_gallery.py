"""What a run shows on its node: pictures to pick and compare, and those that follow a hand."""

import json

import comfyui
import numpy as np
import pytest
from canvas import SAVED
from opened_workflows import MODEL, PHOTO, PICTURES, counts, digits, numbered, positions, upscaling
from PIL import Image


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


def test_previews_of_a_stopped_run_are_called_so_and_do_not_stand_for_pictures_of_an_earlier_one(canvas, page):
    canvas.open(upscaling("fixed"))
    canvas.move("FlowcoreUpscale", "seed", 9000 + canvas.vue)
    canvas.move("FlowcoreUpscale", "samples", 2)
    canvas.run()
    results = page.locator(".flowcore-gallery button:enabled")
    assert results.count() == 2
    canvas.move("FlowcoreUpscale", "samples", 48)
    canvas.watch_end()
    page.evaluate(
        """() => { let previews = 0;
            app.api.addEventListener('b_preview_with_metadata', () => { if (++previews === 3) app.api.interrupt(); });
            app.queuePrompt(0, 1); }"""
    )
    page.wait_for_function("() => window.ended === 'execution_interrupted'", timeout=240_000)
    head = page.locator(".flowcore-viewer .head", has_text="did not finish")
    head.wait_for()
    page.locator(".flowcore-gallery ~ .flowcore-text", has_text="Stopped.").wait_for()
    canvas.look_at("FlowcoreUpscale")
    canvas.shot("stopped")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator(".flowcore-viewer").focus()
    for key in ("ArrowRight", "s", "Enter"):  # to the first preview, in whose place the earlier run has a picture
        page.keyboard.press(key)
    page.wait_for_timeout(200)
    assert page.locator(".flowcore-viewer select").nth(1).input_value() == "0"
    assert not [url for url in asked if "/prompt" in url or "/history" in url]
    assert canvas.value("FlowcoreUpscale", "pick") == 0
    head.wait_for()  # beside every preview
    canvas.move("FlowcoreUpscale", "samples", 3)
    canvas.run()
    page.wait_for_function("() => document.querySelectorAll('.flowcore-gallery button:enabled').length >= 3")
    assert head.count() == 0


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
    up = {"image": "photo.0", "model": "model.0", "temperature": 0.8, "seed": 40, "samples": 3}
    best = {"images": "up.0", "source": "photo.0", "by": "consistency", "keep": 2}
    classic.open(numbered(photo=PHOTO, model=MODEL, up=("FlowcoreUpscale", up), best=("FlowcoreBestOf", best)))
    classic.spread()
    classic.move("FlowcoreUpscale", "control_after_generate", "randomize")
    classic.run()
    page = classic.page
    best = classic.only("FlowcoreBestOf")["id"]
    labels = page.evaluate("id => app.nodeOutputs[id].flowcore_gallery.map(e => [e.seed, e.score])", best)
    button = page.locator(".flowcore-gallery button", has_text=f"{labels[1][0]} · {labels[1][1]}")
    classic.shot("best-of")
    button.click()
    assert classic.value("FlowcoreBestOf", "pick") == 2
    assert classic.value("FlowcoreUpscale", "pick") == 0
    assert classic.value("FlowcoreUpscale", "seed", "control_after_generate") == [40, "fixed"]


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
