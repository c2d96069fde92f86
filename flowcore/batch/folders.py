"""Folders of pictures: which files, where their results go, which are done, and which failed.

Each result stores the fingerprint of its work (``job.Work.ids``) as EXIF ImageUniqueID. So a run that was stopped can
be resumed, and a file that something else made is never replaced. A picture that fails does not stop the others.
Processes that share a folder of results make each picture once (``Claims``).
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..checkpoints.writing import LONGEST_NAME, SavingError, write_atomic
from ..errors import FlowError
from ..images import files
from ..images.files import IMAGE_SUFFIXES
from ..images.folders import walk_files, walk_folders
from ..tasks import Progress
from .claims import Claims
from .clips import frames_made, remove_state
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

    @property
    def clip(self) -> Path | None:
        """What the clip that its folder may be is called, beside its results; no such file exists."""
        name = hashlib.sha256(os.fsencode(self.source.parent.absolute())).hexdigest()[:12]
        return self.targets[0].with_name(f"clip-{name}") if self.targets else None


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
        if os.path.isdir(word):  # pathlib raises errors for names that are too long
            if out is not None and out.resolve() == path.resolve():
                raise FlowError(f"{word} is read, and cannot hold the results, too. Name another folder for them.")
            above, paths, problem = path, walk_files(path, ignored), f"No images in {word}"
        elif MAGIC.search(word) and not os.path.exists(word):
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
            if excluded is not None and excluded in Path(os.path.realpath(file)).parents:
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


def jobs(found: Sequence[Found], out: Path, names: Callable[[Path], list[str]]) -> list[Job]:
    """Make a job for each picture, with results of ``names(its path)`` in the sub-folder that it was found in.

    Pictures of different folders that have one name where they were found or given keep those folders.
    """
    above = Path(os.path.commonpath([one.path.absolute().parent for one in found])) if found else Path()
    times = Counter(one.inside for one in found)
    inside = [one.inside if times[one.inside] == 1 else one.path.absolute().relative_to(above) for one in found]
    made = list[Job]()
    for one, path in zip(found, inside, strict=True):
        results = names(one.path)
        problem = f"Its result would lie outside of {out}. Rename it." if any(map(leads_out, results)) else ""
        made.append(Job(one.path, tuple(out / path.parent / name for name in results), problem))
    return check_targets(made)


def leads_out(name: str) -> bool:
    """Tell whether a name of a file may lie outside of the folder that it is joined to."""
    return bool(PurePath(name).anchor) or ".." in PurePath(name).parts


def split_name(name: str) -> tuple[str, str]:
    """Split the name of a picture into what names of its results begin with, and the number of a frame, their end."""
    frame = FRAME.fullmatch(Path(name).stem)
    return (frame[1], frame[2]) if frame else (Path(name).stem, "")


def check_targets(made: Sequence[Job]) -> list[Job]:
    """Refuse results that would overwrite a picture; of pictures with one name, all but the first are to fail."""
    # realpath also takes links to themselves and names that are too long
    sources, taken, checked = {os.path.realpath(job.source) for job in made}, dict[str, Path](), list[Job]()
    for job in made:
        targets = [os.path.realpath(target) for target in job.targets]
        length = max((len(os.fsencode(target.name)) for target in job.targets), default=0)
        if length > LONGEST_NAME and os.name != "nt":
            said = f"The name of its result would have {length} bytes; {LONGEST_NAME} are the most that fit."
            job = Job(job.source, job.targets, f"{said} Rename it, or give results shorter names with --name.")
        for target in targets:
            if target in sources:
                raise FlowError(f"The result would overwrite {target}. Name another folder, or file, for it.")
        first = next((taken[target] for target in targets if target in taken), None)
        if first is not None:
            said = f"Its results would have the names of those of {first.name}. Rename it, or add {{suffix}} to --name."
            job = Job(job.source, job.targets, said)
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
    ``whole_clips``, results depend on the frames before them in the folder: a clip that was stopped goes on after its
    last frame, and is made again where a frame is missing in one that was finished. With ``claims``, pictures are left
    to the processes that are at work on them, and waited for, of which ``notify`` is told; without, ``executor`` may
    take all jobs before it begins.
    """
    failed: list[tuple[Job, Exception]] = []

    def finish(job: Job, result: Made | Exception) -> None:
        if isinstance(result, Exception):
            failed.append((job, result))
        on_result(job, result)

    def pending(locks: Claims) -> Iterator[Job]:
        waiting = [*_clips(made).values()] if whole_clips else [[job] for job in made]
        is_waiting = False
        while waiting:
            elsewhere = list[list[Job]]()
            for unit in waiting:
                place = (unit[0].clip if whole_clips else [*unit[0].targets, None][0]) if claims else None
                states = [state_of(job, is_done) for job in unit]
                if not all(states):
                    try:
                        if place is not None and not locks.take(place):
                            elsewhere.append(unit)
                            continue
                    except SavingError as error:
                        states = [state or error for state in states]
                    else:  # another process may have finished it since the first look
                        states, is_waiting = [state_of(job, is_done) for job in unit], False
                first = len(unit) if all(states) else _frames_to_skip(unit, states) if whole_clips else 0
                for number, (job, state) in enumerate(zip(unit, states, strict=True)):
                    if isinstance(state, FlowError):
                        finish(job, state)
                    elif number < first:
                        on_result(job, None)
                    else:
                        yield job
                if whole_clips and unit[0].clip is not None:
                    remove_state(unit[0].clip)
                if place is not None and not all(isinstance(state, FlowError) for state in states):
                    locks.clear(place)
            if elsewhere and not is_waiting and notify is not None:
                notify(f"Waiting for {sum(map(len, elsewhere))} images that other processes are working on.")
            if elsewhere:
                is_waiting = True
                time.sleep(POLL)
            waiting = elsewhere

    with Claims() as locks:
        for job, result in executor(pending(locks)):
            if not isinstance(result, Exception):
                try:
                    save(job, result)
                except SavingError:
                    raise
                except (FlowError, OSError) as error:
                    result = error
            finish(job, result)
    return failed


