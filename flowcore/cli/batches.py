"""What commands that take many images share: upscale, colorize, brighten, score, shrink and restore."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial

from .. import load
from ..batch import folders
from ..batch.folders import Job, Result
from ..batch.job import Work, Worker
from ..checkpoints.latents_file import model_sha256
from ..device import keep_freed_memory
from ..flow import Flow
from ..images.files import check_format, read_bytes
from .options import parse_fields
from .output import ProgressBar, log


def load_model(options: argparse.Namespace) -> Flow:
    """Load the model; on the CPU if a cluster computes, since then only its config and hash are needed here."""
    keep_freed_memory()
    device = "cpu" if uses_ray(options) else options.device
    return load(options.model, device, **parse_fields(options.set))


def uses_ray(options: argparse.Namespace) -> bool:
    return bool(options.ray or options.ray_address)


def make_images(options: argparse.Namespace, work: Work, flow: Flow, jobs: list[Job]) -> None:
    """Make the images of all jobs, on this machine or a cluster; see ``run_jobs``."""
    check_format(work.format, work.bits, work.quality)
    model = model_sha256(flow)
    bar = ProgressBar(len(jobs))
    run_jobs(
        jobs,
        executor(options, work, flow, bar),
        bar,
        is_done=lambda job: not options.again and folders.is_done(job, work, model),
        whole_clips=work.carries,
    )


def run_jobs(
    jobs: list[Job],
    executor: Callable[[Iterable[Job]], Iterable[Result]],
    bar: ProgressBar,
    *,
    is_done: Callable[[Job], bool],
    whole_clips: bool = False,
) -> None:
    """Run all jobs, save their images and print the paths; the arguments are those of ``folders.run``."""

    def on_result(job: Job, failure: Exception | None, skipped: bool) -> None:
        bar.finish(job, failure, skipped)
        for target in job.targets if failure is None and not skipped else ():
            log(str(target))

    report = folders.run(
        jobs, executor, is_done=is_done, save=folders.save, on_result=on_result, whole_clips=whole_clips
    )
    bar.close()
    report.raise_failures(len(jobs))


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
    worker = Worker(work, flow)

    def make(job: Job) -> list[bytes]:
        clip = job.source.parent
        return worker(read_bytes(job.source), job.source.name, clip, progress=bar.update, notify=log)

    return partial(run_in_turn, make, bar)


def run_in_turn(make: Callable[[Job], list[bytes]], bar: ProgressBar, jobs: Iterable[Job]) -> Iterable[Result]:
    """Make the results of jobs in this process, one after the other."""
    for job in jobs:
        bar.start(job.source)
        try:
            result = make(job)
        except Exception as error:  # one image does not stop the others
            yield job, error
        else:
            yield job, result
