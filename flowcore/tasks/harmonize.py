"""Harmonize: an edited image as the model would have drawn it, so that what was pasted in belongs."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import Unpack

from ..flow import Flow
from ..images.resize import pad_symmetric
from ..latents import Per, normalize
from .options import Reporting, part_of_run, runs_with
from .sample import decode, encode
from .subject import prepare_subject


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
