"""What commands that take many images share: upscale, colorize, brighten, score, shrink and restore."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch

from .. import load
from ..batch import folders
from ..batch.folders import Job, Made, Result
from ..batch.job import Work, Worker
from ..batch.manifest import NAME, Manifest
from ..checkpoints.latents_file import model_sha256
from ..device import actual_precision, keep_freed_memory
from ..errors import FlowError
from ..flow import Flow
from ..images.files import FORMATS, SUFFIXES, Format, check_format, read_bytes
from .announce import announce
from .options import parse_fields
from .output import ProgressBar, log


def load_model(options: argparse.Namespace) -> Flow:
    """Load the model; on the CPU if a cluster computes, since then only its config and hash are needed here."""
    keep_freed_memory()
    device = "cpu" if uses_ray(options) else options.device
    return load(options.model, device, **parse_fields(options.set))


def uses_ray(options: argparse.Namespace) -> bool:
    return bool(options.ray or options.ray_address)


def named_format(out: Path, format: Format | None = None) -> Format | None:
    """Tell whether ``--out`` names a file, and of which format; None for a folder.

    Raises:
        FlowError: If it is the name of a file of another format than the one asked for.
    """
    named = None if out.is_dir() else FORMATS.get(out.suffix.lower())
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


def plan_jobs(
    options: argparse.Namespace, work: Work, names: Callable[[str], list[str]], sample_names: list[str]
) -> list[Job]:
    """Find the pictures, and decide on the files of their results.

    Args:
        options: Images, and where their results go.
        work: What is done with every picture.
        names: From the stem of a picture's name to the stems of its results, in a folder.
        sample_names: What distinguishes the results of a picture, where ``--out`` names a file.

    Returns:
        A job for each picture.

    Raises:
        FlowError: If there are no pictures, or results would overwrite something.
    """
    found = folders.find(options.images, options.out)
    if named_format(options.out) is not None:
        if len(found) > 1:
            raise FlowError(f"{options.out} is one file, for {len(found)} images. Name a folder.")
        jobs = [Job(found[0].path, tuple(numbered(options.out, sample_names)))]
        folders.check_targets(jobs)
        return jobs
    suffix = SUFFIXES[work.format]
    return folders.jobs(found, options.out, lambda stem: [f"{name}{suffix}" for name in names(stem)])


def make_images(options: argparse.Namespace, work: Work, flow: Flow, jobs: list[Job]) -> None:
    """Make the images of all jobs, on this machine or a cluster, save them and list them in the manifest."""
    check_format(work.format, work.bits, work.quality)
    model = model_sha256(flow)
    manifest = _manifest(options, jobs)
    done: set[Job] = set()

    def is_done(job: Job) -> bool:
        if job not in done and folders.is_done(job, work, model, again=options.again):
            done.add(job)  # looked at once: the announcement, the run and its clips ask, and all pixels are decoded
        return job in done

    if work.command in ("upscale", "restore"):
        announce(options, work, flow, jobs, is_done)
    bar = ProgressBar(len(jobs))

    def on_result(job: Job, result: Made | Exception | None) -> None:
        bar.finish(job, result)
        made = isinstance(result, Made)
        for target in job.targets if made else ():
            log(str(target))
        if manifest is not None and result is not None:
            outputs = list(zip(job.targets, work.seeds(), strict=True)) if made else [("", "")]
            seconds, note = (round(result.seconds, 2), " ".join(result.notes)) if made else ("", str(result))
            manifest.append((job.source, file, seed, work.model, model, seconds, note) for file, seed in outputs)

    report = folders.run(
        jobs,
        executor(options, work, flow, bar),
        is_done=is_done,
        save=folders.save,
        on_result=on_result,
        whole_clips=work.carries,
    )
    finish(report, bar, len(jobs))


def finish(report: folders.Report, bar: ProgressBar, total: int) -> None:
    """Write the last line, of counts and time; raise what failed."""
    summary = bar.close()
    report.raise_failures(total, summary)
    log(summary)


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

        model = cluster.Model(name=options.model, device=options.device, overrides=parse_fields(options.set))
        where = cluster.Cluster(
            address=options.ray_address, workers=options.ray_workers, threads=max(1, options.ray_threads)
        )
        return partial(cluster.execute, work, model, where, log)
    return partial(_run_in_turn, Worker(work, flow), bar)


def _run_in_turn(worker: Worker, bar: ProgressBar, jobs: Iterable[Job]) -> Iterable[Result]:
    """Make the results of jobs in this process, one after the other."""
    for job in jobs:
        bar.start(job.source)
        notes: list[str] = []

        def note(sentence: str, name: str = job.source.name, notes: list[str] = notes) -> None:
            notes.append(sentence)
            log(f"{name}: {sentence}")

        start = time.monotonic()
        try:
            data, clip = read_bytes(job.source), job.source.parent
            made = worker(data, job.source.name, clip, progress=bar.update, notify=note)
        except Exception as error:  # one image does not stop the others
            yield job, error
        else:
            yield job, Made(made, time.monotonic() - start, tuple(notes))
