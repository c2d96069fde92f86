"""Calm edges and the temperature that a model's file states: what they do, and that nothing changes without them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import build_upscaler
from builders import random_image as picture
from torch import Tensor

import flowcore
from flowcore import Flow, FlowError, save, temperature_grid, upscale
from flowcore.batch.provenance import read as read_provenance
from flowcore.engine.tiles import edge_map
from flowcore.flows.prior import resize_temperature_map
from flowcore.models.identity import model_sha256
from flowcore.models.model_file import read_header, reconfigure
from flowcore.tasks.integrations import Upscaler
from flowcore.tasks.upscale import UpscaleSettings

from .commands import photograph, run

OWN = {"temperature": 0.6, "calm_edges": 0.75}


@pytest.fixture(scope="module")
def flow() -> Flow:
    return build_upscaler(**OWN)


def resolved(flow: Flow, **settings: Any) -> tuple[Any, Any]:
    """Temperature and calm edges, of the model's file where they are not set."""
    filled = UpscaleSettings(**settings).resolved(flow)
    return filled.temperature, filled.calm_edges


def halves(height: int = 12, width: int = 16) -> Tensor:
    """Black and white, with an edge in the middle."""
    image = torch.zeros(1, 3, height, width)
    image[..., width // 2 :] = 1
    return image


def test_the_map_is_1_at_an_edge_and_0_elsewhere_and_in_weak_texture() -> None:
    edges = edge_map(halves())
    assert edges.shape == (1, 1, 12, 16)
    assert (edges[..., 6:10] == 1).all()
    assert (edges[..., :5] == 0).all()
    assert (edges[..., 11:] == 0).all()
    assert torch.equal(edge_map(halves().transpose(2, 3)), edges.transpose(2, 3))
    assert (edge_map(0.5 + 0.02 * (picture(1, 3, 20, 20) - 0.5)) == 0).all()
    for size in ((1, 1), (1, 7), (2, 3)):
        assert edge_map(picture(2, 3, *size)).shape == (2, 1, *size)


def test_temperature_and_calm_edges_of_a_file_hold_until_each_is_set(flow: Flow) -> None:
    assert resolved(flow) == (0.6, 0.75)
    assert resolved(flow, temperature=0.9) == (0.9, 0.75)
    assert resolved(flow, temperature=0.9, calm_edges=0.5) == (0.9, 0.5)
    assert resolved(flow, calm_edges=0.0) == (0.6, 0.0)
    assert resolved(build_upscaler()) == (0.8, 0.0)  # of a file that states nothing
    lr = picture(2, 3, 7, 9)
    own = upscale(flow, lr, seed=3)
    assert torch.equal(own, upscale(flow, lr, seed=3, **OWN))
    assert not torch.equal(own, upscale(flow, lr, seed=3, temperature=0.6, calm_edges=0))
    grid = temperature_grid(flow, lr[:1], [None, 0.9], seed=3, seeds=1)
    torch.testing.assert_close(grid[:1], own[:1], atol=1e-5, rtol=0)


def test_a_lower_temperature_makes_no_picture_noisier(flow: Flow) -> None:
    """Edges stay calm where the temperature is no longer the model's: 1.00 to 0.91 had turned walls to sandpaper."""
    lr = halves()
    spread = [upscale(flow, lr, temperature=tau, samples=4).std(0).mean() for tau in (None, 0.59, 0.3)]
    assert spread[0] > spread[1] > spread[2]


def test_samples_agree_at_edges_and_differ_elsewhere_as_before(flow: Flow) -> None:
    lr = halves(12, 40)
    spread, calm = (upscale(flow, lr, temperature=0.8, calm_edges=c, samples=4).std(0).mean((0, 1)) for c in (0.0, 1.0))
    assert calm[76:84].mean() < 0.3 * spread[76:84].mean()
    assert torch.allclose(calm[:40], spread[:40], atol=0.1 * float(spread[:40].mean()))


@pytest.mark.parametrize(("scale", "levels"), [(4, True), (8, False)])
def test_it_multiplies_numbers_maps_and_temperatures_per_level(scale: int, levels: bool) -> None:
    """Odd sides: the map must end with the image, not with what is padded to it."""
    flow, lr = build_upscaler(scale), picture(2, 3, 7, 9)
    finest = flow.latent_shapes(8 * scale, 8 * scale)[0][1] // 8
    painted = torch.rand(2, 1, 7 * finest, 9 * finest)
    kept = 1 - 0.5 * resize_temperature_map(edge_map(lr), 7 * finest, 9 * finest)
    count = len(flow.latent_shapes(8 * scale, 8 * scale))
    for tau in (0.9, painted):
        given: Any = [tau, *[0.4] * (count - 1)] if levels else tau
        explicit: Any = [tau * kept, *[0.4 * kept] * (count - 1)] if levels else tau * kept
        calm = upscale(flow, lr, temperature=given, calm_edges=0.5, seed=4)
        torch.testing.assert_close(calm, upscale(flow, lr, temperature=explicit, seed=4), atol=1e-5, rtol=0)
        assert (calm - upscale(flow, lr, temperature=given, seed=4)).abs().max() > 1e-3


def test_an_upscale_model_takes_both_or_the_models_own(flow: Flow) -> None:
    lr = picture(1, 3, 8, 8)
    assert torch.equal(Upscaler(flow)(lr), upscale(flow, lr, temperature=0))
    off = {"temperature": 0.6, "calm_edges": 0.0}
    own, stated, plain = (Upscaler(flow, **o)(lr) for o in ({"temperature": None}, OWN, off))
    assert torch.equal(own, stated)
    assert not torch.equal(own, plain)


def test_a_file_gets_another_default_and_keeps_its_weights(tmp_path: Path) -> None:
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save(build_upscaler(), old, provenance={"licence": "CC0-1.0"}, dtype=torch.float16)
    reconfigure(old, new, {"temperature": 0.55, "calm_edges": 1})
    before, after = read_header(old), read_header(new)
    assert after.config == before.config | {"temperature": 0.55, "calm_edges": 1}
    assert after.provenance == before.provenance
    loaded = flowcore.load(new)
    assert resolved(loaded) == (0.55, 1)
    assert model_sha256(loaded) == model_sha256(flowcore.load(old))  # so recipes in pictures still find it
    content = new.read_bytes()
    with pytest.raises(FlowError, match="calm_edges"):
        reconfigure(new, new, {"calm_edges": 2})
    assert new.read_bytes() == content


def test_command_line_defaults_come_from_the_file_and_show_in_names_and_recipes(tmp_path: Path) -> None:
    model, out = tmp_path / "own.safetensors", tmp_path / "out"
    save(build_upscaler(**OWN), model)
    image = photograph(tmp_path / "photo.png", (10, 7))
    words = ["upscale", image, "-o", out, "--model", model]
    for options, name, settings in (
        ([], "photo_own_tau0.6_calm0.75_seed0.png", (0.6, 0.75)),
        (["--calm-edges", "0"], "photo_own_tau0.6_seed0.png", (0.6, 0)),
        (["--boldness", "0"], "photo_own_tau0_calm0.75_seed0.png", (0, 0.75)),
    ):
        assert run(*words, *options) == 0
        (entry,) = read_provenance(out / name)
        assert (entry.temperature, entry.settings.get("calm_edges")) == settings
    assert len(list(out.iterdir())) == 3
