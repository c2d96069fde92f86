"""The benchmarks: what ours is measured against is the same network, and every program starts."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowcore.flows.prior import sample_latents

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"steps": 2, "transition_steps": 1, "hidden": 8, "stacked_blocks": (2, 0)}
SMALL |= {"encoder_blocks": 3, "encoder_width": 8, "encoder_growth": 4}


@pytest.fixture(scope="module")
def benchmarks():
    """Import the package by its place: the root is not on the path, and must not be."""
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules["benchmarks"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    yield lambda name: importlib.import_module(f"benchmarks.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.fixture(params=[{"scale": 4, "levels": 3}, {"scale": 8, "levels": 4}], ids=["4x", "8x"])
def network(benchmarks, request):
    """A network in float64 whose parameters are all away from zero, an LR image, and latents."""
    flow = benchmarks("published").random_srflow(**SMALL, **request.param).double()
    generator = torch.Generator().manual_seed(1)
    for p in flow.parameters():
        p.add_(0.02 * torch.randn(p.shape, generator=generator))
    lr = torch.rand(1, 3, 6, 10, generator=generator).double()
    shapes = flow.latent_shapes(6 * flow.config.scale, 10 * flow.config.scale)
    return flow, lr, [z.double() for z in sample_latents(shapes, 1, 0.9, seed=2)]


def test_the_published_program_gives_the_picture_of_our_flow(benchmarks, network):
    flow, lr, latents = network
    expected = flow.inverse(latents, flow.encode_condition(lr))
    assert expected.std() > 0.01
    assert (benchmarks("published").decode(flow, lr, latents) - expected).abs().max() < 1e-9


def test_the_multiply_adds_of_the_roofline_are_those_of_the_published_program(benchmarks, network):
    flow, lr, latents = network
    with FlopCounterMode(display=False) as counter:
        picture = benchmarks("published").decode(flow, lr, latents)
    work = benchmarks("srflow").multiply_adds(flow.config)
    pixels = picture.shape[-2] * picture.shape[-1]
    assert 2 * pixels * (work.shared + work.per_sample + work.dead) == pytest.approx(counter.get_total_flops())


def test_every_program_says_what_it_takes(benchmarks, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        module = benchmarks(path.stem)
        if {"argparse", "arguments"} & vars(module).keys() and hasattr(module, "main"):
            with pytest.raises(SystemExit, match=r"^0$"):
                module.main()
            assert "usage:" in capsys.readouterr().out, path.name
