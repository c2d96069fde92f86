"""How long a training step of Glow takes, and how much memory, beside normflows' Glow of the same configuration.

    pip install normflows
    taskset -c 0 python -m benchmarks.train [--rounds 5] [--memory 16] [--compile] [--own-network] [--steps 32 ...]

Both programs hold the same model with the same weights: 3 levels of 32 steps, hidden 512, affine couplings, LU 1x1
convolutions, 32x32, batch 16, networks of couplings and priors as normflows builds them, converted to ours in memory.
So both have as many parameters and give the same log density of the same images; what they are apart is printed.

A step is dequantization, forward, loss, backward and the optimizer. Ours also clips the gradient and averages the
weights, as ``flowcore.training`` does; normflows' is written as in its example: dequantized batch, ``forward_kld``,
check, ``torch.optim.Adam``. Every round makes one step of each variant in turn, so that what else the machine does
falls on all of them. Speed-ups are medians over rounds, of seconds of processor time, which does not count waiting for
a core that others use; seconds by the clock stand beside them. Pin it to a core (``taskset``).

Memory is the peak of a fresh process over two steps, less what it held once the model and its average were built. It
includes gradients and the optimiser's moments: three floats a parameter. Linux only.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowcore.checkpoints.sources.normflows import NORMFLOWS
from flowcore.flow import Flow
from flowcore.likelihood import log_prob
from flowcore.models.glow import GlowConfig, glow
from flowcore.networks import Conditioner, PlainConditioner
from flowcore.training.memory import recompute_activations
from flowcore.training.objective import Likelihood

Step = Callable[[], float]  # a training step; gives its bits per dimension


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What both programs are given.

    Attributes:
        levels: Squeeze scales.
        steps: Steps per level.
        hidden: Width of the networks in couplings.
        size: Side of the images.
        batch: Images in a step.
        own_network: Whether ours has the networks and priors of ``GlowConfig``'s defaults, instead of normflows'.
    """

    levels: int
    steps: int
    hidden: int
    size: int
    batch: int
    own_network: bool

    def images(self) -> Tensor:
        """Images of 8 bits, ``(B, 3, H, W)`` in [0, 1]."""
        shape = self.batch, 3, self.size, self.size
        return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)) / 255


# --- the two programs -------------------------------------------------------------------------------------------------


class Ours:
    """A flow and what trains it, as ``flowcore.training`` does."""

    def __init__(self, flow: Flow, x: Tensor) -> None:
        """Build the optimizer and the average.

        Args:
            flow: An initialized model.
            x: Images, ``(B, 3, H, W)`` in [0, 1].
        """
        self.flow, self.x = flow.to(memory_format=torch.channels_last), x
        self.average = copy.deepcopy(flow).requires_grad_(False)
        self.loss = Likelihood(flow)
        self.optimiser = torch.optim.AdamW(flow.parameters(), 1e-5, betas=(0.9, 0.99), fused=True)
        self.generator = torch.Generator().manual_seed(0)

    def step(self, *, low: bool, again: bool) -> float:
        """Make a step.

        Args:
            low: Whether conditioners run in bfloat16.
            again: Whether activations are recomputed in the backward pass.

        Returns:
            Bits per dimension before it.
        """
        self.optimiser.zero_grad(set_to_none=True)
        noise = self.loss.noise(tuple(self.x.shape), self.generator)
        with recompute_activations(self.flow) if again else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = self.loss(self.x, None, noise)
            loss.backward()
        nn.utils.clip_grad_norm_(self.flow.parameters(), 1e9)
        self.optimiser.step()
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.flow.parameters(), strict=True):
                mean.lerp_(value, 0.001)
        return loss.item()


def normflows() -> Any:
    """Import normflows, or say how to install it."""
    try:
        return importlib.import_module("normflows")
    except ImportError:
        sys.exit("This benchmark compares with normflows, which is not installed: pip install normflows")


