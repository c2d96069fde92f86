"""Commands of color: colorize, and remember, which makes the memory that it may use."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FlowError
from .make import add_pictures
from .options import add_file_format, add_model, add_precision
from .output import log

if TYPE_CHECKING:
    from ..flow import Flow


def add_colorize(command: argparse.ArgumentParser) -> None:
    command.usage = "%(prog)s IMAGE [IMAGE ...] -o OUT [options], or %(prog)s IMAGE OUT [options]"
    out = "an image file (several samples are numbered by seed), or a folder"
    add_pictures(command, _colorize, model="color-photos", out=out)
    option = command.add_argument
    option("--samples", type=int, default=1, help="colorings, with seeds SEED, SEED + 1, ...")
    option("--keep", type=int, metavar="N", help="of the samples, write only the N most plausible, best first")
    text = "what is most plausible: nearest to the other samples, or likeliest palette (default: consensus)"
    option("--by", choices=["consensus", "likelihood"], help=text)
    option("--seed", type=int, default=0)
    option("--temperature", type=float, help="of the palette: 0 is the calmest, 1 the model's own spread")
    option("--detail", type=float, help="temperature of the fine detail (default of both: the model's own)")
    text = "0 to 1: how much of the draw alike places share, so that what belongs together gets one color (default: "
    option("--coherence", type=float, metavar="SHARE", help=text + "the model's own)")
    text = "factor on the chroma (default: the model's own, and 1 with a reference)"
    option("--saturation", type=float, help=text)
    option("--working-size", type=int, metavar="PIXELS", help="shorter side of the image that the model colors")
    option("--hint", action="append", default=[], metavar="X,Y,#RRGGBB", help="a color at a pixel; repeatable")
    option("--radius", type=float, default=8, metavar="PIXELS", help="of the hints (default: 8)")
    option("--lock", action="store_true", help="reproduce the hints' colors exactly")
    option("--strength", type=float, metavar="PART", help="how much of the reference's palette is used (default: 1)")
    option("--gamut", default="compress", choices=["compress", "clip"])
    text = "video: the images of a folder are the frames of a clip, in the order of the numbers in their names"
    option("--frames", default="photographs", choices=["photographs", "video"], help=text)
    text = "video: how much of the previous frame's colors is kept, 0 to below 1 (default: 0.5)"
    option("--carry", type=float, metavar="PART", help=text)
    text = (
        "photographs in color, whose colors are taken over thing by thing: a folder, one file, or what remember wrote"
    )
    option("--memory", type=Path, metavar="FOLDER_OR_FILE", help=text)
    text = "of the picture as a whole: 1 as drawn, 0 the calmest, -1 none (default: 1)"
    option("--cast", type=float, metavar="SHARE", help=text)
    option("--vivid", type=float, metavar="FACTOR", help="moves colors apart from their mean (default: 1)")
    option = command.add_mutually_exclusive_group().add_argument
    text = "a color for the image overall; repeatable"
    option("--palette", action="append", default=[], metavar="#RRGGBB", help=text)
    option("--reference", type=Path, metavar="FILE", help="a color photograph whose palette is used")
    add_precision(command)
    add_file_format(command)


def add_remember(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_remember)
    add_model(command, "color-photos")
    option = command.add_argument
    option("photographs", type=Path, metavar="FOLDER", help="photographs in color, at any depth, or one file")
    option("out", type=Path, metavar="OUT", help="the memory's file, .safetensors, for colorize --memory")
    option("--licence", metavar="TEXT", help="what to note of the photographs in the file")
    option("--add-to", type=Path, metavar="FILE", help="a memory whose places come along")


def _colorize(options: argparse.Namespace) -> None:
    from ..images.files import read_bytes
    from ..tasks.remember import open_memory
    from .batches import load_model, make_images

    if options.strength is not None and options.reference is None:
        raise FlowError("--strength applies to a reference, and there is none. Give one with --reference FILE.")
    if options.lock and not options.hint:
        raise FlowError("--lock applies to hints, and there are none. Give some with --hint X,Y,#RRGGBB.")
    if options.out is None:
        if len(options.images) < 2:
            raise FlowError("colorize needs an output: IMAGE OUT, or IMAGE ... -o OUT.")
        options.out = Path(options.images.pop())
    settings = _colorize_settings(options)
    _check_keep(options)
    flow = load_model(options, "colorize")
    memory = None if options.memory is None else open_memory(flow, options.memory, notify=log)
    make_images(
        options,
        flow,
        "colorize",
        settings,
        partial(_colorized_names, options, flow),
        _sample_names(options),
        keep=options.keep or 0,
        by=options.by or "consensus",
        reference=None if options.reference is None else read_bytes(options.reference),
        memory=memory,
    )


def _colorize_settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("temperature", "detail", "coherence", "saturation", "working_size", "gamut", "precision")
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    if options.hint:
        settings |= {"points": options.hint, "radius": options.radius, "lock": options.lock}
    if options.palette:
        settings["colours"] = options.palette
    for name in ("strength", "cast", "vivid"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    if options.frames != "video":
        if options.carry is not None:
            raise FlowError("--carry applies to a video, and these are photographs. Add --frames video.")
        return settings
    if options.samples > 1 or options.reference is not None:
        raise FlowError("A video is colored once, from its own palette: leave --samples and --reference out.")
    if options.memory is not None or options.cast is not None or options.vivid is not None:
        raise FlowError("--memory, --cast and --vivid are for photographs: leave them out, or --frames video.")
    if options.ray or options.ray_address:
        raise FlowError("The frames of a video depend on each other and run on one machine: leave --ray out.")
    return {**settings, "frames": "video", "carry": 0.5 if options.carry is None else options.carry}


def _check_keep(options: argparse.Namespace) -> None:
    if options.keep is None:
        if options.by is not None:
            raise FlowError("--by says what --keep keeps. Give a number of pictures with --keep N.")
    elif not 1 <= options.keep <= options.samples:
        raise FlowError(f"--keep is 1 to --samples, {options.samples}; got {options.keep}. Ask for more --samples.")
    elif options.frames == "video":
        raise FlowError("A video is colored once: leave --keep out.")


def _sample_names(options: argparse.Namespace) -> list[str]:
    """What distinguishes the files of one picture: their seeds, or their ranks, which --by depends on."""
    from .batches import seed_names

    if options.keep is None:
        return seed_names(options)
    last = options.seed + options.samples - 1
    return [f"seeds{options.seed}-{last}_best{rank}" for rank in range(1, options.keep + 1)]


def _colorized_names(options: argparse.Namespace, flow: Flow, stem: str) -> list[str]:
    from ..tasks.intake import resolve
    from .batches import describe

    if options.frames == "video":
        return [stem]
    own = resolve(flow, {"temperature": options.temperature, "detail": options.detail})
    label = describe(options, "color_tau{temperature:g}_detail{detail:g}".format(**own))
    return [f"{stem}_{label}_{name}" for name in _sample_names(options)]


def _remember(options: argparse.Namespace) -> None:
    from ..checkpoints.color_memory import ColorMemory
    from ..tasks.remember import remember
    from .batches import load_model

    options.ray = options.ray_address = None
    flow = load_model(options, "colorize")
    known = None if options.add_to is None else ColorMemory.load(options.add_to)
    notes = {"source": f"photographs of {options.photographs.name}"}
    notes |= {} if options.licence is None else {"licence": options.licence}
    memory = remember(flow, options.photographs, provenance=notes, notify=log)
    memory = memory if known is None else known.merge(memory)
    memory.save(options.out)
    log(f"{options.out}: {memory.places.cells} places of {memory.photographs} photographs")
