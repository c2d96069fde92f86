"""Very large results, and a disk that is too small, are asked about before the first step."""

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
    assert "b.png: A result would have 240x200 pixels, 0.048 megapixels; --max-megapixels is 0.04." in said
    assert "Go on? [y/N]" in said
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


def test_a_disk_that_is_too_small_needs_confirmation(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=100_000))
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: False))
    assert run(*words) == 1
    assert f"and 0.0 GB are free in {tmp_path / 'out'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
