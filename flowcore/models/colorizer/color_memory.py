"""Memories of colors: what ``remember`` makes, as the tensors of a ``CellMemory`` in a safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from ...errors import CheckpointError, FlowError
from ...flows.model import FlowModel
from .. import catalog, model_file
from ..identity import fingerprint
from ..writing import write_atomic
from .color_index import MAX_CELLS, NEIGHBORS, CellMemory
from .luma import LumaEncoder

FORMAT = 1
KEY = "flowcore_memory"  # key of the header; its JSON: {"format", "backbone", "photographs", "provenance"}
LOOKUP_FIELDS = ("share", "neighbors", "strength", "weight")  # optional keys of the header
TYPES = {"F32": torch.float32, "U8": torch.uint8, "I32": torch.int32}


@dataclass(frozen=True, eq=False)
class ColorMemory:
    """Cells of photographs with their colors, for ``colorize``; made by ``remember``.

    Attributes:
        places: The cells: their colors, with the features that a colorizer's backbone has there.
        backbone: Fingerprint of that backbone, see ``backbone_sha256``.
        provenance: What it was made from: source, license, or whatever is known.
        share: Recommended share of its photographs that every seed looks at.
        neighbors: Recommended number of similar cells whose colors are averaged for a seed.
        strength: Recommended share of its colors in a coloring; the rest is sampled.
        weight: Recommended weight of its colors relative to those of hints, above 0; low weights let an object share
            one color.
    """

    places: CellMemory
    backbone: str
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])
    share: float = 0.5
    neighbors: int = NEIGHBORS
    strength: float = 1.0
    weight: float = 0.03

    def __post_init__(self) -> None:
        if not 1 <= self.places.cells <= MAX_CELLS:
            raise FlowError(
                f"A memory of colors holds 1 to {MAX_CELLS} places; got {self.places.cells}. Remember fewer."
            )

    @property
    def photographs(self) -> int:
        """How many photographs it was made from."""
        return int(self.places.get_buffer("photograph").max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of its tensors, and of the lookup fields that differ from their defaults."""
        changed = {
            name: getattr(self, name) for name in LOOKUP_FIELDS if getattr(self, name) != getattr(ColorMemory, name)
        }
        tensors = _sha256(self.places.state_dict())
        return fingerprint(f"{tensors} {changed}".encode()) if changed else tensors

    def save(self, path: str | Path) -> None:
        """Write it atomically, after checking that the written file loads; SavingError if it cannot be written."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.places.state_dict().items()}
        header = {
            "format": FORMAT,
            "backbone": self.backbone,
            "photographs": self.photographs,
            "provenance": self.provenance,
            **{name: getattr(self, name) for name in LOOKUP_FIELDS},
        }
        try:
            text = json.dumps(header, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise FlowError(f"The provenance of a memory must be plain JSON values: {error}.") from error
        write_atomic(Path(path), serialize(tensors, metadata={KEY: text}), check=self.load)

    @classmethod
    def load(cls, path: str | Path) -> ColorMemory:
        """Read one; CheckpointError if the file is missing, damaged, of another kind, or of a newer flowcore."""
        path = Path(path)
        advice = "Make the memory again: python -m flowcore remember FOLDER OUT."
        with model_file.open_safetensors(path, advice) as file:
            header = _parse(path.name, file.metadata() or {}, advice)
            shapes, types = model_file.shapes_and_types(file)
            cells = (shapes.get("keys") or (0,))[0]
            if not 1 <= cells <= MAX_CELLS:
                raise CheckpointError(f"{path.name} holds {cells} places; expected 1 to {MAX_CELLS}. {advice}")
            places = CellMemory(cells)
            tensors = places.state_dict()
            model_file.check_shapes(path.name, {name: tuple(t.shape) for name, t in tensors.items()}, shapes)
            for name, kind in types.items():
                if TYPES.get(kind) != tensors[name].dtype:
                    raise CheckpointError(
                        f"{name} in {path.name} is of type {kind}; expected {tensors[name].dtype}. {advice}"
                    )
            places.load_state_dict({name: file.get_tensor(name).clone() for name in tensors})
        model_file.check_finite(path.name, places.state_dict())
        photograph = places.get_buffer("photograph")
        if int(photograph.min()) < 0 or int(photograph.max()) >= header["photographs"]:
            raise CheckpointError(f"{path.name} numbers its photographs wrongly: it is damaged. {advice}")
        sampling = {name: header[name] for name in LOOKUP_FIELDS if name in header}
        return cls(places, header["backbone"], header["provenance"], **sampling)

    def merge(self, other: ColorMemory) -> ColorMemory:
        """Join two memories of one backbone: the places of both, with the principal components of this one.

        At most ``MAX_CELLS`` places are kept, the same share of every photograph.

        Raises:
            FlowError: If they were made with other backbones.
        """
        if other.backbone != self.backbone:
            raise FlowError(
                "These two memories were made with colorizers of different backbones. Make both with the same model."
            )
        origins = list[Any]()
        for provenance in (self.provenance, other.provenance):
            merged = provenance.get("merged")
            origins += [one for one in (merged if isinstance(merged, list) else [provenance]) if one not in origins]
        return ColorMemory(self.places.join(other.places), self.backbone, {"merged": origins})

    def check(self, flow: FlowModel) -> None:
        """Raise a FlowError unless it was made with the backbone that this model has."""
        if self.backbone != backbone_sha256(flow):
            raise FlowError(
                "This memory was made with another colorizer, whose backbone sees other features. Make it again with "
                "this model: python -m flowcore remember FOLDER OUT --model MODEL, or Flow Color Memory."
            )


def starter_memory(flow: FlowModel) -> ColorMemory | None:
    """Return the shipped memory if the model's file recommends it and its backbone is still the one it was made with.

    All models of a process share it.
    """
    if not flow.recommended.starter_memory:
        return None
    memory = _shipped_memory()
    return memory if memory.backbone == backbone_sha256(flow) else None


@cache
def _shipped_memory() -> ColorMemory:
    return ColorMemory.load(catalog.FOLDER / f"{catalog.STARTER_MEMORY}.safetensors")


def backbone_sha256(flow: FlowModel) -> str:
    """Fingerprint a colorizer's backbone, as float16: its features are the keys of memories; FlowError without one."""
    flow.require("colorize")
    if not isinstance(flow.encoder, LumaEncoder) or flow.encoder.backbone is None:
        raise FlowError(
            "A memory of colors needs a colorizer with a backbone, which tells what places show; this one has none. "
            "Use color-photos."
        )
    return _sha256({name: tensor.half() for name, tensor in flow.encoder.backbone.state_dict().items()})


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + b"\0")
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _parse(name: str, metadata: Mapping[str, str], advice: str) -> dict[str, Any]:
    """Check an untrusted header."""
    if KEY not in metadata:
        what = "a flowcore model" if model_file.KEY in metadata else "a safetensors file of another kind"
        raise CheckpointError(f"{name} is {what}; expected a memory of colors. {advice}")
    with model_file.header_errors(name, advice):
        raw: dict[str, Any] = json.loads(metadata[KEY])
        model_file.check_format(name, raw["format"], FORMAT)
        if type(raw["photographs"]) is not int or raw["photographs"] < 1:
            raise TypeError("photographs is not a number")
        if type(raw["backbone"]) is not str or type(raw["provenance"]) is not dict:
            raise TypeError("backbone or provenance has a wrong type")
        if not (0 < raw.get("share", 1) <= 1 and 0 <= raw.get("strength", 1) <= 1 and 0 < raw.get("weight", 1) <= 1):
            raise ValueError("share, strength or weight is out of range")
        if type(raw.get("neighbors", 1)) is not int or not 1 <= raw.get("neighbors", 1) <= 4096:
            raise ValueError("neighbors is out of range")
    return raw
