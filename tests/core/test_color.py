"""Luma is sacred: split and merge are exact, compress keeps luma and hue, and the constants are those of JPEG.

Enlarging chroma follows the edges of the luma.
"""

from __future__ import annotations

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from flowcore.errors import ImageError, ShapeError
from flowcore.images.color import clip, compress, enlarge_chroma, luma, merge, palette_of, parse_colour, split


def colours(count=4, dtype=torch.float32):
    return torch.rand(count, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=dtype)


def wild(dtype=torch.float32):
    """Luma and chroma of which most are no colours of the cube, black and white among them."""
    generator = torch.Generator().manual_seed(1)
    y = torch.rand(4, 1, 9, 7, generator=generator, dtype=dtype)
    y[0, 0, 0, :2] = torch.tensor([0.0, 1.0], dtype=dtype)
    return y, torch.rand(4, 2, 9, 7, generator=generator, dtype=dtype) - 0.5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-15)])
def test_split_and_merge_undo_each_other(dtype, tolerance):
    rgb = colours(dtype=dtype)
    assert (merge(*split(rgb)) - rgb).abs().max() <= tolerance
    y, chroma = wild(dtype)
    again = split(merge(y, chroma))
    assert (again[0] - y).abs().max() <= tolerance
    assert (again[1] - chroma).abs().max() <= tolerance


def test_the_constants_are_those_of_jpeg():
    """To one 8-bit step of what PIL makes of the same colours, whose chroma is centred on 128."""
    rgb = (colours() * 255).round() / 255
    for item in rgb:
        array = (item.permute(1, 2, 0) * 255).byte().numpy()
        expected = np.asarray(Image.fromarray(array, "RGB").convert("YCbCr"), dtype=float)
        y, chroma = split(item[None])
        came = torch.cat([y * 255, chroma * 255 + 128], dim=1)[0].permute(1, 2, 0).numpy()
        assert np.abs(came - expected).max() <= 1
    corners = {"red": (1, 0, 0, 0.299), "green": (0, 1, 0, 0.587), "blue": (0, 0, 1, 0.114), "white": (1, 1, 1, 1)}
    for name, (*rgb_, y_) in corners.items():
        assert float(luma(torch.tensor(rgb_).float()[None, :, None, None])) == pytest.approx(y_), name
    assert split(torch.tensor([0.0, 0, 1])[None, :, None, None])[1][0, 0].item() == pytest.approx(0.5)
    assert split(torch.tensor([1.0, 0, 0])[None, :, None, None])[1][0, 1].item() == pytest.approx(0.5)


def test_kornia_agrees_to_the_rounding_of_its_constants():
    rgb = colours()
    y, chroma = split(rgb)
    theirs = kornia.color.rgb_to_ycbcr(rgb)
    assert (theirs[:, :1] - y).abs().max() < 1e-6
    assert (theirs[:, 1:] - 0.5 - chroma).abs().max() < 3e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_compress_keeps_luma_and_hue_within_the_cube(dtype, tolerance):
    y, chroma = wild(dtype)
    rgb = compress(y, chroma)
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    assert (luma(rgb) - y).abs().max() <= tolerance
    left = split(rgb)[1]
    cross = left[:, 0] * chroma[:, 1] - left[:, 1] * chroma[:, 0]  # 0 where the direction is the same
    assert cross.abs().max() <= tolerance
    assert ((left * chroma).sum(1) >= -tolerance).all()
    assert (left.norm(dim=1) <= chroma.norm(dim=1) + tolerance).all()
    touching = ((rgb < 1e-6) | (rgb > 1 - 1e-6)).any(1)
    whole = (left - chroma).abs().amax(1) < 1e-5
    assert (touching | whole).all()  # no more is given up than must be
    assert touching.any()
    assert whole.any()


def test_compress_changes_nothing_inside_the_cube():
    rgb = colours()
    assert (compress(*split(rgb)) - rgb).abs().max() < 1e-6


def test_clip_stays_in_the_cube_and_moves_luma():
    y, chroma = wild()
    rgb = clip(y, chroma)
    assert 0 <= float(rgb.min()) < float(rgb.max()) <= 1
    assert (luma(rgb) - y).abs().max() > 0.05  # which is why it is not the choice of anyone who cares


