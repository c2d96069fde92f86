"""Files: every picture of a folder in one node, and pictures saved with all of their bits and what came with them."""

import hashlib
import os
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from ..flowcore import FlowError
from ..flowcore.batch.folders import InputFile, Job, Outputs, find, in_turn, is_done, make_jobs, run, save, split_name
from ..flowcore.batch.job import Work, Worker, encode_like
from ..flowcore.batch.tables import NAME, Manifest
from ..flowcore.checkpoints.color_memory import starter_memory
from ..flowcore.checkpoints.writing import write_atomic
from ..flowcore.images.files import SUFFIXES, Format, check_format, read, read_bytes
from ..flowcore.tasks.colorize import memory_required as memory_to_colorize
from ..flowcore.tasks.defaults import model_defaults
from ..flowcore.tasks.image_batch import ImageBatch, append_alpha
from ..flowcore.tasks.model_choice import upscalers_for
from ..flowcore.tasks.upscale import memory_required
from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled
from .host.paths import input_path, inside, output_path
from .host.ui import Progress, png_texts
from .node import FlowNode
from .sockets import HostModel, Image, Mask, ModelByPicture, PhotoModel, from_mask, shown
from .upscaling import ORDINARY_TILE

LARGE = 2048  # pixels of a side of a photograph
BITS: dict[Any, int | None] = {"source": None, "8": 8, "16": 16}


class FlowcoreFolder(FlowNode):
    """Every picture of a folder, with its metadata; what is there already is skipped."""

    MENU = "batch"
    ALIASES = "folder, batch folder, directory, bulk, upscale folder, colorize folder, exif, load images"
    OUTPUTS = (io.String.Output("info"),)
    IS_OUTPUT_NODE = True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return time.time_ns()  # pictures and results may have changed

    def run(
        self,
        model: PhotoModel,
        folder: Annotated[str, partial(io.String.Input, default="photos")],
        subfolder: Annotated[str, partial(io.String.Input, default="flowcore")],
        temperature: widgets.OwnTemperature,
        seed: Annotated[int, widgets.seed(control=False)],
        samples: widgets.Samples,
    ) -> Any:
        if not folder.strip():
            raise FlowError("folder: name a folder in ComfyUI's input folder, or write . for all pictures in it.")
        notes, progress, count = self.notes, Progress(), Counter[str]()
        source, out = inside("input", folder), inside("output", subfolder)
        if not os.path.isdir(source):
            raise FlowError(f"folder: {shown(folder)} is no folder in ComfyUI's input folder. Put pictures into one.")
        found, manifest = find([str(source)], out, notes), Manifest(inside("output", out / NAME))
        parts = [(model, found)] if isinstance(model, HostModel) else _by_picture(model, found)

        def start(picture: Path) -> Any:
            self.notes.show(f"{count.total() + 1} of {len(found)}: {picture.name}")
            return progress.part(count.total() / len(found), 1 / len(found))

        def on_result(one: HostModel, work: Work, job: Job, result: Outputs | Exception | None) -> None:
            if result is not None:  # paths in it are below the two folders
                targets = tuple(target.relative_to(out) for target in job.targets)
                below = replace(job, source=job.source.relative_to(source), targets=targets)
                told = result.notes if isinstance(result, Outputs) else ()
                manifest.append(below, result, work, one.sha256, told)
            stop_if_cancelled()
            if isinstance(result, Exception):
                notes(f"{job.source.name}: {result}")
            count["made" if isinstance(result, Outputs) else "there already" if result is None else "failed"] += 1

        for one, pictures in parts:
            work = _work(one, temperature, seed, samples)
            tag = Path(one.name).stem + ("" if temperature is None else f"_tau{temperature:g}")
            names = [f"_{tag}_seed{seed}" for seed in work.seeds()]
            todo = make_jobs(pictures, out, partial(_results, names))
            todo = [replace(job, problem=job.problem or _leads_out(job)) for job in todo]
            colorizes = work.command == "colorize"
            need, side = (memory_to_colorize, LARGE) if colorizes else (memory_required, ORDINARY_TILE)
            one.load(need(one.flow, side, side))
            executor = partial(in_turn, Worker(work, one.flow), start, notes, cancelled=stop_if_cancelled)
            done = partial(is_done, work=work, model=one.sha256)
            run(todo, executor, is_done=done, save=save, on_result=partial(on_result, one, work), notify=notes)
        manifest.compact()
        info = f"{len(found)} pictures: {', '.join(f'{n} {what}' for what, n in count.items())}; in output/{subfolder}"
        if not isinstance(model, HostModel):
            info += "".join(f"; {len(pictures)} by {one.name}" for one, pictures in parts)
        return self.output(info, text=[info])


