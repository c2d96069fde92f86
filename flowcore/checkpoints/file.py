"""Our file format: safetensors, with everything but the tensors as JSON in its header.

The header key ``flowcore`` holds ``{"architecture", "format", "config", "provenance"}``; provenance says source, sha256
of the original, licence and metrics. Reading it costs no tensor.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from ..flow import Flow
from ..models import build, configure
from ..transforms import CheckpointError, FlowError
from .writing import write_whole

FORMAT = 1
KEY = "flowcore"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a model file says about itself.

    Attributes:
        architecture: Name of the recipe, e.g. "srflow".
        format: Version of this file format.
        config: Fields of the recipe's configuration.
        provenance: Where the weights come from: source, sha256, licence, metrics.
    """

    architecture: str
    format: int
    config: dict[str, Any]
    provenance: dict[str, Any]


def read_header(path: str | Path) -> Header:
    """Read what a file says about itself, without reading a tensor.

    Args:
        path: A ``.safetensors`` file in our format.

    Returns:
        The header.

    Raises:
        CheckpointError: If the file is not there, broken, not ours, or written by a newer flowcore.
    """
    metadata = _metadata(Path(path))
    if KEY not in metadata:
        raise CheckpointError(
            f"{Path(path).name} is a safetensors file without a flowcore header, so not a converted model. "
            "If it holds a published SRFlow, Glow or Real NVP, convert it: python -m flowcore convert IN OUT."
        )
    try:
        raw = json.loads(metadata[KEY])
        header = Header(
            architecture=raw["architecture"],
            format=raw["format"],
            config=dict(raw["config"]),
            provenance=dict(raw["provenance"]),
        )
        if type(header.architecture) is not str or type(header.format) is not int or header.format < 1:
            raise TypeError(f"architecture {header.architecture!r}, format {header.format!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The flowcore header of {Path(path).name} is damaged ({error}). Fetch the file again."
        ) from error
    if header.format > FORMAT:
        raise CheckpointError(
            f"{Path(path).name} was written by a newer flowcore (format {header.format}; this one reads up to "
            f"{FORMAT}). Update flowcore."
        )
    return header


def is_ours(path: str | Path) -> bool:
    """Say whether a file carries a flowcore header.

    Args:
        path: Any file.

    Returns:
        Whether it is a safetensors file with our header key.
    """
    try:
        return KEY in _metadata(Path(path))
    except CheckpointError:
        return False


def save(
    flow: Flow, path: str | Path, *, provenance: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write a model, whole or not at all.

    Args:
        flow: The model.
        path: Where to; an existing file is replaced atomically.
        provenance: What to record; None for ``flow.provenance``.
        dtype: Precision of the stored tensors; float16 halves the file, and loading widens it again.

    Raises:
        SavingError: If the file cannot be written; the disk may be full.
    """
    path = Path(path)
    header = {
        "architecture": flow.architecture,
        "format": FORMAT,
        "config": dataclasses.asdict(flow.config),
        "provenance": flow.provenance if provenance is None else provenance,
    }
    tensors = {
        name: t.detach().to("cpu", dtype if t.is_floating_point() else t.dtype).contiguous()
        for name, t in flow.state_dict().items()
    }
    write_whole(path, serialise(tensors, metadata={KEY: json.dumps(header)}))  # save_file would make it private


def read(path: str | Path, overrides: dict[str, Any] | None = None) -> Flow:
    """Read a model in our format, in float32, on the CPU.

    Args:
        path: The file.
        overrides: Configuration fields to replace.

    Returns:
        The flow, in evaluation mode.

    Raises:
        CheckpointError: If the file is not ours, broken, or its tensors do not fit its configuration.
    """
    path = Path(path)
    header = read_header(path)
    try:
        config = configure(header.architecture, {**header.config, **(overrides or {})})
    except FlowError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    with torch.device("meta"):  # the configuration is from a stranger: look at shapes before allocating anything
        flow = build(header.architecture, config)
    expected = {name: tuple(t.shape) for name, t in flow.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            refuse_mismatch(path.name, expected, shapes)
            tensors = ((name, file.get_tensor(name)) for name in expected)
            state = {name: t.float() if t.is_floating_point() else t for name, t in tensors}
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} is truncated or damaged ({error}). Fetch the file again.") from error
    flow.load_state_dict(state, assign=True)
    flow.provenance = header.provenance
    return flow.eval()


def refuse_mismatch(name: str, expected: dict[str, tuple[int, ...]], came: dict[str, tuple[int, ...]]) -> None:
    """Compare tensor names and shapes.

    Args:
        name: Of the file, for the message.
        expected: Tensor name to shape.
        came: Likewise.

    Raises:
        CheckpointError: Naming up to three differences.
    """
    differences = [
        *(f"{key} is missing" for key in expected.keys() - came.keys()),
        *(f"{key} is not known" for key in came.keys() - expected.keys()),
        *(
            f"{key} is {came[key]} instead of {expected[key]}"
            for key in expected.keys() & came.keys()
            if came[key] != expected[key]
        ),
    ]
    if differences:
        shown = "; ".join(sorted(differences)[:3])
        raise CheckpointError(
            f"The tensors of {name} do not fit its configuration in {len(differences)} places: {shown}. "
            "The file is damaged, or a configuration field given for it is wrong."
        )


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise CheckpointError(f"There is no file {path.name} in {path.parent}. Check the name.")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is not a safetensors file, or it is truncated ({error}). Supported: flowcore models "
            "(.safetensors) and published checkpoints of SRFlow, Glow and Real NVP (.pth, .pt, .safetensors)."
        ) from error
