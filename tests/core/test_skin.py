"""Faces in a photograph that is colorized get a skin color, another one for every seed; other pictures stay."""

import itertools
import math
from pathlib import Path

import pytest
import torch

import flowcore
from flowcore import Hints, colorize, encode_colors
from flowcore.images import color
from flowcore.images.files import read
from flowcore.images.metrics import SKIN_HUES, SKIN_MIN_CHROMA
from flowcore.tasks import skin
from flowcore.tasks.hints import palette_from
from flowcore.tasks.skin import Oval, find_ovals, hint_skin, skin_chroma

PICTURES = Path(__file__).parents[2] / "workflows" / "pictures"
FACE = Oval(0.5, 0.5, 0.3, 0.2)


def group():
    """The luma of a photograph of many small faces."""
    path = PICTURES / "group.png"
    return color.luma(read(path.read_bytes(), path.name).pixels)


def even(luma=0.6):
    return torch.full((1, 1, 64, 64), luma)


def test_skin_of_every_brightness_and_draw_is_human_and_neither_gray_nor_mauve():
    draws = (skin.LEAST, 0.0, skin.MOST)
    for luma in torch.linspace(0, 1, 21).tolist():
        chroma = [skin_chroma(luma, length, hue) for length, hue in ((0.0, 0.0), *itertools.product(draws, draws))]
        mean, *hues = (math.degrees(math.atan2(red, blue)) for blue, red in chroma)
        assert min(math.hypot(*one) for one in chroma) > 3 * SKIN_MIN_CHROMA
        assert SKIN_HUES[0] < mean <= min(hues) + 1e-9  # below it is mauve
        assert max(hues) < SKIN_HUES[1]


def test_every_seed_draws_another_skin_and_faces_of_a_picture_are_alike():
    pair = [FACE._replace(x=0.25), FACE._replace(x=0.75)]
    drawn = torch.stack([hint_skin(pair, even(), (16, 16), seed)[1][0, :, 8, (4, 12)] for seed in range(300)])
    left, right = drawn.unbind(-1)
    assert len(left.round(decimals=4).unique(dim=0)) > 200
    assert (left - right).norm(dim=1).mean() < 0.5 * (left - right.roll(1, 0)).norm(dim=1).mean()
    assert torch.equal(hint_skin(pair, even(), (16, 16), 7)[1], hint_skin(pair, even(), (16, 16), 7)[1])


def test_hints_cover_the_face_but_neither_hair_nor_what_is_around():
    y = even()
    y[..., :24, :] = 0.1  # hair
    coverage = hint_skin([FACE], y, (16, 16), 3)[0][0, 0]
    assert coverage[8, 8] == pytest.approx(skin.WEIGHT)
    assert not coverage[:6].any()
    assert not coverage[:, :3].any()
    assert not coverage[14:].any()


def test_faces_of_a_group_are_colored_and_the_switch_leaves_them():
    flow, y = flowcore.load("color-photos"), group()
    ovals = find_ovals(y, lambda: None)
    assert len(ovals) >= 3
    on, off = (color.split(colorize(flow, y, seed=5, skin=given))[1] for given in (True, False))
    for oval in ovals:
        place = slice(None), slice(None), int(oval.y * y.shape[2]), int(oval.x * y.shape[3])
        assert on[place].norm() > SKIN_MIN_CHROMA
    assert not torch.equal(on, off)


def test_pictures_without_faces_and_pictures_that_get_given_colors_are_not_changed(monkeypatch):
    flow, y = flowcore.load("color-photos"), group()[..., :64, :64]
    monkeypatch.setattr(skin, "find_faces", lambda *_, **__: [[]])
    skin._find.cache_clear()
    assert torch.equal(colorize(flow, y), colorize(flow, y, skin=False))
    monkeypatch.setattr(skin, "find_faces", lambda *_, **__: pytest.fail("faces are looked for"))
    skin._find.cache_clear()
    colorize(flow, y, skin=False)
    colorize(flow, y, hints=Hints(palette=palette_from(["#a06040"])))
    colorize(flow, y, latents=encode_colors(flow, y.expand(-1, 3, -1, -1)))
