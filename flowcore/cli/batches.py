"""What commands that take many images share: upscale, colorize, brighten, repair, shrink, restore, faces and score."""

import math
import shutil
import string
import sys
import time
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import load
from ..batch import folders
from ..batch.folders import InputFile, Job, Outputs, job_state
from ..batch.job import Command, Work, Worker
from ..batch.tables import NAME, Manifest
from ..checkpoints.writing import check_writable
from ..device import actual_precision, keep_freed_memory
from ..errors import FlowError, printable
from ..images.files import FORMATS, SUFFIXES, Format, check_format, upright_size
from ..images.opening import IMAGE_SUFFIXES
from ..model import FlowModel, Task
from ..tasks.forecast import NOTEWORTHY, Size, forecast
from ..tasks.model_choice import upscaler_for_files
from ..tasks.runner import check_draws
from ..tasks.settings import model_defaults
from .options import AUTO, parse_assignments
from .output import ProgressBar, log, write_result

# suffixes of pictures that we never write
UNWRITTEN = {*IMAGE_SUFFIXES, ".exr", ".hdr", ".jxl"} - FORMATS.keys()
MANY = 20  # with more pictures, a line says that they are examined
TOKENS = ("stem", "base", "frame", "suffix", "model", "seed", "sample")  # of ``--name``


def load_model(options: Namespace, task: Task | None = None) -> FlowModel:
    """Load the model of a task; on the CPU if a cluster computes, since then only its config and hash are needed."""
    if "samples" in options:  # before they become names of results
        check_draws(options.seed, options.samples)
    keep_freed_memory()
    flow = load(options.model, "cpu" if uses_ray(options) else options.device, **parse_assignments(options.set))
    if task is not None:
        flow.require(task)
    return flow


def uses_ray(options: Namespace) -> bool:
    return bool(getattr(options, "ray", False) or getattr(options, "ray_address", None))


def named_format(out: Path, format: Format | None = None) -> Format | None:
    """Return the format of the file that ``--out`` names, which must match ``--format``; None for a folder."""
    suffix = "" if out.is_dir() else out.suffix.lower()
    named = FORMATS.get(suffix)
    if suffix in UNWRITTEN:
        raise FlowError(f"Results are written as {', '.join(FORMATS)}; got {out.name}. Name one of these, or a folder.")
    if named is not None and format not in (None, named):
        raise FlowError(f"{out.name} is not the name of a {format} file. Leave --format out.")
    return named


def output_paths(out: Path, names: list[str]) -> list[Path]:
    """The files of several results where ``--out`` names one: the file itself, or one for each name."""
    return [out] if len(names) == 1 else [out.with_stem(f"{out.stem}_{name}") for name in names]


def seed_names(options: Namespace) -> list[str]:
    """What distinguishes the results of a picture: their seeds."""
    return [f"seed{seed % 2**64}" for seed in range(options.seed, options.seed + options.samples)]


def result_label(options: Namespace, settings: str) -> str:
    """The part of a result's name that tells the model, the settings, and the precision unless it is float32."""
    precision = actual_precision(options.precision, torch.device(options.device))
    return "_".join([Path(options.model).stem, settings, *([] if precision == "float32" else [precision])])


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """A model, and what it does with its pictures."""

    options: Namespace  # whose ``model`` it is
    worker: Worker
    label: str = ""  # the settings in names of results


def model_run(
    options: Namespace, flow: FlowModel, command: Command, settings: dict[str, Any], label: str = "", **fields: Any
) -> ModelRun:
    """Describe the work of a model; ``settings`` and ``fields`` are those of the ``Work``."""
    settings = settings | {name: vars(options)[name] for name in ("tile", "precision") if name in options}
    work = Work(
        command=command,
        model=Path(options.model).name,  # pictures contain it, and leave the machine
        scale=flow.condition_scale,
        settings=settings,
        model_defaults=model_defaults(flow, {**settings, "reference": fields.get("reference")}),
        seed=options.seed,
        samples=options.samples,
        format=named_format(options.out, options.format) or options.format or "png",
        bits=options.bits,
        quality=options.quality,
        **fields,
    )
    return ModelRun(options=options, worker=Worker(work, flow), label=label)


