"""Train: a folder of images and a recipe become a flow of one's own, saved under models/flows."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import flowcore
from ..flowcore import FlowError
from ..flowcore.checkpoints.file import read_header
from ..flowcore.checkpoints.writing import replacing, write_whole
from ..flowcore.images.files import IMAGE_SUFFIXES
from ..flowcore.training.recipe import FOLDER, Recipe, fingerprint, read_recipe
from .host import (
    Interrupted,
    Notes,
    Progress,
    any_folder,
    as_output,
    io,
    log,
    make,
    model_path,
    model_target,
    output_folder,
    recipe_files,
    say,
    stop_if_cancelled,
    whole_device,
    wrap,
)
from .inputs import shown
from .load import choices, locate
from .sockets import FlowModel, finite_or_none, name_model, to_image

RUNS = "flowcore-runs"  # below the output folder
NOTHING = "nothing"
SUFFIX = ".safetensors"
LONGEST = 100_000.0  # minutes: ten weeks
KEPT = ("cache", "earlier")  # of a run's folder, when a run is set aside
MOST_LOOKED_AT = 100_000  # files and folders, before the first image
LINES = 3  # shown on the node while it trains
REFUSED_BY_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class FlowcoreTrain(io.ComfyNode):
    """A folder of images, a recipe and some minutes, as a FLOW_MODEL and a file of models/flows."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreTrain",
            display_name="Flow Train",
            category="flowcore/training",
            description="Trains a flow on a folder of images and saves it under models/flows. Cancel keeps what was "
            "trained so far: run again, and it goes on where it stopped.",
            search_aliases=["train", "training", "fine-tune", "finetune", "flow", "train srflow", "own model", "learn"],
            inputs=[
                make(
                    io.String.Input,
                    "folder",
                    default="photos",
                    tooltip="Where the images are, at any depth: an absolute path, or a folder inside ComfyUI's input "
                    "folder. Images of any size; a recipe says how large they must be at least.",
                ),
                make(
                    io.Combo.Input,
                    "recipe",
                    options=_recipes(),
                    default="srflow-x4",
                    tooltip="What to train, and how: the recipes that come with flowcore first, then the .toml files "
                    "in models/flows.",
                ),
                make(
                    io.String.Input,
                    "name",
                    default="my-flow",
                    tooltip="Name of the model: the file `name`.safetensors in models/flows. A run of the same name "
                    "that was cancelled goes on where it stopped.",
                ),
                make(
                    io.Float.Input,
                    "minutes",
                    default=60.0,
                    min=0.0,
                    max=LONGEST,
                    step=0.5,
                    tooltip="How long the whole training shall take. The recipe is shortened so that it comes to its "
                    "proper end in about that time; it is never prolonged. 0: the recipe's own length.",
                ),
                make(
                    io.Combo.Input,
                    "start",
                    options=[NOTHING, *choices()],
                    default=NOTHING,
                    optional=True,
                    tooltip="nothing: learn from scratch. A model: begin with its weights, which needs fewer images "
                    "and less time. It must be built as the recipe says.",
                ),
                make(
                    io.Boolean.Input,
                    "restart",
                    default=False,
                    optional=True,
                    tooltip="Begin anew instead of going on with an earlier run of this name. That one is moved into "
                    "the folder `earlier`, once; its model stays in models/flows until the new one is finished.",
                ),
            ],
            outputs=[
                make(FlowModel.Output, "model", display_name="model", tooltip="The flow, for the nodes of flowcore."),
                make(
                    io.Image.Output,
                    "sheet",
                    display_name="sheet",
                    tooltip="What the model made of images that it was not trained on, the originals on the right. "
                    "Small and black where no image was left for that.",
                ),
                make(
                    io.Image.Output,
                    "curve",
                    display_name="curve",
                    tooltip="The loss over the steps, a panel for every stage of the recipe.",
                ),
                make(
                    io.String.Output,
                    "info",
                    display_name="info",
                    tooltip="What was trained, for how long, how well it does, and where the file is.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None, recipe: str | None = None, name: str | None = None) -> Any:
        """Say now, not hours later, what cannot be; inputs that come along a wire are looked at when they are here."""
        return _problem(folder, recipe, name) or True

    @classmethod
    def fingerprint_inputs(
        cls,
        folder: str | None = None,
        recipe: str | None = None,
        name: str | None = None,
        minutes: float | None = None,
        start: str | None = None,
        restart: bool | None = None,
    ) -> list[str]:
        """Train again when images, recipe or the model to start from have changed, and when there is more to do."""
        digest = hashlib.sha256()
        chosen = locate(start) if start not in (None, NOTHING) else None
        written = recipe_files().get(recipe or "")
        images = _images(any_folder(folder), recipe) if folder else []
        for file in [*images, *filter(None, (chosen, written))]:
            stat = file.stat()
            digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        state = ""
        if name and _bad_name(name) is None:
            run, record = _run(name), _read_record(_run(name))
            if record is not None and (run / "checkpoint.pt").exists():
                gone = record.finished and model_path(_stem(name) + SUFFIX) is None
                state = "gone" if gone else "" if record.finished else f"{(run / 'checkpoint.pt').stat().st_mtime_ns}"
        return [digest.hexdigest(), state]

    @classmethod
    def execute(
        cls,
        folder: str,
        recipe: str,
        name: str,
        minutes: float,
        start: str = NOTHING,
        restart: bool = False,
    ) -> Any:
        """Call the trainer, and put what it has made where Load Flow Model finds it."""
        from ..flowcore.training.loop import train  # takes a while, and most sessions never train

        problem = _problem(folder, recipe, name)
        if problem is not None:
            raise FlowError(problem)
        notes = Notes("Flow Train", cls.hidden.unique_id)
        plan, file, run = _read_recipe(recipe), _stem(name) + SUFFIX, _run(name)
        wanted = _Record(recipe=recipe, fingerprint=fingerprint(plan), minutes=minutes, start=start)
        begun = None if start == NOTHING else locate(start)
        if begun is None and start != NOTHING:
            raise FlowError(f"start: there is no flow model '{start}' any more. Choose another one.")
        record = _open_run(run, wanted, file, restart=restart)
        lines: list[str] = []

        def tell(line: str) -> None:
            plain = re.sub(r"^[\d:]+ | \[[# ]*\]", "", line)
            log.info("Flow Train: %s", plain)
            lines.append(plain)
            say("\n".join(lines[-LINES:]), cls.hidden.unique_id)

        with whole_device() as device:
            try:
                train(
                    _with_own_licence(plan, recipe, begun),
                    any_folder(folder),
                    run,
                    device=device,
                    start=begun,
                    minutes=minutes or None,
                    log=tell,
                    progress=Progress(),
                    cancelled=stop_if_cancelled,
                )
            except Interrupted:
                if record.ours or not model_target(file).exists():
                    _publish(run, file, record)
                raise
        done, total = _steps(lines)
        record.finished = done >= total
        _publish(run, file, record)
        if not any(line.startswith("step ") for line in lines) and record.finished:
            notes(
                f"The run {_stem(name)} had come to its end before: nothing was trained. Set restart to begin anew, or "
                f"another name with {file} as start to go on from it."
            )
        if not record.finished:
            notes(f"The time was up at step {done} of {total}. Run again to go on.")
        flow = flowcore.load(model_target(file))
        name_model(flow, file)
        sheet, rows = _last_sheet(run), _history(run)
        info = "\n".join([*_facts(flow, file, done, total, rows), *notes.lines])
        return io.NodeOutput(
            wrap(flow),
            to_image(_picture(sheet)),
            to_image(_picture(run / "curve.png")),
            info,
            ui={
                "text": [info],
                "images": [as_output(sheet)] if sheet else [],
                "steps": [int(row["step"]) for row in rows],
                "stage": [row["stage"] for row in rows],
                "loss": [finite_or_none(float(row["loss"])) for row in rows],
                "minutes": [flow.provenance.get("minutes")],
                "path": [str(model_target(file))],
                "run": [str(run)],
            },
        )


# ---------------------------------------------------------------------------------------------------------------------
# what is typed into the widgets


def _recipes() -> list[str]:
    return [*sorted(path.stem for path in FOLDER.glob("*.toml")), *recipe_files()]


def _read_recipe(recipe: str) -> Recipe:
    path = recipe_files().get(recipe)
    return read_recipe(recipe if path is None else path)


def _with_own_licence(plan: Recipe, recipe: str, begun: Path | None) -> Recipe:
    """A recipe that flowcore brings states the licence of the shipped weights, which is not that of a person's own."""
    if recipe in recipe_files():
        return plan
    licence = "not stated; trained on images of the person who trained it"
    if begun is not None:
        theirs = read_header(begun).provenance.get("licence", "not stated")
        licence += f", beginning with {begun.stem} ({theirs})"
    return dataclasses.replace(plan, licence=licence)


def _stem(name: str) -> str:
    return name.strip().removesuffix(SUFFIX)


def _run(name: str) -> Path:
    return output_folder(RUNS, _stem(name))


def _problem(folder: str | None, recipe: str | None, name: str | None) -> str | None:
    """Say what is wrong with what was typed, if anything is; None is what comes along a wire."""
    if name is not None and (bad := _bad_name(name)) is not None:
        return bad
    if recipe is not None:
        if recipe not in _recipes():
            return f"recipe: there is no {shown(recipe)}; choose one of: {', '.join(_recipes())}."
        try:
            _read_recipe(recipe)
        except FlowError as error:
            return f"recipe {recipe}: {error}"
    return None if folder is None else _bad_folder(folder, recipe, name)


def _bad_name(name: str) -> str | None:
    stem = _stem(name)
    if re.fullmatch(r"\w[\w .+-]{0,79}", stem) and stem[-1] not in ". " and not REFUSED_BY_WINDOWS.fullmatch(stem):
        return None
    return (
        f"name: {shown(name)} cannot be the name of a file in models/flows. Use letters, digits, spaces and . + - _ "
        "only, such as my-upscaler; no folders."
    )


def _bad_folder(folder: str, recipe: str | None, name: str | None) -> str | None:
    if not folder.strip():
        return "folder: say where your images are: an absolute path, or a folder inside ComfyUI's input folder."
    try:
        path = any_folder(folder)
        there = path.exists()
    except (OSError, ValueError):  # too long, or not a name at all
        return f"folder: {shown(folder)} cannot be the name of a folder. Give a shorter, plainer path."
    if not path.is_dir():
        what = "is a file, not a folder" if there else "does not exist"
        plain = str(path) if str(path).isprintable() and len(str(path)) < 300 else shown(str(path))
        return f"folder: {plain} {what}. Give an absolute path, or a folder inside ComfyUI's input folder."
    if name is not None and _run(name).resolve().is_relative_to(path.resolve()):
        return (
            f"folder: {path} holds ComfyUI's output folder, into which this node writes pictures while it trains. "
            "Choose a folder that holds nothing but your images."
        )
    # As far as the first image, and not for ever: the server answers nobody else meanwhile.
    fits, files = _fits(path, recipe), 0
    for looked_at, entry in enumerate(path.rglob("*")):
        if looked_at == MOST_LOOKED_AT:
            return (
                f"folder: the first {looked_at} things in {path} are no {_sought(recipe)}. Choose a folder inside it."
            )
        if fits(entry):
            return None
        files += entry.is_file()
    return f"folder: {path} holds {files} files and no {_sought(recipe)}, at any depth."


def _images(folder: Path, recipe: str | None) -> list[Path]:
    """List what a recipe trains on; everything that could be, when the recipe is not known yet."""
    return sorted(filter(_fits(folder, recipe), folder.rglob("*")))


def _fits(folder: Path, recipe: str | None) -> Callable[[Path], bool]:
    digits = recipe is None or _takes_digits(recipe)
    pictures = recipe is None or not digits

    def fits(file: Path) -> bool:
        named = (pictures and file.suffix.lower() in IMAGE_SUFFIXES) or (
            digits and "-idx" in file.name and file.parent == folder
        )
        return named and file.is_file()

    return fits


def _takes_digits(recipe: str) -> bool:
    try:
        return _read_recipe(recipe).architecture == "class_conditional"
    except FlowError:
        return False


def _sought(recipe: str | None) -> str:
    if recipe is not None and _takes_digits(recipe):
        return "file of MNIST (train-images-idx3-ubyte and the other three, gzipped or not), which this recipe needs"
    return f"image ({', '.join(sorted(IMAGE_SUFFIXES))})"


# ---------------------------------------------------------------------------------------------------------------------
# runs


@dataclass
class _Record:
    """What this node remembers of a run, beside what the trainer does.

    Attributes:
        recipe: Name of the recipe.
        fingerprint: Of what decides the weights.
        minutes: As they were asked for at the start.
        start: Name of the model whose weights it started with.
        saved: Digest of the file that runs of this name have put into models/flows; empty: none.
        ours: Whether that was this run, and not one before a restart.
        finished: Whether it has come to its end.
    """

    recipe: str
    fingerprint: str
    minutes: float
    start: str
    saved: str = ""
    ours: bool = False
    finished: bool = False


def _open_run(run: Path, wanted: _Record, file: str, *, restart: bool) -> _Record:
    """Find out whether a run goes on or begins, and refuse what would lose something."""
    record = _read_record(run)
    _refuse_to_overwrite(file, record, run)
    if restart and run.exists():
        wanted.saved = "" if record is None else record.saved
        _set_aside(run)
        record = None
    elif record is not None and not (run / "checkpoint.pt").exists():
        wanted.saved, record = record.saved, None  # it never came to its first step
    elif record is not None:
        changes = [
            f"{field} {getattr(record, field)} (now {getattr(wanted, field)})"
            for field in ("recipe", "minutes", "start")
            if getattr(record, field) != getattr(wanted, field)
        ]
        if not changes and record.fingerprint != wanted.fingerprint:
            changes = [f"another content of the recipe {record.recipe}"]
        if changes:
            raise FlowError(
                f"The run {run.name} was begun with {', '.join(changes)}, and keeps that to its end. Set it back to go "
                f"on, set restart to begin anew, or choose another name (with {file} as start, to build on it). "
                f"What it has made so far is {file} in Load Flow Model."
            )
    record = record or wanted
    _write_record(run, record)
    return record


def _refuse_to_overwrite(file: str, record: _Record | None, run: Path) -> None:
    target, found = model_target(file), model_path(file)
    if found is not None and found.resolve() != target.resolve():
        raise FlowError(f"There is a model {file} in {found.parent} already. Choose another name.")
    if target.exists() and (record is None or _digest(target) != record.saved):
        raise FlowError(
            f"models/flows has a model {file} that is not the one that the runs in {run} have made. It is not "
            "overwritten: choose another name, or move the file away."
        )


def _set_aside(run: Path) -> None:
    """Move what a run has made into its folder `earlier`, where there is place for one; decoded images stay."""
    earlier = run / "earlier"
    shutil.rmtree(earlier, ignore_errors=True)
    earlier.mkdir()
    for item in list(run.iterdir()):
        if item.name not in KEPT:
            os.replace(item, earlier / item.name)


def _publish(run: Path, file: str, record: _Record) -> None:
    """Copy the model of a run into models/flows, whole or not at all, unless something else has come there."""
    model, target = run / "model.safetensors", model_target(file)
    if model.exists():
        digest = _digest(model)
        if not target.exists() or _digest(target) != digest:
            _refuse_to_overwrite(file, record, run)
            with replacing(target, model.stat().st_size) as partial:
                shutil.copyfile(model, partial)
        record.saved, record.ours = digest, True
    _write_record(run, record)


def _read_record(run: Path) -> _Record | None:
    try:
        return _Record(**json.loads((run / "node.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write_record(run: Path, record: _Record) -> None:
    text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
    write_whole(run / "node.json", text.encode())


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# what a run has made


def _steps(lines: list[str]) -> tuple[int, int]:
    """Read the last line of a run: steps made, and steps in all."""
    for line in reversed(lines):
        found = re.match(r"(\d+) of (\d+) steps", line)
        if found:
            return int(found[1]), int(found[2])
    return 0, 0


def _history(run: Path) -> list[dict[str, str]]:
    path = run / "history.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _last_sheet(run: Path) -> Path | None:
    return max((run / "sheets").glob("*.png"), key=lambda path: int(path.stem), default=None)


def _picture(path: Path | None) -> Tensor:
    """Read a picture, (1, 3, H, W) in [0, 1]; a small black one if there is none."""
    if path is None or not path.exists():
        return torch.zeros(1, 3, 64, 64)
    with Image.open(path) as opened:
        pixels = np.array(opened.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def _facts(flow: flowcore.Flow, file: str, done: int, total: int, rows: list[dict[str, str]]) -> list[str]:
    measured = flow.provenance.get("metrics", {})
    return [
        f"model: {file}, {flow.architecture}",
        f"trained: {done} of {total} steps, {flow.provenance.get('minutes', 0)} minutes",
        *(f"loss at the end: {float(row['loss']):.4f} {row['unit']} ({row['stage']})" for row in rows[-1:]),
        *(f"{name} of images not trained on: {value}" for name, value in measured.items()),
        f"saved as: {model_target(file)}",
    ]
