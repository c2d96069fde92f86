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


def losses(run):
    return {row["step"]: float(row["loss"]) for row in read_rows(run / "history.csv")}


@pytest.mark.parametrize(
    ("recipe", "stop"),
    [
        (family("realnvp", 6).text, ()),  # whose processes also share the moments of batch norms
        (UPSCALER.replace("ema = 0.6", "ema = 0.6\nrecompute = 'always'"), ("--stop-after", "15")),
    ],
    ids=["realnvp", "srflow"],
)
def test_two_processes_follow_the_curve_of_one_which_may_go_on_after_them(recipe, stop, photos, tmp_path):
    (tmp_path / "recipe.toml").write_text(recipe)
    train(parse_recipe(recipe), photos, tmp_path / "one", log=lambda _: None)
    spoken = by_two(tmp_path / "recipe.toml", photos, tmp_path / "two", *stop)
    assert spoken.count(" to train on, ") == 1  # one of them speaks
    train(parse_recipe(recipe), photos, tmp_path / "two", log=lambda _: None)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4


def test_processes_share_a_batch_equally_or_refuse_it_before_the_first_step(photos, tmp_path):
    shares = [range(12)[Distributed(rank, 3).shard(12)] for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(FlowError, match=r"batch of 4 cannot be shared equally by 3 processes.*divides 4"):
        train(parse_recipe(UPSCALER), photos, tmp_path / "run", distributed=Distributed(0, 3), log=lambda _: None)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
