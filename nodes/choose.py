"""Choose: temperatures beside each other, where samples differ, the best of them, and true to their source."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import flowcore
from ..flowcore import FlowError
from ..flowcore.images.contact_sheet import contact_sheet
from ..flowcore.tasks import Precision
from ..flowcore.tasks.consistency import consistency
from ..flowcore.tasks.ranking import By, diversity_map, ranked
from ..flowcore.tasks.sample import memory_required as sample_memory_required
from ..flowcore.tasks.upscale import memory_required, target_size
from .host import (
    Notes,
    Progress,
    along_curve,
    curve_input,
    io,
    load_to_device,
    make,
    say,
    stop_if_cancelled,
    to_host_image,
)
from .score import coloured
from .sockets import (
    FlowModel,
    finite_or_none,
    flow_of,
    from_image,
    numbers,
    precision_input,
    room_for,
    seed_input,
    temperature_input,
    to_image,
)
from .upscale import ORDINARY_TILE, STORE

MOST_TEMPERATURES = 64
BRIGHT = 16  # deviation in 1/255 that is as bright as can be at gain 1; 1 of 1000 pixels exceeds it at temperature 0.8


class FlowcoreTemperatureGrid(io.ComfyNode):
    """All temperatures with all seeds, on one sheet."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreTemperatureGrid",
            display_name="Flow Temperature Grid",
            category="flowcore/upscaling",
            description="Enlarges an image at several temperatures and with several seeds, and lays the pictures out "
            "on a labelled sheet. The image is analysed once for all of them.",
            search_aliases=["temperature", "xy plot", "grid", "contact sheet", "compare seeds", "srflow", "upscale"],
            inputs=[
                make(io.Image.Input, "image", tooltip="One image or a batch; each gets a sheet of its own."),
                make(FlowModel.Input, "model", tooltip="An upscaling flow from Load Flow Model."),
                make(
                    io.String.Input,
                    "temperatures",
                    default="0, 0.4, 0.7, 0.9",
                    tooltip="The temperatures, from left to right: 0 is calm, 0.7 to 0.9 sharp and varied. Separate "
                    f"them by commas, {MOST_TEMPERATURES} at most.",
                ),
                seed_input(0, "The seed of the first row; the next row has the next one."),
                make(
                    io.Int.Input,
                    "seeds",
                    default=3,
                    min=1,
                    max=16,
                    optional=True,
                    tooltip="How many seeds, each a row.",
                ),
                make(
                    io.Int.Input,
                    "tile",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="Side of a tile in pixels of the small image; 0 takes the whole image if memory allows. It "
                    "changes the memory needed, not the pictures.",
                ),
                precision_input("srflow-x4 in bfloat16: by 0.09/255 on average"),
            ],
            outputs=[
                make(
                    io.Image.Output,
                    "sheet",
                    display_name="sheet",
                    tooltip="The labelled sheet: a column per temperature, a row per seed. One per image.",
                ),
                make(
                    io.Image.Output,
                    "images",
                    display_name="images",
                    tooltip="The pictures as a batch: all seeds of the first temperature, then of the second; all of "
                    "the first image, then of the second.",
                ),
                make(
                    io.Float.Output,
                    "each_temperature",
                    display_name="temperatures",
                    is_output_list=True,
                    tooltip="The temperature of every picture, in the order of the batch.",
                ),
                make(
                    io.Int.Output,
                    "each_seed",
                    display_name="seeds",
                    is_output_list=True,
                    tooltip="The seed of every picture, in the order of the batch.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        model: Any,
        temperatures: str,
        seed: int,
        seeds: int = 3,
        tile: int = 0,
        precision: Precision = "float32",
    ) -> Any:
        """Call the task, and lay its pictures out."""
        notes = Notes("Flow Temperature Grid", cls.hidden.unique_id)
        flow, pixels = flow_of(model), from_image(image)
        taus = numbers(temperatures, "temperatures")
        if taus is None or len(taus) > MOST_TEMPERATURES:
            raise FlowError(
                f"temperatures takes 1 to {MOST_TEMPERATURES} numbers, such as `0, 0.4, 0.7, 0.9`; got "
                f"{len(taus or [])}. Write some."
            )
        height, width = pixels.shape[-2:]
        needed = memory_required(flow, height, width, tile or ORDINARY_TILE)
        each = 3 * math.prod(target_size(flow, height, width))
        room_for(len(pixels) * len(taus) * seeds, each, "pictures need", "Ask for fewer temperatures or seeds.")
        load_to_device(model, needed)
        pictures = flowcore.temperature_grid(
            flow,
            pixels,
            taus,
            seed=seed,
            seeds=seeds,
            tile=tile,
            precision=precision,
            progress=Progress(),
            cancelled=stop_if_cancelled,
            notify=notes,
            store=STORE,
        )
        drawn = [(seed + k) % 2**64 for k in range(seeds)]
        rows, columns = [f"seed {k}" for k in drawn], [f"temperature {tau:g}" for tau in taus]
        sheets = [
            contact_sheet(table.transpose(0, 1).flatten(0, 1), rows, columns)
            for table in pictures.unflatten(0, (len(pixels), len(taus), seeds))
        ]
        return io.NodeOutput(
            to_image(torch.stack(sheets)),
            to_image(pictures),
            [tau for tau in taus for _ in drawn] * len(pixels),
            drawn * (len(taus) * len(pixels)),
            ui={"text": notes.lines, "temperatures": taus, "seeds": drawn},
        )


class FlowcoreTemperatureCurve(io.ComfyNode):
    """A temperature per level, along a curve."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreTemperatureCurve",
            display_name="Flow Temperature Curve",
            category="flowcore/upscaling",
            description="Makes a temperature for every level of a flow, along a curve from the finest level, which "
            "holds texture, to the coarsest, which holds shapes. Connect it to temperatures.",
            search_aliases=["temperature", "curve", "per level", "levels", "schedule", "flow"],
            inputs=[
                curve_input(
                    "curve",
                    "How it goes from fine to coarse: from the left, the finest level, to the right, the coarsest; at "
                    "the bottom the temperature is that of fine, at the top that of coarse. Left as it is, or out: a "
                    "straight line.",
                ),
                temperature_input(
                    0.6, "The temperature of the finest level, and wherever the curve is at the bottom.", name="fine"
                ),
                temperature_input(
                    0.9, "The temperature of the coarsest level, and wherever the curve is at the top.", name="coarse"
                ),
                make(
                    io.Int.Input,
                    "levels",
                    default=2,
                    min=1,
                    max=8,
                    tooltip="How many levels the model has: 2 in srflow-x4, 3 in srflow-x8. A wrong number is refused "
                    "with the right one.",
                ),
            ],
            outputs=[
                make(
                    io.String.Output,
                    "temperatures",
                    display_name="temperatures",
                    tooltip="The temperatures, finest level first, such as `0.6, 0.75, 0.9`.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, fine: float, coarse: float, levels: int, curve: Any = None) -> Any:
        """Read the curve where the levels are."""
        heights = along_curve(curve, [level / max(1, levels - 1) for level in range(levels)])
        text = ", ".join(f"{max(0.0, fine + (coarse - fine) * height):.4g}" for height in heights)
        return io.NodeOutput(text, ui={"text": [text]})


class FlowcoreDiversityMap(io.ComfyNode):
    """Where samples differ: what the model had to guess."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreDiversityMap",
            display_name="Flow Diversity Map",
            category="flowcore/analysis",
            description="Shows where several samples of one image differ, pixel by pixel: dark where the model is "
            "sure, bright where it had to guess. The mask drives sharpening, inpainting or a painted temperature.",
            search_aliases=["diversity", "uncertainty", "heat map", "variance", "standard deviation", "spread"],
            inputs=[
                make(
                    io.Image.Input,
                    "images",
                    tooltip="At least two samples: all of the first picture, then all of the second, as Flow Upscale "
                    "gives them.",
                ),
                make(
                    io.Int.Input,
                    "samples",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="How many samples there are of every picture. 0: all images are samples of one.",
                ),
                make(
                    io.Float.Input,
                    "gain",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="Factor on the brightness of map and mask. At 1 a standard deviation of "
                    f"{BRIGHT}/255 is as bright as can be, so that maps compare.",
                ),
            ],
            outputs=[
                make(
                    io.Image.Output,
                    "map",
                    display_name="map",
                    tooltip="The map, one per picture: dark is sure, bright is guessed.",
                ),
                make(io.Mask.Output, "mask", display_name="mask", tooltip="The same as a mask: 0 is sure, 1 guessed."),
                make(
                    io.Float.Output,
                    "mean",
                    display_name="mean",
                    tooltip="The mean standard deviation of all pixels in 1/255, whatever the gain.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, images: Tensor, samples: int = 0, gain: float = 1.0) -> Any:
        """Call the task, and paint what it measures."""
        spread = diversity_map(from_image(images), samples)
        maps = (spread[:, 0] * (gain * 255 / BRIGHT)).clamp(0, 1)
        means = [float(value) * 255 for value in spread.mean((1, 2, 3))]
        mean = sum(means) / len(means)
        text = f"samples differ by {mean:.2f}/255 on average"
        say(text, cls.hidden.unique_id)
        return io.NodeOutput(
            to_image(coloured(maps)), to_host_image(maps), mean, ui={"text": [text], "mean": [mean], "each": means}
        )


class FlowcoreBestOf(io.ComfyNode):
    """The best samples first, with their scores."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreBestOf",
            display_name="Flow Best Of",
            category="flowcore/analysis",
            description="Sorts the samples of an enlarged image, best first, and keeps as many as wanted: those that "
            "are most like the small image when they are shrunk, or those that the model finds likeliest.",
            search_aliases=["best of n", "rank", "sort images", "pick best", "cherry pick", "likelihood", "select"],
            inputs=[
                make(
                    io.Image.Input,
                    "images",
                    tooltip="The samples: all of the first source image, then all of the second, as Flow Upscale gives "
                    "them.",
                ),
                make(io.Image.Input, "source", tooltip="What they were made from: one small image, or a batch."),
                make(
                    FlowModel.Input,
                    "model",
                    optional=True,
                    tooltip="The upscaling flow that made the samples; only likelihood needs it.",
                ),
                make(
                    io.Combo.Input,
                    "by",
                    options=["consistency", "likelihood"],
                    default="consistency",
                    tooltip="consistency: shrunk, the sample is most like the source (dB, higher is better). "
                    "likelihood: the model needs the fewest bits per dimension for it, which favours calm pictures "
                    "(lower is better), and takes as long as enlarging.",
                ),
                make(
                    io.Int.Input,
                    "keep",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many to keep per source image; more than there are keeps all, sorted.",
                ),
            ],
            outputs=[
                make(
                    io.Image.Output,
                    "best",
                    display_name="images",
                    tooltip="The best samples, best first: those of the first source image, then of the second.",
                ),
                make(
                    io.Float.Output,
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="Their scores, in the same order: dB, or bits per dimension.",
                ),
                make(
                    io.Int.Output,
                    "order",
                    display_name="order",
                    is_output_list=True,
                    tooltip="Their numbers among all samples, counted from 0, in the same order: with one source "
                    "image, seed + number is the seed.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, images: Tensor, source: Tensor, by: By, keep: int, model: Any = None) -> Any:
        """Call the task, and gather the best."""
        notes = Notes("Flow Best Of", cls.hidden.unique_id)
        pixels, small, flow = from_image(images), from_image(source), None
        if by == "likelihood" and model is not None:
            flow = flow_of(model)
            height, width = pixels.shape[-2:]
            # Every share is computed beside the pass itself: twice the memory of one.
            load_to_device(
                model, 2 * sample_memory_required(flow, max(1, len(pixels) // max(1, len(small))), height, width)
            )
        scores, order = ranked(pixels, small, by, flow, progress=Progress(), cancelled=stop_if_cancelled, notify=notes)
        best = order[:, :keep]
        kept = (best + torch.arange(len(best))[:, None] * order.shape[1]).flatten().tolist()
        values = [float(value) for value in scores.flatten()[kept]]
        unit = "dB" if by == "consistency" else "bits per dimension"
        lines = [f"image {number}: {value:.4g} {unit}" for number, value in zip(kept, values, strict=True)]
        say("\n".join(lines[:8]), cls.hidden.unique_id)
        return io.NodeOutput(
            to_image(pixels[kept]),
            values,
            kept,
            ui={
                "text": [*lines, *notes.lines],
                "scores": [finite_or_none(float(value)) for value in scores.flatten()],
                "order": kept,
            },
        )


class FlowcoreMatchSource(io.ComfyNode):
    """Enlargements that are their source again when they are shrunk."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreMatchSource",
            display_name="Flow Match Source",
            category="flowcore/upscaling",
            description="Changes enlarged images, whoever enlarged them, as little as it takes for them to be the "
            "small image again when they are shrunk (back-projection). Colours and shapes return, detail stays.",
            search_aliases=[
                "back projection",
                "consistency",
                "color fix",
                "colour fix",
                "lr consistency",
                "color match",
            ],
            inputs=[
                make(
                    io.Image.Input,
                    "images",
                    tooltip="Enlarged images of any model: all of the first source image, then all of the second. An "
                    "alpha channel stays as it is.",
                ),
                make(
                    io.Image.Input,
                    "source",
                    tooltip="The small image that they show, or a batch; on no side longer than they are.",
                ),
            ],
            outputs=[
                make(io.Image.Output, "matched", display_name="images", tooltip="The images, matched."),
                make(
                    io.Float.Output,
                    "consistency",
                    display_name="consistency",
                    tooltip="How exactly they are the source now, in dB, the least of all: 60 and more, unless black "
                    "or white stand in the way, or the images show something else.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, images: Tensor, source: Tensor) -> Any:
        """Call the task, and measure before and after."""
        notes = Notes("Flow Match Source", cls.hidden.unique_id)
        pixels, small = from_image(images), from_image(source)
        matched = flowcore.match_source(pixels, small, progress=Progress(), cancelled=stop_if_cancelled, notify=notes)
        before, after = (float(consistency(each, small).min()) for each in (pixels, matched))
        text = f"consistency {before:.1f} dB before, {after:.1f} dB after"
        say("\n".join([*notes.lines, text]), cls.hidden.unique_id)
        return io.NodeOutput(
            to_image(matched), after, ui={"text": [text, *notes.lines], "before": [before], "consistency": [after]}
        )
