"""Files: example pictures and your own, and whole folders in one node."""

import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from flowcore import FlowError
from flowcore.batch.folders import InputFile, Job, is_done, iter_pending, list_inputs, make_jobs, process, split_name
from flowcore.batch.job import JobSpec, Worker
from flowcore.batch.tables import NAME, Manifest, Record
from flowcore.engine.defaults import model_defaults
from flowcore.engine.memory import memory_required
from flowcore.errors import Argument, say
from flowcore.images.files import fit, frame_count, read, read_bytes, read_frames, read_rgb, upright_size
from flowcore.images.fill import extend_over_blank
from flowcore.images.opening import is_transparent
from flowcore.models.colorizer.color_memory import starter_memory
from flowcore.models.identity import fingerprint
from flowcore.tasks.model_choice import FOR_CLEAN, upscaler_for_files

from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled
from .host.paths import (
    allowed_folder,
    check_allowed,
    holds_picture,
    input_folders,
    input_path,
    input_pictures,
    inside,
    pictures_in,
)
from .host.ui import Progress, png
from .live import side_by_side
from .node import FileNode, FlowNode, file_fingerprint
from .sockets import HostModel, ModelByPicture, PhotoModel, check_memory, shown

UPLOADED = r"^[0-9]{4} (?=.)"  # stands before the name of one of several uploaded files: web/js/picture.js
WORKFLOWS = Path(__file__).parents[1] / "workflows"  # served by the host, too: web/js/picture.js
COUNTED = {  # what became of the pictures of a folder
    "made": say("{count} made"),
    "failed": say("{count} failed"),
    "there already": say("{count} there already"),
}
FOLDER_DONE = (  # by one model, and by those that suit the pictures
    say("{count} pictures: {counts}; in output/{folder}"),
    say("{count} pictures: {counts}; in output/{folder}; {models}"),
)
LARGE = 2048  # pixels of the side of a photograph for which memory is made free
LOADERS = {"FlowcoreExample": "picture", "LoadImage": "image"}  # nodes that load pictures: their inputs that name them

# The pictures that come with the pack: name in the menu to files. Append only: workflows contain the names.
PICTURES: dict[str, list[str]] = {
    "photograph": ["photo.png"],
    "painted photograph": ["painted.png"],
    "second photograph": ["pictures/lake.jpg"],
    "three landscapes": ["pictures/lake.jpg", "pictures/desert.jpg", "pictures/canyon.jpg"],
    "black-and-white people": ["mill.jpg"],
    "black-and-white mountains": ["alps.jpg"],
    "black-and-white house": ["house.jpg"],
    "black-and-white film": ["alps.jpg"],
    "small face": ["pictures/face.png"],
    "ten photographs": [f"pictures/bread/{number:02}.jpg" for number in range(1, 11)],
    "photographs, two odd ones": [
        f"pictures/odd-{name}.jpg" for name in ("negative", "opera", "bee", "noise", "wall", "lake")
    ],
    "original and retouched": ["pictures/original.jpg", "pictures/retouched.jpg"],
    "pasted piece": ["pictures/pasted.jpg"],
    "few colors": ["pictures/poor.png"],
    "four portraits": [f"pictures/portrait-{number}.jpg" for number in range(1, 5)],
    "two portraits": ["pictures/portrait-4.jpg", "pictures/portrait-3.jpg"],
    "bad JPEG": ["pictures/parrots.jpg"],
    "group photograph": ["pictures/group.png"],
    "small film": ["pictures/canyon.jpg"],
    "dark photograph": ["pictures/dark.jpg"],
    "scratched photograph": ["pictures/scratched.jpg"],
    "edited enlargement": ["pictures/edited.jpg"],
    "office door": ["pictures/door.png"],
    "office door, enlarged": ["pictures/door-enlarged.jpg"],
    "noisy photograph": ["pictures/noisy.jpg"],
}
# Films: the number of frames, their height and width, and the height to which the picture is resized to pan over it.
FILMS = {"black-and-white film": (16, (192, 336), 192), "small film": (12, (72, 96), 96)}

PREVIEWED, THUMBNAIL = 64, 256  # pictures in the preview of a folder, and pixels of their longer side
PREVIEW_LOCK = threading.Lock()  # one at a time, since pictures of any size are decoded
CONTENT_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}

