"""The command line: ``python -m flowcore COMMAND``."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from .. import __version__, decode, encode, interpolate, load, provenance, sample
from ..batch import cluster, folders
from ..batch.folders import Job, Result, Scores
from ..batch.job import Work, Worker
from ..checkpoints import catalog
from ..checkpoints.file import read_header, save
from ..checkpoints.latents_file import model_sha256
from ..errors import FlowError, ImageError
from ..evaluation.colorization import evaluate_colorizer
from ..evaluation.density import evaluate_density
from ..evaluation.image_set import read_sized
from ..evaluation.tables import colorizer_table, density_table, upscaler_table
from ..evaluation.upscaling import MEASURES, USUAL_MEASURES, evaluate_upscaler, missing_measures
from ..flow import Flow
from ..images.files import FORMATS, SUFFIXES, Format, check_format
from ..tasks import Precision
from ..training.data import Digits
from ..training.loop import train
from ..training.ranks import joined
from ..training.recipe import held_out_names, read_recipe
from ..training.styles import measure_styles


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words of the command line; None for the process's own.

    Returns:
        0, or 1 after a sentence about what was wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run_command(options)
    except FlowError as error:
        sys.stderr.write(f"flowcore: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("flowcore: stopped\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flowcore", description="Normalizing flows for images.")
    parser.add_argument("--version", action="version", version=f"flowcore {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("upscale", help="enlarge photographs")
    _many_options(command, "images")
    _model_options(command)
    command.add_argument(
        "--temperature", type=float, default=0.8, help="0 is calm, 1 the model's own spread (default: 0.8)"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--samples", type=int, default=1, help="enlargements per image, with seeds SEED, SEED + 1, ..."
    )
    command.add_argument("--tile", type=int, default=0, help="side of the tiles in LR pixels; 0 chooses by free memory")
    command.add_argument("--precision", default="float32", choices=get_args(Precision))
    _file_options(command)
    command.set_defaults(run_command=_upscale)

    command = commands.add_parser(
        "colorize",
        help="colour black-and-white photographs, in many ways",
        usage="%(prog)s IMAGE [IMAGE ...] -o OUT [options], or %(prog)s IMAGE OUT [options]",
    )
    _many_options(command, "images", "an image file (several samples are numbered by seed), or a folder")
    _model_options(command, "color-photos")
    command.add_argument("--samples", type=int, default=1, help="colourings, with seeds SEED, SEED + 1, ...")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--temperature",
        type=float,
        help="of the palette: 0 is the calmest, 1 the model's own spread (default: its own)",
    )
    command.add_argument("--detail", type=float, help="temperature of the fine detail (default: the model's own)")
    command.add_argument("--saturation", type=float, default=1.0, help="factor on the chroma (default: 1)")
    command.add_argument("--working-size", type=int, metavar="PIXELS", help="shorter side at which colours are decided")
    command.add_argument(
        "--hint", action="append", default=[], metavar="X,Y,#RRGGBB", help="a colour and where, in pixels; repeatable"
    )
    command.add_argument("--radius", type=float, default=8, metavar="PIXELS", help="of the hints (default: 8)")
    command.add_argument("--lock", action="store_true", help="meet the hints' colours exactly")
    wishes = command.add_mutually_exclusive_group()
    wishes.add_argument(
        "--palette", action="append", default=[], metavar="#RRGGBB", help="a colour of the whole; repeatable"
    )
    wishes.add_argument("--reference", type=Path, metavar="FILE", help="a photograph in colour, to take the colours of")
    command.add_argument(
        "--strength", type=float, metavar="PART", help="how much of the reference is taken, 0 to 1 (default: 1)"
    )
    command.add_argument("--gamut", default="compress", choices=["compress", "clip"])
    command.add_argument("--precision", default="float32", choices=get_args(Precision))
    command.add_argument(
        "--frames",
        default="photographs",
        choices=["photographs", "video"],
        help="video: the pictures of a folder are the frames of a clip, in the order of the numbers in their names",
    )
    command.add_argument(
        "--carry",
        type=float,
        metavar="PART",
        help="of a video: how much of the colours of the frame before is kept, 0 to below 1 (default: 0.5)",
    )
    _file_options(command)
    command.set_defaults(run_command=_colorize)

    command = commands.add_parser("sample", help="make images out of noise")
    _model_options(command, "glow-photos")
    command.add_argument("--out", type=Path, default=Path("output"), help="folder for the results (default: output)")
    command.add_argument("--samples", type=int, default=8, help="images, with seeds SEED, SEED + 1, ...")
    command.add_argument("--temperature", type=float, default=0.7, help="0 is calm, 1 the model's own spread")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--size", type=int, nargs="+", metavar="PIXELS", help="side, or height and width")
    command.add_argument("--labels", type=int, nargs="+", help="what to show, for models with labels; cyclically")
    command.add_argument(
        "--style", action="append", default=[], metavar="NAME=STRENGTH", help="for models with styles, e.g. bold=2"
    )
    command.add_argument("--precision", default="float32", choices=get_args(Precision))
    command.set_defaults(run_command=_sample)

    command = commands.add_parser("interpolate", help="morph one image into another, through their latents")
    command.add_argument("images", nargs=2, type=Path, metavar="IMAGE")
    _model_options(command, "glow-photos")
    command.add_argument("--out", type=Path, default=Path("output"), help="folder for the frames (default: output)")
    command.add_argument("--frames", type=int, default=16)
    command.add_argument("--mode", default="slerp", choices=["slerp", "linear", "norm"])
    command.set_defaults(run_command=_interpolate)

    command = commands.add_parser("score", help="rank images by the bits that a model needs for them")
    _many_options(command, "images", "a CSV file for the scores, or a folder for scores.csv (default: none)")
    _model_options(command, "glow-photos")
    command.add_argument("--samples", type=int, default=1, help="draws for the importance-weighted bound (default: 1)")
    command.add_argument("--dequantization", default="uniform", choices=["uniform", "gaussian", "variational"])
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--json", type=Path, help="write the numbers there, too")
    command.set_defaults(run_command=_score)

    command = commands.add_parser(
        "convert", help="write a public checkpoint, or a model of ours, as a flowcore model file"
    )
    command.add_argument("source", type=Path, metavar="IN")
    command.add_argument("target", type=Path, metavar="OUT")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="what the file cannot tell, e.g. stacked_blocks=1,8,15,22",
    )
    command.add_argument(
        "--half", action="store_true", help="store in float16: half the size; shipped models change by less than 1/255"
    )
    command.set_defaults(run_command=_convert)

    command = commands.add_parser(
        "inspect", help="say what a model file is, without loading a tensor; or how a picture was made"
    )
    command.add_argument("model", help="a flowcore model file, a shipped model by name, or a PNG file with a recipe")
    command.set_defaults(run_command=_inspect)

    command = commands.add_parser("train", help="train a model from a folder of photographs")
    command.add_argument("recipe", help="a TOML file, or a recipe by name, e.g. srflow-x4")
    command.add_argument(
        "--data", type=Path, nargs="+", help="folders of photographs, any depth (default: what the recipe names)"
    )
    command.add_argument(
        "--run",
        "--into",  # torchrun takes --run for an abbreviation of its own
        type=Path,
        help="folder for checkpoints, model, sample sheets, curve (default: runs/NAME); resumes there",
    )
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument(
        "--minutes", type=float, help="shorten the recipe so that it ends in about this time, and stop when it is up"
    )
    command.add_argument(
        "--start",
        metavar="MODEL",
        help="start from a model file, or a shipped model by name, of the same configuration",
    )
    command.add_argument(
        "--encoder-from", type=Path, metavar="MODEL", help="start from the encoder of another model file"
    )
    command.add_argument(
        "--stop-after", type=int, metavar="STEPS", help="stop, with a checkpoint, after so many steps in all"
    )
    command.set_defaults(run_command=_train)

    command = commands.add_parser("styles", help="measure style directions on MNIST, and put them into a model")
    command.add_argument("model", type=Path, metavar="IN", help="a class-conditional model")
    command.add_argument("target", type=Path, metavar="OUT")
    command.add_argument("--data", type=Path, required=True, help="folder of the four files of MNIST")
    command.add_argument("--count", type=int, default=20_000, help="digits to measure on (default: 20000)")
    command.set_defaults(run_command=_styles)

    command = commands.add_parser("eval", help="measure models of one kind on folders of images")
    command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    _model_options(command, several=True)
    command.add_argument(
        "--temperature",
        type=float,
        action="append",
        help="may be given several times (default: 0 and 0.8; colorizers: their own)",
    )
    command.add_argument(
        "--samples",
        type=int,
        help="upscalers and colorizers: samples per image (default: 8; NTIRE's diversity score is of 10); "
        "others: draws for the bound (1)",
    )
    command.add_argument("--json", type=Path, help="write the numbers there, too")
    command.add_argument("--detail", type=float, help="colorizers: temperature of the fine detail")
    command.add_argument(
        "--working-size", type=int, metavar="PIXELS", help="colorizers: shorter side at which colours are decided"
    )
    command.add_argument("--limit", type=int, help="colorizers and densities: at most so many images of a folder")
    command.add_argument(
        "--measures",
        metavar="NAME,NAME",
        help=f"upscalers: some of {', '.join(MEASURES)} (default: all but bits_per_dim)",
    )
    command.add_argument(
        "--held-out",
        action="store_true",
        help="only images whose names are on flowcore's list of images that no shipped model was trained on",
    )
    command.set_defaults(run_command=_eval)
    return parser


def _model_options(command: argparse.ArgumentParser, default: str = "srflow-x4", *, several: bool = False) -> None:
    command.add_argument(
        "--model",
        default=None if several else default,
        action="append" if several else "store",
        help=f"a model file, or a shipped model by name{', repeatable' * several} (default: {default})",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a configuration field that the file cannot tell",
    )
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def _many_options(command: argparse.ArgumentParser, name: str, out: str | None = None) -> None:
    """Say which images, where to, and how to go through many of them."""
    command.add_argument(
        name,
        nargs="+",
        metavar="IMAGE",
        help="image files, folders of them (at any depth), or quoted patterns: 'photos/**/*.jpg'",
    )
    command.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("output") if out is None else None,
        help=out or "folder for the results (default: output); sub-folders are kept",
    )
    command.add_argument("--again", action="store_true", help="make results that are there anew, too")
    many = command.add_argument_group("many machines (pip install 'ray[data]')")
    many.add_argument("--ray", action="store_true", help="work over a Ray cluster; without an address, one of its own")
    many.add_argument("--ray-address", metavar="ADDRESS", help="of a running cluster; auto for this machine's")
    many.add_argument("--ray-workers", type=int, metavar="N", help="(default: one per CPU, or per GPU)")
    many.add_argument(
        "--ray-threads", type=int, default=1, metavar="N", help="of each worker: as many CPUs are taken (default: 1)"
    )


def _file_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=get_args(Format), help="of the results (default: png)")
    command.add_argument("--bits", type=int, default=8, choices=[8, 16], help="per channel; 16 in png and tiff")
    command.add_argument("--quality", type=int, help="of jpeg (default: 95) and webp (90; 100 is lossless)")


def _upscale(options: argparse.Namespace) -> None:
    flow = _loaded(options)
    work = Work(
        command="upscale",
        model=options.model,
        settings={name: getattr(options, name) for name in ("temperature", "tile", "precision")},
        seed=options.seed,
        samples=options.samples,
        format=options.format or "png",
        bits=options.bits,
        quality=options.quality,
    )
    name = f"x{flow.config.scale}_tau{options.temperature:g}" if flow.architecture == "srflow" else "x"

    def names(stem: str) -> list[str]:
        seeds = range(options.seed, options.seed + options.samples)
        return [f"{stem}_{name}_seed{seed}{SUFFIXES[work.format]}" for seed in seeds]

    _make_pictures(options, work, flow, folders.jobs(folders.find(options.images, options.out), options.out, names))


def _colorize(options: argparse.Namespace) -> None:
    if options.strength is not None and options.reference is None:
        raise FlowError("--strength is of a reference, and there is none. Give one with --reference FILE.")
    if options.lock and not options.hint:
        raise FlowError("--lock is of hints, and there are none. Give some with --hint X,Y,#RRGGBB.")
    if options.out is None:
        if len(options.images) < 2:
            raise FlowError("colorize needs to know where to: IMAGE OUT, or IMAGE ... -o OUT.")
        options.out = Path(options.images.pop())
    names = ("temperature", "detail", "saturation", "working_size", "gamut", "precision")
    settings = {name: getattr(options, name) for name in names}
    if options.hint:
        settings |= {"points": options.hint, "radius": options.radius, "lock": options.lock}
    settings |= {"colours": options.palette} if options.palette else {}
    settings |= {} if options.strength is None else {"strength": options.strength}
    settings |= _clip(options)
    flow = _loaded(options)
    found = folders.find(options.images, options.out)
    is_file = options.out.suffix.lower() in FORMATS and not options.out.is_dir()
    if is_file and len(found) > 1:
        raise FlowError(f"{options.out} is one file, for {len(found)} pictures. Name a folder.")
    if is_file and options.format not in (None, FORMATS[options.out.suffix.lower()]):
        raise FlowError(f"{options.out.name} would be no {options.format} file. Leave --format out.")
    work = Work(
        command="colorize",
        model=options.model,
        settings=settings,
        seed=options.seed,
        samples=options.samples,
        reference=None if options.reference is None else _bytes(options.reference),
        format=FORMATS[options.out.suffix.lower()] if is_file else options.format or "png",
        bits=options.bits,
        quality=options.quality,
    )
    if is_file:
        options.again = True  # it was named itself
        made = [Job(found[0].path, tuple(_numbered(options)))]
        folders.check_targets(made)
    else:
        made = folders.jobs(found, options.out, lambda stem: _colour_names(options, flow, stem, work.format))
    _make_pictures(options, work, flow, made)


def _clip(options: argparse.Namespace) -> dict[str, Any]:
    """Take what is said about a video."""
    if options.frames != "video":
        if options.carry is not None:
            raise FlowError("--carry is of a video, and these are photographs. Add --frames video.")
        return {}
    if options.samples > 1 or options.reference is not None:
        raise FlowError("A video is coloured once, from its own palette: leave --samples and --reference out.")
    if options.ray or options.ray_address:
        raise FlowError("The frames of a video go one after the other, and so not over many machines: leave --ray out.")
    return {"frames": "video", "carry": 0.5 if options.carry is None else options.carry}


def _numbered(options: argparse.Namespace) -> list[Path]:
    """A file per sample: OUT itself, or numbered by seed."""
    out: Path = options.out
    seeds = range(options.seed, options.seed + options.samples)
    return [out] if options.samples == 1 else [out.with_stem(f"{out.stem}_seed{seed}") for seed in seeds]


def _colour_names(options: argparse.Namespace, flow: Flow, stem: str, format: Format) -> list[str]:
    if options.frames == "video":
        return [f"{stem}{SUFFIXES[format]}"]
    usual = flow.config.temperatures if flow.architecture == "colorizer" else (0, 0)
    temperature = usual[0] if options.temperature is None else options.temperature
    detail = usual[1] if options.detail is None else options.detail
    name = f"{stem}_color_tau{temperature:g}_detail{detail:g}"
    return [f"{name}_seed{seed}{SUFFIXES[format]}" for seed in range(options.seed, options.seed + options.samples)]


def _loaded(options: argparse.Namespace) -> Flow:
    """Load the model: to compute with it, or if others do, to know it."""
    device = "cpu" if options.ray or options.ray_address else options.device
    return load(options.model, device, **_fields(options.set))


def _make_pictures(options: argparse.Namespace, work: Work, flow: Flow, made: list[Job]) -> None:
    check_format(work.format, work.bits, work.quality)
    model = model_sha256(flow)
    line = ProgressLine(len(made))

    def on_result(job: Job, failure: Exception | None, skipped: bool) -> None:
        line.finish(job, failure, skipped)
        for target in job.targets if failure is None and not skipped else ():
            line.say(str(target))

    report = folders.run(
        made,
        _executor(options, work, flow, line),
        is_done=lambda job: not options.again and folders.is_done(job, work, model),
        save=folders.save,
        on_result=on_result,
        whole_clips=work.carries,
    )
    line.end()
    report.raise_failures(len(made))


def _executor(
    options: argparse.Namespace, work: Work, flow: Flow, line: ProgressLine
) -> Callable[..., Iterable[Result]]:
    """Return what executes jobs: this process, one after the other, or a cluster."""
    if options.ray or options.ray_address:
        model = cluster.Model(name=options.model, device=options.device, overrides=_fields(options.set))
        where = cluster.Cluster(
            address=options.ray_address, workers=options.ray_workers, threads=max(1, options.ray_threads)
        )
        return partial(cluster.execute, work, model, where, line.say)
    worker = Worker(work, flow)

    def one_by_one(jobs: Iterable[Job]) -> Iterable[Result]:
        for job in jobs:
            line.begin(job.source)
            try:
                clip = job.source.parent
                result = worker(_bytes(job.source), job.source.name, clip, progress=line.show, notify=line.say)
            except Exception as error:  # one picture does not stop the others
                yield job, error
            else:
                yield job, result

    return one_by_one


class ProgressLine:
    """How far a run is: one line that is redrawn on a terminal, a line for each picture elsewhere."""

    def __init__(self, total: int) -> None:
        """Begin.

        Args:
            total: Pictures in all.
        """
        self._total, self._over, self._worked, self._skipped = total, 0, 0, 0
        self._start, self._name, self._width = time.monotonic(), "", 0
        self._terminal = sys.stderr.isatty()

    def begin(self, source: Path) -> None:
        """A picture is begun."""
        self._name = source.name
        self.show(0, 1)

    def show(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Part of a picture is done."""
        if not self._terminal:
            return
        part = (self._over + done / max(1, total)) / max(1, self._total)
        bar = "#" * round(20 * part)
        worked = self._worked + done / max(1, total)
        left = (self._total - self._over - done / max(1, total)) * (time.monotonic() - self._start) / max(worked, 1e-9)
        rest = f", {_clock(left)} left" if worked >= 0.5 else ""
        self._draw(f"[{bar:<20}] {self._over + 1}/{self._total}{rest}  {self._name}: {done / max(1, total):4.0%}")

    def finish(self, job: Job, failure: Exception | None, was_there: bool) -> None:
        """A picture is over."""
        self._over += 1
        self._worked += not was_there
        self._skipped += was_there
        count = f"{self._over}/{self._total} " if self._total > 1 else ""
        if failure is not None and self._total > 1:
            self.say(f"{count}{job.source.name}: {failure if str(failure) else type(failure).__name__}")
        elif failure is None and not was_there:
            self.say(f"{count}{job.source.name}: 100%")

    def say(self, sentence: str) -> None:
        """Say something else, on a line of its own."""
        self._draw("")
        sys.stderr.write(sentence + "\n")

    def end(self) -> None:
        """The run is over."""
        self._draw("")
        if self._skipped:
            _say(f"{self._skipped} of {self._total} were there already; --again makes them anew.")

    def _draw(self, text: str) -> None:
        if not self._terminal:
            return
        text = text[: max(10, shutil.get_terminal_size().columns - 1)]
        sys.stderr.write("\r" + text.ljust(self._width) + ("" if text else "\r"))
        sys.stderr.flush()
        self._width = len(text)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def _sample(options: argparse.Namespace) -> None:
    flow = load(options.model, options.device, **_fields(options.set))
    size = options.size and (options.size[0] if len(options.size) == 1 else tuple(options.size))
    labels = options.labels and [options.labels[i % len(options.labels)] for i in range(options.samples)]
    pictures = sample(
        flow,
        options.samples,
        size=size,
        temperature=options.temperature,
        seed=options.seed,
        labels=labels,
        styles=_fields(options.style),
        snapped=True,
        precision=options.precision,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        target = options.out / f"{Path(options.model).stem}_tau{options.temperature:g}_seed{options.seed + i}.png"
        _write(target, picture)
        _say(str(target))


def _interpolate(options: argparse.Namespace) -> None:
    flow = load(options.model, options.device, **_fields(options.set))
    first, last = (encode(flow, read_sized(flow, path)[None]) for path in options.images)
    options.out.mkdir(parents=True, exist_ok=True)
    for k in range(options.frames):
        t = k / max(1, options.frames - 1)
        picture = decode(flow, interpolate(first, last, t, mode=options.mode))[0].clamp(0, 1)
        target = options.out / f"{options.images[0].stem}_{options.images[1].stem}_{k:03d}.png"
        _write(target, picture)
        _say(str(target))


def _score(options: argparse.Namespace) -> None:
    flow = _loaded(options)
    work = Work(
        command="score",
        model=options.model,
        settings={"dequantization": options.dequantization},
        seed=options.seed,
        samples=options.samples,
    )
    table = None
    if options.out is not None:
        table = Scores(options.out if options.out.suffix.lower() == ".csv" else options.out / "scores.csv")
    made = [Job(found.path) for found in folders.find(options.images)]
    model, line, rows = model_sha256(flow), ProgressLine(len(made)), dict[str, dict[str, Any]]()

    def is_done(job: Job) -> bool:
        row = None if table is None or options.again else table.rows.get(str(job.source))
        if row is None or not job.source.is_file() or row["id"] != work.ids(job.source.read_bytes(), model)[0]:
            return False
        rows[str(job.source)] = row
        return True

    def save_row(job: Job, results: list[bytes]) -> None:
        rows[str(job.source)] = row = {"image": str(job.source), **json.loads(results[0])}
        if table is not None:
            table.append(row)

    if table is not None and table.rows:
        table.rewrite(list(table.rows.values()))  # without what was cut off
    report = folders.run(
        made, _executor(options, work, flow, line), is_done=is_done, save=save_row, on_result=line.finish
    )
    line.end()
    ranked = sorted(rows.values(), key=lambda row: row["bits_per_dim"])
    lines = ["| image | bits per dimension | minus those of a lossless file |", "|---|---|---|"]
    lines += [
        f"| {row['image']} | {row['bits_per_dim']:.4f} | {_four(row['complexity_corrected'])} |" for row in ranked
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if options.json:
        shown = [{name: value for name, value in row.items() if name != "id"} for row in ranked]
        options.json.write_text(json.dumps(shown, indent=2) + "\n")
    if table is not None:
        failed = {str(job.source): {"image": str(job.source), "error": str(error)} for job, error in report.failed}
        others = [row for name, row in table.rows.items() if name not in rows and name not in failed]
        table.rewrite([*others, *({**failed, **rows}[str(job.source)] for job in made)])
    report.raise_failures(len(made))


def _four(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}"


def _styles(options: argparse.Namespace) -> None:
    digits = Digits(options.data)
    images = torch.from_numpy(digits.images[: options.count])[:, None].float() / 255
    labels = torch.from_numpy(digits.labels[: options.count]).long()
    save(measure_styles(load(options.model), images, labels, log=_say), options.target)


def _convert(options: argparse.Namespace) -> None:
    flow = load(options.source, **_fields(options.set))
    save(flow, options.target, dtype=torch.float16 if options.half else torch.float32)
    _say(f"{options.target}: {flow.architecture}, licence: {flow.provenance.get('licence', 'unknown')}")


def _inspect(options: argparse.Namespace) -> None:
    if options.model.lower().endswith(".png"):
        sys.stdout.write(json.dumps([entry.to_json() for entry in provenance.read(options.model)], indent=2) + "\n")
        return
    path = catalog.path(options.model) if options.model in catalog.names() else Path(options.model)
    sys.stdout.write(json.dumps(dataclasses.asdict(read_header(path)), indent=2) + "\n")


def _train(options: argparse.Namespace) -> None:
    trained = read_recipe(options.recipe)
    data = options.data or [Path(folder) for folder in trained.data]
    if not data:
        raise FlowError("There is nothing to train on: the recipe names no data. Add --data FOLDER.")
    start = catalog.path(options.start) if options.start in catalog.names() else options.start and Path(options.start)
    with joined(options.device) as (ranks, device), _stoppable() as stopped:
        train(
            trained,
            data[0] if len(data) == 1 else data,
            options.run or Path("runs") / trained.name,
            device=device,
            start=start,
            encoder_from=options.encoder_from,
            stop_after=options.stop_after,
            minutes=options.minutes,
            cancelled=stopped.is_set,
            ranks=ranks,
        )


@contextmanager
def _stoppable() -> Generator[threading.Event, None, None]:
    """Turn the first Ctrl-C, or a polite kill, into a wish to stop after the step; the next one is obeyed at once."""
    stopped = threading.Event()
    handled = signal.SIGINT, signal.SIGTERM

    def stop(number: int, _: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _eval(options: argparse.Namespace) -> None:
    models: list[str] = options.model or ["srflow-x4"]
    flows = {model: load(model, options.device, **_fields(options.set)) for model in models}
    kinds = {
        flow.architecture if flow.architecture in ("srflow", "colorizer") else "density" for flow in flows.values()
    }
    if len(kinds) > 1:
        described = ", ".join(f"{model} ({flow.architecture})" for model, flow in flows.items())
        raise FlowError(f"One table is of one kind of models; got {described}. Measure them one after the other.")
    if options.measures is not None and kinds != {"srflow"}:
        raise FlowError("--measures chooses among the measures of upscalers; other models have one set. Leave it out.")
    limit = {} if options.limit is None else {"limit": options.limit}
    only = held_out_names("standard") if options.held_out else None

    def label(model: str, folder: Path) -> str:
        return folder.name if len(flows) == 1 else f"{folder.name}, {model}"

    pairs = [(model, flow, folder) for folder in options.folders for model, flow in flows.items()]
    missing: str | None = None
    if kinds == {"density"}:
        results: dict[str, Any] = {
            label(model, folder): evaluate_density(flow, folder, samples=options.samples or 1, only=only, **limit)
            for model, flow, folder in pairs
        }
        laid_out = density_table(results)
    elif kinds == {"colorizer"}:
        results = {folder.name: {} for folder in options.folders}
        for model, flow, folder in pairs:
            for tau in options.temperature or [None]:
                results[folder.name][model if tau is None else f"{model}, tau {tau:g}"] = evaluate_colorizer(
                    flow,
                    folder,
                    samples=options.samples or 8,
                    temperature=tau,
                    detail=options.detail,
                    working_size=options.working_size,
                    log=_say,
                    only=only,
                    **limit,
                )
        laid_out = colorizer_table(results)
    else:
        temperatures = options.temperature or [0.0, 0.8]
        measures = USUAL_MEASURES
        if options.measures is not None:
            measures = [name.strip().lower().replace("-", "_") for name in options.measures.split(",")]
        results = {
            label(model, folder): evaluate_upscaler(
                flow,
                folder,
                temperatures=temperatures,
                samples=options.samples or 8,
                log=_say,
                measures=measures,
                only=only,
            )
            for model, flow, folder in pairs
        }
        laid_out = upscaler_table(results, measures)
        missing = missing_measures(measures)
    sys.stdout.write(laid_out + "\n")
    if missing is not None:
        _say(missing)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def _fields(settings: Sequence[str]) -> dict[str, Any]:
    """Read FIELD=VALUE words: 1,8,15,22 is a tuple, other values are Python literals or plain words."""
    fields: dict[str, Any] = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            raise FlowError(f"--set takes FIELD=VALUE, e.g. stacked_blocks=1,8,15,22; got {setting!r}.")
        try:
            fields[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            fields[name] = text
    return fields


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"Cannot read {path.name} as an image: {error.strerror or error}.") from error


def _write(path: Path, picture: Tensor) -> None:
    array = (picture * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(path)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
