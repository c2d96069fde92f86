"""What commands that take many images share: upscale, colorize, brighten, repair, shrink, restore, faces and score."""

import itertools
import shutil
import string
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import load
from ..batch import folders
from ..batch.folders import Executor, InputFile, Job, Outputs, job_state
from ..batch.job import Command, Work, Worker
from ..batch.tables import NAME, Manifest
from ..checkpoints.latents_file import model_sha256
from ..checkpoints.writing import check_writable
from ..device import actual_precision, keep_freed_memory
from ..errors import FlowError
from ..images.files import FORMATS, IMAGE_SUFFIXES, SUFFIXES, Format, check_format, upright_size
from ..model import FlowModel, Task
from ..tasks import Progress
from ..tasks.defaults import model_defaults
from ..tasks.forecast import NOTEWORTHY, Size, forecast
from ..tasks.model_choice import upscalers_for
from ..tasks.runner import check_draws
from .options import AUTO, parse_fields
from .output import ProgressBar, SomeFailed, log, write_result

# suffixes of pictures that we never write
UNWRITTEN = {*IMAGE_SUFFIXES, ".avif", ".exr", ".hdr", ".jp2", ".jxl", ".ppm", ".tga"} - FORMATS.keys()
MANY = 20  # pictures, above which a line says that they are looked at
TOKENS = ("stem", "base", "frame", "suffix", "model", "seed", "sample")  # of ``--name``


def load_model(options: Namespace, task: Task | None = None) -> FlowModel:
    """Load the model of a task; on the CPU if a cluster computes, since then only its config and hash are needed."""
    if "samples" in options:  # before names are made of so many seeds
        check_draws(options.seed, options.samples)
    keep_freed_memory()
    flow = load(options.model, "cpu" if uses_ray(options) else options.device, **parse_fields(options.set))
    if task is not None:
        flow.require(task)
    return flow


def uses_ray(options: Namespace) -> bool:
    return bool(vars(options).get("ray") or vars(options).get("ray_address"))


def named_format(out: Path, format: Format | None = None) -> Format | None:
    """Tell the format of the file that ``--out`` names, which must be the one asked for; None for a folder."""
    suffix = "" if out.is_dir() else out.suffix.lower()
    named = FORMATS.get(suffix)
    if suffix in UNWRITTEN:
        raise FlowError(f"Results are written as {', '.join(FORMATS)}; got {out.name}. Name one of these, or a folder.")
    if named is not None and format not in (None, named):
        raise FlowError(f"{out.name} is not the name of a {format} file. Leave --format out.")
    return named


def numbered(out: Path, names: list[str]) -> list[Path]:
    """The files of several results where ``--out`` names one: the file itself, or one for each name."""
    return [out] if len(names) == 1 else [out.with_stem(f"{out.stem}_{name}") for name in names]


def seed_names(options: Namespace) -> list[str]:
    """What distinguishes the results of a picture: their seeds."""
    return [f"seed{seed % 2**64}" for seed in range(options.seed, options.seed + options.samples)]


