"""Latents in a file: safetensors, with the model that they belong to named in the header.

The tensors are ``level0`` (finest), ``level1``, ..., float32, each ``(B, C_l, H_l, W_l)``. The header key
``flowcore_latents`` holds one JSON string: ``{"format", "model_sha256", "model_name", "architecture", "shapes",
"extra"}``; for latents of an upscaler also "source", the shape of one more tensor of that name, the small image that
they belong to, ``(B or 1, 3, h, w)`` in [0, 1]. Latents mean nothing without their model, so a file of another one is
refused by name. Nothing is ever unpickled, and no tensor is read before the header has been checked against what the
file holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from ..errors import CheckpointError, FlowError, ShapeError
from ..flow import Flow
from . import file
from .writing import write_whole

FORMAT = 1
KEY = "flowcore_latents"
MOST_LEVELS = 64


@dataclass(frozen=True, kw_only=True)
class LatentsHeader:
    """What a file of latents says about itself.

    Attributes:
        format: Version of this file format.
        model_sha256: Fingerprint of the model that they belong to, see ``model_sha256``.
        model_name: What that model was called where the latents were made.
        architecture: Its recipe, e.g. "glow".
        shapes: ``(B, C_l, H_l, W_l)`` per level, finest first.
        extra: What else was noted: label, size, seed, labels.
        source: Shape of the small image that the file holds beside them; None for none.
    """

    format: int
    model_sha256: str
    model_name: str
    architecture: str
    shapes: tuple[tuple[int, int, int, int], ...]
    extra: dict[str, Any]
    source: tuple[int, int, int, int] | None = None


BESIDE = ("styles", "dequantizer_steps")  # fields that the bijection does not depend on


def model_sha256(flow: Flow) -> str:
    """Fingerprint a model: what it computes, not how it is stored.

    SHA-256 over, in this order: the architecture; the configuration's fields that differ from their defaults (so that
    fields of later versions make no difference) as JSON with sorted keys; then per tensor of the state dict, sorted by
    name: the name, the shape as JSON and the values as little-endian float32. Each text is ended by a zero byte. What
    the bijection does not depend on is left out: styles and the dequantizer. The device, the memory layout and the file
    do not matter; a configuration field that was given anew, or weights that were rounded to float16, make another
    model.

    Args:
        flow: The model.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()

    def take(text: str) -> None:
        digest.update(text.encode() + b"\0")

    take(flow.architecture)
    fields = {
        field.name: (getattr(flow.config, field.name), field.default) for field in dataclasses.fields(flow.config)
    }
    told = {name: value for name, (value, default) in fields.items() if value != default and name not in BESIDE}
    take(json.dumps(told, sort_keys=True))
    for name, tensor in sorted(flow.state_dict().items()):
        if name == "style_directions" or name.startswith("dequantizer."):
            continue
        take(name)
        take(json.dumps(list(tensor.shape)))
        values = tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1)
        digest.update(values.numpy().astype("<f4", copy=False))
    return digest.hexdigest()


def save_latents(
    path: str | Path,
    latents: Sequence[Tensor],
    *,
    model: str,
    architecture: str,
    model_name: str = "",
    extra: Mapping[str, Any] | None = None,
    source: Tensor | None = None,
) -> None:
    """Write latents, whole or not at all.

    Args:
        path: Where to; an existing file is replaced atomically.
        latents: Finest first, each ``(B, C_l, H_l, W_l)``; stored as float32.
        model: Fingerprint of their model, from ``model_sha256``.
        architecture: Of their model.
        model_name: What a message shall call their model; the architecture if left out.
        extra: What else to note, as JSON takes it: label, size, seed, labels.
        source: For latents of an upscaler, the small image that they belong to, ``(B or 1, 3, h, w)`` in [0, 1].

    Raises:
        FlowError: If the latents hold values that are not finite, the fingerprint is none, or ``extra`` is not JSON.
        ShapeError: If these are no latents.
        SavingError: If the file cannot be written; the disk may be full.
    """
    path = Path(path)
    levels = list(latents)
    if not levels or any(z.ndim != 4 or 0 in z.shape for z in levels) or len({z.shape[0] for z in levels}) > 1:
        raise ShapeError(
            "Expected a list of latents of one batch, finest first, each (B, C, H, W); got "
            f"{[tuple(z.shape) for z in levels]}."
        )
    if not _is_sha256(model):
        raise FlowError(f"A model's fingerprint has 64 hexadecimal digits; got {model!r}. Use model_sha256(flow).")
    tensors = {f"level{k}": z.detach().to("cpu", torch.float32).contiguous() for k, z in enumerate(levels)}
    if source is not None:
        if source.ndim != 4 or 0 in source.shape or source.shape[0] not in (1, levels[0].shape[0]):
            raise ShapeError(
                f"Expected a source for these {levels[0].shape[0]} items, (B or 1, 3, h, w); got {tuple(source.shape)}."
            )
        tensors["source"] = source.detach().to("cpu", torch.float32).contiguous()
    if not all(z.isfinite().all() for z in tensors.values()):
        raise FlowError("The latents hold values that are not finite in float32. Leave out what they come from.")
    header = {
        "format": FORMAT,
        "model_sha256": model,
        "model_name": model_name or architecture,
        "architecture": architecture,
        "shapes": [list(z.shape) for z in levels],
        "extra": dict(extra or {}),
        **({} if source is None else {"source": list(source.shape)}),
    }
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FlowError(f"What is noted beside the latents must be plain JSON values: {error}.") from error
    write_whole(path, serialise(tensors, metadata={KEY: text}))


