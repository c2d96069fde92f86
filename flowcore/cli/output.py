"""What commands write to stderr: log lines and a progress bar."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

from ..tasks.duration import duration

if TYPE_CHECKING:
    from ..batch.folders import Job, Made

QUIET = 30  # seconds after which a log file, which shows no bar, hears of the image in work


def log(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


class ProgressBar:
    """A bar over all images on a terminal; a line for each finished image, there and in log files."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._skipped, self._failed = total, 0, 0, 0
        self._name, self._start = "", time.monotonic()
        self._spoke = self._start
        self._bar = tqdm(
            total=total,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
            bar_format="{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]{postfix}",
        )

    @property
    def _finished(self) -> int:
        return self._done + self._skipped + self._failed

    def start(self, source: Path) -> None:
        self._name, self._spoke = source.name, time.monotonic()
        self._bar.set_postfix_str(f"{self._finished + 1}/{self._total} {source.name}", refresh=False)
        self.update(0, 1)

    def update(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Show that part of an image is done."""
        part = done / max(1, total)
        self._bar.n = self._finished + part
        self._bar.refresh()
        if self._bar.disable and time.monotonic() - self._spoke > QUIET:
            self._spoke = time.monotonic()
            log(f"{self._count()}{self._name}: {part:.0%}{self._to_go(self._finished + part)}")

    def finish(self, job: Job, result: Made | Exception | None) -> None:
        """Count an image, and write a line unless it was skipped.

        Args:
            job: The image.
            result: Its results or its failure; None if it was skipped.
        """
        if result is None:
            self._skipped += 1
            self._bar.initial = self._skipped  # these do not count towards the speed
        elif isinstance(result, Exception):
            self._failed += 1
            if self._total > 1:
                log(f"{self._count(0)}{job.source.name}: {str(result) or type(result).__name__}")
        else:
            self._done += 1
            log(f"{self._count(0)}{job.source.name}: 100%, {duration(result.seconds)}{self._to_go(self._finished)}")

    def close(self) -> str:
        """Remove the bar.

        Returns:
            What was done, in a line.
        """
        self._bar.close()
        parts = [f"{self._done} done"] if self._done or not self._skipped else []
        if self._skipped:
            parts.append(f"{self._skipped} of {self._total} were there already (--again makes them anew)")
        parts += [f"{self._failed} failed"] if self._failed else []
        return f"{', '.join(parts)}, in {duration(time.monotonic() - self._start)}."

    def _count(self, current: int = 1) -> str:
        return f"{self._finished + current}/{self._total} " if self._total > 1 else ""

    def _to_go(self, finished: float) -> str:
        """How long the rest will take if it goes on like this."""
        worked, left = finished - self._skipped, self._total - finished
        if not worked or left <= 0:
            return ""
        return f", about {duration((time.monotonic() - self._start) * left / worked)} to go"
