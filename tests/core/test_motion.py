"""Motion between pictures: what is known is recovered, and pictures move without blur."""

import pytest
import torch
from builders import random_image

from flowcore.images.motion import blur, estimate_motion, move, sample_at


def texture(height=90, width=75, seed=0):
    picture = sum(
        window * blur(random_image(1, 3, height, width, seed=seed + window), window) for window in (5, 15, 45)
    )
    return (picture - picture.amin()) / (picture.amax() - picture.amin())


def motion_of(height, width, right, down, growth=0.0):
    y, x = torch.meshgrid(torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij")
    return torch.stack([right + growth * x, down + growth * y])[None]


@pytest.mark.parametrize(("right", "down", "growth"), [(3.0, -2.0, 0.0), (-11.4, 7.3, 0.0), (0.6, 0.3, 0.03)])
def test_known_motion_is_recovered(right, down, growth):
    other = texture()
    true = motion_of(90, 75, right, down, growth)
    found = estimate_motion(move(other, true), other)
    assert (found - true)[..., 16:-16, 16:-16].norm(dim=1).mean() < 0.1


def test_between_equal_pictures_nothing_moves_even_where_they_are_flat():
    picture = texture()
    picture[..., 30:] = 0.5
    assert estimate_motion(picture, picture).abs().max() < 1e-4


def test_moving_by_whole_pixels_copies_and_by_fractions_does_not_blur():
    picture = texture()
    assert (move(picture, motion_of(90, 75, 4.0, -3.0))[..., 3:, :-4] - picture[..., :-3, 4:]).abs().max() < 1e-6
    half = motion_of(90, 75, 0.5, 0.5)
    inner = (..., slice(8, -8), slice(8, -8))
    back = move(move(picture, half), -half)
    bilinear = sample_at(sample_at(picture, half), -half)
    assert (back - picture)[inner].abs().mean() < 0.2 * (bilinear - picture)[inner].abs().mean()
