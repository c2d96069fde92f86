"""Every image file comes through one door, which starts no program, waits for nothing, and reads what it knows."""

import ast
import io
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from flowcore import ImageError
from flowcore.batch import provenance
from flowcore.images import files, opening
from flowcore.images.opening import IMAGE_SUFFIXES, SIGNATURES, open_image, refuse_truncated
from flowcore.training.image_sources import decode_each, find_images

from .commands import photograph, run

ROOT = Path(__file__).resolve().parents[2]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
on_unix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")


def test_images_are_opened_in_one_place():
    found = [
        file.relative_to(ROOT).as_posix()
        for folder in ("flowcore", "nodes", "workflows")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and ast.unparse(node).endswith(("Image.open", "ImageFile.Parser")))
        or (isinstance(node, ast.ImportFrom) and node.module == "PIL.Image")
    ]
    assert found == ["flowcore/images/opening.py"]


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program `gs` in the path that leaves a trace when it is started."""
    trace, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{trace}'\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return trace


@on_unix
def test_no_picture_starts_a_program(tmp_path, ghostscript, model_files, capsys):
    folder, model = tmp_path / "photos", ["--model", model_files["tiny"]]
    good = photograph(folder / "good.png", (16, 12))
    (folder / "a.jpg").write_bytes(EPS)
    assert run("upscale", folder, *model, "-o", tmp_path / "out") == 3
    assert run("score", folder, *model) == 3
    assert run("eval", folder, *model, "--measures", "psnr") in (1, 3)
    assert run("upscale", good, "--guide", folder / "a.jpg", *model, "-o", tmp_path / "guided.png") == 1
    assert "a.jpg as an image: its contents are of none of the formats AVIF, BMP" in capsys.readouterr().err
    reasons = {source.name: reason for source, _, reason in decode_each(find_images(folder), lambda image: image)}
    assert "none of the formats" in reasons["a.jpg"]
    assert files.upright_size(folder / "a.jpg") is None
    with pytest.raises(provenance.ProvenanceError):
        provenance.read(folder / "a.jpg")
    assert not ghostscript.exists()
    with pytest.raises(subprocess.CalledProcessError), Image.open(folder / "a.jpg") as opened:  # Pillow itself does
        opened.load()
    assert ghostscript.exists()


def test_a_format_is_told_by_the_contents(tmp_path):
    Image.init()
    file = tmp_path / "named.png"
    for format in SIGNATURES.keys() & Image.SAVE.keys():  # an old Pillow has no AVIF
        Image.linear_gradient("L").convert("RGB").save(file, format)
        assert files.read(files.read_bytes(file), "x").pixels.shape == (1, 3, 256, 256)
        with open_image(file) as opened:
            assert opened.format == format
    for format in ("ICO", "PCX", "SGI", "EPS", "PDF"):
        Image.new("RGB", (16, 16)).save(file, format)
        with pytest.raises(ImageError, match="its contents are of none of the formats AVIF, BMP, GIF, JPEG"):
            files.read(file.read_bytes(), "x")


def test_suffixes_are_those_of_the_formats():
    Image.init()
    for format, (_, suffixes) in SIGNATURES.items():
        for suffix in suffixes:
            assert Image.EXTENSION.get(suffix) == format
    assert {".jpg", ".tif", ".avif", ".tga"} <= IMAGE_SUFFIXES


@on_unix
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.png"))
        kinds = {"pipe": "a pipe", "link": "a device", "folder": "a folder", "socket": "a socket"}
        for name, kind in kinds.items():
            path = tmp_path / f"{name}.png"
            with pytest.raises(ImageError, match=f"Cannot read {name}.png as an image: it is {kind}, not a file"):
                files.read_bytes(path)
            assert files.upright_size(path) is None
            with pytest.raises(provenance.ProvenanceError, match=f"it is {kind}"):
                provenance.read(path)
    good = photograph(tmp_path / "good" / "a.png", (8, 6))
    (tmp_path / "linked.png").symlink_to(good)
    assert files.read_bytes(tmp_path / "linked.png") == good.read_bytes()


@on_unix
def test_guides_that_never_end_are_refused(tmp_path, model_files, capsys):
    photo = photograph(tmp_path / "a.png", (16, 12))
    os.mkfifo(tmp_path / "pipe.png")
    for guide, kind in ((tmp_path / "pipe.png", "pipe"), ("/dev/zero", "device")):
        words = ["--model", model_files["tiny"], "-o", tmp_path / "out.png"]
        assert run("upscale", photo, "--guide", guide, *words) == 1
        assert f"as an image: it is a {kind}, not a file." in capsys.readouterr().err


def resident():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@on_unix
def test_a_large_file_is_looked_at_before_it_is_read(tmp_path):
    for start, reason in ((b"", "its contents are of none"), (b"\xff\xd8\xff\xe0", "are more than 2147483648")):
        file = tmp_path / "a.jpg"
        file.write_bytes(start)
        os.truncate(file, 2**32)  # a hole
        before = resident()
        with pytest.raises(ImageError, match=reason):
            files.read_bytes(file)
        assert resident() - before < 2**26


def test_memory_is_asked_for_before_pixels_are_decoded(monkeypatch):
    Image.new("RGB", (3000, 2000)).save(file := io.BytesIO(), "PNG")
    monkeypatch.setattr(opening, "free_memory", lambda device: 10**8)
    with pytest.raises(ImageError, match=r"its 3000x2000 pixels take up to 0\.4 GB to read, and 0\.1 GB are free"):
        files.read(file.getvalue(), "x")
    with pytest.raises(ImageError, match="its 3000x2000 pixels take"):
        files.read_middle(file.getvalue(), "x", 8)
    first, *others = (Image.new("RGB", (1000, 1000), (25 * number, 0, 0)) for number in range(10))
    first.save(file := io.BytesIO(), "GIF", save_all=True, append_images=others)
    with pytest.raises(ImageError, match=r"its 10 frames take up to 0\.6 GB"):
        files.read_frames(file.getvalue(), "x")


def test_more_pixels_than_the_limit_are_refused_whatever_pillow_was_told(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(opening, "MAX_PIXELS", 99)
    Image.new("L", (10, 10)).save(file := io.BytesIO(), "PNG")
    with pytest.raises(ImageError, match="10x10 are more than 99 pixels"):
        files.read(file.getvalue(), "x")


def test_a_host_that_changes_pillows_setting_meanwhile_is_not_disturbed(monkeypatch):
    """It reads a truncated file again: sets True, reads, and restores what was there before."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    with refuse_truncated():
        assert not ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False  # not True, as it was when the reader came
