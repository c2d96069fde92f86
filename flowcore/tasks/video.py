"""Clips: their frames colored alike, or enlarged steadily."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.condition_cache import ConditionStore
from ..engine.image_batch import ImageBatch
from ..engine.options import SEED, TileSettings, python
from ..engine.progress import part_of
from ..engine.ranges import Setting, count, share
from ..engine.runner import Runner, runs_with
from ..errors import ShapeError
from ..flows.model import FlowModel
from ..flows.prior import sample_latents
from ..images.motion import blur, estimate_motion, move, sample_at
from ..images.resize import downsample
from ..models.fields import Range
from .chroma import AT_ONCE, Colorization, ColorSettings, blend_latents
from .coherence import correlate_noise
from .colorize import ADVICE
from .model_choice import notify_of_damage
from .upscale import ADVICE as UPSCALE_ADVICE
from .upscale import CALM_EDGES, UpscaleSettings, upscale

STEADINESS = 0.9  # how much of a moved frame's latents the next one keeps
DISAGREEMENT = 2.0  # pixels between motion there and back at which half of the steadiness is left
UNEXPLAINED = 8 / 255  # rms between the moved frame and the next one, both shrunk, at which half is left
NEIGHBORS = 5  # LR pixels: the window of that comparison
MOVED = 0.5  # pixels of motion from which on steadiness applies; what stands still is kept whole
BEFORE = python(
    "For a clip in parts: an empty list with the first part, and the same list with all others. It receives what the "
    "next part needs. None if these are all frames."
)
CUT = 0.5  # share of a frame that must be explained, on average; otherwise it is redrawn without a guide


@dataclass(frozen=True, kw_only=True)
class UpscaleVideoSettings(TileSettings):
    """Options of ``upscale_video``."""

    calm_edges: Annotated[float | None, CALM_EDGES] = None
    seed: Annotated[
        int,
        SEED._replace(
            help="Of the first frame, which is the picture that ``upscale`` draws with it; that of frame t is "
            "``seed + t``."
        ),
    ] = 0
    steadiness: Annotated[
        float,
        share(
            "0 draws every frame independently.",
            node=False,
            help="Share of the moved frame's latents that is kept, in [0, 1]. 0 draws every frame independently; 1 "
            "refreshes nothing, and blurs in the long run.",
        ),
    ] = STEADINESS
    before: Annotated[list[Tensor] | None, BEFORE] = None


@dataclass(frozen=True, kw_only=True)
class ColorizeVideoSettings(ColorSettings):
    """Options of ``colorize_video``.

    Places are similar, for ``coherence``, as they are in the first frame. Hints are for all frames, or one per frame;
    they do not spread. Latents have 1 item.
    """

    seed: Annotated[int, SEED._replace(help="One for all frames, in [0, 2^64).")] = 0
    carry: Annotated[
        float,
        Setting(
            float,
            Range(0, 1, open=True),
            help="Share of the previous frame's coarsest chroma in each frame, in [0, 1). More is steadier, and slower "
            "to follow a cut.",
        ),
    ] = 0.0
    chunk: Annotated[
        int,
        count(1, node=False, command=False, help="Frames decoded together. Changes memory and time, not the result."),
    ] = AT_ONCE
    before: Annotated[list[Tensor] | None, BEFORE] = None


@runs_with(ColorizeVideoSettings)
def colorize_video(flow: FlowModel, frames: Tensor, settings: ColorizeVideoSettings) -> Tensor:
    """Color the frames of one clip from the same latents, optionally with colors carried from frame to frame.

    Args:
        flow: A colorizer.
        frames: ``(T, C, H, W)`` in order.
        settings: The options below, by name.

    Returns:
        ``(T, 3 or 4, H, W)``.

    Raises:
        ImageError: See ``colorize``.
        FlowError: If the model is no colorizer, or an argument is out of its range.
        ShapeError: If hints or latents do not fit.
    """
    settings = settings if settings.batch else replace(settings, batch=settings.chunk)
    latents, carry, before = settings.latents, settings.carry, settings.before
    run = Runner(flow, settings, ADVICE, frames)

    def task() -> tuple[Tensor, list[Tensor]]:
        job = Colorization(run, flow, frames, settings.working_size, hints=settings.hints, frames=True)
        chunks = run.batches(len(job.y), AT_ONCE)
        taus, rho, factor = job.resolve(settings)
        first = slice(0, 1)
        run.expect(2 * len(chunks) + int(rho > 0 and not before))
        *finer, coarsest = sample_latents(job.shapes, 1, taus, seed=settings.seed)
        if before:
            coarsest = before[1]
        elif rho:
            coarsest = correlate_noise(flow, coarsest, job.condition(first, job.hint_planes(first)), rho)
        z = [*finer, coarsest]
        if latents is not None:
            reference = job.resize_latents(latents, 0)
            if len(latents[0]) != 1:
                raise ShapeError("A clip takes the latents of 1 picture; got those of {count}.", count=len(latents[0]))
            z = blend_latents(z, reference, settings.latents_strength, settings.latents_levels)
        carried = [] if before is None else before[:1]  # what the last frame's coarsest level decoded to

        def carry_on(level: int, x: Tensor) -> Tensor:
            if level < len(z) - 1:
                return x
            mixed: list[Tensor] = []
            for frame in x.split(1):
                mixed.append(torch.lerp(frame, carried[0], carry) if carried else frame)
                carried[:] = mixed[-1:]
            return torch.cat(mixed)

        size = len(frames), max(3, frames.shape[1]), *frames.shape[2:]
        result = torch.empty(size, dtype=torch.float32, device=frames.device)  # whole at once: a film fills memory
        for batch in chunks:
            planes = job.hint_planes(batch)
            shared = [level.to(run.device).expand(batch.stop - batch.start, -1, -1, -1) for level in z]
            chroma, _ = job.decode(shared, job.condition(batch, planes), planes, carry=carry_on)
            result[batch] = job.finish(factor * chroma, batch, settings.saturation, settings.gamut)
            run.advance(preview=result[batch][-1, :3])
        return result, [*carried, coarsest]

    result, carried = run.retry_on_oom(task)
    if before is not None:
        before[:] = carried
    return result


@runs_with(UpscaleVideoSettings)
def upscale_video(flow: FlowModel, frames: Tensor, settings: UpscaleVideoSettings) -> Tensor:
    """Enlarge the frames of one clip, each guided by the one before, moved as the picture moves.

    The previous result, moved by the motion between both frames at temperature 0, is the guide of the next. Its
    strength is ``steadiness`` where there is motion, which blurs, and 1 where there is none. It falls to 0 where the
    motions forth and back disagree, or the moved result, shrunk, differs from the frame: areas uncovered by motion are
    redrawn, and so is a frame of which less than half is explained. Frames without a guide are drawn as by ``upscale``.

    Args:
        flow: An upscaling model that encodes.
        frames: ``(T, C, h, w)`` in order.
        settings: The options below, by name.

    Returns:
        ``(T, C, s * h, s * w)`` float32 in [0, 1] on the device of ``frames``. Besides them two frames stay in memory.

    Raises:
        ImageError: See ``upscale``.
        FlowError: If the model does not upscale, ``steadiness`` lies outside [0, 1], or as in ``upscale``.
        PrecisionError: If ``precision`` is too low to encode.

    Source: the guide, see ``guide.Guide``; the motion, see ``images.motion``.
    """
    flow.require("upscale")
    settings = settings.resolved(flow)
    before, steadiness = settings.before, settings.steadiness
    run = Runner(flow, settings, UPSCALE_ADVICE, frames)
    shared = {name: value for name, value in vars(settings).items() if hasattr(UpscaleSettings, name)}
    drawn = replace(UpscaleSettings(**shared), guide_bounded=True, advise=False, notify=run.notify)

    def task() -> tuple[Tensor, list[Tensor]]:
        past = [] if before is None else before  # the last frame's number, enlargement at temperature 0, and result
        size = *frames.shape[:2], *(side * flow.condition_scale for side in frames.shape[2:])
        result = torch.empty(size, dtype=torch.float32, device=frames.device)  # whole at once: a film fills memory
        for place, frame in enumerate(frames.split(1)):
            number = int(past[0]) + 1 if past else 0
            if not number:
                notify_of_damage(flow, frame, run.notify)
            one = replace(drawn, store=ConditionStore(count=1))
            calm, guide, strength = None, None, None
            if steadiness:
                half = part_of(settings.progress, place / len(frames), 0.5 / len(frames))
                still = replace(one, temperature=0.0, progress=half)
                calm = upscale(flow, frame, settings=still)[:, :3].to(run.device)
                if len(past) > 1:
                    guide, strength = _moved(run, calm, past[1], past[2], flow.condition_scale, steadiness)
            half = part_of(settings.progress, (place + 0.5) / len(frames), 0.5 / len(frames))
            one = replace(one, seed=(settings.seed + number) % 2**64, progress=half)
            picture = upscale(flow, frame, settings=replace(one, guide=guide, guide_strength=strength))
            result[place] = picture[0]
            past = [torch.tensor(number), *([] if calm is None else [calm, picture[:, :3].to(run.device)])]
        return result, past

    ImageBatch(frames, run.notify)  # rejects invalid ones
    result, past = run.retry_on_oom(task)
    if before is not None:
        before[:] = past
    return result


def _moved(
    run: Runner, calm: Tensor, last_calm: Tensor, last: Tensor, scale: int, steadiness: float
) -> tuple[Tensor | None, Tensor | None]:
    """Move the last result as the calm enlargements move, and map how much of it to keep; None after a cut."""
    if calm.shape != last_calm.shape:
        return None, None
    pairs = (calm, last_calm), (last_calm, calm)
    motion, motion_back = (estimate_motion(*pair, run.check_cancelled) for pair in pairs)
    guide = move(last, motion).clamp(0, 1)
    disagreement = (motion + sample_at(motion_back, motion)).norm(dim=1, keepdim=True)  # pixels; 0: they are inverse
    error = blur(downsample(guide - calm, scale).square().mean(1, keepdim=True), NEIGHBORS)  # (1, 1, h, w)
    explained = F.interpolate(1 / (1 + (error / UNEXPLAINED**2) ** 4), scale_factor=float(scale), mode="bilinear")
    trusted = explained / (1 + (disagreement / DISAGREEMENT) ** 4)  # (1, 1, H, W) in [0, 1]
    if float(trusted.mean()) < CUT:
        return None, None
    moving = (motion.norm(dim=1, keepdim=True) / MOVED).clamp(max=1)
    guide = torch.lerp(calm, guide, (2 * trusted).clamp(max=1))  # the calm picture where it is not trusted
    return guide, trusted * (1 - (1 - steadiness) * moving)
