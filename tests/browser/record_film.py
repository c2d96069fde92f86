"""The moving picture of README: a photograph is dropped and enlarged in four looks, which are compared and one picked.

make browser   (once: it fetches the frontend and the driver)
.venv/bin/python tests/browser/record_film.py

Every movement is done in small steps with a screenshot after each, and of a run a few screenshots are kept: the film
shows what happens, and not how long a machine takes.
"""

import base64
import io
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "host"), str(HERE.parents[1] / "workflows" / "api")]

import comfyui  # noqa: E402
from canvas import Canvas, find_browser  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Browser, sync_playwright  # noqa: E402
from stories import canvas_file  # noqa: E402
from talk import Host  # noqa: E402

FILM = comfyui.ROOT / "docs" / "canvas.webp"
PHOTO = comfyui.ROOT / "workflows" / "photo.png"
WIDE, HIGH = 1240, 800
SHOWN = 930  # pixels of width in the film
RATE = 12  # frames a second
RUN_FRAMES = 14  # that are kept of a run
RUN_SECONDS = 600  # that a run may take

# Node to where it stands: left, top, width, height; and the scale and the corner at which all are seen.
PLACES = {
    "FlowcoreExample": (0, 0, 300, 340),
    "FlowcoreLoadModel": (0, 430, 300, 120),
    "FlowcoreUpscale": (330, 0, 640, 750),
    "SaveImage": (1000, 0, 200, 60),
}
SCALE, CORNER = 0.85, (78, 130)
EYE = (0.56, 0.37)  # in the photograph, from its left and its top
CLOSE = 2  # turns of the wheel for a close look
OVER = [f"[data-testid=queue-{name}]" for name in ("notification-banner", "progress-overlay")]  # what covers nodes
CALM = {"Comfy.Graph.CanvasInfo": False, "Comfy.Graph.CanvasMenu": False, "Comfy.EnableTooltips": False}
CALM |= {"Comfy.Queue.ShowRunProgressBar": False}

# A screenshot has no pointer.
POINTER = """() => {
    const pointer = Object.assign(document.createElement('div'), {id: 'film-pointer'});
    pointer.style.cssText = 'position:fixed;left:0;top:0;z-index:99999;pointer-events:none;';
    pointer.innerHTML = `<img style="display:none;position:absolute;left:10px;top:14px;width:120px;opacity:.85;
        border-radius:4px;box-shadow:0 4px 14px #000"><svg width="22" height="30" viewBox="0 0 22 30"><path
        d="M2 1 L2 23 L7.5 18 L11.5 27 L15.5 25.2 L11.5 16.5 L19 16.5 Z" fill="#fff" stroke="#000" stroke-width="1.5"
        stroke-linejoin="round"/></svg>`;
    document.body.append(pointer);
    const follow = e => { pointer.style.transform = `translate(${e.clientX - 2}px, ${e.clientY - 1}px)`; };
    for (const kind of ['mousemove', 'pointermove']) addEventListener(kind, follow, true); }"""


def scene() -> dict[str, Any]:
    """Make the workflow: the story of enlarging, with its nodes close together."""
    workflow = json.loads(canvas_file("upscale").read_text())
    workflow["nodes"] = [node for node in workflow["nodes"] if node["type"] != "MarkdownNote"]
    for node in workflow["nodes"]:
        if node["type"] == "FlowcoreExample":
            node["widgets_values"][0] = "second photograph"
        left, top, width, height = PLACES[node["type"]]
        node |= {"pos": [left, top], "size": [width, height]}
        if node["type"] == "SaveImage":
            node["flags"] = {"collapsed": True}
    return workflow


class Film:
    """A page that is filmed: whatever the pointer does is done in steps, a frame each."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas, self.page = canvas, canvas.page
        self.frames: list[Image.Image] = []
        self.at = (WIDE - 300.0, HIGH - 60.0)
        self.page.evaluate(POINTER)

    def shoot(self, count: int = 1) -> None:
        """Take a frame, and hold it."""
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        self.frames += [picture.resize((SHOWN, round(SHOWN * HIGH / WIDE)), Image.Resampling.LANCZOS)] * count

    def move(self, x: float, y: float, steps: int) -> None:
        """Move the pointer, gently at both ends."""
        left, top = self.at
        for step in range(1, steps + 1):
            share = step / steps
            share = share * share * (3 - 2 * share)
            self.at = (left + share * (x - left), top + share * (y - top))
            self.page.mouse.move(*self.at)
            self.shoot()

    def click(self, x: float, y: float, steps: int = 6) -> None:
        self.move(x, y, steps)
        self.page.mouse.click(x, y)

    def drag(self, *places: tuple[float, float], steps: int) -> None:
        """Move to the first place, and from place to place with the button down."""
        self.move(*places[0], 5)
        self.page.mouse.down()
        for place in places[1:]:
            self.move(*place, steps)
        self.page.mouse.up()
        self.shoot()

    def run(self) -> None:
        """Press Run, and keep a few frames of what follows."""
        button = self.page.get_by_role("button", name="Run", exact=True).first.bounding_box()
        assert button is not None
        self.canvas.watch_end()
        self.click(button["x"] + button["width"] / 2, button["y"] + button["height"] / 2)
        before, self.frames = self.frames, []
        start = time.monotonic()
        while not self.page.evaluate("() => window.ended"):
            assert time.monotonic() < start + RUN_SECONDS, "the run does not end"
            self.shoot()
            self.page.wait_for_timeout(150)
        assert self.page.evaluate("() => window.ended") == "execution_success"
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('.flowcore-gallery img')].filter(i => i.naturalWidth).length === 4"
        )
        self.page.wait_for_timeout(800)
        self.shoot()
        # One for every change of the picture, as far as there are not more of them than are kept.
        every = [next(same) for _, same in itertools.groupby(self.frames, key=Image.Image.tobytes)]
        count = min(RUN_FRAMES, len(every))
        kept = [every[round(k * (len(every) - 1) / max(1, count - 1))] for k in range(count)]
        self.frames = [*before, *kept]

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Where an element lies on the page: left, top, width, height."""
        box = self.page.locator(selector).first.bounding_box()
        assert box is not None, selector
        return box["x"], box["y"], box["width"], box["height"]


