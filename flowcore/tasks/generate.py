"""Generate: images out of nothing but a seed, and images through their latents: exact, editable, and back.

    seed -> latents -> image          sample
    image -> latents -> image         encode, decode, reconstruct
    image -> latents -> other image   style_transfer, content_transfer, apply_style

What is done to latents in between is in ``flowcore/latents.py``.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..condition import Condition, MultiScaleFeatures
from ..device import is_out_of_memory, require_full_precision
from ..errors import ConditionError, FlowError, ImageError, ShapeError
from ..flow import Flow
from ..images.files import image_files
from ..inference.plan import Plan, planned
from ..latents import Direction, Per, add, attribute_direction, normalise, scale
from ..likelihood import quantisation, rows, snap, to_integers
from ..prior import sample_latents
from . import Cancelled, Precision, Progress, images_at_once, layers, overflow, plan_for, upscale, watched
from .runner import retry_on_oom

Labels = int | Sequence[int] | Tensor

log = logging.getLogger("flowcore")

GUARD_REACH = 100.0  # from 0.5; whoever asks for wild latents may have wild images, but no infinities
SMALLER = "Choose a smaller size (width, height), ask for fewer samples, or free memory on the device."
TEMPER = 0.15  # how much of a temperature messiness is: 2 units are a factor of 1.35


@retry_on_oom(SMALLER)
@torch.no_grad()
def sample(
    flow: Flow,
    n: int,
    *,
    size: int | tuple[int, int] | None = None,
    temperature: float | Sequence[float] = 0.7,
    seed: int = 0,
    labels: Labels | None = None,
    styles: Mapping[str, float | Sequence[float]] | None = None,
    snapped: bool = False,
    batch: int | None = None,
    precision: Precision = "float32",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Tensor:
    """Make images out of noise. Where the model overflows, they are drawn calmer, see ``guard``.

    Args:
        flow: An unconditional model, or one that is conditioned on labels.
        n: Number of images.
        size: Height and width, or the side of a square; None for the size that the model was made for.
        temperature: Standard deviation of the latents, >= 0: one, or one per level, finest first. 0 is calm, 1 the
            model's own spread.
        seed: Image i is made from ``seed + i``, whatever n and the batch.
        labels: For conditioned models what to show: one label for all images, or one per image; or weights of the
            labels, ``(n or 1, classes)``.
        styles: Name to strength, for models that carry styles; see ``apply_style``.
        snapped: Whether to take off the dequantization noise that a model draws with an image; see
            ``likelihood.snap``.
        batch: Images at once; None or 0 chooses by their size. Changes memory and time, not the images (but for
            rounding).
        precision: Of conditioners; the flow itself stays in float32. See ``upscale``. ``decode`` of the same latents
            gives the same images in float32 only.
        progress: Called with ``(done, total, preview)``; a preview with every finished image.
        cancelled: Asked before every network layer; returns True (or raises) to stop.
        notify: Called with a sentence when something is done otherwise than asked (precision, temperature where the
            model overflows); None logs it.

    Returns:
        ``(n, C, H, W)`` float32 in [0, 1], on the CPU.

    Raises:
        FlowError: If the model makes images from an image, an argument is out of its range, or the size is missing.
        ConditionError: If labels are missing, superfluous, or not as many as images.
        ShapeError: If the model cannot make that size.
        Cancelled: If stopped.
    """
    if flow.architecture == "srflow":
        raise FlowError(
            "An SRFlow makes images from a small image, not from nothing. Use flowcore.upscale(flow, image, samples=n)."
        )
    device, dtype = _home(flow)
    height, width = _size(flow, size)
    latents = sample_latents(flow.latent_shapes(height, width), n, temperature, seed)
    if styles:
        latents = apply_style(flow, [z.to(device) for z in latents], styles)
    wanted = _labels(flow, labels, n)
    result = torch.empty((n, flow.channels, height, width), dtype=torch.float32, device="cpu")
    plan = plan_for(flow, precision, notify or log.warning)
    meter = _Meter(plan, n, progress, cancelled)
    repairs = overflow.Repairs()

    def some(start: int, stop: int) -> None:
        cond = None if wanted is None else _told(flow, wanted[start:stop])
        pictures = _guarded(plan, [z[start:stop].to(device, dtype) for z in latents], cond, start, repairs)
        pictures = pictures.to("cpu", torch.float32)
        result[start:stop] = (snap(flow, pictures) if snapped else pictures).clamp(0, 1)
        meter.finish(result[start:stop])

    _run(plan, n, batch or images_at_once(height, width), meter, some, notify)
    _report(repairs, result, notify)
    return result


@retry_on_oom(SMALLER)
@torch.no_grad()
def encode(
    flow: Flow,
    image: Tensor,
    cond: Condition | None = None,
    *,
    batch: int | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
) -> list[Tensor]:
    """Find the latents of images, exactly: what ``decode`` makes of them is the image again, up to rounding.

    Runs in the flow's own precision, whatever autocast is in force: in low precision the way back would miss.

    Args:
        flow: The model.
        image: ``(B, C, H, W)`` of a size that the model takes: float in [0, 1], passed on as it is, or uint8, divided
            by 255.
        cond: From ``flow.encode_condition``, of one image or of as many as there are; None for unconditional models.
        batch: Images at once; None or 0 chooses by their size.
        progress: Called with ``(done, total)``.
        cancelled: Asked before every network layer; returns True (or raises) to stop.
        notify: Called with a sentence when memory runs out and less is done at once; None logs it.

    Returns:
        Latents, finest first, float32 (float64 if the flow is), on the device of the image.

    Raises:
        ImageError: If there are no pixels, or values that are not finite numbers or have no finite latents.
        ShapeError: If the model does not take images of that shape.
        ConditionError: If the condition is missing, superfluous, or not of as many images.
        PrecisionError: If the flow was brought into a low precision.
        Cancelled: If stopped.
    """
    pixels = _pixels(flow, image)
    return _encode(flow, pixels, cond, batch, _Meter(planned(flow), len(pixels), progress, cancelled), notify)


@retry_on_oom(SMALLER)
@torch.no_grad()
def decode(
    flow: Flow,
    latents: Sequence[Tensor],
    cond: Condition | None = None,
    *,
    batch: int | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Tensor:
    """Turn latents into images.

    Runs in the flow's own precision, whatever autocast is in force. Where the model overflows, what the latents mean is
    drawn calmer, see ``guard``; everywhere else this is the exact inverse of ``encode``.

    Args:
        flow: The model.
        latents: Finest first, each ``(B, C_l, H_l, W_l)``, as ``encode`` returned them.
        cond: As in ``encode``.
        batch: Images at once; None or 0 chooses by their size.
        progress: Called with ``(done, total, preview)``; a preview with every finished image.
        cancelled: Asked before every network layer; returns True (or raises) to stop.
        notify: Called with a sentence when the guard had to help; None logs it.

    Returns:
        ``(B, C, H, W)``, not clamped, float32 (float64 if the flow is), on the device of the latents.

    Raises:
        ShapeError: If the latents are not of this model.
        ConditionError: If the condition is missing, superfluous, or not of as many images.
        PrecisionError: If the flow was brought into a low precision.
        Cancelled: If stopped.
    """
    levels = _levels(latents)
    _home(flow)  # refuses a low precision
    meter = _Meter(planned(flow), levels[0].shape[0], progress, cancelled)
    return _decode(flow, levels, cond, batch, meter, notify)


@retry_on_oom(SMALLER)
@torch.no_grad()
def reconstruct(
    flow: Flow,
    image: Tensor,
    cond: Condition | None = None,
    *,
    batch: int | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Send images through their latents and back, and measure what is lost: nothing, up to rounding.

    Args:
        flow: The model.
        image: As in ``encode``.
        cond: As in ``encode``.
        batch: Images at once; None or 0 chooses by their size.
        progress: Called with ``(done, total, preview)``; a preview with every finished image.
        cancelled: Asked before every network layer; returns True (or raises) to stop.

    Returns:
        The images again, as ``decode`` returns them; and per image the largest absolute error, ``(B,)``. An error of
        1/510 is half an 8-bit step: up to there, not one pixel changes.

    Raises:
        FlowError: As in ``encode`` and ``decode``.
        Cancelled: If stopped.
    """
    pixels = _pixels(flow, image)
    meter = _Meter(planned(flow), 2 * len(pixels), progress, cancelled)
    again = _decode(flow, _encode(flow, pixels, cond, batch, meter), cond, batch, meter)
    return again, (again - pixels).abs().flatten(1).amax(1)


