"""Measures against values worked out by hand."""

import math

import pytest
import torch

from flowcore.metrics import diversity, lr_psnr, psnr, ssim
from flowcore.resize import enlarge, shrink


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
