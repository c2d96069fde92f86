"""Training of models other than upscalers: each learns, resumes exactly, on two processes as on one."""

import dataclasses
import gzip
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from builders import build_tiny

import flowcore
from flowcore import FlowError, ImageError
from flowcore.flows.dequantization import VariationalDequantizer
from flowcore.models import build, configure
from flowcore.training.data import MAX_DIGITS, Digits, Photographs, read_idx
from flowcore.training.evaluation.image_set import density_table, evaluate_density
from flowcore.training.loop import train
from flowcore.training.objective import make_objective
from flowcore.training.recipe import parse_recipe
from flowcore.training.run import Distributed
from flowcore.training.run_folder import read_rows
from flowcore.training.styles import STYLES, attributes, measure_styles

from .digits import digits, write_idx, write_mnist
from .photographs import photographs
from .training_runs import RECIPE as UPSCALING
from .training_runs import assert_same_run

pytestmark = pytest.mark.slow

RECIPE = """
name = "tiny"
architecture = "{architecture}"
validation = {validation}
checkpoint_every = 1000
init_batch = 16
evaluate = 16
precision = "float32"
turn = false
unlabelled = {unlabelled}
licence = "CC0-1.0"
[model]
{model}
[[stages]]
name = "flow"
objective = "likelihood"
steps = {steps}
batch = 8
crop = {crop}
warmup = 5
learning_rate = 2e-3
"""
MODELS = {
    "glow": "levels = 2\nsteps = 2\nhidden = 8\nn_bits = 5\nimage_size = 16\n"
    'mixing = "conv"\nmixing_start = "principal"',
    "realnvp": "scales = 2\nhidden = 4\nblocks = 1\nimage_size = 16",
    "ffjord": "scales = 2\nblocks = 1\nhidden = [8, 8]\nsteps = 2\nimage_size = 16",
    "residual_flow": "blocks = [1, 1]\nhidden = 8\nfull_blocks = 1\nfull_hidden = 8\nimage_size = 16",
    "class_conditional": "classes = 3\nsteps = 2\nhidden = 16\nn_bits = 4",
}


def recipe(architecture, steps, model=None):
    model = model or MODELS[architecture]
    digit = architecture == "class_conditional" or "channels = 1" in model
    crop, validation, unlabelled = (28, 16, 0.2) if digit else (16, 1, 0.0)
    fields = {"crop": crop, "validation": validation, "unlabelled": unlabelled}
    return parse_recipe(RECIPE.format(architecture=architecture, model=model, steps=steps, **fields))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    photographs(folder / "photos", [(40, 56), (48, 40), (32, 32)])
    write_mnist(folder / "digits")
    return folder


@pytest.fixture(params=MODELS)
def architecture(request):
    return request.param


@pytest.fixture
def images(architecture, data):
    return data / ("digits" if architecture == "class_conditional" else "photos")


def test_training_learns_and_saves_a_model_and_a_sheet(architecture, images, tmp_path):
    made = recipe(architecture, 24)
    flow = flowcore.load(train(made, images, tmp_path).model)
    assert flow.provenance["licence"] == "CC0-1.0"
    assert flow.provenance["steps"] == 24
    assert list((tmp_path / "sheets").glob("*.png"))
    assert flow.provenance["metrics"]["validation_bits_per_dim"] < made.model.n_bits  # better than guessing
    trained = evaluate_density(flow, images)
    untrained = evaluate_density(build(architecture, made.model).eval(), images)
    assert trained["bits_per_dim"] < untrained["bits_per_dim"]
    assert f"{trained['bits_per_dim']:.4f}" in density_table({"set": trained})


def test_a_stopped_run_goes_on_to_the_same_parameters(architecture, images, tmp_path):
    made = recipe(architecture, 4)
    for run, stops in (("once", (None,)), ("twice", (2, None))):
        for stop in stops:
            train(made, images, tmp_path / run, stop_after=stop)
    assert_same_run(tmp_path / "once", tmp_path / "twice")


NOISY = MODELS["glow"] + "\ndequantizer_steps = 2"


