"""Training: the loss falls, a stopped run goes on bit for bit, and steps that are not finite are not made."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from flowcore.checkpoints.file import read, read_header
from flowcore.dequantization import dequantize
from flowcore.errors import FlowError
from flowcore.likelihood import bits_per_dim, log_prob
from flowcore.training.loop import train
from flowcore.training.photographs import Photographs
from flowcore.training.recipe import parse_recipe

from .photographs import photographs

pytestmark = pytest.mark.slow

RECIPE = """
name = "tiny"
architecture = "srflow"
seed = 1
validation = 1
ema = 0.6
precision = "float32"
checkpoint_every = 3
init_batch = 8

[model]
scale = 2
levels = 2
steps = 1
transition_steps = 1
hidden = 8
encoder_blocks = 1
encoder_width = 8
encoder_growth = 4
stacked_blocks = [0]
residual = true

[[stages]]
name = "encoder"
objective = "l1"
steps = 8
batch = 4
crop = 16
learning_rate = 3e-3
warmup = 1
lr_consistency = 1.0

[[stages]]
name = "flow"
objective = "likelihood"
steps = 24
batch = 4
crop = 16
learning_rate = 1e-2
warmup = 1
clip = 10.0
"""
L1, ALL = 8, 32  # steps of the first stage, and of both


def recipe(*changes):
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_recipe(text)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("data") / "photos", [(48, 64), (56, 40), (40, 48)])


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole")
    lines = []
    model = train(recipe(), photos, run, log=lines.append)
    return run, model, lines


def content(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)


def assert_same_run(one, two):
    """The same parameters, averages and moments, bit for bit."""
    a, b = content(one), content(two)
    assert a["progress"]["step"] == b["progress"]["step"]
    assert a["progress"]["skipped"] == b["progress"]["skipped"]
    for name in ("flow", "average"):
        assert a[name].keys() == b[name].keys()
        for key, value in a[name].items():
            assert torch.equal(value, b[name][key]), f"{name} {key}"
    assert a["optimiser"]["state"].keys() == b["optimiser"]["state"].keys()
    for key, state in a["optimiser"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b["optimiser"]["state"][key][name]), f"moment {name} of parameter {key}"
    models = [read(run / "model.safetensors").state_dict() for run in (one, two)]
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_that_says_where_it_comes_from(whole):
    run, model, _ = whole
    assert model == run / "model.safetensors"
    header = read_header(model)
    assert header.config["scale"] == 2
    assert header.provenance["steps"] == ALL
    assert header.provenance["recipe"] == RECIPE
    assert "tiny" in header.provenance["source"]
    assert all(math.isfinite(value) for value in header.provenance["metrics"].values())


def test_a_run_leaves_sample_sheets_and_a_log(whole):
    run, _, lines = whole
    sheets = sorted((run / "sheets").glob("*.png"))
    assert len(sheets) >= ALL // 3
    with Image.open(sheets[-1]) as sheet:
        assert sheet.height % 16 == 0
        assert sheet.width % 16 == 0
    assert (run / "log.txt").read_text(encoding="utf-8").splitlines() == lines
    assert any("bits/dim" in line for line in lines)
    assert not list(run.rglob("*.partial"))


def test_the_global_generator_does_not_decide_a_run(whole, photos, tmp_path):
    torch.manual_seed(99)
    torch.rand(7)
    train(recipe(), photos, tmp_path / "run", log=lambda _: None)
    assert_same_run(whole[0], tmp_path / "run")


def test_another_seed_is_another_run(whole, photos, tmp_path):
    model = train(recipe(("seed = 1", "seed = 2")), photos, tmp_path / "run", stop_after=1, log=lambda _: None)
    name = "encoder.conv_first.weight"
    assert not torch.equal(read(model).state_dict()[name], read(whole[1]).state_dict()[name])


@torch.no_grad()
def l1_loss(model, photos, run):
    flow = read(model)
    hr, lr = Photographs(photos, run / "cache", scale=2, validation=1).batch(32, 16, seed=5, step=0)
    return (flow.encoder.enlargement(lr) - hr).abs().mean().item()


@torch.no_grad()
def nll(model, photos, run):
    flow = read(model)
    hr, lr = Photographs(photos, run / "cache", scale=2, validation=1).batch(32, 16, seed=5, step=0)
    noisy = dequantize(hr, flow.config.quant_bins, torch.Generator().manual_seed(0))
    return bits_per_dim(log_prob(flow, noisy, flow.encode_condition(lr)), hr[0].numel()).mean().item()


def test_the_loss_of_both_stages_falls(photos, tmp_path):
    changes = [
        ("steps = 8", "steps = 40"),
        ("steps = 24", "steps = 40"),
        ("checkpoint_every = 3", "checkpoint_every = 100"),
    ]

    def after(steps, measure):
        model = train(recipe(*changes), photos, tmp_path / "run", stop_after=steps, log=lambda _: None)
        return measure(model, photos, tmp_path / "run")

    first, last = after(1, l1_loss), after(40, l1_loss)
    assert last < 0.9 * first
    first, last = after(41, nll), after(80, nll)
    assert last < first - 0.3


# --- stopping and going on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [[1], [5], [L1], [L1 + 1], [2, L1 - 1, L1, L1 + 7, L1 + 13]], ids=str)
def test_a_stopped_run_goes_on_to_the_same_bits(whole, photos, tmp_path, stops):
    for stop in [*stops, None]:
        train(recipe(), photos, tmp_path / "run", stop_after=stop, log=lambda _: None)
        assert content(tmp_path / "run")["progress"]["step"] == (stop or ALL)
    assert_same_run(whole[0], tmp_path / "run")


def test_a_finished_run_is_left_alone(whole, photos):
    run, model, _ = whole
    before = {p: p.read_bytes() for p in (run / "checkpoint.pt", model)}
    assert train(recipe(), photos, run, log=lambda _: None) == model
    assert {p: p.read_bytes() for p in before} == before


def test_a_killed_run_goes_on_to_the_same_bits(whole, photos, tmp_path):
    """SIGKILL, as a full machine or a power cut would; nothing can be written after it."""
    run = tmp_path / "run"
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from flowcore.training.loop import train
        from flowcore.training.recipe import parse_recipe
        def log(line):  # one line per checkpoint; wait there, so that the run is still going when it is killed
            print(line, flush=True)
            if "held out:" in line:
                sys.stdin.readline()
        train(parse_recipe(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), log=log)
        """
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", program, RECIPE, str(photos), str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += "held out:" in line
            process.stdin.write("\n")
            process.stdin.flush()
            if seen == 4:  # in the second stage
                time.sleep(0.05)
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait(60) == -signal.SIGKILL
    assert L1 < content(run)["progress"]["step"] < ALL
    train(recipe(), photos, run, log=lambda _: None)
    assert_same_run(whole[0], run)


