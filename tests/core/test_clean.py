"""Clean: how much of a picture changes, with which strength, and what stays."""

import io

import pytest
import torch
from builders import build_tiny, random_image
from PIL import Image

import flowcore
from flowcore import FlowError
from flowcore.engine.condition_cache import RecentlyUsed
from flowcore.images import files
from flowcore.images.color import to_uint8
from flowcore.images.metrics import psnr
from flowcore.images.motion import blur
from flowcore.tasks import clean as module

from . import golden_pictures


@pytest.fixture(scope="module")
def restorer():
    return flowcore.load("srflow-x4-photo")


@pytest.fixture(scope="module")
def photo():
    return golden_pictures.photo(64, 64)


def with_noise(image, deviation, seed=1):
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (image + deviation / 255 * noise).clamp(0, 1)


def test_noise_goes_at_the_strength_that_suits_it(restorer, photo):
    noisy = with_noise(photo, 10)
    difference = flowcore.clean(restorer, noisy, strength=1.0) - noisy
    assert 255 * float((module._damage(noisy, difference) * module.NOISE).sqrt()) == pytest.approx(10, rel=0.3)
    assert psnr(flowcore.clean(restorer, noisy), photo) > psnr(noisy, photo) + 3


def test_strength_bounds_the_change_by_the_measured_damage(restorer, photo):
    noisy = with_noise(photo, 10)
    whole = flowcore.clean(restorer, noisy, strength=1.0)
    allowed = module._damage(noisy, whole - noisy)
    for strength, times in ((0.2, 0.25), (0.5, 1)):
        changed = flowcore.clean(restorer, noisy, strength=strength) - noisy
        expected = times * allowed * torch.tanh((whole - noisy) / (times * allowed))
        inside = (whole > 0) & (whole < 1)
        assert (changed - expected)[inside].abs().max() < 1e-5
    assert torch.equal(flowcore.clean(restorer, noisy, strength=0.0), noisy)


def test_light_and_colors_stay(restorer, photo):
    noisy = with_noise(photo, 10)
    whole = flowcore.clean(restorer, noisy, strength=1.0)
    assert blur(whole - noisy, 2 * module.KEPT).abs().max() < 1 / 255


def test_a_picture_without_damage_hardly_changes(restorer, photo):
    assert (flowcore.clean(restorer, photo) - photo).abs().max() < 5 / 255


def test_the_quality_of_a_jpeg_file_bounds_the_change(restorer, photo):
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(photo[0]).permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=30)
    blocky = files.read(buffer.getvalue(), "blocky.jpg").pixels
    assert float(module._damage(blocky, torch.zeros_like(blocky))) == pytest.approx(8.7 / 255, rel=0.1)
    assert psnr(flowcore.clean(restorer, blocky), photo) > psnr(blocky, photo)


def test_parts_make_the_same_picture_as_the_whole(monkeypatch):
    flow, image = build_tiny("srflow", perturb=0.05, guide_layers=2, guide_width=4), random_image(1, 3, 50, 20)
    whole = flowcore.clean(flow, image, strength=1.0)
    monkeypatch.setattr(module, "ROWS", 16)
    assert (flowcore.clean(flow, image, strength=1.0) - whole).abs().max() < 1e-5


def test_a_store_keeps_what_the_network_made(photo):
    flow, store = build_tiny("srflow", perturb=0.05, guide_layers=2, guide_width=4), RecentlyUsed(2)
    first = flowcore.clean(flow, photo, strength=0.7, store=store)
    calls: list[int] = []
    flowcore.clean(flow, photo, strength=0.2, store=store, progress=lambda done, *_: calls.append(done))
    assert calls == []  # no unit of work was done
    assert torch.equal(flowcore.clean(flow, photo, strength=0.7, store=store), first)
    flowcore.clean(flow, with_noise(photo, 4), store=store, progress=lambda done, *_: calls.append(done))
    assert calls


def test_a_model_without_the_network_is_refused(photo):
    with pytest.raises(FlowError, match="Load srflow-x4-photo"):
        flowcore.clean(build_tiny("srflow"), photo)
