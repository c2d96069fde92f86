"""The colorizer: the law in both structures, what decides where, and what it is told of luma, hints and palette."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from flowcore.checkpoints.file import read, save
from flowcore.errors import ConditionError, FlowError, ShapeError
from flowcore.images.color import NEUTRAL
from flowcore.likelihood import log_prob
from flowcore.models import build, configure
from flowcore.models.colorizer import ColorizerConfig
from flowcore.prior import sample_latents
from flowcore.transforms import (
    ActNorm,
    Chain,
    ChannelWhitening,
    ConditionOnChannels,
    Coupling,
    Haar,
    Injector,
    InvertibleConv,
    Squeeze,
)

from .laws import check, jacobian_logdet, perturbed

TINY = {"steps": (1, 1), "hidden": (6, 6), "widths": (4, 4, 8), "merged": 8, "features": 2}
ALONE = {"structure": "single", "steps": (2,), "hidden": (6,), "widths": (4, 8), "merged": 8, "features": 2}
THREE = {"steps": (1, 2, 1), "hidden": (4, 4, 4), "widths": (4, 4, 4, 8), "merged": 8, "features": 2}


def tiny(**fields):
    torch.manual_seed(4)
    return build("colorizer", configure("colorizer", {**TINY, **fields}))


def moved(strength=0.05, **fields):
    """One away from where it starts, whitening included."""
    flow = perturbed(tiny(**fields), strength)
    flow.prelude.mean.copy_(torch.tensor([0.51, 0.49]))
    flow.prelude.matrix.copy_(torch.tensor([[8.0, 0.0], [3.0, 11.0]]))
    return flow


def chroma(height=4, width=8, batch=2, seed=6):
    """Around neutral, as far as photographs go."""
    generator = torch.Generator().manual_seed(seed)
    return NEUTRAL + 0.1 * torch.randn(batch, 2, height, width, generator=generator)


def source(channels=1, height=16, width=32, batch=2, seed=5):
    """Luma; from 4 channels on a square of hints; with 8 a palette, too."""
    given = torch.zeros(batch, 8, height, width)
    given[:, :1] = torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(seed))
    given[:, 1:4, :8, :8] = torch.tensor([1.0, -0.1, 0.2])[:, None, None]
    given[:, 4:] = torch.tensor([1.0, 0.05, -0.08, 0.12])[:, None, None]
    return given[:, :channels]


def condition_of(flow, channels=8):
    return flow.encode_condition(source(channels).to(next(flow.parameters()).dtype))


def first(cond):
    return dataclasses.replace(cond, features=tuple(f[:1] for f in cond.features))


# --- the law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 4, 8])
def test_a_colorizer_obeys_the_law(channels):
    check(moved(), chroma(), lambda flow: condition_of(flow, channels), strength=0.0)


def test_three_grids_obey_the_law():
    flow = moved(strength=0.03, **THREE)
    given = source(8, 32, 64)
    check(flow, chroma(8, 16), lambda f: f.encode_condition(given.to(next(f.parameters()).dtype)), strength=0.0)


@pytest.mark.parametrize("fields", [ALONE, {"structure": "single"}], ids=["one grid", "an encoder of two"])
def test_the_single_structure_obeys_the_law(fields):
    flow = moved(**fields)
    # with one flow, the encoder's coarser grids speak through the finest only
    dead = [name for name, _ in flow.named_parameters() if name.startswith("encoder.heads.1.")]
    assert bool(dead) == (fields is not ALONE)
    check(flow, chroma(), condition_of, dead=dead, strength=0.0)


def test_the_logdet_of_a_fresh_one_is_that_of_the_jacobian_too():
    flow = tiny().double()
    x, cond = chroma().double(), condition_of(flow)
    expected = jacobian_logdet(flow, x[:1], first(cond))
    assert torch.allclose(flow(x, cond)[1][:1], expected, atol=1e-9)


# --- grids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sides", "expected"),
    [
        ({}, (4, 8), [(6, 2, 4), (8, 1, 2)]),
        (THREE, (16, 8), [(6, 8, 4), (6, 4, 2), (8, 2, 1)]),
        ({"steps": (1,), "hidden": (4,), "widths": (4, 8)}, (4, 6), [(8, 2, 3)]),
        (ALONE, (4, 6), [(8, 2, 3)]),
        ({"structure": "single"}, (4, 6), [(8, 2, 3)]),
    ],
    ids=str,
)
def test_latent_shapes(fields, sides, expected):
    flow = tiny(**fields)
    assert flow.latent_shapes(*sides) == expected
    assert flow.size_multiple == 2 ** len(expected)


def test_the_default_is_a_pyramid_over_the_whole_photograph():
    config = ColorizerConfig()
    grids = len(config.steps)
    with torch.device("meta"):
        flow = build("colorizer", config)
    side = config.working_size // 4
    shapes = flow.latent_shapes(side, side)
    assert shapes == [(6, side >> k, side >> k) for k in range(1, grids)] + [(8, side >> grids, side >> grids)]
    assert flow.size_multiple * 4 == config.source_multiple
    assert config.working_size % config.source_multiple == 0


@pytest.mark.parametrize("channels", [1, 4, 8])
@pytest.mark.parametrize("fields", [{}, THREE, ALONE], ids=["pyramid", "three grids", "single"])
def test_colors_go_round_on_grids_of_any_proportion(fields, channels):
    flow = moved(**fields).double()
    m = flow.config.source_multiple
    for rows, columns in ((1, 3), (4, 1), (3, 2)):
        given = source(channels, m * rows, m * columns).double()
        x = chroma(m * rows // 4, m * columns // 4).double()
        cond = flow.encode_condition(given)
        latents, logdet = flow(x, cond)
        assert torch.allclose(flow.inverse(latents, cond), x, atol=1e-10)
        assert logdet.isfinite().all()
        drawn = [z.double() for z in sample_latents(flow.latent_shapes(*x.shape[2:]), 2, seed=1)]
        again = flow(flow.inverse(drawn, cond), cond)[0]
        assert all(torch.allclose(one, two, atol=1e-9) for one, two in zip(again, drawn, strict=True))


@pytest.mark.parametrize("fields", [{}, ALONE], ids=["pyramid", "single"])
def test_log_prob_is_finite_and_in_nats_of_an_item(fields):
    flow = moved(**fields)
    density = log_prob(flow, chroma(), condition_of(flow))
    assert density.shape == (2,)
    assert density.isfinite().all()
    one = log_prob(flow, chroma()[:1], first(condition_of(flow)))
    assert torch.allclose(density[:1], one, rtol=1e-5)


# --- what it is made of -----------------------------------------------------------------------------------------------


def test_a_pyramid_details_finer_grids_and_decides_on_the_coarsest():
    flow = tiny(**THREE)
    assert isinstance(flow.prelude, ChannelWhitening)
    *fine, coarsest = flow.levels
    assert [type(level.squeeze) for level in flow.levels] == [Haar] * 3
    for level, steps in zip(fine, (1, 2), strict=True):
        (given,) = level.steps.parts()
        assert isinstance(given, ConditionOnChannels)
        assert isinstance(given.transform, Chain)
        assert (given.kept, level.split.kept, level.split.conditioner) == (2, 2, None)
        kinds = [type(part) for part in given.transform.parts()]
        assert kinds == [ActNorm, InvertibleConv, Coupling] * steps + [ActNorm, Injector]
    assert coarsest.split is None
    assert [type(part) for part in coarsest.steps.parts()] == [ActNorm, InvertibleConv, Coupling, ActNorm, Injector]


def test_a_single_flow_is_one_level_on_the_finest_grid():
    flow = tiny(**ALONE)
    (level,) = flow.levels
    assert isinstance(level.squeeze, Squeeze)
    assert level.split is None
    kinds = [type(part) for part in level.steps.parts()]
    assert kinds == [ActNorm, InvertibleConv, Coupling] * 2 + [ActNorm, Injector]


@pytest.mark.parametrize("fields", [THREE, ALONE], ids=["pyramid", "single"])
def test_couplings_are_bounded_and_end_in_a_conditional_prior(fields):
    parts = list(tiny(**fields).modules())
    assert {part.scaling for part in parts if isinstance(part, Coupling)} == {"atan"}
    assert {part.scaling for part in parts if isinstance(part, Injector)} == {"exp"}


def test_only_the_coarsest_grid_looks_at_all_of_itself_in_every_coupling():
    def pools(level):
        parts = [part for part in level.steps.modules() if isinstance(part, (Coupling, Injector))]
        return {part.conditioner.pool is not None for part in parts}

    assert [pools(level) for level in tiny(**THREE).levels] == [{False}, {False}, {True}]
    assert [pools(level) for level in tiny(**ALONE).levels] == [{False}]


def test_the_coarse_colors_are_decided_by_the_coarsest_latents_alone():
    """So the means over 4x4 pixels are the same for every draw of the finer latents, and not without these."""
    flow = moved().double()
    cond = condition_of(flow)
    fine, coarse = (z.double() for z in sample_latents(flow.latent_shapes(4, 8), 2, seed=1))
    one, two = (flow.inverse([z, coarse], cond) for z in (fine, -fine))
    assert torch.allclose(F.avg_pool2d(one, 2), F.avg_pool2d(two, 2), atol=1e-12)
    assert (one - two).abs().max() > 1e-3
    other = flow.inverse([fine, -coarse], cond)
    assert (F.avg_pool2d(one, 2) - F.avg_pool2d(other, 2)).abs().amax((2, 3)).min() > 1e-3


def test_the_details_depend_on_the_coarser_image():
    """The same latents of the fine grid are other details on another coarse image."""
    flow = moved(strength=0.1).double()
    cond = condition_of(flow)
    fine, coarse = (z.double() for z in sample_latents(flow.latent_shapes(4, 8), 2, seed=1))
    one, two = (Haar()(flow.prelude(flow.inverse([fine, z], cond))[0])[0][:, 2:] for z in (coarse, -coarse))
    assert (one - two).abs().max() > 1e-3


# --- initialize -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, ALONE], ids=["pyramid", "single"])
def test_initialize_whitens_first_and_then_normalizes_every_actnorm(fields):
    flow = tiny(**fields).double()
    x, cond = chroma(batch=16).double(), flow.encode_condition(source(8, batch=16).double())
    x[:, 1] += 0.7 * (x[:, 0] - NEUTRAL)  # channels that depend on each other
    expected = ChannelWhitening(2).double()
    expected.initialize(x)
    flow.initialize(x, cond)
    for name in ("mean", "matrix"):
        assert torch.equal(flow.prelude.get_buffer(name), expected.get_buffer(name))
    assert (expected.get_buffer("matrix")[0, 0] - 1).abs() > 1
    seen = []
    for part in flow.levels.modules():
        if type(part) is ActNorm:
            part.register_forward_hook(lambda module, arguments, result: seen.append(result[0]))
    flow(x, cond)
    assert seen
    for z in seen:  # those of conditioners are not called: their convolutions hold them
        assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-9
        assert (z.var(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-3


def test_initialize_gives_every_grid_latents_of_about_unit_size():
    flow = tiny(**THREE).double()
    x, cond = chroma(16, 16, 16).double(), flow.encode_condition(source(8, 64, 64, 16).double())
    for z in flow.initialize(x, cond):
        assert 0.9 < z.std() < 1.1


# --- what it is told --------------------------------------------------------------------------------------------------


def test_hints_and_palette_that_are_none_are_as_good_as_zero():
    flow = moved()
    luma = source(1)
    features = [
        flow.encode_condition(torch.cat([luma, luma.new_zeros(2, more, 16, 32)], dim=1)).features for more in (0, 3, 7)
    ]
    for others in features[1:]:
        assert all(torch.equal(one, two) for one, two in zip(features[0], others, strict=True))


@pytest.mark.parametrize("fields", [{}, ALONE], ids=["pyramid", "single"])
def test_luma_hints_and_palette_all_change_the_colors(fields):
    flow = moved(**fields)
    latents = sample_latents(flow.latent_shapes(4, 8), 2, seed=1)
    colors = [flow.inverse(latents, condition_of(flow, channels)) for channels in (1, 4, 8)]
    colors.append(flow.inverse(latents, flow.encode_condition(source(8, seed=9))))
    for one, two in pairwise(colors):
        assert (one - two).abs().amax((1, 2, 3)).min() > 1e-6


def test_a_condition_has_features_for_every_level():
    assert [f.shape for f in condition_of(tiny()).features] == [(2, 2 + 7, 2, 4), (2, 2 + 7, 1, 2)]
    assert [f.shape for f in condition_of(tiny(structure="single")).features] == [(2, 2 + 7, 2, 4)]


def test_one_condition_serves_several_samples():
    flow = moved()
    cond = flow.encode_condition(source(8, batch=1))
    latents = sample_latents(flow.latent_shapes(4, 8), 3, seed=1)
    together = flow.inverse(latents, cond.expand(3))
    for k in range(3):
        assert torch.allclose(together[k : k + 1], flow.inverse([z[k : k + 1] for z in latents], cond), atol=1e-5)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 16, 32), (2, 2, 16, 32), (2, 9, 16, 32), (1, 16, 32), (16, 32)], ids=str)
def test_a_source_of_other_channels_is_refused_with_those_that_would_do(shape):
    with pytest.raises(ShapeError, match=r"\(B, 1, H, W\), \(B, 4, H, W\) .* \(B, 8, H, W\) .*; got ") as caught:
        tiny().encode_condition(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("sides", [(16, 24), (8, 32), (17, 32), (0, 32)], ids=str)
def test_luma_that_does_not_fit_is_refused_with_the_numbers(sides):
    height, width = sides
    sentence = f"sides divisible by 16 here; got {height}x{width}. Use flowcore.colorize"
    with pytest.raises(ShapeError, match=sentence):
        tiny().encode_condition(torch.zeros(1, 1, height, width))


def test_the_multiple_of_luma_follows_the_number_of_grids():
    assert configure("colorizer", TINY).source_multiple == 16
    assert configure("colorizer", THREE).source_multiple == 32
    with pytest.raises(ShapeError, match="divisible by 32 here; got 16x32"):
        tiny(**THREE).encode_condition(source())


def test_chroma_of_another_size_than_its_luma_is_refused():
    flow = tiny()
    with pytest.raises(ConditionError, match=r"got .* on a 2x4 grid"):
        flow(chroma(8, 8), condition_of(flow))
    with pytest.raises(ShapeError, match=r"\(B, 2, H, W\); got \(2, 3, 4, 8\)"):
        flow(torch.zeros(2, 3, 4, 8), condition_of(flow))


def test_a_condition_of_the_other_structure_is_refused():
    with pytest.raises(ConditionError, match="has 2 levels; the condition has 1"):
        tiny()(chroma(), condition_of(tiny(structure="single")))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"structure": "flat"}, "structure must be 'pyramid' or 'single'; got 'flat'"),
        ({"steps": (1, 0)}, r"steps must be whole numbers from 1 to 64; got \(1, 0\)"),
        ({"hidden": (4, 5000)}, r"hidden must be whole numbers from 1 to 4096; got \(4, 5000\)"),
        ({"widths": "4,4,8"}, "widths must be whole numbers from 1 to 4096; got '4,4,8'"),
        ({"steps": (1,)}, "a number per grid, at most 8, and widths one more; got 1, 2 and 3"),
        ({"hidden": (4, 4, 4)}, "a number per grid, at most 8, and widths one more; got 2, 3 and 3"),
        ({"widths": (4, 8)}, "a number per grid, at most 8, and widths one more; got 2, 2 and 2"),
        ({"steps": (), "hidden": (), "widths": (4,)}, "at most 8, and widths one more; got 0, 0 and 1"),
        ({"steps": (1,) * 9, "hidden": (4,) * 9, "widths": (4,) * 10}, "at most 8, .*; got 9, 9 and 10"),
        ({"widths": (4, 4, 6)}, "The last of widths must be a multiple of 4; got 6"),
        ({"merged": 0}, "merged must be a whole number from 1 to 1024; got 0"),
        ({"features": 0}, "features must be a whole number from 1 to 1024; got 0"),
        ({"working_size": 8}, "working_size must be a whole number from 16 to 4096; got 8"),
        ({"temperatures": (1.0,)}, r"temperatures must be those of palette and detail; got \(1.0,\)"),
        ({"temperatures": (1.0, 10.5)}, r"temperatures must lie in \[0, 10\]; got \(1.0, 10.5\)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_a_wrong_configuration_is_refused_with_its_sentence(fields, sentence):
    with pytest.raises(FlowError, match=sentence):
        configure("colorizer", {**TINY, **fields})


def test_lists_as_json_has_them_become_tuples():
    config = configure("colorizer", {key: list(v) if isinstance(v, tuple) else v for key, v in TINY.items()})
    assert config == configure("colorizer", {**TINY, "temperatures": [0.9, 0.3]})
    assert config.steps == (1, 1)
    assert configure("colorizer", {"temperatures": [1, 0]}).temperatures == (1, 0)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"temperatures": (0.9, 0.2)}, ALONE], ids=["pyramid", "single"])
def test_a_file_gives_the_colorizer_back_with_its_whitening(fields, tmp_path):
    flow = moved(**fields)
    save(flow, tmp_path / "model.safetensors", provenance={"source": "made for a test"})
    back = read(tmp_path / "model.safetensors")
    assert back.config == flow.config
    assert torch.equal(back.prelude.get_buffer("matrix"), flow.prelude.get_buffer("matrix"))
    latents = sample_latents(flow.latent_shapes(4, 8), 2, seed=1)
    assert torch.equal(back.inverse(latents, condition_of(back)), flow.inverse(latents, condition_of(flow)))
    assert torch.equal(log_prob(back, chroma(), condition_of(back)), log_prob(flow, chroma(), condition_of(flow)))
