"""A small training of an upscaler in two stages, and the comparison of runs."""

import torch

from flowcore.models.model_file import read
from flowcore.training.loop import train
from flowcore.training.recipe import parse_recipe

RECIPE = """
name = "tiny"
architecture = "srflow"
seed = 1
validation = 1
ema = 0.6
precision = "float32"
checkpoint_every = 3
init_batch = 8
model = {scale = 2, levels = 2, steps = 1, transition_steps = 1, hidden = 8, encoder_blocks = 1, encoder_width = 8, \
encoder_growth = 4, stacked_blocks = [0], residual = true}

[[stages]]
name = "encoder"
objective = "l1"
steps = 8
batch = 4
crop = 16
learning_rate = 3e-3
warmup = 1
lr_consistency = 1.0

[[stages]]
name = "flow"
objective = "likelihood"
steps = 12
batch = 4
crop = 16
learning_rate = 1e-2
warmup = 1
clip = 10.0
"""
L1, ALL = 8, 20  # steps of the first stage, and of both


def recipe(*changes, text=RECIPE):
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_recipe(text)


def run_recipe(photos, run, *changes, **options):
    """Train by the recipe with these changes, and return the lines of the log."""
    lines = []
    train(recipe(*changes), photos, run, log=lines.append, **options)
    return lines


def content(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)


def assert_same_run(one, two):
    """The same parameters, averages and moments, bit for bit."""
    a, b = content(one), content(two)
    assert all(a["progress"][name] == b["progress"][name] for name in ("step", "skipped"))
    for name in ("flow", "average"):
        assert a[name].keys() == b[name].keys()
        for key, value in a[name].items():
            assert torch.equal(value, b[name][key]), f"{name} {key}"
    assert a["optimiser"]["state"].keys() == b["optimiser"]["state"].keys()
    for key, state in a["optimiser"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b["optimiser"]["state"][key][name]), f"moment {name} of parameter {key}"
    models = [read(run / "model.safetensors").state_dict() for run in (one, two)]
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())
