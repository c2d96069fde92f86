"""Generate: images out of nothing but a seed, and images through their latents: exact, editable, and back.

    seed -> latents -> image          sample
    image -> latents -> image         encode, decode, reconstruct
    image -> latents -> other image   style_transfer, content_transfer, apply_style

What is done to latents in between is in ``flowcore/latents.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..condition import Condition
from ..dequantization import quantization, quantize, to_integers
from ..flow import Flow
from ..inference.plan import planned
from ..prior import sample_latents
from . import Precision, Progress, overflow, upscale
from .directions import apply_style
from .passes import (
    SMALLER,
    Labels,
    Meter,
    check_image,
    check_labels,
    check_latents,
    check_size,
    decode_batches,
    decode_guarded,
    encode_batches,
    home_of,
    label_condition,
    log,
    report_repairs,
    run_batches,
)
from .runner import images_at_once, plan_for, retry_on_oom


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
            ``dequantization.quantize``.
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
    flow.require("sample")
    device, dtype = home_of(flow)
    height, width = check_size(flow, size)
    latents = sample_latents(flow.latent_shapes(height, width), n, temperature, seed)
    if styles:
        latents = apply_style(flow, [z.to(device) for z in latents], styles)
    wanted = check_labels(flow, labels, n)
    result = torch.empty((n, flow.channels, height, width), dtype=torch.float32, device="cpu")
    plan = plan_for(flow, precision, notify or log.warning)
    meter = Meter(plan, n, progress, cancelled)
    repairs = overflow.Repairs()

    def some(start: int, stop: int) -> None:
        cond = None if wanted is None else label_condition(flow, wanted[start:stop])
        pictures = decode_guarded(plan, [z[start:stop].to(device, dtype) for z in latents], cond, start, repairs)
        pictures = pictures.to("cpu", torch.float32)
        result[start:stop] = (quantize(flow, pictures) if snapped else pictures).clamp(0, 1)
        meter.finish(result[start:stop])

    run_batches(plan, n, batch or images_at_once(height, width), meter, some, notify)
    report_repairs(repairs, result, notify)
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
    pixels = check_image(flow, image)
    return encode_batches(flow, pixels, cond, batch, Meter(planned(flow), len(pixels), progress, cancelled), notify)


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
    levels = check_latents(latents)
    home_of(flow)  # refuses a low precision
    meter = Meter(planned(flow), levels[0].shape[0], progress, cancelled)
    return decode_batches(flow, levels, cond, batch, meter, notify)


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
    pixels = check_image(flow, image)
    meter = Meter(planned(flow), 2 * len(pixels), progress, cancelled)
    again = decode_batches(flow, encode_batches(flow, pixels, cond, batch, meter), cond, batch, meter)
    return again, (again - pixels).abs().flatten(1).amax(1)


def dequantized_image(flow: Flow, image: Tensor, *, seed: int = 0) -> Tensor:
    """Give an image the noise of one bin, as those that the model was trained on have it.

    A model of few bits has never seen a pixel that lies exactly on a grey level: the black around a digit, say, has
    latents far from anything typical, and what is made of them under another label falls apart. ``dequantization``'s
    ``quantize`` takes the noise off again.

    Args:
        flow: The model.
        image: As in ``encode``.
        seed: Image i is given the noise of ``seed + i``.

    Returns:
        ``(B, C, H, W)``, float32 (float64 if the flow is), on the device of the image.

    Raises:
        ImageError: As in ``encode``.
    """
    pixels = check_image(flow, image)
    bins = quantization(flow)
    noise = [
        torch.rand(pixels.shape[1:], generator=torch.Generator("cpu").manual_seed((seed + i) % 2**64))
        for i in range(len(pixels))
    ]
    return bins.place(to_integers(pixels, bins.n_bits)[0], torch.stack(noise).to(pixels))


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
    if flow.capabilities.source == "low_resolution":
        small = (-(-side // flow.condition_scale) for side in (height, width))
        return at_once * upscale.memory_required(flow, *small)
    hidden = {"glow": 3 / 4, "realnvp": 4.0}.get(flow.architecture, 0.0) * flow.config.hidden
    return round(4 * at_once * height * width * (8 * flow.channels + hidden))
