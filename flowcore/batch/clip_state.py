"""What the next frame of a clip needs of those before it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..models.writing import SavingError, beside, write_atomic


class ClipState:
    """What the next frame of a clip needs of those before, also in a file, so that a run that was stopped continues.

    The file, ``.clip-<hash of the folder>.state`` beside the results, is replaced after every frame and removed after
    the last. It holds the tensors that ``upscale_video`` and ``colorize_video`` carry (``before``), bit for bit.
    """

    def __init__(self, kind: str = "", tensors: Iterable[Tensor] = (), frames: int = 0, last: str = "") -> None:
        self._kind, self.frames, self.last = kind, frames, last  # how many are finished, and the ID of the last one
        self.tensors = [*tensors]  # what tasks take as ``before``

    @classmethod
    def load(cls, clip: Path, device: torch.device) -> ClipState:
        """Read the state of a clip; an empty one if there is none, or it is damaged."""
        try:
            data = beside(clip, "state").read_bytes()  # ``safetensors.safe_open`` takes only paths in UTF-8
            metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            named = load_tensors(data)
            tensors = [named[str(k)].to(device) for k in range(len(named))]
            return cls(metadata["kind"], tensors, int(metadata["frames"]), metadata["last"])
        except (OSError, SafetensorError, LookupError, ValueError):
            return cls()

    def save(self, clip: Path) -> None:
        """Write the state, if it can be: without it the clip only takes longer to continue."""
        tensors = {str(k): tensor.detach().cpu().clone().contiguous() for k, tensor in enumerate(self.tensors)}
        metadata = {"kind": self._kind, "frames": str(self.frames), "last": self.last}
        with contextlib.suppress(SavingError):
            write_atomic(beside(clip, "state"), save_tensors(tensors, metadata))

    def enter(self, *kind: object) -> None:
        """Prepare for a frame: frames of another kind, such as another size, start over."""
        if self._kind != (described := json.dumps(kind)):
            self._kind = described
            self.tensors.clear()

    def add(self, id: str) -> None:
        """Note that the frame with this ID is finished."""
        self.frames += 1
        self.last = id


def frames_done(clip: Path, ids: Sequence[str]) -> int:
    """Count the frames before the stored state of a clip, whose first results have these IDs; 0 if it is another's."""
    state = ClipState.load(clip, torch.device("cpu"))
    return state.frames if state.last in ids[state.frames - 1 : state.frames] else 0


def remove_state(clip: Path) -> None:
    """Remove the state of a clip, if there is one."""
    with contextlib.suppress(OSError):
        beside(clip, "state").unlink()
