"""The record of pictures that were made: an SQLite file in which a bare picture is found again.

It has a thumbnail of 16x16 pixels of each, which all samples of one source share; their seeds tell them apart.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.image_batch import ImageBatch
from ..engine.progress import PROGRESS_UNITS, Progress, part_of
from ..errors import FlowError, Message, joined, say
from ..flows.model import FlowModel
from ..images import files
from ..images.color import luma
from ..models import load
from ..models.identity import DIGITS, model_sha256
from ..models.writing import check_writable
from ..tasks.examination import VERIFIED, bonferroni
from ..tasks.table import tasks
from ..tasks.verify import Verification, verify
from .credentials import read_credentials
from .provenance import CLIP, is_plain

if TYPE_CHECKING:  # ``inspect`` does not wait for what makes pictures
    from .job import JobSpec
    from .tables import Record

ID = 0xF10C0DE5 - 2**32  # SQLite's application_id of our files
SIDE, WINDOW = 16, 32  # pixels of thumbnails, and of those in which crops are looked for
ALIKE, PART = 0.9, 0.8  # correlation of thumbnails from which on a picture, or a crop, may be the recorded one
MOST = 20, 3  # how many recorded pictures are compared with a picture, and with a crop
PROPORTIONS = 1.03  # largest ratio of proportions of a resized picture
BUSY = 30.0  # seconds that a process waits for another one that writes
TRACED = {"FlowcoreSample", CLIP, *(task.node for task in tasks().values() if task.traced)}  # nodes that draw noise
TABLE = """CREATE TABLE IF NOT EXISTS pictures (
    file BLOB, source BLOB, model BLOB, model_sha256 TEXT, seed TEXT, height INTEGER, width INTEGER, settings TEXT,
    time REAL, thumbnail BLOB)"""


class Entry(NamedTuple):
    """A recorded picture."""

    file: str
    source: str
    model: str
    model_sha256: str
    seed: int
    height: int  # as the model made it
    width: int
    settings: dict[str, Any]
    time: float  # seconds since 1970
    thumbnail: bytes


class RecordFile:
    """A record, into which any number of processes write; what one has added survives its end, however it ends."""

    def __init__(self, path: Path, *, new: bool = True) -> None:
        """Open a record, or begin one if it is ``new``; FlowError if it cannot be written, or is another file."""
        self.path, lock = path, nullcontext()
        if not new and not path.is_file():
            raise FlowError(f"There is no record {path}. Batches begin one with --record {path.name}.")
        if new:
            from .folders import exclusive  # here, like JobSpec and Record above

            check_writable(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = exclusive(path)
        try:
            with lock, closing(self._connect()) as database:
                if new and not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    database.execute("PRAGMA journal_mode = WAL")
                    database.execute(f"PRAGMA application_id = {ID}")
                    database.execute(TABLE)
                    database.commit()
                if database.execute("PRAGMA application_id").fetchone()[0] != ID:
                    raise FlowError(f"{path.name} exists and is not a record of flowcore. Choose another file.")
                if new:
                    database.execute("BEGIN IMMEDIATE").close()
        except sqlite3.Error as error:
            raise FlowError(f"The record {path.name} cannot be used: {error}. Choose another file.") from error

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=BUSY)

    def add(self, made: Record, size: tuple[int, int] | None, spec: JobSpec) -> str:
        """Write what came of a picture of a size; say why if that fails, as on a full disk, else return "".

        Then the pictures are there, and the record is as it was.
        """
        settings = {name: value for name, value in (spec.settings | spec.model_defaults).items() if is_plain(value)}
        settings.pop("mark", None)  # a secret phrase
        height, width = (side * spec.scale for side in size or (0, 0))
        what = made.input or "", made.model, made.model_sha256
        try:
            self.add_entries(
                [
                    Entry(file, *what, seed, height, width, settings, time.time(), small)
                    for file, seed in zip(made.outputs, made.seeds, strict=False)
                    if seed is not None and size and (small := _thumbnail(file))
                ]
            )
        except (FlowError, OSError) as error:
            return f"{error} Results are saved, and not all are in it: repeat them with --again."
        return ""

    def add_entries(self, entries: Sequence[Entry]) -> None:
        """Write recorded pictures, all or none; FlowError if that fails, as on a full disk."""
        try:
            rows = [
                (
                    *(*map(os.fsencode, each[:3]), each.model_sha256, str(each.seed), each.height, each.width),
                    *(json.dumps(each.settings), each.time, each.thumbnail),
                )
                for each in entries
            ]
            with closing(self._connect()) as database, database:
                database.executemany("INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            problem = say("The record {file} cannot be written: {error}. Make room for it, or make it writable.")
            raise FlowError(problem, file=self.path.name, error=error) from error

    def entries(self) -> list[Entry]:
        """Read all recorded pictures, the latest first."""
        try:
            with closing(self._connect()) as database:
                rows = database.execute("SELECT * FROM pictures ORDER BY rowid DESC").fetchall()
        except sqlite3.Error as error:
            raise FlowError(f"The record {self.path} cannot be read: {error}.") from error
        decode = os.fsdecode
        try:
            return [
                Entry(
                    *(decode(file), decode(source), decode(model), sha, int(seed)),
                    *(height, width, json.loads(stated), when, bytes(small)),
                )
                for file, source, model, sha, seed, height, width, stated, when, small in rows
            ]
        except (TypeError, ValueError) as error:
            raise FlowError(f"The record {self.path} is damaged: {error}. Choose another file.") from error


def _thumbnail(file: str) -> bytes:
    return thumbnail(ImageBatch(files.read(files.read_bytes(Path(file)), file).pixels).rgb[:1])


def thumbnail(rgb: Tensor) -> bytes:
    """Shrink the luma of a picture ``(1, 3, H, W)`` in [0, 1] to 16x16 values of 8 bits."""
    return bytes((255 * _resized(luma(rgb), SIDE, SIDE)).round().clamp(0, 255).byte().flatten().tolist())


def _resized(y: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(y, (height, width), mode="bilinear", antialias=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """Where a picture comes from.

    Attributes:
        entry: What is recorded of it: file, source, model, model_sha256, seed, height and width as the model made it,
            settings, and time in seconds since 1970.
        z: Agreement with the seed's noise, at least 6, see ``verify``, after allowance for all that was tried.
        verification: What ``verify`` found: where it was edited or cropped, and whether it was mirrored since.
        credentials: State of the content credentials in its recorded file, see ``read_credentials``; None if it has
            none, is not there any more, or c2pa-python is not installed.
    """

    entry: Entry
    z: float
    verification: Verification
    credentials: str | None = None

    @property
    def sentence(self) -> Message:
        """What made the picture, in words; files have no paths."""
        source, model = PurePath(self.entry.source).name, PurePath(self.entry.model).name
        made = say("Made by {model} with seed {seed} (z {z}).")
        made = say("Made by {model} from {source} with seed {seed} (z {z}).") if source else made
        made = say(made, model=model, source=source, seed=self.entry.seed, z=f"{self.z:.0f}")
        signed = say("Its file has content credentials: {state}.", state=self.credentials)
        return joined((made, signed), " ") if self.credentials else made


def trace(
    picture: Tensor,
    record: str | Path | Sequence[Entry],
    *,
    load: Callable[[str], FlowModel] = load,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> Trace | None:
    """Find a picture again in a record, though its metadata is gone, and it was recompressed, resized or cropped.

    Recorded pictures that look alike are candidates; that one of them is the picture is confirmed by the noise of its
    seed. Crops have at least 128 pixels, and are not resized.

    >>> found = flowcore.trace(picture, "pictures.sqlite")  # doctest: +SKIP
    >>> found.entry.source, found.entry.seed  # doctest: +SKIP
    ('shore.jpg', 31)

    Args:
        picture: ``(1, C, H, W)`` in [0, 1], as in ``upscale``.
        record: The file that ``flowcore upscale --record FILE`` and other batches write, or what is in it.
        load: Loads the model of a recorded name; by default shipped ones.
        progress: Called with the work done and all work, see ``upscale``.
        cancelled: Asked before every network layer; True raises ``Cancelled``.
        notify: Called with a sentence about what could not be compared.

    Returns:
        Where it comes from; None if it is not in the record, or was changed too much since.

    Raises:
        FlowError: If the record is missing, or no record.
    """
    rgb = ImageBatch(picture).rgb.cpu()
    entries = RecordFile(Path(record), new=False).entries() if isinstance(record, (str, Path)) else record
    groups = candidates(rgb, entries)
    flows, tries, done = dict[str, FlowModel | None](), sum(len(group.entries) for group in groups), 0
    best: Trace | None = None
    for group in groups:
        first, count = group.entries[0], len(group.entries)
        if first.model not in flows:
            flows[first.model] = _model_of(first, load, notify)
        flow, part = flows[first.model], part_of(progress, done / tries, count / tries)
        done += count
        if flow is None or model_sha256(flow) != first.model_sha256:
            continue
        try:
            for entry, found in _compared(flow, rgb, group, part, {"cancelled": cancelled, "notify": notify}):
                z = bonferroni(float(found.z[0]), tries)
                if z >= VERIFIED and (best is None or z > best.z):
                    best = Trace(entry=entry, z=z, verification=found, credentials=_credentials(entry.file))
        except FlowError as error:  # such as a brightened photograph, which cannot be verified
            notify(error.message)
        if best is not None:
            break
    if progress is not None:
        progress(PROGRESS_UNITS, PROGRESS_UNITS)
    return best


def _credentials(file: str) -> str | None:
    with suppress(FlowError, OSError):
        found = read_credentials(file)
        return None if found is None else found.state
    return None


def _compared(
    flow: FlowModel, rgb: Tensor, group: Group, progress: Progress | None, options: dict[str, Any]
) -> Iterator[tuple[Entry, Verification]]:
    """Compare a picture with the noise of the seeds of recorded ones: of one after the other where it is a crop."""
    seeds = {entry.seed: entry for entry in reversed(group.entries)}
    options |= {"size": (group.entries[0].height, group.entries[0].width)}
    if not group.cropped:
        found = verify(flow, rgb, among=[*seeds], progress=progress, **options)
        yield seeds[found.seeds[0]], found
        return
    for number, (seed, entry) in enumerate(seeds.items()):
        yield (
            entry,
            verify(flow, rgb, seed=seed, progress=part_of(progress, number / len(seeds), 1 / len(seeds)), **options),
        )


def _model_of(entry: Entry, load: Callable[[str], FlowModel], notify: Callable[[str], None]) -> FlowModel | None:
    try:
        flow = load(entry.model)
    except (FlowError, OSError) as error:
        notify(say("{model} of the record cannot be loaded: {error}", model=PurePath(entry.model).name, error=error))
        return None
    if model_sha256(flow) != entry.model_sha256:
        here, there = model_sha256(flow)[:DIGITS], entry.model_sha256[:DIGITS]
        said = say("{model} of the record has sha {there}; the one that is here has sha {here}.")
        notify(say(said, model=PurePath(entry.model).name, here=here, there=there))
    return flow


class Group(NamedTuple):
    """Recorded pictures of one source, model and size."""

    entries: list[Entry]
    cropped: bool


def candidates(rgb: Tensor, entries: Sequence[Entry]) -> list[Group]:
    """List the recorded pictures that look like a picture ``(1, 3, H, W)``, the likeliest first, crops last."""
    if not entries:
        return []
    y, (height, width) = luma(rgb), rgb.shape[-2:]
    thumbnails = torch.tensor([[*entry.thumbnail] for entry in entries], dtype=torch.float32) / 255
    thumbnails = thumbnails.view(-1, 1, SIDE, SIDE)
    large = F.interpolate(thumbnails, (WINDOW, WINDOW), mode="bicubic")
    whole, parts = torch.full((len(entries),), -1.0), torch.full((len(entries),), -1.0)
    sizes = torch.tensor([[entry.height, entry.width] for entry in entries])
    ratio = (sizes[:, 0] * width / (sizes[:, 1] * height)).log().abs()
    resized = (ratio < math.log(PROPORTIONS)).nonzero()[:, 0]
    for each in (y, y.flip(-1)):
        if len(resized):
            whole[resized] = whole[resized].maximum(_correlation(thumbnails[resized], _resized(each, SIDE, SIDE)))
        inside = (sizes[:, 0] >= height) & (sizes[:, 1] >= width) & (sizes != torch.tensor([height, width])).any(1)
        shape = (torch.tensor([height, width]) * WINDOW / sizes).round().long().clamp(1, WINDOW)
        for rows, columns in shape[inside].unique(dim=0).tolist():
            chosen = (inside & (shape == torch.tensor([rows, columns])).all(1)).nonzero()[:, 0]
            parts[chosen] = parts[chosen].maximum(_correlation(large[chosen], _resized(each, rows, columns)))
    return [
        *_grouped(entries, whole, ALIKE, MOST[0], cropped=False),
        *_grouped(entries, parts, PART, MOST[1], cropped=True),
    ]


def _correlation(pictures: Tensor, part: Tensor) -> Tensor:
    """Compute the largest correlation of a part ``(1, 1, h, w)`` with any place of pictures ``(N, 1, H, W)``: (N,)."""
    part = part - part.mean()
    count, window = part.numel(), torch.ones_like(part)
    products = F.conv2d(pictures, part / part.norm().clamp_min(1e-3))
    variance = F.conv2d(pictures.square(), window) - F.conv2d(pictures, window).square() / count
    return (products / variance.clamp_min(1e-4).sqrt()).flatten(1).amax(1)


def _grouped(entries: Sequence[Entry], scores: Tensor, least: float, most: int, *, cropped: bool) -> list[Group]:
    groups = dict[tuple[Any, ...], list[Entry]]()
    for k in scores.argsort(descending=True, stable=True).tolist():
        entry = entries[k]
        key = entry.source, entry.model, entry.model_sha256, entry.height, entry.width
        if float(scores[k]) >= least and (key in groups or len(groups) < most):
            groups.setdefault(key, []).append(entry)
    return [Group(each, cropped) for each in groups.values()]