def read_latents_header(path: str | Path) -> LatentsHeader:
    """Read what a file of latents says about itself, without reading a tensor.

    Args:
        path: The file.

    Returns:
        The header.

    Raises:
        CheckpointError: If the file is not there, broken, holds no latents, or was written by a newer flowcore.
    """
    path = Path(path)
    with file.opened(path, "Expected latents that were saved with save_latents.") as part:
        metadata: dict[str, str] = part.metadata() or {}
    if KEY not in metadata:
        what = "a flowcore model" if file.KEY in metadata else "a safetensors file without a flowcore_latents header"
        raise CheckpointError(f"{path.name} is {what}; expected latents that were saved with save_latents.")
    try:
        return _parsed(path.name, json.loads(metadata[KEY]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, FlowError):
            raise
        raise CheckpointError(
            f"The flowcore_latents header of {path.name} is damaged ({str(error)[:200]}). Save the latents again."
        ) from error


def load_latents(
    path: str | Path, expected_model: str | None = None, *, expected_name: str = "another one"
) -> tuple[list[Tensor], LatentsHeader]:
    """Read latents, and refuse those of another model.

    Args:
        path: The file.
        expected_model: Fingerprint of the model that shall decode them, from ``model_sha256``; None reads any.
        expected_name: What a message shall call that model.

    Returns:
        Latents, finest first, float32, on the CPU; and the header.

    Raises:
        CheckpointError: If the file is not there, broken, holds no latents, other tensors than its header claims or
            values that are not finite, or belongs to another model.
    """
    path = Path(path)
    header = read_latents_header(path)
    tensors = _tensors(path, header, expected_model, expected_name)
    return [tensors[f"level{k}"] for k in range(len(header.shapes))], header


def load_source(path: str | Path) -> Tensor | None:
    """Read the small image that latents of an upscaler belong to.

    Args:
        path: A file of latents.

    Returns:
        ``(B or 1, 3, h, w)`` in [0, 1], float32, on the CPU; None if the file holds none.

    Raises:
        CheckpointError: As in ``load_latents``.
    """
    path = Path(path)
    return _tensors(path, read_latents_header(path)).get("source")


def _tensors(
    path: Path, header: LatentsHeader, expected_model: str | None = None, expected_name: str = ""
) -> dict[str, Tensor]:
    """Read what the header promises, and nothing else."""
    if expected_model is not None and header.model_sha256 != expected_model:
        raise CheckpointError(
            f"These latents were made with {_short(header.model_name)} (sha {header.model_sha256[:12]}); the model "
            f"given is {_short(expected_name)} (sha {expected_model[:12]}). Load the model that they were made with."
        )
    expected = {f"level{k}": shape for k, shape in enumerate(header.shapes)}
    if header.source is not None:
        expected["source"] = header.source
    with file.opened(path, "Save the latents again.") as part:
        slices = {name: part.get_slice(name) for name in part.keys()}  # noqa: SIM118
        came = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
        types = sorted({str(tensor.get_dtype()) for tensor in slices.values()})
        if came != expected or types != ["F32"]:
            raise CheckpointError(
                f"The header of {path.name} claims latents of shapes {str(list(header.shapes))[:200]} in F32; the file "
                f"holds {str(dict(sorted(came.items())[:3]))[:200]} in {', '.join(types) or 'nothing'}. It is damaged: "
                "save the latents again."
            )
        # cloned, because safetensors lends out the file's own pages, and the file may be replaced
        tensors = {name: part.get_tensor(name).clone() for name in expected}
    wrong = sum(int((~z.isfinite()).sum()) for z in tensors.values())
    if wrong:
        raise CheckpointError(f"{path.name} holds {wrong} values that are not finite numbers. Save the latents again.")
    return tensors


def _parsed(name: str, raw: Any) -> LatentsHeader:
    """Check the parsed header of a file; a ValueError, KeyError or TypeError says that it is damaged."""
    version = raw["format"]
    if type(version) is not int or version < 1:
        raise TypeError(f"format {version!r}")
    fields = {field.name for field in dataclasses.fields(LatentsHeader)}
    if version > FORMAT or raw.keys() - fields:
        raise CheckpointError(
            f"{name} was written by a newer flowcore (format {version}; this one reads up to {FORMAT}). Update "
            "flowcore."
        )
    shapes = tuple(tuple(shape) for shape in raw["shapes"])
    if (
        not 1 <= len(shapes) <= MOST_LEVELS
        or any(len(shape) != 4 or any(type(side) is not int or side < 1 for side in shape) for shape in shapes)
        or len({shape[0] for shape in shapes}) != 1
    ):
        raise ValueError(f"shapes {str(shapes)[:80]}")
    source = None if raw.get("source") is None else tuple(raw["source"])
    if source is not None and (
        len(source) != 4
        or any(type(side) is not int or side < 1 for side in source)
        or source[0] not in (1, shapes[0][0])
    ):
        raise ValueError(f"source {str(source)[:80]}")
    if not _is_sha256(raw["model_sha256"]):
        raise ValueError("no fingerprint of a model")
    if type(raw["model_name"]) is not str or type(raw["architecture"]) is not str or type(raw["extra"]) is not dict:
        raise TypeError("a name that is no text, or notes that are no object")
    return LatentsHeader(
        format=version,
        model_sha256=raw["model_sha256"],
        model_name=raw["model_name"],
        architecture=raw["architecture"],
        shapes=shapes,  # pyright: ignore[reportArgumentType]
        extra=raw["extra"],
        source=source,  # pyright: ignore[reportArgumentType]
    )


def _is_sha256(text: Any) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def _short(name: str) -> str:
    return name if len(name) <= 80 else name[:77] + "..."
