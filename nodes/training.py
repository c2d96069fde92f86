"""Training: a folder of images and a recipe become a flow of your own in models/flows."""

import dataclasses
import os
import re
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

import flowcore
from flowcore import FlowError, FlowModel
from flowcore.errors import Argument, on_lines, say
from flowcore.images.files import read, read_bytes
from flowcore.images.folders import folder_stamp
from flowcore.images.opening import IMAGE_SUFFIXES
from flowcore.models.model_file import read_header

from . import widgets
from .host.compat import io, log
from .host.memory import Interrupted, freed_device, stop_if_cancelled, wrap
from .host.paths import (
    allowed_folder,
    check_allowed,
    model_path,
    model_target,
    output_folder,
    output_record,
    recipe_files,
)
from .host.ui import Progress, finite
from .loaders import locate_model, model_choices
from .node import FlowNode, file_fingerprint
from .sockets import FLOW_MODEL, HostModel, shown

if TYPE_CHECKING:  # imported when they are used: most sessions never train
    from flowcore.training.recipe import Recipe
    from flowcore.training.run_folder import NamedRun, Result

RECIPES = Path(flowcore.__file__).parent / "training" / "recipes"
RUNS = "flowcore-runs"  # folder within the output folder
NOTHING = "nothing"  # the choice not to start from a model
SUFFIX = ".safetensors"
MAX_MINUTES = 100_000.0  # ten weeks
LINES = 3  # lines of the log, shown on the node while it trains
WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def _recipes() -> list[str]:
    return [*sorted(path.stem for path in RECIPES.glob("*.toml")), *recipe_files()]


class FlowcoreTrain(FlowNode):
    """Train a model on a folder of images, and save it in models/flows."""

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
        stamp = folder_stamp(allowed_folder(folder)) if folder else ""
        files = (locate_model(start or ""), recipe_files().get(recipe or ""))
        return [stamp, *map(file_fingerprint, files), _named_run(name).state() if name and _is_file_name(name) else ""]

    def run(
        self,
        folder: Annotated[str, widgets.text("photos")],
        recipe: Annotated[str, widgets.file_choice(_recipes, default="srflow-x4")],
        name: Annotated[str, widgets.text("my-flow")],
        minutes: Annotated[float, widgets.number(60.0, 0.0, MAX_MINUTES, 0.5)],
        start: Annotated[str, widgets.file_choice(lambda: [NOTHING, *model_choices()], default=NOTHING, optional=True)],
        restart: Annotated[bool, widgets.switch(advanced=True)],
    ) -> Any:
        from flowcore.training.image_sources import find_images
        from flowcore.training.loop import train
        from flowcore.training.recipe import fingerprint
        from flowcore.training.run import check_limits
        from flowcore.training.run_folder import Record

        _check_widgets(folder, recipe, name)
        check_limits(minutes or None)
        start_file = None if start == NOTHING else locate_model(start)
        if start_file is None and start != NOTHING:
            raise FlowError(
                "{input}: there is no flow model '{start}' any more. Choose another one.",
                input=Argument("start"),
                start=start,
            )
        run, parsed, path = _named_run(name), _read_recipe(recipe), allowed_folder(folder)
        trained_on = str(path)
        if not parsed.takes_digits:
            images = find_images(path, stop_if_cancelled)
            _check_links(image.path for image in images)
            one, several = say("1 image: {folder}"), say("{count} images: {folder}")
            trained_on = say(several if len(images) > 1 else one, count=len(images), folder=path)
            log.info("Flow Train: trains on %s", trained_on)
            self.notes.show(say("trains on {images}", images=trained_on))
        settings = Record(recipe=recipe, fingerprint=fingerprint(parsed), minutes=minutes, start=start)
        record = run.open(settings, restart=restart)
        with freed_device() as device:
            try:
                result = train(
                    _with_own_license(parsed, recipe, start_file),
                    path,
                    run.folder,
                    device=device,
                    start=start_file,
                    minutes=minutes or None,
                    log=self._show_log(),
                    progress=Progress(),
                    cancelled=stop_if_cancelled,
                )
            except Interrupted:
                if record.ours or not run.target.exists():
                    run.publish(record)
                raise
        record.finished = result.is_finished
        run.publish(record)
        # If nothing better was trained, the node outputs the start, and this is its name; else "".
        kept_start = start if start_file is not None and result.files.is_start() else ""
        file = start_file if start_file is not None and kept_start else run.target
        self._note_outcome(run, result, kept_start)
        flow, sheet, rows = flowcore.load(file), run.last_sheet(), run.history()
        lines = _describe(result, flow, rows, file, trained_on, kept_start)
        return self.output(
            HostModel(wrap(flow), kept_start or run.target.name),
            _picture(sheet),
            _picture(run.folder / "curve.png"),
            "\n".join([*self.notes.lines, *lines]),
            text=[on_lines(*lines)],
            images=[output_record(sheet)] if sheet else [],
            steps=[int(row["step"]) for row in rows],
            stage=[row["stage"] for row in rows],
            loss=finite(float(row["loss"]) for row in rows),
            minutes=[round(result.minutes, 1)],
            path=[str(file)],
            run=[str(run.folder)],
        )

    def _show_log(self) -> Callable[[str], None]:
        """Return a function that shows the latest lines of the training's log on the node."""
        lines: deque[str] = deque(maxlen=LINES)

        def show(line: str) -> None:
            plain = re.sub(r"^[\d:]+ | \[[# ]*\]", "", line)  # removes time and progress bar
            log.info("Flow Train: %s", plain)
            lines.append(plain)
            self.notes.show("\n".join(lines))

        return show

    def _note_outcome(self, run: "NamedRun", result: "Result", kept_start: str) -> None:
        if kept_start:
            kept = say("{verdict} So the node outputs {start}, and saves nothing in models/flows.")
            self.notes(kept, verdict=result.verdict, start=kept_start)
        elif result.verdict and result.better_than_start is None:
            self.notes(result.verdict)
        if not result.is_finished:
            stopped = say("Time was up at step {step} of {total}. Run again to continue.")
            self.notes(stopped, step=result.steps, total=result.total)
        elif not result.new_steps:
            over = say("The run {run} had finished before, so nothing was trained. Set {restart} to start over{other}.")
            other = say(", or use another name with {model} as start to train it further", model=run.target.name)
            self.notes(over, restart=Argument("restart"), run=run.folder.name, other="" if kept_start else other)


