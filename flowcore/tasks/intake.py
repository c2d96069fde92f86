"""What callers pass to tasks: images, checked and converted to floats in [0, 1], and settings left to the model.

Also what is found in images: damage that another model is made for, plain borders of scans, a tint of their paper.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import catalog
from ..errors import ImageError
from ..flow import Flow
from ..images import color
from ..images.fill import extend_colors
from ..images.resize import pad_symmetric, resize
from ..models.fields import SAMPLING
from ..quality.damage import SIDE, jpeg_quality, noise_level

LARGEST = {torch.uint8: 255, torch.uint16: 65535}  # value of white in images of integers
BLOCKY = 93  # highest quality of JPEG at which the model for damaged photographs is better: docs/decisions/0024
FOR_CLEAN, FOR_DAMAGED = "srflow-x4", "srflow-x4-photo"
MAX_EXAMINED = 4  # images of a batch that are looked at
MADE = "; {} is made for it."
UNGUIDED = 0.6  # share of the guide strength in a model's file that is taken away at the bold end
PLAIN = 0.06  # how far a border's pixels are from its color, in any channel
OUTLIERS = 0.05  # share of a row or column of the border that may be further: dust, scratches
SHARP = 0.4  # share of the photograph's edge that differs from the border; a sky's does only where something stands out
SHARP_SIDES = 3  # of 4; the photograph may be as bright as the border on one
EDGE = 2  # pixels in which a border ends
INSIDE = 0.25  # least share of both sides that is photograph
BINS = 16  # of luma, for the tint
TINT = 0.012, 0.25  # deviation from the tint's curve, in chroma and relative to the tint, that noise and JPEG make
VISIBLE = 0.01  # chroma below which a tint is not worth mentioning

Inside = tuple[Any, slice, slice]  # index of the photograph in a picture with a border


def require_tensor(image: object) -> None:
    """Raise ImageError unless an image is a tensor, and say how to make one of it."""
    if isinstance(image, Tensor):
        return
    kind = f"{type(image).__module__.split('.')[0]}.{type(image).__name__}"
    how = {
        "numpy": "torch.from_numpy(array).permute(2, 0, 1)[None], of an array (H, W, C) of uint8, or floats in [0, 1]",
        "PIL": "torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None], of an RGB image",
    }.get(kind.split(".")[0], "flowcore.images.files.read(content, name).pixels, of the bytes of an image file")
    raise ImageError(f"Expected images as a tensor (B, C, H, W); got {kind}. Make one: {how}.")


def require_pixels(image: Tensor) -> None:
    """Raise ImageError for a batch without images, or images without pixels."""
    if 0 in image.shape:
        raise ImageError(
            f"The batch is empty or an image has no pixels, {tuple(image.shape)}. Pass at least one image."
        )


def validate_image(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Check images that are passed to a task: ``(B, 3, H, W)`` float32 in [0, 1], and alpha ``(B, 1, H, W)`` if any."""
    require_tensor(image)
    if image.ndim != 4 or image.shape[1] not in (1, 3, 4):
        raise ImageError(f"Expected images of shape (B, C, H, W), C = 1, 3 or 4; got {tuple(image.shape)}.")
    image = to_float(image, torch.float32).clamp(0, 1)
    return image[:, :3].expand(-1, 3, -1, -1), image[:, 3:] if image.shape[1] == 4 else None


