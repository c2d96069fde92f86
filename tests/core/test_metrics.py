"""Measures against values worked out by hand."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import flowcore
from flowcore import FlowError, ImageError, ShapeError
from flowcore.images import metrics, perceptual
from flowcore.images.color import parse_color, split
from flowcore.images.damage import jpeg_quality
from flowcore.images.resize import downsample, enlarge
from flowcore.tasks import model_choice
from flowcore.tasks.model_choice import describe_damage


def test_psnr_of_a_constant_difference_and_ssim_of_noise():
    a = torch.full((2, 3, 8, 6), 0.5)
    b = a + torch.tensor([0.1, 0.01])[:, None, None, None]
    assert metrics.psnr(a, b).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)
    sr = torch.rand(1, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    assert math.isinf(float(metrics.lr_psnr(sr, downsample(sr, 4))))
    lr = torch.full((1, 3, 6, 5), 0.25)
    assert float(metrics.lr_psnr(enlarge(lr, 4) + 0.1, lr)) == pytest.approx(20.0, abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 3, 32, 40, generator=generator)
    noisy = (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    assert float(metrics.ssim(a, a)) == pytest.approx(1.0, abs=1e-5)
    assert 0.5 < float(metrics.ssim(a, noisy)) < 0.98


def test_diversity_is_the_mean_deviation_in_eighth_bit_steps():
    samples = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 2 / 255)])
    assert metrics.diversity(samples) == pytest.approx(1.0, abs=1e-5)
    assert metrics.diversity(samples[:1].repeat(3, 1, 1, 1)) == 0


def test_false_specks_are_isolated_pixels_where_the_original_is_smooth():
    hr = torch.full((1, 3, 20, 30), 0.5)
    hr[..., 20:] = 0.7  # an edge: no pixel of it differs from its local median
    assert metrics.false_specks(hr, hr).tolist() == [0]
    sr = hr.clone()
    sr[..., 5, 5] += 0.09
    sr[..., 12, 8] -= 0.09
    sr[..., 12, 20] += 0.07  # too faint
    sr[..., 2:4, 10:14] += 0.3  # an area, whose inner pixels are their own median; its four corners are not
    assert metrics.false_specks(sr, hr).tolist() == pytest.approx([1000 * 6 / 600])
    detailed = hr.clone()
    detailed[..., 7, 7] += 0.05  # detail of the original, 2 pixels away from the first speck
    assert metrics.false_specks(sr, detailed).tolist() == pytest.approx([1000 * 5 / 600])
    detailed[..., 7, 7], detailed[..., 5, 2] = 0.5, 0.55  # 3 pixels away
    assert metrics.false_specks(sr, detailed).tolist() == pytest.approx([1000 * 6 / 600])
    detailed[..., 5, 2], detailed[..., 5, 6] = 0.5, 0.53  # too faint to count as detail
    assert metrics.false_specks(sr, detailed).tolist() == pytest.approx([1000 * 6 / 600])
    assert metrics.false_specks(torch.cat([sr, hr]), hr).tolist() == pytest.approx([10, 0])


def test_added_specks_are_isolated_pixels_where_a_smooth_enlargement_spans_little():
    plain = torch.full((1, 3, 20, 30), 0.5)
    plain[..., 20:] = 0.71
    sr = plain.clone()
    sr[..., 5, 5] += 0.06
    sr[..., 12, 8] += 0.04  # too faint
    sr[..., 12, 17] += 0.3  # within 4 pixels of the edge
    assert metrics.added_specks(torch.cat([sr, plain]), plain).tolist() == pytest.approx([1000 / 600, 0])


def dots(amplitude: float, period: int) -> torch.Tensor:
    """Noise around gray, ``(1, 3, 160, 200)``, with a faint dot every ``period`` pixels in one corner."""
    y = 0.5 + noise(1, 1, 160, 200, seed=5) / 255
    y[..., 96::period, 136::period] += amplitude / 255
    return y.expand(-1, 3, -1, -1)


def test_grid_energy_is_that_of_patterns_with_periods_of_4_and_2_pixels_in_the_worst_window():
    plain, of_4 = dots(0, 4), dots(6, 4)
    assert float(metrics.grid_energy(plain)) < 30
    assert float(metrics.grid_energy(of_4)) > 10 * float(metrics.grid_energy(plain))
    assert float(metrics.grid_energy(dots(6, 2))) > 10 * float(metrics.grid_energy(plain))
    assert float(metrics.grid_energy(dots(6, 5))) < 30  # has no power at these frequencies
    both = torch.cat([of_4, plain])
    assert metrics.grid_energy(both).tolist() == pytest.approx(
        [float(metrics.grid_energy(x)) for x in (of_4, plain)], rel=1e-3
    )
    assert math.isnan(float(metrics.grid_energy(plain[..., :63])))


def flat(*colors: tuple[float, float], size: tuple[int, int] = (6, 10)) -> torch.Tensor:
    """One image per color: (N, 2, *size)."""
    return torch.tensor(colors)[:, :, None, None].expand(-1, -1, *size)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_chroma_rmse_is_over_both_channels_and_one_number_per_picture():
    a, gray = flat((0.3, -0.4), (0.0, 0.2)), flat((0.0, 0.0))
    expected = [0.25**0.5 / 2**0.5, 0.2 / 2**0.5]
    assert metrics.chroma_rmse(a, gray).tolist() == pytest.approx(expected)
    half = a.clone()
    half[..., :5] = 0  # an error on half of the pixels: sqrt(1/2) of it
    assert metrics.chroma_rmse(half, gray).tolist() == pytest.approx([e / 2**0.5 for e in expected])


def test_global_share_is_one_for_a_change_of_the_whole_and_one_over_the_pixels_for_noise():
    assert metrics.global_share(flat((0.02, -0.1), (0.0, 0.3))).tolist() == pytest.approx([1, 1])
    pixels = 12 * 20
    shares = metrics.global_share(noise(400, 2, 12, 20))
    assert float(shares.mean()) * pixels == pytest.approx(1, rel=0.15)
    three = flat((0.1, 0.0), size=(4, 8)).clone()
    three[..., 6:] *= -1  # three quarters agree: mean 1/2, energy 1
    assert metrics.global_share(three).tolist() == pytest.approx([0.25])
    assert math.isnan(float(metrics.global_share(flat((0.0, 0.0)))))


def test_coherence_parts_are_the_shares_of_the_samples_and_of_the_truth():
    whole = flat((0.1, 0.0), (-0.1, 0.0))  # samples that differ as a whole, with mean 0
    truth = flat((0.0, 0.2), size=(6, 10)).clone()
    truth[..., 5:] *= -1
    truth += flat((0.1, 0.0))  # 1/5 of its energy is global
    assert metrics.coherence_parts(whole, truth) == pytest.approx((1.0, 0.2))
    base = noise(1, 2, 6, 10)  # what all have in common does not count
    assert metrics.coherence_parts(whole + base, truth + base) == pytest.approx((1.0, 0.2), rel=1e-4)


def test_colorfulness_is_the_length_of_chroma():
    half = flat((0.3, 0.4)).clone()
    half[..., :5] = 0
    values = torch.cat([flat((0.3, 0.4), (-0.3, -0.4), (0.0, 0.0)), half])
    assert metrics.colorfulness(values).tolist() == pytest.approx([0.5, 0.5, 0, 0.5 / 2**0.5])


def stairs(size: int = 16, cell: int = 4, rise: float = 0.04) -> torch.Tensor:
    """Chroma that grows by 0.01 from position to position, and by ``rise`` more from cell to cell."""
    line = 0.01 * torch.arange(size) + rise * (torch.arange(size) // cell)
    return (line[:, None] - line).expand(1, 2, size, size)


def seams(chroma, luma, cell):
    return metrics.seam_ratio(metrics.seam_sums(chroma, luma, cell))


def test_seams_compare_borders_of_cells_with_insides():
    gray = torch.full((1, 1, 16, 16), 0.5)
    expected = {2: (4 * 0.01 + 3 * 0.05) / 7 / 0.01, 4: 5.0, 8: 0.05 * 14 / (12 * 0.01 + 2 * 0.05)}
    for cell, ratio in expected.items():
        assert seams(stairs(rise=0), gray, cell) == pytest.approx(1, rel=1e-3)
        assert seams(stairs(), gray, cell) == pytest.approx(ratio, rel=1e-3)
    assert seams(stairs()[..., 1:], gray[..., 1:], 4) < 3.5  # the columns are no longer where cells begin
    assert seams(stairs(rise=0.04) - stairs(rise=0), gray, 4) == math.inf
    assert math.isnan(seams(flat((0.1, 0.2), size=(16, 16)), gray, 4))
    assert math.isnan(seams(stairs(), gray, 16))  # one cell has no borders
    both = torch.cat([stairs(), stairs(rise=0)])
    added = metrics.seam_sums(both[:1], gray, 4) + metrics.seam_sums(both[1:], gray, 4)
    assert seams(both, gray, 4) == pytest.approx(metrics.seam_ratio(added)) == pytest.approx(3, rel=1e-3)


def test_fog_is_the_change_of_color_where_luma_stays():
    luma = torch.zeros(1, 1, 4, 4)
    luma[..., 2:] = 1  # an edge, whose change of color does not count
    chroma = torch.zeros(2, 2, 4, 4)
    chroma[0, :, :, 2:] = 0.3
    chroma[1, :, 2:] = 0.1  # of 12 + 8 neighbors without an edge 4 change
    assert metrics.fog(chroma, luma).tolist() == pytest.approx([0, 0.1 * (4 / 20) ** 0.5])


def test_seams_are_no_seams_where_luma_has_edges():
    luma = torch.full((1, 1, 16, 16), 0.5)
    luma[..., 4:8] += 0.1  # two of the three borders between columns
    assert seams(stairs(), luma, 4) == pytest.approx(5, rel=1e-3)
    only = stairs()[:, :, :1].expand(-1, -1, 16, -1)  # no changes from row to row
    assert seams(only, luma, 4) == pytest.approx(0.05 / (3 + 1) / (0.01 / 2), rel=1e-3)
    luma[..., 12:] += 5 / 255
    assert seams(only, luma, 4) == 0
    luma[..., 12:] -= 2 / 255
    assert seams(only, luma, 4) > 1


def test_skin_is_neither_blue_nor_green():
    def portrait(color: str, around: str = "#3060c0") -> torch.Tensor:
        rgb = torch.tensor(parse_color(around))[:, None, None].repeat(1, 50, 50)
        top, bottom, left, right = (round(50 * part) for part in metrics.SKIN_PATCH)
        rgb[:, top:bottom, left:right] = torch.tensor(parse_color(color))[:, None, None]
        return split(rgb[None])[1]

    tones = ("#d2a08c", "#e6beb9", "#c08060", "#5c3a2c", "#d06a60", "#e8c8c0")
    wrong = ("#7080c0", "#60a080", "#a0c040", "#9060b0", "#c0b040")
    pale = ("#808080", "#7f8083")
    chroma = torch.cat([portrait(color) for color in (*tones, *wrong, *pale)])
    outside, gray = metrics.skin_verdict(chroma)
    assert outside.tolist() == [False] * len(tones) + [True] * len(wrong) + [False] * len(pale)
    assert gray.tolist() == [False] * (len(tones) + len(wrong)) + [True] * len(pale)
    hue, length = metrics.skin_color(flat((-0.3, 0.3), (0.0, -0.2)))
    assert hue.tolist() == pytest.approx([135, 270])
    assert length.tolist() == pytest.approx([0.3 * 2**0.5, 0.2])


def test_diversity_score_is_what_choosing_by_pixel_gains(monkeypatch):
    monkeypatch.setattr(perceptual, "lpips_map", lambda a, b: (a - b).abs().mean(1, keepdim=True))
    hr = torch.zeros(1, 3, 2, 2)
    samples = torch.zeros(2, 3, 2, 2)
    samples[0, :, 0] = 0.2  # wrong above
    samples[1, :, 1] = 0.4  # wrong below, and more so
    assert perceptual.diversity_score(samples, hr) == pytest.approx(100)  # each pixel is right in one of them
    samples[:, 0, 1, 1] = 0.3  # one of four pixels, one of three colors, in both: 0.1 on the map
    # best whole: (0.2 + 0.2 + 0 + 0.1) / 4; best by pixel: 0.1 / 4
    assert perceptual.diversity_score(samples, hr) == pytest.approx(100 * (0.5 - 0.1) / 0.5, rel=1e-5)
    assert perceptual.diversity_score(samples[:1].repeat(5, 1, 1, 1), hr) == 0
    assert perceptual.diversity_score(torch.cat([samples, hr]), hr) == 0  # nothing is nearer than the truth


def test_missing_lpips_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)  # a download fails
    missing = perceptual.lpips_missing()
    assert missing is not None
    assert f"{perceptual.ALEXNET} in {tmp_path / 'checkpoints'}" in missing
    for measure in (perceptual.lpips, perceptual.lpips_map):
        with pytest.raises(FlowError, match="LPIPS"):
            measure(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))


def test_lpips_is_that_of_its_package(tmp_path, monkeypatch):
    """With made-up weights of AlexNet, since the real ones are 233 MB: built by the package's way, and by ours."""
    package = pytest.importorskip("lpips")
    from torchvision.models import AlexNet_Weights, alexnet

    assert AlexNet_Weights.IMAGENET1K_V1.url.endswith(f"/{perceptual.ALEXNET}")
    weights = alexnet().state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / perceptual.ALEXNET)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    assert perceptual.lpips_missing() is None
    images = torch.rand(2, 3, 70, 64, generator=torch.Generator().manual_seed(1))
    noisy = (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    before = torch.get_rng_state()
    came, spatial = perceptual.lpips(images, noisy), perceptual.lpips_map(images, noisy)
    assert torch.equal(torch.get_rng_state(), before)
    with monkeypatch.context() as patched:
        patched.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *_, **__: weights)
        theirs = package.LPIPS(net="alex", verbose=False)
    assert torch.allclose(came, theirs(images, noisy, normalize=True).flatten(), atol=1e-6)
    theirs.spatial = True
    assert torch.allclose(spatial, theirs(images, noisy, normalize=True), atol=1e-6)
    assert spatial.shape == (2, 1, 70, 64)
    assert perceptual.lpips(images, images).tolist() == [0, 0]
    with pytest.raises(ShapeError):
        perceptual.lpips(images[..., :31], noisy[..., :31])


