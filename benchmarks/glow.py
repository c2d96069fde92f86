"""Compare Glow with other libraries' of the same configuration: sampling, scoring, a training step.

A training step is dequantization, forward, loss, backward and the optimizer. Ours also clips the gradient and averages
the weights, as ``flowcore.training`` does; normflows' follows its example: dequantized batch, ``forward_kld``, check,
``torch.optim.Adam``. Seconds are processor time, which excludes waiting for a busy core. Memory is the peak of a fresh
process over two steps, minus its use once the model and its average are built, so it includes gradients and the
optimizer's moments, three floats per parameter.
"""

import copy
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import flowcore
from flowcore.engine.compiled import CompiledFlow
from flowcore.flows.flow import Flow
from flowcore.flows.likelihood import log_prob
from flowcore.flows.prior import sample_latents
from flowcore.models.glow import GlowConfig, glow
from flowcore.models.glow.normflows import NORMFLOWS
from flowcore.training.objective import Likelihood
from flowcore.training.stage import recompute_activations

from . import peers
from .fresh import fresh
from .measure import Program, Settings, Table, by_turns, say, times_as_fast

TASK = "flowcore"
LOW = "flowcore, bfloat16"
PLAIN = "flowcore, plain path"
OURS = (TASK, PLAIN, LOW)
BASELINE = "normflows"
VARIANTS = {  # of a training step, to whether networks run in bfloat16, and activations are recomputed
    BASELINE: (False, False),
    "normflows, bfloat16 autocast": (True, False),
    "flowcore": (False, False),
    "flowcore, bfloat16": (True, False),
    "flowcore, recomputed": (False, True),
    "flowcore, bfloat16, recomputed": (True, True),
}
FIXED = ("w_perm", "w_perm_inv", "downsample_kernel")  # of FrEIA: held as parameters, but not trained
# Where memory that is freed goes back to the kernel, as is usual, it comes again page by page: what holds much and lets
# it go often may take twice as long. A process that has held larger tensors before keeps it by itself; with glibc's
# allocator these variables keep it from the start.
KEEPING = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), "4000000000")
HEAPS = {"": {}, ", freed memory kept": KEEPING}


def measure(settings: Settings) -> list[Table]:
    """Measure sampling and scoring, each in a fresh process of either kind, and a training step."""
    tables: list[Table] = []
    for title, variables in HEAPS.items() if settings.device == "cpu" else [("", {})]:
        say(f"sampling and scoring{title}")
        command = [sys.executable, "-m", "benchmarks.glow", json.dumps(vars(settings))]
        options = {"env": os.environ | variables, "cwd": Path(__file__).parents[1]}
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options)
        for table in json.loads(ended.stdout.splitlines()[-1]):
            tables.append(Table(**{**table, "title": table["title"] + title}))
    return [*tables, _training(settings, _setting(settings.quick))]


def main() -> None:
    """Run the sampling and scoring that ``measure`` requested."""
    settings = Settings(**json.loads(sys.argv[1]))
    torch.set_num_threads(settings.threads)
    tables = _inference(settings, _setting(settings.quick))
    sys.stdout.write(json.dumps([vars(table) for table in tables]) + "\n")


def _setting(quick: bool) -> peers.Setting:
    return peers.Setting(levels=2, steps=2, hidden=16, size=16, batch=4) if quick else peers.Setting()


def _as_normflows(setting: peers.Setting) -> Flow:
    """Build our Glow with normflows' structure and random weights."""
    sizes = {"levels": setting.levels, "steps": setting.steps, "hidden": setting.hidden}
    sizes |= {"image_size": (setting.size, setting.size)}
    flow = glow(GlowConfig(**sizes, network="plain", scaled=False, split_prior="table", pixels="unit"))
    flow.initialize(setting.images())
    return flow


# --- sampling and scoring ---------------------------------------------------------------------------------------------


