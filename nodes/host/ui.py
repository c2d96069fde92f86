"""What a node shows while it runs and afterwards: progress, messages, and small copies of its pictures."""

# pyright: reportMissingImports=false

import io
import json
import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from PIL import Image
from server import PromptServer
from torch import Tensor

from flowcore.engine.progress import TimeLeft, duration, part_of
from flowcore.errors import Argument, Message, say
from flowcore.images.color import to_uint8

from .compat import log
from .memory import stop_if_cancelled

GALLERY, THUMBNAIL = 64, 256  # pictures shown on a node, and pixels of their longer side
LARGE, EXACT = 4096, 2**20  # pixels of the longer side of a picture in the viewer; pixels up to which it is lossless


class Progress:
    """The progress bar on the running node, with previews."""

    def __init__(self, sources: Tensor | None = None, show: Callable[[str], None] | None = None) -> None:
        """Start at 0 with the first of the source pictures, (B, C, H, W), as the preview; `show` gets the time left."""
        self._show, self._time_left = show, TimeLeft()
        # Not `ComfyAPI().execution.set_progress`, which does not send the `progress` messages that scripts follow.
        self._bar = comfy.utils.ProgressBar(1)
        if sources is not None and sources.numel() and sources.shape[1] in (1, 3, 4):  # the task refuses others
            self(0, 1, sources[0])

    def __call__(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Move the bar, and show a finished picture, (C, H, W) in [0, 1]; see `flowcore.engine.progress.Progress`."""
        shown = None
        if preview is not None:
            short, long = sorted(preview.shape[-2:])
            size = min(long, args.preview_size)  # the host would enlarge a smaller picture
            if short * size >= long:  # the host crashes if the shorter side shrinks to less than a pixel
                shown = ("JPEG", _to_pil(preview), size)
        self._bar.update_absolute(done, total, shown)
        if self._show is not None and (left := self._time_left.after(done / total)) is not None:
            self._show(say("About {time} left", time=duration(round(left))))

    def part(self, start: float, share: float) -> Callable[..., None] | None:
        """Return the progress of one task among several; see `part_of`."""
        return part_of(self, start, share)


class Notes:
    """Warnings of a run: shown in full on the node, logged, and kept in the history.

    Measurements are not warnings; they belong to the `text` of the node's output, which follows these.
    """

    def __init__(self, node: str, node_id: str | None) -> None:
        self.lines: list[str] = []
        self.progress: Callable[..., None] | None = None  # progress of the next task, if a run has several
        self._node, self._node_id = node, node_id

    def __call__(self, template: str, /, **values: object) -> None:
        """Add a message, see `say`, unless it is there already."""
        message = say(template, **values)
        if message not in self.lines:
            self.lines.append(message)
            log.warning("%s: %s", self._node, message)
            self.show()

    def show(self, text: str = "") -> None:
        """Show text below the warnings to the client that queued the run, until the node's result replaces it."""
        # Not the host's own progress text, which every client shows on whatever node has that id; see web/js/text.js.
        if self._node_id is not None:
            shown = {"text": text, "warnings": [*self.lines]}
            _send("flowcore.text", node=self._node_id, **shown, messages=translatable(shown))

    def start(self, sources: Tensor | None = None) -> Progress:
        """Start the progress of a run, which shows the time left; see `Progress`."""
        return Progress(sources, self.show)

    def task_options(
        self, progress: Callable[..., None] | None = None, sources: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the keywords with which a task reports its progress and its notes, and learns when to stop."""
        progress = progress or self.progress or self.start(sources)
        return {"progress": progress, "cancelled": stop_if_cancelled, "notify": self}


def translatable(said: Any) -> Any:
    """Turn messages, also in lists and dictionaries, into what web/js/messages.js translates; other texts stay."""
    if isinstance(said, list):
        return [translatable(each) for each in said]
    if isinstance(said, dict):
        return {name: translatable(each) for name, each in said.items()}
    if isinstance(said, Message):
        return {"template": said.template, "values": translatable(said.values)}
    return {"argument": said} if isinstance(said, Argument) else said


def send_failure(message: Message) -> None:
    """Send the page the message of an error, which the host reports as plain text."""
    _send("flowcore.error", message=translatable(message))


def _send(event: str, **fields: Any) -> None:
    """Send an event to the client that queued the run, if there is one."""
    server = getattr(PromptServer, "instance", None)
    client = getattr(server, "client_id", None)
    if server is not None and client is not None:
        server.send_sync(event, {"prompt_id": getattr(server, "last_prompt_id", None), **fields}, client)


def gallery(node: Any, pictures: Tensor, facts: list[dict[str, Any]], sources: Tensor | None) -> dict[str, Any]:
    """Save pictures (N, C, H, W) for the gallery on the node, where a click picks one; return the node's `ui`.

    `facts` holds for every picture its `seed` and whatever else web/js/gallery.js needs. `sources` (B, C, h, w) are
    what the pictures were made from, N / B of each. Scripts get thumbnails only.
    """
    entries: list[dict[str, Any]] = []
    on_canvas = from_canvas(node)
    try:
        saved_sources: dict[int, dict[str, Any]] = {}
        for k, (picture, fact) in enumerate(zip(pictures[:GALLERY], facts, strict=False)):
            entry = {**_save_temporary(picture, THUMBNAIL, ".jpg", quality=90), "number": k + 1, **fact}
            if on_canvas:
                entry["full"] = _save_for_viewer(picture)
            if on_canvas and sources is not None:
                image = k * len(sources) // len(pictures)
                saved_sources[image] = saved_sources.get(image) or _save_for_viewer(sources[image])
                entry["source"] = saved_sources[image]
            entries.append(entry)
    except OSError as error:  # the run itself has succeeded
        log.warning("The gallery on the node is not shown: %s", error)
    return {"text": [], "flowcore_gallery": entries}  # the host joins the values of each key over a list of runs


def finite(values: Iterable[Any]) -> list[float | None]:
    """Convert numbers for the history: NaN and infinity, which JSON does not know, become None."""
    return [float(value) if math.isfinite(value) else None for value in values]


def sample_facts(seeds: Sequence[int | None], per_image: int) -> list[dict[str, Any]]:
    """Return for each picture its seed, and its image if there are several; if no seed is known, its own number."""
    several = len(seeds) > per_image
    return [
        {"image": k} if seed is None else {"seed": seed, **({"image": k // per_image} if several else {})}
        for k, seed in enumerate(seeds)
    ]


def canvas_pictures(node: Any, pictures: Tensor, key: str = "images") -> dict[str, list[Any]]:
    """Save pictures (N, C, H, W) for the node's `ui`; the host shows those under "images". For scripts, do nothing."""
    if not from_canvas(node):
        return {}
    records: list[Any] = []
    try:
        records += map(_save_for_viewer, pictures[:GALLERY])
    except OSError as error:  # the run itself has succeeded
        log.warning("The pictures are not shown on the node: %s", error)
    return {key: records}


def png_texts(hidden: Any) -> dict[str, str]:
    """Return what the host writes into PNG files as text: a node's hidden `prompt` and its whole `extra_pnginfo`."""
    more = hidden.extra_pnginfo if isinstance(hidden.extra_pnginfo, dict) else {}
    values = {} if args.disable_metadata else {"prompt": hidden.prompt, **more}
    return {name: json.dumps(value) for name, value in values.items() if value is not None}


def from_canvas(node: Any) -> bool:
    """Whether a canvas, rather than a script, has queued a node's run."""
    pnginfo = node.hidden.extra_pnginfo
    return isinstance(pnginfo, dict) and "workflow" in pnginfo


def _save_for_viewer(picture: Tensor) -> dict[str, Any]:
    """Save a picture for the viewer, lossless only if it is small."""
    if picture.shape[-1] * picture.shape[-2] <= EXACT:
        return _save_temporary(picture, LARGE, ".png", compress_level=1)
    return _save_temporary(picture, LARGE, ".jpg", quality=95, subsampling=0)


def _save_temporary(picture: Tensor, longest: int, suffix: str, **options: Any) -> dict[str, Any]:
    """Save a copy, shrunk to a longest side, in the folder that the host empties whenever it starts."""
    folder = Path(folder_paths.get_temp_directory()) / "flowcore"
    folder.mkdir(parents=True, exist_ok=True)
    name = secrets.token_hex(8) + suffix
    shrinking = max(picture.shape[-2:]) / longest
    if shrinking > 1:
        size = [max(1, round(side / shrinking)) for side in picture.shape[-2:]]
        picture = torch.nn.functional.interpolate(picture.detach()[None], size, mode="area")[0]
    _to_pil(picture).save(folder / name, **options)
    return {"filename": name, "subfolder": folder.name, "type": "temp"}


def png(picture: Tensor, margins: tuple[int, int, int, int] = (0, 0, 0, 0)) -> bytes:
    """Encode (C, H, W) in [0, 1], C = 1, 3 or 4, without alpha; margins (left, top, right, bottom) are transparent."""
    buffer, image = io.BytesIO(), _to_pil(picture)
    if any(margins):
        left, top, right, bottom = margins
        framed = Image.new("RGBA", (image.width + left + right, image.height + top + bottom))
        framed.paste(image, (left, top))
        image = framed
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _to_pil(picture: Tensor) -> Image.Image:
    """Convert (C, H, W) in [0, 1], C = 1, 3 or 4; alpha is dropped."""
    rgb = picture.detach()[:3].expand(3, -1, -1)
    return Image.fromarray(to_uint8(rgb).permute(1, 2, 0).cpu().numpy())
