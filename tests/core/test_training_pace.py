"""Minutes: all that a run does is inside them, and it ends with the decay of its rate however fast the machine is."""

from types import SimpleNamespace

import pytest
import torch

from flowcore import FlowError
from flowcore.training import loop, stage
from flowcore.training import run as pace
from flowcore.training.data import open_data
from flowcore.training.recipe import parse_recipe
from flowcore.training.run import Pace
from flowcore.training.run_folder import read_rows
from flowcore.training.stage import StageTrainer
from flowcore.training.validation import validate

from .training_runs import RECIPE

PEAK = 1e-2  # rate of the last stage
MINUTES = 5.0
LONG = RECIPE.replace("steps = 8", "steps = 80000").replace("steps = 12", "steps = 240000")


class Machine:
    """A machine with a simulated clock: the seconds that each operation takes are given, not measured."""

    def __init__(self, monkeypatch, *, decode=20.0, validate_=4.0, gradient=lambda objective, now: 2.0):
        self.now, self.gradients = 0.0, 0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        for module in (loop, pace, stage):
            monkeypatch.setattr(module, "time", clock)
        self._slow(monkeypatch, loop, "open_data", open_data, lambda *_: decode)
        self._slow(monkeypatch, loop, "validate", validate, lambda *_: validate_)
        seconds = lambda runner, *_: gradient(runner.stage.objective, self.now)  # noqa: E731
        self._slow(monkeypatch, StageTrainer, "gradient", StageTrainer.gradient, seconds)

    def _slow(self, monkeypatch, place, name, real, seconds):
        def slowed(*words, **options):
            self.now += seconds(*words)
            return real(*words, **options)

        monkeypatch.setattr(place, name, slowed)


def run(photos, folder, text=LONG, **options):
    lines = []
    loop.train(parse_recipe(text), photos, folder, log=lines.append, **options)
    return lines, read_rows(folder / "history.csv")


SECONDS = {  # of a step
    "the second stage takes four times as long": lambda objective, now: 1.0 if objective == "l1" else 4.0,
    "another program takes half of the machine": lambda objective, now: 1.0 if now < 100 else 2.0,
    "another program ends, which slowed the trial": lambda objective, now: 4.0 if now < 50 else 1.0,
}


@pytest.mark.slow
@pytest.mark.parametrize("gradient", SECONDS.values(), ids=SECONDS)
def test_a_run_ends_in_its_minutes_and_with_a_low_rate(photos, tmp_path, monkeypatch, gradient):
    machine = Machine(monkeypatch, gradient=gradient)
    lines, history = run(photos, tmp_path, minutes=MINUTES)
    assert 0.9 * 60 * MINUTES < machine.now < 60 * MINUTES + 5  # a step more, at most
    assert not any("the time is up" in line or "run again" in line for line in lines)
    assert {row["stage"] for row in history} == {"encoder", "flow"}
    assert float(history[-1]["rate"]) < 0.05 * PEAK


@pytest.mark.slow
def test_no_time_at_all_is_one_step_of_every_stage_and_enough_time_changes_nothing(photos, tmp_path, monkeypatch):
    Machine(monkeypatch)
    lines, _ = run(photos, tmp_path / "none", minutes=0.1)
    assert "2 of 2 steps" in lines[-1]
    lines, _ = run(photos, tmp_path / "enough", RECIPE, minutes=60.0)
    assert any("20 of 20 steps" in line for line in lines)
    assert not any("shortened" in line for line in lines)


@pytest.mark.slow
def test_a_shortened_run_that_was_stopped_still_ends_with_a_low_rate(photos, tmp_path, monkeypatch):
    machine = Machine(monkeypatch)
    run(photos, tmp_path, minutes=MINUTES, stop_after=20)
    plan = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["stage_steps"]
    begun = machine.now
    lines, history = run(photos, tmp_path, minutes=1.0)  # less than the plan would take
    assert machine.now - begun < 65
    assert "run again" not in lines[-1]
    assert int(history[-1]["step"]) < sum(plan)
    assert float(history[-1]["rate"]) < 0.05 * PEAK


@pytest.mark.slow
def test_a_run_is_cancelled_while_it_times_its_steps(photos, tmp_path, monkeypatch):
    machine = Machine(monkeypatch)
    with pytest.raises(FlowError, match="Stopped before step 1"):
        run(photos, tmp_path, minutes=MINUTES, cancelled=lambda: machine.now > 20)
    assert machine.now < 25


def test_the_mean_over_the_processes_decides(monkeypatch):
    """So that all make the same number of steps."""
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: 0.0))
    plans = []
    for others in (1.0, 0.5):
        one = Pace(100.0, mean=lambda factor, others=others: factor * others)
        one.trial_seconds, one.checkpoint_seconds = [1.0], 0.0
        plans.append(one.fit([50], [500], 0, 0))
    assert plans == [[100], [50]]
