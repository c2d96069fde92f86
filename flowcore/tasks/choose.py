"""Choose for me: which shipped model is made for a photograph as damaged as this one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..checkpoints import catalog
from ..flow import Flow
from ..quality.damage import jpeg_quality, noise_level
from .runner import Runner

BLOCKY = 80  # quality of JPEG up to which blocks are told
MAX_EXAMINED = 4  # images of a batch that are looked at
MADE = "; {} is made for it."


def model_for_damaged(flow: Flow) -> str | None:
    """Name the shipped model that enlarges damaged photographs as far as an upscaler; None if it is one, or none is."""
    if catalog.is_for_damaged(flow.provenance):
        return None
    return catalog.for_damaged(flow.condition_scale)


def advise(run: Runner, flow: Flow, images: Tensor) -> None:
    """Say so where an image, (B, 3, H, W) in [0, 1], has blocks or noise and another model is made for them."""
    name = model_for_damaged(flow)
    for number, image in enumerate(images[:MAX_EXAMINED] if name else [], start=1):
        if found := describe_damage(image):
            which = f"Picture {number}" if len(images) > 1 else "This picture"
            run.notify(f"{which} has {found}" + MADE.format(name))
            return


def advised(flow: Flow, notes: Sequence[str]) -> str | None:
    """Return the model that the notes of a run with a flow recommend, if any."""
    name = model_for_damaged(flow)
    return name if name and any(note.endswith(MADE.format(name)) for note in notes) else None


def describe_damage(image: Tensor) -> str:
    """Describe the blocks and the noise of a photograph, (1 or 3, H, W) in [0, 1]; nothing of a clean one."""
    quality, noise = jpeg_quality(image), noise_level(image)
    blocks = f"JPEG blocks (about quality {quality:.0f})" if quality is not None and quality <= BLOCKY else ""
    return blocks or (f"noise (about {255 * noise:.0f}/255)" if noise else "")
