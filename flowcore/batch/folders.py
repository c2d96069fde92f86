"""Folders of pictures: which files, where their results go, which are done, and which failed.

Each result stores its fingerprint (``job.JobSpec.ids``) as EXIF ImageUniqueID. So a run that was stopped can be
resumed, and a file that something else made is never replaced. A picture that fails does not stop the others.
Processes that share a folder of results make each picture once (``claim``).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Literal

from filelock import FileLock, Timeout

from ..engine.progress import Progress
from ..errors import FlowError, ImageError, say
from ..images import files
from ..images.folders import is_image_name, walk_files, walk_folders
from ..images.metadata import C2PA
from ..images.opening import IMAGE_SUFFIXES
from ..models.writing import LONGEST_NAME, SavingError, beside, check_writable, write_atomic
from .clip_state import frames_done, remove_state
from .job import ID_PREFIX, Worker

MAGIC = re.compile(r"[*?[]")
FRAME = re.compile(r"(.+)(\.\d{2,})")  # the stem of a frame's name: shot.v01.0001
LISTED = 8  # names of skipped files that a notice lists
POLL = 1.0  # seconds between looks at pictures that other processes have claimed


@dataclass(frozen=True)
class InputFile:
    """A picture file to work on."""

    path: Path
    relative: Path  # path from the searched folder, or from the fixed part of the pattern; else its name


@dataclass(frozen=True)
class Job:
    """A picture file, and a file for each of its results."""

    source: Path
    targets: tuple[Path, ...] = ()
    problem: str = ""  # why it cannot be done
    model: str = ""  # name of the model that does it, where there are several

    @property
    def clip(self) -> Path | None:
        """The path beside the results from which the clip's lock and state files are named; never created."""
        name = hashlib.sha256(os.fsencode(self.source.parent.absolute())).hexdigest()[:12]
        return self.targets[0].with_name(f"clip-{name}") if self.targets else None


@dataclass(frozen=True)
class Outputs:
    """The contents of a job's results, the notes of the task, and the seeds of results that were drawn."""

    files: list[bytes]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    seeds: tuple[int | None, ...] = ()


State = Literal["done", "pending"] | FlowError  # a job's state; an error says why its results cannot be saved


# --- which files ------------------------------------------------------------------------------------------------------


