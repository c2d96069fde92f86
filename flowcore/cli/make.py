"""Commands that make images: upscale, colorize, remember, brighten, repair, faces, sample and others."""

import inspect
import os
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import decode, encode, interpolate, load, sample
from ..batch.credentials import Signer, sign
from ..batch.folders import targets_done
from ..batch.job import COMMAND, picture_id
from ..batch.provenance import Provenance, picture_fingerprint
from ..batch.tables import Record
from ..engine.defaults import with_defaults
from ..engine.guide import NO_GUIDE
from ..engine.model_input import label_number, resize_to_own
from ..engine.options import RunOptions, options_of
from ..engine.progress import duration
from ..errors import FlowError
from ..flows.mark import mark_key
from ..flows.model import FlowModel
from ..images import files
from ..models import catalog
from ..models.colorizer.color_memory import KEY, ColorMemory, starter_memory
from ..models.identity import describe, fingerprint, model_fingerprint, model_sha256
from ..models.model_file import is_flowcore_file
from ..models.writing import check_writable, write_atomic
from ..tasks.colorize import ColorizeSettings
from ..tasks.faces import FacesSettings
from ..tasks.hints import palette_from, parse_points
from ..tasks.remember import open_memory, remember
from ..tasks.sample import with_guidance
from ..tasks.styles import check_styles
from ..tasks.table import tasks
from ..tasks.task import Task
from ..tasks.upscale import UpscaleSettings
from ..tasks.video import colorize_video, upscale_video
from .batches import (
    ModelPlan,
    load_model,
    model_plan,
    named_format,
    output_paths,
    prepare_images,
    result_label,
    seed_names,
    uses_ray,
)
from .options import parse_assignments
from .output import check_overwrite, log, write_result

NO_MEMORY = Path("none")
S = TypeVar("S", bound=RunOptions)
Work = Callable[[], None]  # what a command does once everything has been checked


def prepare_task(options: Namespace) -> Work:
    """Prepare a task on image files."""
    plans = {"upscale": _upscale, "repair": _repair, "faces": _faces}
    return prepare_images(options, plans.get(options.command, _plan))


def _plan(options: Namespace) -> ModelPlan:
    """Plan a task whose options are all fields of its settings."""
    task, flow = tasks()[options.command], load_model(options)
    task.require(flow)
    if task.lossless and named_format(options.out) not in (None, "png"):
        raise FlowError(f"The results of {task.name} are PNG files, which lose nothing; got {options.out.name}.")
    settings = _chosen(options, task.settings).resolved(flow)
    always = [each.name for each in options_of(task.settings) if each.setting.label][:1]
    recorded = {name: getattr(settings, name) for name in always} | settings.recorded()
    return model_plan(options, flow, task.name, recorded, _label(task, recorded))


def _label(task: Task, settings: dict[str, Any]) -> str:
    """Write a task and its settings, as far as names of results tell them."""
    labels = {each.name: each.setting.label for each in options_of(task.settings) if each.setting.label}
    values = {name: "" if settings[name] is True else f"{settings[name]:g}" for name in labels if name in settings}
    return "_".join(filter(None, [task.label, *(labels[name] + value for name, value in values.items())]))


def _upscale(options: Namespace) -> ModelPlan:
    flow = load_model(options)
    flow.require("upscale")
    settings, usual = _chosen(options, UpscaleSettings).resolved(flow).recorded(), UpscaleSettings().resolved(flow)
    for name in ("boldness", "look", *([] if settings["sharpness"] else ["sharpness"])):
        settings.pop(name, None)  # what the first two stand for is resolved
    faces, is_usual = settings["calm_faces"], settings["temperature"] == usual.temperature
    if not settings["calm_faces"] or (options.steadiness is not None and options.calm_faces is None):
        del settings["calm_faces"]  # clips have none
    if "longest_side" in settings:  # it overrides the factor
        settings.pop("factor", None)
    if settings["guide_strength"] and options.guide is None and flow.guide is None:
        log(NO_GUIDE)
        settings["guide_strength"] = 0.0
    # calm faces are named if they are not those of the model's temperature, or none at another one
    names_faces = options.calm_faces is not None or faces != (usual.calm_faces if is_usual else 0.0)
    always = {"temperature": settings["temperature"]} | ({"calm_faces": faces} if names_faces else {})
    named = {name: value for name, value in settings.items() if value and name != "calm_faces"}
    label = _label(tasks()["upscale"], named | always)
    if options.steadiness is not None or (flow.guide is None and not settings["guide_strength"]):
        del settings["guide_strength"]
    if options.steadiness is not None:
        if options.samples > 1 or uses_ray(options) or options.guide is not None or options.guide_strength is not None:
            raise FlowError("Frames of a video depend on each other: remove --samples, --ray and --guide.")
        _check_clip(settings, upscale_video)
        settings |= {"frames": "video", "steadiness": options.steadiness}
    return model_plan(options, flow, "upscale", settings, label, guide=_existing("guide", options.guide))


