"""Folders of pictures: which files, where their results go, which are done, and which failed.

Each result stores the fingerprint of its work (``job.Work.ids``) as EXIF ImageUniqueID. So a run that was stopped can
be resumed, and a file that something else made is never replaced. A picture that fails does not stop the others.
Processes that share a folder of results make each picture once (``Claims``).
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import platform
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.writing import ABANDONED, SavingError, is_gone, write_atomic
from ..errors import FlowError
from ..images import files
from ..images.files import IMAGE_SUFFIXES
from ..images.folders import walk_files, walk_folders
from ..tasks import Progress
from .job import MARK, Work, Worker

MAGIC = re.compile(r"[*?[]")
FRAME = re.compile(r"(.+)(\.\d{2,})")  # the stem of a frame's name: shot.v01.0001
POLL = 1.0  # seconds between looks at pictures that other processes have claimed


@dataclass(frozen=True)
class Found:
    """A picture file that was found."""

    path: Path
    inside: Path  # below the folder, or below the fixed part of the pattern; its name if it was given itself


@dataclass(frozen=True)
class Job:
    """A picture file, and a file for each of its results."""

    source: Path
    targets: tuple[Path, ...] = ()
    problem: str = ""  # why it cannot be done


@dataclass(frozen=True)
class Made:
    """The contents of a job's results, and what the task had to say."""

    files: list[bytes]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


Result = tuple[Job, Made | Exception]  # a job, and its results or its failure
Executor = Callable[[Iterable[Job]], Iterable[Result]]


# --- which files ------------------------------------------------------------------------------------------------------


