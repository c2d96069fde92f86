"""The host: the only file that imports anything of ComfyUI.

Everything that differs between its versions ends here. The pack asks for 0.20.0 and still loads on 0.3.75, where
arguments that the host does not know are left out.
"""

# The host is not installed in the environment that checks types.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import secrets
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import comfy.model_management as memory
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.v0_0_2 import ComfyAPI, ComfyExtension
from comfy_api.v0_0_2 import io as host_io
from comfyui_version import __version__ as host_version
from PIL import Image
from server import PromptServer

from ...flowcore import FlowError

T = TypeVar("T")

# Not typed: what it holds depends on the host's version.
io: Any = host_io

FLOOR = "0.20.0"
FOLDER = "flows"
SUFFIXES = {".safetensors", ".sft", ".pt", ".pth"}
STEPS = 10_000  # of a progress bar that several tasks share
GALLERY, THUMBNAIL = 64, 256  # pictures that a node shows, and their longer side
COMPARED = 2048  # pixels of the longer side of two pictures that are compared on a node

log = logging.getLogger("flowcore")

# What `stop_if_cancelled` raises: an Exception in old hosts, in newer ones none.
Interrupted: type[BaseException] = memory.InterruptProcessingException


class Replacement(TypedDict):
    """A node id that is gone, and the node that does its work now; the fields of the host's `io.NodeReplace`.

    Attributes:
        old_node_id: The id that saved workflows hold.
        new_node_id: The id of a node of ours.
        old_widget_ids: Inputs of the old node that have a widget, in the order of the canvas, where values are saved by
            position.
        input_mapping: For every input of the new node `{"new_id", "old_id"}`, or `{"new_id", "set_value"}`.
        output_mapping: For every output of the old node `{"new_idx", "old_idx"}`.
    """

    old_node_id: str
    new_node_id: str
    old_widget_ids: list[str]
    input_mapping: list[dict[str, Any]]
    output_mapping: list[dict[str, int]]


on_start: list[Callable[[], None]] = []
"""What to do when the host has loaded the pack, once."""


class Extension(ComfyExtension):
    """What the host asks for our nodes."""

    def __init__(self, nodes: list[type], replacements: list[Replacement]) -> None:
        """Make `models/flows` known, and say so when the host is older than we ask for.

        Args:
            nodes: Node classes, in the order of the menu.
            replacements: Of node ids that are gone.
        """
        super().__init__()
        self._nodes = nodes
        self._replacements = replacements
        # Here and not in on_load, which 0.3.75 never calls.
        _register_folder()
        for prepare in on_start:
            prepare()
        if _version(host_version) < _version(FLOOR):
            log.warning(
                "flowcore needs ComfyUI >= %s and this is %s: its nodes work, some of their looks are missing.",
                FLOOR,
                host_version,
            )

    async def on_load(self) -> None:
        """Tell the host which nodes stand in for those that are gone; before 0.14 it does not ask."""
        if hasattr(io, "NodeReplace"):
            for replacement in self._replacements:
                await ComfyAPI().node_replacement.register(io.NodeReplace(**replacement))

    async def get_node_list(self) -> list[type]:
        """Return the node classes."""
        return self._nodes


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


# ---------------------------------------------------------------------------------------------------------------------
# schemas


def make(kind: type[T], *positional: Any, **fields: Any) -> T:
    """Build a Schema or an input of the host, leaving out the fields that this version does not know.

    Args:
        kind: The host's class, for example `io.Schema` or `io.Float.Input`.
        *positional: Passed on as they are.
        **fields: Passed on when the class has them.

    Returns:
        The new object.
    """
    known = inspect.signature(kind).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        fields = {name: value for name, value in fields.items() if name in known}
    return kind(*positional, **fields)


def curve_input(name: str, tooltip: str) -> Any:
    """Describe a curve to be drawn on the node, or to be connected; before 0.16 it can only be connected."""
    if hasattr(io, "Curve"):
        return make(io.Curve.Input, name, optional=True, socketless=False, tooltip=tooltip)
    straight = {"points": [[0.0, 0.0], [1.0, 1.0]], "interpolation": "monotone_cubic"}  # the later hosts' default
    return make(io.Custom("CURVE").Input, name, optional=True, tooltip=tooltip, extra_dict={"default": straight})


