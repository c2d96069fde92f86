"""What commands write to stderr: log lines and a progress bar."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

if TYPE_CHECKING:
    from ..batch.folders import Job


def log(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


class ProgressBar:
    """A bar over all images on a terminal; a line for each finished image, there and in log files."""

    def __init__(self, total: int) -> None:
        self._total, self._finished, self._skipped = total, 0, 0
        self._bar = tqdm(
            total=total,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
            bar_format="{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]{postfix}",
        )

    def start(self, source: Path) -> None:
        self._bar.set_postfix_str(f"{self._finished + 1}/{self._total} {source.name}", refresh=False)
        self.update(0, 1)

    def update(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Show that part of an image is done."""
        self._bar.n = self._finished + done / max(1, total)
        self._bar.refresh()

    def finish(self, job: Job, failure: Exception | None, skipped: bool) -> None:
        self._finished += 1
        self._skipped += skipped
        self._bar.initial = self._skipped  # these do not count towards the speed
        count = f"{self._finished}/{self._total} " if self._total > 1 else ""
        if failure is not None and self._total > 1:
            log(f"{count}{job.source.name}: {str(failure) or type(failure).__name__}")
        elif failure is None and not skipped:
            log(f"{count}{job.source.name}: 100%")

    def close(self) -> None:
        self._bar.close()
        if self._skipped:
            log(f"{self._skipped} of {self._total} were there already; --again makes them anew.")