class Theirs:
    """normflows' Glow, built and trained as its example does it."""

    def __init__(self, setting: Setting) -> None:
        """Build the model and the optimizer."""
        nf = normflows()
        flows: list[list[Any]] = []
        bases: list[Any] = []
        for depth in range(setting.levels):  # the deepest level comes first
            channels = 3 * 2 ** (setting.levels + 1 - depth)
            side = setting.size // 2 ** (setting.levels - depth)
            blocks = [nf.flows.GlowBlock(channels, setting.hidden) for _ in range(setting.steps)]
            flows.append([*blocks, nf.flows.Squeeze()])
            bases.append(nf.distributions.DiagGaussian((channels if depth == 0 else channels // 2, side, side)))
        merges = [nf.flows.Merge() for _ in flows[1:]]
        self.model = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
        self.k = setting.images() * 255
        with torch.no_grad():
            self.model.log_prob(self.dequantized(), None)  # initializes its actnorms
        self.optimiser = torch.optim.Adam(self.model.parameters(), 1e-5)

    def dequantized(self) -> Tensor:
        """The images with noise, ``(B, 3, H, W)`` in [0, 1)."""
        return (self.k + torch.rand_like(self.k)) / 256

    def step(self, *, low: bool) -> float:
        """Make a step.

        Args:
            low: Whether it runs under bfloat16 autocast.

        Returns:
            Bits per dimension before it.
        """
        self.optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = self.model.forward_kld(self.dequantized())
        if ~(torch.isnan(loss) | torch.isinf(loss)):
            loss.backward()
            self.optimiser.step()
        dimensions = self.k[0].numel()
        return loss.item() / dimensions / torch.tensor(2.0).log().item() + 8


def build_ours(setting: Setting, theirs: Theirs | None) -> Ours:
    """Build our model: normflows' with its weights, the same without, or our own.

    Args:
        setting: What both are given.
        theirs: Where the weights come from; None for random ones.

    Returns:
        The model with its optimizer.
    """
    x = setting.images()
    if theirs is not None and not setting.own_network:
        return Ours(NORMFLOWS.convert(theirs.model.state_dict(), {}), x)
    as_theirs: dict[str, Any] = {"network": "plain", "scaled": False, "split_prior": "table", "pixels": "unit"}
    config = GlowConfig(
        levels=setting.levels,
        steps=setting.steps,
        hidden=setting.hidden,
        image_size=(setting.size, setting.size),
        **({} if setting.own_network else as_theirs),
    )
    flow = glow(config)
    flow.initialize(x)
    return Ours(flow, x)


# --- variants ---------------------------------------------------------------------------------------------------------

BASELINE = "normflows"
COMPILED = "flowcore, bfloat16, compiled"
VARIANTS: dict[str, dict[str, bool]] = {
    BASELINE: {"low": False},
    "normflows, bfloat16 autocast": {"low": True},
    "flowcore": {"low": False, "again": False},
    "flowcore, bfloat16": {"low": True, "again": False},
    "flowcore, recomputed": {"low": False, "again": True},
    "flowcore, bfloat16, recomputed": {"low": True, "again": True},
}


def compiled(ours: Ours) -> tuple[Step, float]:
    """Compile the conditioners of a copy of our model.

    Args:
        ours: The model.

    Returns:
        A step in bfloat16, and the seconds that the first one took.
    """
    copied = Ours(copy.deepcopy(ours.flow), ours.x)
    for module in [*copied.flow.modules()]:
        if isinstance(module, (Conditioner, PlainConditioner)):
            module.compile()
    begun = time.monotonic()
    copied.step(low=True, again=False)
    return lambda: copied.step(low=True, again=False), time.monotonic() - begun


def measure(setting: Setting, rounds: int, with_compiled: bool) -> dict[str, Any]:
    """Time all variants in turn.

    Args:
        setting: What both programs are given.
        rounds: Steps of each that count; one more of each warms up.
        with_compiled: Whether our conditioners are also compiled.

    Returns:
        What is printed.
    """
    theirs = Theirs(setting)
    ours = build_ours(setting, theirs)
    steps: dict[str, Step] = {
        name: (lambda name=name, how=how: (theirs if name.startswith("normflows") else ours).step(**how))
        for name, how in VARIANTS.items()
    }
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "setting": vars(setting),
        "parameters": {
            "flowcore": sum(p.numel() for p in ours.flow.parameters()),
            "normflows": sum(p.numel() for p in theirs.model.parameters()),
        },
    }
    if not setting.own_network:
        with torch.no_grad():
            x = theirs.dequantized()
            apart = (theirs.model.log_prob(x, None) - log_prob(ours.flow, x)).abs().max()
        result["nats apart, at most"] = float(apart)
    if with_compiled:
        steps[COMPILED], result["seconds to compile"] = compiled(ours)
    first = {name: step() for name, step in steps.items()}  # warms up
    processor: dict[str, list[float]] = {name: [] for name in steps}
    clock: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            begun = time.process_time(), time.monotonic()
            step()
            processor[name].append(time.process_time() - begun[0])
            clock[name].append(time.monotonic() - begun[1])
        _say(f"round {number + 1} of {rounds}")
    result["variants"] = {
        name: {
            "bits_per_dim": round(first[name], 4),
            "processor_seconds": round(statistics.median(taken), 3),
            "clock_seconds": round(statistics.median(clock[name]), 3),
            "speed_up": round(statistics.median(b / t for b, t in zip(processor[BASELINE], taken, strict=True)), 2),
        }
        for name, taken in processor.items()
    }
    return result


# --- memory -----------------------------------------------------------------------------------------------------------


def peak(setting: Setting, name: str) -> float:
    """Make two steps of a variant and say how much memory they took; call it in a fresh process.

    Args:
        setting: What the program is given.
        name: Of the variant.

    Returns:
        Gigabytes beyond what the process held before the first step.
    """
    model = Theirs(setting) if name.startswith("normflows") else build_ours(setting, None)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _resident("VmRSS")
    for _ in range(2):
        model.step(**VARIANTS[name])
    return (_resident("VmHWM") - before) / 2**20


def _resident(which: str) -> int:
    """Kilobytes, of ``VmRSS`` (now) or ``VmHWM`` (at most)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[which].split()[0])


def peaks(batches: list[int], arguments: list[str]) -> dict[str, dict[str, float]]:
    """Measure the memory of every variant, each in a process of its own.

    Args:
        batches: Images in a step.
        arguments: This program's, handed on.

    Returns:
        Gigabytes by variant and batch.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in VARIANTS}
    for batch in batches:
        for name in VARIANTS:
            command = [sys.executable, "-m", "benchmarks.train", *arguments, "--batch", str(batch), "--peak", name]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name][str(batch)] = round(float(ended.stdout), 2)
            _say(f"memory of {name}, batch {batch}")
    return found