@torch.no_grad()
def _inference(settings: Settings, setting: peers.Setting) -> list[Table]:
    torch.manual_seed(0)
    found: dict[str, peers.Peer] = {}
    for name, (module, builder) in peers.PEERS.items():
        if importlib.util.find_spec(module) is not None:
            say(f"building {name}")
            found[name] = builder(setting)
    theirs = found.get("normflows")
    flow = NORMFLOWS.load(theirs.model.state_dict(), {}) if theirs else _as_normflows(setting)
    flow.to(settings.device).eval().requires_grad_(False)
    for peer in found.values():
        peer.model.to(settings.device)
    images = (setting.images() * 255).round().to(torch.uint8)
    k = images.to(settings.device).float()
    n, shapes = setting.batch, flow.latent_shapes(setting.size, setting.size)

    def dequantized() -> Tensor:
        return (k + torch.rand_like(k)) / 256

    def bits(nats: Tensor) -> Tensor:
        return 8 - nats / k[0].numel() / math.log(2)

    low = CompiledFlow(flow, "bfloat16")
    samplers: dict[str, Program] = {
        TASK: lambda: flowcore.sample(flow, n, temperature=1.0, batch=n),
        LOW: lambda: flowcore.sample(low, n, temperature=1.0, batch=n),
        PLAIN: lambda: flow.inverse([z.to(settings.device) for z in sample_latents(shapes, n, 1.0)]),
        **{name: lambda peer=peer: peer.sample(n) for name, peer in found.items()},
    }
    scorers: dict[str, Program] = {
        TASK: lambda: flowcore.score(flow, images, batch=n, complexity=False).bits_per_dim,
        PLAIN: lambda: bits(log_prob(flow, dequantized())),
        **{name: lambda peer=peer: bits(peer.log_prob(dequantized())) for name, peer in found.items()},
    }
    notes = [
        f"{setting.levels} levels of {setting.steps} steps, hidden {setting.hidden}, {setting.size}x{setting.size}, "
        f"batch {n}, affine couplings, LU 1x1 convolutions, float32. Rounds: {settings.pairs}; seconds and ratios are "
        "their medians.",
        f"{PLAIN}: flow.inverse and likelihood.log_prob of the same model, without the tasks.",
    ]
    if theirs is not None:
        x = dequantized()
        apart = float((theirs.log_prob(x) - log_prob(flow, x)).abs().max())
        notes.append(f"flowcore has normflows' weights; log densities are at most {apart:.2g} nats apart.")
    notes += [f"{name} differs: {peer.differs}." for name, peer in found.items() if peer.differs]
    counts = dict.fromkeys(OURS, _parameters(flow))
    counts |= {name: _parameters(peer.model) for name, peer in found.items()}
    tables = []
    for title, programs in (("sampling", samplers), ("scoring, one dequantization draw", scorers)):
        taken = by_turns(programs, settings, warm_up=True)
        rows: list[dict[str, Any]] = []
        for name in programs:
            ratio = {} if name in OURS else {"flowcore is times as fast": times_as_fast(taken[name], taken[TASK])}
            rows.append({"program": name, "parameters": counts[name], "s": statistics.median(taken[name]), **ratio})
        rows += [_missing(name) for name in peers.PEERS if name not in found]
        tables.append(Table(subject="glow", title=title, rows=rows, notes=notes))
    return tables


def _missing(name: str) -> dict[str, Any]:
    return {"program": name, "parameters": f"not installed: pip install {name}"}


def _parameters(model: torch.nn.Module) -> int:
    """Parameters that training changes; not by requires_grad, which is False for all by now."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith(FIXED))


# --- a training step --------------------------------------------------------------------------------------------------


def our_step(flow: Flow, x: Tensor) -> Callable[[bool, bool], object]:
    """Build the optimizer and the average of an initialized model, and return a step on images ``x`` in [0, 1]."""
    flow = flow.to(memory_format=torch.channels_last)
    average = copy.deepcopy(flow).requires_grad_(False)
    likelihood = Likelihood(flow)
    optimizer = torch.optim.AdamW(flow.parameters(), 1e-5, betas=(0.9, 0.99), fused=True)
    generator = torch.Generator().manual_seed(0)

    def step(low: bool, again: bool) -> None:
        optimizer.zero_grad(set_to_none=True)
        noise = likelihood.noise(tuple(x.shape), generator)
        with recompute_activations(flow) if again else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = likelihood(x, None, noise)
            loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1e9)
        optimizer.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), flow.parameters(), strict=True):
                mean.lerp_(value, 0.001)

    return step


def their_step(model: Any, x: Tensor) -> Callable[[bool, bool], object]:
    """Build normflows' optimizer, and return a step on images ``x`` in [0, 1]."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-5)

    def step(low: bool, again: bool) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = model.forward_kld((255 * x + torch.rand_like(x)) / 256)
        if ~(torch.isnan(loss) | torch.isinf(loss)):
            loss.backward()
            optimizer.step()

    return step


def prepare(*, device: str, quick: bool, variant: str) -> Program:
    """Get two training steps ready, for a fresh process."""
    setting = _setting(quick)
    images = setting.images()
    step = (
        their_step(peers.normflows_glow(setting), images)
        if variant.startswith("normflows")
        else our_step(_as_normflows(setting), images)
    )
    return lambda: [step(*VARIANTS[variant]) for _ in range(2)]


def _training(settings: Settings, setting: peers.Setting) -> Table:
    title = "a training step"
    if importlib.util.find_spec("normflows") is None:
        return Table(subject="glow", title=title, rows=[_missing("normflows")])
    if settings.device != "cpu":
        return Table(subject="glow", title=title, rows=[{"program": "measured on a CPU only"}])
    torch.manual_seed(0)
    theirs = peers.normflows_glow(setting)
    flow, images = NORMFLOWS.load(theirs.state_dict(), {}), setting.images()
    own, other = our_step(flow, images), their_step(theirs, images)
    steps: dict[str, Program] = {
        name: partial(other if name.startswith("normflows") else own, *how) for name, how in VARIANTS.items()
    }
    taken = by_turns(steps, settings, warm_up=True, clock=time.process_time)
    rows = [
        {
            "program": name,
            "parameters": _parameters(theirs if name.startswith("normflows") else flow),
            "s of processor": statistics.median(taken[name]),
            f"times as fast as {BASELINE}": times_as_fast(taken[BASELINE], taken[name]),
            "beyond model MiB": fresh(prepare, settings, quick=settings.quick, variant=name).beyond,
        }
        for name in VARIANTS
    ]
    return Table(subject="glow", title=title, rows=rows, notes=["Both begin with the same weights."])


if __name__ == "__main__":
    main()
