"""The bicubic resize of the papers, against an independent implementation and closed forms."""

import numpy as np
import pytest
import torch

from flowcore.errors import ShapeError
from flowcore.images.resize import enlarge, limit_shorter_side, pad_symmetric, shrink

BOTH = pytest.mark.parametrize("resize", [shrink, enlarge])


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


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2, 5), (6, 4), (9, 7)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_matches_matlabs_imresize(height, width, dtype, tolerance):
    for factor in (1, 2, 3, 4, 8):
        large = np.random.default_rng(0).random((2, 3, height * factor, width * factor))
        small = large[..., :height, :width]
        for resize, image, scale in ((shrink, large, 1 / factor), (enlarge, small, factor)):
            actual = resize(torch.from_numpy(image).to(dtype), factor).numpy()
            assert actual.shape == (2, 3, round(image.shape[2] * scale), round(image.shape[3] * scale))
            assert np.abs(actual - reference(image, scale)).max() < tolerance


@BOTH
def test_autocast_changes_nothing_and_gradients_pass(resize):
    image = torch.rand(1, 3, 8, 12)
    with torch.autocast("cpu", torch.bfloat16):
        low = resize(image, 4)
    assert torch.equal(low, resize(image, 4))
    image = torch.rand(1, 1, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: resize(t, 2), image)


def test_indivisible_sides_raise_readable_error():
    for height, width in ((6, 8), (8, 6)):
        with pytest.raises(ShapeError, match=f"divisible by 4; got {height}x{width}"):
            shrink(torch.zeros(1, 3, height, width), 4)


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
