"""Colorize: many colourings of a photograph, hints for them, and exact luma for the colours of any other node."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from .. import flowcore
from ..flowcore.tasks import Precision
from ..flowcore.tasks.chroma import Gamut
from ..flowcore.tasks.colorize import memory_required
from ..flowcore.tasks.hints import Hints, combine, hints_from_points, hints_from_strokes, palette_from, parse_points
from .host import Notes, Progress, gallery, io, load_to_device, make, say, stop_if_cancelled
from .sockets import (
    FlowHints,
    FlowLatents,
    FlowModel,
    belonging,
    flow_of,
    from_image,
    hints_of,
    latents_of,
    precision_input,
    room_for,
    seed_input,
    temperature_input,
    to_image,
)

if TYPE_CHECKING:
    from torch import Tensor


class FlowcoreColorize(io.ComfyNode):
    """IMAGE in, IMAGE out: all colourings of the first image, then of the second; or one clip."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreColorize",
            display_name="Flow Colorize",
            category="flowcore/color",
            description="Draws colourings of a black-and-white image from a flow: every seed is another one, and the "
            "luma of the image stays exactly what it was. Colour hints say what you want, and where.",
            search_aliases=["colorize", "colourize", "colorise", "black and white", "old photo", "color", "ddcolor"],
            inputs=[
                make(
                    io.Image.Input,
                    "image",
                    tooltip="One image or a batch, of any size, or the frames of a clip. Of an image in colour only "
                    "the luma is used. An alpha channel is kept.",
                ),
                make(FlowModel.Input, "model", tooltip="A colorizer from Load Flow Model, such as color-photos."),
                temperature_input(
                    0.9,
                    "How far the palette may go from the usual. 0: the average of all colourings, pale, the same for "
                    "every seed. 1: the model's own spread. Above 1: bolder than the model believes.",
                ),
                seed_input(
                    0,
                    "Which of the possible colourings. Sample s of every image uses seed + s, and the same seed gives "
                    "the same colours whatever the device or place in a batch.",
                ),
                make(
                    io.Int.Input,
                    "samples",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Colourings per image. They share the analysis of the image, so four take about twice as "
                    "long as one.",
                ),
                temperature_input(
                    0.3,
                    "Temperature of the finest colours; those between follow. Low: calm, even areas. High: colours "
                    "that change from place to place.",
                    name="detail",
                    optional=True,
                ),
                saturation_input(),
                working_size_input(),
                make(
                    FlowHints.Input,
                    "hints",
                    optional=True,
                    tooltip="From Flow Color Hints: strokes, points and a palette.",
                ),
                make(
                    io.Int.Input,
                    "hint_steps",
                    default=20,
                    min=0,
                    max=200,
                    optional=True,
                    tooltip="Steps by which a colouring is refined until strokes and points have their colours. 0: "
                    "only what the model makes of them by itself. Not for clips.",
                ),
                make(
                    FlowLatents.Input,
                    "latents",
                    optional=True,
                    tooltip="Colours to take over, from Flow Encode Color or any node that changes latents: one item, "
                    "or one per image. A single image is coloured with every item.",
                ),
                make(
                    io.Float.Input,
                    "latents_strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How much of the latents is taken over. 0: nothing, all is drawn by seed. 1: all.",
                ),
                make(
                    io.Int.Input,
                    "latents_levels",
                    default=2,
                    min=0,
                    max=8,
                    optional=True,
                    tooltip="How many of the coarsest levels are taken from the latents: a few for the palette of "
                    "another picture, 0 for all, which with the picture's own latents gives its own colours back.",
                ),
                make(
                    io.Combo.Input,
                    "frames",
                    options=["images", "video"],
                    default="images",
                    optional=True,
                    tooltip="images: every image of the batch on its own. video: the batch is one clip, and all of its "
                    "frames get the same latents, so that colours stay.",
                ),
                make(
                    io.Float.Input,
                    "carry",
                    default=0.0,
                    min=0.0,
                    max=0.95,
                    step=0.01,
                    optional=True,
                    tooltip="For video: how much of the previous frame's coarse colours is kept. More is steadier, and "
                    "slower to follow a cut.",
                ),
                gamut_input(),
                precision_input("color-photos in bfloat16: colours by at most 0.2/255; luma stays exact"),
            ],
            outputs=[
                make(
                    io.Image.Output,
                    "images",
                    display_name="images",
                    tooltip="A batch: all colourings of the first image, then of the second; or the frames of the "
                    "clip.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        model: Any,
        temperature: float,
        seed: int,
        samples: int = 1,
        detail: float = 0.3,
        saturation: float = 1.0,
        working_size: int = 0,
        hints: Any = None,
        hint_steps: int = 20,
        latents: Any = None,
        latents_strength: float = 1.0,
        latents_levels: int = 2,
        frames: Literal["images", "video"] = "images",
        carry: float = 0.0,
        gamut: Gamut = "compress",
        precision: Precision = "float32",
    ) -> Any:
        """Call the task for images or for a clip, and say which widgets mean nothing there."""
        notes = Notes("Flow Colorize", cls.hidden.unique_id)
        flow, wanted, pixels = flow_of(model), hints_of(hints), from_image(image)
        height, width = pixels.shape[-2:]
        count = len(pixels) if frames == "video" else samples
        made = len(pixels) if frames == "video" else len(pixels) * samples
        room_for(made, 3 * height * width, "pictures need", "Lower samples, or pass fewer images.")
        load_to_device(model, memory_required(flow, height, width, count, working_size=working_size))
        given = None if latents is None else belonging(latents, flow)
        if given is not None and frames == "images" and len(pixels) == 1:
            pixels = pixels.expand(given.items, -1, -1, -1)
        options: dict[str, Any] = {
            "temperature": temperature,
            "detail": detail,
            "seed": seed,
            "saturation": saturation,
            "working_size": working_size or None,
            "hints": wanted,
            "latents": None if given is None else given.levels,
            "latents_strength": latents_strength,
            "latents_levels": latents_levels,
            "gamut": gamut,
            "precision": precision,
            "progress": Progress(),
            "cancelled": stop_if_cancelled,
            "notify": notes,
        }
        if frames == "video":
            if samples > 1:
                notes("samples is ignored: a clip is coloured once. Other seeds give it other colours.")
            if wanted is not None and wanted.coverage is not None and hint_steps:
                notes("hint_steps is ignored: in a clip strokes and points are told to the model, and not refined.")
            pictures = flowcore.colorize_video(flow, pixels, carry=carry, **options)
        else:
            if carry:
                notes("carry is ignored: it is for frames = video.")
            pictures = flowcore.colorize(flow, pixels, samples=samples, hint_steps=hint_steps, **options)
        seeds = 1 if frames == "video" else samples
        return io.NodeOutput(to_image(pictures), ui=gallery(pictures, seed, seeds, notes))


class FlowcoreColorHints(io.ComfyNode):
    """What colours are wanted, and where."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreColorHints",
            display_name="Flow Color Hints",
            category="flowcore/color",
            description="Says which colours Flow Colorize shall use: painted strokes, points with a colour, and a "
            "palette for the whole. Where they overlap, strokes count before points, and both before earlier hints.",
            search_aliases=["color hints", "strokes", "scribble", "palette", "hex color", "color picker", "colorize"],
            inputs=[
                make(io.Image.Input, "image", tooltip="The picture that will be coloured: it gives the size."),
                make(
                    io.Image.Input,
                    "strokes",
                    optional=True,
                    tooltip="An image with coloured strokes on grey, white, black or on the picture itself; of any "
                    "size, stretched over the picture. Only hue and saturation count.",
                ),
                make(
                    io.Mask.Input,
                    "mask",
                    optional=True,
                    tooltip="Where the strokes are. Left open: wherever that image is in colour. Needed for grey "
                    "strokes, which say that a place has no colour.",
                ),
                make(
                    io.String.Input,
                    "points",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A point per line: `x, y, #rrggbb`, in pixels of the picture from its top left corner.",
                ),
                make(
                    io.Int.Input,
                    "radius",
                    default=12,
                    min=0,
                    max=512,
                    optional=True,
                    tooltip="Of the points, in pixels of the picture.",
                ),
                make(
                    io.String.Input,
                    "palette",
                    default="",
                    optional=True,
                    tooltip="Colours that the picture shall have on the whole, such as `#c08040` or "
                    "`#c08040, #304878`. Their mean and strength are what the model is told.",
                ),
                make(
                    io.Image.Input,
                    "palette_image",
                    optional=True,
                    tooltip="Instead of a palette: a picture in colour, whose overall tint and strength are wanted.",
                ),
                make(
                    io.Boolean.Input,
                    "lock",
                    default=False,
                    optional=True,
                    tooltip="On: strokes and points get their colour exactly, as far as the luma there leaves room for "
                    "it. Off: as nearly as it looks natural.",
                ),
                make(
                    FlowHints.Input,
                    "hints",
                    optional=True,
                    tooltip="Hints of another Flow Color Hints for the same picture, to put these over.",
                ),
            ],
            outputs=[
                make(FlowHints.Output, "all_hints", display_name="hints", tooltip="For Flow Colorize."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        strokes: Tensor | None = None,
        mask: Tensor | None = None,
        points: str = "",
        radius: int = 12,
        palette: str = "",
        palette_image: Tensor | None = None,
        lock: bool = False,
        hints: Any = None,
    ) -> Any:
        """Read all that is given, and put it together."""
        notes = Notes("Flow Color Hints", cls.hidden.unique_id)
        height, width = from_image(image[:1]).shape[-2:]
        size = height, width
        parts: list[Hints | None] = []
        if strokes is not None:
            where = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu()
            parts.append(hints_from_strokes(from_image(strokes).cpu(), where, size=size, lock=lock))
        elif mask is not None:
            notes("mask is ignored: it says where strokes are, and none are connected.")
        if points.strip():
            parts.append(hints_from_points(parse_points(points), size, radius=radius, lock=lock))
        colours = [word for word in re.split(r"[,;\s]+", palette) if word]
        if colours or palette_image is not None:
            picture = None if palette_image is None else from_image(palette_image).cpu()
            parts.append(Hints(palette=palette_from(colours, picture)))
        together = combine(*parts, hints_of(hints))
        if together is None:
            notes("There are no hints yet: connect strokes, or write points or a palette.")
            together = Hints()
        lines = _facts(together)
        say(", ".join(lines), cls.hidden.unique_id)
        return io.NodeOutput(together, ui={"text": ["\n".join([*lines, *notes.lines])]})


class FlowcoreEncodeColor(io.ComfyNode):
    """The latents of a picture's own colours."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreEncodeColor",
            display_name="Flow Encode Color",
            category="flowcore/color",
            description="Finds the latents of the colours that a picture has. Flow Colorize puts them on another "
            "picture, or back on the same one after they were varied or mixed.",
            search_aliases=["encode color", "palette transfer", "color transfer", "reference colors", "color latents"],
            inputs=[
                make(io.Image.Input, "image", tooltip="One picture in colour or a batch; alpha is left out."),
                make(FlowModel.Input, "model", tooltip="A colorizer from Load Flow Model, such as color-photos."),
                working_size_input(),
            ],
            outputs=[
                make(
                    FlowLatents.Output,
                    "latents",
                    display_name="latents",
                    tooltip="The latents of the colours, one item per picture, for Flow Colorize.",
                ),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, model: Any, working_size: int = 0) -> Any:
        """Call the task."""
        flow, pixels = flow_of(model), from_image(image)
        count, _, height, width = pixels.shape
        load_to_device(model, memory_required(flow, height, width, count, working_size=working_size))
        levels = flowcore.encode_colors(flow, pixels, working_size=working_size or None, cancelled=stop_if_cancelled)
        return io.NodeOutput(latents_of(flow, levels))


class FlowcoreApplyChroma(io.ComfyNode):
    """The colours of one picture on the exact luma of another; no model."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreApplyChroma",
            display_name="Apply Chroma (exact luma)",
            category="flowcore/color",
            description="Puts the colours of one picture on the luma of another, exactly. It mends what other "
            "colorizers do to the luma, brings colours from a small picture to its large original, and at saturation 0 "
            "makes a picture black and white.",
            search_aliases=["apply chroma", "luma", "luminance", "color blend", "desaturate", "grayscale", "ycbcr"],
            inputs=[
                make(io.Image.Input, "luma_from", tooltip="Whose light and dark is kept, and whose alpha channel."),
                make(
                    io.Image.Input,
                    "colors_from",
                    tooltip="Whose colours are taken: of any size, stretched over the other along its edges. One "
                    "picture of either goes with any number of the other.",
                ),
                saturation_input(),
                gamut_input(),
            ],
            outputs=[
                make(io.Image.Output, "merged", display_name="image", tooltip="Luma of one, colours of the other."),
            ],
        )

    @classmethod
    def execute(cls, luma_from: Tensor, colors_from: Tensor, saturation: float = 1.0, gamut: Gamut = "compress") -> Any:
        """Call the task."""
        merged = flowcore.apply_chroma(
            from_image(luma_from), from_image(colors_from), saturation=saturation, gamut=gamut
        )
        return io.NodeOutput(to_image(merged))


# ---------------------------------------------------------------------------------------------------------------------
# inputs that several of these nodes have, and what is said


def saturation_input() -> Any:
    """Describe the number `saturation`."""
    return make(
        io.Float.Input,
        "saturation",
        default=1.0,
        min=0.0,
        max=3.0,
        step=0.01,
        optional=True,
        display_mode=io.NumberDisplay.slider,
        tooltip="Factor on the colours. 0: black and white. 1: as they are. Colours that the luma leaves no room for "
        "get less.",
    )


def working_size_input() -> Any:
    """Describe the number `working_size`."""
    return make(
        io.Int.Input,
        "working_size",
        default=0,
        min=0,
        max=4096,
        step=16,
        optional=True,
        tooltip="Shorter side in pixels at which colours are decided, from 16; 0 is what the model was made for. The "
        "result always has the size of the image.",
    )


def gamut_input() -> Any:
    """Describe the choice `gamut`."""
    return make(
        io.Combo.Input,
        "gamut",
        options=["compress", "clip"],
        default="compress",
        optional=True,
        tooltip="What happens to colours that the luma leaves no room for. compress: they lose saturation; luma and "
        "hue stay. clip: they are cut off, as most programs do, and luma changes there.",
    )


def _facts(hints: Hints) -> list[str]:
    """Say what hints hold."""
    lines: list[str] = []
    if hints.coverage is not None:
        locked = ", locked" if hints.lock else ""
        lines.append(f"hints cover {100 * float(hints.coverage.mean()):.3g} % of the picture{locked}")
    if hints.palette is not None:
        blue, red, strength = (float(value) for value in hints.palette.mean(0)[1:])
        lines.append(f"palette: mean Cb {blue:+.3f}, mean Cr {red:+.3f}, colourfulness {strength:.3f}")
    return lines
