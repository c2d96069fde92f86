"""Folders of pictures: which files, where their results go, which are done, and which failed.

Each result stores the fingerprint of its work (``job.Work.ids``) as EXIF ImageUniqueID. So a run that was stopped at
any moment can be resumed, and a file that something else made is never replaced. Results are complete or absent
(``checkpoints.writing``). A picture that fails does not stop the others.
"""

from __future__ import annotations

import csv
import glob
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints.writing import SavingError, write_atomic
from ..errors import FlowError
from ..images import files
from ..images.files import IMAGE_SUFFIXES
from .job import MARK, Work

MAGIC = re.compile(r"[*?[]")
SCORE_COLUMNS = ("image", "bits_per_dim", "complexity_corrected", "per_level", "notes", "error", "id")


@dataclass(frozen=True)
class Found:
    """A picture file that was found.

    Attributes:
        path: The file.
        inside: Its path below the folder, or below the fixed part of the pattern; its name if it was given itself.
    """

    path: Path
    inside: Path


@dataclass(frozen=True)
class Job:
    """A picture file, and a file for each of its results."""

    source: Path
    targets: tuple[Path, ...] = ()


@dataclass
class Report:
    """Outcome of a run.

    Attributes:
        done: Jobs that were done.
        skipped: Jobs whose results existed.
        failed: Jobs that failed, and why.
    """

    done: list[Job] = field(default_factory=list[Job])
    skipped: list[Job] = field(default_factory=list[Job])
    failed: list[tuple[Job, Exception]] = field(default_factory=list[tuple[Job, Exception]])

    def raise_failures(self, total: int, summary: str = "") -> None:
        """Raise an error that lists the jobs that failed, out of ``total``; nothing if there are none.

        Args:
            total: Number of jobs.
            summary: Last line of the list.
        """
        if not self.failed:
            return
        first = self.failed[0][1]
        if total == 1:
            raise first
        lines = [f"{job.source}: {error if str(error) else type(error).__name__}" for job, error in self.failed]
        listed = "\n  ".join([f"{len(lines)} of {total} images could not be done:", *lines])
        raise FlowError(f"{listed}\n{summary}".strip()) from first


@dataclass(frozen=True)
class Made:
    """The results of a job.

    Attributes:
        files: Their contents.
        seconds: How long it took.
        notes: What the task had to say.
    """

    files: list[bytes]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


Result = tuple[Job, Made | Exception]
"""A job, and its results or its failure."""


# --- which files ------------------------------------------------------------------------------------------------------


