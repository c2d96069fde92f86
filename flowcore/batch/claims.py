"""Claims: processes and machines that share a folder of results make each picture once.

A claim is a file beside the result, ``.<name>.lock``, that names the process and its machine. It is touched while the
picture is in work, so that the claim of a process that was killed can be taken over: at once on its own machine,
elsewhere when it has not been touched for ``ABANDONED`` seconds. At worst, the same picture is made twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from ..checkpoints.writing import ABANDONED, is_gone

TOUCHED = 60  # seconds from one touch of a claim to the next


class Claims:
    """The claims that this process holds; as a context, they are kept fresh, and released at its end."""

    def __init__(self) -> None:
        self._held = set[Path]()
        self._ended = threading.Event()

    def __enter__(self) -> Claims:
        threading.Thread(target=self._touch, daemon=True).start()
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
            idle, owner = time.time() - claim.stat().st_mtime, _read(claim)
            here = owner.get("host") == platform.node()
            if idle > ABANDONED or (here and is_gone(int(owner["process"]))):
                claim.unlink()

    def _remove(self, claim: Path) -> None:
        self._held.discard(claim)
        with contextlib.suppress(OSError):
            claim.unlink()

    def _touch(self) -> None:
        while not self._ended.wait(TOUCHED):
            for claim in [*self._held]:
                with contextlib.suppress(OSError):
                    os.utime(claim)


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


def _read(claim: Path) -> dict[str, Any]:
    try:
        return json.loads(claim.read_text())
    except ValueError:  # it is being written
        return {}
