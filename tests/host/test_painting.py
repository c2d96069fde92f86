"""The nodes under the brush over the API: what their text paints, as hints, as a picture and as a mask."""

from __future__ import annotations

import json

from talk import graph, loader, picture, pixels, refusal, report
from test_color import CLOSE, COLOR, GRAY, SIDES, apart, known

from flowcore.images.strokes import paint_colors, paint_mask, parse_strokes
from flowcore.tasks.hints import combine_hints, hints_from_points, hints_from_strokes, parse_points

SIZE = (SIDES["height"], SIDES["width"])
COLORS = [
    {"color": "#c04020", "size": 0.2, "points": [[0.2, 0.3], [0.5, 0.35]]},
    {"color": "#2040c0", "size": 0.1, "points": [[0.8, 0.25]]},
    {"erase": True, "size": 0.05, "points": [[0.2, 0.3]]},
]
AMOUNTS = [{"amount": 0.75, "size": 0.3, "points": [[0.5, 0.5]]}, {"erase": True, "size": 0.1, "points": [[0.5, 0.5]]}]

COLORED = {"image": "image.0", "model": "model.0", "temperature": 1.0, "seed": 5, "detail": 0.3, "hints": "paint.0"}
COLORING = {"model": loader(COLOR), "color": ("FlowcoreColorize", COLORED), "report": report("color.0")}


def painting(strokes=COLORS, **values):
    asked = {"image": "image.0", "painting": json.dumps(strokes)} | values
    return graph(image=GRAY, paint=("FlowcorePaintHints", asked))


def test_painted_colors_are_the_hints_of_a_coloring(host, flows):
    workflow = graph(painting(lock=True), **COLORING)
    outputs = host.run(workflow)["outputs"]
    coverage, rgb = paint_colors(parse_strokes(json.dumps(COLORS)), SIZE)
    assert apart(pixels(outputs["report"]), known(hints=hints_from_strokes(rgb, coverage, lock=True))) < CLOSE
    assert outputs["paint"]["text"] == [f"strokes cover {100 * float(coverage.mean()):.3g} % of the picture, locked"]


def test_the_painted_picture_shows_the_strokes(host):
    shown, gray = (
        pixels(host.run(graph(paint, report=report("paint.1")))["outputs"]["report"])
        for paint in (painting(), painting([]))
    )
    coverage, rgb = paint_colors(parse_strokes(json.dumps(COLORS)), SIZE)
    assert apart(shown, gray + coverage * (rgb - gray)) < 1e-5
    assert apart(shown, gray) > 0.2


def test_painted_hints_lie_over_others_and_nothing_painted_leaves_them(host, flows):
    point = "24, 16, #20c040"
    others = hints_from_points(parse_points(point), SIZE, radius=30)
    coverage, rgb = paint_colors(parse_strokes(json.dumps(COLORS)), SIZE)
    both = combine_hints(hints_from_strokes(rgb, coverage), others)
    for strokes, hints in ((COLORS, both), ([], others)):
        workflow = graph(
            painting(strokes),
            below=("FlowcoreColorHints", {"image": "image.0", "points": point, "radius": 30}),
            **COLORING,
        )
        workflow["paint"]["inputs"]["hints"] = ["below", 0]
        outputs = host.run(workflow)["outputs"]
        assert apart(pixels(outputs["report"]), known(hints=hints)) < CLOSE
    assert "Nothing is painted yet" in outputs["paint"]["text"][0]


def test_painted_temperature_is_a_mask(host):
    workflow = graph(
        image=picture(height=9, width=14),
        paint=("FlowcorePaintTemperature", {"image": "image.0", "painting": json.dumps(AMOUNTS), "ground": 0.25}),
        shown=("MaskToImage", {"mask": "paint.0"}),
        report=report("shown.0"),
    )
    outputs = host.run(workflow)["outputs"]
    expected = paint_mask(parse_strokes(json.dumps(AMOUNTS)), (9, 14), ground=0.25)
    assert apart(pixels(outputs["report"])[:, 0], expected) < CLOSE
    assert 0.25 <= float(expected.min()) < float(expected.max()) <= 0.75
    assert outputs["paint"]["text"][0].startswith("mask from 0.25 to")


def test_the_canvas_gets_the_picture_to_paint_on_and_scripts_do_not(host):
    workflow = graph(painting(), show=("PreviewImage", {"images": "paint.1"}))
    assert "flowcore_canvas" not in host.run(workflow)["outputs"]["paint"]
    host.forget()
    outputs = host.wait(host.queue_from_canvas(workflow))["outputs"]
    (saved,) = outputs["paint"]["flowcore_canvas"]
    assert saved["type"] == "temp"


def test_text_that_is_no_painting_is_refused(host):
    for text, words in (("red", "JSON list"), ('[{"amount": 1, "size": 0.1, "points": [[0, 0]]}]', "amount")):
        workflow = painting()
        workflow["paint"]["inputs"]["painting"] = text
        refusal(host, graph(workflow, show=("PreviewImage", {"images": "paint.1"})), words)
