"""Load a flow by its name, the flow and settings that made a picture, or a picture to try things with."""

import hashlib
import json
import math
import threading
from collections.abc import Callable
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from .. import flowcore
from ..flowcore import ImageError, provenance
from ..flowcore.checkpoints import catalog, read_config
from ..flowcore.images.color import truncate_16_bits
from ..flowcore.images.files import fit, frame_count, read, read_frames, read_rgb, upright_size
from ..flowcore.images.fill import extend_over_blank
from ..flowcore.provenance import ProvenanceError
from ..flowcore.tasks.model_choice import FOR_CLEAN, FOR_DAMAGED
from ..flowcore.tasks.model_input import label_names
from . import widgets
from .host import paths
from .host.compat import io
from .host.memory import wrap
from .host.ui import png
from .live import side_by_side
from .node import TEXTS, FileNode, file_fingerprint
from .sockets import BY_PICTURE, FLOW_MODEL, TASKS, HostModel, ModelByPicture, check_memory, shown

USES: dict[str, str] = TEXTS["uses"]  # what each shipped model is for, and each task of the others
# Inputs that can follow the model, by the field of its configuration that holds their numbers.
OWN = {name: name for name in ("temperature", "calm_edges", "coherence", "saturation", "guide_strength")}
OWN["scale"] = "factor"
SUITING = "upscaler that suits the picture"  # a `ModelByPicture`; workflows and web/js/models.js hold this name


def model_choices() -> list[str]:
    """List the models that can be loaded: shipped ones first, then files."""
    shipped = catalog.names()
    return [*shipped, *(name for name in paths.model_files() if name not in shipped)]


def _models() -> list[tuple[str, Path]]:
    return [(name, path) for name in model_choices() if (path := locate_model(name)) is not None]


def _facts_for_page() -> dict[str, Any]:
    """Collect what the file of each model states, for web/js/models.js."""
    stated = {name: facts for name, path in _models() if (facts := _stated(path, file_fingerprint(path)))}
    clean, damaged = (stated[name] for name in (FOR_CLEAN, FOR_DAMAGED))
    common = {name: value for name, value in clean["own"].items() if damaged["own"].get(name) == value}
    stated[SUITING] = {"tasks": [BY_PICTURE], "styles": [], "own": common}
    return {TASKS: {name: facts["tasks"] for name, facts in stated.items()}, "flowcore_facts": stated}


@lru_cache(maxsize=1024)
def _stated(path: Path, _fingerprint: str) -> dict[str, Any]:
    """Read what a model's file states before it is loaded; nothing if it does not tell what it is made for."""
    config = read_config(path)
    tasks = sorted(getattr(config, "tasks", None) or ())
    if not tasks:
        return {}
    own = {name: getattr(config, field) for field, name in OWN.items() if hasattr(config, field)}
    own |= zip(("temperature", "detail"), getattr(config, "temperatures", ()), strict=False)
    own["boldness"] = 0.5  # the middle, see `tasks.defaults`
    return {"tasks": tasks, "styles": list(getattr(config, "styles", ())), "own": own}


def locate_model(name: str) -> Path | None:
    """Find the file of one of `model_choices`; None if there is no such model."""
    return catalog.path(name) if name in catalog.names() else paths.model_path(name)


MODELS = widgets.file_choice(lambda: [SUITING, *model_choices()], _facts_for_page, default=SUITING)


class FlowcoreLoadModel(FileNode):
    """A model file or a shipped model, as a FLOW_MODEL."""

    ALIASES = "flow, srflow, load srflow, normalizing flow, super resolution, upscale model, colorizer"
    OUTPUTS = (FLOW_MODEL.Output("model"), io.String.Output("info"))

    @classmethod
    def locate(cls, name: str) -> Path | None:
        return locate_model(FOR_CLEAN if name == SUITING else name)

    @classmethod
    def fingerprint_inputs(cls, **named: Any) -> Any:
        other = FOR_DAMAGED if named.get("model_name") == SUITING else ""
        return super().fingerprint_inputs(**named) + file_fingerprint(locate_model(other))

    @classmethod
    def missing(cls, name: Any) -> str:
        place, models = " or ".join(paths.model_folders()), ", ".join(model_choices())
        return (
            f"there is no flow model {shown(name)}. Put the file into {place} and press R, or choose one of: {models}."
        )

    def run(self, model_name: Annotated[str, MODELS]) -> Any:
        if model_name == SUITING:
            facts = {"use": USES[SUITING], "models": f"{FOR_CLEAN}, {FOR_DAMAGED}"}
            model = ModelByPicture(cache(_load_shipped))
        else:
            path = self.found(model_name)
            flow = flowcore.load(model_name if model_name in catalog.names() else path)
            use = USES.get(model_name) or "; ".join(USES[task] for task in sorted(flow.capabilities.tasks))
            facts, model = {"use": use, **_facts(flow)}, HostModel(wrap(flow), model_name)
        info = "\n".join(f"{name}: {value}" for name, value in facts.items())
        return self.output(model, info, **{name: [value] for name, value in facts.items()})


