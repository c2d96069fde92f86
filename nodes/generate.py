"""Sample, encode, decode: between images and latents, both ways."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..flowcore import ConditionError, Flow, FlowError, dequantization
from ..flowcore.latents import scale, statistics
from ..flowcore.prior import sample_latents
from ..flowcore.tasks.sample import decode, dequantized_image, encode, memory_required, sample
from ..flowcore.tasks.subject import (
    Fit,
    condition_for,
    prepare_subject,
    refuse_colorizer,
    size_of_latents,
    source_for_latents,
)
from .host import Notes, Progress, gallery, io, load_to_device, make, stop_if_cancelled
from .sockets import (
    FlowLatents,
    FlowModel,
    belonging,
    finite_or_none,
    flow_of,
    from_image,
    label_numbers,
    latents_of,
    numbers,
    room_for,
    seed_input,
    temperature_input,
    temperatures_input,
    to_image,
)


class FlowcoreSample(io.ComfyNode):
    """Images out of nothing but a seed, and the latents that they are made from."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreSample",
            display_name="Flow Sample",
            category="flowcore/sampling",
            description="Makes images out of noise with a flow, in one pass and without a prompt: every seed is an "
            "image. Its latents come along, to be mixed, varied and decoded again.",
            search_aliases=["flow", "glow", "real nvp", "generate image", "normalizing flow", "random image", "mnist"],
            inputs=[
                make(FlowModel.Input, "model", tooltip="A flow from Load Flow Model that makes images from noise."),
                make(io.Int.Input, "samples", default=4, min=1, max=256, tooltip="Number of images."),
                temperature_input(
                    0.7,
                    "How lively the images are. 0: the calmest image, the same for every seed. 0.7: fewer oddities "
                    "and less variety. 1: the model's own spread. Above 1: more than the model believes.",
                ),
                seed_input(
                    0,
                    "Which images. Image i, counted from 0, is made from seed + i, whatever the number of samples and "
                    "the device.",
                ),
                make(
                    io.String.Input,
                    "labels",
                    default="",
                    optional=True,
                    tooltip="For models with labels, what to show: `7`, or `3, 5`, or `0-9`. Image i takes the i-th "
                    "label, and they start again at the end. Empty: all labels in turn.",
                ),
                make(
                    io.Int.Input,
                    "width",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="Width in pixels; 0 is the size that the model was made for. Other sizes work where the "
                    "model allows them, and look less like what it knows.",
                ),
                make(
                    io.Int.Input,
                    "height",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="Height in pixels; 0 is the size that the model was made for.",
                ),
                temperatures_input(),
                snap_input(True),
            ],
            outputs=[
                make(io.Image.Output, "images", display_name="images", tooltip="The images, as one batch."),
                make(
                    FlowLatents.Output,
                    "latents",
                    display_name="latents",
                    tooltip="What they were made from: Flow Decode gives the same images again (with the same `snap`).",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        samples: int,
        temperature: float,
        seed: int,
        labels: str = "",
        width: int = 0,
        height: int = 0,
        temperatures: str = "",
        snap: bool = True,
    ) -> Any:
        """Call the task; the latents are drawn once more for the wire, which gives the same."""
        notes = Notes("Flow Sample", cls.hidden.unique_id)
        flow = flow_of(model)
        size = _size(flow, width, height)
        shown = _in_turn(flow, labels, samples, notes)
        taus = numbers(temperatures, "temperatures") or temperature
        room_for(samples, 3 * size[0] * size[1], "pictures need", "Lower samples, width or height.")
        load_to_device(model, memory_required(flow, samples, *size))
        images = sample(
            flow,
            samples,
            size=size,
            temperature=taus,
            seed=seed,
            labels=shown,
            snapped=snap,
            progress=Progress(),
            cancelled=stop_if_cancelled,
            notify=notes,
        )
        levels = sample_latents(flow.latent_shapes(*size), samples, taus, seed)
        turns = None if shown is None else shown.tolist()
        ui = gallery(images, seed, samples, notes, turns)
        return io.NodeOutput(to_image(images), latents_of(flow, levels, labels=shown), ui=ui)


class FlowcoreEncode(io.ComfyNode):
    """The latents of images, exactly, and the proof of it."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreEncode",
            display_name="Flow Encode",
            category="flowcore/sampling",
            description="Finds the latents of images with a flow. Nothing is lost: decoded, they are the images again, "
            "and the node measures how exactly.",
            search_aliases=[
                "flow",
                "glow",
                "encode image",
                "invert image",
                "image to latents",
                "vae encode",
                "latents",
            ],
            inputs=[
                make(
                    io.Image.Input,
                    "image",
                    tooltip="One image or a batch. Grey and colour are converted to what the model takes; an alpha "
                    "channel is left out.",
                ),
                make(FlowModel.Input, "model", tooltip="A flow from Load Flow Model."),
                fit_input(),
                label_input(),
                source_input(),
                make(
                    io.Combo.Input,
                    "dequantize",
                    options=["auto", "off", "on"],
                    default="auto",
                    optional=True,
                    tooltip="on: give the image the noise of one grey level first, as the images that the model was "
                    "trained on have it. Digits need it, or their latents fall apart under another label; `snap` in "
                    "Flow Decode takes it off again. off: encode the image exactly. auto: on for models with labels.",
                ),
            ],
            outputs=[
                make(FlowLatents.Output, "latents", display_name="latents", tooltip="The latents of the images."),
                make(
                    io.Float.Output,
                    "error",
                    display_name="error",
                    tooltip="Largest absolute difference between an image and what its latents decode to, over all "
                    "values in [0, 1]. Below 0.00196 not one 8-bit value changes.",
                ),
                make(
                    io.Image.Output,
                    "encoded",
                    display_name="image",
                    tooltip="What was encoded: the images after resizing and cutting.",
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
        fit: Fit = "resize",
        label: int = -1,
        source: Tensor | None = None,
        dequantize: Literal["auto", "off", "on"] = "auto",
    ) -> Any:
        """Call the task there and back, and show what the latents look like."""
        notes = Notes("Flow Encode", cls.hidden.unique_id)
        flow = flow_of(model)
        subject = prepare_subject(
            flow,
            from_image(image).cpu(),
            fit=fit,
            label=label,
            source=None if source is None else from_image(source).cpu(),
            notify=notes,
        )
        if dequantize == "on" or (dequantize == "auto" and flow.classes):
            subject = replace(subject, pixels=dequantized_image(flow, subject.pixels))
        load_to_device(model, memory_required(flow, *(subject.pixels.shape[i] for i in (0, 2, 3))))
        progress, cond = Progress(), subject.condition(flow)
        levels = encode(
            flow, subject.pixels, cond, progress=progress.part(0, 0.5), cancelled=stop_if_cancelled, notify=notes
        )
        again = decode(flow, levels, cond, progress=progress.part(0.5, 0.5), cancelled=stop_if_cancelled, notify=notes)
        error = float((again - subject.pixels).abs().max())
        measured = statistics(levels)
        means, stds = ([float(getattr(level, name).mean()) for level in measured] for name in ("mean", "std"))
        lines = [f"largest error of image -> latents -> image: {error:.3g}"]
        for number, (mean, std) in enumerate(zip(means, stds, strict=True)):
            lines.append(f"level {number}{_place(number, len(means))}: mean {mean:+.3f}, deviation {std:.3f}")
        lines.append("A typical image has mean 0 and deviation 1 on every level.")
        return io.NodeOutput(
            latents_of(flow, levels, labels=subject.labels, source=subject.source),
            error,
            to_image(subject.pixels),
            ui={
                "text": ["\n".join([*lines, *notes.lines])],
                "error": [finite_or_none(error)],
                "mean": [finite_or_none(mean) for mean in means],
                "deviation": [finite_or_none(std) for std in stds],
            },
        )


class FlowcoreDecode(io.ComfyNode):
    """The images that latents stand for."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreDecode",
            display_name="Flow Decode",
            category="flowcore/sampling",
            description="Turns latents into images with the flow that they belong to. Other labels show other things "
            "in the same style; another source puts the same detail on another small image.",
            search_aliases=["flow", "glow", "decode latents", "latents to image", "style transfer", "vae decode"],
            inputs=[
                make(FlowLatents.Input, "latents", tooltip="From Flow Sample, Flow Encode or any node in between."),
                make(FlowModel.Input, "model", tooltip="The flow that the latents were made with."),
                make(
                    io.String.Input,
                    "labels",
                    default="",
                    optional=True,
                    tooltip="For models with labels. Empty: what each item was made to show. Otherwise every item is "
                    "decoded with every label given, such as `7`, `3, 5` or `0-9`: the same hand writes other digits.",
                ),
                make(
                    io.Image.Input,
                    "source",
                    optional=True,
                    tooltip="For upscaling models: another small image to put the detail of the latents on, of the "
                    "same size as theirs. Leave it open to use their own.",
                ),
                temperature_input(
                    1.0,
                    "Factor on the latents: 1 decodes them as they are, less is calmer, more is livelier.",
                    optional=True,
                ),
                snap_input(False),
            ],
            outputs=[
                make(
                    io.Image.Output,
                    "images",
                    display_name="images",
                    tooltip="One image per item; with labels given, all labels of the first item, then of the second.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        latents: Any,
        model: Any,
        labels: str = "",
        source: Tensor | None = None,
        temperature: float = 1.0,
        snap: bool = False,
    ) -> Any:
        """Call the task with the labels and the source that were asked for, or with the latents' own."""
        notes = Notes("Flow Decode", cls.hidden.unique_id)
        flow = flow_of(model)
        latents = belonging(latents, flow)
        refuse_colorizer(flow)
        levels = scale(latents.levels, temperature)
        shown = latents.labels
        wanted = label_numbers(labels, flow.classes) if flow.classes else None
        if labels.strip() and not flow.classes:
            notes("labels is ignored: this model knows no labels.")
        pictures = latents.items * len(wanted or [0])
        room_for(pictures, 3 * math.prod(size_of_latents(flow, levels)), "pictures need", "Pass fewer items or labels.")
        if wanted is not None:
            levels = [z.repeat_interleave(len(wanted), 0) for z in levels]
            shown = torch.tensor(wanted).repeat(latents.items)
        if flow.classes and shown is None:
            raise ConditionError(
                f"These latents do not say what they show. Set labels to one or more of 0 to {flow.classes - 1}."
            )
        small = latents.source if source is None else from_image(source).cpu()
        small = source_for_latents(flow, latents.levels, small, notes)
        count, height, width = len(levels[0]), *size_of_latents(flow, levels)
        load_to_device(model, memory_required(flow, count, height, width))
        told, progress = condition_for(flow, shown, small), Progress()
        images = decode(flow, levels, told, progress=progress, cancelled=stop_if_cancelled, notify=notes)
        images = dequantization.quantize(flow, images) if snap else images.clamp(0, 1)
        return io.NodeOutput(to_image(images), ui=notes.ui)


# ---------------------------------------------------------------------------------------------------------------------
# inputs that the nodes which read images share


def snap_input(default: bool) -> Any:
    """Ask whether the noise that a model draws with an image is taken off."""
    return make(
        io.Boolean.Input,
        "snap",
        default=default,
        optional=True,
        tooltip="Models learn from images with a little noise, less than one grey level of theirs, and draw it, too. "
        "On: take it off, by snapping to the model's own grey levels (32 for a 5-bit model). Off: exactly what the "
        "latents decode to, as needed to get an encoded image back.",
    )


def fit_input() -> Any:
    """Describe the choice `fit`."""
    return make(
        io.Combo.Input,
        "fit",
        options=["resize", "crop"],
        default="resize",
        optional=True,
        tooltip="How an image gets a size that the model takes. resize: shrink or enlarge it until it covers the "
        "model's own size, and cut that out of the middle. crop: only cut, to the largest size that the model takes. "
        "Models without a size of their own always cut.",
    )


def label_input() -> Any:
    """Describe the number `label`."""
    return make(
        io.Int.Input,
        "label",
        default=-1,
        min=-1,
        max=9999,
        optional=True,
        tooltip="For models with labels: what the images show, such as the digit. -1: none, for all other models.",
    )


def source_input() -> Any:
    """Describe the image `source`."""
    return make(
        io.Image.Input,
        "source",
        optional=True,
        tooltip="For upscaling models: the small image that belongs to the image, smaller by exactly the model's "
        "scale. Left open, the image itself is shrunk.",
    )


# ---------------------------------------------------------------------------------------------------------------------
# details of one node


def _size(flow: Flow, width: int, height: int) -> tuple[int, int]:
    """Height and width of what is to be made."""
    refuse_colorizer(flow)
    if flow.architecture == "srflow":
        raise FlowError("An SRFlow makes images from a small image, not from nothing. Use the node Flow Upscale.")
    own = flow.image_size or (0, 0)
    size = height or own[0], width or own[1]
    if 0 in size:
        raise FlowError(
            "This model does not say which size it was made for. Set width and height, to multiples of "
            f"{flow.size_multiple}."
        )
    return size


def _in_turn(flow: Flow, text: str, count: int, notes: Notes) -> Tensor | None:
    """What each of the images shall show, (count,)."""
    if not flow.classes:
        if text.strip():
            notes("labels is ignored: this model knows no labels.")
        return None
    chosen = label_numbers(text, flow.classes) or range(flow.classes)
    return torch.tensor([chosen[i % len(chosen)] for i in range(count)])


def _place(number: int, levels: int) -> str:
    if levels == 1:
        return ""
    return {0: " (finest)", levels - 1: " (deepest)"}.get(number, "")
