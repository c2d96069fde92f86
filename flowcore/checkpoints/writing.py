"""Files whole or not at all: what is saved has its name only once it is complete, whatever happens on the way.

The bytes go into a file beside the target, ``.<name>.<process>.partial``, which takes the target's place at the end. No
loader lists such a name. What a process that was killed has left of it goes when something is next saved there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Generator
from pathlib import Path

from ..errors import FlowError

LEFT = re.compile(r"\..+\.(\d+)\.partial")
ABANDONED = 600  # seconds without a change, after which a partial file of a process that is gone belongs to nobody
FULL = {errno.ENOSPC, errno.EDQUOT}


class SavingError(FlowError, OSError):
    """A file could not be saved; what was there before is untouched."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Args:
        path: Where to; see ``replacing``.
        data: All of it.

    Raises:
        SavingError: If the system refuses; the disk may be full.
    """
    with replacing(path, len(data)) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path, size: int | None = None) -> Generator[Path]:
    """Let a file be written beside its place, and put it there once it is complete.

    Args:
        path: Where to; its folder is made if need be, an existing file is replaced atomically.
        size: Bytes that will be written, if that is known, for the sentence.

    Yields:
        The file to write.

    Raises:
        SavingError: If the system refuses; the disk may be full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(path.parent)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # so that the name is not on the disk before the content, should the power fail
        os.replace(partial, path)
    except (OSError, RuntimeError) as refusal:
        # torch.save answers a system that refuses with an error of its own
        error = refusal if isinstance(refusal, OSError) else refusal.__context__
        if not isinstance(error, OSError):
            raise
        why = error.strerror or str(error)
        needs = _free(path.parent) if size is None else f"it needs {size / 1e6:.1f} MB and {_free(path.parent)}"
        raise SavingError(
            f"The disk is full ({why}): {path.name} could not be saved; {needs}. What was there before was not "
            "changed. Free some space, or save elsewhere."
            if error.errno in FULL
            else f"Could not save {path.name} in {path.parent}: {why}; {needs}. What was there before was not changed. "
            "See to it that this folder can be written, or save elsewhere."
        ) from refusal
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def clear_abandoned(folder: Path) -> None:
    """Remove partial files of processes that are gone.

    Args:
        folder: Where to look; not in folders inside.
    """
    for file in folder.glob(".*.partial"):
        found = LEFT.fullmatch(file.name)
        with contextlib.suppress(OSError):  # another process may have done it
            if found and time.time() - file.stat().st_mtime > ABANDONED and _is_gone(int(found[1])):
                file.unlink()


def _is_gone(process: int) -> bool:
    """Whether nobody writes under that number; a server in a container has the number that the last one had."""
    if process == os.getpid():
        return True
    if os.name != "posix":
        return False  # asking there means stopping it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free"
    except OSError:
        return "there is no telling what is free"
