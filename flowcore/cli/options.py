"""How options are declared, those that several commands share, and the ranges of numbers."""

import ast
import math
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from ..engine.options import RunOptions, options_of
from ..engine.ranges import MAX_DRAWS, Setting, count, share
from ..errors import FlowError
from ..images.files import Format
from ..models.fields import Range
from ..tasks.colorize import ColorizeSettings
from ..tasks.faces import FacesSettings
from ..tasks.hints import RADIUS
from ..tasks.model_choice import FOR_CLEAN, FOR_DAMAGED
from ..tasks.score import ScoreSettings
from ..tasks.task import AUTO, Task
from ..tasks.upscale import MAX_SIDE, UpscaleSettings
from ..tasks.video import ColorizeVideoSettings, UpscaleVideoSettings

MAX_MEGAPIXELS = 100  # the command asks before it makes a larger result
STDOUT = Path("-")
MODEL_DEFAULT = "(default: the model's own)"
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


def add_number(command: Any, flag: str, **more: Any) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    command.add_argument(flag, type=_number_type(name, {**SETTINGS, **NUMBERS}[name]), **more)


def add_model(command: ArgumentParser, default: str = AUTO) -> None:
    text = "model file, or name of a shipped model"
    if default == AUTO:
        text += f"; auto takes {FOR_CLEAN}, or {FOR_DAMAGED} for pictures with JPEG blocks or noise"
    command.add_argument("--model", default=default, help=text)
    add_set(command)
    add_device(command)


def add_set(command: ArgumentParser) -> None:
    text = "configuration field that the file does not contain, e.g. stacked_blocks=1,8,15,22"
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=text)


def add_device(command: ArgumentParser) -> None:
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def add_again(command: ArgumentParser) -> None:
    command.add_argument("--again", action="store_true", help="replace earlier results; other files are never replaced")


def add_credentials(command: ArgumentParser) -> None:
    text = "sign the results with content credentials (C2PA), see docs/marking.md"
    command.add_argument("--credentials", action="store_true", help=text)


def add_inputs(command: ArgumentParser, metavar: str = "IMAGE") -> None:
    text = "image files, folders (searched at any depth), or quoted patterns: 'photos/**/*.jpg'"
    command.add_argument("images", nargs="+", metavar=metavar, help=text)


def add_images(command: ArgumentParser, out: str | None = None) -> None:
    """Add the images, the output, and Ray, which help shows where it is installed.

    ``out`` is the help of an ``--out`` without a default.
    """
    add_inputs(command)
    text = out or "folder for the results, where sub-folders are kept; or the file of a single image"
    command.add_argument("-o", "--out", type=Path, default=Path("output") if out is None else None, help=text)
    add_again(command)
    group = command.add_argument_group("many machines (pip install 'ray[data]')")
    option, number, shown = group.add_argument, partial(add_number, group), find_spec("ray") is not None
    text = "run on a Ray cluster; without an address, start a local one"
    option("--ray", action="store_true", help=text if shown else SUPPRESS)
    text = "address of a running cluster; auto for this machine's"
    option("--ray-address", metavar="ADDRESS", help=text if shown else SUPPRESS)
    text = "number of workers (default: one per CPU, or per GPU)"
    number("--ray-workers", metavar="N", help=text if shown else SUPPRESS)
    number("--ray-threads", default=1, metavar="N", help="CPUs of each worker" if shown else SUPPRESS)


def add_pictures(command: ArgumentParser, task: Task, out: str | None = None) -> None:
    """Add what all commands share that make pictures from pictures."""
    add_images(command, out)
    option, number = command.add_argument, partial(add_number, command)
    text = "list the results in this CSV file (default: of several images, manifest.csv in the folder)"
    option("--manifest", type=Path, metavar="FILE", help=text)
    if task.traced:
        text = "record the results in this file, with thumbnails, by which trace finds them without their metadata"
        option("--record", type=Path, metavar="FILE", help=text)
    text = "name of the results in a folder, from {stem} (shot.v01.0001), {base} (shot.v01), {frame} (.0001), {suffix} "
    text += "(png), {model}, {seed} and {sample} (_SEED, if an image has several). "
    option("--name", metavar="TEMPLATE", help=text + "Example: '{base}_{model}{sample}{frame}'")
    number("--time-limit", metavar="SECONDS", help="skip an image that takes longer")
    add_credentials(command)
    add_verbosity(command)
    add_model(command, task.model)


def add_verbosity(
    command: ArgumentParser,
    json_help: str = "write an object per line to stdout instead of paths: input, outputs, seconds, notes, error",
) -> None:
    """Add how the command talks: results go to stdout, all else to stderr."""
    command.add_argument("--json", action="store_true", help=json_help)
    command.add_argument("--quiet", action="store_true", help="write nothing but results and errors")


def add_numbers(command: ArgumentParser) -> None:
    """Add how a command talks whose results are a table."""
    text = "write JSON to stdout instead of the table; with a file, the numbers to that, and the table to stdout"
    command.add_argument("--json", type=Path, nargs="?", const=STDOUT, metavar="FILE", help=text)
    command.add_argument("--quiet", action="store_true", help="write nothing but results and errors")


def add_settings(command: ArgumentParser, kind: type[RunOptions]) -> None:
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


def add_megapixels(command: ArgumentParser) -> None:
    text = "ask before making a result of more than N million pixels; 0: never ask"
    add_number(command, "--max-megapixels", default=MAX_MEGAPIXELS, metavar="N", help=text)
    text = "make results without asking, however large they are, and whether or not they may fit on the disk"
    command.add_argument("--yes", action="store_true", help=text)


def add_file_format(command: ArgumentParser, lossless: tuple[int, ...] = ()) -> None:
    """Add the format of the results; if they are ``lossless`` PNG files, only their bits, where there is a choice."""
    if lossless:
        command.set_defaults(format="png", bits=lossless[0], quality=None)
        command.epilog = "The results are PNG files."
        if len(lossless) > 1:
            text = "bits per channel"
            command.add_argument("--bits", type=int, choices=lossless, default=lossless[0], help=text)
        return
    command.add_argument("--format", choices=get_args(Format), help="file format of the results (default: png)")
    text = "bits per channel; 16 in png and tiff (default: as in the picture, where the format can)"
    command.add_argument("--bits", type=int, choices=[8, 16], help=text)
    add_number(command, "--quality", help="quality of jpeg (default: 95) and webp (90; 100 is lossless)")


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


def seeds(text: str) -> int | range:
    """Parse a seed, a range of them such as 0-99999, or "any" for those below 2^20."""
    if text == "any":
        return range(2**20)
    first, is_range, last = text.partition("-")
    if not is_range or not first:
        return _whole_seed(text)
    if not 0 < (count := _whole_seed(last) + 1 - _whole_seed(first)) <= 2**32:
        raise ArgumentTypeError(f"expected seeds from the lower to the higher, at most 2^32 of them; got {text!r}")
    return range(_whole_seed(first), _whole_seed(first) + count)


def _whole_seed(text: str) -> int:
    return int(_number_type("seed", SETTINGS["seed"])(text))


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