def along_curve(curve: Any, places: list[float]) -> list[float]:
    """Read a curve.

    Args:
        curve: As the canvas, a script or a node of the host sends it; None for the straight line from 0 to 1.
        places: Where, in [0, 1].

    Returns:
        Its heights.

    Raises:
        FlowError: If it is no curve.
    """
    if curve is None:
        return places
    try:
        from comfy_api.input import CurveInput  # before 0.16 there is none

        heights = [float(CurveInput.from_raw(curve).interp(place)) for place in places]
    except Exception as error:  # whatever was sent: from_raw takes it apart without looking
        raise FlowError(
            f"curve must be the points of a curve, such as [[0, 0], [1, 1]]; got a {type(curve).__name__} that cannot "
            "be read. Draw one, connect Curve Editor, or leave it out."
        ) from error
    if not all(-1e3 < height < 1e3 for height in heights):
        raise FlowError(f"curve must stay between 0 and 1; it reaches {max(heights, key=abs):.6g}. Draw it lower.")
    return heights


def gradient_slider() -> Any:
    """Return the display mode of a slider with a coloured track, or of a plain one where there is no such."""
    return getattr(io.NumberDisplay, "gradient_slider", io.NumberDisplay.slider)


# ---------------------------------------------------------------------------------------------------------------------
# model files


def _register_folder() -> None:
    # extra_model_paths.yaml may have made the name already, with an empty set of suffixes, which means "every file".
    paths, suffixes = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    ours = os.path.join(folder_paths.models_dir, FOLDER)
    if ours not in paths:
        paths.append(ours)
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(suffixes) | SUFFIXES)


def model_files() -> list[str]:
    """List the files in `models/flows` and in the folders of `extra_model_paths`, as the host names them."""
    return folder_paths.get_filename_list(FOLDER)


def model_folders() -> list[str]:
    """List the folders where model files are looked for."""
    return folder_paths.get_folder_paths(FOLDER)


def model_path(name: str) -> Path | None:
    """Find a model file.

    A name never leads out of the folders of models: the host takes `..` and leading slashes as if the folder were the
    whole disk. A link that lies in a folder of models is followed, wherever it points: people keep models on other
    disks, and no prompt can make a link.

    Args:
        name: Its name as in `model_files`.

    Returns:
        Its path, or None when there is no such file.
    """
    path = folder_paths.get_full_path(FOLDER, name)
    return Path(path) if path else None


