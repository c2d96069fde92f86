"""Coherent noise: similar places share it, every place keeps its distribution, and given latents are untouched."""

import pytest
import torch

from flowcore import Condition, colorize, colorize_video, encode_colors
from flowcore.tasks.coherence import correlate_noise, noise_cholesky

from .colorings import colored, gray, tiny_colorizer

SCALES = (0.6, 4.0)


@pytest.fixture(scope="module")
def flow():
    return tiny_colorizer(coherence=0.9)


def halves(height=6, width=8):
    """Features of two things: one on the left, one on the right."""
    features = torch.zeros(1, 4, height, width)
    features[..., width // 2 :] = 1
    return features


def test_every_place_keeps_its_distribution_and_similar_places_share_it(flow):
    factor = noise_cholesky(halves(), 0.95, flow.config.coherence_scales)
    covariance = factor @ factor.T
    assert torch.allclose(covariance.diagonal(), torch.ones(48).double())
    assert covariance[0, 1] > 0.9
    assert covariance[3, 4] < 0.1  # neighbors, but not of one thing
    noise = torch.randn(4000, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    mixed = correlate_noise(flow, noise, Condition(features=(halves(),)), 0.95)
    assert abs(float(mixed.std()) - 1) < 0.01
    assert torch.allclose(mixed[:, 0].flatten(1).T.cov().double(), covariance, atol=0.1)


def test_coherence_0_a_single_place_and_huge_grids_stay_independent():
    assert noise_cholesky(halves(), 0.0, SCALES) is None
    assert noise_cholesky(torch.zeros(1, 4, 1, 1), 0.9, SCALES) is None
    assert noise_cholesky(torch.zeros(1, 1, 64, 65), 0.9, SCALES) is None
    assert noise_cholesky(torch.ones(1, 4, 6, 8), 1.0, SCALES).isfinite().all()  # one thing, no noise of its own


def test_the_model_states_the_coherence_and_0_is_without(flow):
    own, without = colorize(flow, gray(64, 64), seed=1), colorize(flow, gray(64, 64), seed=1, coherence=0)
    assert torch.equal(own, colorize(flow, gray(64, 64), seed=1, coherence=0.9))
    assert torch.equal(without, colorize(tiny_colorizer(), gray(64, 64), seed=1))
    assert (own - without).abs().max() > 0.01


def test_given_latents_are_untouched(flow):
    picture, other = colored(64, 64), tiny_colorizer()
    latents = encode_colors(flow, picture)
    taken = [colorize(f, picture, latents=latents, latents_levels=0, seed=2) for f in (flow, other)]
    assert torch.equal(*taken)


def test_a_clip_in_parts_is_the_clip(flow):
    frames = torch.cat([gray(64, 64), gray(64, 64, seed=1), gray(64, 64, seed=2)])
    before = []
    parts = [colorize_video(flow, part, seed=5, carry=0.5, before=before) for part in frames.split([1, 2])]
    assert torch.allclose(torch.cat(parts), colorize_video(flow, frames, seed=5, carry=0.5), atol=1e-5)
    assert torch.allclose(parts[0], colorize(flow, frames[:1], seed=5), atol=1e-5)


def test_saturation_defaults_to_the_models_and_to_1_with_latents():
    vivid, plain = tiny_colorizer(saturation=1.5), tiny_colorizer()
    picture = colored(64, 64)
    assert torch.allclose(colorize(vivid, picture), colorize(plain, picture, saturation=1.5), atol=1e-5)
    latents = encode_colors(vivid, picture)
    assert torch.equal(colorize(vivid, picture, latents=latents), colorize(plain, picture, latents=latents))
