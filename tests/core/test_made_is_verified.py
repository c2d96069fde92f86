"""Whatever a command makes, ``verify`` verifies: all commands, samples, bits, formats, folders, clips and odd sides."""

import json

import pytest
from builders import build_hcflow, build_tiny, build_upscaler

from flowcore import save

from .commands import names, photograph, run, write_colorizer


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with models, photographs of odd sides, also in a sub-folder, their thumbnails, and frames of a clip."""
    folder = tmp_path_factory.mktemp("made")
    save(build_upscaler(2), folder / "upscale.safetensors")
    save(build_hcflow(rescaling=True), folder / "restore.safetensors")
    save(build_tiny("llflow", perturb=0.02), folder / "brighten.safetensors")
    write_colorizer(folder / "colorize.safetensors")
    photograph(folder / "photos" / "a.png", (37, 41))
    photograph(folder / "photos" / "sub" / "b.png", (45, 34), seed=1)
    for number in range(3):
        photograph(folder / "clip" / f"shot.{number:04}.png", (33, 29), seed=number)
        photograph(folder / "still" / f"shot.{number:04}.png", (33, 29))
    words = ("shrink", folder / "photos", "--model", folder / "restore.safetensors", "--out", folder / "small")
    assert run(*words, "--name", "{stem}") == 0
    return folder


MADE = {
    "upscale": ("photos", ()),
    "upscale, 2 samples": ("photos", ("--samples", 2)),
    "upscale, 2 samples of 16 bits": ("photos", ("--samples", 2, "--bits", 16)),
    "upscale, tiff of 16 bits": ("photos", ("--samples", 2, "--bits", 16, "--format", "tiff")),
    "upscale, jpeg": ("photos", ("--samples", 2, "--format", "jpeg")),
    "upscale, webp": ("photos", ("--format", "webp")),
    "upscale, resized": ("photos", ("--factor", 1.8, "--name", "{stem}{sample}")),
    "upscale, clip": ("clip", ("--steadiness", 0.5)),
    "upscale, clip as webp": ("clip", ("--steadiness", 0.5, "--format", "webp", "--quality", 100)),
    "upscale, still clip": ("still", ("--steadiness", 0.9, "--temperature", 0.2)),
    "colorize": ("photos", ()),
    "colorize, 2 samples of 16 bits": ("photos", ("--samples", 2, "--bits", 16)),
    "colorize, best 2 of 3": ("photos", ("--samples", 3, "--keep", 2)),
    "colorize, best 2 of 3 as tiff": ("photos", ("--samples", 3, "--keep", 2, "--format", "tiff")),
    "colorize, clip": ("clip", ("--frames", "video")),
    "restore": ("small", ()),
    "restore, 2 samples of 16 bits": ("small", ("--samples", 2, "--bits", 16)),
}


@pytest.mark.parametrize("made", MADE)
def test_what_a_command_makes_is_verified(here, tmp_path, capsys, made):
    command = made.partition(",")[0]
    source, words = MADE[made]
    model = ("--model", here / f"{command}.safetensors")
    assert run(command, here / source, *model, "--out", tmp_path, "--seed", 5, "--temperature", 0.8, *words) == 0
    pictures = [tmp_path / name for name in names(tmp_path) if name != "manifest.csv"]
    capsys.readouterr()
    assert run("verify", tmp_path, *model, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(row["input"] for row in rows) == [*map(str, pictures)]
    assert all(row["verified"] for row in rows)
    each = 2 if "--samples" in words else 1
    seeds = {row["seed"] for row in rows}
    if source == "clip" and command == "upscale":
        assert seeds == {5, 6, 7}
    elif source == "still":
        assert seeds == {5}  # the first frame's noise is in all
    elif "--keep" not in words:
        assert seeds == set(range(5, 5 + each))


def test_a_brightened_picture_is_refused_with_its_reason(here, tmp_path, capsys):
    model = ("--model", here / "brighten.safetensors")
    assert run("brighten", here / "photos", *model, "--out", tmp_path, "--temperature", 0.8) == 0
    assert run("verify", tmp_path / "sub", *model) == 1
    assert "A brightened picture lacks" in capsys.readouterr().err