def find(words: Sequence[str], out: Path | None = None) -> list[Found]:
    """Find picture files.

    Args:
        words: Files, folders (searched at any depth) and patterns such as ``photos/**/*.jpg``.
        out: Folder of the results, which is not searched.

    Returns:
        The files: word by word, each file once, in natural order of their names.

    Raises:
        FlowError: If a folder or pattern has no picture, or ``out`` is one of the folders.
    """
    found: dict[Path, Found] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            if out is not None and out.resolve() == path.resolve():
                raise FlowError(f"{word} is read, and cannot hold the results, too. Name another folder for them.")
            excluded = _within(out, path)
            matches = [Found(p, p.relative_to(path)) for p in path.rglob("*") if _is_picture(p, excluded)]
            problem = f"No images in {word}"
        elif MAGIC.search(word) and not path.exists():
            fixed = Path(*itertools.takewhile(lambda part: not MAGIC.search(part), path.parts))
            excluded = _within(out, fixed)
            paths = (Path(match) for match in glob.glob(word, recursive=True))
            matches = [Found(p, p.relative_to(fixed)) for p in paths if _is_picture(p, excluded)]
            problem = f"Nothing matches {word}"
        else:
            matches, problem = [Found(path, Path(path.name))], ""
        if not matches:
            raise FlowError(f"{problem}. Expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
        for one in sorted(matches, key=lambda one: natural_key(one.inside)):
            found.setdefault(one.path.absolute(), one)
    return list(found.values())


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key of a path that puts frame 10 after frame 9."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(1, int(part), part) if part.isdecimal() else (2, 0, part) for part in parts if part]


def _within(out: Path | None, folder: Path) -> Path | None:
    """The folder of the results, if it lies below a folder that is searched."""
    return out.resolve() if out is not None and folder.resolve() in out.resolve().parents else None


def _is_picture(path: Path, excluded: Path | None) -> bool:
    if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or not path.is_file():
        return False
    return excluded is None or excluded not in path.resolve().parents


# --- where results go -------------------------------------------------------------------------------------------------


def jobs(found: Sequence[Found], out: Path, names: Callable[[str], list[str]]) -> list[Job]:
    """Make a job for each picture; results go into the same sub-folder of ``out`` as the picture was found in.

    Where results of two pictures would collide, their names get the suffix (a.jpg and a.png), and pictures of different
    folders that were given themselves keep those folders.

    Args:
        found: The pictures.
        out: Folder of the results.
        names: From the stem of a picture's name to the names of its results.

    Returns:
        A job for each picture.

    Raises:
        FlowError: If a result would overwrite a picture or another result.
    """
    above = Path(os.path.commonpath([one.path.absolute().parent for one in found])) if found else Path()
    stems = Counter(_stem(one.inside) for one in found)
    inside = [one.inside for one in found]
    for k, one in enumerate(found):
        if stems[_stem(one.inside)] > 1:
            place = one.inside if len(one.inside.parts) > 1 else one.path.absolute().relative_to(above)
            inside[k] = place.with_name(f"{place.stem}_{place.suffix[1:]}")
    made = [
        Job(one.path, tuple(out / path.parent / name for name in names(path.stem)))
        for one, path in zip(found, inside, strict=True)
    ]
    check_targets(made)
    return made


def check_targets(made: Sequence[Job]) -> None:
    """Refuse results that would overwrite a picture or each other.

    Raises:
        FlowError: Naming the file.
    """
    sources = {job.source.resolve() for job in made}
    targets = Counter(target.resolve() for job in made for target in job.targets)
    for target, times in targets.items():
        if target in sources:
            raise FlowError(f"The result would overwrite {target}. Name another folder, or file, for it.")
        if times > 1:
            raise FlowError(f"{times} results would be {target}. Give the pictures different names.")


def _stem(inside: Path) -> str:
    return inside.with_suffix("").as_posix().lower()


# --- a run ------------------------------------------------------------------------------------------------------------


def run(
    made: Sequence[Job],
    executor: Callable[[Iterable[Job]], Iterable[Result]],
    *,
    is_done: Callable[[Job], bool],
    save: Callable[[Job, Made], None],
    on_result: Callable[[Job, Made | Exception | None], None],
    whole_clips: bool = False,
) -> Report:
    """Execute all jobs whose results do not exist yet.

    Args:
        made: The jobs.
        executor: Executes the jobs that it is given, in any order; an exception that it raises ends the run.
        is_done: Returns True if the results of a job exist; raises FlowError if they cannot be saved.
        save: Saves results.
        on_result: Called after every job with its results or its failure; with None if it was skipped.
        whole_clips: Results depend on the frames before them in the folder: if one is missing, all are made again.

    Returns:
        The outcome.

    Raises:
        SavingError: If results cannot be saved; the next ones could not be saved either.
    """
    report = Report()
    incomplete = {job.source.parent for job in made if not _done(job, is_done)} if whole_clips else set[Path]()

    def finish(job: Job, result: Made | Exception) -> None:
        if isinstance(result, Exception):
            report.failed.append((job, result))
        else:
            report.done.append(job)
        on_result(job, result)

    def pending() -> Iterator[Job]:
        for job in made:
            state = _done(job, is_done)
            if isinstance(state, FlowError):
                finish(job, state)
            elif state and job.source.parent not in incomplete:
                report.skipped.append(job)
                on_result(job, None)
            else:
                yield job

    for job, result in executor(pending()):
        if not isinstance(result, Exception):
            try:
                save(job, result)
            except SavingError:
                raise
            except (FlowError, OSError) as error:
                result = error
        finish(job, result)
    return report


def _done(job: Job, is_done: Callable[[Job], bool]) -> bool | FlowError:
    try:
        return is_done(job)
    except FlowError as error:
        return error


def is_done(job: Job, work: Work, model: str, *, again: bool = False) -> bool:
    """Return True if all outputs exist, are whole, and match the job's settings.

    Args:
        job: The job.
        work: What is done with every picture.
        model: Fingerprint of the model.
        again: Whether to make everything anew.

    Returns:
        Whether the job can be skipped.

    Raises:
        FlowError: If an output is a file that must not be replaced, see ``targets_done``.
    """
    try:
        picture = job.source.read_bytes()
    except OSError:
        return False
    return targets_done(job.targets, work.ids(picture, model), work.size_of(picture), again=again)


def targets_done(
    targets: Sequence[Path], ids: Sequence[str], size: tuple[int, int] | None, *, again: bool = False
) -> bool:
    """Return True if all outputs exist, are whole, and are what would be made now.

    Args:
        targets: The outputs.
        ids: What identifies them, see ``job.picture_id``.
        size: Height and width that they should have; None if unknown.
        again: Whether to make everything anew.

    Returns:
        Whether nothing has to be made. Empty and damaged outputs of ours are made again.

    Raises:
        FlowError: If an output exists that something else has made; with ``again`` only if it is not one of ours.
    """
    done = bool(targets) and not again
    for target, id in zip(targets, ids, strict=True):
        if not target.exists() or (target.is_file() and target.stat().st_size == 0):
            done = False
            continue
        data = target.read_bytes() if target.is_file() else b""
        actual = files.unique_id(data) or ""
        if not actual.startswith(MARK):
            raise FlowError(
                f"{target} exists, and flowcore did not make it, or it was changed since. It is kept. Move it away, or "
                "name another folder or file."
            )
        if again:
            continue
        whole = files.is_whole(data)
        if actual != id or (whole and size not in (None, files.upright_size(data))):
            changed = "resized since it was made"
            how = changed if actual == id else "made by another model, with other settings or of another picture"
            raise FlowError(f"{target} exists, {how}. --again replaces it; or name another folder or file.")
        done &= whole
    return done


def save(job: Job, made: Made) -> None:
    """Save the results of a job, each file atomically.

    Raises:
        SavingError: If a file cannot be written.
    """
    for target, result in zip(job.targets, made.files, strict=True):
        write_atomic(target, result)


# --- scores -----------------------------------------------------------------------------------------------------------


class Scores:
    """A CSV table of scores, one row per picture, that a later run can resume.

    Attributes:
        path: The file, which need not exist yet.
        rows: Complete rows by picture; failures and a last row that was cut off are left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or SCORE_COLUMNS) != SCORE_COLUMNS:
                raise FlowError(f"{path} is a table of something else. Name another file for the scores.")
            for row in reader:
                if re.fullmatch("[0-9a-f]{32}", row["id"] or "") and not row["error"]:
                    corrected = row["complexity_corrected"]
                    self.rows[row["image"]] = {
                        "image": row["image"],
                        "bits_per_dim": float(row["bits_per_dim"]),
                        "complexity_corrected": float(corrected) if corrected else None,
                        "per_level": json.loads(row["per_level"]),
                        "notes": json.loads(row["notes"]),
                        "id": row["id"],
                    }

    def append(self, row: dict[str, Any]) -> None:
        """Write one more row, and flush it to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write((_line(SCORE_COLUMNS) if fresh else "") + _line(_cells(row)))
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, rows: Sequence[dict[str, Any]]) -> None:
        """Replace the table atomically."""
        text = _line(SCORE_COLUMNS) + "".join(_line(_cells(row)) for row in rows)
        write_atomic(self.path, text.encode())


def _cells(row: dict[str, Any]) -> list[Any]:
    shown = {**row, "per_level": json.dumps(row.get("per_level", [])), "notes": json.dumps(row.get("notes", []))}
    return ["" if shown.get(name) is None else shown[name] for name in SCORE_COLUMNS]


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
