"""Colorize the frames of a clip alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..condition import Condition
from ..errors import FlowError, ShapeError
from ..flow import Flow
from ..prior import sample_latents
from .chroma import Colorization, Gamut, blend_latents, check_blend, check_colors
from .coherence import share_noise
from .colorize import ADVICE, AT_ONCE
from .hints import Hints
from .options import Running, RunOptions, SamplingOptions, runs_with
from .runner import Runner


@runs_with(Running)
def colorize_video(
    flow: Flow,
    frames: Tensor,
    *,
    temperature: float | None = None,
    detail: float | None = None,
    coherence: float | None = None,
    seed: int = 0,
    saturation: float | None = None,
    working_size: int | None = None,
    hints: Hints | None = None,
    latents: Sequence[Tensor] | None = None,
    latents_strength: float = 1.0,
    latents_levels: int = 2,
    carry: float = 0.0,
    chunk: int = AT_ONCE,
    gamut: Gamut = "compress",
    before: list[Tensor] | None = None,
    **options: Unpack[Running],
) -> Tensor:
    """Color the frames of one clip from the same latents, optionally with colors carried along.

    Args:
        flow: A colorizer.
        frames: ``(T, C, H, W)`` in order; see ``colorize``.
        temperature: See ``colorize``.
        detail: See ``colorize``.
        coherence: See ``colorize``; places are similar as they are in the first frame.
        seed: See ``colorize``; one for all frames.
        saturation: See ``colorize``.
        working_size: See ``colorize``.
        hints: One for all frames, or one per frame; they are not spread.
        latents: See ``colorize``; 1 item.
        latents_strength: See ``colorize``.
        latents_levels: See ``colorize``.
        carry: Share of the previous frame's coarsest chroma in each frame, in [0, 1). More is steadier, and slower to
            follow a cut.
        chunk: Frames decoded together. Changes memory and time, not the result.
        gamut: See ``colorize``.
        before: For a clip that comes in parts: an empty list with the first part, and the same list with all others. It
            receives what the next part needs. None: these are all frames.
        options: How to run, see ``RunOptions``.

    Returns:
        ``(T, 3 or 4, H, W)``.

    Raises:
        ImageError: See ``colorize``.
        FlowError: If the model is no colorizer, or an argument is out of its range.
        ShapeError: If hints or latents do not fit.
        Cancelled: If stopped.
    """
    if not 0 <= carry < 1:
        raise FlowError(f"carry must lie in [0, 1); got {carry}.")
    if chunk < 1:
        raise FlowError(f"chunk must be at least 1; got {chunk}.")
    drawing = SamplingOptions(seed=seed)
    check_blend(latents_strength, latents_levels)
    check_colors(saturation, gamut)
    options.setdefault("batch", chunk)
    run = Runner(flow, RunOptions(**options), ADVICE, frames)

    def task() -> tuple[Tensor, list[Tensor]]:
        job = Colorization(run, flow, frames, working_size, frames=True)
        wanted = None if hints is None else hints.expand(len(job.y))
        at_once = run.at_once(AT_ONCE)
        chunks = [slice(start, min(start + at_once, len(job.y))) for start in range(0, len(job.y), at_once)]
        first, rho = slice(0, 1), job.coherence(coherence)
        run.expect(2 * len(chunks) + (rho > 0 and not before))
        *finer, coarsest = sample_latents(job.shapes, 1, job.temperatures(temperature, detail), seed=drawing.seed)
        if before:
            coarsest = before[1]
        elif rho:
            coarsest = share_noise(flow, coarsest, job.condition(first, job.hint_planes(wanted, first)), rho)
        z = [*finer, coarsest]
        if latents is not None:
            given = job.resize_latents(latents, 0)
            if len(latents[0]) != 1:
                raise ShapeError(f"A clip takes the latents of 1 picture; got those of {len(latents[0])}.")
            z = blend_latents(z, given, latents_strength, latents_levels)
        carried = [] if before is None else before[:1]  # what the last frame's coarsest level decoded to

        def carry_on(_cond: Condition, level: int, x: Tensor) -> Tensor:
            if level < len(z) - 1:
                return x
            mixed: list[Tensor] = []
            for own in x.split(1):
                mixed.append(torch.lerp(own, carried[0], carry) if carried else own)
                carried[:] = mixed[-1:]
            return torch.cat(mixed)

        own = job.own_saturation(saturation, latents)
        result: Tensor | None = None  # made whole at once: a film fills memory
        for part in chunks:
            planes = job.hint_planes(wanted, part)
            shared = [level.to(run.device).expand(part.stop - part.start, -1, -1, -1) for level in z]
            chroma = job.decode(shared, job.condition(part, planes), job.clamp, carry_on, job.locking(planes))
            pictures = job.finish(own * chroma, part, wanted, saturation, gamut)
            result = pictures.new_empty(len(job.y), *pictures.shape[1:]) if result is None else result
            result[part] = pictures
            run.advance(preview=pictures[-1, :3])
        assert result is not None
        return result, [*carried, coarsest]

    result, carried = run(task)
    if before is not None:
        before[:] = carried
    return result
