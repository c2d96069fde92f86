"""Memory of training: recomputed steps keep a fraction, with the same gradients; what fits is found by measuring."""

import copy
import dataclasses
import os
import platform
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from builders import TINY, build_tiny, source_of

from flowcore.flows.networks.residual import AffineBatchNorm
from flowcore.flows.transforms import BatchNorm, use_batch_moments
from flowcore.training.objective import NO_PENALTIES, Likelihood, make_objective
from flowcore.training.recipe import Stage
from flowcore.training.stage import PeakMemory, largest_batch, recomputable_modules, recompute_activations

pytestmark = pytest.mark.slow

FIELDS = {"srflow": {"scale": 2, "levels": 2, "residual": True}, "colorizer": {"dropout": 0.3}}


def tiny(architecture, **fields):
    return build_tiny(architecture, perturb=0.02, **{**FIELDS.get(architecture, {}), **fields}).train()


def batch(flow, size=4, side=16):
    torch.manual_seed(1)
    height, width = flow.image_size or (side, side)
    if flow.architecture == "colorizer":
        height = width = 8
    source = source_of(flow, height, width, size)
    return 0.3 + 0.4 * torch.rand(size, flow.channels, height, width), source


def gradients(loss, flow, x, source, *, recompute):
    noise = loss.noise(tuple(x.shape), torch.Generator().manual_seed(2))
    torch.manual_seed(3)  # for dropout
    with recompute_activations(flow) if recompute else nullcontext():
        with use_batch_moments(flow):
            value = loss(x, source, noise)
        value.backward()
    found = {name: p.grad.clone() for name, p in flow.named_parameters() if p.grad is not None}
    flow.zero_grad(set_to_none=True)
    return float(value.detach()), found


@pytest.mark.parametrize("architecture", [*TINY, "encoder"])
def test_recomputed_steps_have_the_same_gradients(architecture):
    flow = tiny("srflow" if architecture == "encoder" else architecture)
    x, source = batch(flow)
    if architecture == "encoder":
        loss = make_objective(flow, Stage(name="encoder", objective="l1", steps=1, lr_consistency=1.0))
    else:
        loss = Likelihood(flow, dataclasses.replace(NO_PENALTIES, balanced=architecture == "colorizer"))
    plain, one = gradients(loss, flow, x, source, recompute=False)
    again, two = gradients(loss, flow, x, source, recompute=True)
    assert plain == pytest.approx(again, rel=1e-6)
    assert one.keys() == two.keys()
    assert one
    for name, gradient in one.items():
        assert (gradient - two[name]).norm() <= 1e-5 * gradient.norm(), name


def test_running_moments_follow_a_batch_once():
    one = tiny("realnvp")
    norms = [m for m in one.modules() if isinstance(m, BatchNorm)]
    assert any(isinstance(m, AffineBatchNorm) for m in one.modules())
    assert norms
    two = copy.deepcopy(one)
    for flow, way in ((one, False), (two, True)):
        gradients(Likelihood(flow), flow, *batch(flow), recompute=way)
    assert any(not torch.equal(norm.mean, torch.zeros_like(norm.mean)) for norm in norms)
    for (name, a), b in zip(one.named_buffers(), two.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_the_model_is_restored_afterwards():
    flow = tiny("srflow")

    def attributes():
        return [set(module.__dict__) for module in recomputable_modules(flow)]

    before = attributes()
    with recompute_activations(flow):
        assert all(now != was for now, was in zip(attributes(), before, strict=True))
    assert attributes() == before


def peak(steps, *, recompute, size=16):
    flow = tiny("glow", levels=3, steps=steps, hidden=32, image_size=32)
    x, _ = batch(flow, size, 32)
    loss = Likelihood(flow)
    with PeakMemory() as memory:
        gradients(loss, flow, x, None, recompute=recompute)
    return memory.peak


def test_memory_stays_nearly_flat_as_steps_grow():
    """The issue's model, Glow with 3 levels of 32 steps, narrow: a quarter at most."""
    plain, less = peak(32, recompute=False), peak(32, recompute=True)
    assert less <= plain / 4
    few_plain, few_less = peak(8, recompute=False), peak(8, recompute=True)
    assert peak(8, recompute=True) == few_less  # the same on every run
    assert less - few_less < (plain - few_plain) / 6  # what every further step costs


def test_peak_memory_counts_what_lives_at_one_time():
    with PeakMemory() as memory:
        a = torch.zeros(1000)
        b = a + 1  # 8,000 bytes now
        del a
        c = b * 2
        del b
        c.add_(1)  # in place: nothing new
        c.view(10, 100)
    assert memory.peak == 8000


def test_the_largest_batch_is_found_from_small_ones():
    asked = []

    def step(items):
        asked.append(items)
        fixed, each = torch.empty(1000), torch.empty(items * 500)  # 4,000 bytes, and 2,000 an item
        del fixed, each

    for free, fits in ((24_000, 10), (4_000, 0), (0, 0)):
        assert largest_batch(step, free) == (fits, 2000)
    assert set(asked) == {1, 2}

    def step_beside_gradients(items):
        fixed = torch.empty(100_000)  # held alone at the end, and larger than all items
        del fixed
        each = torch.empty(items * 2000)
        del each

    fits, each = largest_batch(step_beside_gradients, 1_000_000, most=1024)
    assert 7_000 < each <= 8_000
    assert fits == pytest.approx(125, rel=0.15)
    assert largest_batch(step_beside_gradients, 1_000_000, most=1)[0] > 0  # nothing shows, and it ends


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_memory_is_used_again_on_request_alone():
    """Memory new to the process faults once per page; a subprocess, because the setting is per process."""
    program = textwrap.dedent(
        """
        import resource, torch
        from flowcore.cli.allocation import keep_freed_memory
        for keep in (lambda: None, keep_freed_memory):
            keep()
            for _ in range(3):  # 64 MiB, 16,384 pages, each time
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                torch.empty(2**24).fill_(1.0)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        """
    )
    root = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, env=environment)
    assert [int(faults) < 1000 for faults in done.stdout.split()] == [False, True], done.stderr
