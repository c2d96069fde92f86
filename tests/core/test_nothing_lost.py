"""Results of the command line: names that tell what made them, and files that are never replaced unasked."""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as save_file

import flowcore
from flowcore.batch.folders import Job, Outputs
from flowcore.batch.provenance import read
from flowcore.batch.tables import COLUMNS
from flowcore.cli.main import main
from flowcore.cli.output import ProgressBar
from flowcore.engine.progress import duration
from flowcore.images import files
from flowcore.models.identity import model_sha256

from .commands import names, photograph, pixels, run


@pytest.fixture
def models(model_files):
    """The head of a command that uses a small model."""
    return lambda name, command="upscale": [command, "--model", model_files[name]]


@pytest.fixture
def photo(tmp_path):
    return photograph(tmp_path / "in" / "photo.png", (8, 6))


def test_names_tell_what_made_them(models, photo, tmp_path, monkeypatch):
    monkeypatch.setattr("flowcore.device._cpu_has_bfloat16", lambda: True)
    out, samples = tmp_path / "out", tmp_path / "samples"
    for model, *options in (
        ("tiny",),
        ("other",),
        ("tiny", "--temperature", 0.3, "--calm-edges", 0.5),
        ("tiny", "--precision", "auto"),
        ("tiny", "--seed", 7, "--samples", 2),
        ("tiny", "--format", "jpeg"),
    ):
        assert run(*models(model), photo, "-o", out, *options) == 0
    assert names(out) == [
        "photo_other_tau0.8_seed0.png",
        "photo_tiny_tau0.3_calm0.5_seed0.png",
        "photo_tiny_tau0.8_bfloat16_seed0.png",
        "photo_tiny_tau0.8_seed0.jpg",
        "photo_tiny_tau0.8_seed0.png",
        "photo_tiny_tau0.8_seed7.png",
        "photo_tiny_tau0.8_seed8.png",
    ]
    assert read(out / names(out)[2])[0].settings["precision"] == "bfloat16"
    wide = ["--size", 32, 16, "--precision", "bfloat16"]
    assert run(*models("small-glow", "sample"), "--samples", 1, "--out", samples, *wide) == 0
    assert names(samples) == ["small-glow_32x16_tau0.7_bfloat16_seed0.png"]


# Command to a model, options that change no pixel, and those that change some; brighten and repair go as colorize does.
COMMANDS = {
    "upscale": ("tiny", ["--tile", 64], ["--bits", 16]),
    "colorize": ("color", [], ["--saturation", 0.5]),
    "shrink": ("both-ways", [], None),
    "restore": ("both-ways", ["--tile", 64], None),
    "sample": ("small-glow", [], None),
    "interpolate": ("small-glow", [], None),
}


def given(command, photo):
    """What a command makes one picture of."""
    return {"sample": ["--samples", 1], "interpolate": [photo, photo, "--frames", 1]}.get(command, [photo])


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_there_is_checked(models, photo, tmp_path, capsys, command):
    model, same, other = COMMANDS[command]
    out = tmp_path / "out"

    def make(*options):
        code = run(*models(model, command), *given(command, photo), "-o", out, *options)
        return code, capsys.readouterr().err

    assert make()[0] == 0
    file = out / names(out)[0]
    whole, made = file.read_bytes(), file.stat().st_mtime_ns

    def refused(words, *options):
        before = file.read_bytes()
        code, said = make(*options)
        assert code == 1
        assert words in said
        assert file.read_bytes() == before

    for options in ([], same):
        code, said = make(*options)
        assert code == 0
        assert "1 of 1 were there already" in said
        assert file.stat().st_mtime_ns == made
    for content in (b"", whole[: whole.index(b"IDAT") + 12]):  # empty or cut off: made again
        file.write_bytes(content)
        assert make()[0] == 0
        assert file.read_bytes() == whole
    with Image.open(file) as opened:
        exif, small = opened.getexif(), opened.resize((3, 3))
    small.save(file, exif=exif)
    refused("resized since it was made. Replace it with --again")
    assert make("--again")[0] == 0
    assert file.read_bytes() == whole
    if other:
        refused("with other settings or from another picture. Replace it with --again", *other)
        assert make(*other, "--again")[0] == 0
        assert file.read_bytes() != whole
    small.save(file)  # of another program
    for options in ([], ["--again"]):
        refused("flowcore did not make it", *options)
    file.unlink()
    file.mkdir()
    assert make("--again")[0] == (2 if command in ("sample", "interpolate") else 1)


