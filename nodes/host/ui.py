"""What a node shows while it runs and afterwards: progress, messages, and small copies of its pictures."""

# pyright: reportMissingImports=false

import io
import json
import math
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from PIL import Image
from server import PromptServer
from torch import Tensor

from ...flowcore.images.color import to_uint8
from ...flowcore.tasks import part_of
from .compat import log
from .memory import stop_if_cancelled

GALLERY, THUMBNAIL = 64, 256  # pictures shown on a node, and their longer side
LARGE, EXACT = 4096, 2**20  # pixels of the longer side of a picture in the viewer; of one that is not compressed


class Progress:
    """The progress bar on the running node, with previews."""

    # Not by `ComfyAPI().execution.set_progress`, which leaves out the messages `progress` that scripts follow and sends
    # every step: the host's ProgressBar does both, and reports to the same place.
    def __init__(self, sources: Tensor | None = None) -> None:
        """Start at 0, with the first of the pictures that are worked on, (B, C, H, W), as the preview."""
        self._bar = comfy.utils.ProgressBar(1)
        if sources is not None and sources.numel() and sources.shape[1] in (1, 3, 4):  # the task refuses others
            self(0, 1, sources[0])

    def __call__(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Move the bar, and show a finished picture, (C, H, W) in [0, 1]; see `flowcore.tasks.Progress`."""
        shown = None
        if preview is not None:
            short, long = sorted(preview.shape[-2:])
            size = min(long, args.preview_size)  # the host would enlarge a small picture to the size it is given
            if short * size >= long:  # the host crashes on a picture so narrow that it shrinks to nothing
                shown = ("JPEG", _to_pil(preview), size)
        self._bar.update_absolute(done, total, shown)

    def part(self, start: float, share: float) -> Callable[..., None] | None:
        """Return the progress of one task among several; see `part_of`."""
        return part_of(self, start, share)


class Notes:
    """Warnings of a run, for whoever reads nothing else: shown whole on the node, logged, and kept in the history.

    What was measured is no warning, but the `text` of the node's output, which stands behind them.
    """

    def __init__(self, node: str, node_id: str | None) -> None:
        self.lines: list[str] = []
        self.progress: Callable[..., None] | None = None  # of the next task, where a run has several
        self._node, self._node_id = node, node_id

    def __call__(self, message: str) -> None:
        """Add a message; repeated ones are dropped."""
        if message not in self.lines:
            self.lines.append(message)
            log.warning("%s: %s", self._node, message)
            self.show()

    def show(self, text: str = "") -> None:
        """Show text below the warnings while the node runs, to the client that queued it; its result replaces it."""
        # Not the host's own progress text, which all clients show on whatever node has that number; see web/js/text.js.
        server = getattr(PromptServer, "instance", None)
        client = getattr(server, "client_id", None)
        if self._node_id is not None and server is not None and client is not None:
            run = getattr(server, "last_prompt_id", None)
            message = {"prompt_id": run, "node": self._node_id, "text": text, "warnings": [*self.lines]}
            server.send_sync("flowcore.text", message, client)

    def follow(self, progress: Callable[..., None] | None = None, sources: Tensor | None = None, **more: Any) -> Any:
        """Return keywords for a task: `more`, how it tells its progress and its notes, and when to stop."""
        progress = progress or self.progress or Progress(sources)
        return {"progress": progress, "cancelled": stop_if_cancelled, "notify": self, **more}


def gallery(node: Any, pictures: Tensor, facts: list[dict[str, Any]], sources: Tensor | None) -> dict[str, Any]:
    """Save what the canvas shows of a node's pictures (N, C, H, W), where a click on one picks it: its `ui`.

    `facts` has of every picture its `seed`, and what else the canvas is to show or to know, see web/js/gallery.js;
    scripts get thumbnails only. `sources` (B, C, h, w) are what the pictures were made of, N / B of each.
    """
    shown: list[dict[str, Any]] = []
    large = from_canvas(node)
    try:
        before: dict[int, dict[str, Any]] = {}
        for k, (picture, fact) in enumerate(zip(pictures[:GALLERY], facts, strict=False)):
            entry = {**_save_temporary(picture, THUMBNAIL, ".jpg", quality=90), "number": k + 1, **fact}
            if large:
                entry["full"] = _save_full(picture)
            if large and sources is not None:
                place = k * len(sources) // len(pictures)
                before[place] = before.get(place) or _save_full(sources[place])
                entry["source"] = before[place]
            shown.append(entry)
    except OSError as error:  # the run is done, and its pictures are safe
        log.warning("The gallery on the node is not shown: %s", error)
    return {"text": [], "flowcore_gallery": shown}  # of a list of runs the host joins them, key by key


def finite(values: Iterable[Any]) -> list[float | None]:
    """Convert numbers for the history: NaN and infinity, which JSON does not have, become None."""
    return [float(value) if math.isfinite(value) else None for value in values]


def of_image(place: int, each: int, count: int) -> dict[str, int]:
    """Return the fact that tells pictures of several images apart, of which there are `each`: the image's number."""
    return {"image": place // each} if count > each else {}


def canvas_pictures(node: Any, pictures: Tensor, key: str = "images") -> dict[str, list[Any]]:
    """Save pictures, (N, C, H, W), for the node's `ui`, which shows `images`; nothing for scripts, without a canvas."""
    if not from_canvas(node):
        return {}
    saved: list[Any] = []
    try:
        saved += map(_save_full, pictures[:GALLERY])
    except OSError as error:  # the run is done, and its result is safe
        log.warning("The pictures are not shown on the node: %s", error)
    return {key: saved}


def png_texts(hidden: Any) -> dict[str, str]:
    """Return what the host writes into PNG files as text: a node's hidden `prompt`, and all of its `extra_pnginfo`."""
    more = hidden.extra_pnginfo if isinstance(hidden.extra_pnginfo, dict) else {}
    values = {} if args.disable_metadata else {"prompt": hidden.prompt, **more}
    return {name: json.dumps(value) for name, value in values.items() if value is not None}


def from_canvas(node: Any) -> bool:
    """Whether a canvas has sent a node's run, with its workflow; scripts have nothing to show pictures on."""
    pnginfo = node.hidden.extra_pnginfo
    return isinstance(pnginfo, dict) and "workflow" in pnginfo


def _save_full(picture: Tensor) -> dict[str, Any]:
    if picture.shape[-1] * picture.shape[-2] <= EXACT:
        return _save_temporary(picture, LARGE, ".png", compress_level=1)
    return _save_temporary(picture, LARGE, ".jpg", quality=95, subsampling=0)


def _save_temporary(picture: Tensor, longest: int, suffix: str, **options: Any) -> dict[str, Any]:
    """Save a copy, shrunk to a longest side, in the folder that the host empties at every start."""
    folder = Path(folder_paths.get_temp_directory()) / "flowcore"
    folder.mkdir(parents=True, exist_ok=True)
    name = secrets.token_hex(8) + suffix
    shrinking = max(picture.shape[-2:]) / longest
    if shrinking > 1:
        size = [max(1, round(side / shrinking)) for side in picture.shape[-2:]]
        picture = torch.nn.functional.interpolate(picture.detach()[None], size, mode="area")[0]
    _to_pil(picture).save(folder / name, **options)
    return {"filename": name, "subfolder": folder.name, "type": "temp"}


def png(picture: Tensor, around: tuple[int, int, int, int] = (0, 0, 0, 0)) -> bytes:
    """Encode (C, H, W) in [0, 1], C = 1, 3 or 4; alpha is dropped. Left, top, right and below is nothing."""
    buffer, image, (left, top, right, bottom) = io.BytesIO(), _to_pil(picture), around
    if any(around):
        part, image = image, Image.new("RGBA", (image.width + left + right, image.height + top + bottom))
        image.paste(part, (left, top))
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _to_pil(picture: Tensor) -> Image.Image:
    """Convert (C, H, W) in [0, 1], C = 1, 3 or 4; alpha is dropped."""
    rgb = picture.detach()[:3].expand(3, -1, -1)
    return Image.fromarray(to_uint8(rgb).permute(1, 2, 0).cpu().numpy())