EXAMPLES = widgets.file_choice(
    lambda: [*PICTURES, *input_pictures(), *input_folders()],
    lambda: {"flowcore_files": PICTURES, "flowcore_films": sorted(FILMS)},
    default="photograph",
    upload=io.UploadType.image,
)


class FlowcoreExample(FileNode):
    """Load a picture, batch, film or folder, of the pack or of the input folder."""

    MENU = "files"
    ALIASES = "example, sample image, demo picture, test image, photograph, load image, flow"
    OUTPUTS = (
        io.Image.Output("image", is_output_list=True),
        io.Mask.Output("mask", is_output_list=True),
        io.String.Output("folder"),
        io.String.Output("source"),
    )
    REPORTS = False

    @classmethod
    def locate(cls, name: str) -> Path | None:
        return next(iter(picture_files(name)), None)

    @classmethod
    def exists(cls, name: str) -> bool:
        return name in PICTURES or input_path(name) is not None or holds_picture(name)

    @classmethod
    def missing_message(cls, name: Any) -> str:
        return (
            f"there is no file or folder of pictures {shown(name)} in the input folder. Upload it, choose one that is "
            f"there, or one of: {', '.join(PICTURES)}."
        )

    @classmethod
    def fingerprint_inputs(cls, **named: Any) -> list[str]:
        # By content, as in Load Image, because the host writes this into results, which must not differ for a copy.
        name = next(iter(named.values()), None)
        files = picture_files(name) if isinstance(name, str) else []
        return [content_hash(file, file_fingerprint(file)) for file in files]

    def run(self, picture: Annotated[str, EXAMPLES]) -> Any:
        path, files = self.require_file(picture), picture_files(picture)
        values = [4 * math.prod(upright_size(file) or ()) for file in files]
        check_memory(len(files), max(values), "pictures", say("Choose a folder of fewer or smaller ones."))
        batches = frames = [_read_with_alpha(file, self.notes) for file in files]  # each (B, 4, H, W)
        if len({pixels.shape[2:] for pixels in batches}) == 1:
            batches = [torch.cat(batches)]
        if picture in FILMS:
            batches = [_pan(batches[0], *FILMS[picture])]
        films = [(file, len(pixels)) for file, pixels in zip(files, frames, strict=True) if len(pixels) > 1]
        shown = [say("{name}: {count} frames, each a picture", name=file.name, count=count) for file, count in films]
        # The output `folder` is what to train on: a file directly in the input folder, else the folder of the files.
        is_file = path == input_path(picture)
        return self.output(
            [extend_over_blank(pixels[:, :3], pixels[:, 3:]) for pixels in batches],
            [1 - pixels[:, 3] for pixels in batches],
            str(path if is_file and "/" not in picture else path.parent),
            picture if is_file else "",
            **({"text": shown} if shown else {}),
        )


@lru_cache(maxsize=4096)
def content_hash(file: Path, _fingerprint: str) -> str:
    """Hash a picture's contents, again when its size or time has changed."""
    return fingerprint(read_bytes(file))


def is_batch(name: str) -> bool:
    """Whether a name in the menu is one of our pictures, or a folder, of which the host can show no preview."""
    return name in PICTURES or (input_path(name) is None and holds_picture(name))


def preview(name: str) -> tuple[bytes, str]:
    """Return the file that the page shows for one of our pictures or a folder, and its content type."""
    files = picture_files(name)[:PREVIEWED]
    if name in FILMS:
        picture = read(read_bytes(files[0]), files[0].name).pixels[:, :3]
        return png(_pan(picture, *FILMS[name])[0]), "image/png"
    if len(files) == 1 and files[0].suffix in CONTENT_TYPES:
        return read_bytes(files[0]), CONTENT_TYPES[files[0].suffix]
    with PREVIEW_LOCK:
        return _contact_sheet(*((file, file_fingerprint(file)) for file in files)), "image/png"


@lru_cache(maxsize=16)
def _contact_sheet(*files: tuple[Path, str]) -> bytes:
    """Lay out files, given with their fingerprints, side by side."""
    sizes = {upright_size(file) or (THUMBNAIL, THUMBNAIL) for file, _ in files}
    sides = sizes.pop() if len(sizes) == 1 else (THUMBNAIL, THUMBNAIL)
    height, width = (max(1, round(side * min(1, THUMBNAIL / max(sides)))) for side in sides)
    small = [fit(read_rgb(read_bytes(file), file.name, side=THUMBNAIL), (height, width), 3) for file, _ in files]
    return png(side_by_side(torch.stack(small) / 255))


