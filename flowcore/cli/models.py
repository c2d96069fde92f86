"""Commands on model files, and the one that makes them: convert, inspect, styles, train."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import load
from ..batch import provenance
from ..device import check_device
from ..errors import FlowError, printable
from ..flows.model import FlowModel
from ..images.opening import IMAGE_SUFFIXES
from ..models import catalog
from ..models.colorizer import color_memory
from ..models.model_file import is_flowcore_file, read_header, reconfigure, save
from ..models.published import convert
from ..models.writing import check_writable
from .allocation import keep_freed_memory
from .options import parse_assignments
from .output import check_overwrite, log, to_json

if TYPE_CHECKING:
    from ..training.recipe import Recipe

Work = Callable[[], None]  # what a command does once everything has been checked


def prepare_convert(options: Namespace) -> Work:
    check_overwrite(options.target, is_flowcore_file, "model file", again=options.again)
    source = _model_file(str(options.source))
    _require_file(source)
    return partial(_convert, options, source, parse_assignments(options.set))


def _model_file(name: str) -> Path:
    """Return the file of a model that is named as on every command: a shipped one by its name, or a file."""
    return catalog.path(name) if name in catalog.names() else Path(name)


def _convert(options: Namespace, source: Path, fields: dict[str, Any]) -> None:
    if is_flowcore_file(source) and not (options.half or options.eight_bits):
        flow = reconfigure(source, options.target, fields)
    else:
        flow = load(source, **fields)
        dtype = torch.float16 if options.half else torch.int8 if options.eight_bits else torch.float32
        save(flow, options.target, dtype=dtype, exact=options.exact)
    sys.stdout.write(f"{printable(str(options.target))}\n")
    log(f"{options.target}: {flow.architecture}, license: {flow.provenance.get('licence', 'unknown')}")


def prepare_models(options: Namespace) -> Work:
    return partial(_list_models, as_json=options.json)


def _list_models(*, as_json: bool) -> None:
    from ..training.evaluation.image_set import markdown

    infos = catalog.models()
    if as_json:
        sys.stdout.write(to_json([dataclasses.asdict(info) for info in infos], indent=2) + "\n")
        return
    rows: list[list[str]] = []
    for info in infos:
        size = f"x{info.scale}" if info.scale else "x".join(map(str, info.image_size or ()))
        rows.append([info.name, ", ".join(info.tasks), size, str(info.n_bits or ""), info.license])
    sys.stdout.write(markdown(["name", "for", "size", "bits", "license"], rows) + "\n")


def prepare_inspect(options: Namespace) -> Work:
    if options.model not in {*catalog.names(), catalog.STARTER_MEMORY}:
        _require_file(Path(options.model))
    return partial(_inspect, options, parse_assignments(options.set))


def _require_file(path: Path) -> None:
    """Raise FlowError unless there is such a file; what is in it shows when it is read."""
    if not os.path.isfile(path):  # pathlib raises errors for names that are too long
        raise FlowError(f"There is no file {str(path)[:200]}. Check the name.")


def _inspect(options: Namespace, fields: dict[str, Any]) -> None:
    content: Any
    if options.model.lower().endswith((".png", ".exr")):
        content = provenance.describe(options.model)
        with suppress(provenance.ProvenanceError):  # made through the API of ComfyUI, it has a prompt only
            for note in dict.fromkeys(filter(None, map(provenance.drawn_otherwise, provenance.read(options.model)))):
                log(note)
    elif Path(options.model).suffix.lower() in IMAGE_SUFFIXES:
        raise FlowError(
            f"Only PNG and EXR files hold what made them; {Path(options.model).name} is neither. The manifest.csv of "
            "its folder says what flowcore made there, and how."
        )
    else:
        shipped = options.model in {*catalog.names(), catalog.STARTER_MEMORY}
        path = catalog.FOLDER / f"{options.model}.safetensors" if shipped else Path(options.model)
        if path.is_file() and is_flowcore_file(path, color_memory.KEY):
            memory = color_memory.ColorMemory.load(path)
            facts = {"photographs": memory.photographs, "places": memory.places.cells, "backbone": memory.backbone}
            facts |= {name: getattr(memory, name) for name in color_memory.LOOKUP_FIELDS}
            content = {"memory": facts, "provenance": memory.provenance}
        elif path.is_file() and not is_flowcore_file(path):
            flow = convert(path, fields)
            config = dataclasses.asdict(flow.config)
            content = {"architecture": flow.architecture, "config": config, "provenance": flow.provenance}
        else:
            content = dataclasses.asdict(read_header(path))
    sys.stdout.write(to_json(content, indent=2) + "\n")


def prepare_styles(options: Namespace) -> Work:
    check_overwrite(options.target, is_flowcore_file, "model file", again=options.again)
    return partial(_styles, options, load(options.model))


def _styles(options: Namespace, flow: FlowModel) -> None:
    from ..training.data import Digits
    from ..training.recipe import held_out_names
    from ..training.styles import FACES, measure_attributes, measure_styles, parse_attribute, read_attribute_table

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
    sys.stdout.write(f"{printable(str(options.target))}\n")


def prepare_train(options: Namespace) -> Work:
    from ..training.recipe import read_recipe
    from ..training.run import check_limits

    check_limits(options.minutes, options.stop_after)
    recipe = read_recipe(options.recipe)
    if options.teacher:
        recipe = dataclasses.replace(recipe, teacher=str(options.teacher))
    data = options.data or [Path(folder) for folder in recipe.data]
    if not data:
        raise FlowError("There is no training data: the recipe names none. Add --data FOLDER.")
    check_device(options.device)
    keep_freed_memory()
    run = options.run or Path("runs") / recipe.name
    check_writable(run / "checkpoint.pt")
    return partial(_train, options, recipe, data, run)


def _train(options: Namespace, recipe: Recipe, data: list[Path], run: Path) -> None:
    from ..training.loop import train
    from ..training.run import init_distributed

    with init_distributed(options.device) as (distributed, device), _stop_on_signal() as stopped:
        try:
            train(
                recipe,
                data[0] if len(data) == 1 else data,
                run,
                device=device,
                start=None if options.start is None else _model_file(options.start),
                encoder_from=None if options.encoder_from is None else _model_file(options.encoder_from),
                stop_after=options.stop_after,
                minutes=options.minutes,
                cancelled=stopped.is_set,
                distributed=distributed,
            )
        except FlowError as error:
            if not stopped.is_set():
                raise
            log(str(error))  # it says how far the training came
    if stopped.is_set():  # tells the shell not to run what comes after this command
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
