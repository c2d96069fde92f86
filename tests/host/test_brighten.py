"""The story of a dark photograph: a published file from Load Flow Model, its picture, and other exposures."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from builders import build_tiny, srflow_checkpoint
from PIL import Image
from talk import WORKFLOWS, graph, loader, pixels, refusal, report

import flowcore
from flowcore.transforms import ActNorm

FILE = "LOL_smallNet.pth"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as LLFlow's authors publish it, of a small random network; its pictures are pictures."""
    flow = build_tiny("llflow", perturb=0.02, encoder_blocks=4)
    with torch.no_grad():
        next(m for m in flow.levels.modules() if isinstance(m, ActNorm)).log_scale += 2
    path = tmp_path_factory.mktemp("llflow") / FILE
    torch.save({f"module.{name}": t for name, t in srflow_checkpoint(flow).items()}, path)
    return path


@pytest.fixture
def dark(host, published):
    """A dark photograph in the input folder, and the model in models/flows; what the photograph shows."""
    target = host.server.base / "models" / "flows" / FILE
    if not target.exists():
        target.write_bytes(published.read_bytes())
    photo = Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((120, 40, 157, 61)).point(lambda v: v // 6)
    host.put("dark.png", photo)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]


def story(**inputs):
    return graph(
        photo=("LoadImage", {"image": "dark.png"}),
        model=loader(FILE),
        brighten=("FlowcoreBrighten", {"image": "photo.0", "model": "model.0", "temperature": 0.0, "seed": 3} | inputs),
        report=report("brighten.0"),
    )


def test_a_dark_photograph_and_its_exposures(host, dark, published):
    flow = flowcore.load(published)
    outputs = host.outputs(story())
    assert "CC BY-NC-SA" in outputs["model"]["licence"][0]
    assert outputs["model"]["architecture"] == ["llflow"]
    still = pixels(outputs["report"])
    torch.testing.assert_close(still, flowcore.brighten(flow, dark), atol=1e-5, rtol=0)
    exposures = pixels(host.outputs(story(temperature=0.7, samples=4))["report"])
    expected = flowcore.brighten(flow, dark, temperature=0.7, seed=3, samples=4)
    torch.testing.assert_close(exposures, expected, atol=1e-5, rtol=0)
    assert min(float((a - b).abs().max()) for a, b in pairwise(exposures)) > 1 / 255


def test_exposures_that_are_all_alike_are_mentioned_and_other_models_refused(host, flows, dark):
    text = host.outputs(story(samples=2))["brighten"]["text"][0]
    assert "At temperature 0 all samples are the same picture" in text
    workflow = graph(story(), model=loader("small-srflow.safetensors"))
    refusal(host, workflow, "brighten needs a low-light model", "brighten-photos")
