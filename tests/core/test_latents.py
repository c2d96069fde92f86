"""Draws of latents, and latents as material: closed forms, exact ends, distributions that stay what they were."""

import copy
import math

import pytest
import torch

from flowcore import FlowError, PrecisionError, ShapeError
from flowcore.flows import latents as la
from flowcore.flows import prior
from flowcore.flows.prior import masked_temperature, resize_temperature_map, sample_latents

TWO_LEVELS = [(6, 4, 6), (12, 2, 3)]
SHAPES = [(6, 8, 10), (12, 4, 5), (24, 2, 3)]


def drawn(n=2, seed=0, shapes=SHAPES, dtype=torch.float64):
    return [z.to(dtype) for z in sample_latents(shapes, n, 1.0, seed)]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a, b, tolerance=1e-12):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        assert (x - y).abs().max() <= tolerance


@pytest.fixture
def a():
    return drawn(2, 10)


@pytest.fixture
def b():
    return [1.5 * z for z in drawn(2, 20)]  # of another norm, as encoded images are


@pytest.mark.parametrize("angle", [3e-6, 1e-3, 1.0, 3.1])
def test_slerp_is_its_formula_with_one_angle_per_level_and_item(angle):
    angles = torch.tensor([[angle, angle / 2], [angle / 3, angle]], dtype=torch.float64)  # (levels, items)
    for t in (0.1, 0.5, 0.8):
        a, b, expected = [], [], []
        for w in angles[..., None, None, None]:
            x, y = torch.cat([w * 0 + 1, w * 0], 1), torch.cat([w.cos(), w.sin()], 1)  # on a circle
            a.append(x)
            b.append(2 * y)  # of another norm
            expected.append((((1 - t) * w).sin() * x + 2 * (t * w).sin() * y) / w.sin())
        close(la.interpolate(a, b, t), expected)


def test_norm_follows_the_norms(a, b):
    actual = la.interpolate(a, b, 0.3, mode="norm")
    line = la.interpolate(a, b, 0.3, mode="linear")
    for x, y, z, m in zip(a, b, actual, line, strict=True):
        norms = [v.flatten(1).norm(dim=1) for v in (x, y, z, m)]
        assert torch.allclose(norms[2], 0.7 * norms[0] + 0.3 * norms[1], rtol=1e-12)
        assert torch.allclose(z, m * (norms[2] / norms[3])[:, None, None, None], rtol=1e-12)  # in the line's direction


@pytest.mark.parametrize("mode", ["slerp", "linear", "norm"])
def test_the_ends_are_exact(a, b, mode):
    a[0][0, 0, 0, 0], b[0][0, 0, 0, 0] = 1e30, -0.0  # what 0 * y + 1 * x would not survive
    assert equal(la.interpolate(a, b, 0, mode=mode), a)
    assert equal(la.interpolate(a, b, 1.0, mode=mode), b)
    assert torch.signbit(la.interpolate(a, b, 1, mode=mode)[0][0, 0, 0, 0])
    per_level = la.interpolate(a, b, [0, 0.25, 1], mode=mode)
    assert equal(per_level, [a[0], la.interpolate(a, b, 0.25, mode=mode)[1], b[2]])


@pytest.mark.parametrize("mode", ["slerp", "linear", "norm"])
def test_one_item_serves_a_batch(a, mode):
    one = drawn(1, 30)
    several = [z.expand(2, -1, -1, -1) for z in one]
    for t in (0, 0.4, 1):
        assert equal(la.interpolate(one, a, t, mode=mode), la.interpolate(several, a, t, mode=mode))
        assert equal(la.interpolate(a, one, t, mode=mode), la.interpolate(a, several, t, mode=mode))


@pytest.mark.parametrize("mode", ["slerp", "norm"])
def test_alike_opposite_and_empty_latents_stay_finite(a, mode):
    close(la.interpolate(a, [z * (1 + 1e-9) for z in a], 0.5, mode=mode), a, 1e-8)
    close(la.interpolate(a, a, 0.3, mode=mode), a, 1e-12)
    opposite, zeros = [-z for z in a], [0 * z for z in a]
    close(la.interpolate(a, opposite, 0.25, mode="slerp"), [0.5 * z for z in a], 1e-12)
    close(la.interpolate(a, zeros, 0.25, mode="slerp"), [0.75 * z for z in a], 1e-12)
    for one, two in ((a, opposite), (a, zeros), (zeros, zeros)):
        for t in (0.25, 0.5):
            assert all(z.isfinite().all() for z in la.interpolate(one, two, t, mode=mode))


