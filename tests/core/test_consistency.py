"""Resizing as in the papers; and back-projection, after which an enlargement shrinks to its source."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowcore import FlowError, ShapeError, match_source
from flowcore.images.metrics import lr_psnr, psnr
from flowcore.images.resize import downsample, enlarge, limit_shorter_side, pad_symmetric, resize
from flowcore.tasks.consistency import GOAL, consistency

PHOTO = Path(__file__).resolve().parents[2] / "workflows" / "photo.png"


def to_tensor(image):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def photo(height=31, width=47):
    return to_tensor(Image.open(PHOTO))[..., 40 : 40 + height, 60 : 60 + width]


def noisy(image, strength=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (image + strength * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def keys(x):
    """Keys' cubic with a = -1/2."""
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def weights(n, scale):
    """The matrix of MATLAB's imresize from n pixels to scale * n: antialiased, symmetric at the border."""
    size = round(n * scale)
    stretch = min(scale, 1.0)
    matrix = np.zeros((size, n))
    for i in range(size):
        center = (i + 0.5) / scale - 0.5
        reach = int(np.ceil(2 / stretch)) + 1
        taps = range(int(np.floor(center)) - reach, int(np.floor(center)) + reach + 2)
        values = np.array([keys(stretch * (center - tap)) for tap in taps])
        values /= values.sum()
        for tap, value in zip(taps, values, strict=True):
            place = tap % (2 * n)
            matrix[i, min(place, 2 * n - 1 - place)] += value
    return matrix


def reference(image, scale):
    height, width = image.shape[-2:]
    return weights(height, scale) @ image @ weights(width, scale).T


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2, 5), (9, 7)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_matches_matlabs_imresize(height, width, dtype, tolerance):
    for factor in (1, 2, 3, 8):
        large = np.random.default_rng(0).random((2, 3, height * factor, width * factor))
        small = large[..., :height, :width]
        for change, image, scale in ((downsample, large, 1 / factor), (enlarge, small, factor)):
            actual = change(torch.from_numpy(image).to(dtype), factor).numpy()
            assert actual.shape == (2, 3, round(image.shape[2] * scale), round(image.shape[3] * scale))
            assert np.abs(actual - reference(image, scale)).max() < tolerance


@pytest.mark.parametrize("change", [downsample, enlarge])
def test_autocast_changes_nothing_and_gradients_pass(change):
    image = torch.rand(1, 3, 8, 12)
    with torch.autocast("cpu", torch.bfloat16):
        low = change(image, 4)
    assert torch.equal(low, change(image, 4))
    image = torch.rand(1, 1, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: change(t, 2), image)


def test_padding_repeats_the_border_however_small_the_image():
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert pad_symmetric(row, 4)[0, 0, 0].tolist() == [3, 3, 2, 1, 1, 2, 3, 3, 2, 1, 1]
    assert pad_symmetric(torch.tensor([[[[5.0]]]]), 3).flatten().tolist() == [5.0] * 49
    image = torch.arange(6.0).view(1, 1, 2, 3)  # sides of its own
    assert pad_symmetric(image, (1, 0, 0, 2))[0, 0].tolist() == [[0, 0, 1, 2], [3, 3, 4, 5], [3, 3, 4, 5], [0, 0, 1, 2]]


@pytest.mark.parametrize(("size", "expected"), [((100, 300), (64, 192)), ((65, 64), (65, 64)), ((10, 500), (10, 500))])
def test_only_a_longer_shorter_side_is_limited(size, expected):
    image = torch.rand(2, 3, *size)
    limited = limit_shorter_side(image, 64)
    assert limited.shape == (2, 3, *expected)
    assert (limited is image) == (size == expected)


