"""Latents as material: closed forms, exact ends, and distributions that stay what they were."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from flowcore import latents as la
from flowcore.errors import FlowError, PrecisionError, ShapeError
from flowcore.prior import sample_latents

SHAPES = [(6, 8, 10), (12, 4, 5), (24, 2, 3)]


def drawn(n=2, seed=0, shapes=SHAPES, dtype=torch.float64):
    return [z.to(dtype) for z in sample_latents(shapes, n, 1.0, seed)]


def flat(latents):
    return torch.cat([z.flatten(1) for z in latents], 1)


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


# --- interpolate ------------------------------------------------------------------------------------------------------


def test_linear_is_the_line(a, b):
    close(la.interpolate(a, b, 0.3, mode="linear"), [0.7 * x + 0.3 * y for x, y in zip(a, b, strict=True)])


def test_slerp_is_its_formula_with_one_angle_per_level_and_item(a, b):
    actual = la.interpolate(a, b, 0.3)
    for level in range(3):
        for i in range(2):
            x, y = a[level][i].flatten(), b[level][i].flatten()
            w = math.acos(float(x @ y / (x.norm() * y.norm())))
            expected = math.sin(0.7 * w) / math.sin(w) * x + math.sin(0.3 * w) / math.sin(w) * y
            assert (actual[level][i].flatten() - expected).abs().max() < 1e-12


@pytest.mark.parametrize("angle", [1e-3, 0.05, 1.0, 2.5, 3.1])
def test_slerp_turns_at_constant_speed_on_a_circle(angle):
    a = [torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 2, 1, 1)]
    b = [torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64).view(1, 2, 1, 1)]
    for t in (0.1, 0.5, 0.8):
        expected = torch.tensor([math.cos(angle * t), math.sin(angle * t)], dtype=torch.float64)
        assert (la.interpolate(a, b, t)[0].flatten() - expected).abs().max() < 1e-12


def test_norm_follows_the_norms(a, b):
    actual = la.interpolate(a, b, 0.3, mode="norm")
    line = la.interpolate(a, b, 0.3, mode="linear")
    for x, y, z, m in zip(a, b, actual, line, strict=True):
        norms = [v.flatten(1).norm(dim=1) for v in (x, y, z, m)]
        assert torch.allclose(norms[2], 0.7 * norms[0] + 0.3 * norms[1], rtol=1e-12)
        assert torch.allclose(z, m * (norms[2] / norms[3])[:, None, None, None], rtol=1e-12)  # in the line's direction


def test_the_linear_midpoint_is_calmer_and_the_others_are_not():
    a, b = drawn(4, 1, [(8, 32, 32)]), drawn(4, 50, [(8, 32, 32)])
    middle = {
        mode: la.statistics(la.interpolate(a, b, 0.5, mode=mode))[0].radius for mode in ("linear", "slerp", "norm")
    }
    assert torch.allclose(middle["linear"], torch.tensor(math.sqrt(0.5), dtype=torch.float64), atol=0.02)
    assert torch.allclose(middle["slerp"], torch.tensor(1.0, dtype=torch.float64), atol=0.02)
    assert torch.allclose(middle["norm"], torch.tensor(1.0, dtype=torch.float64), atol=0.02)


@pytest.mark.parametrize("mode", ["slerp", "linear", "norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_are_exact(a, b, mode, dtype):
    a, b = ([z.to(dtype) for z in latents] for latents in (a, b))
    a[0][0, 0, 0, 0], b[0][0, 0, 0, 0] = 1e30, -0.0  # what 0 * y + 1 * x would not survive
    assert equal(la.interpolate(a, b, 0, mode=mode), a)
    assert equal(la.interpolate(a, b, 1.0, mode=mode), b)
    assert torch.signbit(la.interpolate(a, b, 1, mode=mode)[0][0, 0, 0, 0])


@pytest.mark.parametrize("mode", ["slerp", "linear", "norm"])
def test_every_level_may_have_its_own_t(a, b, mode):
    actual = la.interpolate(a, b, [0, 0.25, 1], mode=mode)
    assert torch.equal(actual[0], a[0])
    assert torch.equal(actual[1], la.interpolate(a, b, 0.25, mode=mode)[1])
    assert torch.equal(actual[2], b[2])


@pytest.mark.parametrize("mode", ["slerp", "linear", "norm"])
def test_one_item_serves_a_batch(a, mode):
    one = drawn(1, 30)
    actual = la.interpolate(one, a, 0.4, mode=mode)
    assert [len(z) for z in actual] == [2, 2, 2]
    for i in range(2):
        alone = la.interpolate(one, [z[i : i + 1] for z in a], 0.4, mode=mode)
        close([z[i : i + 1] for z in actual], alone)
    assert equal(la.interpolate(one, a, 0, mode=mode), [z.expand(2, -1, -1, -1) for z in one])
    assert equal(la.interpolate(a, one, 1, mode=mode), [z.expand(2, -1, -1, -1) for z in one])


@pytest.mark.parametrize("mode", ["slerp", "norm"])
def test_alike_opposite_and_empty_latents_stay_finite(a, mode):
    near = [z * (1 + 1e-9) for z in a]
    close(la.interpolate(a, near, 0.5, mode=mode), a, 1e-8)
    close(la.interpolate(a, a, 0.3, mode=mode), a, 1e-12)
    opposite = [-z for z in a]
    close(la.interpolate(a, opposite, 0.25, mode="slerp"), [0.5 * z for z in a], 1e-12)
    zeros = [torch.zeros_like(z) for z in a]
    close(la.interpolate(a, zeros, 0.25, mode="slerp"), [0.75 * z for z in a], 1e-12)
    for other in (opposite, zeros):
        for t in (0.25, 0.5):
            assert all(z.isfinite().all() for z in la.interpolate(a, other, t, mode=mode))
            assert all(z.isfinite().all() for z in la.interpolate(zeros, zeros, t, mode=mode))


def test_slerp_meets_the_line_where_it_takes_over(a, b):
    """Just above the smallest angle the arc's formula must not be noise."""
    across = [y - x * ((x * y).sum() / x.square().sum()) for x, y in zip(a, b, strict=True)]
    for angle in (3e-6, 1e-4):
        turned = [x + y * angle * x.norm() / y.norm() for x, y in zip(a, across, strict=True)]
        close(la.interpolate(a, turned, 0.5), la.interpolate(a, turned, 0.5, mode="linear"), 1e-8)


