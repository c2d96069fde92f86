"""Colorize the frames of a clip alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..condition import Condition
from ..errors import FlowError, ShapeError
from ..flow import Flow
from ..prior import sample_latents
from . import Precision, Progress
from .chroma import Colorization, Gamut, blend_latents, check_blend, check_colors
from .colorize import ADVICE, AT_ONCE
from .hints import Hints
from .runner import Runner, RunOptions, SamplingOptions


def colorize_video(
    flow: Flow,
    frames: Tensor,
    *,
    temperature: float | None = None,
    detail: float | None = None,
    seed: int = 0,
    saturation: float = 1.0,
    working_size: int | None = None,
    hints: Hints | None = None,
    latents: Sequence[Tensor] | None = None,
    latents_strength: float = 1.0,
    latents_levels: int = 2,
    carry: float = 0.0,
    chunk: int = AT_ONCE,
    gamut: Gamut = "compress",
    precision: Precision = "float32",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
    before: list[Tensor] | None = None,
) -> Tensor:
    """Color the frames of one clip from the same latents, optionally with colors carried along.

    Args:
        flow: A colorizer.
        frames: ``(T, C, H, W)`` in order; see ``colorize``.
        temperature: See ``colorize``.
        detail: See ``colorize``.
        seed: See ``colorize``; one for all frames.
        saturation: See ``colorize``.
        working_size: See ``colorize``.
        hints: One for all frames, or one per frame; without refinement.
        latents: See ``colorize``; 1 item.
        latents_strength: See ``colorize``.
        latents_levels: See ``colorize``.
        carry: Share of the previous frame's coarsest chroma in each frame, in [0, 1). More is steadier, and slower to
            follow a cut.
        chunk: Frames decoded together. Changes memory and time, not the result.
        gamut: See ``colorize``.
        precision: See ``colorize``.
        progress: See ``colorize``.
        cancelled: See ``colorize``.
        notify: See ``colorize``.
        before: For a clip that comes in parts: an empty list with the first part, and the same list with all others. It
            receives what the next part needs. None: these are all frames.

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
    options = RunOptions(precision=precision, batch=chunk, progress=progress, cancelled=cancelled, notify=notify)
    check_blend(latents_strength, latents_levels)
    check_colors(saturation, gamut)
    run = Runner(flow, options, ADVICE, frames)

    def task() -> tuple[Tensor, list[Tensor]]:
        job = Colorization(run, flow, frames, working_size, frames=True)
        wanted = None if hints is None else hints.expand(len(job.y))
        z = sample_latents(job.shapes, 1, job.temperatures(temperature, detail), seed=drawing.seed)
        if latents is not None:
            given = job.resize_latents(latents, 0)
            if len(latents[0]) != 1:
                raise ShapeError(f"A clip takes the latents of 1 picture; got those of {len(latents[0])}.")
            z = blend_latents(z, given, latents_strength, latents_levels)
        carried = list(before or [])  # what the last frame's coarsest level decoded to

        def carry_on(_cond: Condition, level: int, x: Tensor) -> Tensor:
            if level < len(z) - 1:
                return x
            mixed: list[Tensor] = []
            for own in x.split(1):
                mixed.append(torch.lerp(own, carried[0], carry) if carried else own)
                carried[:] = mixed[-1:]
            return torch.cat(mixed)

        at_once = run.at_once(AT_ONCE)
        chunks = [slice(start, min(start + at_once, len(job.y))) for start in range(0, len(job.y), at_once)]
        run.expect(2 * len(chunks))
        pictures: list[Tensor] = []
        for part in chunks:
            planes = job.hint_planes(wanted, part)
            shared = [level.to(run.device).expand(part.stop - part.start, -1, -1, -1) for level in z]
            chroma = job.decode(shared, job.condition(part, planes), job.clamp, carry_on, job.locking(planes))
            pictures.append(job.finish(chroma, part, wanted, saturation, gamut))
            run.advance(preview=pictures[-1][-1, :3])
        return torch.cat(pictures), carried

    result, carried = run(task)
    if before is not None:
        before[:] = carried
    return result
