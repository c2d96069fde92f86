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
from flowcore.models.srflow import SRFlowConfig, srflow
from flowcore.tasks.upscale import upscale

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
