"""Commands that shrink photographs to small pictures, and restore them."""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FlowError
from .options import add_device, add_fields, add_precision
from .output import ProgressBar, log

if TYPE_CHECKING:
    from torch import Tensor

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
    text = "image files, folders (searched at any depth), or quoted patterns: 'photos/**/*.jpg'"
    command.add_argument("images", nargs="+", metavar="IMAGE", help=text)
    text = "folder for the results, as PNG (default: output); sub-folders are kept"
    command.add_argument("-o", "--out", type=Path, default=Path("output"), help=text)
    command.add_argument("--again", action="store_true", help="redo images whose results exist already")
    text = "a rescaling model's file, such as Rescaling_DF2K_X4_HCFlow.pth"
    command.add_argument("--model", required=True, help=text)
    add_fields(command)
    add_device(command)


def _shrink(options: argparse.Namespace) -> None:
    from ..tasks.rescale import shrink

    def make(flow: Flow, photograph: DecodedImage, _: dict[str, str], **hooks: Any) -> tuple[Tensor, dict[str, str]]:
        height, width = photograph.pixels.shape[-2:]
        return shrink(flow, photograph.pixels, **hooks), {SIZE: f"{width}x{height}"}

    _each(options, lambda stem, _: [f"{stem}_small.png"], make)


def _restore(options: argparse.Namespace) -> None:
    from ..tasks.rescale import restore

    def names(stem: str, flow: Flow) -> list[str]:
        tau = flow.config.temperature if options.temperature is None else options.temperature
        seeds = [(options.seed + k) % 2**64 for k in range(max(1, options.samples))]
        return [f"{stem.removesuffix('_small')}_restored_tau{tau:g}_seed{seed}.png" for seed in seeds]

    def make(flow: Flow, small: DecodedImage, text: dict[str, str], **hooks: Any) -> tuple[Tensor, dict[str, str]]:
        stated = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.get(SIZE, ""))
        pictures = restore(
            flow,
            small.pixels,
            temperature=options.temperature,
            seed=options.seed,
            samples=options.samples,
            size=(int(stated[2]), int(stated[1])) if stated else None,
            tile=options.tile,
            precision=options.precision,
            **hooks,
        )
        return pictures, {}

    _each(options, names, make)


def _each(
    options: argparse.Namespace,
    names: Callable[[str, Flow], list[str]],
    make: Callable[..., tuple[Tensor, dict[str, str]]],
) -> None:
    """Make the results of every image that lack them, as PNG without loss; go on after an image that fails."""
    from PIL import Image

    from ..batch import folders
    from ..checkpoints import load
    from ..images import files
    from .batches import read_bytes
    from .options import parse_fields

    flow = load(options.model, options.device, **parse_fields(options.set))
    flow.require("rescale")
    jobs = folders.jobs(folders.find(options.images, options.out), options.out, lambda stem: names(stem, flow))
    report, bar = folders.Report(), ProgressBar(len(jobs))
    for job in jobs:
        if not options.again and all(target.exists() for target in job.targets):
            report.skipped.append(job)
            bar.finish(job, None, True)
            continue
        bar.start(job.source)
        failure: Exception | None = None
        try:
            data = read_bytes(job.source)
            photograph = files.read(data, job.source.name)
            with Image.open(io.BytesIO(data)) as opened:
                text = {key: str(value)[:100] for key, value in opened.info.items() if isinstance(key, str)}
            pictures, chunks = make(flow, photograph, text, progress=bar.update, notify=log)
            folders.save(job, [files.encode(picture, photograph.metadata, text=chunks) for picture in pictures])
            report.done.append(job)
        except (FlowError, OSError) as error:
            failure = error
            report.failed.append((job, error))
        bar.finish(job, failure, False)
        for target in job.targets if failure is None else ():
            log(str(target))
    bar.close()
    report.raise_failures(len(jobs))
