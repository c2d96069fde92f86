"""The models that come with flowcore."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError

FOLDER = Path(__file__).resolve().parents[1] / "weights"
NETWORKS = {"face-finder"}  # shipped beside the models, and no flow


def names() -> list[str]:
    """List the names of the shipped models, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors") if file.stem not in NETWORKS)


def path(name: str) -> Path:
    """Return the ``.safetensors`` file of a shipped model; CheckpointError lists those that exist."""
    known = names()
    if name not in known:
        raise CheckpointError(
            f"There is no shipped model {name!r}; choose {' or '.join(known) or 'a file: none is shipped'}."
        )
    return FOLDER / f"{name}.safetensors"
