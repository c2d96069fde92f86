"""Files and folders of the host: models, input, output.

No name and no link leads out of these folders and those that the administrator allows, see `allowed_folder`.
"""

# pyright: reportMissingImports=false

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import folder_paths

from flowcore import FlowError
from flowcore.errors import Argument
from flowcore.images.folders import is_image_name

MODELS = "flows"  # the folder below `models`, and its name in extra_model_paths.yaml
SUFFIXES = {".safetensors", ".sft", ".pt", ".pth"}
PICTURES = "flowcore_pictures"  # key of extra_model_paths.yaml: folders besides input and output that nodes may read
PACKED = Path(__file__).parents[2] / "workflows"  # pictures that come with the pack
GLANCE = 10_000  # entries of a folder, looked at while the host waits

_allowed: list[str] = []  # the folders of `PICTURES`


def register_folders() -> None:
    """Add `models/flows` to the model folders of the host, and take `PICTURES`, which it would list, from them."""
    _allowed.extend(folder_paths.folder_names_and_paths.pop(PICTURES, ([], set()))[0])
    # extra_model_paths.yaml may have created the entry already, with an empty set of suffixes, which means every file.
    paths, suffixes = folder_paths.folder_names_and_paths.get(MODELS, ([], set()))
    ours = os.path.join(folder_paths.models_dir, MODELS)
    if ours not in paths:
        paths.append(ours)
    folder_paths.folder_names_and_paths[MODELS] = (paths, set(suffixes) | SUFFIXES)


def model_files() -> list[str]:
    """List the files in `models/flows` and in the folders of `extra_model_paths`, as the host names them."""
    return folder_paths.get_filename_list(MODELS)


def model_folders() -> list[str]:
    """List the folders that are searched for model files."""
    return folder_paths.get_folder_paths(MODELS)


def model_path(name: str) -> Path | None:
    """Find a model file by its name in `model_files`; None if there is none."""
    # The host lets neither `..` nor a leading slash lead out of the model folders. Links in them are followed wherever
    # they point: people keep models on other disks, and a prompt cannot create links.
    path = folder_paths.get_full_path(MODELS, name)
    return Path(path) if path else None


def model_target(name: str) -> Path:
    """Return the path in `models/flows` for a new model file, which may exist already; creates the folder."""
    folder = Path(folder_paths.models_dir) / MODELS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def upscale_model_files() -> list[Path]:
    """List the files that the host's own Load Upscale Model offers."""
    kind = "upscale_models"
    paths = (folder_paths.get_full_path(kind, name) for name in folder_paths.get_filename_list(kind))
    return [Path(path) for path in paths if path]


def recipe_files() -> dict[str, Path]:
    """Find the training recipes (`.toml`) directly in the model folders: name to path, sorted."""
    folders = reversed(model_folders())  # the first one with a name wins
    recipes = {path.name: path for folder in folders for path in Path(folder).glob("*.toml")}
    return dict(sorted(recipes.items()))


def input_files(subfolder: str, suffix: str) -> list[str]:
    """List files of the input folder and of one of its subfolders, as sorted names with forward slashes."""
    base = Path(folder_paths.get_input_directory())
    folders = {base, base / subfolder}  # one folder if the subfolder is ""
    files = (file for folder in folders if folder.is_dir() for file in folder.iterdir())
    return sorted(file.relative_to(base).as_posix() for file in files if file.suffix == suffix and file.is_file())


def input_pictures() -> list[str]:
    """List the pictures directly in the input folder, as Load Image does."""
    base = folder_paths.get_input_directory()
    files = [name for name in os.listdir(base) if os.path.isfile(os.path.join(base, name))]
    return sorted(folder_paths.filter_files_content_types(files, ["image"]))


def input_folders() -> list[str]:
    """List the folders in the input folder, one and two levels down, that hold a picture."""
    base = Path(folder_paths.get_input_directory())
    folders = _folders_in(base)
    folders += [below for folder in folders for below in _folders_in(folder)]
    return sorted(filter(holds_picture, (folder.relative_to(base).as_posix() for folder in folders)))


