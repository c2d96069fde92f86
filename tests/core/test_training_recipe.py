"""Recipes in TOML: valid ones are read, and errors name the key and the choices."""

import pytest

from flowcore.errors import FlowError
from flowcore.models.srflow import SRFlowConfig
from flowcore.training.recipe import RECIPES, Recipe, Stage, parse_recipe, read_recipe

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
schedule = "halving"
"""


def test_a_recipe_is_read():
    recipe = parse_recipe(GOOD)
    assert isinstance(recipe, Recipe)
    assert (recipe.name, recipe.seed, recipe.pyramid) == ("tiny", 3, (1.0, 0.5))
    assert recipe.model == SRFlowConfig(scale=2, levels=2, encoder_blocks=1, stacked_blocks=(0,))
    assert [type(stage) for stage in recipe.stages] == [Stage, Stage]
    assert recipe.stages[0].learning_rate == 1.0
    assert recipe.stages[1].schedule == "halving"
    assert recipe.text == GOOD


def test_a_recipe_is_read_from_a_file_or_by_the_name_of_a_shipped_one(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD)
    assert read_recipe(tmp_path / "mine.toml") == parse_recipe(GOOD)
    assert read_recipe("glow-photos") == read_recipe("glow-photos.toml") == read_recipe(RECIPES / "glow-photos.toml")
    with pytest.raises(FlowError, match=r"no recipe .*nothing\.toml.*srflow-x4"):
        read_recipe(tmp_path / "nothing.toml")
    with pytest.raises(FlowError, match=r"no recipe srflow-x44\. Did you mean srflow-x4\?"):
        read_recipe("srflow-x44")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        # a key that there is not
        ("seed = 3", "sed = 3", ["sed", "Did you mean seed?", "Choices:", "seed"]),
        ("scale = 2", "scal = 2", ["Did you mean scale?"]),
        ("steps = 10", "steps = 10\nlr = 1", [r"stages[0].lr", "Choices:", "learning_rate"]),
        ("[model]", "[model]\ncolour = 1", ["'colour'", "Known:", "encoder_blocks"]),
        # a key that is not there
        ('name = "tiny"', "", ["lacks name"]),
        ('architecture = "srflow"', "", ["lacks architecture"]),
        # a choice that is none
        ('objective = "l1"', 'objective = "l2"', ["stages[0].objective", "l1, chroma, likelihood", "'l2'"]),
        ('objective = "l1"', 'objective = ["l1"]', ["stages[0].objective", "l1, chroma, likelihood"]),
        # a value of another kind
        ("seed = 3", "seed = 1.5", ["seed", "int", "1.5"]),
        ("learning_rate = 1", 'learning_rate = "fast"', ["stages[0].learning_rate", "float", "'fast'"]),
        ("pyramid = [1, 0.5]", "pyramid = 0.5", ["pyramid", "0.5"]),
        ("pyramid = [1, 0.5]", 'pyramid = ["half"]', ["pyramid", "half"]),
        ("pyramid = [1, 0.5]", "pyramid = []", ["pyramid"]),
        # a value out of range
        ("seed = 3", "seed = -1", ["seed", "-1"]),
        ("steps = 10", "steps = 0", ["stages[0].steps", "0"]),
        ("seed = 3", "short_sides = 256", ["short_sides", "e.g. [256]", "256"]),
        ("seed = 3", "short_sides = [256, 0]", ["short_sides", "above 0", "[256, 0]"]),
        ("seed = 3", "short_sides = [true]", ["short_sides", "whole numbers", "True"]),
        ("steps = 20", "steps = 20\nweight_decay = -0.1", ["stages[1].weight_decay", "at least 0", "-0.1"]),
        ("steps = 20", "steps = 20\nbalanced = 1", ["stages[1].balanced", "bool", "1"]),
        ("seed = 3", "weight_decay = 0.1", ["Unknown recipe key weight_decay"]),  # it is a stage's
        ("seed = 3", 'start_stages = ["flwo"]', ["start_stages", "'flwo'", "Did you mean flow?", "encoder, flow"]),
        ("seed = 3", 'start_stages = "flow"', ["start_stages", 'names of stages, e.g. ["flow"]', "'flow'"]),
        ("seed = 3", "degradation_strength = 0", ["degradation_strength", "at least 0.01", "at most 1"]),
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


def test_the_keys_of_colorizers_and_of_the_degradation_are_read():
    plain, colors, realistic = (parse_recipe(text) for text in (GOOD, COLORS, REALISTIC))
    assert (plain.short_sides, colors.short_sides) == ((), (64, 96))
    assert {(stage.weight_decay, stage.balanced) for stage in plain.stages} == {(0.0, False)}
    assert (colors.stages[0].weight_decay, colors.stages[0].balanced) == (1.0, True)
    assert (plain.degradation, plain.degradation_strength) == ("bicubic", 1.0)
    assert (realistic.degradation, realistic.degradation_strength) == ("realistic", 0.5)
    assert parse_recipe(GOOD.replace("steps = 10", CONSISTENT)).stages[0].lr_consistency == 0.5
    assert parse_recipe(REALISTIC.replace("steps = 10", "steps = 10\nlr_consistency = 0")).stages[0].lr_consistency == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, r"\[\[stages\]\]"),
        ("stages = []\n" + HEAD, r"\[\[stages\]\]"),
        ("stages = [1]\n" + HEAD, r"\[\[stages\]\]"),
        ("model = 3\n" + HEAD.split("[model]")[0] + "[[stages]]" + STAGES, r"\[model\]"),
        ("name = ", "not valid TOML"),
        (GOOD.replace("levels = 2", "depth = 2"), "written by a newer flowcore, or misspelled"),
        (COLORS.replace("crop = 32", "crop = 24"), r"stages\[0\]\.crop must be a multiple of 16 .*; got 24"),
        (
            REALISTIC.replace("steps = 10", CONSISTENT),
            r"stages\[0\]\.lr_consistency must be 0 .*'realistic'.*'bicubic'; got 0\.5",
        ),
        ('degradation = "realistic"\n' + COLORS, r"a colorizer model trains with 'bicubic'; got 'realistic'"),
    ],
)
def test_other_text_is_refused(text, message):
    with pytest.raises(FlowError, match=message):
        parse_recipe(text)
