"""Sample: images from a seed, exact passes between images and latents, and edits in between.

    seed -> latents -> image          sample
    image -> latents -> image         encode, decode; morph, normalize_image_latents

``flowcore/flows/latents.py`` has the operations on latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from ..device import require_full_precision
from ..engine import overflow
from ..engine.image_batch import ImageBatch, notify_of_range
from ..engine.memory import memory_required
from ..engine.model_input import (
    Fit,
    Labels,
    check_image,
    check_labels,
    check_latents,
    condition_for,
    prepare_input,
    size_of_latents,
)
from ..engine.options import MARK, SEED, BatchOptions, ReportOptions, RunOptions, python
from ..engine.progress import duration
from ..engine.ranges import MAX_DRAWS, Setting, count, nonnegative
from ..engine.runner import Runner, batch_size, runs_with
from ..errors import ConditionError, ImageError, say
from ..flows.condition import Condition, Guidance
from ..flows.dequantization import quantization, quantize, to_integers
from ..flows.latents import Mode, Per, interpolate, normalize
from ..flows.likelihood import select_items
from ..flows.model import UNGUIDED, FlowModel
from ..flows.networks.strips import Folded
from ..flows.prior import sample_latents
from ..flows.transforms import Autoregression
from ..images.color import luma
from ..images.resize import downsample, pad_symmetric
from ..models.fields import Range, check_value
from . import upscale
from .styles import apply_style

MAX_DEVIATION = 100.0  # distance from 0.5: wild latents may give wild images, but no infinities
NOTEWORTHY = 1024  # patches; decoding fewer is so fast that no time is announced
ADVICE = say("Choose a smaller size (width, height), ask for fewer samples, or free memory on the device.")
GUIDANCE = Setting(
    help="How far images are led to their labels, for models made for it (TarFlow): 0 for not, 1 to 3 are usual."
)
DENOISE = Setting(
    help="Whether to remove the Gaussian noise that a model was trained with, where it states one (TarFlow)."
)


@dataclass(frozen=True, kw_only=True)
class SampleSettings(RunOptions):
    """Options of ``sample``."""

    size: Annotated[
        int | tuple[int, int] | None,
        Setting(help="Height and width, or the side of a square; None for the size that the model was made for."),
    ] = None
    temperature: Annotated[
        float | Sequence[float],
        nonnegative(
            help="Standard deviation of the latents, >= 0: one, or one per level, finest first. At 0 all images are "
            "alike, 1 is the model's own spread."
        ),
    ] = 0.7
    seed: Annotated[int, SEED._replace(help="Image i is drawn with ``seed + i``, whatever n and the batch.")] = 0
    labels: Annotated[
        Labels | None,
        Setting(
            help="For conditioned models what to show: one label for all images, or one per image, 0 to "
            '``flow.classes - 1``, or its name; ``flow.classes`` itself is "unlabeled" for a class-conditional model '
            "(10 of ``mnist-styles``) or a TarFlow. Or weights of the labels, ``(n or 1, classes)``."
        ),
    ] = None
    styles: Annotated[
        Mapping[str, float | Sequence[float]] | None,
        Setting(help="Name to strength, for models that carry styles; see ``apply_style``."),
    ] = None
    snapped: Annotated[
        bool,
        Setting(
            help="Whether to remove the dequantization noise that a model draws with an image; see "
            "``dequantization.quantize``."
        ),
    ] = False
    clamp: Annotated[
        bool, python("Whether to clamp the images to [0, 1]; False for the values that the flow computes.")
    ] = True
    guidance: Annotated[float | Guidance, GUIDANCE] = 0.0
    denoise: Annotated[bool, DENOISE] = True
    mark: Annotated[str | None, MARK] = None


@runs_with(SampleSettings)
def sample(flow: FlowModel, n: int, settings: SampleSettings) -> Tensor:
    """Sample images, the same for the same seed; where the model overflows, at a lower temperature, see ``overflow``.

    In another precision than float32 ``decode`` of the same latents gives slightly other images.

    >>> flow = flowcore.load("glow-photos")
    >>> flowcore.sample(flow, 2, size=(32, 48), temperature=0.8, seed=1).shape
    torch.Size([2, 3, 32, 48])

    Args:
        flow: An unconditional model, or one that is conditioned on labels.
        n: Number of images.
        settings: The options below, by name.

    Returns:
        ``(n, C, H, W)`` in [0, 1] unless ``clamp`` is False, float32 (float64 if the flow is), on the CPU.

    Raises:
        FlowError: If the model makes images from an image, an argument is out of its range, or the size is missing.
        ConditionError: If labels are missing, superfluous, or not as many as images; if there is no guidance.
        ShapeError: If the model cannot make that size.
    """
    flow.require("sample")
    require_full_precision(next(flow.parameters()).dtype)
    n = check_value("samples", n, int, Range(1, MAX_DRAWS))
    height, width = flow.sides(settings.size)
    shapes = flow.latent_shapes(height, width)
    numbers = check_labels(flow, settings.labels, n)
    run = Runner(flow, settings, ADVICE)

    def task() -> Tensor:
        latents = sample_latents(shapes, n, settings.temperature, settings.seed, mark=settings.mark)
        if settings.styles:
            latents = apply_style(flow, [z.to(run.device) for z in latents], settings.styles)
        cond = None if numbers is None else run.compiled.encode_condition(numbers.to(run.device))
        cond = with_guidance(flow, cond, settings.guidance)
        given = {"denoise": settings.denoise, "snapped": settings.snapped, "clamp": settings.clamp}
        return _decode(run, flow, latents, cond, "cpu", **given)

    return run.retry_on_oom(task)


@runs_with(BatchOptions)
def encode(flow: FlowModel, image: Tensor, cond: Condition | None = None, *, settings: BatchOptions) -> list[Tensor]:
    """Encode images exactly: ``decode`` gives them back, up to rounding.

    Runs in the flow's own precision, whatever autocast is in force: the latents of a lower one would not decode to the
    same image.

    >>> flow, image = flowcore.load("glow-photos"), torch.rand(1, 3, 32, 48)
    >>> latents = flowcore.encode(flow, image)
    >>> torch.allclose(flowcore.decode(flow, latents), image, atol=1e-4)
    True

    Args:
        flow: The model.
        image: ``(B, C, H, W)`` of a size that the model takes: float in [0, 1], not clamped, or uint8, divided by 255.
        cond: From ``flow.encode_condition``, of one image or of as many as there are; None for unconditional models.
        settings: The options below, by name.

    Returns:
        Latents, finest first, float32 (float64 if the flow is), on the device of the image.

    Raises:
        ImageError: If there are no pixels, or values that are not finite numbers or have no finite latents.
        ShapeError: If the model does not take images of that shape.
        ConditionError: If the condition is missing, superfluous, or not of as many images.
        PrecisionError: If the flow was converted to a low precision.
    """
    run = Runner(flow, settings, ADVICE, image)

    def task() -> list[Tensor]:
        pixels = check_image(flow, image)
        notify_of_range(image, run.notify)
        require_full_precision(run.dtype)
        if cond is not None:
            cond.check_batch(len(pixels))
        run.expect(len(pixels) * (run.compiled.units + 1))
        encoded: list[list[Tensor]] = []
        for part in run.batches(len(pixels), batch_size(*pixels.shape[2:])):
            x, batch_cond = pixels[part], _select(run, cond, part)
            with run.counting(len(x) * run.compiled.units, len(x)):
                latents = run.compiled.encode(x.to(run.device), batch_cond)
            finite = torch.stack([z.isfinite().flatten(1).all(1) for z in latents]).all(0)  # (B,)
            if not finite.all():
                i = int((~finite).nonzero()[0])
                low, high = float(x[i].min()), float(x[i].max())
                raise ImageError(
                    f"Image {part.start + i} has no finite latents: the model is unstable there, or does not reach it. "
                    f"Its values go from {low:.3g} to {high:.3g}; expected are 0 to 1. Clamp it, or choose another "
                    "image."
                )
            encoded.append([z.to(pixels.device) for z in latents])
            run.advance(len(x))
        return [torch.cat(level) for level in zip(*encoded, strict=True)]

    return run.retry_on_oom(task)


@dataclass(frozen=True, kw_only=True)
class DecodeSettings(BatchOptions):
    """Options of ``decode``."""

    clamp: Annotated[bool, python("Whether to clamp the images to [0, 1].")] = False
    guidance: Annotated[float | Guidance, GUIDANCE] = 0.0
    denoise: Annotated[bool, DENOISE] = False


@runs_with(DecodeSettings)
def decode(
    flow: FlowModel, latents: Sequence[Tensor], cond: Condition | None = None, *, settings: DecodeSettings
) -> Tensor:
    """Decode latents to images.

    Runs in the flow's own precision, whatever autocast is in force; the exact inverse of ``encode``, but where the
    model overflows, which is decoded at a lower temperature, and unless there is guidance or noise is removed.

    >>> flow = flowcore.load("glow-photos")
    >>> latents = flowcore.encode(flow, torch.rand(2, 3, 32, 48))
    >>> between = flowcore.interpolate([z[:1] for z in latents], [z[1:] for z in latents], 0.5)
    >>> flowcore.decode(flow, between, clamp=True).shape
    torch.Size([1, 3, 32, 48])

    Args:
        flow: The model.
        latents: Finest first, each ``(B, C_l, H_l, W_l)``, as ``encode`` returned them.
        cond: As in ``encode``.
        settings: The options below, by name.

    Returns:
        ``(B, C, H, W)``, not clamped unless asked, float32 (float64 if the flow is), on the device of the latents.

    Raises:
        ShapeError: If the latents are not of this model.
        ConditionError: If the condition is missing, superfluous, or not of as many images.
        PrecisionError: If the flow was converted to a low precision.
    """
    levels = check_latents(latents)
    run = Runner(flow, settings, ADVICE)

    def task() -> Tensor:
        guided_cond, device = with_guidance(flow, cond, settings.guidance), levels[0].device
        return _decode(run, flow, levels, guided_cond, device, denoise=settings.denoise, clamp=settings.clamp)

    return run.retry_on_oom(task)


def _decode(
    run: Runner,
    flow: FlowModel,
    latents: Sequence[Tensor],
    cond: Condition | None,
    device: torch.device | str,
    *,
    denoise: bool,
    clamp: bool,
    snapped: bool = False,
) -> Tensor:
    """Decode latents to finite images on a device, see ``decode`` and ``sample``; and report where the model overflows.

    ``denoise`` adds TarFlow's ``sigma^2 grad log p(x)``.
    """
    require_full_precision(run.dtype)
    compiled, count = run.compiled, len(latents[0])
    if cond is not None:
        cond.check_batch(count)
    _announce(run, flow, latents, cond)
    run.expect(count * (compiled.units + 1))
    upscales = flow.capabilities.source == "low_resolution"
    max_deviation = upscale.MAX_DEVIATION if upscales else MAX_DEVIATION
    sigma = noise_level(flow) if denoise else 0.0
    gray = torch.full((1, flow.channels, 1, 1), 0.5)
    overflows, result = overflow.OverflowCounts(), torch.empty(0)
    for part in run.batches(count, batch_size(*size_of_latents(flow, latents))):
        z, batch_cond = [level[part].to(run.device, run.dtype) for level in latents], _select(run, cond, part)
        with run.counting(len(z[0]) * compiled.units, len(z[0])):
            decoder = overflow.bounded_decoder(compiled, batch_cond, max_deviation)
            decoded = overflow.decode_with_backoff(decoder, z, lambda: gray)
        overflows.add(part.start, decoded.attenuated, decoded.filled)
        images = decoded.images
        if sigma:
            unguided = None if batch_cond is None else replace(batch_cond, guidance=None)
            images = images + sigma**2 * compiled.gradient(images, unguided)
        images = images.to(device)
        del z, decoded  # frees memory for the next batch
        images = quantize(flow, images) if snapped else images
        shown = images.clamp(0, 1)
        if not part.start:
            result = images.new_empty((count, *images.shape[1:]))
        result[part] = shown if clamp else images
        for picture in shown:
            run.advance(preview=picture)
    overflows.report(run.notify, result[0, 0].numel(), say("left gray"))
    return result


def _select(run: Runner, cond: Condition | None, part: slice) -> Condition | None:
    """Select the condition of some images; all share a condition of one image."""
    if cond is None:
        return None
    return select_items(cond, torch.arange(part.start, part.stop)).map_tensors(lambda t: t.to(run.device, run.dtype))


def _announce(run: Runner, flow: FlowModel, latents: Sequence[Tensor], cond: Condition | None) -> None:
    """Tell the caller how long decoding patch by patch will take, from timing a few, unless it is short."""
    compiled, images = run.compiled, len(latents[0])
    networks = (part.network for part in compiled.modules() if isinstance(part, Autoregression))
    predictors: list[Any] = [network for network in networks if isinstance(network, Folded)]
    if not predictors or compiled.units < NOTEWORTHY:
        return
    height, width = size_of_latents(flow, latents)
    at_once = min(images, run.at_once(batch_size(height, width)))
    gigabytes = memory_required(flow, images, height, width) / 1e9
    passes = 1 if cond is None or cond.guidance is None else 2
    seconds = predictors[0].seconds(passes * at_once) * compiled.units * math.ceil(images / at_once)
    run.notify(
        "{count} pictures, each of {patches} patches one after the other, will take about {gigabytes} GB of memory "
        "beside the model and {duration}.",
        count=images,
        patches=compiled.units,
        gigabytes=f"{gigabytes:.1f}",
        duration=duration(seconds),
    )


def with_guidance(flow: FlowModel, cond: Condition | None, guidance: float | Guidance) -> Condition | None:
    """Add guidance to a condition; ConditionError for models that were not made for it."""
    weight = guidance.weight if isinstance(guidance, Guidance) else guidance
    if not weight:
        return cond
    if cond is None or not flow.capabilities.guided:
        raise ConditionError(f"{UNGUIDED}; this {flow.architecture} model is not. Set guidance to 0.")
    return cond.guided(guidance)


def noise_level(flow: FlowModel) -> float:
    """Return the deviation of the Gaussian noise that a model was trained with, of images in [0, 1]; 0 for none."""
    return flow.facts.noise / 2


def dequantized_image(flow: FlowModel, image: Tensor, *, seed: int = 0) -> Tensor:
    """Add the noise that training adds, uniform within a bin or Gaussian, to image i that of ``seed + i``."""
    pixels = check_image(flow, image)
    bins, sigma = quantization(flow), noise_level(flow)
    draw = torch.randn if sigma else torch.rand
    generators = [torch.Generator("cpu").manual_seed((seed + i) % 2**64) for i in range(len(pixels))]
    noise = torch.stack([draw(pixels.shape[1:], generator=generator) for generator in generators]).to(pixels)
    return pixels + sigma * noise if sigma else bins.place(to_integers(pixels, bins.n_bits)[0], noise)


@dataclass(frozen=True, kw_only=True)
class MorphSettings(ReportOptions):
    """Options of ``morph``."""

    frames: Annotated[
        int,
        count(
            2,
            note="Both images count: 2 is the images alone.",
            help="Frames from one image to the next, both included.",
        ),
    ] = 24
    mode: Annotated[Mode, Setting(help="How the walk goes, see ``interpolate``.")] = "slerp"
    loop: Annotated[
        bool, Setting(help="Whether to walk from the last image back to the first, so that the film repeats.")
    ] = False
    fit: Annotated[Fit, Setting(help="How images are brought to the size of the model, see ``prepare_input``.")] = (
        "resize"
    )


@runs_with(MorphSettings)
def morph(flow: FlowModel, images: Tensor | Sequence[Tensor], settings: MorphSettings) -> Tensor:
    """Encode images, walk through their latents from each to the next, and decode the walk: ``(N, C, h, w)`` in [0, 1].

    Every image appears once, as the model takes it (see ``prepare_input``). ``images`` may be a list of images of any
    sizes, where the model has a size of its own.
    """
    flow.require("sample")
    tell, loop = settings.tell, settings.loop
    batches: list[Any] = [*images] if isinstance(images, (list, tuple)) else [images]
    fitted = [prepare_input(flow, batch, fit=settings.fit, notify=tell).pixels for batch in batches]
    if sum(map(len, fitted)) < 2:
        raise ImageError(
            "A morph needs two images or more; got one. Pass several; Flow Example takes those that you upload or drop "
            "at once."
        )
    if len({batch.shape[2:] for batch in fitted}) > 1:
        raise ImageError(
            "A morph needs images of one size, or a model with a size of its own, such as glow-photos, and fit resize. "
            "Resize the images to one size first."
        )
    pixels = torch.cat(fitted)
    pairs = [(k, k + 1) for k in range(len(pixels) - 1)] + ([(len(pixels) - 1, 0)] if loop else [])
    steps = settings.frames - 1
    encoding = len(pixels) / (len(pixels) + steps * len(pairs))  # share of the work
    latents = encode(flow, pixels, **settings.part(0, encoding))
    items = [[level[k : k + 1] for level in latents] for k in range(len(pixels))]
    walk = [
        interpolate(items[a], items[b], step / steps, mode=settings.mode) for a, b in pairs for step in range(steps)
    ]
    walk += [] if loop else items[-1:]
    levels = [torch.cat(level) for level in zip(*walk, strict=True)]
    return decode(flow, levels, **settings.part(encoding, 1 - encoding), clamp=True)


@dataclass(frozen=True, kw_only=True)
class NormalizeSettings(ReportOptions):
    """Options of ``normalize_image_latents``."""

    strength: Annotated[
        float, Setting(float, Range(-math.inf, math.inf), help="0 gives the image back, 1 the statistics of the prior.")
    ] = 1.0
    per: Annotated[Per, Setting(help="What is normalized by itself, see ``latents.normalize``.")] = "level"
    window: Annotated[int, count(1, help="Side of the window of local statistics.")] = 9


@runs_with(NormalizeSettings)
def normalize_image_latents(flow: FlowModel, image: Tensor, settings: NormalizeSettings) -> Tensor:
    """Encode an image given its own small version, bring the latents to the prior's statistics, and decode them.

    The small version keeps what the image shows; the latents hold its texture, in which seams, dither and compression
    are unlikely. At strength 0 the image comes back; 1 gives the latents the statistics of the prior, see
    ``latents.normalize``. Sides are padded by reflection. Alpha is kept, and gray images stay gray.

    Source: Lugmayr et al., "SRFlow" (2020), sections 4.3 (content transfer) and 4.4 (restoration).
    """
    flow.require("upscale")
    step = math.lcm(flow.condition_scale, flow.size_multiple)
    images = ImageBatch(image)
    height, width = images.rgb.shape[-2:]
    padded = pad_symmetric(images.extended_rgb, (0, -width % step, 0, -height % step))
    cond = condition_for(
        flow,
        None,
        downsample(padded, flow.condition_scale).clamp(0, 1),
        cancelled=settings.cancelled,
        notify=settings.notify,
    )
    latents = encode(flow, padded, cond, **settings.part(0, 0.5))
    latents = normalize(latents, settings.strength, settings.per, window=settings.window)
    decoded = decode(flow, latents, cond, **settings.part(0.5, 0.5), clamp=True)[..., :height, :width]
    pairs = zip(images.is_gray, decoded.split(1), strict=True)
    return images.to_input_layout(torch.cat([luma(one).expand_as(one) if gray else one for gray, one in pairs]))
