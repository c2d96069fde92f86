"""Training: the loss falls, a stopped run goes on bit for bit, and steps that are not finite are not made."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from flowcore import FlowError
from flowcore.models.model_file import read, read_header
from flowcore.training.loop import train
from flowcore.training.recipe import parse_recipe
from flowcore.training.run_folder import read_rows
from flowcore.training.stage import StageTrainer

from .photographs import photographs
from .training_runs import ALL, L1, RECIPE, assert_same_run, content, recipe, run_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole")
    return run, run / "model.safetensors", run_recipe(photos, run)


STOPS = (1, 2, 3, 4, 5, 6, L1 - 1, L1, L1 + 1, L1 + 6, ALL)


@pytest.fixture(scope="module")
def stopped(photos, tmp_path_factory):
    """The same run, stopped after each of these steps: its results and checkpoints, and its folder as it was."""
    folder = tmp_path_factory.mktemp("stopped")
    run, results, contents = folder / "run", {}, {}
    for stop in STOPS:
        torch.manual_seed(stop)  # the global generator plays no part
        results[stop] = train(recipe(), photos, run, stop_after=stop)
        contents[stop] = content(run)
        shutil.copytree(run, folder / str(stop))
    return SimpleNamespace(folder=folder, results=results, contents=contents)


def test_a_run_leaves_a_model_of_averaged_weights_with_its_origin_sheets_and_a_log(whole):
    run, model, lines = whole
    header = read_header(model)
    assert header.config["scale"] == 2
    assert header.provenance["steps"] == ALL
    assert header.provenance["recipe"] == RECIPE
    assert "tiny" in header.provenance["source"]
    assert all(math.isfinite(value) for value in header.provenance["metrics"].values())
    newest, previous = content(run), torch.load(run / "checkpoint.previous.pt", weights_only=True)
    assert (newest["progress"]["step"], previous["progress"]["step"]) == (ALL, ALL - ALL % 3)
    assert all(torch.equal(value, newest["average"][name]) for name, value in read(model).state_dict().items())
    assert sorted(p.name for p in run.glob("*.pt")) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert not list(run.rglob("*.partial"))
    sheets = sorted((run / "sheets").glob("*.png"))
    assert len(sheets) >= ALL // 3
    with Image.open(sheets[-1]) as sheet:
        assert sheet.height % 16 == sheet.width % 16 == 0
    assert (run / "log.txt").read_text(encoding="utf-8").splitlines() == lines
    assert any("bits/dim" in line for line in lines)


def test_the_result_reports_the_progress_of_a_run(stopped, photos):
    first, last = stopped.results[L1 + 6], stopped.results[ALL]
    again = train(recipe(), photos, stopped.folder / "run")
    assert [r.steps for r in (first, last, again)] == [L1 + 6, ALL, ALL]
    assert [r.new_steps for r in (first, last, again)] == [5, 6, 0]
    assert [r.is_finished for r in (first, last, again)] == [False, True, True]
    assert (last.total, last.skipped, last.better_than_start, last.verdict) == (ALL, 0, None, "")
    assert 0 < first.minutes < last.minutes == again.minutes


def test_the_loss_of_both_stages_falls(photos, tmp_path):
    run_recipe(photos, tmp_path, ("steps = 12", "steps = 40"), ("checkpoint_every = 3", "checkpoint_every = 4"))
    rows = read_rows(tmp_path / "history.csv")
    l1, bits = ([float(row["loss"]) for row in rows if row["stage"] == stage] for stage in ("encoder", "flow"))
    assert l1[-1] < 0.9 * l1[0]
    assert bits[-1] < bits[0] - 0.1


def test_a_stopped_run_goes_on_to_the_same_bits(whole, stopped):
    assert [saved["progress"]["step"] for saved in stopped.contents.values()] == [*STOPS]
    assert_same_run(whole[0], stopped.folder / "run")


def test_a_finished_run_is_left_alone_but_for_a_missing_model(whole, photos, tmp_path):
    """The model is missing if the run was killed after the last checkpoint."""
    run = shutil.copytree(whole[0], tmp_path / "run")
    model = run / "model.safetensors"
    before = {p: p.read_bytes() for p in (run / "checkpoint.pt", model)}
    state = read(model).state_dict()
    assert train(recipe(), photos, run).model == model
    assert {p: p.read_bytes() for p in before} == before
    model.unlink()
    assert train(recipe(), photos, run).model == model
    assert all(torch.equal(value, state[name]) for name, value in read(model).state_dict().items())


def test_a_killed_run_goes_on_to_the_same_bits(whole, photos, tmp_path):
    """SIGKILL in the second stage, as a full machine or a power cut would; nothing can be written after it."""
    run = tmp_path / "run"
    program = textwrap.dedent(
        """
        import os, sys, threading, torch
        from pathlib import Path
        torch.set_num_threads(1)
        from flowcore.training.loop import train
        from flowcore.training.recipe import parse_recipe
        seen = []
        def log(line):
            seen.append("held out:" in line)
            if sum(seen) == 4:
                threading.Timer(0.01, os.kill, (os.getpid(), 9)).start()
        train(parse_recipe(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), log=log)
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, RECIPE, str(photos), str(run)]
    assert subprocess.run(command, env=environment, cwd=tmp_path, timeout=300).returncode == -signal.SIGKILL
    # between the two renamings of a checkpoint there is only the previous one
    newest = next(path for path in (run / "checkpoint.pt", run / "checkpoint.previous.pt") if path.exists())
    assert L1 <= torch.load(newest, weights_only=True)["progress"]["step"] < ALL
    run_recipe(photos, run)
    assert_same_run(whole[0], run)


