"""Recipes: what made a picture, as it stands in the picture's own PNG file, and how to find its model again.

A node that makes pictures writes an entry; the program that saves them puts all entries, as one JSON text, into the
PNG's text chunk ``flowcore``. With the same model and source the entry gives the same picture, bit for bit.

Files come from strangers. Bounds on what one can ask for: a text of 4 MiB, 64 entries, 256 MiB of file that are looked
through; no pixel is decoded, and nothing is evaluated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .checkpoints import is_ours, load, read_header
from .checkpoints.latents_file import model_sha256
from .errors import CheckpointError, FlowError
from .flow import Flow

KEY = "flowcore"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_TEXT = 4 * 2**20  # bytes; a recipe has about a thousand
MOST_FILE = 256 * 2**20  # bytes that are looked through
MOST_CHUNKS = 1_000_000  # of a file
MOST_ENTRIES = 64
MOST_PICTURES = 4096
LONGEST = 200  # characters of a name
DIGITS = 12  # of a fingerprint, where people read it


class RecipeError(FlowError):
    """A picture without a recipe, or with one that cannot be followed."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What made a picture.

    Attributes:
        node_id: Of the node in its workflow.
        node: Its class, e.g. "FlowcoreUpscale".
        model: What its model was called.
        model_sha256: Fingerprint of that model.
        architecture: Of that model.
        temperature: See the tasks.
        seed: Sample s uses ``seed + s``.
        samples: Pictures per image.
        settings: All other values that the node was given.
        sources: Of every image or mask that it was given the shape, and a fingerprint of its values.
        pictures: Fingerprints of all pictures that it made, as 8-bit files have them; see ``fingerprint``.
        version: Of flowcore.
    """

    node_id: str
    node: str
    model: str
    model_sha256: str
    architecture: str
    temperature: float
    seed: int
    samples: int = 1
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    sources: dict[str, Any] = field(default_factory=dict[str, Any])
    pictures: tuple[str, ...] = ()
    version: str = ""

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON types.

        Returns:
            The fields that hold something.
        """
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in ({}, ())}

    @staticmethod
    def from_json(raw: Any) -> Recipe:
        """Read what ``to_json`` wrote.

        Args:
            raw: Whatever a file holds.

        Returns:
            The recipe; what a newer flowcore has added is left out.

        Raises:
            RecipeError: A field is missing or of another type.
        """
        if not isinstance(raw, dict):
            raise RecipeError(f"an entry of the recipe is a {type(raw).__name__}; expected an object with fields.")
        values: dict[str, Any] = {}
        for part in dataclasses.fields(Recipe):
            if part.name in raw:
                values[part.name] = raw[part.name]
            elif part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING:
                raise RecipeError(f"an entry of the recipe has no {part.name}.")
        for name, (fits, expected) in FIELDS.items():
            if name in values and not fits(values[name]):
                raise RecipeError(f"{name} in the recipe is {_shown(values[name])}; expected {expected}.")
        if "pictures" in values:
            values["pictures"] = tuple(values["pictures"])
        values["temperature"] = float(values["temperature"])
        return Recipe(**values)

    def seed_of(self, picture: str) -> int:
        """Say which seed made one of several pictures.

        Args:
            picture: Its fingerprint.

        Returns:
            The seed that makes it as the first sample; the recipe's own if it is none of the pictures.
        """
        if picture not in self.pictures or self.settings.get("frames") == "video":
            return self.seed
        return (self.seed + self.pictures.index(picture) % self.samples) % 2**64


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value < high


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("node_id", "node", "model", "architecture", "version"), (_text, "a short text")),
    "model_sha256": (lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None, "64 hex digits"),
    "temperature": (lambda v: type(v) in (int, float) and 0 <= v <= 1000, "a number of at least 0"),
    "seed": (_whole(0, 2**64), "a whole number from 0 to 2^64 - 1"),
    "samples": (_whole(1, 2**31), "a whole number of at least 1"),
    "settings": (lambda v: isinstance(v, dict), "an object"),
    "sources": (lambda v: isinstance(v, dict), "an object"),
    "pictures": (
        lambda v: isinstance(v, (list, tuple)) and len(v) <= MOST_PICTURES and all(_text(item) for item in v),
        "a list of fingerprints",
    ),
}


def _shown(value: Any) -> str:
    if isinstance(value, (str, bool, float)) or value is None:
        return repr(value)[:60]
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a very large number"
    return f"a {type(value).__name__}"


# ---------------------------------------------------------------------------------------------------------------------
# files


def read(path: str | Path) -> list[Recipe]:
    """Read the recipes in a PNG file.

    Args:
        path: The file.

    Returns:
        One per node that took part, at least one, in the order in which they ran.

    Raises:
        RecipeError: If the file cannot be read, is no PNG, holds no recipe, or one that is damaged.
    """
    path = Path(path)
    name = path.name[:100]
    try:
        with path.open("rb") as file:
            text = _find(file, name)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, FlowError):
            raise
        raise RecipeError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if text is None:
        raise RecipeError(
            f"{name} holds no recipe of flowcore. Flow Upscale, Flow Colorize and Flow Sample write one into the PNG "
            "files that Save Image writes, if the prompt came from the canvas and metadata is not switched off; other "
            "programs leave it out when they save."
        )
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"The recipe in {name} is damaged: it is not JSON. Use the file as it was saved.") from error
    if not isinstance(raw, list) or not 0 < len(raw) <= MOST_ENTRIES:
        raise RecipeError(
            f"The recipe in {name} is damaged: expected a list of 1 to {MOST_ENTRIES} entries; got {_shown(raw)}. Use "
            "the file as it was saved."
        )
    try:
        return [Recipe.from_json(entry) for entry in raw]
    except RecipeError as error:
        raise RecipeError(f"The recipe in {name} is damaged: {error} Use the file as it was saved.") from error


