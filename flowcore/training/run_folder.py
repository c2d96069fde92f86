"""What a run writes into its folder: log, tables, curve and sheets; model files; and runs that have a name."""

import csv
import dataclasses
import filecmp
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import FlowError, printable, say
from ..flows.model import FlowModel
from ..images.color import to_uint8
from ..models.identity import fingerprint
from ..models.model_file import read_header, save
from ..models.writing import SavingError, replacing, write_atomic

HISTORY, MEASURES = "history.csv", "held_out.csv"
TABLES = {  # columns
    HISTORY: ("step", "stage", "unit", "loss", "rate", "gradient_norm", "steps_per_second", "data_wait", "skipped"),
    MEASURES: ("step", "stage", "measure", "value"),
}
WIDTH, HEIGHT, MARGIN = 960, 480, 56  # pixels of a panel of the curve
Point = tuple[int, float]  # point of the curve: step and loss


class RunLog:
    """Writes what happens in a run into its folder, and to TensorBoard if it is installed."""

    def __init__(self, run: Path, write_line: Callable[[str], None] | None, *, enabled: bool = True) -> None:
        """Write nothing yet; without ``write_line``, lines also go to stderr."""
        self.run, self.write_line, self.step, self.enabled = run, write_line, 0, enabled

    def begin(self, step: int) -> None:
        """Begin the tables, or drop the rows of a killed run after this step."""
        self.step = step
        for name, columns in TABLES.items() if self.enabled else ():
            rows = [row for row in read_rows(self.run / name) if int(row["step"]) <= step]
            with replacing(self.run / name) as partial, partial.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows([row[column] for column in columns] for row in rows)

    @cached_property
    def board(self) -> Any:
        """TensorBoard's writer, or None; opened for the first row, since a run may be rejected before it."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self.run / "tensorboard"), purge_step=self.step + 1)

    def line(self, text: str) -> None:
        if not self.enabled:
            return
        stamped = f"{time.strftime('%H:%M:%S')} {printable(text)}"
        with _appending(self.run / "log.txt") as file:
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
        self._append(HISTORY, row)
        if self.board is not None:
            for name in ("loss", "rate", "gradient_norm", "steps_per_second"):
                self.board.add_scalar(f"{row['stage']}/{name}", row[name], row["step"])

    def validation(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Append a row per metric to ``held_out.csv``, and draw ``curve.png``."""
        for name, value in metrics.items():
            self._append(MEASURES, {"step": step, "stage": stage, "measure": name, "value": value})
            if self.board is not None:
                self.board.add_scalar(f"{stage}/{name}", value, step)
        draw_curve(read_rows(self.run / HISTORY), read_rows(self.run / MEASURES), self.run / "curve.png")

    def sheet(self, step: int, columns: Sequence[Tensor]) -> Tensor:
        """Save columns of images, ``(B, 1 or 3, H, W)`` in [0, 1], as ``sheets/NNNNNN.png``: ``(3, h, w)``."""
        rows = torch.cat([c.clamp(0, 1).cpu().float().expand(-1, 3, -1, -1) for c in columns], dim=3)
        sheet = torch.cat(list(rows), dim=1)
        with replacing(self.run / "sheets" / f"{step:06d}.png") as partial:
            Image.fromarray(to_uint8(sheet).permute(1, 2, 0).contiguous().numpy()).save(partial, "PNG")
        return sheet

    def close(self) -> None:
        if self.__dict__.get("board") is not None:
            self.board.close()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with _appending(self.run / name) as file:
            csv.writer(file).writerow([row[column] for column in TABLES[name]])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a table, without a last line that was cut off when the process was killed."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdecimal()]


@contextmanager
def _appending(path: Path) -> Generator[TextIO]:
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise SavingError(
            f"{path} could not be written: {error.strerror or error}. Free some space, or make it writable; then run "
            "again to continue."
        ) from error


