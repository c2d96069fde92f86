"""Booting: a server is always stopped, and one that does not start says why. A stand-in takes a second, a host ten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import comfyui
import pytest

SERVER = """
import argparse, http.server
parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", parser.parse_known_args()[0].port), Handler).serve_forever()
"""


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "main.py").write_text(SERVER)
    return tree


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").exists() and ") Z " in Path(f"/proc/{pid}/stat").read_text()


def boot(tree, base):
    with comfyui.running(tree, base) as server:
        assert server.alive()
        raise KeyError(server)


def test_a_server_stops_when_its_block_ends_however_it_ends(tree, tmp_path):
    with pytest.raises(KeyError) as left:
        boot(tree, tmp_path / "base")
    assert not left.value.args[0].alive()


STARTER = """
import sys, time, comfyui
from pathlib import Path
with comfyui.running(Path(sys.argv[1]), Path(sys.argv[2])) as server:
    print(server.process.pid, flush=True)
    time.sleep(60)
"""


def test_a_server_stops_when_its_starter_is_killed(tree, tmp_path):
    command = [sys.executable, "-c", STARTER, str(tree), str(tmp_path / "base")]
    environment = os.environ | {"PYTHONPATH": str(Path(comfyui.__file__).parent)}
    starter = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        pid = int(starter.stdout.readline())
        assert not gone(pid)
    finally:
        starter.send_signal(signal.SIGKILL)
        starter.wait()
    deadline = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)


def test_a_server_that_ends_at_once_shows_its_last_lines(tree, tmp_path):
    (tree / "main.py").write_text("print('the disk is full'); raise SystemExit(3)")
    with pytest.raises(comfyui.HostError, match=r"ended \(3\)(?s:.*)the disk is full"):
        boot(tree, tmp_path / "base")


def test_a_missing_host_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setattr(comfyui, "HOSTS", tmp_path)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    for version in comfyui.trees():
        with pytest.raises(comfyui.HostError, match="make hosts"):
            comfyui.tree(version)


def test_another_checkout_takes_the_place_of_the_fetched_ones(monkeypatch, tree):
    monkeypatch.setenv("COMFYUI_PATH", str(tree))
    assert list(comfyui.trees().values()) == [tree]
    assert comfyui.tree() == tree
