"""Overflow: decoded images are finite, attenuated where they would not be, and otherwise what the flow gives."""

import math

import pytest
import torch
from builders import build_tiny, build_upscaler

import flowcore
from flowcore import colorize, decode, sample, upscale
from flowcore.engine import overflow
from flowcore.engine.compiled import compiled
from flowcore.flows.prior import sample_latents
from flowcore.flows.transforms import ActNorm, Coupling
from flowcore.images.color import luma as luma_of
from flowcore.images.resize import enlarge
from flowcore.tasks.upscale import MAX_DEVIATION


def exploding_always():
    """Scales without a floor, which the weights drive to exp(-60): whatever is decoded is divided by them."""
    flow = build_upscaler(affine_eps=0.0)
    with torch.no_grad():
        for module in flow.levels.modules():
            if isinstance(module, Coupling):
                *_, bias = (p for name, p in module.named_parameters() if name.endswith("bias"))
                bias[1::2] = -60
                bias[0::2] = 1
    return flow


def picture(*shape, seed=0):
    """A smooth one."""
    small = torch.rand(shape[0], 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, shape[-2:], mode="bicubic").clamp(0, 1)


def plain(flow, lr, temperature, seed=0):
    """What the flow decodes, neither repaired nor clamped."""
    fast, scale = compiled(flow), flow.condition_scale
    z = sample_latents(flow.latent_shapes(*(scale * side for side in lr.shape[-2:])), 1, temperature, seed)
    return fast.inverse(z, fast.encode_condition(lr))


def repaired(flow, lr, z):
    fast = compiled(flow)
    decoder = overflow.bounded_decoder(fast, fast.encode_condition(lr), MAX_DEVIATION)
    return overflow.decode_with_backoff(decoder, z, lambda: torch.zeros(1, 3, 1, 1))


@pytest.fixture
def sentences():
    return []


def test_without_overflow_the_picture_is_the_flows_bit_for_bit(sentences):
    flow, lr = build_upscaler(), picture(1, 3, 24, 32)
    result = upscale(flow, lr, temperature=0.8, seed=3, notify=sentences.append)
    assert torch.equal(result, plain(flow, lr, 0.8, seed=3).clamp(0, 1))
    assert sentences == []


def test_a_shipped_model_at_a_high_temperature_is_repaired(sentences):
    """Noise is unlike any photograph: at 1.5 values of some thousand and more come out."""
    shipped = flowcore.load("srflow-x4")
    generator = torch.Generator().manual_seed(0)
    lr = (picture(1, 3, 32, 32) + 0.1 * torch.randn(1, 3, 32, 32, generator=generator)).clamp(0, 1)
    assert not ((plain(shipped, lr, 1.5) - 0.5).abs() < 100).all()
    result = upscale(shipped, lr, temperature=1.5, guide_strength=0, notify=sentences.append)
    assert "overflowed" in " ".join(sentences)
    # without the repair, most of what overflowed is black or of full color
    saturated = ((result == 0) | (result == 1)).all(1).float().mean()
    assert saturated < 0.02
    assert (torch.nn.functional.avg_pool2d(result, 4) - lr).abs().mean() < 0.08


def test_other_samples_of_a_batch_do_not_change():
    flow, lr = build_upscaler(), picture(1, 3, 8, 8)
    z = sample_latents(flow.latent_shapes(32, 32), 3, 0.5, 0)
    z[-1][1] *= 1e30
    expected = compiled(flow).inverse(z, compiled(flow).encode_condition(lr))
    decoded = repaired(flow, lr, z)
    assert torch.equal(decoded.images[0::2], expected[0::2])
    assert decoded.images.isfinite().all()
    assert decoded.attenuated.flatten(1).any(1).tolist() == [False, True, False]
    assert not decoded.filled.any()


def test_places_far_from_the_overflow_do_not_change():
    flow, lr = build_upscaler(), picture(1, 3, 96, 96)
    z = sample_latents(flow.latent_shapes(384, 384), 1, 0.5, 0)
    z[-1][..., 0, 0] *= 1e6  # in one corner
    expected = compiled(flow).inverse(z, compiled(flow).encode_condition(lr))
    decoded = repaired(flow, lr, z)
    assert (decoded.images[..., 200:, 200:] - expected[..., 200:, 200:]).abs().max() < 1e-5
    assert decoded.attenuated[..., :8, :8].all()
    assert not decoded.attenuated[..., 200:, :].any()
    assert ((decoded.images - 0.5).abs() <= MAX_DEVIATION).all()