def make_images(
    options: Namespace, prepare: Callable[[Namespace], ModelRun], sample_names: list[str] | None = None
) -> None:
    """Make images from all pictures, on this machine or a cluster, save them and list them in the manifest.

    ``prepare`` returns the run of the model that its options name. It is called once, but with the model ``AUTO`` for
    each model that suits a picture. ``sample_names``, by default the seeds, distinguish the results of a picture.
    """
    is_auto = options.model == AUTO
    runs = {} if is_auto else {options.model: prepare(options)}
    skipped = dict[Path, str]()
    pictures = folders.find(options.images, options.out, log, skipped)
    choices = {picture.path: (options.model, "") for picture in pictures}
    if is_auto:
        if len(pictures) > MANY:
            log(f"Looking at {len(pictures)} pictures for JPEG blocks and noise.")
        clips = getattr(options, "steadiness", None) is not None
        groups = defaultdict[Path, list[Path]](list)  # the frames of a clip share a model
        for picture in pictures:
            groups[picture.path.parent if clips else picture.path].append(picture.path)
        for group in groups.values():
            choices |= dict.fromkeys(group, upscaler_for_files(group))
        for name in dict.fromkeys(name for name, _ in choices.values()):
            runs[name] = prepare(Namespace(**{**vars(options), "model": name}))
    run_of = {path: runs[name] for path, (name, _) in choices.items()}
    ((most_used, _),) = Counter(name for name, _ in choices.values()).most_common(1)
    work = runs[most_used].worker.work  # that of the others differs in the model and its defaults alone
    names = sample_names or seed_names(options)  # now that ``load_model`` has checked their number
    jobs = _jobs(options, pictures, run_of, names)
    check_format(work.format, work.bits or 8, work.quality)
    check_writable(options.out if named_format(options.out) else options.out / NAME)
    is_listed = options.manifest is not None or len(jobs) > 1
    manifest = Manifest(options.manifest or options.out / NAME) if is_listed else None
    if manifest is not None:
        manifest.append_skipped(skipped)
    done = set[Job]()  # looking again would decode their files again

    def is_done(job: Job) -> bool:
        if job not in done and folders.is_done(job, run_of[job.source].worker, again=options.again):
            done.add(job)
        return job in done

    if work.command in ("upscale", "restore", "faces"):
        jobs = confirm_sizes(options, runs[most_used].worker, jobs, is_done)
    bar = ProgressBar(jobs)
    for job, result in execute(options, jobs, is_done, run_of, bar):
        if is_auto and isinstance(result, Outputs):
            model, damage = choices[job.source]
            reason = f"{model} suits this picture: {damage or 'no JPEG blocks, no noise'}."
            result = replace(result, notes=(reason, *result.notes))
            log(f"{job.source.name}: {reason}")
        bar.finish(job, result)
        write_result(options, job.source, job.targets, result)
        if manifest is not None and result is not None:
            manifest.append(job, result, run_of[job.source].worker)
    if manifest is not None:
        manifest.compact()
    bar.close()


def _jobs(
    options: Namespace, pictures: Sequence[InputFile], run_of: dict[Path, ModelRun], sample_names: list[str]
) -> list[Job]:
    """Name the files of the pictures' results."""
    if named_format(options.out) is None:
        if options.name is not None:
            check_template(options.name, len(sample_names))
        return folders.make_jobs(pictures, options.out, lambda path: _result_names(run_of[path], sample_names, path))
    if len(pictures) > 1:
        raise FlowError(f"{options.out} is one file, for {len(pictures)} images. Choose a folder.")
    if options.name is not None:
        raise FlowError("--name names results in a folder, and --out is a file. Leave one of them out.")
    return folders.check_targets([Job(pictures[0].path, tuple(output_paths(options.out, sample_names)))])


