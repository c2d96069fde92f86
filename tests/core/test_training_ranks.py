"""Training on two processes: the same losses as on one, and a run that goes on with another number of them."""

import os
import socket
import subprocess
import sys

import pytest

from flowcore.errors import FlowError
from flowcore.training.loop import train
from flowcore.training.recipe import parse_recipe
from flowcore.training.run import Distributed
from flowcore.training.run_folder import read_rows

from .test_training_families import recipe as family
from .test_training_loop import RECIPE as UPSCALER

pytestmark = pytest.mark.slow

RECIPES = {
    "srflow": UPSCALER.replace("ema = 0.6", "ema = 0.6\nrecompute = 'always'"),
    "glow": family("glow", 6).text,
    "realnvp": family("realnvp", 6).text,
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_two(recipe, data, run, *options):
    """What a person types, on loopback and for a minute at most."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port())),
        *("-m", "flowcore", "train", str(recipe), "--data", str(data), "--into", str(run), "--device", "cpu"),
        *options,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def assert_same_curve(one, two, name="history.csv", value="loss", measure=None):
    a, b = (
        {row["step"]: float(row[value]) for row in read_rows(run / name) if row.get("measure") == measure}
        for run in (one, two)
    )
    assert a.keys() == b.keys()
    assert max(abs(a[step] - b[step]) for step in a) < 1e-4


# The one whose processes also share the moments of batch norms; the others take a while.
@pytest.mark.parametrize("name", [n if n == "realnvp" else pytest.param(n, marks=pytest.mark.soak) for n in RECIPES])
def test_two_processes_follow_the_curve_of_one(name, photos, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPES[name])
    train(parse_recipe(RECIPES[name]), photos, tmp_path / "one", log=lambda _: None)
    spoken = by_two(recipe, photos, tmp_path / "two")
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    if name == "realnvp":  # biases before a batch norm have no gradient, and Adam makes steps of its rounding errors
        return
    assert_same_curve(tmp_path / "one", tmp_path / "two", "held_out.csv", "value", "validation_bits_per_dim")
    assert spoken.count(" to train on, ") == 1  # one of them speaks


def test_a_run_goes_on_with_another_number_of_processes(photos, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(UPSCALER)
    train(parse_recipe(UPSCALER), photos, tmp_path / "one", log=lambda _: None)
    by_two(recipe, photos, tmp_path / "run", "--stop-after", "15")
    train(parse_recipe(UPSCALER), photos, tmp_path / "run", log=lambda _: None)
    assert_same_curve(tmp_path / "one", tmp_path / "run")


def test_processes_share_a_batch_equally_or_refuse_it_before_the_first_step(photos, tmp_path):
    shares = [range(12)[Distributed(rank, 3).shard(12)] for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(FlowError, match=r"batch of 4 cannot be shared equally by 3 processes.*divides 4"):
        train(parse_recipe(UPSCALER), photos, tmp_path / "run", distributed=Distributed(0, 3), log=lambda _: None)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
