"""The command line: ``python -m flowcore COMMAND``."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from . import __version__, decode, encode, interpolate, load, sample, score
from .checkpoints import catalog
from .checkpoints.file import read_header, save
from .flow import Flow
from .tasks import IMAGE_SUFFIXES, Precision
from .tasks.colorize import Hints, colorize, combine, hints_from_points, palette, parse_points, transfer_palette
from .tasks.upscale import upscale
from .training.data import Digits
from .training.evaluate import (
    MEASURES,
    USUAL_MEASURES,
    color_table,
    density_table,
    evaluate_colorizer,
    evaluate_density,
    evaluate_upscaler,
    missing_measures,
    read_sized,
    table,
)
from .training.loop import train
from .training.ranks import joined
from .training.recipe import read_recipe
from .training.styles import measure_styles
from .transforms import FlowError, ImageError


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
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    _model_options(command)
    command.add_argument("--out", type=Path, default=Path("output"), help="folder for the results (default: output)")
    command.add_argument(
        "--temperature", type=float, default=0.8, help="0 is calm, 1 the model's own spread (default: 0.8)"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--samples", type=int, default=1, help="enlargements per image, with seeds SEED, SEED + 1, ..."
    )
    command.add_argument("--tile", type=int, default=0, help="side of the tiles in LR pixels; 0 chooses by free memory")
    command.add_argument("--precision", default="float32", choices=get_args(Precision))
    command.set_defaults(run_command=_upscale)

    command = commands.add_parser("colorize", help="colour black-and-white photographs, in many ways")
    command.add_argument("image", type=Path, metavar="IN")
    command.add_argument(
        "target", type=Path, metavar="OUT", help="an image file (several samples are numbered by seed), or a folder"
    )
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
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
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

    command = commands.add_parser("inspect", help="say what a model file is, without loading a tensor")
    command.add_argument("model", help="a flowcore model file, or a shipped model by name")
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


def _upscale(options: argparse.Namespace) -> None:
    flow = load(options.model, options.device, **_fields(options.set))
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.images:
        image = _read(path)

        def show(done: int, total: int, preview: Tensor | None = None, name: str = path.name) -> None:
            sys.stderr.write(f"\r{name}: {done / total:4.0%}" + ("\n" if done == total else ""))

        pictures = upscale(
            flow,
            image,
            temperature=options.temperature,
            seed=options.seed,
            samples=options.samples,
            tile=options.tile,
            precision=options.precision,
            progress=show,
            notify=_say,
        )
        for s, picture in enumerate(pictures):
            target = (
                options.out / f"{path.stem}_x{flow.config.scale}_tau{options.temperature:g}_seed{options.seed + s}.png"
            )
            _write(target, picture)
            _say(str(target))


def _colorize(options: argparse.Namespace) -> None:
    if options.strength is not None and options.reference is None:
        raise FlowError("--strength is of a reference, and there is none. Give one with --reference FILE.")
    if options.lock and not options.hint:
        raise FlowError("--lock is of hints, and there are none. Give some with --hint X,Y,#RRGGBB.")
    flow = load(options.model, options.device, **_fields(options.set))
    image = _read(options.image)
    if image.shape[1] == 4 and options.target.suffix.lower() in (".jpg", ".jpeg"):
        raise ImageError(
            f"{options.image.name} has an alpha channel, which a JPEG file cannot hold. Write a .png file."
        )

    def show(done: int, total: int, preview: Tensor | None = None) -> None:
        sys.stderr.write(f"\r{options.image.name}: {done / total:4.0%}" + ("\n" if done == total else ""))

    wishes: dict[str, Any] = {
        "temperature": options.temperature,
        "detail": options.detail,
        "seed": options.seed,
        "samples": options.samples,
        "saturation": options.saturation,
        "working_size": options.working_size,
        "hints": _hints(options, (image.shape[-2], image.shape[-1])),
        "gamut": options.gamut,
        "precision": options.precision,
        "progress": show,
        "notify": _say,
    }
    if options.reference is None:
        pictures = colorize(flow, image, **wishes)
    else:
        strength = 1.0 if options.strength is None else options.strength
        pictures = transfer_palette(flow, image, _read(options.reference), strength=strength, **wishes)
    for target, picture in zip(_colour_targets(options, flow), pictures, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, picture)
        _say(str(target))


def _hints(options: argparse.Namespace, size: tuple[int, int]) -> Hints | None:
    """The hints and the palette of a command line; None if there are none."""
    points = [point for text in options.hint for point in parse_points(text)]
    return combine(
        hints_from_points(points, size, radius=options.radius, lock=options.lock) if points else None,
        Hints(coverage=None, chroma=None, palette=palette(options.palette), lock=False) if options.palette else None,
    )


def _colour_targets(options: argparse.Namespace, flow: Flow) -> list[Path]:
    """A file per sample: OUT itself, OUT numbered by seed, or in the folder OUT."""
    out: Path = options.target
    seeds = range(options.seed, options.seed + options.samples)
    if out.suffix.lower() in IMAGE_SUFFIXES and not out.is_dir():
        return [out] if options.samples == 1 else [out.with_stem(f"{out.stem}_seed{seed}") for seed in seeds]
    usual = flow.config.temperatures
    temperature = usual[0] if options.temperature is None else options.temperature
    detail = usual[1] if options.detail is None else options.detail
    name = f"{options.image.stem}_color_tau{temperature:g}_detail{detail:g}"
    return [out / f"{name}_seed{seed}.png" for seed in seeds]


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
    flow = load(options.model, options.device, **_fields(options.set))
    rows: list[dict[str, Any]] = []
    for path in options.images:
        result = score(
            flow,
            read_sized(flow, path)[None],
            dequantization=options.dequantization,
            samples=options.samples,
            seed=options.seed,
        )
        corrected = result.complexity_corrected
        rows.append(
            {
                "image": str(path),
                "bits_per_dim": float(result.bits_per_dim),
                "complexity_corrected": None if corrected is None else float(corrected),
                "per_level": result.per_level[0].tolist(),
                "notes": list(result.notes),
            }
        )
    rows.sort(key=lambda row: row["bits_per_dim"])
    lines = ["| image | bits per dimension | minus those of a lossless file |", "|---|---|---|"]
    lines += [f"| {row['image']} | {row['bits_per_dim']:.4f} | {row['complexity_corrected']:.4f} |" for row in rows]
    sys.stdout.write("\n".join(lines) + "\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


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
    path = catalog.path(options.model) if options.model in catalog.names() else Path(options.model)
    sys.stdout.write(json.dumps(dataclasses.asdict(read_header(path)), indent=2) + "\n")


def _train(options: argparse.Namespace) -> None:
    recipe = read_recipe(options.recipe)
    data = options.data or [Path(folder) for folder in recipe.data]
    if not data:
        raise FlowError("There is nothing to train on: the recipe names no data. Add --data FOLDER.")
    start = catalog.path(options.start) if options.start in catalog.names() else options.start and Path(options.start)
    with joined(options.device) as (ranks, device), _stoppable() as stopped:
        train(
            recipe,
            data[0] if len(data) == 1 else data,
            options.run or Path("runs") / recipe.name,
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

    def label(model: str, folder: Path) -> str:
        return folder.name if len(flows) == 1 else f"{folder.name}, {model}"

    pairs = [(model, flow, folder) for folder in options.folders for model, flow in flows.items()]
    missing: str | None = None
    if kinds == {"density"}:
        results: dict[str, Any] = {
            label(model, folder): evaluate_density(flow, folder, samples=options.samples or 1, **limit)
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
                    **limit,
                )
        laid_out = color_table(results)
    else:
        temperatures = options.temperature or [0.0, 0.8]
        measures = USUAL_MEASURES
        if options.measures is not None:
            measures = [name.strip().lower().replace("-", "_") for name in options.measures.split(",")]
        results = {
            label(model, folder): evaluate_upscaler(
                flow, folder, temperatures=temperatures, samples=options.samples or 8, log=_say, measures=measures
            )
            for model, flow, folder in pairs
        }
        laid_out = table(results, measures)
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


def _read(path: Path) -> Tensor:
    """Read an image as (1, 3 or 4, h, w) in [0, 1], turned as its camera says."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
                grey = torch.from_numpy(np.array(image).astype(np.float32) / 65535)
                return grey.clamp(0, 1).expand(1, 3, -1, -1)
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            array = np.array(image.convert("RGBA" if has_alpha else "RGB"))
    except OSError as error:
        raise ImageError(f"Cannot read {path.name} as an image: {error}.") from error
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


def _write(path: Path, picture: Tensor) -> None:
    array = (picture * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(path)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
