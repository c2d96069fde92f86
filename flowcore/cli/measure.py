"""Commands that measure: score rates images by a model, eval rates models on images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.writing import write_atomic
from ..errors import FlowError
from .options import CALM_EDGES, add_batch, add_model, parse_fields
from .output import ProgressBar, SomeFailed, log

if TYPE_CHECKING:
    from ..batch.folders import Job, Made
    from ..flow import Flow


def add_score(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_score)
    add_batch(command, "a CSV file for the scores, or a folder for scores.csv (default: none)")
    add_model(command, "glow-photos")
    option = command.add_argument
    option(
        "--samples",
        type=int,
        default=1,
        help="draws for the importance-weighted bound (default: 1); more show its spread",
    )
    _dequantization(command)
    text = "models whose log-determinant is estimated: random probes per draw, 0 for the exact value of small images"
    option("--probes", type=int, default=4, help=f"{text} (default: 4)")
    option("--terms", type=int, default=20, help="the same: terms of every power series (default: 20)")
    option("--seed", type=int, default=0)
    text = "resize: to cover the model's own size, and crop the middle; crop: only crop (default: resize)"
    option("--fit", default="resize", choices=["resize", "crop"], help=text)
    option("--json", type=Path, help="also write the numbers to this file")


def add_eval(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_eval)
    text = "folders of images; models that stand among them are compared: eval A B FOLDER"
    command.add_argument("folders", nargs="+", type=Path, metavar="MODEL_OR_FOLDER", help=text)
    add_model(command, repeatable=True)
    option = command.add_argument
    text = "repeatable (default: what the model's file states, and for upscalers 0)"
    option("--temperature", type=float, action="append", help=text)
    option("--calm-edges", type=float, metavar="SHARE", help=f"upscalers: {CALM_EDGES}")
    text = "samples per image (default: 8, of portraits 20; NTIRE's diversity score uses 10); density models: draws"
    text += " for the bound (1)"
    option("--samples", type=int, help=text)
    option("--json", type=Path, help="also write the numbers to this file")
    option("--detail", type=float, help="colorizers: temperature of the fine detail")
    option("--coherence", type=float, metavar="SHARE", help="colorizers: how much of the draw alike places share")
    text = "colorizers: shorter side of the image that the model colors"
    option("--working-size", type=int, metavar="PIXELS", help=text)
    option("--limit", type=int, help="colorizers and density models: at most this many images of a folder")
    text = "upscalers: some of psnr, ssim, lr_psnr, diversity, gain, diversity_score, niqe, brisque, piqe, "
    option(
        "--measures", metavar="NAME,NAME", help=text + "lpips, false_specks, bits_per_dim (default: all but the last)"
    )
    _dequantization(command)
    text = "only images whose names are on flowcore's list of images that no shipped model was trained on"
    option("--held-out", action="store_true", help=text)
    text = "colorizers: all images are portraits with eyes at 0.45 of the height; also measure the hue of their skin"
    option("--portraits", action="store_true", help=text)
    option("--together", action="store_true", help="colorizers: measure all folders as one set")


def _dequantization(command: argparse.ArgumentParser) -> None:
    text = "density models: noise of the bins (default: uniform)"
    command.add_argument(
        "--dequantization", default="uniform", choices=["uniform", "gaussian", "variational"], help=text
    )


def _score(options: argparse.Namespace) -> None:
    from ..batch import folders
    from ..batch.job import Work
    from ..batch.tables import Scores
    from ..checkpoints.latents_file import model_sha256
    from ..evaluation.image_set import markdown
    from ..tasks.score import ranking_key
    from .batches import executor, finish, load_model

    flow = load_model(options)
    settings: dict[str, Any] = {"dequantization": options.dequantization}
    settings |= {} if options.fit == "resize" else {"fit": options.fit}
    settings |= {"probes": options.probes, "terms": options.terms} if flow.estimated else {}
    work = Work(command="score", model=options.model, settings=settings, seed=options.seed, samples=options.samples)
    table = None
    if options.out is not None:
        is_file = options.out.suffix.lower() == ".csv"
        table = Scores(options.out if is_file else options.out / "scores.csv")
    jobs = [folders.Job(found.path) for found in folders.find(options.images, notify=log)]
    model, bar, rows = model_sha256(flow), ProgressBar(jobs), dict[str, dict[str, Any]]()

    def is_done(job: Job) -> bool:
        row = None if table is None or options.again else table.rows.get(str(job.source))
        if row is None or not job.source.is_file() or row["id"] != work.ids(job.source.read_bytes(), model)[0]:
            return False
        rows[str(job.source)] = {**row, "model_sha256": model}
        return True

    def save(job: Job, made: Made) -> None:
        row = {"image": str(job.source), **json.loads(made.files[0]), "model_sha256": model}
        rows[row["image"]] = row
        if table is not None:
            table.append(row)

    if table is not None and table.path.exists():
        table.rewrite(list(table.rows.values()))  # drops a row that was cut off
    failed = folders.run(jobs, executor(options, work, flow, bar), is_done=is_done, save=save, on_result=bar.finish)
    ranked = sorted(
        rows.values(), key=lambda row: ranking_key(row["bits_per_dim"], row["complexity_corrected"], row["enlarged"])
    )
    lines: list[list[str]] = []
    for row in ranked:
        spread, corrected = (
            "" if row[name] is None else f"{row[name]:.4f}" for name in ("spread", "complexity_corrected")
        )
        scored = next((note for note in row["notes"] if note.startswith("Scored: ")), "").removeprefix("Scored: ")
        lines.append([row["image"], f"{row['bits_per_dim']:.4f}", spread, corrected, scored])
    titles = ["image", "bits per dimension", "spread", "minus those of a lossless file", "scored"]
    sys.stdout.write(markdown(titles, lines) + "\n")
    if options.json:
        _write_json(options.json, [{name: value for name, value in row.items() if name != "id"} for row in ranked])
    if table is not None:
        errors = {str(job.source): {"image": str(job.source), "error": str(error)} for job, error in failed}
        others = [row for name, row in table.rows.items() if name not in rows and name not in errors]
        table.rewrite([*others, *({**errors, **rows}[str(job.source)] for job in jobs)])
    finish(failed, bar, len(jobs))


def _eval(options: argparse.Namespace) -> None:
    from .. import load
    from ..device import keep_freed_memory

    keep_freed_memory()
    named, options.folders = _models_and_folders(options.folders)
    models = [*(options.model or []), *named] or ["srflow-x4"]
    flows = {model: load(model, options.device, **parse_fields(options.set)) for model in models}
    kinds = {_kind(flow) for flow in flows.values()}
    if len(kinds) > 1:
        described = ", ".join(f"{model} ({flow.architecture})" for model, flow in flows.items())
        raise FlowError(f"A table compares models of one kind; got {described}. Measure them one after the other.")
    (kind,) = kinds
    if options.measures is not None and kind != "upscale":
        raise FlowError("--measures chooses among the measures of upscalers; other models have one set. Leave it out.")
    if options.calm_edges is not None and kind != "upscale":
        raise FlowError("--calm-edges is for upscalers; these models are none. Leave it out.")
    for name in ("portraits", "together", "detail", "coherence", "working_size"):
        asked = getattr(options, name)
        if asked is not None and asked is not False and kind != "colorize":
            raise FlowError(f"--{name.replace('_', '-')} is for colorizers; this model is none. Leave it out.")
    if options.limit is not None and kind == "upscale":
        raise FlowError("--limit is for colorizers and density models; this model is an upscaler. Leave it out.")
    if options.temperature and kind == "density":
        raise FlowError("--temperature is for upscalers and colorizers; densities are at temperature 1. Leave it out.")
    skipped: dict[str, None] = {}  # lines, each once, whatever the number of models

    def skip(line: str) -> None:
        skipped[line] = None
        log(line)

    evaluate = {"upscale": _eval_upscalers, "colorize": _eval_colorizers, "density": _eval_densities}[kind]
    table, results = evaluate(options, flows, skip)
    sys.stdout.write(table + "\n")
    if kind == "upscale":
        from ..evaluation.upscaling import missing_measures

        missing = missing_measures(_measures(options))
        if missing is not None:
            log(missing)
    if options.json:
        _write_json(options.json, results)
    if skipped:
        raise SomeFailed(f"{len(skipped)} of the images could not be measured; the numbers are those of the others.")


def _models_and_folders(words: list[Path]) -> tuple[list[str], list[Path]]:
    """Tell models (files, and shipped ones by name) from folders of images."""
    from ..checkpoints import catalog

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


def _kind(flow: Flow) -> str:
    return next((task for task in ("upscale", "colorize") if task in flow.capabilities.tasks), "density")


def _by_set(folders: list[Path], flows: dict[str, Flow], evaluate: Callable[..., Any], **settings: Any) -> Any:
    """Evaluate every model on every folder: results by name of the folder, and of the model if there are several."""
    return {
        folder.name if len(flows) == 1 else f"{folder.name}, {model}": evaluate(flow, folder, **settings)
        for folder in folders
        for model, flow in flows.items()
    }


def _eval_upscalers(
    options: argparse.Namespace, flows: dict[str, Flow], skip: Callable[[str], None]
) -> tuple[str, dict[str, Any]]:
    from ..evaluation.upscaling import evaluate_upscaler, upscaler_table

    results = _by_set(
        options.folders,
        flows,
        evaluate_upscaler,
        temperatures=options.temperature or [0.0, None],
        calm_edges=options.calm_edges,
        samples=options.samples or 8,
        log=log,
        skip=skip,
        measures=_measures(options),
        only=_only(options),
    )
    return upscaler_table(results, _measures(options)), results


def _measures(options: argparse.Namespace) -> list[str]:
    from ..evaluation.upscaling import USUAL_MEASURES

    if options.measures is None:
        return list(USUAL_MEASURES)
    return [name.strip().lower().replace("-", "_") for name in options.measures.split(",")]


def _eval_colorizers(
    options: argparse.Namespace, flows: dict[str, Flow], skip: Callable[[str], None]
) -> tuple[str, dict[str, Any]]:
    from ..evaluation.colorization import PORTRAIT_SAMPLES, colorizer_table, evaluate_colorizer

    sets: dict[str, list[Path]] = {folder.name: [folder] for folder in options.folders}
    if options.together:
        sets = {" + ".join(sets): options.folders}
    results: dict[str, Any] = {name: {} for name in sets}
    for name, folders in sets.items():
        for model, flow in flows.items():
            for tau in options.temperature or [None]:
                results[name][model if tau is None else f"{model}, tau {tau:g}"] = evaluate_colorizer(
                    flow,
                    folders,
                    samples=options.samples or (PORTRAIT_SAMPLES if options.portraits else 8),
                    temperature=tau,
                    detail=options.detail,
                    coherence=options.coherence,
                    working_size=options.working_size,
                    log=log,
                    skip=skip,
                    only=_only(options),
                    portraits=options.portraits,
                    **_limit(options),
                )
    return colorizer_table(results), results


def _eval_densities(
    options: argparse.Namespace, flows: dict[str, Flow], skip: Callable[[str], None]
) -> tuple[str, dict[str, Any]]:
    from ..evaluation.image_set import density_table, evaluate_density

    settings: dict[str, Any] = {"dequantization": options.dequantization, "samples": options.samples or 1}
    settings |= {"only": _only(options), **_limit(options)}
    results = _by_set(options.folders, flows, evaluate_density, **settings, log=skip)
    return density_table(results), results


def _limit(options: argparse.Namespace) -> dict[str, int]:
    return {} if options.limit is None else {"limit": options.limit}


def _only(options: argparse.Namespace) -> frozenset[str] | None:
    from ..training.recipe import held_out_names

    return held_out_names("standard") if options.held_out else None


def _write_json(path: Path, content: Any) -> None:
    try:
        before: Any = json.loads(path.read_bytes() or b"[]")
        rows: list[Any] = before if isinstance(before, list) else [*before.values()]
        foreign = not all(isinstance(row, dict) for row in rows)
    except FileNotFoundError:
        foreign = False
    except (OSError, ValueError, AttributeError):
        foreign = True
    if foreign:
        raise FlowError(f"{path} exists, and holds something else than numbers of flowcore. Name another file.")
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
