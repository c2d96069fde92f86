"""Rescale: a photograph becomes a small ordinary picture, which one model brings back.

Shrinking keeps the image that everyone sees in the small picture and what it cannot show in the model's latents, which
are drawn anew when it is restored. The model puts as much into the small picture as 8 bits and a natural look allow,
so only the small picture is stored; and it restores its own small pictures only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..errors import ImageError
from ..flow import Flow
from ..images.color import as_stored
from ..images.resize import resize
from ..inference.condition_cache import ConditionStore
from ..prior import Temperature
from .intake import resolve, validate_image, with_alpha
from .runner import Reporting, Runner, Running, RunOptions, check_draws, runs_with
from .tiles import TiledDecoder
from .upscale import HALO, TILING, border, pad

ADVICE = "Shrink a smaller image, or free memory on the device."
RESTORE_ADVICE = "Set tile to 32, ask for fewer samples, restore a smaller image, or free memory on the device."


@runs_with(Reporting)
def shrink(flow: Flow, image: Tensor, **options: Unpack[Reporting]) -> Tensor:
    """Shrink photographs to small pictures that ``restore`` brings back.

    >>> flow = flowcore.load("hcflow-rescaling.safetensors")
    >>> flowcore.shrink(flow, torch.rand(1, 3, 48, 64)).shape
    torch.Size([1, 3, 12, 16])

    Args:
        flow: A rescaling model.
        image: ``(B, C, H, W)`` in [0, 1], any size from 1x1, float of any precision or uint8 in [0, 255]; values
            outside are clamped. C is 3; or 1 (gray, which becomes color: colors carry detail); or 4, whose alpha is
            shrunk by a bicubic resize. Sides that the model's scale does not divide are extended to the right and
            below.
        options: How to run, see ``RunOptions``.

    Returns:
        ``(B, 3 or 4, ceil(H / s), ceil(W / s))`` float32 in [0, 1], rounded to 8 bits, on the device of ``image``.
        Store it without loss: JPEG destroys what it holds.

    Raises:
        ImageError: If the batch is empty, has no pixels, a wrong number of channels, or values that are not numbers.
        FlowError: If the model does not rescale, or memory does not suffice.
        Cancelled: If stopped.

    Source: Xiao et al., "Invertible Image Rescaling" (ECCV 2020); Liang et al., "Hierarchical Conditional Flow" (2021),
    section 3.
    """
    flow.require("rescale")
    run = Runner(flow, RunOptions(**options), ADVICE, image)

    def task() -> Tensor:
        rgb, alpha = validate_image(image)
        scale, (height, width) = flow.condition_scale, rgb.shape[-2:]
        _, right, _, below = added = border(height, width, scale)
        if right or below:
            run.notify(
                f"The image was extended from {width}x{height} to {width + right}x{height + below}: its sides must be "
                f"divisible by {scale}. Crop what comes back to {width}x{height}."
            )
        run.expect(len(rgb))
        small: list[Tensor] = []
        for item in rgb:
            run.check_cancelled()
            reduced = run.plan.reduce(pad(item[None], added).to(run.device, run.dtype))
            small.append(as_stored(reduced).to(image.device, torch.float32))
            run.advance(preview=small[-1][0])
        result = torch.cat(small)
        if alpha is None:
            return result
        alpha = resize(pad(alpha, added), *result.shape[-2:])
        return torch.cat([result, as_stored(alpha)], dim=1)

    return run(task)


@runs_with(Running)
def restore(
    flow: Flow,
    small: Tensor,
    *,
    temperature: Temperature | None = None,
    seed: int = 0,
    samples: int = 1,
    size: tuple[int, int] | None = None,
    tile: int = 0,
    halo: int = HALO,
    store: ConditionStore | None = None,
    **options: Unpack[Running],
) -> Tensor:
    """Restore photographs from the small pictures that ``shrink`` made of them.

    >>> flow = flowcore.load("hcflow-rescaling.safetensors")
    >>> small = flowcore.shrink(flow, torch.rand(1, 3, 45, 64))
    >>> flowcore.restore(flow, small, size=(45, 64)).shape
    torch.Size([1, 3, 45, 64])

    Args:
        flow: The rescaling model that shrank them; another gives a wrong picture.
        small: ``(B, C, h, w)`` in [0, 1], as ``shrink`` returns it or uint8. A picture that was shrunk otherwise is
            enlarged, but not well.
        temperature: As in ``upscale``; None for the model's own. 0 gives the mean of what the small picture leaves
            open.
        seed: As in ``upscale``; so are the arguments that are not named here.
        samples: See ``upscale``.
        size: Height and width of the original, whose extension is cropped away; None keeps all.
        tile: See ``upscale``.
        halo: See ``upscale``.
        store: See ``upscale``.
        options: How to run, see ``RunOptions``.

    Returns:
        ``(B * samples, 3 or 4, s * h, s * w)``, or of ``size``, float32 in [0, 1] on the device of ``small``: all
        samples of picture 0, then of picture 1.

    Raises:
        ImageError: As in ``upscale``; or if ``size`` is not what shrinks to the picture's size.
        FlowError: If the model does not rescale, or as in ``upscale``.
        Cancelled: If stopped.

    Source: as ``shrink``.
    """
    flow.require("rescale")
    check_draws(seed, samples)
    run = Runner(flow, RunOptions(**options), RESTORE_ADVICE, small)
    decoder = TiledDecoder(TILING, run, flow, tile, halo, store)
    tau = resolve(flow, {"temperature": temperature})["temperature"]

    def task() -> Tensor:
        rgb, alpha = validate_image(small)
        scale, sides = flow.condition_scale, tuple(rgb.shape[-2:])
        height, width = (side * scale for side in sides) if size is None else size
        if (-(-height // scale), -(-width // scale)) != sides:
            raise ImageError(
                f"size must be that of an image which shrinks {scale} times to {sides[0]}x{sides[1]} (height x width), "
                f"such as {sides[0] * scale}x{sides[1] * scale}; got {height}x{width}."
            )
        pictures = decoder(rgb, [(tau, 0.0)], seed, samples).to(small.device)
        return with_alpha(pictures, alpha)[..., :height, :width]

    return run(task, decoder.tiles.halve)