def node_selector(canvas: Canvas, kind: str) -> str:
    return f"[data-node-id='{canvas.only(kind)['id']}']"


def record(server: comfyui.Server, browser: Browser, folder: Path) -> list[Image.Image]:
    Host(server).post("/settings", CALM)
    canvas = Canvas(server, browser, folder, vue=True, language="en")
    canvas.page.set_viewport_size({"width": WIDE, "height": HIGH})
    canvas.open(scene())
    canvas.page.evaluate(
        """([scale, [left, top]]) => { const {ds} = app.canvas; ds.scale = scale;
            ds.offset = [left / scale, top / scale]; app.canvas.setDirty(true, true); }""",
        [SCALE, CORNER],
    )
    canvas.page.wait_for_timeout(1500)
    film = Film(canvas)
    page = canvas.page
    page.add_style_tag(content=f"{', '.join(OVER)} {{ display: none }}")
    data = base64.b64encode(PHOTO.read_bytes()).decode()

    # A photograph is dropped on the sample of the story.
    page.evaluate(
        "data => { const i = document.querySelector('#film-pointer img');"
        " i.src = `data:image/png;base64,${data}`; i.style.display = 'block' }",
        data,
    )
    page.mouse.move(*film.at)
    film.shoot(3)
    x, y, width, height = film.box(node_selector(canvas, "FlowcoreExample"))
    film.move(x + 0.4 * width, y + 0.4 * height, 10)
    canvas.drop(PHOTO.read_bytes(), PHOTO.name, (x + width / 2, y + 45))
    page.evaluate("() => { document.querySelector('#film-pointer img').style.display = 'none' }")
    page.wait_for_function("() => app.graph.nodes.some(n => /photo/.test(n.widgets?.[0].value))")
    page.wait_for_timeout(1500)
    film.shoot(5)

    film.run()
    film.shoot(6)

    # They are compared closely, in full screen.
    x, y, width, height = film.box(".flowcore-viewer .after img")
    film.click(x + EYE[0] * width, y + EYE[1] * height, 8)
    page.wait_for_timeout(500)
    film.shoot(4)
    x, y, width, height = film.box(".flowcore-viewer .after img")
    film.move(x + EYE[0] * width, y + EYE[1] * height, 6)
    for _ in range(CLOSE):
        page.mouse.wheel(0, -180)
        film.shoot()
    film.shoot(4)
    film.drag(*[(share * WIDE, HIGH / 2) for share in (0.5, 0.1, 0.1)], steps=8)
    film.shoot(8)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(500)
        film.shoot(14)
    page.keyboard.press("f")
    page.wait_for_timeout(500)
    film.shoot(3)

    # One is picked.
    x, y, width, height = film.box(".flowcore-gallery button >> nth=2")
    film.click(x + width / 2, y + height / 2, 8)
    page.wait_for_timeout(500)
    film.shoot(12)
    assert canvas.complaints == []
    return film.frames


def save(frames: list[Image.Image]) -> None:
    """Write the film, and say how large it is."""
    first, *rest = frames
    options = {"duration": 1000 // RATE, "loop": 0, "quality": 90, "method": 6, "minimize_size": True}
    first.save(FILM, save_all=True, append_images=rest, **options)
    size = FILM.stat().st_size / 2**20
    sys.stdout.write(f"docs/{FILM.name}: {len(frames)} frames, {len(frames) / RATE:.1f} s, {size:.2f} MiB\n")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        comfyui.running(comfyui.tree(), Path(folder), frontend=True, name="flowcore") as server,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        frames = record(server, browser, Path(folder))
        browser.close()
    save(frames)


if __name__ == "__main__":
    main()