def list_inputs(
    words: Sequence[str],
    out: Path | None = None,
    notify: Callable[[str], None] | None = None,
    ignored: dict[Path, str] | None = None,
    cancelled: Callable[[], object] = bool,
) -> list[InputFile]:
    """Find picture files: word by word, each file once, in natural order of their names; report what is skipped.

    Words are files, folders (searched at any depth, through links, but without ``out``) and patterns such as
    ``photos/**/*.jpg``. What only has the name of a picture, such as a broken link or a pipe, is included, so that the
    run reports it. ``ignored`` gets the files that are skipped, and why. ``cancelled`` is called for every file of
    a folder, and stops the search by raising.
    """
    inputs: dict[Path, InputFile] = {}
    ignored = {} if ignored is None else ignored
    for word in words:
        path, problem = Path(word), ""
        if os.path.isdir(word):  # pathlib raises errors for names that are too long
            if out is not None and out.resolve() == path.resolve():
                raise FlowError(f"{word} is an input folder, so it cannot be the output folder. Choose another folder.")
            paths = (file for file in walk_files(path, ignored) if not cancelled())
            matches, problem = _pictures(paths, path, out, ignored), f"No images in {word}"
        elif MAGIC.search(word) and not os.path.exists(word):
            above = Path(*itertools.takewhile(lambda part: not MAGIC.search(part), path.parts))
            paths, problem = map(Path, _matching(word, ignored)), f"Nothing matches {word}"
            matches = _pictures(paths, above, out, ignored)
        else:
            matches = [InputFile(path, Path(path.name))]
        if not matches:
            raise FlowError(f"{problem}. Expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
        for match in sorted(matches, key=lambda match: natural_key(match.relative)):
            inputs.setdefault(match.path.absolute(), match)
    if ignored and notify is not None:
        kinds = ", ".join(sorted({*ignored.values()}))
        names = ", ".join(sorted(path.name for path in ignored)[:LISTED]) + (", ..." if len(ignored) > LISTED else "")
        notify(
            say(
                "Skipped {count} files that flowcore does not read ({kinds}): {names}.",
                count=len(ignored),
                kinds=kinds,
                names=names,
            )
        )
    return list(inputs.values())


def _pictures(paths: Iterable[Path], above: Path, out: Path | None, ignored: dict[Path, str]) -> list[InputFile]:
    """Choose the pictures among paths below a folder, without those in ``out`` if that lies inside."""
    excluded = out.resolve() if out is not None and above.resolve() in out.resolve().parents else None
    pictures = list[InputFile]()
    for file in {*paths}:
        broken = file.is_symlink() and not file.exists()
        is_ours = excluded is not None and excluded in Path(os.path.realpath(file)).parents
        if is_ours or file.name.startswith(".") or file.is_dir():
            continue
        if is_image_name(file.name):
            pictures.append(InputFile(file, file.relative_to(above)))
        else:
            ignored[file.absolute()] = "a broken link" if broken else file.suffix.lower() or "no suffix"
    return pictures


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key of a path that puts frame 10 after frame 9."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(1, int(part), part) if part.isdecimal() else (2, 0, part) for part in parts if part]


def _matching(pattern: str, ignored: dict[Path, str]) -> Iterator[str]:
    """List what matches a pattern; glob alone would loop on links that lead back."""
    head, deep, rest = f"{pattern}/*".partition("**/") if pattern.endswith("**") else pattern.partition("**/")
    if not deep:
        yield from glob.iglob(pattern)
        return
    for top in glob.iglob(head or "./"):
        for here, _ in walk_folders(Path(top), ignored):
            if not any(part.startswith(".") for part in Path(here).relative_to(top).parts):  # glob skips these, too
                yield from _matching(os.path.join(glob.escape(here), rest), ignored)


# --- where results go -------------------------------------------------------------------------------------------------


def make_jobs(inputs: Sequence[InputFile], out: Path, names: Callable[[Path, str], list[str]]) -> list[Job]:
    """Make a job for each picture: results called ``names(path, kind)``, in the sub-folder of ``out`` that matches its.

    If several have the same relative path, theirs are relative to the deepest folder that holds all pictures. If the
    results of several, such as a.jpg and a.png, would have the same names, ``kind`` is the suffix of each, such as
    "_jpg", else "": so a name depends on which pictures there are, not on their order or on which results exist.
    """
    above = Path(os.path.commonpath([file.path.absolute().parent for file in inputs])) if inputs else Path()
    times = Counter(file.relative for file in inputs)
    kinds = dict.fromkeys((file.path for file in inputs), "")
    while True:
        jobs = list[Job]()
        for file in inputs:
            relative = file.relative if times[file.relative] == 1 else file.path.absolute().relative_to(above)
            results = names(file.path, kinds[file.path])
            problem = f"Its result would lie outside of {out}. Rename it." if any(map(leads_out, results)) else ""
            jobs.append(Job(file.path, tuple(out / relative.parent / name for name in results), problem))
        uses = Counter(os.path.normcase(target) for job in jobs for target in job.targets)
        clashing = [job.source for job in jobs if any(uses[os.path.normcase(target)] > 1 for target in job.targets)]
        added = {path: f"_{path.suffix[1:]}" for path in clashing if not kinds[path] and len(path.suffix) > 1}
        if not added:
            return check_targets(jobs)
        kinds |= added


def leads_out(name: str) -> bool:
    """Tell whether a name of a file may lie outside of the folder that it is joined to."""
    return bool(PurePath(name).anchor) or ".." in PurePath(name).parts


def split_name(name: str) -> tuple[str, str]:
    """Split the stem of a picture's file name into base and frame number, such as "shot.v01" and ".0001"."""
    frame = FRAME.fullmatch(Path(name).stem)
    return (frame[1], frame[2]) if frame else (Path(name).stem, "")


def check_targets(jobs: Sequence[Job]) -> list[Job]:
    """Reject results that would overwrite a picture; where jobs share a target, all but the first will fail."""
    sources = {os.path.realpath(job.source) for job in jobs}  # takes links to themselves and too long names, too
    first_sources, checked = dict[str, Path](), list[Job]()
    for job in jobs:
        targets = [os.path.realpath(target) for target in job.targets]
        if overwritten := next((target for target in targets if target in sources), ""):
            raise FlowError(f"The result would overwrite {overwritten}. Choose another folder or file for it.")
        length = max((len(os.fsencode(target.name)) for target in job.targets), default=0)
        first = next((first_sources[target] for target in targets if target in first_sources), None)
        problem = job.problem
        if first is not None:
            problem = f"Its results would have the same names as those of {first.name}. Rename it, or add {{stem}} "
            problem += "to --name."
        elif length > LONGEST_NAME and os.name != "nt":
            problem = f"The name of its result would have {length} bytes; at most {LONGEST_NAME} fit. Rename it, or "
            problem += "give results shorter names with --name."
        first_sources |= dict.fromkeys(targets, first or job.source)
        checked.append(replace(job, problem=problem))
    return checked


# --- a run ------------------------------------------------------------------------------------------------------------


def claim(target: Path, *, wait: bool = False) -> FileLock | None:
    """Claim a file that is to be made, until ``release``; None if another process has done so.

    A claim is an empty file beside the result, ``.<name>.lock``, locked with ``filelock``, which torch installs. The
    system releases the lock when the process ends, however it ends, so no claim outlives its process. ``filelock``
    opens another file if the one that it has locked is gone. SavingError if the target cannot be saved.
    """
    path = beside(target, "lock")
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0, poll_interval=0.05)
    except Timeout:
        return None
    except (OSError, NotImplementedError):
        check_writable(target)  # without locks in this file system, every process makes every file
    return lock


