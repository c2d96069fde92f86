"""Luma, chroma and palettes against JPEG's constants, those of kornia, and closed forms."""

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import random_image

from flowcore import ImageError, ShapeError
from flowcore.images.color import (
    as_gray,
    compress,
    enlarge_chroma,
    luma,
    merge,
    palette_from_chroma,
    parse_color,
    split,
)

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])


def colors(dtype=torch.float32):
    return random_image(4, 3, 9, 7).to(dtype)


def out_of_gamut(dtype=torch.float32):
    """Luma and chroma that are mostly out of gamut, black and white among them."""
    generator = torch.Generator().manual_seed(1)
    y = torch.rand(4, 1, 9, 7, generator=generator, dtype=dtype)
    y[0, 0, 0, :2] = torch.tensor([0.0, 1.0], dtype=dtype)
    return y, torch.rand(4, 2, 9, 7, generator=generator, dtype=dtype) - 0.5


@DTYPES
def test_split_and_merge_are_inverse(dtype, tolerance):
    rgb = colors(dtype)
    assert (merge(*split(rgb)) - rgb).abs().max() <= tolerance
    for before, after in zip(out_of_gamut(dtype), split(merge(*out_of_gamut(dtype))), strict=True):
        assert (after - before).abs().max() <= tolerance


def test_matches_jpeg_and_kornia():
    """JPEG's constants are exact; kornia rounds those of chroma."""
    y, chroma = split(colors())
    theirs = kornia.color.rgb_to_ycbcr(colors())
    assert (theirs[:, :1] - y).abs().max() < 1e-6
    assert (theirs[:, 1:] - 0.5 - chroma).abs().max() < 3e-4
    corners = torch.eye(3)[:, :, None, None]
    assert torch.allclose(luma(corners).flatten(), torch.tensor([0.299, 0.587, 0.114]))
    assert split(corners)[1][2, 0].item() == pytest.approx(0.5)  # Cb of blue
    assert split(corners)[1][0, 1].item() == pytest.approx(0.5)  # Cr of red


@DTYPES
def test_compress_keeps_luma_and_hue_in_gamut(dtype, tolerance):
    y, chroma = out_of_gamut(dtype)
    rgb = compress(y, chroma)
    assert 0 <= rgb.min() < rgb.max() <= 1
    assert (luma(rgb) - y).abs().max() <= tolerance
    reduced = split(rgb)[1]
    cross = reduced[:, 0] * chroma[:, 1] - reduced[:, 1] * chroma[:, 0]  # 0 for equal hue
    assert cross.abs().max() <= tolerance
    assert ((reduced * chroma).sum(1) >= -tolerance).all()
    assert (reduced.norm(dim=1) <= chroma.norm(dim=1) + tolerance).all()
    on_boundary = ((rgb < 1e-6) | (rgb > 1 - 1e-6)).any(1)
    unchanged = (reduced - chroma).abs().amax(1) < 1e-5
    assert (on_boundary | unchanged).all()  # saturation is reduced no more than necessary
    assert on_boundary.any()
    assert unchanged.any()
    assert (compress(*split(colors(dtype))) - colors(dtype)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: luma(torch.rand(1, 4, 2, 2)), r"\(B, 3, H, W\); got \(1, 4, 2, 2\)"),
        (lambda: merge(torch.rand(1, 1, 4, 4), torch.rand(1, 2, 2, 2)), "Resize the chroma"),
        (lambda: compress(torch.rand(1, 3, 4, 4), torch.rand(1, 2, 4, 4)), r"luma \(B, 1, H, W\)"),
        (
            lambda: enlarge_chroma(torch.rand(2, 2, 6, 4), torch.rand(1, 1, 12, 9), torch.rand(1, 1, 12, 9)),
            r"one size; got \(2, 2, 6, 4\) and \(1, 1, 12, 9\)",
        ),
    ],
)
def test_wrong_shapes_raise_readable_error(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def waves(height, width, channels, seed=3, batch=2):
    """Smooth, different in every item and channel, within [0, 1]."""
    turns, start = random_image(2, batch, channels, 1, 1, seed=seed) * 3
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    return 0.5 + 0.4 * torch.sin(6 * (turns * rows + (1 - turns) * columns) + start)


def slope_at(chroma, y, row, column):
    """Ridge regression (0.01) of chroma on luma over the existing neighbors, as an explicit sum."""
    rows = range(max(0, row - 1), min(y.shape[0], row + 2))
    columns = range(max(0, column - 1), min(y.shape[1], column + 2))
    pairs = np.array([(float(y[i, j]), float(chroma[i, j])) for i in rows for j in columns])
    deviations = pairs - pairs.mean(0)
    return (deviations[:, 0] * deviations[:, 1]).mean() / ((deviations[:, 0] ** 2).mean() + 0.01)


def test_enlarged_chroma_is_bicubic_plus_regression_on_luma():
    small_y, chroma = waves(5, 4, 1), waves(5, 4, 2, seed=4) - 0.5
    y = random_image(2, 1, 23, 17, seed=8)
    slope = torch.empty(2, 2, 5, 4)
    for b, c, i, j in np.ndindex(2, 2, 5, 4):
        slope[b, c, i, j] = slope_at(chroma[b, c], small_y[b, 0], i, j)
    big = {"size": (23, 17), "mode": "bicubic"}
    expected = F.interpolate(chroma, **big)
    expected += F.interpolate(slope, (23, 17), mode="bilinear") * (y - F.interpolate(small_y, **big))
    assert (enlarge_chroma(chroma, small_y, y) - expected).abs().max() < 1e-5
    shared = enlarge_chroma(chroma, small_y[:1], y[:1])  # one luma for a batch of chroma
    assert torch.equal(shared[1:], enlarge_chroma(chroma[1:], small_y[:1], y[:1]))


def test_palette_is_one_mean_and_root_mean_square():
    chroma = torch.zeros(2, 2, 2, 2)
    chroma[0] = torch.tensor([0.03, -0.04])[:, None, None]
    chroma[1, 0] = torch.tensor([[0.1, -0.1], [0.3, -0.1]])
    expected = [[1, 0.03, -0.04, 0.05], [1, 0.05, 0, (0.12 / 4) ** 0.5]]
    assert torch.allclose(palette_from_chroma(chroma), torch.tensor(expected))


def test_web_colors_are_parsed():
    for text in ("#e0b080", "e0b080", " #E0B080\n"):
        assert parse_color(text) == pytest.approx((0xE0 / 255, 0xB0 / 255, 0x80 / 255))
    assert parse_color("#eb8") == parse_color("eb8") == parse_color("#eebb88")
    for text in ("", "#", "red", "#12345", "#1234567", "##eb8", "#e0b0g0", "0x123456", "#e0b08\u0660"):
        with pytest.raises(ImageError, match="#e0b080"):
            parse_color(text)


def test_only_pictures_without_colors_become_gray():
    picture = random_image(2, 4, 5, 7, seed=871)
    picture[:, 1:3] = picture[:, :1]
    assert torch.equal(as_gray(picture), picture[:, [0, 3]])
    assert torch.equal(as_gray(picture[0, :3]), picture[0, :1])
    for channel in (0, 1, 2):
        colored = picture.clone()
        colored[1, channel, 4, 6] += 0.25
        assert as_gray(colored) is colored
    for channels in (1, 2):
        assert torch.equal(as_gray(picture[:, :channels]), picture[:, :channels])
