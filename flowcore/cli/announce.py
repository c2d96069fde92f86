"""What is said, and asked, before large results are made."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ..batch.folders import Job, state_of
from ..batch.job import Work
from ..errors import FlowError
from ..flow import Flow
from ..images.files import upright_size
from ..tasks.forecast import NOTEWORTHY, Size, forecast
from .output import log


def announce(
    options: argparse.Namespace, work: Work, flow: Flow, jobs: list[Job], is_done: Callable[[Job], bool]
) -> dict[Job, FlowError]:
    """Say the size of what will be made, and the memory and time that it takes; ask if it is very large.

    Returns:
        Jobs whose results would be too large, where nobody can be asked: those are left out, and the others made.
    """
    coming = [(job, *sizes) for job in jobs if (sizes := _sizes(work, job.source)) is not None]
    if _is_small(options, work, coming):  # it does not matter what is there
        return {}
    coming = [one for one in coming if not state_of(one[0], is_done)]
    refused = _too_large(options, coming)
    coming = [one for one in coming if one[0] not in refused]
    if _is_small(options, work, coming):
        return refused
    if (required := _bytes(work, coming)) > (free := _free(options.out)):
        _ask(
            f"The results may need {required / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {options.out}.",
            "Shrink the images, or make room.",
        )
    sources, results = [source for _, source, _ in coming], [result for *_, result in coming]
    if options.ray or options.ray_address:  # how fast other machines are is unknown
        return refused
    how = {name: work.settings[name] for name in ("tile", "precision", "steadiness") if name in work.settings}
    expected = forecast(flow, sources, results, samples=work.samples, guided=work.guide is not None, **how)
    log(expected.sentence())
    return refused


def _sizes(work: Work, path: Path) -> tuple[Size, Size] | None:
    """Height and width of an image and of its results; None if it cannot be read, which the run will say."""
    source, result = upright_size(path), work.size_of(path)
    return None if source is None or result is None else (source, result)


def _is_small(options: argparse.Namespace, work: Work, coming: list[tuple[Job, Size, Size]]) -> bool:
    areas = [height * width / 1e6 for *_, (height, width) in coming]
    within = not options.max_megapixels or max(areas, default=0) <= options.max_megapixels
    return work.samples * sum(areas) < NOTEWORTHY and within


def _bytes(work: Work, coming: list[tuple[Job, Size, Size]]) -> float:
    """How large the results may be: as if not compressed, since photographs hardly are."""
    bits = max(work.bits_of(job.source) for job, *_ in coming)
    return 3 * bits / 8 * work.samples * sum(height * width for *_, (height, width) in coming)


def _too_large(options: argparse.Namespace, coming: list[tuple[Job, Size, Size]]) -> dict[Job, FlowError]:
    """Ask about results of more than ``--max-megapixels``; return their jobs if there is nobody to ask."""
    refused: dict[Job, FlowError] = {}
    for job, _, (height, width) in coming:
        size = height * width / 1e6
        if options.max_megapixels and size > options.max_megapixels:
            text = f"A result would have {width}x{height} pixels, {size:.3g} megapixels; --max-megapixels is "
            text += f"{options.max_megapixels:g}."
            refused[job] = FlowError(f"{text} Shrink the image, or raise --max-megapixels (0: never ask).")
    if not refused or not sys.stdin.isatty():
        return refused
    first, more = next(iter(refused)), f", and {len(refused) - 1} more are as large" if len(refused) > 1 else ""
    _ask(f"{first.source}: {str(refused[first]).partition(' Shrink')[0]}{more}", "")
    return {}


def _ask(question: str, advice: str) -> None:
    """Go on if a person says so; FlowError if not, or if there is nobody."""
    if not sys.stdin.isatty():
        raise FlowError(f"{question} {advice}")
    sys.stderr.write(f"{question} Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise FlowError("Stopped: nothing was made.")


def _free(folder: Path) -> int:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
