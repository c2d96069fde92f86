"""The shipped recipes: each states its command and expected result, and fits the model that it trains."""

from __future__ import annotations

import functools
import re
import shlex

import pytest
import torch

from flowcore.cli.main import build_parser
from flowcore.models import build
from flowcore.training.objective import lr_encoder
from flowcore.training.recipe import RECIPES, read_recipe

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


def crop_side(recipe, stage):
    """Side of the images of a crop; a colorizer's flow takes a quarter of the luma."""
    return stage.crop // 4 if recipe.architecture == "colorizer" else stage.crop


def test_there_are_recipes():
    assert set(NAMES) >= {"color-photos", "glow-photos", "mnist-styles", "srflow-x4", "srflow-x8"}


# --- comments -------------------------------------------------------------------------------------------------------


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


# --- what it trains ---------------------------------------------------------------------------------------------------


@every_recipe
def test_the_stages_of_a_recipe_fit_its_model(name):
    recipe, flow = on_meta(name)
    assert {parameter.device.type for parameter in flow.parameters()} == {"meta"}
    for stage in recipe.stages:
        if stage.objective == "l1":
            assert stage.crop % lr_encoder(flow).scale == 0
            continue
        side = crop_side(recipe, stage)
        shapes = flow.latent_shapes(side, side)
        channels = 2 if recipe.architecture == "colorizer" else flow.channels
        assert sum(c * h * w for c, h, w in shapes) == channels * side**2
        assert min(min(h, w) for _, h, w in shapes) >= 1
        if flow.image_size is not None:
            assert flow.image_size == (stage.crop, stage.crop)
    # More pixels than channels on the deepest grid, or the principal axes of the first batch are not defined.
    principal = "principal" in (getattr(recipe.model, "mixing", ""), getattr(recipe.model, "mixing_start", ""))
    likelihood = [stage for stage in recipe.stages if stage.objective == "likelihood"]
    if principal and likelihood:
        side = crop_side(recipe, likelihood[0])
        channels, height, width = flow.latent_shapes(side, side)[-1]
        assert recipe.init_batch * height * width > channels
    names = [stage.name for stage in recipe.stages]
    assert len(set(names)) == len(names)
    trained = len(flow.levels) + (flow.dequantizer is not None)
    assert all(stage.frozen_levels < trained for stage in recipe.stages)
    assert all(stage.warmup < stage.steps for stage in recipe.stages)