def test_a_dequantizer_is_trained_for_a_model_that_stays_as_it_is(data, tmp_path):
    start = train(recipe("glow", 8), data / "photos", tmp_path / "start").model
    alone = parse_recipe(f"start_rate = 1\n{recipe('glow', 20, NOISY).text}frozen_levels = 2\n")
    before = flowcore.load(start)
    after = flowcore.load(train(alone, data / "photos", tmp_path / "run", start=start).model)
    weights = after.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in before.state_dict().items())
    assert isinstance(after.dequantizer, VariationalDequantizer)
    torch.manual_seed(alone.seed)
    begun = build("glow", alone.model).get_submodule("dequantizer")
    moved = [not torch.equal(a, b) for a, b in zip(after.dequantizer.parameters(), begun.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2
    start = tmp_path / "run" / "model.safetensors"
    plain = flowcore.load(train(recipe("glow", 8), data / "photos", tmp_path / "plain", start=start).model)
    assert plain.dequantizer is None  # a recipe without one leaves it behind
    nothing = parse_recipe(recipe("glow", 8).text + "frozen_levels = 2\n")
    with pytest.raises(FlowError, match="frozen_levels"):
        train(nothing, data / "photos", tmp_path / "none")


def test_a_model_of_gray_images_trains_on_digits_without_their_labels(data, tmp_path):
    made = recipe("glow", 4, "channels = 1\nlevels = 2\nsteps = 1\nhidden = 8\nimage_size = 28")
    assert made.takes_digits
    flow = flowcore.load(train(made, data / "digits", tmp_path).model)
    assert (flow.channels, flow.classes) == (1, 0)
    assert evaluate_density(flow, data / "digits")["images"] == 32  # the test digits
    assert Digits(data / "digits", labeled=False).batch(4, 28, 0, 0)[1] is None


def test_the_penalties_on_paths_are_part_of_the_loss_and_models_refuse_what_is_not_theirs(data, tmp_path):
    made = recipe("ffjord", 1)
    flow = build_tiny("ffjord", perturb=0.2)
    x = torch.rand(4, 3, 8, 12)
    stages = [
        dataclasses.replace(made.stages[0], **weights)
        for weights in ({}, {"kinetic_weight": 1.0}, {"jacobian_weight": 1.0})
    ]
    losses = [make_objective(flow, stage) for stage in stages]
    noise = losses[0].noise(tuple(x.shape), torch.Generator().manual_seed(0))
    assert all(t.is_contiguous() for t in noise)  # as page-locked memory has to be, from which a GPU copies
    bits, kinetic, jacobian = (float(loss(x, None, noise).detach()) for loss in losses)
    assert bits < kinetic != jacobian > bits
    for stage, words in (
        (stages[1], "paths of an ODE; a glow model has none"),
        (dataclasses.replace(made.stages[0], calm_weight=1.0), "a glow model samples without one"),
    ):
        with pytest.raises(FlowError, match=words):
            train(dataclasses.replace(recipe("glow", 1), stages=(stage,)), data / "photos", tmp_path)


def test_digits_are_read_as_written(tmp_path):
    pixels, labels = digits(40)[:2]
    for zipped in (True, False):
        read = Digits(write_mnist(tmp_path / str(zipped), 40, zipped=zipped), validation=8)
        assert np.array_equal(read.images, pixels)
        assert np.array_equal(read.labels, labels)
        assert (len(read.training), len(read.held_out), read.classes) == (32, 8, 3)


def test_batches_of_digits_are_a_function_of_seed_and_step(tmp_path):
    read = Digits(write_mnist(tmp_path, 40), validation=8, unlabeled=0.5)
    one, two = read.batch(16, 28, 1, 2), read.batch(16, 28, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], read.batch(16, 28, 1, 3)[0])
    assert one[0].shape == (16, 1, 28, 28)
    assert 0 <= float(one[0].min()) < float(one[0].max()) <= 1
    assert 0 < int((one[1] == 3).sum()) < 16  # some are shown without a label
    held_out = read.batch(64, 28, 0, 0, held_out=True)
    assert int(held_out[1].max()) < 3
    images = {read.images[i].tobytes() for i in read.held_out}
    assert {(x * 255).round().byte().numpy().tobytes() for x in held_out[0]} <= images


def test_files_that_are_not_mnist_are_refused(tmp_path):
    for content in (b"", b"\0\0\x08", b"\x89PNG....", gzip.compress(b"\0\0\x08\x03\0\0", mtime=0)):
        path = tmp_path / ("train-images-idx3-ubyte" + (".gz" if content[:2] == b"\x1f\x8b" else ""))
        path.write_bytes(content)
        with pytest.raises(ImageError, match="not a file of MNIST"):
            read_idx(tmp_path, "train-images-idx3-ubyte")
        path.unlink()
    bomb = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(bomb, "wb") as file:
        file.write(bytes(MAX_DIGITS + 1))
    with pytest.raises(ImageError, match=str(MAX_DIGITS)):
        read_idx(tmp_path, "train-images-idx3-ubyte")
    bomb.unlink()
    write_idx(tmp_path / "train-images-idx3-ubyte", digits(3)[0])
    with pytest.raises(ImageError, match="train-labels"):
        Digits(tmp_path)
    with pytest.raises(FlowError, match="class_conditional"):
        measure_styles(build_tiny("glow"), torch.rand(2, 3, 8, 8), torch.zeros(2).long())


def test_attributes_measure_what_digits_were_drawn_with():
    images, _, thickness, slant = digits(120, classes=1)
    measured = attributes(torch.from_numpy(images)[:, None] / 255)
    assert measured.shape == (120, len(STYLES))
    assert np.corrcoef(measured[:, 0], thickness)[0, 1] > 0.95
    assert np.corrcoef(measured[:, 2], slant)[0, 1] > 0.98
    assert np.abs(measured[:, 2].numpy() - slant).mean() < 0.1  # in pixels to the right for every pixel upwards


def test_directions_move_the_attribute_that_they_are_named_after():
    """On an untrained flow latents are shuffled pixels, so a direction is a picture of what the attribute changes."""
    config = configure("class_conditional", {"classes": 2, "steps": 1, "hidden": 8, "n_bits": 8})
    images, labels = digits(400, classes=2)[:2]
    x, y = torch.from_numpy(images)[:, None] / 255, torch.from_numpy(labels).long()
    plain = build("class_conditional", config).eval()
    lines: list[str] = []
    flow = measure_styles(plain, x, y, log=lines.append)
    assert plain.styles == {}
    assert list(flow.styles) == list(STYLES)
    assert "bold" in lines[0]
    cond = flow.encode_condition(y)
    latents = flow(x, cond)[0]
    base = attributes(flow.inverse(latents, cond))
    for k, name in ((0, "bold"), (2, "slanted")):
        moved = [latents[0] + s * flow.styles[name][0] for s in (-1, 1)]
        less, more = (attributes(flow.inverse([z], cond))[:, k].mean() for z in moved)
        assert less < base[:, k].mean() < more, name
    assert torch.equal(flow(x, cond)[0][0], plain(x, cond)[0][0])  # the same model otherwise


UPSCALER = "steps = 1\ntransition_steps = 1\nhidden = 8\nencoder_blocks = 1\nencoder_width = 8\nencoder_growth = 4\n"
UPSCALER += "stacked_blocks = [0]"
PICTURE = """
[[stages]]
name = "picture"
objective = "l1"
steps = 20
batch = 8
crop = 32
warmup = 5
learning_rate = 5e-3
[[stages]]"""
FIELDS = {"architecture": "llflow", "model": UPSCALER, "steps": 5, "crop": 32, "validation": 1, "unlabelled": 0.0}
LOW_LIGHT = 'degradation = "dark"\n' + RECIPE.format(**FIELDS).replace("\n[[stages]]", PICTURE)


def test_a_low_light_model_learns_its_best_guess_and_then_the_density(data, tmp_path):
    made, lines = parse_recipe(LOW_LIGHT), list[str]()
    flow = flowcore.load(train(made, data / "photos", tmp_path, log=lines.append).model)
    images = Photographs(data / "photos", tmp_path / "cache", made)
    bright, dark = images.batch(8, 32, 7, 0)
    with torch.no_grad():
        error = (flowcore.brighten(flow, dark) - bright).abs().mean()
    assert error < 0.7 * (dark - bright).abs().mean()
    assert any("validation_bits_per_dim" in line and "psnr_gain" in line for line in lines)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_two(path, data, run, *options):
    """What a person types, on loopback and for a minute at most."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port())),
        *("-m", "flowcore", "train", str(path), "--data", str(data), "--into", str(run), "--device", "cpu"),
        *options,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def losses(run):
    return {row["step"]: float(row["loss"]) for row in read_rows(run / "history.csv")}


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        (recipe("realnvp", 6).text, ()),  # whose processes also share the moments of batch norms
        (UPSCALING.replace("ema = 0.6", "ema = 0.6\nrecompute = 'always'"), ("--stop-after", "15")),
    ],
    ids=["realnvp", "srflow"],
)
def test_two_processes_follow_the_curve_of_one_which_may_go_on_after_them(text, stop, photos, tmp_path):
    (tmp_path / "recipe.toml").write_text(text)
    train(parse_recipe(text), photos, tmp_path / "one")
    spoken = by_two(tmp_path / "recipe.toml", photos, tmp_path / "two", *stop)
    assert spoken.count(" to train on, ") == 1  # one of them speaks
    train(parse_recipe(text), photos, tmp_path / "two")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4


def test_processes_share_a_batch_equally_or_refuse_it_before_the_first_step(photos, tmp_path):
    shares = [range(12)[Distributed(rank, 3).shard(12)] for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(FlowError, match="processes"):
        train(parse_recipe(UPSCALING), photos, tmp_path / "run", distributed=Distributed(0, 3))
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