def _find(file: BinaryIO, name: str) -> str | None:
    """Walk through the chunks of a PNG, which are a length, a kind, the content and a checksum each."""
    if file.read(8) != SIGNATURE:
        raise RecipeError(f"{name} is not a PNG file, and only those carry recipes. Give the file as it was saved.")
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind == b"IEND" or file.tell() > MOST_FILE:
            break
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            file.seek(length + 4, 1)
            continue
        start = file.tell()
        if file.read(min(length, len(KEY) + 1)) == KEY.encode() + b"\0":
            rest = length - len(KEY) - 1
            if rest > MOST_TEXT:
                raise RecipeError(
                    f"The recipe in {name} is {rest} bytes long; expected at most {MOST_TEXT}. No node writes such."
                )
            return _decoded(kind, file.read(rest), name)
        file.seek(start + length + 4)
    return None


def _decoded(kind: bytes, content: bytes, name: str) -> str:
    compressed, encoding = kind == b"zTXt", "latin-1"
    if kind == b"zTXt":
        content = content[1:]  # the method, of which there is one
    if kind == b"iTXt":
        compressed, encoding = content[:1] == b"\1", "utf-8"
        content = content[2:].split(b"\0", 2)[-1]  # after the language, and the keyword in it
    try:
        if compressed:
            unpack = zlib.decompressobj()
            content = unpack.decompress(content, MOST_TEXT)
            if unpack.unconsumed_tail:
                raise RecipeError(f"The recipe in {name} unpacks to more than {MOST_TEXT} bytes. No node writes such.")
        return content.decode(encoding)
    except (zlib.error, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe in {name} is damaged. Use the file as it was saved.") from error


# ---------------------------------------------------------------------------------------------------------------------
# pictures and models


def fingerprint(picture: Tensor) -> str:
    """Fingerprint a picture as an 8-bit file has it.

    Args:
        picture: (3 or 4, H, W) in [0, 1], or uint8.

    Returns:
        12 hexadecimal digits. Alpha does not count, and values are cut off, as ComfyUI does when it saves.
    """
    pixels = picture[:3]
    if pixels.dtype != torch.uint8:
        pixels = (pixels.float() * 255).clamp(0, 255).to(torch.uint8)
    shape = str(tuple(pixels.shape)).encode()
    return hashlib.sha256(shape + pixels.cpu().contiguous().numpy().tobytes()).hexdigest()[:DIGITS]


def source(values: Tensor) -> dict[str, Any]:
    """Describe an image or a mask that went into a picture.

    Args:
        values: Of any shape.

    Returns:
        Its shape, and a fingerprint of its values in float32.
    """
    kept = values.detach().to("cpu", torch.float32).contiguous()
    return {"shape": list(kept.shape), "sha256": hashlib.sha256(kept.numpy().tobytes()).hexdigest()[:DIGITS]}


def chosen(recipes: Sequence[Recipe], picture: str) -> Recipe:
    """Choose the recipe that made a picture.

    Args:
        recipes: As ``read`` gives them.
        picture: Fingerprint of the picture.

    Returns:
        The one that lists the picture; else, if it was changed afterwards, the last.
    """
    return next((recipe for recipe in recipes if picture in recipe.pictures), recipes[-1])


def find_model(recipe: Recipe, named: Path | None, others: Iterable[tuple[str, Path]]) -> tuple[str, Flow]:
    """Find the model of a recipe: by its name, and where that is another one, by its fingerprint.

    Args:
        recipe: The recipe.
        named: The file of its model's name, or None if there is none.
        others: Name and file of all models there are.

    Returns:
        The model's name now, and the model.

    Raises:
        RecipeError: If there is no such model; both fingerprints are named where one of the same name is another.
    """
    seen = ""
    if named is not None:
        flow = load(named)
        if model_sha256(flow) == recipe.model_sha256:
            return recipe.model, flow
        seen = model_sha256(flow)
    for name, path in others:
        # A header is read in no time; what has none would have to be converted to be known.
        if path != named and is_ours(path):
            try:
                if read_header(path).architecture != recipe.architecture:
                    continue
                flow = load(path)
            except CheckpointError:
                continue
            if model_sha256(flow) == recipe.model_sha256:
                return name, flow
    wanted = recipe.model_sha256[:DIGITS]
    if seen:
        raise RecipeError(
            f"The recipe was made with another {recipe.model}: expected sha {wanted}; the {recipe.model} that is here "
            f"has sha {seen[:DIGITS]}. Put the model that made the picture into models/flows."
        )
    raise RecipeError(
        f"The recipe was made with {recipe.model} (sha {wanted}), and there is no such model here. Put it into "
        "models/flows."
    )


def is_plain(value: Any) -> bool:
    """Say whether a setting can stand in a recipe: a finite number, a truth value or a text."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (str, bool, int))