def _folders_in(folder: Path) -> list[Path]:
    """List the folders among the first entries of a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [Path(entry) for entry in itertools.islice(entries, GLANCE) if entry.is_dir()]
    return []


def holds_picture(name: str) -> bool:
    """Whether a folder inside the input folder holds a picture, or too many files to tell while the host waits."""
    folder = _resolve(folder_paths.get_input_directory(), name) if name else None
    with contextlib.suppress(OSError), os.scandir(folder or os.devnull) as entries:
        return any(
            number == GLANCE or (is_image_name(entry.name) and entry.is_file()) for number, entry in enumerate(entries)
        )
    return False


def pictures_in(name: str) -> Iterator[Path]:
    """Find the pictures directly in a folder inside the input folder; none if there is no such folder."""
    folder = _resolve(folder_paths.get_input_directory(), name) if name else None
    if folder is not None and folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
        yield from (file for file in folder.iterdir() if is_image_name(file.name) and file.is_file())


def input_path(name: str) -> Path | None:
    """Find a file in the input folder, or in the output folder if the name ends in " [output]"; None if missing."""
    plain, folder = folder_paths.annotated_filepath(name)
    path = _resolve(folder or folder_paths.get_input_directory(), plain)
    return path if path is not None and os.path.isfile(path) else None


def _resolve(folder: str, name: str) -> Path | None:
    """Resolve a name in a folder, which may be a link itself; None if the name or a link leads out of it."""
    base = os.path.realpath(folder)
    try:
        path = os.path.realpath(os.path.join(base, name))
        return Path(path) if "\0" not in name and os.path.commonpath((base, path)) == base else None
    except (OSError, ValueError):  # a zero byte in the name, or another drive
        return None


def output_path(prefix: str, suffix: str, size: tuple[int, int] = (0, 0)) -> tuple[Path, dict[str, str]]:
    """Choose the next free name in the output folder, as the host's own saving nodes do.

    The prefix may contain subfolders and the host's placeholders, such as %year% and %width%; `size` is the height and
    width of the picture. Returns the path, whose folder exists, and what the host keeps of it in its history.
    """
    base = os.path.realpath(folder_paths.get_output_directory())
    if _resolve(base, prefix) is None:
        raise FlowError(
            f"filename_prefix must stay inside the output folder; got `{prefix[:80]}`. Remove `..` and leading slashes."
        )
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, base, *reversed(size))
    except (OSError, RecursionError) as error:  # too long, too deep, or a file where a folder should be
        raise FlowError(
            f"Cannot save under `{prefix[:80]}` in the output folder: {getattr(error, 'strerror', None) or error}. "
            "Choose another name."
        ) from error
    names = (f"{name}_{number:05}_{suffix}" for number in itertools.count(counter))
    file = next(file for file in names if not os.path.lexists(os.path.join(folder, file)))  # the host miscounts "x/"
    return Path(folder) / file, {"filename": file, "subfolder": subfolder, "type": "output"}


def allowed_folder(name: str) -> Path:
    """Resolve a folder that a person typed, in the input folder or as a path in another allowed one; it may not exist.

    FlowError if the name, or a link, leads out of all of them. Nothing outside is looked at: a server must not tell
    what there is, and the folder of a network may answer late.
    """
    typed = name.strip().strip("\"'")
    typed = os.path.expanduser(typed) if typed == "~" or typed.startswith("~/") else typed
    try:
        return check_allowed(os.path.join(folder_paths.get_input_directory(), typed))
    except FlowError:
        raise FlowError(
            "{input}: {folder} is outside of the folders in which this server opens pictures. Put them into ComfyUI's "
            "input folder, or let the administrator name their folder as flowcore_pictures in extra_model_paths.yaml.",
            input=Argument("folder"),
            folder=repr(name[:80]),
        ) from None


def check_allowed(path: str | Path) -> Path:
    """Resolve a path with its links; FlowError if it leads out of the folders in which nodes open pictures."""
    path = os.path.abspath(path)
    own = folder_paths.get_input_directory(), folder_paths.get_output_directory(), str(PACKED)
    for root in (root for each in (*own, *_allowed) for root in (os.path.abspath(each), os.path.realpath(each))):
        # First by name alone, so that nothing outside is looked at.
        if os.path.normcase(path).startswith(os.path.normcase(os.path.join(root, ""))) or path == root:
            resolved = _resolve(root, path)
            if resolved is not None:
                return resolved
    raise FlowError(
        "{name} leads out of the folders in which this server opens pictures. Leave it out, or replace the link by a "
        "copy.",
        name=repr(os.path.basename(path)[:80]),
    )


def record_path(name: str = "") -> Path:
    """Return the path of a record below the user folder, by default that of the canvas, whether or not it exists."""
    folder = os.path.join(folder_paths.get_user_directory(), "flowcore")  # which the host does not serve
    path = _resolve(folder, name or "record.sqlite")
    if path is None:
        raise FlowError(
            f"`{name[:80]}` leads out of the folder flowcore of ComfyUI's user folder. Remove `..` from it."
        )
    return path


def output_folder(*names: str) -> Path:
    """Return the path of a folder below the output folder, whether or not it exists."""
    return Path(folder_paths.get_output_directory(), *names)


def inside(kind: Literal["input", "output"], name: str | Path) -> Path:
    """Resolve a name in the host's input or output folder; FlowError if the name or a link leads out of it."""
    path = _resolve(str(folder_paths.get_directory_by_type(kind)), str(name))
    if path is None:
        raise FlowError(
            f"`{str(name)[:80]}` leads out of ComfyUI's {kind} folder. Give a name inside it, without links."
        )
    return path


def output_record(path: Path) -> dict[str, str]:
    """Return the record for the history of a file in the output folder, as `/view` takes it."""
    subfolder = path.parent.relative_to(folder_paths.get_output_directory()).as_posix()
    return {"filename": path.name, "subfolder": subfolder, "type": "output"}