def picture_files(picture: str) -> list[Path]:
    """Find the files of one of our pictures, or of a file or folder in the input folder."""
    if picture in PICTURES:
        return [WORKFLOWS / name for name in PICTURES[picture]]
    path = input_path(picture)
    return sorted(pictures_in(picture)) if path is None else [path]


def picture_names(prompt: Any, node_id: Any, name: str) -> list[str]:
    """Name the files behind an input that is connected to a loader in a prompt; empty if it is not."""
    return [re.sub(UPLOADED, "", file.name) for file in _loaded_files(prompt, node_id, name)]


def transparent_picture(prompt: Any, node_id: Any, name: str) -> str | None:
    """Name the first of these files that has transparent parts; None if none has."""
    files = filter(is_transparent, _loaded_files(prompt, node_id, name))
    return next((re.sub(UPLOADED, "", file.name) for file in files), None)


def source_name(prompt: Any, node_id: str, name: str = "image") -> str:
    """Name the picture of the loader at an input in a prompt, which may be malformed; "" if there is no loader."""
    nodes = prompt if isinstance(prompt, dict) else {}
    wire = nodes.get(str(node_id), {}).get("inputs", {}).get(name)
    loader = wire[0] if isinstance(wire, list) and len(wire) == 2 else None
    origin = nodes.get(loader, {})
    picture = origin.get("inputs", {}).get(LOADERS.get(origin.get("class_type")))
    return picture if isinstance(picture, str) else ""


def _loaded_files(prompt: Any, node_id: Any, name: str) -> list[Path]:
    """Find the files of the loader at an input in a prompt."""
    picture = source_name(prompt, node_id, name)
    return picture_files(picture) if picture and picture not in FILMS else []


