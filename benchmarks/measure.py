"""Settings, timing in turns, pictures and tables, shared by the benchmarks."""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flowcore.images.color import to_uint8

Program = Callable[[], Any]
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a subject."""

    pairs: int  # rounds in which every program runs once; what is reported are medians over them
    threads: int  # of torch
    device: str  # as torch names it
    quick: bool  # whether to take small networks and pictures: shows that the benchmark runs, and no more
    lr: int  # side of the LR image of ``srflow``
    samples: tuple[int, ...]  # numbers of samples of ``srflow``


def seconds(program: Program, device: str, clock: Clock = time.perf_counter) -> float:
    """Run a program once, synchronize with the GPU, and return its seconds."""
    _wait_for(device)
    begun = clock()
    program()
    _wait_for(device)
    return clock() - begun


def by_turns(
    programs: Mapping[str, Program], settings: Settings, *, warm_up: bool, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Run programs in turn, so that other load affects all of them equally: seconds by name, one value per round.

    ``warm_up`` adds an initial round that does not count. With ``time.process_time`` as ``clock``, only processor time
    counts.
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
    """Make a parser whose help is a module's docstring, and whose program is ``python -m benchmarks.NAME``."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m benchmarks.{name}" if name else None, None, doc, formatter_class=form)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown, without a trailing line break."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join([head, "|" + "---|" * len(heads), *lines])


def means(rows: Sequence[Sequence[float]], digits: Iterable[int]) -> list[str]:
    """Format the mean of every column with the given number of digits."""
    columns = zip(zip(*rows, strict=True), digits, strict=True)
    return [f"{math.fsum(column) / len(rows):.{n}f}" for column, n in columns]


def recall(file: Path | None) -> dict[str, Any]:
    """Read the numbers in an existing JSON file."""
    return json.loads(file.read_text()) if file and file.exists() else {}


def picture(height: int, width: int) -> Tensor:
    """Make a fixed picture with large and small features: ``(1, 3, height, width)`` in [0, 1]."""
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
    """Print progress to stderr, separate from the results."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows, with a title and notes."""

    subject: str  # as ``--only`` names it
    title: str  # what the rows have in common
    # By column; a row need not have every column, and None is a number that could not be had.
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)  # sentences

    def markdown(self) -> str:
        """Write a title, the table, and the notes."""
        heads = list(dict.fromkeys(head for row in self.rows for head in row))
        cells = [[_written(row.get(head, "")) for head in heads] for row in self.rows]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"## {self.subject}: {self.title}", "", markdown(heads, cells), "", *notes, ""])


def write(path: Path, found: dict[str, Any], settings: Settings, tables: list[Table]) -> tuple[str, str]:
    """Write tables and the machine to ``path`` as .md and .json; also return both, with JSON on one line."""
    head = ", ".join(f"{name}: {value}" for name, value in found.items())
    quick = ["Quick: small networks and pictures; the numbers mean nothing.", ""] if settings.quick else []
    text = "\n".join([head, "", *quick, *(table.markdown() for table in tables)])
    result = {"machine": found, "settings": vars(settings), "tables": [vars(table) for table in tables]}
    path.with_suffix(".md").write_text(text)
    path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    return text, json.dumps(result)


def machine(settings: Settings) -> dict[str, Any]:
    """Describe the machine: processor, cores, threads, device, versions."""
    found = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": settings.threads,
        "device": settings.device,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if settings.device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(settings.device)
    return found


def processor() -> str:
    """Name the processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _written(value: Any) -> str:
    if value is None:
        return "?"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value == 0 or 0.01 <= abs(value) < 100:
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1e}"
