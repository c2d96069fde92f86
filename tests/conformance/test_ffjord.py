"""FFJORD against tensors recorded from the published program; see ffjord/README.md."""

import argparse
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowcore import CheckpointError, Condition, Flow, FlowError, load
from flowcore.flows import likelihood, prior
from flowcore.flows.likelihood import with_probes
from flowcore.flows.transforms import ODE, Probes
from flowcore.models import build, configure
from flowcore.models.ffjord import FFJORDConfig
from flowcore.models.ffjord.published import FFJORD, UNSUPPORTED, ffjord_origins

from . import published
from .published import as_ours, error, flat, meta, recording, same, unflat

SQUASH = {"activation": "tanh", "alpha": 1e-6}
CASES = {"cifar_like": {}, "concatsquash": SQUASH}
SOLVERS = {"euler": "euler", "midpoint": "midpoint", "rk4": "rk4_38"}
every_case = pytest.mark.parametrize("name", CASES)


WEIGHTS = {name: recording(f"ffjord/{name}_weights") for name in CASES}
RECORDED = {name: recording(f"ffjord/{name}_io") for name in CASES}


def flow_of(name: str, precision: str = "float64", **fields) -> Flow:
    return as_ours(FFJORD, WEIGHTS[name], precision, **{**CASES[name], **fields})


def image(name: str) -> Tensor:
    io = RECORDED[name]
    return (io["x_uint8"].double() + io["u01"].double()) / 256


def given(name: str, kind: str) -> Condition:
    """The recorded probes, as a condition."""
    vectors = tuple(RECORDED[name][f"{kind}.{k}"] for k in range(3 if name == "cifar_like" else 2))
    return Condition(features=(), probes=Probes(vectors=vectors, coefficients=((),) * len(vectors)))


@every_case
@pytest.mark.parametrize("solver", SOLVERS)
def test_sixteen_steps_are_the_programs(name, solver):
    flow = flow_of(name, solver=SOLVERS[solver])
    latents, logdet = flow(image(name), given(name, "rademacher"))
    assert error(flat(latents), RECORDED[name][f"f64.{solver}_16.z"]) < 1e-11
    assert error(logdet, RECORDED[name][f"f64.{solver}_16.hutchinson_rademacher.logdet"]) < 1e-10
    assert error(flat(flow.encode(image(name))), flat(latents)) == 0


@every_case
def test_many_steps_tend_to_the_solution(name):
    flow, io = flow_of(name, steps=96), RECORDED[name]
    latents, logdet = flow(image(name), given(name, "rademacher"))
    assert error(flat(latents), io["f64.z"]) < 1e-8
    assert error(logdet, io["f64.hutchinson_rademacher.logdet"]) < 1e-7
    assert error(flow(image(name), given(name, "probe"))[1], io["f64.hutchinson_gaussian.logdet"]) < 1e-7
    assert error(flow_of(name)(image(name))[1], io["f64.logdet"]) < 1e-5  # the exact trace
    assert error(flat(latents), io["f64.dopri5_1e-5.z"]) < 1e-3
    for key in [key for key in io if key.startswith("f64.dopri5_1e-5") and "rademacher" in key]:
        assert error(logdet, io[key]) < 1e-3


@every_case
def test_velocities_and_their_traces(name):
    flow, io = flow_of(name, steps=96), RECORDED[name]
    odes = [part for part in flow.modules() if isinstance(part, ODE)]
    inputs: list[Tensor] = []
    for ode in odes:
        ode.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    flow(image(name), given(name, "rademacher"))
    compared = 0
    for number, (ode, x) in enumerate(zip(odes, inputs, strict=True)):
        for key in [key for key in io if re.fullmatch(rf"rhs\.{number}\.t[\d.]+\.dy", key)]:
            t = torch.tensor(float(key.split(".t")[1].removesuffix(".dy")), dtype=torch.float32).double()
            velocity, slopes = ode.field.linearized(t, x)
            assert error(velocity, io[key]) < 1e-7  # of the input, after 96 steps
            e = io[f"rademacher.{number}"].double()
            along = (e * ode.field.derivative(t, slopes, e[:, None])[:, 0]).flatten(1).sum(1)
            assert error(along, io[key.replace(".dy", ".trace_rademacher")]) < 1e-6
            units = torch.eye(x[0].numel()).double().reshape(1, -1, *x.shape[1:]).expand(len(x), -1, -1, -1, -1)
            trace = (units * ode.field.derivative(t, slopes, units)).flatten(1).sum(1)
            assert error(trace, io[key.replace(".dy", ".trace")]) < 1e-6
            compared += 1
    assert compared == 3 * len(odes)


