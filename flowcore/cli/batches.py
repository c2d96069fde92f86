"""What commands that take many images share: upscale, colorize, brighten, shrink, restore, faces and score."""

from __future__ import annotations

import argparse
import shutil
import string
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import load
from ..batch import folders
from ..batch.folders import Job, Made, Result, state_of
from ..batch.job import Command, Work, Worker
from ..batch.tables import NAME, Manifest
from ..checkpoints.latents_file import model_sha256
from ..device import actual_precision, keep_freed_memory
from ..errors import FlowError
from ..flow import Flow, Task
from ..images.files import FORMATS, IMAGE_SUFFIXES, SUFFIXES, Format, check_format, upright_size
from ..tasks import Progress
from ..tasks.forecast import NOTEWORTHY, Size, forecast
from ..tasks.intake import left_to_model
from .options import parse_fields
from .output import ProgressBar, SomeFailed, log, write_result

# suffixes of pictures that we never write
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
    done, refused = set[Job](), dict[Job, FlowError]()

    def is_done(job: Job) -> bool:
        if job in refused:
            raise refused[job]
        if job not in done and folders.is_done(job, work, model, again=options.again):
            done.add(job)  # remembered: it is asked up to three times, and every look decodes the files
        return job in done

    if command in ("upscale", "restore", "faces"):
        refused |= announce(options, work, flow, jobs, is_done)
    bar = ProgressBar(jobs)

    def on_result(job: Job, result: Made | Exception | None) -> None:
        bar.finish(job, result)
        made, failure = isinstance(result, Made), str(result) if isinstance(result, Exception) else ""
        seconds, notes = (round(result.seconds, 2), result.notes) if isinstance(result, Made) else (None, ())
        there = () if failure else job.targets
        write_result(options, job.source, there, seconds=seconds, notes=notes, error=failure)
        if manifest is not None and result is not None:
            outputs = list(zip(job.targets, work.seeds(), strict=True)) if made else [("", "")]
            note = failure or " ".join(notes)
            manifest.append((job.source, file, seed, work.model, model, seconds, note) for file, seed in outputs)

    failed = folders.run(
        jobs,
        executor(options, work, flow, bar),
        is_done=is_done,
        save=folders.save,
        on_result=on_result,
        whole_clips=work.carries,
        claims=not uses_ray(options),
        notify=log,
    )
    if manifest is not None:
        manifest.compact()
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
    raise (SomeFailed if len(failed) < total else FlowError)(f"{listed}\n{summary}") from first


def _jobs(
    options: argparse.Namespace, suffix: str, names: Callable[[str], list[str]], sample_names: list[str]
) -> list[Job]:
    """Find the pictures, and decide on the files of their results."""
    found = folders.find(options.images, options.out, log)
    if named_format(options.out) is None:
        if options.name is not None:
            check_template(options.name, len(sample_names))
        return folders.jobs(found, options.out, lambda name: _result_names(options, name, suffix, names, sample_names))
    if len(found) > 1:
        raise FlowError(f"{options.out} is one file, for {len(found)} images. Name a folder.")
    if options.name is not None:
        raise FlowError("--name names results in a folder, and --out is a file. Leave one of them out.")
    jobs = [Job(found[0].path, tuple(numbered(options.out, sample_names)))]
    folders.check_targets(jobs)
    return jobs


def _result_names(
    options: argparse.Namespace, name: str, suffix: str, names: Callable[[str], list[str]], sample_names: list[str]
) -> list[str]:
    """Name the results of a picture: as ``--name`` says, as frames of a video, or by what made them."""
    path, (start, frame) = Path(name), folders.split_name(name)
    if options.name is None:
        start, frame = (path.stem, "") if getattr(options, "frames", "") == "video" else (start, frame)
        return [f"{one}{frame}{suffix}" for one in names(start)]
    tokens = {"stem": path.stem, "base": path.stem.removesuffix(frame), "frame": frame, "suffix": path.suffix[1:]}
    tokens["model"] = Path(options.model).stem
    several = len(sample_names) > 1
    filled = [options.name.format(**tokens, seed=seed, sample=f"_{seed}" * several) for seed in sample_names]
    return [f"{one.removesuffix(suffix)}{suffix}" for one in filled]


TOKENS = ("stem", "base", "frame", "suffix", "model", "seed", "sample")


def check_template(template: str, samples: int) -> None:
    """Raise FlowError if a ``--name`` cannot be filled in, or cannot tell the results of a picture apart."""
    try:
        template.format(**dict.fromkeys(TOKENS, ""))
    except (ValueError, LookupError, AttributeError) as error:
        listed = ", ".join(f"{{{name}}}" for name in TOKENS)
        raise FlowError(f"--name may hold {listed}; got {template!r} ({error}).") from error
    used = {name for _, name, _, _ in string.Formatter().parse(template)}
    if samples > 1 and not used & {"seed", "sample"}:
        raise FlowError(f"{samples} results of an image would have one name. Add {{sample}} to --name.")


