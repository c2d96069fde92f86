"""Directions among latents: styles by name, and attributes measured on folders."""

from __future__ import annotations

import math

import pytest
import torch
from builders import build_tiny
from PIL import Image, ImageOps

from flowcore.errors import ConditionError, FlowError, ImageError, ShapeError
from flowcore.tasks import Cancelled
from flowcore.tasks.directions import MESSY_RATE, apply_style, attribute_direction_from_folders
from flowcore.tasks.sample import encode

from .generators import close, condition, images, make
from .photographs import photograph


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


# --- from folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    for name, sizes in (("with", [(8, 12), (30, 20), (9, 40)]), ("without", [(16, 24), (8, 12)])):
        for k, size in enumerate(sizes):
            deep = tmp_path / name / ("more" if k == 1 else "")
            deep.mkdir(parents=True, exist_ok=True)
            photograph(*size, seed=10 * len(name) + k).save(deep / f"{k}.png")
    return tmp_path / "with", tmp_path / "without"


def covered(path, mode):
    """The middle of an image, resized to cover 8x12."""
    fitted = ImageOps.fit(Image.open(path).convert(mode), (12, 8), Image.Resampling.BICUBIC)
    return torch.tensor(list(fitted.tobytes()), dtype=torch.uint8).view(1, 8, 12, -1).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(("kind", "label", "mode"), [("glow", None, "RGB"), ("digits", 1, "L")])
@pytest.mark.parametrize("batch", [None, 1, 2])
def test_a_direction_from_folders_is_the_difference_of_their_means(flows, folders, kind, label, mode, batch):
    flow = flows[kind]
    found = attribute_direction_from_folders(flow, *folders, label=label, batch=batch)
    assert found.counts == (3, 2)
    assert found.skipped == []
    cond = None if label is None else flow.encode_condition(torch.tensor([label]))
    means = []
    for folder in folders:
        encoded = [encode(flow, covered(path, mode), cond) for path in folder.rglob("*.png")]
        means.append([torch.cat(level).mean(0, keepdim=True) for level in zip(*encoded, strict=True)])
    for d, p, n in zip(found.direction, *means, strict=True):
        close(d, p - n)


def test_unreadable_files_are_skipped_and_listed(flows, folders):
    expected = attribute_direction_from_folders(flows["glow"], *folders)
    (folders[0] / "broken.png").write_bytes(b"no picture")
    content = (folders[0] / "0.png").read_bytes()
    (folders[0] / "half.png").write_bytes(content[: len(content) // 2])
    (folders[1] / "notes.txt").write_text("not asked for")
    log = []
    options = {"batch": 2, "progress": lambda done, total, preview=None: log.append((done, total))}
    found = attribute_direction_from_folders(flows["glow"], *folders, **options)
    assert found.counts == (3, 2)
    assert sorted(line.split(":")[0] for line in found.skipped) == ["broken.png", "half.png"]
    for x, y in zip(found.direction, expected.direction, strict=True):
        close(x, y)
    assert [done for done, _ in log] == sorted(done for done, _ in log)
    assert log[-1][0] == log[-1][1]


def test_images_whose_latents_are_not_finite_are_left_out(flows, folders, monkeypatch):
    glow = flows["glow"]
    true = type(glow).encode

    def spoilt(self, x, cond=None):
        latents = true(self, x, cond)
        if len(x) == 3:
            latents[1][1, 0, 0, 0] = math.inf
        return latents

    monkeypatch.setattr(type(glow), "encode", spoilt)
    found = attribute_direction_from_folders(glow, *folders)
    (skipped,) = found.skipped
    assert found.counts == (2, 2)
    assert "not finite" in skipped
    assert all(z.isfinite().all() for z in found.direction)


def test_folders_that_cannot_be_used_are_refused(flows, folders, tmp_path):
    for name in ("empty", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    positives, negatives = folders
    for pair, kind, error, words in (
        ((positives, tmp_path / "empty"), "glow", ImageError, "No images in"),
        ((tmp_path / "missing", negatives), "glow", ImageError, "No images in"),
        ((positives, tmp_path / "bad"), "glow", ImageError, r"None of the 1 images.*a\.png"),
        (folders, "any size", FlowError, "Give one: size"),
        (folders, "digits", ConditionError, "got none"),
        (folders, "srflow", FlowError, "sample needs"),
    ):
        with pytest.raises(error, match=words):
            attribute_direction_from_folders(flows[kind], *pair)
    assert attribute_direction_from_folders(flows["any size"], *folders, size=8).direction[0].shape == (1, 6, 4, 4)
    with pytest.raises(Cancelled):
        attribute_direction_from_folders(flows["glow"], *folders, cancelled=lambda: True)
