"""Verify: pictures are traced to their seed or mark after recompression, resizing, cropping and editing."""

import io
import math

import numpy as np
import pytest
import torch
from builders import build_tiny, random_image
from PIL import Image

import flowcore
from flowcore import FlowError, verify
from flowcore.flows.mark import mark_key, mark_noise
from flowcore.flows.prior import MARK_SHARE, sample_latents
from flowcore.images import color
from flowcore.tasks import examination as module
from flowcore.tasks import seeds as of_seeds
from flowcore.tasks.edits import local_statistics
from flowcore.tasks.examination import bonferroni, statistic

from .golden_pictures import photo

LIVELY = {"temperature": 1.2, "calm_edges": 0.5, "guide_strength": 0.5}
RANDOM = 4.5  # z that no other seed or picture reaches


@pytest.fixture(scope="module")
def flow():
    return flowcore.load("srflow-x4")


@pytest.fixture(scope="module")
def small():
    return photo(48, 56)


@pytest.fixture(scope="module")
def large(flow, small):
    return flowcore.upscale(flow, small, seed=11, **LIVELY)  # 192x224


def saved(image, size=None, quality=None):
    """Save a picture with Pillow, resized to height and width, as JPEG or PNG; and read it."""
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    opened, file = Image.fromarray(pixels), io.BytesIO()
    if size is not None:
        opened = opened.resize(size[::-1], Image.Resampling.LANCZOS)
    opened.save(file, "JPEG" if quality else "PNG", **({"quality": quality} if quality else {}))
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255


def test_an_enlargement_is_verified_by_its_seed_alone(flow, large):
    for quality, least in ((None, 100.0), (85, 10.0), (75, 6.0)):
        stored = saved(large, quality=quality)
        assert float(verify(flow, stored, seed=11).z) > least
        assert abs(float(verify(flow, stored, seed=12, search=False).z)) < RANDOM


def test_another_picture_is_not_verified(flow, small):
    original = torch.nn.functional.interpolate(small, scale_factor=4.0, mode="bicubic").clamp(0, 1)
    result = verify(flow, original, seed=11)
    assert float(result.z) < RANDOM
    assert not result.verified.any()


def test_a_shrunk_jpeg_of_another_program_is_verified(flow, large):
    result = verify(flow, saved(large, (144, 168), quality=80), seed=11)
    assert result.verified.all()
    assert result.size.tolist() == [[192, 224]]
    assert result.agreement.shape == (1, 1, 144, 168)


def test_settings_need_not_be_known(flow, small):
    settings = {"temperature": 0.8, "calm_edges": 0.0, "guide_strength": 0.6, "match_source": True, "longest_side": 200}
    made = flowcore.upscale(flow, small, seed=3, **settings)
    assert verify(flow, saved(made), seed=3, size=(192, 224)).verified.all()


def test_the_seed_of_a_mirrored_jpeg_is_found_among_many_and_counts_for_less(flow, large):
    stored = saved(large, quality=75).flip(-1)
    found = verify(flow, stored, among=range(500))
    alone = verify(flow, stored.flip(-1), seed=11, search=False)
    assert (found.seeds, found.mirrored.tolist(), found.verified.tolist()) == ((11,), [True], [True])
    assert float(found.z) == pytest.approx(bonferroni(float(alone.z), 2 * 500))
    assert verify(flow, stored, among=[3, 2**64 - 1, 11]).seeds == (11,)


def test_no_seed_of_many_is_found_in_pictures_of_another_origin():
    glow, counted = flowcore.load("glow-photos"), []
    made = flowcore.sample(glow, 2, seed=5000, size=64)
    pictures = torch.cat([made, photo(64, 64), torch.rand(1, 3, 64, 64), torch.full((1, 3, 64, 64), 0.5)])
    found = verify(glow, pictures, among=range(1500), progress=lambda done, total, _: counted.append((done, total)))
    assert float(found.z.max()) < 2.5
    assert counted[-1] == (5 * 1500, 5 * 1500)
    assert verify(glow, made, among=range(4990, 5010)).seeds == (5000, 5001)


