"""Glow: the law in every variant, the published sizes, and what its fields mean."""

from __future__ import annotations

import pytest
import torch

from flowcore.dequantization import VariationalDequantizer
from flowcore.errors import FlowError
from flowcore.models import build, configure
from flowcore.models.glow import GlowConfig
from flowcore.transforms import ActNorm, Coupling, InvertibleConv, Permutation, SignedActNorm, Split

from .laws import check, perturbed

TINY = {"levels": 2, "steps": 1, "hidden": 6}


def tiny(**fields):
    torch.manual_seed(4)
    return build("glow", configure("glow", {**TINY, **fields}))


def image(channels=3, height=4, width=8, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(6))


# --- the law ----------------------------------------------------------------------------------------------------------

VARIANTS = [
    {"mixing": "reverse"},
    {"mixing": "shuffle", "steps": 2},
    {"mixing": "conv"},
    {"mixing": "lu", "steps": 2},
    {"mixing": "conv", "last_mixing": "lu"},
    {"mixing": "lu", "last_mixing": "reverse"},
    {"coupling": "additive", "learned_top": False},
    {"learned_top": False},
    {"mixing": "conv", "mixing_start": "principal", "steps": 2},
    {"mixing": "lu", "mixing_start": "principal", "steps": 2},
    {"affine_eps": 0.1},
    {"classes": 3},
    {"classes": 3, "learned_top": False},
    {"pixels": "unit"},
    {"edge": "ones"},
    {"edge": "flag", "actnorm": "log3"},
    {"edge": "flag", "classes": 3, "coupling": "additive"},
    {"actnorm": "signed"},
    {"network": "plain"},
    {"network": "plain", "scaled": False},
    {"scaled": False},
    {"network": "plain", "edge": "ones", "actnorm": "signed", "classes": 3, "mixing": "conv", "last_mixing": "lu"},
    {"split_prior": "table", "image_size": (4, 8)},
    {"split_prior": "table", "image_size": (4, 8), "classes": 3, "network": "plain", "scaled": False},
    {"channels": 1, "levels": 1},
    {"channels": 1, "levels": 3},
    {"channels": 1, "dequantizer_steps": 1, "n_bits": 5},
    {"channels": 1, "levels": 2, "grid": "levels", "n_bits": 5},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_every_variant_obeys_the_law(fields):
    # stronger noise makes the priors of splits so wide that random latents become images with values of 10^5
    flow = tiny(**fields)
    labels = (lambda f: f.encode_condition(torch.tensor([1, 2]))) if flow.classes else None
    dead = [name for name, _ in flow.named_parameters() if name.startswith("dequantizer.")]
    assert bool(dead) == bool(fields.get("dequantizer_steps"))
    m = max(flow.size_multiple, 4)
    check(flow, image(flow.channels, m, 2 * m), labels, dead=dead, strength=0.03 if m > 4 else 0.05)


def test_a_dequantizer_has_the_bits_of_its_flow():
    flow = tiny(channels=1, dequantizer_steps=1, n_bits=5)
    assert isinstance(flow.dequantizer, VariationalDequantizer)
    assert flow.dequantizer.n_bits == 5


def test_every_choice_of_every_field_is_among_the_variants():
    config = {"n_bits": (8, 5), "grid": ("bins", "levels"), "pixels": ("centred", "unit"), "scaled": (True, False)}
    config |= {"coupling": ("affine", "additive"), "mixing": ("reverse", "shuffle", "conv", "lu")}
    config |= {"mixing_start": ("orthogonal", "principal"), "edge": ("zeros", "ones", "flag"), "channels": (1, 3)}
    config |= {"network": ("actnorm", "plain"), "actnorm": ("log", "log3", "signed"), "learned_top": (True, False)}
    config |= {"split_prior": ("conv", "table")}
    made = [configure("glow", {**TINY, **fields}) for fields in VARIANTS]
    for field, choices in config.items():
        assert set(choices) <= {getattr(c, field) for c in made}, field


# --- the published networks -------------------------------------------------------------------------------------------


def parameters(**fields):
    with torch.device("meta"):
        return sum(p.numel() for p in build("glow", GlowConfig(**fields)).parameters())


# a top prior's convolution of zeros: 48 * 2 channels in and out, 3x3; parameters that never do anything
IDLE = 96 * 96 * 9


def test_the_defaults_are_the_papers_cifar10_network():
    assert parameters(mixing="conv", learned_top=False) == 44_052_720  # counted in checkpoints
    assert parameters() == 44_235_312 - IDLE
    assert parameters(edge="flag", actnorm="log3", mixing="conv") == 44_603_604 - IDLE
    assert parameters(edge="flag", actnorm="log3", mixing="conv", coupling="additive") == 38_395_668 - IDLE


def test_the_published_network_with_plain_couplings():
    fields = {"levels": 4, "edge": "ones", "network": "plain", "actnorm": "signed", "mixing": "conv"}
    assert parameters(**fields, last_mixing="lu") == 74_391_376
    assert parameters(**{**fields, "mixing": "lu"}) == 74_490_832
    assert parameters(**{**fields, "mixing": "lu"}, coupling="additive") == 61_214_032


@pytest.mark.parametrize(
    ("fields", "shape", "expected"),
    [
        ({"levels": 3}, (32, 32), [(6, 16, 16), (12, 8, 8), (48, 4, 4)]),
        ({"levels": 3, "channels": 1}, (16, 24), [(2, 8, 12), (4, 4, 6), (16, 2, 3)]),
        ({"levels": 1}, (2, 4), [(12, 1, 2)]),
    ],
    ids=str,
)
def test_latent_shapes(fields, shape, expected):
    flow = tiny(**fields)
    assert flow.latent_shapes(*shape) == expected
    assert flow.size_multiple == 2 ** fields["levels"]


# --- what the fields mean ---------------------------------------------------------------------------------------------


def steps(flow):
    return [chain.parts() for level in flow.levels for chain in level.steps.parts()]


def test_a_step_is_an_actnorm_a_mixing_and_a_coupling():
    assert [[type(part) for part in step] for step in steps(tiny())] == [[ActNorm, InvertibleConv, Coupling]] * 2
    (_, reverse, _), _ = signed = steps(tiny(actnorm="signed", mixing="reverse"))
    assert [type(part) for part in signed[0]] == [SignedActNorm, Permutation, Coupling]
    assert reverse.order.tolist() == list(range(11, -1, -1))
    first, second = (step[1].order.tolist() for step in steps(tiny(mixing="shuffle", steps=2))[:2])
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_last_mixing_is_that_of_the_last_level():
    flow = tiny(levels=3, mixing="conv", last_mixing="lu", steps=2)
    assert [step[1].lu for step in steps(flow)] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("mixing", ["conv", "lu"])
def test_a_principal_start_sorts_once_a_level_and_then_reverses(mixing):
    flow = tiny(mixing=mixing, mixing_start="principal", steps=3)
    assert [step[1].start for step in steps(flow)] == ["principal", "reverse", "reverse"] * 2


def test_log3_reaches_the_actnorms_of_the_networks_too():
    flow = tiny(actnorm="log3")
    assert {m.log_factor for m in flow.modules() if isinstance(m, ActNorm)} == {3.0}
    assert {m.log_factor for m in tiny().modules() if isinstance(m, ActNorm)} == {1.0}


@pytest.mark.parametrize(("fields", "moved"), [({}, [False, True]), ({"split_prior": "table"}, [True, True])], ids=str)
def test_labels_whiten_other_latents(fields, moved):
    flow = perturbed(tiny(classes=3, image_size=(4, 8), **fields), 0.05)
    assert [m.labeled for m in flow.modules() if isinstance(m, Split)] == moved[:1]
    one, two = (flow(image(), flow.encode_condition(torch.tensor([k, k])))[0] for k in (0, 1))
    assert [not torch.equal(a, b) for a, b in zip(one, two, strict=True)] == moved


def test_optional_parts():
    assert tiny(learned_top=False).top is None
    assert tiny().top is not None
    assert tiny(learned_top=False, classes=3).top is not None
    assert tiny(pixels="unit").prelude is None
    assert torch.equal(tiny().prelude(image())[0], image() - 0.5)


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


# --- initialize -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 2},
        {"actnorm": "signed"},
        {"actnorm": "log3", "edge": "flag"},
        {"mixing_start": "principal", "mixing": "conv"},
    ],
    ids=str,
)
def test_initialize_normalizes_every_actnorm_of_the_flow(fields):
    flow = tiny(**fields).double()
    x = image(batch=16, height=8).double()
    flow.initialize(x)
    seen = []
    for step in steps(flow):
        step[0].register_forward_hook(lambda module, arguments, result: seen.append(result[0]))
    for _ in range(2):  # the second time like the first
        flow.train()(x)
    assert len(seen) == 2 * len(steps(flow))
    for z in seen:
        assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-9
        assert (z.var(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-3


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"split_prior": "table"}, 'split_prior "table" .* needs image_size'),
        ({"network": "plain", "edge": "flag"}, 'edge must be "zeros" or "ones" for network "plain"'),
    ],
    ids=str,
)
def test_fields_that_do_not_go_together_are_named(fields, sentence):
    with pytest.raises(FlowError, match=sentence):
        GlowConfig(**fields)
