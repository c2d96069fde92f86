"""Which upscaler suits an image: the one for clean pictures, or the one for JPEG blocks and noise."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..engine.image_batch import ImageBatch, require_pixels
from ..errors import say
from ..flows.model import FlowModel
from ..images import files
from ..images.damage import MEASURED_SIDE, crop_middle, jpeg_quality, noise_level
from ..models import catalog

BLOCKY = 93  # highest quality of JPEG at which the model for damaged photographs is better: docs/decisions/0024
FOR_CLEAN, FOR_DAMAGED = "srflow-x4", "srflow-x4-photo"
MAX_EXAMINED = 4  # images of a batch that are examined


def upscaler_for(image: Tensor) -> str:
    """Name the shipped upscaler that suits an image: ``srflow-x4``, or ``srflow-x4-photo`` if it has damage.

    Damage is what ``srflow-x4`` makes worse, and ``srflow-x4-photo`` was trained to remove: blocks and ringing of JPEG,
    and noise. ``tasks.model_choice.describe_damage`` says which was found. The answer depends only on the pixels of the
    middle, 192x192, whatever the device.

    >>> lr = torch.rand(1, 3, 12, 16)
    >>> flowcore.upscale(flowcore.load(flowcore.upscaler_for(lr)), lr).shape
    torch.Size([1, 3, 48, 64])

    Args:
        image: ``(B, C, h, w)`` as in ``upscale``. Of several, such as the frames of a clip, four are examined, evenly
            spread, and damage of one is damage of all.

    Returns:
        The name of a shipped model, for ``load``.

    Raises:
        ImageError: If there is no image, or images have no pixels, a wrong number of channels, or values that are not
            numbers.
    """
    return FOR_DAMAGED if describe_damage(image) else FOR_CLEAN


def upscaler_for_files(paths: Sequence[Path]) -> tuple[str, str]:
    """Choose the upscaler that suits image files, of which some are examined, and describe their damage.

    Files that cannot be read count as clean; they fail when their turn comes.
    """
    for path in paths[:: math.ceil(len(paths) / MAX_EXAMINED) or 1]:
        with suppress(Exception):  # any kind: the run says what is wrong with the file
            if damage := describe_damage(files.read_middle(files.read_bytes(path), path.name, MEASURED_SIDE)):
                return FOR_DAMAGED, damage
    return FOR_CLEAN, ""


def describe_damage(image: Tensor) -> str:
    """Describe the JPEG blocks or the noise of an image, for which ``upscaler_for`` takes another model; "" if none.

    Such as "JPEG blocks (about quality 85)" or "noise (about 6/255)"; arguments and errors as in ``upscaler_for``.
    """
    require_pixels(image)
    return _find_damage(image)[1]


def _find_damage(images: Tensor) -> tuple[int, str]:
    """Return place and damage of the first image ``(B, C, H, W)`` that has any; of many, some are examined."""
    places = torch.linspace(0, len(images) - 1, min(len(images), MAX_EXAMINED)).long().unique()
    examined = ImageBatch(crop_middle(images)[places]).extended_rgb.detach().cpu().contiguous().numpy()
    for place, image in zip(places.tolist(), examined, strict=True):
        if damage := _describe(image.tobytes(), *image.shape[1:]):
            return place, damage
    return 0, ""


@lru_cache(maxsize=2 * MAX_EXAMINED)  # a model is often chosen by a picture that it then enlarges
def _describe(pixels: bytes, height: int, width: int) -> str:
    """Describe the damage of ``(3, height, width)`` in float32."""
    rgb = torch.frombuffer(bytearray(pixels), dtype=torch.float32).view(3, height, width)
    quality = jpeg_quality(rgb)
    if quality is not None and quality <= BLOCKY:
        return say("JPEG blocks (about quality {quality})", quality=f"{quality:.0f}")
    noise = noise_level(rgb)
    return say("noise (about {noise}/255)", noise=f"{255 * noise:.0f}") if noise else ""


def model_for_damaged(flow: FlowModel) -> str | None:
    """Name the shipped model for damaged photographs that enlarges as far as ``flow``, if it is another."""
    if catalog.is_robust(flow.provenance):
        return None
    return catalog.robust_upscaler(flow.condition_scale, faces=catalog.is_face_model(flow.provenance))


def notify_of_damage(flow: FlowModel, images: Tensor, notify: Callable[[str], None]) -> None:
    """Tell the caller if an image, (B, 3, H, W), has JPEG blocks or noise and another model is made for them."""
    name = model_for_damaged(flow)
    place, damage = (0, "") if name is None else _find_damage(images)
    if damage:
        which = say("Picture {number}", number=place + 1) if len(images) > 1 else say("This picture")
        notify(say("{which} has {damage}; {model} is made for it.", which=which, damage=damage, model=name))


def better_model(flow: FlowModel, images: Tensor) -> str | None:
    """Name the shipped model for damaged photographs, if ``flow`` is another and one of the images is damaged."""
    name = model_for_damaged(flow)
    return name if name and describe_damage(images) else None
