"""Commands that measure: score rates images by a model, eval rates models on images."""

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from .. import load
from ..batch import folders
from ..batch.folders import Job, Outputs
from ..batch.job import JobSpec, Worker
from ..batch.tables import Scores
from ..errors import FlowError, printable
from ..flows.model import FlowModel
from ..images import files
from ..models import catalog
from ..models.writing import write_atomic
from ..tasks.score import ranking_key
from ..training.evaluation.colorization import PORTRAIT_SAMPLES, colorizer_table, evaluate_colorizer
from ..training.evaluation.image_set import density_table, evaluate_density, markdown, size_of
from ..training.evaluation.upscaling import (
    USUAL_MEASURES,
    check_measures,
    evaluate_upscaler,
    missing_measures,
    upscaler_table,
)
from ..training.recipe import held_out_names
from .allocation import keep_freed_memory
from .batches import ModelPlan, execute, import_cluster, load_model, uses_ray
from .options import STDOUT, parse_assignments
from .output import ProgressBar, SomeFailed, check_overwrite, log, to_json


def prepare_score(options: Namespace) -> Callable[[], None]:
    _check_json(options.json)
    flow = load_model(options)
    settings: dict[str, Any] = {"dequantization": options.dequantization}
    if options.fit != "resize":
        settings["fit"] = options.fit
    if flow.estimated:
        settings |= {"probes": options.probes, "terms": options.terms}
    spec = JobSpec(command="score", model=options.model, settings=settings, seed=options.seed, samples=options.samples)
    table = None
    if options.out is not None:
        table = Scores(options.out if options.out.suffix.lower() == ".csv" else options.out / "scores.csv")
    jobs = [Job(picture.path) for picture in folders.list_inputs(options.images, notify=log)]
    if uses_ray(options):
        import_cluster()
    return partial(_score, options, jobs, ModelPlan(options=options, worker=Worker(spec, flow)), table)


def _score(options: Namespace, jobs: list[Job], plan: ModelPlan, table: Scores | None) -> None:
    worker, rows = plan.worker, dict[str, dict[str, Any]]()  # rows by name of the image
    bar = ProgressBar({job.source: files.upright_size(job.source) for job in jobs})

    def is_done(job: Job) -> bool:
        row = None if table is None or options.again else table.rows.get(_name(job))
        if row is None or not job.source.is_file():
            return False
        return row["id"] == worker.ids(files.read_bytes(job.source))[0]

    for job, result in execute(options, [[job] for job in jobs], is_done, lambda _: plan, bar):
        name = _name(job)
        if isinstance(result, Outputs):
            rows[name] = {"image": name, **json.loads(result.files[0]), "model_sha256": worker.model_sha256}
            if table is not None:
                table.append(rows[name])
        elif result is None and table is not None:
            rows[name] = table.rows[name]
        bar.finish(job, result)
    compared = ("bits_per_dim", "complexity_corrected", "enlarged")
    ranked = sorted(rows.values(), key=lambda row: ranking_key(*(row[name] for name in compared)))
    numbers = [{name: value for name, value in row.items() if name != "id"} for row in ranked]
    _write(options.json, _score_table(ranked), numbers)
    if table is not None:
        errors = {_name(job): {"image": _name(job), "error": str(error)} for job, error in bar.failed}
        table.finish([{**errors, **rows}[_name(job)] for job in jobs])
    bar.close()


def _name(job: Job) -> str:
    return printable(str(job.source))


def _score_table(rows: list[dict[str, Any]]) -> str:
    lines: list[list[str]] = []
    for row in rows:
        numbers = (row["spread"], row["complexity_corrected"])
        spread, corrected = ("" if number is None else f"{number:.4f}" for number in numbers)
        bits = f"{row['bits_per_dim']:.4f}"
        lines.append([row["image"], bits, spread, corrected, str(row["n_bits"]), size_of(row), row["scored"]])
    titles = ["image", "bits per dimension", "spread", "minus those of a lossless file", "bits", "size", "scored"]
    return markdown(titles, lines)


UPSCALERS, COLORIZERS, DENSITIES = "upscalers", "colorizers", "density models"
ONLY_FOR = {  # options of eval that not all kinds of models have
    "measures": (UPSCALERS,),
    "calm_edges": (UPSCALERS,),
    "portraits": (COLORIZERS,),
    "together": (COLORIZERS,),
    "detail": (COLORIZERS,),
    "coherence": (COLORIZERS,),
    "working_size": (COLORIZERS,),
    "limit": (COLORIZERS, DENSITIES),
    "temperature": (UPSCALERS, COLORIZERS),  # densities are at temperature 1
}


def prepare_eval(options: Namespace) -> Callable[[], None]:
    _check_json(options.json)
    keep_freed_memory()
    models, options.folders = _models_and_folders(options.folders)
    models = [*(options.model or []), *models] or ["srflow-x4"]
    flows = {model: load(model, options.device, **parse_assignments(options.set)) for model in models}
    tasks = [flow.capabilities.tasks for flow in flows.values()]
    kinds = {UPSCALERS if "upscale" in able else COLORIZERS if "colorize" in able else DENSITIES for able in tasks}
    if len(kinds) > 1:
        described = ", ".join(f"{model} ({flow.architecture})" for model, flow in flows.items())
        raise FlowError(f"A table compares models of one kind; got {described}. Measure them one after the other.")
    (kind,) = kinds
    for name, suited in ONLY_FOR.items():
        value = getattr(options, name)
        if value is not None and value is not False and kind not in suited:
            flag = name.replace("_", "-")
            raise FlowError(f"--{flag} is for {' and '.join(suited)}; these models are {kind}. Leave it out.")
    return partial(_evaluate, options, flows, kind, _measures(options))


