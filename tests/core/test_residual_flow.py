"""Residual Flow: the law of its blocks, the series' own law, norms, inverses."""

import functools
import itertools

import pytest
import torch
from builders import build_minimal, random_image
from torch import nn

from flowcore import testing as laws
from flowcore.errors import FlowError
from flowcore.likelihood import with_probes
from flowcore.networks import ContractiveNetwork
from flowcore.networks.contractive import ELU, LipschitzConv, LipSwish
from flowcore.transforms import Probes, Residual

tiny = functools.partial(build_minimal, "residual_flow")


def block(channels=2, hidden=4, *, strength=0.3, **options):
    torch.manual_seed(5)
    made = Residual(ContractiveNetwork(channels, hidden, **{"grid": (2, 3), **options}))
    return laws.perturbed(made, strength).double()


def jacobian(network, x):
    """J of one item, by autograd."""
    size = x.numel()
    flat = lambda data: network(data.view_as(x)).flatten()  # noqa: E731
    return torch.autograd.functional.jacobian(flat, x.flatten()).reshape(size, size)


@pytest.mark.parametrize("activation", ["lipswish", "elu"])
def test_a_block_obeys_the_law(activation):
    made, x = block(3, activation=activation, grid=(3, 4)), random_image(2, 3, 3, 4)
    laws.check(made, x, networks=False, local=False, strength=0.5)


def test_with_probes_it_obeys_all_but_the_determinant():
    flow, x = laws.perturbed(tiny()).double(), random_image(2, 3, 4, 6).double()
    cond = with_probes(flow, x.shape, seed=3, terms=5).map_tensors(torch.Tensor.double)
    laws.check_untouched(flow, x, cond)
    laws.check_items_independent(flow, x, cond)
    laws.check_round_trip(flow, x, cond)
    laws.check_by_position(flow, x, cond)
    laws.check_gradients(flow, x, cond)
    laws.check_precision(flow.float(), x.float(), cond, networks=False)


def series(matrix, coefficients):
    powers = itertools.accumulate([matrix] * len(coefficients), torch.matmul)
    return sum(
        float(c * (-1) ** (k + 1) / k * torch.trace(power))
        for k, (c, power) in enumerate(zip(coefficients, powers, strict=True), 1)
    )


COEFFICIENTS = [(1.0,) * 1, (1.0,) * 6, (1.0, 1.0, 1 / 0.865, 1 / 0.594)]


@pytest.mark.parametrize("coefficients", COEFFICIENTS, ids=str)
def test_unit_vectors_add_up_to_the_series(coefficients):
    """Summed over the D unit vectors in place of probes, the estimate is the series itself."""
    made, x = block(), random_image(1, 2, 2, 3).double()
    units = torch.eye(12, dtype=torch.float64).reshape(12, 2, 2, 3)
    estimate = made(x.expand(12, -1, -1, -1), Probes(vectors=(units,), coefficients=(coefficients,)))[1].sum()
    assert float(estimate) == pytest.approx(series(jacobian(made.network, x), coefficients), abs=1e-12)


@pytest.mark.parametrize("terms", [1, 3, 10, 20])
def test_the_series_gives_the_determinant_within_its_bound(terms):
    made, x = block(strength=1.0), random_image(1, 2, 2, 3).double()
    for convolution in made.network.convolutions():
        nn.init.ones_(convolution.bias)  # where activations are steep
    matrix = jacobian(made.network, x)
    norm, size = float(torch.linalg.matrix_norm(matrix, 2)), len(matrix)
    assert 0.1 < norm < 0.98**3
    error = abs(series(matrix, (1.0,) * terms) - float(torch.linalg.slogdet(torch.eye(size) + matrix)[1]))
    assert error <= size * norm ** (terms + 1) / ((terms + 1) * (1 - norm))


def test_gradients_by_neumann_have_the_mean_of_the_determinants():
    """Over all probes, with so many terms that nothing is left out: both gradients are that of the determinant."""
    made, x = block(1, grid=(2, 4)), random_image(1, 1, 2, 4).double()
    probes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=8)), dtype=torch.float64).reshape(-1, 1, 2, 4)
    exact = made(x)[1].sum()
    theirs = torch.autograd.grad(exact, list(made.parameters()), allow_unused=True)
    assert sum(g is not None and bool(g.abs().max() > 1e-3) for g in theirs) > 3
    for neumann in (False, True):
        cond = Probes(vectors=(probes,), coefficients=((1.0,) * 60,), neumann=neumann)
        estimate = made(x.expand(256, -1, -1, -1), cond)[1].mean()
        assert float(estimate) == pytest.approx(float(exact), abs=1e-9)  # the value does not depend on the gradient
        ours = torch.autograd.grad(estimate, list(made.parameters()), allow_unused=True)
        for a, b in zip(ours, theirs, strict=True):
            if b is None:
                assert a is None or not a.any()
            else:
                assert torch.allclose(a, b, atol=1e-9)


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
    torch.manual_seed(0)
    convolution = LipschitzConv(3, 4, kernel, grid=(5, 6), coefficient=0.9).double()
    convolution.normalize(1e-12)
    norm = float(torch.linalg.matrix_norm(matrix_of(convolution, 5, 6), 2))
    assert float(convolution.sigma()) == pytest.approx(norm, rel=2e-3)
    assert torch.allclose(convolution.bounded_weight(), convolution.weight / max(1, norm / 0.9), rtol=2e-3)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 4), (4, 3), (1, 2)])
def test_frequencies_bound_the_norm_at_every_size(inputs, outputs):
    torch.manual_seed(0)
    convolution = LipschitzConv(inputs, outputs, 3, grid=None, coefficient=0.9).double()
    convolution.normalize()
    norms = [float(torch.linalg.matrix_norm(matrix_of(convolution, n, n + 1), 2)) for n in (2, 5, 12)]
    assert norms == sorted(norms)
    sigma = float(convolution.sigma())
    assert norms[-1] <= sigma <= 1.1 * norms[-1]


def test_normalize_leaves_what_is_normalized_and_follows_what_is_not():
    torch.manual_seed(0)
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


def test_initialize_normalizes_every_actnorm_but_what_hardly_varies():
    flow = tiny(image_size=(4, 6))
    x = random_image(64, 3, 4, 6)
    x[:, :, 0] = 0.5  # constant rows would be blown up
    (z,) = flow.initialize(x)
    assert z.abs().max() < 50
    assert float(z[:, :, 1:].mean()) == pytest.approx(0, abs=0.05)


def test_what_is_no_contraction_is_refused():
    flow = tiny()
    with torch.no_grad():
        for part in flow.modules():
            if isinstance(part, LipschitzConv):
                part.weight.mul_(60)
                part.get_buffer("u").zero_()
    with pytest.raises(FlowError, match=r"no contraction.*flow\.normalize"):
        flow.inverse([torch.randn(1, 12, 2, 3)])
    flow.normalize()
    assert flow.inverse([torch.randn(1, 12, 2, 3)]).isfinite().all()


def test_gradients_of_the_inverse_are_those_of_the_fixed_point():
    made = block(1, grid=(2, 3)).requires_grad_(False)
    z = torch.randn(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    x = made.inverse(z)
    expected = torch.linalg.inv(torch.eye(6) + jacobian(made.network, x.detach()))
    for k in range(6):
        (row,) = torch.autograd.grad(x.flatten()[k], z, retain_graph=True)
        assert torch.allclose(row.flatten(), expected[k], atol=1e-12)
