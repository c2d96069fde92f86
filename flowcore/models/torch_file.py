"""Files of torch, read as tensors only, in bounded memory and time.

``torch.load(weights_only=True)`` runs no code of a file. But it hashes whatever the file makes a key, and tuples that
share their parts take hours, from 200 bytes; and some of the names that it allows allocate gigabytes. So the file's
table of contents, names, sizes and tuples are checked first, in one pass that builds nothing; and while torch reads,
no tensor may exceed its storage, nor all storages the file.
"""

import mmap
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import CheckpointError

MAX_CONTENTS = 8 * 2**20  # bytes of an archive's table of contents: 80,000 tensors
MAX_STEPS = 500_000  # steps for 13,000 tensors, six times as many as the largest published flow has
MAX_SHARED = 16  # numbers of a tuple that is used twice
MAX_NESTED = 10_000  # tuples that contain others, beside those of tensors
OLD_PARTS = 5  # a file before torch 1.6: magic number, version, system, tensors, keys of storages; then numbers

# What files of tensors name; of what torch allows beside these, much allocates or computes whatever a file asks for.
HARMLESS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.\w+Storage|torch\.device"
    r"|torch\.(b?float|double|half|u?int|long|short|bool|complex)\w*"
)
TRAINERS = ("argparse.Namespace", "lib.utils.ExponentialMovingAverage")  # programs that store their own objects
AGAIN = "The file is truncated or damaged; fetch it again."
DAMAGED = "this is not a torch checkpoint, or it is truncated or damaged{}. Fetch it again."
RESAVE = "If you trust it, save its tensors again where it comes from: torch.save(model.state_dict(), 'model.pth')."
EXCESS = "this file {}, which no checkpoint needs. It was not read. " + RESAVE


def read_archive(path: Path) -> Any:
    """Read the content of a zip archive that torch wrote, mapped; reject suspicious ones."""
    _check_steps(_steps_of_archive(path), path.stat().st_size)
    return _load(path, mapped=True)


def read_old_file(path: Path) -> Any:
    """Read the content of a file of torch before 1.6."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for _ in range(OLD_PARTS):
            _check_steps(mapped, path.stat().st_size)
    return _load(path, mapped=False)


def _load(path: Path, *, mapped: bool) -> Any:
    try:
        with _Bounds(path.stat().st_size) as bounds:
            if path.suffix == ".safetensors":  # torch would go by the suffix
                with path.open("rb") as file:
                    return torch.load(file, map_location=bounds.place, weights_only=True)
            return torch.load(str(path), map_location=bounds.place, weights_only=True, mmap=mapped)
    except Exception as error:  # hostile bytes raise many types
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(DAMAGED.format(f" ({reason})")) from error


class _Bounds(TorchDispatchMode):
    """Rejects tensors that exceed their storage, which torch would enlarge, and storages that exceed the file."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.left = size

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import torch's compiler: two seconds

    def place(self, storage: Any, _location: str) -> Any:
        """Keep a storage on the CPU, as ``map_location``, which is called once for each."""
        self.left -= storage.nbytes()
        if self.left < 0:
            raise ValueError("its tensors claim more bytes than it has")
        return storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.set_.source_Storage_storage_offset:
            tensor, storage, offset, sides, *rest = args
            strides = rest[0] if rest else ()  # a scalar's empty strides are left out
            last = offset + sum((side - 1) * stride for side, stride in zip(sides, strides, strict=True))
            if min(offset, *sides, *strides, 0) < 0 or (all(sides) and (last + 1) * tensor.itemsize > storage.nbytes()):
                raise ValueError(f"a tensor of shape {str(sides)[:80]} does not fit into its storage")
        return func(*args, **(kwargs or {}))


