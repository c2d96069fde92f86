"""Training of colorizers: it learns, resumes exactly, and every level counts the same where a recipe says so."""

import dataclasses
import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from flowcore import FlowError, save
from flowcore.flows.dequantization import Uniform, quantization, to_integers
from flowcore.flows.likelihood import bits_per_dim, log_prob
from flowcore.images.color import NEUTRAL, compress, luma
from flowcore.models import build, catalog
from flowcore.models.colorizer.efficientnet import EfficientNetLite0
from flowcore.models.colorizer.luma import split_source
from flowcore.models.model_file import read, read_header
from flowcore.training.data import open_data
from flowcore.training.loop import train
from flowcore.training.objective import calm_error, initialize_flow, make_objective
from flowcore.training.recipe import parse_recipe

from .photographs import photographs
from .training_runs import assert_same_run, content
from .training_runs import recipe as change_recipe

pytestmark = pytest.mark.slow

RECIPE = """
name = "tiny"
architecture = "colorizer"
seed = 0
short_sides = [32, 40]
validation = 1
ema = 0.6
precision = "float32"
checkpoint_every = 3
init_batch = 8
evaluate = 16
turn = false
model = {steps = [1, 1], hidden = [6, 6], widths = [4, 4, 8], merged = 8, features = 2, dropout = 0.3}

[[stages]]
name = "flow"
objective = "likelihood"
steps = 3
batch = 4
crop = 32
learning_rate = 1e-2
warmup = 1
clip = 1.0
train_encoder_after = 0.0
weight_decay = 0.1
balanced = true
"""
FROZEN = ("learning_rate = 1e-2", "learning_rate = 0")

recipe = partial(change_recipe, text=RECIPE)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole")
    train(recipe(), photos, run)
    return run


def place(flow, x, seed):
    """Dequantize with uniform noise of this seed."""
    k = to_integers(x)[0]
    return quantization(flow).place(k, Uniform().draw(k, torch.Generator().manual_seed(seed))[0])


def test_a_run_leaves_a_model_with_the_density_of_every_level(whole):
    header = read_header(whole / "model.safetensors")
    assert header.architecture == "colorizer"
    metrics = header.provenance["metrics"]
    measures = {"validation_bits_per_dim", "validation_level1", "validation_level2", "of_gray_tau0", "of_gray_sample"}
    assert metrics.keys() == measures
    assert all(math.isfinite(value) for value in metrics.values())
    # of 32 numbers of chroma in a block of 4x4, 24 are latents of the first level and 8 of the second
    mean = 0.75 * metrics["validation_level1"] + 0.25 * metrics["validation_level2"]
    assert metrics["validation_bits_per_dim"] == pytest.approx(mean, abs=2e-3)


def test_a_run_leaves_a_sheet_of_luma_truth_and_colorings(whole, photos):
    (sheet,) = (whole / "sheets").glob("*.png")
    with Image.open(sheet) as picture:
        assert picture.size == (8 * 8, 8 * 8)  # chroma of crops of 32 is 8x8; a row for 8 of the 16 crops
        sheet = torch.from_numpy(np.array(picture)).float().permute(2, 0, 1)[None]
    columns = sheet.split(8, dim=3)
    assert torch.equal(columns[0][:, :1].expand_as(columns[0]), columns[0])
    for column in columns[1:]:
        assert (luma(column) - columns[0][:, :1]).abs().max() <= 1  # 8 bits
    x, source = open_data(recipe(), photos, whole / "cache").batch(16, 32, 0, 0, held_out=True)
    truth = compress(F.avg_pool2d(source[::2, :1], 4), x[::2] - NEUTRAL)  # every second crop, one below the other
    assert (columns[1][0] - 255 * torch.cat(list(truth), dim=1)).abs().max() < 0.51
    assert (columns[1] - columns[0]).abs().max() > 20  # in color
    assert not torch.equal(columns[3], columns[4])  # other seeds