def model_target(name: str) -> Path:
    """Say where a new model file goes: into `models/flows` itself, made if need be.

    Args:
        name: Its name there.

    Returns:
        Its path; there may be a file.
    """
    folder = Path(folder_paths.models_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def upscale_model_files() -> list[Path]:
    """Find the files that the host's own Load Upscale Model offers."""
    names = folder_paths.get_filename_list("upscale_models")
    paths = (folder_paths.get_full_path("upscale_models", name) for name in names)
    return [Path(path) for path in paths if path]


def recipe_files() -> dict[str, Path]:
    """Find the recipes (`.toml`) that lie directly in the folders of models: name to path, sorted."""
    found: dict[str, Path] = {}
    for folder in map(Path, model_folders()):
        for path in folder.glob("*.toml"):
            found.setdefault(path.name, path)
    return dict(sorted(found.items()))


# ---------------------------------------------------------------------------------------------------------------------
# input and output folders


def input_files(subfolder: str, suffix: str) -> list[str]:
    """List files of the input folder and of one of its sub-folders.

    Args:
        subfolder: Name of the sub-folder; it need not exist.
        suffix: What their names end with.

    Returns:
        Names relative to the input folder, with forward slashes, sorted.
    """
    base = Path(folder_paths.get_input_directory())
    files = (file for folder in (base, base / subfolder) if folder.is_dir() for file in folder.iterdir())
    return sorted(file.relative_to(base).as_posix() for file in files if file.suffix == suffix and file.is_file())


def input_path(name: str) -> Path | None:
    """Find a file of the input folder; or of the output folder, if the name ends in " [output]".

    Neither the name nor a link leads out of that folder, as in the host's own loaders.

    Args:
        name: Its name as in `input_files`.

    Returns:
        Its path, or None when there is no such file, or the name leads out of the folder.
    """
    plain, folder = folder_paths.annotated_filepath(name)
    folder = os.path.realpath(folder or folder_paths.get_input_directory())
    try:
        # Not the host's own check: 0.3.75 has none.
        path = os.path.realpath(os.path.join(folder, plain))
        inside = os.path.commonpath((folder, path)) == folder
    except ValueError:  # a zero byte in the name, or another drive
        return None
    return Path(path) if inside and os.path.isfile(path) else None


def output_path(prefix: str, suffix: str) -> tuple[Path, dict[str, str]] | None:
    """Choose the next free name in the output folder, as the host's own saving nodes do.

    What is written stays in the output folder: neither `..`, nor an absolute path, nor a link inside it leads out. The
    output folder itself may be a link.

    Args:
        prefix: Sub-folders and beginning of the name; may hold the host's %date% words.
        suffix: What the name ends with.

    Returns:
        The path, whose folder exists, and how the history names it; or None when the prefix leads out of the folder.

    Raises:
        FlowError: If the folder that the prefix names cannot be made or read.
    """
    base = os.path.realpath(folder_paths.get_output_directory())
    try:
        asked = os.path.realpath(os.path.join(base, prefix))
        if "\0" in prefix or os.path.commonpath((base, asked)) != base:
            return None
    except ValueError:
        return None
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, base)
    except OSError as error:  # too long a name, or a file where a folder should be
        raise FlowError(
            f"Cannot save under `{prefix[:80]}` in the output folder: {error.strerror or error}. Choose another name."
        ) from error
    file = f"{name}_{counter:05}_{suffix}"
    return Path(folder) / file, {"filename": file, "subfolder": subfolder, "type": "output"}


def any_folder(name: str) -> Path:
    """Find a folder of the person's: anywhere by an absolute path, otherwise below the input folder.

    Args:
        name: As it was typed or pasted; quotation marks around it and a `~` at its beginning are understood.

    Returns:
        Its path; it need not exist.
    """
    typed = os.path.expanduser(name.strip().strip("\"'"))
    return Path(os.path.abspath(os.path.join(folder_paths.get_input_directory(), typed)))


def output_folder(*names: str) -> Path:
    """Name a folder below the output folder.

    Args:
        *names: From the outside to the inside; plain names.

    Returns:
        Its path; it need not exist.
    """
    return Path(folder_paths.get_output_directory(), *names)


def as_output(path: Path) -> dict[str, str]:
    """Say how the history names a file of the output folder.

    Args:
        path: The file.

    Returns:
        What `/view` takes.
    """
    subfolder = path.parent.relative_to(folder_paths.get_output_directory()).as_posix()
    return {"filename": path.name, "subfolder": subfolder, "type": "output"}


# ---------------------------------------------------------------------------------------------------------------------
# memory and devices


on_release: list[Callable[[], None]] = []
"""What to call when the host takes a model off its device: whatever was derived from models goes, too."""


class _Patcher(comfy.model_patcher.ModelPatcher):
    """The host's, which also lets go of what we derived from models."""

    def detach(self, unpatch_all: bool = True) -> Any:
        if unpatch_all:  # the host says otherwise when it loads the same model anew
            for release in on_release:
                release()
        return super().detach(unpatch_all)


def wrap(model: torch.nn.Module) -> Any:
    """Give a model into the host's care, which moves it between devices and frees it under pressure.

    Args:
        model: A module on the CPU.

    Returns:
        The host's ModelPatcher. Not CoreModelPatcher: that one may move only layers made by `comfy.ops`.
    """
    return _Patcher(model, load_device=memory.get_torch_device(), offload_device=memory.unet_offload_device())


