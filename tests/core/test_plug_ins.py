"""The plug-in of docs/plug-ins.md: its code and commands run, in a process and a folder of their own."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flowcore.testing import check

from flowcore import CheckpointError, Transform
from flowcore.cli.main import main
from flowcore.flows.transforms import ActNorm
from flowcore.models.published import convert

from .photographs import photographs

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "plug-ins.md").read_text()

PROGRAM = """
import contextlib
from flowcore.cli.main import main
assert main(TRAIN) == 0
with contextlib.redirect_stdout(open("header.json", "w")):
    assert main(INSPECT) == 0
assert main(SAMPLE) == 0
import torch, flowcore, flowcore.testing, small_flow
torch.manual_seed(0)
flow = small_flow.small_flow(small_flow.SmallFlowConfig(steps=3, hidden=5)).eval()
torch.save({n.replace("levels.", "blocks.", 1): t for n, t in flow.state_dict().items()}, "theirs.pth")
x = torch.rand(2, 3, 8, 12)
again = flowcore.load("theirs.pth", n_bits=5)
assert again.config == small_flow.SmallFlowConfig(steps=3, hidden=5, n_bits=5)
assert all(map(torch.equal, again(x)[0], flow(x)[0]))
trained = flowcore.load("small/model.safetensors")
assert trained.sample(1).shape == (1, 3, 16, 16)  # as Flow Sample Grid asks, which has no size of its own
assert trained.architecture == "small_flow"
assert flowcore.score(trained, x).bits_per_dim.isfinite().all()
flowcore.testing.check(flow, torch.rand(2, 3, 4, 6))
square = small_flow.small_flow(small_flow.SmallFlowConfig(image_size=8))
assert flowcore.sample(square, 1).shape == (1, 3, 8, 8)
assert (flowcore.decode(trained, flowcore.encode(trained, x)) - x).abs().max() < 1e-4
assert main(CONVERT) == 0
"""


@pytest.mark.slow
def test_the_plug_in_page_runs(tmp_path):
    (code,), (recipe,) = (re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL) for kind in ("python", "toml"))
    (tmp_path / "small_flow.py").write_text(code)
    (tmp_path / "small.toml").write_text(recipe)
    photographs(tmp_path / "photographs", [(24, 20), (20, 24)])
    commands = [shlex.split(line) for line in re.findall(r"^    python (-m flowcore .+)", TEXT, re.MULTILINE)]
    assert [command[4] for command in commands] == ["train", "inspect", "sample", "convert"]
    program = PROGRAM
    for command in commands:
        program = program.replace(command[4].upper(), repr(command[2:]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr[-1600:].decode()
    header = json.loads((tmp_path / "header.json").read_text())
    assert header["architecture"] == "small_flow"
    assert header["config"] == {"steps": 1, "hidden": 8, "n_bits": 8, "image_size": 16}
    assert len(list((tmp_path / "samples").glob("*.png"))) == 1
    assert (tmp_path / "ours.safetensors").exists()


STARTED = f"""
import asyncio, importlib.util, sys
from runpy import run_path
sys.path = [path for path in sys.path if path != {str(ROOT)!r}]  # where `make venv` has installed it
run_path({str(ROOT / "prestartup_script.py")!r})
import nodes
print(nodes.__file__, importlib.util.find_spec("flowcore").origin)
sys.modules["comfyui_version"] = type(sys)("comfyui_version")
sys.modules["comfyui_version"].__version__ = "0.30.0"
pack = run_path({str(ROOT / "__init__.py")!r}, run_name="pack")
asyncio.run(pack["comfy_entrypoint"]())
"""


def started(folder):
    """Start the pack as ComfyUI does, in a folder with a `nodes.py`, without the rest of ComfyUI."""
    (folder / "nodes.py").touch()
    return subprocess.run([sys.executable, "-c", STARTED], cwd=folder, capture_output=True, text=True)


def test_in_comfyui_flowcore_is_the_pack_and_nodes_are_the_hosts(tmp_path):
    result = started(tmp_path)
    assert result.stdout.split() == [str(tmp_path / "nodes.py"), str(ROOT / "flowcore" / "__init__.py")]
    assert "instead of the one in this pack" not in result.stderr


def test_another_flowcore_comes_first_and_is_named_if_its_version_differs(tmp_path):
    other = tmp_path / "flowcore" / "__init__.py"
    other.parent.mkdir()
    other.write_text("__version__ = '0.0.1'")
    assert f"ComfyUI uses the flowcore in {other}, 0.0.1, instead of the one in this pack, " in started(tmp_path).stderr


def test_without_its_plug_in_a_file_is_refused_with_what_to_do(tmp_path, capsys):
    torch.save({"blocks.0.steps.transforms.0.bias": torch.zeros(12)}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match="No architecture that flowcore knows"):
        convert(tmp_path / "theirs.pth")
    assert main(["--plugin", "no_such_plug_in", "inspect", "srflow-x4"]) == 2
    assert "Cannot import the plug-in no_such_plug_in" in capsys.readouterr().err


def test_a_plug_in_of_the_working_folder_is_found_without_python_m(tmp_path, monkeypatch):
    (tmp_path / "beside_me.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    assert main(["--plugin", "beside_me", "inspect", "mnist-styles"]) == 0
    assert main(["--plugin", ".beside_me", "inspect", "mnist-styles"]) == 2


def test_the_laws_take_what_a_plug_in_may_leave_out():
    class WithoutPositions(ActNorm):
        uniform_logdet, forward_with_logdet_map = False, Transform.forward_with_logdet_map

    check(WithoutPositions(3), torch.rand(2, 3, 4, 6))