@pytest.mark.parametrize("t", [0.3, 1.5, -1])
def test_linear_is_the_line_and_goes_on_beyond_its_ends(a, b, t):
    expected = [(1 - t) * x + t * y for x, y in zip(a, b, strict=True)]
    close(la.interpolate(a, b, t, mode="linear"), expected)
    assert all(z.isfinite().all() for mode in ("slerp", "norm") for z in la.interpolate(a, b, t, mode=mode))


def test_walks_keep_the_precision_and_take_the_wider_one(a, b):
    narrow = [z.float() for z in a]
    assert {z.dtype for z in la.interpolate(narrow, narrow, 0.5)} == {torch.float32}
    assert {z.dtype for z in la.interpolate(narrow, b, 0.5)} == {torch.float64}
    close(la.interpolate(narrow, [z.float() for z in b], 0.3), la.interpolate(a, b, 0.3), 2e-6)


def test_arguments_out_of_range_are_named(a, b):
    for name, call in (
        ("finite", lambda: la.interpolate(a, b, math.nan)),
        ("mode", lambda: la.interpolate(a, b, 0.5, mode="cubic")),
        ("3 levels", lambda: la.mix_levels(a, b, [0, 1])),
        *(("weight", lambda weight=weight: la.mix_levels(a, b, weight)) for weight in (-0.1, 1.1)),
        ("Temperature", lambda: la.scale(a, -0.1)),
        *(("strength", lambda strength=strength: la.vary(a, 1, strength)) for strength in (-0.1, 1.1)),
        *(("strength", lambda strength=strength: la.normalize(a, strength)) for strength in (-1, 1.5)),
        ("per", lambda: la.normalize(a, per="pixel")),
        *(("window", lambda window=window: la.normalize(a, window=window)) for window in (3, 6)),
    ):
        with pytest.raises(FlowError, match=name):
            call()


COPIED = {  # also where a strength of 0 or 1 gives an argument back
    "interpolate": lambda a, b: la.interpolate(a, b, [0, 0.3, 1], mode="linear"),
    "mix": lambda a, b: la.mix_levels(a, b, [0, 1, 0]),
    "add": lambda a, b: la.add(a, b, [0, 1, 0.5]),
    "scale": lambda a, b: la.scale(a, [1, 0.5, 0]),
    "vary": lambda a, b: la.vary(a, 5, [0, 0.5, 1]),
    "normalize": lambda a, b: la.normalize(a, per="local"),
    "nothing": lambda a, b: la.normalize(a, 0),
}


def test_arguments_are_not_changed_or_shared_with_the_result(a, b):
    before = copy.deepcopy([*a, *b])
    for name, call in COPIED.items():
        for z in call(a, b):
            z.fill_(7)
        assert equal([*a, *b], before), name


def test_latents_that_do_not_fit_together_and_what_is_no_list_of_them_are_refused(a, b):
    other_size = drawn(2, 1, [(6, 8, 12), (12, 4, 6), (24, 2, 3)])
    for other in (other_size, [z[:, ::2] for z in b], b[:2], drawn(3, 1)):
        with pytest.raises(ShapeError, match="fit together"):
            la.interpolate(a, other, 0.3)
    for wrong in ([], a[0], [a[0][0]], [a[0], None, a[2]], [z[:0] for z in a], [a[0], a[1][:1], a[2]]):
        with pytest.raises(ShapeError):
            la.scale(wrong, 1)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(PrecisionError):
            la.scale([z.to(dtype) for z in a], 1)


def test_weights_mix_by_their_roots(a, b):
    expected = [0.8 * x + 0.6 * y for x, y in zip(a, b, strict=True)]
    close(la.mix_levels(a, b, weights=0.36), expected)
    actual = la.mix_levels(a, b, weights=[0, 0.36, 1])
    close(actual, [a[0], expected[1], b[2]])
    assert equal([actual[0], actual[2]], [a[0], b[2]])


def test_scale_multiplies_by_level(a):
    close(la.scale(a, 0.5), [0.5 * z for z in a])
    taus = [0.3, 0.7, 1]
    assert equal(la.scale(sample_latents(SHAPES, 3, 1.0, 4), taus), sample_latents(SHAPES, 3, taus, 4))