def visible_image(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Check images as ``validate_image`` does, and continue the colors of those with alpha where they are transparent.

    So that what lies under alpha 0, mostly black, is not seen at the edges of what is made of them.
    """
    rgb, alpha = validate_image(image)
    return rgb if alpha is None else extend_colors(rgb, alpha), alpha


def with_alpha(pictures: Tensor, alpha: Tensor | None) -> Tensor:
    """Append the alpha of B images, if they have any, to pictures ``(B * N, 3, H, W)``, by a bicubic resize."""
    if alpha is None:
        return pictures
    alpha = resize(alpha, *pictures.shape[-2:]).clamp(0, 1)
    return torch.cat([pictures, alpha.repeat_interleave(len(pictures) // len(alpha), 0)], dim=1)


def to_float(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert images of at least one pixel, uint8, uint16 or finite float in [0, 1], to a float type; no clamping."""
    require_pixels(image)
    if image.dtype not in LARGEST and not image.is_floating_point():
        raise ImageError(f"Expected images of uint8 or uint16, or float in [0, 1]; got {image.dtype}. Convert them.")
    image = image.to(dtype) / LARGEST[image.dtype] if image.dtype in LARGEST else image.to(dtype)
    wrong = int((~image.isfinite()).sum())
    if wrong:
        raise ImageError(
            f"The image holds {wrong} values that are not finite numbers (NaN or infinity). Fix the node or file "
            "that it comes from."
        )
    refuse_integer_range(image)
    return image


def refuse_integer_range(image: Tensor) -> None:
    """Raise ImageError for floats that look like [0, 255] or [0, 65535]: none negative, the mean above 1."""
    low, high = (float(value) for value in image.aminmax())
    if low >= 0 and 4 < high <= 65536 and float(image.mean()) > 1:
        largest = 255 if high <= 256 else 65535  # bfloat16 rounds up
        raise ImageError(
            f"The image's floats go from {low:g} to {high:g}; expected [0, 1], and these look like [0, {largest}]. "
            f"Divide them by {largest}, or convert them to uint{8 if largest == 255 else 16}."
        )


def gray_images(image: Tensor, rgb: Tensor, notify: Callable[[str], None]) -> list[bool]:
    """Tell which images, as passed and as validated, have three equal channels: what is made of them is gray."""
    gray = [bool((one == one[:1]).all()) for one in rgb]
    if image.shape[1] != 1 and any(gray):
        which, them = ("The image is", "it") if len(gray) == 1 else (f"{sum(gray)} of {len(gray)} images are", "them")
        notify(f"{which} gray, in three equal channels, and so is what is made of {them}.")
    return gray


def with_channels_of(image: Tensor, pictures: Tensor, gray: list[bool]) -> Tensor:
    """Make pictures ``(B * N, 3, H, W)`` of gray images exactly gray, in place, or of one channel if they have one."""
    if image.shape[1] == 1:
        return pictures[:, :1].contiguous()
    for is_gray, made in zip(gray, pictures.unflatten(0, (len(gray), -1)), strict=True):
        if is_gray:
            made[:, 1:] = made[:, :1]
    return pictures


def model_for_damaged(flow: Flow) -> str | None:
    """Name the shipped model for damaged photographs that enlarges as far as ``flow``, if it is another."""
    if catalog.is_for_damaged(flow.provenance):
        return None
    return catalog.for_damaged(flow.condition_scale, faces=catalog.is_of_faces(flow.provenance))


def advise(flow: Flow, images: Tensor, notify: Callable[[str], None]) -> None:
    """Tell the caller if an image, (B, 3, H, W), has JPEG blocks or noise and another model is made for them."""
    name = model_for_damaged(flow)
    for number, image in enumerate(images[:MAX_EXAMINED] if name else [], start=1):
        if found := describe_damage(image[None]):
            which = f"Picture {number}" if len(images) > 1 else "This picture"
            notify(f"{which} has {found}" + MADE.format(name))
            return


def advised(flow: Flow, notes: Sequence[str]) -> str | None:
    """Return the model that the notes of a run with a flow recommend, if any."""
    name = model_for_damaged(flow)
    return name if name and any(note.endswith(MADE.format(name)) for note in notes) else None


def upscaler_for(image: Tensor) -> str:
    """Name the shipped upscaler that suits an image: ``srflow-x4``, or ``srflow-x4-photo`` if it has damage.

    Damage is what ``srflow-x4`` makes worse, and ``srflow-x4-photo`` was trained to remove: blocks and ringing of JPEG,
    and noise. ``tasks.intake.describe_damage`` says which was found. The answer depends on the pixels of the middle
    alone, 192x192, whatever the device.

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


def describe_damage(image: Tensor) -> str:
    """Describe the JPEG blocks or the noise of an image, for which ``upscaler_for`` takes another model; "" if none.

    Such as "JPEG blocks (about quality 85)" or "noise (about 6/255)"; arguments and errors as in ``upscaler_for``.
    """
    require_tensor(image)
    require_pixels(image)
    spread = torch.linspace(0, len(image) - 1, min(len(image), MAX_EXAMINED)).long().unique()
    top, left = (max(0, (side - SIDE) // 2) for side in image.shape[-2:])
    for rgb in visible_image(image[..., top : top + SIDE, left : left + SIDE][spread])[0]:
        quality, noise = jpeg_quality(rgb), noise_level(rgb)
        if quality is not None and quality <= BLOCKY:
            return f"JPEG blocks (about quality {quality:.0f})"
        if noise:
            return f"noise (about {255 * noise:.0f}/255)"
    return ""


def resolve(flow: Flow, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a model's file states where settings, arguments of a task by name, are None."""
    return {**settings, **left_to_model(flow, settings)}


def left_to_model(flow: Flow, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Find what the file states for settings that are None; with a coherence its scales, with a guide its match."""
    own = {name: getattr(flow.config, name) for name in SAMPLING if hasattr(flow.config, name)}
    if "temperatures" in own:
        own["temperature"], own["detail"] = own.pop("temperatures")
    if settings.get("latents") is not None or settings.get("reference") is not None:
        own["saturation"] = 1.0
    guided = flow.guide is not None or settings.get("guide") is not None
    own["guide_strength"] = own.get("guide_strength", 0.5) if guided else 0.0
    if settings.get("boldness") is not None and "temperature" in own:
        own |= from_faithful_to_bold(own, settings["boldness"])
    left = {name: float(own[name]) for name, value in settings.items() if value is None and name in own}
    if "guide_strength" in settings and guided and "guide_match" in own:
        left["guide_match"] = own["guide_match"]
    return left | {name: list(own[name]) for name in ("coherence_scales",) if "coherence" in settings and name in own}


def from_faithful_to_bold(own: Mapping[str, Any], boldness: float) -> dict[str, Any]:
    """Move temperature and guide strength along one line: 0 invents nothing, 0.5 is what a file states, 1 the boldest.

    Up to the middle the temperature rises, above which it would draw specks; beyond, less of the guide is kept.
    """
    guided = 1 - UNGUIDED * max(0.0, 2 * boldness - 1)
    return {
        "temperature": own["temperature"] * min(1.0, 2 * boldness),
        "guide_strength": own["guide_strength"] * guided,
    }


def find_border(rgb: Tensor) -> Inside | None:
    """Find a plain border on all four sides of a scan ``(1, 3, H, W)``; a bird in a plain sky has none."""
    height, width = rgb.shape[-2:]
    if min(height, width) < 16:
        return None
    ring = torch.cat([rgb[0, :, 0], rgb[0, :, -1], rgb[0, :, :, 0], rgb[0, :, :, -1]], dim=1)
    differs = (rgb[0] - ring.median(1).values[:, None, None]).abs().amax(0) > PLAIN  # (H, W)
    spans: list[slice] = []
    for axis, side in ((1, height), (0, width)):
        inner = (differs.float().mean(axis) > OUTLIERS).nonzero()[:, 0].tolist() or [0]
        start, end = inner[0], inner[-1] + 1
        if min(start, side - end) < EDGE or end - start < max(2 * EDGE + 1, INSIDE * side):
            return None
        spans.append(slice(start, end))
    photograph = differs[tuple(spans)]
    edges = photograph[EDGE], photograph[-1 - EDGE], photograph[:, EDGE], photograph[:, -1 - EDGE]
    if sum(float(edge.float().mean()) >= SHARP for edge in edges) < SHARP_SIDES:
        return None
    rows, columns = (slice(span.start + EDGE, span.stop - EDGE) for span in spans)
    return ..., rows, columns


def fill_borders(images: Tensor, inside: Sequence[Inside | None]) -> Tensor:
    """Continue each photograph symmetrically over its border; those without one stay as they are."""
    if not any(inside):
        return images
    height, width = images.shape[-2:]
    filled = list(images.split(1))
    for number, i in enumerate(inside):
        if i is not None:
            _, rows, columns = i
            border = (columns.start, width - columns.stop, rows.start, height - rows.stop)
            filled[number] = pad_symmetric(filled[number][i], border)
    return torch.cat(filled)


def clear_borders(chroma: Tensor, inside: Sequence[Inside | None]) -> Tensor:
    """Set the border of each photograph to gray; those without one stay as they are."""
    if not any(inside):
        return chroma
    result = torch.zeros_like(chroma)
    for cleared, one, i in zip(result, chroma, inside, strict=True):
        where = ... if i is None else i
        cleared[where] = one[where]
    return result


def is_tinted(rgb: Tensor) -> bool:
    """Tell whether a picture ``(1, 3, H, W)`` has one tint, such as sepia: its chroma is a function of luma alone."""
    y, chroma = color.split(rgb)
    bins = (y * BINS).long().clamp(0, BINS - 1).flatten()  # (HW,)
    values = chroma[0].flatten(1).T  # (HW, 2)
    sums = torch.zeros(BINS, 2).to(values).index_add_(0, bins, values)
    counts = torch.zeros(BINS).to(values).index_add_(0, bins, torch.ones_like(values[:, 0]))
    curve = (sums / counts.clamp_min(1)[:, None])[bins]
    tint, deviation = (float(x.square().sum(1).mean().sqrt()) for x in (curve, values - curve))
    return tint > VISIBLE and deviation <= min(TINT[0], TINT[1] * tint)
