"""Operations on latents: interpolate, mix, vary, normalize, restyle, explore, morph, harmonize, save and load."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from flowcore import CheckpointError, FlowError
from flowcore.engine.memory import memory_required
from flowcore.engine.model_input import Fit, prepare_input
from flowcore.errors import say
from flowcore.flows import latents as operations
from flowcore.models.latents_file import load_latents, read_latents_header, save_latents
from flowcore.tasks.sample import encode, morph, normalize_image_latents
from flowcore.tasks.styles import apply_style

from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled
from .host.paths import input_files, output_path
from .host.ui import canvas_pictures
from .live import LiveNode
from .node import FileNode, FlowNode
from .sockets import FLOW_LATENTS, HarmonizeModel, Image, Latents, SampleModel, check_memory, shown

SUFFIX = ".safetensors"
SUBFOLDER = "latents"  # folder within input, and within output where Save Flow Latents puts its files

path_choice = partial(widgets.choice, "slerp", "linear", "norm", advanced=True)  # path between two latents
per_choice = partial(widgets.choice, "local", "channel", "level", default="level")
Style = Annotated[float, widgets.slider(0.0, -3.0, 3.0, 0.1)]
FaceStyle = Annotated[float, widgets.slider(0.0, -3.0, 3.0, 0.1, optional=True)]


class FlowcoreInterpolate(FlowNode):
    """Walk from one image to another, frame by frame."""

    ALIASES = "interpolate latents, morph, slerp, animation, latent walk, blend, tween"
    OUTPUTS = (FLOW_LATENTS.Output("frames_of_latents"),)

    def run(
        self,
        a: Latents,
        b: Latents,
        frames: Annotated[int, widgets.integer(16, 2, 512)],
        mode: Annotated[operations.Mode, path_choice()],
        coarse_first: Annotated[float, widgets.number(0.0, 0.0, 1.0, 0.01, optional=True, advanced=True)],
        loop: widgets.Switch,
    ) -> Any:
        a.check_same_model(b)
        positions = [i / (frames - 1) for i in range(frames)]
        if loop:
            positions += positions[-2:0:-1]
        count = len(positions) * max(a.items, b.items)
        check_memory(count, sum(z[0].numel() for z in a.levels), "frames", say("Lower frames, or pass fewer items."))
        # Deep levels run ahead of fine ones: with c half of `coarse_first`, the level of depth d moves at constant
        # speed while t goes from c (1 - d) to 1 - c d.
        c, depths = coarse_first / 2, _depths(len(a.levels), single=1.0)
        walk: list[list[Tensor]] = []
        for t in positions:
            stop_if_cancelled()
            ts = [min(1.0, max(0.0, (t - c * (1 - depth)) / (1 - c))) for depth in depths]
            ts = ts if len(ts) > 1 else [t]  # a single level has nothing to run ahead of
            walk.append(operations.interpolate(a.levels, b.levels, ts, mode=mode))
        levels = [torch.stack(level, 1).flatten(0, 1) for level in zip(*walk, strict=True)]  # frames of pair 0 first
        labels, source = _along_walk(a, b, positions, self.notes)
        return self.output(replace(a, levels=levels, labels=labels, source=source))


class FlowcoreMixLatents(FlowNode):
    """Join the composition of one image with the texture of another."""

    ALIASES = "mix latents, blend latents, style mixing, combine latents, merge latents"
    OUTPUTS = (FLOW_LATENTS.Output("mixed"),)

    def run(
        self,
        a: Latents,
        b: Latents,
        coarse: Annotated[float, widgets.slider(1.0, 0.0, 1.0)],
        fine: Annotated[float, widgets.slider(0.0, 0.0, 1.0)],
        levels: Annotated[str, widgets.text(optional=True, advanced=True)],
    ) -> Any:
        a.check_same_model(b)
        shares = widgets.parse_numbers(levels, "levels") or [
            fine + (coarse - fine) * depth for depth in _depths(len(a.levels), single=0.5)
        ]
        mixed = operations.mix_levels(a.levels, b.levels, weights=shares)
        a, b = _paired(a, b)
        if a.labels is not None and b.labels is not None and not torch.equal(a.labels, b.labels):
            self.notes("a and b show different labels: those of a are kept. Flow Decode can show others.")
        if a.source is not None and b.source is not None and not torch.equal(a.source, b.source):
            self.notes("a and b have different sources: that of a is kept. Flow Decode can take another.")
        return self.output(replace(a, levels=mixed))


class FlowcoreVaryLatents(FlowNode):
    """Vary latents a little, for similar images."""

    ALIASES = "vary latents, variation, variation seed, similar image, subseed"
    OUTPUTS = (FLOW_LATENTS.Output("varied"),)
    REPORTS = False

    def run(
        self,
        latents: Latents,
        seed: Annotated[int, widgets.seed(1000)],
        strength: Annotated[float, widgets.number(0.2, 0.0, 1.0, 0.01)],
        temperature: Annotated[float, widgets.temperature(1.0, optional=True)],
    ) -> Any:
        varied = operations.vary(latents.levels, seed, strength, temperature=temperature)
        return self.output(replace(latents, levels=varied))


class FlowcoreNormalizeLatents(FlowNode):
    """Give latents the statistics that the model expects."""

    ALIASES = "normalize latents, normalise latents, restore, harmonize, content transfer"
    OUTPUTS = (FLOW_LATENTS.Output("normalized"),)
    REPORTS = False

    def run(
        self,
        latents: Latents,
        strength: Annotated[float, widgets.number(1.0, 0.0, 1.0, 0.01)],
        per: Annotated[operations.Per, per_choice()],
        window: widgets.Window,
    ) -> Any:
        levels = operations.normalize(latents.levels, strength, per, window=window)
        return self.output(replace(latents, levels=levels))


class FlowcoreScaleLatents(FlowNode):
    """Scale latents, for calmer or livelier images."""

    ALIASES = "scale latents, multiply latents, temperature, calm, smooth"
    OUTPUTS = (FLOW_LATENTS.Output("scaled"),)
    REPORTS = False

    def run(
        self, latents: Latents, temperature: Annotated[float, widgets.temperature(1.0)], temperatures: widgets.Text
    ) -> Any:
        factors = widgets.parse_numbers(temperatures, "temperatures") or temperature
        return self.output(replace(latents, levels=operations.scale(latents.levels, factors)))


class FlowcoreStyle(LiveNode):
    """Change the style of latents, and keep their content."""

    ALIASES = "style, bold, slant, smile, age, attribute, edit latents, latent direction, slider"
    OUTPUTS = (FLOW_LATENTS.Output("styled"),)

    def run(
        self,
        latents: Latents,
        model: SampleModel,
        bold: Style,
        wide: Style,
        slanted: Style,
        messy: Style,
        direction: Latents | None,
        strength: Annotated[float, widgets.number(1.0, -5.0, 5.0, 0.05, optional=True)],
        smile: FaceStyle,
        age: FaceStyle,
        gender: FaceStyle,
    ) -> Latents:
        model.check_latents(latents)
        styles = {"bold": bold, "wide": wide, "slanted": slanted, "messy": messy}
        styles |= {"smile": smile, "age": age, "gender": gender}
        levels = apply_style(model.flow, latents.levels, {style: value for style, value in styles.items() if value})
        labels, source = latents.labels, latents.source
        if direction is not None:
            latents.check_same_model(direction)
            levels = operations.add(levels, direction.levels, strength)
            labels, source = (_repeat(values, len(levels[0])) for values in (labels, source))
        return replace(latents, levels=levels, labels=labels, source=source)


class FlowcoreAttributeDirection(FlowNode):
    """Find the direction from images without an attribute to images with it."""

    ALIASES = "attribute, direction, latent direction, concept, edit, steering vector"
    OUTPUTS = (FLOW_LATENTS.Output("direction"),)

    def run(
        self,
        model: SampleModel,
        with_attribute: list[Image],
        without_attribute: list[Image],
        fit: widgets.Fit,
        label: widgets.Label,
    ) -> Any:
        notes, flow = self.notes, model.flow
        if flow.capabilities.source == "low_resolution":
            raise FlowError(
                "The latents of an upscaling model each belong to a small image. Directions are for models that make "
                "images from noise, such as glow-photos: load one."
            )
        progress, pieces = notes.start(), len(with_attribute) + len(without_attribute)

        def encoded(image: Tensor, piece: int) -> list[Tensor]:
            prepared = prepare_input(flow, image.cpu(), fit=fit, label=label, notify=notes)
            count, _, *size = prepared.pixels.shape
            model.load(memory_required(flow, count, *size))
            cond = prepared.condition(flow, cancelled=stop_if_cancelled, notify=notes)
            part = progress.part(piece / pieces, 1 / pieces)
            return encode(flow, prepared.pixels, cond, progress=part, cancelled=stop_if_cancelled)

        direction = operations.attribute_direction(
            (encoded(image, i) for i, image in enumerate(with_attribute)),
            (encoded(image, i) for i, image in enumerate(without_attribute, len(with_attribute))),
        )
        return self.output(model.latents(direction))


class FlowcoreLatentExplorer(LiveNode):
    """Choose an image from the square between two to four others."""

    ALIASES = "latent explorer, 2d pad, xy pad, morph, blend four, interpolate latents"
    OUTPUTS = (FLOW_LATENTS.Output("explored"),)

    def run(
        self,
        a: Latents,
        b: Latents,
        c: Latents | None,
        d: Latents | None,
        x: Annotated[float, widgets.slider(0.5, 0.0, 1.0, 0.001, optional=True)],
        y: Annotated[float, widgets.slider(0.5, 0.0, 1.0, 0.001, optional=True)],
    ) -> Latents:
        differences = list[str]()

        def between(one: Latents, other: Latents, t: float) -> Latents:  # 0 and 1 give the ends bit for bit
            one.check_same_model(other)
            labels, source = _along_walk(one, other, [t], differences.append)
            levels = operations.interpolate(one.levels, other.levels, t)
            return replace(one, levels=levels, labels=labels, source=source)

        result = between(a, b, x)
        lower = [corner for corner in (c, d) if corner is not None]
        if lower:
            result = between(result, between(lower[0], lower[1], x) if len(lower) == 2 else lower[0], y)
        if differences:
            self.notes("The images show different labels: that of the nearest is kept. Flow Decode can show others.")
        return result


class FlowcoreMorph(FlowNode):
    """Make a film that morphs through a batch or a list of pictures."""

    ALIASES = "morph, morphing, animation, film, transition, blend photographs, glow, tween"
    OUTPUTS = (io.Image.Output("film"),)
    HIDDEN = (io.Hidden.extra_pnginfo,)

    def run(
        self,
        images: list[Image],
        model: SampleModel,
        frames: Annotated[int, widgets.integer(24, 2, 512)],
        loop: Annotated[bool, widgets.switch(default=True)],
        mode: Annotated[operations.Mode, path_choice(optional=True)],
        fit: Annotated[Fit, widgets.choice("resize", "crop", optional=True, advanced=True)],
    ) -> Any:
        flow, count = model.flow, sum(map(len, images)) * frames
        size = flow.image_size if fit == "resize" and flow.image_size else (images[0].shape[2], images[0].shape[3])
        check_memory(count, 3 * math.prod(size), "frames", say("Lower frames, or pass fewer images."))
        flow = model.load(memory_required(flow, count, *size))
        pictures, options = [batch.cpu() for batch in images], self.notes.task_options()
        film = morph(flow, pictures, frames=frames, mode=mode, loop=loop, fit=fit, **options)
        return self.output(film, text=[], **canvas_pictures(self, film))


class FlowcoreHarmonize(FlowNode):
    """Give an edited picture the texture that the model expects."""

    ALIASES = "harmonize, blend edit, content transfer, restore, restoration, remove dither, clean up, composite"
    OUTPUTS = (io.Image.Output("harmonized"),)

    def run(
        self,
        image: Image,
        model: HarmonizeModel,
        strength: Annotated[float, widgets.slider(1.0, 0.0, 1.0)],
        per: Annotated[operations.Per, per_choice(optional=True)],
        window: widgets.Window,
    ) -> Any:
        count, _, height, width = image.shape
        flow = model.load(memory_required(model.flow, count, height, width))
        options = self.notes.task_options()
        return self.output(
            normalize_image_latents(flow, image.cpu(), strength=strength, per=per, window=window, **options)
        )


class FlowcoreSaveLatents(FlowNode):
    """Save latents to a file."""

    ALIASES = "save latents, export latents, store latents"
    REPORTS = False
    IS_OUTPUT_NODE = True

    def run(self, latents: Latents, filename_prefix: Annotated[str, widgets.text("latents/flowcore")]) -> Any:
        path, record = output_path(filename_prefix, SUFFIX)
        save_latents(
            path,
            latents.levels,
            model=latents.model_sha256,
            architecture=latents.architecture,
            model_name=latents.model_name,
            extra={} if latents.labels is None else {"labels": latents.labels.tolist()},
            source=latents.source,
        )
        return self.output(latents=[record], text=[say("Saved as {file}", file=record["filename"])])


class FlowcoreLoadLatents(FileNode):
    """Load latents from a file."""

    ALIASES = "load latents, import latents, open latents"
    OUTPUTS = (FLOW_LATENTS.Output("latents"), io.String.Output("info"))

    @classmethod
    def missing_message(cls, name: Any) -> str:
        return (
            f"there is no file {shown(name)} in the input folder. Put it into ComfyUI's input folder or into "
            f"input/{SUBFOLDER}, and press R."
        )

    def run(self, file: Annotated[str, widgets.file_choice(partial(input_files, SUBFOLDER, SUFFIX))]) -> Any:
        path = self.require_file(file)
        header = read_latents_header(path)  # reads no tensor
        labels: Any = header.extra.get("labels")
        if labels is not None:
            valid = isinstance(labels, list) and all(type(label) is int and 0 <= label < 2**31 for label in labels)
            if not valid or len(labels) != header.shapes[0][0]:
                raise CheckpointError(
                    "{file} is damaged: its labels do not match its items. Save the latents again.", file=file
                )
        levels, header, source = load_latents(path)
        latents = Latents(
            levels=levels,
            model_sha256=header.model_sha256,
            model_name=header.model_name[:80],
            architecture=header.architecture[:80],
            labels=None if labels is None else torch.tensor(labels),
            source=source,
        )
        lines = [
            f"model: {latents.model_name} ({latents.architecture}, sha {header.model_sha256[:12]})",
            f"items: {latents.items}",
            f"levels, finest first: {', '.join('x'.join(map(str, shape[1:])) for shape in header.shapes)}",
        ]
        if labels is not None:
            lines.append(f"labels: {', '.join(map(str, labels))}")
        if source is not None:
            lines.append(f"small image: {source.shape[3]}x{source.shape[2]}")
        info = "\n".join(lines)
        return self.output(latents, info, text=[info])


def _depths(levels: int, single: float) -> list[float]:
    """Return the depth of every level from 0, the finest, to 1, the deepest; `single` if there is only one."""
    return [single] if levels == 1 else [number / (levels - 1) for number in range(levels)]


def _repeat(values: Tensor | None, count: int) -> Tensor | None:
    return values if values is None or len(values) == count else values.expand(count, *values.shape[1:])


def _paired(a: Latents, b: Latents) -> tuple[Latents, Latents]:
    """Give both labels and sources for the items of the longer; one that has none takes those of the other."""
    count, pair = max(a.items, b.items), list[Latents]()
    for one, other in ((a, b), (b, a)):
        labels = other.labels if one.labels is None else one.labels
        source = other.source if one.source is None else one.source
        pair.append(replace(one, labels=_repeat(labels, count), source=_repeat(source, count)))
    return pair[0], pair[1]


def _along_walk(
    a: Latents, b: Latents, positions: list[float], notify: Callable[[str], None]
) -> tuple[Tensor | None, Tensor | None]:
    """Return a walk's labels (of a up to the middle, then of b) and sources (faded); frames of pair 0 come first."""
    a, b = _paired(a, b)
    labels, source = None, None
    if a.labels is not None and b.labels is not None:
        if not torch.equal(a.labels, b.labels):
            notify(
                say("a and b show different labels: frames show that of the nearer end. Flow Decode can show others.")
            )
        labels = torch.stack([b.labels if t > 0.5 else a.labels for t in positions], 1).flatten(0, 1)
    if a.source is not None and b.source is not None:
        one = a.source[:1]
        if all(bool((side == one).all()) for side in (a.source, b.source)):  # one source for all items
            source = one
        else:
            source = torch.stack([(1 - t) * a.source + t * b.source for t in positions], 1).flatten(0, 1)
    return labels, source