def _steps_of_archive(path: Path) -> bytes:
    """Read what describes the tensors of an archive; reject other archives."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 22))
        end = file.read()
    # torch writes no comment after its table of contents; with one, torch and zipfile could find different tables.
    if not end.startswith(b"PK\x05\x06") or end[20:] != b"\0\0":
        raise CheckpointError(
            "this torch checkpoint is truncated or damaged: it does not end with a table of contents. Fetch it again."
        )
    if int.from_bytes(end[12:16], "little") > MAX_CONTENTS:
        raise CheckpointError("the table of contents of this archive is larger than that of any model. " + RESAVE)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            steps = [name for name in names if name.split("/")[-1] == "data.pkl"]
            _check_entries(entries, names, size, holds_tensors=bool(steps))
            return archive.read(steps[0])
    except CheckpointError:
        raise
    except Exception as error:  # hostile bytes raise many types
        raise CheckpointError(
            "this torch checkpoint is truncated or damaged: its table of contents cannot be read. Fetch it again."
        ) from error


def _check_entries(entries: list[zipfile.ZipInfo], names: list[str], size: int, *, holds_tensors: bool) -> None:
    if sum(entry.file_size for entry in entries) > size:
        raise CheckpointError("this archive unpacks to more than its own size, which no checkpoint does. " + RESAVE)
    if not holds_tensors:
        models = [name[:80] for name in names if name.endswith((".pth", ".pt", ".safetensors"))]
        inside = f"; it holds {', '.join(models[:3])}" if models else ""
        raise CheckpointError(f"this is a zip archive, not a checkpoint{inside}. Unpack it and give the file in it.")
    if any(name.split("/")[-1] == "constants.pkl" for name in names):
        raise CheckpointError("this is a TorchScript program, not a state dict. Save its state_dict() with torch.save.")
    if len({name.lower() for name in names}) < len(names):  # torch ignores case
        raise CheckpointError("this archive holds two files of one name. It is damaged; fetch it again.")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            "this archive is compressed, and torch never compresses. Unpack it, and save its tensors again."
        )


# --- the steps that describe tensors ----------------------------------------------------------------------------------

CONSTANTS = "JKMGXU\x8aN\x88\x89c"
TUPLES = {"t": -1, ")": 0, "\x85": 1, "\x86": 2, "\x87": 3}  # number of parts of each; -1: those since a mark
FLAT, NESTED = "tuple of constants", "tuple of others"


def _check_steps(steps: Any, size: int) -> None:
    """Reject steps, of bytes or a map, that would cost torch more than tensors do; a map is read up to their end."""
    names: dict[str, None] = {}  # the file's order
    nested, largest = 0, 0
    top = ""  # top of the stack: FLAT, NESTED, a name, or "" for anything else
    before, constants = "", []  # the step before the constants that were pushed last
    memo: dict[int, str] = {}
    try:
        for count, (step, argument, _) in enumerate(cast("Any", pickletools.genops(steps))):
            code = step.code
            if code in "qr":
                if constants and not isinstance(constants[-1], str):
                    raise CheckpointError(EXCESS.format("shares numbers"))
                memo[argument] = top
                continue
            nested += top == NESTED and code not in "RQ"
            recalled = memo.get(argument, "") if code in "hj" else ""
            if recalled == NESTED or nested > MAX_NESTED or count > MAX_STEPS:
                raise CheckpointError(EXCESS.format("shares or nests tuples, or is far longer than any"))
            if (code == "Q" and top != FLAT) or (top == "collections.OrderedDict" and code != ")"):
                raise CheckpointError(EXCESS.format("makes objects in an unusual way"))
            if code == "Q" and largest > size:
                raise CheckpointError(f"a tensor claims {largest} numbers in a file of {size} bytes. " + AGAIN)
            if code in TUPLES:
                wanted = len(constants) if code == "t" else TUPLES[code]
                is_flat = wanted <= min(len(constants), MAX_SHARED) and (code != "t" or before == "(")
                largest = max((n for n in constants if type(n) is int), default=0)
                top = FLAT if is_flat else NESTED
            elif code == "c":
                top = argument.replace(" ", ".")
                names[top] = None
            else:
                top = recalled
            if code in CONSTANTS or (code in "hj" and top != FLAT):
                constants.append(argument)
            else:
                before, constants = code, []
    except CheckpointError:
        raise
    except ValueError as error:  # the file ends, or has no such step
        _check_names(names)
        raise CheckpointError(DAMAGED.format("")) from error
    _check_names(names)


def _check_names(names: dict[str, None]) -> None:
    foreign = [name for name in names if not HARMLESS.fullmatch(name)]
    if not foreign:
        return
    named = ", ".join(name[:80] for name in foreign[:3])
    if foreign[0] in TRAINERS:
        raise CheckpointError(
            f"this file of a training program holds its settings beside the weights: it would import {named} when "
            "loaded, which could run code; it was not read. If you trust it, docs/published-weights.md has the lines "
            "that save its weights, where that program can be imported (that of FFJORD or Residual Flow)."
        )
    raise CheckpointError(
        f"this file would import {named} when loaded, which could run code; it was not read. Supported are files of "
        f"tensors only. {RESAVE}"
    )
