"""Transfer style or content between images through their latents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dequantization import quantize
from ..errors import ShapeError
from ..flow import Flow
from ..inference.plan import planned
from ..latents import Per, normalize
from . import Progress, overflow
from .passes import (
    SMALLER,
    Labels,
    Meter,
    check_image,
    check_labels,
    decode_batches,
    decode_guarded,
    encode_batches,
    home_of,
    label_condition,
    refuse_nonfinite,
    report_repairs,
    run_batches,
    validate_pixels,
)
from .runner import images_at_once, retry_on_oom
from .sample import dequantized_image


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
    pixels = check_image(flow, image) if seed is None else dequantized_image(flow, image, seed=seed)
    own = check_labels(flow, label, len(pixels))
    others = check_labels(flow, labels, None)
    assert own is not None  # models without labels have been refused
    assert others is not None
    meter = Meter(planned(flow), len(pixels) * (1 + len(others)), progress, cancelled)
    latents = encode_batches(flow, pixels, label_condition(flow, own), batch, meter)
    repeated = [z.repeat_interleave(len(others), 0) for z in latents]
    cond = label_condition(flow, torch.cat([others] * len(pixels)))
    pictures = decode_batches(flow, repeated, cond, batch, meter)
    return pictures.clamp(0, 1) if seed is None else quantize(flow, pictures)


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
        strength: How far to normalize, in [0, 1]; see ``latents.normalize``.
        per: Over what the statistics are taken; see ``latents.normalize``.
        window: Side of the local window; see ``latents.normalize``.
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
    flow.require("upscale")
    device, dtype = home_of(flow)
    pixels = check_image(flow, edited)
    small = validate_pixels(lr, 3, dtype)
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
    meter = Meter(plan, 2 * len(pixels), progress, cancelled)
    repairs = overflow.Repairs()

    def some(start: int, stop: int) -> None:
        cond = plan.encode_condition(small[start:stop].to(device))
        latents = plan(pixels[start:stop].to(device), cond)[0]
        refuse_nonfinite(latents, pixels[start:stop], start)
        latents = normalize(latents, strength, per, window=window)
        meter.finish()
        result[start:stop] = decode_guarded(plan, latents, cond, start, repairs).clamp(0, 1).to(result.device)
        meter.finish(result[start:stop])

    run_batches(plan, len(pixels), batch or images_at_once(*pixels.shape[-2:]), meter, some)
    report_repairs(repairs, result, None)
    return result
