"""The colorizer: the law in both structures, which latents decide what, and its luma, hints and palette inputs."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F
from builders import build_minimal
from flowcore.testing import check, perturbed
from torch import nn

from flowcore import ConditionError, FlowError, ShapeError
from flowcore.flows.prior import sample_latents
from flowcore.flows.transforms import ChannelWhitening, Haar
from flowcore.images.color import NEUTRAL
from flowcore.models.colorizer.luma import split_source
from flowcore.tasks.chroma import _chroma_of_level, _level_of_chroma

SEEING = {"backbone": "efficientnet-lite0", "predicts_chroma": True, "residual": True, "smooth": True}
THREE = {"steps": (1, 2, 1), "hidden": (4, 4, 4), "widths": (4, 4, 4, 8), "merged": 8, "features": 2}


tiny = functools.partial(build_minimal, "colorizer")


def moved(strength=0.05, **fields):
    """One away from where it starts, whitening included."""
    flow = perturbed(tiny(**fields), strength)
    flow.preprocess.mean.copy_(torch.tensor([0.51, 0.49]))
    flow.preprocess.matrix.copy_(torch.tensor([[8.0, 0.0], [3.0, 11.0]]))
    return flow


def chroma(height=4, width=8, batch=2):
    """Around neutral, as far as photographs go."""
    return NEUTRAL + 0.1 * torch.randn(batch, 2, height, width, generator=torch.Generator().manual_seed(6))


def source(channels=1, height=16, width=32, batch=2, seed=5):
    """Luma; from 4 channels on a square of hints; with 8 a palette, too."""
    given = torch.zeros(batch, 8, height, width)
    given[:, :1] = torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(seed))
    given[:, 1:4, :8, :8] = torch.tensor([1.0, -0.1, 0.2])[:, None, None]
    given[:, 4:] = torch.tensor([1.0, 0.05, -0.08, 0.12])[:, None, None]
    return given[:, :channels]


def condition_of(flow, *arguments):
    return flow.encode_condition(source(*(arguments or (8,))).to(next(flow.parameters()).dtype))


def test_predicted_chroma_and_smooth_grids_obey_the_law():
    flow = moved(strength=0.03, **THREE, predicts_chroma=True, residual=True, smooth=True)
    check(flow, chroma(8, 16), lambda f: condition_of(f, 8, 32, 64), strength=0.0)


def test_coarse_colors_depend_on_the_coarsest_latents_alone_and_details_on_all():
    """So the means over 4x4 pixels are the same for every draw of the finer latents."""
    flow = moved(strength=0.1).double()
    cond = condition_of(flow)
    fine, coarse = (z.double() for z in sample_latents(flow.latent_shapes(4, 8), 2, seed=1))
    one, two, other = (flow.inverse(z, cond) for z in ([fine, coarse], [-fine, coarse], [fine, -coarse]))
    assert torch.allclose(F.avg_pool2d(one, 2), F.avg_pool2d(two, 2), atol=1e-12)
    assert (one - two).abs().max() > 1e-3
    assert (F.avg_pool2d(one, 2) - F.avg_pool2d(other, 2)).abs().amax((2, 3)).min() > 1e-3
    # the same latents of the fine grid are other details on another coarse image
    details, others = (Haar()(flow.preprocess(colors)[0])[0][:, 2:] for colors in (one, other))
    assert (details - others).abs().max() > 1e-3


def test_initialize_whitens_the_chroma():
    flow = tiny().double()
    x, cond = chroma(batch=16).double(), condition_of(flow, 8, 16, 32, 16)
    x[:, 1] += 0.7 * (x[:, 0] - NEUTRAL)  # channels that depend on each other
    expected = ChannelWhitening(2).double()
    expected.initialize(x)
    assert (expected.matrix[0, 0] - 1).abs() > 1
    flow.initialize(x, cond)
    assert torch.equal(flow.preprocess.mean, expected.mean)
    assert torch.equal(flow.preprocess.matrix, expected.matrix)


def test_missing_hints_and_palette_are_zeros():
    flow, luma = moved(), source(1)
    expected, *others = (
        flow.encode_condition(torch.cat([luma, luma.new_zeros(2, more, 16, 32)], dim=1)).features for more in (0, 3, 7)
    )
    for features in others:
        assert all(torch.equal(one, two) for one, two in zip(expected, features, strict=True))


def seeing():
    """A colorizer with a backbone of random weights, and its backbone."""
    flow = moved(**THREE, **SEEING)
    for parameter in flow.encoder.backbone.parameters():
        fan_in = max(1, parameter[0].numel())
        nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5)
    return flow.eval(), flow.encoder.backbone


def test_a_backbone_is_seen_by_every_grid():
    flow, backbone = seeing()
    before = condition_of(flow, 8, 32, 64).features
    with torch.no_grad():
        backbone.stages[-1][-1].project.weight[0] += 1
    after = condition_of(flow, 8, 32, 64).features
    for one, two in zip(before, after, strict=True):
        assert (one - two).abs().max() > 1e-4
        assert torch.equal(one[:, -7:], two[:, -7:])  # hints and palette


def test_predicted_chroma_is_part_of_the_condition():
    flow, _ = seeing()
    predicted = flow.encoder.predict_chroma(*split_source(source(8, 32, 64)))
    for features, chroma_of_grid in zip(condition_of(flow, 8, 32, 64).features, predicted, strict=True):
        assert chroma_of_grid.abs().max() > 0
        assert torch.allclose(features[:, 2:4], chroma_of_grid, atol=1e-6)


def test_a_residual_flow_models_what_the_prediction_leaves():
    """The density of chroma is that of its difference to the prediction under the same flow without a residual."""
    flow, plain = (moved(**THREE, predicts_chroma=True, residual=residual).double() for residual in (True, False))
    x, given = chroma(8, 16).double(), source(8, 32, 64).double()
    predicted = F.interpolate(flow.encoder.predict_chroma(*split_source(given))[0] * 0.1, (8, 16), mode="bicubic")
    assert predicted.abs().max() > 1e-3
    latents, logdet = flow(x, flow.encode_condition(given))
    # whitening is linear, so the mean that it takes away is taken away twice
    others, other = plain(x - predicted - NEUTRAL + flow.preprocess.mean[:, None, None], plain.encode_condition(given))
    assert all(torch.allclose(one, two, atol=1e-9) for one, two in zip(latents, others, strict=True))
    assert torch.allclose(logdet, other)


def test_bounds_and_locks_include_the_predicted_chroma():
    flow, _ = seeing()
    flow.double()
    cond = flow.encode_condition(source(8, 32, 64).double())
    latents = [z.double() for z in sample_latents(flow.latent_shapes(8, 16), 2, seed=1)]
    levels = []

    def see(level, x):
        levels.append((level, _chroma_of_level(flow, cond, level, x)))
        assert torch.allclose(_level_of_chroma(flow, cond, *levels[-1]), x, atol=1e-12)
        return x

    decoded = flow.inverse(latents, cond, see) - NEUTRAL
    for level, means in levels:
        assert torch.allclose(means, F.avg_pool2d(decoded, 2**level), atol=1e-2 if level else 1e-12)


def test_a_frozen_backbone_gets_no_gradient_and_the_rest_does():
    flow, backbone = seeing()
    backbone.requires_grad_(False)
    loss = sum(p.square().sum() for p in flow.encoder.predict_chroma(*split_source(source(8, 32, 64))))
    loss.backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert all(tap.weight.grad.abs().sum() > 0 for tap in (*flow.encoder.taps, flow.encoder.average))


def test_a_source_that_does_not_fit_is_refused_with_what_would_do():
    for shape in ((2, 3, 16, 32), (2, 9, 16, 32), (1, 16, 32), (16, 32)):
        words = r"\(B, 1, H, W\), \(B, 4, H, W\) .* \(B, 8, H, W\) .*; got " + re.escape(str(shape))
        with pytest.raises(ShapeError, match=words):
            tiny().encode_condition(torch.zeros(shape))
    for fields, multiple, sides in ({}, 16, (16, 24)), ({}, 16, (17, 32)), ({}, 16, (0, 32)), (THREE, 32, (16, 32)):
        sentence = f"sides divisible by {multiple} here; got {sides[0]}x{sides[1]}. Use flowcore.colorize"
        with pytest.raises(ShapeError, match=sentence):
            tiny(**fields).encode_condition(torch.zeros(1, 1, *sides))


def test_a_condition_of_another_size_or_structure_is_refused():
    flow = tiny()
    with pytest.raises(ConditionError):
        flow(chroma(8, 8), condition_of(flow))
    with pytest.raises(ConditionError):
        flow(chroma(), condition_of(tiny(structure="single")))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"residual": True}, "residual = true needs predicts_chroma"),
        ({"backbone": "efficientnet-lite0"}, r"at least 3 grids.* got 2"),
        ({"steps": (1,)}, "a number per grid, at most 8, and widths one more; got 1, 2 and 3"),
        ({"widths": (4, 8)}, "a number per grid, at most 8, and widths one more; got 2, 2 and 2"),
        ({"steps": (), "hidden": (), "widths": (4,)}, "at most 8, and widths one more; got 0, 0 and 1"),
        ({"steps": (1,) * 9, "hidden": (4,) * 9, "widths": (4,) * 10}, "at most 8, .*; got 9, 9 and 10"),
        ({"widths": (4, 4, 6)}, "The last of widths must be a multiple of 4; got 6"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_a_wrong_configuration_is_refused_with_its_sentence(fields, sentence):
    with pytest.raises(FlowError, match=sentence):
        tiny(**fields)
