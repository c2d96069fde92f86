"""The models that come with flowcore."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .model_file import read_header

FOLDER = Path(__file__).resolve().parents[1] / "weights"
STARTER_MEMORY = "color-photos-memory"
OTHER_FILES = {"face-finder", STARTER_MEMORY}  # in the same folder, but not models


def names() -> list[str]:
    """List the names of the shipped models, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors") if file.stem not in OTHER_FILES)


def path(name: str) -> Path:
    """Return the ``.safetensors`` file of a shipped model; CheckpointError lists those that exist."""
    known = names()
    if name not in known:
        raise CheckpointError(
            f"There is no shipped model {name!r}; choose {' or '.join(known) or 'a file: none is shipped'}."
        )
    return FOLDER / f"{name}.safetensors"


def is_robust(provenance: Mapping[str, Any]) -> bool:
    """Return True if a model was trained on photographs with realistic noise and JPEG blocks, by its recipe."""
    return 'degradation = "realistic"' in str(provenance.get("recipe", ""))


def is_face_model(provenance: Mapping[str, Any]) -> bool:
    """Return True if a model was trained on faces only, by its recipe."""
    return 'name = "srflow-faces' in str(provenance.get("recipe", ""))


@cache
def robust_upscaler(scale: int, *, faces: bool) -> str | None:
    """Name the shipped model that enlarges damaged photographs, only of ``faces`` or of anything, by ``scale``."""
    headers = {name: read_header(path(name)) for name in names()}
    robust = (name for name, header in headers.items() if is_robust(header.provenance))
    fitting = (name for name in robust if is_face_model(headers[name].provenance) == faces)
    return next((name for name in fitting if headers[name].config.get("scale") == scale), None)
