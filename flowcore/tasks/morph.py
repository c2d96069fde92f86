"""Morph: from image to image through the latents, frame by frame."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..errors import FlowError, ImageError
from ..flow import Flow
from ..latents import Mode, interpolate
from .options import Reporting, part_of_run, runs_with
from .sample import decode, encode
from .subject import Fit, prepare_subject

log = logging.getLogger("flowcore")


@runs_with(Reporting)
def morph(
    flow: Flow,
    images: Tensor,
    *,
    frames: int = 24,
    mode: Mode = "slerp",
    loop: bool = False,
    fit: Fit = "resize",
    **options: Unpack[Reporting],
) -> Tensor:
    """Encode images, walk through their latents from each to the next, and decode the walk.

    Args:
        flow: An unconditional model that makes images from noise.
        images: ``(B, C, H, W)`` in [0, 1], C = 1, 3 or 4, B >= 2.
        frames: From one image to the next, both included, at least 2.
        mode: The path between two latents; see ``latents.interpolate``.
        loop: Whether to walk from the last image back to the first, so that the film can be repeated.
        fit: How images are brought to the model's size; see ``prepare_subject``.
        options: How to run, see ``RunOptions``.

    Returns:
        ``(N, C, h, w)`` in [0, 1]; every image stands at its place, as the model takes it, and none twice.

    Raises:
        ImageError: If there is one image only.
        FlowError: If the model does not make images from noise, or there are fewer than two frames.
    """
    flow.require("sample")
    if len(images) < 2:
        raise ImageError("A morph needs two images or more; got one. Pass a batch, such as two images in Batch Images.")
    if frames < 2:
        raise FlowError(f"frames must be at least 2; got {frames}. Both images count: 2 is the images alone.")
    pixels = prepare_subject(flow, images, fit=fit, notify=options.get("notify") or log.warning).pixels
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
