"""The term of the objective that keeps the colors of an upscaler's samples."""

import dataclasses

import pytest
import torch

from flowcore.errors import FlowError
from flowcore.models import build
from flowcore.prior import sample_latents
from flowcore.training.objective import color_error, initialize_flow, make_objective
from flowcore.training.recipe import parse_recipe

from .test_training_loop import RECIPE as UPSCALER

MODEL, _, FLOW = UPSCALER.split("[[stages]]")
RECIPE = f"{MODEL}[[stages]]{FLOW}".replace("residual = true", "quant_bins = 64").replace("scale = 2", "scale = 4")


class Stub:
    """A flow whose samples are a dark gray on their left half, and as bright as their latents on the right."""

    def inverse(self, latents, cond):
        assert cond is None
        samples = latents[0].expand(-1, 3, 64, 64).clone()
        samples[..., :32] = 0.48
        return samples


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (1, (0.02 + 0.05) / 2),  # at temperature 0 the right half is black
        (2, (0.02 + 0.05) / 2),
        (4, (0.02 + 0.05 + 0.02 + 0.01) / 4),  # and the next image is one at temperature 1
    ],
)
def test_what_blocks_drift_costs_at_most_what_an_overflow_does(images, expected):
    x, latents = torch.full((images, 3, 64, 64), 0.5), torch.full((images, 1, 1, 1), 0.51)
    assert float(color_error(Stub(), x, None, [latents])) == pytest.approx(expected, abs=1e-6)


def test_detail_within_a_block_costs_nothing():
    fine = (torch.arange(64) % 2 - 0.5).expand(1, 3, 64, 64)
    x = torch.cat([torch.full((1, 3, 64, 32), 0.48), torch.zeros(1, 3, 64, 32)], dim=3) + 0.1 * fine
    assert float(color_error(Stub(), x, None, [torch.zeros(1, 1, 1, 1)])) == pytest.approx(0, abs=1e-6)


def prepared(weight):
    stage = parse_recipe(RECIPE + f"color_weight = {weight}").stages[0]
    torch.manual_seed(0)
    flow = build("srflow", parse_recipe(RECIPE).model).eval()
    x = torch.rand(2, 3, 32, 32) / 4 + 0.3
    lr = torch.nn.functional.avg_pool2d(x, 4)
    initialize_flow(flow, x, lr, 0)
    return flow, stage, x, lr


def test_a_weight_adds_the_drift_of_samples_to_the_loss():
    flow, stage, x, lr = prepared(7.0)
    objective = make_objective(flow, stage)
    rows = objective.noise(tuple(x.shape), torch.Generator().manual_seed(3))
    plain = make_objective(flow, dataclasses.replace(stage, color_weight=0.0))
    noise = plain.noise(tuple(x.shape), torch.Generator().manual_seed(3))
    sizes = [z.flatten(1).shape[1] for z in sample_latents(flow.latent_shapes(32, 32), 1)]
    parts = rows[:, noise[0].numel() :].split(sizes, dim=1)
    latents = [part.unflatten(1, shape) for part, shape in zip(parts, flow.latent_shapes(32, 32), strict=True)]
    assert torch.cat(parts, dim=1).std().item() == pytest.approx(1.0, abs=0.03)
    error = color_error(flow, x, flow.encode_condition(lr), latents)
    assert error > 0
    difference = objective(x, lr, rows) - plain(x, lr, noise)
    assert difference.item() == pytest.approx(7 * error.item(), rel=1e-3)


def test_training_with_it_keeps_colors():
    errors = []
    for weight in (0.0, 1e4):
        flow, stage, x, lr = prepared(weight)
        x = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bilinear") + 0.01
        objective = make_objective(flow, stage)
        optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
        for step in range(16):
            noise = objective.noise(tuple(x.shape), torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            objective(x, lr, noise).backward()
            optimizer.step()
        with torch.no_grad():
            z = sample_latents(flow.latent_shapes(32, 32), 2, 1.0, 99)
            errors.append(float(color_error(flow, x, flow.encode_condition(lr), z)))
    assert 0 < errors[1] < 0.8 * errors[0]


def test_models_without_samples_of_a_small_image_refuse_it():
    head, stage = RECIPE[: RECIPE.index("[model]")], RECIPE[RECIPE.index("[[stages]]") :]
    with pytest.raises(FlowError, match="color_weight is about the samples of upscalers"):
        parse_recipe(head.replace("srflow", "glow") + stage + "color_weight = 1.0\n")
