"""The draws: a seed means the same image everywhere, and temperature is one factor."""

from __future__ import annotations

import math

import pytest
import torch

from flowcore import prior
from flowcore.errors import FlowError, ShapeError
from flowcore.prior import masked_temperature, resize_temperature_map, sample_latents

SHAPES = [(6, 4, 6), (12, 2, 3)]


def equal(one, two):
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_item_i_is_the_only_item_of_seed_plus_i():
    together = sample_latents(SHAPES, 3, 0.8, seed=5)
    assert [z.shape for z in together] == [(3, 6, 4, 6), (3, 12, 2, 3)]
    for i in range(3):
        assert equal([z[i : i + 1] for z in together], sample_latents(SHAPES, 1, 0.8, seed=5 + i))
        assert not torch.equal(together[0][i], together[0][i - 1])
    last = sample_latents(SHAPES, 2, seed=2**64 - 1)  # after the largest seed comes 0
    assert equal([z[1:] for z in last], sample_latents(SHAPES, 1, seed=0))


def test_temperature_is_one_multiply():
    unit = sample_latents(SHAPES, 2, 1.0, seed=9)
    for tau in (0, 0.3, 0.8, 1.5):
        assert equal(sample_latents(SHAPES, 2, tau, seed=9), [tau * z for z in unit])
    # one for each level, finest first
    assert equal(sample_latents(SHAPES, 2, [0.5, 0.0], seed=9), [0.5 * unit[0], 0.0 * unit[1]])


def test_a_large_draw_can_be_stopped_on_its_way_and_is_that_of_one_piece(monkeypatch):
    monkeypatch.setattr(prior, "AT_ONCE", 64)
    for size in (7, 16, 64, 65, 79, 80, 200):
        asked: list[int] = []
        (drawn,) = sample_latents([(1, 1, size)], 1, seed=3, check=lambda asked=asked: asked.append(1))
        assert torch.equal(drawn.flatten(), torch.randn(size, generator=torch.Generator().manual_seed(3)))
        assert len(asked) == max(1, -(-(size - 15) // 64)) + 1


def test_draws_do_not_depend_on_global_state_nor_disturb_it():
    expected = sample_latents(SHAPES, 2, seed=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            actual = sample_latents(SHAPES, 2, seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {(z.dtype, z.device.type) for z in actual} == {(torch.float32, "cpu")}
    assert equal(actual, expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_temperatures_seeds_and_numbers_are_refused():
    for tau in (-0.1, math.nan, math.inf, -math.inf, [0.5, -1.0], [math.nan, 1.0]):
        with pytest.raises(FlowError, match="Temperature must be a finite number >= 0"):
            sample_latents(SHAPES, 1, tau)
        if isinstance(tau, float):
            one_of_a_map = ramp()
            one_of_a_map[0, 0, 3, 4] = tau
            with pytest.raises(FlowError, match="Temperature must be a finite number >= 0"):
                sample_latents(SHAPES, 1, one_of_a_map)
    for taus in ([], [1.0], [1.0, 1.0, 1.0]):
        with pytest.raises(ShapeError, match=f"2 levels of latents; got {len(taus)} temperatures"):
            sample_latents(SHAPES, 1, taus)
    for shape in ((3, 1, 4, 4), (1, 3, 4, 4), (4, 4), (1, 4, 4), (1, 1, 0, 4)):
        with pytest.raises(ShapeError, match="map of temperatures must have the shape"):
            sample_latents(SHAPES, 2, torch.ones(shape))
    for seed in (-1, 2**64, 1.5, "7", None):
        with pytest.raises(FlowError, match="seed"):
            sample_latents(SHAPES, 1, seed=seed)
    for n in (0, -1):
        with pytest.raises(FlowError, match=f"{n}"):
            sample_latents(SHAPES, n)


def ramp(n=1, height=8, width=12):
    return torch.linspace(0, 1, n * height * width).view(n, 1, height, width)


def test_a_map_multiplies_every_level_on_its_own_grid():
    unit = sample_latents(SHAPES, 2, seed=9)
    tau = ramp()
    actual = sample_latents(SHAPES, 2, tau, seed=9)
    assert equal(actual, [resize_temperature_map(tau, *z.shape[-2:]) * z for z in unit])
    assert not torch.equal(actual[0], unit[0])
    tau = ramp(2, 4, 6)  # a map for every item, on one level
    assert equal(sample_latents(SHAPES, 2, [tau, 0.5], seed=9), [tau * unit[0], 0.5 * unit[1]])


def test_a_map_is_resized_without_leaving_its_range():
    hard = torch.zeros(1, 1, 37, 53)
    hard[..., 20:] = 0.9
    for size in [(5, 9), (37, 53), (200, 11)]:
        actual = resize_temperature_map(hard, *size)
        assert actual.shape[-2:] == size
        assert 0 <= actual.min() < actual.max() <= 0.9 + 1e-6
        assert actual[..., 0].max() == 0
        assert actual[..., -1].min() == pytest.approx(0.9)


def test_a_mask_paints_one_temperature_on_another():
    mask = torch.tensor([[[[0.0, 0.5, 1.0]]]])
    assert torch.allclose(masked_temperature(mask, 0.9, 0.3), torch.tensor([0.3, 0.6, 0.9]))
    with pytest.raises(FlowError, match="finite"):  # larger than float32 holds
        sample_latents(SHAPES, 1, masked_temperature(mask, 1e308, 0.3))