def test_a_half_written_checkpoint_does_not_count(whole, photos, tmp_path):
    train(recipe(), photos, tmp_path / "run", stop_after=5, log=lambda _: None)
    for name in (".checkpoint.pt.partial", ".model.safetensors.1.partial"):
        (tmp_path / "run" / name).write_bytes(b"half")
    train(recipe(), photos, tmp_path / "run", log=lambda _: None)
    assert_same_run(whole[0], tmp_path / "run")


@pytest.mark.parametrize(
    "change", [("seed = 1", "seed = 2"), ("hidden = 8", "hidden = 9"), ("steps = 24", "steps = 25")], ids=str
)
def test_a_run_of_another_recipe_is_refused(photos, tmp_path, change):
    train(recipe(), photos, tmp_path / "run", stop_after=1, log=lambda _: None)
    with pytest.raises(FlowError, match="run of another recipe"):
        train(recipe(change), photos, tmp_path / "run", log=lambda _: None)


def test_how_often_to_checkpoint_may_change_within_a_run(whole, photos, tmp_path):
    train(recipe(), photos, tmp_path / "run", stop_after=5, log=lambda _: None)
    train(recipe(("checkpoint_every = 3", "checkpoint_every = 50")), photos, tmp_path / "run", log=lambda _: None)
    assert_same_run(whole[0], tmp_path / "run")


# --- what a step does -------------------------------------------------------------------------------------------------


def test_the_average_follows_the_weights_by_its_decay(photos, tmp_path):
    """mean <- mean + (1 - decay) (weights - mean), decay rising from 1/10 to the recipe's."""
    states = []
    for step in range(1, 7):
        train(recipe(), photos, tmp_path / "run", stop_after=step, log=lambda _: None)
        states.append(content(tmp_path / "run"))
    decays = [min(0.6, (1 + done) / (10 + done)) for done in range(6)]
    names = [name for name in states[0]["flow"] if name.startswith("encoder.")]
    for k in range(1, 6):
        for name in names:
            before, now = states[k - 1]["average"][name].double(), states[k]["average"][name].double()
            expected = before + (1 - decays[k]) * (states[k]["flow"][name].double() - before)
            assert torch.allclose(now, expected, atol=1e-7)
    assert any(not torch.equal(states[-1]["flow"][name], states[-1]["average"][name]) for name in names)


