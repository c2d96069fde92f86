"""A CSV table beside the results of a batch: what each was made of, how, and in which time."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import FlowError

COLUMNS = ("input", "output", "seed", "model", "model_sha256", "seconds", "note")
NAME = "manifest.csv"


class Manifest:
    """Rows of ``COLUMNS``, appended as results are saved; of an output that is in several rows, the last one counts.

    An input that failed has a row without an output, whose note says why. Seconds are those of the input, with all its
    outputs.
    """

    def __init__(self, path: Path) -> None:
        """Open the table of a run, which need not exist yet.

        Raises:
            FlowError: If the file is something else.
        """
        self.path = path
        if path.exists():
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                first = next(csv.reader(file), list(COLUMNS))
            if tuple(first) != COLUMNS:
                raise FlowError(f"{path} is something else than a list of results. Name another file with --manifest.")

    def append(self, rows: Iterable[tuple[object, ...]]) -> None:
        """Write rows, and flush them to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists() or not self.path.stat().st_size
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows] if fresh else rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
