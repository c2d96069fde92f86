"""What commands that take many images share: upscale, colorize, brighten, shrink, restore and score."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import load
from ..batch import folders
from ..batch.folders import Job, Made, Result
from ..batch.job import Command, Work, Worker
from ..batch.tables import NAME, Manifest
from ..checkpoints.latents_file import model_sha256
from ..device import actual_precision, keep_freed_memory
from ..errors import FlowError
from ..flow import Flow, Task
from ..images.files import FORMATS, IMAGE_SUFFIXES, SUFFIXES, Format, check_format
from ..tasks.model_defaults import left_to_model
from .announce import announce
from .options import parse_fields
from .output import ProgressBar, log

UNWRITTEN = {*IMAGE_SUFFIXES, ".avif", ".exr", ".hdr", ".jp2", ".jxl", ".ppm", ".tga"} - FORMATS.keys()


def load_model(options: argparse.Namespace, task: Task | None = None) -> Flow:
    """Load the model of a task; on the CPU if a cluster computes, since then only its config and hash are needed."""
    keep_freed_memory()
    device = "cpu" if uses_ray(options) else options.device
    flow = load(options.model, device, **parse_fields(options.set))
    if task is not None:
        flow.require(task)
    return flow


def uses_ray(options: argparse.Namespace) -> bool:
    return bool(options.ray or options.ray_address)


def named_format(out: Path, format: Format | None = None) -> Format | None:
    """Tell whether ``--out`` names a file, and of which format; None for a folder.

    A file of another format than the one asked for, or of one that is never written, is refused.
    """
    suffix = out.suffix.lower()
    named = None if out.is_dir() else FORMATS.get(suffix)
    if named is None and suffix in UNWRITTEN and not out.is_dir():
        raise FlowError(f"Results are written as {', '.join(FORMATS)}; got {out.name}. Name one of these, or a folder.")
    if named is not None and format not in (None, named):
        raise FlowError(f"{out.name} is not the name of a {format} file. Leave --format out.")
    return named


def numbered(out: Path, names: list[str]) -> list[Path]:
    """The files of several results where ``--out`` names one: the file itself, or one for each name."""
    return [out] if len(names) == 1 else [out.with_stem(f"{out.stem}_{name}") for name in names]


def seed_names(options: argparse.Namespace) -> list[str]:
    """What distinguishes the results of a picture: their seeds."""
    return [f"seed{seed % 2**64}" for seed in range(options.seed, options.seed + options.samples)]


def describe(options: argparse.Namespace, settings: str) -> str:
    """The part of a result's name that tells the model, the settings, and the precision unless it is float32."""
    precision = actual_precision(options.precision, torch.device(options.device))
    return "_".join([Path(options.model).stem, settings, *([] if precision == "float32" else [precision])])


def make_images(
    options: argparse.Namespace,
    flow: Flow,
    command: Command,
    settings: dict[str, Any],
    names: Callable[[str], list[str]],
    sample_names: list[str],
    **fields: Any,
) -> None:
    """Make images of all pictures, on this machine or a cluster, save them and list them in the manifest.

    ``names`` goes from the stem of a picture's name to the stems of its results, in a folder; ``sample_names`` are what
    distinguishes them where ``--out`` names a file. ``settings`` and ``fields`` are those of the ``Work``.
    """
    work = Work(
        command=command,
        model=options.model,
        scale=flow.condition_scale,
        settings=settings,
        own=left_to_model(flow, {**settings, "reference": fields.get("reference")}),
        seed=options.seed,
        samples=options.samples,
        format=named_format(options.out, options.format) or options.format or "png",
        bits=options.bits,
        quality=options.quality,
        **fields,
    )
    jobs = _jobs(options, SUFFIXES[work.format], names, sample_names)
    check_format(work.format, work.bits or 8, work.quality)
    model = model_sha256(flow)
    manifest = _manifest(options, jobs)
    done: set[Job] = set()

    def is_done(job: Job) -> bool:
        if job not in done and folders.is_done(job, work, model, again=options.again):
            done.add(job)  # looked at once: the announcement, the run and its clips ask, and all pixels are decoded
        return job in done

    if command in ("upscale", "restore"):
        announce(options, work, flow, jobs, is_done)
    bar = ProgressBar(jobs)

    def on_result(job: Job, result: Made | Exception | None) -> None:
        bar.finish(job, result)
        made = isinstance(result, Made)
        for target in job.targets if made else ():
            log(str(target))
        if manifest is not None and result is not None:
            outputs = list(zip(job.targets, work.seeds(), strict=True)) if made else [("", "")]
            seconds, note = (round(result.seconds, 2), " ".join(result.notes)) if made else ("", str(result))
            manifest.append((job.source, file, seed, work.model, model, seconds, note) for file, seed in outputs)

    failed = folders.run(
        jobs,
        executor(options, work, flow, bar),
        is_done=is_done,
        save=folders.save,
        on_result=on_result,
        whole_clips=work.carries,
    )
    finish(failed, bar, len(jobs))


def finish(failed: list[tuple[Job, Exception]], bar: ProgressBar, total: int) -> None:
    """Write the last line, of counts and time; or raise an error that lists the jobs that failed, out of ``total``."""
    summary = bar.close()
    if not failed:
        log(summary)
        return
    first = failed[0][1]
    if total == 1:
        raise first
    lines = [f"{job.source}: {error if str(error) else type(error).__name__}" for job, error in failed]
    listed = "\n  ".join([f"{len(lines)} of {total} images could not be done:", *lines])
    raise FlowError(f"{listed}\n{summary}") from first


def _jobs(
    options: argparse.Namespace, suffix: str, names: Callable[[str], list[str]], sample_names: list[str]
) -> list[Job]:
    """Find the pictures, and decide on the files of their results."""
    found = folders.find(options.images, options.out, log)
    if named_format(options.out) is None:
        return folders.jobs(found, options.out, lambda stem: [f"{name}{suffix}" for name in names(stem)])
    if len(found) > 1:
        raise FlowError(f"{options.out} is one file, for {len(found)} images. Name a folder.")
    jobs = [Job(found[0].path, tuple(numbered(options.out, sample_names)))]
    folders.check_targets(jobs)
    return jobs


def _manifest(options: argparse.Namespace, jobs: list[Job]) -> Manifest | None:
    """The manifest that was asked for; of several images, one beside their results."""
    if options.manifest is None and len(jobs) < 2:
        return None
    return Manifest(options.manifest or options.out / NAME)


def executor(
    options: argparse.Namespace, work: Work, flow: Flow, bar: ProgressBar
) -> Callable[[Iterable[Job]], Iterable[Result]]:
    """Choose what runs the jobs: this process, one after the other, or a cluster."""
    if uses_ray(options):
        from ..batch import cluster

        where = cluster.Cluster(
            model=options.model,
            device=options.device,
            overrides=parse_fields(options.set),
            address=options.ray_address,
            workers=options.ray_workers,
            threads=max(1, options.ray_threads),
        )
        return partial(cluster.execute, work, where, log)
    return partial(folders.in_turn, Worker(work, flow), bar.start, log)