def test_an_8_bit_grey_picture_keeps_its_luma_to_the_last_bit():
    """Rounding red, green and blue moves luma by at most half a step, since its shares add up to 1."""
    y = (torch.arange(256).float() / 255).reshape(1, 1, 16, 16).repeat(8, 1, 1, 1)
    chroma = 0.7 * (torch.rand(8, 2, 16, 16, generator=torch.Generator().manual_seed(2)) - 0.5)
    stored = (compress(y, chroma) * 255).round()
    assert torch.equal(luma(stored.double()).round(), (y * 255).round().double())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: luma(torch.rand(1, 4, 2, 2)), r"\(B, 3, H, W\); got \(1, 4, 2, 2\)"),
        (lambda: merge(torch.rand(1, 1, 4, 4), torch.rand(1, 2, 2, 2)), "Resize the chroma"),
        (lambda: compress(torch.rand(1, 3, 4, 4), torch.rand(1, 2, 4, 4)), r"luma \(B, 1, H, W\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ShapeError, match=sentence):
        call()


# --- enlarging, palettes, colours by name -----------------------------------------------------------------------------


def waves(height, width, channels, seed=3, batch=2):
    """Smooth, different in every item and channel, within [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    turns, start = torch.rand(2, batch, channels, 1, 1, generator=generator) * 3
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    return 0.5 + 0.4 * torch.sin(6 * (turns * rows + (1 - turns) * columns) + start)


def slope_at(chroma, y, row, column):
    """Regression of chroma on luma over the neighbours that there are, with a ridge of 0.01: written as a sum."""
    rows = range(max(0, row - 1), min(y.shape[0], row + 2))
    columns = range(max(0, column - 1), min(y.shape[1], column + 2))
    pairs = np.array([(float(y[i, j]), float(chroma[i, j])) for i in rows for j in columns])
    deviations = pairs - pairs.mean(0)
    return (deviations[:, 0] * deviations[:, 1]).mean() / ((deviations[:, 0] ** 2).mean() + 0.01)


def test_enlarged_chroma_is_bicubic_plus_the_regression_of_the_residual():
    small_y, chroma = waves(5, 4, 1), waves(5, 4, 2, seed=4) - 0.5
    y = torch.rand(2, 1, 23, 17, generator=torch.Generator().manual_seed(8))
    slope = torch.empty(2, 2, 5, 4)
    for b, c, i, j in np.ndindex(2, 2, 5, 4):
        slope[b, c, i, j] = slope_at(chroma[b, c], small_y[b, 0], i, j)
    big = {"size": (23, 17), "mode": "bicubic"}
    expected = F.interpolate(chroma, **big)
    expected += F.interpolate(slope, (23, 17), mode="bilinear") * (y - F.interpolate(small_y, **big))
    assert (enlarge_chroma(chroma, small_y, y) - expected).abs().max() < 1e-5


def test_chroma_that_goes_with_brightness_gets_sharp_edges_and_flat_chroma_stays_flat():
    y = (waves(64, 48, 1) > 0.5).float() * 0.8 + 0.1
    chroma = torch.cat([0.2 * y - 0.1, 0.05 - 0.15 * y], dim=1)
    small_y, small = (F.avg_pool2d(t, 4) for t in (y, chroma))
    error = (enlarge_chroma(small, small_y, y) - chroma).square().mean()
    assert error < (F.interpolate(small, y.shape[2:], mode="bicubic") - chroma).square().mean() / 4
    flat = torch.full((2, 2, 16, 12), 0.07)
    assert (enlarge_chroma(flat, small_y, y) - 0.07).abs().max() < 1e-4  # rounding, over the ridge


def test_enlarging_takes_one_luma_for_many_and_needs_small_ones_of_one_size():
    small_y, chroma, y = waves(6, 4, 1, batch=1), waves(6, 4, 2) - 0.5, waves(12, 9, 1, batch=1)
    both = enlarge_chroma(chroma, small_y, y)
    for item in range(2):
        assert torch.equal(both[item : item + 1], enlarge_chroma(chroma[item : item + 1], small_y, y))
    assert (enlarge_chroma(chroma, small_y, small_y) - chroma).abs().max() < 1e-6
    with pytest.raises(ShapeError, match=r"one size; got \(2, 2, 6, 4\) and \(1, 1, 12, 9\)"):
        enlarge_chroma(chroma, y, y)


def test_a_palette_is_one_mean_and_root_mean_square():
    chroma = torch.zeros(2, 2, 2, 2)
    chroma[0] = torch.tensor([0.03, -0.04])[:, None, None]
    chroma[1, 0] = torch.tensor([[0.1, -0.1], [0.3, -0.1]])
    expected = [[1, 0.03, -0.04, 0.05], [1, 0.05, 0, (0.12 / 4) ** 0.5]]
    assert torch.allclose(palette_of(chroma), torch.tensor(expected))


@pytest.mark.parametrize("text", ["#e0b080", "e0b080", " #E0B080\n"])
def test_colours_are_read_as_the_web_writes_them(text):
    assert parse_colour(text) == pytest.approx((0xE0 / 255, 0xB0 / 255, 0x80 / 255))
    assert parse_colour("#eb8") == parse_colour("eb8") == parse_colour("#eebb88")


@pytest.mark.parametrize("text", ["", "#", "red", "#12345", "#1234567", "##eb8", "#e0b0g0", "0x123456", "#e0b08\u0660"])
def test_what_is_no_colour_is_named(text):
    with pytest.raises(ImageError, match="Expected a colour such as #e0b080; got '"):
        parse_colour(text)