def _clips(made: Sequence[Job]) -> dict[Path, list[Job]]:
    """Group frames by their folders, in order."""
    clips = dict[Path, list[Job]]()
    for job in made:
        clips.setdefault(job.source.parent, []).append(job)
    return clips


def _frames_to_skip(unit: list[Job], states: list[bool | FlowError]) -> int:
    """Count the first frames of a clip after which it can go on; its state is removed if it begins anew."""
    clip = unit[0].clip
    if clip is None:
        return 0
    done = itertools.takewhile(lambda frame: frame[1] is True, zip(unit, states, strict=True))
    number = frames_made(clip, (files.unique_id(job.targets[0].read_bytes()) or "" for job, _ in done))
    if number == 0:
        remove_state(clip)
    return number


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
            data = files.read_bytes(job.source)
            made = worker(data, job.source.name, job.clip, progress=progress, notify=note, cancelled=cancelled)
        except Exception as error:  # one picture does not stop the others
            yield job, error
        else:
            yield job, Made(made, time.monotonic() - began, tuple(notes))
            worker.save_state()  # when the results are saved


def state_of(job: Job, is_done: Callable[[Job], bool]) -> bool | FlowError:
    """Say whether a job's results exist; or the FlowError that forbids saving them, truthy, so the job is skipped."""
    try:
        return FlowError(job.problem) if job.problem else is_done(job)
    except FlowError as error:
        return error
    except OSError as error:
        return FlowError(f"Cannot look for its result: {error}.")


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


def listed(
    job: Job, result: Made | Exception, work: Work, model: str, notes: Sequence[str]
) -> Iterator[tuple[object, ...]]:
    """Rows of ``tables.COLUMNS`` for a job that was executed; ``model`` is the fingerprint of the model."""
    outputs, seconds, note = [("", "")], None, str(result)
    if isinstance(result, Made):
        outputs, seconds, note = zip(job.targets, work.seeds(), strict=True), round(result.seconds, 2), " ".join(notes)
    for target, seed in outputs:
        yield job.source, target, seed, work.model, model, seconds, note


def save(job: Job, made: Made) -> None:
    """Save the results of a job, each file atomically."""
    for target, result in zip(job.targets, made.files, strict=True):
        write_atomic(target, result)