def test_implausible_places_are_drawn_at_temperature_0_at_once_and_shown_even_if_that_does_not_help():
    seen, lowest = [], len(overflow.BACKOFF_SCALES) - 1

    def decode(latents, items):
        seen.append(latents[0].clone())
        mask = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        mask[..., :2, :2] = lowest
        return latents[0][:, :3], mask

    z = torch.randn(1, 4, 8, 8)
    decoded = overflow.decode_with_backoff(decode, [z], lambda: pytest.fail("called"))
    assert len(seen) == 2  # again would change nothing
    assert (decoded.images[..., :3, :3] == 0).all()
    assert torch.equal(decoded.images[..., 4:, 4:], z[:, :3, 4:, 4:])
    assert decoded.attenuated[..., :2, :2].all()
    assert not decoded.filled.any()


def colorful_dots():
    """Magenta on green, as small letters of a slide are, two pixels wide."""
    dots = (torch.rand(1, 1, 12, 16, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    green, magenta = (torch.tensor(rgb).view(1, 3, 1, 1) / 255 for rgb in ([31.0, 150, 139], [255.0, 10, 255]))
    return torch.lerp(green, magenta, dots.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_small_letters_of_saturated_color_are_clean_at_the_default(sentences):
    """Where values leave the range of photographs, the picture is that of temperature 0."""
    shipped, lr = flowcore.load("srflow-x4"), colorful_dots()
    raw = plain(shipped, lr, shipped.config.temperature, seed=1)
    wrong = ((raw - 0.5).abs() > shipped.config.plausible_deviation).any(1, keepdim=True).expand_as(raw)
    assert wrong.any()
    result = upscale(shipped, lr, calm_edges=0, seed=1, notify=sentences.append)
    assert "drawn there at a lower temperature" in " ".join(sentences)
    calm = upscale(shipped, lr, temperature=0)
    errors = [(pictures - calm).abs()[wrong].mean() for pictures in (result, raw.clamp(0, 1))]
    assert errors[0] < 0.2 * errors[1]


class Given:
    """Decodes latents to themselves."""

    def inverse(self, latents, cond):
        return latents[0]


def test_values_are_implausible_in_pictures_with_a_limit_and_overflow_in_all():
    z = torch.full((2, 3, 2, 2), 0.5)
    z[:, 1, 0, 0], z[:, 0, 0, 1], z[:, 2, 1, 1] = 2.0, 2 * MAX_DEVIATION, math.nan  # the first is 1.5 from mid gray
    decode = overflow.bounded_decoder(Given(), None, MAX_DEVIATION, [MAX_DEVIATION, 1.0])
    lowest = len(overflow.BACKOFF_SCALES) - 1
    _, mask = decode([z], None)
    assert mask[:, 0].tolist() == [[[0, 1], [0, 1]], [[lowest, 1], [0, 1]]]
    _, mask = decode([z[1:]], torch.tensor([1]))
    assert mask[:, 0].tolist() == [[[lowest, 1], [0, 1]]]
    _, mask = decode([z[:1].clamp(max=2).nan_to_num(0.5)], torch.tensor([1]))
    assert mask[0, 0].tolist() == [[lowest, lowest], [0, 0]]


def test_a_limit_holds_for_settings_without_a_high_temperature(monkeypatch):
    seen, decoder = [], overflow.bounded_decoder
    monkeypatch.setattr(overflow, "bounded_decoder", lambda *given: seen.extend(given[3]) or decoder(*given))
    flow, lr = build_upscaler(plausible_deviation=1.0), picture(1, 3, 8, 8)
    flowcore.temperature_grid(flow, lr, [overflow.CALM, overflow.CALM + 0.01], seeds=2)
    upscale(flow, lr, temperature=[0.3, 1.0, 0.3][: len(flow.latent_shapes(32, 32))])
    upscale(build_upscaler(), lr, temperature=0.3)
    assert seen == [1.0, 1.0, *[MAX_DEVIATION] * 4]


def test_infinite_latents_end_as_zero(sentences):
    """Infinity times zero is no number, and must not stay one."""
    flow = build_tiny("glow", perturb=0.05)
    z = sample_latents(flow.latent_shapes(16, 16), 2, 0.7, 0)
    good = decode(flow, [level[1:] for level in z])
    for level in z:
        level[0] = math.inf
    images = decode(flow, z, notify=sentences.append)
    assert images.isfinite().all()
    assert torch.allclose(images[1:], good, atol=1e-5)
    assert "1 picture" in sentences[0]


@pytest.mark.parametrize("tile", [0, 32])
def test_a_flow_that_always_overflows_gives_a_bicubic_enlargement(sentences, tile):
    flow, lr = exploding_always(), picture(1, 3, 40, 44)
    assert not plain(flow, lr, 0.0).isfinite().all()
    result = upscale(flow, lr, temperature=0.8, tile=tile, samples=2, notify=sentences.append)
    assert (result - enlarge(lr, 4).clamp(0, 1)).abs().max() < 1e-5
    assert "at any temperature in 2 pictures, 100.0 % of them" in sentences[0]


def test_an_unusual_pattern_is_replaced_in_its_place_only(sentences):
    """A dithered square in a smooth picture explodes even at temperature 0."""
    flow, lr = flowcore.load("srflow-x8"), picture(1, 3, 32, 32)
    rows = torch.arange(16)
    lr[..., 14:30, 14:30] = ((rows[:, None] + rows) % 2).float()
    assert not plain(flow, lr, 0.0).isfinite().all()
    result = upscale(flow, lr, temperature=0.8, notify=sentences.append)
    assert result.isfinite().all()
    assert any("at any temperature in 1 picture" in sentence for sentence in sentences)
    smooth = upscale(flow, picture(1, 3, 32, 32), temperature=0.8)
    assert (result - smooth)[..., :24, :24].abs().mean() < 0.01


def test_a_fallback_fades_into_the_picture():
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 30:34, 30:34] = True
    images = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    images[mask] = math.nan
    blended = overflow._blend(images, torch.ones_like(images), mask)
    assert (blended[mask] == 1).all()
    row = blended[0, 0, 32]
    assert (row.diff()[:30] >= 0).all()
    assert row.diff().abs().max() < 0.2
    assert (row[:13] == 0).all()


def test_a_glow_that_always_overflows_gives_gray(sentences):
    flow = build_tiny("glow", perturb=0.05, image_size=16)
    with torch.no_grad():
        next(m for m in flow.levels.modules() if isinstance(m, ActNorm)).bias.fill_(1e30)
    images = sample(flow, 2, temperature=0.7, notify=sentences.append)
    assert (images == 0.5).all()
    assert "2 pictures, 100.0 % of them: left gray" in sentences[0]


def test_colors_that_overflow_are_attenuated_and_luma_stays(sentences):
    flow, luma = flowcore.load("color-photos"), luma_of(picture(1, 3, 96, 96, seed=5))
    usual = colorize(flow, luma, temperature=1.0, detail=0.3, seed=2, notify=sentences.append)
    assert sentences == []
    high = colorize(flow, luma, temperature=3.0, detail=3.0, seed=2, notify=sentences.append)
    assert "overflowed in 1 picture" in sentences[0]
    for result in (usual, high):
        assert result.isfinite().all()
        assert (luma_of(result) - luma).abs().max() < 1e-5


def test_repaired_tiles_of_a_picture_are_added_up_and_parts_are_never_all_of_it():
    repairs, said = overflow.OverflowCounts(), []
    half, none = torch.zeros(2, 1, 4, 4, dtype=torch.bool), torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    half[0, :, :2] = True
    for first in (0, 0, 2):
        repairs.add(first, half, none)
    repairs.add(0, None, None)
    repairs.report(said.append, 32, "left gray")
    assert "in 2 pictures, 37.5 % of them" in said[0]
    repairs, filled = overflow.OverflowCounts(), torch.zeros(1, 1, 50, 50, dtype=torch.bool)
    filled[..., 0, 0] = True
    repairs.add(0, ~filled, filled)
    repairs.report(said.append, 2500, "left gray")
    assert "99.9 % of it" in said[1]
    assert "less than 0.1 % of it" in said[2]
