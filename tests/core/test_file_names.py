"""Names and places of files: any alphabet, any encoding, too long, leading out, not writable."""

import csv
import io
import json
import os
import sys

import pytest

from flowcore.cli.main import COMMANDS, main

from .commands import RECIPE, names, photograph, run
from .digits import write_mnist

NOT_UTF8 = os.fsdecode(b"caf\xe9") if sys.platform == "linux" else "café"


def take_cp1252(monkeypatch):
    """Give a test the streams of PYTHONIOENCODING=cp1252, as Windows' pipes are; returns that of the results."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors=how) for how in ("strict", "backslashreplace")]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    return streams[0]


def test_every_command_takes_names_that_standard_output_has_no_letters_for(model_files, tmp_path, monkeypatch):
    place, models = tmp_path / f"写真 снимки {NOT_UTF8}", tmp_path / "модели"
    photo = photograph(place / f"老 фото {NOT_UTF8}.png", (64, 64))
    small = photograph(place / "малое.png", (32, 32))
    for k in range(3):
        photograph(place / "data" / f"{k} 写真.png", (64, 48), seed=k)
    models.mkdir()
    (place / "рецепт.toml").write_text(RECIPE)
    model = {name: models / f"модель {path.name}" for name, path in model_files.items()}
    for name, path in model.items():
        path.write_bytes(model_files[name].read_bytes())
    out = place / "结果"
    words = {
        "upscale": [photo, "-o", out / "большие", "--record", out / "запись", "--model", model["tiny"]],
        "colorize": [photo, "-o", out, "--model", model["small-colorizer"]],
        "remember": [place / "data", models / "цвета.safetensors"],
        "brighten": [photo, "-o", out, "--model", model["night"]],
        "clean": [photo, "-o", out, "--model", model["restorer"]],
        "repair": [photo, "-o", out, "--model", model["tiny"]],
        "shrink": [photo, "-o", out, "--model", model["both-ways"]],
        "restore": [photo, "-o", out, "--model", model["both-ways"]],
        "faces": [photo, "-o", out, "--model", model["tiny"], "--face-model", model["tiny"], "--factor", 2],
        "sample": ["--out", out / "样品", "--model", model["small-glow"], "--samples", 1],
        "interpolate": [photo, photo, "-o", out, "--model", model["small-glow"], "--frames", 1],
        "score": [place / "data", "-o", out, "--json", out / "числа.json", "--model", model["small-glow"]],
        "convert": [model["tiny"], models / "копия.safetensors"],
        "inspect": [model["tiny"]],
        "models": [],
        "train": [place / "рецепт.toml", "--data", place / "data", "--run", models / "训练"],
        "styles": [model["digits"], models / "стили.safetensors", "--data", write_mnist(place / "цифры", 60)],
        "eval": [place / "data", "--model", model["tiny"], "--samples", 1, "--measures", "psnr", "--json", out / "n"],
        "audit": [photo, small, "--model", model["tiny"], "--map", out / "карта.png"],
        "verify": [out / "样品", "--model", model["small-glow"], "--maps", out / "地图"],
        "trace": [out / "большие", "--record", out / "запись", "--model", model["tiny"]],
        "credentials": ["init"],
    }
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "настройки"))
    assert words.keys() == COMMANDS.keys()
    stdout = take_cp1252(monkeypatch)
    for command, arguments in words.items():
        assert main([command, *map(str, arguments)]) == 0, (command, sys.stderr.flush(), sys.stderr.buffer.getvalue())
    stdout.flush()
    said = stdout.buffer.getvalue().decode("cp1252")
    assert "\\u7ed3\\u679c" in said  # results are named on standard output
    assert len(names(out)) > 10


def test_a_name_that_cannot_be_used_is_a_line_and_not_the_end(model, tmp_path, capsys):
    folder, out = tmp_path / NOT_UTF8, tmp_path / "out"
    for name in ("a.png", f"{'x' * 235}.png", f"{'y' * 215}.png", f"{NOT_UTF8}.png", "z.png"):
        photograph(folder / name, (8, 6))
    (folder / "self.png").symlink_to("self.png")
    words = ["upscale", folder, "-o", out, "--model", model]
    for count in ("4 done", "4 of 6 were there already"):
        assert run(*words) == 3
        said = capsys.readouterr().err
        assert f"{'x' * 235}.png: The name of its result would have 257 bytes; at most 255 fit." in said
        assert "self.png: Cannot read self.png as an image: Too many levels of symbolic links." in said
        assert count in said
        assert ", 2 failed, in " in said
        with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
            made = [row["output"] for row in csv.DictReader(file) if row["output"]]
        assert sorted(made) == sorted(str(path).replace("\udce9", "\\udce9") for path in out.glob("*.png"))
        assert len(made) == 4


def test_scores_of_a_name_that_is_not_utf8_are_found_again(small_glow, tmp_path, capsys):
    folder = tmp_path / NOT_UTF8
    photograph(folder / "a.png", (16, 16))
    for there in (False, True):
        assert run("score", folder, "--model", small_glow, "-o", tmp_path / "scores.csv") == 0
        assert ("1 of 1 were there already" in capsys.readouterr().err) == there


def test_a_name_of_results_does_not_lead_out_of_their_folder(model, tmp_path, stderr_of):
    photo = photograph(tmp_path / "in" / "a.png", (8, 6))
    words = ["upscale", "-o", tmp_path / "out", "--model", model, "--name"]
    for template in ("../{stem}", "{stem}/../../b", f"{tmp_path}/{{stem}}"):
        assert "--name names files in the folder of --out" in stderr_of(*words, template, photo)
    dots = photograph(tmp_path / "in" / "...0001.png", (8, 6))  # whose parts are .. and .0001
    assert "Its result would lie outside of" in stderr_of(*words, "{base}/{frame}b", dots, code=1)
    assert names(tmp_path) == ["in/...0001.png", "in/a.png"]


def test_a_place_that_cannot_be_written_is_named_before_the_work(model_files, tmp_path, monkeypatch, capsys):
    photo = photograph(tmp_path / "in" / "a.png", (16, 16))
    (tmp_path / "file").write_text("no folder")
    place = tmp_path / "file" / "deeper"
    model = {name: ["--model", path] for name, path in model_files.items()}

    def work(*_, **__):
        raise AssertionError("the work has begun")

    for name in ("batches.Worker.__call__", "make.sample", "make.remember", "make.encode", "measure.evaluate_upscaler"):
        monkeypatch.setattr(f"flowcore.cli.{name}", work)
    for name in ("flowcore.cli.models.save", "flowcore.training.loop.train", "flowcore.training.styles.measure_styles"):
        monkeypatch.setattr(name, work)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    for words in (
        ["upscale", photo, "-o", place, *model["tiny"]],
        ["upscale", photo, "-o", place / "a.png", *model["tiny"]],
        ["upscale", photo, "-o", tmp_path / "out", "--manifest", place / "a.csv", *model["tiny"]],
        ["sample", "--out", place, *model["small-glow"]],
        ["interpolate", photo, photo, "-o", place, *model["small-glow"]],
        ["remember", photo, place / "a.safetensors", *model["small-colorizer"]],
        ["score", photo, "-o", place, *model["small-glow"]],
        ["score", photo, "--json", place / "a.json", *model["small-glow"]],
        ["eval", photo.parent, "--json", place / "a.json", *model["tiny"]],
        ["convert", model["tiny"][1], place / "a.safetensors"],
        ["styles", model["digits"][1], place / "a.safetensors", "--data", tmp_path],
        ["train", recipe, "--data", photo.parent, "--run", place],
    ):
        assert main([*map(str, words)]) == 2, words
        assert "Cannot save" in capsys.readouterr().err, words
    assert names(tmp_path) == ["file", "in/a.png", "tiny.toml"]


def test_a_sub_folder_that_cannot_be_made_does_not_end_the_others(model, tmp_path, stderr_of):
    for name in ("a.png", "b.png", f"{'x' * 130}.png"):
        photograph(tmp_path / "in" / name, (8, 6))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "aa").write_text("no folder")
    words = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model]
    assert "1 done, 2 failed" in stderr_of(*words, "--name", "{stem}{stem}/{stem}", code=3)


def test_files_that_workers_of_a_cluster_open_are_absolute(model, tmp_path, monkeypatch):
    works = []

    def execute(_options, units, _is_done, run_of, _bar, **_):
        works.append(run_of(next(iter(units))[0]).worker.spec)
        return []

    monkeypatch.setattr("flowcore.cli.batches.execute", execute)
    monkeypatch.chdir(tmp_path)
    photograph(tmp_path / "a.png", (8, 6))
    (tmp_path / "face.safetensors").write_bytes(model.read_bytes())
    (tmp_path / "guides").mkdir()
    run("upscale", "a.png", "--model", model, "--guide", "guides")
    run("faces", "a.png", "--model", model, "--face-model", "face.safetensors", "--factor", 2)
    assert works[0].guide == tmp_path / "guides"
    assert works[1].face_model == tmp_path / "face.safetensors"
    assert works[1].settings["face_model"] == "face.safetensors"  # as the results say


HOSTILE = "a\x1b[31m\x1b]0;owned\x07\nb\u202e"  # colors and a title for the terminal, another line, reversed text
ESCAPED = "a\\x1b[31m\\x1b]0;owned\\x07\\nb\\u202e"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_do_not_steer_the_terminal(model_files, tmp_path, capsys):
    place = tmp_path / HOSTILE
    photograph(place / f"{HOSTILE}.png", (16, 12))
    (place / f"bad {HOSTILE}.jpg").write_bytes(b"no picture")
    (place / f"{HOSTILE}.txt").write_bytes(b"no picture")
    out, model = tmp_path / "out", ["--model", model_files["tiny"]]
    assert run("upscale", place, "-o", out, *model, "--name", "{stem}") == 3
    results, said = capsys.readouterr()
    assert results == f"{out}/{ESCAPED}.png\n"
    assert said.count(f"bad {ESCAPED}.jpg: Cannot read bad {ESCAPED}.jpg as an image") == 2
    for code, *words in (
        (3, "upscale", place, "-o", out, *model, "--name", "{stem}"),
        (3, "score", place, *model),
        (3, "eval", place, *model, "--measures", "psnr", "--samples", 1),
        (2, "upscale", tmp_path / f"{HOSTILE}?", *model),
        (2, "upscale", place, "-o", out, "--model", place / f"{HOSTILE}.txt"),
    ):
        assert run(*words) == code
        shown = "".join(capsys.readouterr())
        assert "owned" in shown
        assert not {*shown} & {"\x1b", "\x07", "\u202e"}
        assert "\nb" not in shown
    for command, file in (("inspect", ".txt"), ("inspect", ".jpg"), ("train", ".txt")):
        assert main([command, str(place / f"bad {HOSTILE}{file}")]) != 0
        assert not {*capsys.readouterr().err} & {"\x1b", "\x07", "\u202e"}
    assert main(["upscale", f"--{HOSTILE}"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_json_is_exact(model_files, tmp_path, capsys):
    photo, out = photograph(tmp_path / f"{HOSTILE}.png", (16, 12)), tmp_path / "out"
    assert run("upscale", photo, "-o", out, "--model", model_files["tiny"], "--json", "--name", "{stem}") == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["input"], line["outputs"]) == (str(photo), [str(out / photo.name)])