def test_the_average_is_what_is_saved(whole):
    run, model, _ = whole
    average = content(run)["average"]
    assert all(torch.equal(value, average[name]) for name, value in read(model).state_dict().items())


def test_without_averaging_the_weights_themselves_are_saved(photos, tmp_path):
    model = train(recipe(("ema = 0.6", "ema = 0.0")), photos, tmp_path / "run", stop_after=3, log=lambda _: None)
    weights = content(tmp_path / "run")["flow"]
    assert all(torch.equal(value, weights[name]) for name, value in read(model).state_dict().items())


def test_the_first_stage_trains_the_encoder_alone(photos, tmp_path):
    train(recipe(), photos, tmp_path / "run", stop_after=1, log=lambda _: None)
    first = content(tmp_path / "run")["flow"]
    train(recipe(), photos, tmp_path / "run", stop_after=L1, log=lambda _: None)
    last = content(tmp_path / "run")["flow"]
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert changed == {"encoder"}


def test_the_encoder_is_frozen_for_the_first_half_of_the_second_stage(photos, tmp_path):
    states = {}
    for step in (L1, L1 + 12, ALL):
        train(recipe(), photos, tmp_path / "run", stop_after=step, log=lambda _: None)
        states[step] = content(tmp_path / "run")
    encoder = [name for name in states[ALL]["flow"] if name.startswith("encoder.")]
    assert all(torch.equal(states[L1]["average"][n], states[L1 + 12]["flow"][n]) for n in encoder)
    assert not all(torch.equal(states[L1 + 12]["flow"][n], states[ALL]["flow"][n]) for n in encoder)


def test_gradients_are_clipped(photos, tmp_path):
    """Adam's first moment after one step is 0.1 times the clipped gradient, whose norm is the recipe's."""
    train(recipe(("lr_consistency = 1.0", "clip = 1e-3")), photos, tmp_path / "run", stop_after=1, log=lambda _: None)
    moments = [state["exp_avg"] for state in content(tmp_path / "run")["optimiser"]["state"].values()]
    norm = torch.cat([m.flatten() for m in moments]).norm().item() / 0.1
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_training_in_bfloat16_keeps_float32_weights(photos, tmp_path):
    model = train(recipe(("float32", "bfloat16")), photos, tmp_path / "run", stop_after=L1 + 3, log=lambda _: None)
    assert {p.dtype for p in read(model).parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in read(model).parameters())


def test_automatic_precision_chooses_once_and_remembers(photos, tmp_path):
    lines = []
    for stop in (2, 4):
        train(recipe(("float32", "auto")), photos, tmp_path / "run", stop_after=stop, log=lines.append)
    assert sum("precision of conditioners and encoder" in line for line in lines) == 1
    assert content(tmp_path / "run")["progress"]["precision"] in ("float32", "bfloat16")


# --- steps that are not finite ----------------------------------------------------------------------------------------


def poisoned(run, photos, break_it):
    """A run whose checkpoint, after 3 steps, is changed."""
    train(recipe(), photos, run, stop_after=3, log=lambda _: None)
    saved = content(run)
    break_it(saved)
    torch.save(saved, run / "checkpoint.pt")
    return saved


def test_a_step_that_is_not_finite_is_skipped_and_counted(photos, tmp_path):
    def break_it(saved):
        saved["flow"]["encoder.conv_last.bias"][0] = 3e38  # a sum of errors as large as this is infinite

    saved = poisoned(tmp_path / "run", photos, break_it)
    lines = []
    train(recipe(), photos, tmp_path / "run", stop_after=L1, log=lines.append)
    now = content(tmp_path / "run")
    assert now["progress"]["skipped"] == L1 - 3
    assert now["progress"]["step"] == L1
    for name in ("flow", "average"):
        assert all(torch.equal(value, now[name][key]) for key, value in saved[name].items())
    before, after = saved["optimiser"]["state"], now["optimiser"]["state"]
    assert all(
        torch.equal(before[k][name], after[k][name]) for k in before for name in ("step", "exp_avg", "exp_avg_sq")
    )
    assert any("5 skipped" in line for line in lines)


