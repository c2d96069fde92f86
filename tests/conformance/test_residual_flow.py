"""Residual Flow against tensors recorded from the published program; see residual_flow/README.md.

Tolerances: float64 1e-10, its inverse 1e-11 and gradients 1e-9 of their largest entry; float32 2e-5 for latents, 5e-7
relative for logdet, 2e-6 for the inverse.
"""

import json
import math
import re

import pytest
import torch
from builders import random_image
from safetensors.torch import save_file
from torch import Tensor

import flowcore
from flowcore import CompiledFlow, Condition, Flow, FlowError, load
from flowcore.flows import likelihood, prior
from flowcore.flows.likelihood import with_probes
from flowcore.flows.transforms import Probes, Residual, flat_parts
from flowcore.models.residual_flow.contractive import LipschitzConv
from flowcore.models.residual_flow.published import RESIDUAL_FLOW, residual_flow_origins

from .published import HERE, flat, keys, meta, recording, unflat

SETTINGS = json.loads((HERE / "residual_flow" / "cases.json").read_text())
CASES = list(SETTINGS)


def weights(name: str) -> dict[str, Tensor]:
    return {key: t.clone() for key, t in recording(f"residual_flow/{name}_weights").items()}


class Case:
    """One recorded network as ours, in a precision, with its recorded inputs and outputs."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.settings = name, SETTINGS[name]
        self.flow: Flow = RESIDUAL_FLOW.load(weights(name), {}).to(dtype)
        self.io = recording(f"residual_flow/{name}_io")
        self.x = ((self.io["x_uint8"].double() + self.io["u01"].double()) / 256).to(dtype)

    def cond(self, kind: str, coefficients: list[tuple[float, ...]], *, neumann: bool = False):
        """The recorded probes, in the shapes of our blocks' inputs: of full blocks, all elements are channels."""
        shapes = [e.shape[1:] for e in with_probes(self.flow, self.x.shape).probes.vectors]
        vectors = tuple(self.io[f"{kind}.{i}"].to(self.x).reshape(-1, *shape) for i, shape in enumerate(shapes))
        return Condition(features=(), probes=Probes(vectors=vectors, coefficients=tuple(coefficients), neumann=neumann))

    def roulette(self, exact: int) -> list[tuple[float, ...]]:
        """Exact terms, and then those that a number N, drawn from Poisson(2), keeps, weighted by 1 / P(N >= k)."""
        tails = [1 - math.exp(-2) * sum(2**i / math.factorial(i) for i in range(k)) for k in range(1, 32)]
        return [(1.0,) * exact + tuple(1 / tail for tail in tails[:n]) for n in self.settings["roulette_N"]]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param, torch.float64)


def bits(case: Case, latents: list[Tensor], logdet: Tensor) -> Tensor:
    return likelihood.bits_per_dim(prior.log_prob(latents) + logdet, case.x[0].numel(), 1 / 256)


def squeezed(case: Case, x: Tensor) -> Tensor:
    """An image as the program returns it: squeezed if its model is."""
    return torch.nn.functional.pixel_unshuffle(x, 2) if case.flow.config.squeeze_first else x


def test_latents_and_the_exact_logdet_of_every_block(case):
    latents, logdet = case.flow(case.x)
    assert torch.allclose(flat(latents), case.io["f64.z"], atol=1e-10, rtol=0)
    assert torch.allclose(logdet, case.io["f64.logdet"], atol=1e-10, rtol=1e-13)
    assert torch.allclose(bits(case, latents, logdet), case.io["f64.bpd"], atol=1e-10)
    x = case.flow.preprocess(case.x)[0]
    logdets = []
    for level in case.flow.levels:
        for part in [level.squeeze, *flat_parts(level.steps)]:
            x, logdet = part(x)
            if isinstance(part, Residual):
                logdets.append(logdet)
        x = x if level.split is None else level.split(x)[0][0]
    assert torch.allclose(torch.stack(logdets, 1), case.io["f64.logdet_by_block"], atol=1e-10)