def draw_curve(training: Sequence[Mapping[str, str]], held_out: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw the loss of every stage, a panel each, from the rows of ``history.csv``, and ``held_out.csv`` as dots."""
    stages = list(dict.fromkeys(row["stage"] for row in training))
    image = Image.new("RGB", (WIDTH * max(1, len(stages)), HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for number, stage in enumerate(stages):
        rows = [row for row in training if row["stage"] == stage]
        line = [(int(row["step"]), float(row["loss"])) for row in rows]
        # the first measure of a step is its loss: reversed, it is the last one that the dict takes
        losses = {int(row["step"]): float(row["value"]) for row in reversed(held_out) if row["stage"] == stage}
        _draw_panel(draw, number * WIDTH, f"{stage}: {rows[0]['unit']}", line, sorted(losses.items()))
    with replacing(path) as partial:
        image.save(partial, "PNG")


def _draw_panel(draw: ImageDraw.ImageDraw, x0: int, title: str, line: list[Point], dots: list[Point]) -> None:
    """Draw one stage. Losses above the later half by more than twice its range, as at the beginning, are cut off."""
    finite = [(x, y) for x, y in [*line, *dots] if abs(y) < math.inf]
    if not finite:
        return
    xs, ys = zip(*finite, strict=True)
    low, later = min(ys), max(ys[len(line) // 2 :] or ys)
    high = min(max(ys), later + 2 * (later - low) + 1e-9)

    def place(point: Point) -> tuple[float, float]:
        across = (point[0] - min(xs)) / max(1, max(xs) - min(xs))
        up = (min(point[1], high) - low) / max(high - low, 1e-12)
        return x0 + MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    frame = [x0 + MARGIN, MARGIN, x0 + WIDTH - MARGIN, HEIGHT - MARGIN]
    draw.rectangle(frame, outline="#999999")
    for k in range(5):
        value = low + (high - low) * k / 4
        y = place((min(xs), value))[1]
        draw.line([frame[0], y, frame[2], y], fill="#e5e5e5")
        draw.text((x0 + 4, y - 6), f"{value:.4g}", fill="#444444")
    draw.text((frame[0], HEIGHT - MARGIN + 8), f"step {min(xs)}", fill="#444444")
    draw.text((frame[2] - 70, HEIGHT - MARGIN + 8), f"step {max(xs)}", fill="#444444")
    draw.text((frame[0], MARGIN - 20), f"{title}; line: training, dots: held out", fill="#000000")
    if len(line) > 1:
        draw.line([place(point) for point in line], fill="#1f6fb4", width=2)
    for point in dots:
        x, y = place(point)
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill="#d1495b")


# --- model files ------------------------------------------------------------------------------------------------------

MODEL, WORSE, START_FILE = "model.safetensors", "worse.safetensors", "start.safetensors"  # files in the run folder
OTHER_FILES = (START_FILE, MEASURES, "curve.png", "log.txt", "sheets", HISTORY)
TOLERANCE = {"psnr_tau0.0": 0.1, "of_gray_tau0": 0.01}  # how much worse the best guess of a better model may be


@dataclass(frozen=True, kw_only=True)
class Result:
    """The state of a run at the end of a call of ``train``."""

    model: Path  # the model file
    steps: int  # steps in this call and those before
    total: int  # steps of the whole run
    new_steps: int  # steps in this call
    skipped: int  # steps that changed nothing: loss or gradient was not finite, or the gradient exploded
    minutes: float  # minutes of training, in this call and those before
    better_than_start: bool | None  # the measured answer; None without a start, or if nothing could be measured
    verdict: str  # the comparison with the start, in a sentence; empty without one
    files: "Results"

    @property
    def is_finished(self) -> bool:
        return self.steps >= self.total


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with replacing(target, source.stat().st_size) as partial:
        shutil.copyfile(source, partial)


def refuse_to_replace(folder: Path, *, resumed: bool) -> None:
    """Raise FlowError if a run would replace files in its folder that belong to something else.

    Without a checkpoint to resume from, its own are those of a run that stopped before its first checkpoint.
    """
    # history.csv is listed last, since it is written first, perhaps just now by the main process of several
    existing = [name for name in (MODEL, WORSE, *OTHER_FILES) if (folder / name).exists()]
    foreign = [name for name, columns in TABLES.items() if name in existing and not _is_table(folder / name, columns)]
    if not resumed:
        is_begun = HISTORY in existing and HISTORY not in foreign
        foreign = [name for name in existing if not is_begun or name in (MODEL, WORSE, *foreign)]
    if foreign:
        raise FlowError(
            f"A run in {folder} would replace {', '.join(foreign)}, and there is no run to resume that they belong to. "
            "Choose another folder for the run (--run), or move these files away."
        )


def _is_table(path: Path, columns: Sequence[str]) -> bool:
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(1000).strip() == ",".join(columns)


class Results:
    """The model files of a run: its start; the better of start and trained model; the trained model if it is worse."""

    def __init__(self, folder: Path) -> None:
        """Name the files in a folder, which is created if there is none."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise FlowError(f"{folder} cannot be the folder of a run ({reason}). Choose another (--run).") from error
        self.start, self.model, self.worse = folder / START_FILE, folder / MODEL, folder / WORSE

    def publish(
        self, flow: FlowModel, provenance: dict[str, Any], start: Mapping[str, float], *, measured: bool
    ) -> None:
        """Write a model with its metrics. If the start, of metrics ``start``, is better, that is the model file."""
        if start and not measured:  # nothing tells which is better, so the model file stays
            if not self.model.exists():
                copy_file(self.start, self.model)
        elif worse_by(start, provenance["metrics"]):
            save(flow, self.worse, provenance=provenance)
            copy_file(self.start, self.model)
        else:
            save(flow, self.model, provenance=provenance)
            self.worse.unlink(missing_ok=True)

    def is_start(self) -> bool:
        """Tell whether the model file is a copy of the start: nothing better was trained, or measured yet."""
        files = self.start, self.model
        return all(file.exists() for file in files) and filecmp.cmp(*files, shallow=False)

    def _say_where(self) -> str:
        """Say where the trained model is, in a verdict, if the model file is a copy of the start."""
        if not self.is_start():
            return ""
        if not self.worse.exists():
            return say(": {file} is the start", file=self.model.name)
        return say(": {file} is the start; the trained model is {trained}", file=self.model.name, trained=self.worse)

    def is_of(self, step: int) -> bool:
        """Tell whether the trained model on file is that of a step."""
        files = [file for file in (self.worse, self.model) if file.exists()]
        return self.model in files and any(read_header(file).provenance.get("steps") == step for file in files)

    def verdict(self, start: Mapping[str, float]) -> tuple[bool | None, str]:
        """Compare what was trained with the start, whose metrics are ``start``: whether it is better, and why."""
        where = self._say_where()
        if not start:
            return None, say(
                "No held-out image is as large as a crop, so nothing tells whether this is better than the start"
                "{where}.",
                where=where,
            )
        file = self.worse if self.worse.exists() else self.model
        if file == self.model and self.is_start():
            return None, say("Stopped before it was measured{where}.", where=where)
        metrics = read_header(file).provenance["metrics"]
        values = ", ".join(f"{name} {start[name]:g} -> {value:g}" for name, value in metrics.items() if name in start)
        if worse := worse_by(start, metrics):
            template = say("Worse than the start by {difference} in {metric} ({values}){where}.")
            return False, say(template, difference=f"{worse[1]:.4g}", metric=worse[0], values=values, where=where)
        main, *others = start
        gain = -loss_of_quality(main, start, metrics)
        if gain == 0:
            return False, say("As good as the start ({values}){where}.", values=values, where=where)
        lost = ", ".join(name for name in others if loss_of_quality(name, start, metrics) > 0)
        return True, f"Better than the start by {gain:.4g} ({values}){f', but not in {lost}' if lost else ''}."


def worse_by(start: Mapping[str, float], metrics: Mapping[str, float]) -> tuple[str, float] | None:
    """Name a measure in which a model is worse than the one it started from, and how much; None if there is none."""
    # the first is the loss of held-out images; the picture at temperature 0 may lose while the likelihood still rises
    limits = dict.fromkeys([*start][:1], 0.0) | {name: TOLERANCE[name] for name in TOLERANCE if name in start}
    for name, limit in limits.items():
        loss = loss_of_quality(name, start, metrics)
        if not loss <= limit:  # true for NaN, too
            return name, loss
    return None


def loss_of_quality(name: str, start: Mapping[str, float], metrics: Mapping[str, float]) -> float:
    """How much worse a measure is: of signal-to-noise ratios a fall, of losses and errors a rise; NaN if missing."""
    change = metrics.get(name, math.nan) - start[name]
    return -change if "psnr" in name else change


# --- a run under a name -----------------------------------------------------------------------------------------------

CHECKPOINT, RECORD, EARLIER = "checkpoint.pt", "node.json", "earlier"


@dataclass
class Record:
    """What a named run stores besides the trainer's own files; the field names are those of its JSON file."""

    recipe: str  # its name
    fingerprint: str  # fingerprint of the recipe's content
    minutes: float  # the limit with which the run began
    start: str  # name of the model whose weights it started from
    saved: str = ""  # digest of the model file that runs of this name have published; empty if none
    ours: bool = False  # whether this run has published it; False if it was a run before a restart
    finished: bool = False  # whether the run has reached its end


class NamedRun:
    """The folder of a run, and the model file that it is published as."""

    def __init__(self, folder: Path, target: Path, find: Callable[[], Path | None]) -> None:
        """Name a run, which need not exist; ``find`` returns what a loader finds under the name of the target."""
        self.folder, self.target, self._find = folder, target, find

    def record(self) -> Record | None:
        """Read the record; None if there is no run."""
        try:
            return Record(**json.loads((self.folder / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def open(self, settings: Record, *, restart: bool) -> Record:
        """Resume the run, or begin it with the settings; return its record.

        FlowError if it began with other settings, or if it would replace a model file that it has not made. ``restart``
        begins again; everything the earlier run made, except decoded images, is moved into a separate folder.
        """
        record = self.record()
        self._refuse_to_overwrite(record)
        if restart and self.folder.exists():
            settings.saved = "" if record is None else record.saved
            self._set_aside()
            record = None  # start over
        elif record is not None and not any(self.folder.glob("checkpoint*.pt")):
            settings.saved, record = record.saved, None  # it stopped before its first step
        elif record is not None:
            self._refuse_other_settings(record, settings)
        record = record or settings
        self._write(record)
        return record

    def publish(self, record: Record) -> None:
        """Copy the model to the target, unless it is the start, which has a name already; and write the record.

        FlowError if the target is a foreign file by now.
        """
        model = self.folder / MODEL
        if model.exists() and not Results(self.folder).is_start():
            digest = fingerprint(model)
            if not self.target.exists() or fingerprint(self.target) != digest:
                self._refuse_to_overwrite(record)
                copy_file(model, self.target)
            record.saved, record.ours = digest, True
            self._keep_one_earlier()
        self._write(record)

    def state(self) -> str:
        """Fingerprint the run: it changes if there is more to train, and is "gone" if its model file was removed."""
        record = self.record()
        if record is None or not (self.folder / CHECKPOINT).exists():
            return ""
        if record.finished:
            return "gone" if record.ours and self._find() is None else ""
        return str((self.folder / CHECKPOINT).stat().st_mtime_ns)

    def history(self) -> list[dict[str, str]]:
        return read_rows(self.folder / HISTORY)

    def last_sheet(self) -> Path | None:
        """Return the newest sheet of samples, if there is one."""
        return max((self.folder / "sheets").glob("*.png"), key=lambda path: int(path.stem), default=None)

    def _earlier(self) -> list[Path]:
        """List the folders of earlier runs, ``earlier``, ``earlier-2`` and so on, the oldest first."""
        folders = [path for path in self.folder.glob(f"{EARLIER}*") if re.fullmatch(rf"{EARLIER}(-\d+)?", path.name)]
        return sorted(folders, key=lambda path: (len(path.name), path.name))

    def _set_aside(self) -> None:
        """Move the files of the run into a new folder, in case that the next one makes no model."""
        earlier = self._earlier()
        number = int(earlier[-1].name.partition("-")[2] or 1) + 1 if earlier else 1
        folder = self.folder / (EARLIER if number == 1 else f"{EARLIER}-{number}")
        items = [item for item in self.folder.iterdir() if item.name != "cache" and item not in earlier]
        folder.mkdir()
        for item in items:
            os.replace(item, folder / item.name)

    def _keep_one_earlier(self) -> None:
        """Keep the last of the earlier runs that made a model as ``earlier``, now that this run has made one."""
        earlier = self._earlier()
        last = next((folder for folder in reversed(earlier) if (folder / MODEL).exists()), None)
        for folder in earlier:
            if folder != last:
                shutil.rmtree(folder, ignore_errors=True)
        if last is not None and not (named := self.folder / EARLIER).exists():
            os.replace(last, named)

    def _write(self, record: Record) -> None:
        write_atomic(self.folder / RECORD, (json.dumps(dataclasses.asdict(record), indent=2) + "\n").encode())

    def _refuse_to_overwrite(self, record: Record | None) -> None:
        if (model := self._find()) is not None and model.resolve() != self.target.resolve():
            raise FlowError(f"There is a model {self.target.name} in {model.parent} already. Choose another name.")
        if self.target.exists() and (record is None or fingerprint(self.target) != record.saved):
            raise FlowError(
                f"models/flows has a model {self.target.name} that the runs in {self.folder} have not made. It is not "
                "overwritten: choose another name, or move the file away."
            )

    def _refuse_other_settings(self, record: Record, settings: Record) -> None:
        pairs = [(field, getattr(record, field), getattr(settings, field)) for field in ("recipe", "minutes", "start")]
        changes = [f"{field} {was} (now {now})" for field, was, now in pairs if was != now]
        if not changes and record.fingerprint != settings.fingerprint:
            changes = [f"another content of the recipe {record.recipe}"]
        if changes:
            other_name = "choose another name"
            if record.ours:
                other_name += f" and start from {self.target.name}, which this run has made so far"
            raise FlowError(
                f"The run {self.folder.name} began with {', '.join(changes)}, which stays so to its end. Set it back "
                f"to continue, set restart to start over, or {other_name}."
            )
