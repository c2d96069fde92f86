"""Folders through a server, killed in the middle and gone on with: workflows/api/batch.py, and Flow Folder."""

import argparse
import contextlib
import csv
import errno
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.parse
from functools import partial
from pathlib import Path

import batch
import numpy as np
import pytest
from batch import picture_node
from client import RunError
from PIL import Image
from talk import WORKFLOWS, graph, loader, newest, refusal, until

from flowcore.batch.provenance import read as read_provenance
from flowcore.batch.tables import COLUMNS, Manifest
from flowcore.images.files import bits_per_channel
from flowcore.images.opening import IMAGE_SUFFIXES

BATCH = WORKFLOWS / "api" / "batch.py"
CUT = ["cut.jpg", "cut.png", "float.tif", "gone.png"]
NAMES = ["a.png", "b.png", "deep/a.jpg", "deep/c.png", "deep/er/d.png", "e.jpeg"]
# What loads the picture in each story that takes one; the others make their own, or read a folder of the server.
LOADERS = {"retouched": "photos", "steady-clip": "film", "morph-faces": "portraits"}
LOADERS |= dict.fromkeys(("digits", "temperatures", "train"))


@pytest.fixture
def folder(tmp_path):
    photo = Image.open(WORKFLOWS / "photo.png").convert("RGB")
    for k, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((20 * k, 30, 20 * k + 16, 42)).save(path)
    return tmp_path / "photos"


def command(folder, out, *words):
    return [sys.executable, str(BATCH), str(folder), "-o", str(out), *words]


def run(*words, **environment):
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 100}
    return subprocess.run(command(*words), env=os.environ | environment, **options)


@pytest.fixture
def small(host, flows):
    chosen = "--set", f"model.model_name={flows['small-srflow']}", "--set", "upscale.look=natural"
    return "--server", host.url, *chosen


def begun(folder, **switches):
    """What the script does with a folder at its beginning; results go beside it, into "out"."""
    out = folder.with_name("out")
    out.mkdir(exist_ok=True)
    usual = dict.fromkeys(("again", "clean", "json", "quiet"), False) | {"wait": 0, "limit": 0}
    return batch.Batch(argparse.Namespace(folder=folder, out=out, **usual | switches), batch.load("upscale"))


