"""Brush strokes: their text, and exactly which pixels they paint."""

import json
import math

import pytest
import torch

from flowcore import FlowError, ImageError
from flowcore.images.strokes import MAX_POINTS, Stroke, paint_colors, paint_mask, parse_strokes

RED = (1.0, 0.0, 0.0)


def stroke(*points, size=0.2, **paint):
    return Stroke(points=points, size=size, **(paint or {"color": RED}))


def expected_coverage(way, radius, height, width):
    """Pixel by pixel: one minus what a soft edge of one pixel around the way leaves free."""
    result = torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            nearest = math.inf
            for (x, y), (u, v) in zip(way, way[1:] or way, strict=False):
                right, down, along = column + 0.5 - x, row + 0.5 - y, 0.0
                if (x, y) != (u, v):
                    along = (right * (u - x) + down * (v - y)) / ((u - x) ** 2 + (v - y) ** 2)
                along = min(1.0, max(0.0, along))
                nearest = min(nearest, math.hypot(right - along * (u - x), down - along * (v - y)))
            result[row, column] = min(1.0, max(0.0, radius + 0.5 - nearest))
    return result


@pytest.mark.parametrize(
    "shares", [[(0.5, 0.5)], [(0.1, 0.2), (0.9, 0.6)], [(0.2, 0.9), (0.5, 0.1), (0.5, 0.1), (1.2, 1)]]
)
def test_a_stroke_covers_what_lies_within_its_radius(shares):
    height, width, size = 13, 22, 0.3
    coverage, rgb = paint_colors([stroke(*shares, size=size)], (height, width))
    way = [(x * width, y * height) for x, y in shares]
    expected = expected_coverage(way, size * width / 2, height, width)
    assert (coverage[0, 0] - expected).abs().max() < 1e-5
    assert 0 < float(coverage.mean()) < 1
    assert torch.allclose(rgb[0, 0], (coverage[0, 0] > 0).float(), atol=1e-4)
    assert rgb[0, 1:].abs().max() == 0
    mask = paint_mask([stroke(*shares, size=size, amount=1.0)], (height, width))
    assert torch.equal(mask, coverage[0])


def test_strokes_lie_over_each_other_are_erased_and_may_be_outside_or_thin():
    whole, left = stroke((0.5, 0.5), size=2), stroke((0.0, 0.5), size=1, color=(0, 0, 1.0))
    coverage, rgb = paint_colors([whole, left], (8, 16))
    assert coverage.min() == 1
    assert rgb[0, :, 4, 1].tolist() == [0, 0, 1]
    assert rgb[0, :, 4, 14].tolist() == [1, 0, 0]
    coverage, rgb = paint_colors([whole, left, stroke((0, 0.5), size=0.5, color=None)], (8, 16))
    assert coverage[0, 0, 4, 0] == 0
    assert coverage[0, 0, 4, 8] == 1
    assert rgb[0, :, 4, 0].tolist() == [0, 0, 0]
    half = paint_mask(
        [stroke((0.5, 0.5), size=2, amount=0.5), stroke((0, 0.5), size=0.5, amount=None, color=None)], (8, 16), ground=1
    )
    assert half[0, 4, 0] == 1  # the ground again
    assert half[0, 4, 15] == 0.5
    outside = paint_colors([stroke((2.0, 2.0), (3, 3))], (9, 12))[0]
    assert outside.abs().max() == 0
    thin = paint_colors([stroke((0.5, 0.5), size=1e-6)], (9, 11))[0]
    assert thin.sum() == thin[0, 0, 4, 5] == 1
    assert paint_colors([], (4, 5))[0].sum() == 0


def test_text_is_read():
    read = parse_strokes(
        '[{"color": "#ff0000", "size": 0.05, "points": [[0.25, 0.5], [1, 0]]}, {"amount": 0.5, "size": 1, "points": '
        '[[0, 0]]}, {"erase": true, "size": 0.1, "points": [[0.5, 0.5]], "later": "ignored"}]'
    )
    assert read == [
        Stroke(points=((0.25, 0.5), (1.0, 0.0)), size=0.05, color=RED),
        Stroke(points=((0.0, 0.0),), size=1.0, amount=0.5),
        Stroke(points=((0.5, 0.5),), size=0.1),
    ]
    assert parse_strokes(" \n") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("red", "JSON list"),
        ("{}", "JSON list"),
        ("[" * 100_000, "JSON list"),
        ("[3]", "Stroke 1 is none"),
        ('[{"color": "#fff", "size": 0.1}]', "Stroke 1 is none"),
        ('[{"color": "#fff", "size": 0.1, "points": []}]', "needs points"),
        ('[{"color": "#fff", "size": 0.1, "points": [[0, NaN]]}]', "needs points"),
        ('[{"color": "#fff", "size": 0, "points": [[0, 0]]}]', "size of stroke 1"),
        ('[{"size": 0.1, "points": [[0, 0]]}]', "one of the three"),
        ('[{"color": "#fff", "amount": 1, "size": 0.1, "points": [[0, 0]]}]', "one of the three"),
        ('[{"amount": 2, "size": 0.1, "points": [[0, 0]]}]', "one of the three"),
    ],
)
def test_text_that_is_no_strokes_is_refused_with_the_stroke(text, words):
    with pytest.raises(FlowError, match=words):
        parse_strokes(text)


def test_what_does_not_fit_the_use_is_refused_and_painting_can_be_stopped():
    with pytest.raises(ImageError, match="#e0b080"):
        parse_strokes('[{"color": "red", "size": 0.1, "points": [[0, 0]]}]')
    with pytest.raises(FlowError, match=str(MAX_POINTS)):
        parse_strokes(json.dumps([{"erase": True, "size": 0.1, "points": [[0, 0]] * (MAX_POINTS + 1)}]))
    with pytest.raises(FlowError, match="Stroke 1 has an amount"):
        paint_colors([stroke((0, 0), amount=1.0)], (4, 4))
    with pytest.raises(FlowError, match="Stroke 2 has a color"):
        paint_mask([stroke((0, 0), amount=1.0), stroke((0, 0))], (4, 4))

    class Stopped(Exception):
        pass

    def cancelled():
        raise Stopped

    with pytest.raises(Stopped):
        paint_mask([stroke((0, 0), (1, 1), amount=1.0)], (4, 4), cancelled=cancelled)
