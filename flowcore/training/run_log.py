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
from PIL import Image, ImageDraw
from torch import Tensor

from ..checkpoints.writing import replacing
from ..images.rounding import to_uint8

TRAINING = ("step", "stage", "unit", "loss", "rate", "gradient_norm", "steps_per_second", "data_wait", "skipped")
HELD_OUT = ("step", "stage", "measure", "value")
WIDTH, HEIGHT = 960, 480  # pixels of a panel of the curve
MARGIN = 56


class RunLog:
    """Writes what happens in a run into its folder, and to TensorBoard if it is installed."""

    def __init__(self, run: Path, write_line: Callable[[str], None] | None, *, step: int, enabled: bool = True) -> None:
        """Open the files, and drop the rows of a killed run after this step; without ``write_line``, use stderr."""
        self.run, self.write_line, self.enabled = run, write_line, enabled
        self.history, self.held_out = run / "history.csv", run / "held_out.csv"
        self.board: Any = None
        if not enabled:
            return
        for path, columns in ((self.history, TRAINING), (self.held_out, HELD_OUT)):
            rows = [row for row in read_rows(path) if int(row["step"]) <= step]
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
        draw_curve(read_rows(self.history), read_rows(self.held_out), self.run / "curve.png")

    def sheet(self, step: int, columns: Sequence[Tensor]) -> Tensor:
        """Save columns of images, ``(B, 1 or 3, H, W)`` in [0, 1], as ``sheets/NNNNNN.png``: ``(3, h, w)``."""
        rows = torch.cat([c.clamp(0, 1).cpu().float().expand(-1, 3, -1, -1) for c in columns], dim=3)
        sheet = torch.cat(list(rows), dim=1)
        with replacing(self.run / "sheets" / f"{step:06d}.png") as partial:
            Image.fromarray(to_uint8(sheet).permute(1, 2, 0).contiguous().numpy()).save(partial, "PNG")
        return sheet

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a table, without a last line that was cut off when the process was killed."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdecimal()]


def _append(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow([row[column] for column in columns])


def draw_curve(training: Sequence[Mapping[str, str]], held_out: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw the loss of every stage against its steps, a panel per stage, with dots for the held-out images.

    It takes the rows of ``history.csv`` and ``held_out.csv``, where the first measure of a step is its loss.
    """
    stages = list(dict.fromkeys(row["stage"] for row in training))
    image = Image.new("RGB", (WIDTH * max(1, len(stages)), HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for number, stage in enumerate(stages):
        rows = [row for row in training if row["stage"] == stage]
        line = [(int(row["step"]), float(row["loss"])) for row in rows]
        losses = {int(row["step"]): float(row["value"]) for row in reversed(held_out) if row["stage"] == stage}
        _draw_panel(draw, number * WIDTH, f"{stage}: {rows[0]['unit']}", line, sorted(losses.items()))
    with replacing(path) as partial:
        image.save(partial, "PNG")


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    left: int,
    title: str,
    line: Sequence[tuple[int, float]],
    dots: Sequence[tuple[int, float]],
) -> None:
    """Draw one stage. The first, large losses are cut off: all above twice the range of the later half."""
    finite = [(x, y) for x, y in [*line, *dots] if abs(y) < float("inf")]
    if not finite:
        return
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    later = ys[len(line) // 2 :] or ys
    low = min(ys)
    high = min(max(ys), max(later) + 2 * (max(later) - low) + 1e-9)

    def place(point: tuple[int, float]) -> tuple[float, float]:
        across = (point[0] - min(xs)) / max(1, max(xs) - min(xs))
        up = (min(point[1], high) - low) / max(high - low, 1e-12)
        return left + MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    frame = [left + MARGIN, MARGIN, left + WIDTH - MARGIN, HEIGHT - MARGIN]
    draw.rectangle(frame, outline="#999999")
    for k in range(5):
        value = low + (high - low) * k / 4
        y = place((min(xs), value))[1]
        draw.line([frame[0], y, frame[2], y], fill="#e5e5e5")
        draw.text((left + 4, y - 6), f"{value:.4g}", fill="#444444")
    draw.text((frame[0], HEIGHT - MARGIN + 8), f"step {min(xs)}", fill="#444444")
    draw.text((frame[2] - 70, HEIGHT - MARGIN + 8), f"step {max(xs)}", fill="#444444")
    draw.text((frame[0], MARGIN - 20), f"{title}; line: training, dots: held out", fill="#000000")
    if len(line) > 1:
        draw.line([place(point) for point in line], fill="#1f6fb4", width=2)
    for point in dots:
        x, y = place(point)
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill="#d1495b")