def test_integer_factors_are_enlarge_and_shrink():
    for factor in (1, 2, 3, 4):
        small, large = photo(), photo(24, 36)
        assert torch.equal(resize(small, 31 * factor, 47 * factor), enlarge(small, factor))
        assert torch.equal(resize(large, 24 // factor, 36 // factor), downsample(large, factor))


def test_other_factors_are_those_of_pillow():
    """Whose bicubic kernel is the same, antialiased, and cut off at the border."""
    picture = Image.open(PHOTO)
    for size in [(101, 77), (57, 300), (310, 40)]:
        expected = to_tensor(picture.resize(size, Image.Resampling.BICUBIC))
        actual = resize(to_tensor(picture), size[1], size[0]).clamp(0, 1)
        assert (actual - expected).abs().max() < 8 / 255  # Pillow rounds and clamps to 8 bits after either axis
        assert (actual - expected).abs().mean() < 0.5 / 255


@pytest.mark.parametrize("size", [(124, 188), (31, 47), (100, 130), (31, 90)])
def test_a_matched_enlargement_shrinks_to_its_source(size):
    source = photo()
    images = torch.cat([noisy(resize(source, *size).clamp(0, 1), seed=k) for k in range(2)])
    matched = match_source(images, source)
    before, after = consistency(images, source), consistency(matched, source)
    assert (before < 45).all()
    assert (after >= GOAL).all()
    assert 0 <= matched.min() < matched.max() <= 1


def test_the_measure_is_lr_psnr_and_100_for_equal_pictures():
    source = photo(30, 46)
    image = noisy(enlarge(source, 4).clamp(0, 1))
    assert torch.equal(consistency(image, source), lr_psnr(image, source))
    assert consistency(source, source).tolist() == [100]
    larger = enlarge(source, 2).clamp(0, 1)  # is shrunk
    assert torch.equal(
        consistency(image[..., :30, :46], larger), lr_psnr(image[..., :30, :46], downsample(larger, 2).clamp(0, 1))
    )


def test_detail_that_the_source_does_not_show_stays():
    """With 1/16 of the values to correct, nearly all noise stays."""
    source = 0.3 + 0.4 * photo()
    soft = enlarge(source, 4)
    image = noisy(soft, 0.05)
    change = match_source(image, source) - image
    assert change.square().mean() < 0.1 * (image - soft).square().mean()
    assert psnr(match_source(image, source), image) > 30
    image = noisy(enlarge(photo(), 4).clamp(0.1, 0.9), 0.02)
    source = downsample(image, 4)
    assert torch.equal(match_source(image, source), image)


def test_images_are_matched_to_their_own_source():
    sources = torch.cat([photo(), 1 - photo()])
    images = noisy(enlarge(sources, 2).clamp(0, 1)).repeat_interleave(3, 0)
    assert (consistency(match_source(images, sources), sources) >= GOAL).all()
    assert torch.equal(match_source(images, sources)[3:], match_source(images[3:], sources[1:]))
    swapped = sources.flip(0)
    assert (consistency(images, swapped) < 20).all()


def test_a_source_that_no_picture_shrinks_to_is_reported():
    """An enlargement of black and white pixels would have to be darker than black."""
    source = (torch.arange(64).view(1, 1, 8, 8) + torch.arange(8).view(8, 1)).remainder(2).float()
    sentences = []
    result = match_source(enlarge(source, 4).clamp(0, 1), source, notify=sentences.append)
    assert "dB only" in sentences[0]
    assert consistency(result, source) > consistency(enlarge(source, 4).clamp(0, 1), source)
    assert result.isfinite().all()


def test_sizes_that_do_not_fit_are_refused():
    for shape, source in (((1, 3, 8, 8), (1, 3, 9, 8)), ((3, 3, 8, 8), (2, 3, 4, 4))):
        with pytest.raises(ShapeError):
            match_source(torch.rand(shape), torch.rand(source))
    for shape in ((1, 3, 6, 8), (1, 3, 8, 6)):
        with pytest.raises(ShapeError):
            downsample(torch.zeros(shape), 4)


def test_lack_of_memory_is_explained(monkeypatch):
    source, tried = photo(), []

    def refuse(*_):
        tried.append(1)
        raise RuntimeError("CUDA out of memory. Tried to allocate a lot")

    monkeypatch.setattr("flowcore.images.resize.resize", refuse)
    with pytest.raises(FlowError, match=r"Out of memory.*smaller"):
        match_source(enlarge(source, 2).clamp(0, 1), source, notify=lambda _: None)
    assert len(tried) == 2
