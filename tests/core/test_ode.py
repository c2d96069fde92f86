"""The ODE: the law on its steps, the order of its rules, its trace, its inverse, and the costs of its path."""

import pytest
import torch
from flowcore.testing import check, check_gradients, check_round_trip, check_untouched, perturbed
from torch import nn

from flowcore import ConditionError, FlowError, ShapeError
from flowcore.flows.transforms import ODE, Chain, LevelCondition, Probes, path_costs
from flowcore.flows.transforms.stochastic_logdet import fixed_point
from flowcore.models.ffjord.vector_field import VectorField


def field(channels=3, hidden=(4, 5), seed=1, **options):
    torch.manual_seed(seed)
    return VectorField(channels, hidden, **options)


def moving(how="exact", steps=2, solver="rk4", channels=3, **options):
    """An ODE whose velocity is not zero."""
    ode = perturbed(ODE(field(channels, **options), steps=steps, solver=solver, how=how), 0.2)
    assert isinstance(ode, ODE)
    return ode.double()


def batch(channels=3, height=3, width=4, n=2):
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def signs(x, seed=3):
    e = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(seed)).to(x) * 2 - 1
    return LevelCondition(probes=Probes(vectors=(e,), coefficients=((),)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "rk4_38", "steps": 1, "time": "concatsquash", "activation": "tanh"},
        {"solver": "midpoint", "time": "ignore", "activation": "swish"},
        {"solver": "euler", "hidden": (), "activation": "elu"},
        {"channels": 2, "hidden": (4, 4), "strides": (2, 1, -2)},
    ],
    ids=str,
)
def test_the_steps_obey_the_law(options):
    x = batch(2, 2, 4) if "strides" in options else batch()
    check(moving(**options), x, networks=False, local=False, strength=0.0)


def test_the_trace_keeps_the_other_laws():
    ode, x = moving("trace"), batch()
    for cond in (None, signs(x)):
        check_untouched(ode, x, cond)
        check_round_trip(ode, x, cond)
        check_gradients(ode, x, cond)


@pytest.mark.parametrize(
    ("time", "activation"),
    [("concat", "softplus"), ("concatsquash", "tanh"), ("ignore", "elu"), ("concat", "relu"), ("ignore", "swish")],
)
def test_the_written_derivative_is_that_of_autograd(time, activation):
    network = perturbed(field(2, (4, 4), strides=(2, -2, 1), time=time, activation=activation), 0.3).double()
    y, t = batch(2, 4, 6), torch.tensor(0.37, dtype=torch.float64)
    v = torch.randn(2, 5, *y.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    velocity, slopes = network.linearized(t, y)
    assert torch.equal(velocity, network(t, y))
    expected = [torch.autograd.functional.jvp(lambda y: network(t, y), y, v[:, k])[1] for k in range(5)]
    assert torch.allclose(network.derivative(t, slopes, v), torch.stack(expected, 1), atol=1e-12)


def test_all_unit_vectors_give_the_exact_trace_and_its_map():
    ode, x = moving("trace", channels=2), batch(2, 2, 3)
    exact, total = ode.forward_with_logdet_map(x)[1], 0
    for unit in torch.eye(x[0].numel(), dtype=x.dtype):
        e = unit.reshape(1, *x.shape[1:]).expand_as(x)
        total = (
            total + ode.forward_with_logdet_map(x, LevelCondition(probes=Probes(vectors=(e,), coefficients=((),))))[1]
        )
    assert torch.allclose(total, exact, atol=1e-12)


def test_exact_and_trace_in_parts_are_the_same(monkeypatch):
    for how in ("trace", "exact"):
        ode, x = moving(how), batch()
        whole = ode.forward_with_logdet_map(x)[1]
        monkeypatch.setattr("flowcore.flows.transforms.ode.CHUNK", 700)
        assert torch.allclose(ode.forward_with_logdet_map(x)[1], whole, atol=1e-12)
        monkeypatch.undo()


def test_images_and_probes_that_do_not_fit_are_refused():
    ode = ODE(field(), steps=1)
    x = torch.rand(1, 3, 64, 64)
    with pytest.raises(ConditionError):
        ode(x)  # before any work
    assert torch.equal(ode.encode(x), x)  # it starts as the identity
    z, logdet = ode(x, signs(x))
    assert torch.equal(z, x)
    assert not logdet.any()
    with pytest.raises(ConditionError):
        moving("trace")(batch(), signs(batch(n=1)))
    with pytest.raises(ShapeError):
        moving(hidden=(4,), strides=(2, -2))(batch())


def test_a_step_too_long_to_be_solved_says_what_to_do():
    ode = moving("trace", steps=1, activation="tanh")
    with torch.no_grad():
        ode.sqrt_end_time.fill_(6)
    with pytest.raises(FlowError, match="steps"):
        ode.inverse(10 * batch())


def test_a_fixed_point_of_one_item_does_not_depend_on_the_others():
    slopes = torch.tensor([0.1, 0.9, -0.95], dtype=torch.float64)[:, None]
    start = torch.ones(3, 4, dtype=torch.float64)
    together = fixed_point(lambda x: slopes * x + 1, start, "")
    for i in range(3):
        alone = fixed_point(lambda x, i=i: slopes[i : i + 1] * x + 1, start[i : i + 1], "")
        assert torch.equal(alone, together[i : i + 1])
    assert torch.allclose(together, (1 / (1 - slopes)).expand(3, 4), rtol=1e-13)
    x = fixed_point(lambda x: x * torch.tensor([[0.5], [1e300]], dtype=torch.float64), torch.ones(2, 1).double(), "")
    assert x.isfinite().flatten().tolist() == [True, False]  # one that overflows ends


def test_an_iteration_that_turns_as_it_contracts_ends_at_rounding():
    """Its largest change rises and falls on the way; only the norm of all falls every time."""
    angle = torch.tensor(3.0, dtype=torch.float64)
    turn = 0.97 * torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    z = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    x = fixed_point(lambda x: z - x @ turn.T, z, "")
    exact = torch.linalg.solve(torch.eye(2, dtype=torch.float64) + turn, z[0])
    assert (x[0] - exact).abs().max() < 1e-12


class Rotation(nn.Module):
    """``f = A y`` with a skew matrix: speed and derivative are the same everywhere on a circle."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, t, y):
        return self.rate * torch.stack([-y[:, 1], y[:, 0]], 1)

    def linearized(self, t, y):
        return self(t, y), []

    def derivative(self, t, slopes, v):
        return self.rate * torch.stack([-v[:, :, 1], v[:, :, 0]], 2)


def test_costs_of_a_rotation():
    ode, x = ODE(Rotation(), steps=64).double(), batch(2)
    with torch.no_grad():
        ode.sqrt_end_time.fill_(1.5**0.5)
    with path_costs(Chain(ode)) as costs:
        z, logdet = ode(x, signs(x))
    kinetic, jacobian = costs[0]
    assert logdet.abs().max() < 1e-12
    assert torch.allclose(z.square().sum(1), x.square().sum(1), atol=1e-7)
    assert torch.allclose(kinetic, 1.5 * 0.49 * x.square().flatten(1).mean(1), atol=1e-7)
    assert torch.allclose(jacobian, torch.full((2,), 1.5 * 0.49, dtype=torch.float64), atol=1e-12)
    ode(x, signs(x))
    assert len(costs) == 1  # outside, nothing is collected
