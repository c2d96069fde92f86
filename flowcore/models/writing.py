"""Atomic file writes: no incomplete file ever has its final name.

The bytes go into a file beside the target, ``.<name>.<digits>.<process>.partial``, which then replaces the target. The
next save in a folder removes those that killed processes have left.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

from ..errors import FlowError

PARTIAL = re.compile(r"\..+\.(\d+)\.partial")
ABANDONED = 600  # seconds without a change after which a dead process's partial file is removed
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
UNUSABLE_NAME = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}
LONGEST_NAME = 255  # bytes that file systems allow; Windows counts UTF-16 units


class SavingError(FlowError, OSError):
    """A file could not be saved; the previous file is unchanged."""


def write_atomic(path: Path, data: bytes, check: Callable[[Path], object] | None = None) -> None:
    """Write a file atomically, and create its folder if needed; SavingError if that fails, as on a full disk.

    ``check`` reads what was written, before it replaces the target; what it raises is raised, and the target stays.
    """
    with replacing(path, len(data)) as partial:
        partial.write_bytes(data)
        if check is not None:
            check(partial)


@contextlib.contextmanager
def replacing(path: Path, size: int | None = None) -> Generator[Path]:
    """Replace a file by the one that the block writes to the yielded path; ``size`` is for error messages."""
    # processes of two machines or containers may have the same id
    partial = beside(path, f"{secrets.token_hex(4)}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(path.parent)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # the content before the name, in case of a power failure
        os.replace(partial, path)
    except (OSError, RuntimeError) as raised:
        error = raised if isinstance(raised, OSError) else raised.__context__  # torch.save wraps it in a RuntimeError
        if not isinstance(error, OSError):
            raise
        raise _saving_error(path, error, size) from raised
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _saving_error(path: Path, error: OSError, size: int | None) -> FlowError:
    reason = error.strerror or str(error)
    if error.errno in UNUSABLE_NAME:
        return FlowError(f"Could not save {path.name}: {reason}. Choose another name.")
    problem, advice = f"Could not save {path.name} in {path.parent}: {reason}", "Make this folder writable"
    if error.errno in DISK_FULL:
        problem, advice = f"The disk is full ({reason}): {path.name} could not be saved", "Free some space"
    space = _free(path.parent) if size is None else f"it needs {size / 1e6:.1f} MB and {_free(path.parent)}"
    return SavingError(f"{problem}; {space}. The previous file was not changed. {advice}, or save elsewhere.")


def beside(path: Path, ending: str) -> Path:
    """Name a hidden file beside another, ``.<name>.<ending>``, for which a long name is replaced by its hash."""
    name = os.fsencode(path.name)
    is_long = len(name) + len(ending) + 2 > LONGEST_NAME
    return path.with_name(f".{hashlib.sha256(name).hexdigest()[:32] if is_long else path.name}.{ending}")


def check_writable(path: Path) -> None:
    """Raise SavingError if a file cannot be saved under a path, as far as that can be told; leaves nothing behind."""
    folder = next((above for above in path.absolute().parents if os.path.lexists(above)), path.parent)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SavingError(
            f"Cannot save {path.name} in {path.parent}: {error.strerror or error}. Make this folder writable, or save "
            "elsewhere."
        ) from error


def clear_abandoned(folder: Path) -> None:
    """Remove partial files of dead processes from a folder, not from folders inside it."""
    for file in folder.glob(".*.partial"):
        match = PARTIAL.fullmatch(file.name)
        with contextlib.suppress(OSError):  # another process may have done it
            if match and time.time() - file.stat().st_mtime > ABANDONED and is_gone(int(match[1])):
                file.unlink()


def is_gone(process: int) -> bool:
    """Return True if the writer of a partial file, a process of this machine, has ended; False if unknown."""
    if process == os.getpid():  # a restarted container reuses ids, so an old file is of an earlier process
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
