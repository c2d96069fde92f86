"""Residual Flow: the law of its blocks, norms, inverses; and probes, averaged by score."""

import functools

import pytest
import torch
from builders import build_minimal, build_model, build_tiny, random_image
from torch import nn

import flowcore
from flowcore import CompiledFlow, ConditionError, FlowError
from flowcore.flows import testing as laws
from flowcore.flows.likelihood import with_probes
from flowcore.flows.transforms import Residual
from flowcore.models.residual_flow.contractive import ELU, ContractiveNetwork, LipschitzConv, LipSwish

tiny = functools.partial(build_minimal, "residual_flow")


def jacobian(network, x):
    """J of one item, by autograd."""
    size = x.numel()
    flat = lambda data: network(data.view_as(x)).flatten()  # noqa: E731
    return torch.autograd.functional.jacobian(flat, x.flatten()).reshape(size, size)


def test_with_probes_it_obeys_all_but_the_determinant():
    flow, x = laws.perturbed(tiny()).double(), random_image(2, 3, 4, 6).double()
    cond = with_probes(flow, x.shape, seed=3, terms=5).map_tensors(torch.Tensor.double)
    laws.check_untouched(flow, x, cond)
    laws.check_items_independent(flow, x, cond)
    laws.check_round_trip(flow, x, cond)
    laws.check_logdet_map(flow, x, cond)
    laws.check_gradients(flow, x, cond)
    laws.check_precision(flow.float(), x.float(), cond, networks=False)


@pytest.mark.parametrize("activation", [LipSwish, ELU])
def test_slopes_are_derivatives_of_at_most_1(activation):
    made = activation().double()
    for beta in (-3.0, 0.5, 4.0):
        for parameter in made.parameters():
            nn.init.constant_(parameter, beta)
        x = torch.linspace(-100, 100, 20001, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(made(x).sum(), x)
        assert torch.allclose(made.slope(x), slope, atol=1e-12)
        assert slope.max() <= 1
        assert slope.max() > 0.99


def matrix_of(convolution, height, width):
    channels = convolution.weight.shape[1]
    units = torch.eye(channels * height * width, dtype=torch.float64).reshape(-1, channels, height, width)
    out = torch.nn.functional.conv2d(units, convolution.weight, padding=convolution.padding)
    return out.flatten(1).T


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_sigma_on_a_grid_is_the_norm_there(kernel):
    torch.manual_seed(0)  # fixed draws: where the two largest norms nearly agree, power iteration stops early
    convolution = LipschitzConv(3, 4, kernel, grid=(5, 6), coefficient=0.9).double()
    convolution.normalize(1e-12)
    norm = float(torch.linalg.matrix_norm(matrix_of(convolution, 5, 6), 2))
    assert float(convolution.sigma()) == pytest.approx(norm, rel=2e-3)
    assert torch.allclose(convolution.bounded_weight(), convolution.weight / max(1, norm / 0.9), rtol=2e-3)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 4), (4, 3), (1, 2)])
def test_frequencies_bound_the_norm_at_every_size(inputs, outputs):
    convolution = LipschitzConv(inputs, outputs, 3, grid=None, coefficient=0.9).double()
    convolution.normalize()
    norms = [float(torch.linalg.matrix_norm(matrix_of(convolution, n, n + 1), 2)) for n in (2, 5, 12)]
    assert norms == sorted(norms)
    sigma = float(convolution.sigma())
    assert norms[-1] <= sigma <= 1.1 * norms[-1]


def test_normalize_leaves_what_is_normalized_and_follows_what_is_not():
    convolution = LipschitzConv(3, 4, 3, grid=(5, 6), coefficient=0.9).double()
    assert not convolution.is_normalized()
    convolution.normalize(1e-10)
    before = {name: buffer.clone() for name, buffer in convolution.named_buffers()}
    convolution.normalize()
    assert convolution.is_normalized()
    assert all(torch.equal(before[name], buffer) for name, buffer in convolution.named_buffers())
    with torch.no_grad():
        convolution.weight.add_(torch.randn_like(convolution.weight))
    assert not convolution.is_normalized()
    convolution.normalize()
    assert convolution.is_normalized(1e-3)
    with torch.no_grad():
        convolution.weight.mul_(0.01)
    convolution.normalize()
    assert torch.equal(convolution.bounded_weight(), convolution.weight)  # small weights are left alone


