"""The pictures of the canvas in `docs/`: Flow Upscale after a run, a picture picked, in English and in Korean.

make browser   (once: it fetches the frontend and the driver)
python tests/browser/record_pictures.py
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "host"), str(HERE.parents[1] / "workflows" / "api")]

import comfyui  # noqa: E402
from canvas import Canvas, find_browser  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402
from stories import canvas_file  # noqa: E402

STORY = canvas_file("upscale")
MARGIN, SHARP = 24, 1.5
PICTURES = {"en": "canvas.jpg", "ko": "canvas-ko.jpg"}


def main() -> None:
    """Take both pictures."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "input").mkdir()
        shutil.copy(comfyui.ROOT / "workflows" / "photo.png", base / "input" / "example.png")
        with (
            comfyui.running(comfyui.tree(), base, frontend=True, name="flowcore") as server,
            sync_playwright() as driver,
        ):
            browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
            for language, name in PICTURES.items():
                canvas = Canvas(server, browser, base, vue=True, language=language, sharp=SHARP)
                canvas.open(json.loads(STORY.read_text()))
                canvas.run()
                canvas.page.locator(".flowcore-gallery button").nth(2).click()
                canvas.page.mouse.click(300, 900)  # nothing is selected
                canvas.page.wait_for_timeout(8000)  # until the message about the run has gone
                canvas.fit()
                left, top, right, bottom = canvas.bounds()
                frame = (left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN)
                picture = Image.open(canvas.shot("canvas")).convert("RGB").crop([round(SHARP * v) for v in frame])
                picture.save(comfyui.ROOT / "docs" / name, quality=85)
                sys.stdout.write(f"docs/{name}\n")
            browser.close()


if __name__ == "__main__":
    main()