def test_metrics_are_measured_without_dropout(photos, tmp_path):
    """After steps so long that the condition matters."""
    changes = (("dropout = 0.3", "dropout = 0.9"), ("learning_rate = 1e-2", "learning_rate = 0.1"))
    model = train(recipe(*changes), photos, tmp_path).model
    x, source = open_data(recipe(), photos, tmp_path / "cache").batch(16, 32, 0, 0, held_out=True)
    flow = read(model)
    noisy = place(flow, x, 0)
    bits = {}
    for training in (False, True):
        flow.train(training)
        with torch.no_grad():
            density = log_prob(flow, noisy, flow.encode_condition(source))
        bits[training] = float(bits_per_dim(density, x[0].numel(), 1 / 255).mean())
    assert read_header(model).provenance["metrics"]["validation_bits_per_dim"] == pytest.approx(bits[False], abs=2e-4)
    assert bits[True] != pytest.approx(bits[False], abs=2e-3)  # so that it shows


SECOND = RECIPE[RECIPE.index("[[stages]]") :].replace('name = "flow"', 'name = "detail"') + "frozen_levels = 1\n"


def test_a_stage_can_leave_the_coarsest_levels_and_the_encoder_as_they_are_and_is_resumed_exactly(photos, tmp_path):
    second = SECOND.replace("train_encoder_after = 0.0", "train_encoder_after = 1.0")
    third = second.replace('"detail"', '"all"').replace("frozen_levels = 1", "frozen_levels = 0")
    made = parse_recipe(RECIPE + second + third)
    states = []
    for stop in (3, 4, 6, None):  # also across the border, and resumed within the second stage
        train(made, photos, tmp_path / "run", stop_after=stop)
        states.append(content(tmp_path / "run"))
    start, end = states[0]["average"], states[2]["flow"]  # a stage begins at the average of the one before
    still = {name for name in start if torch.equal(start[name], end[name])}
    kept = {name for name in start if name.startswith(("encoder.", "levels.1.", "prelude."))}
    assert kept <= still
    assert not {name for name in still - kept if name.startswith("levels.0.steps")}
    names = [name for name in start if name.startswith("levels.1.") and name.endswith("log_scale")]
    assert names
    assert not any(torch.equal(end[name], states[3]["flow"][name]) for name in names)  # trained again in a stage after
    train(made, photos, tmp_path / "at once")
    assert_same_run(tmp_path / "run", tmp_path / "at once")


CHROMA = RECIPE.replace("dropout = 0.3", "dropout = 0.0, predicts_chroma = true").replace("likelihood", "chroma")
BACKBONE = 'backbone = "efficientnet-lite0", steps = [1, 1, 1], hidden = [6, 6, 6], widths = [4, 4, 8, 8]'


def seeing_recipe(backbone_rate):
    text = CHROMA.replace("steps = [1, 1], hidden = [6, 6], widths = [4, 4, 8]", BACKBONE)
    assert BACKBONE in text
    return parse_recipe(text + f"backbone_rate = {backbone_rate}\n")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A file as benchmarks/read_published.py writes it."""
    network, generator = EfficientNetLite0(), torch.Generator().manual_seed(0)
    state = {n: torch.randn(p.shape, generator=generator) * 0.1 for n, p in network.named_parameters()}
    path = tmp_path_factory.mktemp("backbone") / "efficientnet.safetensors"
    save_file({name: value.half() for name, value in state.items()}, path)
    return path, {name: value.half().float() for name, value in state.items()}


def test_an_encoder_learns_to_predict_chroma(tmp_path):
    """Nearer to the colors of one photograph, which is held out, too, than gray, where it starts."""
    alone = photographs(tmp_path / "photos", [(48, 64)])
    shutil.copy(alone / "photo0.png", alone / "same.png")
    text = CHROMA.replace("steps = 3", "steps = 60").replace("checkpoint_every = 3", "checkpoint_every = 1000")
    metrics = read_header(train(parse_recipe(text), alone, tmp_path / "run").model).provenance["metrics"]
    assert metrics.keys() == {"validation_mse", "of_gray"}
    assert metrics["of_gray"] < 0.9
    assert len(list((tmp_path / "run" / "sheets").glob("*.png"))) == 1


def test_objective_chroma_is_the_squared_error_of_every_grids_mean(photos, tmp_path):
    made = parse_recipe(CHROMA)
    flow = build("colorizer", made.model).eval()
    nn.init.normal_(flow.encoder.chroma[0].bias)
    x, source = open_data(made, photos, tmp_path).batch(4, 32, 0, 0)
    loss = make_objective(flow, made.stages[0])(x, source, None)
    expected = 0.0
    for side, predicted in zip((4, 2), flow.encoder.predict_chroma(*split_source(source)), strict=True):
        expected += F.mse_loss(predicted, F.adaptive_avg_pool2d(x - NEUTRAL, side) / 0.1) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_backbone_starts_from_its_file_and_learns_at_its_own_rate(photos, backbone, tmp_path, rate):
    path, start = backbone
    train(seeing_recipe(rate), photos, tmp_path, encoder_from=path, stop_after=2)
    after = content(tmp_path)["flow"]
    moved = max((after[f"encoder.backbone.{name}"] - value).abs().max().item() for name, value in start.items())
    # nothing comes through heads that are zero at the first step; the second of Adam moves by about the rate
    assert moved == 0 if rate == 0 else 1e-3 < moved < rate * 2e-2


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped models, one of which has the backbone, and its encoder."""
    folder = tmp_path / "shipped"
    monkeypatch.setattr(catalog, "FOLDER", folder)
    folder.mkdir()
    flow = build("colorizer", seeing_recipe(0.0).model)
    for parameter in flow.encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    save(flow, folder / "photo-colors.safetensors")
    save(build("colorizer", recipe().model), folder / "a-plain-one.safetensors")
    return folder / "photo-colors.safetensors", flow.encoder.state_dict()


