"""Batches of images on their way through a flow: progress, cancellation, memory, and the guard."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Condition, MultiScaleFeatures
from ..device import is_out_of_memory, require_full_precision
from ..errors import ConditionError, FlowError, ImageError, ShapeError
from ..flow import Flow
from ..inference.plan import Plan, planned
from ..likelihood import select_items
from . import Cancelled, Progress, overflow, upscale
from .runner import images_at_once, layers, watched

Labels = int | Sequence[int] | Tensor
log = logging.getLogger("flowcore")
GUARD_REACH = 100.0  # from 0.5; whoever asks for wild latents may have wild images, but no infinities
SMALLER = "Choose a smaller size (width, height), ask for fewer samples, or free memory on the device."


class Meter:
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
            self._emit(self._done + self._images * min(len(self._seen), self._layers), None)

    def finish(self, pictures: Tensor | None = None) -> None:
        """The images have arrived."""
        self._seen.clear()
        self._done += self._images * self._layers
        for i in range(self._images):
            self._done += 1
            self._emit(self._done, None if pictures is None else pictures[i])

    def skip(self) -> None:
        """One image will not come."""
        self._done += self._layers + 1
        self._emit(self._done, None)

    def _ask(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("Stopped on request.")

    def _emit(self, done: int, preview: Tensor | None) -> None:
        if self._progress is not None:
            self._progress(min(done, self._total), self._total, preview)


def run_batches(
    plan: Plan,
    count: int,
    batch: int,
    meter: Meter,
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


def encode_batches(
    flow: Flow,
    pixels: Tensor,
    cond: Condition | None,
    batch: int | None,
    meter: Meter,
    notify: Callable[[str], None] | None = None,
    *,
    strict: bool = True,
) -> list[Tensor]:
    """Encode images batch by batch."""
    plan = planned(flow)
    parts: dict[int, list[Tensor]] = {}  # by the first image; what runs out of memory in the end comes once more

    def some(start: int, stop: int) -> None:
        latents = plan(pixels[start:stop].to(plan.device), _rows(flow, cond, start, stop, len(pixels)))[0]
        if strict:
            refuse_nonfinite(latents, pixels[start:stop], start)
        parts[start] = [z.to(pixels.device) for z in latents]
        meter.finish()

    run_batches(plan, len(pixels), batch or images_at_once(*pixels.shape[-2:]), meter, some, notify)
    return [torch.cat(level) for level in zip(*parts.values(), strict=True)]


def decode_batches(
    flow: Flow,
    latents: Sequence[Tensor],
    cond: Condition | None,
    batch: int | None,
    meter: Meter,
    notify: Callable[[str], None] | None = None,
) -> Tensor:
    """Decode latents batch by batch, to finite images."""
    device, dtype = home_of(flow)
    plan = planned(flow)
    count = latents[0].shape[0]
    parts: dict[int, Tensor] = {}  # as in `_encode`
    repairs = overflow.Repairs()

    def some(start: int, stop: int) -> None:
        told = _rows(flow, cond, start, stop, count)
        pictures = decode_guarded(plan, [z[start:stop].to(device, dtype) for z in latents], told, start, repairs)
        parts[start] = pictures.to(latents[0].device)
        meter.finish(pictures.clamp(0, 1))

    numbers = sum(z[0].numel() for z in latents)  # of one image: as many as its subpixels
    run_batches(plan, count, batch or images_at_once(1, numbers // flow.channels), meter, some, notify)
    result = torch.cat(list(parts.values()))
    report_repairs(repairs, result, notify)
    return result


def decode_guarded(
    plan: Plan, latents: Sequence[Tensor], cond: Condition | None, first: int, repairs: overflow.Repairs
) -> Tensor:
    """Decode to finite images; `first` is the number of the first."""

    def grey() -> Tensor:
        return torch.full((1, plan.channels, 1, 1), 0.5)

    reach = upscale.MAX_DEVIATION if plan.capabilities.source == "low_resolution" else GUARD_REACH
    decoded = overflow.decode_with_backoff(overflow.bounded_decoder(plan, cond, reach), latents, grey)
    repairs.add(first, decoded.attenuated, decoded.filled)
    return decoded.images


def report_repairs(repairs: overflow.Repairs, images: Tensor, notify: Callable[[str], None] | None) -> None:
    """Tell the caller where decoding overflowed."""
    for sentence in repairs.sentences(images[0, 0].numel(), "left grey"):
        (notify or log.warning)(sentence)


def finite_items(latents: Sequence[Tensor]) -> Tensor:
    """Say which items are finite at all levels, (B,)."""
    return torch.stack([z.isfinite().flatten(1).all(1) for z in latents]).all(0)


def refuse_nonfinite(latents: Sequence[Tensor], pixels: Tensor, first: int) -> None:
    """Raise ImageError for the first image whose latents are not finite."""
    sound = finite_items(latents)
    if not sound.all():
        i = int((~sound).nonzero()[0])
        low, high = float(pixels[i].min()), float(pixels[i].max())
        raise ImageError(
            f"Image {first + i} has no finite latents: the model is unstable there, or does not reach it. Its values "
            f"go from {low:.3g} to {high:.3g}; expected are 0 to 1. Clamp it, or choose another image."
        )


def label_condition(flow: Flow, labels: Tensor) -> Condition:
    """What labels tell a flow, in its precision."""
    device, dtype = home_of(flow)
    return _mapped(flow.encode_condition(labels.to(device)), lambda t: t.to(dtype))


def _rows(flow: Flow, cond: Condition | None, start: int, stop: int, count: int) -> Condition | None:
    """Cut the condition of some images out of that of all; one image's serves every image."""
    if cond is None:
        return None
    device, dtype = home_of(flow)
    if cond.batch not in (1, count):
        raise ConditionError(
            f"The condition is of {cond.batch} images; got {count}. Encode the condition of the same images, or of one "
            "for all."
        )
    return _mapped(select_items(cond, torch.arange(start, stop)), lambda t: t.to(device, dtype))


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