def _describe(
    result: "Result", flow: FlowModel, rows: list[dict[str, str]], file: Path, trained_on: str, kept_start: str
) -> list[str]:
    """Describe a training: a summary, and below an empty line, where the node folds them, the numbers."""
    model, metrics = kept_start or file.name, {} if kept_start else flow.provenance.get("metrics", {})
    summary = say("{model} has learned from {images}. It is in models/flows.")
    if result.better_than_start:
        summary = say("{model} has learned from {images}, and is better than its start. It is in models/flows.")
    if kept_start:
        summary = say("{model} was kept unchanged.")
    return [
        say(summary, model=model, images=trained_on),
        "",
        f"model: {model}, {flow.architecture}{', unchanged: nothing better was trained' if kept_start else ''}",
        f"trained on: {trained_on}",
        f"trained: {result.steps} of {result.total} steps, {round(result.minutes, 1)} minutes",
        *(f"loss at the end: {float(row['loss']):.4f} {row['unit']} ({row['stage']})" for row in rows[-1:]),
        *(f"{metric.replace('_', ' ')} of images not trained on: {value}" for metric, value in metrics.items()),
        *([result.verdict] if result.better_than_start is not None and not kept_start else []),
        *([] if kept_start else [f"saved as: {file}"]),
    ]


def _read_recipe(recipe: str) -> "Recipe":
    from flowcore.training.recipe import read_recipe

    return read_recipe(recipe_files().get(recipe, recipe))


def _with_own_license(parsed: "Recipe", recipe: str, start: Path | None) -> "Recipe":
    """Replace the license in a shipped recipe, which is that of the shipped weights."""
    if recipe in recipe_files():
        return parsed
    licence = "not stated; trained on images of the person who trained it"
    if start is not None:
        of_start = read_header(start).provenance.get("licence", "not stated")
        licence += f", beginning with {start.stem} ({of_start})"
    return dataclasses.replace(parsed, licence=licence)


def _stem(name: str) -> str:
    return name.strip().removesuffix(SUFFIX)


def _is_file_name(name: str) -> bool:
    stem = _stem(name)
    plain = re.fullmatch(r"\w[\w .+-]{0,79}", stem) and stem[-1] not in ". "
    return bool(plain) and not WINDOWS_DEVICES.fullmatch(stem)


def _named_run(name: str) -> "NamedRun":
    from flowcore.training.run_folder import NamedRun

    stem = _stem(name)
    file = stem + SUFFIX
    return NamedRun(output_folder(RUNS, stem), model_target(file), lambda: model_path(file))


def _picture(path: Path | None) -> Tensor:
    """Read a picture as (1, 3, H, W) in [0, 1]; a small black one if there is none."""
    if path is None or not path.exists():
        return torch.zeros(1, 3, 64, 64)
    return read(read_bytes(path), path.name).pixels[:, :3]


def _check_widgets(folder: str | None, recipe: str | None, name: str | None) -> None:
    """Raise a FlowError if a widget is wrong; inputs that come through a wire are None."""
    if name is not None and not _is_file_name(name):
        raise FlowError(
            "{input}: {name} cannot be the name of a file in models/flows. Use only letters, digits, spaces and . + - "
            "_, such as my-upscaler, and no folders.",
            input=Argument("name"),
            name=shown(name),
        )
    if recipe is not None:
        if recipe not in _recipes():
            raise FlowError(
                "{input}: there is no {recipe}; choose one of: {recipes}.",
                input=Argument("recipe"),
                recipe=shown(recipe),
                recipes=", ".join(_recipes()),
            )
        try:
            _read_recipe(recipe)
        except FlowError as error:
            raise FlowError("{recipe}: {error}", recipe=f"recipe {recipe}", error=error) from error
    if folder is None:
        return
    if not folder.strip():
        raise FlowError(
            "{folder}: give the folder of your images: an absolute path, or one inside ComfyUI's input folder.",
            folder=Argument("folder"),
        )
    path = allowed_folder(folder)
    # What is in the folder shows when the node runs: looking takes long, and the host waits for this.
    if not os.path.isdir(path) and not (path.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(path)):
        problem = say("is neither a folder nor a picture") if os.path.exists(path) else say("does not exist")
        raise FlowError(
            "{input}: {folder} {problem}. Give an absolute path, or a folder inside ComfyUI's input folder.",
            input=Argument("folder"),
            folder=shown(folder),
            problem=problem,
        )
    if name is not None and _named_run(name).folder.resolve().is_relative_to(path.resolve()):
        raise FlowError(
            "{input}: {folder} contains ComfyUI's output folder, where this node writes pictures while it trains. "
            "Choose a folder that contains only your images.",
            input=Argument("folder"),
            folder=path,
        )


def _check_links(files: Iterable[Path]) -> None:
    """Raise a FlowError if a link among files leads to where the server opens no pictures."""
    for file in files:
        stop_if_cancelled()
        check_allowed(file)
