"""The command line, run as people run it: words in, files and sentences out."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import build_tiny, build_upscaler, srflow_checkpoint
from PIL import Image

import flowcore
from flowcore.checkpoints import catalog
from flowcore.checkpoints.file import save
from flowcore.cli.main import main
from flowcore.errors import FlowError
from flowcore.evaluation.upscaling import MEASURES
from flowcore.images import files
from flowcore.images.color import luma
from flowcore.provenance import fingerprint
from flowcore.provenance import read as read_provenance
from flowcore.tasks.colorize import colorize, transfer_palette
from flowcore.tasks.hints import hints_from_points
from flowcore.tasks.ranking import ranked
from flowcore.tasks.upscale import sampling_settings, upscale
from flowcore.transforms import ActNorm

from .digits import write_mnist

RECIPE = """
name = "tiny"
architecture = "srflow"
validation = 1
checkpoint_every = 2
init_batch = 8
precision = "float32"
model = {steps=1, hidden=4, encoder_blocks=1, encoder_width=4, encoder_growth=2, stacked_blocks=[], residual=true}
stages = [
    {name="encoder", objective="l1", steps=2, batch=2, crop=32},
    {name="flow", objective="likelihood", steps=2, batch=2, crop=32},
]
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    small = {"steps": 1, "hidden": 4, "encoder_blocks": 1, "encoder_width": 4, "encoder_growth": 2}
    flow = build_tiny("srflow", **small, stacked_blocks=(0,), residual=True)
    with torch.no_grad():  # as in trained models, most latents mean pictures: the guard looks on
        next(m for m in flow.levels.modules() if isinstance(m, ActNorm)).log_scale += 3
    save(flow, path, provenance={"licence": "CC0-1.0", "source": "a test"})
    return path