def find(words: Sequence[str], out: Path | None = None, notify: Callable[[str], None] | None = None) -> list[Found]:
    """Find picture files: word by word, each file once, in natural order of their names; report what is left out.

    Words are files, folders (searched at any depth, linked ones too, but for ``out``) and patterns such as
    ``photos/**/*.jpg``. A link to a picture that is not there is found, so that the run can say so.
    """
    found: dict[Path, Found] = {}
    ignored = dict[Path, str]()  # file to reason
    for word in words:
        path = Path(word)
        if path.is_dir():
            if out is not None and out.resolve() == path.resolve():
                raise FlowError(f"{word} is read, and cannot hold the results, too. Name another folder for them.")
            above, paths, problem = path, walk_files(path, ignored), f"No images in {word}"
        elif MAGIC.search(word) and not path.exists():
            above = Path(*itertools.takewhile(lambda part: not MAGIC.search(part), path.parts))
            paths, problem = map(Path, _matching(word, ignored)), f"Nothing matches {word}"
        else:
            found.setdefault(path.absolute(), Found(path, Path(path.name)))
            continue
        # the folder of the results, if it lies inside
        excluded = out.resolve() if out is not None and above.resolve() in out.resolve().parents else None
        matches = list[Found]()
        for file in {*paths}:
            broken = file.is_symlink() and not file.exists()
            if file.name.startswith(".") or not (file.is_file() or broken):
                continue
            if excluded is not None and excluded in file.resolve().parents:
                continue
            if file.suffix.lower() in IMAGE_SUFFIXES:
                matches.append(Found(file, file.relative_to(above)))
            else:
                ignored[file.absolute()] = "a broken link" if broken else file.suffix.lower() or "no suffix"
        if not matches:
            raise FlowError(f"{problem}. Expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
        for one in sorted(matches, key=lambda one: natural_key(one.inside)):
            found.setdefault(one.path.absolute(), one)
    if ignored and notify is not None:
        kinds = ", ".join(sorted({*ignored.values()}))
        notify(f"Files that flowcore does not read were left out: {len(ignored)} ({kinds}).")
    return list(found.values())


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key of a path that puts frame 10 after frame 9."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(1, int(part), part) if part.isdecimal() else (2, 0, part) for part in parts if part]


def _matching(pattern: str, ignored: dict[Path, str]) -> Iterator[str]:
    """List what matches a pattern; glob alone would follow links that lead back forever."""
    head, deep, rest = f"{pattern}/*".partition("**/") if pattern.endswith("**") else pattern.partition("**/")
    if not deep:
        yield from glob.iglob(pattern)
        return
    for top in glob.iglob(head or "./"):
        for here, _ in walk_folders(Path(top), ignored):
            if not any(part.startswith(".") for part in Path(here).relative_to(top).parts):  # glob skips these, too
                yield from _matching(os.path.join(glob.escape(here), rest), ignored)


# --- where results go -------------------------------------------------------------------------------------------------


def jobs(found: Sequence[Found], out: Path, names: Callable[[str], list[str]]) -> list[Job]:
    """Make a job for each picture, with results of ``names(its name)`` in the sub-folder that it was found in.

    Pictures of different folders that have one name where they were found or given keep those folders.
    """
    above = Path(os.path.commonpath([one.path.absolute().parent for one in found])) if found else Path()
    times = Counter(one.inside for one in found)
    inside = [one.inside if times[one.inside] == 1 else one.path.absolute().relative_to(above) for one in found]
    targets = [tuple(out / path.parent / name for name in names(path.name)) for path in inside]
    return check_targets([Job(one.path, files) for one, files in zip(found, targets, strict=True)])


def split_name(name: str) -> tuple[str, str]:
    """Split the name of a picture into what names of its results begin with, and the number of a frame, their end."""
    frame = FRAME.fullmatch(Path(name).stem)
    return (frame[1], frame[2]) if frame else (Path(name).stem, "")


def check_targets(made: Sequence[Job]) -> list[Job]:
    """Refuse results that would overwrite a picture; of pictures with one name, all but the first are to fail."""
    sources, taken, checked = {job.source.resolve() for job in made}, dict[Path, Path](), list[Job]()
    for job in made:
        targets = [target.resolve() for target in job.targets]
        for target in targets:
            if target in sources:
                raise FlowError(f"The result would overwrite {target}. Name another folder, or file, for it.")
        first = next((taken[target] for target in targets if target in taken), None)
        if first is not None:
            said = f"Its results would have the names of those of {first.name}. Rename it, or add {{suffix}} to --name."
            job = Job(job.source, problem=said)
        taken |= dict.fromkeys(targets, first or job.source)
        checked.append(job)
    return checked


# --- a run ------------------------------------------------------------------------------------------------------------


def run(
    made: Sequence[Job],
    executor: Executor,
    *,
    is_done: Callable[[Job], bool],
    save: Callable[[Job, Made], None],
    on_result: Callable[[Job, Made | Exception | None], None],
    whole_clips: bool = False,
    claims: bool = True,
    notify: Callable[[str], None] | None = None,
) -> list[tuple[Job, Exception]]:
    """Execute all jobs whose results do not exist yet, and return those that failed, and why.

    An exception of ``executor`` ends the run, and so does a ``SavingError``, after which nothing could be saved.
    ``is_done`` raises FlowError if results cannot be saved. ``on_result`` gets None for a job that was skipped. With
    ``whole_clips``, results depend on the frames before them in the folder: if one is missing, all are made again. With
    ``claims``, pictures are left to the processes that are at work on them, and waited for, of which ``notify`` is
    told; without, ``executor`` may take all jobs before it begins.
    """
    failed: list[tuple[Job, Exception]] = []
    incomplete = set[Path]()  # clips

    def finish(job: Job, result: Made | Exception) -> None:
        if isinstance(result, Exception):
            failed.append((job, result))
        on_result(job, result)

    def is_settled(job: Job) -> bool:
        state = state_of(job, is_done)
        if isinstance(state, FlowError):
            finish(job, state)
        elif state and job.source.parent not in incomplete:
            on_result(job, None)
        else:
            return False
        if (place := claimed(job)) is not None:
            Claims.clear(place)
        return True

    def claimed(job: Job) -> Path | None:
        """What is claimed for a job: its first result, or its clip; None if the job is on its own."""
        if not claims or not job.targets:
            return None
        return job.targets[0].with_name("clip") if whole_clips else job.targets[0]

    def pending(held: Claims) -> Iterator[Job]:
        waiting, elsewhere = list(made), list[Job]()
        while waiting:
            incomplete.update(job.source.parent for job in waiting if whole_clips and not state_of(job, is_done))
            for job in waiting:
                if is_settled(job):
                    continue
                place = claimed(job)
                if place is not None and not held.take(place):
                    elsewhere.append(job)
                elif place is None or whole_clips:  # a clip is held until the run ends
                    yield job
                else:
                    if not is_settled(job):  # another process may have finished it since the first look
                        yield job
                    held.release(place)
            if elsewhere and len(elsewhere) < len(waiting) and notify is not None:
                notify(f"Waiting for {len(elsewhere)} images that other processes have in work.")
            if elsewhere:
                time.sleep(POLL)
            incomplete.clear()
            waiting, elsewhere = elsewhere, []

    with Claims() as held:
        for job, result in executor(pending(held)):
            if not isinstance(result, Exception):
                try:
                    save(job, result)
                except SavingError:
                    raise
                except (FlowError, OSError) as error:
                    result = error
            finish(job, result)
    return failed


def in_turn(
    worker: Worker,
    start: Callable[[Path], Progress | None],
    notify: Callable[[str], None],
    jobs: Iterable[Job],
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[Result]:
    """Execute jobs in this process, one after the other; ``start`` may return what follows the progress of a job."""
    for job in jobs:
        progress, notes, began = start(job.source), list[str](), time.monotonic()

        def note(sentence: str, name: str = job.source.name, notes: list[str] = notes) -> None:
            notes.append(sentence)
            notify(f"{name}: {sentence}")

        try:
            data, clip = files.read_bytes(job.source), job.source.parent
            made = worker(data, job.source.name, clip, progress=progress, notify=note, cancelled=cancelled)
        except Exception as error:  # one picture does not stop the others
            yield job, error
        else:
            yield job, Made(made, time.monotonic() - began, tuple(notes))


def state_of(job: Job, is_done: Callable[[Job], bool]) -> bool | FlowError:
    """Say whether a job's results exist; or the FlowError that forbids saving them, truthy, so the job is skipped."""
    try:
        return FlowError(job.problem) if job.problem else is_done(job)
    except FlowError as error:
        return error


def is_done(job: Job, work: Work, model: str, *, again: bool = False) -> bool:
    """Return True if a job can be skipped, see ``targets_done``; ``model`` is the fingerprint of the model."""
    try:
        picture = job.source.read_bytes()
    except OSError:
        return False
    return targets_done(job.targets, work.ids(picture, model, job.source.name), work.size_of(picture), again=again)


def targets_done(
    targets: Sequence[Path], ids: Sequence[str], size: tuple[int, int] | None, *, again: bool = False
) -> bool:
    """Return True if all outputs exist, are whole, of this height and width (if known), and what would be made now.

    Empty and damaged outputs of ours are made again. FlowError for others, with ``again`` only if they are not ours.
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
    """Save the results of a job, each file atomically."""
    for target, result in zip(job.targets, made.files, strict=True):
        write_atomic(target, result)


# --- claims -----------------------------------------------------------------------------------------------------------

# A claim is a file beside the result, ``.<name>.lock``, that names the process and its machine. It is touched while the
# picture is in work, so that the claim of a process that was killed can be taken over: at once on its own machine,
# elsewhere when it has not been touched for ``ABANDONED`` seconds. At worst, the same picture is made twice.

TOUCHED = 60  # seconds from one touch of a claim to the next


class Claims:
    """The claims that this process holds; as a context, they are kept fresh, and released at its end."""

    def __init__(self) -> None:
        self._held, self._ended = set[Path](), threading.Event()

    def __enter__(self) -> Claims:
        def touch() -> None:
            while not self._ended.wait(TOUCHED):
                for claim in [*self._held]:
                    with contextlib.suppress(OSError):
                        os.utime(claim)

        threading.Thread(target=touch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for claim in [*self._held]:
            self._remove(claim)

    def take(self, target: Path) -> bool:
        """Claim a file that is to be made; False if another process has done so."""
        claim = _claim(target)
        if claim in self._held:
            return True
        self.clear(target)
        try:
            claim.parent.mkdir(parents=True, exist_ok=True)
            with claim.open("x") as file:
                json.dump({"process": os.getpid(), "host": platform.node()}, file)
        except FileExistsError:
            return not claim.parent.is_dir()  # a file is where the folder should be
        except OSError:  # nothing can be written here, as whoever saves the file will say
            return True
        self._held.add(claim)
        return True

    def release(self, target: Path) -> None:
        """Give a claim back, if it is held."""
        if (claim := _claim(target)) in self._held:
            self._remove(claim)

    @staticmethod
    def clear(target: Path) -> None:
        """Remove a claim whose process is gone."""
        with contextlib.suppress(OSError):
            claim = _claim(target)
            idle, owner = time.time() - claim.stat().st_mtime, dict[str, Any]()
            with contextlib.suppress(ValueError):  # it is being written
                owner = json.loads(claim.read_text())
            here = owner.get("host") == platform.node()
            if idle > ABANDONED or (here and is_gone(int(owner["process"]))):
                claim.unlink()

    def _remove(self, claim: Path) -> None:
        self._held.discard(claim)
        with contextlib.suppress(OSError):
            claim.unlink()


@contextlib.contextmanager
def exclusive(target: Path) -> Generator[None]:
    """Wait for the claim of a file, and hold it for a moment."""
    claims = Claims()
    while not claims.take(target):
        time.sleep(0.05)
    try:
        yield
    finally:
        claims.release(target)


def _claim(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")
