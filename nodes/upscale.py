"""Upscale: several sharp, different enlargements of a photograph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import flowcore
from ..flowcore.plan import forget_plan
from ..flowcore.tasks import Precision
from ..flowcore.tasks.upscale import ConditionStore, memory_required
from .host import Notes, Progress, bring, gallery, io, make, on_release, stop_if_cancelled
from .sockets import FlowModel, from_image, precision_input, room_for, seed_input, temperature_input, to_image

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
            ],
            outputs=[
                make(
                    io.Image.Output,
                    "images",
                    display_name="images",
                    tooltip="A batch: all samples of the first image, then of the second.",
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
    ) -> Any:
        """Call the task, passing the host's progress bar, its Cancel button and what there is to say."""
        notes = Notes("Flow Upscale", cls.hidden.unique_id)
        flow = model.model
        pixels = from_image(image)
        height, width = pixels.shape[-2:]
        # Room for a tile of ordinary size; asking for the whole picture would push every other model out.
        needed = memory_required(flow, height, width, tile or ORDINARY_TILE)
        pixels_each = 3 * height * width * flow.condition_scale**2
        room_for(len(pixels) * samples, pixels_each, "pictures need", "Lower samples, or pass fewer or smaller images.")
        bring(model, needed)
        pictures = flowcore.upscale(
            flow,
            pixels,
            temperature=temperature,
            seed=seed,
            samples=samples,
            tile=tile,
            precision=precision,
            progress=Progress(),
            cancelled=stop_if_cancelled,
            notify=notes,
            store=STORE,
        )
        return io.NodeOutput(to_image(pictures), ui=gallery(pictures, seed, samples, notes))