def _read_with_alpha(file: Path, notify: Callable[[str], None]) -> Tensor:
    """Read a picture, or the frames of an animated one with even sides, as videos need them: (B, 4, H, W) in [0, 1]."""
    data = read_bytes(file)
    count = frame_count(data)
    picture = read(data, file.name, all_frames=count > 1)
    pixels = picture.pixels
    for note in picture.notes:
        notify(say("{name}: {note}", name=file.name, note=note))
    if count > 1:
        height, width = (max(1, side // 2 * 2) for side in pixels.shape[-2:])
        check_memory(count, 4 * height * width, "frames", say("Shorten or shrink the picture."))
        pixels = read_frames(data, file.name)[..., :height, :width]
    return pixels if pixels.shape[1] == 4 else torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)


def _pan(picture: Tensor, frames: int, size: tuple[int, int], tall: int) -> Tensor:
    """Pan from the upper left to the lower right over a picture, resized to a height of `tall`: (frames, C, *size)."""
    height, width = size
    wide = round(picture.shape[-1] * tall / picture.shape[-2])
    small = torch.nn.functional.interpolate(picture, (tall, wide), mode="area")
    corners = [
        (round(step * (tall - height) / (frames - 1)), round(step * (wide - width) / (frames - 1)))
        for step in range(frames)
    ]
    return torch.cat([small[..., y : y + height, x : x + width] for y, x in corners])


class FlowcoreFolder(FlowNode):
    """Process every picture of a folder, with its metadata, except those whose results exist already."""

    MENU = "files"
    ALIASES = "folder, batch folder, directory, bulk, upscale folder, colorize folder, exif, load images"
    OUTPUTS = (io.String.Output("info"),)
    IS_OUTPUT_NODE = True

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        try:
            _check_folder(folder)
        except FlowError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return time.time_ns()  # always run: pictures and results may have changed

    def run(
        self,
        model: PhotoModel,
        folder: Annotated[str, widgets.text("photos")],
        subfolder: Annotated[str, widgets.text("flowcore")],
        temperature: widgets.ModelTemperature,
        seed: Annotated[int, widgets.seed(control=False)],
        samples: widgets.Samples,
    ) -> Any:
        _check_folder(folder)
        progress, count = Progress(), Counter[str]()
        source, out = allowed_folder(folder), inside("output", subfolder)
        skipped = dict[Path, str]()
        pictures = list_inputs([str(source)], out, self.notes, skipped, stop_if_cancelled)
        manifest = Manifest(inside("output", out / NAME))
        manifest.append_skipped({path.relative_to(source): reason for path, reason in skipped.items()})
        parts = [(model, pictures)] if isinstance(model, HostModel) else _group_by_model(model, pictures)
        for part, its_pictures in parts:
            spec = _job_spec(part, temperature, seed, samples)
            tag = Path(part.name).stem + ("" if temperature is None else f"_tau{temperature:g}")
            names = [f"_{tag}_seed{seed}" for seed in range(seed, seed + samples)]
            jobs = [
                replace(job, problem=job.problem or _link_problem(job))
                for job in make_jobs(its_pictures, out, partial(_result_names, names))
                if not stop_if_cancelled()
            ]
            part.load(memory_required(part.flow, 1, LARGE, LARGE))
            worker = Worker(spec, part.flow)
            for job, state in iter_pending(([job] for job in jobs), partial(is_done, worker=worker), notify=self.notes):
                stop_if_cancelled()
                if state == "done":
                    count["there already"] += 1
                    continue
                if state == "pending":
                    self.notes.show(f"{count.total() + 1} of {len(pictures)}: {job.source.name}")
                    of_job = progress.part(count.total() / len(pictures), 1 / len(pictures))
                    result = process(job, worker, self.notes, of_job, stop_if_cancelled)
                else:
                    result = state
                # The manifest has paths relative to the two folders.
                targets = tuple(target.relative_to(out) for target in job.targets)
                relative = replace(job, source=job.source.relative_to(source), targets=targets)
                manifest.append(Record.of(relative, result, worker))
                if isinstance(result, Exception):
                    self.notes("{name}: {note}", name=job.source.name, note=result)
                count["failed" if isinstance(result, Exception) else "made"] += 1
        manifest.compact()
        alone, divided = FOLDER_DONE
        info = say(
            alone if isinstance(model, HostModel) else divided,
            count=len(pictures),
            counts=[say(COUNTED[what], count=number) for what, number in count.items()],
            folder=subfolder,
            models=[say("{count} by {model}", count=len(suited), model=part.name) for part, suited in parts],
        )
        return self.output(info, text=[info])


def _group_by_model(model: ModelByPicture, pictures: list[InputFile]) -> list[tuple[HostModel, list[InputFile]]]:
    by_name: dict[str, list[InputFile]] = {}
    for picture in pictures:
        stop_if_cancelled()
        try:
            name, _ = upscaler_for_files([check_allowed(picture.path)])
        except FlowError:  # a link, which its job will refuse
            name = FOR_CLEAN
        by_name.setdefault(name, []).append(picture)
    return [(model.load(name), suited) for name, suited in by_name.items()]


def _job_spec(model: HostModel, temperature: float | None, seed: int, samples: int) -> JobSpec:
    flow, colorizes = model.flow, "colorize" in model.flow.capabilities.tasks
    from_model = ["detail", "coherence", "saturation"] if colorizes else ["calm_edges", "calm_faces"]
    from_model += ["guide_strength"] if flow.guide is not None and not colorizes else []
    settings: dict[str, Any] = {"temperature": temperature, **dict.fromkeys(from_model)}
    return JobSpec(
        command="colorize" if colorizes else "upscale",
        model=model.name,
        scale=flow.condition_scale,
        settings=settings,
        model_defaults=model_defaults(flow, settings),
        seed=seed,
        samples=samples,
        memory=starter_memory(flow) if colorizes else None,
        bits=None,  # those of the picture
    )


def _result_names(names: list[str], picture: Path, kind: str) -> list[str]:
    """Name the results of a picture; `names` tell them apart, and `kind` pictures that differ in their suffix."""
    stem, frame = split_name(picture.name)
    return [f"{stem}{kind}{name}{frame}.png" for name in names]


def _check_folder(folder: str | None) -> None:
    """Raise a FlowError if the folder of *Flow Folder* is none, or not allowed; None comes through a wire."""
    if folder is None:
        return
    if not folder.strip():
        raise FlowError(
            "{folder}: name a folder in ComfyUI's input folder, or write . for all pictures in it.",
            folder=Argument("folder"),
        )
    if not os.path.isdir(allowed_folder(folder)):
        raise FlowError(
            "{input}: {folder} is not a folder in ComfyUI's input folder. Put your pictures there.",
            input=Argument("folder"),
            folder=shown(folder),
        )


def _link_problem(job: Job) -> str:
    """Return the error if a link in the path of a picture or its results leads out of the host's folders, else ""."""
    try:
        check_allowed(job.source)
        inside("output", job.targets[0])
    except FlowError as error:
        return str(error)
    return ""