def _result_names(run: ModelRun, sample_names: list[str], path: Path) -> list[str]:
    """Name the results of a picture: as ``--name`` says, as frames of a video, or by what made them."""
    options, work, model = run.options, run.worker.work, Path(run.options.model).stem
    suffix = SUFFIXES[work.format]
    base, frame = folders.split_name(path.name)
    if options.name is not None:
        tokens = {"stem": path.stem, "base": path.stem.removesuffix(frame), "frame": frame, "suffix": path.suffix[1:]}
        samples = {seed: f"_{seed}" if len(sample_names) > 1 else "" for seed in sample_names}
        names = [options.name.format(**tokens, model=model, seed=seed, sample=text) for seed, text in samples.items()]
        return [f"{name.removesuffix(suffix)}{suffix}" for name in names]
    if work.is_video:
        return [f"{path.stem}{suffix}"]
    if work.command == "shrink":
        return [f"{base}_{model}_small{frame}{suffix}"]
    if work.command == "restore":
        base = base.removesuffix(f"_{model}_small")
    return [f"{base}_{result_label(options, run.label)}_{name}{frame}{suffix}" for name in sample_names]


def check_template(template: str, samples: int) -> None:
    """Raise FlowError if a ``--name`` cannot be filled in, or cannot tell the results of a picture apart."""
    try:
        fields = [field[1:] for field in string.Formatter().parse(template) if field[1] is not None]
        problem = next((name for name, *more in fields if name not in TOKENS or any(more)), None)
    except ValueError as error:
        fields, problem = [], str(error)
    if problem is not None:
        tokens = ", ".join(f"{{{name}}}" for name in TOKENS)
        raise FlowError(f"--name may hold {tokens}, written just so; got {template!r} ({problem}).")
    if folders.leads_out(template):
        raise FlowError(f"--name names files in the folder of --out; got {template!r}. Leave .. and leading / out.")
    if samples > 1 and not {name for name, *_ in fields} & {"seed", "sample"}:
        raise FlowError(f"{samples} results of an image would have one name. Add {{sample}} to --name.")


def execute(
    options: Namespace,
    jobs: Sequence[Job],
    is_done: Callable[[Job], bool],
    run_of: dict[Path, ModelRun],
    bar: ProgressBar,
) -> Iterator[tuple[Job, Outputs | Exception | None]]:
    """Do the jobs that are not done, each with the model of its picture; yield what came of each, None if it was done.

    An exception ends the run, such as a ``SavingError``, after which nothing could be saved.
    """
    if uses_ray(options):
        yield from _execute_on_cluster(options, jobs, is_done, run_of)
        return
    limit: float | None = getattr(options, "time_limit", None)
    whole_clips = any(run.worker.work.is_video for run in run_of.values())
    for job, state in folders.examine(jobs, is_done, whole_clips=whole_clips, notify=log):
        if state == "pending":
            progress, worker = bar.start(job.source), run_of[job.source].worker
            yield job, folders.do(job, worker, log, progress, _time_limit(limit))
        else:
            yield job, None if state == "done" else state


def _time_limit(limit: float | None) -> Callable[[], bool]:
    """Return the ``cancelled`` of a task that may take so many seconds from now on."""
    deadline = math.inf if limit is None else time.monotonic() + limit

    def cancelled() -> bool:
        if time.monotonic() > deadline:
            raise FlowError(f"It took longer than --time-limit, {limit:g} s. Give it more, or shrink the image.")
        return False

    return cancelled