def test_a_run_of_another_recipe_is_refused(stopped, photos):
    for change in (("seed = 1", "seed = 2"), ("hidden = 8", "hidden = 9"), ("steps = 12", "steps = 13")):
        with pytest.raises(FlowError, match="run of another recipe"):
            run_recipe(photos, stopped.folder / "1", change)


def test_the_average_follows_the_weights_by_its_decay(stopped, photos, tmp_path):
    """mean <- mean + (1 - decay) (weights - mean), decay rising from 1/10 to the recipe's."""
    states = [stopped.contents[step] for step in range(1, 7)]
    decays = [min(0.6, (1 + done) / (10 + done)) for done in range(6)]
    names = [name for name in states[0]["flow"] if name.startswith("encoder.")]
    for k in range(1, 6):
        for name in names:
            before, now = states[k - 1]["average"][name].double(), states[k]["average"][name].double()
            expected = before + (1 - decays[k]) * (states[k]["flow"][name].double() - before)
            assert torch.allclose(now, expected, atol=1e-7)
    assert any(not torch.equal(states[-1]["flow"][name], states[-1]["average"][name]) for name in names)
    run_recipe(photos, tmp_path / "other", ("ema = 0.6", "ema = 0.0"), ("float32", "bfloat16"), stop_after=3)
    weights, saved = content(tmp_path / "other")["flow"], read(tmp_path / "other" / "model.safetensors").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in saved.items())  # without an average, themselves
    assert {value.dtype for value in saved.values()} == {torch.float32}  # also in bfloat16


def test_the_encoder_is_trained_alone_then_frozen_for_half_of_the_second_stage(stopped):
    start, l1, half, end = (stopped.contents[step]["flow"] for step in (1, L1, L1 + 6, ALL))
    assert {name.split(".")[0] for name in start if not torch.equal(start[name], l1[name])} == {"encoder"}
    encoder = [name for name in end if name.startswith("encoder.")]
    assert all(torch.equal(stopped.contents[L1]["average"][name], half[name]) for name in encoder)
    assert not all(torch.equal(half[name], end[name]) for name in encoder)


