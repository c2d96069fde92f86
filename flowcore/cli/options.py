"""Options that several commands share."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from ..errors import FlowError
from ..images.files import Format
from ..tasks import Precision

CALM_EDGES = (
    "0 to 1: how much lower the temperature is at edges, which keeps lines whole (default: what the model's file "
    "states)"
)

MAX_MEGAPIXELS = 100  # of a result; more are asked about


def add_model(command: argparse.ArgumentParser, default: str = "srflow-x4", *, repeatable: bool = False) -> None:
    command.add_argument(
        "--model",
        default=None if repeatable else default,
        action="append" if repeatable else "store",
        help=f"a model file, or a shipped model by name{', repeatable' * repeatable} (default: {default})",
    )
    add_fields(command)
    add_device(command)


def add_fields(command: argparse.ArgumentParser) -> None:
    text = "a configuration field that the file does not contain, e.g. stacked_blocks=1,8,15,22"
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=text)


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def add_precision(command: argparse.ArgumentParser) -> None:
    command.add_argument("--precision", default="float32", choices=get_args(Precision))


def add_batch(command: argparse.ArgumentParser, out: str | None = None) -> None:
    """Add the images, where their results go (``out`` is the help of ``--out`` without a default), and Ray."""
    text = "image files, folders (searched at any depth), or quoted patterns: 'photos/**/*.jpg'"
    command.add_argument("images", nargs="+", metavar="IMAGE", help=text)
    default = Path("output") if out is None else None
    text = out or "folder for the results (default: output), where sub-folders are kept; or the file of a single image"
    command.add_argument("-o", "--out", type=Path, default=default, help=text)
    add_again(command)
    option = command.add_argument_group("many machines (pip install 'ray[data]')").add_argument
    option("--ray", action="store_true", help="run on a Ray cluster; without an address, start a local one")
    option("--ray-address", metavar="ADDRESS", help="address of a running cluster; auto for this machine's")
    option("--ray-workers", type=int, metavar="N", help="number of workers (default: one per CPU, or per GPU)")
    option("--ray-threads", type=int, default=1, metavar="N", help="CPUs of each worker (default: 1)")


def add_again(command: argparse.ArgumentParser) -> None:
    text = "make results anew that exist already; files that flowcore did not make are never replaced"
    command.add_argument("--again", action="store_true", help=text)


def add_manifest(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    text = "list the results in this CSV file (default: of several images, manifest.csv in the folder)"
    option("--manifest", type=Path, metavar="FILE", help=text)
    text = "of the results in a folder, without suffix: {stem} is the name of the image, {base} and {frame} its parts "
    text += "(shot.v01 and .0001), {suffix} its suffix (png); {model}; {seed} of the result, {sample} the "
    text += "same after a _ if there are several. Example: '{base}_{model}{sample}{frame}'"
    option("--name", metavar="TEMPLATE", help=text)
    option("--time-limit", type=float, metavar="SECONDS", help="give an image up that takes longer, and go on")
    add_output(command)


def add_output(command: argparse.ArgumentParser) -> None:
    """Add how the command talks: results go to stdout, all else to stderr."""
    text = "write an object a line to stdout instead of paths: input, outputs, seconds, notes, error"
    command.add_argument("--json", action="store_true", help=text)
    command.add_argument("--quiet", action="store_true", help="write nothing but results and errors")


def add_megapixels(command: argparse.ArgumentParser) -> None:
    text = f"ask before a result becomes larger than N million pixels (default: {MAX_MEGAPIXELS}; 0: never ask)"
    command.add_argument("--max-megapixels", type=float, default=MAX_MEGAPIXELS, metavar="N", help=text)


def add_file_format(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=get_args(Format), help="of the results (default: png)")
    text = "per channel; 16 in png and tiff (default: those of the picture, where the format can)"
    command.add_argument("--bits", type=int, choices=[8, 16], help=text)
    command.add_argument("--quality", type=int, help="of jpeg (default: 95) and webp (90; 100 is lossless)")


def parse_fields(settings: Sequence[str]) -> dict[str, Any]:
    """Parse FIELD=VALUE words: 1,8,15,22 is a tuple, other values are Python literals or plain words."""
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