def test_linear_goes_on_beyond_its_ends(a, b):
    close(la.interpolate(a, b, 1.5, mode="linear"), [1.5 * y - 0.5 * x for x, y in zip(a, b, strict=True)])
    close(la.interpolate(a, b, -1, mode="linear"), [2 * x - y for x, y in zip(a, b, strict=True)])
    assert all(z.isfinite().all() for mode in ("slerp", "norm") for z in la.interpolate(a, b, -3, mode=mode))


def test_walks_keep_the_precision_and_take_the_wider_one(a, b):
    narrow = [z.float() for z in a]
    assert {z.dtype for z in la.interpolate(narrow, narrow, 0.5)} == {torch.float32}
    assert {z.dtype for z in la.interpolate(narrow, b, 0.5)} == {torch.float64}
    close(la.interpolate(narrow, [z.float() for z in b], 0.3), la.interpolate(a, b, 0.3), 2e-6)


def test_a_bad_t_or_mode_is_named(a, b):
    with pytest.raises(FlowError, match="finite"):
        la.interpolate(a, b, math.nan)
    with pytest.raises(ShapeError, match="3 levels; got 2 t"):
        la.interpolate(a, b, [0.1, 0.2])
    with pytest.raises(FlowError, match=r"slerp, linear, norm; got 'cubic'"):
        la.interpolate(a, b, 0.5, mode="cubic")


# --- mix, scale, vary -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[True, False, True], [0, 2], [2, 0, 0], {0, -1}, (0, -1), iter([0, 2])])
def test_chosen_levels_come_from_the_other(a, b, levels):
    assert equal(la.mix_levels(a, b, levels), [b[0], a[1], b[2]])


def test_no_level_chosen_leaves_a(a, b):
    assert equal(la.mix_levels(a, b, []), a)


def test_weights_mix_by_their_roots(a, b):
    actual = la.mix_levels(a, b, weights=[0, 0.36, 1])
    assert torch.equal(actual[0], a[0])
    assert (actual[1] - (0.8 * a[1] + 0.6 * b[1])).abs().max() < 1e-12
    assert torch.equal(actual[2], b[2])
    close(la.mix_levels(a, b, weights=0.36), [0.8 * x + 0.6 * y for x, y in zip(a, b, strict=True)])


def test_mixing_independent_latents_keeps_unit_variance():
    a, b = drawn(1, 1, [(16, 64, 64)]), drawn(1, 2, [(16, 64, 64)])
    for weight in (0.1, 0.5, 0.9):
        assert la.statistics(la.mix_levels(a, b, weights=weight))[0].std.item() == pytest.approx(1, abs=0.012)


