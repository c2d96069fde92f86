"""The shipped recipes: each states its command and expected result, and fits the model that it trains."""

import dataclasses
import functools
import re
import shlex
from types import SimpleNamespace

import pytest
import torch

from flowcore.cli.main import build_parser
from flowcore.errors import FlowError
from flowcore.models import build
from flowcore.training.recipe import RECIPES, read_recipe
from flowcore.training.stage import check_stage

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
