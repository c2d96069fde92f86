"""A grid of temperatures and seeds of one enlargement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from ..engine.condition_cache import ConditionStore
from ..engine.image_batch import ImageBatch
from ..engine.options import GUIDE_STRENGTH, HALO, HALO_SIDE, SEED, STORE, TILE, RunOptions, Strength, python
from ..engine.ranges import MAX_DRAWS, count
from ..engine.runner import Runner, runs_with
from ..engine.tiles import TiledDecoder
from ..errors import Argument, FlowError, say
from ..flows.model import FlowModel
from .model_choice import notify_of_damage
from .upscale import CALM_EDGES, TILING, UpscaleSettings, guides_of, with_calm_faces

ADVICE = say(
    "Set {tile} to 32, ask for fewer seeds, enlarge a smaller image, or free memory on the device.",
    tile=Argument("tile"),
)


@dataclass(frozen=True, kw_only=True)
class GridSettings(RunOptions):
    """Options of ``temperature_grid``."""

    calm_edges: Annotated[float | None, CALM_EDGES] = None
    seed: Annotated[int, SEED._replace(help="The first.")] = 0
    seeds: Annotated[int, count(1, MAX_DRAWS, help="How many, counted up from ``seed``.")] = 1
    tile: Annotated[int, TILE] = 0
    halo: Annotated[int, HALO_SIDE] = HALO
    store: Annotated[ConditionStore | None, STORE] = None
    guide: Annotated[Tensor | None, python("Another enlargement, as in ``upscale``.")] = None
    guide_strength: Annotated[Strength | None, GUIDE_STRENGTH] = None


@runs_with(GridSettings)
def temperature_grid(
    flow: FlowModel, lr: Tensor, temperatures: Sequence[float | None], settings: GridSettings
) -> Tensor:
    """Enlarge images with several temperatures and several seeds; every image and guide is encoded once.

    Args:
        flow: As in ``upscale``; so are the arguments that are not named here.
        lr: ``(B, C, h, w)``; an alpha channel is dropped.
        temperatures: Each gives one picture per seed; None is the model's default.
        settings: The options below, by name.

    Returns:
        ``(B * temperatures * seeds, 1 or 3, s * h, s * w)``, on the device of ``lr``: of image 0 all seeds of the first
        temperature, then of the second. Each equals the result of ``upscale``.

    Raises:
        FlowError: If there are no temperatures, or as in ``upscale``.
        ImageError: As in ``upscale``.
    """
    flow.require("upscale")
    if not temperatures:
        raise FlowError("Expected at least one temperature; got none.")
    given: dict[str, Any] = {name: value for name, value in vars(settings).items() if name != "seeds"} | {
        "samples": settings.seeds
    }
    each = [UpscaleSettings(temperature=tau, **given).resolved(flow) for tau in temperatures]
    run = Runner(flow, each[0], ADVICE, lr)
    decoder = TiledDecoder(TILING, run, flow, each[0])

    def task() -> Tensor:
        images = ImageBatch(lr, run.notify)
        rgb = images.extended_rgb
        notify_of_damage(flow, rgb, run.notify)
        calm = with_calm_faces(run, rgb, each)
        guides = guides_of(run, flow, rgb, calm)
        return images.to_input_layout(decoder(rgb, calm, images.is_gray, guides), alpha=False)

    return run.retry_on_oom(task, decoder.halve)
