"""The command line, run as people run it: words in, files and sentences out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flowcore
from flowcore.__main__ import main
from flowcore.checkpoints.file import save
from flowcore.models import build, configure
from flowcore.models.srflow import SRFlowConfig, srflow
from flowcore.tasks.upscale import upscale

from .digits import write_mnist

RECIPE = """
name = "tiny"
architecture = "srflow"
validation = 1
checkpoint_every = 2
init_batch = 8
precision = "float32"
[model]
steps = 1
hidden = 4
encoder_blocks = 1
encoder_width = 4
encoder_growth = 2
stacked_blocks = []
residual = true
[[stages]]
name = "encoder"
objective = "l1"
steps = 2
batch = 2
crop = 32
[[stages]]
name = "flow"
objective = "likelihood"
steps = 2
batch = 2
crop = 32
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = SRFlowConfig(
        steps=1, hidden=4, encoder_blocks=1, encoder_width=4, encoder_growth=2, stacked_blocks=(0,), residual=True
    )
    path = tmp_path / "tiny.safetensors"
    save(srflow(config), path, provenance={"licence": "CC0-1.0", "source": "a test"})
    return path


def photograph(path: Path, size: tuple[int, int], seed: int = 0, mode: str = "RGB") -> Path:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (4, 4, len(mode)), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(coarse, mode).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def test_upscale_writes_a_file_per_sample_named_by_its_recipe(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = photograph(tmp_path / "in" / "photo.png", (10, 7), mode="RGBA")
    out = tmp_path / "out"
    words = ["upscale", str(image), "--model", str(model), "--out", str(out), "--samples", "2", "--seed", "3"]
    assert main([*words, "--temperature", "0.5", "--device", "cpu"]) == 0
    names = sorted(p.name for p in out.iterdir())
    assert names == ["photo_x4_tau0.5_seed3.png", "photo_x4_tau0.5_seed4.png"]
    with Image.open(out / names[1]) as second, Image.open(image) as source:
        assert second.mode == "RGBA"
        assert second.size == (40, 28)
        lr = torch.from_numpy(np.array(source)).permute(2, 0, 1)[None].float() / 255
        expected = upscale(flowcore.load(model), lr, temperature=0.5, seed=4)[0]
        got = torch.from_numpy(np.array(second)).permute(2, 0, 1).float() / 255
    assert (got - expected).abs().max() <= 0.51 / 255
    assert "100%" in capsys.readouterr().err


def test_inspect_prints_the_header_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["architecture"] == "srflow"
    assert shown["config"]["stacked_blocks"] == [0]
    assert shown["provenance"]["licence"] == "CC0-1.0"


def test_convert_copies_our_own_files_too_and_may_halve_them(model: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    assert main(["convert", str(model), str(half), "--half"]) == 0
    assert half.stat().st_size < 0.7 * model.stat().st_size
    assert half.stat().st_mode & 0o044
    original, copy = flowcore.load(model), flowcore.load(half)
    assert copy.provenance == original.provenance
    lr = torch.rand(1, 3, 8, 8)
    assert (upscale(copy, lr, temperature=0.8) - upscale(original, lr, temperature=0.8)).abs().max() <= 1 / 255


@pytest.fixture
def small_glow(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    flow = build("glow", configure("glow", {"levels": 2, "steps": 1, "hidden": 4, "image_size": 16, "mixing": "conv"}))
    path = tmp_path / "small-glow.safetensors"
    save(flow, path, provenance={"licence": "CC0-1.0"})
    return path


def test_sample_writes_what_the_task_makes(small_glow: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "sample",
        "--model",
        str(small_glow),
        "--out",
        str(out),
        "--samples",
        "2",
        "--seed",
        "5",
        "--device",
        "cpu",
    ]
    assert main([*words, "--temperature", "0.2"]) == 0
    names = sorted(p.name for p in out.iterdir())
    assert names == ["small-glow_tau0.2_seed5.png", "small-glow_tau0.2_seed6.png"]
    expected = flowcore.sample(flowcore.load(small_glow), 2, temperature=0.2, seed=5, snapped=True)
    assert (pixels(out / names[1]) - expected[1]).abs().max() <= 0.51 / 255
    assert main([*words, "--size", "32", "8"]) == 0
    assert pixels(out / "small-glow_tau0.7_seed5.png").shape == (3, 32, 8)


def test_interpolate_ends_at_its_images(small_glow: Path, tmp_path: Path) -> None:
    images = [photograph(tmp_path / "in" / f"{name}.png", (16, 16), seed=k) for k, name in enumerate("ab")]
    out = tmp_path / "out"
    words = ["interpolate", *map(str, images), "--model", str(small_glow), "--out", str(out), "--frames", "3"]
    assert main([*words, "--device", "cpu"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a_b_000.png", "a_b_001.png", "a_b_002.png"]
    assert torch.equal(pixels(out / "a_b_000.png"), pixels(images[0]))
    assert torch.equal(pixels(out / "a_b_002.png"), pixels(images[1]))
    assert not torch.equal(pixels(out / "a_b_001.png"), pixels(images[1]))


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


def test_styles_are_measured_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_mnist(tmp_path / "digits", 60)
    plain, styled, out = tmp_path / "plain.safetensors", tmp_path / "styled.safetensors", tmp_path / "out"
    torch.manual_seed(0)
    config = {"classes": 3, "steps": 1, "hidden": 8}
    save(build("class_conditional", configure("class_conditional", config)), plain, provenance={"licence": "CC0-1.0"})
    assert main(["styles", str(plain), str(styled), "--data", str(folder)]) == 0
    assert list(flowcore.load(styled).styles) == ["bold", "wide", "slanted", "messy"]
    words = ["sample", "--model", str(styled), "--out", str(out), "--labels", "2", "--samples", "2", "--device", "cpu"]
    assert main(words) == 0
    as_drawn = pixels(out / "styled_tau0.7_seed1.png")
    assert main([*words, "--style", "bold=2"]) == 0
    assert not torch.equal(pixels(out / "styled_tau0.7_seed1.png"), as_drawn)
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
    for words in (
        ["inspect", str(junk)],
        ["upscale", "x.png", "--model", str(junk)],
        ["train", "nothing", "--data", "."],
    ):
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
    assert list(rows) == ["bicubic", "tau 0", "tau 0.8"]
    assert rows["tau 0"]["diversity"] == 0 < rows["tau 0.8"]["diversity"]
    assert rows["bicubic"]["psnr"] > 25  # smooth pictures
