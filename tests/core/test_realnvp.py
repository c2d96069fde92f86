"""Real NVP: the law at several scales, the order of its couplings, its published size, its batch norms."""

from __future__ import annotations

import math

import pytest
import torch

from flowcore import likelihood
from flowcore.models import build, configure
from flowcore.models.realnvp import RealNVPConfig
from flowcore.networks.residual import NetworkNorm
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

from .laws import check, perturbed

TINY = {"scales": 2, "hidden": 3, "blocks": 1}


def tiny(**fields):
    torch.manual_seed(4)
    return build("realnvp", configure("realnvp", {**TINY, **fields}))


def measured(flow):
    generator = torch.Generator().manual_seed(7)
    for part in flow.modules():
        if isinstance(part, BatchNorm):
            part.mean.copy_(0.3 * torch.randn(part.mean.shape, generator=generator))
            part.var.copy_(0.5 + torch.rand(part.var.shape, generator=generator))
    return flow


def image(channels=3, height=4, width=6, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(6))


# --- the law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sides"),
    [
        ({}, (4, 6)),
        ({"channels": 1, "batch_norm": False}, (4, 6)),
        ({"channels": 1, "mask_channel": False}, (4, 6)),
        ({"channels": 1, "batch_norm": False, "mask_channel": False, "blocks": 0, "alpha": 1e-3}, (4, 6)),
        ({"channels": 1, "scales": 3, "hidden": 2}, (4, 8)),
        ({"channels": 1, "scales": 1}, (3, 5)),
    ],
    ids=str,
)
def test_every_variant_obeys_the_law(fields, sides):
    flow = measured(tiny(**fields))
    check(flow, image(flow.channels, *sides), strength=0.05)


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


def test_log_scales_of_checkerboards_start_at_0_and_of_halves_are_bounded_by_1():
    flow = tiny()
    rescales = {name: p for name, p in flow.named_parameters() if name.endswith("rescale")}
    assert len(rescales) == 10
    assert sorted(float(p.detach().unique()) for p in rescales.values()) == [0.0] * 7 + [1.0] * 3


def test_networks_double_their_width_with_every_squeeze():
    flow = tiny(scales=3)
    widths = [
        [part.conditioner.conv_in.direction.shape[0] for part in unwrapped(flow, k) if hasattr(part, "conditioner")]
        for k in range(3)
    ]
    assert widths == [[3, 3, 3, 6, 6, 6], [6, 6, 6, 12, 12, 12], [12, 12, 12, 12]]


def test_the_defaults_are_the_published_cifar10_network():
    with torch.device("meta"):
        flow = build("realnvp", RealNVPConfig(batch_norm=False, mask_channel=False))
    twice = 3 * 3 + 3 * 6 + 4 * 6  # the re-implementation holds the bounds of log-scales as length and direction
    assert sum(p.numel() for p in flow.parameters()) == 19_631_640 - twice


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"scales": 2}, [(6, 4, 8), (6, 4, 8)]),
        ({"scales": 3}, [(6, 4, 8), (12, 2, 4), (12, 2, 4)]),
        ({"scales": 1}, [(3, 8, 16)]),
        ({"scales": 2, "channels": 1}, [(2, 4, 8), (2, 4, 8)]),
    ],
    ids=str,
)
def test_latent_shapes(fields, expected):
    flow = tiny(**fields)
    assert flow.latent_shapes(8, 16) == expected
    assert flow.size_multiple == 2 ** (fields["scales"] - 1)


def test_the_logit_comes_first():
    flow = tiny(alpha=0.1)
    z, logdet = flow.prelude(torch.full((1, 1, 1, 2), 0.25))
    p = 0.1 + 0.8 * 0.25
    assert z.flatten().tolist() == pytest.approx([math.log(p / (1 - p))] * 2, abs=1e-6)
    assert float(logdet) == pytest.approx(2 * math.log(0.8 / (p * (1 - p))), abs=1e-5)


# --- batch moments ----------------------------------------------------------------------------------------------------


def test_initialize_normalizes_every_batch_norm_of_the_flow():
    flow = perturbed(tiny(), 0.05).double()
    flow.initialize(image(batch=16).double())
    seen = []

    def note(part, arguments, result):
        plain = isinstance(part, BatchNorm)
        seen.append(result[0] if plain else (result - part.bias[:, None, None]) / part.weight[:, None, None])

    for part in flow.modules():
        if isinstance(part, (BatchNorm, NetworkNorm)):
            part.register_forward_hook(note)
    flow(image(batch=16).double())
    norms = [part for part in flow.modules() if isinstance(part, BatchNorm)]
    assert len(seen) == len(norms) == 10 + 10 * 4  # after every coupling, and four in every network
    for z in seen:
        assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-8
        assert (z.var(dim=(0, 2, 3), correction=0) - 1).abs().max() < 0.2  # eps, where the variance is small


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
    flow = measured(tiny()).double().train()
    x = image(batch=3).double()
    together = likelihood.log_prob(flow, x)
    alone = torch.cat([likelihood.log_prob(flow, x[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-10)
    with batch_moments(flow):
        assert not torch.allclose(likelihood.log_prob(flow, x), together, atol=1e-3)
