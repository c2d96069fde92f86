"""Training that starts from a model: it is measured first, changed with care, and kept where it stays better."""

import math

import pytest
import torch

from flowcore import FlowError
from flowcore.models.model_file import read, read_header, reconfigure
from flowcore.training.data import open_data
from flowcore.training.loop import train
from flowcore.training.recipe import parse_recipe
from flowcore.training.run_folder import read_rows, worse_by
from flowcore.training.validation import validate

from .training_runs import RECIPE, assert_same_run

pytestmark = pytest.mark.slow

STEPS = 12  # of the stage of the likelihood


def recipe(extra=""):
    return parse_recipe(extra + RECIPE)


def run(made, photos, folder, **options):
    """Train, and return the lines of the log without their times."""
    lines = []
    train(made, photos, folder, log=lambda line: lines.append(line.split(" ", 1)[1]), **options)
    return lines


@pytest.fixture(scope="module")
def start(photos, tmp_path_factory):
    """A model after a few steps of training, with its own sampling defaults."""
    folder = tmp_path_factory.mktemp("start")
    path = train(recipe(), photos, folder, stop_after=10).model
    reconfigure(path, folder / "mine.safetensors", {"temperature": 0.6, "calm_edges": 0.25})
    return folder / "mine.safetensors"


@pytest.fixture(scope="module")
def whole(photos, start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(recipe(), photos, folder, start=start)


def test_the_start_is_measured_before_the_first_step(photos, start, whole, tmp_path):
    folder, lines = whole
    made = recipe()
    expected, _ = validate(
        read(start), open_data(made, photos, tmp_path), made, made.stages[1], device="cpu", precision="float32"
    )
    measured = {row["measure"]: float(row["value"]) for row in read_rows(folder / "held_out.csv") if row["step"] == "0"}
    assert measured == pytest.approx(expected, abs=1e-4)
    first = next(k for k, line in enumerate(lines) if line.startswith("step 0 held out: validation_bits_per_dim"))
    assert first < next(k for k, line in enumerate(lines) if line.startswith("flow ["))
    assert (folder / "sheets" / "000000.png").exists()


def test_only_the_likelihood_is_trained_and_at_a_tenth_of_the_rate_unless_a_recipe_asks(whole, photos, start, tmp_path):
    history = read_rows(whole[0] / "history.csv")
    assert {row["stage"] for row in history} == {"flow"}
    assert int(history[-1]["step"]) == STEPS
    assert 0.05 < max(float(row["rate"]) for row in history) / 1e-2 <= 0.1
    assert any("trains flow, not encoder (start_stages), at 0.1 of" in line for line in whole[1])
    made = recipe('start_rate = 0.5\nstart_stages = ["encoder", "flow"]\n')
    lines = run(made, photos, tmp_path / "run", start=start, stop_after=9)
    history = read_rows(tmp_path / "run" / "history.csv")
    assert [row["stage"] for row in history] == ["encoder"] * 3 + ["flow"]
    assert 0.25 < float(history[0]["rate"]) / 3e-3 <= 0.5
    assert any("trains encoder and flow (start_stages), at 0.5 of" in line for line in lines)
    assert sum(line.startswith("step 0 held out") for line in lines) == 2  # the crops and losses of either stage
    made = parse_recipe(RECIPE.replace('"likelihood"', '"l1"'))  # without a likelihood it trains what it has
    assert made.stages_from_start() == made.stages


def test_a_better_model_takes_the_place_of_the_start(whole, photos):
    folder, lines = whole
    metrics = read_header(folder / "model.safetensors").provenance["metrics"]
    before = float(read_rows(folder / "held_out.csv")[0]["value"])
    gain = before - metrics["validation_bits_per_dim"]
    assert gain > 0
    assert lines[-1].startswith(f"Better than the start by {gain:.4g} (validation_bits_per_dim {before:g} -> ")
    assert all(name in lines[-1] for name in metrics)
    assert read_header(folder / "model.safetensors").provenance["steps"] == STEPS
    assert not (folder / "worse.safetensors").exists()
    result = train(recipe(), photos, folder)  # it is finished
    assert (result.better_than_start, result.verdict) == (True, lines[-1])
    config = read(folder / "model.safetensors").config
    assert (config.temperature, config.calm_edges) == (0.6, 0.25)  # it is sampled as its start


def test_a_model_that_became_worse_does_not(photos, start, tmp_path):
    made, folder = recipe("start_rate = 30.0\n"), tmp_path / "run"
    lines = run(made, photos, folder, start=start)
    assert lines[-1].startswith("Worse than the start by ")
    assert f"model.safetensors is the start; the trained model is {folder / 'worse.safetensors'}" in lines[-1]
    assert (folder / "model.safetensors").read_bytes() == start.read_bytes()
    assert train(made, photos, folder).better_than_start is False
    trained, before = read_header(folder / "worse.safetensors"), read_rows(folder / "held_out.csv")[0]
    assert trained.provenance["steps"] == STEPS
    assert trained.provenance["metrics"]["validation_bits_per_dim"] > float(before["value"])
    again = run(made, photos, folder)  # a finished run is left alone, and says so again
    assert again[-1] == lines[-1]
    assert not any("held out:" in line for line in again)


MEASURED = {"validation_bits_per_dim": 2.0, "psnr_tau0.0": 29.38, "psnr_tau0.8": 28.0}


def test_pictures_decide_as_well_as_the_likelihood():
    for changes, expected in (
        ({}, None),
        ({"validation_bits_per_dim": 1.9, "psnr_tau0.0": 29.3, "psnr_tau0.8": 27.0}, None),
        ({"validation_bits_per_dim": 2.1, "psnr_tau0.0": 30.0}, ("validation_bits_per_dim", pytest.approx(0.1))),
        (
            {"validation_bits_per_dim": 1.9, "psnr_tau0.0": 29.02},
            ("psnr_tau0.0", pytest.approx(0.36)),
        ),  # as it happened once
        ({"validation_bits_per_dim": math.nan}, ("validation_bits_per_dim", pytest.approx(math.nan, nan_ok=True))),
        ({"psnr_tau0.0": math.nan}, ("psnr_tau0.0", pytest.approx(math.nan, nan_ok=True))),
    ):
        assert worse_by(MEASURED, MEASURED | changes) == expected
        assert worse_by({}, MEASURED | changes) is None


def test_measures_that_got_worse_are_named_and_nan_counts_as_worse(photos, start, tmp_path, monkeypatch):
    better, none = {"validation_bits_per_dim": 1.9, "psnr_tau0.8": 27.5}, dict.fromkeys(MEASURED, math.nan)
    found = iter([MEASURED, MEASURED | better, MEASURED, none])
    monkeypatch.setattr("flowcore.training.loop.validate", lambda *_, **__: (next(found), [torch.zeros(1, 3, 8, 8)]))
    lines = run(recipe(), photos, tmp_path / "better", start=start, stop_after=1)
    assert lines[-1].startswith("Better than the start by 0.1 (validation_bits_per_dim 2 -> 1.9, ")
    assert lines[-1].endswith("), but not in psnr_tau0.8.")
    assert run(recipe(), photos, tmp_path / "none", start=start, stop_after=1)[-1].startswith("Worse than the start")
    assert (tmp_path / "none" / "model.safetensors").read_bytes() == start.read_bytes()


def test_a_stopped_run_goes_on_to_the_same_bits(photos, start, whole, tmp_path):
    folder = tmp_path / "run"
    run(recipe(), photos, folder, start=start, stop_after=7)
    lines = run(recipe(), photos, folder)  # the start stands in the folder
    assert lines[-1] == whole[1][-1]
    measured = [row["measure"] for row in read_rows(folder / "held_out.csv") if row["step"] == "0"]
    assert len(measured) == len(set(measured)) > 0
    assert_same_run(folder, whole[0])
    assert read(folder / "model.safetensors").config == read(whole[0] / "model.safetensors").config


def test_without_held_out_photographs_nothing_is_compared(photos, start, tmp_path):
    made = parse_recipe(RECIPE.replace("validation = 1", "validation = 0"))
    lines = run(made, photos, tmp_path / "run", start=start, stop_after=1)
    assert "nothing tells whether this is better than the start" in lines[-1]
    assert read_header(tmp_path / "run" / "model.safetensors").provenance["steps"] == 1


def test_a_run_goes_on_from_its_own_start_only(photos, start, tmp_path):
    run(recipe(), photos, tmp_path / "fresh", stop_after=1)
    with pytest.raises(FlowError, match="--start"):
        run(recipe(), photos, tmp_path / "fresh", start=start)


def test_a_cancelled_run_returns_what_it_has_come_to(photos, start, tmp_path):
    done, lines = [], []
    options = {"progress": lambda steps, *_: done.append(steps), "cancelled": lambda: done[-1:] == [2]}
    result = train(recipe(), photos, tmp_path, start=start, log=lines.append, **options)  # before a measurement
    assert (result.new_steps, result.is_finished, result.better_than_start) == (2, False, None)
    assert result.model.read_bytes() == start.read_bytes()
    assert "Stopped before it was measured" in result.verdict
    assert any("stopped: cancelled" in line for line in lines)