def test_another_picture_of_the_same_name(models, photo, tmp_path, capsys):
    out, before = tmp_path / "out.png", None
    for _ in range(2):
        assert run(*models("tiny"), photo, "-o", out) == (1 if before else 0)
        assert before in (None, out.read_bytes())
        before = out.read_bytes()
        photograph(photo, (8, 6), seed=5)
    assert "from another picture" in capsys.readouterr().err
    assert run(*models("tiny"), photo, "-o", out, "--again") == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_name_is_a_file(models, photo, tmp_path, command, stderr_of):
    target, several = tmp_path / "out" / "result.png", tmp_path / "several"
    words = [*models(COMMANDS[command][0], command), *given(command, photo)]
    assert run(*words, "-o", target) == 0
    assert names(tmp_path / "out") == ["result.png"]
    assert pixels(target).isfinite().all()
    if command not in ("sample", "interpolate"):
        photograph(photo.with_name("second.png"), (8, 6))
        assert "is one file, for 2 images" in stderr_of(*words[:3], photo.parent, "-o", tmp_path / "all.png")
    if command != "shrink":
        assert run(*words, "-o", several / "a.png", "--frames" if command == "interpolate" else "--samples", 2) == 0
        ends = ("000", "001") if command == "interpolate" else ("seed0", "seed1")
        assert names(several) == [f"a_{end}.png" for end in ends]


def test_formats_of_named_files(models, photo, tmp_path, stderr_of):
    assert run(*models("tiny"), photo, "-o", tmp_path / "a.webp") == 0
    with Image.open(tmp_path / "a.webp") as opened:
        assert (opened.format, opened.size) == ("WEBP", (32, 24))
    for command, words, said in (
        (models("tiny"), ["b.png", "--format", "jpeg"], "b.png is not the name of a jpeg file"),
        (models("both-ways", "shrink"), ["b.jpg"], "PNG files, which lose nothing"),
        (models("tiny"), ["b.bmp"], "Results are written as .png, .jpg, .webp, .tif, .jpeg, .tiff; got b.bmp."),
    ):
        assert said in stderr_of(*command, photo, "-o", tmp_path / words[0], *words[1:])
        assert not (tmp_path / words[0]).exists()


def test_model_files_are_replaced_on_request_only(models, tmp_path, capsys):
    target = tmp_path / "out.safetensors"

    def make(*options, command="convert"):
        return main([command, str(models("digits")[2]), str(target), *options])

    for foreign in (b"my only copy", save_file({"weight": torch.zeros(2)})):
        target.write_bytes(foreign)
        for command, *data in (["convert"], ["styles", "--data", str(tmp_path)]):
            assert make("--again", *data, command=command) == 2
            assert "is not a model file of flowcore. It is kept." in capsys.readouterr().err
            assert target.read_bytes() == foreign
    target.write_bytes(b"")  # of a program that was killed
    assert make() == 0
    made = target.stat().st_mtime_ns
    assert make() == 2
    assert "Replace it with --again" in capsys.readouterr().err
    assert target.stat().st_mtime_ns == made
    assert make("--again") == 0
    assert target.stat().st_mtime_ns != made


def test_numbers_replace_numbers_only(models, photo, tmp_path, stderr_of):
    numbers = tmp_path / "numbers.json"
    words = [*models("small-glow", "score"), photo, "--json", numbers]
    for _ in range(2):
        assert run(*words) == 0
    for foreign in ('{"name": "my package"}', '{"compilerOptions": {"strict": true}}', '[{"id": 1}]', "no JSON"):
        numbers.write_text(foreign)
        assert "is not a file of numbers of flowcore" in stderr_of(*words)
        assert numbers.read_text() == foreign