def test_the_series_with_given_probes_and_with_roulette(case):
    for terms in case.settings["config"]["terms"]:
        coefficients = [(1.0,) * terms] * len(case.settings["roulette_N"])
        for kind, name in (("probe", "est"), ("rademacher", "est_rademacher")):
            if f"f64.{name}.n{terms}" not in case.io:  # the latter with most terms only
                continue
            latents, logdet = case.flow(case.x, case.cond(kind, coefficients))
            assert torch.allclose(logdet, case.io[f"f64.{name}.n{terms}"], atol=1e-10, rtol=1e-13), (kind, terms)
            assert torch.allclose(flat(latents), case.io["f64.z"], atol=1e-10, rtol=0)
    for name in ("eval", "train"):
        cond = case.cond("probe", case.roulette(case.settings[f"roulette_{name}_exact_terms"]))
        latents, logdet = case.flow(case.x, cond)
        assert torch.allclose(logdet, case.io[f"f64.roulette_{name}.logdet"], atol=1e-10, rtol=1e-13)
        if name == "eval":
            assert torch.allclose(bits(case, latents, logdet), case.io["f64.bpd_roulette_eval"], atol=1e-10)


def test_the_inverse(case):
    x = case.flow.inverse(unflat(case.io["given.z"].double(), case.flow, case.x))
    assert torch.allclose(squeezed(case, x), case.io["f64.given.x"], atol=1e-11, rtol=0)
    latents, logdet = case.flow(x)
    assert torch.allclose(flat(latents), case.io["given.z"].double(), atol=1e-11, rtol=0)
    assert torch.allclose(logdet, case.io["f64.given.logdet_forward"], atol=1e-10, rtol=1e-12)


@pytest.mark.parametrize("kind", ["exact", "neumann"])
@torch.enable_grad()
def test_gradients(kind):
    case = Case("cifar_like", torch.float64)
    case.flow.requires_grad_(True)
    cond = case.cond("probe", case.roulette(2), neumann=True) if kind == "neumann" else None
    latents, logdet = case.flow(case.x, cond)
    bits(case, latents, logdet).mean().backward()
    names = {origin.ours: origin.names[0] for origin in residual_flow_origins(case.flow.config)}
    checked = 0
    for name, parameter in case.flow.named_parameters():
        expected = case.io.get(f"grad_{kind}.{names[name]}")
        if expected is None:
            continue
        checked += 1
        assert parameter.grad is not None, name
        error = (parameter.grad.reshape(expected.shape) - expected).abs().max()
        assert error <= 1e-9 * expected.abs().max(), name
    assert checked == sum(key.startswith(f"grad_{kind}.") for key in case.io) > 50


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", ["flow", "compiled"])
def test_float32(name, how):
    case = Case(name, torch.float32)
    flow = case.flow if how == "flow" else CompiledFlow(case.flow)
    latents, logdet = flow(case.x)
    assert float((flat(latents) - case.io["f64.z"]).abs().max()) < 2e-5
    assert float((logdet / case.io["f64.logdet"] - 1).abs().max()) < 5e-7
    assert float((flat(latents) - case.io["f32.z"]).abs().max()) < 2e-5
    x = flow.inverse(unflat(case.io["given.z"].float(), flow, case.x))
    assert float((squeezed(case, x) - case.io["f32.given.x"]).abs().max()) < 2e-6
    assert float((squeezed(case, x) - case.io["f64.given.x"]).abs().max()) < 2e-6
    assert float((flow.inverse(latents) - case.x).abs().max()) < 5e-6


def test_score_is_the_recorded_number(case):
    k, noise = case.io["x_uint8"], case.io["u01"].double()[None]
    exact = flowcore.score(case.flow, k, noise=noise, probes=0, complexity=False)
    assert torch.allclose(exact.bits_per_dim, case.io["f64.bpd"], atol=1e-9)
    estimated = flowcore.score(case.flow, k, noise=noise, probes=40, complexity=False)
    assert ((estimated.bits_per_dim - exact.bits_per_dim).abs() < 4 * estimated.standard_error).all()


CIFAR = {"blocks": (16, 16, 16), "full_blocks": 4, "full_hidden": 128, "activation": "lipswish"}
CELEBA = {"blocks": (16,) * 6, "full_blocks": 0, "factor_out": True, "squeeze_first": True, "activation": "elu"}


def test_published_names():
    for name, side, parameters, fields in (
        ("cifar10", 32, 25_174_129, CIFAR),
        ("celebahq256", 256, 136_777_176, CELEBA),
    ):
        shapes = {key: tuple(shape) for key, (shape, _) in keys("residual_flow")[name].items()}
        flow = RESIDUAL_FLOW.load(meta(shapes), {})
        assert sum(p.numel() for p in flow.parameters()) == parameters
        for field, value in {**fields, "hidden": 512, "kernels": (3, 1, 3), "image_size": (side, side)}.items():
            assert getattr(flow.config, field) == value