def test_gradients_are_clipped_and_the_callers_random_numbers_left_alone(whole, photos, tmp_path):
    """Adam's first moment after one step is 0.1 times the clipped gradient, whose norm is the recipe's."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    changes = [("lr_consistency = 1.0", "clip = 1e-3"), ("seed = 1", "seed = 2")]
    run_recipe(photos, tmp_path / "run", *changes, stop_after=1)
    assert torch.equal(torch.rand(3), expected)
    moments = [state["exp_avg"] for state in content(tmp_path / "run")["optimiser"]["state"].values()]
    norm = torch.cat([m.flatten() for m in moments]).norm().item() / 0.1
    assert norm == pytest.approx(1e-3, rel=1e-2)
    one, two = (read(model).encoder.conv_first.weight for model in (tmp_path / "run" / "model.safetensors", whole[1]))
    assert (one - two).abs().max() > 0.01  # another seed is another run


def test_automatic_precision_follows_the_device_once_and_remembers(photos, tmp_path, monkeypatch):
    for capable, precision in ((True, "bfloat16"), (False, "float32")):
        run, lines = tmp_path / precision, []
        for stop, can in ((1, capable), (2, not capable)):
            monkeypatch.setattr("flowcore.training.loop.has_bfloat16", lambda _, can=can: can)
            lines += run_recipe(photos, run, ("float32", "auto"), stop_after=stop)
        assert sum(f"precision of conditioners and encoder: {precision}" in line for line in lines) == 1
        assert content(run)["progress"]["precision"] == precision


LOSS = {"encoder.conv_last.bias": 3e38}  # it is infinite
# The loss is finite, for the last convolution sees zeros; the gradient overflows on its way back through it.
GRADIENT = {"encoder.conv_hr.weight": 0, "encoder.conv_hr.bias": 0, "encoder.conv_last.weight": 3e38}


@pytest.mark.parametrize(("broken", "fused"), [(LOSS, True), (LOSS, False), (GRADIENT, True)])
def test_a_step_that_is_not_finite_is_skipped_and_counted(stopped, photos, tmp_path, monkeypatch, broken, fused):
    run = shutil.copytree(stopped.folder / "3", tmp_path / "run")
    if not fused:
        monkeypatch.setattr("flowcore.training.stage.supports_fused_optimizer", lambda _: False)
    saved = content(run)
    for name, value in broken.items():
        saved["flow"][name].fill_(value)
    torch.save(saved, run / "checkpoint.pt")
    lines = run_recipe(photos, run, stop_after=L1)
    now = content(run)
    assert now["progress"]["skipped"] == L1 - 3
    assert now["progress"]["step"] == L1
    for name in ("flow", "average"):
        assert all(torch.equal(value, now[name][key]) for key, value in saved[name].items())
    for key, state in saved["optimiser"]["state"].items():
        assert all(torch.equal(value, now["optimiser"]["state"][key][name]) for name, value in state.items())
    assert any("5 skipped" in line for line in lines)


def set_patience(monkeypatch, steps):
    for module in ("loop", "stage"):
        monkeypatch.setattr(f"flowcore.training.{module}.PATIENCE", steps)


def test_too_many_steps_not_finite_in_a_row_stop_the_run(photos, tmp_path, monkeypatch):
    set_patience(monkeypatch, 4)
    hopeless = [
        ("learning_rate = 3e-3", "learning_rate = 1e30"),
        ("steps = 8", "steps = 80"),
        ("checkpoint_every = 3", "checkpoint_every = 100"),
    ]
    with pytest.raises(FlowError, match=r"not finite.*learning rate"):
        run_recipe(photos, tmp_path / "run", *hopeless)


def out_of_memory_without_recomputing(monkeypatch, where):
    """Let gradients fail unless activations are recomputed, in a trial, while a step is timed, or in a step."""
    real, recomputed = StageTrainer.gradient, []
    free = None if where != "trial" else 2**30
    monkeypatch.setattr("flowcore.training.stage.free_memory", lambda _: free)

    def gradient(runner, x, *others):
        recomputed.append(runner.state.recompute)
        if runner.state.recompute != "always":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(runner, x, *others)

    monkeypatch.setattr(StageTrainer, "gradient", gradient)
    return recomputed


@pytest.mark.parametrize("where", ["trial", "timing", "step"])
def test_memory_has_one_policy_in_trials_timings_and_steps(photos, tmp_path, monkeypatch, where):
    minutes = {"minutes": 60.0} if where == "timing" else {}
    recomputed = out_of_memory_without_recomputing(monkeypatch, where)
    lines = run_recipe(photos, tmp_path / "auto", stop_after=1, **minutes)
    assert content(tmp_path / "auto")["progress"]["recompute"] == "always"
    assert sum(line.endswith("out of memory; from now on activations are recomputed") for line in lines) == 1
    assert recomputed[0] == "never"
    assert set(recomputed[1:]) == {"always"}
    change = ("ema = 0.6", "ema = 0.6\nrecompute = 'always'")
    run_recipe(photos, tmp_path / "always", change, stop_after=1, **minutes)
    assert recomputed.count("never") == 1
    with pytest.raises(FlowError, match=r"memory.*batch"):
        run_recipe(photos, tmp_path / "never", ("ema = 0.6", "ema = 0.6\nrecompute = 'never'"), **minutes)


def test_out_of_memory_outside_of_gradients_is_explained_too(photos, tmp_path, monkeypatch):
    def validate(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("flowcore.training.loop.validate", validate)
    with pytest.raises(FlowError, match=r"memory.*evaluate"):
        run_recipe(photos, tmp_path, stop_after=2)
    assert content(tmp_path)["progress"]["step"] == 2


@pytest.mark.parametrize("name", ["model.safetensors", "history.csv", "held_out.csv", "curve.png", "checkpoint.pt"])
def test_foreign_files_in_the_folder_of_a_run_are_not_replaced(photos, tmp_path, name):
    foreign = tmp_path / name
    foreign.write_bytes(b"step,loss\n1,2\n")
    with pytest.raises(FlowError, match=re.escape(name)) as raised:
        run_recipe(photos, tmp_path, stop_after=1)
    assert "weights_only" not in str(raised.value)
    assert foreign.read_bytes() == b"step,loss\n1,2\n"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_run_that_stopped_before_its_first_checkpoint_begins_again(whole, photos, tmp_path):
    """Also from nothing, after it was to start from a model."""
    with pytest.raises(FlowError, match="before step 1"):
        run_recipe(photos, tmp_path, start=whole[1], cancelled=lambda: (tmp_path / "start.safetensors").exists())
    run_recipe(photos, tmp_path, stop_after=1)
    assert not (tmp_path / "start.safetensors").exists()
    (tmp_path / "checkpoint.pt").unlink()  # then the model is all that is left of the run
    (tmp_path / "checkpoint.previous.pt").unlink()
    with pytest.raises(FlowError, match=r"model\.safetensors"):
        run_recipe(photos, tmp_path, stop_after=1)


def test_a_table_that_another_program_has_changed_is_not_replaced(stopped, photos, tmp_path):
    run = shutil.copytree(stopped.folder / "1", tmp_path / "run")
    table = (run / "history.csv").read_text().replace(",", ";")
    (run / "history.csv").write_text(table)
    with pytest.raises(FlowError, match=r"history\.csv"):
        run_recipe(photos, run, stop_after=2)
    assert (run / "history.csv").read_text() == table


def test_a_folder_that_cannot_be_a_runs_is_refused(photos, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FlowError, match="folder"):
        run_recipe(photos, tmp_path / "file")


@pytest.mark.parametrize(
    "limit", [{"minutes": m} for m in (-1.0, 0.0, math.nan, math.inf)] + [{"stop_after": 0}], ids=str
)
def test_limits_that_no_run_can_keep_are_refused(photos, tmp_path, limit):
    with pytest.raises(FlowError, match=f"{next(iter(limit))} .*; got"):
        run_recipe(photos, tmp_path / "run", **limit)
    assert not (tmp_path / "run").exists()


def test_a_run_refused_before_its_first_step_leaves_no_checkpoint_and_no_writer(photos, tmp_path, monkeypatch):
    writers = []
    board = SimpleNamespace(SummaryWriter=lambda *_, **__: writers.append(1))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    with pytest.raises(FlowError, match="crop of stage"):
        run_recipe(photographs(tmp_path / "small", [(12, 12), (12, 24)]), tmp_path / "run")
    with pytest.raises(FlowError, match="Stopped"):
        run_recipe(photos, tmp_path / "cancelled", cancelled=lambda: True)
    assert not writers
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_caches_of_other_photographs_are_removed_at_the_first_saved_step(stopped, tmp_path):
    run = shutil.copytree(stopped.folder / "1", tmp_path / "run")
    more = photographs(tmp_path / "more", [(48, 48), (48, 64)])
    before = sorted((run / "cache").iterdir())
    (run / "cache" / "mine.u8").write_bytes(b"mine")
    with pytest.raises(FlowError, match="crop of stage"):
        run_recipe(photographs(tmp_path / "small", [(12, 12), (12, 24)]), run)
    assert all(file.exists() for file in before)
    run_recipe(more, run, stop_after=2)
    assert not any(file.exists() for file in before)
    assert sorted(file.suffix for file in (run / "cache").iterdir()) == [".json", ".u8", ".u8"]


def test_an_encoder_can_be_taken_from_another_model_that_fits(whole, photos, tmp_path):
    changes = [("steps = 8", "steps = 1"), ("learning_rate = 3e-3", "learning_rate = 0.0")]
    run_recipe(photos, tmp_path / "run", *changes, encoder_from=whole[1], stop_after=1)
    one, two = (read(path).encoder.state_dict() for path in (tmp_path / "run" / "model.safetensors", whole[1]))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    with pytest.raises(FlowError, match="encoder"):
        run_recipe(photos, tmp_path / "other", ("encoder_width = 8", "encoder_width = 9"), encoder_from=whole[1])
    with pytest.raises(FlowError, match="hidden"):
        run_recipe(photos, tmp_path / "other", ("hidden = 8", "hidden = 9"), start=whole[1])


def test_training_needs_no_held_out_photographs_of_the_size_of_a_crop(tmp_path):
    folder = photographs(tmp_path / "photos", [(12, 12), (48, 64), (56, 40)])
    (folder / "broken.jpg").write_bytes(b"no image")
    for validation in (0, 1):
        run = tmp_path / str(validation)
        lines = run_recipe(folder, run, ("validation = 1", f"validation = {validation}"), stop_after=3)
        assert read_header(run / "model.safetensors").provenance["steps"] == 3
        assert any("skipped broken.jpg" in line for line in lines)
    assert any("2 photographs to train on, 1 photograph held out, 1 skipped" in line for line in lines)


@pytest.mark.parametrize("damage", [b"half", None], ids=["half", "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole, stopped, photos, tmp_path, damage):
    run = shutil.copytree(stopped.folder / "14", tmp_path / "run")
    for name in (".checkpoint.pt.partial", ".model.safetensors.1.partial"):
        (run / name).write_bytes(b"half")
    if damage is None:  # killed between the two renamings
        (run / "checkpoint.pt").unlink()
    else:
        (run / "checkpoint.pt").write_bytes(damage)
    lines = run_recipe(photos, run, ("checkpoint_every = 3", "checkpoint_every = 50"))  # which changes nothing
    assert any("resuming after step 12" in line for line in lines)
    assert any("checkpoint.pt is damaged" in line for line in lines) == (damage is not None)
    assert_same_run(whole[0], run)


def test_history_and_curve_show_every_step_once(whole, photos, tmp_path):
    run = tmp_path / "run"
    run_recipe(photos, run, stop_after=10)
    with (run / "history.csv").open("a") as file:  # rows of a run that was killed later than its last checkpoint
        file.write("11,flow,bits/dim,0.5,0.1,1,1,0,0\n99,flow,bits/di")
    run_recipe(photos, run)
    expected, found = read_rows(whole[0] / "history.csv"), read_rows(run / "history.csv")
    steps = [int(row["step"]) for row in found]
    assert steps == sorted(set(steps))
    assert steps[-1] == ALL
    assert {row["stage"] for row in found} == {"encoder", "flow"}
    losses = {row["step"]: float(row["loss"]) for row in found}
    same = [row for row in expected if int(row["step"]) <= 9 or int(row["step"]) >= 15]
    assert all(float(row["loss"]) == losses[row["step"]] for row in same)
    held_out = read_rows(run / "held_out.csv")
    assert {row["measure"] for row in held_out} >= {"validation_l1", "validation_bits_per_dim", "psnr_tau0.0"}
    with Image.open(run / "curve.png") as curve:
        colors = {color for _, color in curve.convert("RGB").getcolors(2**24)}
    assert {(31, 111, 180), (209, 73, 91)} <= colors  # lines and dots
    assert curve.width == 2 * curve.height * 2


class Interruption(BaseException):
    """As a host's own."""


