"""A training run under a name: it is resumed, restarted and published as a model file without losing anything."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.writing import write_atomic
from ..errors import FlowError
from .checkpoint import copy_file
from .run_log import read_rows

CHECKPOINT, MODEL, RECORD = "checkpoint.pt", "model.safetensors", "node.json"
EARLIER = "earlier"
NOT_SET_ASIDE = ("cache", EARLIER)


@dataclass
class Record:
    """What is remembered of a run besides the trainer's own files."""

    recipe: str  # its name
    fingerprint: str  # of what decides the weights
    minutes: float  # that the run was given when it began
    start: str  # name of the model whose weights it started from
    saved: str = ""  # digest of the model file that runs of this name have published; empty if none
    ours: bool = False  # whether this run has published it, and not one before a restart
    finished: bool = False  # whether the run has reached its end


class NamedRun:
    """The folder of a run, and the model file that it is published as."""

    def __init__(self, folder: Path, target: Path, find: Callable[[], Path | None]) -> None:
        """Name a run, which need not exist: the trainer's folder, and the model file that it is published as.

        ``find`` returns the file that a loader finds under the name of the target, wherever it is.
        """
        self.folder = folder
        self.target = target
        self._find = find

    def record(self) -> Record | None:
        """Read the record; None if there is no run."""
        try:
            return Record(**json.loads((self.folder / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def open(self, settings: Record, *, restart: bool) -> Record:
        """Resume the run, or begin it with the settings asked for; return its record.

        Other settings are refused, and so is to replace a model file that the run has not made. ``restart`` begins
        again; what the earlier run made is moved into its folder ``earlier``, which has room for one run. Decoded
        images stay.
        """
        record = self.record()
        self._refuse_to_overwrite(record)
        if restart and self.folder.exists():
            settings.saved = "" if record is None else record.saved
            self._set_aside()
            record = None
        elif record is not None and not (self.folder / CHECKPOINT).exists():
            settings.saved, record = record.saved, None  # it stopped before its first step
        elif record is not None:
            self._refuse_other_settings(record, settings)
        record = record or settings
        self._write(record)
        return record

    def publish(self, record: Record) -> None:
        """Copy the model to the target, atomically, unless a foreign file is there now, and write the record."""
        model = self.folder / MODEL
        if model.exists():
            digest = _digest(model)
            if not self.target.exists() or _digest(self.target) != digest:
                self._refuse_to_overwrite(record)
                copy_file(model, self.target)
            record.saved, record.ours = digest, True
        self._write(record)

    def state(self) -> str:
        """Return what changes whenever there is more to train: "gone" if the finished model file was removed."""
        record = self.record()
        if record is None or not (self.folder / CHECKPOINT).exists():
            return ""
        if record.finished:
            return "gone" if self._find() is None else ""
        return str((self.folder / CHECKPOINT).stat().st_mtime_ns)

    def history(self) -> list[dict[str, str]]:
        """Read the trainer's history, a row per logged step."""
        return read_rows(self.folder / "history.csv")

    def last_sheet(self) -> Path | None:
        """Return the newest sheet of samples, if there is one."""
        return max((self.folder / "sheets").glob("*.png"), key=lambda path: int(path.stem), default=None)

    def _write(self, record: Record) -> None:
        text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
        write_atomic(self.folder / RECORD, text.encode())

    def _set_aside(self) -> None:
        earlier = self.folder / EARLIER
        shutil.rmtree(earlier, ignore_errors=True)
        earlier.mkdir()
        for item in list(self.folder.iterdir()):
            if item.name not in NOT_SET_ASIDE:
                os.replace(item, earlier / item.name)

    def _refuse_to_overwrite(self, record: Record | None) -> None:
        found = self._find()
        if found is not None and found.resolve() != self.target.resolve():
            raise FlowError(f"There is a model {self.target.name} in {found.parent} already. Choose another name.")
        if self.target.exists() and (record is None or _digest(self.target) != record.saved):
            raise FlowError(
                f"models/flows has a model {self.target.name} that is not the one that the runs in {self.folder} have "
                "made. It is not overwritten: choose another name, or move the file away."
            )

    def _refuse_other_settings(self, record: Record, settings: Record) -> None:
        changes = [
            f"{field} {getattr(record, field)} (now {getattr(settings, field)})"
            for field in ("recipe", "minutes", "start")
            if getattr(record, field) != getattr(settings, field)
        ]
        if not changes and record.fingerprint != settings.fingerprint:
            changes = [f"another content of the recipe {record.recipe}"]
        if changes:
            raise FlowError(
                f"The run {self.folder.name} was begun with {', '.join(changes)}, and keeps that to its end. Set it "
                f"back to go on, set restart to begin anew, or choose another name (with {self.target.name} as start, "
                f"to build on it). What it has made so far is {self.target.name} in Load Flow Model."
            )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
