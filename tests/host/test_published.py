"""The stories of published models, made here since none is free: dark photographs, an upscaler, shrink and restore."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from builders import build_hcflow, build_tiny, hcflow_checkpoint, srflow_checkpoint
from PIL import Image
from talk import WORKFLOWS, array, graph, loader, newest, opened, pixels, refusal, report, upscale

import flowcore
from flowcore.flows.transforms import ActNorm

pytestmark = newest
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


# --- HCFlow -----------------------------------------------------------------------------------------------------------

UPSCALER, RESCALER = "SR_DF2K_X4_HCFlow++.pth", "Rescaling_DF2K_X4_HCFlow.pth"


@pytest.fixture
def hcflows(host):
    """Both published layouts lie in the server's models/flows, under their published names."""
    folder = host.server.base / "models" / "flows"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rescaling in ((UPSCALER, False), (RESCALER, True)):
        if not (folder / name).exists():
            torch.save(hcflow_checkpoint(build_hcflow(rescaling=rescaling)), folder / name)
    host.forget()


def rescaling(photo, **inputs):
    asked = {"small": "shrink.0", "model": "model.0", "temperature": 0.1, "seed": 1}
    asked |= {"width": "shrink.1", "height": "shrink.2"} | inputs
    return graph(
        photo=("LoadImage", {"image": photo}),
        model=loader(RESCALER),
        shrink=("FlowcoreShrink", {"image": "photo.0", "model": "model.0"}),
        small=("SaveImage", {"images": "shrink.0", "filename_prefix": "small"}),
        restore=("FlowcoreRestore", asked),
        save=("SaveImage", {"images": "restore.0", "filename_prefix": "restored"}),
    )


def test_hcflow_story(host, hcflows, photo):
    entry = host.run(upscale(photo=photo, model_name=UPSCALER, samples=2, temperature=0.3, seed=3))
    model = entry["outputs"]["model"]
    assert (model["architecture"], model["scale"]) == (["hcflow"], [4])
    assert model["use"] == ["enlarges pictures"]  # a file has no text of its own: it is that of its task
    assert "Apache-2.0" in model["licence"][0]
    pictures = [opened(data) for data in host.pictures(entry)]
    assert [picture.size for picture in pictures] == [(96, 64)] * 2
    assert np.abs(array(pictures[0]) - array(pictures[1])).mean() > 1 / 255


def test_shrink_story(host, hcflows):
    photo = Image.fromarray((np.linspace(0, 255, 26 * 18 * 3) % 256).astype(np.uint8).reshape(18, 26, 3))
    name = host.put("odd.png", photo)
    outputs = host.run_from_canvas(rescaling(name))["outputs"]
    assert "extended" in " ".join(outputs["shrink"]["text"])
    assert len(outputs["shrink"]["images"]) == 1
    pictures = {picture.size: array(picture) for picture in host.images(rescaling(name))}
    assert pictures.keys() == {(7, 5), (26, 18)}
    flow = build_hcflow(rescaling=True)
    small = flowcore.shrink(flow, torch.from_numpy(array(photo)).permute(2, 0, 1)[None].float())
    restored = flowcore.restore(flow, small, temperature=0.1, seed=1, size=(18, 26))
    for size, expected in (((7, 5), small), ((26, 18), restored)):
        assert np.abs(pictures[size] - expected[0].permute(1, 2, 0).numpy()).max() <= 1.001 / 255
    kept = {picture.size for picture in host.images(rescaling(name, width=0, height=0, samples=2))}
    assert kept == {(7, 5), (28, 20)}
