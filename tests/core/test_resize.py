"""The resize of the papers, against an independent program of it and against known values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowcore.errors import ShapeError
from flowcore.images.resize import continued, enlarge, shrink


def keys(x):
    """Keys' cubic with a = -1/2."""
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def weights(n, scale):
    """The matrix by which MATLAB's imresize turns n pixels into scale * n: antialiased, symmetric at the border."""
    size = round(n * scale)
    stretch = min(scale, 1.0)
    matrix = np.zeros((size, n))
    for i in range(size):
        centre = (i + 0.5) / scale - 0.5
        reach = int(np.ceil(2 / stretch)) + 1
        taps = range(int(np.floor(centre)) - reach, int(np.floor(centre)) + reach + 2)
        values = np.array([keys(stretch * (centre - tap)) for tap in taps])
        values /= values.sum()
        for tap, value in zip(taps, values, strict=True):
            place = tap % (2 * n)
            matrix[i, min(place, 2 * n - 1 - place)] += value
    return matrix


def reference(image, scale):
    height, width = image.shape[-2:]
    return weights(height, scale) @ image @ weights(width, scale).T


def random_image(height, width, batch=2, channels=3):
    return np.random.default_rng(0).random((batch, channels, height, width))


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2, 5), (6, 4), (9, 7)])
def test_shrink_is_matlabs_imresize(factor, height, width):
    image = random_image(height * factor, width * factor)
    came = shrink(torch.from_numpy(image), factor)
    assert came.shape == (2, 3, height, width)
    assert np.abs(came.numpy() - reference(image, 1 / factor)).max() < 1e-12


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2, 5), (6, 4)])
def test_enlarge_is_matlabs_imresize(factor, height, width):
    image = random_image(height, width)
    came = enlarge(torch.from_numpy(image), factor)
    assert came.shape == (2, 3, height * factor, width * factor)
    assert np.abs(came.numpy() - reference(image, factor)).max() < 1e-12


def impulse_response(resize, factor, n, at):
    image = torch.zeros(1, 1, n, n, dtype=torch.float64)
    image[0, 0, :, at] = 1
    return resize(image, factor)[0, 0, 0]


def test_the_weights_of_factor_4_in_closed_form():
    """An LR pixel lies midway between HR pixels: at 1/8, 3/8, ... 15/8 of its own width; the weights add up to 4."""
    distances = [1 / 8, 3 / 8, 5 / 8, 7 / 8, 9 / 8, 11 / 8, 13 / 8, 15 / 8]
    exact = [987 / 1024, 745 / 1024, 399 / 1024, 93 / 1024, -49 / 1024, -75 / 1024, -45 / 1024, -7 / 1024]
    assert [keys(d) for d in distances] == exact
    n, row = 32, 4  # LR pixel 4 is centred on HR 17.5
    for k, weight in enumerate(exact):
        for at in (17 - k, 18 + k):
            assert impulse_response(shrink, 4, n, at)[row].item() == pytest.approx(weight / 4, abs=1e-12)
    assert impulse_response(shrink, 4, n, 17 - 8)[row].item() == 0


def test_the_weights_of_enlarging_by_2_in_closed_form():
    response = impulse_response(enlarge, 2, 8, 3)  # pixel 3 is centred on 6.5 of the large grid
    exact = {6: 111 / 128, 7: 111 / 128, 5: 29 / 128, 8: 29 / 128, 4: -9 / 128, 9: -9 / 128, 3: -3 / 128, 10: -3 / 128}
    for place in range(16):
        assert response[place].item() == pytest.approx(exact.get(place, 0.0), abs=1e-12)


@pytest.mark.parametrize("resize", [shrink, enlarge])
def test_constants_are_preserved(resize):
    image = torch.full((1, 3, 8, 4), 0.3, dtype=torch.float64)
    assert torch.allclose(resize(image, 4), torch.tensor(0.3, dtype=torch.float64), atol=1e-14)


def test_a_single_pixel_enlarges_to_a_constant():
    assert torch.allclose(enlarge(torch.full((1, 3, 1, 1), 0.7), 4), torch.full((1, 3, 4, 4), 0.7), atol=1e-6)


def test_shrinking_to_a_single_pixel():
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    expected = reference(image.numpy(), 1 / 4)
    assert shrink(image, 4).item() == pytest.approx(expected.item(), abs=1e-12)


def test_overshoot_is_not_clamped():
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8:] = 1
    assert shrink(image, 4).min() < -0.01
    assert enlarge(image, 4).max() > 1.01


def test_float32_is_as_good_as_its_precision():
    image = random_image(24, 32)
    assert np.abs(shrink(torch.from_numpy(image).float(), 4).numpy() - reference(image, 1 / 4)).max() < 1e-6
    assert np.abs(enlarge(torch.from_numpy(image).float(), 4).numpy() - reference(image, 4)).max() < 1e-6


@pytest.mark.parametrize("resize", [shrink, enlarge])
def test_autocast_changes_nothing(resize):
    image = torch.rand(1, 3, 8, 12)
    with torch.autocast("cpu", torch.bfloat16):
        low = resize(image, 4)
    assert torch.equal(low, resize(image, 4))


@pytest.mark.parametrize("resize", [shrink, enlarge])
def test_gradients_pass(resize):
    image = torch.rand(1, 1, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: resize(t, 2), image)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 6), (3, 3)])
def test_sides_that_do_not_divide_are_refused_with_the_numbers(height, width):
    with pytest.raises(ShapeError, match=f"divisible by 4; got {height}x{width}"):
        shrink(torch.zeros(1, 3, height, width), 4)


def test_continuing_repeats_the_border_pixel_however_small_the_image():
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert continued(row, 4)[0, 0, 0].tolist() == [3, 3, 2, 1, 1, 2, 3, 3, 2, 1, 1]
    assert continued(torch.tensor([[[[5.0]]]]), 3).flatten().tolist() == [5.0] * 49
