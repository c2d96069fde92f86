"""One reader of image files: every command sees the same pixels in the same zoo of files, and names what it skips."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from builders import build_tiny, build_upscaler
from PIL import Image

import flowcore
from flowcore.checkpoints.file import save
from flowcore.cli.main import main
from flowcore.images import files
from flowcore.training.image_sources import open_pixel_cache

from .photographs import recipe_of_photographs

REFUSED = {
    "float.tif": "it holds floating-point numbers of unknown range",
    "text.png": "Pillow does not know its format",
    "empty.png": "(Pillow does not know its format|it is empty)",
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
    for format in ("png", "tiff"):
        name = f"rgb16-{format}{files.SUFFIXES[format]}"
        (folder / name).write_bytes(
            files.encode(torch.from_numpy(rgb.copy()).permute(2, 0, 1) / 255, format=format, bits=16)
        )
        shown[name] = rgb
    cmyk = Image.fromarray(255 - rgb).convert("CMYK")
    put("cmyk.tif", cmyk, np.asarray(cmyk.convert("RGB")))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned to the right
    put("rotated.png", Image.fromarray(np.rot90(rgb).copy()), rgb, exif=exif)
    palette = Image.fromarray(rgb).quantize(16)
    put("palette.png", palette, np.asarray(palette.convert("RGB")), transparency=3)
    put("gray-alpha.png", Image.fromarray(np.concatenate([gray, 255 - gray], 2)), gray)
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


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    flows = {
        "upscale": build_upscaler(steps=1, hidden=4, encoder_blocks=1, stacked_blocks=(0,)),
        "colorize": build_tiny("colorizer", perturb=0.02),
        "brighten": build_tiny("llflow", perturb=0.02),
        "rescale": build_tiny("hcflow", rescaling=True, perturb=0.02, steps=1),
        "density": build_tiny("glow", steps=1, hidden=4, image_size=16, mixing="conv"),
    }
    for name, flow in flows.items():
        save(flow, folder / f"{name}.safetensors", provenance={"licence": "CC0-1.0", "source": "a test"})
    return lambda name: ["--model", str(folder / f"{name}.safetensors"), "--device", "cpu"]


def rgb_of(file):
    return files.read(file.read_bytes(), file.name).pixels[:, :3]


def check_names(text):
    for name, reason in REFUSED.items():
        assert re.search(rf"{re.escape(name)}.*{reason}", text), f"{name} is not named in:\n{text}"


MAKERS = {
    "upscale": "upscale",
    "colorize": "colorize",
    "brighten": "brighten",
    "shrink": "rescale",
    "restore": "rescale",
}


@pytest.mark.parametrize("command", MAKERS)
def test_commands_that_make_images(zoo, models, tmp_path, capsys, command):
    folder, plain, shown = zoo
    bits = [] if command in ("shrink", "restore") else ["--bits", "8"]  # these two write 8 bits always
    words = [*models(MAKERS[command]), *bits, "-o"]
    assert main([command, str(folder), *words, str(tmp_path / "zoo")]) == 3
    check_names(capsys.readouterr().err)
    assert main([command, str(plain), *words, str(tmp_path / "plain")]) == 0
    made = {file.name: file for file in (tmp_path / "zoo").glob("*.png")}
    expected = {file.name: file for file in (tmp_path / "plain").glob("*.png")}
    assert len(made) == len(shown)
    for name in shown:
        start = f"{name.partition('.')[0]}_"
        (one,), (other,) = (
            [file for key, file in those.items() if key.startswith(start)] for those in (made, expected)
        )
        assert torch.equal(rgb_of(one), rgb_of(other)), name


@pytest.mark.parametrize("command", ["upscale", "brighten"])
def test_gray_files_stay_gray(zoo, models, tmp_path, capsys, command):
    folder, _, shown = zoo
    channels = {"gray16.png": 1, "gray16-tiff.tif": 1, "black-and-white.png": 1, "gray-alpha.png": 4}
    flat = tmp_path / "flat.png"
    Image.fromarray(np.array(shown["gray16.png"])).save(flat)  # gray in three channels
    for bits in ("8", "16"):
        out = tmp_path / bits
        words = [*map(str, map(folder.joinpath, channels)), str(flat), "-o", str(out), "--bits", bits]
        assert main([command, *words, *models(command), "--temperature", "0.5"]) == 0
        assert "flat.png: The image is gray, in three equal channels" in capsys.readouterr().err
        for name, expected in {**channels, "flat.png": 3}.items():
            file = next(out.glob(f"{name.partition('.')[0]}_*.png"))
            with Image.open(file) as opened:
                assert len(opened.getbands()) == expected, name
            red, green, blue = rgb_of(file)[0]
            assert torch.equal(red, green), name
            assert torch.equal(red, blue), name


@pytest.mark.parametrize("kind", ["upscale", "colorize", "density"])
def test_score(zoo, models, tmp_path, capsys, kind):
    folder, plain, shown = zoo
    assert main(["score", str(folder), *models(kind), "-o", str(tmp_path / "zoo.csv")]) == 3
    check_names(capsys.readouterr().err)
    main(["score", str(plain), *models(kind), "-o", str(tmp_path / "plain.csv")])

    def bits(file):
        rows = csv.DictReader(file.read_text().splitlines())
        return {row["image"]: row["bits_per_dim"] or row["error"] for row in rows}

    scored, expected = bits(tmp_path / "zoo.csv"), bits(tmp_path / "plain.csv")
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
        words = ["eval", str(place), *models(kind), "--samples", "2", "--json", str(file)]
        words += ["--measures", "psnr,gain,bits_per_dim"] if kind == "upscale" else []
        assert main(words) == (3 if place is folder or kind == "upscale" else 0)  # something was left out
        numbers.append(next(iter(json.loads(file.read_text()).values())))
        text = capsys.readouterr().err
        if place is folder:
            check_names(text)
        for name in TINY if kind == "upscale" else ():
            assert re.search(rf"{name}.*too small", text)
    assert json.dumps(numbers[0]) == json.dumps(numbers[1])


def test_eval_of_nothing_readable(models, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.png").write_text("no picture")
    for kind in ("upscale", "colorize", "density"):
        assert main(["eval", str(tmp_path / "in"), *models(kind)]) == 1
        assert "None of the 1 images" in capsys.readouterr().err


def test_interpolate(zoo, models, tmp_path, capsys):
    folder, plain, shown = zoo
    for name in [*shown, *REFUSED]:
        made = []
        for file in [folder / name, (plain / name).with_suffix(".png")][: 1 if name in REFUSED else 2]:
            out = tmp_path / file.parent.name / f"frames of {name}".replace(".", " ")
            words = ["interpolate", str(file), str(plain / "rotated.png"), "--frames", "1", *models("density")]
            assert main([*words, "--out", str(out)]) == (name in REFUSED)
            made += [rgb_of(frame) for frame in out.glob("*.png")]
        if name in REFUSED:
            assert re.search(rf"Cannot read {name} as an image: .*{REFUSED[name]}", capsys.readouterr().err)
        else:
            assert torch.equal(*made), name


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
    assert torch.equal(eight, flowcore.images.files.to_uint8(files.read(data, "a").pixels[0]))
