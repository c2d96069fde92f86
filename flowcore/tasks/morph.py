"""Morph: from image to image through the latents, frame by frame."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ImageError
from ..flow import Flow
from ..latents import Mode, interpolate
from . import Progress, part_of
from .sample import decode, encode
from .subject import Fit, prepare_subject

log = logging.getLogger("flowcore")


def morph(
    flow: Flow,
    images: Tensor,
    *,
    frames: int = 24,
    mode: Mode = "slerp",
    loop: bool = False,
    fit: Fit = "resize",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Tensor:
    """Encode images, walk through their latents from each to the next, and decode the walk.

    Args:
        flow: An unconditional model that makes images from noise.
        images: ``(B, 1, 3 or 4, H, W)`` in [0, 1], B >= 2.
        frames: From one image to the next, both included, at least 2.
        mode: The path between two latents; see ``latents.interpolate``.
        loop: Whether to walk from the last image back to the first, so that the film can be repeated.
        fit: How images are brought to the model's size; see ``prepare_subject``.
        progress: Called with ``(done, total, preview)``.
        cancelled: Asked before every network layer; returns True (or raises) to stop.
        notify: Called with a sentence when something is done otherwise than asked; None logs it.

    Returns:
        ``(N, C, h, w)`` in [0, 1]; every image stands at its place, as the model takes it, and none twice.

    Raises:
        ImageError: If there is one image only.
        FlowError: If the model does not make images from noise.
    """
    flow.require("sample")
    if len(images) < 2:
        raise ImageError("A morph needs two images or more; got one. Pass a batch, such as two images in Batch Images.")
    pixels = prepare_subject(flow, images, fit=fit, notify=notify or log.warning).pixels
    pairs = [(k, k + 1) for k in range(len(pixels) - 1)] + ([(len(pixels) - 1, 0)] if loop else [])
    steps = frames - 1
    encoding = len(pixels) / (len(pixels) + steps * len(pairs))  # share of the work
    first, second = part_of(progress, 0, encoding), part_of(progress, encoding, 1 - encoding)
    latents = encode(flow, pixels, progress=first, cancelled=cancelled, notify=notify)
    items = [[level[k : k + 1] for level in latents] for k in range(len(pixels))]
    walk = [interpolate(items[a], items[b], step / steps, mode=mode) for a, b in pairs for step in range(steps)]
    if not loop:
        walk.append(items[-1])
    levels = [torch.cat(level) for level in zip(*walk, strict=True)]
    decoded = decode(flow, levels, progress=second, cancelled=cancelled, notify=notify)
    return decoded.clamp(0, 1)