def home_of(flow: Flow) -> tuple[torch.device, torch.dtype]:
    """Where a flow lives, and in which precision."""
    parameter = next(flow.parameters())
    require_full_precision(parameter.dtype)
    return parameter.device, parameter.dtype


def check_size(flow: Flow, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width of images to be made; None is the model's own size."""
    chosen = flow.image_size if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if chosen is None:
        raise FlowError(
            "This model does not say which size it was made for. Give one: size=(height, width), multiples of "
            f"{flow.size_multiple}."
        )
    if len(chosen) != 2 or any(type(side) is not int for side in chosen):
        raise FlowError(f"size must be (height, width), or the side of a square, in whole pixels; got {size!r}.")
    return chosen


def check_labels(flow: Flow, labels: Labels | None, n: int | None) -> Tensor | None:
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


def check_image(flow: Flow, image: Tensor) -> Tensor:
    """Check images and bring them into the flow's precision, on the device that they are on."""
    pixels = validate_pixels(image, flow.channels, home_of(flow)[1])
    flow.latent_shapes(*pixels.shape[-2:])  # refuses a size that does not fit
    return pixels


def check_latents(latents: Sequence[Tensor]) -> list[Tensor]:
    """Check that latents are a list of one batch; whether they are this model's, the flow decides."""
    levels = [] if isinstance(latents, Tensor) else list(latents)
    if not levels or any(z.ndim != 4 or z.shape[0] != levels[0].shape[0] or 0 in z.shape for z in levels):
        came = [tuple(z.shape) for z in latents]
        raise ShapeError(f"Expected a list of latents of one batch, finest first, each (B, C, H, W); got {came}.")
    return levels


def validate_pixels(image: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Check images and convert them to float in [0, 1]."""
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
