"""Traces: which model and seed made a picture, where it was edited since, and what an upscaler invented."""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath
from typing import Annotated, Any

from torch import Tensor

import flowcore
from flowcore import FlowModel
from flowcore.batch.record import Trace
from flowcore.engine.image_batch import ImageBatch
from flowcore.engine.memory import memory_required
from flowcore.errors import Argument, FlowError, Message, joined, on_lines, say
from flowcore.images.contact_sheet import glow
from flowcore.images.resize import resize_bilinear
from flowcore.tasks.edits import describe_edits
from flowcore.tasks.examination import TILE, VERIFIED
from flowcore.tasks.model_choice import FOR_CLEAN, FOR_DAMAGED
from flowcore.tasks.verify import Verification, may_be_crops

from . import widgets
from .host.compat import io
from .host.memory import to_host_image
from .host.paths import record_path
from .host.ui import finite
from .loaders import load_model, locate_model
from .node import FlowNode, file_fingerprint
from .sockets import HarmonizeModel, HostModel, Image, TracedModel, shown

NO_RECORD = say("{record}: there is no {name} in the folder flowcore of ComfyUI's user folder. Correct or remove it.")
NO_RECORD_YET = say(
    "Nothing is recorded yet. Switch on {record} in Save Flow Picture: what it saves from then on is found here."
)


