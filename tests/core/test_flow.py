"""What a flow offers by itself: densities and samples without tasks."""

import pytest
import torch
from builders import build_tiny

from flowcore import prior
from flowcore.errors import FlowError
from flowcore.flow import Capabilities, Flow, Level
from flowcore.transforms import ActNorm

from .generators import condition, images, make


@pytest.mark.parametrize("kind", ["glow", "srflow"])
def test_log_prob_is_prior_plus_logdet(kind):
    flow, x = make(kind), images()
    cond = condition(flow, 2)
    latents, logdet = flow(x, cond)
    assert torch.equal(flow.log_prob(x, cond), prior.log_prob(latents) + logdet)


def test_a_sample_is_the_decoded_noise_of_its_seed():
    flow = make("glow")
    z = prior.sample_latents(flow.latent_shapes(8, 12), 2, 0.7, seed=3)
    made = flow.sample(2, temperature=0.7, seed=3)
    assert torch.allclose(made, flow.inverse(z), atol=1e-5)
    assert not made.requires_grad


def test_samples_share_the_condition_of_one_image():
    flow = make("srflow")
    made = flow.sample(3, condition(flow, 1), size=(8, 12), seed=3)
    alone = flow.sample(1, condition(flow, 1), size=(8, 12), seed=4)
    assert made.shape == (3, 3, 8, 12)
    assert (made[1:2] - alone).abs().max() < 1e-5


def test_a_sample_without_a_size_is_refused():
    with pytest.raises(FlowError, match=r"which size it was made for.*size=\(height, width\)"):
        build_tiny("glow").sample(1)


@pytest.mark.parametrize(("size", "expected"), [(6, (6, 6)), ([4, 6], (4, 6)), (None, None)])
def test_the_image_size_of_a_flow_is_height_and_width(size, expected):
    capabilities = Capabilities(source="none", tasks=frozenset())
    levels = [Level([ActNorm(12)], None)]
    flow = Flow(levels, channels=3, config=None, architecture="own", capabilities=capabilities, image_size=size)
    assert flow.image_size == expected