def checkpoint_of(flow: Flow) -> dict[str, Tensor]:
    """Convert a Residual Flow of ours to a state dict of the published program, with what it stores besides."""
    ours = flow.state_dict()
    state: dict[str, Tensor] = {}
    for origin in residual_flow_origins(flow.config):
        t = ours[origin.ours]
        owner, _, part = origin.names[0].rpartition(".")
        if part in ("u", "v"):
            t = t.flatten()
        elif part == "weight" and ".nnet.nnet." in owner:
            t = t.flatten(1)
        state[origin.names[0]] = t.clone()
        if part == "u":
            sides = ours[origin.ours].shape[1:]
            state |= {f"{owner}.scale": torch.ones(()), f"{owner}.initialized": torch.tensor(1)}
            state |= {f"{owner}.spatial_dims": torch.tensor(sides).float()}
            block = re.match(r".*chain\.\d+", owner)
            assert block is not None
            for name in ("last_n_samples", "last_firmom", "last_secmom"):
                state[f"{block[0]}.{name}"] = torch.zeros(len(name))  # of any length
            state |= {f"{block[0]}.geom_p": torch.zeros((), dtype=torch.float64), f"{block[0]}.lamb": torch.tensor(2.0)}
        elif ".nnet" not in owner and part == "bias":
            state[f"{owner}.initialized"] = torch.tensor(1)
    return state


VARIANTS = [
    {"channels": 1, "alpha": 1e-6},
    {"blocks": (3,), "full_blocks": 2, "first_leading": True},
    {"blocks": (1, 2, 1), "factor_out": True, "activation": "elu"},
    {"blocks": (2, 1), "squeeze_first": True, "channels": 1, "alpha": 1e-6, "full_blocks": 0},
    {"kernels": (3, 3), "leading": False, "coefficient": 0.7},
    {"kernels": (1, 3, 3, 1), "activation": "elu", "leading": False, "first_actnorm": False},
    {"blocks": (1, 1, 1), "kernels": (3, 1, 1, 3), "full_blocks": 0, "image_size": (8, 8)},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_every_structure_is_converted_as_it_was_written(fields, tmp_path):
    """A model of ours under published names, with what else such files hold, is the same model again."""
    small = {"blocks": (1, 1), "hidden": 5, "full_blocks": 1, "full_hidden": 4, "image_size": (8, 12)}
    flow = flowcore.models.build("residual_flow", flowcore.models.configure("residual_flow", {**small, **fields}))
    for parameter in flow.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    flow.normalize(1e-7)
    file = tmp_path / "model.safetensors"
    save_file(checkpoint_of(flow), file)
    overrides = {name: value for name, value in fields.items() if name in ("alpha", "coefficient")}
    again = load(file, **overrides)
    ours, theirs = flow.config, again.config
    if flow.config.full_blocks == 0:
        theirs = flowcore.models.configure("residual_flow", {**vars(theirs), "full_hidden": ours.full_hidden})
    assert theirs == ours
    x = random_image(2, ours.channels, *ours.image_size)
    for a, b in zip(flow.encode(x), again.encode(x), strict=True):
        assert torch.equal(a, b)


def test_vectors_of_other_weights_are_renewed():
    """Published files hold averaged weights, but the vectors of the last ones."""
    state = weights("cifar_like")
    generator = torch.Generator().manual_seed(0)
    for name, t in state.items():
        if name.endswith((".u", ".v")):
            state[name] = torch.nn.functional.normalize(torch.randn(t.shape, generator=generator, dtype=t.dtype), dim=0)
    flow = RESIDUAL_FLOW.load(state, {})
    assert all(part.is_normalized(1e-3) for part in flow.modules() if isinstance(part, LipschitzConv))
    recorded = recording("residual_flow/cifar_like_io")
    x = (recorded["x_uint8"].float() + recorded["u01"].float()) / 256
    z = flat(flow.encode(x))
    assert float((z - recorded["f64.z"]).abs().max()) < 5e-3


DAMAGES = [
    (lambda s: s.pop("transforms.0.chain.2.nnet.2.weight"), "linear layers at"),
    (lambda s: s["transforms.0.chain.1.initialized"].zero_(), "never initialized"),
    (lambda s: s.update({"transforms.0.chain.2.nnet.0.domain": torch.ones(())}), "learned norms"),
    (lambda s: s["transforms.0.chain.2.nnet.0.spatial_dims"].fill_(math.nan), "holds no sides of a grid"),
    (lambda s: s.update({"transforms.0.chain.2.nnet.0.u": torch.zeros(10)}), "not give|in multiples of"),
]


def test_damaged_files_are_refused():
    for change, message in DAMAGES:
        state = weights("cifar_like")
        change(state)
        with pytest.raises(FlowError, match=message):
            RESIDUAL_FLOW.load(state, {})
