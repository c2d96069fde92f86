"""Train: a folder of images and a recipe become a flow of one's own, saved under models/flows."""

import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from .. import flowcore
from ..flowcore import FlowError
from ..flowcore.checkpoints.file import read_header
from ..flowcore.images.files import IMAGE_SUFFIXES, read
from ..flowcore.training.image_sources import find_images, folder_problem, folder_stamp
from ..flowcore.training.recipe import RECIPES, Recipe, fingerprint, read_recipe
from ..flowcore.training.run_folder import NamedRun, Record, Result
from . import widgets
from .host.compat import io, log
from .host.memory import Interrupted, freed_device, stop_if_cancelled, wrap
from .host.paths import model_path, model_target, output_folder, output_record, recipe_files, user_folder
from .host.ui import Progress, finite
from .loaders import locate_model, model_choices
from .node import FlowNode, file_fingerprint
from .sockets import FLOW_MODEL, HostModel, shown

RUNS = "flowcore-runs"  # below the output folder
NOTHING = "nothing"
SUFFIX = ".safetensors"
MAX_MINUTES = 100_000.0  # ten weeks
LINES = 3  # shown on the node while it trains
REFUSED_BY_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def _recipes() -> list[str]:
    return [*sorted(path.stem for path in RECIPES.glob("*.toml")), *recipe_files()]


class FlowcoreTrain(FlowNode):
    """A folder of images, a recipe and some minutes, as a FLOW_MODEL and a file of models/flows."""

    ALIASES = "train, training, fine-tune, finetune, flow, train srflow, own model, learn"
    OUTPUTS = (FLOW_MODEL.Output("model"), io.Image.Output("sheet"), io.Image.Output("curve"), io.String.Output("info"))
    IS_OUTPUT_NODE = True

    @classmethod
    def validate_inputs(cls, folder: str | None = None, recipe: str | None = None, name: str | None = None) -> Any:
        try:
            _check_widgets(folder, recipe, name)
        except FlowError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None, recipe: str | None, name: str | None, start: str | None = None, **_: Any
    ) -> list[Any]:
        """Return what changes with the folder, the recipe and the start model, and when there is more to train."""
        stamp = folder_stamp(user_folder(folder)) if folder else ""
        files = (locate_model(start or ""), recipe_files().get(recipe or ""))
        return [stamp, *map(file_fingerprint, files), _named_run(name).state() if name and _is_file_name(name) else ""]

    def run(
        self,
        folder: Annotated[str, partial(io.String.Input, default="photos")],
        recipe: Annotated[str, widgets.file_choice(_recipes, default="srflow-x4")],
        name: Annotated[str, partial(io.String.Input, default="my-flow")],
        minutes: Annotated[float, widgets.number(60.0, 0.0, MAX_MINUTES, 0.5)],
        start: Annotated[str, widgets.file_choice(lambda: [NOTHING, *model_choices()], default=NOTHING, optional=True)],
        restart: Annotated[bool, partial(widgets.switch, advanced=True)],
    ) -> Any:
        from ..flowcore.training.loop import train  # takes a while, and most sessions never train
        from ..flowcore.training.run import check_limits

        _check_widgets(folder, recipe, name)
        check_limits(minutes or None)
        notes, run, parsed = self.notes, _named_run(name), _read_recipe(recipe)
        start_file = None if start == NOTHING else locate_model(start)
        if start_file is None and start != NOTHING:
            raise FlowError(f"start: there is no flow model '{start}' any more. Choose another one.")
        path = user_folder(folder)
        trained_on = str(path)
        if not parsed.takes_digits:
            images = len(find_images(path))
            trained_on = f"{images} image{'s' * (images > 1)}: {path}"
            log.info("Flow Train: trains on %s", trained_on)
            notes.show(f"trains on {trained_on}")

        settings = Record(recipe=recipe, fingerprint=fingerprint(parsed), minutes=minutes, start=start)
        record = run.open(settings, restart=restart)
        lines: list[str] = []

        def show_line(line: str) -> None:
            plain = re.sub(r"^[\d:]+ | \[[# ]*\]", "", line)
            log.info("Flow Train: %s", plain)
            lines.append(plain)
            notes.show("\n".join(lines[-LINES:]))

        with freed_device() as device:
            try:
                result = train(
                    _with_own_license(parsed, recipe, start_file),
                    path,
                    run.folder,
                    device=device,
                    start=start_file,
                    minutes=minutes or None,
                    log=show_line,
                    progress=Progress(),
                    cancelled=stop_if_cancelled,
                )
            except Interrupted:
                if record.ours or not run.target.exists():
                    run.publish(record)
                raise
        record.finished = result.is_finished
        run.publish(record)
        model, file, is_start = run.target.name, run.target, result.files.is_start()
        verdict = f"{result.verdict[:1].upper()}{result.verdict[1:]}{result.files.say_where()}."
        if is_start and start_file is not None:
            model, file = start, start_file
            notes(f"{verdict} So {start} goes on as it is, and nothing new is saved in models/flows.")
        elif result.verdict and result.better_than_start is None:
            notes(verdict)
        if not result.new_steps and record.finished:
            go_on = "" if is_start else f", or another name with {model} as start to go on from it"
            notes(
                f"The run {run.folder.name} had come to its end before: nothing was trained. Set restart to begin "
                f"anew{go_on}."
            )
        if not record.finished:
            notes(f"The time was up at step {result.steps} of {result.total}. Run again to go on.")
        spent = round(result.minutes, 1)
        flow = flowcore.load(file)
        sheet, rows = run.last_sheet(), run.history()
        measured = {} if is_start else flow.provenance.get("metrics", {})
        facts = [
            _summary(result, model, trained_on, is_start=is_start) + "\n",
            f"model: {model}, {flow.architecture}{', as it was: nothing better was trained' * is_start}",
            f"trained on: {trained_on}",
            f"trained: {result.steps} of {result.total} steps, {spent} minutes",
            *(f"loss at the end: {float(row['loss']):.4f} {row['unit']} ({row['stage']})" for row in rows[-1:]),
            *(f"{metric.replace('_', ' ')} of images not trained on: {value}" for metric, value in measured.items()),
            *([verdict] if result.better_than_start is not None and not is_start else []),
            *([] if is_start else [f"saved as: {file}"]),
        ]
        return self.output(
            HostModel(wrap(flow), model),
            _picture(sheet),
            _picture(run.folder / "curve.png"),
            "\n".join([*notes.lines, *facts]),
            text=["\n".join(facts)],
            images=[output_record(sheet)] if sheet else [],
            steps=[int(row["step"]) for row in rows],
            stage=[row["stage"] for row in rows],
            loss=finite(float(row["loss"]) for row in rows),
            minutes=[spent],
            path=[str(file)],
            run=[str(run.folder)],
        )


