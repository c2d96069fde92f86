"""workflows/api/batch.py: a folder through a server, killed in the middle and gone on with, as people run it."""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from talk import WORKFLOWS

BATCH = WORKFLOWS / "api" / "batch.py"
NAMES = ["a.png", "b.png", "deep/a.jpg", "deep/c.png", "deep/er/d.png", "e.jpeg"]


@pytest.fixture
def folder(tmp_path):
    photo = Image.open(WORKFLOWS / "photo.png").convert("RGB")
    for k, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((20 * k, 30, 20 * k + 16, 42)).save(path)
    return tmp_path / "photos"


def command(folder, out, *words):
    return [sys.executable, str(BATCH), str(folder), "-o", str(out), "--seed-per-image", *words]


def rows(out):
    path = out / "batch.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def results(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "batch.csv"}


def nobody():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def test_a_folder_whose_script_was_killed_is_resumed(host, flows, folder, tmp_path):
    settings = ("--set", f"model.model_name={flows['small-srflow']}", "--set", "upscale.samples=2")
    here, again = tmp_path / "out", tmp_path / "at once"
    process = subprocess.Popen(command(folder, here, "--server", host.url, *settings), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(rows(here)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert 2 <= len(rows(here)) < len(NAMES)
    # It may have ended between a row and its files, and then that picture is done again.
    named = [json.loads(row["outputs"]) for row in rows(here)]
    done = sum(all((here / name).exists() for name in names) for names in named)
    assert done >= 1
    with (here / "batch.csv").open("a") as file:
        file.write("e.jpeg,http")  # cut off
    (here / "e-01.png").write_text("somebody's own")
    (folder / "bad.png").write_text("no picture")

    # Two names of one server, and one where nobody is.
    other = host.url.replace("127.0.0.1", "localhost")
    servers = [word for url in (nobody(), host.url, other) for word in ("--server", url)]
    went_on = subprocess.run(command(folder, here, *servers, *settings), capture_output=True, text=True, timeout=100)
    assert went_on.returncode == 1, went_on.stderr
    assert f"{done} of 7 are done already" in went_on.stderr
    assert "1 of 7 could not be done:\n  bad.png: " in went_on.stderr
    assert "does not answer" in went_on.stderr
    table = {row["image"]: row for row in rows(here)}
    assert sorted(table) == sorted([*NAMES, "bad.png"])
    assert len(rows(here)) == 7
    assert table["bad.png"]["error"]
    assert {row["server"] for row in table.values()} <= {host.url, other}
    assert len({row["seed"] for row in table.values()}) == 7
    # Old hosts do not repeat what a loader has said whose model they have at hand.
    assert any(json.loads(row["texts"] or "{}").get("model", {}).get("scale") == [2] for row in table.values())
    files = [name for row in table.values() for name in json.loads(row["outputs"])]
    assert sorted(files) == sorted(results(here).keys() - {"e-01.png"})  # none that no row knows, and none twice
    assert len(set(files)) == 2 * len(NAMES)
    assert json.loads(table["e.jpeg"]["outputs"]) == ["e-01_2.png", "e-02.png"]
    assert (here / "e-01.png").read_text() == "somebody's own"

    # In one go, it would have been the same, byte for byte.
    (folder / "bad.png").unlink()
    in_one_go = subprocess.run(
        command(folder, again, "--server", host.url, *settings), capture_output=True, text=True, timeout=100
    )
    assert in_one_go.returncode == 0, in_one_go.stderr
    expected = results(again)
    assert len(expected) == 2 * len(NAMES)
    came = results(here)
    came["e-01.png"] = came.pop("e-01_2.png")
    assert came == expected
    with Image.open(again / "deep" / "a-02.png") as picture:
        assert picture.size == (32, 24)

    # A third time there is nothing to do, but for other wishes.
    stamps = {path: path.stat().st_mtime_ns for path in again.rglob("*.png")}
    idle = subprocess.run(command(folder, again, "--server", nobody(), *settings), capture_output=True, timeout=30)
    assert idle.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*.png")} == stamps
    wished = command(folder, again, "--server", host.url, *settings, "--set", "upscale.temperature=0.1")
    assert subprocess.run(wished, capture_output=True, timeout=100).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(results(again)) == 4 * len(NAMES)


def test_invalid_options_are_refused_before_any_work(folder, tmp_path):
    for words, said in (
        (["--set", "nothing.seed=1"], "NODE.INPUT=VALUE"),
        (["--image-node", "nothing"], "--image-node"),
        (["--server", "localhost"], "address of a server"),
        (["--workflow", str(tmp_path / "none.json")], "none.json"),
    ):
        refused = subprocess.run(command(folder, tmp_path / "out", *words), capture_output=True, text=True, timeout=30)
        assert refused.returncode == 2
        assert said in refused.stderr
    assert not (tmp_path / "out").exists()


def test_an_unreachable_server_is_reported(folder, tmp_path):
    start = time.monotonic()
    words = command(Path(folder), tmp_path / "out", "--server", nobody())
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "does not answer" in ended.stderr
    assert "6 of 6 could not be done" in ended.stderr
    assert time.monotonic() - start < 60
