"""Clean: remove noise and JPEG artifacts from pictures, at the size that they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..engine.condition_cache import RecentlyUsed
from ..engine.image_batch import ImageBatch
from ..engine.memory import guide_bytes
from ..engine.options import RunOptions, python
from ..engine.ranges import share
from ..engine.runner import Runner, runs_with
from ..errors import FlowError, say
from ..flows.model import FlowModel
from ..images.damage import jpeg_quality
from ..images.motion import blur
from ..images.resize import downsample
from ..models.identity import fingerprint
from ..models.srflow.imdn import CompactUpscaler
from .task import Task

ROWS = 256  # pixels of the height of the parts that go through the network one after the other
KEPT = 17  # pixels: what is larger than that, such as colors and light, stays as it is
CALM, WINDOW = 0.1, 9  # share of places in which noise is measured, and pixels of the side of a place
NOISE = 3.75 / 255  # deviation of noise that equals the change that strength 0.5 allows; else its square counts
# the same for JPEG of quality 50, in 1/255; it grows with the quantization steps to the power of an exponent
OF_JPEG, EXPONENT = 7.1, 0.39
MAX_STORED = 2**28  # bytes
ADVICE = say("Clean a smaller picture, or free memory on the device.")


@dataclass(frozen=True, kw_only=True)
class CleanSettings(RunOptions):
    """Options of ``clean``."""

    strength: Annotated[
        float,
        share(
            "0 is the photograph as it is, 1 as drawn.",
            label="clean",
            help="0 changes nothing, 0.5 suits the damage that is measured, 1 is all that the network changes.",
        ),
    ] = 0.5
    store: Annotated[
        RecentlyUsed[Tensor] | None,
        python(
            "Where what the network makes of the pictures is kept, so that another strength takes no time; None for "
            "nowhere."
        ),
    ] = None


@runs_with(CleanSettings)
def clean(flow: FlowModel, image: Tensor, settings: CleanSettings) -> Tensor:
    """Remove noise and JPEG artifacts from pictures without enlarging them.

        c = downsample(guide(x), s)                   the restoring network in the model's file, back at the size of x
        d = (c - x) - blur(c - x)                     what it changes in detail; colors and light stay
        y = x + L tanh(d / L),  L = b a / (1 - a)     for the strength a and the damage b

    so that a change much larger than the damage, such as one of detail that the network takes for it, is held back. The
    damage is the mean square of d in calm places over 3.75/255, since heavy noise hides detail; or the error of JPEG at
    the quality that x shows, whichever is more.

    >>> flow = flowcore.load("srflow-x4-photo")
    >>> flowcore.clean(flow, torch.rand(1, 3, 40, 48)).shape
    torch.Size([1, 3, 40, 48])

    Args:
        flow: An upscaling model with a guide of its own: ``srflow-x4-photo`` or ``srflow-x4``.
        image: ``(B, C, H, W)`` as in ``upscale``. What is gray stays gray; alpha is kept.
        settings: The options below, by name.

    Returns:
        ``(B, C, H, W)`` float32 in [0, 1] on the device of ``image``. The same whatever the batch, since every picture
        is measured by itself.

    Raises:
        ImageError: As in ``upscale``.
        FlowError: If the model has no guide, strength is out of range, or as in ``upscale``.

    Source: Wang et al., "Real-ESRGAN" (2021), for the network; the rest is ours.
    """
    strength, store = settings.strength, settings.store
    halo = _halo(require_guide(flow))
    run = Runner(flow, settings, ADVICE, image)

    def restored(rgb: Tensor) -> Tensor:
        key = () if store is None else (run.compiled.identity, fingerprint(rgb))
        if store is not None and (kept := store.get(key)) is not None:
            with run.counting(-(-rgb.shape[-2] // ROWS) * run.compiled.guide_units):
                return kept
        parts: list[Tensor] = []
        height = rgb.shape[-2]
        for top in range(0, height, ROWS):
            first, last = max(0, top - halo), min(height, top + ROWS + halo)
            with run.counting(run.compiled.guide_units):
                made = run.compiled.make_guide(run.to_device(rgb[..., first:last, :])).to(rgb)
            parts.append(downsample(made.clamp_(0, 1), flow.condition_scale)[..., top - first : top - first + ROWS, :])
        result = torch.cat(parts, dim=-2)
        if store is not None:
            store.put(key, result, MAX_STORED)
        return result

    def task() -> Tensor:
        images = ImageBatch(image, run.notify)
        pictures = images.extended_rgb.clone()
        changed = pictures.split(1) if strength else ()
        run.expect(len(changed) * -(-pictures.shape[-2] // ROWS) * run.compiled.guide_units)
        for picture in changed:
            difference = restored(picture) - picture
            difference -= blur(difference, KEPT)
            if strength < 1:
                bound = _damage(picture, difference) * strength / (1 - strength)
                difference = bound * torch.tanh(difference / bound.clamp_min(1e-6))
            picture += difference
        return images.to_input_layout(pictures.clamp_(0, 1))

    return run.retry_on_oom(task)


def memory_to_clean(flow: FlowModel, width: int) -> int:
    """Estimate the bytes that ``clean`` works with in float32 at a width in pixels, beyond weights and pictures."""
    return guide_bytes(flow, ROWS + 2 * _halo(require_guide(flow)), width)


def require_guide(flow: FlowModel) -> CompactUpscaler:
    """Return the network of a model that cleans pictures; FlowError if there is none."""
    flow.require("upscale")
    if not isinstance(flow.guide, CompactUpscaler):
        raise FlowError("This model has no network that restores pictures, which cleans them. Load srflow-x4-photo.")
    return flow.guide


def _halo(network: CompactUpscaler) -> int:
    """Return how many pixels around a place its result depends on: one per convolution, and 4 for the shrinking."""
    return len(network.convs) + 4


def _damage(picture: Tensor, difference: Tensor) -> Tensor:
    """Compute how much of what the network changes in a picture (1, 3, H, W) is damage.

    Noise is everywhere, so its deviation is that of the change in the calmest places; detail is in few of them. JPEG
    changes calm places little, but tells its quality.
    """
    rms = blur(difference.square().mean(1, keepdim=True), WINDOW).clamp_min(0).sqrt()
    places = rms[..., :: WINDOW // 2, :: WINDOW // 2].flatten()
    noise = places.kthvalue(1 + int(CALM * (len(places) - 1))).values ** 2 / NOISE
    quality = jpeg_quality(picture[0])
    if quality is None:
        return noise
    steps = 50 / quality if quality < 50 else 2 - quality / 50  # relative to those of quality 50
    return noise.clamp_min(OF_JPEG / 255 * steps**EXPONENT)


TASK = Task(
    name="clean",
    settings=CleanSettings,
    run=clean,
    needs="upscale",
    check=require_guide,
    node="FlowcoreClean",
    model="srflow-x4-photo",
    draws=False,
)
