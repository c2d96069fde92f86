"""Commands that shrink photographs to small pictures, and restore them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FlowError
from .options import add_batch, add_manifest, add_megapixels, add_model, add_precision

if TYPE_CHECKING:
    from ..batch.job import Command
    from ..flow import Flow


def add_shrink(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_shrink)
    _add_common(command)


def add_restore(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_restore)
    _add_common(command)
    option = command.add_argument
    text = "0 is the mean of what is possible (default: what the model's file states)"
    option("--temperature", type=float, help=text)
    option("--seed", type=int, default=0)
    option("--samples", type=int, default=1, help="pictures each, with seeds SEED, SEED + 1, ...")
    option("--tile", type=int, default=0, help="side of the tiles in pixels of the small picture; 0 chooses")
    add_precision(command)
    add_megapixels(command)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.epilog = "The results are PNG files. The model is one for rescaling, such as Rescaling_DF2K_X4_HCFlow.pth."
    add_batch(command)
    add_manifest(command)
    add_model(command, None)


def _shrink(options: argparse.Namespace) -> None:
    options.seed, options.samples = 0, 1
    flow = _load(options)
    _each(options, flow, "shrink", {}, lambda stem: [f"{stem}_{Path(options.model).stem}_small"])


def _restore(options: argparse.Namespace) -> None:
    from .batches import describe, seed_names

    flow = _load(options)
    temperature = flow.config.temperature if options.temperature is None else options.temperature
    settings = {"temperature": temperature, "tile": options.tile, "precision": options.precision}
    label, small = describe(options, f"restored_tau{temperature:g}"), f"_{Path(options.model).stem}_small"

    def names(stem: str) -> list[str]:
        return [f"{stem.removesuffix(small)}_{label}_{seed}" for seed in seed_names(options)]

    _each(options, flow, "restore", settings, names)


def _load(options: argparse.Namespace) -> Flow:
    from .batches import load_model

    flow = load_model(options)
    flow.require("rescale")
    return flow


def _each(
    options: argparse.Namespace,
    flow: Flow,
    command: Command,
    settings: dict[str, Any],
    names: Callable[[str], list[str]],
) -> None:
    """Make the results of every image as PNG files, which lose nothing."""
    from ..batch.job import Work
    from .batches import make_images, named_format, plan_jobs, seed_names

    if named_format(options.out) not in (None, "png"):
        raise FlowError(f"The results of {command} are PNG files, which lose nothing; got {options.out.name}.")
    work = Work(
        command=command,
        model=options.model,
        scale=flow.condition_scale,
        settings=settings,
        seed=options.seed,
        samples=options.samples,
    )
    make_images(options, work, flow, plan_jobs(options, work, names, seed_names(options)))