def _measures(options: Namespace) -> list[str]:
    if options.measures is None:
        return list(USUAL_MEASURES)
    measures = [name.strip().lower().replace("-", "_") for name in options.measures.split(",")]
    check_measures(measures)
    return measures


def _evaluate(options: Namespace, flows: dict[str, FlowModel], kind: str, measures: list[str]) -> None:
    skipped: dict[str, None] = {}  # lines, each once, whatever the number of models

    def skip(line: str) -> None:
        skipped[line] = None
        log(line)

    common: dict[str, Any] = {"only": held_out_names("standard") if options.held_out else None}
    if options.limit is not None:
        common["limit"] = options.limit
    if kind == UPSCALERS:
        common |= {"calm_edges": options.calm_edges, "samples": options.samples or 8, "measures": measures}
        common |= {"temperatures": options.temperature or [0.0, None], "log": log, "skip": skip}
        results = _by_folder(options.folders, flows, evaluate_upscaler, **common)
        table = upscaler_table(results, measures)
    elif kind == COLORIZERS:
        results = _evaluate_colorizers(options, flows, log=log, skip=skip, **common)
        table = colorizer_table(results)
    else:
        common |= {"dequantization": options.dequantization, "samples": options.samples or 1, "log": skip}
        results = _by_folder(options.folders, flows, evaluate_density, **common)
        table = density_table(results)
    _write(options.json, table, results)
    if kind == UPSCALERS and (missing := missing_measures(measures)) is not None:
        log(missing)
    if skipped:
        raise SomeFailed(f"{len(skipped)} of the images could not be measured; the numbers are for the others.")


def _models_and_folders(words: list[Path]) -> tuple[list[str], list[Path]]:
    """Tell models (files, and shipped ones by name) from folders of images."""
    folders = [word for word in words if word.is_dir() and str(word) not in catalog.names()]
    models = [str(word) for word in words if word not in folders]
    for model in models:
        if model not in catalog.names() and not Path(model).is_file():
            raise FlowError(
                f"{model} is neither a folder of images, nor a model file, nor a shipped model "
                f"({', '.join(catalog.names())}). Check the name."
            )
    if not folders:
        raise FlowError("There is no folder of images to measure on. Add one: eval MODEL ... FOLDER.")
    return models, folders


def _names(folders: list[Path]) -> dict[str, Path]:
    """Name folders of images for a table: by their last part, or as they were given if several have the same."""
    times = Counter(folder.name for folder in dict.fromkeys(folders))
    return {folder.name if times[folder.name] == 1 else str(folder): folder for folder in folders}


def _by_folder(folders: list[Path], flows: dict[str, FlowModel], evaluate: Callable[..., Any], **settings: Any) -> Any:
    """Evaluate every model on every folder; results by name of the folder, and of the model if there are several."""
    return {
        name if len(flows) == 1 else f"{name}, {model}": evaluate(flow, folder, **settings)
        for name, folder in _names(folders).items()
        for model, flow in flows.items()
    }


def _evaluate_colorizers(options: Namespace, flows: dict[str, FlowModel], **common: Any) -> dict[str, dict[str, Any]]:
    """Evaluate every colorizer at every temperature: results by set of images, and by model and temperature."""
    sets: dict[str, list[Path]] = {name: [folder] for name, folder in _names(options.folders).items()}
    if options.together:
        sets = {" + ".join(sets): options.folders}
    common |= {name: getattr(options, name) for name in ("detail", "coherence", "working_size", "portraits")}
    common["samples"] = options.samples or (PORTRAIT_SAMPLES if options.portraits else 8)
    results: dict[str, dict[str, Any]] = {name: {} for name in sets}
    for name, paths in sets.items():
        for model, flow in flows.items():
            for tau in options.temperature or [None]:
                label = model if tau is None else f"{model}, tau {tau:g}"
                results[name][label] = evaluate_colorizer(flow, paths, temperature=tau, **common)
    return results


def _check_json(path: Path | None) -> None:
    """Raise FlowError, before the work, if numbers cannot be written to a file, or if it holds something else."""
    if path not in (None, STDOUT):
        check_overwrite(path, _holds_numbers, "file of numbers", again=True)


def _holds_numbers(path: Path) -> bool:
    """Tell whether a file is JSON as score or eval write it."""

    def is_table(content: Any) -> bool:
        if isinstance(content, list):  # a table of scores
            return all(isinstance(row, dict) and "bits_per_dim" in row for row in cast("list[Any]", content))
        if not isinstance(content, dict):
            return False
        values = cast("dict[str, Any]", content).values()  # values of evaluations, by set, method and measure
        return all(value is None or type(value) in (int, float) or is_table(value) for value in values)

    try:
        return is_table(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return False


def _write(path: Path | None, table: str, numbers: Any) -> None:
    """Write a table to stdout, and its numbers to the file of ``--json``, or instead of it."""
    content = to_json(numbers, indent=2) + "\n"
    sys.stdout.write(content if path == STDOUT else f"{table}\n")
    if path not in (None, STDOUT):
        write_atomic(path, content.encode())
