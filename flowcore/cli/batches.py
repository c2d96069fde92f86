"""What commands that take many images share: upscale, colorize, brighten, repair, shrink, restore, faces and score."""

from __future__ import annotations

import math
import shutil
import string
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .. import load
from ..batch import folders
from ..batch.folders import InputFile, Job, Outputs, job_state
from ..batch.job import JobSpec, Worker
from ..batch.record import RecordFile
from ..batch.tables import NAME, Manifest, Record
from ..device import actual_precision
from ..engine.defaults import model_defaults
from ..errors import FlowError, printable
from ..flows.mark import mark_key
from ..flows.model import FlowModel, Task
from ..images.files import DEEP, FORMATS, SUFFIXES, Format, check_format, upright_size
from ..images.opening import IMAGE_SUFFIXES
from ..models.writing import check_writable
from ..tasks.model_choice import FOR_CLEAN, FOR_DAMAGED, upscaler_for_files
from ..tasks.table import tasks
from ..tasks.task import AUTO
from .allocation import keep_freed_memory
from .options import parse_assignments
from .output import ProgressBar, log, write_result

# suffixes of pictures that we never write
UNWRITTEN = {*IMAGE_SUFFIXES, ".exr", ".hdr", ".jxl"} - FORMATS.keys()
# size of results relative to their values of 8 or 16 bits, at most, of ten photographs of Kodak and Set14
COMPRESSED = {"lossless": 0.9, "jpeg": 0.45, "webp": 0.2}
TOKENS = ("stem", "base", "frame", "suffix", "model", "seed", "sample")  # parts of ``--name``


def load_model(options: Namespace, task: Task | None = None) -> FlowModel:
    """Load the model of a task; on the CPU if a cluster computes, since then only its config and hash are needed."""
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
    precision = actual_precision(vars(options).get("precision", "float32"), torch.device(options.device))
    return "_".join([Path(options.model).stem, settings, *([] if precision == "float32" else [precision])])


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """A model, and what it does with its pictures."""

    options: Namespace  # ``options.model`` names it
    worker: Worker
    label: str = ""  # the settings in names of results


def model_plan(
    options: Namespace, flow: FlowModel, command: str, settings: dict[str, Any], label: str = "", **fields: Any
) -> ModelPlan:
    """Describe the work of a model; ``settings`` and ``fields`` are those of the ``JobSpec``."""
    settings = settings | {name: vars(options)[name] for name in ("tile", "precision") if name in options}
    if getattr(options, "mark", None) is not None:
        mark_key(options.mark)  # raises for an empty phrase
        if settings.get("frames") == "video":
            raise FlowError("--mark is for pictures, and these are frames of a video. Remove it.")
        settings = {**settings, "mark": options.mark}
    spec = JobSpec(
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
        credentials=getattr(options, "credentials", False),
        **fields,
    )
    return ModelPlan(options=options, worker=Worker(spec, flow), label=label)


def prepare_images(
    options: Namespace, prepare: Callable[[Namespace], ModelPlan], sample_names: list[str] | None = None
) -> Callable[[], None]:
    """Check all that can be checked before images are made from all pictures, and return the work.

    ``prepare`` returns the plan of the model that its options name: of one, or with ``AUTO`` of every model that is
    chosen from. ``sample_names``, by default the seeds, distinguish the results of a picture.
    """
    skipped, reason = dict[Path, str](), ""
    pictures = folders.list_inputs(options.images, options.out, log, skipped)
    models = (FOR_CLEAN, FOR_DAMAGED) if options.model == AUTO else (options.model,)
    if options.model == AUTO and len(pictures) == 1:  # the other model need not be loaded
        model, damage = upscaler_for_files([pictures[0].path])
        models, reason = (model,), _reason(model, damage)
    plans = {name: prepare(Namespace(**{**vars(options), "model": name})) for name in models}
    names = sample_names or seed_names(options)
    jobs = Jobs(plans, _jobs(options, pictures, plans, names), again=options.again, reason=reason)
    spec = jobs.worker.spec
    check_format(spec.format, spec.bits or 8, spec.quality)
    check_writable(options.out if named_format(options.out) else options.out / NAME)
    if uses_ray(options):
        import_cluster()
        if options.time_limit is not None:
            raise FlowError("--time-limit is for one machine: leave it out, or --ray.")
    is_listed = options.manifest is not None or len(pictures) > 1
    manifest = Manifest(options.manifest or options.out / NAME) if is_listed else None
    book = None if getattr(options, "record", None) is None else RecordFile(options.record)
    return partial(_make_images, options, jobs, manifest, skipped, book)