# --- print ------------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """Write the result as a table.

    Args:
        result: From ``measure``, with "memory" if that was asked for.

    Returns:
        Markdown.
    """
    memory: dict[str, dict[str, float]] = result.get("memory", {})
    batches = list(memory.get(BASELINE, {}))
    heads = ["variant", "bits/dim", "s of processor", "s by the clock", f"times as fast as {BASELINE}"]
    heads += [f"GB, batch {b}" for b in batches]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in result["variants"].items():
        cells = [name, f"{row['bits_per_dim']:.4f}", f"{row['processor_seconds']:.2f}", f"{row['clock_seconds']:.2f}"]
        cells.append(f"{row['speed_up']:.2f}")
        cells += [f"{memory[name][b]:.2f}" if name in memory else "" for b in batches]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("levels", 3), ("steps", 32), ("hidden", 512), ("size", 32), ("batch", 16), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each variant that count; default 5")
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[], metavar="BATCH", help="also measure memory at these"
    )
    parser.add_argument("--compile", action="store_true", help="also with torch.compile of our conditioners")
    parser.add_argument("--own-network", action="store_true", help="ours with its own networks and priors")
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    values = {name: getattr(options, name) for name in Setting.__dataclass_fields__}
    setting = Setting(**values)
    normflows()
    if options.peak:
        sys.stdout.write(f"{peak(setting, options.peak)}\n")
        return
    result = measure(setting, options.rounds, options.compile)
    if options.memory:
        shared = [f"--{name}={values[name]}" for name in ("levels", "steps", "hidden", "size")]
        shared += [f"--threads={options.threads}", *(["--own-network"] if setting.own_network else [])]
        result["memory"] = peaks(options.memory, shared)
    sys.stdout.write(table(result) + "\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
