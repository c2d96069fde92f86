"""A run's folder: checkpoints that are whole or not there, and the log, the curve and the sheets beside them."""

from __future__ import annotations

import csv
import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..checkpoints.writing import replacing
from ..errors import FlowError
from ..flow import Flow

CURVE = (960, 480)  # pixels
MARGIN = 56


@dataclass
class Progress:
    """What a run remembers between checkpoints besides tensors.

    Attributes:
        step: Finished steps, over all stages.
        skipped: Steps that were not made because the loss or gradient was not finite.
        bad: How many of the last steps, in a row, were not made.
        rate: Factor on the recipe's learning rates, halved whenever the run went back.
        retreats: How often it went back.
        initialised: Whether the flow has had its first batch.
        length: Factor on the recipe's numbers of steps, below 1 where time is short.
        precision: "float32" or "bfloat16", once chosen.
        recompute: Whether activations are computed again, stage by stage, once chosen.
        origin: Whose weights it began with, in words, where it did not begin with random ones.
        seconds: Time spent training.
    """

    step: int = 0
    skipped: int = 0
    bad: int = 0
    rate: float = 1.0
    retreats: int = 0
    initialised: bool = False
    length: float = 1.0
    precision: str = ""
    recompute: str = ""
    origin: str = ""
    seconds: float = 0.0


class Checkpoints:
    """Two checkpoints of a run: the newest, ``checkpoint.pt``, and the one before it, ``checkpoint.previous.pt``.

    While steps are not finite, the one before is the last good one, and stays. Each is written beside its place, forced
    to the disk and then renamed, so that there is a whole one whenever the process or the machine is stopped.
    """

    def __init__(self, run: Path, fingerprint: str) -> None:
        """Say where.

        Args:
            run: The run's folder.
            fingerprint: Of the recipe; a checkpoint of another one is refused.
        """
        self.newest, self.previous = run / "checkpoint.pt", run / "checkpoint.previous.pt"
        self.fingerprint = fingerprint
        self._newest_is_good = False

    def write(
        self, flow: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer | None, progress: Progress
    ) -> None:
        """Write the newest checkpoint; what was the newest becomes the previous one, if it was good.

        Args:
            flow: The weights being trained.
            average: Their average.
            optimiser: With its moments; None before the first step of a stage.
            progress: Everything else.
        """
        content = {
            "flow": flow.state_dict(),
            "average": average.state_dict(),
            "optimiser": None if optimiser is None else optimiser.state_dict(),
            "progress": vars(progress).copy(),
            "recipe": self.fingerprint,
        }
        with replacing(self.newest) as partial:
            with partial.open("wb") as file:
                torch.save(content, file)
            if self.newest.exists() and self._newest_is_good:
                os.replace(self.newest, self.previous)
        self._newest_is_good = progress.bad == 0

    def read(self, say: Callable[[str], None], *, good: bool = False) -> dict[str, Any] | None:
        """Read the newest checkpoint that can be read.

        Args:
            say: Told of one that is damaged.
            good: Whether to pass over those written in the middle of steps that were not finite.

        Returns:
            Its content, or None if there is none.

        Raises:
            FlowError: If it belongs to another recipe.
        """
        for path in (self.newest, self.previous):
            if not path.exists():
                continue
            try:
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                progress: dict[str, Any] = content["progress"]
            except Exception as error:  # a damaged file raises whatever its bytes ask for
                say(f"{path.name} is damaged ({type(error).__name__}: {error}); looking for the one before it")
                continue
            if content["recipe"] != self.fingerprint:
                raise FlowError(
                    f"{path.parent} holds a run of another recipe (model, stages or seed differ). Choose another "
                    "--run folder."
                )
            is_good = progress.get("bad", 0) == 0
            if path == self.newest:
                self._newest_is_good = is_good
            if is_good or not good:
                return content
        return None


def restore(content: Mapping[str, Any], flow: Flow, average: Flow, progress: Progress) -> dict[str, Any] | None:
    """Put a checkpoint into its places.

    Args:
        content: What ``Checkpoints.read`` gave.
        flow: The weights.
        average: Their average.
        progress: Everything else.

    Returns:
        The optimiser's state, if there is one.
    """
    flow.load_state_dict(content["flow"])
    average.load_state_dict(content["average"])
    for name, value in content["progress"].items():
        setattr(progress, name, value)
    return content["optimiser"]