def _make_images(
    options: Namespace, jobs: Jobs, manifest: Manifest | None, skipped: dict[Path, str], book: RecordFile | None
) -> None:
    """Make images from all pictures, on this machine or a cluster, save them and list them in the manifest."""
    if manifest is not None:
        manifest.append_skipped(skipped)
    if tasks()[jobs.worker.spec.command].enlarges:
        jobs.problems = confirm_sizes(options, jobs)
    bar, is_video, unrecorded = ProgressBar(jobs.sizes), jobs.worker.spec.is_video, ""
    for job, result in execute(options, jobs.units(), jobs.is_done, jobs.plan_of, bar, whole_clips=is_video):
        if isinstance(result, Outputs) and (reason := jobs.reason(job)):
            result = replace(result, notes=(reason, *result.notes))
            log(f"{job.source.name}: {reason}")
        bar.finish(job, result)
        record = Record.of(job, result, jobs.plan_of(job).worker)
        if manifest is not None and result is not None:  # written before others hear of it, and may stop this process
            manifest.append(record)
        if book is not None and not unrecorded:
            unrecorded = book.add(record, jobs.sizes[job.source], jobs.plan_of(job).worker.spec)
        write_result(options, record)
    if manifest is not None:
        manifest.compact()
    bar.close()
    if unrecorded:
        raise FlowError(unrecorded)


class Jobs:
    """What is to be made of every picture: by the only model, or by the one of several that suits the picture.

    That is chosen when the picture's turn comes, unless its results are there: their names and IDs tell their model, so
    a run that is resumed looks at no picture that is done.
    """

    def __init__(
        self, plans: dict[str, ModelPlan], candidates: list[tuple[Job, ...]], *, again: bool = False, reason: str = ""
    ) -> None:
        """Collect the ``candidates``: for every picture, what each model of ``plans`` would do.

        ``reason`` says why the model of a single run was chosen.
        """
        self._plans, self._again, self._reason = plans, again, reason
        self._candidates = {of_picture[0].source: of_picture for of_picture in candidates}
        self.sources = [*self._candidates]
        self.worker = next(iter(plans.values())).worker  # any model's worker: they enlarge alike
        self.problems: dict[Path, str] = {}  # why pictures cannot be done
        self._reasons: dict[Path, str] = {}  # why the model of a picture was chosen
        self._done: set[Job] = set()  # looking again would decode their files again

    @cached_property
    def sizes(self) -> dict[Path, tuple[int, int] | None]:
        """Height and width of every picture; None if it is unreadable."""
        return {path: upright_size(path) for path in self.sources}

    def units(self) -> Iterator[list[Job]]:
        """Yield the job of a picture, or those of a clip's frames, and choose their model when their turn comes."""
        clips = defaultdict[Path | int, list[tuple[Job, ...]]](list)
        for number, candidates in enumerate(self._candidates.values()):
            clips[candidates[0].source.parent if self.worker.spec.is_video else number].append(candidates)
        for clip in clips.values():
            model, reason = self._choose(clip)
            for candidates in clip:
                self._reasons[candidates[0].source] = reason
            jobs = [job for candidates in clip for job in candidates if job.model == model]
            yield [replace(job, problem=self.problems.get(job.source) or job.problem) for job in jobs]

    def _choose(self, clip: list[tuple[Job, ...]]) -> tuple[str, str]:
        """Name the model for a picture or a clip, and say why, if there is a choice."""
        if len(self._plans) == 1:
            return next(iter(self._plans)), self._reason
        for jobs in zip(*clip, strict=True):  # one frame's jobs, one for each model
            if any(self._has_results(job) for job in jobs):
                return jobs[0].model, f"{jobs[0].model} has made other frames of this clip."
        name, damage = upscaler_for_files([candidates[0].source for candidates in clip])
        return name, _reason(name, damage)

    def reason(self, job: Job) -> str:
        """Say why the model of a job was chosen; "" if there was no choice, or it is the usual one."""
        return self._reasons[job.source]

    def plan_of(self, job: Job) -> ModelPlan:
        """Return the plan of a job's model."""
        return self._plans[job.model]

    def is_done(self, job: Job) -> bool:
        """Tell whether the results of a job are there, see ``folders.is_done``."""
        if job not in self._done and folders.is_done(job, self.plan_of(job).worker, again=self._again):
            self._done.add(job)
        return job in self._done

    def _has_results(self, job: Job) -> bool:
        return job_state(job, self.is_done) == "done"

    def is_pending(self, source: Path) -> bool:
        """Tell whether no model has made the results of a picture."""
        return not any(self._has_results(job) for job in self._candidates[source])


