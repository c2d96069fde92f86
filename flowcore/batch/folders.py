"""Many picture files: which ones, where their results go, what is there already, and what could not be done.

A result carries the name of the wish that it answers (``work.Work.ids``) as EXIF's ImageUniqueID. So a run that was
stopped at any moment goes on where it was, and a wish for something else makes the results anew. Results are whole or
not there (``checkpoints.writing``). One picture that cannot be done does not stop the others.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints.writing import SavingError, write_whole
from ..errors import FlowError
from ..images import files
from ..images.files import IMAGE_SUFFIXES
from .job import Work

MAGIC = re.compile(r"[*?[]")
SCORE_COLUMNS = ("image", "bits_per_dim", "complexity_corrected", "per_level", "notes", "error", "id")


@dataclass(frozen=True)
class Found:
    """A picture file that was asked for.

    Attributes:
        path: The file.
        inside: Its path below the folder, or the fixed part of the pattern, that it was found in; its name, if it was
            named itself.
    """

    path: Path
    inside: Path


@dataclass(frozen=True)
class Job:
    """A picture file and its results.

    Attributes:
        source: The picture.
        targets: A file for each result.
    """

    source: Path
    targets: tuple[Path, ...] = ()


@dataclass
class Report:
    """What has become of the jobs of a run.

    Attributes:
        done: Jobs that were done.
        skipped: Jobs whose results were there.
        failed: Jobs that could not be done, and why.
    """

    done: list[Job] = field(default_factory=list[Job])
    skipped: list[Job] = field(default_factory=list[Job])
    failed: list[tuple[Job, Exception]] = field(default_factory=list[tuple[Job, Exception]])


Result = tuple[Job, list[bytes] | Exception]
"""A job, and what became of it."""


def find(words: Sequence[str], out: Path | None = None) -> list[Found]:
    """Find the picture files that words of a command line mean.

    Args:
        words: Files; folders, of which all picture files are meant, at any depth; patterns such as ``photos/**/*.jpg``.
        out: The folder of the results, in which nothing is looked for.

    Returns:
        The files: word by word, each file once, those of a folder in the order of the numbers in their names.

    Raises:
        FlowError: If a folder or pattern holds none, or is itself where the results go.
    """
    found: dict[Path, Found] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            if out is not None and out.resolve() == path.resolve():
                raise FlowError(f"{word} is read, and cannot hold the results, too. Name another folder for them.")
            results = _within(out, path)
            several = [Found(p, p.relative_to(path)) for p in path.rglob("*") if _is_picture(p, results)]
            what = f"No images in {word}"
        elif MAGIC.search(word) and not path.exists():
            fixed = Path(*_before_magic(path.parts))
            results = _within(out, fixed)
            matches = (Path(match) for match in glob.glob(word, recursive=True))
            several = [Found(p, p.relative_to(fixed)) for p in matches if _is_picture(p, results)]
            what = f"Nothing matches {word}"
        else:
            several, what = [Found(path, Path(path.name))], ""
        if not several:
            raise FlowError(f"{what}. Expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
        for one in sorted(several, key=lambda one: in_order(one.inside)):
            found.setdefault(one.path.absolute(), one)
    return list(found.values())


def in_order(path: Path) -> list[tuple[int, int, str]]:
    """Give what to sort paths by, so that frame 10 comes after frame 9.

    Args:
        path: Of a file.

    Returns:
        Its parts, numbers as numbers.
    """
    parts = re.split(r"(\d+)", path.as_posix())
    return [(1, int(part), part) if part.isdecimal() else (2, 0, part) for part in parts if part]


def _within(out: Path | None, folder: Path) -> Path | None:
    """The folder of the results, if it lies where pictures are looked for."""
    return out.resolve() if out is not None and folder.resolve() in out.resolve().parents else None


def _is_picture(path: Path, results: Path | None) -> bool:
    if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or not path.is_file():
        return False
    return results is None or results not in path.resolve().parents


def _before_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if MAGIC.search(part):
            return
        yield part


def jobs(found: Sequence[Found], out: Path, names: Callable[[str], list[str]]) -> list[Job]:
    """Say where the results of each picture go: into the same sub-folder of OUT as it was found in.

    Pictures whose results would have one name (a.jpg and a.png) have their suffix in it; of different folders, each of
    which was named itself, those folders.

    Args:
        found: The pictures.
        out: Folder of the results.
        names: Makes names of results of the name of a picture.

    Returns:
        A job for each.

    Raises:
        FlowError: If a result would take the place of a picture.
    """
    above = Path(os.path.commonpath([one.path.absolute().parent for one in found])) if found else Path()
    places = Counter(_place(one.inside) for one in found)
    inside = [one.inside for one in found]
    for k, one in enumerate(found):
        if places[_place(one.inside)] > 1:
            named = one.inside if len(one.inside.parts) > 1 else one.path.absolute().relative_to(above)
            inside[k] = named.with_name(f"{named.stem}_{named.suffix[1:]}")
    made = [
        Job(one.path, tuple(out / path.parent / name for name in names(path.stem)))
        for one, path in zip(found, inside, strict=True)
    ]
    check_apart(made)
    return made


def check_apart(made: Sequence[Job]) -> None:
    """Refuse to write over pictures that are read, and two results into one file.

    Args:
        made: All jobs.

    Raises:
        FlowError: Naming the file.
    """
    sources = {job.source.resolve() for job in made}
    targets = Counter(target.resolve() for job in made for target in job.targets)
    for target, times in targets.items():
        if target in sources:
            raise FlowError(f"The result would take the place of {target}. Name another folder, or file, for it.")
        if times > 1:
            raise FlowError(f"{times} results would be {target}. Give the pictures different names.")


def _place(inside: Path) -> str:
    return inside.with_suffix("").as_posix().lower()


def run(
    made: Sequence[Job],
    do: Callable[[Iterable[Job]], Iterable[Result]],
    *,
    there: Callable[[Job], bool],
    keep: Callable[[Job, list[bytes]], None],
    tell: Callable[[Job, Exception | None, bool], None],
    whole_clips: bool = False,
) -> Report:
    """Do all jobs, except those whose results are there.

    Args:
        made: The jobs.
        do: Does those that it is given, in any order; what it raises ends the run.
        there: Whether the results of a job are there.
        keep: Saves results.
        tell: Called with every job that is over, why it failed, and whether its results were there.
        whole_clips: A result depends on those before in its folder: if one is missing, all are made.

    Returns:
        What has become of them.

    Raises:
        SavingError: If results cannot be saved; so could not the next ones.
    """
    report, missing = Report(), dict[Path, bool]()
    present = {job.source: there(job) for job in made} if whole_clips else {}
    for source, is_there in present.items():
        missing[source.parent] = missing.get(source.parent, False) or not is_there

    def left() -> Iterator[Job]:
        for job in made:
            if not missing[job.source.parent] if whole_clips else there(job):
                report.skipped.append(job)
                tell(job, None, True)
            else:
                yield job

    for job, result in do(left()):
        failure = result if isinstance(result, Exception) else None
        if failure is None:
            try:
                keep(job, result if isinstance(result, list) else [])
            except SavingError:
                raise
            except (FlowError, OSError) as error:
                failure = error
        if failure is None:
            report.done.append(job)
        else:
            report.failed.append((job, failure))
        tell(job, failure, False)
    return report


def are_there(job: Job, work: Work, model: str) -> bool:
    """Look whether a job's results are there: whole, and the answer to this wish.

    Args:
        job: The job.
        work: The wish.
        model: Fingerprint of the model.

    Returns:
        Whether they are. Pictures of the right name that some other program has saved count.
    """
    if not job.targets or not all(target.is_file() for target in job.targets):
        return False
    try:
        ids = work.ids(job.source.read_bytes(), model)
        found = [files.unique_id(target.read_bytes()) for target in job.targets]
    except OSError:
        return False
    return all(id in (None, wanted) for id, wanted in zip(found, ids, strict=True))


def save(job: Job, results: Sequence[bytes]) -> None:
    """Save results, each whole or not at all.

    Args:
        job: The job.
        results: A file for each of its targets.

    Raises:
        SavingError: If the system refuses.
    """
    for target, result in zip(job.targets, results, strict=True):
        write_whole(target, result)


class Scores:
    """A CSV file of scores, a row for each picture, that can be gone on with."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a last row that was cut off does not count.

        Args:
            path: The file, which need not be there.

        Raises:
            FlowError: If it is another table.
        """
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
                    self.rows[row["image"]] = {
                        "image": row["image"],
                        "bits_per_dim": float(row["bits_per_dim"]),
                        "complexity_corrected": _number(row["complexity_corrected"]),
                        "per_level": json.loads(row["per_level"]),
                        "notes": json.loads(row["notes"]),
                        "id": row["id"],
                    }

    def append(self, row: dict[str, Any]) -> None:
        """Write one more row, at once.

        Args:
            row: By column.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write((_line(SCORE_COLUMNS) if fresh else "") + _line(_cells(row)))
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write all anew, whole or not at all.

        Args:
            rows: By column, in order.
        """
        text = _line(SCORE_COLUMNS) + "".join(_line(_cells(row)) for row in rows)
        write_whole(self.path, text.encode())


def _cells(row: dict[str, Any]) -> list[Any]:
    shown = {**row, "per_level": json.dumps(row.get("per_level", [])), "notes": json.dumps(row.get("notes", []))}
    return ["" if shown.get(name) is None else shown[name] for name in SCORE_COLUMNS]


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _number(text: str) -> float | None:
    return float(text) if text else None
