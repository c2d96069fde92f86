"""Commands that shrink photographs to small pictures, and restore them."""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .options import add_images, add_model, add_precision, parse_fields
from .output import ProgressBar, log

if TYPE_CHECKING:
    from torch import Tensor

    from ..batch.folders import Job
    from ..flow import Flow
    from ..images.files import DecodedImage

SIZE = "flowcore-size"  # text chunk of a small picture: width and height of the photograph


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


def _add_common(command: argparse.ArgumentParser) -> None:
    command.epilog = "The results are PNG files. The model is one for rescaling, such as Rescaling_DF2K_X4_HCFlow.pth."
    add_images(command)
    add_model(command, None)


def _shrink(options: argparse.Namespace) -> None:
    from ..tasks.rescale import shrink

    def make(flow: Flow, photograph: DecodedImage, _: bytes, **hooks: Any) -> tuple[Tensor, dict[str, str]]:
        height, width = photograph.pixels.shape[-2:]
        return shrink(flow, photograph.pixels, **hooks), {SIZE: f"{width}x{height}"}

    _each(options, lambda stem, _: [f"{stem}_small.png"], make)


def _restore(options: argparse.Namespace) -> None:
    from ..tasks.rescale import restore

    def names(stem: str, flow: Flow) -> list[str]:
        tau = flow.config.temperature if options.temperature is None else options.temperature
        seeds = [(options.seed + k) % 2**64 for k in range(max(1, options.samples))]
        return [f"{stem.removesuffix('_small')}_restored_tau{tau:g}_seed{seed}.png" for seed in seeds]

    def make(flow: Flow, small: DecodedImage, data: bytes, **hooks: Any) -> tuple[Tensor, dict[str, str]]:
        pictures = restore(
            flow,
            small.pixels,
            temperature=options.temperature,
            seed=options.seed,
            samples=options.samples,
            size=_stated_size(data),
            tile=options.tile,
            precision=options.precision,
            **hooks,
        )
        return pictures, {}

    _each(options, names, make)


def _stated_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of the photograph, as ``shrink`` states them in a small picture's file."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        stated = re.fullmatch(r"(\d{1,6})x(\d{1,6})", str(opened.info.get(SIZE, "")))
    return None if stated is None else (int(stated[2]), int(stated[1]))


def _each(
    options: argparse.Namespace,
    names: Callable[[str, Flow], list[str]],
    make: Callable[..., tuple[Tensor, dict[str, str]]],
) -> None:
    """Make the results of every image that lack them, as PNG without loss; go on after an image that fails."""
    from ..batch import folders
    from ..checkpoints import load
    from ..images import files
    from .batches import run_in_turn, run_jobs

    flow = load(options.model, options.device, **parse_fields(options.set))
    flow.require("rescale")
    jobs = folders.jobs(folders.find(options.images, options.out), options.out, lambda stem: names(stem, flow))
    bar = ProgressBar(len(jobs))

    def execute(job: Job) -> list[bytes]:
        data = files.read_bytes(job.source)
        photograph = files.read(data, job.source.name)
        pictures, text = make(flow, photograph, data, progress=bar.update, notify=log)
        return [files.encode(picture, photograph.metadata, text=text) for picture in pictures]

    def is_done(job: Job) -> bool:
        return not options.again and all(target.exists() for target in job.targets)

    run_jobs(jobs, partial(run_in_turn, execute, bar), bar, is_done=is_done)
