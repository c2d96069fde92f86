"""The brush on the canvas, by mouse and keyboard, in both renderers; and that what a node says stays with its run."""

import json
from functools import partial

import pytest
from canvas import BOARD, Brush, place
from opened_workflows import digits, numbered, positions


def painting(kind="FlowcorePaintHints", **values):
    output = {"FlowcorePaintHints": ("PreviewImage", {"images": "paint.1"})}
    return numbered(
        image=("LoadImage", {"image": "example.png"}),
        paint=(kind, {"image": "image.0", "painting": ""} | values),
        show=output.get(kind, ("MaskPreview", {"mask": "paint.0"})),
    )


def test_strokes_are_painted_erased_undone_and_sent(canvas):
    canvas.open(painting())
    brush = Brush(canvas, "FlowcorePaintHints")
    brush.page.locator(".swatch").nth(1).click()
    brush.drag((0.2, 0.5), (0.5, 0.5), (0.8, 0.7))
    (stroke,) = brush.strokes()
    assert stroke["color"] == "#a8412f"
    assert stroke["points"][0] == pytest.approx([0.2, 0.5], abs=0.02)
    assert stroke["points"][-1] == pytest.approx([0.8, 0.7], abs=0.02)
    assert len(stroke["points"]) < 8  # what lies on a line is left out
    red, _, blue = brush.seen(0.35, 0.5)
    assert red > blue + 60
    canvas.shot("brush")

    # A straight line with Shift, a larger brush by key, the eraser, and back.
    canvas.page.keyboard.press("]")
    brush.page.keyboard.down("Shift")
    brush.page.mouse.click(*brush.at(0.8, 0.2))
    brush.page.keyboard.up("Shift")
    second = brush.strokes()[1]
    assert second["size"] > stroke["size"]
    assert second["points"] == [stroke["points"][-1], pytest.approx([0.8, 0.2], abs=0.02)]
    canvas.page.keyboard.press("e")
    assert brush.tool("erase").get_attribute("aria-pressed") == "true"
    brush.drag((0.35, 0.3), (0.35, 0.7))
    assert brush.strokes()[2]["erase"] is True
    red, _, blue = brush.seen(0.35, 0.5)
    assert abs(red - blue) < 10  # the gray picture again
    canvas.page.locator(BOARD).focus()
    for _ in range(2):
        canvas.page.keyboard.press("Control+z")
    assert brush.strokes() == [stroke]
    canvas.page.keyboard.press("Control+Shift+Z")
    assert len(brush.strokes()) == 2
    brush.tool("clear").click()
    assert brush.strokes() == []
    brush.tool("undo").click()
    assert len(brush.strokes()) == 2

    # The eyedropper takes what is painted.
    brush.page.locator(".swatch").nth(3).click()
    brush.tool("dropper").click()
    brush.page.mouse.click(*brush.at(0.25, 0.5))
    assert brush.page.locator(".flowcore-brush-tools input[type='color']").input_value() == "#a8412f"
    assert brush.tool("brush").get_attribute("aria-pressed") == "true"

    sent = canvas.sent("FlowcorePaintHints")
    assert json.loads(sent["painting"]) == brush.strokes()
    assert set(sent) == {"image", "painting", "lock"}
    kept, strokes = canvas.saved(), brush.strokes()
    canvas.open(kept)
    assert Brush(canvas, "FlowcorePaintHints").strokes() == strokes
    assert positions(canvas.saved()) == positions(kept)
    canvas.run()
    canvas.page.wait_for_function("() => document.querySelector('.flowcore-text')?.textContent.includes('cover')")
    canvas.fit()
    canvas.shot("brush-run")
    assert canvas.overlapping() == []


