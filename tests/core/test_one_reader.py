"""One reader of image files: every command sees the same pixels in the same zoo of files, and names what it skips."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from flowcore.images import files
from flowcore.training.image_sources import open_pixel_cache

from .commands import run
from .photographs import recipe_of_photographs

REFUSED = {
    "float.tif": "it holds floating-point numbers of unknown range",
    "text.png": "its contents are of none of the formats",
    "empty.png": "it is empty",
    "cut.png": "(truncated|broken)",
}
TINY = ("one.png", "two.png", "three.png")  # 1x1, 2x1 and 3x3 pixels


def colors(height=8, width=12, channels=3, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, channels), dtype=np.uint8)
    smooth = Image.fromarray(coarse if channels > 1 else coarse[:, :, 0]).resize((width, height), 3)
    return np.asarray(smooth).reshape(height, width, channels)


def write_zoo(folder, plain):
    """Write files of every kind into a folder, and what they show as plain PNG files into another."""
    folder.mkdir()
    plain.mkdir()
    shown = {}
    rgb, gray = colors(), colors(channels=1, seed=1)

    def put(name, image, shows, **options):
        image.save(folder / name, **options)
        shown[name] = np.broadcast_to(shows, (*shows.shape[:2], 3))

    deep = gray[:, :, 0].astype(np.uint16) * 257
    put("gray16.png", Image.fromarray(deep), gray)
    put("gray16-tiff.tif", Image.fromarray(deep), gray)
    cmyk = Image.fromarray(255 - rgb).convert("CMYK")
    put("cmyk.tif", cmyk, np.asarray(cmyk.convert("RGB")))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned to the right
    put("rotated.png", Image.fromarray(np.rot90(rgb).copy()), rgb, exif=exif)
    palette = Image.fromarray(rgb).quantize(16)
    put("palette.png", palette, np.asarray(palette.convert("RGB")), transparency=b"\xff\xff\xc0")
    put("gray-alpha.png", Image.fromarray(np.concatenate([gray, 255 - gray // 2], 2)), gray)
    put("black-and-white.png", Image.fromarray(gray[:, :, 0] > 127), np.where(gray > 127, 255, 0).astype(np.uint8))
    for name, (height, width) in zip(TINY, ((1, 1), (1, 2), (3, 3)), strict=True):
        put(name, Image.fromarray(rgb[:height, :width]), rgb[:height, :width])
    for name, pixels in shown.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save((plain / name).with_suffix(".png"))
    Image.fromarray(rgb[:, :, 0].astype(np.float32)).save(folder / "float.tif")
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    whole = (folder / "rotated.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return shown


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    place = tmp_path_factory.mktemp("zoo")
    return place / "zoo", place / "plain", write_zoo(place / "zoo", place / "plain")


@pytest.fixture
def models(model_files):
    return lambda name: ["--model", model_files[MODELS[name]]]


def rgb_of(file):
    return files.read(file.read_bytes(), file.name).pixels[:, :3]


def check_names(text):
    for name, reason in REFUSED.items():
        assert re.search(rf"{re.escape(name)}.*{reason}", text), f"{name} is not named in:\n{text}"


def made_of(folder, name):
    """The result of a file."""
    (file,) = folder.glob(f"{name.partition('.')[0]}_*.png")
    return file


MODELS = {"upscale": "tiny", "colorize": "color", "shrink": "both-ways", "density": "small-glow"}


@pytest.mark.parametrize("command", ["upscale", "colorize", "shrink"])
def test_commands_that_make_images(zoo, models, tmp_path, capsys, command):
    folder, plain, shown = zoo
    bits = [] if command == "shrink" else ["--bits", 8]  # which writes 8 bits always
    words = [*models(command), *bits, "-o"]
    assert run(command, folder, *words, tmp_path / "zoo") == 3
    check_names(capsys.readouterr().err)
    assert run(command, plain, *words, tmp_path / "plain") == 0
    assert len([*(tmp_path / "zoo").glob("*.png")]) == len(shown)
    for name in shown:
        made, expected = (rgb_of(made_of(tmp_path / place, name)) for place in ("zoo", "plain"))
        assert torch.equal(made, expected), name


def test_gray_files_stay_gray(zoo, models, tmp_path, capsys):
    folder, _, shown = zoo
    channels = {"gray16.png": 1, "gray16-tiff.tif": 1, "black-and-white.png": 1, "gray-alpha.png": 2}
    flat = tmp_path / "flat.png"
    Image.fromarray(np.array(shown["gray16.png"])).save(flat)  # gray in three channels
    for bits in (8, 16):
        out = tmp_path / str(bits)
        words = [*map(folder.joinpath, channels), flat, "-o", out, "--bits", bits, *models("upscale")]
        assert run("upscale", *words) == 0
        assert "gray" not in capsys.readouterr().err.replace("gray16", "").replace("gray-alpha", "")
        for name, expected in {**channels, "flat.png": 3}.items():
            file = made_of(out, name)
            assert {0: 1, 4: 2, 2: 3, 6: 4}[file.read_bytes()[25]] == expected, name  # the color type of a PNG
            assert (rgb_of(file) == rgb_of(file)[:, :1]).all(), name


@pytest.mark.parametrize("kind", ["upscale", "colorize", "density"])
def test_score(zoo, models, tmp_path, capsys, kind):
    folder, plain, shown = zoo

    def bits(place):
        code = run("score", place, *models(kind), "-o", tmp_path / f"{place.name}.csv")
        rows = csv.DictReader((tmp_path / f"{place.name}.csv").read_text().splitlines())
        return code, {row["image"]: row["bits_per_dim"] or row["error"] for row in rows}

    code, scored = bits(folder)
    assert code == 3
    check_names(capsys.readouterr().err)
    expected = bits(plain)[1]
    for name in shown:
        ours, plainly = scored[str(folder / name)], expected[str((plain / name).with_suffix(".png"))]
        assert ours.replace(name, "") == plainly.replace(name.replace(".tif", ".png"), ""), name
        assert plainly[0].isdigit() or (name in TINY and kind == "upscale" and "at least" in plainly)


@pytest.mark.parametrize("kind", ["upscale", "colorize", "density"])
def test_eval(zoo, models, tmp_path, capsys, kind):
    folder, plain, _ = zoo
    numbers = []
    for place in (folder, plain):
        file = tmp_path / f"{place.name}.json"
        words = ["eval", place, *models(kind), "--samples", 2, "--json", file]
        words += ["--measures", "psnr,gain,bits_per_dim"] if kind == "upscale" else []
        assert run(*words) == (3 if place is folder or kind == "upscale" else 0)  # something was left out
        numbers.append(next(iter(json.loads(file.read_text()).values())))
        out, text = capsys.readouterr()
        assert "| set |" in out
        if place is folder:
            check_names(text)
            assert re.search(r"\d of the images could not be measured", text)
        for name in TINY if kind == "upscale" else ():
            assert re.search(rf"{name}.*too small", text)
    assert json.dumps(numbers[0]) == json.dumps(numbers[1])


def test_eval_of_nothing_readable(models, tmp_path, stderr_of):
    (tmp_path / "text.png").write_text("no picture")
    for kind in ("upscale", "colorize", "density"):
        assert "None of the 1 images" in stderr_of("eval", tmp_path, *models(kind), code=1)


def test_training(zoo, tmp_path):
    folder, _, shown = zoo
    cache = open_pixel_cache(folder, tmp_path / "cache", recipe_of_photographs(1))
    assert {entry.name for entry in cache.entries} == set(shown)
    for entry in cache.entries:
        assert np.array_equal(cache.images(entry)[0], shown[entry.name]), entry.name
    check_names("\n".join(cache.skipped))


def test_files_of_half_a_step_round_alike():
    """A 16-bit file between two steps of 8 bits is the same for those who read all bits and those who read 8."""
    deep = torch.arange(0, 65536, 97).float().reshape(1, 1, -1).expand(3, 1, -1) / 65535
    data = files.encode(deep, bits=16)
    eight = torch.from_numpy(np.array(files.read_rgb(data, "a"))).permute(2, 0, 1)
    assert torch.equal(eight, files.to_uint8(files.read(data, "a").pixels[0]))
