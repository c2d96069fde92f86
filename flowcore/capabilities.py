"""What models can do: the tasks that they are made for, and what their condition is encoded from."""

from dataclasses import dataclass
from typing import Literal

SourceKind = Literal["none", "low_resolution", "luma", "labels", "low_light"]
Task = Literal["upscale", "colorize", "sample", "rescale", "brighten"]
SUITABLE_MODELS: dict[Task, str] = {
    "upscale": "a model that enlarges images, such as srflow-x4",
    "colorize": "a colorizer, such as color-photos",
    "sample": "a model that makes images from latents alone, such as glow-photos",
    "rescale": "a model that shrinks images and restores them, such as rescale-x4",
    "brighten": "a low-light model, such as brighten-photos",
}
UNGUIDED = "Guidance is for models with labels that were made for it, such as TarFlow"


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a model can do and what it needs, as stated by its builder. Any flow encodes, decodes and scores."""

    source: SourceKind  # what its condition is encoded from; "luma" has hints, too, "low_light" is a dark photograph
    tasks: frozenset[Task]  # that it is made for
    floats_per_pixel: float = 0.0  # peak working memory of its networks, per pixel of the image; 0 if negligible
    guided: bool = False  # whether decoding takes classifier-free guidance; see ``condition.Guidance``