def _by_picture(model: ModelByPicture, found: list[InputFile]) -> list[tuple[HostModel, list[InputFile]]]:
    """Divide pictures among the upscalers that suit them."""
    chosen = upscalers_for([one.path for one in found], locate=partial(inside, "input"), check=stop_if_cancelled)
    suited: dict[str, list[InputFile]] = {}
    for picture in found:
        suited.setdefault(chosen[picture.path][0], []).append(picture)
    return [(model.load(name), pictures) for name, pictures in suited.items()]


def _work(model: HostModel, temperature: float | None, seed: int, samples: int) -> Work:
    flow, colorizes = model.flow, "colorize" in model.flow.capabilities.tasks
    left = ["detail", "coherence", "saturation"] if colorizes else ["calm_edges"]
    left += ["guide_strength"] if flow.guide is not None and not colorizes else []
    settings: dict[str, Any] = {"temperature": temperature, **dict.fromkeys(left)}
    return Work(
        command="colorize" if colorizes else "upscale",
        model=model.name,
        scale=flow.condition_scale,
        settings=settings,
        model_defaults=model_defaults(flow, settings),
        seed=seed,
        samples=samples,
        memory=starter_memory(flow) if colorizes else None,
        bits=None,  # those of the picture
    )


def _results(names: list[str], picture: Path) -> list[str]:
    stem, frame = split_name(picture.name)
    return [f"{stem}{name}{frame}.png" for name in names]


def _leads_out(job: Job) -> str:
    """Why a picture may not be read, or its results not be saved: a link leads out of the host's folders."""
    try:
        inside("input", job.source)
        inside("output", job.targets[0])
    except FlowError as error:
        return str(error)
    return ""


class FlowcoreSave(FlowNode):
    """Pictures in files of their own, none of which is ever replaced."""

    MENU = "image"
    ALIASES = "save image, save picture, 16 bit, export image, tiff, exif, icc profile, alpha"
    HIDDEN = (io.Hidden.prompt, io.Hidden.extra_pnginfo)
    IS_OUTPUT_NODE = True

    @classmethod
    def validate_inputs(cls, source: Any = "", format: Any = "png", bits: Any = "8") -> bool | str:
        try:  # what cannot be saved is refused before the work; None stands for a wire
            _files(source or "")
            check_format(format or "png", 16 if bits == "16" else 8)
        except FlowError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, source: Any = "", **_: Any) -> list[str]:
        return [hashlib.sha256(read_bytes(file)).hexdigest() for file in _files(source or "")]  # as Flow Example

    def run(
        self,
        images: Image,
        filename_prefix: Annotated[str, partial(io.String.Input, default="flowcore/picture")],
        format: Annotated[Format, widgets.choice(*SUFFIXES)],
        bits: Annotated[str, widgets.choice(*BITS)],
        source: widgets.Text,
        mask: Mask | None,
        quality: Annotated[int, widgets.integer(0, 0, 100, optional=True, advanced=True)],
    ) -> Any:
        records = list[dict[str, str]]()
        batch = ImageBatch(images.cpu())
        rgb, alpha = batch.rgb, batch.alpha
        if mask is not None and bool(mask.any()):  # a mask of zeros is what loaders give where nothing is transparent
            alpha = 1 - from_mask(mask, len(mask) if len(rgb) % max(1, len(mask)) == 0 else len(rgb))
        pictures, files = append_alpha(rgb, alpha), _files(source) or [None]
        if len(pictures) % len(files):
            raise FlowError(f"source names {len(files)} pictures, and {len(pictures)} came. Name one, for all.")
        options: dict[str, Any] = {"format": format, "bits": BITS[bits], "quality": quality or None}
        options |= {"text": png_texts(self.hidden), "notify": self.notes}
        for file, made in zip(files, pictures.unflatten(0, (len(files), -1)), strict=True):
            original = None if file is None else read(read_bytes(file), file.name)
            if file and original and len(made[0]) < 4 and bool((original.pixels[:, 3:] < 1).any()):
                self.notes(f"{file.name}: Its transparent parts are opaque in the result. Connect a mask to keep them.")
            for picture in made:
                data = encode_like(original, picture, **options)
                prefix = filename_prefix.replace("%batch_num%", str(len(records)))
                path, record = output_path(prefix, SUFFIXES[format], (picture.shape[-2], picture.shape[-1]))
                write_atomic(path, data)
                records.append(record)
        return self.output(images=records, text=[])


def _files(source: Any) -> list[Path]:
    """Find the pictures of the input folder that a text names, one a line."""
    found: list[Path] = []
    for name in filter(None, map(str.strip, str(source).splitlines())):
        path = input_path(name)
        if path is None:
            raise FlowError(
                f"source: there is no picture {shown(name)} in the input folder. Correct it or leave it out."
            )
        found.append(path)
    return found
