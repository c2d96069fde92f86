"""Measures against values worked out by hand."""

import math

import pytest
import torch

from flowcore.metrics import (
    chroma_rmse,
    coherence,
    coherence_parts,
    colourfulness,
    diversity,
    flicker,
    global_share,
    lr_psnr,
    psnr,
    ssim,
)
from flowcore.resize import enlarge, shrink
from flowcore.transforms import ShapeError


def test_psnr_of_a_constant_difference() -> None:
    a = torch.full((2, 3, 8, 6), 0.5)
    b = a + torch.tensor([0.1, 0.01])[:, None, None, None]
    assert psnr(a, b).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 3, 32, 40, generator=generator)
    noisy = (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    assert float(ssim(a, a)) == pytest.approx(1.0, abs=1e-5)
    assert 0.5 < float(ssim(a, noisy)) < 0.98


def test_lr_psnr_is_infinite_for_what_shrinks_to_the_input() -> None:
    sr = torch.rand(1, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    assert math.isinf(float(lr_psnr(sr, shrink(sr, 4))))
    lr = torch.full((1, 3, 6, 5), 0.25)
    assert float(lr_psnr(enlarge(lr, 4) + 0.1, lr)) == pytest.approx(20.0, abs=1e-3)


def test_diversity_is_the_mean_deviation_in_eighth_bit_steps() -> None:
    samples = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 2 / 255)])
    assert diversity(samples) == pytest.approx(1.0, abs=1e-5)
    assert diversity(samples[:1].repeat(3, 1, 1, 1)) == 0


def flat(*colours: tuple[float, float], size: tuple[int, int] = (6, 10)) -> torch.Tensor:
    """One picture per colour: (N, 2, *size)."""
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, *size)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_chroma_rmse_is_over_both_channels_and_one_number_per_picture() -> None:
    a, grey = flat((0.3, -0.4), (0.0, 0.2)), flat((0.0, 0.0))
    expected = [0.25**0.5 / 2**0.5, 0.2 / 2**0.5]
    assert chroma_rmse(a, grey).tolist() == pytest.approx(expected)
    assert chroma_rmse(grey, a).tolist() == pytest.approx(expected)
    assert chroma_rmse(a, a).tolist() == [0, 0]
    half = a.clone()
    half[..., :5] = 0  # an error on half of the pixels: sqrt(1/2) of it
    assert chroma_rmse(half, grey).tolist() == pytest.approx([e / 2**0.5 for e in expected])


def test_global_share_is_one_for_a_change_of_the_whole_and_one_over_the_pixels_for_noise() -> None:
    assert global_share(flat((0.02, -0.1), (0.0, 0.3))).tolist() == pytest.approx([1, 1])
    pixels = 12 * 20
    shares = global_share(noise(400, 2, 12, 20))
    assert float(shares.mean()) * pixels == pytest.approx(1, rel=0.15)
    halves = flat((0.1, 0.0), size=(4, 8)).clone()
    halves[..., 4:] *= -1  # two patches that disagree
    assert global_share(halves).tolist() == pytest.approx([0], abs=1e-12)
    three = flat((0.1, 0.0), size=(4, 8)).clone()
    three[..., 6:] *= -1  # three quarters agree: mean 1/2, energy 1
    assert global_share(three).tolist() == pytest.approx([0.25])
    assert math.isnan(float(global_share(flat((0.0, 0.0)))))


def test_coherence_divides_the_share_of_the_samples_by_that_of_the_truth() -> None:
    whole = flat((0.1, 0.0), (-0.1, 0.0))  # samples that differ as a whole, with mean 0
    truth = flat((0.0, 0.2), size=(6, 10)).clone()
    truth[..., 5:] *= -1
    truth += flat((0.1, 0.0))  # 1/5 of its energy is global
    assert coherence_parts(whole, truth) == pytest.approx((1.0, 0.2))
    assert coherence(whole, truth) == pytest.approx(5)
    base = noise(1, 2, 6, 10)  # what all have in common does not count
    assert coherence(whole + base, truth + base) == pytest.approx(5, rel=1e-4)
    patches = noise(8, 2, 6, 10)
    assert coherence(patches, flat((0.3, 0.3)) + patches.mean(0)) == pytest.approx(1 / 60, rel=0.5)


def test_coherence_is_one_if_the_truth_is_one_more_draw() -> None:
    parts = []
    for seed in range(2000):
        drawn = 0.5 * noise(9, 2, 8, 8, seed=seed) + 0.3 * noise(9, 2, 1, 1, seed=5000 + seed)
        parts.append(coherence_parts(drawn[:8], drawn[8:]))
    own, true = torch.tensor(parts).mean(0).tolist()
    assert 0.2 < true < 0.4  # 0.09 / (0.09 + 0.25) but for Jensen
    assert own / true == pytest.approx(1, abs=0.05)


def test_coherence_says_what_it_needs() -> None:
    with pytest.raises(ShapeError, match="at least 2 samples; got 1"):
        coherence(noise(1, 2, 4, 4), noise(1, 2, 4, 4))
    with pytest.raises(ShapeError, match=r"\(1, 2, 4, 4\); got \(1, 2, 4, 5\)"):
        coherence(noise(3, 2, 4, 4), noise(1, 2, 4, 5))
    with pytest.raises(ShapeError, match=r"got \(3, 3, 4, 4\)"):
        coherence(noise(3, 3, 4, 4), noise(1, 3, 4, 4))
    assert math.isnan(coherence(flat((0.1, 0.1), (0.1, 0.1), size=(4, 4)), noise(1, 2, 4, 4)))


def test_colourfulness_is_the_length_of_chroma() -> None:
    half = flat((0.3, 0.4)).clone()
    half[..., :5] = 0
    values = torch.cat([flat((0.3, 0.4), (-0.3, -0.4), (0.0, 0.0)), half])
    assert colourfulness(values).tolist() == pytest.approx([0.5, 0.5, 0, 0.5 / 2**0.5])


def test_flicker_looks_where_nothing_moves() -> None:
    luma = torch.full((3, 1, 4, 6), 0.5)
    chroma = torch.zeros(3, 2, 4, 6)
    assert flicker(chroma, luma) == 0
    chroma[1] = 0.02  # there and back
    assert flicker(chroma, luma) == pytest.approx(0.02)
    chroma[2] = 0.02  # there, and stays
    assert flicker(chroma, luma) == pytest.approx(0.01)
    chroma[1, :, :, :3] = 0.3  # wild colours on the left, where it moves
    assert flicker(chroma, luma) > 0.05
    luma[1, :, :, :3] = 0.6
    assert flicker(chroma, luma) == pytest.approx(0.01)
    luma[1, :, :, 3:] += 1.9 / 255  # grain
    assert flicker(chroma, luma) == pytest.approx(0.01)
    luma[1, :, :, 3:] += 0.2 / 255
    assert math.isnan(flicker(chroma, luma))
    assert flicker(chroma, luma, still=1) > 0.05
    with pytest.raises(ShapeError, match="at least 2 frames"):
        flicker(chroma[:1], luma[:1])
