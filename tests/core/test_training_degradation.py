"""Realistic degradation: exactly what was drawn, no border effects, aligned with HR."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from flowcore.images.resize import downsample
from flowcore.training.degradation import (
    GRID,
    MAX_BLUR,
    MAX_PHOTON,
    MAX_QUALITY,
    MIN_QUALITY,
    Degradation,
    darken,
    degrade,
    draw_degradation,
)

from .photographs import open_photographs, photograph, photographs


def rng(seed=0):
    return np.random.default_rng(seed)


def image(height=192, width=256, seed=0):
    return np.asarray(photograph(height, width, seed=seed))


def gray(level, side=512):
    return np.full((side, side, 3), level, dtype=np.uint8)


def lr_of(hr, scale, side, **way):
    """The middle of the LR image."""
    top, left = ((n // scale - side) // 2 for n in hr.shape[:2])
    return degrade(hr, scale, top, left, side, Degradation(**way), rng()).astype(float) / 255


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_without_degradation_lr_is_bicubic(scale):
    """Inside, and at every border of the photograph."""
    hr = image()
    whole = downsample(torch.from_numpy(hr.copy()).permute(2, 0, 1)[None].float() / 255, scale)[0].permute(1, 2, 0)
    height, width = whole.shape[:2]
    for top, left in ((0, 0), (height - 12, width - 12), (3, width - 12), (5, 7)):
        came = degrade(hr, scale, top, left, 12, Degradation(), rng())
        expected = (whole.clamp(0, 1) * 255)[top : top + 12, left : left + 12].numpy()
        assert came.dtype == np.uint8
        assert np.abs(came - expected).max() <= 0.51


@pytest.mark.parametrize(
    "way",
    [
        {"kernel": "bilinear"},
        {"kernel": "area"},
        {"quality": 40, "subsampled": True, "grid": (0, 15)},
        {"blur": (0.9, 0.5), "direction": 2.0, "quality": 60, "grid": (9, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [2, 4])
def test_a_crop_is_the_part_of_a_larger_crop(scale, way):
    """Neither blur nor blocks see where a crop ends."""
    hr, way = image(384, 384), Degradation(**way)
    small = degrade(hr, scale, 32, 32, 20, way, rng())
    large = degrade(hr, scale, 32 - GRID, 32 - GRID, 20 + 2 * GRID, way, rng())[GRID : GRID + 20, GRID : GRID + 20]
    if way.subsampled:  # JPEG interpolates chroma, and has no neighbors to do so at the outermost pixels
        small, large = small[1:-1, 1:-1], large[1:-1, 1:-1]
    assert small.std() > 20
    assert np.abs(small.astype(int) - large).max() <= 1  # of rounding; a border shows by far more


def test_crops_lie_anywhere_in_the_grid_of_jpegs_blocks():
    """At the lowest quality all steps of brightness are between blocks."""
    hr = np.broadcast_to(np.linspace(0, 255, 512)[:, None, None], (512, 512, 3)).astype(np.uint8)
    for row in (0, 3, 9):
        lr = degrade(hr, 4, 20, 20, 96, Degradation(quality=1, grid=(row, 0)), rng())
        steps = np.flatnonzero(np.abs(np.diff(lr[:, 5, 1].astype(int))) > 1) + 1
        assert len(steps) > 1
        assert set((steps + row) % 8) == {0}


def test_blur_is_along_its_direction_and_as_wide_as_stated():
    """A wave of frequency f fades by exp(-2 (pi f s)^2)."""
    period = 32  # HR pixels
    rows, columns = np.mgrid[:512, :512]

    def wave(direction):
        """Varies along one direction only."""
        phase = 2 * np.pi * (columns * math.cos(direction) + rows * math.sin(direction)) / period
        return np.repeat(((0.5 + 0.4 * np.sin(phase))[..., None] * 255).round().astype(np.uint8), 3, 2)

    def fading(width):
        return math.exp(-2 * (math.pi * width * 4 / period) ** 2)

    for along in (0.0, math.pi / 4, math.pi / 2):
        hr = wave(along)
        sharp = lr_of(hr, 4, 64).std()
        for direction, expected in ((along, fading(1.5)), (along + math.pi / 2, fading(0.5))):
            assert lr_of(hr, 4, 64, blur=(1.5, 0.5), direction=direction).std() / sharp == pytest.approx(expected, 0.03)
        assert lr_of(hr, 4, 64, blur=(1.0, 1.0)).std() / sharp == pytest.approx(fading(1.0), rel=0.03)
    assert lr_of(wave(0.0), 4, 64, blur=(1.5, 0.5), direction=0.3).mean() == pytest.approx(0.5, abs=0.005)


def test_noise_of_photons_is_even_and_that_of_the_sensor_is_in_the_shadows():
    for level in (60, 128, 200):
        assert lr_of(gray(level), 4, 128, photon=0.03).std() == pytest.approx(0.03, rel=0.05)
    read = {level: lr_of(gray(level), 4, 128, read=0.01).std() for level in (60, 128, 200)}
    assert read[128] == pytest.approx(0.01, rel=0.05)
    assert read[60] > 2 * read[128] > 2.5 * read[200]
    colored, alike = (lr_of(gray(128), 4, 128, photon=0.03, gray=one) for one in (False, True))
    assert np.ptp(alike, axis=2).max() == 0
    assert np.corrcoef(colored[..., 0].ravel(), colored[..., 1].ravel())[0, 1] < 0.05
    assert abs(colored.mean() - 128 / 255) < 0.002


def test_jpeg_error_grows_with_lower_quality_and_subsampled_chroma():
    hr = image(256, 256)
    plain = lr_of(hr, 2, 128)
    costs = [np.abs(lr_of(hr, 2, 128, quality=q) - plain).mean() for q in (95, 70, 40)]
    assert 0 < costs[0] < costs[1] < costs[2]
    chroma = np.array([0.5, -0.4, -0.1])
    full, half = (
        np.abs((lr_of(hr, 2, 128, quality=95, subsampled=way) - plain) @ chroma).mean() for way in (False, True)
    )
    assert half > 1.5 * full


def test_every_part_is_left_out_of_some_crops_and_all_of_them_of_a_few():
    generator = rng()
    ways = [draw_degradation(generator) for _ in range(4000)]
    parts = [
        (0.5, 0.03, lambda w: max(w.blur) == 0),
        (0.2, 0.03, lambda w: w.blur[1] < w.blur[0]),
        (0.8, 0.03, lambda w: w.kernel == "bicubic"),
        (0.1, 0.03, lambda w: w.kernel == "area"),
        (0.4, 0.03, lambda w: w.photon == w.read == 0),
        (0.25, 0.03, lambda w: w.quality is None),
        (0.8, 0.03, lambda w: w.subsampled),
        (0.5, 0.03, lambda w: w.smoothness == 0),
        (0.2, 0.03, lambda w: w.sharpening > 0),
        (0.1875, 0.03, lambda w: w.earlier_quality is not None),
        (0.05, 0.015, lambda w: max(w.blur) == w.photon == w.read == 0 and w.quality is None),
    ]
    for part, tolerance, condition in parts:
        assert np.mean([condition(way) for way in ways]) == pytest.approx(part, abs=tolerance)
    assert {w.grid[0] for w in ways} == {w.grid[1] for w in ways} == set(range(GRID))
    assert {type(v) for w in ways for v in (*w.blur, w.photon, w.read)} == {float}


def test_smoothed_noise_has_neighbors_alike_and_the_same_amount():
    hr = np.full((512, 512, 3), 128, np.uint8)
    plain, smooth = (lr_of(hr, 4, 96, photon=10 / 255, smoothness=width) - 128 / 255 for width in (0.0, 0.8))
    assert plain.std() == pytest.approx(smooth.std(), rel=0.05)
    alike = [np.mean(noise[:-1] * noise[1:]) / noise.var() for noise in (plain, smooth)]
    assert abs(alike[0]) < 0.05 < 0.5 < alike[1]


def test_sharpening_makes_overshoots_at_an_edge():
    hr = np.full((256, 256, 3), 64, np.uint8)
    hr[:, 128:] = 192
    plain, sharpened = (lr_of(hr, 4, 32, sharpening=amount) for amount in (0.0, 1.0))
    assert sharpened.max() > plain.max() + 0.03
    assert sharpened.min() < plain.min() - 0.03


def test_an_earlier_jpeg_stays_visible_under_the_last_one():
    hr = image(256, 256)
    once = lr_of(hr, 2, 96, quality=95)
    twice = lr_of(hr, 2, 96, quality=95, earlier_quality=30, earlier_grid=(3, 5))
    alone = lr_of(hr, 2, 96, quality=30)
    assert np.abs(twice - once).mean() > 0.5 * np.abs(alone - once).mean()


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.1])
def test_strength_is_a_factor_on_the_amounts(strength):
    generator = rng()
    ways = [draw_degradation(generator, strength) for _ in range(2000)]
    assert max(max(w.blur) for w in ways) == pytest.approx(strength * MAX_BLUR, rel=0.02)
    assert max(w.photon for w in ways) == pytest.approx(strength * MAX_PHOTON, rel=0.05)
    qualities = [w.quality for w in ways if w.quality is not None]
    assert min(qualities) == pytest.approx(MAX_QUALITY - strength * (MAX_QUALITY - MIN_QUALITY), abs=1)
    assert max(qualities) == MAX_QUALITY


@pytest.fixture
def folder(tmp_path):
    return photographs(tmp_path / "photos", [(96, 128), (112, 80), (64, 64), (96, 96)])


opened = functools.partial(open_photographs, scale=4, degradation="realistic")


def test_hr_crops_are_those_of_the_plain_degradation_and_of_one_cache(folder, tmp_path):
    hr, lr = opened(folder, tmp_path).batch(16, 64, seed=3, step=7)
    plain_hr, plain_lr = opened(folder, tmp_path, degradation="bicubic").batch(16, 64, seed=3, step=7)
    assert torch.equal(hr, plain_hr)
    assert lr.shape == plain_lr.shape == (16, 3, 16, 16)
    assert torch.allclose(lr * 255, (lr * 255).round(), atol=1e-4)
    assert len(list((tmp_path / "cache").glob("*.u8"))) == 1
    distances = (lr - plain_lr).abs().mean((1, 2, 3))
    assert len(distances.unique()) == 16
    assert distances.max() > 0.01
    weak, medium = (
        (opened(folder, tmp_path, degradation_strength=s).batch(16, 64, 3, 7)[1] - plain_lr).abs().mean()
        for s in (0.1, 0.5)
    )
    assert weak < medium < distances.mean()
    x, none = opened(folder, tmp_path, scale=1).batch(4, 32, seed=0, step=0)  # images alone: nothing to degrade
    assert none is None
    assert torch.equal(x, opened(folder, tmp_path, scale=1, degradation="bicubic").batch(4, 32, 0, 0)[0])


def test_degraded_crops_are_turned_and_mirrored_with_hr(folder, tmp_path):
    hr, lr = opened(folder, tmp_path, degradation_strength=0.3).batch(32, 64, seed=0, step=0)
    small = downsample(hr, 4)
    own = (small - lr).abs().mean((1, 2, 3))
    for turned in (small.flip(-1), small.flip(-2), small.rot90(1, (-2, -1)), small.roll(1, -1)):
        assert float((own < (turned - lr).abs().mean((1, 2, 3))).float().mean()) > 0.95


def test_degradation_depends_on_seed_and_step(tmp_path):
    """On photographs of one gray, of which all crops are the same."""
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(gray(128, 32)).save(tmp_path / "photos" / name)
    data = opened(tmp_path / "photos", tmp_path, validation=1)
    kinds = [(3, 7, False), (4, 7, False), (3, 8, False), (7, 3, False), (3, 7, True)]
    batches = [data.batch(8, 32, s, t, held_out=held)[1] for s, t, held in kinds]
    assert len({lr.numpy().tobytes() for lr in batches}) == len(kinds)
    assert len({item.numpy().tobytes() for item in batches[0]}) > 4  # gray that is only blurred stays


def test_a_dark_picture_has_less_light_in_it_and_more_noise_for_the_light_that_is_left():
    """Of gray, in linear light: gains within the stated range, and deviations that are relatively larger."""
    bright = (gray(128, 64) / 255.0) ** 2.2
    gains, deviations = [], []
    for seed in range(60):
        dark = (darken(gray(128, 64), rng(seed)) / 255) ** 2.2
        gains.append(dark.mean() / bright.mean())
        deviations.append((dark[:, 1:] - dark[:, :-1]).std() / dark.mean())
    assert 0.03 < min(gains) < 0.08
    assert 0.35 < max(gains) < 0.8
    darkest = np.argsort(gains)
    assert np.median(np.array(deviations)[darkest[:20]]) > 1.5 * np.median(np.array(deviations)[darkest[-20:]])


def test_dark_crops_come_beside_the_bright_ones_that_they_were_made_of(tmp_path):
    folder = photographs(tmp_path / "photos", [(64, 64)] * 3)
    data = opened(folder, tmp_path, scale=1, validation=1, degradation="dark")
    bright, dark = data.batch(8, 32, 0, 0)
    assert dark.shape == bright.shape
    assert torch.equal(dark, data.batch(8, 32, 0, 0)[1])
    assert (dark.mean((1, 2, 3)) < bright.mean((1, 2, 3))).all()
    pairs = torch.stack([F.avg_pool2d(each.mean(1, keepdim=True), 8).flatten(1) for each in (dark, bright)], dim=1)
    alike = [torch.corrcoef(pair)[0, 1] for pair in pairs]
    assert sum(alike) / len(alike) > 0.7  # the same place, turned and mirrored alike