def test_mix_levels_refuses_what_makes_no_sense(a, b):
    for arguments in ({}, {"levels": [0], "weights": 0.5}):
        with pytest.raises(FlowError, match="exactly one"):
            la.mix_levels(a, b, **arguments)
    with pytest.raises(FlowError, match=r"levels 0 \(finest\) to 2 \(deepest\); got \[3\]"):
        la.mix_levels(a, b, [3])
    with pytest.raises(FlowError, match="truth"):
        la.mix_levels(a, b, [0.5, 0.5, 0.5])
    with pytest.raises(ShapeError, match="3 levels; got 2 truth values"):
        la.mix_levels(a, b, [True, False])
    for weight in (-0.1, 1.1):
        with pytest.raises(FlowError, match=r"\[0, 1\]"):
            la.mix_levels(a, b, weights=weight)


def test_scale_multiplies_by_level(a):
    close(la.scale(a, 0.5), [0.5 * z for z in a])
    close(la.scale(a, [0, 1, 2]), [0 * a[0], a[1], 2 * a[2]])
    assert equal(
        la.scale(sample_latents(SHAPES, 3, 1.0, 4), [0.3, 0.7, 1]), sample_latents(SHAPES, 3, [0.3, 0.7, 1], 4)
    )
    for wrong in (-0.1, math.inf):
        with pytest.raises(FlowError):
            la.scale(a, wrong)
    with pytest.raises(ShapeError, match="temperatures"):
        la.scale(a, [1, 1])


def test_vary_turns_towards_the_noise_of_its_seed(a):
    fresh = [z.double() for z in sample_latents(SHAPES, 2, 1.0, 99)]
    theta = 0.2 * math.pi / 2
    expected = [math.cos(theta) * z + math.sin(theta) * e for z, e in zip(a, fresh, strict=True)]
    close(la.vary(a, 99, 0.2), expected)
    assert equal(la.vary(a, 99, 0), a)
    assert equal(la.vary(a, 99, 1), fresh)
    close(la.vary(a, 99, 1, temperature=0.5), [0.5 * e for e in fresh])
    per_level = la.vary(a, 99, [0, 0.2, 1])
    close(per_level, [a[0], expected[1], fresh[2]])


def test_item_i_of_a_variation_draws_with_seed_plus_i(a):
    both = la.vary(a, 99, 0.3)
    second = la.vary([z[1:] for z in a], 100, 0.3)
    assert equal([z[1:] for z in both], second)


@pytest.mark.parametrize("tau", [1.0, 0.6])
def test_a_variation_is_distributed_like_the_original(tau):
    z = sample_latents([(16, 64, 64)], 1, tau, 5)
    for strength in (0.1, 0.5, 0.9):
        varied = la.vary(z, 6, strength, temperature=tau)
        found = la.statistics(varied)[0]
        assert found.mean.item() == pytest.approx(0, abs=0.012)
        assert found.std.item() == pytest.approx(tau, rel=0.012)
        correlation = float((varied[0] * z[0]).mean() / (varied[0].std() * z[0].std()))
        assert correlation == pytest.approx(math.cos(strength * math.pi / 2), abs=0.012)


def test_their_own_noise_cannot_vary_latents():
    z = sample_latents(SHAPES, 3, [0.0, 0.7, 0.3], 7)
    with pytest.raises(FlowError, match="drawn with seed 7"):
        la.vary(z, 7, 0.2)
    with pytest.raises(FlowError, match="another seed"):
        la.vary([level[1:] for level in z], 8, 0.2)
    assert len(la.vary(z, 8, 0.2)) == 3
    assert equal(la.vary(z, 7, 0), z)  # nothing is mixed
    zeros = [torch.zeros_like(level) for level in z]
    assert len(la.vary(zeros, 7, 0.2)) == 3


def test_vary_refuses_strengths_and_seeds_out_of_range(a):
    for strength in (-0.1, 1.1):
        with pytest.raises(FlowError, match="strength"):
            la.vary(a, 1, strength)
    with pytest.raises(FlowError, match="seed"):
        la.vary(a, -1, 0.5)


# --- statistics and normalization -------------------------------------------------------------------------------------


def strange():
    """Latents as a strange image has them: means and deviations off, and different everywhere."""
    z = drawn(2, 3, [(6, 24, 30), (12, 12, 15)])
    ramp = torch.linspace(0.5, 3, 30, dtype=torch.float64)
    channel = torch.arange(6, dtype=torch.float64).view(6, 1, 1)
    return [z[0] * ramp + channel, 0.3 * z[1] - 2]