class Journal:
    """What a run says: ``log.txt``, ``history.csv``, ``curve.png``, sheets, and TensorBoard if it is installed."""

    TRAINING = ("step", "stage", "unit", "loss", "rate", "gradient_norm", "steps_per_second", "data_wait", "skipped")
    HELD_OUT = ("step", "stage", "measure", "value")

    def __init__(self, run: Path, log: Callable[[str], None] | None, *, step: int, speaks: bool = True) -> None:
        """Open the files.

        Args:
            run: The run's folder.
            log: Where lines go; None for the standard error stream.
            step: How far the run has come: later rows, of a run that was killed, are dropped.
            speaks: Whether this process writes; the others of a run only listen.
        """
        self.run, self.log, self.speaks = run, log, speaks
        self.board: Any = None
        if not speaks:
            return
        self.history, self.held_out = run / "history.csv", run / "held_out.csv"
        for path, columns in ((self.history, self.TRAINING), (self.held_out, self.HELD_OUT)):
            kept = [row for row in _rows(path) if int(row["step"]) <= step]
            with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows([row[column] for column in columns] for row in kept)
        try:
            board = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            return
        self.board = board.SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def say(self, line: str) -> None:
        """Write a line, with the time.

        Args:
            line: What there is to say.
        """
        if not self.speaks:
            return
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        with (self.run / "log.txt").open("a", encoding="utf-8") as file:
            file.write(stamped + "\n")
        if self.log is not None:
            self.log(stamped)
        else:
            sys.stderr.write(stamped + "\n")
            sys.stderr.flush()

    def training(self, **row: Any) -> None:
        """Write a row of ``history.csv``.

        Args:
            row: A value for every column.
        """
        if not self.speaks:
            return
        _append(self.history, self.TRAINING, row)
        if self.board is not None:
            for name in ("loss", "rate", "gradient_norm", "steps_per_second"):
                self.board.add_scalar(f"{row['stage']}/{name}", row[name], row["step"])

    def measured(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Write rows of ``held_out.csv``, a row a measure, and draw ``curve.png``.

        Args:
            step: When.
            stage: In which stage.
            metrics: Name to value.
        """
        if not self.speaks:
            return
        for name, value in metrics.items():
            _append(self.held_out, self.HELD_OUT, {"step": step, "stage": stage, "measure": name, "value": value})
            if self.board is not None:
                self.board.add_scalar(f"{stage}/{name}", value, step)
        curve(_rows(self.history), _rows(self.held_out), self.run / "curve.png")

    def sheet(self, step: int, columns: Sequence[Tensor]) -> Tensor:
        """Save pictures side by side: a row an image; ``sheets/NNNNNN.png``.

        Args:
            step: When.
            columns: Pictures of the same images in [0, 1], each ``(B, 1 or 3, H, W)``.

        Returns:
            The sheet, ``(3, B * H, columns * W)``, in [0, 1], on the CPU.
        """
        rows = torch.cat([c.clamp(0, 1).cpu().float().expand(-1, 3, -1, -1) for c in columns], dim=3)
        sheet = torch.cat(list(rows), dim=1)
        path = self.run / "sheets" / f"{step:06d}.png"
        with replacing(path) as partial:
            Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).contiguous().numpy()).save(partial, "PNG")
        return sheet

    def close(self) -> None:
        """Finish what TensorBoard still holds."""
        if self.board is not None:
            self.board.close()


def curve(training: Sequence[Mapping[str, str]], held_out: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw the loss of every stage against its steps, a panel a stage; what was held out as dots.

    Args:
        training: Rows of ``history.csv``.
        held_out: Rows of ``held_out.csv``; the first measure of a step is that of the loss.
        path: Where the picture goes.
    """
    stages = list(dict.fromkeys(row["stage"] for row in training))
    width, height = CURVE
    picture = Image.new("RGB", (width * max(1, len(stages)), height), "white")
    draw = ImageDraw.Draw(picture)
    for number, stage in enumerate(stages):
        rows = [row for row in training if row["stage"] == stage]
        line = [(int(row["step"]), float(row["loss"])) for row in rows]
        first = {int(row["step"]): float(row["value"]) for row in reversed(held_out) if row["stage"] == stage}
        _panel(draw, number * width, f"{stage}: {rows[0]['unit']}", line, sorted(first.items()))
    with replacing(path) as partial:
        picture.save(partial, "PNG")


def _panel(
    draw: ImageDraw.ImageDraw,
    left: int,
    title: str,
    line: Sequence[tuple[int, float]],
    dots: Sequence[tuple[int, float]],
) -> None:
    """Draw one stage. What lies above twice the spread of its later half, the start of a training, is cut off."""
    finite = [(x, y) for x, y in [*line, *dots] if abs(y) < float("inf")]
    if not finite:
        return
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    later = ys[len(line) // 2 :] or ys
    low = min(ys)
    high = min(max(ys), max(later) + 2 * (max(later) - low) + 1e-9)
    width, height = CURVE

    def place(point: tuple[int, float]) -> tuple[float, float]:
        across = (point[0] - min(xs)) / max(1, max(xs) - min(xs))
        up = (min(point[1], high) - low) / max(high - low, 1e-12)
        return left + MARGIN + across * (width - 2 * MARGIN), height - MARGIN - up * (height - 2 * MARGIN)

    frame = [left + MARGIN, MARGIN, left + width - MARGIN, height - MARGIN]
    draw.rectangle(frame, outline="#999999")
    for k in range(5):
        value = low + (high - low) * k / 4
        y = place((min(xs), value))[1]
        draw.line([frame[0], y, frame[2], y], fill="#e5e5e5")
        draw.text((left + 4, y - 6), f"{value:.4g}", fill="#444444")
    draw.text((frame[0], height - MARGIN + 8), f"step {min(xs)}", fill="#444444")
    draw.text((frame[2] - 70, height - MARGIN + 8), f"step {max(xs)}", fill="#444444")
    draw.text((frame[0], MARGIN - 20), f"{title}; line: training, dots: held out", fill="#000000")
    if len(line) > 1:
        draw.line([place(point) for point in line], fill="#1f6fb4", width=2)
    for point in dots:
        x, y = place(point)
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill="#d1495b")


def _rows(path: Path) -> list[dict[str, str]]:
    """Read a table; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdecimal()]


def _append(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow([row[column] for column in columns])
