"""What nodes show of their runs: beside the pictures, not on them, and nothing of the previous one during the next."""

from opened_workflows import upscaling
from PIL import Image

BOXES = """() => { const v = document.querySelector('.flowcore-viewer');
    return ['.after img', '.names select', '.names select:last-child', '.head', '.stage'].map(s => {
        const {left, top, right, bottom} = v.querySelector(s).getBoundingClientRect();
        return [left, top, right, bottom].map(Math.round); }) }"""


def test_names_and_runs_stand_above_the_picture(canvas, page):
    canvas.open(upscaling("fixed"))
    for temperature in (0.3 + canvas.vue / 100, 0.7):
        canvas.move("FlowcoreUpscale", "temperature", temperature)
        canvas.move("FlowcoreUpscale", "samples", 1)
        canvas.run()
    canvas.look_at("FlowcoreUpscale")
    page.wait_for_function("() => document.querySelector('.flowcore-viewer .after img').naturalWidth")
    for place in ("on the node", "in full screen"):
        picture, *words, stage = page.evaluate(BOXES)
        assert all(bottom <= stage[1] <= picture[1] for _, _, _, bottom in words), place
        assert all(bottom > top for _, top, _, bottom in words)
        assert page.locator(".flowcore-viewer .head").inner_text().startswith("run 2 of 2")
        canvas.shot(f"names-{place.replace(' ', '-')}")
        page.keyboard.press("f") if "full" in place else page.locator(".flowcore-viewer").press("f")
        page.wait_for_timeout(500)


# When a run begins: what is seen in the text and the gallery of the node, and whether its viewer is empty.
WATCH = """() => app.api.addEventListener('execution_cached', () => {
    const area = document.querySelector('.flowcore-area:has(.flowcore-viewer)');
    const [text, gallery] = ['text', 'gallery'].map(name => area.querySelector(`.flowcore-${name}`).innerText);
    window.begun = [text, gallery, area.querySelector('.flowcore-viewer').matches('.empty')]; }, {once: true})"""


def test_another_photograph_clears_what_the_node_said_of_the_one_before(canvas, page, served):
    Image.new("RGB", (36, 24), (90, 140, 30 + canvas.vue)).save(served.base / "input" / "another.png")
    canvas.open(upscaling("fixed"))
    canvas.move("FlowcoreUpscale", "samples", 2)
    canvas.run()
    buttons = page.locator(".flowcore-gallery button:enabled")
    text = page.locator(".flowcore-area:has(.flowcore-viewer) .flowcore-text")
    assert text.inner_text()
    page.evaluate(WATCH)
    canvas.move("LoadImage", "image", "another.png")
    canvas.run()
    assert page.evaluate("() => window.begun") == ["", "", True]
    assert buttons.count() == 4  # those of both
    assert text.inner_text()

    page.evaluate(WATCH)
    canvas.move("FlowcoreUpscale", "temperature", 0.31)  # of the same photograph: its pictures are compared
    canvas.run()
    said, gallery, empty = page.evaluate("() => window.begun")
    assert (said, empty) == ("", False)
    assert "another.png" in gallery

    page.evaluate(WATCH)
    canvas.run()  # all is known
    said, _, empty = page.evaluate("() => window.begun")
    assert said
    assert not empty
