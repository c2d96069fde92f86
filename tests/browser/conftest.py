"""The newest ComfyUI with its real frontend, in a real browser; where one is missing, tests are skipped and say why."""

import importlib.util

import comfyui
import pytest
from canvas import Canvas, find_browser
from PIL import Image
from talk import WORKFLOWS, Host

SCREENSHOTS = comfyui.ROOT / "output" / "screenshots"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The newest host with its frontend, and what the stories look for in its input folder, small."""
    if not importlib.util.find_spec("playwright"):
        pytest.skip("the browser's driver is missing: `make browser` installs it")
    if not find_browser():
        pytest.skip("no Chromium: install it (Debian: apt-get install chromium), or set CHROME_PATH")
    if not comfyui.has_frontend():
        pytest.skip("the frontend has not been fetched: `make browser` or `make serve` does it")
    base = tmp_path_factory.mktemp("canvas")
    photo = Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((60, 50, 132, 98))
    for place in ("example.png", "photos/1.png", "my-photos/1.png"):
        (base / "input" / place).parent.mkdir(parents=True, exist_ok=True)
        photo.save(base / "input" / place)
    with comfyui.running(comfyui.tree(), base, frontend=True) as server:
        yield server


@pytest.fixture
def host(served):
    return Host(served)


@pytest.fixture(scope="module")
def chromium(served):
    from playwright.sync_api import sync_playwright

    # Ends with the module: while it runs, there is an event loop, and tests of other rooms start their own.
    with sync_playwright() as driver:
        # The sandbox needs what containers do not give; only our own server on loopback is opened.
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages():
    """The pages that were opened, by their look."""
    return {}


@pytest.fixture
def canvases(served, chromium, pages):
    """A page for each look that was asked for, opened once; none complains in its console, in any test."""

    def opened(*, vue: bool, language: str = "en") -> Canvas:
        if (vue, language) not in pages:
            pages[vue, language] = Canvas(served, chromium, SCREENSHOTS, vue=vue, language=language)
        return pages[vue, language]

    yield opened
    assert [complaint for page in pages.values() for complaint in page.complaints] == []


@pytest.fixture(params=[False, True], ids=["classic", "nodes2"])
def canvas(request, canvases) -> Canvas:
    """The canvas in both renderers."""
    return canvases(vue=request.param)


@pytest.fixture
def page(canvas):
    return canvas.page


@pytest.fixture
def classic(canvases) -> Canvas:
    """The canvas in the classic renderer."""
    return canvases(vue=False)
