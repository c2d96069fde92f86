"""Images of any size, channels and source become what a model takes, or are refused in a sentence."""

import pytest
import torch
from builders import build_tiny, random_image

from flowcore import Cancelled, ConditionError, FlowError, ImageError, ShapeError
from flowcore.engine.model_input import condition_for, prepare_input, source_for_latents
from flowcore.flows.testing import tensors
from flowcore.images.color import luma
from flowcore.images.resize import downsample

FLOWS = {
    "own size": ("glow", {"image_size": (12, 16)}),
    "any size": ("glow", {}),
    "digits": ("class_conditional", {}),
    "upscaler": ("srflow", {"scale": 2, "levels": 2}),
    "colorizer": ("colorizer", {}),
}


def tiny(name):
    architecture, fields = FLOWS[name]
    return build_tiny(architecture, **fields)


def gradient(height, width):
    rows, columns = torch.linspace(0, 1, height), torch.linspace(0, 1, width)
    return (rows[:, None] + columns).div(2).expand(1, 3, -1, -1)


def prepare(name, image, **values):
    notes = []
    return prepare_input(tiny(name), image, notify=notes.append, **values), notes


@pytest.mark.parametrize(
    ("name", "label", "fit", "sides", "expected"),
    [
        ("own size", -1, "resize", (30, 64), (12, 16)),
        ("own size", -1, "crop", (30, 65), (28, 64)),  # its own size is where it is best, not all it takes
        ("any size", -1, "resize", (30, 65), (28, 64)),
        ("digits", 0, "resize", (20, 20), (8, 12)),
        ("digits", 0, "crop", (20, 20), (8, 12)),  # it takes no other
        ("upscaler", -1, "resize", (19, 21), (16, 20)),
    ],
)
def test_images_get_a_size_that_the_model_takes(name, label, fit, sides, expected):
    prepared, _ = prepare(name, gradient(*sides), fit=fit, label=label)
    assert prepared.pixels.shape[-2:] == expected
    assert 0 <= prepared.pixels.min() < prepared.pixels.max() <= 1
    assert abs(float(prepared.pixels.mean()) - 0.5) < 0.03  # the middle of the gradient stays in the middle


def test_channels_are_converted_and_superfluous_values_ignored():
    rgba, rgb = random_image(2, 4, 12, 16), random_image(1, 3, 8, 12)
    assert torch.equal(prepare("own size", rgba)[0].pixels, rgba[:, :3])
    assert torch.equal(prepare("own size", rgba[:, :1])[0].pixels, rgba[:, :1].expand(-1, 3, -1, -1))
    prepared, _ = prepare("digits", rgb, label=2)
    assert torch.allclose(prepared.pixels, luma(rgb))
    assert prepared.labels.tolist() == [2]
    assert prepare("own size", 3 * rgba)[0].pixels.max() == 1
    image = random_image(1, 3, 12, 16)
    _, notes = prepare("own size", image, label=3, source=image)
    assert [note.split(" is ignored")[0] for note in notes] == ["source", "label"]


def test_an_upscaler_gets_a_source_of_its_own_size():
    image = random_image(1, 3, 16, 12)
    prepared, notes = prepare("upscaler", image)
    assert torch.equal(prepared.source, downsample(image, 2).clamp(0, 1))
    assert "shrunk 2 times" in notes[0]
    large, small = random_image(1, 3, 18, 14), random_image(1, 3, 9, 7, seed=1)
    prepared, notes = prepare("upscaler", large, source=small)  # both are cut: 9x7 to 8x6
    assert torch.equal(prepared.pixels, large[..., :16, :12])
    assert torch.equal(prepared.source, small[..., :8, :6])
    assert notes == []
    with pytest.raises(ShapeError):
        prepare("upscaler", large, source=small[..., :8, :])


@pytest.mark.parametrize(
    ("name", "sides", "values", "error", "words"),
    [
        ("own size", (3, 16), {"fit": "crop"}, ImageError, "at least.*3x16.*resize"),
        ("any size", (12, 3), {}, ImageError, "at least 4x4.*12x3"),
        ("digits", (6, 16), {"label": 0, "fit": "crop"}, ImageError, "8x12.*6x16"),
        ("digits", (8, 12), {}, ConditionError, "set label to 0 to 2; got -1"),
        ("digits", (8, 12), {"label": 3}, ConditionError, "set label to 0 to 2; got 3"),
        ("own size", (0, 16), {}, ImageError, "empty"),
        ("colorizer", (16, 16), {}, FlowError, "glow-photos.*Flow Colorize.*Flow Encode Color"),
    ],
)
def test_what_does_not_fit_raises_a_readable_error(name, sides, values, error, words):
    with pytest.raises(error, match=words):
        prepare(name, random_image(1, 3, *sides), **values)
    with pytest.raises(ImageError, match="1, 3 or 4"):
        prepare("own size", random_image(1, 2, 12, 16))


def test_the_source_of_latents_is_checked():
    flow, notes = tiny("upscaler"), []
    latents = [torch.zeros(2, *shape) for shape in flow.latent_shapes(16, 12)]
    small = random_image(1, 3, 8, 6)
    assert torch.equal(source_for_latents(flow, latents, small, notes.append), small)
    for source in (small[..., :5], small.expand(3, -1, -1, -1)):
        with pytest.raises(ShapeError):
            source_for_latents(flow, latents, source, notes.append)
    with pytest.raises(ConditionError):
        source_for_latents(flow, latents, None, notes.append)
    assert notes == []
    assert source_for_latents(tiny("any size"), latents, small, notes.append) is None
    assert "source is ignored" in notes[0]


def test_a_condition_holds_no_graph_and_its_encoding_can_be_stopped():
    prepared, _ = prepare("upscaler", random_image(1, 3, 16, 12))
    held = tensors(prepared.condition(tiny("upscaler")))
    assert held
    assert not any(t.requires_grad for t in held)
    with pytest.raises(Cancelled):
        condition_for(tiny("upscaler"), None, random_image(1, 3, 8, 6), cancelled=lambda: True)
