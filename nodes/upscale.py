"""Upscale: several sharp, different enlargements of a photograph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .. import flowcore
from ..flowcore.images.resize import resize
from ..flowcore.inference.condition_cache import ConditionStore
from ..flowcore.inference.plan import forget_plan
from ..flowcore.prior import Temperature, painted
from ..flowcore.tasks import Precision
from ..flowcore.tasks.consistency import consistency
from ..flowcore.tasks.upscale import memory_required, target_size
from .host import (
    Notes,
    Progress,
    compare_input,
    compared,
    gallery,
    io,
    load_to_device,
    make,
    on_release,
    say,
    stop_if_cancelled,
)
from .sockets import (
    FlowModel,
    from_image,
    from_mask,
    numbers,
    precision_input,
    room_for,
    seed_input,
    temperature_input,
    temperatures_input,
    to_image,
)

if TYPE_CHECKING:
    import torch

ORDINARY_TILE = 512  # pixels of the small image
STORE = ConditionStore()  # so that another seed or temperature skips the analysis of the image
on_release += [STORE.clear, forget_plan]


class FlowcoreUpscale(io.ComfyNode):
    """IMAGE in, IMAGE out: all samples of the first image, then of the second."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreUpscale",
            display_name="Flow Upscale",
            category="flowcore/upscaling",
            description="Draws sharp enlargements from a flow. The temperature says how much detail the model may "
            "invent, the seed which; every seed gives another picture that fits the same small image.",
            search_aliases=["upscale", "super resolution", "srflow", "flow upscale", "enlarge", "4x", "upscale image"],
            inputs=[
                make(
                    io.Image.Input,
                    "image",
                    tooltip="One image or a batch, of any size. An alpha channel is kept and resized the ordinary way; "
                    "a single channel becomes a colour image.",
                ),
                make(FlowModel.Input, "model", tooltip="An upscaling flow from Load Flow Model."),
                temperature_input(
                    0.8,
                    "How lively the detail is. 0: the calm, most likely picture, the same for every seed. "
                    "0.7 to 0.9: sharp and varied. Above 1: more than the model believes.",
                ),
                seed_input(
                    0,
                    "Which of the possible pictures. Sample s of every image uses seed + s, and the same seed "
                    "gives the same picture whatever the tile size, device or place in a batch.",
                ),
                make(
                    io.Int.Input,
                    "samples",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Pictures per input image. They share the analysis of the image, most of the work.",
                ),
                make(
                    io.Int.Input,
                    "tile",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="Side of a tile in pixels of the small image; 0 takes the whole image if memory allows, "
                    "which is fastest. It changes the memory needed, not the picture. When memory runs out the node "
                    "goes on with less at once, and says so.",
                ),
                precision_input("srflow-x4 in bfloat16: by 0.09/255 on average, 999 of 1000 values by less than 1/255"),
                make(
                    io.Mask.Input,
                    "mask",
                    optional=True,
                    tooltip="Where temperature holds: all of it where the mask is white, none where it is black, a "
                    "mixture in between. Paint it with Open in MaskEditor on Load Image; any size is resized. One for "
                    "all images, or one per image.",
                ),
                temperature_input(
                    0.3,
                    "The temperature outside of the mask. It counts only where a mask is connected.",
                    name="outside",
                    optional=True,
                ),
                temperatures_input(),
                make(
                    io.Float.Input,
                    "factor",
                    default=0.0,
                    min=0.0,
                    max=16.0,
                    step=0.05,
                    optional=True,
                    tooltip="How many times as large the result is in all: the model enlarges by its own scale, and "
                    "one good resize (bicubic) does the rest, up or down. 0: the model's scale.",
                ),
                make(
                    io.Int.Input,
                    "longest_side",
                    default=0,
                    min=0,
                    max=16384,
                    optional=True,
                    tooltip="The longer side of the result in pixels, likewise; it wins over factor. 0: no matter.",
                ),
                make(
                    io.Boolean.Input,
                    "match_source",
                    default=False,
                    optional=True,
                    tooltip="Change the result a little, so that it is the input again when it is shrunk (60 dB "
                    "and more). Detail stays; only what the input shows is corrected.",
                ),
                *compare_input(),
            ],
            outputs=[
                make(
                    io.Image.Output,
                    "images",
                    display_name="images",
                    tooltip="A batch: all samples of the first image, then of the second.",
                ),
                make(
                    io.Float.Output,
                    "consistency",
                    display_name="consistency",
                    tooltip="How exactly the result is the input again when it is shrunk, in dB (LR-PSNR), the least "
                    "of all pictures: at 48 values differ by 1/255 on average, from 60 on by rounding only, at 100 by "
                    "nothing.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        model: Any,
        temperature: float,
        seed: int,
        samples: int = 1,
        tile: int = 0,
        precision: Precision = "float32",
        mask: torch.Tensor | None = None,
        outside: float = 0.3,
        temperatures: str = "",
        factor: float = 0.0,
        longest_side: int = 0,
        match_source: bool = False,
        compare: Any = None,
    ) -> Any:
        """Call the task, passing the host's progress bar, its Cancel button and what there is to say."""
        notes = Notes("Flow Upscale", cls.hidden.unique_id)
        flow = model.model
        pixels = from_image(image)
        height, width = pixels.shape[-2:]
        # Room for a tile of ordinary size; asking for the whole picture would push every other model out.
        needed = memory_required(flow, height, width, tile or ORDINARY_TILE)
        largest = max(
            math.prod(target_size(flow, height, width)),
            math.prod(target_size(flow, height, width, factor, longest_side)),
        )
        advice = "Lower samples, factor or longest_side, or pass fewer or smaller images."
        room_for(len(pixels) * samples, 3 * largest, "pictures need", advice)
        load_to_device(model, needed)
        pictures = flowcore.upscale(
            flow,
            pixels,
            temperature=_temperature(temperature, temperatures, mask, outside, len(pixels), notes),
            seed=seed,
            samples=samples,
            tile=tile,
            precision=precision,
            factor=factor,
            longest_side=longest_side,
            match_source=match_source,
            progress=Progress(),
            cancelled=stop_if_cancelled,
            notify=notes,
            store=STORE,
        )
        fits = float(consistency(pictures, pixels).min())
        say("\n".join([*notes.lines, f"consistency {fits:.1f} dB"]), cls.hidden.unique_id)
        return io.NodeOutput(
            to_image(pictures),
            fits,
            ui=gallery(pictures, seed, samples, notes)
            | compared(lambda: resize(pixels[:1], *pictures.shape[-2:])[0], pictures[0], cls.hidden.extra_pnginfo)
            | {"consistency": [fits]},
        )


def _temperature(
    inside: float, per_level: str, mask: torch.Tensor | None, outside: float, images: int, notes: Notes
) -> Temperature:
    """Put together what the widgets and the mask say."""
    levels = numbers(per_level, "temperatures")
    if mask is None:
        return levels or inside
    where = from_mask(mask, images)
    if not bool(where.any()):
        notes(
            f"The mask is black, so the temperature is {outside:g} everywhere. Paint where temperature shall hold: "
            "right-click Load Image, Open in MaskEditor."
        )
    return [painted(where, tau, outside) for tau in levels] if levels else painted(where, inside, outside)
