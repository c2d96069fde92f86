"""What each frame of a clip hands to the next, kept in a file as well, so that a run that was stopped goes on.

The file, ``.clip-<hash of the folder>.state`` beside the results, is replaced after every frame and removed after the
last. It holds the tensors that ``upscale_video`` and ``colorize_video`` carry (``before``), bit for bit: for the former
two results in float32.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..checkpoints.writing import SavingError, beside, write_atomic


class ClipState:
    """The state of a clip after some of its frames."""

    def __init__(self, kind: str = "", tensors: Iterable[Tensor] = (), history: str = "") -> None:
        self._kind, self.history = kind, history
        self.tensors = [*tensors]  # as the argument ``before`` of the tasks

    @classmethod
    def load(cls, clip: Path, device: torch.device) -> "ClipState":
        """Read the state of a clip that was begun; an empty one if there is none, or it is damaged."""
        try:
            data = beside(clip, "state").read_bytes()  # ``safe_open`` takes no path that is not UTF-8
            metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            tensors = load(data)
            return cls(metadata["kind"], [tensors[str(k)].to(device) for k in range(len(tensors))], metadata["history"])
        except (OSError, SafetensorError, LookupError, ValueError):
            return cls()

    def save(self, clip: Path) -> None:
        """Write the state, if it can be: without it the clip only takes longer to go on."""
        tensors = {str(k): tensor.detach().cpu().clone().contiguous() for k, tensor in enumerate(self.tensors)}
        with contextlib.suppress(SavingError):
            write_atomic(beside(clip, "state"), save(tensors, {"kind": self._kind, "history": self.history}))

    def enter(self, *kind: object) -> None:
        """Prepare for a frame: frames of another kind, such as another size, begin anew."""
        if self._kind != (described := json.dumps(kind)):
            self._kind = described
            self.tensors.clear()

    def add(self, id: str) -> None:
        """Note that a frame with this ID is made."""
        self.history = _history(self.history, id)


def frames_made(clip: Path, ids: Iterable[str]) -> int:
    """Count the frames before the stored state of a clip, whose first results have these IDs; 0 if it is another's."""
    stored, history = ClipState.load(clip, torch.device("cpu")).history, ""
    for number, id in enumerate(ids):
        if (history := _history(history, id)) == stored:
            return number + 1
    return 0


def remove_state(clip: Path) -> None:
    """Remove the state of a clip, if there is one."""
    with contextlib.suppress(OSError):
        beside(clip, "state").unlink()


def _history(before: str, id: str) -> str:
    """Fingerprint a sequence of IDs, from that of all but the last."""
    return hashlib.sha256(f"{before} {id}".encode()).hexdigest()