def rows(out):
    """Lines of the log that are whole."""
    lines = (out / "batch.jsonl").read_text().splitlines() if (out / "batch.jsonl").exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def manifest(out):
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def results(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.png")}


def nobody():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


@newest
def test_a_folder_whose_script_was_killed_is_resumed(host, small, folder, tmp_path):
    words, settings = (*small, "--set", "upscale.samples=2"), (*small[2:], "--set", "upscale.samples=2")
    here, again = tmp_path / "out", tmp_path / "at once"
    process = subprocess.Popen(command(folder, here, *words), stderr=subprocess.PIPE)
    until(lambda: len(rows(here)) >= 2, 60)
    process.kill()
    process.communicate()
    done = len(rows(here))
    assert 2 <= done < len(NAMES)
    lost = rows(here)[1]["files"][0]
    (here / lost).unlink()
    with (here / "batch.jsonl").open("a") as file:
        file.write('\n{"image": "e.jpeg", "key')  # cut off
    (folder / "bad.png").write_text("no picture")
    other = host.url.replace("127.0.0.1", "localhost")
    servers = [word for url in (nobody(), host.url, other) for word in ("--server", url)]
    went_on = run(folder, here, *servers, *settings)
    assert went_on.returncode == 3, went_on.stderr
    assert f"{done - 1} of 7 are done already" in went_on.stderr
    assert "1 of 7 could not be done.\n  bad.png: FlowcoreExample: Cannot read bad.png as an image" in went_on.stderr
    assert "does not answer" in went_on.stderr
    assert all((tmp_path / line).is_file() for line in went_on.stdout.splitlines())
    table = {row["image"]: row for row in rows(here)}
    assert sorted(table) == sorted([*NAMES, "bad.png"])
    assert table["bad.png"]["error"]
    listed = manifest(here)
    assert [Path(row["input"]).name for row in listed if not row["output"]] == ["bad.png"]
    assert {row["output"] for row in listed if row["output"]} >= {*went_on.stdout.splitlines()}
    summary = rf"{7 - done} done, {done - 1} of 7 were there already, 1 failed, in \S+ s\."
    assert re.fullmatch(summary, went_on.stderr.splitlines()[-1])
    assert re.search(r"\n\d/7 .*  about \S+ s to go\n", went_on.stderr)
    assert {row["server"] for row in table.values()} <= {host.url, other}
    # Hosts do not repeat what a loader has said whose model they have at hand.
    assert any(row["outputs"].get("model", {}).get("scale") == [2] for row in rows(here))

    # In one go, it would have been the same, byte for byte: no file more, and none twice.
    (folder / "bad.png").unlink()
    in_one_go = run(folder, again, *words)
    assert in_one_go.returncode == 0, in_one_go.stderr
    assert len(results(again)) == 2 * len(NAMES)
    assert results(here) == results(again)
    (made,) = again.glob("deep/a_*_02.png")
    with Image.open(made) as picture:
        assert picture.size == (32, 24)
    assert read_provenance(made)

    # What a server has at hand is fetched again.
    for path in again.glob("deep/er/*.png"):
        path.unlink()
    assert run(folder, again, *words).returncode == 0
    assert results(here) == results(again)

    # Another time there is nothing to do, but for other settings, whose files are others.
    stamps = {path: path.stat().st_mtime_ns for path in again.rglob("*.png")}
    assert run(folder, again, "--server", nobody(), *settings).returncode == 0
    assert run(folder, again, *words, "--set", "upscale.temperature=0.1").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(results(again)) == 4 * len(NAMES)


def test_the_manifest_is_that_of_the_command_line(tmp_path):
    assert tuple(batch.COLUMNS) == COLUMNS
    table, failed, made = tmp_path / "manifest.csv", ["a.png", *[""] * 5, "why"], ["a.png", "a_01.png", *[""] * 5]
    other = ["b.png", "b_01.png", *[""] * 5]
    table.write_bytes(batch.encode([batch.COLUMNS, failed, other, made, made, ["cut"]]))
    batch.compact(table)
    assert table.read_bytes() == batch.encode([batch.COLUMNS, other, made])
    Manifest(table).compact()
    assert table.read_bytes() == batch.encode([batch.COLUMNS, other, made])
    table.write_text("x,y\n")
    with pytest.raises(ValueError, match="something else than a list of results"):
        batch.compact(table)


def test_pictures_are_those_that_flowcore_reads_and_their_names_are_escaped(capsys):
    assert batch.SUFFIXES == IMAGE_SUFFIXES
    batch.Batch.say(argparse.Namespace(options=argparse.Namespace(quiet=False)), "a\x1b[31m\nb\u202e.png: done", "end")
    assert capsys.readouterr().err == "a\\x1b[31m\\nb\\u202e.png: done\nend\n"


def test_again_makes_what_is_done_already(folder, tmp_path):
    pictures, out = begun(folder).pictures, tmp_path / "out"
    (out / "made.png").touch()
    done = [{"key": key, "files": ["made.png"]} for key in pictures]
    (out / "batch.jsonl").write_text("\n".join(map(json.dumps, done)))
    assert begun(folder).waiting == []
    assert begun(folder, again=True).waiting == [*pictures]


def test_every_story_that_loads_a_picture_takes_a_folder():
    for path in (WORKFLOWS / "api").glob("*.json"):
        workflow, loader = json.loads(path.read_text()), LOADERS.get(path.stem, "photo")
        if loader:
            assert picture_node(workflow) == loader
        else:
            with pytest.raises(ValueError, match="loads no picture that those of a folder could replace"):
                picture_node(workflow)


def test_what_cannot_be_done_is_refused_before_any_work(folder, tmp_path):
    for option, value, said in (
        ("--set", "nothing.seed=1", "NODE.INPUT=VALUE"),
        ("--server", "localhost", "Expected addresses such as"),
        ("--server", "http://localhost:port", "Expected addresses such as"),
        ("--workflow", str(tmp_path / "none.json"), "none.json"),
        ("--workflow", str(WORKFLOWS / "Enlarge a photo - upscale.json"), "is not in API format. Open it"),
        ("--workflow", str(WORKFLOWS / "photo.png"), "Cannot read a workflow from"),
        ("--workflow", "digits", "loads no picture"),
    ):
        refused = run(folder, tmp_path / "out", option, value)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    shutil.rmtree(folder / "deep")
    assert "No pictures in" in run(folder / "deep", tmp_path / "out").stderr
    assert not (tmp_path / "out").exists()


def test_a_workflow_is_found_by_any_path(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("wf").mkdir()
    text = (WORKFLOWS / "api" / "upscale.json").read_text()
    Path("wf/mine.json").write_text(f"\ufeff{text}", encoding="utf-8")  # as some editors of Windows begin a file
    for name in ("upscale", "wf/mine.json", "./wf/mine.json", str(tmp_path / "wf" / "mine.json")):
        assert batch.load(name) == json.loads(text), name


@pytest.fixture
def preview(tmp_path):
    """The story `upscale` with Preview Image in place of Save Image, and a function that writes its file."""
    workflow = batch.load("upscale")
    del workflow["save"]
    workflow["preview"] = {"class_type": "PreviewImage", "inputs": {"images": ["upscale", 0]}}

    def write(**nodes):
        (tmp_path / "mine.json").write_text(json.dumps(workflow | nodes))
        return "--workflow", str(tmp_path / "mine.json")

    return write


def test_a_node_that_the_server_leaves_out_is_a_failure(host, small, folder, tmp_path, preview):
    """The host runs the others, and answers as if all were well."""
    words = preview(save={"class_type": "SaveImage", "inputs": {"images": ["upscale", 0]}})
    ended = run(folder / "deep", tmp_path / "out", *small, *words)
    assert ended.returncode == 1
    problem = "FlowcoreSave: Required input is missing: filename_prefix. Correct this in the workflow"
    assert [row["error"] for row in rows(tmp_path / "out")] == [problem] * 3
    assert until(lambda: not any(host.get_json("/queue").values()))


def test_a_picture_of_which_nothing_was_saved_is_a_failure(folder, tmp_path, monkeypatch, capsys):
    mine = begun(folder, json=True)
    monkeypatch.setattr(mine, "make", lambda *_: {"preview": {"images": [{"type": "temp", "filename": "a.png"}]}})
    mine.do(mine.waiting[0], "a server")
    assert len(mine.failed) == 1
    assert json.loads(capsys.readouterr().out)["error"].startswith("nothing was saved, but results are what nodes")
    assert rows(tmp_path / "out")[0]["files"] == []


def test_settings_and_workflow_are_checked_against_the_server_at_the_start(host, folder, tmp_path, preview):
    for words, said in (
        (("--set", "upscale.temprature=0.2"), "upscale has no input 'temprature', but image, model, temperature"),
        (("--set", "upscale.temperature=99"), "upscale.temperature is a number from"),
        (("--set", "upscale.samples=many"), "upscale.samples is a number from 1"),
        (("--set", "upscale.precision=float8"), "upscale.precision is one of float32"),
        (("--set", "model.model_name=nobody"), "model.model_name is one of upscaler that suits"),
        (preview(), "This workflow saves nothing, but results are what nodes such as Save Image"),
    ):
        refused = run(folder, tmp_path / "out", "--server", host.url, *words)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "out").exists()


@newest
def test_damaged_files_and_broken_links_are_never_done(host, small, folder, tmp_path):
    photo, mine = Image.open(WORKFLOWS / "photo.png").convert("RGB"), tmp_path / "mine"
    mine.mkdir()
    photo.save(tmp_path / "whole.jpg")
    for name in ("cut.jpg", "cut.png"):
        photo.save(mine / name)
        data = (mine / name).read_bytes()
        (mine / name).write_bytes(data[: len(data) // 2])
    Image.new("F", (16, 12), 0.5).save(mine / "float.tif")
    (mine / "gone.png").symlink_to("nowhere.png")
    (mine / "linked").symlink_to(folder / "deep" / "er")
    (folder / "deep" / "er" / "back").symlink_to(mine)
    ended = run(mine, tmp_path / "out", *small, "--clean", "--json", "--quiet")
    assert ended.returncode == 3, ended.stderr
    told = {Path(row["input"]).relative_to(mine).as_posix(): row for row in map(json.loads, ended.stdout.splitlines())}
    assert {name: (bool(row["error"]), bool(row["outputs"])) for name, row in told.items()} == {
        "linked/d.png": (False, True)
    } | dict.fromkeys(CUT, (True, False))
    assert "4 of 5 could not be done." in ended.stderr
    sent = [path for path in (host.server.base / "temp" / "batch").rglob("*") if path.is_file()]
    assert {path.stat().st_size for path in sent} == {1}  # emptied
    with pytest.raises(RuntimeError, match="cut off"):  # where a server has no Flow Example
        batch.refuse_cut_off((mine / "cut.jpg").read_bytes())
    batch.refuse_cut_off((tmp_path / "whole.jpg").read_bytes())


@newest
def test_no_name_ends_a_folder(small, tmp_path):
    """Long ones, a link to itself, one that is not UTF-8, and what standard output cannot show."""
    mine = tmp_path / "mine"
    mine.mkdir()
    photo = Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((0, 0, 8, 6))
    for stem in ("a", "y" * 240, "\u6f22" * 80, "caf\udce9", "what? 'now'\n"):
        photo.save(mine / f"{stem}.png")
    (mine / "self.png").symlink_to("self.png")
    os.mkfifo(mine / "pipe.png")
    words = (*small, "--set", "upscale.samples=1")
    ended = run(mine, tmp_path / "out", *words, PYTHONIOENCODING="cp1252")
    assert ended.returncode == 3, ended.stderr
    assert "1 of 6 could not be done.\n  self.png: " in ended.stderr
    assert len(results(tmp_path / "out")) == len(ended.stdout.splitlines()) == 5
    assert "5 of 6 are done already" in run(mine, tmp_path / "out", *words).stderr


@newest
def test_results_keep_bits_and_metadata_and_what_is_lost_is_noted(host, small, tmp_path):
    mine, out = tmp_path / "mine", tmp_path / "out"
    mine.mkdir()
    photo = Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((0, 0, 16, 12))
    photo.convert("CMYK").save(mine / "cmyk.jpg")
    photo.save(mine / "pages.tif", save_all=True, append_images=[photo] * 2)
    cut_out = photo.convert("RGBA")
    cut_out.putpixel((0, 0), (0, 0, 0, 0))
    cut_out.save(mine / "cut-out.png")
    tags = Image.Exif()
    tags[0x8298] = "a photographer"
    Image.fromarray(np.full((6, 8), 700, np.uint16)).save(mine / "fine.png", exif=tags)
    noted = {
        "cmyk.jpg": "It is a CMYK file, and its colors are approximate: it has no usable color profile.",
        "pages.tif": "It has 3 frames or pages; only the first is used.",
    }
    ended = run(mine, out, *small, "--set", "upscale.samples=1", "--json")
    assert ended.returncode == 0, ended.stderr
    told = {Path(row["input"]).name: row["notes"] for row in map(json.loads, ended.stdout.splitlines())}
    logged = {row["image"]: row["notes"] for row in rows(out)}
    for name, note in noted.items():
        assert told[name] == logged[name] == [note]  # and no measurement
        assert f"{name}: {note}" in ended.stderr
        assert f"{name}: {note}" in host.server.console()
    assert told["cut-out.png"] == []
    assert [Image.open(path).mode for path in sorted(out.glob("cut-out*.png"))] == ["RGBA"]
    (fine,) = out.glob("fine*.png")
    assert bits_per_channel(fine) == 16
    with Image.open(fine) as opened:
        assert opened.getexif()[0x8298] == "a photographer"


def test_clients_leave_the_pictures_of_others(host, folder, monkeypatch):
    """One empties what it has sent while the run of another begins, with the same picture on the same server."""
    temporary, seen = host.server.base / "temp", list[int]()

    def stand_in(_, workflow, *__):
        if not seen:
            seen.append(0)
            begun(folder, clean=True).make(folder / "a.png", "key", host.url)
        (name,) = [node["inputs"]["picture"] for node in workflow.values() if node["class_type"] == "FlowcoreExample"]
        seen.append((temporary / name.removesuffix(" [temp]")).stat().st_size)
        return {}

    monkeypatch.setattr(batch, "run", stand_in)
    begun(folder, clean=True).make(folder / "a.png", "key", host.url)
    assert seen == [0, *[(folder / "a.png").stat().st_size] * 2]


def test_loops_and_folders_that_cannot_be_opened_are_named(folder, monkeypatch):
    (folder / "deep" / "back").symlink_to("..")
    scan, said = os.scandir, []

    def refuse(place):
        if str(place).endswith("er"):
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    assert {path.name for path in batch.files_of(folder, said.append)} == {"a.png", "b.png", "e.jpeg", "a.jpg", "c.png"}
    assert said == [
        f"A link that leads back, left out: {folder / 'deep' / 'back'}",
        f"Cannot be opened: [Errno 13] Permission denied: '{folder / 'deep' / 'er'}'",
    ]


def test_a_full_disk_stops_the_batch(folder, tmp_path, monkeypatch, capsys):
    def full(self, _):
        Path(self).touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    output = {"save": {"images": [{"type": "output", "filename": "a.png"}]}}
    for name, made in {"ask": lambda *_: b"{}", "upload": lambda server, name, *_: name, "check": print}.items():
        monkeypatch.setattr(batch, name, made)
    monkeypatch.setattr(batch, "run", lambda *_: output)
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(sys, "argv", ["batch.py", str(folder), "-o", str(tmp_path / "out")])
    assert batch.main() == 1
    assert "could not be saved: No space left on device. Nothing else is begun." in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["batch.jsonl"]


def test_ctrl_c_and_a_limit_take_the_run_back(host, folder, tmp_path):
    big = tmp_path / "big"
    big.mkdir()
    Image.open(WORKFLOWS / "photo.png").convert("RGB").resize((1200, 900)).save(big / "a.png")
    words = ("--server", host.url)  # with a model that takes long
    ended = run(big, tmp_path / "late", *words, "--limit", "1")
    assert ended.returncode == 1
    assert "a.png: it took longer than 1 s" in ended.stderr
    until(lambda: not any(host.get_json("/queue").values()), 60)
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what shells start in the background ignores it
    for stop in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            command(big, tmp_path / "out", *words), stderr=subprocess.PIPE, text=True, preexec_fn=heard
        )
        until(lambda: host.get_json("/queue")["queue_running"], 60)
        process.send_signal(stop)
        assert "Stopped. Start it again to go on." in process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert until(lambda: not any(host.get_json("/queue").values()), 10)
        assert results(tmp_path / "out") == {}


@newest
def test_a_closed_standard_output_stops_the_batch(small, folder, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    words = command(folder, tmp_path / "out", *small)
    ended = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=100, check=False)
    os.close(writer)
    assert ended.returncode == 1
    assert "Results cannot be listed on standard output" in ended.stderr.splitlines()[-1]
    assert len(rows(tmp_path / "out")) == 1


def test_an_unreachable_server_is_reported(folder, tmp_path):
    ended = run(folder, tmp_path / "out", "--server", nobody(), "--wait", "1")
    assert ended.returncode == 1
    assert "does not answer" in ended.stderr
    assert "6 of 6 could not be done.\n" in ended.stderr
    assert ended.stderr.count("no server is left") == 6
    assert ended.stdout == ""


def test_the_last_picture_of_a_server_that_dies_goes_to_another(folder, tmp_path, monkeypatch):
    def stand_in(server, *_):
        if server == "dying":
            time.sleep(1)  # by now the other has done the rest
            raise ConnectionError("gone")
        return {"save": {"images": [{"type": "output", "filename": "a.png"}]}}

    monkeypatch.setattr(batch, "ask", lambda *_: b"")
    monkeypatch.setattr(batch, "upload", lambda server, name, *_: name)
    monkeypatch.setattr(batch, "describe", lambda server, kind: {"input": {}})
    monkeypatch.setattr(batch, "run", stand_in)
    shared = begun(folder)
    threads = [threading.Thread(target=shared.serve, args=(server,)) for server in ("dying", "alive")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (shared.waiting, shared.failed) == ([], [])
    assert sorted(row["image"] for row in rows(tmp_path / "out")) == NAMES


class Forward(socketserver.BaseRequestHandler):
    """Passes a request on to a host, and its answer back."""

    def handle(self):
        with socket.create_connection(self.server.to) as other:
            threading.Thread(target=self.copy, args=(self.request, other), daemon=True).start()
            self.copy(other, self.request)

    @staticmethod
    def copy(source, target):
        with contextlib.suppress(OSError):  # the other direction has ended
            while data := source.recv(1 << 16):
                target.sendall(data)


@newest
def test_a_server_that_comes_back_goes_on(host, small, folder, tmp_path):
    """A door to the host that opens when the script already waits before it."""
    door, real = urllib.parse.urlsplit(nobody()), urllib.parse.urlsplit(host.url)
    words = ("--server", door.geturl(), *small[2:], "--wait", "60")
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command(folder / "deep", tmp_path / "out", *words), text=True, **pipes)
    lines = iter(process.stderr)
    assert "Waiting for it, 60 s at most." in next(line for line in lines if "of 3 are done" not in line)
    with socketserver.ThreadingTCPServer((door.hostname, door.port), Forward) as server:
        server.to, server.daemon_threads = (real.hostname, real.port), True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rest = process.communicate(timeout=100)[0]
        server.shutdown()
    assert process.returncode == 0, rest
    assert len(re.findall(r"\.png", rest)) >= 3
    assert len(results(tmp_path / "out")) == 3


# --- Flow Folder ------------------------------------------------------------------------------------------------------


def in_folder(name="mine", flow="small-srflow", **values):
    asked = {"model": "model.0", "folder": name, "subfolder": f"made/{name}", "temperature": -0.1, "seed": 3} | values
    return graph(model=loader(f"{flow}.safetensors"), folder=("FlowcoreFolder", asked))


@pytest.fixture
def mine(host, flows, folder):
    """Pictures in the server's input folder: one with metadata, one in 16 bits, and one that is none."""
    place = host.server.base / "input" / "mine"
    shutil.copytree(folder, place)
    tags = Image.Exif()
    tags[0x8298] = "a photographer"
    Image.open(place / "a.png").save(place / "told.jpg", exif=tags)
    Image.new("I;16", (8, 6), 700).save(place / "deep" / "fine.png")
    (place / "bad.png").write_bytes(b"nothing")
    yield place
    shutil.rmtree(place)
    shutil.rmtree(host.server.base / "output" / "made", ignore_errors=True)


def test_flow_folder_keeps_metadata_and_goes_on_where_it_stopped(host, mine):
    for flow, scale in (("small-srflow", 2), ("small-color", 1)):
        *said, info = host.outputs(in_folder(flow=flow, samples=2))["folder"]["text"]
        assert info == "9 pictures: 8 made, 1 failed; in output/made/mine"
        assert any(line.startswith("bad.png: Cannot read bad.png") for line in said)
        out, end = host.server.base / "output" / "made" / "mine", f"_{flow}_seed4.png"
        made = {path: path.stat().st_mtime_ns for path in out.rglob(f"*_{flow}_seed*.png")}
        assert len(made) == 16
        assert (out / "deep" / "er" / f"d{end}") in made
        with Image.open(out / f"told{end}") as told:
            assert told.size == (16 * scale, 12 * scale)
            assert told.getexif()[0x8298] == "a photographer"
        assert bits_per_channel(out / "deep" / f"fine{end}") == 16
        assert read_provenance(out / f"told{end}")[0].seed == 3
        listed = [row for row in manifest(out) if row["model"] == f"{flow}.safetensors" or not row["output"]]
        assert [row["input"] for row in listed if not row["output"]] == ["bad.png"]
        assert {(row["input"], row["seed"]) for row in listed} >= {("deep/er/d.png", "3"), ("deep/er/d.png", "4")}
        assert {out / row["output"] for row in listed if row["output"]} == {*made}
        (out / f"a{end}").unlink()
        info = host.outputs(in_folder(flow=flow, samples=2))["folder"]["text"][-1]
        assert "1 made, 7 there already, 1 failed" in info
        assert len([path for path, when in made.items() if path.stat().st_mtime_ns == when]) == 14


def test_flow_folder_can_be_cancelled(host, mine):
    def look(event):
        if isinstance(event, dict) and event["type"] == "flowcore.text" and "2 of 9" in event["data"]["text"]:
            host.cancel()

    for name in NAMES[:4]:
        Image.open(mine / "a.png").resize((150, 150)).save(mine / name)
    with pytest.raises(RunError, match="cancelled"):
        host.run(in_folder(), look, timeout=60)
    done = len([*(host.server.base / "output" / "made").rglob("*.png")])
    assert 1 <= done < 8
    assert f"{done} there already" in host.outputs(in_folder())["folder"]["text"][-1]


def test_flow_folder_stays_in_the_folders_of_the_host(host, mine, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.new("RGB", (8, 8)).save(secret / "s.png")
    base = host.server.base
    (base / "input" / "link").symlink_to(secret)
    (base / "output" / "link").symlink_to(secret)
    try:
        for name in (" ", str(secret), "../..", "link", "x" * 300, "no"):
            with pytest.raises(RunError, match="input folder"):
                host.run(in_folder(name))
        for out in ("../x", str(secret), "link", "link/deeper", "a\0b"):
            refusal(host, in_folder(subfolder=out), "leads out of ComfyUI's output folder")
    finally:
        (base / "input" / "link").unlink()
        (base / "output" / "link").unlink()
    assert [path.name for path in secret.iterdir()] == ["s.png"]
    assert not (base / "output" / "made").exists()


@newest
def test_a_link_that_leads_out_fails_alone_in_a_flow_folder_and_a_name_may_be_no_utf_8(host, mine, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (mine / "out.png").symlink_to(tmp_path / "secret.png")
    Image.new("RGB", (8, 8)).save(mine / os.fsdecode(b"caf\xe9.png"))
    *said, info = host.outputs(in_folder())["folder"]["text"]
    assert info == "11 pictures: 9 made, 2 failed; in output/made/mine"
    reason = "out.png: .*leads out of the folders in which this server opens pictures"
    assert any(re.match(reason, line) for line in said)
    assert "9 there already, 2 failed" in host.outputs(in_folder())["folder"]["text"][-1]