def _manifest(options: argparse.Namespace, jobs: list[Job]) -> Manifest | None:
    """The manifest that was asked for; of several images, one beside their results."""
    if options.manifest is None and len(jobs) < 2:
        return None
    return Manifest(options.manifest or options.out / NAME)


def executor(
    options: argparse.Namespace, work: Work, flow: Flow, bar: ProgressBar
) -> Callable[[Iterable[Job]], Iterable[Result]]:
    """Choose what runs the jobs: this process, one after the other, or a cluster."""
    limit: float | None = getattr(options, "time_limit", None)
    if uses_ray(options):
        if limit is not None:
            raise FlowError("--time-limit is for one machine: leave it out, or --ray.")
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
    began = time.monotonic()

    def start(source: Path) -> Progress:
        nonlocal began
        began = time.monotonic()
        return bar.start(source)

    def cancelled() -> bool:
        if limit is not None and time.monotonic() - began > limit:
            raise FlowError(f"It took longer than --time-limit, {limit:g} s. Give it more, or shrink the image.")
        return False

    return partial(folders.in_turn, Worker(work, flow), start, log, cancelled=cancelled)


# --- what is said, and asked, before large results are made -----------------------------------------------------------


def announce(
    options: argparse.Namespace, work: Work, flow: Flow, jobs: list[Job], is_done: Callable[[Job], bool]
) -> dict[Job, FlowError]:
    """Say the size of what will be made, and the memory and time that it takes; ask if it is very large.

    Where nobody can be asked, it returns the jobs whose results would be too large, which are left out.
    """
    coming = [(job, *sizes) for job in jobs if (sizes := _sizes(work, job.source)) is not None]
    if _is_small(options, work, coming):  # no need to look which results exist
        return {}
    coming = [one for one in coming if not state_of(one[0], is_done)]
    refused = _too_large(options, coming)
    coming = [one for one in coming if one[0] not in refused]
    if _is_small(options, work, coming):
        return refused
    if (required := _bytes(work, coming)) > (free := _free(options.out)):
        _ask(
            f"The results may need {required / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {options.out}.",
            "Shrink the images, or make room.",
        )
    sources, results = [source for _, source, _ in coming], [result for *_, result in coming]
    if options.ray or options.ray_address:  # how fast other machines are is unknown
        return refused
    how = {name: work.settings[name] for name in ("tile", "precision", "steadiness") if name in work.settings}
    expected = forecast(flow, sources, results, samples=work.samples, guided=work.guide is not None, **how)
    log(expected.sentence())
    return refused


def _sizes(work: Work, path: Path) -> tuple[Size, Size] | None:
    """Height and width of an image and of its results; None if it cannot be read, which the run will say."""
    source, result = upright_size(path), work.size_of(path)
    return None if source is None or result is None else (source, result)


def _is_small(options: argparse.Namespace, work: Work, coming: list[tuple[Job, Size, Size]]) -> bool:
    areas = [height * width / 1e6 for *_, (height, width) in coming]
    within = not options.max_megapixels or max(areas, default=0) <= options.max_megapixels
    return work.samples * sum(areas) < NOTEWORTHY and within


def _bytes(work: Work, coming: list[tuple[Job, Size, Size]]) -> float:
    """How large the results may be: as if not compressed, since photographs hardly are."""
    bits = max(work.bits_of(job.source) for job, *_ in coming)
    return 3 * bits / 8 * work.samples * sum(height * width for *_, (height, width) in coming)


def _too_large(options: argparse.Namespace, coming: list[tuple[Job, Size, Size]]) -> dict[Job, FlowError]:
    """Ask about results of more than ``--max-megapixels``; return their jobs if there is nobody to ask."""
    refused: dict[Job, FlowError] = {}
    for job, _, (height, width) in coming:
        size = height * width / 1e6
        if options.max_megapixels and size > options.max_megapixels:
            text = f"A result would have {width}x{height} pixels, {size:.3g} megapixels; --max-megapixels is "
            text += f"{options.max_megapixels:g}."
            refused[job] = FlowError(f"{text} Shrink the image, or raise --max-megapixels (0: never ask).")
    if not refused or not sys.stdin.isatty():
        return refused
    first, more = next(iter(refused)), f", and {len(refused) - 1} more are as large" if len(refused) > 1 else ""
    _ask(f"{first.source}: {str(refused[first]).partition(' Shrink')[0]}{more}", "")
    return {}


def _ask(question: str, advice: str) -> None:
    """Go on if a person says so; FlowError if not, or if there is nobody."""
    if not sys.stdin.isatty():
        raise FlowError(f"{question} {advice}")
    sys.stderr.write(f"{question} Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise FlowError("Stopped: nothing was made.")


def _free(folder: Path) -> int:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