def _summary(result: Result, model: str, trained_on: str, *, is_start: bool) -> str:
    """Say in a sentence what came of a training; the canvas folds the numbers away."""
    if is_start:
        return f"{model} goes on as it was."
    better = ", and is better than its start" if result.better_than_start else ""
    return f"{model} has learned from {trained_on}{better}. It is in models/flows."


def _read_recipe(recipe: str) -> Recipe:
    return read_recipe(recipe_files().get(recipe, recipe))


def _with_own_license(parsed: Recipe, recipe: str, start: Path | None) -> Recipe:
    """Replace the license that a shipped recipe states, which is that of the shipped weights."""
    if recipe in recipe_files():
        return parsed
    licence = "not stated; trained on images of the person who trained it"
    if start is not None:
        theirs = read_header(start).provenance.get("licence", "not stated")
        licence += f", beginning with {start.stem} ({theirs})"
    return dataclasses.replace(parsed, licence=licence)


def _stem(name: str) -> str:
    return name.strip().removesuffix(SUFFIX)


def _is_file_name(name: str) -> bool:
    stem = _stem(name)
    plain = re.fullmatch(r"\w[\w .+-]{0,79}", stem) and stem[-1] not in ". "
    return bool(plain) and not REFUSED_BY_WINDOWS.fullmatch(stem)


def _named_run(name: str) -> NamedRun:
    stem = _stem(name)
    file = stem + SUFFIX
    return NamedRun(output_folder(RUNS, stem), model_target(file), lambda: model_path(file))


def _picture(path: Path | None) -> Tensor:
    """Read a picture, (1, 3, H, W) in [0, 1]; a small black one if there is none."""
    if path is None or not path.exists():
        return torch.zeros(1, 3, 64, 64)
    return read(path.read_bytes(), path.name).pixels[:, :3]


def _check_widgets(folder: str | None, recipe: str | None, name: str | None) -> None:
    """Raise a FlowError for a wrong widget; inputs that come along a wire are None."""
    if name is not None and not _is_file_name(name):
        raise FlowError(
            f"name: {shown(name)} cannot be the name of a file in models/flows. Use letters, digits, spaces and "
            ". + - _ only, such as my-upscaler; no folders."
        )
    digits = None
    if recipe is not None:
        if recipe not in _recipes():
            raise FlowError(f"recipe: there is no {shown(recipe)}; choose one of: {', '.join(_recipes())}.")
        try:
            digits = _read_recipe(recipe).takes_digits
        except FlowError as error:
            raise FlowError(f"recipe {recipe}: {error}") from error
    if folder is None:
        return
    if not folder.strip():
        raise FlowError(
            "folder: say where your images are: an absolute path, or a folder inside ComfyUI's input folder."
        )
    try:
        path = user_folder(folder)
        exists = path.exists()
    except (OSError, ValueError):  # too long, or not a name at all
        raise FlowError(
            f"folder: {shown(folder)} cannot be the name of a folder. Give a shorter, plainer path."
        ) from None
    if (not path.is_dir() and path.suffix.lower() not in IMAGE_SUFFIXES) or not exists:
        what = "is neither a folder nor a picture" if exists else "does not exist"
        plain = str(path) if str(path).isprintable() and len(str(path)) < 300 else shown(str(path))
        raise FlowError(f"folder: {plain} {what}. Give an absolute path, or a folder inside ComfyUI's input folder.")
    if name is not None and _named_run(name).folder.resolve().is_relative_to(path.resolve()):
        raise FlowError(
            f"folder: {path} holds ComfyUI's output folder, into which this node writes pictures while it trains. "
            "Choose a folder that holds nothing but your images."
        )
    if problem := folder_problem(path, digits=digits):
        raise FlowError(f"folder: {problem}")