def test_statistics_are_those_of_the_numbers():
    z = strange()
    found = la.statistics(z)
    for level, s in zip(z, found, strict=True):
        assert s.dimensions == level[0].numel()
        for i in range(2):
            numbers = level[i].numpy()
            assert float(s.mean[i]) == pytest.approx(numbers.mean(), rel=1e-12)
            assert float(s.std[i]) == pytest.approx(numbers.std(), rel=1e-12)
            assert float(s.radius[i]) == pytest.approx(math.sqrt((numbers**2).mean()), rel=1e-12)


def test_normalizing_by_level_gives_unit_statistics():
    for s in la.statistics(la.normalize(strange())):
        assert s.mean.abs().max() < 1e-12
        assert (s.std - 1).abs().max() < 1e-12


def test_normalizing_by_channel_gives_unit_statistics_in_every_channel():
    for z in la.normalize(strange(), per="channel"):
        assert z.mean((2, 3)).abs().max() < 1e-12
        assert (z.std((2, 3), correction=0) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("window", [5, 9])
def test_normalizing_locally_uses_the_window_that_exists(window):
    z = strange()
    actual = la.normalize(z, per="local", window=window)
    half = window // 2
    for level, row, column in ((0, 0, 0), (0, 12, 29), (0, 11, 13), (1, 5, 0)):
        part = z[level][1, 2, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
        expected = (z[level][1, 2, row, column] - part.mean()) / part.std(correction=0)
        assert float(actual[level][1, 2, row, column]) == pytest.approx(float(expected), rel=1e-9)


def test_strength_blends():
    z = strange()
    for per in ("level", "channel", "local"):
        full = la.normalize(z, per=per)
        close(la.normalize(z, 0.25, per), [0.75 * x + 0.25 * y for x, y in zip(z, full, strict=True)])
        assert equal(la.normalize(z, 0, per), z)


@pytest.mark.parametrize("per", ["level", "channel", "local"])
def test_flat_latents_are_not_blown_up(per):
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


def test_normalize_refuses_what_is_out_of_range(a):
    for arguments in ({"strength": 1.5}, {"strength": -1}, {"per": "pixel"}, {"window": 4}, {"window": 3}):
        with pytest.raises(FlowError):
            la.normalize(a, **arguments)


# --- directions -------------------------------------------------------------------------------------------------------


def test_a_running_mean_is_the_mean_of_all_items():
    z = drawn(7, 40)
    running = la.RunningMean()
    for start, stop in ((0, 1), (1, 4), (4, 7)):
        running.add([level[start:stop] for level in z])
    assert running.count == 7
    close(running.mean, [level.mean(0, keepdim=True) for level in z])


def test_a_running_mean_of_small_numbers_does_not_drown():
    running = la.RunningMean()
    for _ in range(1000):
        running.add([torch.full((1, 1, 1, 1), 0.1, dtype=torch.float32)])
    assert running.mean[0].item() == pytest.approx(torch.tensor(0.1, dtype=torch.float32).item(), rel=1e-12)


def test_a_running_mean_refuses_nothing_strangers_and_nan(a):
    running = la.RunningMean()
    with pytest.raises(FlowError, match="no latents"):
        _ = running.mean
    running.add(a)
    before = running.mean
    spoilt = copy.deepcopy(a)
    spoilt[1][0, 0, 0, 0] = math.nan
    with pytest.raises(FlowError, match="not finite"):
        running.add(spoilt)
    with pytest.raises(ShapeError, match="fit together"):
        running.add(a[:2])
    assert running.count == 2
    assert equal(running.mean, before)


def test_an_attribute_direction_leads_from_one_mean_to_the_other():
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


def test_an_attribute_direction_needs_both_sides(a):
    with pytest.raises(FlowError, match="no latents with the"):
        la.attribute_direction([], [a])
    with pytest.raises(FlowError, match="no latents without the"):
        la.attribute_direction([a], [])
    with pytest.raises(ShapeError, match="fit together"):
        la.attribute_direction([a], [a[:2]])


def test_moving_along_a_direction_raises_its_projection_by_as_much(a):
    direction = drawn(1, 60)
    before = la.project(a, direction)
    d = flat(direction)[0]
    assert torch.allclose(before, flat(a) @ d / (d @ d), rtol=1e-12)
    moved = la.add(a, direction, -1.25)
    close(moved, [z - 1.25 * d for z, d in zip(a, direction, strict=True)])
    assert torch.allclose(la.project(moved, direction), before - 1.25, rtol=1e-12)
    per_level = la.add(a, direction, [0, 2, 0])
    assert torch.equal(per_level[0], a[0])
    assert torch.equal(per_level[1], a[1] + 2 * direction[1])
    with pytest.raises(FlowError, match="zero everywhere"):
        la.project(a, [torch.zeros_like(z) for z in direction])


def test_an_orthogonal_direction_leaves_the_others_alone(a):
    one, two, three = drawn(1, 60), drawn(1, 61), drawn(1, 62)
    alike = [x + 0.01 * y for x, y in zip(two, three, strict=True)]  # others need not be orthogonal
    several = [two, alike, two]  # nor independent
    rest = la.orthogonalize(one, several)
    for other in (two, alike, three):
        assert abs(float(la.project(rest, other))) < 1e-11
        assert torch.allclose(la.project(la.add(a, rest, 3.0), other), la.project(a, other), atol=1e-10)
    # what was taken out lies in the space of the others
    taken = flat(one)[0] - flat(rest)[0]
    space = torch.stack([flat(two)[0], flat(three)[0]], 1)
    solution = torch.linalg.lstsq(space, taken[:, None]).solution
    assert (space @ solution - taken[:, None]).abs().max() < 1e-10
    assert equal(la.orthogonalize(one, []), one)


def test_a_direction_inside_the_others_is_refused():
    one, two = drawn(1, 60), drawn(1, 61)
    mixture = [0.3 * x - 2 * y for x, y in zip(one, two, strict=True)]
    with pytest.raises(FlowError, match="mixture of the others"):
        la.orthogonalize(mixture, [one, two])
    with pytest.raises(ShapeError, match="batch 1"):
        la.orthogonalize(drawn(2, 60), [one])
    with pytest.raises(ShapeError, match="batch 1"):
        la.orthogonalize(one, [drawn(2, 61)])


# --- what holds for all -----------------------------------------------------------------------------------------------

PAIRED = {
    "slerp": lambda a, b: la.interpolate(a, b, 0.3),
    "linear": lambda a, b: la.interpolate(a, b, [0, 0.3, 1], mode="linear"),
    "norm": lambda a, b: la.interpolate(a, b, 0.3, mode="norm"),
    "mix": lambda a, b: la.mix_levels(a, b, [1]),
    "blend": lambda a, b: la.mix_levels(a, b, weights=0.3),
    "add": lambda a, b: la.add(a, b, [0, 1, 0.5]),
}
SINGLE = {
    "scale": lambda a: la.scale(a, [1, 0.5, 0]),
    "vary": lambda a: la.vary(a, 5, [0, 0.5, 1]),
    "level": lambda a: la.normalize(a),
    "channel": lambda a: la.normalize(a, 0.5, "channel"),
    "local": lambda a: la.normalize(a, per="local"),
    "nothing": lambda a: la.normalize(a, 0),
}


@pytest.mark.parametrize("name", [*PAIRED, *SINGLE])
def test_nothing_is_written_to_or_lent_out(a, b, name):
    before = copy.deepcopy((a, b))
    state = torch.get_rng_state()
    result = PAIRED[name](a, b) if name in PAIRED else SINGLE[name](a)
    assert torch.equal(state, torch.get_rng_state())
    assert equal(a, before[0])
    assert equal(b, before[1])
    for z in result:
        z.fill_(7)  # whoever goes on with the result must not reach the arguments
    assert equal(a, before[0])
    assert equal(b, before[1])


@pytest.mark.parametrize("name", [*PAIRED, "project"])
def test_lists_that_do_not_fit_together_are_refused(a, b, name):
    function = PAIRED.get(name, la.project)
    with pytest.raises(ShapeError, match=r"\(6, 8, 10\).*\(6, 8, 12\).*same model and from images of the same size"):
        function(a, drawn(2, 1, [(6, 8, 12), (12, 4, 6), (24, 2, 3)]))
    with pytest.raises(ShapeError, match="fit together"):
        function(a, b[:2])
    with pytest.raises(ShapeError, match="2 items and 3"):
        function(a, drawn(3, 1))


@pytest.mark.parametrize("name", SINGLE)
def test_what_is_no_list_of_latents_is_refused(a, name):
    for wrong in ([], a[0], [a[0][0]], [a[0], None, a[2]], [z[:0] for z in a]):
        with pytest.raises(ShapeError, match="finest first"):
            SINGLE[name](wrong)
    with pytest.raises(ShapeError, match=r"one batch; got \[2, 1, 2\]"):
        SINGLE[name]([a[0], a[1][:1], a[2]])
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(PrecisionError):
            SINGLE[name]([z.to(dtype) for z in a])
