"""What the benchmarks share: settings, seconds taken by turns, pictures."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flowcore.images.color import to_uint8

Program = Callable[[], Any]
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a subject is given."""

    pairs: int  # rounds in which every program runs once; what is reported are medians over them
    threads: int  # of torch
    device: str  # as torch names it
    quick: bool  # whether to take small networks and pictures: shows that the benchmark runs, and no more
    lr: int  # side of the LR image of ``srflow``
    samples: tuple[int, ...]  # numbers of samples of ``srflow``


def seconds(program: Program, device: str, clock: Clock = time.perf_counter) -> float:
    """Run a program once, and return its seconds; a GPU is waited for."""
    _wait_for(device)
    begun = clock()
    program()
    _wait_for(device)
    return clock() - begun


def by_turns(
    programs: Mapping[str, Program], settings: Settings, *, warm_up: bool, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Run programs in turn, so that what else the machine does falls on all of them.

    Args:
        programs: By name.
        settings: Says how many rounds, and where.
        warm_up: Whether to run one more round first, which does not count.
        clock: ``time.process_time`` counts the processor's work alone.

    Returns:
        Seconds by name, one a round.
    """
    if warm_up:
        for program in programs.values():
            program()
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(settings.pairs):
        for name, program in programs.items():
            taken[name].append(seconds(program, settings.device, clock))
            say(f"round {number + 1} of {settings.pairs}: {name}, {taken[name][-1]:.3g} s")
    return taken


def times_as_fast(slow: list[float], fast: list[float]) -> float:
    """Compare two programs by the median of their rounds' ratios."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def arguments(doc: str | None, name: str | None = None) -> argparse.ArgumentParser:
    """Make a parser whose help is the text of a module, and whose program is ``python -m benchmarks.NAME``."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m benchmarks.{name}" if name else None, None, doc, formatter_class=form)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown, without a last line break."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join([head, "|" + "---|" * len(heads), *lines])


def picture(height: int, width: int) -> Tensor:
    """Make something with large and small features up, the same every time: ``(1, 3, height, width)`` in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.zeros(1, 3, height, width)
    for grain, weight in ((32, 0.5), (8, 0.3), (2, 0.2)):
        noise = torch.rand(1, 3, -(-height // grain) + 1, -(-width // grain) + 1, generator=generator)
        mixed += weight * torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")
    return mixed.clamp(0, 1)


def middle(image: Tensor, side: int) -> Tensor:
    """Cut the middle out of images ``(..., H, W)``; shorter sides stay."""
    top, left = ((n - side) // 2 if n > side else 0 for n in image.shape[-2:])
    return image[..., top : top + side, left : left + side]


def as_image(pixels: Tensor) -> Image.Image:
    """Make an image of ``(3, H, W)`` in [0, 1]."""
    return Image.fromarray(to_uint8(pixels).permute(1, 2, 0).contiguous().numpy())


def say(line: str) -> None:
    """Tell how far it is, apart from the results."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