def test_temperature_is_painted_on_the_whole_screen(canvas):
    canvas.open(painting("FlowcorePaintTemperature", ground=0.0))
    brush = Brush(canvas, "FlowcorePaintTemperature")
    slider = canvas.page.locator(".flowcore-brush-tools input.amount")
    slider.focus()
    canvas.page.keyboard.press("ArrowLeft")
    canvas.page.locator(BOARD).focus()
    canvas.page.keyboard.press("f")
    canvas.page.wait_for_function("() => document.fullscreenElement?.matches('.flowcore-brush')")
    canvas.page.wait_for_timeout(300)
    assert canvas.page.locator(BOARD).bounding_box()["width"] > 1200
    brush.drag((0.3, 0.3), (0.6, 0.6))
    canvas.shot("brush-whole")
    canvas.page.keyboard.press("f")
    canvas.page.wait_for_function("() => !document.fullscreenElement")
    (stroke,) = brush.strokes()
    assert stroke["amount"] == 0.95
    assert stroke["points"][0] == pytest.approx([0.3, 0.3], abs=0.02)
    red, _, blue = brush.seen(0.45, 0.45)
    assert red > blue + 40
    assert brush.tool("dropper").count() == 0


def test_a_picture_of_flow_example_is_there_at_once_and_frames_of_a_film_after_a_run(classic):
    workflow = painting()
    workflow["1"] |= {"class_type": "FlowcoreExample", "inputs": {"picture": "second photograph"}}
    classic.open(workflow)
    brush = Brush(classic, "FlowcorePaintHints")
    brush.drag((0.3, 0.3), (0.6, 0.3))
    shown = brush.page.locator(f"{BOARD} img")
    assert "filename=second+photograph&" in shown.get_attribute("src")
    for picture, file in (("photograph", "filename=photograph&"), ("black-and-white film", None)):
        classic.move("FlowcoreExample", "picture", picture)
        classic.page.wait_for_timeout(300)
        assert file is None if shown.get_attribute("src") is None else file in shown.get_attribute("src")
        assert brush.strokes() == []  # they were of the picture before
    brush.tool("undo").click()
    assert len(brush.strokes()) == 1
    classic.run()
    classic.page.wait_for_function("() => document.querySelector('.flowcore-brush-board img')?.naturalWidth > 0")


def test_a_picture_behind_other_nodes_is_there_after_a_run(classic):
    workflow = painting()
    workflow["2"]["inputs"]["image"] = ["4", 0]
    workflow["4"] = {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}, "_meta": {"title": "Invert"}}
    classic.open(workflow)
    classic.look_at("FlowcorePaintHints")
    assert "empty" in classic.page.locator(BOARD).get_attribute("class")
    classic.shot("brush-empty")
    classic.page.locator(BOARD).click()
    assert classic.value("FlowcorePaintHints", "painting") == ""
    classic.run()
    Brush(classic, "FlowcorePaintHints").drag((0.2, 0.2), (0.4, 0.2))
    assert len(json.loads(classic.value("FlowcorePaintHints", "painting"))) == 1


def test_what_is_painted_is_seen_in_a_subgraph_that_was_closed_during_a_run(classic):
    """Its picture comes from outside of the subgraph, and needs no pointer over the board."""
    page = classic.page
    stroke = json.dumps([{"color": "#ff0000", "size": 0.1, "points": [[0.2, 0.5], [0.8, 0.5]]}])
    classic.open(painting(painting=stroke))
    classic.close_up("FlowcorePaintHints")
    classic.run()
    classic.enter()
    page.wait_for_function("() => document.querySelector('.flowcore-brush-board img')?.naturalWidth > 0")
    page.wait_for_timeout(300)
    classic.shot("brush-subgraph")
    assert page.evaluate(
        """() => { const layer = document.querySelector('.flowcore-brush-board canvas'), {width, height} = layer;
            const at = (x, y) => layer.getContext('2d').getImageData(x * width, y * height, 1, 1).data[3];
            return [Math.round(100 * width / height), at(0.5, 0.5), at(0.5, 0.1)]; }"""
    ) == [150, 255, 0]


# --- what a node says -------------------------------------------------------------------------------------------------

SAID = "() => [...document.querySelectorAll('.flowcore-text')].map(e => e.textContent).filter(Boolean)"