def _chosen(options: Namespace, kind: type[S]) -> S:
    """Return the settings of a task that the command line states."""
    return kind(**{each.name: vars(options)[each.name] for each in options_of(kind) if each.name in options})


def _check_clip(settings: dict[str, Any], task: Callable[..., Any]) -> None:
    """Raise FlowError for settings that the task of a clip does not have."""
    alone = [name for name in settings if name not in inspect.signature(task).parameters]
    if alone:
        flags = ", ".join(f"--{'no-' if settings[name] is False else ''}{name.replace('_', '-')}" for name in alone)
        raise FlowError(f"Only for photographs, not for the frames of a clip: {flags}. Leave them out.")


def _existing(kind: str, path: Path | None) -> Path | None:
    """Return a path as absolute, since workers of a cluster have another folder; FlowError if nothing is there."""
    if path is not None and not os.path.exists(path):
        raise FlowError(f"There is no {kind} {path}. Check the name.")
    return None if path is None else path.absolute()


def prepare_colorize(options: Namespace) -> Work:
    _check_colorize(options)
    options.out = Path(options.images.pop()) if options.out is None else options.out  # colorize IMAGE OUT
    names = ("temperature", "detail", "coherence", "saturation", "working_size", "gamut", "precision")
    settings = {name: getattr(options, name) for name in names}
    if options.hint:
        settings |= {"points": options.hint, "radius": options.radius, "lock": options.lock}
    if options.palette:
        settings["colours"] = options.palette
    if options.strength is not None:
        settings["strength"] = options.strength
    chosen = _chosen(options, ColorizeSettings).recorded()
    settings |= chosen
    if options.frames == "video":
        _check_clip(chosen, colorize_video)
        settings |= {"frames": "video", "carry": 0.5 if options.carry is None else options.carry}
    flow = load_model(options, "colorize")
    temperatures = with_defaults(flow, {"temperature": options.temperature, "detail": options.detail})
    ranks = [f"seeds{options.seed}-{options.seed + options.samples - 1}_best{k + 1}" for k in range(options.keep or 0)]
    plan = model_plan(
        options,
        flow,
        "colorize",
        settings,
        "color_tau{temperature:g}_detail{detail:g}".format(**temperatures),
        keep=options.keep or 0,
        by=options.by or "consensus",
        memory=_memory(options, flow),
        reference=None if options.reference is None else files.read_bytes(options.reference),
    )
    return prepare_images(options, lambda _: plan, ranks or seed_names(options))


def _memory(options: Namespace, flow: FlowModel) -> ColorMemory | None:
    """The memory of ``--memory``; by default the model's, unless colors come from elsewhere."""
    if options.memory is None:
        is_colored = options.reference is not None or bool(options.palette) or options.frames == "video"
        return None if is_colored else starter_memory(flow)
    return None if options.memory == NO_MEMORY else open_memory(flow, options.memory, notify=log)


def _check_colorize(options: Namespace) -> None:
    """Reject options that need another option, or contradict each other."""
    for text in options.hint:
        palette_from([color for _, _, color in parse_points(text)])
    if options.palette:
        palette_from(options.palette)
    if options.strength is not None and options.reference is None:
        raise FlowError("--strength applies to a reference, and there is none. Add one with --reference FILE.")
    if options.lock and not options.hint:
        raise FlowError("--lock applies to hints, and there are none. Add some with --hint X,Y,#RRGGBB.")
    if options.out is None and len(options.images) < 2:
        raise FlowError("colorize needs an output: IMAGE OUT, or IMAGE ... -o OUT.")
    if options.frames == "video":
        if options.samples > 1 or options.reference is not None:
            raise FlowError("A video is colored once, from its own palette: remove --samples and --reference.")
        if options.memory not in (None, NO_MEMORY):
            raise FlowError("--memory is for photographs: remove it, or --frames video.")
        if uses_ray(options):
            raise FlowError("The frames of a video depend on each other and run on one machine: remove --ray.")
    elif options.carry is not None:
        raise FlowError("--carry applies to a video, and these are photographs. Add --frames video.")
    if options.keep is None:
        if options.by is not None:
            raise FlowError("--by says what --keep keeps. Add a number of pictures with --keep N.")
    elif not 1 <= options.keep <= options.samples:
        raise FlowError(f"--keep is 1 to --samples, {options.samples}; got {options.keep}. Ask for more --samples.")
    elif options.frames == "video":
        raise FlowError("A video is colored once: remove --keep.")


