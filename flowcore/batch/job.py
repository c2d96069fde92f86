"""What is done to one picture file out of many: a file's bytes in, the bytes of its results out.

A ``Work`` says it in values that can be sent to another machine; a ``Worker`` has the model loaded and does it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ..checkpoints.latents_file import model_sha256
from ..evaluation.image_set import read_sized
from ..flow import Flow
from ..images import files
from ..images.files import Format, Photograph
from ..provenance import KEY, Recipe, fingerprint, is_plain, source
from ..tasks import Progress
from ..tasks.colorize import colorize, transfer_palette
from ..tasks.hints import Hints, combine, hints_from_points, palette_from, parse_points
from ..tasks.score import score
from ..tasks.upscale import upscale
from ..tasks.video import colorize_video

Command = Literal["upscale", "colorize", "score"]
NODES = {"upscale": "FlowcoreUpscale", "colorize": "FlowcoreColorize"}  # which would make the same picture
NO_MATTER = {"tile"}  # settings that change memory and time, not the picture


@dataclass(frozen=True, kw_only=True)
class Work:
    """What to do to every picture.

    Attributes:
        command: Which task.
        model: What the model is called, for the recipe.
        settings: Of the task, by their names there; of hints their texts ("points"), "radius" and "lock", of palettes
            their "colours". "frames" is "video" for a clip whose frames carry on from each other.
        seed: Of the first sample.
        samples: Results per picture; for ``score``, draws.
        reference: A picture file whose palette is taken over, for ``colorize``.
        format: Of the results.
        bits: Likewise.
        quality: Likewise.
    """

    command: Command
    model: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0
    samples: int = 1
    reference: bytes | None = None
    format: Format = "png"
    bits: int = 8
    quality: int | None = None

    @property
    def carries(self) -> bool:
        """Whether a result depends on the pictures before."""
        return self.settings.get("frames") == "video" and bool(self.settings.get("carry"))

    def ids(self, picture: bytes, model: str) -> list[str]:
        """Name the results of a picture, so that they can be told from those of other wishes.

        Args:
            picture: The file.
            model: Fingerprint of the model.

        Returns:
            32 hexadecimal digits for each result.
        """
        said = {name: value for name, value in self.settings.items() if name not in NO_MATTER}
        said |= {"command": self.command, "model": model, "format": self.format, "bits": self.bits}
        said |= {"quality": self.quality, "picture": hashlib.sha256(picture).hexdigest()}
        said |= {"reference": None if self.reference is None else hashlib.sha256(self.reference).hexdigest()}
        seeds = range(self.seed, self.seed + self.samples)
        wishes = [{**said, "seed": self.seed, "samples": self.samples}] if self.command == "score" else None
        wishes = wishes or [{**said, "seed": seed} for seed in seeds]
        return [hashlib.sha256(json.dumps(wish, sort_keys=True).encode()).hexdigest()[:32] for wish in wishes]


class Worker:
    """Does a work, with the model in memory."""

    def __init__(self, work: Work, flow: Flow) -> None:
        """Take the model.

        Args:
            work: What to do.
            flow: The model.
        """
        self.work, self.flow, self.model_sha256 = work, flow, model_sha256(flow)
        self._reference = None if work.reference is None else files.read(work.reference, "the reference")
        self._before: list[Tensor] = []  # what the last frame of the clip has left
        self._clip: object = None

    def __call__(
        self,
        picture: bytes,
        name: str,
        clip: object = None,
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> list[bytes]:
        """Do it.

        Args:
            picture: The file.
            name: What to call it when something is wrong.
            clip: Of a video, what is the same for all frames of a clip.
            progress: See the tasks.
            notify: See the tasks.

        Returns:
            A file per sample; for ``score``, one row as JSON.
        """
        ids = self.work.ids(picture, self.model_sha256)
        if self.work.command == "score":
            return [json.dumps({**self._score(picture, name), "id": ids[0]}).encode()]
        photograph = files.read(picture, name)
        self._check_format(photograph)
        if self.work.command == "upscale":
            pictures = self._upscale(photograph, progress, notify)
        else:
            pictures = self._colorize(photograph, clip, progress, notify)
        settings = {key: value for key, value in self.work.settings.items() if is_plain(value)}
        recipe = Recipe(
            node_id="command",
            node=NODES[self.work.command],
            model=self.work.model,
            model_sha256=self.model_sha256,
            architecture=self.flow.architecture,
            temperature=self._temperature(),
            seed=self.work.seed,
            samples=self.work.samples,
            settings=settings,
            sources={"image": source(photograph.pixels)},
            pictures=tuple(fingerprint((result * 255).round().byte()) for result in pictures),
        )
        text = {KEY: json.dumps([recipe.to_json()])}
        kept, work = photograph.kept, self.work
        options: dict[str, Any] = {"format": work.format, "bits": work.bits, "quality": work.quality, "text": text}
        return [files.encode(result, kept, unique_id=id, **options) for result, id in zip(pictures, ids, strict=True)]

    def _check_format(self, photograph: Photograph) -> None:
        """Refuse before the work what could not be saved after it."""
        work, alpha = self.work, photograph.pixels.shape[1] == 4
        files.check_format(work.format, work.bits, work.quality, alpha=alpha)

    def _temperature(self) -> float:
        given = self.work.settings.get("temperature")
        return float(self.flow.config.temperatures[0] if given is None else given)

    def _upscale(
        self, photograph: Photograph, progress: Progress | None, notify: Callable[[str], None] | None
    ) -> Tensor:
        return upscale(
            self.flow,
            photograph.pixels,
            seed=self.work.seed,
            samples=self.work.samples,
            progress=progress,
            notify=notify,
            **self.work.settings,
        )

    def _colorize(
        self, photograph: Photograph, clip: object, progress: Progress | None, notify: Callable[[str], None] | None
    ) -> Tensor:
        wishes = dict(self.work.settings)
        image = photograph.pixels
        hints = hints_of(wishes, (image.shape[-2], image.shape[-1]))
        wishes |= {"seed": self.work.seed, "hints": hints, "progress": progress, "notify": notify}
        if wishes.pop("frames", "photographs") == "video":
            clip = (clip, tuple(image.shape))  # frames of another size are those of another clip
            if clip != self._clip:
                self._clip = clip
                self._before.clear()
            return colorize_video(self.flow, image, before=self._before, **wishes)
        wishes.pop("carry", None)
        strength = wishes.pop("strength", 1.0)
        wishes["samples"] = self.work.samples
        if self._reference is None:
            return colorize(self.flow, image, **wishes)
        return transfer_palette(self.flow, image, self._reference.pixels, strength=strength, **wishes)

    def _score(self, picture: bytes, name: str) -> dict[str, Any]:
        result = score(
            self.flow,
            read_sized(self.flow, io.BytesIO(picture), name)[None],
            samples=self.work.samples,
            seed=self.work.seed,
            **self.work.settings,
        )
        corrected = result.complexity_corrected
        return {
            "bits_per_dim": float(result.bits_per_dim),
            "complexity_corrected": None if corrected is None else float(corrected),
            "per_level": result.per_level[0].tolist(),
            "notes": list(result.notes),
        }


def hints_of(settings: dict[str, Any], size: tuple[int, int]) -> Hints | None:
    """Take the wishes for colours out of settings.

    Args:
        settings: See ``Work``; they lose "points", "radius", "lock" and "colours".
        size: Height and width of the image.

    Returns:
        The hints; None if there are none.
    """
    texts: Sequence[str] = settings.pop("points", ())
    radius, lock = settings.pop("radius", 8.0), settings.pop("lock", False)
    colours: Sequence[str] = settings.pop("colours", ())
    points = [point for text in texts for point in parse_points(text)]
    return combine(
        hints_from_points(points, size, radius=radius, lock=lock) if points else None,
        Hints(coverage=None, chroma=None, palette=palette_from(colours), lock=False) if colours else None,
    )