def test_a_caller_can_stop_a_run_and_go_on_to_the_same_bits(whole, photos, tmp_path):
    seen = []

    def watch(done, total, preview=None):
        seen.append((done, total, preview is not None))

    run = tmp_path / "run"
    lines = run_recipe(photos, run, cancelled=lambda: len(seen) == 5, progress=watch)
    assert content(run)["progress"]["step"] == 4  # five reports: one is the sheet of step 3
    assert [entry for entry in seen if entry[2]] == [(3, ALL, True)]  # canceling does not wait for another sheet
    assert any("stopped: cancelled" in line for line in lines)

    def interrupt():
        raise Interruption

    with pytest.raises(Interruption):
        run_recipe(photos, run, cancelled=interrupt)
    assert content(run)["progress"]["step"] == 4  # not one step more
    assert read_header(run / "model.safetensors").provenance["steps"] == 4
    with torch.inference_mode():  # as a host does
        run_recipe(photos, run)
    assert_same_run(whole[0], run)


def test_minutes_stop_a_run_that_began_without_them(stopped, photos, tmp_path):
    run = shutil.copytree(stopped.folder / "2", tmp_path / "run")
    lines = run_recipe(photos, run, minutes=1e-9)
    assert content(run)["progress"]["step"] == 3
    assert any("stopped: the time is up" in line for line in lines)