def prepare_remember(options: Namespace) -> Work:
    out, known = options.out, None if options.add_to is None else ColorMemory.load(options.add_to)
    if out.suffix != ".safetensors":
        raise FlowError(f"A memory is written as a .safetensors file; got {out.name}. Name the output last.")
    grows = known is not None and out.exists() and out.samefile(options.add_to)
    check_overwrite(out, partial(is_flowcore_file, key=KEY), "memory", again=options.again or grows)
    flow = load_model(options, "colorize")
    if known is not None:
        known.check(flow)
    return partial(_remember, options, flow, known)


def _remember(options: Namespace, flow: FlowModel, known: ColorMemory | None) -> None:
    out, notes = options.out, {"source": f"photographs of {options.photographs.name}"}
    if options.licence is not None:
        notes["licence"] = options.licence
    memory = remember(flow, options.photographs, provenance=notes, notify=log)
    places = memory.places.cells
    if known is not None:
        memory, places = known.merge(memory), known.places.cells + places
    memory.save(out)
    photographs = "1 photograph" if memory.photographs == 1 else f"{memory.photographs} photographs"
    log(f"{out}: {memory.places.cells} places of {photographs}")
    if memory.places.cells < places:
        log(f"A memory holds no more than that: {places - memory.places.cells} places were dropped, evenly.")


def _repair(options: Namespace) -> ModelPlan:
    flow = load_model(options, "upscale")
    settings = with_defaults(flow, {"temperature": options.temperature, "calm_edges": options.calm_edges})
    settings["guide_strength"] = options.guide_strength
    if options.mask is None:
        settings["sensitivity"] = options.sensitivity
    label = "repaired_tau{temperature:g}".format(**settings)
    return model_plan(options, flow, "repair", settings, label, mask=_existing("mask", options.mask))


def _faces(options: Namespace) -> ModelPlan:
    flow, faces = load_model(options, "upscale"), load(options.face_model)
    faces.require("upscale")
    temperature = faces.config.temperature if options.temperature is None else options.temperature
    settings = {name: getattr(options, name) for name in ("factor", "smallest", "largest", "number", "check")}
    settings |= _chosen(options, FacesSettings).recorded()
    settings |= {"face_model": options.face_model, "face_sha256": fingerprint(faces), "temperature": temperature}
    file = Path(options.face_model).expanduser()
    face_model = None if options.face_model in catalog.names() else file.absolute()
    return model_plan(options, flow, "faces", settings, f"faces_tau{temperature:g}", face_model=face_model)


def prepare_sample(options: Namespace) -> Work:
    flow = load_model(options, "sample")
    size = flow.sides(options.size and (options.size[0] if len(options.size) == 1 else tuple(options.size)))
    numbers = [label_number(flow, label) for label in options.labels or ()]
    labels = [numbers[i % len(numbers)] for i in range(options.samples)] if numbers else None
    styles = parse_assignments(options.style, "--style NAME=STRENGTH, e.g. bold=2")
    flow.latent_shapes(*size)  # rejects sizes that the model does not take
    check_styles(flow, styles)
    if not flow.capabilities.guided:
        with_guidance(flow, None, options.guidance)  # rejects it
    shared = {name: getattr(options, name) for name in ("temperature", "seed", "precision")}
    settings: dict[str, Any] = {"size": size, "labels": labels, "styles": styles, "guidance": options.guidance}
    settings |= {**shared, "denoise": not options.keep_noise, "snapped": True}
    label = [f"{size[0]}x{size[1]}"] if size != flow.image_size else []
    label += [f"{name}{strength}" for name, strength in styles.items()]
    values: dict[str, Any] = {**shared, "samples": options.samples, "height": size[0], "width": size[1]}
    if options.mark is not None:
        mark_key(options.mark)  # raises for an empty phrase
        settings["mark"] = values["mark"] = options.mark
    values |= {"styles": ", ".join(options.style), "labels": ", ".join(map(str, numbers))}
    if options.guidance:
        label.append(f"guided{options.guidance:g}")
        values["guidance"] = options.guidance
    if options.keep_noise:
        label.append("noisy")
        values["denoise"] = False
    stem = result_label(options, "_".join([*label, f"tau{options.temperature:g}"]))
    names = seed_names(options)
    if labels:
        names = [f"label{label}_{seed}" for label, seed in zip(labels, names, strict=True)]
    make = partial(sample, flow, options.samples, **settings)
    return _prepare_save(options, flow, make, size, stem, names, values, node="FlowcoreSample")