@pytest.fixture(scope="module")
def crops():
    """96 crops of 64x64 of twelve photographs of the pack, shrunk to half: as uint8 arrays."""
    pictures = Path(__file__).parents[2] / "workflows" / "pictures"
    names = ["lake", "desert", "canyon", "original", *(f"bread/{k:02}" for k in range(1, 9))]
    found = []
    for name in names:
        with Image.open(pictures / f"{name}.jpg") as opened:
            half = np.asarray(opened.convert("RGB").resize((opened.width // 2, opened.height // 2), Image.BICUBIC))
        found += [half[top : top + 64, left : left + 64] for top in (0, 50) for left in (0, 18, 37, 56)]
    return found


def told(crops):
    """How many of some crops are said to be damaged."""
    return sum(bool(describe_damage(tensor_of(crop))) for crop in crops)


def tensor_of(crop):
    return torch.tensor(crop.copy()).permute(2, 0, 1)[None]


def stored(crop, quality):
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def with_noise(crop, rng):
    return (crop + rng.normal(0, 8, crop.shape)).clip(0, 255).round().astype(np.uint8)


def test_clean_photographs_are_not_called_damaged(crops):
    assert len(crops) == 96
    assert told(crops) == 0


def test_jpeg_blocks_are_reported_with_their_quality(crops):
    damaged = [stored(crop, 50) for crop in crops]
    assert told(damaged) >= 92
    cut = tensor_of(damaged[0][3:, 5:])
    assert describe_damage(cut) == describe_damage(cut / 255) == "JPEG blocks (about quality 50)"


def drawings():
    """Lossless graphics of 256x256: flat shapes, gradients, halftones, dither, pixel art, tiles of 8x8, and lines."""
    rng = np.random.default_rng(31)
    y, x = np.mgrid[:256, :256]
    slopes = [(x * np.cos(angle) + y * np.sin(angle)) for angle in rng.uniform(0, 1.5, 6)]
    gradients = [np.stack([a + b * slope for a, b in rng.uniform(0, 0.7, (3, 2))], -1).round() for slope in slopes]
    wedge = x / 256
    bayer = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16
    found = [*gradients, 255 * (np.repeat(wedge[..., None], 3, -1) > np.tile(bayer, (64, 64))[..., None])]
    for palette in rng.integers(0, 256, (4, 6, 3)):
        blocks, specks = palette[rng.integers(0, 6, (64, 64))], palette[rng.integers(0, 6, (256, 256))]
        found.append(np.where(rng.random((256, 256, 1)) < 0.3, specks, blocks.repeat(4, 0).repeat(4, 1)))
    for side in (2, 4, 8, 16):
        palette = rng.integers(0, 256, (6, 3))
        found.append(palette[rng.integers(0, 6, (256 // side, 256 // side))].repeat(side, 0).repeat(side, 1))
    for _ in range(6):
        tiles = rng.integers(0, 256, (12, 8, 8, 3))
        tiles[:, 2:6, 2:6] = rng.integers(0, 256, (12, 1, 1, 3))
        found.append(tiles[rng.integers(0, 12, (32, 32))].transpose(0, 2, 1, 3, 4).reshape(256, 256, 3))
        flat, lines = (Image.new("RGB", (256, 256), tuple(rng.integers(0, 256, 3).tolist())) for _ in range(2))
        on_flat, on_lines = ImageDraw.Draw(flat), ImageDraw.Draw(lines)
        for k in range(25):
            (left, top), size = rng.integers(0, 200, 2), int(rng.integers(9, 120))
            draw = on_flat.ellipse if k % 2 else on_flat.rectangle
            draw([left, top, left + size, top + size], fill=tuple(rng.integers(0, 256, 3).tolist()))
            on_lines.line([0, 10 * k, 256, 10 * k], fill=(90, 90, 90), width=1)
            on_lines.text((left, top), "flows", fill=(0, 0, 0))
        period = int(rng.integers(4, 10))
        dots = np.hypot(x % period - period / 2, y % period - period / 2)[..., None] < 0.7 * period * wedge[..., None]
        halftone = np.where(dots, *rng.integers(0, 256, (2, 3)))
        found += [np.asarray(flat), np.asarray(lines), halftone]
    return [np.asarray(one).clip(0, 255).astype(np.uint8) for one in found]


def test_drawings_are_not_called_damaged():
    assert told(drawings()) == 0


def test_drawings_that_were_stored_as_jpeg_are_reported():
    flat = drawings()[16:-1:4]
    assert told([stored(one, 85) for one in flat]) == len(flat) == 6


def test_noise_is_reported(crops):
    rng = np.random.default_rng(0)
    assert told([with_noise(crop, rng) for crop in crops]) >= 90


def test_a_picture_that_was_examined_is_not_examined_again(crops, monkeypatch):
    image = tensor_of(stored(crops[0], 60))
    damage = describe_damage(image)
    monkeypatch.setattr(model_choice, "jpeg_quality", lambda _: pytest.fail("examined twice"))
    assert describe_damage(image.float() / 255) == damage


def test_the_upscaler_that_suits_is_the_same_for_every_type_of_pixels(crops):
    clean, damaged = tensor_of(crops[0]), tensor_of(stored(crops[0], 85))
    assert flowcore.upscaler_for(clean) == flowcore.upscaler_for(clean.float() / 255) == "srflow-x4"
    deep = (damaged.int() * 257).to(torch.uint16)
    assert flowcore.upscaler_for(damaged) == flowcore.upscaler_for(deep) == "srflow-x4-photo"
    for unusable in (clean.float(), torch.full((1, 3, 9, 9), torch.inf)):
        with pytest.raises(ImageError):
            flowcore.upscaler_for(unusable)


def test_one_damaged_frame_decides_for_a_clip(crops):
    assert flowcore.upscaler_for(torch.cat([tensor_of(crops[0]), tensor_of(stored(crops[0], 85))])) == "srflow-x4-photo"
    with pytest.raises(ImageError, match="no pixels"):
        flowcore.upscaler_for(torch.rand(0, 3, 64, 64))


def test_jpeg_quality_is_exact_and_95_counts_as_clean(crops):
    assert [jpeg_quality(tensor_of(stored(crop, 92))[0] / 255) for crop in crops[:8]] == [92] * 8
    assert told([stored(crop, 95) for crop in crops[:8]]) == 0
