"""Looks: named rows of options, which hold where a temperature or sharpness is not set."""

from typing import get_args

import pytest
import torch
from builders import build_upscaler

import flowcore
from flowcore import save, upscale
from flowcore.batch.provenance import read as read_provenance
from flowcore.engine.defaults import stated_defaults
from flowcore.engine.looks import Name
from flowcore.images.edges import sharpen_edges

from .commands import photograph, run

FLOW = {"temperature": 0.6, "boldest_temperature": 1.2, "calm_edges": 0.3}


def made(**options):
    lr = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(3))
    return upscale(build_upscaler(**FLOW), lr, seed=5, samples=2, **options)


def test_the_table_has_the_names_that_the_option_takes():
    assert tuple(flowcore.looks) == get_args(Name)
    with pytest.raises(flowcore.FlowError, match="look"):
        made(look="bold")


def test_natural_is_what_the_model_makes_by_default():
    assert torch.equal(made(look="natural"), made())


def test_faithful_is_the_likeliest_picture():
    assert torch.equal(made(look="faithful"), made(boldness=0.0))


def test_crisp_is_natural_with_sharper_edges():
    natural, crisp = made(), made(look="crisp")
    assert torch.equal(crisp, sharpen_edges(natural, flowcore.looks["crisp"].sharpness))
    assert (crisp - natural).abs().max() > 0.02


def test_crisp_follows_the_models_own_guide_but_not_fully():
    """A share of 1 would give every seed one picture, which could not be traced to its seed."""
    own = flowcore.load("srflow-x4").recommended
    crisp = stated_defaults(own, {"look": "crisp", "temperature": None, "guide_strength": None}, has_guide=True)
    assert own.guide_strength < crisp["guide_strength"] == flowcore.looks["crisp"].guide_strength < 1
    given = stated_defaults(own, {"look": "crisp", "guide_strength": None, "guide": True}, has_guide=True)
    assert given["guide_strength"] == own.guide_strength  # of somebody else's guide


def test_lively_has_a_higher_temperature():
    lively = made(look="lively", sharpness=0.0)
    torch.testing.assert_close(lively, made(temperature=0.8, calm_faces=0.5), atol=1e-6, rtol=0)


def test_a_look_changes_nothing_that_is_set():
    given = {"temperature": 0.4, "sharpness": 0.5}
    assert torch.equal(made(look="lively", **given), made(**given))
    bold = {"boldness": 0.9, "sharpness": 0.0}
    assert torch.equal(made(look="lively", **bold), made(**bold))


def test_edges_become_narrower_and_nothing_is_outlined():
    soft = torch.sigmoid(torch.arange(32) - 15.5).expand(1, 3, 32, -1)
    steepest = [each.diff(dim=-1).max() for each in (soft, sharpen_edges(soft, 1.5))]
    assert steepest[1] > 1.25 * steepest[0]
    texture = 0.3 + 0.4 * torch.rand(1, 3, 8, 9, generator=torch.Generator().manual_seed(1))
    for picture in (soft, texture):
        around = torch.nn.functional.unfold(torch.nn.functional.pad(picture[:, :1], [2] * 4, mode="replicate"), 5)
        values = sharpen_edges(picture, 9.0)[:, :1].flatten(2)
        assert bool(((around.amin(1) <= values) & (values <= around.amax(1))).all())
    assert sharpen_edges(soft[..., :1, :1], 1.5).shape == (1, 3, 1, 1)
    assert sharpen_edges(soft, 0) is soft


def test_the_command_names_and_records_the_numbers_of_a_look(tmp_path):
    model, out = tmp_path / "own.safetensors", tmp_path / "out"
    save(build_upscaler(**FLOW), model)
    words = ["upscale", photograph(tmp_path / "photo.png", (10, 7)), "-o", out, "--model", model]
    for look, name, recorded in (
        ("natural", "photo_own_tau0.6_calm0.3_seed0.png", (0.6, None)),
        ("faithful", "photo_own_tau0_calm0.3_seed0.png", (0.0, None)),
        ("crisp", "photo_own_tau0.6_calm0.3_sharp1_seed0.png", (0.6, 1.0)),
        ("lively", "photo_own_tau0.8_calm0.3_faces0.5_sharp0.7_seed0.png", (0.8, 0.7)),
    ):
        assert run(*words, "--look", look) == 0
        (entry,) = read_provenance(out / name)
        assert (entry.temperature, entry.settings.get("sharpness")) == recorded
    assert run(*words, "--look", "crisp", "--steadiness", "0.5") == 2
