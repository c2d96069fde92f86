"""A family is one folder: without it, everything else works."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from builders import TINY

PACKAGE = Path(__file__).parents[2] / "flowcore"
REMOVED = ("tarflow", "ffjord", "residual_flow", "hcflow", "llflow")  # no other family builds on them

PROGRAM = """
import importlib, json, os, pkgutil, sys
import torch
for removed in sys.argv[2:]:
    for name in [name for name in sys.modules if name.split(".")[0] == "flowcore"]:
        del sys.modules[name]
    sys.path[0] = os.path.abspath(removed)
    import flowcore
    assert flowcore.__file__.startswith(sys.path[0])
    for module in pkgutil.walk_packages(flowcore.__path__, "flowcore."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    from flowcore.models import ARCHITECTURES, build, configure
    fields = json.loads(sys.argv[1])
    assert fields.keys() - ARCHITECTURES.keys() == {removed}
    for architecture in ARCHITECTURES:
        built = build(architecture, configure(architecture, fields[architecture])).eval()
        flowcore.save(built, f"{removed}.safetensors")
        flow = flowcore.load(f"{removed}.safetensors")
        height, width = flow.image_size or (16, 32)
        sources = {
            "low_resolution": torch.rand(1, 3, height // flow.condition_scale, width // flow.condition_scale),
            "low_light": torch.rand(1, 3, height, width),
            "luma": torch.rand(1, 1, 4 * height, 4 * width),
            "labels": torch.tensor([0]),
        }
        compiled, source = flowcore.CompiledFlow(flow), sources.get(flow.capabilities.source)
        cond = None if source is None else compiled.encode_condition(source)
        x = torch.rand(1, flow.channels, height, width)
        assert (compiled.inverse(compiled.encode(x, cond), cond) - x).abs().max() < 1e-3, architecture
"""


def test_the_other_families_work_without_one(tmp_path):
    for family in REMOVED:
        copy = tmp_path / family / "flowcore"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("weights"))  # with bytecode, which is still valid
        (copy / "weights").symlink_to(PACKAGE / "weights")
        shutil.rmtree(copy / "models" / family)
        names = copy / "models" / "__init__.py"
        names.write_text(re.sub(rf'(, {family}\b|^    "{family}",\n)', "", names.read_text(), flags=re.MULTILINE))
    command = [sys.executable, "-c", PROGRAM, json.dumps(TINY), *REMOVED]
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-1600:]
