"""The provenance of a picture: what made it, stored in its own PNG or EXR file, and how to find that model again.

A JSON list in the PNG text chunk ``flowcore``, or the EXR attribute: an entry of each node that took part. The same
model, source and entry give the same picture, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from ..device import actual_precision
from ..errors import PICTURE_VERSION, VERSION, CheckpointError, FlowError, say
from ..flows.model import FlowModel
from ..images.color import to_levels
from ..images.opening import open_regular
from ..models import load
from ..models.fields import short_repr
from ..models.identity import DIGITS, model_fingerprint, model_sha256
from ..models.model_file import is_flowcore_file, read_header

KEY = "flowcore"
EXR = b"\x76\x2f\x31\x01"
CLIP = "FlowcoreUpscaleVideo"  # the node whose frame t has the noise of ``seed + t``
OWN_FIELDS = ("temperature", "seed", "samples")  # values of a node that are fields of ``Provenance``
MAX_HEAD = 64 * 2**20  # bytes at the beginning of a file in which texts are looked for
MAX_ENTRIES = 64
MAX_PICTURES = 4096
MAX_NAME = 200  # characters


class ProvenanceError(FlowError):
    """A picture has no usable provenance, or its model is missing."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What one node did to make pictures."""

    node_id: str  # the node's number in its workflow
    node: str  # the node's class, e.g. "FlowcoreUpscale"
    model: str  # its name
    model_sha256: str
    architecture: str
    temperature: float
    seed: int  # sample s uses ``seed + s``
    samples: int = 1  # pictures per image
    # all other values given to the node; of the file of a frame also "frame", by how many the seed was counted up
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    sources: dict[str, Any] = field(default_factory=dict[str, Any])  # ``describe`` of every image or mask given to it
    pictures: tuple[str, ...] = ()  # ``picture_fingerprint`` of all pictures that it made
    version: str = ""  # version of flowcore
    picture_version: int = 0  # ``PICTURE_VERSION`` of that flowcore; 0 in older recipes, which do not state it
    model_fingerprint: str = ""  # covers what the bijection leaves out, such as a guide, too; "" in older recipes

    @staticmethod
    def of(
        values: dict[str, Any],
        flow: FlowModel,
        pictures: Iterable[Tensor],
        *,
        bits: int | None = None,
        device: Any = None,
        **fields: Any,
    ) -> Provenance:
        """Describe pictures that a flow made from a node's ``values``; ``fields`` are all others.

        ``bits`` as in ``picture_fingerprint``. ``device`` is the flow's by default; on it a precision of "auto" is
        resolved, which machines do differently.
        """
        settings = {name: value for name, value in values.items() if name not in OWN_FIELDS and is_plain(value)}
        if settings.pop("mark", ""):  # a secret phrase
            settings["marked"] = True
        if "precision" in settings:
            device = torch.device(device or next(flow.parameters()).device)
            settings["precision"] = actual_precision(settings["precision"], device)
        undrawn = {"temperature": 0.0, "seed": 0, "samples": 1}  # values of tasks that draw nothing, such as ``clean``
        named = undrawn | {name: values[name] for name in OWN_FIELDS if name in values}
        fingerprints = tuple(picture_fingerprint(picture, bits) for picture in islice(pictures, MAX_PICTURES))
        common: dict[str, Any] = {"architecture": flow.architecture, "pictures": fingerprints, "version": VERSION}
        common["picture_version"] = PICTURE_VERSION
        common["model_fingerprint"] = model_fingerprint(flow, fields["model_sha256"])
        return Provenance(settings=settings, **common, **named, **fields)

    def text(self) -> dict[str, str]:
        """Return the text chunk of a PNG file whose only entry this is."""
        return {KEY: json.dumps([self.to_json()])}

    def to_json(self) -> dict[str, Any]:
        """Return the non-empty fields as JSON types."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in ({}, ())}

    @staticmethod
    def from_json(raw: Any) -> Provenance:
        """Validate one untrusted entry, or raise ProvenanceError; fields added by a newer flowcore are dropped."""
        if not isinstance(raw, dict):
            raise ProvenanceError(f"an entry of the recipe is a {type(raw).__name__}; expected an object with fields.")
        values: dict[str, Any] = {name: raw[name] for name in FIELDS if name in raw}
        for part in dataclasses.fields(Provenance):
            if part.name not in raw and part.default is part.default_factory is dataclasses.MISSING:
                raise ProvenanceError(f"an entry of the recipe has no {part.name}.")
        for name, value in values.items():
            is_valid, expected = FIELDS[name]
            if not is_valid(value):
                raise ProvenanceError(f"{name} in the recipe is {short_repr(value)}; expected {expected}.")
        values |= {"pictures": tuple(values.get("pictures", ())), "temperature": float(values["temperature"])}
        return Provenance(**values)

    def seed_of(self, picture: str) -> int:
        """Return the seed that makes a picture as the first sample, given the picture's fingerprint.

        A picture that is not listed has the entry's own seed, and a frame of a video that of the first frame.
        """
        if self.node == CLIP:
            return (self.seed - self._frame) % 2**64
        return self.seed if self.settings.get("frames") == "video" else self.drawn_with(picture)

    def drawn_with(self, picture: str) -> int:
        """Return the seed of a picture's noise, given its fingerprint; if it is not listed, the entry's own."""
        return self.seed_at(self.pictures.index(picture)) if picture in self.pictures else self.seed

    def seed_at(self, number: int) -> int:
        """Return the seed of the noise of a picture, given its number in ``pictures``."""
        return (self.seed + (number if self.node == CLIP else number % self.samples)) % 2**64

    @property
    def _frame(self) -> int:
        number = self.settings.get("frame", 0)
        return number if type(number) is int else 0


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("node_id", "node", "model", "architecture", "version"), (_is_name, "a short text")),
    "model_sha256": (lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None, "64 hex digits"),
    "model_fingerprint": (lambda v: isinstance(v, str) and re.fullmatch("([0-9a-f]{64})?", v) is not None, "a hash"),
    "temperature": (lambda v: type(v) in (int, float) and 0 <= v <= 1000, "a number of at least 0"),
    "seed": (lambda v: type(v) is int and 0 <= v < 2**64, "a whole number from 0 to 2^64 - 1"),
    "picture_version": (lambda v: type(v) is int and 0 <= v < 2**31, "a whole number of at least 0"),
    "samples": (lambda v: type(v) is int and 1 <= v < 2**31, "a whole number of at least 1"),
    **dict.fromkeys(("settings", "sources"), (lambda v: isinstance(v, dict), "an object")),
    "pictures": (
        lambda v: isinstance(v, (list, tuple)) and len(v) <= MAX_PICTURES and all(_is_name(item) for item in v),
        "a list of fingerprints",
    ),
}


# --- files ------------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> list[Provenance]:
    """Read the provenance in a PNG or EXR file, in the order in which the nodes ran; ProvenanceError if it has none."""
    name, text = Path(path).name[:100], _text(Path(path), KEY)
    if text is None:
        raise ProvenanceError(
            "{file} holds no recipe of flowcore. Flow Upscale, Flow Colorize and Flow Sample write one into the PNG "
            "and EXR files that the host saves, if the prompt came from the canvas and metadata is not switched off; "
            "other programs leave it out when they save.",
            file=name,
        )
    try:
        raw = json.loads(text)
        if not isinstance(raw, list) or not 0 < len(raw) <= MAX_ENTRIES:
            raise ProvenanceError(f"expected a list of 1 to {MAX_ENTRIES} entries; got {short_repr(raw)}.")
        return [Provenance.from_json(entry) for entry in raw]
    except (ProvenanceError, ValueError, RecursionError) as error:
        problem = error if isinstance(error, ProvenanceError) else "it is not JSON."
        raise ProvenanceError(f"The recipe in {name} is damaged: {problem} Use the file as it was saved.") from error


def describe(path: str | Path) -> list[dict[str, Any]]:
    """Describe what made a picture: its provenance or, if it was made through ComfyUI's API, our nodes in its prompt.

    A node of a prompt has "node_id", "node" and "settings"; a list of a node and a number in these is a link.
    """
    if _text(Path(path), KEY) is None and (prompt := _text(Path(path), "prompt")) is not None:
        with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError, AttributeError):  # no ComfyUI prompt
            nodes = [(id, node["class_type"], node["inputs"]) for id, node in json.loads(prompt).items()]
            ours = [entry for entry in nodes if str(entry[1]).startswith("Flowcore")]
            if ours:
                return [{"node_id": id, "node": node, "settings": inputs} for id, node, inputs in ours]
    return [entry.to_json() for entry in read(path)]


class _Head(PngImageFile):
    """The beginning of a PNG file, of which no pixels are decoded."""

    def _seek(self, frame: int, rewind: bool = False) -> None:
        pass  # in Pillow 10 to 12, the first frame of an animation allocates all of its pixels


def _text(path: Path, key: str) -> str | None:
    """Read the text of a key in a PNG or EXR file, from its first ``MAX_HEAD`` bytes; None if there is none."""
    name = path.name[:100]
    try:
        with open_regular(path) as file:
            head = file.read(MAX_HEAD)
        if head.startswith(EXR):
            return _find_attribute(head, key)
        return _Head(io.BytesIO(head)).info.get(key)  # Image.open would limit the pixels
    except SyntaxError as error:
        raise ProvenanceError(
            "{file} is not a PNG or EXR file, and only those carry recipes, or it is damaged. Give the file as it was "
            "saved.",
            file=name,
        ) from error
    except (OSError, ValueError, zlib.error) as error:  # ValueError: a zero byte in the name, or a long text
        raise ProvenanceError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _find_attribute(header: bytes, key: str) -> str | None:
    """Find a text in the header of an OpenEXR file, a sequence of attributes: name, type, size, content."""
    place = len(EXR) + 4  # the version has four bytes
    while (end := header.find(b"\0", place)) > place:
        start = header.index(b"\0", end + 1) + 5
        size = int.from_bytes(header[start - 4 : start], "little")
        if header[place:end] == key.encode():
            return header[start : start + size].decode()
        place = start + size
    return None


# --- pictures and models ----------------------------------------------------------------------------------------------


def picture_fingerprint(picture: Tensor, bits: int | None = None) -> str:
    """Fingerprint a picture ``(C, H, W)`` in [0, 1], C = 1, 3 or 4, as it is read from the file that stores it.

    Values are rounded to ``bits``, as our files do, unless None: for a picture that was read from any file, and one
    that ComfyUI stores. Then they are truncated to 8 bits, as ComfyUI does, in RGB without alpha.
    """
    pixels = picture[:3].cpu().expand(3, -1, -1).float()  # on a GPU, v / 255 * 255 may be less than v
    if bits is not None:
        pixels = to_levels(pixels, bits) / (2**bits - 1)
    pixels = (pixels * 255).clamp(0, 255).to(torch.uint8)
    shape = str(tuple(pixels.shape)).encode()
    return hashlib.sha256(shape + pixels.contiguous().numpy().tobytes()).hexdigest()[:DIGITS]


def select(entries: Sequence[Provenance], picture: str) -> Provenance:
    """Return the entry that lists a picture's fingerprint; if the picture was changed since, the last entry."""
    return next((entry for entry in entries if picture in entry.pictures), entries[-1])


