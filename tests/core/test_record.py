"""The record of pictures: what batches write, and how a bare picture is traced back to it."""

import json
import os
import shutil
import signal
import sqlite3

import numpy as np
import pytest
import torch
from builders import build_upscaler
from PIL import Image, ImageOps

from flowcore import Cancelled, FlowError, load, save, sign_picture, trace
from flowcore.batch.job import JobSpec
from flowcore.batch.record import Entry, RecordFile, candidates, thumbnail
from flowcore.batch.tables import Record
from flowcore.cli.main import build_parser
from flowcore.tasks.table import tasks

from .commands import names, photograph, run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with photographs, two enlargements of each, and their record."""
    folder = tmp_path_factory.mktemp("made")
    save(build_upscaler(2), folder / "model.safetensors")
    for number in range(3):
        photograph(folder / "photos" / f"{number}.png", (80, 84), seed=number)
    words = ("--samples", 2, "--seed", 30, "--temperature", 0.9, "--record", folder / "record", "--mark", "a secret")
    assert run("upscale", folder / "photos", "--model", folder / "model.safetensors", "-o", folder / "out", *words) == 0
    return folder


def traced(made, capsys, picture, code=0):
    model = made / "model.safetensors"
    assert run("trace", picture, "--record", made / "record", "--model", model, "--json") == code
    return json.loads(capsys.readouterr().out)


def to_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


def picture_of(made, number, seed):
    (path,) = (made / "out").glob(f"{number}_*_seed{seed}.png")
    return Image.open(path).convert("RGB")


def test_a_mirrored_jpeg_is_traced_to_its_source_and_seed(made, tmp_path, capsys):
    ImageOps.mirror(picture_of(made, 1, 31)).save(tmp_path / "bare.jpg", quality=92)
    row = traced(made, capsys, tmp_path / "bare.jpg")
    assert (row["source"], row["seed"], row["mirrored"]) == (str(made / "photos" / "1.png"), 31, True)
    assert row["file"].endswith("_seed31.png")
    assert row["settings"]["temperature"] == 0.9


def test_a_crop_is_traced(made, tmp_path, capsys):
    large = picture_of(made, 2, 30)
    large.crop((9, 6, 9 + 140, 6 + 132)).save(tmp_path / "crop.png")
    assert traced(made, capsys, tmp_path / "crop.png")["seed"] == 30


def test_folders_with_recipes_and_manifests_need_no_record(made, tmp_path, capsys):
    large = picture_of(made, 2, 31)
    large.save(tmp_path / "bare.jpg", quality=92)
    large.crop((9, 6, 9 + 140, 6 + 132)).save(tmp_path / "crop.png")
    words = "--in", made / "out", "--model", made / "model.safetensors", "--json"
    assert run("trace", tmp_path / "bare.jpg", tmp_path / "crop.png", *words) == 0
    for row in map(json.loads, capsys.readouterr().out.splitlines()):
        assert (row["source"], row["seed"]) == (str(made / "photos" / "2.png"), 31)
        assert row["settings"] == {"temperature": 0.9}
    assert run("trace", tmp_path / "bare.jpg") == 2
    assert "--record FILE, or --in FOLDER" in capsys.readouterr().err
    assert run("trace", tmp_path / "bare.jpg", "--in", made / "photos") == 1  # where nothing was made


def test_a_trace_tells_the_credentials_of_the_file_that_was_made(made, certificate, tmp_path, capsys):
    picture_of(made, 0, 30).save(tmp_path / "bare.jpg", quality=92)
    out = shutil.copytree(made / "out", tmp_path / "out")
    words = "trace", tmp_path / "bare.jpg", "--in", out, "--model", made / "model.safetensors"
    assert run(*words) == 0
    assert "credentials" not in capsys.readouterr().out
    (signed,) = out.glob("0_*_seed30.png")
    sign_picture(signed)
    assert run(*words) == 0
    assert "Its file has content credentials: Valid." in capsys.readouterr().out


def test_a_picture_of_another_origin_is_not_traced(made, tmp_path, capsys):
    other = photograph(tmp_path / "other.png", (160, 168), seed=1)  # which looks like a recorded one
    assert traced(made, capsys, other, code=1)["found"] is False


def test_a_trace_reports_its_progress_to_its_end_and_can_be_cancelled(made):
    seen = []
    options = {"load": lambda _: load(made / "model.safetensors"), "progress": lambda *at: seen.append(at[0] / at[1])}
    for picture in (picture_of(made, 1, 31), picture_of(made, 1, 31).crop((9, 6, 149, 138)), Image.new("RGB", (40, 9))):
        seen.clear()
        trace(to_tensor(picture), made / "record", **options)
        assert seen == sorted(seen)
        assert seen[-1] == 1
    with pytest.raises(Cancelled):
        trace(to_tensor(picture_of(made, 1, 31)), made / "record", cancelled=lambda: True, **options)


@pytest.mark.parametrize("task", tasks().values(), ids=tasks())
def test_only_what_can_be_traced_is_recorded(task):
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    assert ("--record" in commands[task.name]._option_string_actions) == task.traced


def test_no_phrase_is_in_a_record(made):
    assert b"secret" not in (made / "record").read_bytes()


def write(book, path, count):
    for number in range(count):
        made = Record(input="a", outputs=[str(path)], seeds=[number], model="a", model_sha256="0" * 64)
        assert book.add(made, (8, 8), JobSpec(command="upscale", model="a")) == ""


def in_process(work):
    """Run in a process of its own; return the signal or code that ended it."""
    if (process := os.fork()) == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_record_survives_a_process_that_is_killed_while_it_writes(tmp_path):
    path, book = photograph(tmp_path / "a.png", (8, 8)), RecordFile(tmp_path / "record")
    write(book, path, 2)

    def killed():
        database = sqlite3.connect(book.path)
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO pictures SELECT * FROM pictures")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_process(killed) == -signal.SIGKILL
    write(RecordFile(book.path), path, 1)
    assert [entry.seed for entry in book.entries()] == [0, 1, 0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_write_into_one_record(tmp_path):
    path = photograph(tmp_path / "a.png", (8, 8))
    if (other := os.fork()) == 0:
        write(RecordFile(tmp_path / "record"), path, 10)
        os._exit(0)
    write(RecordFile(tmp_path / "record"), path, 10)
    assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 0
    assert len(RecordFile(tmp_path / "record").entries()) == 20


def test_a_full_disk_loses_no_picture_and_is_told(made, tmp_path, capsys, monkeypatch):
    connect = RecordFile._connect

    def full(self):
        database = connect(self)
        database.execute("PRAGMA max_page_count = 2")
        return database

    words = ("upscale", made / "photos", "--model", made / "model.safetensors", "-o", tmp_path / "out")
    RecordFile(tmp_path / "record")
    monkeypatch.setattr(RecordFile, "_connect", full)
    for number in range(3):
        photograph(tmp_path / "many" / f"{number}.png", (8, 8), seed=number)
    assert run(*words, "--samples", 9, "--temperature", 0.5, "--record", tmp_path / "record") == 1
    said = capsys.readouterr().err
    assert "cannot be written: database or disk is full. Make room" in said
    assert "Results are saved, and not all are in it" in said
    assert len([name for name in names(tmp_path / "out") if name.endswith(".png")]) == 27


def test_what_is_no_record_is_refused_before_the_work(made, tmp_path, capsys):
    (tmp_path / "text").write_text("not a database, but long enough to be read as one" * 9)
    with sqlite3.connect(tmp_path / "foreign") as database:
        database.execute("CREATE TABLE of_another (a)")
    for name, reason in {"text": "cannot be used", "foreign": "not a record", "text/a": "Cannot save"}.items():
        words = ("--model", made / "model.safetensors", "-o", tmp_path / "out", "--record", tmp_path / name)
        assert run("upscale", made / "photos", *words) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(FlowError, match="There is no record"):
        RecordFile(tmp_path / "none", new=False)


def test_candidates_are_found_by_their_looks_resized_mirrored_or_cropped():
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(40, 3, 6, 6, generator=generator)
    pictures = torch.nn.functional.interpolate(coarse, (96, 128), mode="bicubic").clamp(0, 1)
    common = ("a", "0" * 64, 0, 96, 128, {}, 0.0)
    entries = [Entry(str(k), str(k), *common, thumbnail(each[None])) for k, each in enumerate(pictures)]
    half = torch.nn.functional.interpolate(pictures[7:8], (48, 64), mode="bilinear", antialias=True).flip(-1)
    assert candidates(half, entries)[0].entries[0].file == "7"
    found = candidates(pictures[9:10, :, 20:90, 10:110], entries)
    assert next(group.entries[0].file for group in found if group.cropped) == "9"
    assert candidates(torch.full((1, 3, 48, 64), 0.5), entries) == []
