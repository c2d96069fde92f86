"""What commands write: results to stdout, for scripts; log lines and a progress bar to stderr."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

from ..checkpoints.writing import check_writable
from ..errors import FlowError
from ..images.files import upright_size
from ..tasks import Progress, duration

if TYPE_CHECKING:
    from ..batch.folders import Job, Outputs

LINE_EVERY = 30  # seconds between lines on an image in progress, where there is no bar, as in log files
QUIET = ContextVar("QUIET", default=False)  # whether to write nothing but results and errors


class SomeFailed(FlowError):
    """A command could do only part of its work."""


def log(line: str) -> None:
    if not QUIET.get():
        tqdm.write(line, file=sys.stderr)


def accept_all_names() -> None:
    """Let the streams write every name of a file, whatever their encoding: that of Windows' pipes has few letters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def check_target(target: Path, is_ours: Callable[[Path], bool], kind: str, *, again: bool) -> None:
    """Refuse, before the work, to replace a foreign file, and without ``again`` a file that flowcore made.

    ``is_ours`` tells those that it made, of a ``kind`` for messages.
    """
    if not target.is_dir():
        check_writable(target)
    if not target.exists() or (target.is_file() and target.stat().st_size == 0):
        return
    if not target.is_file() or not is_ours(target):
        raise FlowError(f"{target} exists and is not a {kind} of flowcore. It is kept. Choose another file.")
    if not again:
        raise FlowError(f"{target} exists. Replace it with --again, or choose another file.")


def write_result(
    options: Namespace,
    source: Path | None,
    outputs: Sequence[Path],
    seconds: float | None = None,
    notes: Sequence[str] = (),
    error: str = "",
) -> None:
    """Write the paths of a picture's results, one per line; with ``--json``, one line with an object."""
    lines = [str(path) for path in outputs]
    if options.json:
        result = {"input": None if source is None else str(source), "outputs": lines, "seconds": seconds}
        lines = [json.dumps({**result, "notes": list(notes), "error": error or None})]
    for line in lines:
        tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class ProgressBar:
    """A bar over all images, by their pixels, on a terminal; a line for each finished one, there and in log files."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._total, self._done, self._skipped, self._failed = len(jobs), 0, 0, 0
        self._pixels = {job.source: math.prod(upright_size(job.source) or (1,)) for job in jobs}
        self._pending_pixels, self._worked_pixels, self._current_pixels = sum(self._pixels.values()), 0, 0
        self._name, self._start_time = "", time.monotonic()
        self._last_line_time = self._start_time
        self._bar = tqdm(
            total=self._pending_pixels,
            disable=QUIET.get() or not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
            bar_format="{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]{postfix}",
        )

    def start(self, source: Path) -> Progress:
        """Begin an image, and return what follows its progress."""
        self._name, self._current_pixels, self._last_line_time = source.name, self._pixels[source], time.monotonic()
        finished = self._done + self._skipped + self._failed
        self._bar.set_postfix_str(f"{finished + 1}/{self._total} {source.name}", refresh=False)
        self.update(0, 1)
        return self.update

    def update(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Show that part of an image is done."""
        part = done / max(1, total)
        pixels = part * self._current_pixels
        self._bar.n = self._bar.total - self._pending_pixels + pixels
        self._bar.refresh()
        if self._bar.disable and time.monotonic() - self._last_line_time > LINE_EVERY:
            self._last_line_time = time.monotonic()
            log(f"{self._count()}{self._name}: {part:.0%}{self._to_go(pixels)}")

    def finish(self, job: Job, result: Outputs | Exception | None) -> None:
        """Count an image, and write a line unless the result is None: it was skipped."""
        pixels = self._pixels[job.source]
        self._pending_pixels -= pixels
        if result is None:
            self._skipped += 1
            # skipped ones do not count toward the speed
            self._bar.initial = self._bar.total - self._pending_pixels - self._worked_pixels
            return
        self._worked_pixels += pixels
        if isinstance(result, Exception):
            self._failed += 1
            if self._total > 1:
                log(f"{self._count(0)}{job.source.name}: {str(result) or type(result).__name__}")
        else:
            self._done += 1
            log(f"{self._count(0)}{job.source.name}: 100%, {duration(result.seconds)}{self._to_go()}")

    def close(self) -> str:
        """Remove the bar, and return a line with what was done."""
        self._bar.close()
        parts = [f"{self._done} done"] if self._done or not self._skipped else []
        if self._skipped:
            parts.append(f"{self._skipped} of {self._total} were there already (--again replaces them)")
        parts += [f"{self._failed} failed"] if self._failed else []
        return f"{', '.join(parts)}, in {duration(time.monotonic() - self._start_time)}."

    def _count(self, current: int = 1) -> str:
        """Number the image in progress; with 0, the last finished one."""
        number = self._done + self._skipped + self._failed + current
        return f"{number}/{self._total} " if self._total > 1 else ""

    def _to_go(self, pixels: float = 0) -> str:
        """How long the rest will take at the same speed, with so many pixels of the current image done."""
        worked, pending = self._worked_pixels + pixels, self._pending_pixels - pixels
        if not worked or pending <= 0:
            return ""
        return f", about {duration((time.monotonic() - self._start_time) * pending / worked)} to go"
