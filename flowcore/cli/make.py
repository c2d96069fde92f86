"""Commands that make images: upscale, colorize, brighten, sample, interpolate."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import FlowError
from .options import CALM_EDGES, add_batch, add_file_format, add_model, add_precision, parse_fields
from .output import log

if TYPE_CHECKING:
    from ..batch.job import Command
    from ..flow import Flow


def add_upscale(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_upscale)
    add_batch(command)
    add_model(command)
    option = command.add_argument
    text = "0 is calm, 1 the model's own spread (default: what the model's file states)"
    option("--temperature", type=float, help=text)
    option("--calm-edges", type=float, metavar="SHARE", help=CALM_EDGES)
    option("--seed", type=int, default=0)
    option("--samples", type=int, default=1, help="enlargements per image, with seeds SEED, SEED + 1, ...")
    option("--tile", type=int, default=0, help="side of the tiles in LR pixels; 0 chooses by free memory")
    add_precision(command)
    add_file_format(command)


def add_colorize(command: argparse.ArgumentParser) -> None:
    command.usage = "%(prog)s IMAGE [IMAGE ...] -o OUT [options], or %(prog)s IMAGE OUT [options]"
    command.set_defaults(run_command=_colorize)
    add_batch(command, "an image file (several samples are numbered by seed), or a folder")
    add_model(command, "color-photos")
    option = command.add_argument
    option("--samples", type=int, default=1, help="colorings, with seeds SEED, SEED + 1, ...")
    option("--keep", type=int, metavar="N", help="of the samples, write only the N most plausible, best first")
    text = "what is most plausible: nearest to the other samples, or likeliest palette (default: consensus)"
    option("--by", choices=["consensus", "likelihood"], help=text)
    option("--seed", type=int, default=0)
    option("--temperature", type=float, help="of the palette: 0 is the calmest, 1 the model's own spread")
    option("--detail", type=float, help="temperature of the fine detail (default of both: the model's own)")
    option("--saturation", type=float, default=1.0, help="factor on the chroma (default: 1)")
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
    option = command.add_mutually_exclusive_group().add_argument
    text = "a color for the image overall; repeatable"
    option("--palette", action="append", default=[], metavar="#RRGGBB", help=text)
    option("--reference", type=Path, metavar="FILE", help="a color photograph whose palette is used")
    add_precision(command)
    add_file_format(command)


def add_brighten(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_brighten)
    add_batch(command)
    add_model(command, None)
    option = command.add_argument
    text = "0 is the picture that the model expects, above come other exposures (default: what the model's file states)"
    option("--temperature", type=float, help=text)
    option("--seed", type=int, default=0)
    option("--samples", type=int, default=1, help="exposures per image, with seeds SEED, SEED + 1, ...")
    option("--tile", type=int, default=0, help="side of the tiles in pixels; 0 chooses by free memory")
    add_precision(command)
    add_file_format(command)


def add_sample(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_sample)
    add_model(command, "glow-photos")
    option = command.add_argument
    option("--out", type=Path, default=Path("output"), help="folder for the results (default: output)")
    option("--samples", type=int, default=8, help="images, with seeds SEED, SEED + 1, ...")
    option("--temperature", type=float, default=0.7, help="0 is calm, 1 the model's own spread")
    option("--seed", type=int, default=0)
    option("--size", type=int, nargs="+", metavar="PIXELS", help="side, or height and width")
    option("--labels", type=int, nargs="+", help="labels, for models that have them; repeated in turn")
    text = "for models with styles, e.g. bold=2"
    option("--style", action="append", default=[], metavar="NAME=STRENGTH", help=text)
    add_precision(command)


def add_interpolate(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_interpolate)
    command.add_argument("images", nargs=2, type=Path, metavar="IMAGE")
    add_model(command, "glow-photos")
    option = command.add_argument
    option("--out", type=Path, default=Path("output"), help="folder for the frames (default: output)")
    option("--frames", type=int, default=16)
    option("--mode", default="slerp", choices=["slerp", "linear", "norm"])


def _upscale(options: argparse.Namespace) -> None:
    from ..tasks.upscale import sampling_settings
    from .batches import load_model

    flow = load_model(options)
    temperature, calm_edges = sampling_settings(flow, options.temperature, options.calm_edges)
    settings: dict[str, Any] = {"temperature": temperature, "tile": options.tile, "precision": options.precision}
    if calm_edges:  # absent when off: results from before there was the option count as done
        settings["calm_edges"] = calm_edges
    label = f"x{flow.config.scale}_tau{temperature:g}" + (f"_calm{calm_edges:g}" if calm_edges else "")
    _make_samples(options, flow, "upscale", settings, label)


def _brighten(options: argparse.Namespace) -> None:
    from .batches import load_model

    flow = load_model(options)
    flow.require("brighten")
    temperature = flow.config.temperature if options.temperature is None else options.temperature
    settings = {"temperature": temperature, "tile": options.tile, "precision": options.precision}
    _make_samples(options, flow, "brighten", settings, f"light_tau{temperature:g}")


def _make_samples(
    options: argparse.Namespace, flow: Flow, command: Command, settings: dict[str, Any], label: str
) -> None:
    """Make all samples of every image, each in a file whose name ends in the label and the seed."""
    from ..batch import folders
    from ..batch.job import Work
    from ..images.files import SUFFIXES
    from .batches import make_images

    work = Work(
        command=command,
        model=options.model,
        settings=settings,
        seed=options.seed,
        samples=options.samples,
        format=options.format or "png",
        bits=options.bits,
        quality=options.quality,
    )

    def names(stem: str) -> list[str]:
        return [f"{stem}_{label}_seed{seed}{SUFFIXES[work.format]}" for seed in _seeds(options)]

    jobs = folders.jobs(folders.find(options.images, options.out), options.out, names)
    make_images(options, work, flow, jobs)


def _colorize(options: argparse.Namespace) -> None:
    from ..batch import folders
    from ..batch.job import Work
    from ..images.files import FORMATS, SUFFIXES, read_bytes
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
    flow = load_model(options)
    flow.require("colorize")
    found = folders.find(options.images, options.out)
    suffix = options.out.suffix.lower()
    is_file = suffix in FORMATS and not options.out.is_dir()
    if is_file and len(found) > 1:
        raise FlowError(f"{options.out} is one file, for {len(found)} images. Name a folder.")
    if is_file and options.format not in (None, FORMATS[suffix]):
        raise FlowError(f"{options.out.name} is not the name of a {options.format} file. Leave --format out.")
    work = Work(
        command="colorize",
        model=options.model,
        settings=settings,
        seed=options.seed,
        samples=options.samples,
        keep=options.keep or 0,
        by=options.by or "consensus",
        reference=None if options.reference is None else read_bytes(options.reference),
        format=FORMATS[suffix] if is_file else options.format or "png",
        bits=options.bits,
        quality=options.quality,
    )
    if is_file:
        options.again = True  # a file that is named is always written
        jobs = [folders.Job(found[0].path, tuple(_numbered_files(options)))]
        folders.check_targets(jobs)
    else:
        names = partial(_colorized_names, options, flow, SUFFIXES[work.format])
        jobs = folders.jobs(found, options.out, names)
    make_images(options, work, flow, jobs)


def _colorize_settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("temperature", "detail", "saturation", "working_size", "gamut", "precision")
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    if options.hint:
        settings |= {"points": options.hint, "radius": options.radius, "lock": options.lock}
    if options.palette:
        settings["colours"] = options.palette
    if options.strength is not None:
        settings["strength"] = options.strength
    if options.frames != "video":
        if options.carry is not None:
            raise FlowError("--carry applies to a video, and these are photographs. Add --frames video.")
        return settings
    if options.samples > 1 or options.reference is not None:
        raise FlowError("A video is colored once, from its own palette: leave --samples and --reference out.")
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


def _seeds(options: argparse.Namespace) -> range:
    return range(options.seed, options.seed + options.samples)


def _sample_names(options: argparse.Namespace) -> list[str]:
    """What distinguishes the files of one picture: their seeds, or their ranks, which --by depends on."""
    if options.keep is None:
        return [f"seed{seed}" for seed in _seeds(options)]
    return [f"seeds{options.seed}-{_seeds(options)[-1]}_best{rank}" for rank in range(1, options.keep + 1)]


def _numbered_files(options: argparse.Namespace) -> list[Path]:
    """A file per sample: OUT itself, or numbered by seed or rank."""
    out: Path = options.out
    if (options.keep or options.samples) == 1:
        return [out]
    return [out.with_stem(f"{out.stem}_{name}") for name in _sample_names(options)]


def _colorized_names(options: argparse.Namespace, flow: Flow, suffix: str, stem: str) -> list[str]:
    if options.frames == "video":
        return [f"{stem}{suffix}"]
    temperature, detail = (
        default if given is None else given
        for given, default in zip((options.temperature, options.detail), flow.config.temperatures, strict=True)
    )
    return [f"{stem}_color_tau{temperature:g}_detail{detail:g}_{name}{suffix}" for name in _sample_names(options)]


def _sample(options: argparse.Namespace) -> None:
    from .. import load, sample

    flow = load(options.model, options.device, **parse_fields(options.set))
    size = options.size and (options.size[0] if len(options.size) == 1 else tuple(options.size))
    labels = options.labels and [options.labels[i % len(options.labels)] for i in range(options.samples)]
    images = sample(
        flow,
        options.samples,
        size=size,
        temperature=options.temperature,
        seed=options.seed,
        labels=labels,
        styles=parse_fields(options.style),
        snapped=True,
        precision=options.precision,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"{Path(options.model).stem}_tau{options.temperature:g}"
    for seed, image in zip(_seeds(options), images, strict=True):
        _write(options.out / f"{stem}_seed{seed}.png", image)


def _interpolate(options: argparse.Namespace) -> None:
    from .. import decode, encode, interpolate, load
    from ..evaluation.image_set import read_upright, resize_to_own

    flow = load(options.model, options.device, **parse_fields(options.set))
    first, last = (encode(flow, resize_to_own(flow, read_upright(path))[None]) for path in options.images)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = "_".join(path.stem for path in options.images)
    for k in range(options.frames):
        t = k / max(1, options.frames - 1)
        image = decode(flow, interpolate(first, last, t, mode=options.mode), clamp=True)[0]
        _write(options.out / f"{stem}_{k:03d}.png", image)


def _write(path: Path, image: Tensor) -> None:
    from PIL import Image

    from ..images.rounding import to_uint8

    array = to_uint8(image).permute(1, 2, 0).contiguous().cpu().numpy()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(path)
    log(str(path))
