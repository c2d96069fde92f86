"""What the subjects of ``python -m benchmarks`` share: settings, seconds taken by turns, a picture."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Program = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a subject is given.

    Attributes:
        pairs: Rounds in which every program runs once; what is reported are medians over them.
        threads: Of torch.
        device: As torch names it.
        quick: Whether to take small networks and pictures: shows that the benchmark runs, and no more.
        lr: Side of the LR image of ``srflow`` and ``yardsticks``.
        samples: Numbers of samples of ``srflow``.
        peak_tflops: What the device does at most, for the roofline; None for no roofline.
        photograph: To be colored; None for a made-up one.
        out: Folder of plots.
    """

    pairs: int
    threads: int
    device: str
    quick: bool
    lr: int
    samples: tuple[int, ...]
    peak_tflops: float | None
    photograph: Path | None
    out: Path


def seconds(program: Program, device: str) -> float:
    """Run a program once.

    Args:
        program: What to run.
        device: Where it works; a GPU is waited for.

    Returns:
        Seconds by the clock.
    """
    _wait_for(device)
    begun = time.perf_counter()
    program()
    _wait_for(device)
    return time.perf_counter() - begun


def by_turns(programs: Mapping[str, Program], settings: Settings, *, warm_up: bool) -> dict[str, list[float]]:
    """Run programs in turn, so that what else the machine does falls on all of them.

    Args:
        programs: By name.
        settings: Says how many rounds, and where.
        warm_up: Whether to run one more round first, which does not count.

    Returns:
        Seconds by name, one a round.
    """
    if warm_up:
        for program in programs.values():
            program()
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(settings.pairs):
        for name, program in programs.items():
            taken[name].append(seconds(program, settings.device))
            say(f"round {number + 1} of {settings.pairs}: {name}, {taken[name][-1]:.3g} s")
    return taken


def times_as_fast(slow: list[float], fast: list[float]) -> float:
    """Compare two programs.

    Args:
        slow: Seconds of one, a round each.
        fast: Of the other.

    Returns:
        The median of the rounds' ratios.
    """
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def picture(height: int, width: int) -> Tensor:
    """Make something with large and small features up, the same every time.

    Args:
        height: In pixels.
        width: Likewise.

    Returns:
        ``(1, 3, height, width)`` in [0, 1].
    """
    generator = torch.Generator().manual_seed(0)
    mixed = torch.zeros(1, 3, height, width)
    for grain, weight in ((32, 0.5), (8, 0.3), (2, 0.2)):
        noise = torch.rand(1, 3, -(-height // grain) + 1, -(-width // grain) + 1, generator=generator)
        mixed += weight * torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")
    return mixed.clamp(0, 1)


def say(line: str) -> None:
    """Tell how far it is, apart from the results.

    Args:
        line: What to say.
    """
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