def load_to_device(patcher: Any, working_memory: int) -> None:
    """Bring a wrapped model to its device, whole, with room to work.

    Args:
        patcher: What `wrap` returned.
        working_memory: Bytes needed beside the weights.
    """
    memory.load_models_gpu([patcher], memory_required=working_memory, force_full_load=True)


@contextlib.contextmanager
def whole_device() -> Generator[str, None, None]:
    """Free the device for work that is not a wrapped model's, such as training, and give it back afterwards.

    Yields:
        The host's device, as torch writes it.
    """
    memory.unload_all_models()
    memory.soft_empty_cache()
    try:
        yield str(memory.get_torch_device())
    finally:
        memory.soft_empty_cache()


def to_host_image(image: torch.Tensor) -> torch.Tensor:
    """Move a result to the device and dtype in which the host passes images between nodes."""
    dtype = memory.intermediate_dtype() if hasattr(memory, "intermediate_dtype") else image.dtype
    return image.to(device=memory.intermediate_device(), dtype=dtype)


# ---------------------------------------------------------------------------------------------------------------------
# prompts


def on_prompt(look: Callable[[Any], None]) -> None:
    """Let a function see every prompt when it is posted, before the host looks at it.

    Args:
        look: Called with the body of the post, whatever a client has sent; it may write into it.
    """

    def handler(body: Any) -> Any:
        try:
            look(body)
        except Exception:  # a prompt is worth more than what we wanted to know of it
            log.exception("flowcore could not look at a prompt")
        return body

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.add_on_prompt_handler(handler)


# ---------------------------------------------------------------------------------------------------------------------
# while a node runs


def stop_if_cancelled() -> bool:
    """Raise the host's own interruption when the person has pressed Cancel.

    Returns:
        False, always: it either raises or there is no reason to stop.
    """
    memory.throw_exception_if_processing_interrupted()
    return False


class Progress:
    """The progress bar on a node, and the pictures that appear in it."""

    def __init__(self) -> None:
        """Start an empty bar for the node that is running."""
        self._bar = comfy.utils.ProgressBar(1)

    def __call__(self, done: int, total: int, preview: torch.Tensor | None = None) -> None:
        """Move the bar.

        Args:
            done: Units of work done.
            total: Units of work in all.
            preview: A finished picture (1, 3 or 4, H, W) in [0, 1], or None; its alpha is not shown.
        """
        shown = None
        if preview is not None:
            colours = preview.detach()[:3].expand(3, -1, -1)
            pixels = colours.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
            short, long = sorted(pixels.shape[:2])
            # The host would blow a small picture up to the size it is given.
            size = min(long, getattr(args, "preview_size", 512))
            if short * size >= long:  # a narrow one would shrink to nothing, and the host dies of that
                shown = ("JPEG", Image.fromarray(pixels), size)
        self._bar.update_absolute(done, total, shown)

    def part(self, start: float, share: float) -> Callable[..., None]:
        """Give a task a piece of the bar, where several follow each other.

        Args:
            start: Where the piece begins, in [0, 1].
            share: Its length.

        Returns:
            What to pass to the task as its progress.
        """

        def move(done: int, total: int, preview: torch.Tensor | None = None) -> None:
            self(round(STEPS * (start + share * done / total)), STEPS, preview)

        return move


class Notes:
    """What there is to say about a run: shown on the node, logged, and kept for the history."""

    def __init__(self, node: str, node_id: str | None) -> None:
        """Start with nothing to say.

        Args:
            node: Display name of the node, for the log.
            node_id: Its hidden `unique_id`.
        """
        self.lines: list[str] = []
        self._node, self._node_id = node, node_id

    def __call__(self, message: str) -> None:
        """Say a sentence; the same one only once.

        Args:
            message: The sentence.
        """
        if message not in self.lines:
            self.lines.append(message)
            log.warning("%s: %s", self._node, message)
            say(message, self._node_id)

    @property
    def ui(self) -> dict[str, list[str]] | None:
        """What a node that says nothing else returns as its `ui`."""
        return {"text": self.lines} if self.lines else None