@every_case
def test_float32(name):
    flow, io = flow_of(name, "float32", solver="rk4_38"), RECORDED[name]
    latents, logdet = flow(image(name).float(), given(name, "rademacher"))
    assert error(flat(latents), io["f32.rk4_16.z"]) < 3e-5
    assert error(logdet, io["f32.rk4_16.hutchinson_rademacher.logdet"]) < 1e-4
    assert error(flat(latents), io["f32.dopri5_1e-5.z"]) < 1e-3
    assert error(logdet, io["f32.dopri5_1e-5.hutchinson_rademacher.logdet"]) < 1e-3


@every_case
def test_given_latents_decode_to_the_programs_image(name):
    flow, io = flow_of(name, steps=64), RECORDED[name]
    z = io["given.z"].double()
    decoded = flow.inverse(unflat(z, flow, image(name)))
    assert error(decoded, io["f64.given.x"]) < 1e-7
    assert error(decoded, io["f32.dopri5_1e-5.given.x"]) < 1e-3
    assert error(flat(flow.encode(decoded)), z) < 1e-11


@torch.enable_grad()
def test_gradients_of_the_discrete_map():
    name = "cifar_like"
    flow, io = flow_of(name), RECORDED[name]
    latents, logdet = flow(image(name), given(name, "rademacher"))
    log_prob = prior.log_prob(latents) + logdet
    likelihood.bits_per_dim(log_prob, image(name)[0].numel(), 1 / 256).mean().backward()
    ours = dict(flow.named_parameters())
    origins = [*ffjord_origins(flow.config, multiscale=True)]
    assert {origin.ours for origin in origins} == ours.keys()
    for origin in origins:
        expected = io[f"grad_rk4_16.{origin.names[0]}"]
        assert error(ours[origin.ours].grad, expected) < 1e-8 * max(1, float(expected.abs().max()))


def test_the_model_of_cifar10_and_runs_with_regularization_are_recognized():
    flow = FFJORD.load(meta(published.keys("ffjord")["cifar10"]), {})
    assert flow.config == FFJORDConfig(steps=16)
    wrapped = {key.replace(".odefunc.", ".odefunc.odefunc."): t for key, t in WEIGHTS["cifar_like"].items()}
    assert same(FFJORD.load(wrapped, {}), FFJORD.load(WEIGHTS["cifar_like"], {}))


STRUCTURES = {  # and whether their names are those of the multiscale program
    "gray": (True, {"channels": 1, "scales": 3, "blocks": 2, "hidden": (6, 5)}),
    "a scale alone": (True, {"scales": 1, "blocks": 3, "hidden": (4, 4)}),
    "without hidden layers": (True, {"scales": 2, "blocks": 1, "hidden": ()}),
    "one grid": (False, {"scales": 1, "blocks": 1, "hidden": (8, 8)}),
    "without time": (False, {"scales": 1, "blocks": 2, "hidden": (3, 4), "time": "ignore"}),
    "gated": (False, {"scales": 1, "blocks": 2, "hidden": (3, 4), "time": "concatsquash"}),
    "strides": (False, {"scales": 1, "hidden": (8, 16, 16, 8), "strides": (2, 2, 1, -2, -2), "time": "ignore"}),
    "strides and time": (False, {"scales": 1, "hidden": (5, 5, 5), "strides": (2, 1, 1, -2), "time": "concat"}),
    "strides, where all widths are one": (
        False, {"channels": 1, "scales": 1, "hidden": (2, 2, 2), "strides": (2, 2, -2, -2), "time": "concat"},
    ),
    "strides and gates": (
        False, {"scales": 1, "hidden": (3, 3, 3), "strides": (2, 2, -2, -2), "time": "concatsquash"},
    ),
    "batch norm": (False, {"scales": 1, "blocks": 2, "hidden": (4,), "batch_norm": True}),
}  # fmt: skip


