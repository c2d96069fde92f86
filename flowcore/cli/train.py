"""The command train."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..errors import FlowError
from .options import add_device
from .output import log


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
    from ..training.distributed import init_distributed
    from ..training.loop import train
    from ..training.recipe import read_recipe

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