def test_initialize_normalizes_actnorms_but_not_constant_rows():
    flow = tiny(image_size=(4, 6))
    x = random_image(64, 3, 4, 6)
    x[:, :, 0] = 0.5  # constant rows would be blown up
    (z,) = flow.initialize(x)
    assert z.abs().max() < 50
    assert float(z[:, :, 1:].mean()) == pytest.approx(0, abs=0.05)


def test_a_network_that_is_not_contractive_is_refused():
    flow = tiny()
    with torch.no_grad():
        for part in flow.modules():
            if isinstance(part, LipschitzConv):
                part.weight.mul_(60)
                part.get_buffer("u").zero_()
    with pytest.raises(FlowError, match="normalize"):
        flow.inverse([torch.randn(1, 12, 2, 3)])
    flow.normalize()
    assert flow.inverse([torch.randn(1, 12, 2, 3)]).isfinite().all()


def test_gradients_of_the_inverse_are_those_of_the_fixed_point():
    network = ContractiveNetwork(1, 4, grid=(2, 3))
    made = laws.perturbed(Residual(network), 0.3).double().requires_grad_(False)
    z = torch.randn(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    x = made.inverse(z)
    expected = torch.linalg.inv(torch.eye(6) + jacobian(made.network, x.detach()))
    for k in range(6):
        (row,) = torch.autograd.grad(x.flatten()[k], z, retain_graph=True)
        assert torch.allclose(row.flatten(), expected[k], atol=1e-12)


def small_flow():
    """A residual flow of two blocks, on any grid."""
    return build_model("residual_flow of frequencies").eval()


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


def test_probes_are_independent_of_other_noise_of_the_same_seed():
    vector = with_probes(small_flow(), (1, 3, 32, 32), seed=5).probes.vectors[0]
    noise = torch.rand(vector.shape[1:], generator=torch.Generator().manual_seed(5))
    assert abs(float((vector[0] * (noise - 0.5)).mean())) < 0.02


def test_what_does_not_fit_is_refused():
    flow, x = small_flow(), random_image(2, 3, 4, 6)
    glow = build_tiny("glow", image_size=(8, 12))
    with pytest.raises(ConditionError):
        with_probes(glow, (1, 3, 8, 12))
    with pytest.raises(ConditionError):
        glow(torch.rand(1, 3, 8, 12), with_probes(flow, (1, 3, 4, 6)))
    with pytest.raises(ConditionError):
        flow(x, with_probes(flow, (1, 3, 4, 6)))
    with pytest.raises(ConditionError):
        flow(random_image(1, 3, 64, 64))
    with pytest.raises(FlowError, match="probes"):
        flowcore.score(flow, pixels(), probes=-1)


def test_latents_need_no_probes():
    flow, large = small_flow(), random_image(1, 3, 64, 64)
    for each in (flow, CompiledFlow(flow)):
        assert torch.allclose(flow.inverse(each.encode(large)), large, atol=1e-5)


def test_score_averages_probes_and_reports_their_standard_error():
    flow, k = small_flow(), pixels()
    noise = torch.full((1, *k.shape), 0.5)
    result, few = (flowcore.score(flow, k, noise=noise, probes=probes, terms=20) for probes in (80, 20))
    ratios = few.standard_error / result.standard_error
    assert ((ratios > 1.5) & (ratios < 2.7)).all()  # a fourth of the probes: twice the error
    assert not result.bound
    assert any("80 random probes per draw and 20 terms" in note for note in result.notes)
    assert torch.allclose(result.map.sum((1, 2)), result.bits_per_dim)
    assert torch.allclose(result.per_level.sum(1), result.bits_per_dim)


def test_a_score_depends_neither_on_the_batch_nor_on_other_images():
    flow, k = small_flow(), pixels(batch=3)
    options = {"samples": 3, "probes": 3, "complexity": False}
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