def describe(options: Namespace, settings: str) -> str:
    """The part of a result's name that tells the model, the settings, and the precision unless it is float32."""
    precision = actual_precision(options.precision, torch.device(options.device))
    return "_".join([Path(options.model).stem, settings, *([] if precision == "float32" else [precision])])


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one model makes of its pictures."""

    options: Namespace  # whose ``model`` it is
    flow: FlowModel
    work: Work
    label: str  # the settings in names of results
    sha256: str  # of the model


def part(
    options: Namespace, flow: FlowModel, command: Command, settings: dict[str, Any], label: str = "", **fields: Any
) -> Part:
    """Say what a model makes: ``settings`` and ``fields`` are those of the ``Work``."""
    settings = settings | {name: vars(options)[name] for name in ("tile", "precision") if name in options}
    work = Work(
        command=command,
        model=Path(options.model).name,  # pictures hold it, and leave the machine
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
    return Part(options=options, flow=flow, work=work, label=label, sha256=model_sha256(flow))


def make_images(
    options: Namespace, prepare: Callable[[Namespace], Part], sample_names: list[str] | None = None
) -> None:
    """Make images of all pictures, on this machine or a cluster, save them and list them in the manifest.

    ``prepare`` loads the model of some options, once for each that is needed: of ``AUTO`` the one that suits a picture.
    ``sample_names``, by default the seeds, distinguish the results of a picture.
    """
    parts = {} if (auto := options.model == AUTO) else {options.model: prepare(options)}
    found = folders.find(options.images, options.out, log)
    chosen = {one.path: (options.model, "") for one in found}
    if auto:
        if len(found) > MANY:
            log(f"Looking at {len(found)} pictures for JPEG blocks and noise.")
        clips = vars(options).get("steadiness") is not None
        chosen = upscalers_for([one.path for one in found], clips=clips)
    models = Counter(name for name, _ in chosen.values())
    for name in models if auto else ():
        parts[name] = prepare(Namespace(**{**vars(options), "model": name}))
    of_most = parts[models.most_common(1)[0][0]]
    work = of_most.work  # the same in all parts but for the model and what it states
    jobs = _jobs(options, found, lambda path: parts[chosen[path][0]], sample_names or seed_names(options))
    check_format(work.format, work.bits or 8, work.quality)
    check_writable(options.out if named_format(options.out) else options.out / NAME)
    listed = options.manifest is not None or len(jobs) > 1
    manifest = Manifest(options.manifest or options.out / NAME) if listed else None
    done, refused = set[Job](), dict[Job, FlowError]()

    def is_done(job: Job) -> bool:
        if job in refused:
            raise refused[job]
        mine = parts[chosen[job.source][0]]
        if job not in done and folders.is_done(job, mine.work, mine.sha256, again=options.again):
            done.add(job)  # remembered: it is asked up to three times, and every look decodes the files
        return job in done

    if work.command in ("upscale", "restore", "faces"):
        refused |= announce(options, work, of_most.flow, jobs, is_done)
    bar = ProgressBar(jobs)
    executors = {name: executor(one.options, one.work, one.flow, bar) for name, one in parts.items()}

    def on_result(job: Job, result: Outputs | Exception | None) -> None:
        bar.finish(job, result)
        failure = str(result) if isinstance(result, Exception) else ""
        seconds, notes = (round(result.seconds, 2), list(result.notes)) if isinstance(result, Outputs) else (None, [])
        if auto and isinstance(result, Outputs):
            notes.insert(0, _why(*chosen[job.source]))
        write_result(options, job.source, () if failure else job.targets, seconds, notes, failure)
        if manifest is not None and result is not None:
            mine = parts[chosen[job.source][0]]
            manifest.append(job, result, mine.work, mine.sha256, notes)

    def execute(pending: Iterable[Job]) -> Iterator[folders.Outcome]:
        """Execute jobs in their order, or on a cluster one model after the other."""

        def model_of(job: Job) -> str:
            return chosen[job.source][0]

        by_model = sorted(pending, key=model_of) if uses_ray(options) and len(parts) > 1 else pending
        for name, group in itertools.groupby(by_model, model_of):
            yield from executors[name](map(told, group))

    def told(job: Job) -> Job:
        if auto and upright_size(job.source):
            log(f"{job.source.name}: {_why(*chosen[job.source])}")
        return job

    failed = folders.run(
        jobs,
        execute,
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


def _why(model: str, damage: str) -> str:
    return f"{model} suits this picture: {damage or 'no JPEG blocks, no noise'}."


def _jobs(
    options: Namespace, found: Sequence[InputFile], part_of: Callable[[Path], Part], sample_names: list[str]
) -> list[Job]:
    """Decide on the files of the pictures' results."""
    if named_format(options.out) is None:
        if options.name is not None:
            check_template(options.name, len(sample_names))
        return folders.make_jobs(found, options.out, lambda path: _result_names(part_of(path), sample_names, path))
    if len(found) > 1:
        raise FlowError(f"{options.out} is one file, for {len(found)} images. Name a folder.")
    if options.name is not None:
        raise FlowError("--name names results in a folder, and --out is a file. Leave one of them out.")
    return folders.check_targets([Job(found[0].path, tuple(numbered(options.out, sample_names)))])


def _result_names(part: Part, sample_names: list[str], path: Path) -> list[str]:
    """Name the results of a picture: as ``--name`` says, as frames of a video, or by what made them."""
    options, work = part.options, part.work
    (start, frame), suffix = folders.split_name(path.name), SUFFIXES[work.format]
    model = Path(options.model).stem
    if options.name is not None:
        tokens = {"stem": path.stem, "base": path.stem.removesuffix(frame), "frame": frame, "suffix": path.suffix[1:]}
        several = len(sample_names) > 1
        filled = [
            options.name.format(**tokens, model=model, seed=seed, sample=f"_{seed}" * several) for seed in sample_names
        ]
        return [f"{one.removesuffix(suffix)}{suffix}" for one in filled]
    if "frames" in work.settings:
        return [f"{path.stem}{suffix}"]
    if work.command == "shrink":
        return [f"{start}_{model}_small{frame}{suffix}"]
    start = start.removesuffix(f"_{model}_small") if work.command == "restore" else start
    return [f"{start}_{describe(options, part.label)}_{one}{frame}{suffix}" for one in sample_names]