def test_vary_turns_towards_the_noise_of_its_seed(a):
    fresh = [z.double() for z in sample_latents(SHAPES, 2, 1.0, 99)]
    theta = 0.2 * math.pi / 2
    expected = [math.cos(theta) * z + math.sin(theta) * e for z, e in zip(a, fresh, strict=True)]
    close(la.vary(a, 99, 0.2), expected)
    assert equal(la.vary(a, 99, 0), a)
    assert equal(la.vary(a, 99, 1), fresh)
    close(la.vary(a, 99, 1, temperature=0.5), [0.5 * e for e in fresh])
    close(la.vary(a, 99, [0, 0.2, 1]), [a[0], expected[1], fresh[2]])
    assert equal([z[1:] for z in la.vary(a, 99, 0.3)], la.vary([z[1:] for z in a], 100, 0.3))  # seed + 1


def test_their_own_noise_cannot_vary_latents():
    z = sample_latents(SHAPES, 3, [0.0, 0.7, 0.3], 7)
    with pytest.raises(FlowError, match="drawn with seed 7"):
        la.vary(z, 7, 0.2)
    with pytest.raises(FlowError, match="another seed"):
        la.vary([level[1:] for level in z], 8, 0.2)
    assert equal(la.vary(z, 7, 0), z)  # nothing is mixed
    for latents, seed in ((z, 8), ([0 * level for level in z], 7)):
        assert len(la.vary(latents, seed, 0.2)) == 3


def strange():
    """Latents as a strange image has them: means and deviations off, and different everywhere."""
    z = drawn(2, 3, [(6, 24, 30), (12, 12, 15)])
    ramp = torch.linspace(0.5, 3, 30, dtype=torch.float64)
    channel = torch.arange(6, dtype=torch.float64).view(6, 1, 1)
    return [z[0] * ramp + channel, 0.3 * z[1] - 2]


def test_statistics_are_those_of_the_numbers():
    for level, s in zip(strange(), la.statistics(strange()), strict=True):
        numbers = level.flatten(1)
        assert s.dimensions == numbers.shape[1]
        assert torch.allclose(s.mean, numbers.mean(1), rtol=1e-12)
        assert torch.allclose(s.std, numbers.std(1, correction=0), rtol=1e-12)
        assert torch.allclose(s.radius, numbers.square().mean(1).sqrt(), rtol=1e-12)