def release(lock: FileLock | None) -> None:
    """Release a claim, if there is one, and remove its file."""
    if lock is None or not lock.is_locked:
        return
    path = Path(lock.lock_file)
    with contextlib.suppress(OSError):
        path.unlink()
    lock.release()
    if os.name == "nt":  # Windows cannot remove a file that is open, here or in another process
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(target: Path) -> Generator[None]:
    """Wait for the claim of a file, and keep it inside the block."""
    lock = claim(target, wait=True)
    try:
        yield
    finally:
        release(lock)


def iter_pending(
    units: Iterable[Sequence[Job]],
    is_done: Callable[[Job], bool],
    *,
    claims: bool = True,
    whole_clips: bool = False,
    notify: Callable[[str], None] | None = None,
) -> Iterator[tuple[Job, State]]:
    """Yield each job with its state; the caller makes and saves a pending one before it asks for the next.

    ``units`` are claimed together, and each is asked for when its turn comes: a job, or with ``whole_clips`` all frames
    of a clip. ``is_done`` raises FlowError if results cannot be saved. With ``claims``, pending jobs are claimed, and
    those that another process is working on come last, after a notice, when it has done them. With ``whole_clips``,
    results depend on the frames before them in the folder: a clip that was stopped continues after its last frame, and
    a finished one with a frame missing is made again.
    """
    while units:
        elsewhere = list[Sequence[Job]]()  # units that other processes have claimed
        for unit in units:
            target = unit[0].clip if whole_clips else next(iter(unit[0].targets), None)
            states: list[State] = [job_state(job, is_done) for job in unit]
            lock = None
            try:
                if claims and target is not None and ("pending" in states or os.path.exists(beside(target, "lock"))):
                    try:
                        lock = claim(target)
                    except SavingError as error:
                        states = [error if state == "pending" else state for state in states]
                    else:
                        if lock is None and "pending" in states:
                            elsewhere.append(unit)
                            continue
                        states = [job_state(job, is_done) for job in unit]  # another process may have finished it
                if whole_clips and "pending" in states:
                    first = _frames_to_skip(unit, states)
                    states[first:] = ["pending" if state == "done" else state for state in states[first:]]
                yield from zip(unit, states, strict=True)
                if whole_clips and target is not None:
                    remove_state(target)
            finally:
                release(lock)  # the file may be left by a killed process
        if elsewhere:
            if notify is not None:
                notify(
                    say(
                        "Waiting for {count} images that other processes are working on.",
                        count=sum(map(len, elsewhere)),
                    )
                )
            notify = None  # once is enough
            time.sleep(POLL)
        units = elsewhere


