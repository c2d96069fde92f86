"""Commands on model files, and the one that makes them: convert, inspect, styles, train."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import FlowError
from .options import add_again, add_device, add_fields, parse_fields
from .output import log


def add_convert(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_convert)
    command.add_argument("source", type=Path, metavar="IN")
    command.add_argument("target", type=Path, metavar="OUT")
    add_again(command)
    add_fields(command)
    text = "store in float16: half the size; shipped models change by less than 1/255 (default: float32, and files of "
    text += "flowcore as they are)"
    smaller = command.add_mutually_exclusive_group()
    smaller.add_argument("--half", action="store_true", help=text)
    text = "store large kernels of networks in 8 bits, the rest in float16: a quarter of the size; pictures of shipped "
    text += "upscalers and colorizers change by less than 3/255"
    smaller.add_argument("--eight-bits", action="store_true", help=text)
    text = "with one of these: a part that stays in float32, e.g. encoder.backbone for a network as it was published"
    command.add_argument("--exact", metavar="PART", help=text)


def add_inspect(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_inspect)
    text = "a model file, published ones included, a shipped model by name, or a PNG file made by flowcore"
    command.add_argument("model", help=text)
    add_fields(command)


def add_styles(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_styles)
    option = command.add_argument
    option("model", type=Path, metavar="IN", help="a class-conditional model of digits, or an unconditional model")
    option("target", type=Path, metavar="OUT")
    add_again(command)
    text = "folder of the four files of MNIST; for unconditional models, of images and attributes.tsv"
    option("--data", type=Path, required=True, help=text)
    option("--count", type=int, default=20_000, help="digits to measure on (default: 20000)")
    text = "NAME=COLUMN, NAME=-COLUMN or NAME=COLUMN:WORD/WORD of that table, and *GAIN to make it stronger "
    text += "(default: smile, age and gender of faces)"
    option("--attribute", action="append", metavar="ATTRIBUTE", help=text)
    text = "file of the names of images to leave out, one a line (default: those that no shipped recipe trains on)"
    option("--held-out", default="standard", metavar="FILE", help=text)


def _convert(options: argparse.Namespace) -> None:
    import torch

    from .. import load
    from ..checkpoints.file import is_ours, reconfigure, save

    _check_target(options.target, again=options.again)
    fields = parse_fields(options.set)
    if is_ours(options.source) and not (options.half or options.eight_bits):
        flow = reconfigure(options.source, options.target, fields)
    else:
        flow = load(options.source, **fields)
        dtype = torch.float16 if options.half else torch.int8 if options.eight_bits else torch.float32
        save(flow, options.target, dtype=dtype, exact=options.exact)
    sys.stdout.write(f"{options.target}\n")
    log(f"{options.target}: {flow.architecture}, license: {flow.provenance.get('licence', 'unknown')}")


def _check_target(target: Path, *, again: bool) -> None:
    """Refuse to replace a file that flowcore did not make, and without ``--again`` one that it did."""
    from ..checkpoints.file import is_ours

    if not target.exists() or (target.is_file() and target.stat().st_size == 0):
        return
    if not target.is_file() or not is_ours(target):
        raise FlowError(f"{target} exists, and is no model file of flowcore. It is kept. Name another file.")
    if not again:
        raise FlowError(f"{target} exists. --again replaces it; or name another file.")


def _inspect(options: argparse.Namespace) -> None:
    from .. import provenance
    from ..checkpoints import catalog, convert
    from ..checkpoints.file import is_ours, read_header
    from ..images.files import IMAGE_SUFFIXES

    content: Any
    if options.model.lower().endswith((".png", ".exr")):
        content = provenance.describe(options.model)
    elif Path(options.model).suffix.lower() in IMAGE_SUFFIXES:
        raise FlowError(
            f"Only PNG and EXR files hold what made them; {Path(options.model).name} is neither. The manifest.csv of "
            "its folder says what flowcore made there, and how."
        )
    else:
        path = catalog.path(options.model) if options.model in catalog.names() else Path(options.model)
        if path.is_file() and not is_ours(path):
            flow = convert(path, parse_fields(options.set))
            config = dataclasses.asdict(flow.config)
            content = {"architecture": flow.architecture, "config": config, "provenance": flow.provenance}
        else:
            content = dataclasses.asdict(read_header(path))
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def _styles(options: argparse.Namespace) -> None:
    import torch

    from .. import load
    from ..checkpoints.file import save
    from ..training.data import Digits
    from ..training.recipe import held_out_names
    from ..training.styles import FACES, measure_attributes, measure_styles, parse_attribute, read_attribute_table

    _check_target(options.target, again=options.again)
    flow = load(options.model)
    if flow.classes:
        digits = Digits(options.data)
        images = torch.from_numpy(digits.images[: options.count])[:, None].float() / 255
        labels = torch.from_numpy(digits.labels[: options.count]).long()
        styled = measure_styles(flow, images, labels, log=log)
    else:
        attributes = [parse_attribute(text) for text in options.attribute or FACES]
        held_out = held_out_names(options.held_out)
        table = read_attribute_table(options.data / "attributes.tsv", attributes, held_out=held_out)
        styled = measure_attributes(flow, table, log=log)
    save(styled, options.target)
    sys.stdout.write(f"{options.target}\n")


# --- training ---------------------------------------------------------------------------------------------------------


def add_train(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_train)
    option = command.add_argument
    option("recipe", help="a TOML file, or a recipe by name, e.g. srflow-x4")
    text = "folders of photographs, any depth (default: what the recipe names)"
    option("--data", type=Path, nargs="+", help=text)
    text = "folder for checkpoints, model, sample sheets, curve (default: runs/NAME); resumes there"
    option("--run", "--into", type=Path, help=text)  # torchrun takes --run for an abbreviation of its own
    add_device(command)
    text = "shorten the recipe to end in this time, all included; a run that was begun without stops when it is up"
    option("--minutes", type=float, help=text)
    text = "fine-tune a model file, or a shipped model by name, of the same configuration; keeps the better of both"
    option("--start", metavar="MODEL", help=text)
    option(
        "--encoder-from",
        metavar="MODEL",
        help="start from the encoder of a model file, or of a shipped model by name; or from a backbone's own file "
        "(default: nothing; for an encoder with a backbone, the shipped model that has it)",
    )
    option("--stop-after", type=int, metavar="STEPS", help="stop at this step, with a checkpoint")


def _train(options: argparse.Namespace) -> None:
    from ..checkpoints import catalog
    from ..device import check_device, keep_freed_memory
    from ..training.loop import train
    from ..training.recipe import read_recipe
    from ..training.run import init_distributed

    recipe = read_recipe(options.recipe)
    data = options.data or [Path(folder) for folder in recipe.data]
    if not data:
        raise FlowError("There is no training data: the recipe names none. Add --data FOLDER.")

    check_device(options.device)

    def model_file(name: str | None) -> Path | None:
        if name is None:
            return None
        return catalog.path(name) if name in catalog.names() else Path(name)

    keep_freed_memory()
    with init_distributed(options.device) as (distributed, device), _stop_on_signal() as stopped:
        try:
            train(
                recipe,
                data[0] if len(data) == 1 else data,
                options.run or Path("runs") / recipe.name,
                device=device,
                start=model_file(options.start),
                encoder_from=model_file(options.encoder_from),
                stop_after=options.stop_after,
                minutes=options.minutes,
                cancelled=stopped.is_set,
                distributed=distributed,
            )
        except FlowError as error:
            if not stopped.is_set():
                raise
            log(str(error))
    if stopped.is_set():  # for the shell: what comes after this command is not to run
        raise KeyboardInterrupt


@contextmanager
def _stop_on_signal() -> Generator[threading.Event, None, None]:
    """Set an event at the first SIGINT or SIGTERM, to stop after the step; the second one interrupts at once."""
    stopped = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