def as_published(flow: Flow, multiscale: bool) -> dict[str, Tensor]:
    """The state dict that the program would write, with what it holds besides."""
    ours, state = flow.state_dict(), {}
    for origin in ffjord_origins(flow.config, multiscale):
        state[origin.names[0]] = ours[origin.ours].clone()
        if len(origin.names) == 2:
            state[origin.names[0]] = ours[origin.ours] * state[origin.names[1]].exp()
            state[origin.names[0].replace("bias", "step")] = torch.tensor([7.0])
        if origin.names[0].endswith("sqrt_end_time"):
            state[origin.names[0].replace("sqrt_end_time", "odefunc._num_evals")] = torch.tensor(26.0)
    return state


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_is_recognized(structure):
    multiscale, fields = STRUCTURES[structure]
    alpha = 1e-6 if fields.get("channels") == 1 else 0.05
    flow = build("ffjord", configure("ffjord", {"steps": 16, "blocks": 1, "alpha": alpha, **fields}))
    for t in flow.state_dict().values():
        t.add_(0.1 * torch.rand(t.shape))
    converted = FFJORD.load(as_published(flow, multiscale), {})
    assert converted.config == flow.config
    x = published.image(1, 2, flow.channels, 16, 32)
    probes = with_probes(flow, x.shape)
    (ours, logdet), (theirs, other) = (f.double()(x, probes) for f in (flow, converted))
    assert max(error(flat(ours), flat(theirs)), error(logdet, other)) < 1e-6


def test_other_kinds_of_layers_coordinates_and_flat_images_are_refused_by_name():
    layers = "chain.1.odefunc.diffeq.layers.0."
    for name, shape in {
        f"{layers}_hypernet.weight": (9, 1),
        f"{layers}_layer0.weight": (8, 3, 3, 3),
        f"{layers}layer_f.weight": (8, 3, 3, 3),
        f"{layers}_hyper.weight": (8, 1),
        "chain.1.odefunc.autoencoder_diffeq.encoder_layers.0._layer.weight": (8, 3, 3, 3),
        f"{layers}_layer.weight_orig": (8, 3, 3, 3),
    }.items():
        what = next(what for part, what in UNSUPPORTED.items() if re.search(part, name))
        with pytest.raises(CheckpointError, match=re.escape(what)):
            FFJORD.load({name: torch.zeros(shape)}, {})
    for shape, what in (((6, 6, 3, 3), "concatcoord"), ((6, 4), "fully connected")):
        with pytest.raises(CheckpointError, match=what):
            FFJORD.load({**WEIGHTS["cifar_like"], f"transforms.0.{layers}_layer.weight": torch.zeros(shape)}, {})


def test_a_file_of_the_program_says_how_to_save_its_weights(tmp_path, monkeypatch):
    """Its settings are pickled beside them. The lines of the page are run here, on a file that we trust."""
    content = {"args": argparse.Namespace(dims="6,7", alpha=0.05), "state_dict": WEIGHTS["cifar_like"]}
    torch.save(content, tmp_path / "checkpt.pth")
    message = r"holds its settings.*argparse\.Namespace.*it was not read.*docs/published-weights\.md"
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "checkpt.pth")
    page = (Path(__file__).parents[2] / "docs" / "published-weights.md").read_text()
    advice = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "state_dict" in block)
    monkeypatch.chdir(tmp_path)
    exec(advice, {})  # noqa: S102  (our own advice, on our own file)
    flow = load(tmp_path / "model.pth")
    assert flow.config == FFJORDConfig(scales=2, blocks=1, hidden=(6, 7), steps=16)
    assert "FFJORD" in flow.provenance["source"]


CHAIN = "transforms.0.chain.{}.odefunc.diffeq.layers.{}._layer.{}".format
DAMAGES = [
    lambda s: s.pop(CHAIN(3, 1, "bias")),
    lambda s: s.pop("transforms.1.chain.0.sqrt_end_time"),
    lambda s: [s.pop(key) for key in list(s) if "layers" in key],
    lambda s: s.update({"transforms.99999999999.chain.0.sqrt_end_time": torch.ones(())}),
    lambda s: s.update({CHAIN(1, 99, "weight"): torch.ones(1, 1, 3, 3)}),
    lambda s: s.update({"transforms.1.chain.0.sqrt_end_time": torch.tensor(math.nan)}),
    lambda s: s.update({CHAIN(3, 1, "bias"): torch.ones(9)}),  # another width
    lambda s: s.update({CHAIN(1, 0, "weight"): torch.ones(())}),
]


def test_damaged_files_are_refused_in_a_sentence(tmp_path):
    for number, damage in enumerate(DAMAGES):
        state = dict(WEIGHTS["cifar_like"])
        damage(state)
        torch.save({"state_dict": state}, tmp_path / "model.pth")
        with pytest.raises(FlowError) as caught:
            load(tmp_path / "model.pth")
        assert "model.pth" in str(caught.value), number
        assert len(str(caught.value)) < 1000