def _execute_on_cluster(
    options: Namespace, jobs: Sequence[Job], is_done: Callable[[Job], bool], run_of: dict[Path, ModelRun]
) -> Iterator[tuple[Job, Outputs | Exception | None]]:
    """Do as ``execute`` on a Ray cluster, one model after the other; other processes may make the same results."""
    if getattr(options, "time_limit", None) is not None:
        raise FlowError("--time-limit is for one machine: leave it out, or --ray.")
    try:
        from ..batch import cluster
    except ImportError as error:
        reason = "--ray needs all of flowcore: ComfyUI's registry has it without what a canvas never uses."
        raise FlowError(f"{reason} Install it on every machine, in a clone: pip install -e '.[python,ray]'.") from error

    pending: dict[str, list[Job]] = {}
    for job, state in folders.examine(jobs, is_done, claims=False):
        if state == "pending":
            pending.setdefault(run_of[job.source].options.model, []).append(job)
        else:
            yield job, None if state == "done" else state
    for model, its_jobs in pending.items():
        machines = cluster.Cluster(
            model=model,
            device=options.device,
            overrides=parse_assignments(options.set),
            address=options.ray_address,
            workers=options.ray_workers,
            threads=max(1, options.ray_threads),
        )
        yield from cluster.execute(run_of[its_jobs[0].source].worker.work, machines, log, its_jobs)


# --- questions before large results are made --------------------------------------------------------------------------


def confirm_sizes(options: Namespace, worker: Worker, jobs: list[Job], is_done: Callable[[Job], bool]) -> list[Job]:
    """Say the size of what will be made, and the memory and time that it takes; ask if it is very large.

    Returns:
        The jobs; where nobody can be asked, those whose results would be too large have a problem.
    """
    work = worker.work
    sizes = {job: (upright_size(job.source), work.size_of(job.source)) for job in jobs}
    # pictures without a size cannot be read, and will fail
    pending = {job: (source, result) for job, (source, result) in sizes.items() if source and result}
    if _are_small(options, work, pending):  # no need to look which results exist
        return jobs
    pending = {job: size for job, size in pending.items() if job_state(job, is_done) == "pending"}
    too_large: dict[Job, str] = {}
    for job, (_, (height, width)) in pending.items():
        size = height * width / 1e6
        if options.max_megapixels and size > options.max_megapixels:
            too_large[job] = f"A result would have {width}x{height} pixels, {size:.3g} megapixels; --max-megapixels is "
            too_large[job] += f"{options.max_megapixels:g}."
    if too_large and sys.stdin.isatty():
        first, more = next(iter(too_large)), len(too_large) - 1
        _confirm(f"{first.source}: {too_large[first]}{f', and {more} more are as large' if more else ''}")
        too_large = {}
    advice = "Shrink the image, or raise --max-megapixels (0: never ask)."
    jobs = [replace(job, problem=f"{too_large[job]} {advice}") if job in too_large else job for job in jobs]
    pending = {job: size for job, size in pending.items() if job not in too_large}
    if _are_small(options, work, pending):
        return jobs
    # results may be as large as if they were not compressed, since photographs hardly are
    bits = max(work.bits_of(job.source) for job in pending)
    required = 3 * bits / 8 * work.samples * sum(height * width for _, (height, width) in pending.values())
    folder = next(path for path in (options.out, *options.out.parents) if path.is_dir())
    if required > (free := shutil.disk_usage(folder).free):
        text = f"The results may need {required / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {options.out}."
        _confirm(text, "Shrink the images, or make room.")
    if not uses_ray(options):  # how fast other machines are is unknown
        sources, results = ([*sizes] for sizes in zip(*pending.values(), strict=True))
        named = ("tile", "precision", "steadiness", "guide_strength")
        how = {name: work.settings[name] for name in named if name in work.settings}
        guided = work.guide is not None
        log(forecast(worker.flow, sources, results, samples=work.samples, guided=guided, **how).sentence())
    return jobs


def _are_small(options: Namespace, work: Work, pending: dict[Job, tuple[Size, Size]]) -> bool:
    areas = [height * width / 1e6 for _, (height, width) in pending.values()]
    within = not options.max_megapixels or max(areas, default=0) <= options.max_megapixels
    return work.samples * sum(areas) < NOTEWORTHY and within


def _confirm(question: str, advice: str = "") -> None:
    """Continue if a person says so; FlowError if not, or if there is nobody."""
    if not sys.stdin.isatty():
        raise FlowError(f"{question} {advice}")
    sys.stderr.write(f"{printable(question)} Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise FlowError("Stopped: nothing was made.")