def prepare_interpolate(options: Namespace) -> Work:
    flow = load_model(options)
    originals = [files.read_bytes(path) for path in options.images]
    ends = [
        resize_to_own(flow, files.read_rgb(content, path.name))
        for content, path in zip(originals, options.images, strict=True)
    ]

    def make() -> Tensor:
        first, last = (encode(flow, image[None]) for image in ends)
        parts = [k / max(1, options.frames - 1) for k in range(options.frames)]
        return torch.cat([decode(flow, interpolate(first, last, t, mode=options.mode), clamp=True) for t in parts])

    stem = "_".join([*(path.stem for path in options.images), Path(options.model).stem, options.mode])
    names = [f"{k:03d}" for k in range(options.frames)]
    values = {"temperature": 0.0, "seed": 0, "samples": options.frames, "mode": options.mode, "frames": options.frames}
    sources = describe(dict(zip(("first", "last"), ends, strict=True)))
    height, width = ends[0].shape[-2:]
    fields: dict[str, Any] = {"node": "interpolate", "sources": sources, "originals": originals}
    return _prepare_save(options, flow, make, (height, width), stem, names, values, **fields)


def _prepare_save(
    options: Namespace,
    flow: FlowModel,
    make: Callable[[], Tensor],
    size: tuple[int, int],
    stem: str,
    names: list[str],
    values: dict[str, Any],
    originals: Sequence[bytes] = (),
    **fields: Any,
) -> Work:
    """Return the work that makes images ``(B, C, H, W)`` of a size unless they are there, and saves them.

    ``stem`` begins the names of their files unless ``--out`` names one, ``names`` distinguish them; ``originals`` are
    the files that they are made from, ``values`` and ``fields`` those of ``Provenance.of``.
    """
    sha, signer = model_sha256(flow), Signer.load() if options.credentials else None
    format = named_format(options.out)
    targets = output_paths(options.out, names) if format else [options.out / f"{stem}_{name}.png" for name in names]
    # more samples leave the first as they are
    same = {**fields, **values, "samples": None, "model": model_fingerprint(flow, sha)}
    ids = [picture_id({**same, "name": name}) for name in names]
    check_writable(targets[0])
    described: dict[str, Any] = {"model": Path(options.model).name, "model_sha256": sha}
    record = Record(input=None, outputs=[*map(str, targets)], seeds=[], **described)

    def work() -> None:
        start = time.monotonic()
        if targets_done(targets, ids, size, again=options.again, signed=options.credentials):
            write_result(options, record)
            log(f"{len(targets)} of {len(targets)} were there already (--again replaces them).")
            return
        images = make()
        recipe = Provenance.of(values, flow, images, bits=8, node_id=COMMAND, **described, **fields)
        for target, image, id in zip(targets, images, ids, strict=True):
            data = files.encode(image, format=format or "png", unique_id=id, text=recipe.text())
            if signer is not None:
                digest = picture_fingerprint(image, 8)
                data = sign(data, [recipe.to_json()], signer, picture=digest, sources=originals, notify=log)
            write_atomic(target, data)
        seconds = time.monotonic() - start
        seeds = [(values["seed"] + k) % 2**64 if options.command == "sample" else None for k in range(len(targets))]
        write_result(options, replace(record, seeds=seeds, seconds=round(seconds, 2)))
        log(f"{len(targets)} done, in {duration(seconds)}.")

    return work
