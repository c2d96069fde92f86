"""Glow: what its fields mean."""

import functools

import pytest
import torch
from builders import build_minimal

from flowcore.dequantization import VariationalDequantizer
from flowcore.testing import perturbed
from flowcore.transforms import ActNorm, Split

tiny = functools.partial(build_minimal, "glow")


def image(channels=3, height=4, width=8, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(6))


def steps(flow):
    return [chain.parts() for level in flow.levels for chain in level.steps.parts()]


@pytest.mark.parametrize(("fields", "moved"), [({}, [False, True]), ({"split_prior": "table"}, [True, True])], ids=str)
def test_labels_whiten_other_latents(fields, moved):
    flow = perturbed(tiny(classes=3, image_size=(4, 8), **fields), 0.05)
    assert [m.labeled for m in flow.modules() if isinstance(m, Split)] == moved[:1]
    one, two = (flow(image(), flow.encode_condition(torch.tensor([k, k])))[0] for k in (0, 1))
    assert [not torch.equal(a, b) for a, b in zip(one, two, strict=True)] == moved


def test_fields_choose_the_parts():
    mixed = tiny(levels=3, mixing="conv", last_mixing="lu", steps=2)
    assert [step[1].lu for step in steps(mixed)] == [False] * 4 + [True] * 2
    for mixing in ("conv", "lu"):  # sorts once a level and then reverses
        principal = tiny(mixing=mixing, mixing_start="principal", steps=3)
        assert [step[1].start for step in steps(principal)] == ["principal", "reverse", "reverse"] * 2
    for actnorm, factor in (("log3", 3.0), ("log", 1.0)):  # also in networks
        assert {m.log_factor for m in tiny(actnorm=actnorm).modules() if isinstance(m, ActNorm)} == {factor}
    assert tiny(learned_top=False).top is None
    assert tiny().top is not None
    assert tiny(learned_top=False, classes=3).top is not None
    assert tiny(pixels="unit").prelude is None
    assert torch.equal(tiny().prelude(image())[0], image() - 0.5)
    dequantizer = tiny(channels=1, dequantizer_steps=1, n_bits=5).dequantizer
    assert isinstance(dequantizer, VariationalDequantizer)
    assert dequantizer.n_bits == 5


def test_a_fresh_flow_counts_a_pixel_where_it_is():
    """All its networks give constants, so a pixel touches its own block at every level, and nothing else."""
    flow = tiny(mixing="conv").double()
    x = image().double()
    moved = x.clone()
    moved[0, 1, 2, 5] += 0.1
    before, after = (flow.by_position(picture)[1] for picture in (x, moved))
    for side, one, two in zip((2, 4), before, after, strict=True):
        top, left = 2 // side * side, 5 // side * side
        expected = torch.zeros(2, 4, 8, dtype=torch.bool)
        expected[0, top : top + side, left : left + side] = True
        assert torch.equal((two - one).abs() > 1e-9, expected)
