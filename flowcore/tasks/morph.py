"""Edits in the latents: images that morph into each other, and edited ones as the model would have drawn them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..errors import FlowError, ImageError
from ..flow import Flow
from ..images.resize import pad_symmetric
from ..latents import Mode, Per, interpolate, normalize
from .runner import Reporting, part_of_run, runs_with
from .sample import decode, encode
from .subject import Fit, prepare_subject

log = logging.getLogger("flowcore")


@runs_with(Reporting)
def morph(
    flow: Flow,
    images: Tensor | Sequence[Tensor],
    *,
    frames: int = 24,
    mode: Mode = "slerp",
    loop: bool = False,
    fit: Fit = "resize",
    **options: Unpack[Reporting],
) -> Tensor:
    """Encode images, walk through their latents from each to the next, and decode the walk: ``(N, C, h, w)`` in [0, 1].

    From one image to the next are ``frames``, both included; every image stands at its place, as the model takes it
    (see ``prepare_subject``), and none twice. ``loop`` walks from the last image back to the first, so that the film
    repeats. ``images`` may be a list of images of any sizes, where the model has a size of its own.
    """
    flow.require("sample")
    batches = [images] if isinstance(images, Tensor) else images
    if sum(map(len, batches)) < 2:
        raise ImageError("A morph needs two images or more; got one. Pass a batch, such as two images in Batch Images.")
    if frames < 2:
        raise FlowError(f"frames must be at least 2; got {frames}. Both images count: 2 is the images alone.")
    notify = options.get("notify") or log.warning
    fitted = [prepare_subject(flow, batch, fit=fit, notify=notify).pixels for batch in batches]
    if len({batch.shape[2:] for batch in fitted}) > 1:
        raise ImageError(
            "A morph needs images of one size, or a model with a size of its own, such as glow-photos, and fit resize. "
            "Resize the images to one size first."
        )
    pixels = torch.cat(fitted)
    pairs = [(k, k + 1) for k in range(len(pixels) - 1)] + ([(len(pixels) - 1, 0)] if loop else [])
    steps = frames - 1
    encoding = len(pixels) / (len(pixels) + steps * len(pairs))  # share of the work
    latents = encode(flow, pixels, **part_of_run(options, 0, encoding))
    items = [[level[k : k + 1] for level in latents] for k in range(len(pixels))]
    walk = [interpolate(items[a], items[b], step / steps, mode=mode) for a, b in pairs for step in range(steps)]
    if not loop:
        walk.append(items[-1])
    levels = [torch.cat(level) for level in zip(*walk, strict=True)]
    return decode(flow, levels, **part_of_run(options, encoding, 1 - encoding), clamp=True)


@runs_with(Reporting)
def harmonize(
    flow: Flow,
    image: Tensor,
    *,
    strength: float = 1.0,
    per: Per = "level",
    window: int = 9,
    **options: Unpack[Reporting],
) -> Tensor:
    """Encode an image under its own small version, bring the latents to the prior's statistics, and decode them.

    The small version keeps what the image shows; the latents hold its texture, in which seams, dither and compression
    are unlikely. At strength 0 the image comes back; 1 gives the latents the statistics of the prior, see
    ``latents.normalize``. Inside, the image is padded by reflection to sides that the model takes.

    Source: Lugmayr et al., "SRFlow" (2020), sections 4.3 (content transfer) and 4.4 (restoration).
    """
    flow.require("upscale")
    step = math.lcm(flow.condition_scale, flow.size_multiple)
    height, width = image.shape[-2:]
    padded = pad_symmetric(image, (0, -width % step, 0, -height % step)) if image.numel() else image
    subject = prepare_subject(flow, padded, fit="crop", notify=lambda _: None)
    cond = subject.condition(flow, **options)
    latents = encode(flow, subject.pixels, cond, **part_of_run(options, 0, 0.5))
    ordered = normalize(latents, strength, per, window=window)
    return decode(flow, ordered, cond, **part_of_run(options, 0.5, 0.5), clamp=True)[..., :height, :width]
