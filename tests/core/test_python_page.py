"""The programs of docs/python.md run, and a flow that is exported takes batches of other sizes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import build_tiny, build_upscaler
from torch import nn

import flowcore

from .photographs import photographs

ROOT = Path(__file__).parents[2]
TRAINS, ASSEMBLES, EXPORTS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)


class Enlarges(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, lr, latents):
        return self.flow.inverse(latents, self.flow.encode_condition(lr))


@pytest.mark.slow
def test_the_training_program_of_the_page_trains_in_two_processes(tmp_path):
    photographs(tmp_path / "photos", [(24, 20)] * 8)
    (tmp_path / "train_mine.py").write_text(TRAINS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["train_mine.py", "photos"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(re.findall(r"process (\d): \d", done.stdout)) == ["0", "0", "1", "1"]
    assert flowcore.load(tmp_path / "mine.safetensors").sample(1).shape == (1, 3, 16, 16)


def test_a_flow_by_hand_is_sampled_scored_and_kept_as_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(ASSEMBLES, names)  # noqa: S102
    assert names["pictures"].shape == (2, 3, 32, 32)
    assert names["bits"].isfinite().all()
    with torch.no_grad():
        assert torch.equal(names["again"].log_prob(names["pictures"]), names["flow"].log_prob(names["pictures"]))
    with pytest.raises(flowcore.FlowError) as raised:
        flowcore.save(names["flow"], tmp_path / "mine.safetensors")
    for line in ('torch.save(flow.state_dict(), "mine.pt")', 'load_state_dict(torch.load("mine.pt"))'):
        assert line in str(raised.value)
        assert line in ASSEMBLES


@pytest.mark.slow
def test_the_page_exports_both_directions_and_compiles_the_networks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = build_tiny("glow", perturb=0.05, image_size=(64, 64)).eval()
    monkeypatch.setattr(flowcore, "load", lambda name: tiny)
    x = torch.rand(5, 3, 64, 64)
    with torch.no_grad():
        latents, logdet = tiny(x)
    names = {}
    code, changed = re.subn(r"module\.compile\(\)", "module.compile(backend='eager')", EXPORTS)  # needs no compiler
    exec(code, names)  # noqa: S102
    assert changed == 1
    encoded, exported = torch.export.load("encoder.pt2").module()(x)
    decoded = names["decoder"].module()(latents)
    compiled, _ = tiny(x)
    for ours, theirs in zip([*latents, *latents, logdet], [*encoded, *compiled, exported], strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    torch.testing.assert_close(decoded, x, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_an_upscaler_is_exported_with_its_encoder():
    flow = build_upscaler(4).requires_grad_(False)

    def inputs(batch):
        return torch.rand(batch, 3, 8, 8), [torch.randn(batch, *shape) for shape in flow.latent_shapes(32, 32)]

    batch, enlarges = {0: torch.export.Dim("batch")}, Enlarges(flow)
    shapes = (batch, [batch] * len(inputs(2)[1]))
    program = torch.export.export(enlarges, inputs(2), dynamic_shapes=shapes, strict=False).module()
    five = inputs(5)
    torch.testing.assert_close(program(*five), enlarges(*five), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_real_nvp_is_exported_for_any_batch():
    flow = build_tiny("realnvp", perturb=0.05, scales=1).eval().requires_grad_(False)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(flow, (torch.rand(2, 3, 8, 12),), dynamic_shapes=(batch,), strict=False).module()
    x = torch.rand(3, 3, 8, 12)
    torch.testing.assert_close(program(x)[1], flow(x)[1], rtol=0, atol=1e-4)