def test_a_batch_has_a_manifest_and_a_last_line(models, tmp_path, capsys, stderr_of):
    folder, out = tmp_path / "in", tmp_path / "out"
    photograph(folder / "a.png", (8, 6), seed=1)
    frames = [Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (90, 180)]
    frames[0].save(folder / "frames.gif", save_all=True, append_images=frames[1:])
    (folder / "bad.png").write_text("no picture")
    words = [*models("tiny"), folder, "-o", out, "--samples", 2]

    def rows():
        with (out / "manifest.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    for options in ([], [], ["--again"]):  # one row per input and output, however often it ran
        assert run(*words, *options) == 3
        said = capsys.readouterr().err
        assert [(Path(row["input"]).name, row["seed"]) for row in rows() if row["output"]] == [
            (name, seed) for name in ("a.png", "frames.gif") for seed in ("0", "1")
        ]
        assert len(rows()) == 5
    assert "frames.gif: It has 2 frames" in said  # notes name their picture
    assert re.search(r"1/3 a.png: 100%, \S+ s\n", said)
    assert re.search(r"\n2 done, 1 failed, in \S+ s. Frames or pages of a file that were left out: 1.\n$", said)
    assert tuple(rows()[0]) == COLUMNS
    made = [row for row in rows() if row["output"]]
    assert all((out / os.path.relpath(row["output"], out)).is_file() for row in made)
    assert {row["model_sha256"] for row in rows()} == {model_sha256(flowcore.load(models("tiny")[2]))}
    assert all(float(row["seconds"]) > 0 for row in made)
    assert "only the first is used" in made[2]["note"]
    (failed,) = (row for row in rows() if not row["output"])
    assert failed["input"] == str(folder / "bad.png")
    assert "its contents are of none of the formats" in failed["note"]

    photograph(folder / "bad.png", (8, 6))
    assert run(*words) == 0
    assert len([row for row in rows() if row["output"]]) == len(rows()) == 6
    (folder / "bad.png").unlink()
    capsys.readouterr()
    assert run(*words) == 0
    assert re.search(r"\n?2 of 2 were there already \(--again replaces them\), in \S+ s.\n$", capsys.readouterr().err)
    (out / "manifest.csv").write_text("my own list\n")
    assert "Choose another file with --manifest" in stderr_of(*words, "--again")
    assert (out / "manifest.csv").read_text() == "my own list\n"
    assert run(*words, "--again", "--manifest", tmp_path / "list.csv") == 0
    assert len((tmp_path / "list.csv").read_text().splitlines()) == 5


def test_a_log_file_reports_an_image_that_takes_long_and_the_rest_from_the_third_on(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    jobs = [Job(Path(f"{name}.png")) for name in "abcd"]
    bar = ProgressBar(dict.fromkeys(job.source for job in jobs))
    for job in jobs:
        bar.start(job.source)
        for _ in range(4):
            now[0] += 12.5
            bar.update(round(now[0] % 50 or 50), 50)
        bar.finish(job, Outputs([], 50.0))
    bar.close()
    said = capsys.readouterr().err.splitlines()
    assert said[:4] == [f"{line}{end}" for line in ("1/4 a.png: ", "2/4 b.png: ") for end in ("76%", "100%, 50 s")]
    assert said[4:6] == ["3/4 c.png: 76%", "3/4 c.png: 100%, 50 s, about 50 s to go"]
    assert said[6:] == ["4/4 d.png: 76%, about 12 s to go", "4/4 d.png: 100%, 50 s", "4 done, in 3 min 20 s."]

    small, large = photograph(tmp_path / "small.png", (10, 10)), photograph(tmp_path / "large.png", (20, 20))
    others = [photograph(tmp_path / f"{k}.png", (10, 10)) for k in range(2)]
    bar = ProgressBar({path: files.upright_size(path) for path in (small, *others, large)})
    for path in (small, *others):
        now[0] += 5
        bar.finish(Job(path), Outputs([], 5.0))
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "3/4 1.png: 100%, 5.0 s, about 20 s to go"  # of four times the pixels
    shown = [duration(seconds) for seconds in (0.04, 9.96, 59.4, 59.7, 61, 119.7, 599, 3599.7, 7500)]
    wanted = ["0.0 s", "10 s", "59 s", "1 min 0 s", "1 min 1 s", "2 min 0 s", "9 min 59 s", "1 h 0 min", "2 h 5 min"]
    assert shown == wanted