@pytest.mark.parametrize(("per", "dims"), [("level", (1, 2, 3)), ("channel", (2, 3))])
def test_normalizing_gives_unit_statistics(per, dims):
    for z in la.normalize(strange(), per=per):
        assert z.mean(dims).abs().max() < 1e-12
        assert (z.std(dims, correction=0) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("window", [5, 9])
def test_normalizing_locally_uses_the_window_that_exists(window):
    z = strange()
    actual = la.normalize(z, per="local", window=window)
    half = window // 2
    for level, row, column in ((0, 0, 0), (0, 12, 29), (0, 11, 13), (1, 5, 0)):
        part = z[level][1, 2, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
        expected = (z[level][1, 2, row, column] - part.mean()) / part.std(correction=0)
        assert float(actual[level][1, 2, row, column]) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("per", ["level", "channel", "local"])
def test_strength_blends_and_flat_latents_are_not_blown_up(per):
    z = strange()
    expected = [0.75 * x + 0.25 * y for x, y in zip(z, la.normalize(z, per=per), strict=True)]
    close(la.normalize(z, 0.25, per), expected)
    assert equal(la.normalize(z, 0, per), z)
    z = [torch.full((1, 3, 8, 8), 0.7, dtype=torch.float32)]
    z[0][0, 0, 0, 0] += 1e-6
    actual = la.normalize(z, per=per)[0]
    assert actual.isfinite().all()
    assert actual.abs().max() < 0.01
    constant = torch.full((1, 3, 16, 16), 1000 / 3, dtype=torch.float64)
    assert la.normalize([constant + 1e-7 * torch.rand_like(constant)], per=per)[0].abs().max() < 0.01


@pytest.mark.parametrize("per", ["channel", "local"])
def test_levels_of_few_positions_are_not_wiped_out(per):
    z = drawn(1, 4, [(48, 1, 1), (16, 3, 5)])
    close(la.normalize(z, per=per), la.normalize(z, per="level"))
    larger = drawn(1, 4, [(16, 4, 4)])
    assert not torch.allclose(la.normalize(larger, per=per)[0], la.normalize(larger)[0])


def test_an_attribute_direction_leads_from_one_mean_to_the_other(a):
    small = [torch.full((1, 1, 1, 1), 0.1)]
    assert equal(la.attribute_direction([small] * 1000, [[0 * small[0]]]), small)  # summed in float64
    with_it, without = drawn(5, 1), drawn(4, 50)
    read = []

    def batches(latents, name):
        for i in range(len(latents[0])):
            read.append(name)
            yield [z[i : i + 1] for z in latents]

    direction = la.attribute_direction(batches(with_it, "with"), batches(without, "without"))
    close(direction, [x.mean(0, True) - y.mean(0, True) for x, y in zip(with_it, without, strict=True)], 1e-6)
    assert {z.dtype for z in direction} == {torch.float32}
    assert read == ["with"] * 5 + ["without"] * 4
    spoilt = [a[0], a[1] / 0, a[2]]
    for word, sides in {"with the": ([], [a]), "without the": ([a], []), "finite": ([a, spoilt], [a])}.items():
        with pytest.raises(FlowError, match=word):
            la.attribute_direction(*sides)


def test_adding_moves_along_a_direction(a):
    direction = drawn(1, 60)
    moved = la.add(a, direction, -1.25)
    close(moved, [z - 1.25 * d for z, d in zip(a, direction, strict=True)])
    assert equal(la.add(a, direction, [0, 2, 0]), [a[0], a[1] + 2 * direction[1], a[2]])


def test_saved_seeds_of_every_size_give_what_they_gave():
    for seed in (0, 1, 2**32 - 1, 2**32 + 1, 2**63 + 5):
        noise = sample_latents(TWO_LEVELS, 1, seed=seed)[0]
        generator = torch.Generator().manual_seed(seed % 2**32)  # torch reads no other bits
        assert torch.equal(noise.flatten(), torch.randn(noise.numel(), generator=generator))


def test_a_large_draw_can_be_stopped_on_its_way_and_is_that_of_one_piece(monkeypatch):
    monkeypatch.setattr(prior, "DRAWS_PER_CHECK", 64)
    for size in (7, 16, 64, 65, 79, 80, 200):
        asked: list[int] = []
        (drawn,) = sample_latents([(1, 1, size)], 1, seed=3, check=lambda asked=asked: asked.append(1))
        assert torch.equal(drawn.flatten(), torch.randn(size, generator=torch.Generator().manual_seed(3)))
        assert len(asked) == max(1, -(-(size - 15) // 64)) + 1


def test_draws_do_not_depend_on_global_state_nor_disturb_it():
    expected = sample_latents(TWO_LEVELS, 2, seed=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            actual = sample_latents(TWO_LEVELS, 2, seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {(z.dtype, z.device.type) for z in actual} == {(torch.float32, "cpu")}
    assert equal(actual, expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_temperatures_are_refused():
    for tau in (-0.1, math.nan, math.inf, -math.inf, [0.5, -1.0], [math.nan, 1.0]):
        with pytest.raises(FlowError, match="Temperature"):
            sample_latents(TWO_LEVELS, 1, tau)
        if isinstance(tau, float):
            one_of_a_map = ramp()
            one_of_a_map[0, 0, 3, 4] = tau
            with pytest.raises(FlowError, match="Temperature"):
                sample_latents(TWO_LEVELS, 1, one_of_a_map)
    for taus in ([], [1.0], [1.0, 1.0, 1.0]):
        with pytest.raises(ShapeError):
            sample_latents(TWO_LEVELS, 1, taus)
    for shape in ((3, 1, 4, 4), (1, 3, 4, 4), (4, 4), (1, 4, 4), (1, 1, 0, 4)):
        with pytest.raises(ShapeError):
            sample_latents(TWO_LEVELS, 2, torch.ones(shape))


def ramp(n=1, height=8, width=12):
    return torch.linspace(0, 1, n * height * width).view(n, 1, height, width)


def test_a_map_multiplies_every_level_on_its_own_grid():
    unit = sample_latents(TWO_LEVELS, 2, seed=9)
    tau = ramp()
    actual = sample_latents(TWO_LEVELS, 2, tau, seed=9)
    assert equal(actual, [resize_temperature_map(tau, *z.shape[-2:]) * z for z in unit])
    assert not torch.equal(actual[0], unit[0])
    tau = ramp(2, 4, 6)  # a map for every item, on one level
    assert equal(sample_latents(TWO_LEVELS, 2, [tau, 0.5], seed=9), [tau * unit[0], 0.5 * unit[1]])


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
        sample_latents(TWO_LEVELS, 1, masked_temperature(mask, 1e308, 0.3))
