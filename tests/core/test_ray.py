"""A batch on a local Ray cluster of two workers gives the same files, byte for byte.

In `make soak`, where Ray is installed (`pip install '.[ray]'`): it is large, starts dozens of processes, and opens
ports on all interfaces, whatever its settings.
"""

import os
import socket
import subprocess
import sys

import pytest

from flowcore.batch import cluster
from flowcore.cli.main import main

from .commands import contents, photograph

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - workers would starve beside other tests


pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'ray[data]'")
    pytest.importorskip("ray.data", reason="Ray Data is not installed; pip install 'ray[data]'")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=2**27,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate(["a.png", "deep/b.png", "deep/c.png", "d.png"]):
        photograph(tmp_path / "in" / name, (8 + k, 6), seed=k)
    return tmp_path / "in"


def test_unreachable_address(model, folder, tmp_path, capsys):
    pytest.importorskip("ray.data", reason="Ray Data is not installed; pip install 'ray[data]'")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    words = ["upscale", str(folder), "--model", str(model), "--device", "cpu", "-o", str(tmp_path / "out")]
    assert main([*words, "--ray-address", address]) == 1
    assert f"Nothing answers at {address}" in capsys.readouterr().err


def test_two_workers_match_one_process(ray, model, folder, tmp_path, capsys):
    words = ["upscale", str(folder), "--model", str(model), "--device", "cpu", "--samples", "2"]
    assert main([*words, "-o", str(tmp_path / "one")]) == 0
    (folder / "bad.png").write_bytes(b"nothing")
    (tmp_path / "many").mkdir()
    existing = "a_tiny_tau0.8_seed0.png", "a_tiny_tau0.8_seed1.png"
    for name in existing:
        (tmp_path / "many" / name).write_bytes((tmp_path / "one" / name).read_bytes())
    capsys.readouterr()
    assert main([*words, "-o", str(tmp_path / "many"), "--ray"]) == 3
    shown = capsys.readouterr().err
    assert f"1 of 5 images could not be done:\n  {folder / 'bad.png'}: Cannot read bad.png as an image" in shown
    assert "1 of 5 were there already" in shown
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "many")) == 8


def test_workers_find_the_files_of_the_driver(ray, model, tmp_path, monkeypatch):
    name = os.fsdecode(b"caf\xe9") if sys.platform == "linux" else "café"
    photograph(tmp_path / "in" / f"{name}.png", (8, 6))
    photograph(tmp_path / "guides" / f"{name}.png", (32, 24))
    monkeypatch.chdir(tmp_path)  # workers have the folder in which the cluster was started
    words = ["upscale", "in", "--model", str(model), "--device", "cpu", "--guide", "guides", "--name", "{stem}"]
    assert main([*words, "-o", "one"]) == 0
    assert main([*words, "-o", "many", "--ray"]) == 0
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_ray_is_optional_and_a_missing_one_named(model, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["upscale", str(folder), "--model", str(model), "--device", "cpu", "-o", str(tmp_path), "--ray"]
    assert main(words) == 1
    assert "pip install 'ray[data]'" in capsys.readouterr().err
    program = "import sys, flowcore.cli.main; assert not {'ray', 'pyarrow', 'pandas'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert cluster.Cluster(model="srflow-x4").address is None