def taken(run, encoder):
    """Which part of an encoder the model of a run has: the encoder, or the backbone alone."""
    after = content(run)["flow"]
    equal = {name: after[f"encoder.{name}"].equal(value) for name, value in encoder.items()}
    assert all(value for name, value in equal.items() if name.startswith("backbone."))
    return "encoder" if all(equal.values()) else "backbone"


def still_recipe(objective="chroma", **fields):
    """A recipe that changes nothing, with other fields of the model."""
    made = seeing_recipe(0.0)
    stage = dataclasses.replace(made.stages[0], objective=objective, learning_rate=0.0)
    return dataclasses.replace(made, stages=(stage,), model=dataclasses.replace(made.model, **fields))


def test_an_encoder_of_another_size_lends_its_backbone_and_one_of_the_same_all_of_itself(photos, tmp_path, shipped):
    for merged, part in ((8, "encoder"), (16, "backbone")):
        train(still_recipe(merged=merged), photos, tmp_path / part, encoder_from=shipped[0], stop_after=1)
        assert taken(tmp_path / part, shipped[1]) == part


@pytest.mark.parametrize(("objective", "part"), [("chroma", "backbone"), ("likelihood", "encoder")])
def test_without_a_file_the_backbone_is_that_of_the_shipped_model(photos, tmp_path, shipped, objective, part):
    """Where the recipe trains the rest of the encoder itself; else all of its encoder."""
    lines = []
    model = train(still_recipe(objective), photos, tmp_path / "run", stop_after=1, log=lines.append).model
    assert any(f"took the {part} of the shipped model photo-colors" in line for line in lines)
    assert taken(tmp_path / "run", shipped[1]) == part
    assert read_header(model).provenance["source"].endswith(f", with the {part} of photo-colors")


def test_a_backbone_without_weights_and_other_files_are_refused(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "FOLDER", tmp_path / "shipped")
    with pytest.raises(FlowError, match="--encoder-from"):
        train(seeing_recipe(0.1), photos, tmp_path)
    with pytest.raises(FlowError, match="predicts_chroma"):
        train(parse_recipe(CHROMA.replace("predicts_chroma = true", "predicts_chroma = false")), photos, tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FlowError, match=r"other\.safetensors"):
        train(seeing_recipe(0.1), photos, tmp_path / "run", encoder_from=tmp_path / "other.safetensors")


def test_the_flow_starts_from_the_encoder_of_the_previous_stage(photos, tmp_path):
    second = SECOND.replace("frozen_levels = 1", "").replace("learning_rate = 1e-2", "learning_rate = 1e-4")
    made = parse_recipe(CHROMA + second)
    states = []
    for stop in (3, 4):
        train(made, photos, tmp_path, stop_after=stop)
        states.append(content(tmp_path))
    start, end = states[0]["average"], states[1]["flow"]
    moves = {n: (start[n] - end[n]).abs().max().item() for n in start if "weight" in n or "bias" in n}
    assert max(v for n, v in moves.items() if n.startswith("encoder.")) <= 1.01e-4
    assert max(v for n, v in moves.items() if n.startswith("levels.")) > 0


