"""Latents as material: walk between them, mix, vary, correct, restyle, keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..flowcore import CheckpointError, FlowError
from ..flowcore import latents as material
from ..flowcore.checkpoints.latents_file import (
    LatentsHeader,
    load_latents,
    load_source,
    read_latents_header,
    save_latents,
)
from ..flowcore.tasks.directions import apply_style
from ..flowcore.tasks.sample import encode, memory_required
from ..flowcore.tasks.subject import Fit, prepare_subject
from .generate import fit_input, label_input
from .host import Notes, Progress, input_files, input_path, io, load_to_device, make, output_path, stop_if_cancelled
from .inputs import shown
from .sockets import (
    FlowLatents,
    FlowModel,
    Latents,
    belonging,
    checked,
    flow_of,
    from_image,
    latents_of,
    numbers,
    room_for,
    seed_input,
    temperature_input,
    temperatures_input,
    together,
)

SUFFIX = ".safetensors"
SUBFOLDER = "latents"  # of the input folder; where Save Flow Latents puts its files in the output folder
STYLES = ("bold", "wide", "slanted", "messy")


class FlowcoreInterpolate(io.ComfyNode):
    """A walk from one image to another, frame by frame."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreInterpolate",
            display_name="Flow Interpolate",
            category="flowcore/latents",
            description="Walks from one image to another through latent space: every frame between them is an image "
            "that the model knows how to make. Decode the frames and save them as an animation.",
            search_aliases=["interpolate latents", "morph", "slerp", "animation", "latent walk", "blend", "tween"],
            inputs=[
                make(FlowLatents.Input, "a", tooltip="Where the walk begins. One item, or as many as b."),
                make(FlowLatents.Input, "b", tooltip="Where it ends; made with the same model, at the same size."),
                make(
                    io.Int.Input,
                    "frames",
                    default=16,
                    min=2,
                    max=512,
                    tooltip="Frames from a to b, both included. With several items: all frames of the first pair, then "
                    "of the second.",
                ),
                make(
                    io.Combo.Input,
                    "mode",
                    options=["slerp", "linear", "norm"],
                    default="slerp",
                    tooltip="The path. slerp: along the arc, at full liveliness all the way. linear: straight, calmer "
                    "and smoother in the middle. norm: straight, with the liveliness of a and b restored.",
                ),
                make(
                    io.Float.Input,
                    "coarse_first",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How far the deep levels run ahead of the fine ones. 0: all levels move together. 1: the "
                    "deepest has arrived when the finest sets out, so the composition changes first and the texture "
                    "last. The first and the last frame stay a and b.",
                ),
                make(
                    io.Boolean.Input,
                    "loop",
                    default=False,
                    optional=True,
                    tooltip="Append the way back without the two ends, so that the animation runs in circles: 16 "
                    "frames become 30.",
                ),
            ],
            outputs=[
                make(
                    FlowLatents.Output,
                    "frames_of_latents",
                    display_name="latents",
                    tooltip="The frames as one batch, for Flow Decode.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls, a: Any, b: Any, frames: int, mode: material.Mode, coarse_first: float = 0.0, loop: bool = False
    ) -> Any:
        """Take every position of the walk."""
        notes = Notes("Flow Interpolate", cls.hidden.unique_id)
        a, b = together(a, b)
        positions = [i / (frames - 1) for i in range(frames)]
        if loop:
            positions += positions[-2:0:-1]
        count = len(positions) * max(a.items, b.items)
        room_for(count, sum(z[0].numel() for z in a.levels), "frames need", "Lower frames, or pass fewer items.")
        walk: list[list[Tensor]] = []
        for t in positions:
            stop_if_cancelled()
            walk.append(material.interpolate(a.levels, b.levels, staggered(t, len(a.levels), coarse_first), mode=mode))
        levels = [torch.stack(level, 1).flatten(0, 1) for level in zip(*walk, strict=True)]  # frames of pair 0 first
        labels, source = between(a, b, positions, notes)
        return io.NodeOutput(dataclasses.replace(a, levels=levels, labels=labels, source=source), ui=notes.ui)


class FlowcoreMixLatents(io.ComfyNode):
    """The composition of one image with the texture of another."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreMixLatents",
            display_name="Flow Mix Latents",
            category="flowcore/latents",
            description="Mixes two images level by level: deep levels hold the composition, fine ones the texture.",
            search_aliases=["mix latents", "blend latents", "style mixing", "combine latents", "merge latents"],
            inputs=[
                make(FlowLatents.Input, "a", tooltip="What is kept where b has no share."),
                make(FlowLatents.Input, "b", tooltip="What is mixed in; made with the same model, at the same size."),
                _share_input("coarse", 1.0, "Share of b at the deepest level, which holds the composition"),
                _share_input("fine", 0.0, "Share of b at the finest level, which holds the texture"),
                make(
                    io.String.Input,
                    "levels",
                    default="",
                    optional=True,
                    tooltip="The share of b at every level, finest first, such as `0, 0.5, 1`: they replace coarse and "
                    "fine. Empty: linear between the two.",
                ),
            ],
            outputs=[_latents_output("mixed", "a with b mixed in.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, a: Any, b: Any, coarse: float, fine: float, levels: str = "") -> Any:
        """Mix with a share per level."""
        notes = Notes("Flow Mix Latents", cls.hidden.unique_id)
        a, b = together(a, b)
        shares = numbers(levels, "levels") or [
            fine + (coarse - fine) * depth for depth in _depths(len(a.levels), single=0.5)
        ]
        mixed = material.mix_levels(a.levels, b.levels, weights=shares)
        labels, source = _kept(a, b, notes)
        return io.NodeOutput(dataclasses.replace(a, levels=mixed, labels=labels, source=source), ui=notes.ui)


class FlowcoreVaryLatents(io.ComfyNode):
    """Something like this, but not this."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreVaryLatents",
            display_name="Flow Vary Latents",
            category="flowcore/latents",
            description="Makes variations of an image: turns its latents a little towards fresh noise. A variation is "
            "as probable under the model as what it varies.",
            search_aliases=["vary latents", "variation", "variation seed", "similar image", "subseed"],
            inputs=[
                make(FlowLatents.Input, "latents", tooltip="What to vary."),
                seed_input(
                    1000,
                    "Which variation. Item i draws with seed + i; this must not be the seed that the latents were "
                    "sampled with.",
                ),
                make(
                    io.Float.Input,
                    "strength",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far to turn. 0 changes nothing, 0.1 to 0.3 gives relatives, 1 a stranger.",
                ),
                temperature_input(
                    1.0,
                    "Liveliness of the fresh noise: the temperature that the latents were sampled with keeps them as "
                    "lively as they are.",
                    optional=True,
                ),
            ],
            outputs=[_latents_output("varied", "The variations, one per item.")],
        )

    @classmethod
    def execute(cls, latents: Any, seed: int, strength: float, temperature: float = 1.0) -> Any:
        """Turn the latents."""
        latents = checked(latents)
        varied = material.vary(latents.levels, seed, strength, temperature=temperature)
        return io.NodeOutput(dataclasses.replace(latents, levels=varied))


