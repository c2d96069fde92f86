"""What a thing is, by its content: fingerprints for caches, recipes, file IDs and tables of results.

``fingerprint`` is the one way to ask. Equal content has an equal fingerprint, in every process and on every machine.
An unknown type raises an error, because two values of it would look the same. Recipes, results of a batch and training
runs record fingerprints, so their form stays as it is.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..flows.model import FlowModel
from ..images.opening import open_regular
from .fields import GUIDE_FIELDS, SAMPLING_FIELDS

# fields that do not change the bijection
OTHER_FIELDS = ("styles", "dequantizer_steps", *SAMPLING_FIELDS, *GUIDE_FIELDS)
OTHER_TENSORS = ("style_directions", "dequantizer.", "guide.")  # starts of other tensors' names
DIGITS = 12  # hexadecimal digits of a shortened fingerprint


class Digest(str):
    """A SHA-256 in hexadecimal that stands for some content in a description; see ``describe``."""

    __slots__ = ()


def fingerprint(value: Any) -> str:
    """Fingerprint a value: the SHA-256 of bytes and files, and for others of ``describe(value)`` as JSON.

    >>> import torch
    >>> from flowcore.models.identity import fingerprint
    >>> fingerprint([torch.zeros(2), {"seed": 1}]) == fingerprint([torch.ones(2), {"seed": 1}])
    False

    Raises:
        TypeError: If ``describe`` does not know its type.
    """
    described = describe(value)
    return str(described if isinstance(described, Digest) else _sha256(json.dumps(described, sort_keys=True).encode()))


def describe(value: Any) -> Any:
    """Describe a value as JSON by everything it contains; a description describes itself.

    Takes None, booleans, numbers, strings, enums, bytes, files (a ``Path``, by content), tensors, models; sequences,
    mappings from strings and dataclasses of these; and objects with a string ``fingerprint``, which those whose content
    never changes compute once.

    Raises:
        TypeError: For any other type.
    """
    match value:
        case object(fingerprint=str(known)):
            return Digest(known)
        case Enum():
            return [type(value).__name__, value.name]
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return _sha256(value)
        case Path():
            return _of_file(value)
        case Tensor():
            return _of_tensor(value)
        case FlowModel():
            return Digest(model_fingerprint(value, model_sha256(value)))
        case list() | tuple():
            return [describe(item) for item in cast(Sequence[Any], value)]
        case Mapping() if all(isinstance(key, str) for key in cast(Mapping[Any, Any], value)):
            return {key: describe(item) for key, item in cast(Mapping[str, Any], value).items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"kind": type(value).__name__, **fields}
        case _:
            raise TypeError(
                f"A {type(value).__name__} has no fingerprint, so results made with it cannot be recognized. Pass "
                "tensors, models, bytes, paths, plain values, or dataclasses of these; or give it a `fingerprint`."
            )


def model_sha256(flow: FlowModel) -> str:
    """Fingerprint a model as 64 hexadecimal digits: what it computes, not how it is stored.

    SHA-256 over the architecture, the configuration's fields that differ from their defaults (so that fields of later
    versions make no difference), and the names, shapes and float32 values of its tensors; without styles, dequantizer,
    guide and recommendations for sampling, which leave the bijection as it is. Latents and recipes are for all models
    that share it; pictures also depend on the rest, which ``fingerprint(flow)`` includes.
    """
    digest = hashlib.sha256(flow.architecture.encode() + b"\0")
    changed = {name: value for name, value in _changed_fields(flow).items() if name not in OTHER_FIELDS}
    digest.update(json.dumps(changed, sort_keys=True).encode() + b"\0")
    for name, tensor in sorted(flow.state_dict().items()):
        if not name.startswith(OTHER_TENSORS):
            digest.update(f"{name}\0{json.dumps(list(tensor.shape))}\0".encode())
            flat = tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1)
            digest.update(flat.numpy().astype("<f4", copy=False))
    return digest.hexdigest()


def model_fingerprint(flow: FlowModel, sha256: str) -> str:
    """Return ``fingerprint(flow)`` where its ``model_sha256`` is known, which takes most of the time."""
    others = {name: tensor for name, tensor in flow.state_dict().items() if name.startswith(OTHER_TENSORS)}
    return fingerprint([sha256, _changed_fields(flow), others])


def _changed_fields(flow: FlowModel) -> dict[str, Any]:
    """Return the fields of a configuration that differ from their defaults, and so not those of later versions."""
    defaults = {field.name: field.default for field in dataclasses.fields(flow.config)}
    values = {name: getattr(flow.config, name) for name in defaults}
    return {name: value for name, value in values.items() if value != defaults[name]}


def _of_tensor(values: Tensor) -> dict[str, Any]:
    stored = values.detach().cpu()
    if stored.dtype in (torch.float16, torch.bfloat16):  # the same numbers, as recipes have recorded them
        stored = stored.float()
    other_type = {} if stored.dtype == torch.float32 else {"dtype": str(stored.dtype).removeprefix("torch.")}
    content = stored.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return {"shape": list(stored.shape), "sha256": hashlib.sha256(content).hexdigest()[:DIGITS], **other_type}


def _of_file(path: Path) -> Digest:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return Digest(digest.hexdigest())


def _sha256(content: bytes) -> Digest:
    return Digest(hashlib.sha256(content).hexdigest())
