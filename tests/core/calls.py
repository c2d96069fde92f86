"""Every public function that works on pictures, on small random flows: the rows of the contracts."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from builders import build_hcflow, build_tiny, build_upscaler, random_image
from small_flows import flow as small_flow
from torch import Tensor

import flowcore
from flowcore.batch.record import Entry, RecordFile, thumbnail
from flowcore.models.identity import model_sha256
from flowcore.tasks.hints import hints_from_points
from flowcore.tasks.sample import morph, normalize_image_latents

PHOTO, OTHER = random_image(1, 3, 32, 40), random_image(1, 3, 32, 40, seed=1)
SMALL, LARGE = random_image(2, 3, 8, 12), random_image(1, 3, 32, 48)
HINTS = hints_from_points([(5, 5, "#c04020"), (20, 9, "#2040c0")], (32, 40), radius=4)
STROKE = torch.zeros(1, 1, 32, 40)
STROKE[..., 10:13, 8:30] = 1

upscaler = functools.cache(build_upscaler)
colorizer = functools.cache(lambda: build_tiny("colorizer", perturb=0.05))
rescaler = functools.cache(lambda: build_hcflow(rescaling=True, temperature=0.05))
brightener = functools.cache(lambda: build_tiny("llflow", perturb=0.02))
restorer = functools.cache(lambda: build_tiny("srflow", perturb=0.05, guide_layers=2, guide_width=4))
glow = functools.cache(lambda: build_tiny("glow", perturb=0.05, image_size=(8, 12)))
digits = partial(small_flow, "small-digits")
photo_colors = functools.cache(partial(flowcore.load, "color-photos"))


class Call(NamedTuple):
    """A task, a flow that suits it, if it takes one, and the images that it works on, if any."""

    make: Callable[[], flowcore.Flow] | None
    task: Callable[..., Any]
    image: Tensor | None = None

    def __call__(self, image: object = None, flow: object = None, **options: Any) -> list[Tensor]:
        """Run it, on other images or with another flow if they are given, and return all tensors of its result."""
        given = [self.make() if flow is None else flow] if self.make else []
        if self.image is not None:
            given.append(self.image if image is None else image)
        return tensors(self.task(*given, **options))


def tensors(made: object) -> list[Tensor]:
    """All tensors within a result, in order."""
    if isinstance(made, Tensor):
        return [made]
    if dataclasses.is_dataclass(made):
        made = [getattr(made, field.name) for field in dataclasses.fields(made)]
    made = list(made.values()) if isinstance(made, dict) else made
    return [t for part in made for t in tensors(part)] if isinstance(made, (list, tuple)) else []


def _decode(flow, image, **options):
    return flowcore.decode(flow, flowcore.encode(flow, image, notify=options.get("notify")), **options)


def _decode_colors(flow, image, **options):
    return flowcore.decode_colors(
        flow, flowcore.encode_colors(flow, image, notify=options.get("notify")), OTHER, **options
    )


def _ranked(flow, image, **options):
    return flowcore.ranked(image, SMALL[:1], "likelihood", flow, **options)


@functools.cache
def _record() -> tempfile.TemporaryDirectory:
    """A folder with a record of an enlargement, and of one that looks like it."""
    folder = tempfile.TemporaryDirectory()
    drawn = flowcore.upscale(upscaler(), SMALL[:1], seed=3, temperature=0.9)
    entry = Entry("a.png", "a.jpg", "tiny", model_sha256(upscaler()), 3, 32, 48, {}, 0.0, thumbnail(drawn))
    RecordFile(Path(folder.name) / "record").add_entries([entry._replace(source="b.jpg", seed=4), entry])
    return folder


def _trace(image, **options):
    return flowcore.trace(image, Path(_record().name) / "record", load=lambda _: upscaler(), **options)


CALLS = {
    "upscale": Call(upscaler, partial(flowcore.upscale, samples=2), SMALL[:1]),
    "upscale matched": Call(upscaler, partial(flowcore.upscale, samples=2, match_source=True), SMALL),
    "upscale in tiles": Call(upscaler, partial(flowcore.upscale, tile=32), random_image(1, 3, 40, 36)),
    "temperature_grid": Call(upscaler, partial(flowcore.temperature_grid, temperatures=[0.0, 0.6]), SMALL),
    "colorize": Call(colorizer, partial(flowcore.colorize, samples=2), PHOTO),
    "colorize by hints": Call(colorizer, partial(flowcore.colorize, samples=2, hints=HINTS, hint_steps=2), PHOTO),
    "colorize_video": Call(colorizer, partial(flowcore.colorize_video, carry=0.5), PHOTO.repeat(3, 1, 1, 1)),
    "upscale_video": Call(upscaler, flowcore.upscale_video, SMALL),
    "transfer_palette": Call(colorizer, partial(flowcore.transfer_palette, reference=OTHER), PHOTO),
    "encode_colors": Call(colorizer, flowcore.encode_colors, torch.cat([PHOTO, OTHER])),
    "decode_colors": Call(colorizer, _decode_colors, PHOTO),
    "sample": Call(glow, partial(flowcore.sample, n=3)),
    "sample digits": Call(digits, partial(flowcore.sample, n=3, labels=1, styles={"bold": 1.0}, snapped=True)),
    "encode": Call(glow, flowcore.encode, SMALL),
    "decode": Call(glow, _decode, SMALL),
    "morph": Call(glow, partial(morph, frames=3), SMALL),
    "score": Call(glow, partial(flowcore.score, samples=2), SMALL),
    "ranked": Call(upscaler, _ranked, LARGE.repeat(2, 1, 1, 1)),
    "audit": Call(upscaler, partial(flowcore.audit, source=SMALL[:1]), LARGE),
    "verify": Call(upscaler, partial(flowcore.verify, seed=3), LARGE),
    "trace": Call(None, _trace, flowcore.upscale(upscaler(), SMALL[:1], seed=3, temperature=0.9)),
    "brighten": Call(brightener, partial(flowcore.brighten, samples=2, temperature=0.8), PHOTO),
    "clean": Call(restorer, flowcore.clean, PHOTO),
    "repair": Call(upscaler, partial(flowcore.repair, mask=STROKE), PHOTO),
    "shrink": Call(rescaler, flowcore.shrink, PHOTO),
    "restore": Call(rescaler, partial(flowcore.restore, samples=2), SMALL),
    "harmonize": Call(upscaler, normalize_image_latents, LARGE),
    "remember": Call(photo_colors, flowcore.remember, random_image(2, 3, 192, 192)),
    "match_source": Call(None, lambda image, **run: flowcore.match_source(image, SMALL[:1], **run), PHOTO),
    "apply_chroma": Call(None, lambda image, **run: flowcore.apply_chroma(image, OTHER, **run), PHOTO),
    "find_faces": Call(None, flowcore.find_faces, random_image(1, 3, 40, 48)),
    "find_scratches": Call(None, flowcore.find_scratches, random_image(2, 1, 40, 48)),
}