def test_a_gradient_that_is_not_finite_is_skipped_too(photos, tmp_path):
    """The loss is finite, for the last convolution sees zeros; the gradient overflows on its way back through it."""

    def break_it(saved):
        state = saved["flow"]
        state["encoder.conv_hr.weight"].zero_()
        state["encoder.conv_hr.bias"].zero_()
        state["encoder.conv_last.weight"].fill_(3e38)

    saved = poisoned(tmp_path / "run", photos, break_it)
    train(recipe(), photos, tmp_path / "run", stop_after=5, log=lambda _: None)
    now = content(tmp_path / "run")
    assert now["progress"]["skipped"] == 2
    assert all(torch.equal(value, now["flow"][key]) for key, value in saved["flow"].items())


def test_too_many_of_them_in_a_row_stop_the_run_with_what_to_do(photos, tmp_path):
    hopeless = recipe(
        ("learning_rate = 3e-3", "learning_rate = 1e30"),
        ("steps = 8", "steps = 80"),
        ("ema = 0.6", "ema = 0.6\npatience = 4"),
        ("checkpoint_every = 3", "checkpoint_every = 100"),
    )
    with pytest.raises(FlowError, match=r"4 steps in a row were not finite.*Lower the learning rate of stage encoder"):
        train(hopeless, photos, tmp_path / "run", log=lambda _: None)


# --- what comes from outside ------------------------------------------------------------------------------------------


def test_an_encoder_can_be_taken_from_another_model(whole, photos, tmp_path):
    changes = [("steps = 8", "steps = 1"), ("learning_rate = 3e-3", "learning_rate = 0.0")]
    model = train(recipe(*changes), photos, tmp_path / "run", encoder_from=whole[1], stop_after=1, log=lambda _: None)
    one, two = read(model).encoder.state_dict(), read(whole[1]).encoder.state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_an_encoder_that_does_not_fit_is_refused(whole, photos, tmp_path):
    with pytest.raises(FlowError, match=r"encoder of model\.safetensors does not fit"):
        train(
            recipe(("encoder_width = 8", "encoder_width = 9")),
            photos,
            tmp_path / "run",
            encoder_from=whole[1],
            log=lambda _: None,
        )


def test_skipped_files_are_listed_in_the_log(tmp_path):
    folder = photographs(tmp_path / "photos", [(48, 64), (56, 40)])
    (folder / "broken.jpg").write_bytes(b"no image")
    lines = []
    train(recipe(), folder, tmp_path / "run", stop_after=1, log=lines.append)
    assert any("1 images to train on, 1 held out, 1 skipped" in line for line in lines)
    assert any("skipped broken.jpg" in line for line in lines)


def test_training_without_held_out_photographs_works(photos, tmp_path):
    model = train(
        recipe(("validation = 1", "validation = 0")), photos, tmp_path / "run", stop_after=3, log=lambda _: None
    )
    assert read_header(model).provenance["steps"] == 3


def test_held_out_photographs_smaller_than_the_crop_do_not_lose_a_run(tmp_path):
    """The one that is held out is smaller than the crop: this must show before hours of work, or not at all."""
    folder = photographs(tmp_path / "photos", [(12, 12), (48, 64), (56, 40)])
    try:
        model = train(recipe(), folder, tmp_path / "run", stop_after=3, log=lambda _: None)
    except FlowError as error:
        assert "held out" in str(error)  # noqa: PT017  (either is fine, but nothing in between)
        assert not (tmp_path / "run" / "checkpoint.pt").exists()
    else:
        assert read_header(model).provenance["steps"] == 3


def test_a_first_batch_too_small_for_principal_axes_is_refused_before_the_first_step(tmp_path):
    folder = photographs(tmp_path / "photos", [(48, 64), (56, 40), (64, 64)])
    small = recipe(("init_batch = 8", "init_batch = 1"), ("[model]", '[model]\nmixing = "principal"'))
    with pytest.raises(FlowError, match="init_batch"):
        train(small, folder, tmp_path / "run", log=lambda _: None)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_crop_that_fits_no_photograph_is_refused_before_the_first_step(tmp_path):
    folder = photographs(tmp_path / "photos", [(12, 12), (12, 24)])
    with pytest.raises(FlowError, match="crop of stage"):
        train(recipe(), folder, tmp_path / "run", log=lambda _: None)


