"""Latents in a file: safetensors, with their model named in the header.

The tensors are ``level0`` (finest), ``level1``, ..., float32, and for an upscaler ``source``, the small image that they
belong to. The header key ``flowcore_latents`` holds the fields of ``LatentsHeader`` as JSON. No tensor is read before
the header has been checked against the file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from ..errors import CheckpointError, FlowError, ShapeError
from . import model_file
from .writing import write_atomic

FORMAT = 1
KEY = "flowcore_latents"
MAX_LEVELS = 64


@dataclass(frozen=True, kw_only=True)
class LatentsHeader:
    """Header of a file of latents."""

    format: int
    model_sha256: str
    model_name: str  # the model's name where the latents were made
    architecture: str
    shapes: tuple[tuple[int, int, int, int], ...]  # (B, C_l, H_l, W_l), finest first
    extra: dict[str, Any]  # notes: label, size, seed, labels
    source: tuple[int, int, int, int] | None = None  # shape of an upscaler's LR image


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
    """Write latents, finest first, each ``(B, C_l, H_l, W_l)``, as float32, after checking that the file loads.

    ``model`` is the fingerprint from ``model_sha256``, ``source`` the LR image, ``(B or 1, 3, h, w)`` in [0, 1]; see
    ``LatentsHeader`` for the others.
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
        raise FlowError("The latents hold values that are not finite in float32. Leave those out.")
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
        raise FlowError(f"The notes of latents (extra) must be plain JSON values: {error}.") from error
    write_atomic(path, serialize(tensors, metadata={KEY: text}), check=load_latents)


def read_latents_header(path: str | Path) -> LatentsHeader:
    """Read the header of a file of latents, without reading a tensor; CheckpointError if there is none that fits."""
    path = Path(path)
    with model_file.open_safetensors(path, "Expected latents that were saved with save_latents.") as file:
        metadata: dict[str, str] = file.metadata() or {}
    if KEY not in metadata:
        what = "a flowcore model" if model_file.KEY in metadata else f"a safetensors file without a {KEY} header"
        raise CheckpointError(f"{path.name} is {what}; expected latents that were saved with save_latents.")
    with model_file.header_errors(path.name, "Save the latents again."):
        raw = json.loads(metadata[KEY])
        model_file.check_format(path.name, raw["format"], FORMAT)
        header = _parse(raw)
    return header


def load_latents(path: str | Path) -> tuple[list[Tensor], LatentsHeader, Tensor | None]:
    """Read latents, finest first, float32, on the CPU; their header; and an upscaler's LR image, or None."""
    path = Path(path)
    header = read_latents_header(path)
    expected = {f"level{k}": shape for k, shape in enumerate(header.shapes)}
    if header.source is not None:
        expected["source"] = header.source
    with model_file.open_safetensors(path, "Save the latents again.") as file:
        actual, kinds = model_file.shapes_and_types(file)
        types = sorted(set(kinds.values()))
        if actual != expected or types != ["F32"]:
            raise CheckpointError(
                f"The header of {path.name} claims latents of shapes {str(list(header.shapes))[:200]} in F32; the file "
                f"holds {str(dict(sorted(actual.items())[:3]))[:200]} in {', '.join(types) or 'nothing'}. It is "
                "damaged: save the latents again."
            )
        # Cloned: safetensors maps the file, which may be replaced.
        tensors = {name: file.get_tensor(name).clone() for name in expected}
    model_file.check_finite(path.name, tensors, "Save the latents again.")
    return [tensors[f"level{k}"] for k in range(len(header.shapes))], header, tensors.get("source")


def _parse(raw: dict[str, Any]) -> LatentsHeader:
    """Check the fields of an untrusted header."""
    shapes = tuple(tuple(shape) for shape in raw["shapes"])
    fit = 1 <= len(shapes) <= MAX_LEVELS and all(map(_is_shape, shapes)) and len({shape[0] for shape in shapes}) == 1
    if not fit:
        raise ValueError(f"shapes {str(shapes)[:80]}")
    source = None if raw.get("source") is None else tuple(raw["source"])
    if source is not None and not (_is_shape(source) and source[0] in (1, shapes[0][0])):
        raise ValueError(f"source {str(source)[:80]}")
    if not _is_sha256(raw["model_sha256"]):
        raise ValueError("model_sha256 is no fingerprint")
    if type(raw["model_name"]) is not str or type(raw["architecture"]) is not str or type(raw["extra"]) is not dict:
        raise TypeError("model_name, architecture or extra has a wrong type")
    checked: dict[str, Any] = {**raw, "shapes": shapes, "source": source}
    return LatentsHeader(**checked)


def _is_shape(shape: tuple[Any, ...]) -> bool:
    return len(shape) == 4 and all(type(side) is int and side >= 1 for side in shape)


def _is_sha256(text: Any) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")
