"""Colorize the frames of a clip alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import FlowError, ShapeError
from ..flow import Flow
from ..prior import sample_latents
from . import Precision, Progress
from .chroma import AT_ONCE, Colorization, Gamut, blend_latents, check_draw
from .colorize import FEWER
from .hints import Hints
from .runner import retry_on_oom


@retry_on_oom(FEWER, at_once="chunk")
@torch.no_grad()
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
    """Colour the frames of one clip alike: from the same latents, and if wanted with colours carried along.

    Args:
        flow: A colorizer.
        frames: ``(T, C, H, W)`` in order; see ``colorize``.
        temperature: See ``colorize``.
        detail: See ``colorize``.
        seed: See ``colorize``; one for all frames.
        saturation: See ``colorize``.
        working_size: See ``colorize``.
        hints: One for all frames, or one per frame: told to the model, and locked if they are, but not refined.
        latents: See ``colorize``; 1 item.
        latents_strength: See ``colorize``.
        latents_levels: See ``colorize``.
        carry: Part of the previous frame's coarsest chroma that is kept, in [0, 1). More is steadier, and slower to
            follow a cut.
        chunk: Frames decoded together: memory, not result.
        gamut: See ``colorize``.
        precision: See ``colorize``.
        progress: See ``colorize``.
        cancelled: See ``colorize``.
        notify: See ``colorize``.
        before: For a clip that comes in parts: an empty list with the first, and the same one with all others. It is
            changed to what the next part carries on. None: these are all frames.

    Returns:
        ``(T, 3 or 4, H, W)``.

    Raises:
        ImageError: See ``colorize``.
        FlowError: If an argument is out of its range.
        ShapeError: If hints or latents do not fit.
        Cancelled: If stopped.
    """
    if not 0 <= carry < 1:
        raise FlowError(f"carry must lie in [0, 1); got {carry}.")
    if chunk < 1:
        raise FlowError(f"chunk must be at least 1; got {chunk}.")
    check_draw(seed, latents_strength, latents_levels)
    job = Colorization(flow, frames, working_size, saturation, gamut, precision, notify)
    hints = job.fitting(hints)
    z = sample_latents(job.shapes, 1, job.temperatures(temperature, detail), seed=seed)
    if latents is not None:
        given = job.given(latents, 0)
        if len(latents[0]) != 1:
            raise ShapeError(f"A clip takes the latents of 1 picture; got those of {len(latents[0])}.")
        z = blend_latents(z, given, latents_strength, latents_levels or len(z))
    kept: list[Tensor] = [] if before is None else before  # what is carried: the last frame's coarsest image

    def carried(number: int, x: Tensor) -> Tensor:
        if number < len(z) - 1:
            return x
        rows: list[Tensor] = []
        for row in x.split(1):
            rows.append(torch.lerp(row, kept[0], carry) if kept else row)
            kept[:] = rows[-1:]
        return torch.cat(rows)

    chunks = [slice(start, min(start + chunk, len(job.y))) for start in range(0, len(job.y), chunk)]
    with job.reporting(progress, cancelled, 2 * len(chunks)):
        pictures: list[Tensor] = []
        for part in chunks:
            wanted = job.wanted(hints, part)
            shared = [level.to(job.device).expand(part.stop - part.start, -1, -1, -1) for level in z]
            decoded = job.decode(shared, job.condition(part, wanted), job.bounded, carried, job.locking(wanted))
            pictures.append(job.finish(decoded, part, hints))
            job.step(pictures[-1][-1])
    return torch.cat(pictures)
