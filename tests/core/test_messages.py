"""Sentences of the command line that once said what was not so."""

import json

import numpy as np
import pytest
import torch
from builders import build_tiny
from PIL import Image

import flowcore
from flowcore.checkpoints import catalog
from flowcore.checkpoints.color_memory import ColorMemory
from flowcore.cli.main import main
from flowcore.errors import FlowError
from flowcore.evaluation.image_set import resize_to_own
from flowcore.tasks.runner import MAX_DRAWS

from .commands import names, photograph, run


def test_a_guide_strength_without_a_guide_is_neither_in_names_nor_in_recipes(model, tmp_path, capsys):
    photo, out = photograph(tmp_path / "a.png", (12, 8)), tmp_path / "out"
    assert run("upscale", photo, "-o", out, "--model", model, "--guide-strength", 0.5) == 0
    assert "guide_strength is ignored: there is no guide." in capsys.readouterr().err
    (name,) = names(out)
    assert "guided" not in name
    assert main(["inspect", str(out / name)]) == 0
    assert "guide_strength" not in capsys.readouterr().out


def test_a_file_of_no_bytes_is_called_empty_and_no_model_suits_it(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    assert run("upscale", tmp_path / "a.png", "-o", tmp_path / "out") == 1
    assert capsys.readouterr().err == "flowcore: Cannot read a.png as an image: it is empty.\n"


def test_a_memory_of_colors_is_inspected_by_name_and_by_file(capsys):
    file, shown = catalog.FOLDER / f"{catalog.STARTER_MEMORY}.safetensors", list[object]()
    for word in (catalog.STARTER_MEMORY, str(file)):
        assert main(["inspect", word]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    memory = ColorMemory.load(file)
    assert shown[0] == shown[1]
    assert shown[0]["memory"]["photographs"] == memory.photographs
    assert shown[0]["provenance"] == memory.provenance


def test_an_image_size_is_asked_of_models_that_take_one():
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(FlowError, match=r"Take one that has, such as glow-photos\.$"):
        resize_to_own(build_tiny("hcflow", rescaling=True), image)
    with pytest.raises(FlowError, match=r"--set image_size=32"):
        resize_to_own(build_tiny("glow", image_size=None), image)


@pytest.mark.parametrize("command", ["upscale", "score"])
def test_more_samples_than_anyone_waits_for_are_refused(command, model, tmp_path, capsys):
    photo = photograph(tmp_path / "a.png", (12, 8))
    assert run(command, photo, "-o", tmp_path / "out", "--model", model, "--samples", 10**30) == 1
    assert f"samples must be at most {MAX_DRAWS}; got 1{30 * '0'}." in capsys.readouterr().err


def test_more_samples_than_anyone_waits_for_are_refused_in_python():
    with pytest.raises(FlowError, match=f"samples must be at most {MAX_DRAWS}"):
        flowcore.upscale(build_tiny("srflow"), torch.rand(1, 3, 8, 8), samples=10**30)
    with pytest.raises(FlowError, match=f"samples must be at most {MAX_DRAWS}"):
        flowcore.sample(build_tiny("glow"), 10**30)
