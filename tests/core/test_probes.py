"""Probes: drawn once per item, passed in the condition, averaged by score; exact without them."""

import pytest
import torch
from builders import build_model, build_tiny, random_image

import flowcore
from flowcore import likelihood
from flowcore.dequantization import quantization
from flowcore.errors import ConditionError, FlowError
from flowcore.inference.plan import Plan
from flowcore.likelihood import with_probes


def small_flow():
    """A residual flow of two blocks, on any grid."""
    return build_model("residual_flow of frequencies").eval()


def exact_bits(flow, k):
    flow, x = flow.double(), quantization(flow).place(k.double(), torch.full_like(k.double(), 0.5))
    return likelihood.bits_per_dim(likelihood.log_prob(flow, x), k[0].numel(), quantization(flow).width)


def pixels(batch=2, side=4):
    return (random_image(batch, 3, side, 6) * 255).round().byte()


def test_every_estimated_transform_gets_a_probe_of_its_inputs_shape():
    flow = small_flow()
    probes = with_probes(flow, (2, 3, 4, 6), seed=5, terms=7).probes
    assert [tuple(e.shape) for e in probes.vectors] == [(2, 3, 4, 6), (2, 12, 2, 3)]
    assert probes.coefficients == ((1.0,) * 7,) * 2
    for vector in probes.vectors:
        assert set(vector.unique().tolist()) == {-1.0, 1.0}
    assert not torch.equal(probes.vectors[0].flatten(), probes.vectors[1].flatten())


def test_the_probes_of_an_item_depend_on_its_seed_alone():
    flow = small_flow()
    together = with_probes(flow, (3, 3, 4, 6), seed=5).probes
    alone = with_probes(flow, (1, 3, 4, 6), seed=7).probes
    by_seed = with_probes(flow, (2, 3, 4, 6), seed=[7, 5]).probes
    for a, b, c in zip(together.vectors, alone.vectors, by_seed.vectors, strict=True):
        assert torch.equal(a[2:], b)
        assert torch.equal(a[[2, 0]], c)


def test_probes_are_independent_of_other_noise_of_the_same_seed():
    vector = with_probes(small_flow(), (1, 3, 32, 32), seed=5).probes.vectors[0]
    noise = torch.rand(vector.shape[1:], generator=torch.Generator().manual_seed(5))
    assert abs(float((vector[0] * (noise - 0.5)).mean())) < 0.02


def test_what_does_not_fit_is_refused():
    flow, x = small_flow(), random_image(2, 3, 4, 6)
    glow = build_tiny("glow", image_size=(8, 12))
    with pytest.raises(ConditionError, match="exact; it takes no probes"):
        with_probes(glow, (1, 3, 8, 12))
    with pytest.raises(ConditionError, match="exact; it takes no probes"):
        glow(torch.rand(1, 3, 8, 12), with_probes(flow, (1, 3, 4, 6)))
    with pytest.raises(ConditionError, match=r"Expected a probe of shape \(2, 3, 4, 6\); got \(1, 3, 4, 6\)"):
        flow(x, with_probes(flow, (1, 3, 4, 6)))
    with pytest.raises(ConditionError, match=r"at most 4096 are allowed.*likelihood\.with_probes"):
        flow(random_image(1, 3, 64, 64))
    with pytest.raises(FlowError, match="probes must be at least 0"):
        flowcore.score(flow, pixels(), probes=-1)


def test_latents_do_not_depend_on_probes_and_need_none():
    flow, x = small_flow(), random_image(2, 3, 4, 6)
    cond = with_probes(flow, x.shape)
    for z in (flow.encode(x), flow.encode(x, cond), flow(x, cond)[0], Plan(flow).encode(x)):
        for a, b in zip(z, flow(x)[0], strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    large = random_image(1, 3, 64, 64)
    assert torch.allclose(flow.inverse(flow.encode(large)), large, atol=1e-5)


def test_score_without_probes_is_exact():
    flow, k = small_flow(), pixels()
    noise = torch.full((1, *k.shape), 0.5)
    result = flowcore.score(flow, k, noise=noise, probes=0)
    assert torch.allclose(result.bits_per_dim, exact_bits(small_flow(), k), atol=1e-5)
    assert result.standard_error.tolist() == [0, 0]
    assert (result.probes, result.terms, result.bound) == (0, 0, True)
    assert not any("estimated" in note for note in result.notes)


def test_score_averages_probes_and_reports_their_standard_error():
    flow, k = small_flow(), pixels()
    noise = torch.full((1, *k.shape), 0.5)
    result = flowcore.score(flow, k, noise=noise, probes=200, terms=30)
    error = (result.bits_per_dim - exact_bits(small_flow(), k)).abs()
    assert (error < 4 * result.standard_error).all()
    assert (result.standard_error > 0).all()
    few = flowcore.score(flow, k, noise=noise, probes=50, terms=30)
    ratios = few.standard_error / result.standard_error
    assert ((ratios > 1.5) & (ratios < 2.7)).all()  # a fourth of the probes: twice the error
    assert not result.bound
    assert any("200 random probes per draw and 30 terms" in note for note in result.notes)
    assert torch.allclose(result.map.sum((1, 2)), result.bits_per_dim)
    assert torch.allclose(result.per_level.sum(1), result.bits_per_dim)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_score_depends_neither_on_the_batch_nor_on_other_images(samples):
    flow, k = small_flow(), pixels(batch=3)
    options = {"samples": samples, "probes": 3, "complexity": False}
    together = flowcore.score(flow, k, seed=5, **options)
    in_parts = flowcore.score(flow, k, seed=5, batch=2, **options)
    alone = flowcore.score(flow, k[2:], seed=5, **options)
    assert torch.allclose(together.bits_per_dim, in_parts.bits_per_dim, atol=1e-6)
    assert torch.allclose(together.bits_per_dim[2:], alone.bits_per_dim, atol=1e-6)
    assert torch.allclose(together.standard_error[2:], alone.standard_error, atol=1e-6)


def test_one_probe_has_no_standard_error_and_the_largest_seed_is_scored():
    result = flowcore.score(small_flow(), pixels(), seed=2**64 - 1, probes=1)
    assert result.bits_per_dim.isfinite().all()
    assert result.standard_error.isnan().all()
    assert any("unknown error" in note for note in result.notes)


def test_models_with_an_exact_determinant_ignore_probes():
    glow = build_tiny("glow", image_size=(8, 12))
    image = torch.randint(0, 256, (1, 3, 8, 12), dtype=torch.uint8)
    with_probes, without = (flowcore.score(glow, image, probes=probes) for probes in (7, 0))
    assert torch.equal(with_probes.bits_per_dim, without.bits_per_dim)
    assert (with_probes.probes, with_probes.terms, float(with_probes.standard_error)) == (0, 0, 0.0)
    assert with_probes.bound
