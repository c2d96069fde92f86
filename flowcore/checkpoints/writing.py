"""Atomic file writes: a file has its name only once it is complete.

The bytes go into a file beside the target, ``.<name>.<process>.partial``, which then replaces the target. What killed
processes left of these is removed at the next save in that folder.
"""

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Generator
from pathlib import Path

from ..errors import FlowError

PARTIAL = re.compile(r"\..+\.(\d+)\.partial")
ABANDONED = 600  # seconds without a change after which a dead process's partial file is removed
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


class SavingError(FlowError, OSError):
    """A file could not be saved; the previous file is unchanged."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically, and create its folder if needed; SavingError if that fails, as on a full disk."""
    with replacing(path, len(data)) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path, size: int | None = None) -> Generator[Path]:
    """Replace a file by the one that is yielded and written inside the block; ``size`` is told if the disk is full."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(path.parent)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # the content before the name, in case of a power failure
        os.replace(partial, path)
    except (OSError, RuntimeError) as raised:
        # torch.save wraps an OSError in a RuntimeError.
        error = raised if isinstance(raised, OSError) else raised.__context__
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        space = _free(path.parent) if size is None else f"it needs {size / 1e6:.1f} MB and {_free(path.parent)}"
        problem, advice = f"Could not save {path.name} in {path.parent}: {reason}", "Make this folder writable"
        if error.errno in DISK_FULL:
            problem, advice = f"The disk is full ({reason}): {path.name} could not be saved", "Free some space"
        raise SavingError(
            f"{problem}; {space}. The previous file was not changed. {advice}, or save elsewhere."
        ) from raised
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def clear_abandoned(folder: Path) -> None:
    """Remove partial files of dead processes from a folder, not from folders inside it."""
    for file in folder.glob(".*.partial"):
        found = PARTIAL.fullmatch(file.name)
        with contextlib.suppress(OSError):  # another process may have done it
            if found and time.time() - file.stat().st_mtime > ABANDONED and is_gone(int(found[1])):
                file.unlink()


def is_gone(process: int) -> bool:
    """Tell whether a process of this machine has ended; False if unknown, True for this process itself."""
    if process == os.getpid():  # a restarted container reuses the number
        return True
    if os.name != "posix":
        return False  # os.kill would stop the process
    try:
        os.kill(process, 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, ProcessLookupError)
    return False


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free"
    except OSError:
        return "the free space is unknown"