def _reason(model: str, damage: str) -> str:
    return f"{model} suits this picture: {damage}." if damage else ""


def _jobs(
    options: Namespace, pictures: Sequence[InputFile], plans: dict[str, ModelPlan], sample_names: list[str]
) -> list[tuple[Job, ...]]:
    """Name the files of the pictures' results, by each model."""
    if named_format(options.out) is None:
        if options.name is not None:
            check_template(options.name, len(sample_names), next(iter(plans.values())).worker.spec.format)
        by_model = [
            folders.make_jobs(pictures, options.out, partial(_result_names, plan, sample_names))
            for plan in plans.values()
        ]
    elif len(pictures) > 1:
        raise FlowError(f"{options.out} is one file, for {len(pictures)} images. Choose a folder.")
    elif options.name is not None:
        raise FlowError("--name names results in a folder, and --out is a file. Leave one of them out.")
    else:
        job = Job(pictures[0].path, tuple(output_paths(options.out, sample_names)))
        by_model = [folders.check_targets([job])] * len(plans)
    named = [[replace(job, model=name) for job in jobs] for name, jobs in zip(plans, by_model, strict=True)]
    return [*zip(*named, strict=True)]


def _result_names(plan: ModelPlan, sample_names: list[str], path: Path, kind: str = "") -> list[str]:
    """Name the results of a picture: as ``--name`` says, as frames of a video, or by what made them.

    ``kind`` tells pictures apart that have one name but for their suffix.
    """
    options, spec, model = plan.options, plan.worker.spec, Path(plan.options.model).stem
    suffix = SUFFIXES[spec.format]
    base, frame = folders.split_name(path.name)
    if options.name is not None:
        tokens = {"stem": f"{base}{kind}{frame}", "base": f"{base}{kind}", "frame": frame, "suffix": path.suffix[1:]}
        samples = {seed: f"_{seed}" if len(sample_names) > 1 else "" for seed in sample_names}
        names = [options.name.format(**tokens, model=model, seed=seed, sample=text) for seed, text in samples.items()]
        return [f"{name.removesuffix(suffix)}{suffix}" for name in names]
    if spec.is_video:
        return [f"{base}{kind}{frame}{suffix}"]
    task, label = tasks()[spec.command], result_label(options, plan.label)
    base = base.removesuffix(f"_{model}_{task.undoes}") if task.undoes else base
    named = [f"_{name}" for name in sample_names] if task.draws else [""]
    return [f"{base}{kind}_{label}{name}{frame}{suffix}" for name in named]


def check_template(template: str, samples: int, format: Format) -> None:
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
    named = FORMATS.get(Path(template).suffix.lower(), format)
    if named != format:
        raise FlowError(
            f"--name ends as a {named} file, and results are {format}. Add --format {named}, or leave it out."
        )
    if samples > 1 and not {name for name, *_ in fields} & {"seed", "sample"}:
        raise FlowError(f"{samples} results of an image would have one name. Add {{sample}} to --name.")


def execute(
    options: Namespace,
    units: Iterable[Sequence[Job]],
    is_done: Callable[[Job], bool],
    plan_of: Callable[[Job], ModelPlan],
    bar: ProgressBar,
    *,
    whole_clips: bool = False,
) -> Iterator[tuple[Job, Outputs | Exception | None]]:
    """Do the jobs that are not done, each with its model; yield what came of each, None if it was done.

    ``units`` are those of ``folders.iter_pending``. An exception ends the run, such as a ``SavingError``, after which
    nothing could be saved.
    """
    if uses_ray(options):
        yield from _execute_on_cluster(options, units, is_done, plan_of)
        return
    limit: float | None = getattr(options, "time_limit", None)
    for job, state in folders.iter_pending(units, is_done, whole_clips=whole_clips, notify=log):
        if state == "pending":
            progress, worker = bar.start(job.source), plan_of(job).worker
            yield job, folders.process(job, worker, log, progress, _time_limit(limit))
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