class FlowcoreNormalizeLatents(io.ComfyNode):
    """Towards what the model expects."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreNormalizeLatents",
            display_name="Flow Normalize Latents",
            category="flowcore/latents",
            description="Brings latents to the statistics that the model expects, mean 0 and deviation 1. A pasted, "
            "compressed or blurred image, encoded, normalized and decoded, looks more like what the model knows.",
            search_aliases=["normalize latents", "normalise latents", "restore", "harmonize", "content transfer"],
            inputs=[
                make(FlowLatents.Input, "latents", tooltip="From Flow Encode."),
                make(
                    io.Float.Input,
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far to go. 0 changes nothing, 1 normalizes fully.",
                ),
                make(
                    io.Combo.Input,
                    "per",
                    options=["local", "channel", "level"],
                    default="level",
                    tooltip="Over what mean and deviation are taken. local: around every position, for images that are "
                    "noisy or odd in places. channel: over each channel. level: over each level, the gentlest.",
                ),
                make(
                    io.Int.Input,
                    "window",
                    default=9,
                    min=5,
                    max=255,
                    step=2,
                    optional=True,
                    tooltip="For local: side of the surroundings in positions of the level, an odd number.",
                ),
            ],
            outputs=[_latents_output("normalized", "The normalized latents.")],
        )

    @classmethod
    def execute(cls, latents: Any, strength: float, per: material.Per, window: int = 9) -> Any:
        """Normalize the latents."""
        latents = checked(latents)
        levels = material.normalize(latents.levels, strength, per, window=window)
        return io.NodeOutput(dataclasses.replace(latents, levels=levels))


class FlowcoreScaleLatents(io.ComfyNode):
    """Calmer or livelier."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreScaleLatents",
            display_name="Flow Scale Latents",
            category="flowcore/latents",
            description="Multiplies latents by a temperature: below 1 the image becomes calmer, above livelier; level "
            "by level if you like.",
            search_aliases=["scale latents", "multiply latents", "temperature", "calm", "smooth"],
            inputs=[
                make(FlowLatents.Input, "latents", tooltip="What to scale."),
                temperature_input(1.0, "Factor on all levels. 0: the calmest image. 1: nothing changes."),
                temperatures_input(),
            ],
            outputs=[_latents_output("scaled", "The scaled latents.")],
        )

    @classmethod
    def execute(cls, latents: Any, temperature: float, temperatures: str = "") -> Any:
        """Scale the latents."""
        latents = checked(latents)
        levels = material.scale(latents.levels, numbers(temperatures, "temperatures") or temperature)
        return io.NodeOutput(dataclasses.replace(latents, levels=levels))


