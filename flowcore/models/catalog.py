"""The models that come with flowcore."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..flows.prior import height_and_width
from ..flows.stated import Facts
from .model_file import Header, is_flowcore_file, read_header
from .registry import configure

FOLDER = Path(__file__).resolve().parents[1] / "weights"
STARTER_MEMORY = "color-photos-memory"
OTHER_FILES = {"face-finder", "scratch-finder", STARTER_MEMORY, "README"}  # files of the same folder that are no models


def names() -> list[str]:
    """List the names of the shipped models whose files are here, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors") if file.stem not in OTHER_FILES)


def is_shipped(name: str) -> bool:
    """Tell whether a model is a shipped one, even if its file is missing: each has a card."""
    return name in {file.stem for file in FOLDER.glob("*.md")} - OTHER_FILES or name in names()


def headers() -> dict[str, Header]:
    """Read the headers of the shipped models, except damaged ones: name to header."""
    return {name: read_header(path(name)) for name in names() if is_flowcore_file(path(name))}


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A shipped model, as the header of its file describes it.

    Attributes:
        name: For ``load``, and wherever a flow is expected.
        tasks: What it is made for, such as "upscale".
        architecture: Its registered name.
        scale: Factor from the sides of a picture to those of its result; None where it has none.
        image_size: Height and width that it was made for; None for any.
        n_bits: Bits per subpixel of the images that a density model is a model of; None for others.
        license: Of the weights.
    """

    name: str
    tasks: tuple[str, ...]
    architecture: str
    scale: int | None
    image_size: tuple[int, int] | None
    n_bits: int | None
    license: str


def models() -> list[ModelInfo]:
    """Describe the shipped models whose files are here and whole, sorted by name; no tensor is read.

    >>> [info.name for info in flowcore.models() if "colorize" in info.tasks]
    ['color-photos']
    """
    infos: list[ModelInfo] = []
    for name, header in headers().items():
        facts = Facts.of(configure(header.architecture, header.config))
        infos.append(
            ModelInfo(
                name=name,
                tasks=tuple(sorted(facts.tasks)),
                architecture=header.architecture,
                scale=facts.scale,
                image_size=None if facts.image_size is None else height_and_width(facts.image_size),
                n_bits=facts.n_bits,
                license=str(header.provenance.get("licence", "unknown")),
            )
        )
    return infos


def path(name: str) -> Path:
    """Return the ``.safetensors`` file of a shipped model; CheckpointError lists those that exist."""
    known = names()
    if name not in known:
        if is_shipped(name):
            raise unusable(name, "is missing")
        raise CheckpointError(
            f"There is no shipped model {name!r}; choose {' or '.join(known) or 'a file: none is shipped'}."
        )
    return FOLDER / f"{name}.safetensors"


def unusable(name: str, problem: str) -> CheckpointError:
    """Make the error for a shipped model whose file is missing or damaged, which says how to fetch it."""
    return CheckpointError(
        f"The file of the shipped model {name} {problem}. Fetch it: run git lfs pull in {FOLDER.parents[1]}, or "
        "install flowcore again."
    )


def is_robust(provenance: Mapping[str, Any]) -> bool:
    """Return True if a model was trained on photographs with realistic noise and JPEG blocks, by its recipe."""
    return 'degradation = "realistic"' in str(provenance.get("recipe", ""))


def is_face_model(provenance: Mapping[str, Any]) -> bool:
    """Return True if a model was trained on faces only, by its recipe."""
    return 'name = "srflow-faces' in str(provenance.get("recipe", ""))


@cache
def robust_upscaler(scale: int, *, faces: bool) -> str | None:
    """Name the shipped model that enlarges damaged photographs, only of ``faces`` or of anything, by ``scale``."""
    shipped = headers()
    robust = (name for name, header in shipped.items() if is_robust(header.provenance))
    fitting = (name for name in robust if is_face_model(shipped[name].provenance) == faces)
    return next((name for name in fitting if shipped[name].config.get("scale") == scale), None)
