"""Real NVP: the order of its couplings, and its batch norms."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from builders import build_minimal, move_buffers

from flowcore import likelihood
from flowcore.testing import perturbed
from flowcore.transforms import (
    BatchNorm,
    Chain,
    CheckerboardCoupling,
    Coupling,
    OrderedSqueeze,
    Squeeze,
    Unsqueeze,
    batch_moments,
)

tiny = functools.partial(build_minimal, "realnvp")


def image(channels=3, height=4, width=6, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(6))


# --- its parts --------------------------------------------------------------------------------------------------------


def unwrapped(flow, level):
    """The steps of a level without their batch norms."""
    return [step.parts()[0] if isinstance(step, Chain) else step for step in flow.levels[level].steps.parts()]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_checkerboards_and_halves_take_turns(batch_norm):
    flow = tiny(batch_norm=batch_norm)
    first, last = unwrapped(flow, 0), unwrapped(flow, 1)
    kinds = [CheckerboardCoupling] * 3 + [Squeeze] + [Coupling] * 3 + [Unsqueeze, OrderedSqueeze]
    assert [type(part) for part in first] == kinds
    assert [type(part) for part in last] == [CheckerboardCoupling] * 4
    # the top left pixel is changed first; of the halves the first is, looking at the second
    assert [part.parity for part in first[:3]] == [0, 1, 0]
    assert [part.swap for part in first[4:7]] == [True, False, True]
    assert [part.parity for part in last] == [0, 1, 0, 1]
    assert [type(flow.levels[k].squeeze) for k in (0, 1)] == [Chain, Chain]
    norms = [type(step.parts()[1]) for step in flow.levels[0].steps.parts() if isinstance(step, Chain)]
    assert norms == [BatchNorm] * (6 if batch_norm else 0)


def test_networks_double_their_width_with_every_squeeze_and_bound_their_log_scales():
    """Of checkerboards they start at 0, of halves they are bounded by 1."""
    rescales = {name: p for name, p in tiny().named_parameters() if name.endswith("rescale")}
    assert sorted(float(p.detach().unique()) for p in rescales.values()) == [0.0] * 7 + [1.0] * 3
    flow = tiny(scales=3)
    widths = [
        [part.conditioner.conv_in.direction.shape[0] for part in unwrapped(flow, k) if hasattr(part, "conditioner")]
        for k in range(3)
    ]
    assert widths == [[3, 3, 3, 6, 6, 6], [6, 6, 6, 12, 12, 12], [12, 12, 12, 12]]


def test_the_logit_comes_first():
    flow = tiny(alpha=0.1)
    z, logdet = flow.prelude(torch.full((1, 1, 1, 2), 0.25))
    p = 0.1 + 0.8 * 0.25
    assert z.flatten().tolist() == pytest.approx([math.log(p / (1 - p))] * 2, abs=1e-6)
    assert float(logdet) == pytest.approx(2 * math.log(0.8 / (p * (1 - p))), abs=1e-5)


# --- batch moments ----------------------------------------------------------------------------------------------------


def test_batch_moments_agree_with_evaluation_once_initialized():
    flow = perturbed(tiny(), 0.05).double()
    x = image(batch=8).double()
    flow.initialize(x)
    with torch.no_grad():
        expected = likelihood.log_prob(flow, x)
        with batch_moments(flow):
            assert torch.allclose(likelihood.log_prob(flow, x), expected, atol=1e-8)
        assert torch.allclose(likelihood.log_prob(flow, x), expected, atol=1e-8)


def test_only_batch_moments_make_images_depend_on_their_neighbors():
    flow = move_buffers(tiny()).double().train()
    x = image(batch=3).double()
    together = likelihood.log_prob(flow, x)
    alone = torch.cat([likelihood.log_prob(flow, x[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-10)
    with batch_moments(flow):
        assert not torch.allclose(likelihood.log_prob(flow, x), together, atol=1e-3)
