"""The log of a run: ``log.txt``, ``history.csv``, ``held_out.csv``, ``curve.png``, sample sheets, and TensorBoard."""

from __future__ import annotations

import csv
import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..checkpoints.writing import replacing
from ..images.rounding import to_uint8
from .curve import draw_curve

TRAINING = ("step", "stage", "unit", "loss", "rate", "gradient_norm", "steps_per_second", "data_wait", "skipped")
HELD_OUT = ("step", "stage", "measure", "value")


class RunLog:
    """Writes what happens in a run into its folder, and to TensorBoard if it is installed."""

    def __init__(self, run: Path, write_line: Callable[[str], None] | None, *, step: int, enabled: bool = True) -> None:
        """Open the files, and drop rows after this step, which a run left that was killed.

        Without ``write_line``, lines go to the standard error stream.
        """
        self.run, self.write_line, self.enabled = run, write_line, enabled
        self.history, self.held_out = run / "history.csv", run / "held_out.csv"
        self.board: Any = None
        if not enabled:
            return
        for path, columns in ((self.history, TRAINING), (self.held_out, HELD_OUT)):
            rows = [row for row in _rows(path) if int(row["step"]) <= step]
            with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows([row[column] for column in columns] for row in rows)
        try:
            board = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            return
        self.board = board.SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def line(self, text: str) -> None:
        """Write a line, with the time."""
        if not self.enabled:
            return
        stamped = f"{time.strftime('%H:%M:%S')} {text}"
        with (self.run / "log.txt").open("a", encoding="utf-8") as file:
            file.write(stamped + "\n")
        if self.write_line is not None:
            self.write_line(stamped)
        else:
            sys.stderr.write(stamped + "\n")
            sys.stderr.flush()

    def training(self, **row: Any) -> None:
        """Append a row to ``history.csv``, with a value for every column."""
        if not self.enabled:
            return
        _append(self.history, TRAINING, row)
        if self.board is not None:
            for name in ("loss", "rate", "gradient_norm", "steps_per_second"):
                self.board.add_scalar(f"{row['stage']}/{name}", row[name], row["step"])

    def validation(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Append a row per metric to ``held_out.csv``, and draw ``curve.png``."""
        for name, value in metrics.items():
            _append(self.held_out, HELD_OUT, {"step": step, "stage": stage, "measure": name, "value": value})
            if self.board is not None:
                self.board.add_scalar(f"{stage}/{name}", value, step)
        draw_curve(_rows(self.history), _rows(self.held_out), self.run / "curve.png")

    def sheet(self, step: int, columns: Sequence[Tensor]) -> Tensor:
        """Save columns of images, ``(B, 1 or 3, H, W)`` in [0, 1] each, as ``sheets/NNNNNN.png``.

        Returns:
            The sheet, ``(3, B * H, columns * W)``, in [0, 1], on the CPU.
        """
        rows = torch.cat([c.clamp(0, 1).cpu().float().expand(-1, 3, -1, -1) for c in columns], dim=3)
        sheet = torch.cat(list(rows), dim=1)
        with replacing(self.run / "sheets" / f"{step:06d}.png") as partial:
            Image.fromarray(to_uint8(sheet).permute(1, 2, 0).contiguous().numpy()).save(partial, "PNG")
        return sheet

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _rows(path: Path) -> list[dict[str, str]]:
    """Read a table, without a last line that was cut off when the process was killed."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdecimal()]


def _append(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow([row[column] for column in columns])
