"""Sample: images from a seed, and exact passes between images and latents.

    seed -> latents -> image          sample
    image -> latents -> image         encode, decode

``flowcore/latents.py`` has the operations on latents in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..condition import Condition, Guidance
from ..dequantization import quantization, quantize, to_integers
from ..device import require_full_precision
from ..errors import ConditionError
from ..flow import UNGUIDED, Flow
from ..prior import sample_latents
from . import upscale
from .directions import apply_style
from .options import Batching, Running, RunOptions, SamplingOptions, runs_with
from .passes import ADVICE, Labels, Passes, check_image, check_labels, check_latents
from .runner import Runner, images_at_once
from .subject import size_of_latents

LARGE = 2**28  # bytes of weights


@runs_with(Running)
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
    clamp: bool = True,
    guidance: float | Guidance = 0.0,
    denoise: bool = True,
    **options: Unpack[Running],
) -> Tensor:
    """Sample images. Where the model overflows, they are drawn at a lower temperature, see ``overflow``.

    In another precision than float32 ``decode`` of the same latents gives slightly other images.

    >>> flow = flowcore.load("glow-photos")
    >>> flowcore.sample(flow, 2, size=(32, 48), temperature=0.8, seed=1).shape
    torch.Size([2, 3, 32, 48])

    Args:
        flow: An unconditional model, or one that is conditioned on labels.
        n: Number of images.
        size: Height and width, or the side of a square; None for the size that the model was made for.
        temperature: Standard deviation of the latents, >= 0: one, or one per level, finest first. At 0 all images are
            alike, 1 is the model's own spread.
        seed: Image i is drawn with ``seed + i``, whatever n and the batch.
        labels: For conditioned models what to show: one label for all images, or one per image, 0 to
            ``flow.classes - 1``, or its name; ``flow.classes`` itself is "unlabeled" for a class-conditional model (10
            of ``mnist-styles``) or a TarFlow. Or weights of the labels, ``(n or 1, classes)``.
        styles: Name to strength, for models that carry styles; see ``apply_style``.
        snapped: Whether to remove the dequantization noise that a model draws with an image; see
            ``dequantization.quantize``.
        clamp: Whether to clamp the images to [0, 1]; False for the values that the flow computes.
        guidance: How far images are led to their labels, for models made for it (TarFlow): 0 for not, 1 to 3 are usual.
        denoise: Whether to remove the Gaussian noise that a model was trained with, where it states one (TarFlow).
        options: How to run, see ``RunOptions``.

    Returns:
        ``(n, C, H, W)`` in [0, 1] unless ``clamp`` is False, float32 (float64 if the flow is), on the CPU.

    Raises:
        FlowError: If the model makes images from an image, an argument is out of its range, or the size is missing.
        ConditionError: If labels are missing, superfluous, or not as many as images; if there is no guidance.
        ShapeError: If the model cannot make that size.
        Cancelled: If stopped.
    """
    flow.require("sample")
    require_full_precision(next(flow.parameters()).dtype)
    drawing = SamplingOptions(seed=seed, samples=n)
    height, width = flow.sides(size)
    shapes = flow.latent_shapes(height, width)
    numbers = check_labels(flow, labels, n)
    run = Runner(flow, RunOptions(**options), ADVICE)

    def task() -> Tensor:
        latents = sample_latents(shapes, n, temperature, drawing.seed)
        if styles:
            latents = apply_style(flow, [z.to(run.device) for z in latents], styles)
        passes = Passes(run, n)
        passes.announce(n, height * width, memory_required(flow, n, height, width), guided=_weight(guidance) > 0)
        result = torch.empty((n, flow.channels, height, width), dtype=run.dtype, device="cpu")
        for part in passes.batches(n, height * width):
            cond = guided(flow, passes.encode_labels(None if numbers is None else numbers[part]), guidance)
            own = [z[part] for z in latents]
            images = passes.decode_batch(own, cond, part.start, denoise=denoise).cpu()
            images = quantize(flow, images) if snapped else images
            shown = images.clamp(0, 1)
            result[part] = shown if clamp else images
            passes.finish(len(images), shown)
        return passes.report(result)

    return run(task)


@runs_with(Batching)
def encode(
    flow: Flow,
    image: Tensor,
    cond: Condition | None = None,
    **options: Unpack[Batching],
) -> list[Tensor]:
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
        options: How to run, see ``RunOptions``.

    Returns:
        Latents, finest first, float32 (float64 if the flow is), on the device of the image.

    Raises:
        ImageError: If there are no pixels, or values that are not finite numbers or have no finite latents.
        ShapeError: If the model does not take images of that shape.
        ConditionError: If the condition is missing, superfluous, or not of as many images.
        PrecisionError: If the flow was converted to a low precision.
        Cancelled: If stopped.
    """
    run = Runner(flow, RunOptions(**options), ADVICE, image)

    def task() -> list[Tensor]:
        pixels = check_image(flow, image)
        return Passes(run, len(pixels)).encode(pixels, cond)

    return run(task)


