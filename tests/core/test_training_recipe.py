"""Recipes: valid ones are read, errors name key and choices; the shipped ones state a command and fit their models."""

import dataclasses
import functools
import re
import shlex
from types import SimpleNamespace

import pytest
import torch

from flowcore import FlowError
from flowcore.cli.main import build_parser
from flowcore.models import build
from flowcore.models.srflow import SRFlowConfig
from flowcore.training.recipe import RECIPES, Recipe, Stage, parse_recipe, read_recipe
from flowcore.training.stage import check_stage

GOOD = """
name = "tiny"
architecture = "srflow"
seed = 3
pyramid = [1, 0.5]

[model]
scale = 2
levels = 2
encoder_blocks = 1
stacked_blocks = [0]

[[stages]]
name = "encoder"
objective = "l1"
steps = 10
learning_rate = 1

[[stages]]
name = "flow"
objective = "likelihood"
steps = 20
warmup = 7
"""


def test_a_recipe_is_read():
    recipe = parse_recipe(GOOD)
    assert isinstance(recipe, Recipe)
    assert (recipe.name, recipe.seed, recipe.pyramid) == ("tiny", 3, (1.0, 0.5))
    assert recipe.model == SRFlowConfig(scale=2, levels=2, encoder_blocks=1, stacked_blocks=(0,))
    assert [type(stage) for stage in recipe.stages] == [Stage, Stage]
    assert recipe.stages[0].learning_rate == 1.0
    assert recipe.stages[1].warmup == 7
    assert recipe.text == GOOD


def test_a_recipe_is_read_from_a_file_or_by_the_name_of_a_shipped_one(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD)
    assert read_recipe(tmp_path / "mine.toml") == parse_recipe(GOOD)
    assert read_recipe("glow-photos") == read_recipe("glow-photos.toml") == read_recipe(RECIPES / "glow-photos.toml")
    with pytest.raises(FlowError, match=r"nothing\.toml"):
        read_recipe(tmp_path / "nothing.toml")
    with pytest.raises(FlowError, match=r"no recipe srflow-x44\. Did you mean srflow-x4\?"):
        read_recipe("srflow-x44")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        # a key that there is not
        ("seed = 3", "sed = 3", ["sed", "Did you mean seed?", "Choices:", "seed"]),
        ("steps = 10", "steps = 10\nlr = 1", [r"stages[0].lr", "Choices:", "learning_rate"]),
        ("[model]", "[model]\ncolour = 1", ["'colour'", "Known:", "encoder_blocks"]),
        # a key that is not there
        ('name = "tiny"', "", ["lacks name"]),
        ('architecture = "srflow"', "", ["lacks architecture"]),
        # a choice that is none
        ('objective = "l1"', 'objective = "l2"', ["stages[0].objective", "'l1', 'chroma', 'likelihood'", "'l2'"]),
        ('objective = "l1"', 'objective = ["l1"]', ["stages[0].objective", "'l1', 'chroma', 'likelihood'"]),
        # a value of another kind
        ("seed = 3", "seed = true", ["seed", "whole number", "True"]),
        ("steps = 20", "steps = 20\nbalanced = 1", ["stages[1].balanced", "True or False", "1"]),
        ("pyramid = [1, 0.5]", "pyramid = []", ["pyramid"]),
        # a value out of range
        ("seed = 3", "seed = -1", ["seed", "-1"]),
        ("seed = 3", "short_sides = [256, 0]", ["short_sides", "above 0", "[256, 0]"]),
        ("seed = 3", "short_sides = [true]", ["short_sides", "whole numbers", "True"]),
        ("seed = 3", 'start_stages = ["flwo"]', ["start_stages", "'flwo'", "Did you mean flow?", "encoder, flow"]),
        ("seed = 3", 'start_stages = "flow"', ["start_stages", 'names of stages, e.g. ["flow"]', "'flow'"]),
        ("seed = 3", "degradation_strength = 0", ["degradation_strength", "[0.01, 1]"]),
        # crops that the model cannot take
        ("steps = 20", "steps = 20\ncrop = 42", ["stages[1].crop", "42", "4"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_recipe_is_refused_naming_key_and_choices(old, new, named):
    assert old in GOOD
    with pytest.raises(FlowError) as caught:
        parse_recipe(GOOD.replace(old, new, 1))
    for part in named:
        assert part in str(caught.value)


COLORS = """
name = "colors"
architecture = "colorizer"
short_sides = [64, 96]
[model]
steps = [1, 1]
hidden = [4, 4]
widths = [4, 4, 8]
[[stages]]
name = "flow"
objective = "likelihood"
steps = 3
crop = 32
weight_decay = 1
balanced = true
"""
CONSISTENT = "steps = 10\nlr_consistency = 0.5"
HEAD, STAGES = GOOD.split("[[stages]]", 1)
REALISTIC = GOOD.replace("seed = 3", 'degradation = "realistic"\ndegradation_strength = 0.5')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, r"\[\[stages\]\]"),
        ("stages = []\n" + HEAD, r"\[\[stages\]\]"),
        ("stages = [1]\n" + HEAD, r"\[\[stages\]\]"),
        ("model = 3\n" + HEAD.split("[model]")[0] + "[[stages]]" + STAGES, r"\[model\]"),
        ("name = ", "not valid TOML"),
        (COLORS.replace("crop = 32", "crop = 24"), r"stages\[0\]\.crop must be a multiple of 16 .*; got 24"),
        (
            REALISTIC.replace("steps = 10", CONSISTENT),
            r"stages\[0\]\.lr_consistency must be 0 .*'realistic'.*'bicubic'; got 0\.5",
        ),
        ('degradation = "realistic"\n' + COLORS, r"degradation must be 'bicubic' for a colorizer model"),
    ],
)
def test_other_text_is_refused(text, message):
    with pytest.raises(FlowError, match=message):
        parse_recipe(text)


NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))
every_recipe = pytest.mark.parametrize("name", NAMES)


def comment(text):
    """The lines at the top of a recipe, without their marks."""
    lines = text.splitlines()
    count = next(k for k, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:count]]


@functools.cache
def on_meta(name):
    recipe = read_recipe(name)
    with torch.device("meta"):
        return recipe, build(recipe.architecture, recipe.model)


@every_recipe
def test_a_recipe_states_its_commands_an_expected_number_and_a_license(name):
    """The commands have its own name, and words that the command line takes."""
    recipe = read_recipe(name)
    lines = comment(recipe.text)
    assert recipe.name == name
    commands = [line[line.index("python -m flowcore") :] for line in lines if "python -m flowcore" in line]
    assert any(line.startswith("Run: python -m flowcore train ") for line in lines)
    for command in commands:
        build_parser().parse_args(shlex.split(command)[3:])
    assert shlex.split(commands[0])[3:5] == ["train", name]
    expected = re.search(r"Expected result:(.*?)(?:\bRun:|$)", " ".join(lines))
    assert expected
    assert re.search(r"(?<![\w/.-])-?\d+(?:[.,]\d+)*(?![\w/])", expected[1])  # not in srflow-x4, or a path
    assert recipe.licence != "unspecified"


@every_recipe
def test_the_stages_of_a_recipe_fit_its_model(name):
    recipe, flow = on_meta(name)
    large_images = SimpleNamespace(fitting=lambda crop: [crop])
    for stage in recipe.stages:
        check_stage(stage, recipe, large_images, flow)
        assert stage.warmup < stage.steps
        assert flow.image_size in (None, (stage.crop, stage.crop))
    # More pixels than channels on the deepest grid, or the principal axes of the first batch are not defined.
    principal = "principal" in (getattr(recipe.model, "mixing", ""), getattr(recipe.model, "mixing_start", ""))
    likelihood = [stage for stage in recipe.stages if stage.objective == "likelihood"]
    if principal and likelihood:
        side = likelihood[0].crop // (4 if recipe.architecture == "colorizer" else 1)  # of luma
        channels, height, width = flow.latent_shapes(side, side)[-1]
        assert recipe.init_batch * height * width > channels
    assert len({stage.name for stage in recipe.stages}) == len(recipe.stages)


def test_too_few_pixels_for_principal_axes_are_refused_at_the_start():
    recipe, flow = on_meta("glow-photos")
    recipe = dataclasses.replace(recipe, init_batch=1)
    with pytest.raises(
        FlowError, match=r"Principal axes .* 16 pixels for 96 channels\. Raise init_batch to at least 7"
    ):
        check_stage(recipe.stages[0], recipe, SimpleNamespace(fitting=lambda crop: [crop]), flow)
