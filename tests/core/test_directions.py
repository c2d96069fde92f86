"""Directions among latents: styles by name."""

import math

import pytest
import torch
from builders import build_tiny

from flowcore.errors import FlowError, ShapeError
from flowcore.tasks.sample import MESSY_RATE, apply_style, encode

from .generators import close, condition, images, make


@pytest.fixture(scope="module")
def flows():
    return {kind: make(kind) for kind in ("glow", "digits", "any size", "srflow")}


def test_styles_are_added_by_name(flows):
    digits = flows["digits"]
    latents, styles = encode(digits, images(2, 1), condition(digits, 2)), digits.styles
    moved = apply_style(digits, latents, {"bold": 1.5, "wide": -1})
    for x, z, d, e in zip(moved, latents, styles["bold"], styles["wide"], strict=True):
        close(x, z + 1.5 * d - e)
    assert all(torch.equal(x, y) for x, y in zip(apply_style(digits, latents, {}), latents, strict=True))


def test_a_style_ends_where_the_model_has_seen_nothing():
    flow = build_tiny("class_conditional", styles=("bold",))
    way = torch.nn.functional.normalize(torch.randn(96), dim=0)
    flow.get_buffer("style_directions").copy_(2 * way[None])
    latents = [torch.randn(3, 96)]
    latents[0] += (torch.tensor([0.0, 4, -7]) - latents[0] @ way)[:, None] * way
    for strength, ends in ((2.0, [4.0, 5, -3]), (4.0, [5.0, 5, 1]), (-1.0, [-2.0, 2, -7]), ([-3.0], [-5.0, -2, -7])):
        (moved,) = apply_style(flow, [latents[0][..., None, None]], {"bold": strength})
        close(moved[..., 0, 0] @ way, torch.tensor(ends))
        difference = moved[..., 0, 0] - latents[0]
        close(difference, (difference @ way)[:, None] * way)  # along the style only


def test_messy_is_a_temperature_as_well():
    flow = build_tiny("class_conditional", styles=("messy", "bold"))
    flow.get_buffer("style_directions").copy_(0.1 * torch.randn(2, 96))
    latents = [torch.randn(2, 96, 1, 1)]
    messy, bold = (flow.styles[name][0] for name in ("messy", "bold"))
    assert MESSY_RATE > 0
    for strength in (1.0, -2):
        expected = math.exp(MESSY_RATE * strength) * latents[0] + strength * messy + 0.5 * bold
        close(apply_style(flow, latents, {"bold": 0.5, "messy": strength})[0], expected)
        close(apply_style(flow, latents, {"bold": [0.5], "messy": [strength]})[0], expected)


def test_unknown_styles_are_refused_naming_the_known_ones(flows):
    glow, digits = flows["glow"], flows["digits"]
    for flow, styles, error, words in (
        (digits, {"bold": 1, "italic": 1}, FlowError, "no style 'italic'; it has bold, wide"),
        (glow, {"bold": 1}, FlowError, "none at all"),
        (digits, {"bold": 1}, ShapeError, "fit together"),
    ):
        with pytest.raises(error, match=words):
            apply_style(flow, encode(glow, images()), styles)
