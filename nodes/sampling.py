"""Sample, encode and decode: from noise to images, from images to latents, and back."""

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from flowcore import ConditionError, FlowError, FlowModel
from flowcore.engine.memory import memory_required
from flowcore.engine.model_input import (
    condition_for,
    label_names,
    prepare_input,
    require_whole_images,
    size_of_latents,
    source_for_latents,
)
from flowcore.errors import on_lines, say
from flowcore.flows import dequantization
from flowcore.flows.latents import scale, statistics
from flowcore.flows.prior import sample_latents
from flowcore.images.contact_sheet import contact_sheet
from flowcore.tasks.sample import decode, dequantized_image, encode, sample

from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled
from .host.ui import Notes, canvas_pictures, finite
from .node import FlowNode
from .picking import PickingNode
from .sockets import FLOW_LATENTS, EncodingModel, Image, Latents, SampleModel, check_memory


class FlowcoreSample(PickingNode):
    """Make images from nothing but a seed, and give their latents."""

    PICKED = (0, 1)
    ALIASES = "flow, glow, real nvp, generate image, normalizing flow, random image, mnist"
    OUTPUTS = (io.Image.Output("images"), FLOW_LATENTS.Output("latents"))
    RECORDS = True

    def run(
        self,
        model: SampleModel,
        samples: Annotated[int, widgets.integer(4, 1, 256)],
        temperature: Annotated[float, widgets.temperature(0.7)],
        seed: widgets.Seed,
        labels: widgets.Text,
        width: Annotated[int, widgets.integer(0, 0, 4096, optional=True, advanced=True)],
        height: Annotated[int, widgets.integer(0, 0, 4096, optional=True, advanced=True)],
        temperatures: Annotated[str, widgets.text(optional=True, advanced=True)],
        snap: Annotated[bool, widgets.switch(default=True, advanced=True)],
        pick: widgets.Pick,
        guidance: Annotated[float, widgets.number(0.0, 0.0, 10.0, 0.1, optional=True)],
        denoise: Annotated[bool, widgets.switch(default=True, advanced=True)],
        mark: widgets.Mark,
    ) -> Any:
        size = _size(model.flow, width, height)
        numbers = _labels_in_turn(model.flow, labels, samples, self.notes)
        taus = widgets.parse_numbers(temperatures, "temperatures") or temperature
        if guidance and not model.flow.capabilities.guided:
            self.notes("guidance is ignored: this model was not made for it.")
            guidance = 0.0
        check_memory(samples, 3 * math.prod(size), "pictures", say("Lower samples, width or height."))
        flow = model.load(memory_required(model.flow, samples, *size))
        phrase = mark.strip() or None
        options: dict[str, Any] = {"snapped": snap, "guidance": guidance, "denoise": denoise, "mark": phrase}
        options |= self.notes.task_options()
        images = sample(flow, samples, size=size, temperature=taus, seed=seed, labels=numbers, **options)
        shapes = flow.latent_shapes(*size)
        levels = sample_latents(shapes, samples, taus, seed, mark=phrase)  # the latents that `sample` has drawn
        return self.show_samples(images, seed, samples, None, model.latents(levels, labels=numbers))


GRID_OUTPUTS = (
    io.Image.Output("sheet"),
    io.Image.Output("images"),
    io.Float.Output("each_temperature", is_output_list=True),
    io.Int.Output("each_seed", is_output_list=True),
)


class FlowcoreSampleGrid(FlowNode):
    """Show the same seeds at several temperatures, on one sheet."""

    ALIASES = "temperature, xy plot, grid, contact sheet, compare temperatures, glow, generate image"
    OUTPUTS = GRID_OUTPUTS

    def run(
        self,
        model: SampleModel,
        temperatures: Annotated[str, widgets.text("0.4, 0.7, 1")],
        seed: widgets.Seed,
        seeds: Annotated[int, widgets.integer(6, 1, 16)],
        labels: widgets.Text,
        snap: Annotated[bool, widgets.switch(default=True, advanced=True)],
    ) -> Any:
        progress, size = self.notes.start(), _size(model.flow)
        taus = widgets.temperature_list(temperatures)
        numbers = _labels_in_turn(model.flow, labels, seeds, self.notes)
        check_memory(len(taus) * seeds, 3 * math.prod(size), "pictures", say("Ask for fewer temperatures or seeds."))
        flow = model.load(memory_required(model.flow, seeds, *size))
        rows: list[Tensor] = []
        for row, tau in enumerate(taus):
            options = self.notes.task_options(progress.part(row / len(taus), 1 / len(taus)))
            options |= {"labels": numbers, "snapped": snap}
            rows.append(sample(flow, seeds, size=size, temperature=tau, seed=seed, **options))
        pictures, column_seeds = torch.cat(rows), [(seed + k) % 2**64 for k in range(seeds)]
        row_names, column_names = [f"temperature {tau:g}" for tau in taus], [f"seed {k}" for k in column_seeds]
        sheet = contact_sheet(pictures.expand(-1, 3, -1, -1), row_names, column_names)
        each_tau, each_seed = [tau for tau in taus for _ in column_seeds], column_seeds * len(taus)
        shown = {"text": [], "temperatures": taus, "seeds": column_seeds}
        return self.output(sheet[None], pictures, each_tau, each_seed, **shown)


