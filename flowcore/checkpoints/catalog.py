"""The models that come with flowcore."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError

FOLDER = Path(__file__).resolve().parents[1] / "weights"


def names() -> list[str]:
    """List the shipped models.

    Returns:
        Their names, sorted.
    """
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def path(name: str) -> Path:
    """Find a shipped model's file.

    Args:
        name: One of ``names()``.

    Returns:
        The ``.safetensors`` file.

    Raises:
        CheckpointError: If there is no such model; naming those that there are.
    """
    known = names()
    if name not in known:
        raise CheckpointError(
            f"There is no shipped model {name!r}; choose {' or '.join(known) or 'a file: none is shipped'}."
        )
    return FOLDER / f"{name}.safetensors"
