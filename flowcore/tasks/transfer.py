"""Transfer: other images from the latents of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dequantization import quantize
from ..errors import ShapeError
from ..flow import Flow
from ..latents import Per, normalize
from .passes import ADVICE, Labels, Passes, check_image, check_labels, check_pixels, refuse_nonfinite
from .runner import Runner, RunOptions
from .sample import dequantized_image


def style_transfer(
    flow: Flow, image: Tensor, label: Labels, labels: Labels, *, seed: int | None = 0, **options: Any
) -> Tensor:
    """Show other things in the style of an image: encode it with its own label, decode its latents with others.

    In a model that is conditioned on labels the latents hold everything but the label: of a digit its stroke, slant and
    width.

    Args:
        flow: A model that is conditioned on labels.
        image: As in ``encode``.
        label: What the image shows: one label, or one per image.
        labels: What to show instead.
        seed: Of the noise that the image is given first, see ``dequantized_image``; the result is snapped, which
            removes it. None encodes the image as it is, and does not snap.
        options: batch, progress, cancelled and notify, as in ``decode``.

    Returns:
        ``(B * number of labels, C, H, W)`` in [0, 1], on the device of the image: all labels of image 0, then of image
        1.

    Raises:
        ConditionError: If the model is not conditioned on labels, or a label does not exist.
        FlowError: As in ``encode``.
        Cancelled: If stopped.

    Source: Ardizzone et al., "Guided Image Generation with Conditional Invertible Neural Networks", section 4.1.
    """
    run = Runner(flow, RunOptions(**options), ADVICE, image)

    def task() -> Tensor:
        pixels = check_image(flow, image) if seed is None else dequantized_image(flow, image, seed=seed)
        own, others = check_labels(flow, label, len(pixels)), check_labels(flow, labels, None)
        assert others is not None  # models without labels have been refused
        passes = Passes(run, len(pixels) * (1 + len(others)))
        latents = passes.encode(pixels, passes.encode_labels(own))
        repeated = [z.repeat_interleave(len(others), 0) for z in latents]
        shown = passes.decode(repeated, passes.encode_labels(torch.cat([others] * len(pixels))))
        return shown.clamp(0, 1) if seed is None else quantize(flow, shown)

    return run(task)


def content_transfer(
    flow: Flow,
    edited: Tensor,
    lr: Tensor,
    *,
    strength: float = 1.0,
    per: Per = "level",
    window: int = 9,
    **options: Any,
) -> Tensor:
    """Blend an edit into an image, with an SRFlow.

    The edited HR image (something pasted in, drawn over, or restored badly) is encoded under the LR image of the wanted
    result; its latents are normalized to the statistics that the model expects, and decoded under the same LR image,
    which supplies colors and shapes, while the latents supply the pasted detail. Without normalization nothing would
    change: a flow is a bijection.

    Args:
        flow: An SRFlow.
        edited: HR images, ``(B, 3, s * h, s * w)``, as in ``encode``.
        lr: LR images of the target, ``(B or 1, 3, h, w)``, float in [0, 1] or uint8.
        strength: How far to normalize, in [0, 1]; see ``latents.normalize``.
        per: Over what the statistics are taken; see ``latents.normalize``.
        window: Side of the local window; see ``latents.normalize``.
        options: batch, progress, cancelled and notify, as in ``decode``.

    Returns:
        ``(B, 3, s * h, s * w)`` in [0, 1], on the device of ``edited``.

    Raises:
        FlowError: If the model is no SRFlow, or an argument is out of its range.
        ShapeError: If the sizes do not fit together or the model does not take them.
        Cancelled: If stopped.

    Source: Lugmayr et al., "SRFlow", image content transfer and image restoration.
    """
    flow.require("upscale")
    run = Runner(flow, RunOptions(**options), ADVICE, edited)

    def task() -> Tensor:
        pixels = check_image(flow, edited)
        small = check_pixels(lr, 3, pixels.dtype)
        sides = tuple(flow.condition_scale * side for side in small.shape[-2:])
        if tuple(pixels.shape[-2:]) != sides or small.shape[0] not in (1, len(pixels)):
            raise ShapeError(
                f"The edited images must be {flow.condition_scale} times as large as the LR images, and as many; got "
                f"{tuple(edited.shape)} and {tuple(lr.shape)}. Crop or resize one of the two."
            )
        small = small.expand(len(pixels), -1, -1, -1)
        result = torch.empty_like(pixels)
        passes = Passes(run, 2 * len(pixels))
        for part in passes.batches(len(pixels), pixels[0, 0].numel()):
            x = pixels[part]
            cond = run.plan.encode_condition(small[part].to(run.device))
            latents = run.plan.encode(x.to(run.device), cond)
            refuse_nonfinite(latents, x, part.start)
            passes.finish(len(x))
            passes.begin(len(x))
            latents = normalize(latents, strength, per, window=window)
            result[part] = passes.decode_batch(latents, cond, part.start).clamp(0, 1).to(result.device)
            passes.finish(len(x), result[part])
        return passes.report(result)

    return run(task)
