"""Claims of files that are to be made, so that processes which share a folder make each file once.

A claim is an empty file beside the result, ``.<name>.lock``, that its process holds locked (``filelock``): the system
gives the lock back when the process ends, however it ends, so no claim has to be judged abandoned. The file is removed
while it is still locked; a process that has just opened it sees that it is gone, and opens the next one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

from filelock import FileLock, Timeout

from ..checkpoints.writing import beside, check_writable


class Claims:
    """The claims that this process holds; as a context, they are released at its end."""

    def __init__(self) -> None:
        self._locks: dict[Path, FileLock] = {}

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        for path in [*self._locks]:
            self._release(path)

    def take(self, target: Path, *, wait: bool = False) -> bool:
        """Claim a file that is to be made; False if another process has done so; SavingError if it cannot be saved."""
        path = beside(target, "lock")
        if path in self._locks:
            return True
        lock = FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=-1 if wait else 0, poll_interval=0.05)
        except Timeout:
            return False
        except (OSError, NotImplementedError):
            check_writable(target)
            return True  # this file system has no locks
        self._locks[path] = lock
        return True

    def release(self, target: Path) -> None:
        """Give a claim back, if it is held."""
        if (path := beside(target, "lock")) in self._locks:
            self._release(path)

    def clear(self, target: Path) -> None:
        """Remove the lock file of a process that was killed, if there is one."""
        if beside(target, "lock").exists() and self.take(target):
            self.release(target)

    def _release(self, path: Path) -> None:
        lock = self._locks.pop(path)
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
        if os.name == "nt":  # which removes no open file, and none that another process has opened
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(target: Path) -> Generator[None]:
    """Wait for the claim of a file, and hold it for a moment."""
    with Claims() as claims:
        claims.take(target, wait=True)
        yield
