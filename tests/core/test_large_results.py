"""Very large results, and a disk that may be too small, are asked about or told before the first step."""

import sys
import types
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from flowcore.batch.job import JobSpec
from flowcore.cli import batches
from flowcore.cli.main import main
from flowcore.images import files

from .commands import photograph, run


@pytest.fixture
def words(model, tmp_path):
    photograph(tmp_path / "in" / "a.png", (16, 12))
    photograph(tmp_path / "in" / "b.png", (60, 50))
    return ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model]


def test_the_size_of_an_image_is_read_from_its_header(tmp_path, monkeypatch):
    Image.new("RGB", (60, 50)).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[0x112] = 6
    Image.new("RGB", (60, 50)).save(tmp_path / "b.png", exif=turned)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("A whole file was read."))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("Pixels were decoded."))
    spec = JobSpec(command="upscale", model="", scale=4)
    assert (files.upright_size(tmp_path / "a.png"), spec.size_of(tmp_path / "a.png")) == ((50, 60), (200, 240))
    assert files.upright_size(tmp_path / "b.png") == (60, 50)


def test_help_states_the_limit(capsys):
    with pytest.raises(SystemExit):
        main(["upscale", "--help"])
    assert "0: never ask (default: 100)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("answer", ["y\n", "\n"])
def test_too_many_megapixels_need_confirmation(words, tmp_path, monkeypatch, capsys, answer):
    asked = types.SimpleNamespace(isatty=lambda: True, readline=lambda: answer)
    monkeypatch.setattr(sys, "stdin", asked)
    code = run(*words, "--max-megapixels", 0.04)
    said = capsys.readouterr().err
    assert "b.png: A result would have 240x200 pixels, 0.048 megapixels" in said
    assert "Go on?" in said
    assert code == (answer != "y\n")
    assert (tmp_path / "out").exists() == (answer == "y\n")
    assert run(*words, "--max-megapixels", 0, "--again") == 0


def test_without_a_terminal_the_other_results_are_made(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: False))
    assert run(*words, "--max-megapixels", 0.04) == 3
    assert f"{tmp_path / 'in' / 'b.png'}: A result would have 240x200 pixels" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a_tiny_tau0.8_seed0.png"]
    rows = (tmp_path / "out" / "manifest.csv").read_text().splitlines()
    assert ["a.png" in row for row in rows[1:]] == [True, False]
    assert "megapixels" in rows[2]


def in_a_terminal(monkeypatch, answer=None, *, free=100_000):
    """Let a disk have little space, and a person answer; None: there is nobody."""
    answers = types.SimpleNamespace(isatty=lambda: answer is not None, readline=lambda: answer)
    monkeypatch.setattr(sys, "stdin", answers)
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=free))


def test_a_disk_that_may_be_too_small_is_asked_about_or_told_where_nobody_is(words, tmp_path, monkeypatch, capsys):
    in_a_terminal(monkeypatch, "\n")
    assert run(*words) == 1
    assert "100.0 kB are free" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    in_a_terminal(monkeypatch)
    assert run(*words) == 0
    assert "may need 137.9 kB, and 100.0 kB are free" in capsys.readouterr().err
    assert len([*(tmp_path / "out").glob("*.png")]) == 2


@pytest.mark.parametrize("limit", [100, 0.04])
def test_yes_answers_every_question(words, tmp_path, monkeypatch, capsys, limit):
    in_a_terminal(monkeypatch, "\n")
    assert run(*words, "--yes", "--max-megapixels", limit) == 0
    assert "Go on?" not in capsys.readouterr().err
    assert len([*(tmp_path / "out").glob("*.png")]) == 2


@pytest.mark.parametrize(("kind", "fits"), [("jpeg", True), ("webp", True), ("tiff", False)])
def test_the_space_that_results_need_is_that_of_their_format(words, monkeypatch, capsys, kind, fits):
    in_a_terminal(monkeypatch)
    assert run(*words, "--format", kind) == 0
    assert ("may need" in capsys.readouterr().err) == (not fits)


def test_sizes_have_the_unit_that_fits():
    sizes = {7: "7 bytes", 999: "999 bytes", 1000: "1.0 kB", 2_360_000: "2.4 MB", 5.2e9: "5.2 GB"}
    assert [batches._bytes(count) for count in sizes] == [*sizes.values()]
