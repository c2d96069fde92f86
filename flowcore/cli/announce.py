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
) -> None:
    """Say the size of what will be made, and the memory and time that it takes; ask if it is very large."""
    coming = [(job, *sizes) for job in jobs if (sizes := _sizes(work, job.source)) is not None]
    if _megapixels(work, [result for *_, result in coming]) >= NOTEWORTHY:  # or it does not matter what is there
        coming = [one for one in coming if not state_of(one[0], is_done)]
    sources, results = [source for _, source, _ in coming], [result for *_, result in coming]
    if _megapixels(work, results) < NOTEWORTHY:
        return
    _ask(options, work, results, max(work.bits_of(job.source) for job, *_ in coming))
    if options.ray or options.ray_address:  # how fast other machines are is unknown
        return
    tile, precision = work.settings["tile"], work.settings["precision"]
    expected = forecast(flow, sources, results, samples=work.samples, tile=tile, precision=precision)
    log(expected.sentence())


def _sizes(work: Work, path: Path) -> tuple[Size, Size] | None:
    """Height and width of an image and of its results; None if it cannot be read, which the run will say."""
    source, result = upright_size(path), work.size_of(path)
    return None if source is None or result is None else (source, result)


def _megapixels(work: Work, results: list[Size]) -> float:
    return work.samples * sum(height * width for height, width in results) / 1e6


def _ask(options: argparse.Namespace, work: Work, results: list[Size], bits: int) -> None:
    height, width = max(results, key=lambda size: size[0] * size[1])
    largest = height * width / 1e6
    required = 3 * bits / 8 * 1e6 * _megapixels(work, results)  # not compressed: photographs hardly are
    free = _free(options.out)
    questions: list[str] = []
    if options.max_megapixels and largest > options.max_megapixels:
        questions.append(
            f"A result would have {width}x{height} pixels, {largest:.3g} megapixels; --max-megapixels is "
            f"{options.max_megapixels:g}."
        )
    if required > free:
        questions.append(
            f"The results may need {required / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {options.out}."
        )
    for question in questions:
        if not sys.stdin.isatty():
            raise FlowError(f"{question} Shrink the images, make room, or raise --max-megapixels (0: never ask).")
        sys.stderr.write(f"{question} Go on? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise FlowError("Stopped: nothing was made.")


def _free(folder: Path) -> int:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