@runs_with(Batching)
def decode(
    flow: Flow,
    latents: Sequence[Tensor],
    cond: Condition | None = None,
    *,
    clamp: bool = False,
    guidance: float | Guidance = 0.0,
    denoise: bool = False,
    **options: Unpack[Batching],
) -> Tensor:
    """Decode latents to images.

    Runs in the flow's own precision, whatever autocast is in force. Where the model overflows, the latents are decoded
    at a lower temperature, see ``overflow``; everywhere else this is the exact inverse of ``encode``,
    unless there is guidance or noise is removed.

    >>> flow = flowcore.load("glow-photos")
    >>> latents = flowcore.encode(flow, torch.rand(2, 3, 32, 48))
    >>> between = flowcore.interpolate([z[:1] for z in latents], [z[1:] for z in latents], 0.5)
    >>> flowcore.decode(flow, between, clamp=True).shape
    torch.Size([1, 3, 32, 48])

    Args:
        flow: The model.
        latents: Finest first, each ``(B, C_l, H_l, W_l)``, as ``encode`` returned them.
        cond: As in ``encode``.
        clamp: Whether to clamp the images to [0, 1].
        guidance: As in ``sample``.
        denoise: As in ``sample``.
        options: How to run, see ``RunOptions``.

    Returns:
        ``(B, C, H, W)``, not clamped unless asked, float32 (float64 if the flow is), on the device of the latents.

    Raises:
        ShapeError: If the latents are not of this model.
        ConditionError: If the condition is missing, superfluous, or not of as many images.
        PrecisionError: If the flow was converted to a low precision.
        Cancelled: If stopped.
    """
    levels = check_latents(latents)
    run = Runner(flow, RunOptions(**options), ADVICE)

    def task() -> Tensor:
        passes, (height, width) = Passes(run, len(levels[0])), size_of_latents(flow, levels)
        memory = memory_required(flow, len(levels[0]), height, width)
        passes.announce(len(levels[0]), height * width, memory, guided=_weight(guidance) > 0)
        images = passes.decode(levels, guided(flow, cond, guidance), denoise=denoise)
        return images.clamp(0, 1) if clamp else images

    return run(task)


def guided(flow: Flow, cond: Condition | None, guidance: float | Guidance) -> Condition | None:
    """Lead decoding to the labels of a condition; ConditionError for models that cannot be led."""
    if not _weight(guidance):
        return cond
    if cond is None or not flow.capabilities.guided:
        raise ConditionError(f"{UNGUIDED}; this {flow.architecture} model is not. Set guidance to 0.")
    return cond.guided(guidance)


def _weight(guidance: float | Guidance) -> float:
    return guidance.weight if isinstance(guidance, Guidance) else Guidance(guidance).weight


def dequantized_image(flow: Flow, image: Tensor, *, seed: int = 0) -> Tensor:
    """Add the noise of one bin to images, which the images of the model's training have, too; image i by ``seed + i``.

    A model of few bits has never seen a pixel that lies exactly on a gray level: the latents of the black around a
    digit, say, are far from typical, and decoded under another label they fall apart. ``dequantization.quantize``
    removes the noise. For a model that was trained with Gaussian ``noise`` it is that.
    """
    pixels = check_image(flow, image)
    bins, sigma = quantization(flow), getattr(flow.config, "noise", 0.0) / 2  # of images in [0, 1]
    draw = torch.randn if sigma else torch.rand
    noise = [
        draw(pixels.shape[1:], generator=torch.Generator("cpu").manual_seed((seed + i) % 2**64))
        for i in range(len(pixels))
    ]
    if sigma:
        return pixels + sigma * torch.stack(noise).to(pixels)
    return bins.place(to_integers(pixels, bins.n_bits)[0], torch.stack(noise).to(pixels))


def memory_required(flow: Flow, images: int, height: int, width: int) -> int:
    """Estimate the bytes that one pass works with, beyond the weights, for as many images as go through at once.

    Counts, per pixel, the peak: the image and its neighbors in the chain, eight times its channels; and one network.
    Where the weights are large, the plan's copy of them counts, too.
    """
    at_once = min(images, images_at_once(height, width))
    if flow.capabilities.source == "low_resolution":
        small = (-(-side // flow.condition_scale) for side in (height, width))
        return at_once * upscale.memory_required(flow, *small)
    weights = sum(t.nbytes for t in flow.parameters())
    working = 4 * at_once * height * width * (8 * flow.channels + flow.capabilities.floats_per_pixel)
    return round(working) + (weights if weights > LARGE else 0)