@pytest.mark.parametrize("sides", [[(1, 3, 40, 41), (1, 6, 9, 11), (1, 5, 3, 7)], [(1, 2, 3, 5)], [(1, 3, 99, 80)]])
def test_the_part_that_is_compared_of_many_seeds_is_where_they_draw_it(monkeypatch, sides):
    monkeypatch.setattr(of_seeds, "NUMBERS", 1000)
    latents = sample_latents([side[1:] for side in sides], 1, 1.0, 77)
    found = of_seeds.likely([[torch.randn(side) for side in sides], latents], range(100), lambda _: None)
    assert found[0] == (1, 77)
    monkeypatch.setattr(of_seeds, "FAR", 100)  # the first numbers are compared, too
    monkeypatch.setattr(of_seeds, "FIRST", 512)
    latents[0].view(-1)[512:] = 0.1
    assert of_seeds.likely([latents], range(100), lambda _: None)[0] == (0, 77)


def test_the_place_of_a_mirrored_crop_is_found(flow, large):
    part = saved(large[..., 55:, 81:], quality=90).flip(-1)
    result = verify(flow, part, seed=11, size=(192, 224))
    assert result.verified.all()
    assert result.offset.tolist() == [[55, 81]]
    assert result.mirrored.all()
    assert not verify(flow, part, seed=12, size=(192, 224)).verified.any()


def test_a_place_lies_within_the_picture_though_more_would_agree_beyond_its_border(flow, large):
    part = torch.full((1, 3, 136, 140), 0.5)
    part[..., :100] = large[..., 37:173, 124:]
    assert int(verify(flow, part, seed=11, size=(192, 224)).offset[0, 1]) <= 224 - 140


def test_the_map_is_dark_where_another_seed_was_pasted(flow, small, large):
    edited, other = large.clone(), flowcore.upscale(flow, small, seed=99, **LIVELY)
    edited[..., 64:144, 100:180] = other[..., 64:144, 100:180]
    result = verify(flow, saved(edited, quality=90), seed=11)
    agreement = result.agreement
    outside = torch.ones_like(agreement, dtype=torch.bool)
    outside[..., 44:164, 80:200] = False
    elsewhere = agreement[outside]
    assert float(agreement[..., 84:124, 120:160].mean()) < float(elsewhere.mean() - 2 * elsewhere.std())
    assert float(result.edited[..., 84:124, 120:160].mean()) > 0.4
    assert float(result.edited[outside].mean()) < 0.05
    shrunk = verify(flow, saved(edited, (144, 168), quality=90), seed=11)  # whose size is found beside the edit
    assert shrunk.verified.all()
    assert float(shrunk.edited[..., 68:88, 95:115].mean()) > 0.4


def test_pictures_have_one_seed_or_a_list_and_tiles_change_nothing(flow, small, monkeypatch):
    pair = flowcore.upscale(flow, small[..., :40, :33], seed=2**64 - 1, samples=2)
    assert verify(flow, pair, seed=2**64 - 1, search=False).verified.tolist() == [True, False]
    with pytest.raises(FlowError, match="one for each of 2 pictures; got 3 seeds"):
        verify(flow, pair, seed=[1, 2, 3])
    seeds = [2**64 - 1, 0]
    whole = verify(flow, pair, seed=seeds)
    assert whole.verified.tolist() == [True, True]
    monkeypatch.setattr(module, "TILE", 64)
    tiled = verify(flow, pair, seed=seeds)
    assert torch.allclose(tiled.z, whole.z, rtol=0.01)
    assert torch.allclose(tiled.agreement, whole.agreement, atol=0.02)