def job_state(job: Job, is_done: Callable[[Job], bool]) -> State:
    """Tell whether a job is pending; see ``iter_pending``."""
    try:
        return FlowError(job.problem) if job.problem else "done" if is_done(job) else "pending"
    except FlowError as error:
        return error
    except OSError as error:
        return FlowError(f"Cannot look for its result: {error}.")


def _frames_to_skip(unit: Sequence[Job], states: list[State]) -> int:
    """Count the first frames of a clip after which it can continue; its state is removed if it starts over."""
    clip = unit[0].clip
    if clip is None:
        return 0
    done = itertools.takewhile(lambda frame: frame[1] == "done", zip(unit, states, strict=True))
    number = frames_done(clip, [files.unique_id(job.targets[0].read_bytes()) or "" for job, _ in done])
    if number == 0:
        remove_state(clip)
    return number


def process(
    job: Job,
    worker: Worker,
    notify: Callable[[str], None],
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Outputs | Exception:
    """Do a job in this process and save its results; return the error if it fails."""
    notes, start_time = list[str](), time.monotonic()

    def note(sentence: str) -> None:
        notes.append(sentence)
        notify(say("{name}: {note}", name=job.source.name, note=sentence))

    try:
        data = files.read_bytes(job.source)
        results = worker(data, job.source.name, job.clip, progress=progress, notify=note, cancelled=cancelled)
    except Exception as error:  # one picture does not stop the others
        return error
    contents, seeds = zip(*results, strict=True)
    saved = save(job, Outputs([*contents], time.monotonic() - start_time, tuple(notes), seeds))
    worker.save_state()
    return saved


def is_done(job: Job, worker: Worker, *, again: bool = False) -> bool:
    """Return True if a worker can skip a job, see ``targets_done``."""
    if not any(map(os.path.lexists, job.targets)):  # there is no need to read the picture
        return False
    try:
        picture = files.read_bytes(job.source)
    except ImageError:
        return False
    spec, ids = worker.spec, worker.ids(picture, job.source.name)
    return targets_done(job.targets, ids, spec.size_of(picture), again=again, signed=spec.credentials)


def targets_done(
    targets: Sequence[Path],
    ids: Sequence[str],
    size: tuple[int, int] | None,
    *,
    again: bool = False,
    signed: bool = False,
) -> bool:
    """Return True if all outputs exist, are whole, of this height and width (if known), and what would be made now.

    They have content credentials, too, if they are to be ``signed``; those without are made again.

    Empty and damaged outputs of flowcore are made again. Others raise FlowError; with ``again``, only foreign files do.
    """
    done = bool(targets) and not again
    for target, id in zip(targets, ids, strict=True):
        if not target.exists() or (target.is_file() and target.stat().st_size == 0):
            done = False
            continue
        data = target.read_bytes() if target.is_file() else b""
        actual = files.unique_id(data) or ""
        if not actual.startswith(ID_PREFIX):
            raise FlowError(
                f"{target} exists, and flowcore did not make it, or it was changed since. It is kept. Move it away, or "
                "choose another folder or file."
            )
        if again:
            continue
        whole = files.is_whole(data)
        if actual != id or (whole and size not in (None, files.upright_size(data))):
            reason = "resized since it was made"
            if actual != id:
                reason = "made by another model, with other settings or from another picture"
            raise FlowError(f"{target} exists, {reason}. Replace it with --again, or choose another folder or file.")
        done &= whole and (C2PA in data or not signed)
    return done


def save(job: Job, outputs: Outputs) -> Outputs | FlowError:
    """Save the results of a job, each file atomically; return the error if this job's alone cannot be saved."""
    try:
        for target, result in zip(job.targets, outputs.files, strict=bool(job.targets)):  # scores have no target
            write_atomic(target, result)
    except SavingError:  # no other job's could be saved
        raise
    except FlowError as error:
        return error
    return outputs