def dequantized_image(flow: Flow, image: Tensor, *, seed: int = 0) -> Tensor:
    """Give an image the noise of one bin, as those that the model was trained on have it.

    A model of few bits has never seen a pixel that lies exactly on a grey level: the black around a digit, say, has
    latents far from anything typical, and what is made of them under another label falls apart. ``likelihood.snap``
    takes the noise off again.

    Args:
        flow: The model.
        image: As in ``encode``.
        seed: Image i is given the noise of ``seed + i``.

    Returns:
        ``(B, C, H, W)``, float32 (float64 if the flow is), on the device of the image.

    Raises:
        ImageError: As in ``encode``.
    """
    pixels = _pixels(flow, image)
    bins = quantisation(flow)
    noise = [
        torch.rand(pixels.shape[1:], generator=torch.Generator("cpu").manual_seed((seed + i) % 2**64))
        for i in range(len(pixels))
    ]
    return bins.place(to_integers(pixels, bins.n_bits)[0], torch.stack(noise).to(pixels))


@retry_on_oom(SMALLER)
@torch.no_grad()
def style_transfer(
    flow: Flow,
    image: Tensor,
    label: Labels,
    labels: Labels,
    *,
    seed: int | None = 0,
    batch: int | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Show other things in the style of an image: encode it with its own label, decode the same latents with others.

    In a model that is conditioned on labels the latents hold everything but the label: of a digit its stroke, slant and
    width.

    Args:
        flow: A model that is conditioned on labels.
        image: As in ``encode``.
        label: What the image shows: one label, or one per image.
        labels: What to show instead.
        seed: Of the noise that the image is given first, see ``dequantized_image``; the result is free of it. None
            encodes the image as it is, and leaves the results as they come.
        batch: Images at once; None or 0 chooses by their size.
        progress: Called with ``(done, total, preview)``; a preview with every finished image.
        cancelled: Asked before every network layer; returns True (or raises) to stop.

    Returns:
        ``(B * number of labels, C, H, W)`` in [0, 1], on the device of the image: all labels of image 0, then of image
        1.

    Raises:
        ConditionError: If the model is not conditioned on labels, or a label does not exist.
        FlowError: As in ``encode``.
        Cancelled: If stopped.

    Source: Ardizzone et al., "Guided Image Generation with Conditional Invertible Neural Networks", section 4.1.
    """
    pixels = _pixels(flow, image) if seed is None else dequantized_image(flow, image, seed=seed)
    own = _labels(flow, label, len(pixels))
    others = _labels(flow, labels, None)
    assert own is not None  # models without labels have been refused
    assert others is not None
    meter = _Meter(planned(flow), len(pixels) * (1 + len(others)), progress, cancelled)
    latents = _encode(flow, pixels, _told(flow, own), batch, meter)
    repeated = [z.repeat_interleave(len(others), 0) for z in latents]
    cond = _told(flow, torch.cat([others] * len(pixels)))
    pictures = _decode(flow, repeated, cond, batch, meter)
    return pictures.clamp(0, 1) if seed is None else snap(flow, pictures)


@retry_on_oom(SMALLER)
@torch.no_grad()
def content_transfer(
    flow: Flow,
    edited: Tensor,
    lr: Tensor,
    *,
    strength: float = 1.0,
    per: Per = "level",
    window: int = 9,
    batch: int | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Make an edited image look as if it had never been edited, with an SRFlow.

    The edited HR image (something pasted in, drawn over, or restored badly) is encoded under the LR image of what the
    result shall be; its latents are brought to the statistics that the model expects and decoded under the same LR
    image. The LR image holds the colours and shapes, the latents the pasted detail. Without normalisation, strength 0,
    nothing would change: a flow is a bijection.

    Args:
        flow: An SRFlow.
        edited: HR images, ``(B, 3, s * h, s * w)``, as in ``encode``.
        lr: LR images of the target, ``(B or 1, 3, h, w)``, float in [0, 1] or uint8.
        strength: How far to normalise, in [0, 1]; see ``latents.normalise``.
        per: Over what the statistics are taken; see ``latents.normalise``.
        window: Side of the local window; see ``latents.normalise``.
        batch: Images at once; None or 0 chooses by their size.
        progress: Called with ``(done, total, preview)``; a preview with every finished image.
        cancelled: Asked before every network layer; returns True (or raises) to stop.

    Returns:
        ``(B, 3, s * h, s * w)`` in [0, 1], on the device of ``edited``.

    Raises:
        FlowError: If the model is no SRFlow, or an argument is out of its range.
        ShapeError: If the sizes do not fit together or the model does not take them.
        Cancelled: If stopped.

    Source: Lugmayr et al., "SRFlow", image content transfer and image restoration.
    """
    if flow.architecture != "srflow":
        raise FlowError(f"content_transfer needs an SRFlow model; got a {flow.architecture} model.")
    device, dtype = _home(flow)
    pixels = _pixels(flow, edited)
    small = _finite(lr, 3, dtype)
    sides = tuple(flow.condition_scale * side for side in small.shape[-2:])
    if tuple(pixels.shape[-2:]) != sides or small.shape[0] not in (1, len(pixels)):
        raise ShapeError(
            f"The edited images must be {flow.condition_scale} times as large as the LR images, and as many; got "
            f"{tuple(edited.shape)} and {tuple(lr.shape)}. Crop or resize one of the two."
        )
    if small.shape[0] == 1:
        small = small.expand(len(pixels), -1, -1, -1)
    result = torch.empty_like(pixels)
    plan = planned(flow)
    meter = _Meter(plan, 2 * len(pixels), progress, cancelled)
    repairs = overflow.Repairs()

    def some(start: int, stop: int) -> None:
        cond = plan.encode_condition(small[start:stop].to(device))
        latents = plan(pixels[start:stop].to(device), cond)[0]
        _refuse_not_finite(latents, pixels[start:stop], start)
        latents = normalise(latents, strength, per, window=window)
        meter.finish()
        result[start:stop] = _guarded(plan, latents, cond, start, repairs).clamp(0, 1).to(result.device)
        meter.finish(result[start:stop])

    _run(plan, len(pixels), batch or images_at_once(*pixels.shape[-2:]), meter, some)
    _report(repairs, result, None)
    return result


def memory_required(flow: Flow, images: int, height: int, width: int) -> int:
    """Estimate the working memory of one pass, beyond the weights, for as many images as go through at once.

    Counts, for every pixel, what lives at the widest moment: the image and its neighbours in the chain, eight times
    its channels; and inside one network input, hidden layers and sum, three to four times the hidden width. A Real NVP
    runs its networks at every pixel, a Glow at every fourth; dense networks add nothing to speak of.

    Args:
        flow: The model.
        images: Images in all; as many as go through at once count.
        height: Of an image.
        width: Likewise.

    Returns:
        Bytes.
    """
    at_once = min(images, images_at_once(height, width))
    if flow.architecture == "srflow":
        small = (-(-side // flow.condition_scale) for side in (height, width))
        return at_once * upscale.memory_required(flow, *small)
    hidden = {"glow": 3 / 4, "realnvp": 4.0}.get(flow.architecture, 0.0) * flow.config.hidden
    return round(4 * at_once * height * width * (8 * flow.channels + hidden))


# --- directions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FolderDirection:
    """A direction that was measured on two folders.

    Attributes:
        direction: Latents of batch 1, float32, on the CPU.
        counts: Images that were used with the attribute, and without.
        skipped: Files that could not be used, and why.
    """

    direction: Direction
    counts: tuple[int, int]
    skipped: list[str]


@retry_on_oom(SMALLER)
@torch.no_grad()
def attribute_direction_from_folders(
    flow: Flow,
    positives: str | Path,
    negatives: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    label: int | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> FolderDirection:
    """Find the direction of an attribute from a folder of images that have it and one of images that do not.

    Images are read, resized to cover the size, cropped to its middle, encoded and added up batch by batch: the folders
    may be of any size.

    Args:
        flow: An unconditional model, or one that is conditioned on labels.
        positives: Folder of images with the attribute, at any depth.
        negatives: Folder of images without.
        size: Height and width, or the side of a square; None for the size that the model was made for.
        label: For conditioned models what all of these images show.
        batch: Images at once; None or 0 chooses by their size.
        progress: Called with ``(done, total)``.
        cancelled: Asked before every network layer; returns True (or raises) to stop.

    Returns:
        The direction, how many images it rests on, and what was skipped.

    Raises:
        ImageError: If a folder holds no image that can be used.
        FlowError: If the model makes images from an image, or the size is missing.
        ConditionError: If the label is missing or superfluous.
        Cancelled: If stopped.

    Source: as for ``latents.attribute_direction``.
    """
    if flow.architecture == "srflow":
        raise FlowError(
            "An SRFlow's latents belong to an LR image: directions are for models that sample from nothing."
        )
    if flow.channels not in (1, 3):
        raise FlowError(f"Image files have 1 or 3 channels; this model takes {flow.channels}.")
    dtype = _home(flow)[1]
    height, width = _size(flow, size)
    flow.latent_shapes(height, width)  # refuses a size that does not fit, before anything is read
    wanted = _labels(flow, label, 1)
    cond = None if wanted is None else _told(flow, wanted)
    folders = Path(positives), Path(negatives)
    files = [image_files(folder) for folder in folders]
    at_once = batch or images_at_once(height, width)
    skipped: list[str] = []
    counts = [0, 0]
    meter = _Meter(planned(flow), sum(map(len, files)), progress, cancelled)

    def batches(side: int) -> Generator[list[Tensor], None, None]:
        for start in range(0, len(files[side]), at_once):
            images: list[Tensor] = []
            names: list[str] = []
            for file in files[side][start : start + at_once]:
                try:
                    images.append(_read(file, flow.channels, height, width))
                    names.append(file.name)
                except Exception as error:  # of many classes, if the bytes are damaged
                    if isinstance(error, MemoryError) or is_out_of_memory(error):
                        raise
                    skipped.append(f"{file.name}: {error}")
                    meter.skip()
            if not images:
                continue
            latents = _encode(flow, torch.stack(images).to(dtype), cond, at_once, meter, strict=False)
            sound = _sound(latents)
            skipped.extend(
                f"{name}: its latents are not finite" for name, good in zip(names, sound, strict=True) if not good
            )
            counts[side] += int(sound.sum())
            if sound.any():
                yield [z[sound] for z in latents]
        if not counts[side]:
            raise ImageError(
                f"None of the {len(files[side])} images in {folders[side]} could be used. Skipped: "
                f"{'; '.join(skipped[-3:])}."
            )

    direction = attribute_direction(batches(0), batches(1))
    return FolderDirection(direction=direction, counts=(counts[0], counts[1]), skipped=skipped)


def apply_style(flow: Flow, latents: Sequence[Tensor], styles: Mapping[str, float | Sequence[float]]) -> list[Tensor]:
    """Move latents along directions that the model carries, by name: ``z + sum over styles of strength d``.

    A hand is messy in all its details at once, so "messy" is a temperature as well: it multiplies the latents by
    ``exp(TEMPER * strength)`` first.

    Args:
        flow: The model; ``flow.styles`` are its directions.
        latents: Finest first.
        styles: Name to strength, one or one per level; negative for the opposite.

    Returns:
        The moved latents.

    Raises:
        FlowError: If the model has no such style.
        ShapeError: If the latents are not of the size that the styles were measured at.
    """
    known: dict[str, list[Tensor]] = flow.styles
    unknown = [name for name in styles if name not in known]
    if unknown:
        raise FlowError(
            f"This model has no style {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(sorted(known)) or 'none at all'}."
        )
    temper = styles.get("messy", 0.0)
    factor = math.exp(TEMPER * temper) if isinstance(temper, (int, float)) else [math.exp(TEMPER * s) for s in temper]
    result = scale(latents, factor)
    for name, strength in styles.items():
        result = add(result, known[name], strength)
    return result


# --- passes through the flow ------------------------------------------------------------------------------------------


class _Meter:
    """Counts passes of images through a flow, layer by layer; asks before each layer whether to stop."""

    def __init__(
        self, plan: Plan, passes: int, progress: Progress | None, cancelled: Callable[[], bool] | None
    ) -> None:
        # the encoder may or may not run on the way; a pass that ends sets the count right
        beside = set() if plan.encoder is None else set(layers(plan.encoder))
        self._layers = sum(layer not in beside for layer in layers(plan))
        self._total = passes * (self._layers + 1)
        self._progress, self._cancelled = progress, cancelled
        self._done = self._images = 0
        self._seen: set[nn.Module] = set()

    def begin(self, images: int) -> None:
        """So many images set out together, or set out again with fewer beside them."""
        self._images = images
        self._seen.clear()
        self._ask()

    def advance(self, layer: nn.Module) -> None:
        """A layer is about to run."""
        self._ask()
        if layer not in self._seen:
            self._seen.add(layer)
            self._report(self._done + self._images * min(len(self._seen), self._layers), None)

    def finish(self, pictures: Tensor | None = None) -> None:
        """The images have arrived."""
        self._seen.clear()
        self._done += self._images * self._layers
        for i in range(self._images):
            self._done += 1
            self._report(self._done, None if pictures is None else pictures[i])

    def skip(self) -> None:
        """One image will not come."""
        self._done += self._layers + 1
        self._report(self._done, None)

    def _ask(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("Stopped on request.")

    def _report(self, done: int, preview: Tensor | None) -> None:
        if self._progress is not None:
            self._progress(min(done, self._total), self._total, preview)


def _run(
    plan: Plan,
    count: int,
    batch: int,
    meter: _Meter,
    some: Callable[[int, int], None],
    notify: Callable[[str], None] | None = None,
) -> None:
    """Work through all images, batch by batch, in the flow's own precision; with fewer at once if memory runs out."""
    if batch < 1:
        raise FlowError(f"batch must be at least 1; got {batch}.")
    say = notify or log.warning
    start, spare = 0, False
    with watched(plan, meter.advance), torch.autocast(plan.device.type, enabled=False):
        while start < count:
            stop = min(count, start + batch)
            meter.begin(stop - start)
            try:
                some(start, stop)
                start = stop
                continue
            except RuntimeError as error:  # what torch raises when memory runs out, on every device
                if not is_out_of_memory(error):
                    raise
                if stop - start == 1 and spare:
                    raise FlowError(f"Out of memory even with one image at a time. {SMALLER}") from error
            if stop - start == 1:
                plan.use_minimum_memory()
                spare = True
                say("Out of memory: going on in the lowest strips. It takes longer.")
            else:
                batch = (stop - start) // 2
                say(f"Out of memory: going on with {batch} images at once.")
            if plan.device.type == "cuda":
                torch.cuda.empty_cache()


def _encode(
    flow: Flow,
    pixels: Tensor,
    cond: Condition | None,
    batch: int | None,
    meter: _Meter,
    notify: Callable[[str], None] | None = None,
    *,
    strict: bool = True,
) -> list[Tensor]:
    plan = planned(flow)
    parts: dict[int, list[Tensor]] = {}  # by the first image; what runs out of memory in the end comes once more

    def some(start: int, stop: int) -> None:
        latents = plan(pixels[start:stop].to(plan.device), _rows(flow, cond, start, stop, len(pixels)))[0]
        if strict:
            _refuse_not_finite(latents, pixels[start:stop], start)
        parts[start] = [z.to(pixels.device) for z in latents]
        meter.finish()

    _run(plan, len(pixels), batch or images_at_once(*pixels.shape[-2:]), meter, some, notify)
    return [torch.cat(level) for level in zip(*parts.values(), strict=True)]


def _decode(
    flow: Flow,
    latents: Sequence[Tensor],
    cond: Condition | None,
    batch: int | None,
    meter: _Meter,
    notify: Callable[[str], None] | None = None,
) -> Tensor:
    device, dtype = _home(flow)
    plan = planned(flow)
    count = latents[0].shape[0]
    parts: dict[int, Tensor] = {}  # as in `_encode`
    repairs = overflow.Repairs()

    def some(start: int, stop: int) -> None:
        told = _rows(flow, cond, start, stop, count)
        pictures = _guarded(plan, [z[start:stop].to(device, dtype) for z in latents], told, start, repairs)
        parts[start] = pictures.to(latents[0].device)
        meter.finish(pictures.clamp(0, 1))

    numbers = sum(z[0].numel() for z in latents)  # of one image: as many as its subpixels
    _run(plan, count, batch or images_at_once(1, numbers // flow.channels), meter, some, notify)
    result = torch.cat(list(parts.values()))
    _report(repairs, result, notify)
    return result


def _guarded(
    plan: Plan, latents: Sequence[Tensor], cond: Condition | None, first: int, repairs: overflow.Repairs
) -> Tensor:
    """Decode to finite images; `first` is the number of the first."""

    def grey() -> Tensor:
        return torch.full((1, plan.channels, 1, 1), 0.5)

    reach = upscale.GUARD_REACH if plan.architecture == "srflow" else GUARD_REACH
    decoded = overflow.decode(overflow.within(plan, cond, reach), latents, grey)
    repairs.add(first, decoded.attenuated, decoded.filled)
    return decoded.images


def _report(repairs: overflow.Repairs, images: Tensor, notify: Callable[[str], None] | None) -> None:
    for sentence in repairs.sentences(images[0, 0].numel(), "left grey"):
        (notify or log.warning)(sentence)


def _sound(latents: Sequence[Tensor]) -> Tensor:
    """Say which items are finite at all levels, (B,)."""
    return torch.stack([z.isfinite().flatten(1).all(1) for z in latents]).all(0)


def _refuse_not_finite(latents: Sequence[Tensor], pixels: Tensor, first: int) -> None:
    sound = _sound(latents)
    if not sound.all():
        i = int((~sound).nonzero()[0])
        low, high = float(pixels[i].min()), float(pixels[i].max())
        raise ImageError(
            f"Image {first + i} has no finite latents: the model is unstable there, or does not reach it. Its values "
            f"go from {low:.3g} to {high:.3g}; expected are 0 to 1. Clamp it, or choose another image."
        )


def _told(flow: Flow, labels: Tensor) -> Condition:
    """What labels tell a flow, in its precision."""
    device, dtype = _home(flow)
    return _mapped(flow.encode_condition(labels.to(device)), lambda t: t.to(dtype))


def _rows(flow: Flow, cond: Condition | None, start: int, stop: int, count: int) -> Condition | None:
    """Cut the condition of some images out of that of all; one image's serves every image."""
    if cond is None:
        return None
    device, dtype = _home(flow)
    if cond.batch not in (1, count):
        raise ConditionError(
            f"The condition is of {cond.batch} images; got {count}. Encode the condition of the same images, or of one "
            "for all."
        )
    return _mapped(rows(cond, torch.arange(start, stop)), lambda t: t.to(device, dtype))


def _mapped(cond: Condition, change: Callable[[Tensor], Tensor]) -> Condition:
    """Change every tensor of a condition."""

    def changed(value: Any) -> Any:
        if isinstance(value, (Condition, MultiScaleFeatures)):
            names = [f.name for f in dataclasses.fields(value)]
            return dataclasses.replace(value, **{name: changed(getattr(value, name)) for name in names})
        if isinstance(value, tuple):
            return tuple(map(changed, value))
        return change(value) if isinstance(value, Tensor) else value

    return changed(cond)


def _home(flow: Flow) -> tuple[torch.device, torch.dtype]:
    """Where a flow lives, and in which precision."""
    parameter = next(flow.parameters())
    require_full_precision(parameter.dtype)
    return parameter.device, parameter.dtype


def _size(flow: Flow, size: int | tuple[int, int] | None) -> tuple[int, int]:
    chosen = flow.image_size if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if chosen is None:
        raise FlowError(
            "This model does not say which size it was made for. Give one: size=(height, width), multiples of "
            f"{flow.size_multiple}."
        )
    if len(chosen) != 2 or any(type(side) is not int for side in chosen):
        raise FlowError(f"size must be (height, width), or the side of a square, in whole pixels; got {size!r}.")
    return chosen


def _labels(flow: Flow, labels: Labels | None, n: int | None) -> Tensor | None:
    """Bring labels into whole numbers (n,) or weights (n, classes); whether they exist, the model decides."""
    if not flow.classes:
        if labels is not None:
            raise ConditionError(f"This {flow.architecture} model is not conditioned on labels. Leave them out.")
        return None
    known = f"labels 0 to {flow.classes - 1}"
    if labels is None:
        raise ConditionError(f"This model is conditioned on {known}; got none. Say what to show.")
    tensor = torch.as_tensor(labels)
    whole = tensor.ndim < 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool
    weights = tensor.ndim == 2 and tensor.is_floating_point() and tensor.shape[1] == flow.classes
    if not (whole or weights) or not tensor.numel():
        raise ConditionError(
            f"This model is conditioned on {known}: expected one whole number, several, or weights of shape (n, "
            f"{flow.classes}); got a {str(tensor.dtype).removeprefix('torch.')} tensor of shape {tuple(tensor.shape)}."
        )
    if whole:
        tensor = tensor.long().reshape(-1)
    if n is None or len(tensor) == n:
        return tensor
    if len(tensor) != 1:
        raise ConditionError(f"Got {len(tensor)} labels for {n} images. Give one for all, or one per image.")
    return tensor.expand(n, *tensor.shape[1:])


def _pixels(flow: Flow, image: Tensor) -> Tensor:
    """Check images and bring them into the flow's precision, on the device that they are on."""
    pixels = _finite(image, flow.channels, _home(flow)[1])
    flow.latent_shapes(*pixels.shape[-2:])  # refuses a size that does not fit
    return pixels


def _levels(latents: Sequence[Tensor]) -> list[Tensor]:
    """Check that latents are a list of one batch; whether they are this model's, the flow decides."""
    levels = [] if isinstance(latents, Tensor) else list(latents)
    if not levels or any(z.ndim != 4 or z.shape[0] != levels[0].shape[0] or 0 in z.shape for z in levels):
        came = [tuple(z.shape) for z in latents]
        raise ShapeError(f"Expected a list of latents of one batch, finest first, each (B, C, H, W); got {came}.")
    return levels


def _finite(image: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    if image.ndim != 4 or image.shape[1] != channels:
        hint = " Convert colour to grey first." if channels == 1 and image.ndim == 4 else ""
        raise ShapeError(f"Expected images of shape (B, {channels}, H, W); got {tuple(image.shape)}.{hint}")
    if 0 in image.shape:
        raise ImageError(
            f"The batch is empty or an image has no pixels, {tuple(image.shape)}. Pass at least one image."
        )
    if image.dtype == torch.uint8:
        return image.to(dtype) / 255
    if not image.is_floating_point():
        raise ImageError(f"Expected images of uint8, or float in [0, 1]; got {image.dtype}. Convert them.")
    wrong = int((~image.isfinite()).sum())
    if wrong:
        raise ImageError(
            f"The image holds {wrong} values that are not finite numbers (NaN or infinity). Mend the node or file it "
            "comes from."
        )
    return image.to(dtype)


def _read(path: Path, channels: int, height: int, width: int) -> Tensor:
    """Read an image as (C, H, W) in [0, 1]: turned as its camera says, resized to cover the size, and cropped to it."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB" if channels == 3 else "L")
    fitted = np.array(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(fitted.reshape(height, width, channels)).permute(2, 0, 1).float() / 255
