"""CSV tables of a batch: a manifest of its results and their sources, and scores."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FlowError
from ..models.writing import check_writable, write_atomic
from .folders import Job, Outputs, exclusive
from .job import Worker

COLUMNS = ("input", "output", "seed", "model", "model_sha256", "seconds", "note")  # one of each of the lists
NAME = "manifest.csv"
WHOLE_NUMBERS = ("n_bits", "channels", "height", "width")  # columns that describe the scored pixels
SCORE_COLUMNS = (
    *("image", "bits_per_dim", "complexity_corrected", "per_level", "scored", "notes"),
    *("error", "id", "spread", "enlarged", "model_sha256"),
    *WHOLE_NUMBERS,
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What came of a picture: a line of JSON, or rows of a ``Manifest``."""

    input: str | None
    outputs: list[str]
    seeds: list[int | None]  # one for each output; empty if they were there already
    model: str
    model_sha256: str
    seconds: float | None = None
    notes: list[str] = field(default_factory=list[str])
    error: str | None = None

    @staticmethod
    def of(job: Job, result: Outputs | Exception | None, worker: Worker) -> "Record":
        """Describe what came of a job; ``result`` is None if its results were there already."""
        common: dict[str, Any] = {"input": str(job.source), "model": worker.spec.model}
        common["model_sha256"] = worker.model_sha256
        if isinstance(result, Exception):
            return Record(**common, outputs=[], seeds=[], error=str(result) or type(result).__name__)
        outputs = [str(target) for target in job.targets]
        if result is None:
            return Record(**common, outputs=outputs, seeds=[])
        made: dict[str, Any] = {"seeds": [*result.seeds], "seconds": round(result.seconds, 2)}
        return Record(**common, **made, outputs=outputs, notes=[*result.notes])

    def rows(self) -> list[tuple[object, ...]]:
        """Return a row of ``COLUMNS`` for each output, or one without output."""
        common = self.model, self.model_sha256, self.seconds, self.error or " ".join(self.notes)
        outputs = [*zip(self.outputs, self.seeds, strict=True)] or [("", "")]
        return [(self.input, output, seed, *common) for output, seed in outputs]


class Manifest:
    """Rows of ``COLUMNS``, appended by any number of processes; what failed or was skipped has one without output."""

    def __init__(self, path: Path) -> None:
        """Open the table of a run, which need not exist yet; FlowError if the file is something else."""
        self.path = path
        check_writable(path)
        if path.exists():
            if tuple([*self._read(), COLUMNS][0]) != COLUMNS:  # an empty file is fine
                raise FlowError(
                    f"{path} exists and is not a list of results. Choose another file with --manifest, or another "
                    "folder."
                )
            self.compact()

    def compact(self) -> None:
        """Keep the last row per input and output, and drop the failures of inputs that have an output now."""
        if not self.path.exists():
            return
        with exclusive(self.path):
            rows = [*filter(None, self._read())]
            latest = dict[tuple[str, str], list[str]]()
            for row in rows[1:]:
                if len(row) == len(COLUMNS):  # a shorter row was cut off
                    latest.pop((row[0], ""), None)
                    latest[row[0], row[1]] = row
            if len(latest) + 1 < len(rows):
                write_atomic(self.path, _encode([COLUMNS, *latest.values()]))

    def _read(self) -> list[list[str]]:
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            return list(csv.reader(file))

    def append_skipped(self, skipped: Mapping[Path, str]) -> None:
        """Write a row for each file that was skipped, with the reason."""
        if skipped:
            rows = [(path, "", "", "", "", "", f"Skipped: {reason}.") for path, reason in skipped.items()]
            with exclusive(self.path):
                _append(self.path, COLUMNS, rows)

    def append(self, record: Record) -> None:
        """Write the rows of a picture that was done to the disk."""
        with exclusive(self.path):
            _append(self.path, COLUMNS, record.rows())


def find(path: Path, picture: Path) -> tuple[int, str | None, str, str] | None:
    """Return a picture's seed, model, SHA-256 of the model, and input, by the end of its path; None if not listed."""
    with suppress(OSError), path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            is_same = Path(row.get("output") or "").parts[-len(picture.parts) :] == picture.parts
            if is_same and (row.get("seed") or "").isdecimal():
                return int(row["seed"]), row.get("model"), row.get("model_sha256") or "", row.get("input") or ""
    return None


class Scores:
    """A CSV table of scores, one row per picture, that a later run can resume; the file need not exist yet.

    Several processes may write into one table, and keep each other's rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}  # rows by picture, without failures and a last row that was cut off
        check_writable(path)
        if path.exists():
            with exclusive(path):
                self._read()
                self._write([*self.rows.values()])

    def _read(self) -> None:
        data = self.path.read_bytes()
        text = (data[: _end_of_rows(data)] or data).decode(errors="replace")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if tuple(reader.fieldnames or SCORE_COLUMNS) != SCORE_COLUMNS:
            raise FlowError(f"{self.path} exists and is not a table of scores. Choose another file for them.")
        for row in reader:
            if row["error"] or None in row or not re.fullmatch("[0-9a-f]{64}", row["model_sha256"] or ""):
                continue  # it failed, or the row is damaged
            with suppress(ValueError, TypeError):  # a row that lacks a number is damaged, too
                self.rows[row["image"]] = {
                    **{name: row[name] for name in SCORE_COLUMNS if name != "error"},
                    "bits_per_dim": float(row["bits_per_dim"]),
                    **{k: float(row[k]) if row[k] else None for k in ("complexity_corrected", "spread")},
                    **{k: json.loads(row[k]) for k in ("per_level", "notes")},
                    "enlarged": row["enlarged"] == "True",
                    **{k: int(row[k]) for k in WHOLE_NUMBERS},
                }

    def append(self, row: dict[str, Any]) -> None:
        """Write one more row, and flush it to the disk."""
        with exclusive(self.path):
            _append(self.path, SCORE_COLUMNS, [_cells(row)])

    def finish(self, rows: Sequence[dict[str, Any]]) -> None:
        """Put the rows of a run at the end, in place of those of the same pictures."""
        with exclusive(self.path):
            if self.path.exists():
                self._read()
            names = {row["image"] for row in rows}
            self._write([*(row for name, row in self.rows.items() if name not in names), *rows])

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        write_atomic(self.path, _encode([SCORE_COLUMNS, *map(_cells, rows)]))


def _cells(row: dict[str, Any]) -> list[Any]:
    shown = {**row, "per_level": json.dumps(row.get("per_level", [])), "notes": json.dumps(row.get("notes", []))}
    return ["" if shown.get(name) is None else shown[name] for name in SCORE_COLUMNS]


def _append(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Append rows to a table, in place of one that was cut off, and flush them; a new table begins with its columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if size and file.read() != b"\n":
            file.seek(0)
            size = file.truncate(_end_of_rows(file.read()))
        file.write(_encode(rows if size else [columns, *rows]))
        file.flush()
        os.fsync(file.fileno())


def _end_of_rows(data: bytes) -> int:
    """Return where the last row of a table ends that was not cut off."""
    return data.rfind(b"\n") + 1


def _encode(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")  # names that are not UTF-8
