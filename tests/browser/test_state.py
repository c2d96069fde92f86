"""What is written on the canvas survives a reload, another tab, undo and copies; and results come back with it."""

import pytest
from canvas import PAD, SAVED, Brush, place
from opened_workflows import numbered, upscaling


@pytest.fixture
def drafts(page):
    """The frontend keeps drafts, as it does for people."""
    keep = "keeps => app.extensionManager.setting.set('Comfy.Workflow.Persist', keeps)"
    page.evaluate(keep, True)
    yield
    page.evaluate(keep, False)


WRITTEN = {
    "FlowcorePaintHints": ["painting"],
    "FlowcoreAlignFace": ["left_eye"],
    "FlowcoreLatentExplorer": ["x", "y"],
    "LoadImage": ["image"],
}


def written(canvas):
    return {kind: canvas.value(kind, *names) for kind, names in WRITTEN.items()}


COPY = """kind => { const find = () => app.graph.nodes.filter(n => n.type === kind), [before] = find();
    app.canvas.selectItems([before]); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard();
    const copy = find().find(n => n !== before), values = copy.widgets.map(w => w.value);
    app.graph.remove(copy); return [before.widgets.map(w => w.value), values]; }"""


def test_strokes_eyes_and_points_survive_undo_copies_and_a_reload(canvas, page, drafts):
    nodes = {"paint": ("FlowcorePaintHints", {"image": "photo.0", "painting": ""})}
    nodes |= {"align": ("FlowcoreAlignFace", {"image": "photo.0", "size": 0, "left_eye": "", "right_eye": ""})}
    nodes |= {"explore": ("FlowcoreLatentExplorer", {"x": 0.5, "y": 0.5})}
    canvas.open(numbered(photo=("LoadImage", {"image": "example.png"}), **nodes))
    canvas.spread()
    page.evaluate("() => { app.canvas.emitBeforeChange(); app.canvas.emitAfterChange(); }")  # of where the nodes lie
    states, steps = [written(canvas)], canvas.undo_steps()

    def gesture(act):
        act()
        assert canvas.undo_steps() == steps + len(states)  # one, whatever has been written
        states.append(written(canvas))
        assert states[-1] != states[-2]

    gesture(lambda: Brush(canvas, "FlowcorePaintHints").drag((0.2, 0.5), (0.8, 0.7)))
    canvas.look_at("FlowcoreAlignFace", scale=1.2)
    eyes = page.locator(".flowcore-eyes svg")
    gesture(lambda: canvas.drag(place(eyes, 20, 16), place(eyes, 24, 18), place(eyes, 30, 20)))
    canvas.look_at("FlowcoreLatentExplorer", scale=1.2)
    pad = page.locator(PAD).bounding_box()
    at = [(pad["x"] + share * pad["width"], pad["y"] + 0.3 * pad["height"]) for share in (0.3, 0.5, 0.8)]
    gesture(lambda: canvas.drag(*at))
    gesture(lambda: canvas.move("LoadImage", "image", "photos/1.png"))  # what was painted and marked goes with it
    for state in states[-2::-1]:
        canvas.command("Comfy.Undo")
        assert written(canvas) == state
    for state in states[1:-1]:
        canvas.command("Comfy.Redo")
        assert written(canvas) == state
    for kind in WRITTEN:
        before, copied = page.evaluate(COPY, kind)
        assert copied == before
    canvas.reload("FlowcorePaintHints")
    assert written(canvas) == states[-2]
    brush, steps = Brush(canvas, "FlowcorePaintHints"), canvas.undo_steps()
    brush.drag((0.2, 0.2), (0.8, 0.2))
    assert canvas.undo_steps() == steps + 1
    canvas.command("Comfy.Undo")
    assert len(brush.strokes()) == 1
    for _ in range(2):  # on a board that is that of the node, now that nodes have been made anew
        brush.drag((0.2, 0.8), (0.8, 0.8))
    assert len(brush.strokes()) == 3
    canvas.shot("reloaded")


BUTTONS = "count => document.querySelectorAll('.flowcore-gallery button:enabled').length === count"
SHOWN = """() => [...document.querySelectorAll('.flowcore-gallery button')]
    .map(button => [button.dataset.seed, button.getAttribute('aria-pressed') === 'true'])"""


def test_a_pick_and_the_results_of_all_runs_come_back(canvas, page, drafts, served):
    canvas.open(upscaling())
    for count in (4, 8):  # the second with another seed
        canvas.run()
        page.wait_for_function(BUTTONS, arg=count)
    buttons, names = page.locator(".flowcore-gallery button"), ("pick", "seed", "control_after_generate")
    seeds = [button.get_attribute("data-seed") for button in buttons.all()]
    unpicked, steps = canvas.value("FlowcoreUpscale", *names), canvas.undo_steps()
    buttons.nth(2).click()
    assert canvas.undo_steps() == steps + 1

    def comes_back(values, count=8):
        shown = [[seed, values[0] == k + 1] for k, seed in enumerate(seeds[:count])]
        page.wait_for_function(f"shown => JSON.stringify(({SHOWN})()) === JSON.stringify(shown)", arg=shown)
        assert canvas.value("FlowcoreUpscale", *names) == values

    picked = [3, 40, "fixed"]
    comes_back(picked)
    canvas.command("Comfy.Undo")
    comes_back(unpicked)
    canvas.command("Comfy.Redo")
    comes_back(picked)
    canvas.open(upscaling())  # in another tab
    page.wait_for_function(BUTTONS, arg=0)
    canvas.command("Workspace.PreviousOpenedWorkflow")
    comes_back(picked)
    canvas.reload("FlowcoreUpscale")
    comes_back(picked)
    canvas.shot("reloaded-gallery")
    # It is saved in full; a picture whose file is gone is gone.
    page.locator(".flowcore-viewer").hover()
    page.locator(".flowcore-viewer button.save").click()
    page.wait_for_function(SAVED)
    last = buttons.nth(7).locator("img").get_attribute("src").split("filename=")[1].split("&")[0]
    (served.base / "temp" / "flowcore" / last).unlink()
    canvas.reload("FlowcoreUpscale")
    comes_back(picked, 7)


SAYS = "() => document.querySelector('.flowcore-gallery ~ .flowcore-text').textContent"


def test_a_save_that_was_refused_listens_no_longer(classic):
    page = classic.page
    classic.open(upscaling("fixed"))
    classic.run()
    page.wait_for_function(BUTTONS, arg=4)
    page.route("**/prompt", lambda route: route.fulfill(status=400, body="{}"))
    before = page.evaluate(SAYS)
    page.locator(".flowcore-viewer").hover()
    page.locator(".flowcore-viewer button.save").click()
    page.wait_for_function(f"before => ({SAYS})() !== before", arg=before)
    page.unroute("**/prompt")
    refused = page.evaluate(SAYS)
    other = {"node": "flowcore_save", "output": {"images": [{"subfolder": "", "filename": "other.png"}]}}
    page.evaluate("detail => app.api.dispatchCustomEvent('executed', detail)", other)
    page.wait_for_timeout(200)
    assert page.evaluate(SAYS) == refused
