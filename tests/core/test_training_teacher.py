"""The term of the objective that makes an encoder learn the features of the model that it started from."""

import copy
import dataclasses

import pytest
import torch

from flowcore.checkpoints.file import read
from flowcore.errors import FlowError
from flowcore.images.resize import shrink
from flowcore.images.rounding import as_stored
from flowcore.models import build
from flowcore.training.loop import train
from flowcore.training.objective import make_objective
from flowcore.training.recipe import parse_recipe

from .test_training_loop import RECIPE as UPSCALER

RECIPE = """
degradation = "realistic"
start_stages = ["encoder"]
start_rate = 1.0
""" + UPSCALER[: UPSCALER.rindex("[[stages]]")].replace("lr_consistency = 1.0", "")
WEIGHT = "teacher_weight = 0.5\n"


def models():
    torch.manual_seed(1)
    flow, teacher = (build("srflow", parse_recipe(RECIPE).model) for _ in range(2))
    hr = torch.rand(2, 3, 32, 32)
    clean = as_stored(shrink(hr, 2))
    return flow, teacher, hr, clean, (clean + 0.1 * torch.randn(clean.shape)).clamp(0, 1)


def test_it_is_the_relative_difference_of_the_features():
    flow, teacher, hr, clean, lr = models()
    stage = parse_recipe(RECIPE + WEIGHT).stages[0]
    plain = make_objective(flow, dataclasses.replace(stage, teacher_weight=0.0), teacher)
    objective = make_objective(flow, stage, teacher)
    pairs = zip(flow.encoder(lr, 2)[0], teacher.encoder(clean, 2)[0], strict=True)
    error = sum(float((f - e).abs().sum() / e.abs().sum()) for f, e in pairs) / 2
    assert float(objective(hr, lr) - plain(hr, lr)) == pytest.approx(0.5 * error, rel=1e-4)
    assert error > 0.1

    same = make_objective(flow, stage, copy.deepcopy(flow))
    assert float(same(hr, clean)) == pytest.approx(float(plain(hr, clean)), rel=1e-5)  # nothing left to learn


def test_the_encoder_comes_nearer_to_its_teacher_which_stays():
    errors = []
    for weight in (0.0, 5.0):
        flow, teacher, hr, clean, lr = models()
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        stage = dataclasses.replace(parse_recipe(RECIPE).stages[0], teacher_weight=weight)
        objective = make_objective(flow, stage, teacher)
        optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            objective(hr, lr).backward()
            optimizer.step()
        assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
        with torch.no_grad():
            pairs = zip(flow.encoder(lr, 2)[0], teacher.encoder(clean, 2)[0], strict=True)
            errors.append(sum(float((f - e).abs().sum() / e.abs().sum()) for f, e in pairs))
    assert errors[1] < 0.8 * errors[0]


def test_a_run_learns_from_its_start_and_resumes_exactly(photos, tmp_path):
    start = train(parse_recipe(RECIPE), photos, tmp_path / "start", stop_after=2, log=lambda _: None).model
    weights = []
    for name, key, stops in (("whole", WEIGHT, (None,)), ("parts", WEIGHT, (2, None)), ("without", "", (None,))):
        for stop in stops:
            made = train(
                parse_recipe(RECIPE + key), photos, tmp_path / name, start=start, stop_after=stop, log=lambda _: None
            ).model
        weights.append(read(made).state_dict())
    whole, parts, without = weights
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(whole[name], without[name]) for name in whole)


def test_without_a_start_or_for_another_objective_there_is_no_teacher(photos, tmp_path):
    with pytest.raises(FlowError, match="teacher_weight of recipe tiny is about the features of the model that a run"):
        train(parse_recipe(RECIPE + WEIGHT), photos, tmp_path / "run", log=lambda _: None)
    text = RECIPE.replace('"l1"', '"likelihood"') + WEIGHT
    with pytest.raises(FlowError, match=r'stages\[0\]\.teacher_weight is about the features .*objective "l1"'):
        parse_recipe(text)