def import_cluster() -> ModuleType:
    """Import what works on many machines, of which the copy of flowcore in ComfyUI's registry has nothing."""
    try:
        from ..batch import cluster
    except ImportError as error:
        reason = "--ray needs all of flowcore: ComfyUI's registry has it without what a canvas never uses."
        raise FlowError(f"{reason} Install it on every machine, in a clone: pip install -e '.[python,ray]'.") from error
    cluster.import_ray()
    return cluster


def _execute_on_cluster(
    options: Namespace,
    units: Iterable[Sequence[Job]],
    is_done: Callable[[Job], bool],
    plan_of: Callable[[Job], ModelPlan],
) -> Iterator[tuple[Job, Outputs | Exception | None]]:
    """Do as ``execute`` on a Ray cluster, one model after the other; other processes may make the same results."""
    cluster = import_cluster()
    pending: dict[str, list[Job]] = {}
    for job, state in folders.iter_pending(units, is_done, claims=False):
        if state == "pending":
            pending.setdefault(plan_of(job).options.model, []).append(job)
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
        yield from cluster.execute(plan_of(its_jobs[0]).worker.spec, machines, log, its_jobs)


# --- questions before large results are made --------------------------------------------------------------------------


def confirm_sizes(options: Namespace, jobs: Jobs) -> dict[Path, str]:
    """Ask about results that are very large, or that may not fit on the disk, unless ``--yes`` has answered.

    Where nobody can be asked, those that may not fit are begun after a warning: what fits is made.

    Returns:
        Why pictures cannot be done: where nobody can be asked, because their results would be too large.
    """
    spec, limit = jobs.worker.spec, options.max_megapixels or math.inf
    pixels, too_large = dict[Path, int](), dict[Path, str]()
    for path in jobs.sources:
        with suppress(FlowError):  # a result may be larger than possible: the picture will fail
            source = jobs.sizes[path]
            if source and (result := spec.size_of(path, source)):  # no size: unreadable, it will fail
                height, width = result
                pixels[path] = height * width
                size = height * width / 1e6
                if size > limit and jobs.is_pending(path):
                    too_large[path] = f"A result would have {width}x{height} pixels, {size:.3g} megapixels; "
                    too_large[path] += f"--max-megapixels is {options.max_megapixels:g}."
    if too_large and (sys.stdin.isatty() or options.yes):
        first, more = next(iter(too_large)), len(too_large) - 1
        _confirm(options, f"{first}: {too_large[first]}{f', and {more} more are as large' if more else ''}")
        too_large = {}
    folder = next(path for path in (options.out, *options.out.parents) if path.is_dir())
    rest, free = [path for path in pixels if path not in too_large], shutil.disk_usage(folder).free
    if 6 * spec.samples * sum(pixels[path] for path in rest) > free:  # else no need to look which results exist
        is_lossless = spec.format in DEEP or spec.quality == 100  # JPEG of 100 is as large
        per_value = COMPRESSED["lossless" if is_lossless else spec.format]
        sizes = (3 * per_value * spec.bits_of(path) / 8 * pixels[path] for path in rest if jobs.is_pending(path))
        if (required := spec.samples * sum(sizes)) > free:
            text = f"The results may need {_bytes(required)}, and {_bytes(free)} are free in {options.out}."
            if sys.stdin.isatty():
                _confirm(options, text)
            else:
                log(f"{text} What fits is made.")
    advice = "Shrink the image, or raise --max-megapixels (0: never ask)."
    return {path: f"{problem} {advice}" for path, problem in too_large.items()}


def _bytes(count: float) -> str:
    """Write a number of bytes in the largest unit of which there is one."""
    unit, size = next((pair for pair in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= pair[1]), ("bytes", 1))
    return f"{count / size:.{0 if size == 1 else 1}f} {unit}"


def _confirm(options: Namespace, question: str) -> None:
    """Ask for confirmation, unless it was given before; FlowError if it is refused."""
    if options.yes:
        return
    sys.stderr.write(f"{printable(question)} Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise FlowError("Stopped: nothing was made.")