def test_a_run_can_start_from_a_model(whole, photos, tmp_path):
    flow_only = RECIPE[: RECIPE.index("[[stages]]")] + RECIPE[RECIPE.rindex("[[stages]]") :]
    shorter = flow_only.replace("steps = 12", "steps = 3")
    still = parse_recipe(shorter.replace("learning_rate = 1e-2", "learning_rate = 0"))
    for stop in (1, None):  # and the second start must not draw first-batch moments
        model = train(still, photos, tmp_path / "run", start=whole[1], stop_after=stop).model
    old = read(whole[1]).state_dict()
    assert all(torch.equal(value, old[name]) for name, value in read(model).state_dict().items())


def test_a_gradient_that_explodes_is_not_followed(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("flowcore.training.stage.USUAL_STEPS", 4)
    gradient = StageTrainer.gradient

    def exploding(self, *batch):
        loss = gradient(self, *batch)
        if self.state.step in (2, 6):  # the usual norm is known from step 4 on
            for parameter in self.parameters:
                parameter.grad *= 1000
        return loss

    monkeypatch.setattr(StageTrainer, "gradient", exploding)
    run_recipe(photos, tmp_path, stop_after=5)  # and resumed, which must not forget the usual norm
    run_recipe(photos, tmp_path, stop_after=L1)
    assert content(tmp_path)["progress"]["skipped"] == 1


def test_after_many_bad_steps_a_run_goes_back_with_half_the_rate(photos, tmp_path, monkeypatch):
    """A batch of noise as large as this is never finite; the run meets it, retreats, and is given sense again."""
    set_patience(monkeypatch, 5)
    stubborn = [("steps = 8", "steps = 60"), ("checkpoint_every = 3", "checkpoint_every = 100")]
    run = tmp_path / "run"
    run_recipe(photos, run, *stubborn, stop_after=6)
    good = content(run)
    broken = torch.load(run / "checkpoint.pt", weights_only=True)
    broken["flow"]["encoder.conv_last.bias"][0] = 3e38
    broken["progress"]["step"], broken["progress"]["bad"] = 7, 1
    torch.save(good, run / "checkpoint.previous.pt")
    torch.save(broken, run / "checkpoint.pt")
    lines = run_recipe(photos, run, *stubborn, stop_after=21)
    assert any("back to step 6, with learning rates times 0.5" in line for line in lines)
    progress = content(run)["progress"]
    assert progress["step"] == 21
    assert (progress["rate"], progress["retreats"], progress["bad"]) == (0.5, 1, 0)
    assert progress["skipped"] >= 4
    assert float(read_rows(run / "history.csv")[-1]["rate"]) < 0.5 * 3e-3