def test_samples_colorings_and_restored_pictures_are_verified(small):
    glow, colors, rescaling = (flowcore.load(name) for name in ("glow-photos", "color-photos", "rescale-x4"))
    y = color.luma(small.repeat_interleave(3, 2).repeat_interleave(3, 3))
    restored = flowcore.restore(rescaling, flowcore.shrink(rescaling, small), seed=5, temperature=0.5)
    made = (
        (glow, flowcore.sample(glow, 2, seed=5)),
        (flowcore.load("realnvp-photos"), flowcore.sample(flowcore.load("realnvp-photos"), 1, seed=5, size=64)),
        (colors, flowcore.colorize(colors, y, seed=5)),
        (rescaling, restored),
    )
    for flow, pictures in made:
        stored = torch.cat([saved(each[None]) for each in pictures])
        seeds = [*range(5, 5 + len(stored))]
        assert verify(flow, stored, seed=seeds).verified.all(), flow.architecture
        assert (verify(flow, stored, seed=50, search=False).z.abs() < RANDOM).all(), flow.architecture


def test_a_mark_is_found_without_the_seed(flow, small):
    marked = saved(flowcore.upscale(flow, small, seed=8, mark="The quiet harbor, 1962"))
    assert float(verify(flow, marked, mark="the quiet  harbor, 1962").z) > 30
    assert float(verify(flow, marked, seed=8).z) > 100
    assert abs(float(verify(flow, marked, mark="the quiet harbor, 1963", search=False).z)) < RANDOM


def test_marked_noise_is_standard_normal():
    levels = sample_latents([(6, 64, 64), (96, 16, 16)], 20, 1.0, 3, mark="a phrase")
    plain = sample_latents([(6, 64, 64), (96, 16, 16)], 20, 1.0, 3)
    phrase = mark_noise(mark_key("a phrase"), [(6, 64, 64), (96, 16, 16)])
    for marked, drawn, noise in zip(levels, plain, phrase, strict=True):
        assert torch.allclose(marked, math.sqrt(1 - MARK_SHARE**2) * drawn + MARK_SHARE * noise, atol=1e-6)
        for values in marked:  # of one picture: moments and the Kolmogorov-Smirnov distance of all its numbers
            n, ordered = values.numel(), values.flatten().double().sort().values
            assert abs(float(ordered.mean())) < 5 / math.sqrt(n)
            assert abs(float(ordered.var()) - 1) < 5 * math.sqrt(2 / n)
            steps = (torch.arange(n, dtype=torch.float64) + 0.5) / n
            assert float((torch.special.ndtr(ordered) - steps).abs().max()) < 2.7 / math.sqrt(n)  # by chance 1e-6


def test_the_statistic_of_independent_noise_is_standard_normal():
    generator = torch.Generator().manual_seed(4)
    scores = [
        statistic(
            [(3 * torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)) for shape in sides]
        )
        for sides in [[(1, 6, 8, 8), (1, 24, 4, 4)]] * 2000
    ]
    values = torch.tensor(scores)
    assert abs(float(values.mean())) < 0.1
    assert abs(float(values.std()) - 1) < 0.08


def test_what_was_found_among_many_counts_for_less():
    for z, tries in ((4.0, 50), (6.5, 1000), (30.0, 10**6)):
        lowered = bonferroni(z, tries)
        chance = [math.erfc(value / math.sqrt(2)) / 2 for value in (z, lowered)]
        assert chance[1] >= min(0.5, tries * chance[0])
        assert bonferroni(z, 1) == z
    assert bonferroni(-7.0, 3) == 0


def test_agreement_is_the_correlation_of_latents_and_noise():
    noise = [torch.randn(1, 12, 32, 32), torch.randn(1, 48, 16, 16)]
    pairs = [(0.8 * n + 0.6 * torch.randn_like(n), n) for n in noise]
    assert float(local_statistics(pairs).agreement.mean()) == pytest.approx(0.8, abs=0.05)


def test_what_cannot_be_verified_is_refused(flow, large):
    digits = build_tiny("class_conditional")
    with pytest.raises(FlowError, match="class_conditional"):
        verify(digits, random_image(1, 1, 8, 12))
    with pytest.raises(FlowError, match="191x224"):
        verify(flow, large, size=(191, 224))
    with pytest.raises(FlowError, match="among must be at least one seed"):
        verify(flow, large, among=[])
    with pytest.raises(FlowError, match="phrase"):
        verify(flow, large, mark="  ")
