"""Passes of images through a flow, batch by batch: with progress, finite results, and inputs checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..condition import Condition
from ..device import require_full_precision
from ..errors import ConditionError, ImageError, ShapeError
from ..flow import Flow
from ..inference.steps import ReportingPredictor
from ..likelihood import select_items
from . import overflow, upscale
from .duration import duration
from .runner import Runner, images_at_once, require_tensor, to_float

Labels = int | str | Sequence[int | str] | Tensor

MAX_DEVIATION = 100.0  # from 0.5: wild latents may give wild images, but no infinities
NOTEWORTHY = 1024  # patches; decoding fewer is so fast that no time is announced
ADVICE = "Choose a smaller size (width, height), ask for fewer samples, or free memory on the device."


class Passes:
    """Passes through the plan of a task, ``count`` in all; an image that is encoded and decoded makes two."""

    def __init__(self, run: Runner, count: int) -> None:
        require_full_precision(run.dtype)
        self.run = run
        self._repairs = overflow.Repairs()
        upscales = run.plan.capabilities.source == "low_resolution"
        self._max_deviation = upscale.MAX_DEVIATION if upscales else MAX_DEVIATION
        run.expect(count * (run.plan.units + 1))

    def batches(self, images: int, pixels: int) -> Iterator[slice]:
        """Divide images of so many pixels into batches, and count the layers of each batch as they run."""
        at_once = self.run.at_once(images_at_once(1, pixels))
        for start in range(0, images, at_once):
            part = slice(start, min(images, start + at_once))
            count = part.stop - part.start
            self.run.stage(count * self.run.plan.units, count)
            yield part

    def announce(self, images: int, pixels: int, memory: int, *, guided: bool) -> None:
        """Say what decoding patch by patch will take, from the time of a few patches; nothing if that is little."""
        plan = self.run.plan
        predictors = [part for part in plan.modules() if isinstance(part, ReportingPredictor)]
        if not predictors or plan.units < NOTEWORTHY:
            return
        at_once = min(images, self.run.at_once(images_at_once(1, pixels)))
        seconds = predictors[0].seconds((1 + guided) * at_once) * plan.units * -(-images // at_once)
        self.run.notify(
            f"{images} pictures, each of {plan.units} patches one after the other, will take about "
            f"{memory / 1e9:.1f} GB of memory beside the model and {duration(seconds)}."
        )

    def finish(self, images: int, pictures: Tensor | None = None) -> None:
        """End a pass of a batch, and show the pictures."""
        for i in range(images):
            self.run.advance(preview=None if pictures is None else pictures[i])

    def encode(self, pixels: Tensor, cond: Condition | None) -> list[Tensor]:
        """Encode images, and refuse those whose latents are not finite."""
        encoded: list[list[Tensor]] = []
        for part in self.batches(len(pixels), pixels[0, 0].numel()):
            x = pixels[part]
            own = self.condition_of(cond, part, len(pixels))
            latents = self.run.plan.encode(x.to(self.run.device), own)
            refuse_nonfinite(latents, x, part.start)
            encoded.append([z.to(pixels.device) for z in latents])
            self.finish(len(x))
        return [torch.cat(level) for level in zip(*encoded, strict=True)]

    def decode(self, latents: Sequence[Tensor], cond: Condition | None, *, denoise: bool = False) -> Tensor:
        """Decode latents to finite images, not clamped."""
        count = len(latents[0])
        decoded: list[Tensor] = []
        for part in self.batches(count, sum(z[0].numel() for z in latents) // self.run.plan.channels):
            own = self.condition_of(cond, part, count)
            pictures = self.decode_batch([z[part] for z in latents], own, part.start, denoise=denoise)
            decoded.append(pictures.to(latents[0].device))
            self.finish(len(pictures), pictures.clamp(0, 1))
        return self.report(torch.cat(decoded))

    def decode_batch(
        self, latents: Sequence[Tensor], cond: Condition | None, first: int, *, denoise: bool = False
    ) -> Tensor:
        """Decode one batch to finite images, whose first has the number ``first``; see ``overflow``.

        With ``denoise``, the noise that the model was trained with is removed: ``x + sigma^2 grad log p(x)``.

        Source: Zhai et al., TarFlow (2024), section 3.2: Tweedie's formula.
        """
        decoder = overflow.bounded_decoder(self.run.plan, cond, self._max_deviation)
        latents = [z.to(self.run.device, self.run.dtype) for z in latents]
        gray = torch.full((1, self.run.plan.channels, 1, 1), 0.5)
        decoded = overflow.decode_with_backoff(decoder, latents, lambda: gray)
        self._repairs.add(first, decoded.attenuated, decoded.filled)
        sigma = getattr(self.run.plan.config, "noise", 0.0) / 2  # of images in [0, 1]
        if not (denoise and sigma):
            return decoded.images
        plain = None if cond is None else replace(cond, guidance=None)
        return decoded.images + sigma**2 * self.run.plan.gradient(decoded.images, plain)

    def report(self, images: Tensor) -> Tensor:
        """Tell the caller where the model overflowed; hands the images on."""
        for sentence in self._repairs.sentences(images[0, 0].numel(), "left gray"):
            self.run.notify(sentence)
        return images

    def condition_of(self, cond: Condition | None, part: slice, count: int) -> Condition | None:
        """Select the condition of some of ``count`` images; one image's serves every image."""
        if cond is None:
            return None
        if cond.batch not in (1, count):
            raise ConditionError(
                f"The condition is of {cond.batch} images; got {count}. Encode the condition of the same images, or of "
                "one for all."
            )
        selected: Condition = select_items(cond, torch.arange(part.start, part.stop))
        return selected.map_tensors(lambda t: t.to(self.run.device, self.run.dtype))

    def encode_labels(self, labels: Tensor | None) -> Condition | None:
        """Encode labels as a condition, in the model's precision; None for models without labels."""
        if labels is None:
            return None
        return self.run.plan.encode_condition(labels.to(self.run.device)).map_tensors(lambda t: t.to(self.run.dtype))