@pytest.mark.parametrize("residual", [False, True])
def test_the_calm_error_is_that_of_every_level_from_the_true_coarser_one(photos, tmp_path, residual):
    made = parse_recipe(CHROMA.replace("dropout", f"residual = {str(residual).lower()}, dropout"))
    flow = build("colorizer", made.model).eval()
    x, source = open_data(made, photos, tmp_path).batch(4, 32, 0, 0)
    initialize_flow(flow, x, source, 0)
    nn.init.normal_(flow.encoder.chroma[0].bias)
    cond = flow.encode_condition(source)
    latents = flow(x, cond)[0]
    zeros = [torch.zeros_like(z) for z in latents]
    white = flow.preprocess(x)[0] - (cond.origin if residual else 0)
    fine = F.avg_pool2d(white, 2) * 2  # what the coarser level decodes to
    seen = []
    flow.inverse([latents[0], zeros[1]], cond, lambda level, z: seen.append(z) or z)
    flow.inverse([zeros[0], latents[1]], cond, lambda level, z: seen.append(z) or z)
    assert torch.allclose(seen[2], fine, atol=1e-4)  # its own latents give the true one
    expected = (F.mse_loss(seen[0], fine) / 4 + F.mse_loss(seen[3], white)) / 2
    assert calm_error(flow, x, cond).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("balanced", [True, False])
def test_balanced_levels_count_the_same_however_few_their_latents(photos, tmp_path, balanced):
    """Against the log of the first step; otherwise every latent counts the same."""
    lines = []
    changes = [FROZEN, ("steps = 3", "steps = 1"), ("dropout = 0.3", "dropout = 0.0")]
    made = recipe(*changes, ("balanced = true", f"balanced = {str(balanced).lower()}"))
    flow = read(train(made, photos, tmp_path, log=lines.append).model)
    logged = [float(line.split("bits/dim ")[1].split()[0]) for line in lines if "bits/dim" in line]
    x, source = open_data(made, photos, tmp_path / "cache").batch(4, 32, made.seed, 0)
    noisy, cond = place(flow, x, made.seed * 1_000_003), flow.encode_condition(source)
    with torch.no_grad():
        latents, shares = flow.forward_with_logdet_map(noisy, cond)
        bits = bits_per_dim(log_prob(flow, noisy, cond), x[0].numel(), 1 / 255)
    assert [z[0].numel() for z in latents] == [96, 32]
    # bits per dimension of a level: its nats over its own number of latents, and bins of 1/255
    nats = [share.sum((1, 2)) / z[0].numel() for z, share in zip(latents, shares, strict=True)]
    levels = [-part / math.log(2) + math.log2(255) for part in nats]
    expected = sum(part.mean() for part in levels) / 2 if balanced else bits.mean()
    assert logged[0] == pytest.approx(float(expected), abs=1e-3)
    assert abs(float(levels[0].mean() - levels[1].mean())) > 0.1  # or the two objectives would be the same


def test_weight_decay_shrinks_kernels_and_nothing_else(photos, tmp_path):
    """By the rate times the decay, beside Adam's step: so its effect on the first step is exact."""
    decay = "weight_decay = 0.1"
    changes = {"start": FROZEN, "without": (decay, ""), "with it": (decay, "weight_decay = 5")}
    for name, change in changes.items():
        train(recipe(("steps = 3", "steps = 1"), change), photos, tmp_path / name)
    start, without, with_it = (content(tmp_path / name)["flow"] for name in changes)
    trained = {name for name, _ in build("colorizer", recipe().model).named_parameters()}
    shrunk = 0
    for name in trained:
        expected = without[name] - (0.01 * 5 * start[name] if start[name].ndim == 4 else 0)
        assert torch.allclose(with_it[name], expected, atol=1e-6), name
        shrunk += not torch.equal(with_it[name], without[name])
    assert 10 < shrunk < len(trained)
    mixing = [name for name in trained if name.endswith("transforms.1.weight")]
    assert mixing
    assert all(torch.equal(with_it[name], without[name]) for name in mixing)  # a rotation must not be shrunk