def _load_shipped(name: str) -> HostModel:
    return HostModel(wrap(flowcore.load(name)), name)


class FlowcoreLoadRecipe(FileNode):
    """What made a PNG file: model, temperature, seed."""

    ALIASES = "recipe, metadata, png info, seed, reproduce, flow, load image"
    OUTPUTS = (
        FLOW_MODEL.Output("model"),
        io.Float.Output("temperature"),
        io.Int.Output("seed"),
        io.String.Output("recipe"),
        io.Image.Output("picture"),
        io.Float.Output("calm_edges"),
        io.Float.Output("guide_strength"),
    )

    @classmethod
    def missing(cls, name: Any) -> str:
        return f"there is no file {shown(name)} in the input folder. Upload it, or choose one that is there."

    def run(
        self,
        image: Annotated[str, widgets.file_choice(partial(paths.input_files, "", ".png"), upload=io.UploadType.image)],
    ) -> Any:
        path = self.found(image)
        every = provenance.read(path)
        try:
            picture = read(path.read_bytes(), path.name).pixels[0, :3]
        except (ImageError, OSError) as error:
            raise ProvenanceError(
                f"{error} Either it is damaged, or no PNG file; use the file as it was saved."
            ) from error
        mark = provenance.fingerprint(truncate_16_bits(picture))
        made = provenance.select(every, mark)
        if mark not in made.pictures:
            self.notes(
                "The picture was changed after it was made (resized, joined, retouched): the recipe makes what it was "
                "before."
            )
        name, flow = provenance.find_model(made, locate_model(made.model), _models())
        seed = made.seed_of(mark)
        text = json.dumps(made.to_json(), indent=2, ensure_ascii=False)
        facts = {"node": [made.node], "model": [name], "temperature": [made.temperature], "seed": [seed]}
        lines = [f"{key}: {value[0]}" for key, value in facts.items()]
        lines += [f"{key}: {shown(value)}" for key, value in made.settings.items() if provenance.is_plain(value)]
        return self.output(
            HostModel(wrap(flow), name),
            made.temperature,
            seed,
            text,
            picture[None],
            *(_share(made, name) for name in ("calm_edges", "guide_strength")),
            text=["\n".join(lines)],
            **facts,
        )


def _facts(flow: flowcore.FlowModel) -> dict[str, Any]:
    config, provenance = flow.config, flow.provenance
    named = ", ".join(f"{number} {name}" for number, name in enumerate(label_names(flow)))
    facts = {
        "architecture": flow.architecture,
        "scale": getattr(config, "scale", None),
        "size": "{}x{}".format(*flow.image_size) if flow.image_size else None,
        "temperature": getattr(config, "temperature", None),
        "calm_edges": getattr(config, "calm_edges", None),
        "working_size": getattr(config, "working_size", None),
        "labels": named or (f"0 to {flow.classes - 1}" if flow.classes else None),
        "styles": ", ".join(flow.styles) or None,
        "licence": str(provenance.get("licence", "not stated")),
        "source": str(provenance.get("source", "not stated")),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _share(made: provenance.Provenance, name: str) -> float:
    """Return the calm_edges or guide_strength of a picture; 0 if its provenance has none, as those of colorings."""
    value = made.settings.get(name, 0.0)
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else 0.0


# --- pictures that come with the pack ---------------------------------------------------------------------------------

FOLDER = Path(__file__).parents[1] / "workflows"  # which the host serves, too: web/js/picture.js finds them

# Name in the menu to the files of its batch. Append only: workflows hold the names.
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
}
# Of a film, how many frames, their height and width, and the height at which the picture is panned over.
FILMS = {"black-and-white film": (16, (192, 336), 192), "small film": (12, (72, 96), 96)}

SHOWN, THUMBNAIL = 64, 256  # pictures in the preview of a folder, and the longer side of each
ONE_AT_A_TIME = threading.Lock()  # for previews, which decode pictures of any size
TYPES = {".png": "image/png", ".jpg": "image/jpeg"}

EXAMPLES = widgets.file_choice(
    lambda: [*PICTURES, *paths.input_pictures(), *paths.input_folders()],
    lambda: {"flowcore_files": PICTURES, "flowcore_films": sorted(FILMS)},
    default="photograph",
    upload=io.UploadType.image,
)