def run_behind(canvas, workflow, other):
    """Two tabs of one page, whose nodes have the same numbers: the first runs while the second is open."""
    canvas.open(workflow)
    first = canvas.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.path")
    canvas.page.evaluate(
        """async () => { const hold = new Promise(go => { window.go = go; });
            const fetch = app.api.fetchApi; // the answer to the run comes when the other workflow is open
            app.api.fetchApi = async function (path) {
                const answer = await fetch.apply(this, arguments);
                if (path === '/prompt') await hold;
                return answer; };
            window.asked = app.queuePrompt(0, 1); }"""
    )
    canvas.open(other)
    assert canvas.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.path") != first
    canvas.page.evaluate("async () => { window.go(); await window.asked; }")
    canvas.page.wait_for_timeout(2000)


def test_what_a_run_says_is_not_shown_in_another_workflow_of_the_page(classic):
    run_behind(classic, painting(), painting(lock=True))
    assert classic.page.evaluate(SAID) == []
    classic.run()
    classic.page.wait_for_function(f"() => ({SAID})().length > 0")


def test_the_pictures_of_a_run_are_not_shown_in_another_workflow_of_the_page(classic):
    values = {"model": "model.0", "samples": 2, "temperature": 0.7, "seed": 21}
    run_behind(classic, digits("FlowcoreSample", values), digits("FlowcoreSample", values | {"seed": 31}))
    buttons = classic.page.locator(".flowcore-gallery button")
    assert buttons.count() == 0
    seed = classic.value("FlowcoreSample", "seed")
    classic.run()
    classic.page.wait_for_function("() => document.querySelectorAll('.flowcore-gallery [data-seed]').length == 2")
    assert buttons.nth(0).get_attribute("data-seed") == str(seed)


def test_what_a_run_of_one_page_says_is_not_shown_on_another(canvases, chromium):
    canvas, other = canvases(vue=False), canvases(vue=False, language="ko")
    for each in (canvas, other):
        each.open(painting())
    canvas.run()
    canvas.page.wait_for_function(f"() => ({SAID})().length > 0")
    other.page.wait_for_timeout(500)
    assert other.page.evaluate(SAID) == []


def test_eyes_are_clicked_dragged_and_cleared_with_another_picture(canvas):
    """On a picture of 72x48 in Align Face; typed points are dots, and a right-click starts anew."""
    canvas.open(
        numbered(
            image=("LoadImage", {"image": "example.png"}),
            align=("FlowcoreAlignFace", {"image": "image.0", "size": 0, "left_eye": "20, 16", "right_eye": ""}),
            show=("PreviewImage", {"images": "align.0"}),
        )
    )
    canvas.look_at("FlowcoreAlignFace", scale=1.2)
    at = partial(place, canvas.page.locator(".flowcore-eyes svg"))
    canvas.page.wait_for_selector(".flowcore-eyes circle", state="attached")

    def eyes():
        texts = canvas.value("FlowcoreAlignFace", "left_eye", "right_eye")
        return [[float(n) for n in text.replace(";", ",").split(",")] if text else [] for text in texts]

    canvas.page.mouse.click(*at(32, 17))
    assert eyes() == [[20, 16], pytest.approx([32, 17], abs=0.2)]
    canvas.drag(at(20, 16), at(22, 18))
    canvas.page.mouse.click(*at(50, 30))
    canvas.page.mouse.click(*at(60, 30))
    canvas.shot("eyes")
    assert eyes() == [pytest.approx([22, 18, 50, 30], abs=0.3), pytest.approx([32, 17, 60, 30], abs=0.3)]
    assert canvas.page.locator(".flowcore-eyes circle").count() == 4
    canvas.page.mouse.click(*at(60, 30))  # an eye's face goes
    assert eyes() == [pytest.approx([22, 18], abs=0.3), pytest.approx([32, 17], abs=0.3)]
    canvas.page.mouse.click(*at(50, 30))
    canvas.page.mouse.click(*at(60, 30))
    canvas.open(canvas.saved())
    canvas.page.wait_for_selector(".flowcore-eyes circle", state="attached")
    assert eyes()[0] == pytest.approx([22, 18, 50, 30], abs=0.3)
    canvas.move("LoadImage", "image", "photos/1.png")
    canvas.page.wait_for_timeout(200)
    assert eyes() == [[], []]
    canvas.look_at("FlowcoreAlignFace", scale=1.2)
    canvas.page.mouse.click(*at(32, 17))
    canvas.page.mouse.click(*at(42, 17), button="right")
    assert eyes() == [[], []]