class FlowcoreStyle(io.ComfyNode):
    """The same thing, written by another hand."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreStyle",
            display_name="Flow Style",
            category="flowcore/latents",
            description="Changes how something looks and not what it is: along the styles that a model carries, such "
            "as those of mnist-styles, and along any direction from Flow Attribute Direction.",
            search_aliases=["style", "bold", "slant", "attribute", "edit latents", "latent direction", "slider"],
            inputs=[
                make(FlowLatents.Input, "latents", tooltip="What to restyle."),
                make(
                    FlowModel.Input, "model", tooltip="The flow that the latents were made with; it holds the styles."
                ),
                _style_input("bold", "Positive: thicker strokes. Negative: thinner ones."),
                _style_input("wide", "Positive: wider. Negative: narrower."),
                _style_input("slanted", "Positive: leans to the right. Negative: to the left."),
                _style_input("messy", "Positive: rougher, more crooked. Negative: smoother."),
                make(
                    FlowLatents.Input,
                    "direction",
                    optional=True,
                    tooltip="Any other direction, from Flow Attribute Direction with the same model.",
                ),
                make(
                    io.Float.Input,
                    "strength",
                    default=1.0,
                    min=-5.0,
                    max=5.0,
                    step=0.05,
                    optional=True,
                    tooltip="How far to go along that direction. 1: as far as the images with the attribute are from "
                    "those without. Negative: the other way. Without a direction it does nothing.",
                ),
            ],
            outputs=[_latents_output("styled", "The restyled latents.")],
        )

    @classmethod
    def execute(
        cls,
        latents: Any,
        model: Any,
        bold: float,
        wide: float,
        slanted: float,
        messy: float,
        direction: Any = None,
        strength: float = 1.0,
    ) -> Any:
        """Add every style that is not at 0, then the direction."""
        flow = flow_of(model)
        latents = belonging(latents, flow)
        asked = {name: value for name, value in zip(STYLES, (bold, wide, slanted, messy), strict=True) if value}
        levels = apply_style(flow, latents.levels, asked)
        labels, source = latents.labels, latents.source
        if direction is not None:
            _, direction = together(latents, direction)
            levels = material.add(levels, direction.levels, strength)
            labels, source = _each(labels, len(levels[0])), _each(source, len(levels[0]))
        return io.NodeOutput(dataclasses.replace(latents, levels=levels, labels=labels, source=source))


class FlowcoreAttributeDirection(io.ComfyNode):
    """What images with something have in common, and those without have not."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreAttributeDirection",
            display_name="Flow Attribute Direction",
            category="flowcore/latents",
            description="Finds the direction of an attribute in latent space: the mean of images that have it minus "
            "the mean of images that do not. A dozen of each is a start, hundreds are better. Add it with Flow Style.",
            search_aliases=["attribute", "direction", "latent direction", "concept", "edit", "steering vector"],
            is_input_list=True,
            inputs=[
                make(FlowModel.Input, "model", tooltip="A flow from Load Flow Model that makes images from noise."),
                make(io.Image.Input, "with_attribute", tooltip="Images that have it: a batch, or a list of images."),
                make(
                    io.Image.Input, "without_attribute", tooltip="Images that do not, otherwise as alike as possible."
                ),
                fit_input(),
                label_input(),
            ],
            outputs=[
                make(
                    FlowLatents.Output,
                    "direction",
                    display_name="direction",
                    tooltip="The difference of the two means, for Flow Style.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: list[Any],
        with_attribute: list[Tensor],
        without_attribute: list[Tensor],
        fit: list[Fit] | None = None,
        label: list[int] | None = None,
    ) -> Any:
        """Encode both sides, batch by batch, and take the difference of the means."""
        notes = Notes("Flow Attribute Direction", cls.hidden.unique_id)
        flow = flow_of(model[0])
        if flow.architecture == "srflow":
            raise FlowError(
                "The latents of an upscaling model belong to a small image each. Directions are for models that make "
                "images from noise: load one of those."
            )
        progress, pieces = Progress(), len(with_attribute) + len(without_attribute)

        def encoded(image: Tensor, piece: int) -> list[Tensor]:
            subject = prepare_subject(
                flow,
                from_image(image).cpu(),
                fit=(fit or ["resize"])[0],
                label=(label or [-1])[0],
                notify=notes,
            )
            load_to_device(model[0], memory_required(flow, *(subject.pixels.shape[i] for i in (0, 2, 3))))
            return encode(
                flow,
                subject.pixels,
                subject.condition(flow),
                progress=progress.part(piece / pieces, 1 / pieces),
                cancelled=stop_if_cancelled,
            )

        direction = material.attribute_direction(
            (encoded(image, i) for i, image in enumerate(with_attribute)),
            (encoded(image, i) for i, image in enumerate(without_attribute, len(with_attribute))),
        )
        return io.NodeOutput(latents_of(flow, direction), ui=notes.ui)


class FlowcoreSaveLatents(io.ComfyNode):
    """Latents into a file."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreSaveLatents",
            display_name="Save Flow Latents",
            category="flowcore/latents",
            description="Saves latents to the output folder, with the name of their model. Move the file to the input "
            "folder, or to input/latents, to load it again.",
            search_aliases=["save latents", "export latents", "store latents"],
            is_output_node=True,
            inputs=[
                make(FlowLatents.Input, "latents", tooltip="What to save."),
                make(
                    io.String.Input,
                    "filename_prefix",
                    default="latents/flowcore",
                    tooltip="Folder and beginning of the name, inside the output folder; a number follows. The words "
                    "of other saving nodes, such as %year%, work.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, latents: Any, filename_prefix: str) -> Any:
        """Write the file under the next free number."""
        latents = checked(latents)
        try:
            place = output_path(filename_prefix, SUFFIX)
        except (OSError, RecursionError):  # too long, too deep, or a file where a folder should be
            raise FlowError(
                f"filename_prefix: {shown(filename_prefix)} cannot be the beginning of a file's name in the output "
                "folder. Give a shorter, plainer one."
            ) from None
        if place is None:
            raise FlowError(
                f"filename_prefix must stay inside the output folder; got `{filename_prefix[:80]}`. Leave out `..` and "
                "leading slashes."
            )
        path, record = place
        save_latents(
            path,
            latents.levels,
            model=latents.model_sha256,
            architecture=latents.architecture,
            model_name=latents.model_name,
            extra={} if latents.labels is None else {"labels": latents.labels.tolist()},
            source=latents.source,
        )
        return io.NodeOutput(ui={"latents": [record], "text": [f"saved {record['filename']}"]})


class FlowcoreLoadLatents(io.ComfyNode):
    """Latents out of a file."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node."""
        return make(
            io.Schema,
            node_id="FlowcoreLoadLatents",
            display_name="Load Flow Latents",
            category="flowcore/latents",
            description="Loads latents that Save Flow Latents has saved.",
            search_aliases=["load latents", "import latents", "open latents"],
            inputs=[
                make(
                    io.Combo.Input,
                    "file",
                    options=input_files(SUBFOLDER, SUFFIX),
                    tooltip="A file in the input folder or in input/latents. Press R after adding one.",
                ),
            ],
            outputs=[
                _latents_output(
                    "latents", "What the file holds, for Flow Decode with the model that it was made with."
                ),
                make(
                    io.String.Output,
                    "info",
                    display_name="info",
                    tooltip="Model, number of items, shapes and labels, one per line.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        """Say where a missing file should be, instead of the host's "value not in list"."""
        if file is None or _found(file) is not None:
            return True
        return (
            f"there is no file {shown(file)} in the input folder. Put it into ComfyUI's input folder or into "
            f"input/{SUBFOLDER} and press R."
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> list[Any]:
        """Load again when the file has changed."""
        path = _found(file)
        if path is None:
            return [file]
        stat = path.stat()
        return [str(path), stat.st_size, stat.st_mtime_ns]

    @classmethod
    def execute(cls, file: str) -> Any:
        """Read the file."""
        path = _found(file)
        if path is None:
            raise CheckpointError(f"The file '{file}' is gone from the input folder; choose another one.")
        labels = _labels(read_latents_header(path), file)  # before any tensor is read
        levels, header = load_latents(path)
        latents = Latents(
            levels=levels,
            model_sha256=header.model_sha256,
            model_name=header.model_name[:80],
            architecture=header.architecture[:80],
            labels=labels,
            source=load_source(path),
        )
        lines = [
            f"model: {latents.model_name} ({latents.architecture}, sha {header.model_sha256[:12]})",
            f"items: {latents.items}",
            f"levels, finest first: {', '.join('x'.join(map(str, shape[1:])) for shape in header.shapes)}",
        ]
        if labels is not None:
            lines.append(f"labels: {', '.join(map(str, labels.tolist()))}")
        if latents.source is not None:
            lines.append(f"small image: {latents.source.shape[3]}x{latents.source.shape[2]}")
        info = "\n".join(lines)
        return io.NodeOutput(latents, info, ui={"text": [info]})


# ---------------------------------------------------------------------------------------------------------------------
# inputs and outputs


def _latents_output(name: str, tooltip: str) -> Any:
    # The host wants other ids than the inputs'; what people see is "latents" everywhere.
    return make(FlowLatents.Output, name, display_name="latents", tooltip=tooltip)


def _share_input(name: str, default: float, what: str) -> Any:
    return make(
        io.Float.Input,
        name,
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        display_mode=io.NumberDisplay.slider,
        tooltip=f"{what}. 0 keeps a, 1 takes b.",
    )


def _style_input(name: str, tooltip: str) -> Any:
    return make(
        io.Float.Input,
        name,
        default=0.0,
        min=-3.0,
        max=3.0,
        step=0.1,
        display_mode=io.NumberDisplay.slider,
        tooltip=f"{tooltip} In standard deviations of what the model has seen; 0 changes nothing.",
    )


# ---------------------------------------------------------------------------------------------------------------------
# levels, labels and sources


def staggered(t: float, levels: int, coarse_first: float) -> list[float]:
    """Let deep levels of a walk run ahead of fine ones.

    With c half of `coarse_first` and d the depth of a level, 0 for the finest and 1 for the deepest, the level moves
    while t goes from ``c (1 - d)`` to ``1 - c d``, evenly::

        t_l = (t - c (1 - d)) / (1 - c), kept within [0, 1]

    Args:
        t: Position of the frame, in [0, 1].
        levels: Number of levels.
        coarse_first: In [0, 1]; at 1 the deepest level arrives when the finest sets out.

    Returns:
        Positions of the levels, finest first: all 0 at t = 0 and all 1 at t = 1.
    """
    c = coarse_first / 2
    if levels == 1:
        return [t]
    return [min(1.0, max(0.0, (t - c * (1 - depth)) / (1 - c))) for depth in _depths(levels)]


def _depths(levels: int, single: float = 1.0) -> list[float]:
    """Depth of every level from 0, the finest, to 1, the deepest; a single level is both."""
    return [single] if levels == 1 else [number / (levels - 1) for number in range(levels)]


def _each(values: Tensor | None, count: int) -> Tensor | None:
    """Give every item the value of a single one."""
    if values is None or len(values) == count:
        return values
    return values.expand(count, *values.shape[1:])


def _both(one: Tensor | None, other: Tensor | None, count: int) -> tuple[Tensor, Tensor] | None:
    """Labels, or sources, of both sides, item by item; where only one side knows, of that one."""
    first, second = _each(one if one is not None else other, count), _each(other if other is not None else one, count)
    return None if first is None or second is None else (first, second)


def _kept(a: Latents, b: Latents, notes: Notes) -> tuple[Tensor | None, Tensor | None]:
    """Labels and source of a mixture: those of a, or b's where a has none."""
    count = max(a.items, b.items)
    labels, sources = _both(a.labels, b.labels, count), _both(a.source, b.source, count)
    if labels is not None and not torch.equal(*labels):
        notes("a and b show different labels: those of a are kept. Flow Decode can be told others.")
    if sources is not None and not torch.equal(*sources):
        notes("a and b have different sources: that of a is kept. Flow Decode can be given another.")
    return labels and labels[0], sources and sources[0]


def between(
    a: Latents, b: Latents, positions: list[float], notes: Callable[[str], None]
) -> tuple[Tensor | None, Tensor | None]:
    """Find the labels and sources of a walk's frames.

    Args:
        a: Where the walk begins.
        b: Where it ends.
        positions: Of the frames, in [0, 1].
        notes: Told when the labels of both differ.

    Returns:
        Labels, of a up to the middle and then of b; sources, faded from a's to b's. Of every pair all frames.
    """
    count = max(a.items, b.items)
    labels, sources = _both(a.labels, b.labels, count), _both(a.source, b.source, count)
    shown, small = None, None
    if labels is not None:
        if not torch.equal(*labels):
            notes("a and b show different labels: frames show that of the nearer end. Flow Decode can be told others.")
        shown = torch.stack([labels[t > 0.5] for t in positions], 1).flatten(0, 1)
    if sources is not None:
        if torch.equal(*sources) and _single(a, b):
            small = sources[0][:1]  # of one small image: no need to repeat it
        else:
            faded = [(1 - t) * sources[0] + t * sources[1] for t in positions]
            small = torch.stack(faded, 1).flatten(0, 1)
    return shown, small


def _single(a: Latents, b: Latents) -> bool:
    """Whether one source serves all items of both."""
    return all(side.source is None or len(side.source) == 1 for side in (a, b))


def _found(file: Any) -> Path | None:
    """The file of latents that a prompt names, which may hold anything; None also where it names none."""
    return input_path(file) if isinstance(file, str) else None


def _labels(header: LatentsHeader, name: str) -> Tensor | None:
    """The labels that were noted in a file."""
    noted: Any = header.extra.get("labels")
    if noted is None:
        return None
    whole = isinstance(noted, list) and all(type(label) is int and 0 <= label < 2**31 for label in noted)
    if not whole or len(noted) != header.shapes[0][0]:
        raise CheckpointError(f"{name} notes labels that do not fit its items: it is damaged. Save the latents again.")
    return torch.tensor(noted)