class FlowcoreVerify(FlowNode):
    """Verify that pictures were made by a model from a seed, and show where they were edited since."""

    MENU = "trace"
    ALIASES = "verify, trace, seed, provenance, authenticity, watermark, mark, fingerprint, tampering, edited, c2pa"
    OUTPUTS = (
        io.Image.Output("map"),
        io.Mask.Output("mask"),
        io.Boolean.Output("verified"),
        io.Float.Output("z", is_output_list=True),
    )

    def run(
        self,
        image: Image,
        model: TracedModel,
        seed: Annotated[int, widgets.seed(control=False)],
        mark: widgets.Text,
        source: Image | None,
        width: Annotated[int, widgets.integer(0, 0, 16384, optional=True, advanced=True)],
        height: Annotated[int, widgets.integer(0, 0, 16384, optional=True, advanced=True)],
    ) -> Any:
        # which of two models made it cannot be seen of the enlargement
        models = [model] if isinstance(model, HostModel) else [model.load(name) for name in (FOR_CLEAN, FOR_DAMAGED)]
        if bool(width) != bool(height):
            raise FlowError(
                "width and height belong together; got {size}. Set both, or neither (0).", size=f"{width}x{height}"
            )
        phrase = mark.strip()
        # samples of every source begin with the same seed
        samples = max(1, len(image) // (1 if source is None else len(source)))
        seeds = [(seed + k % samples) % 2**64 for k in range(len(image))]
        size = (height, width) if height and width else None
        options = {"seed": seeds, "mark": phrase or None, "source": source, "size": size}
        best, name = self._best(image, models, options)
        origins = [
            say('the mark "{phrase}"', phrase=phrase) if phrase else say("seed {seed}", seed=each) for each in seeds
        ]
        tried = name if best.verified.all() else [each.name for each in models]
        lines = [_verdict(best, k, name if best.verified[k] else tried, origin) for k, origin in enumerate(origins)]
        if not best.verified.all() and source is None and size is None and may_be_crops(models[0].flow, image):
            names = {each: Argument(each) for each in ("source", "width", "height")}
            lines.append(say("If it is a crop, connect {source}, or set {width} and {height} to what it was.", **names))
        facts = [_placed(best, k) for k in range(len(image))]
        scores = best.z.tolist()
        return self.output(
            glow(ImageBatch(image.cpu()).rgb, best.edited),
            to_host_image(best.edited[:, 0]),
            bool(best.verified.all()),
            scores,
            text=[on_lines(*lines), "", *facts],
            z=finite(scores),
            verified=best.verified.tolist(),
            offset=best.offset.tolist(),
            size=best.size.tolist(),
            mirrored=best.mirrored.tolist(),
        )

    def _best(self, image: Tensor, models: list[HostModel], options: dict[str, Any]) -> tuple[Verification, str]:
        """Verify with one model after the other until one has made all pictures: the best result, and its model."""
        results: list[tuple[Verification, str]] = []
        progress, sides = self.notes.start(image), [min(side, TILE) for side in image.shape[-2:]]  # encoded at once
        for number, each in enumerate(models):
            flow = each.load(2 * memory_required(each.flow, 1, *sides))
            own = self.notes.task_options(progress.part(number / len(models), 1 / len(models)))
            results.append((flowcore.verify(flow, image, **options, **own), each.name))
            if results[-1][0].verified.all():
                break
        return max(results, key=lambda result: float(result[0].z.min()))


def _verdict(found: Verification, k: int, model: str | list[str], origin: str) -> str:
    if not found.verified[k]:
        return say("Not made by {model} from {origin}, or changed too much since.", model=model, origin=origin)
    return say("Made by {model} from {origin}. {since}", model=model, origin=origin, since=_since(found, k))


def _since(found: Verification, k: int) -> str:
    if not found.is_edited[k]:
        return say("No edit was found.")
    return describe_edits(float(found.edited_share[k]), float(found.agreement[k].mean()))


def _placed(found: Verification, k: int) -> str:
    (height, width), (top, left) = found.size[k].tolist(), found.offset[k].tolist()
    place = f"made at {width}x{height}"
    place += f", cropped from {left}, {top}" if top or left else ""
    place += ", mirrored" if found.mirrored[k] else ""
    return f"z {float(found.z[k]):.1f}, where {VERIFIED:g} is needed and chance stays below 4.5; {place}"


class FlowcoreTrace(FlowNode):
    """Find the source, model and seed of a picture, whose metadata may be gone, in a record of what was made."""

    MENU = "trace"
    ALIASES = "trace, where from, origin, provenance, seed, record, lost metadata, find source, which picture"
    OUTPUTS = (
        io.String.Output("origin", is_output_list=True),
        io.Int.Output("seed", is_output_list=True),
        io.Float.Output("z", is_output_list=True),
    )
    IS_OUTPUT_NODE = True

    @classmethod
    def fingerprint_inputs(cls, record: Any = "", **_: Any) -> list[str]:
        with suppress(FlowError):  # which `run` raises, too
            path = record_path(str(record or "").strip())  # SQLite writes into a second file first
            return [file_fingerprint(each) for each in (path, Path(f"{path}-wal")) if os.path.isfile(each)]
        return []

    def run(
        self, image: Image, record: Annotated[str, widgets.text(optional=True, placeholder="record.sqlite")]
    ) -> Any:
        path, models = record_path(record.strip()), dict[str, HostModel]()
        if not os.path.isfile(path):
            names = {"record": Argument("record"), "name": shown(path.name)}
            raise FlowError(NO_RECORD if record.strip() else NO_RECORD_YET, **names)
        sides = [min(side, TILE) for side in image.shape[-2:]]  # encoded at once
        progress, found = self.notes.start(image), list[Trace | None]()
        for number, picture in enumerate(image.split(1)):
            options = self.notes.task_options(progress.part(number / len(image), 1 / len(image)))
            found.append(flowcore.trace(picture, path, load=partial(_load, models, sides), **options))
        origins = [
            say("Not in this record, or changed too much since.") if each is None else _origin(each) for each in found
        ]
        seeds = [-1 if each is None else each.entry.seed for each in found]
        scores = [0.0 if each is None else each.z for each in found]
        facts = [f"{Path(each.entry.file).name}: {_placed(each.verification, 0)}" for each in found if each is not None]
        return self.output(origins, seeds, scores, text=[on_lines(*origins), "", *facts], seed=seeds, z=finite(scores))


def _load(models: dict[str, HostModel], sides: Sequence[int], name: str) -> FlowModel:
    """Load a model of a record by its name, or that of its file, and keep it in `models`."""
    if name not in models:
        known = name if locate_model(name) is not None else PurePath(name).name
        if (path := locate_model(known)) is None:
            raise FlowError("There is no such model here. Put it into models/flows.")
        models[name] = load_model(known, path)
    return models[name].load(2 * memory_required(models[name].flow, 1, *sides))


def _origin(found: Trace) -> Message:
    return joined((found.sentence, _since(found.verification, 0)), " ")


class FlowcoreAudit(FlowNode):
    """Show what an enlargement, by any upscaler, has that its small image does not support."""

    MENU = "trace"
    ALIASES = "audit, invented, hallucination, compare upscalers, esrgan, seedvr2, supir, artifacts"
    OUTPUTS = (
        io.Image.Output("map"),
        io.Mask.Output("mask"),
        io.Float.Output("outside", is_output_list=True),
        io.Float.Output("lr_psnr", is_output_list=True),
        io.BoundingBox.Output("boxes"),
        io.Float.Output("detail", is_output_list=True),
    )

    def run(self, image: Image, source: Image, model: HarmonizeModel) -> Any:
        height, width = source.shape[-2:]
        scale = model.flow.condition_scale
        flow = model.load(2 * memory_required(model.flow, 1, scale * height, scale * width))
        found = flowcore.audit(flow, image, source, **self.notes.task_options())
        maps = resize_bilinear(found.glow, image.shape[-2:])
        boxes = [
            [{"x": left, "y": top, "width": right - left, "height": bottom - top} for left, top, right, bottom in each]
            for each in found.boxes
        ]
        numbers = zip(found.lr_psnr.tolist(), found.bits_per_dim.tolist(), found.own_bits_per_dim.tolist(), strict=True)
        facts = [
            f"shrunk, {db:.1f} dB from the small image; {bits:.2f} bits per dimension given it, a sample of the model "
            f"{own:.2f}"
            for db, bits, own in numbers
        ]
        outside, distances, detail = (each.tolist() for each in (found.outside, found.lr_psnr, found.detail))
        return self.output(
            glow(ImageBatch(image.cpu()).rgb, maps),
            to_host_image(maps[:, 0]),
            outside,
            distances,
            boxes,
            detail,
            text=[on_lines(*found.sentences), "", *facts],
            outside=finite(outside),
            lr_psnr=finite(distances),
            boxes=boxes,
            detail=finite(detail),
        )
