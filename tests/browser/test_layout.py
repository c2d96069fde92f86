"""Every story after its run, in both renderers: nothing overlaps, all of it is seen, and pictures are large."""

import pytest
from opened_workflows import story
from saved_workflows import STORIES

KEPT = {"faces", "morph-faces", "verify"}  # whose own pictures are small, or belong together
VIEWERS = "() => [...document.querySelectorAll('.flowcore-viewer')].map(viewer => viewer.offsetWidth)"


@pytest.mark.slow
def test_no_story_overlaps_after_its_run_and_each_fits_at_a_readable_scale(canvas):
    wrong = []
    for name in sorted(STORIES):
        workflow = story(name)
        for node in workflow["nodes"]:
            if node["type"] == "FlowcoreExample" and name not in KEPT:
                node["widgets_values"][0] = "example.png"
        canvas.open(workflow)
        if name != "train":
            canvas.run()
            canvas.page.wait_for_timeout(500)
            canvas.fit()
        scale = canvas.page.evaluate("() => app.canvas.ds.scale")
        narrow = [width for width in canvas.page.evaluate(VIEWERS) if width < 320]
        if canvas.overlapping() or scale < 0.6 or narrow:
            wrong.append((name, canvas.overlapping(), scale, narrow))
        canvas.shot(f"ran-{name}")
    assert wrong == []