def refuse_nonfinite(latents: Sequence[Tensor], pixels: Tensor, first: int) -> None:
    """Raise ImageError if the latents of an image are not finite; the first image has the number ``first``."""
    finite = torch.stack([z.isfinite().flatten(1).all(1) for z in latents]).all(0)  # (B,)
    if not finite.all():
        i = int((~finite).nonzero()[0])
        low, high = float(pixels[i].min()), float(pixels[i].max())
        raise ImageError(
            f"Image {first + i} has no finite latents: the model is unstable there, or does not reach it. Its values "
            f"go from {low:.3g} to {high:.3g}; expected are 0 to 1. Clamp it, or choose another image."
        )


def check_labels(flow: Flow, labels: Labels | None, n: int) -> Tensor | None:
    """Convert labels to integers (n,) or weights (n, classes); whether they exist is for the model to check."""
    if not flow.classes:
        if labels is not None:
            raise ConditionError(f"This {flow.architecture} model is not conditioned on labels. Leave them out.")
        return None
    names = label_names(flow)
    known = f"labels 0 to {flow.classes - 1}" + (f" ({', '.join(names)})" if names else "")
    if labels is None:
        raise ConditionError(f"This model is conditioned on {known}; got none. Say what to show.")
    if not isinstance(labels, Tensor):
        several = labels if isinstance(labels, Sequence) and not isinstance(labels, str) else [labels]
        if any(isinstance(label, str) for label in several):
            labels = [label_number(flow, label) for label in several]
    tensor = torch.as_tensor(labels)
    numbers = tensor.ndim < 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool
    weights = tensor.ndim == 2 and tensor.is_floating_point() and tensor.shape[1] == flow.classes
    if not (numbers or weights) or not tensor.numel():
        raise ConditionError(
            f"This model is conditioned on {known}: expected one whole number, several, or weights of shape (n, "
            f"{flow.classes}); got a {str(tensor.dtype).removeprefix('torch.')} tensor of shape {tuple(tensor.shape)}."
        )
    if numbers:
        tensor = tensor.long().reshape(-1)
    if len(tensor) == n:
        return tensor
    if len(tensor) != 1:
        raise ConditionError(f"Got {len(tensor)} labels for {n} images. Give one for all, or one per image.")
    return tensor.expand(n, *tensor.shape[1:])


def label_names(flow: Flow) -> tuple[str, ...]:
    """Return the names of a model's labels; none if it has none."""
    return getattr(flow.config, "labels", ())


def label_number(flow: Flow, label: int | str) -> int:
    """Return the number of a label, which may be its name; ConditionError if there is none of that name."""
    names = [name.lower() for name in label_names(flow)]
    word = str(label).strip().lower()
    if word in names:
        return names.index(word)
    if not re.fullmatch(r"-?[0-9]{1,9}", word):
        numbers = f"0 to {flow.classes - 1}"
        raise ConditionError(f"This model knows the labels {', '.join([*names, numbers])}; got {word[:60]!r}.")
    return int(word)


def check_image(flow: Flow, image: Tensor) -> Tensor:
    """Convert images that the flow takes, uint8 or float in [0, 1], to its precision; values are not clamped."""
    require_tensor(image)
    if image.ndim != 4 or image.shape[1] != flow.channels:
        hint = " Convert color to gray first." if flow.channels == 1 and image.ndim == 4 else ""
        raise ShapeError(f"Expected images of shape (B, {flow.channels}, H, W); got {tuple(image.shape)}.{hint}")
    pixels = to_float(image, next(flow.parameters()).dtype)
    flow.latent_shapes(*pixels.shape[-2:])  # raises ShapeError for a size that does not fit
    return pixels


def check_latents(latents: Sequence[Tensor]) -> list[Tensor]:
    """Check that latents are a list of one batch; whether they are this model's is for the flow to check."""
    levels = [] if isinstance(latents, Tensor) else list(latents)
    if not levels or any(z.ndim != 4 or z.shape[0] != levels[0].shape[0] or 0 in z.shape for z in levels):
        shapes = [tuple(z.shape) for z in latents]
        raise ShapeError(f"Expected a list of latents of one batch, finest first, each (B, C, H, W); got {shapes}.")
    return levels