def gallery(pictures: torch.Tensor, seed: int, samples: int, notes: Notes, labels: list[int] | None = None) -> Any:
    """Keep small copies of a run's pictures, which the canvas shows on the node; a click takes the seed of one.

    Args:
        pictures: (N, C, H, W) in [0, 1].
        seed: Of the first.
        samples: How many seeds there are; they start again for every input image.
        notes: What there is to say about the run.
        labels: What every picture shows, where its place decides.

    Returns:
        The node's `ui`. Always with the same keys: the host joins those of a list of runs.
    """
    shown: list[dict[str, Any]] = []
    try:
        for k, picture in enumerate(pictures[:GALLERY]):
            entry = _kept_for_now(picture, THUMBNAIL, ".jpg", quality=90)
            entry["seed"] = (seed + k % samples) % 2**64
            if labels is not None and labels[k] != labels[0]:  # they are given out in turn: start with this one
                entry["labels"] = ", ".join(map(str, labels[k:] + labels[:k]))
            shown.append(entry)
    except OSError as error:  # the run is done, and its pictures are safe
        log.warning("The gallery on the node is not shown: %s", error)
    return {"text": notes.lines, "flowcore_gallery": shown}


def compare_input() -> list[Any]:
    """Describe the view `compare`, in which one picture is wiped over another; nothing where the host has no such."""
    kind = getattr(io, "ImageCompare", None)
    tooltip = "Before and after: the first image enlarged the ordinary way, and the first result. It holds no value."
    return [make(kind.Input, "compare", optional=True, tooltip=tooltip)] if kind else []


def compared(before: Callable[[], torch.Tensor], after: torch.Tensor, pnginfo: Any) -> dict[str, list[dict[str, str]]]:
    """Keep two pictures for the view `compare`. Scripts have no such view, so nothing is kept for them.

    Args:
        before: Called for (C, H, W) in [0, 1], where there is such a view.
        after: (C, H, W) in [0, 1].
        pnginfo: The hidden `extra_pnginfo`, in which the canvas sends its workflow.

    Returns:
        What belongs into the node's `ui`; always the same keys for the runs of a prompt.
    """
    if not hasattr(io, "ImageCompare") or not isinstance(pnginfo, dict) or "workflow" not in pnginfo:
        return {}
    kept: dict[str, list[dict[str, str]]] = {"a_images": [], "b_images": []}
    try:
        for key, picture in zip(kept, (before(), after), strict=True):
            kept[key].append(_kept_for_now(picture, COMPARED, ".png", compress_level=1))
    except OSError as error:  # the run is done, and its pictures are safe
        log.warning("Before and after are not shown on the node: %s", error)
    return kept


def _kept_for_now(picture: torch.Tensor, longest: int, suffix: str, **options: Any) -> dict[str, Any]:
    """Save a small copy of a picture where the host empties at every start; how the canvas finds it."""
    folder = Path(folder_paths.get_temp_directory()) / "flowcore"
    folder.mkdir(parents=True, exist_ok=True)
    name = secrets.token_hex(8) + suffix
    _shrunk(picture, longest).save(folder / name, **options)
    return {"filename": name, "subfolder": folder.name, "type": "temp"}


def _shrunk(picture: torch.Tensor, longest: int) -> Image.Image:
    colours = picture.detach()[:3].expand(3, -1, -1)[None]
    shrinking = max(colours.shape[-2:]) / longest
    if shrinking > 1:
        size = [max(1, round(side / shrinking)) for side in colours.shape[-2:]]
        colours = torch.nn.functional.interpolate(colours, size, mode="area")
    return Image.fromarray(colours[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy())


def say(text: str, node_id: str | None) -> None:
    """Show a line of text on a node while it runs.

    Args:
        text: What to show.
        node_id: The hidden `unique_id` of the node.
    """
    server = getattr(PromptServer, "instance", None)
    if node_id is not None and server is not None:
        server.send_progress_text(text, node_id)