class FlowcoreEncode(FlowNode):
    """Encode images as latents, and measure how exactly they decode."""

    ALIASES = "flow, glow, encode image, invert image, image to latents, vae encode, latents"
    OUTPUTS = (FLOW_LATENTS.Output("latents"), io.Float.Output("error"), io.Image.Output("encoded"))
    HIDDEN = (io.Hidden.extra_pnginfo,)

    def run(
        self,
        image: Image,
        model: EncodingModel,
        fit: widgets.Fit,
        label: widgets.Label,
        source: Image | None,
        dequantize: Annotated[
            Literal["auto", "off", "on"], widgets.choice("auto", "off", "on", optional=True, advanced=True)
        ],
    ) -> Any:
        notes, progress = self.notes, self.notes.start()
        small = None if source is None else source.cpu()
        prepared = prepare_input(model.flow, image.cpu(), fit=fit, label=label, source=small, notify=notes)
        noisy = model.flow.facts.noise  # noise of the training: it is visible, so "auto" does not add it
        if dequantize == "on" or (dequantize == "auto" and model.flow.classes and not noisy):
            prepared = replace(prepared, pixels=dequantized_image(model.flow, prepared.pixels))
        count, _, *size = prepared.pixels.shape
        flow = model.load(memory_required(model.flow, count, *size))
        cond = prepared.condition(flow, cancelled=stop_if_cancelled, notify=notes)
        levels = encode(flow, prepared.pixels, cond, **notes.task_options(progress.part(0, 0.5)))
        decoded = decode(flow, levels, cond, **notes.task_options(progress.part(0.5, 0.5)))
        error = float((decoded - prepared.pixels).abs().max())
        measured = statistics(levels)
        means, stds = ([float(getattr(level, name).mean()) for level in measured] for name in ("mean", "std"))
        same = say("Decoded again, it is the same picture.")
        nearly = say("Decoded again, it is nearly the same picture.")
        lines = [nearly if error > 1 / 255 else same, ""]
        lines.append(f"largest error of image -> latents -> image: {error:.3g}")
        ends = {0: " (finest)", len(means) - 1: " (deepest)"} if len(means) > 1 else {}
        for number, (mean, std) in enumerate(zip(means, stds, strict=True)):
            lines.append(f"level {number}{ends.get(number, '')}: mean {mean:+.3f}, deviation {std:.3f}")
        lines.append("A typical image has mean 0 and deviation 1 on every level.")
        return self.output(
            model.latents(levels, labels=prepared.labels, source=prepared.source),
            error,
            prepared.pixels,
            text=[on_lines(*lines)],
            error=finite([error]),
            mean=finite(means),
            deviation=finite(stds),
            **canvas_pictures(self, prepared.pixels),
        )


class FlowcoreDecode(FlowNode):
    """Decode latents to images, with their own labels and source or with others."""

    ALIASES = "flow, glow, decode latents, latents to image, style transfer, vae decode"
    OUTPUTS = (io.Image.Output("images"),)
    HIDDEN = (io.Hidden.extra_pnginfo,)

    def run(
        self,
        latents: Latents,
        model: EncodingModel,
        labels: widgets.Text,
        source: Image | None,
        temperature: Annotated[float, widgets.temperature(1.0, optional=True)],
        snap: Annotated[bool, widgets.switch(advanced=True)],
    ) -> Any:
        notes, flow = self.notes, model.flow
        model.check_latents(latents)
        require_whole_images(flow)
        levels, numbers = scale(latents.levels, temperature), latents.labels
        new_labels = _parse_labels(flow, labels, notes)
        pictures = latents.items * len(new_labels or [0])
        size = size_of_latents(flow, levels)
        check_memory(pictures, 3 * math.prod(size), "pictures", say("Pass fewer items or labels."))
        if new_labels is not None:  # all labels of item 0, then of item 1
            levels = [z.repeat_interleave(len(new_labels), 0) for z in levels]
            numbers = torch.tensor(new_labels).repeat(latents.items)
        if flow.classes and numbers is None:
            raise ConditionError(
                "These latents have no labels. Set labels to one or more of 0 to {most}.", most=flow.classes - 1
            )
        small = source_for_latents(flow, latents.levels, latents.source if source is None else source.cpu(), notes)
        model.load(memory_required(flow, pictures, *size))
        cond = condition_for(flow, numbers, small, cancelled=stop_if_cancelled, notify=notes)
        images = decode(flow, levels, cond, **notes.task_options())
        images = dequantization.quantize(flow, images) if snap else images.clamp(0, 1)
        return self.output(images, text=[], **canvas_pictures(self, images))


def _size(flow: FlowModel, width: int | None = None, height: int | None = None) -> tuple[int, int]:
    """Return height and width of the images to sample; of a node that asks for neither, those of the model."""
    require_whole_images(flow)
    flow.require("sample")
    model_height, model_width = flow.image_size or (0, 0)
    size = height or model_height, width or model_width
    if 0 in size:
        advice = say("Set width and height to multiples of {multiple}.", multiple=flow.size_multiple)
        if width is None:
            advice = say("Use Flow Sample, which has width and height, or make the model with an image_size.")
        raise FlowError("This model does not say which size it was made for. {advice}", advice=advice)
    return size


def _parse_labels(flow: FlowModel, text: str, notes: Notes) -> list[int] | None:
    if flow.classes:
        return widgets.parse_labels(text, flow.classes, label_names(flow))
    if text.strip():
        notes("labels is ignored: this model has no labels.")
    return None


def _labels_in_turn(flow: FlowModel, text: str, count: int, notes: Notes) -> Tensor | None:
    """Return the label of each image, (count,)."""
    chosen = _parse_labels(flow, text, notes) or range(flow.classes)
    return torch.tensor([chosen[i % len(chosen)] for i in range(count)]) if chosen else None
