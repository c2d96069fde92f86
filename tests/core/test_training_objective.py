"""The terms of the objective: colors of samples, features of a teacher; and no step waits for the device."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from builders import build_tiny, random_image
from torch.utils._python_dispatch import TorchDispatchMode

from flowcore import FlowError
from flowcore.flows.dequantization import round_to_integers, to_integers
from flowcore.flows.prior import sample_latents
from flowcore.images.color import as_stored
from flowcore.images.gain_grid import bilateral_gain
from flowcore.images.resize import downsample
from flowcore.models import build
from flowcore.models.glow import GlowConfig, glow
from flowcore.models.model_file import read
from flowcore.training.loop import train
from flowcore.training.objective import Likelihood, color_error, initialize_flow, make_objective
from flowcore.training.recipe import Stage, parse_recipe

from .training_runs import RECIPE as UPSCALER

MODEL, _, FLOW = UPSCALER.split("[[stages]]")
COLORS = f"{MODEL}[[stages]]{FLOW}".replace("residual = true", "quant_bins = 64").replace("scale = 2", "scale = 4")


class Stub:
    """A flow whose samples are a dark gray on their left half, and as bright as their latents on the right."""

    def inverse(self, latents, cond):
        assert cond is None
        samples = latents[0].expand(-1, 3, 64, 64).clone()
        samples[..., :32] = 0.48
        return samples


def test_what_blocks_drift_costs_at_most_what_an_overflow_does():
    """At temperature 0 the right half is black, and the next image is one at temperature 1."""
    for images, expected in ((1, (0.02 + 0.05) / 2), (4, (0.02 + 0.05 + 0.02 + 0.01) / 4)):
        x, latents = torch.full((images, 3, 64, 64), 0.5), torch.full((images, 1, 1, 1), 0.51)
        assert float(color_error(Stub(), x, None, [latents])) == pytest.approx(expected, abs=1e-6)


def test_detail_within_a_block_costs_nothing():
    fine = (torch.arange(64) % 2 - 0.5).expand(1, 3, 64, 64)
    x = torch.cat([torch.full((1, 3, 64, 32), 0.48), torch.zeros(1, 3, 64, 32)], dim=3) + 0.1 * fine
    assert float(color_error(Stub(), x, None, [torch.zeros(1, 1, 1, 1)])) == pytest.approx(0, abs=1e-6)


def prepared(weight):
    stage = parse_recipe(COLORS + f"color_weight = {weight}").stages[0]
    flow = build("srflow", parse_recipe(COLORS).model).eval()
    x = torch.rand(2, 3, 32, 32) / 4 + 0.3
    lr = torch.nn.functional.avg_pool2d(x, 4)
    initialize_flow(flow, x, lr, 0)
    return flow, stage, x, lr


def test_a_calm_weight_adds_the_squared_error_at_temperature_0():
    flow, stage, x, lr = prepared(0.0)
    losses = [
        make_objective(flow, dataclasses.replace(stage, calm_weight=weight))(x, lr, (torch.zeros_like(x),))
        for weight in (3.0, 0.0)
    ]
    cond = flow.encode_condition(lr)
    guess = flow.inverse(sample_latents(flow.latent_shapes(32, 32), 2, 0.0), cond)
    assert (losses[0] - losses[1]).item() == pytest.approx(3 * ((guess - x) ** 2).mean().item(), rel=1e-3)


def test_a_color_weight_adds_the_drift_of_samples_to_the_loss():
    flow, stage, x, lr = prepared(7.0)
    objective = make_objective(flow, stage)
    _, *latents = noise = objective.noise(tuple(x.shape), torch.Generator().manual_seed(3))
    plain = make_objective(flow, dataclasses.replace(stage, color_weight=0.0))
    assert [z.shape[1:] for z in latents] == [*flow.latent_shapes(32, 32)]
    assert torch.cat([z.flatten(1) for z in latents], dim=1).std().item() == pytest.approx(1.0, abs=0.03)
    error = color_error(flow, x, flow.encode_condition(lr), latents)
    assert error > 0
    difference = objective(x, lr, noise) - plain(x, lr, noise)
    assert difference.item() == pytest.approx(7 * error.item(), rel=1e-3)
    weight = next(flow.levels.parameters())
    learned, expected = (torch.autograd.grad(of, weight)[0] for of in (difference, 7 * error))
    assert (learned - expected).norm() < 1e-2 * expected.norm()


def test_models_without_samples_of_a_small_image_refuse_a_color_weight():
    head, stage = COLORS[: COLORS.index("model =")], COLORS[COLORS.index("[[stages]]") :]
    with pytest.raises(FlowError, match="color_weight"):
        parse_recipe(head.replace("srflow", "glow") + stage + "color_weight = 1.0\n")


TEACHING = """
degradation = "realistic"
start_stages = ["encoder"]
start_rate = 1.0
""" + UPSCALER[: UPSCALER.rindex("[[stages]]")].replace("lr_consistency = 1.0", "")
WEIGHT = "teacher_weight = 0.5\n"


def models():
    flow, teacher = (build("srflow", parse_recipe(TEACHING).model) for _ in range(2))
    hr = torch.rand(2, 3, 32, 32)
    clean = as_stored(downsample(hr, 2))
    return flow, teacher, hr, clean, (clean + 0.1 * torch.randn(clean.shape)).clamp(0, 1)


def test_the_error_of_a_teacher_is_the_relative_difference_of_the_features():
    flow, teacher, hr, clean, lr = models()
    stage = parse_recipe(TEACHING + WEIGHT).stages[0]
    plain = make_objective(flow, dataclasses.replace(stage, teacher_weight=0.0), teacher)
    objective = make_objective(flow, stage, teacher)
    pairs = zip(flow.encoder(lr, [1, 2])[0], teacher.encoder(clean, [1, 2])[0], strict=True)
    error = sum(float((f - e).abs().sum() / e.abs().sum()) for f, e in pairs) / 2
    difference = objective(hr, lr) - plain(hr, lr)
    assert float(difference) == pytest.approx(0.5 * error, rel=1e-4)
    assert error > 0.1
    assert torch.autograd.grad(difference, flow.encoder.conv_first.weight)[0].abs().max() > 1e-3
    assert not any(parameter.requires_grad for parameter in teacher.encoder.parameters())
    same = make_objective(flow, stage, copy.deepcopy(flow))
    assert float(same(hr, clean)) == pytest.approx(float(plain(hr, clean)), rel=1e-5)  # nothing left to learn


def test_a_run_learns_from_its_start_as_teacher_and_resumes_exactly(photos, tmp_path):
    start = train(parse_recipe(TEACHING), photos, tmp_path / "start", stop_after=2).model
    weights = []
    for name, key, stops in (("whole", WEIGHT, (None,)), ("parts", WEIGHT, (2, None)), ("without", "", (None,))):
        for stop in stops:
            made = train(parse_recipe(TEACHING + key), photos, tmp_path / name, start=start, stop_after=stop).model
        weights.append(read(made).state_dict())
    whole, parts, without = weights
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(whole[name], without[name]) for name in whole)


def test_without_a_start_or_for_another_objective_there_is_no_teacher(photos, tmp_path):
    with pytest.raises(FlowError, match="teacher_weight of recipe"):
        train(parse_recipe(TEACHING + WEIGHT), photos, tmp_path / "run")
    text = TEACHING.replace('"l1"', '"likelihood"') + WEIGHT
    with pytest.raises(FlowError, match="teacher_weight must be 0"):
        parse_recipe(text)


WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host has to wait for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.count += func in WAITS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mixing", ["conv", "lu"])
@pytest.mark.parametrize("dequantizer_steps", [0, 1])
def test_loss_and_gradient_wait_for_nothing(mixing, dequantizer_steps):
    flow = glow(GlowConfig(levels=2, steps=1, hidden=8, mixing=mixing, dequantizer_steps=dequantizer_steps))
    x, noise = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    flow.initialize(x)
    Likelihood(flow)(x, None, (noise,))  # the first time, it looks whether the flow was initialized
    with Waits() as waits:
        Likelihood(flow)(x, None, (noise,)).backward()
    assert waits.count == 0
    with Waits() as waits:
        to_integers(x)  # which looks for NaN
    assert waits.count == 1


@pytest.mark.parametrize("n_bits", [8, 5])
def test_integers_are_those_of_the_look(n_bits):
    x = torch.rand(2, 3, 8, 8) * 1.2 - 0.1
    assert torch.equal(round_to_integers(x, n_bits), to_integers(x, n_bits)[0])
    assert torch.equal(round_to_integers((x * 255).byte(), n_bits), to_integers((x * 255).byte(), n_bits)[0])
    x[0, 0, 0, 0] = torch.nan
    assert round_to_integers(x, n_bits).isnan().sum() == 1


def test_a_low_light_model_with_a_grid_also_learns_what_is_left_after_it():
    x, dark = random_image(2, 3, 32, 48), 0.2 * random_image(2, 3, 32, 48, seed=1)
    stage = Stage(name="picture", objective="l1", steps=1)
    plain, gridded = (build_tiny("llflow", perturb=0.02, gain_cells=cells) for cells in (0, 1))
    with torch.no_grad():
        latents = [torch.zeros(2, *shape) for shape in plain.latent_shapes(32, 48)]
        picture = plain.inverse(latents, plain.encode_condition(dark))
        even = torch.cat([bilateral_gain(dark[k : k + 1], picture[k : k + 1].clamp(0, 1), 1) for k in range(2)])
    errors = [float((result - x).abs().mean()) for result in (picture, even)]
    losses = [float(make_objective(flow, stage)(x, dark).detach()) for flow in (plain, gridded)]
    assert losses == pytest.approx([errors[0], sum(errors) / 2], rel=1e-5)
    assert errors[0] != pytest.approx(errors[1], rel=1e-2)