class FlowcoreExample(FileNode):
    """A picture, a batch, a film or a folder to try things with; or a file or folder of the input folder."""

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
        return next(iter(_files(name)), None)

    @classmethod
    def missing(cls, name: Any) -> str:
        return (
            f"there is no file {shown(name)} in the input folder, nor a folder of pictures. Upload it, or choose one "
            f"that is there or one of: {', '.join(PICTURES)}."
        )

    @classmethod
    def fingerprint_inputs(cls, **named: Any) -> list[str]:
        # By content, as Load Image: it stands in the results' files, which are the same for the same picture.
        name = next(iter(named.values()), None)
        files = _files(name) if isinstance(name, str) else []
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    def run(self, picture: Annotated[str, EXAMPLES]) -> Any:
        path, files = self.found(picture), _files(picture)
        values = [4 * math.prod(upright_size(file) or ()) for file in files]
        check_memory(len(files), max(values), "pictures need", "Choose a folder of fewer or smaller ones.")
        every = [_read_with_alpha(file, self.notes) for file in files]  # each (B, 4, H, W)
        if len({pixels.shape[2:] for pixels in every}) == 1:
            every = [torch.cat(every)]
        if picture in FILMS:
            every = [_pan(every[0], *FILMS[picture])]
        # A file at the top stands for itself: whatever else was dropped there is not part of it.
        is_file = path == paths.input_path(picture)
        return self.output(
            [extend_over_blank(pixels[:, :3], pixels[:, 3:]) for pixels in every],
            [1 - pixels[:, 3] for pixels in every],
            str(path if is_file and "/" not in picture else path.parent),
            picture if is_file else "",
        )


def is_batch(name: str) -> bool:
    """Whether `preview` shows a picture of the menu, and not the host: one of ours, or a folder."""
    return name in PICTURES or (paths.input_path(name) is None and any(paths.pictures_in(name)))


def preview(name: str) -> tuple[bytes, str]:
    """Return what the page shows of one of our pictures or of a folder, and the type of that file."""
    files = _files(name)[:SHOWN]
    if len(files) == 1 and files[0].suffix in TYPES:
        return files[0].read_bytes(), TYPES[files[0].suffix]
    with ONE_AT_A_TIME:
        return _contact_sheet(*((file, file_fingerprint(file)) for file in files)), "image/png"


@lru_cache(maxsize=16)
def _contact_sheet(*files: tuple[Path, str]) -> bytes:
    """Draw files, each with its fingerprint, side by side; one after the other, since each may be of any size."""
    sizes = {upright_size(file) or (THUMBNAIL, THUMBNAIL) for file, _ in files}
    sides = sizes.pop() if len(sizes) == 1 else (THUMBNAIL, THUMBNAIL)
    height, width = (max(1, round(side * min(1, THUMBNAIL / max(sides)))) for side in sides)
    shown = [fit(read_rgb(file.read_bytes(), file.name, side=THUMBNAIL), (height, width), 3) for file, _ in files]
    return png(side_by_side(torch.stack(shown) / 255))


def _files(picture: str) -> list[Path]:
    """Find the files of a picture: ours, or the file or folder of that name in the input folder."""
    if picture in PICTURES:
        return [FOLDER / name for name in PICTURES[picture]]
    path = paths.input_path(picture)
    return sorted(paths.pictures_in(picture)) if path is None else [path]


def _read_with_alpha(file: Path, notify: Callable[[str], None]) -> Tensor:
    """Read a picture, or the frames of an animated one with even sides, as videos need them: (B, 4, H, W) in [0, 1].

    ``notify`` is told what is not kept, or not as it was.
    """
    data = file.read_bytes()
    picture = read(data, file.name)
    pixels, count = picture.pixels, frame_count(data)
    for note in picture.notes if count == 1 else ():  # of animated ones the notes say that the first frame is taken
        notify(f"{file.name}: {note}")
    if count > 1:
        height, width = (max(1, side // 2 * 2) for side in pixels.shape[-2:])
        check_memory(count, 4 * height * width, "frames need", "Shorten or shrink the picture.")
        pixels = read_frames(data, file.name)[..., :height, :width]
    return pixels if pixels.shape[1] == 4 else torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)


def _pan(picture: Tensor, frames: int, size: tuple[int, int], tall: int) -> Tensor:
    """Pan from the upper left to the lower right over a picture resized to a height of ``tall``: (frames, C, *size)."""
    height, width = size
    wide = round(picture.shape[-1] * tall / picture.shape[-2])
    small = torch.nn.functional.interpolate(picture, (tall, wide), mode="area")
    places = [
        (round(step * (tall - height) / (frames - 1)), round(step * (wide - width) / (frames - 1)))
        for step in range(frames)
    ]
    return torch.cat([small[..., top : top + height, left : left + width] for top, left in places])
