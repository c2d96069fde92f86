"""The term of the objective that punishes false specks in an upscaler's samples."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flowcore.errors import FlowError
from flowcore.models import build
from flowcore.prior import sample_latents
from flowcore.training.objective import initialize_flow, make_objective, speck_error
from flowcore.training.recipe import parse_recipe

RECIPE = """
name = "tiny"
architecture = "srflow"
[model]
scale = 4
levels = 2
steps = 1
hidden = 8
encoder_blocks = 1
encoder_width = 8
encoder_growth = 4
stacked_blocks = [0]
quant_bins = 64
[[stages]]
name = "flow"
objective = "likelihood"
steps = 1
batch = 2
crop = 32
"""


class Stub:
    """A flow whose every sample is one image."""

    def __init__(self, sample):
        self.sample = sample

    def inverse(self, latents, cond):
        return self.sample


def flat():
    return torch.full((1, 3, 16, 16), 0.5)


def with_speck(row, column, height=0.25):
    image = flat()
    image[..., row, column] += height
    return image


@pytest.mark.parametrize(
    ("sample", "image", "expected"),
    [
        (with_speck(8, 8), flat(), 0.25 - 0.03),
        (with_speck(8, 8, -0.25), flat(), 0.25 - 0.03),
        (with_speck(8, 8, 0.03), flat(), 0),  # hardly seen
        (with_speck(8, 8), with_speck(8, 8), 0),  # it is in the image
        (with_speck(8, 8), with_speck(6, 10), 0),  # texture near it
        (with_speck(8, 8), with_speck(8, 11), 0.25 - 0.03),
        (with_speck(8, 8, 0.4), with_speck(8, 8, 0.1), 0.4 - 0.1 - 0.03),
        (flat(), with_speck(8, 8), 0),  # too smooth is for the likelihood to see
    ],
)
def test_a_speck_costs_what_it_stands_out(sample, image, expected):
    assert float(speck_error(Stub(sample), image, None, [])) * 16 * 16 == pytest.approx(expected, abs=1e-5)


def prepared(weight):
    stage = parse_recipe(RECIPE + f"speck_weight = {weight}").stages[0]
    torch.manual_seed(0)
    flow = build("srflow", parse_recipe(RECIPE).model).eval()
    x = torch.rand(2, 3, 32, 32) / 4 + 0.3
    lr = torch.nn.functional.avg_pool2d(x, 4)
    initialize_flow(flow, x, lr, 0)
    return flow, stage, x, lr


def test_a_weight_adds_the_specks_of_a_sample_to_the_loss():
    flow, stage, x, lr = prepared(7.0)
    objective = make_objective(flow, stage)
    rows = objective.noise(tuple(x.shape), torch.Generator().manual_seed(3))
    plain = make_objective(flow, dataclasses.replace(stage, speck_weight=0.0))
    noise = plain.noise(tuple(x.shape), torch.Generator().manual_seed(3))
    sizes = [z.flatten(1).shape[1] for z in sample_latents(flow.latent_shapes(32, 32), 1)]
    parts = rows[:, noise[0].numel() :].split(sizes, dim=1)
    latents = [part.unflatten(1, shape) for part, shape in zip(parts, flow.latent_shapes(32, 32), strict=True)]
    assert torch.cat(parts, dim=1).std().item() == pytest.approx(0.9, abs=0.03)
    error = speck_error(flow, x, flow.encode_condition(lr), latents)
    assert error > 0
    difference = objective(x, lr, rows) - plain(x, lr, noise)
    assert difference.item() == pytest.approx(7 * error.item(), rel=1e-3)


def test_training_with_it_makes_smaller_specks():
    errors = []
    for weight in (0.0, 1e4):
        flow, stage, x, lr = prepared(weight)
        smooth = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bilinear")  # nothing may stand out
        objective = make_objective(flow, stage)
        optimizer = torch.optim.Adam(flow.parameters(), 3e-3)
        for step in range(8):
            noise = objective.noise(tuple(x.shape), torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            objective(smooth, lr, noise).backward()
            optimizer.step()
        with torch.no_grad():
            z = sample_latents(flow.latent_shapes(32, 32), 2, 0.9, 99)
            errors.append(float(speck_error(flow, smooth, flow.encode_condition(lr), z)))
    assert 0 < errors[1] < 0.8 * errors[0]


def test_models_without_samples_of_a_small_image_refuse_it():
    head, stage = RECIPE[: RECIPE.index("[model]")], RECIPE[RECIPE.index("[[stages]]") :]
    with pytest.raises(FlowError, match="speck_weight is about the samples of upscalers"):
        parse_recipe(head.replace("srflow", "glow") + stage + "speck_weight = 1.0\n")
