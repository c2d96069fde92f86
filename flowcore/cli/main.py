"""The parser of ``flowcore COMMAND``, which is also ``python -m flowcore COMMAND``, and what it returns to the shell.

A command's module defines its options; what the command needs is imported when it runs, so that ``inspect`` does not
wait for what ``train`` needs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..errors import FlowError
from . import coloring, make, measure, models
from .output import QUIET, SomeFailed

COMMANDS = {
    "upscale": (make.add_upscale, "enlarge photographs"),
    "colorize": (coloring.add_colorize, "color black-and-white photographs, in many ways"),
    "remember": (coloring.add_remember, "remember the colors of photographs, for colorize to color others alike"),
    "brighten": (make.add_brighten, "brighten dark photographs, in one picture or many exposures"),
    "shrink": (make.add_shrink, "make small pictures of photographs, which restore brings back"),
    "restore": (make.add_restore, "bring photographs back from the small pictures that shrink made"),
    "faces": (make.add_faces, "enlarge photographs, and the faces in them by a model of faces"),
    "sample": (make.add_sample, "generate images from noise"),
    "interpolate": (make.add_interpolate, "morph one image into another, through their latents"),
    "score": (measure.add_score, "rank images by the bits that a model needs for them"),
    "convert": (models.add_convert, "write a public checkpoint, or a model of ours, as a flowcore model file"),
    "inspect": (models.add_inspect, "show the header of a model file, or how a PNG image was made"),
    "train": (models.add_train, "train a model on a folder of photographs"),
    "styles": (models.add_styles, "measure style directions on digits or faces, and store them in a model"),
    "eval": (measure.add_eval, "measure models of one kind on folders of images"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit status: 0; 1 after an error, 3 if a part was done; 130 after Ctrl-C."""
    options = build_parser().parse_args(arguments)
    quiet = QUIET.set(getattr(options, "quiet", False))
    try:
        for name in options.plugin:
            _import_plugin(name)
        options.run_command(options)
    except FlowError as error:
        sys.stderr.write(f"flowcore: {error}\n")
        return 3 if isinstance(error, SomeFailed) else 1
    except KeyboardInterrupt:
        sys.stderr.write("flowcore: stopped\n")
        return 130
    finally:
        QUIET.reset(quiet)
    return 0


def _import_plugin(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise FlowError(
            f"Cannot import the plug-in {name}: {error}. Give the name of a module that is installed or in this folder."
        ) from error


def build_parser() -> argparse.ArgumentParser:
    called = "flowcore" if Path(sys.argv[0]).stem == "flowcore" else "python -m flowcore"
    parser = argparse.ArgumentParser(prog=called, description="Normalizing flows for images.")
    parser.add_argument("--version", action="version", version=f"flowcore {__version__}")
    text = "a Python module that registers models or checkpoint sources, see docs/plug-ins.md; repeatable"
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=text)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (add_options, text) in COMMANDS.items():
        add_options(commands.add_parser(name, help=text))
    return parser