def photograph(path: Path, size: tuple[int, int], seed: int = 0, mode: str = "RGB") -> Path:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (4, 4, len(mode)), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(coarse, mode).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def test_upscale_names_samples(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = photograph(tmp_path / "in" / "photo.png", (10, 7), mode="RGBA")
    out = tmp_path / "out"
    words = ["upscale", str(image), "--model", str(model), "--out", str(out), "--samples", "2", "--seed", "3"]
    assert main([*words, "--temperature", "0.5", "--device", "cpu"]) == 0
    names = sorted(p.name for p in out.iterdir())
    assert names == ["photo_tiny_tau0.5_seed3.png", "photo_tiny_tau0.5_seed4.png"]
    with Image.open(out / names[1]) as second, Image.open(image) as source:
        assert second.mode == "RGBA"
        assert second.size == (40, 28)
        lr = torch.from_numpy(np.array(source)).permute(2, 0, 1)[None].float() / 255
        expected = upscale(flowcore.load(model), lr, temperature=0.5, seed=4)[0]
        got = torch.from_numpy(np.array(second)).permute(2, 0, 1).float() / 255
    assert (got - expected).abs().max() <= 0.51 / 255
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["auto", "float16", "tf32", "bfloat16"])
def test_a_file_says_which_precision_was_used(
    model: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowcore.device._cpu_has_bfloat16", lambda: True)
    image, out = photograph(tmp_path / "photo.png", (10, 7)), tmp_path / "out"
    words = ["upscale", str(image), "--model", str(model), "--out", str(out), "--precision", precision]
    assert main([*words, "--device", "cpu"]) == 0
    (entry,) = read_provenance(next(out.iterdir()))
    used = {"auto": "bfloat16", "float16": "float32", "tf32": "float32", "bfloat16": "bfloat16"}
    assert entry.settings["precision"] == used[precision]


def test_inspect_and_help(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["architecture"] == "srflow"
    assert shown["config"]["stacked_blocks"] == [0]
    assert shown["provenance"]["licence"] == "CC0-1.0"
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    assert ", ".join(MEASURES) in " ".join(capsys.readouterr().out.split())


def test_inspect_shows_published_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for architecture in ("srflow_da", "llflow"):
        path = tmp_path / f"{architecture}.pth"
        torch.save(srflow_checkpoint(build_tiny(architecture, perturb=0.02)), path)
        assert main(["inspect", str(path), "--set", "stacked_blocks=1"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["architecture"] == architecture
        assert shown["config"]["stacked_blocks"] == [1]
        assert "CC BY-NC-SA 4.0" in shown["provenance"]["licence"]
        assert main(["inspect", str(path)]) == 1  # of another depth than those that are published
        assert "stacked_blocks is missing" in capsys.readouterr().err


def test_inspect_imports_neither_the_trainer_nor_torchvision() -> None:
    program = (
        "import sys, flowcore.cli.main as cli; cli.main(['inspect', 'srflow-x4'])\n"
        "late = ('flowcore.training', 'flowcore.evaluation', 'flowcore.batch', 'torchvision')\n"
        "assert not [name for name in sys.modules if name.startswith(late)]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_convert_halves_our_own_files(model: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    assert main(["convert", str(model), str(half), "--half"]) == 0
    assert half.stat().st_size < 0.7 * model.stat().st_size
    assert half.stat().st_mode & 0o044
    original, copy = flowcore.load(model), flowcore.load(half)
    assert copy.provenance == original.provenance
    lr = torch.rand(1, 3, 8, 8)
    assert (upscale(copy, lr, temperature=0.8) - upscale(original, lr, temperature=0.8)).abs().max() <= 1 / 255


def test_convert_stores_networks_in_eight_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.safetensors"
    save(build_upscaler(hidden=32), model, provenance={"licence": "CC0-1.0"})
    names = ("--half", "--eight-bits")
    half, eight = (tmp_path / f"{name}.safetensors" for name in names)
    for name, path in zip(names, (half, eight), strict=True):
        assert main(["convert", str(model), str(path), name, "--set", "temperature=0.5"]) == 0
    assert eight.stat().st_size < half.stat().st_size
    assert sampling_settings(flowcore.load(eight))[0] == 0.5
    lr = torch.rand(1, 3, 8, 8)
    pictures = [upscale(flowcore.load(path), lr, temperature=0.8) for path in (model, eight)]
    assert 0 < (pictures[0] - pictures[1]).abs().max() < 4 / 255
    copy = tmp_path / "copy.safetensors"
    assert main(["convert", str(eight), str(copy), "--set", "temperature=0.6"]) == 0  # ours stay as they are
    assert abs(copy.stat().st_size - eight.stat().st_size) <= 8
    with pytest.raises(SystemExit):
        main(["convert", str(model), str(copy), *names])
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.fixture
def small_glow(tmp_path: Path) -> Path:
    path = tmp_path / "small-glow.safetensors"
    flow = build_tiny("glow", steps=1, hidden=4, image_size=16, mixing="conv")
    save(flow, path, provenance={"licence": "CC0-1.0"})
    return path


def test_sample_writes_the_samples_of_the_task(small_glow: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["sample", "--model", str(small_glow), "--out", str(out), "--samples", "2", "--seed", "5"]
    words += ["--device", "cpu"]
    assert main([*words, "--temperature", "0.2"]) == 0
    names = sorted(p.name for p in out.iterdir())
    assert names == ["small-glow_tau0.2_seed5.png", "small-glow_tau0.2_seed6.png"]
    expected = flowcore.sample(flowcore.load(small_glow), 2, temperature=0.2, seed=5, snapped=True)
    assert (pixels(out / names[1]) - expected[1]).abs().max() <= 0.51 / 255
    assert main([*words, "--size", "32", "8"]) == 0
    assert pixels(out / "small-glow_32x8_tau0.7_seed5.png").shape == (3, 32, 8)


def test_interpolate_ends_at_its_images(small_glow: Path, tmp_path: Path) -> None:
    images = [photograph(tmp_path / "in" / f"{name}.png", (16, 16), seed=k) for k, name in enumerate("ab")]
    out = tmp_path / "out"
    words = ["interpolate", *map(str, images), "--model", str(small_glow), "--out", str(out), "--frames", "3"]
    assert main([*words, "--device", "cpu"]) == 0
    assert sorted(p.name for p in out.iterdir()) == [f"a_b_small-glow_slerp_00{k}.png" for k in range(3)]
    assert torch.equal(pixels(out / "a_b_small-glow_slerp_000.png"), pixels(images[0]))
    assert torch.equal(pixels(out / "a_b_small-glow_slerp_002.png"), pixels(images[1]))
    assert not torch.equal(pixels(out / "a_b_small-glow_slerp_001.png"), pixels(images[1]))


def test_score_ranks_images(small_glow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat, noise = tmp_path / "flat.png", tmp_path / "noise.png"
    Image.new("RGB", (16, 16), (120, 120, 120)).save(flat)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(noise)
    numbers = tmp_path / "numbers.json"
    words = ["score", str(noise), str(flat), "--model", str(small_glow), "--device", "cpu", "--json", str(numbers)]
    assert main(words) == 0
    rows = json.loads(numbers.read_text())
    assert [row["image"] for row in rows] == [str(flat), str(noise)]
    assert rows[0]["bits_per_dim"] < rows[1]["bits_per_dim"]
    assert sum(rows[0]["per_level"]) == pytest.approx(rows[0]["bits_per_dim"])
    expected = flowcore.score(flowcore.load(small_glow), (pixels(flat)[None] * 255).round().byte())
    assert rows[0]["bits_per_dim"] == pytest.approx(float(expected.bits_per_dim))
    assert f"| {flat} | {rows[0]['bits_per_dim']:.4f} |" in capsys.readouterr().out


def test_score_says_what_it_scored_and_fits_as_asked(
    small_glow: Path, small_colorizer: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = photograph(tmp_path / "a.png", (40, 48))

    def scored(*words: object) -> tuple[float, str]:
        assert main(["score", str(photo), "--device", "cpu", *map(str, words)]) == 0
        cells = capsys.readouterr().out.splitlines()[-1].split(" | ")
        return float(cells[1]), cells[-1].removesuffix(" |")

    resized, cropped = scored("--model", small_glow), scored("--model", small_glow, "--fit", "crop")
    side = flowcore.load(small_glow).image_size[0]
    assert resized[1] == f"{side}x{side} pixels in the middle of 40x48, resized so that it covers {side}x{side}."
    assert cropped[1].endswith(" pixels in the middle of 40x48.") or cropped[1] == "all of 40x48."
    assert resized[0] != cropped[0]
    upscaler = flowcore.load(model)
    hr = flowcore.images.files.read(photo.read_bytes(), "a").pixels
    assert scored("--model", model)[1] == "all of 40x48."
    lr = flowcore.images.resize.shrink(hr, upscaler.condition_scale).clamp(0, 1)
    expected = flowcore.score(upscaler, (hr * 255).round().byte(), upscaler.encode_condition(lr))
    assert scored("--model", model)[0] == pytest.approx(float(expected.bits_per_dim), abs=1e-4)
    bits, text = scored("--model", small_colorizer)
    assert np.isfinite(bits)
    assert re.fullmatch(r"the chroma of 40x48, shrunk to \d+x\d+, given its luma\.", text)


def test_styles_are_measured_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_mnist(tmp_path / "digits", 60)
    plain, styled, out = tmp_path / "plain.safetensors", tmp_path / "styled.safetensors", tmp_path / "out"
    flow = build_tiny("class_conditional", image_size=(28, 28), steps=1)
    save(flow, plain, provenance={"licence": "CC0-1.0"})
    assert main(["styles", str(plain), str(styled), "--data", str(folder)]) == 0
    assert list(flowcore.load(styled).styles) == ["bold", "wide", "slanted", "messy"]
    words = ["sample", "--model", str(styled), "--out", str(out), "--labels", "2", "--samples", "2", "--device", "cpu"]
    assert main(words) == 0
    as_drawn = pixels(out / "styled_tau0.7_label2_seed1.png")
    assert main([*words, "--style", "bold=2"]) == 0
    assert not torch.equal(pixels(out / "styled_bold2_tau0.7_label2_seed1.png"), as_drawn)
    assert main([*words, "--style", "curly=2"]) == 1
    assert "bold" in capsys.readouterr().err  # names those that there are
    assert main(["eval", str(folder), "--model", str(styled), "--device", "cpu"]) == 0
    assert "| digits | 30 |" in capsys.readouterr().out


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1).float() / 255


def test_errors_are_one_sentence_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a model")
    for words in (["inspect", str(junk)], ["upscale", "x.png", "--model", str(junk)], ["train", "no", "--data", "."]):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith("flowcore: ")
        assert "Traceback" not in error
    assert main(["upscale", "x.png", "--model", str(junk), "--set", "stacked_blocks"]) == 1
    assert "FIELD=VALUE" in capsys.readouterr().err


def test_train_then_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        photograph(tmp_path / "data" / f"{k}.png", (64, 48), seed=k)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--data", str(tmp_path / "data"), "--run", str(run), "--device", "cpu"]) == 0
    assert "bits/dim" in (run / "log.txt").read_text()
    assert len(list((run / "sheets").glob("*.png"))) == 2
    provenance = flowcore.load(run / "model.safetensors").provenance
    assert provenance["steps"] == 4
    numbers = tmp_path / "numbers.json"
    words = ["eval", str(tmp_path / "data"), "--model", str(run / "model.safetensors"), "--device", "cpu"]
    assert main([*words, "--samples", "2", "--json", str(numbers)]) == 0
    table = capsys.readouterr().out
    assert "| data | bicubic |" in table
    rows = json.loads(numbers.read_text())["data"]
    assert list(rows) == ["bicubic", "tau 0", "tau 0.8", "original"]
    assert rows["tau 0"]["diversity"] == 0 < rows["tau 0.8"]["diversity"]
    assert rows["bicubic"]["psnr"] > 25  # smooth pictures


@pytest.fixture
def small_colorizer(tmp_path: Path) -> Path:
    return write_colorizer(tmp_path / "small-colorizer.safetensors")


def write_colorizer(path: Path, **changes: object) -> Path:
    flow = build_tiny("colorizer", perturb=0.05, hidden=(4, 4), widths=(4, 4, 8), **changes)
    with torch.no_grad():
        flow.prelude.mean.fill_(128 / 255)
        flow.prelude.matrix.mul_(20)  # chroma of a spread of 1/20
    save(flow, path, provenance={"licence": "CC0-1.0"})
    return path


def test_colorize_samples(small_colorizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = photograph(tmp_path / "in" / "old.png", (40, 28), mode="LA")
    out = tmp_path / "out"
    words = ["colorize", str(image), str(out), "--model", str(small_colorizer), "--samples", "2", "--seed", "3"]
    assert main([*words, "--temperature", "0.5", "--device", "cpu"]) == 0
    names = sorted(p.name for p in out.iterdir())
    assert names == [f"old_small-colorizer_color_tau0.5_detail0.3_seed{seed}.png" for seed in (3, 4)]
    with Image.open(image) as opened:
        grey, alpha = (torch.from_numpy(np.array(band)).float() for band in opened.split())
    expected = colorize(flowcore.load(small_colorizer), grey[None, None] / 255, temperature=0.5, seed=3, samples=2)
    for name, picture in zip(names, expected, strict=True):
        with Image.open(out / name) as written:
            assert torch.equal(torch.from_numpy(np.array(written.getchannel("A"))).float(), alpha)
        came = pixels(out / name)
        assert (came - picture).abs().max() <= 0.51 / 255
        red, green, blue = (came * 255).double()
        assert torch.equal((0.299 * red + 0.587 * green + 0.114 * blue).round(), grey.double())
    assert not torch.equal(pixels(out / names[0]), pixels(out / names[1]))
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "in colour" not in shown
    assert main([*words[:2], str(tmp_path / "x.jpg"), *words[3:]]) == 1
    assert "alpha" in capsys.readouterr().err


def test_colorize_writes_the_named_file(small_colorizer: Path, tmp_path: Path) -> None:
    image = photograph(tmp_path / "in" / "old.png", (40, 28))
    target = tmp_path / "new" / "coloured.png"
    words = ["colorize", str(image), str(target), "--model", str(small_colorizer), "--device", "cpu"]
    assert main([*words, "--saturation", "0"]) == 0
    grey = pixels(target)
    assert (grey - grey[:1]).abs().max() == 0
    words.append("--again")
    assert main(words) == 0
    coloured = pixels(target)
    assert (coloured - coloured[:1]).abs().max() > 0.05
    assert main([*words, "--working-size", "64"]) == 0
    assert not torch.equal(pixels(target), coloured)
    assert main([*words, "--detail", "1.5"]) == 0
    assert not torch.equal(pixels(target), coloured)
    assert main([*words, "--samples", "2", "--seed", "7"]) == 0
    names = sorted(p.name for p in target.parent.iterdir())
    assert names == ["coloured.png", "coloured_seed7.png", "coloured_seed8.png"]


def test_colorize_keeps_the_best_samples(
    small_colorizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = photograph(tmp_path / "in" / "old.png", (40, 28)), tmp_path / "out"
    words = ["colorize", str(image), str(out), "--model", str(small_colorizer), "--device", "cpu"]
    words += ["--samples", "5", "--seed", "3"]
    flow = flowcore.load(small_colorizer)
    scan = pixels(image)[None]
    every = colorize(flow, scan, seed=3, samples=5)
    for by in ("consensus", "likelihood"):
        assert main([*words, "--keep", "2", "--by", by, "--again"]) == 0
        names = sorted(p.name for p in out.iterdir())
        assert names == [f"old_small-colorizer_color_tau0.9_detail0.3_seeds3-7_best{k}.png" for k in (1, 2)]
        order = ranked(every, scan, by, flow)[1][0, :2].tolist()
        for name, number in zip(names, order, strict=True):
            assert (pixels(out / name) - every[number]).abs().max() <= 0.51 / 255
            entry = read_provenance(out / name)[-1]
            assert entry.seed_of(fingerprint((every[number] * 255).round().byte())) == 3 + number
        assert f"seed {', '.join(str(3 + number) for number in order)}" in capsys.readouterr().err
    assert main([*words, "--keep", "2", "--by", "likelihood"]) == 0
    assert "were there already" in capsys.readouterr().err
    single = tmp_path / "one.png"
    assert main([*words[:2], str(single), *words[3:], "--keep", "1"]) == 0
    assert (pixels(single) - every[ranked(every, scan, "consensus")[1][0, 0]]).abs().max() <= 0.51 / 255
    for wrong, said in ((["--keep", "6"], "--samples"), (["--keep", "0"], "--samples"), (["--by", "likelihood"], "N")):
        assert main([*words, *wrong]) == 1
        assert said in capsys.readouterr().err


def test_colorize_with_colors(small_colorizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (40, 28), 128).save(tmp_path / "grey.png")
    reference = photograph(tmp_path / "reference.png", (36, 30), seed=5)
    flow, grey, target = flowcore.load(small_colorizer), torch.full((1, 3, 28, 40), 128 / 255), tmp_path / "out.png"
    words = ["colorize", str(tmp_path / "grey.png"), str(target), "--model", str(small_colorizer), "--device", "cpu"]
    words.append("--again")
    assert main(words) == 0
    free = pixels(target)

    assert main([*words, "--hint", "10,9,#a08060", "--hint", "30, 20, #6080a0", "--lock", "--radius", "3"]) == 0
    points = [(10, 9, "#a08060"), (30, 20, "#6080a0")]
    expected = colorize(flow, grey, hints=hints_from_points(points, (28, 40), radius=3, lock=True))
    assert (pixels(target) - expected[0]).abs().max() <= 0.51 / 255
    red, green, blue = pixels(target)[:, 9, 10]
    assert red > green > blue
    red, green, blue = pixels(target)[:, 20, 30]
    assert red < green < blue

    assert main([*words, "--palette", "#c08040", "--palette", "#806040"]) == 0
    assert not torch.equal(pixels(target), free)
    assert main([*words, "--reference", str(reference), "--strength", "0.5"]) == 0
    expected = transfer_palette(flow, grey, pixels(reference)[None], strength=0.5)
    assert (pixels(target) - expected[0]).abs().max() <= 0.51 / 255

    capsys.readouterr()
    wrong_points = ((["--hint", "10,9"], "x, y, #rrggbb"), (["--hint", "99,9,#fff"], "40x28"))
    alone = ((["--strength", "0.5"], "--reference"), (["--lock"], "--hint"))
    for wrong, said in (*wrong_points, (["--palette", "red"], "#"), *alone):
        assert main([*words, *wrong]) == 1
        error = capsys.readouterr().err
        assert error.startswith("flowcore: ")
        assert said in error


def test_files_of_16_bits_are_not_blown_out(small_colorizer: Path, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 40 * 28).astype(np.uint16).reshape(28, 40)
    Image.fromarray(ramp).save(tmp_path / "scan.png")
    target = tmp_path / "out.png"
    words = ["colorize", str(tmp_path / "scan.png"), str(target), "--model", str(small_colorizer), "--device", "cpu"]
    assert main(words) == 0
    red, green, blue = pixels(target)
    came = 0.299 * red + 0.587 * green + 0.114 * blue
    assert (came - torch.from_numpy(ramp.astype(np.float32) / 65535)).abs().max() <= 0.51 / 255


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_scans_of_16_bits_keep_their_levels(small_colorizer: Path, tmp_path: Path, format: files.Format) -> None:
    """A soft ramp of 1,120 levels within 18 of 256: no bands, in gray or in sepia."""
    suffix = files.SUFFIXES[format]
    ramp = (20000 + 4 * torch.arange(40 * 28)).view(1, 28, 40).double() / 65535
    sepia = torch.cat([ramp + 0.04, ramp, ramp - 0.06])
    words = ["--model", str(small_colorizer), "--device", "cpu", "--bits", "16"]
    for name, scan in (("gray", ramp), ("sepia", sepia)):
        (tmp_path / f"{name}{suffix}").write_bytes(files.encode(scan.float(), format=format, bits=16))
        target = tmp_path / f"{name}-out{suffix}"
        assert main(["colorize", str(tmp_path / f"{name}{suffix}"), str(target), *words]) == 0
        came = files.read(target.read_bytes(), target.name).pixels.double()
        wanted = luma(scan[None]) if len(scan) == 3 else scan[None]
        assert (luma(came) - wanted).abs().max() <= 1.1 / 65535
        assert len(luma(came).mul(65535).round().unique()) >= 1100


def test_eval_of_several_colorizers_and_sets(
    small_colorizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_glow: Path
) -> None:
    single = write_colorizer(tmp_path / "single.safetensors", structure="single")
    for k in range(3):
        photograph(tmp_path / "sets" / ("a" if k else "b") / f"{k}.png", (40, 28), seed=k)
    numbers = tmp_path / "numbers.json"
    words = ["eval", str(tmp_path / "sets" / "a"), str(tmp_path / "sets" / "b"), "--device", "cpu", "--samples", "3"]
    both = ["--model", str(small_colorizer), "--model", str(single)]
    assert main([*words, *both, "--json", str(numbers)]) == 0
    rows = json.loads(numbers.read_text())
    models = [str(small_colorizer), str(single)]
    assert {name: list(by_model) for name, by_model in rows.items()} == {"a": models, "b": models}
    assert rows["a"][str(single)]["images"] == 2
    assert rows["a"][str(single)]["samples"] == 3
    assert rows["a"][str(single)]["coherence"] != rows["a"][str(small_colorizer)]["coherence"]
    table = capsys.readouterr().out
    assert len(table.strip().splitlines()) == 2 + 4
    assert "coherence" in table

    assert main([*words, "--model", str(small_colorizer), "--limit", "1", "--json", str(numbers)]) == 0
    default = json.loads(numbers.read_text())["a"][str(small_colorizer)]
    assert default["images"] == 1
    taus = ["--limit", "1", "--temperature", "0.5", "--temperature", "0.9", "--detail", "0.3"]
    assert main([*words, "--model", str(small_colorizer), *taus, "--json", str(numbers)]) == 0
    by_tau = json.loads(numbers.read_text())["a"]
    assert list(by_tau) == [f"{small_colorizer}, tau 0.5", f"{small_colorizer}, tau 0.9"]
    assert by_tau[f"{small_colorizer}, tau 0.9"] == default  # these are what it was made for
    assert by_tau[f"{small_colorizer}, tau 0.5"]["diversity"] < default["diversity"]
    faces = ["eval", str(tmp_path / "sets" / "b"), *words[3:5], "--portraits", "--json", str(numbers)]
    assert main([*faces, "--model", str(small_colorizer)]) == 0
    portraits = json.loads(numbers.read_text())["b"][str(small_colorizer)]
    assert portraits["samples"] == 20
    assert 0 <= portraits["skin_outside"] <= 1
    assert main([*words, "--together", "--model", str(small_colorizer), "--json", str(numbers)]) == 0
    (pooled,) = json.loads(numbers.read_text()).items()
    assert pooled[0] == "a + b"
    assert pooled[1][str(small_colorizer)]["images"] == 3
    assert main([*faces, "--model", str(small_glow)]) == 1
    assert "--portraits" in capsys.readouterr().err
    words = [*words, "--model", str(small_colorizer), "--limit", "1", "--json", str(numbers)]
    for asked in (["--detail", "0.9"], ["--working-size", "64"]):
        assert main([*words, *asked]) == 0
        assert json.loads(numbers.read_text())["a"][str(small_colorizer)]["rmse"] != default["rmse"], asked

    capsys.readouterr()
    assert main([*words, *both, "--model", str(small_glow)]) == 1
    assert "one kind" in capsys.readouterr().err
    twice = ["--model", str(small_glow), "--model", str(small_glow)]
    assert main(["eval", str(tmp_path / "sets" / "a"), "--device", "cpu", *twice]) == 0
    assert "| a | 2 |" in capsys.readouterr().out  # one model given twice is one


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("error", [None, FlowError("Stopped after 3 of 9 images were decoded.")], ids=str)
def test_training_that_is_interrupted_says_so_to_the_shell(
    number: int, error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*words: object, cancelled: Callable[[], bool], **options: object) -> None:
        assert not cancelled()
        os.kill(os.getpid(), number)
        assert cancelled()
        if error is not None:
            raise error

    monkeypatch.setattr("flowcore.training.loop.train", train)
    assert main(["train", "srflow-x4", "--data", str(tmp_path), "--run", str(tmp_path), "--device", "cpu"]) == 130


@pytest.mark.parametrize("option", ["start", "encoder_from"])
@pytest.mark.parametrize(("name", "file"), [("srflow-x4", catalog.path("srflow-x4")), ("mine.x", Path("mine.x"))])
def test_training_takes_shipped_models_by_name(
    option: str, name: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr("flowcore.training.loop.train", lambda *words, **options: taken.append(options[option]))
    words = ["train", "srflow-x4", "--data", str(tmp_path), f"--{option.replace('_', '-')}", name, "--device", "cpu"]
    assert main(words) == 0
    assert taken == [file]


def test_eval_compares_models_that_stand_before_the_folder(
    small_colorizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_colorizer(tmp_path / "other.safetensors", structure="single")
    photograph(tmp_path / "set" / "0.png", (40, 28), seed=0)
    options = ["--device", "cpu", "--samples", "2"]
    assert main(["eval", str(small_colorizer), str(other), str(tmp_path / "set"), *options]) == 0
    table = capsys.readouterr().out
    assert all(f"| set | 1 | {model} |" in table for model in (small_colorizer, other))
    assert main(["eval", "srflow-4x", str(tmp_path / "set")]) == 1
    assert "srflow-4x is neither a folder of images, nor a model file" in capsys.readouterr().err
    assert main(["eval", str(small_colorizer), "srflow-x4"]) == 1
    assert "no folder of images" in capsys.readouterr().err


# --- brighten ---------------------------------------------------------------------------------------------------------


def test_brighten_writes_exposures_and_what_made_them(tmp_path):
    flow = build_tiny("llflow", perturb=0.02)
    save(flow, tmp_path / "dark.safetensors", provenance={"licence": "CC0-1.0", "source": "a test"})
    photo = photograph(tmp_path / "night" / "a.png", (21, 13))
    words = ["brighten", str(photo), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "dark.safetensors")]
    assert main([*words, "--device", "cpu"]) == 0
    assert main([*words, "--device", "cpu", "--temperature", "0.5", "--samples", "2", "--seed", "7"]) == 0
    names = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert names == [f"a_dark_light_tau{end}.png" for end in ("0.5_seed7", "0.5_seed8", "0_seed0")]
    (entry,) = read_provenance(next((tmp_path / "out").rglob("*seed8.png")))
    assert (entry.node, entry.architecture, entry.temperature) == ("FlowcoreBrighten", "llflow", 0.5)
    pixels = files.read(photo.read_bytes(), "a.png").pixels
    expected = flowcore.brighten(flow, pixels, temperature=0.5, seed=8)
    made = files.read(next((tmp_path / "out").rglob("*seed8.png")).read_bytes(), "a").pixels
    assert float((expected - made).abs().max()) < 0.51 / 255


def test_brighten_refuses_other_models(tmp_path, model, capsys):
    photo = photograph(tmp_path / "a.png", (8, 8))
    assert main(["brighten", str(photo), "-o", str(tmp_path), "--model", str(model), "--device", "cpu"]) == 1
    assert "brighten needs a low-light model" in capsys.readouterr().err
