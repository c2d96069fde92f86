"""What Python callers may pass for a flow, what a call returns, and what is listed."""

import importlib
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from builders import build_tiny
from torch import nn

import flowcore
from flowcore import FlowError
from flowcore.cli.main import main
from flowcore.flows.flow import Level
from flowcore.flows.transforms import Chain, FixedAffine
from flowcore.models import catalog
from flowcore.models.model_file import read_header
from flowcore.tasks.faces import restore_faces

SMALL = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
PYRIGHT = Path(sys.executable).with_name("pyright")
PROGRAMS = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_a_name_or_a_file_is_a_flow(model):
    expected = flowcore.upscale(flowcore.load(model), SMALL)
    for named in (model, str(model)):
        assert torch.equal(flowcore.upscale(named, SMALL), expected)
        assert torch.equal(flowcore.upscale(flow=named, lr=SMALL), expected)
    digit = flowcore.sample(flowcore.load("mnist-styles"), 1, labels=3)
    assert torch.equal(flowcore.sample("mnist-styles", 1, labels=3), digit)


def test_what_is_no_flow_is_named_with_what_to_do(model):
    for wrong in (nn.Linear(2, 2), 3, SMALL):
        kind = type(wrong).__name__
        with pytest.raises(FlowError, match=f"got a {kind}. Load one: flowcore.load") as raised:
            flowcore.upscale(wrong, SMALL)
        assert "flowcore.models()" in str(raised.value)
    with pytest.raises(FlowError, match="got a Linear"):
        restore_faces(flowcore.load(model), nn.Linear(2, 2), SMALL)
    with pytest.raises(FlowError, match="no-such-model"):
        flowcore.upscale("no-such-model", SMALL)


def test_only_a_model_is_saved_and_only_as_safetensors(tmp_path):
    for wrong in (nn.Linear(2, 2), flowcore.Flow([], channels=3)):
        with pytest.raises(FlowError, match=r"torch.save"):
            flowcore.save(wrong, tmp_path / "a.safetensors")
    for name in ("a.pth", "a"):
        with pytest.raises(FlowError, match=r"\.safetensors"):
            flowcore.save(build_tiny("glow"), tmp_path / name)
    assert not [*tmp_path.iterdir()]


def test_transforms_around_the_levels_can_be_replaced():
    flow = flowcore.Flow([Level([], squeeze=Chain(), downscale=1)], channels=3)
    flow.preprocess, flow.top_prior = FixedAffine(0.25, 2.0), FixedAffine(0.0, 0.5)
    torch.testing.assert_close(flow.encode(SMALL)[0], SMALL - 0.25)
    flow.preprocess = flow.top_prior = None
    assert torch.equal(flow.encode(SMALL)[0], SMALL)


def test_a_flow_that_trains_without_initialization_says_so_once():
    flow, initialized = (build_tiny("glow", image_size=(8, 8)).train() for _ in range(2))
    with pytest.warns(UserWarning, match=r"actnorms are not initialized: call flow.initialize"):
        flow.log_prob(SMALL)
    initialized.initialize(SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.log_prob(SMALL)  # once
        initialized.log_prob(SMALL)
        build_tiny("glow", image_size=(8, 8)).eval().log_prob(SMALL)  # does not train


def test_shipped_models_are_listed_in_python_and_on_the_command_line(capsys):
    infos = flowcore.models()
    assert [info.name for info in infos] == catalog.names()
    for info in infos:
        flow = flowcore.load(info.name)
        assert info.tasks == tuple(sorted(flow.capabilities.tasks))
        assert (info.architecture, info.image_size) == (flow.architecture, flow.image_size)
        assert info.scale in (None, flow.condition_scale)
        assert info.n_bits == getattr(flow.config, "n_bits", None)
        assert info.license == read_header(catalog.path(info.name)).provenance["licence"]
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["tasks"]) for row in listed] == [(info.name, [*info.tasks]) for info in infos]
    assert main(["models"]) == 0
    assert "| srflow-x4 | upscale | x4 |" in capsys.readouterr().out


def test_the_package_of_architectures_is_still_one():
    glow = importlib.import_module("flowcore.models.glow.model")
    assert flowcore.models.ARCHITECTURES["glow"].config is glow.GlowConfig


PROGRAM = """
import flowcore
import torch
flow = flowcore.load("glow-photos")
latents, logdet = flow(torch.rand(1, 3, 32, 32))
reveal_type(latents)
reveal_type(logdet)
reveal_type(flowcore.models()[0].scale)
flowcore.testing.check(flow, torch.rand(2, 3, 8, 16))
"""


OWN_FLOW = """
import flowcore
import torch
from pathlib import Path
flow, x = flowcore.Flow([], channels=3), torch.rand(1, 3, 8, 8)
for model in (flow, "glow-photos", Path("mine.safetensors")):
    flowcore.score(flow=model, image=x)
    flowcore.sample(model, 2, size=8)
    flowcore.decode(model, flowcore.encode(model, x))
    flowcore.verify(model, x)
    flowcore.upscale(model, x, seed=3)
"""


def pyright(folder, programs):
    """Check programs in a folder; skip the test where pyright cannot start, since its node is missing."""
    if not PYRIGHT.exists():
        pytest.skip("pyright is not installed")
    for number, program in enumerate(programs):
        (folder / f"program{number}.py").write_text(program)
    # of an editable install it finds no sources by itself
    root = str(Path(flowcore.__file__).parents[1])
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [root]}))
    command = [PYRIGHT, "--pythonpath", sys.executable]
    said = subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout
    if "error" not in said:
        pytest.skip("pyright cannot start here")
    assert "0 errors" in said, said
    return said


@pytest.mark.slow
def test_programs_of_readme_and_python_page_and_own_flows_have_no_errors_of_types(tmp_path):
    pages = [(Path(__file__).parents[2] / page).read_text(encoding="utf-8") for page in ("README.md", "docs/python.md")]
    pyright(tmp_path, [OWN_FLOW, *(program for page in pages for program in PROGRAMS.findall(page))])


@pytest.mark.slow
def test_a_call_of_a_flow_is_typed_and_testing_is_known(tmp_path):
    said = pyright(tmp_path, [PROGRAM])
    for kind in ('"latents" is "list[Tensor]"', '"logdet" is "Tensor"', '"int | None"'):
        assert kind in said