def find_model(entry: Provenance, named: Path | None, others: Iterable[tuple[str, Path]]) -> tuple[str, FlowModel]:
    """Find the model of a picture, and its name now: ``named``, the file of that name, or one of all ``others``.

    It may differ in what the bijection leaves out, see ``is_same``, if there is no other.
    """
    sha256, similar = "", None
    if named is not None:
        flow = load(named)
        if (sha256 := model_sha256(flow)) == entry.model_sha256:
            similar = entry.model, flow
            if is_same(entry, flow):
                return similar
    for name, path in others:
        # reading a header is cheap; files without one would have to be converted first, and are skipped
        if path == named or not is_flowcore_file(path):
            continue
        with contextlib.suppress(CheckpointError):
            if read_header(path).architecture == entry.architecture:
                flow = load(path)
                if model_sha256(flow) == entry.model_sha256:
                    similar = similar or (name, flow)
                    if is_same(entry, flow):
                        return name, flow
    if similar:
        return similar
    wanted = entry.model_sha256[:DIGITS]
    if sha256:
        raise ProvenanceError(
            "The recipe was made with another {model}: expected sha {sha}; the {model} that is here has sha "
            "{other_sha}. Put the model that made the picture into models/flows.",
            model=entry.model,
            sha=wanted,
            other_sha=sha256[:DIGITS],
        )
    raise ProvenanceError(
        "The recipe was made with {model} (sha {sha}), and there is no such model here. Put it into models/flows.",
        model=entry.model,
        sha=wanted,
    )


def is_same(entry: Provenance, flow: FlowModel) -> bool:
    """Tell whether a model of the bijection of a picture has the same guide and defaults, as far as the entry tells."""
    return entry.model_fingerprint in ("", model_fingerprint(flow, entry.model_sha256))


def drawn_otherwise(entry: Provenance) -> str:
    """Say that another flowcore made a picture, which drew otherwise than this one; "" if they draw alike."""
    if entry.picture_version == PICTURE_VERSION:
        return ""
    return say(
        "This flowcore draws otherwise than the one that made the picture (picture version {here} here, {there} "
        "there): made again, it may differ.",
        here=PICTURE_VERSION,
        there=entry.picture_version,
    )


def is_plain(value: Any) -> bool:
    """Tell whether a setting can be stored: a finite number, a boolean or a string."""
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, (str, bool, int))
