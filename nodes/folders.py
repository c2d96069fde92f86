"""Folders: all pictures of an input folder, enlarged or colorized into an output folder, as on the command line."""

from __future__ import annotations

import os
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from ..flowcore import FlowError
from ..flowcore.batch.folders import Job, Made, find, in_turn, is_done, jobs, run, save, split_name
from ..flowcore.batch.job import Work, Worker
from ..flowcore.tasks.colorize import memory_required as memory_to_colorize
from ..flowcore.tasks.intake import left_to_model
from ..flowcore.tasks.upscale import memory_required
from . import widgets
from .host.compat import io
from .host.memory import Interrupted, stop_if_cancelled
from .host.paths import inside
from .host.ui import Progress
from .node import FlowNode
from .sockets import PhotoModel, shown
from .upscaling import ORDINARY_TILE

LARGE = 2048  # pixels of a side of a photograph


class FlowcoreFolder(FlowNode):
    """Every picture of a folder, with its metadata; what is there already is skipped."""

    MENU = "batch"
    ALIASES = "folder, batch folder, directory, bulk, upscale folder, colorize folder, exif, load images"
    OUTPUTS = (io.String.Output("info"),)
    IS_OUTPUT_NODE = True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return time.time_ns()  # pictures and results may have changed

    def run(
        self,
        model: PhotoModel,
        folder: Annotated[str, partial(io.String.Input, default="photos")],
        subfolder: Annotated[str, partial(io.String.Input, default="flowcore")],
        temperature: widgets.OwnTemperature,
        seed: Annotated[int, widgets.seed(control=False)],
        samples: widgets.Samples,
    ) -> Any:
        if not folder.strip():
            raise FlowError("folder: name a folder in ComfyUI's input folder, or write . for all pictures in it.")
        notes, progress, count = self.notes, Progress(), Counter[str]()
        source, out = inside("input", folder), inside("output", subfolder)
        if not os.path.isdir(source):
            raise FlowError(f"folder: {shown(folder)} is no folder in ComfyUI's input folder. Put pictures into one.")
        flow, colorizes = model.flow, "colorize" in model.flow.capabilities.tasks
        own_guide = () if flow.guide is None else ("guide_strength",)
        left = ("detail", "coherence", "saturation") if colorizes else ("calm_edges", *own_guide)
        settings: dict[str, Any] = {"temperature": temperature, **dict.fromkeys(left)}
        command, scale = "colorize" if colorizes else "upscale", flow.condition_scale
        work = Work(
            command=command,
            model=model.name,
            scale=scale,
            settings=settings,
            own=left_to_model(flow, settings),
            seed=seed,
            samples=samples,
            bits=None,  # those of the picture
        )
        end = Path(model.name).stem + ("" if temperature is None else f"_tau{temperature:g}")
        names = [f"_{end}_seed{seed}" for seed in work.seeds()]

        def results(picture: str) -> list[str]:
            start, frame = split_name(picture)
            return [f"{start}{name}{frame}.png" for name in names]

        todo = jobs(find([str(source)], out, notes), out, results)
        for job in todo:
            inside("input", job.source)
            inside("output", job.targets[0])
        need, side = (memory_to_colorize, LARGE) if colorizes else (memory_required, ORDINARY_TILE)
        model.load(need(flow, side, side))

        def start(picture: Path) -> Any:
            self.notes.show(f"{count.total() + 1} of {len(todo)}: {picture.name}")
            return progress.part(count.total() / len(todo), 1 / len(todo))

        def on_result(job: Job, result: Made | Exception | None) -> None:
            stop_if_cancelled()
            if isinstance(result, Interrupted):  # an Exception in old hosts
                raise result
            if isinstance(result, Exception):
                notes(f"{job.source.name}: {result}")
            count["made" if isinstance(result, Made) else "there already" if result is None else "failed"] += 1

        executor = partial(in_turn, Worker(work, model.flow), start, notes, cancelled=stop_if_cancelled)
        done = partial(is_done, work=work, model=model.sha256)
        run(todo, executor, is_done=done, save=save, on_result=on_result, notify=notes)
        info = f"{len(todo)} pictures: {', '.join(f'{n} {what}' for what, n in count.items())}; in output/{subfolder}"
        return self.output(info, text=[info, *notes.lines])