def test_a_second_likelihood_stage_goes_on_from_the_first(photos, tmp_path):
    stage = """
[[stages]]
name = "more"
objective = "likelihood"
steps = 3
batch = 4
crop = 16
learning_rate = 0.0
"""
    longer = parse_recipe(RECIPE + stage)
    train(longer, photos, tmp_path / "run", stop_after=ALL, log=lambda _: None)
    before = content(tmp_path / "run")["average"]
    lines = []
    train(longer, photos, tmp_path / "run", log=lines.append)
    after = content(tmp_path / "run")["average"]
    assert all(torch.equal(before[name], after[name]) for name in before)  # rate 0: nothing may move, actnorms least
    assert f"{ALL + 3} of {ALL + 3} steps, 0 skipped" in lines[-1]


# --- checkpoints, and what lies beside them ---------------------------------------------------------------------------


def test_two_checkpoints_are_kept(whole):
    run = whole[0]
    newest, previous = content(run), torch.load(run / "checkpoint.previous.pt", weights_only=True)
    assert newest["progress"]["step"] == ALL
    assert previous["progress"]["step"] == ALL - ALL % 3
    assert sorted(p.name for p in run.glob("*.pt")) == ["checkpoint.previous.pt", "checkpoint.pt"]


@pytest.mark.parametrize("damage", [b"", b"half", None], ids=["empty", "half", "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole, photos, tmp_path, damage):
    run = tmp_path / "run"
    train(recipe(), photos, run, stop_after=14, log=lambda _: None)
    if damage is None:  # killed between the two renamings
        (run / "checkpoint.pt").unlink()
    else:
        (run / "checkpoint.pt").write_bytes(damage)
    lines = []
    train(recipe(), photos, run, log=lines.append)
    assert any("resuming after step 12" in line for line in lines)
    assert any("checkpoint.pt is damaged" in line for line in lines) == (damage is not None)
    assert_same_run(whole[0], run)


def test_a_model_that_was_not_written_any_more_is_written_at_the_next_start(whole, photos, tmp_path):
    """Killed after the last checkpoint, before the model file."""
    train(recipe(), photos, tmp_path / "run", log=lambda _: None)
    (tmp_path / "run" / "model.safetensors").unlink()
    model = train(recipe(), photos, tmp_path / "run", log=lambda _: None)
    assert all(torch.equal(v, read(whole[1]).state_dict()[k]) for k, v in read(model).state_dict().items())


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_history_and_curve_tell_the_whole_run_once(whole, photos, tmp_path):
    run = tmp_path / "run"
    train(recipe(), photos, run, stop_after=10, log=lambda _: None)
    with (run / "history.csv").open("a") as file:  # rows of a run that was killed later than its last checkpoint
        file.write("11,flow,bits/dim,0.5,0.1,1,1,0,0\n99,flow,bits/di")
    train(recipe(), photos, run, log=lambda _: None)
    expected, found = rows(whole[0] / "history.csv"), rows(run / "history.csv")
    steps = [int(row["step"]) for row in found]
    assert steps == sorted(set(steps))
    assert steps[-1] == ALL
    assert {row["stage"] for row in found} == {"encoder", "flow"}
    losses = {row["step"]: float(row["loss"]) for row in found}
    same = [row for row in expected if int(row["step"]) <= 9 or int(row["step"]) >= 15]
    assert all(float(row["loss"]) == losses[row["step"]] for row in same)
    held_out = rows(run / "held_out.csv")
    assert {row["measure"] for row in held_out} >= {"validation_l1", "validation_bits_per_dim", "psnr_tau0.0"}
    with Image.open(run / "curve.png") as curve:
        colours = {colour for _, colour in curve.convert("RGB").getcolors(2**24)}
    assert {(31, 111, 180), (209, 73, 91)} <= colours  # lines and dots
    assert curve.width == 2 * curve.height * 2


# --- time, wishes, other weights --------------------------------------------------------------------------------------


class Interruption(BaseException):
    """As a host's own."""


def test_a_caller_can_stop_a_run_and_go_on_to_the_same_bits(whole, photos, tmp_path):
    seen = []

    def watch(done, total, preview=None):
        seen.append((done, total, preview is not None))

    lines = []
    train(recipe(), photos, tmp_path / "run", cancelled=lambda: len(seen) == 5, progress=watch, log=lines.append)
    assert content(tmp_path / "run")["progress"]["step"] == 4  # five reports: one is the sheet of step 3
    assert [entry for entry in seen if entry[2]] == [(3, ALL, True), (4, ALL, True)]
    assert any("stopped: cancelled" in line for line in lines)

    def interrupt():
        raise Interruption

    with pytest.raises(Interruption):
        train(recipe(), photos, tmp_path / "run", cancelled=interrupt, log=lambda _: None)
    assert content(tmp_path / "run")["progress"]["step"] == 5
    assert read_header(tmp_path / "run" / "model.safetensors").provenance["steps"] == 5
    with torch.inference_mode():  # as a host does
        train(recipe(), photos, tmp_path / "run", log=lambda _: None)
    assert_same_run(whole[0], tmp_path / "run")


def test_a_run_in_little_time_is_shortened_and_still_ends_with_a_low_rate(photos, tmp_path):
    long = recipe(("steps = 8", "steps = 80000"), ("steps = 24", "steps = 240000"))
    lines = []
    begun = time.monotonic()
    train(long, photos, tmp_path / "run", minutes=0.08, log=lines.append)
    assert time.monotonic() - begun < 60
    assert any("shortened to fit the time" in line for line in lines)
    progress = content(tmp_path / "run")["progress"]
    assert 0 < progress["length"] < 0.05
    train(long, photos, tmp_path / "run", minutes=0.5, log=lines.append)  # goes on at the length it has
    assert content(tmp_path / "run")["progress"]["length"] == progress["length"]
    history = rows(tmp_path / "run" / "history.csv")
    assert {row["stage"] for row in history} == {"encoder", "flow"}
    assert float(history[-1]["rate"]) < 0.05 * 1e-2


def test_time_that_is_up_stops_a_run_with_a_checkpoint(photos, tmp_path):
    train(recipe(), photos, tmp_path / "run", stop_after=2, log=lambda _: None)
    lines = []
    train(recipe(), photos, tmp_path / "run", minutes=0.0, log=lines.append)
    assert content(tmp_path / "run")["progress"]["step"] == 3
    assert any("stopped: the time is up" in line for line in lines)


def test_a_run_can_start_from_a_model(whole, photos, tmp_path):
    flow_only = RECIPE[: RECIPE.index("[[stages]]")] + RECIPE[RECIPE.rindex("[[stages]]") :]
    still = parse_recipe(flow_only.replace("learning_rate = 1e-2", "learning_rate = 0"))
    for stop in (1, None):  # and the second start must not draw first-batch moments
        model = train(still, photos, tmp_path / "run", start=whole[1], stop_after=stop, log=lambda _: None)
    old = read(whole[1]).state_dict()
    assert all(torch.equal(value, old[name]) for name, value in read(model).state_dict().items())


def test_a_model_of_another_configuration_is_refused_as_a_start(whole, photos, tmp_path):
    with pytest.raises(FlowError, match=r"model\.safetensors.*hidden is 8 instead of 9"):
        train(recipe(("hidden = 8", "hidden = 9")), photos, tmp_path / "run", start=whole[1], log=lambda _: None)


def test_the_callers_random_numbers_are_left_alone(photos, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(recipe(), photos, tmp_path / "run", stop_after=1, log=lambda _: None)
    assert torch.equal(torch.rand(3), expected)


# --- going back -------------------------------------------------------------------------------------------------------


def test_after_many_bad_steps_a_run_goes_back_with_half_the_rate(photos, tmp_path):
    """A batch of noise as large as this is never finite; the run meets it, retreats, and is given sense again."""
    stubborn = recipe(("ema = 0.6", "ema = 0.6\npatience = 5"), ("steps = 8", "steps = 60"))
    run = tmp_path / "run"
    train(stubborn, photos, run, stop_after=6, log=lambda _: None)
    good = content(run)
    broken = torch.load(run / "checkpoint.pt", weights_only=True)
    broken["flow"]["encoder.conv_last.bias"][0] = 3e38
    broken["progress"]["step"], broken["progress"]["bad"] = 7, 1
    torch.save(good, run / "checkpoint.previous.pt")
    torch.save(broken, run / "checkpoint.pt")
    lines = []
    train(stubborn, photos, run, stop_after=21, log=lines.append)
    assert any("back to step 6, with learning rates times 0.5" in line for line in lines)
    progress = content(run)["progress"]
    assert progress["step"] == 21
    assert (progress["rate"], progress["retreats"], progress["bad"]) == (0.5, 1, 0)
    assert progress["skipped"] >= 4
    assert float(rows(run / "history.csv")[-1]["rate"]) < 0.5 * 3e-3


def test_a_wish_to_stop_is_heard_while_images_are_decoded(photos, tmp_path):
    with pytest.raises(FlowError, match="Stopped after 1 of 3 images were decoded"):
        train(recipe(), photos, tmp_path / "run", cancelled=lambda: True, log=lambda _: None)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