def check_template(template: str, samples: int) -> None:
    """Raise FlowError if a ``--name`` cannot be filled in, or cannot tell the results of a picture apart."""
    try:
        template.format(**dict.fromkeys(TOKENS, ""))
    except (ValueError, LookupError, AttributeError) as error:
        listed = ", ".join(f"{{{name}}}" for name in TOKENS)
        raise FlowError(f"--name may hold {listed}; got {template!r} ({error}).") from error
    if folders.leads_out(template):
        raise FlowError(f"--name names files in the folder of --out; got {template!r}. Leave .. and leading / out.")
    used = {name for _, name, _, _ in string.Formatter().parse(template)}
    if samples > 1 and not used & {"seed", "sample"}:
        raise FlowError(f"{samples} results of an image would have one name. Add {{sample}} to --name.")


def executor(options: Namespace, work: Work, flow: FlowModel, bar: ProgressBar) -> Executor:
    """Choose what runs the jobs: this process, one after the other, or a cluster."""
    limit: float | None = getattr(options, "time_limit", None)
    if uses_ray(options):
        if limit is not None:
            raise FlowError("--time-limit is for one machine: leave it out, or --ray.")
        try:
            from ..batch import cluster
        except ImportError as error:
            reason = "--ray needs all of flowcore: ComfyUI's registry has it without what a canvas never uses."
            raise FlowError(f"{reason} Install it on every machine: pip install 'flowcore[python,ray]'.") from error

        machines = cluster.Cluster(
            model=options.model,
            device=options.device,
            overrides=parse_fields(options.set),
            address=options.ray_address,
            workers=options.ray_workers,
            threads=max(1, options.ray_threads),
        )
        return partial(cluster.execute, work, machines, log)
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
    options: Namespace, work: Work, flow: FlowModel, jobs: list[Job], is_done: Callable[[Job], bool]
) -> dict[Job, FlowError]:
    """Say the size of what will be made, and the memory and time that it takes; ask if it is very large.

    Where nobody can be asked, it returns the jobs whose results would be too large, which are left out.
    """
    sized = [(job, upright_size(job.source), work.size_of(job.source)) for job in jobs]
    coming = [(job, source, result) for job, source, result in sized if source and result]  # others fail in the run
    if _is_small(options, work, coming):  # no need to look which results exist
        return {}
    coming = [one for one in coming if not job_state(one[0], is_done)]
    refused: dict[Job, FlowError] = {}
    for job, _, (height, width) in coming:
        size = height * width / 1e6
        if options.max_megapixels and size > options.max_megapixels:
            text = f"A result would have {width}x{height} pixels, {size:.3g} megapixels; --max-megapixels is "
            text += f"{options.max_megapixels:g}."
            refused[job] = FlowError(f"{text} Shrink the image, or raise --max-megapixels (0: never ask).")
    if refused and sys.stdin.isatty():
        first, more = next(iter(refused)), f", and {len(refused) - 1} more are as large" if len(refused) > 1 else ""
        _ask(f"{first.source}: {str(refused[first]).partition(' Shrink')[0]}{more}", "")
        refused = {}
    coming = [one for one in coming if one[0] not in refused]
    if _is_small(options, work, coming):
        return refused
    # results may be as large as if they were not compressed, since photographs hardly are
    bits = max(work.bits_of(job.source) for job, *_ in coming)
    required = 3 * bits / 8 * work.samples * sum(height * width for *_, (height, width) in coming)
    folder = next(path for path in (options.out, *options.out.parents) if path.is_dir())
    if required > (free := shutil.disk_usage(folder).free):
        text = f"The results may need {required / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {options.out}."
        _ask(text, "Shrink the images, or make room.")
    if not uses_ray(options):  # how fast other machines are is unknown
        sources, results = [source for _, source, _ in coming], [result for *_, result in coming]
        how = {name: work.settings[name] for name in ("tile", "precision", "steadiness") if name in work.settings}
        log(forecast(flow, sources, results, samples=work.samples, guided=work.guide is not None, **how).sentence())
    return refused


def _is_small(options: Namespace, work: Work, coming: list[tuple[Job, Size, Size]]) -> bool:
    areas = [height * width / 1e6 for *_, (height, width) in coming]
    within = not options.max_megapixels or max(areas, default=0) <= options.max_megapixels
    return work.samples * sum(areas) < NOTEWORTHY and within


def _ask(question: str, advice: str) -> None:
    """Go on if a person says so; FlowError if not, or if there is nobody."""
    if not sys.stdin.isatty():
        raise FlowError(f"{question} {advice}")
    sys.stderr.write(f"{question} Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise FlowError("Stopped: nothing was made.")
