"""What commands write: results to stdout, for scripts; log lines and a progress bar to stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from tqdm import tqdm

from ..engine.progress import Progress, duration
from ..errors import FlowError, printable
from ..images.metadata import lost_frames
from ..models.writing import check_writable

if TYPE_CHECKING:
    from ..batch.folders import Job, Outputs
    from ..batch.tables import Record

BEFORE_ESTIMATE = 3  # pictures, from whose time that of the others is estimated
LINE_EVERY = 30  # seconds between lines on an image in progress, where there is no bar, as in log files
QUIET = ContextVar("QUIET", default=False)  # whether to write nothing but results and errors


BAR = "{{percentage:3.0f}}%|{{bar}}| [{{elapsed}}{remaining}]{{postfix}}"  # format of tqdm's bar


class SomeFailed(FlowError):
    """A command could do only part of its work."""


def log(line: str) -> None:
    if not QUIET.get():
        tqdm.write(printable(line), file=sys.stderr)


def check_overwrite(target: Path, is_ours: Callable[[Path], bool], kind: str, *, again: bool) -> None:
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


def write_result(options: Namespace, record: Record) -> None:
    """Write the paths of a picture's results, one per line, escaped; with ``--json``, one line with an exact object."""
    for line in [to_json(vars(record))] if options.json else record.outputs:
        tqdm.write(printable(line), file=sys.stdout)
    sys.stdout.flush()


def to_json(content: object, indent: int | None = None) -> str:
    """Write JSON, which has no infinite numbers and no NaN: null stands for them."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, dict):
            return {key: plain(item) for key, item in cast("dict[Any, Any]", value).items()}
        return [plain(item) for item in cast("list[Any]", value)] if isinstance(value, (list, tuple)) else value

    return json.dumps(plain(content), indent=indent, allow_nan=False)


class ProgressBar:
    """A bar over all images, by their pixels, on a terminal; a line for each finished one, there and in log files."""

    def __init__(self, sizes: Mapping[Path, tuple[int, int] | None]) -> None:
        """Begin with the height and width of every picture; None where unknown."""
        self._total, self._finished, self._skipped = len(sizes), 0, 0
        self._lost: list[int] = []  # frames that were dropped, of each file that has more than one
        self.failed: list[tuple[Job, Exception]] = []
        self._pixels = {path: math.prod(size or (1,)) for path, size in sizes.items()}
        self._pending_pixels, self._worked_pixels, self._current_pixels = sum(self._pixels.values()), 0, 0
        self._name, self._start_time = "", time.monotonic()
        self._last_line_time = self._start_time
        self._bar = tqdm(
            total=self._pending_pixels,
            disable=QUIET.get() or not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
            bar_format=BAR.format(remaining=""),
        )

    def start(self, source: Path) -> Progress:
        """Begin an image, and return what follows its progress."""
        self._name, self._current_pixels, self._last_line_time = source.name, self._pixels[source], time.monotonic()
        self._bar.set_postfix_str(f"{self._finished + 1}/{self._total} {printable(source.name)}", refresh=False)
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
            log(f"{self._count(self._finished + 1)}{self._name}: {part:.0%}{self._to_go(pixels)}")

    def finish(self, job: Job, result: Outputs | Exception | None) -> None:
        """Count an image, and write a line unless the result is None: it was skipped."""
        pixels = self._pixels[job.source]
        self._pending_pixels -= pixels
        self._finished += 1
        if result is None:
            self._skipped += 1
            # skipped ones do not count toward the speed
            self._bar.initial = self._bar.total - self._pending_pixels - self._worked_pixels
            return
        self._worked_pixels += pixels
        if self._can_estimate:
            self._bar.bar_format = BAR.format(remaining="<{remaining}")
        if isinstance(result, Exception):
            self.failed.append((job, result))
            if self._total > 1:
                log(f"{self._count(self._finished)}{job.source.name}: {_describe(result)}")
        else:
            self._lost += filter(None, [lost_frames(result.notes)])
            took = duration(result.seconds)
            log(f"{self._count(self._finished)}{job.source.name}: 100%, {took}{self._to_go()}")

    def close(self) -> None:
        """Remove the bar, and write a line with what was done; or raise an error that lists the jobs that failed."""
        self._bar.close()
        done = self._finished - self._skipped - len(self.failed)
        parts = [f"{done} done"] if done or not self._skipped else []
        if self._skipped:
            parts.append(f"{self._skipped} of {self._total} were there already (--again replaces them)")
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        summary = f"{', '.join(parts)}, in {duration(time.monotonic() - self._start_time)}."
        if self._lost:
            files = "a file" if len(self._lost) == 1 else f"{len(self._lost)} files"
            summary += f" Frames or pages of {files} that were left out: {sum(self._lost)}."
        if not self.failed:
            log(summary)
            return
        first = self.failed[0][1]
        if self._total == 1:
            raise first
        lines = [f"  {job.source}: {_describe(error)}" for job, error in self.failed]
        kind = SomeFailed if len(lines) < self._total else FlowError
        raise kind(f"{len(lines)} of {self._total} images could not be done:", *lines, summary) from first

    @property
    def _can_estimate(self) -> bool:
        """Whether enough is done: the first pictures may be far smaller than the others, or wait for the model."""
        return self._total == 1 or self._finished - self._skipped >= BEFORE_ESTIMATE

    def _count(self, number: int) -> str:
        return f"{number}/{self._total} " if self._total > 1 else ""

    def _to_go(self, pixels: float = 0) -> str:
        """Say how long the rest will take at the same speed, with so many pixels of the current image done."""
        if not self._can_estimate:
            return ""
        worked, pending = self._worked_pixels + pixels, self._pending_pixels - pixels
        if not worked or pending <= 0:
            return ""
        return f", about {duration((time.monotonic() - self._start_time) * pending / worked)} to go"


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__
