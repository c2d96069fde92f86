"""The class-conditional flow: its labels, its fixed size, its style directions."""

import functools
import math

import pytest
import torch
from builders import build_minimal

from flowcore import likelihood
from flowcore.errors import ConditionError
from flowcore.testing import perturbed

tiny = functools.partial(build_minimal, "class_conditional")


def image(channels=1, height=3, width=4, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(6))


def test_a_fresh_model_only_maps_pixels():
    """Its networks give zero, so that it is the affine pixel map, in another order."""
    flow = tiny(shift=0.25, width=0.5).double()
    x = image().double()
    (z,), logdet = flow(x, flow.encode_condition(torch.tensor([0, 1])))
    expected = ((x - 0.25) / 0.5).flatten(1)
    assert torch.allclose(z.flatten(1).sort()[0], expected.sort()[0], atol=1e-12)
    assert torch.allclose(logdet, torch.full((2,), 12 * math.log(2), dtype=torch.float64), atol=1e-12)


def log_prob(flow, given):
    return likelihood.log_prob(flow, image().double(), flow.encode_condition(given))


def test_no_label_is_a_label_of_its_own():
    flow = perturbed(tiny()).double()
    every = torch.stack([log_prob(flow, torch.tensor([k, k])) for k in range(4)])  # 3 is none
    assert (every[:, None] - every[None]).abs().amax(2)[~torch.eye(4, dtype=torch.bool)].min() > 1e-3
    with pytest.raises(ConditionError, match=r"labels 0 to 3; got 4\."):
        flow.encode_condition(torch.tensor([4]))


def test_weights_may_leave_out_the_missing_label():
    flow = perturbed(tiny()).double()
    expected = log_prob(flow, torch.tensor([2, 0]))
    assert torch.equal(log_prob(flow, torch.eye(3)[[2, 0]]), expected)
    assert torch.equal(log_prob(flow, torch.eye(4)[[2, 0]]), expected)
    assert torch.equal(log_prob(flow, torch.eye(4)[[3, 3]]), log_prob(flow, torch.tensor([3, 3])))


def test_styles_are_directions_among_the_latents():
    assert tiny().styles == {}
    assert "style_directions" not in tiny().state_dict()
    flow = tiny(styles=("bold", "slanted"))
    assert flow.config.styles == ("bold", "slanted")
    directions = flow.state_dict()["style_directions"]
    directions.copy_(torch.arange(24.0).view(2, 12))
    assert list(flow.styles) == ["bold", "slanted"]
    assert [z.shape for z in flow.styles["slanted"]] == [(1, 12, 1, 1)]
    assert flow.styles["slanted"][0].flatten().tolist() == list(range(12, 24))
    cond = flow.encode_condition(torch.tensor([0, 1]))
    (z,), _ = flow(image(), cond)
    assert flow.inverse([z + flow.styles["bold"][0]], cond).shape == (2, 1, 3, 4)
