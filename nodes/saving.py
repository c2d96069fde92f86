"""Pictures saved to files with all bits, alpha and metadata; signed and recorded if asked."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from flowcore import FlowError
from flowcore.batch.credentials import Signer, sign
from flowcore.batch.job import encode_like
from flowcore.batch.provenance import KEY, picture_fingerprint
from flowcore.batch.record import TRACED, Entry, RecordFile, thumbnail
from flowcore.engine.image_batch import MAX_STRETCH, ImageBatch, append_alpha
from flowcore.errors import Argument, say
from flowcore.images.files import SUFFIXES, Format, check_format, read, read_bytes
from flowcore.images.metadata import NOT_SIGNED
from flowcore.models.writing import write_atomic

from . import widgets
from .files import content_hash, source_name
from .host.compat import io
from .host.paths import input_path, output_path, record_path
from .host.ui import png_texts
from .node import FlowNode, file_fingerprint
from .picking import PROVENANCE_LOG, upstream_nodes
from .sockets import Image, Mask, from_mask, shown

OPAQUE = say("Its transparent parts are opaque in the result. Connect a mask to keep them.")
OPAQUE_JPEG = say("Its transparent parts are opaque in the result: a JPEG file has none.")
BITS: dict[Any, int | None] = {"source": None, "8": 8, "16": 16}
NOT_RECORDED = say(
    "Pictures that are not in the record: {count}. They have no seed, or it is not known. Save them directly from the "
    "node that makes them, at a temperature above 0."
)
UNTOLD = {"FlowcoreSave", "FlowcoreExample", "FlowcoreLoadModel"}  # nodes that change no picture


class FlowcoreSave(FlowNode):
    """Save pictures to new files, with all bits, alpha and metadata."""

    MENU = "files"
    ALIASES = "save image, save picture, 16 bit, export image, tiff, exif, icc profile, alpha"
    HIDDEN = (io.Hidden.prompt, io.Hidden.extra_pnginfo)
    IS_OUTPUT_NODE = True

    @classmethod
    def validate_inputs(
        cls, source: Any = "", format: Any = "png", bits: Any = "8", credentials: Any = False, record: Any = False
    ) -> bool | str:
        try:  # refuse before anything runs; None stands for a wire
            _named_pictures(source or "")
            check_format(format or "png", 16 if bits == "16" else 8)
            if credentials is True:
                Signer.load()
            if record is True:
                RecordFile(record_path())
        except FlowError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, source: Any = "", **_: Any) -> list[str]:
        return [content_hash(file, file_fingerprint(file)) for file in _named_pictures(source or "")]

    def run(
        self,
        images: Image,
        filename_prefix: Annotated[str, widgets.text("flowcore/picture")],
        format: Annotated[Format, widgets.choice(*SUFFIXES)],
        bits: Annotated[str, widgets.choice(*BITS)],
        source: widgets.Text,
        mask: Mask | None,
        quality: Annotated[int, widgets.integer(0, 0, 100, optional=True, advanced=True)],
        credentials: Annotated[bool, widgets.switch(advanced=True)],
        record: Annotated[bool, widgets.switch(advanced=True)],
    ) -> Any:
        batch = ImageBatch(images.cpu())
        rgb, alpha = batch.rgb, batch.alpha
        if mask is not None and bool(mask.any()):  # loaders give a mask of zeros if nothing is transparent
            # One mask for every so many pictures; for other numbers, `from_mask` says what it expects.
            items = len(mask) if len(rgb) % max(1, len(mask)) == 0 else len(rgb)
            alpha = 1 - from_mask(mask, items, (rgb.shape[-2], rgb.shape[-1]))
        pictures, files = append_alpha(rgb, alpha), _named_pictures(source) or [None]
        if len(pictures) % len(files):
            raise FlowError(
                "source names {files} files, but there are {pictures} pictures. Name one file for all.",
                files=len(files),
                pictures=len(pictures),
            )
        options: dict[str, Any] = {"format": format, "bits": BITS[bits], "quality": quality or None}
        options |= {"text": png_texts(self.hidden), "notify": self.notes}
        saved, paths = list[dict[str, str]](), list[Path]()
        signer, recipe = (Signer.load(), self._recipe()) if credentials else (None, [])
        for file, results in zip(files, pictures.unflatten(0, (len(files), -1)), strict=True):
            content, name = (None, "") if file is None else (read_bytes(file), file.name)
            original = None if content is None else read(content, name)
            for note in original.notes if original else ():
                if signer is None or note != NOT_SIGNED:
                    self._note(name, note)
            if original and len(results[0]) < 4 and bool((original.pixels[:, 3:] < 1).any()):
                (height, width), (rows, columns) = original.pixels.shape[-2:], results.shape[-2:]
                if format != "jpeg" and abs(columns * height / (rows * width) - 1) <= MAX_STRETCH:
                    results = append_alpha(results, original.pixels[:, 3:])
                else:
                    self._note(name, OPAQUE_JPEG if format == "jpeg" else OPAQUE)
            for picture in results:
                data = encode_like(original, picture, **options)
                if signer is not None:
                    digest, sources = picture_fingerprint(picture), [] if content is None else [content]
                    data = sign(data, recipe, signer, picture=digest, sources=sources, notify=partial(self._note, name))
                prefix = filename_prefix.replace("%batch_num%", str(len(saved)))
                path, place = output_path(prefix, SUFFIXES[format], (picture.shape[-2], picture.shape[-1]))
                write_atomic(path, data)
                saved.append(place)
                paths.append(path)
        if record:
            self._record(rgb, paths)
        return self.output(images=saved, text=[])

    def _record(self, pictures: Tensor, paths: list[Path]) -> None:
        """Write saved pictures into the record of the canvas, as far as it is known what made them."""
        entries, prompt, now = list[Entry](), self.hidden.prompt, time.time()
        origins = PROVENANCE_LOG.origins(pictures, prompt, self.hidden.unique_id)
        for picture, path, origin in zip(pictures, paths, origins, strict=True):
            if origin is None or origin.entry.node not in TRACED or origin.entry.temperature == 0:
                continue
            made = origin.entry
            names = str(path), source_name(prompt, made.node_id), made.model, made.model_sha256
            settings = {**made.settings, "temperature": made.temperature}
            entries.append(Entry(*names, origin.seed, *origin.size, settings, now, thumbnail(picture[None])))
        try:
            RecordFile(record_path()).add_entries(entries)
        except FlowError as error:
            self.notes("{error} Pictures are saved, and not in it.", error=error)
            return
        if len(entries) < len(paths):
            self.notes(NOT_RECORDED, count=len(paths) - len(entries))

    def _note(self, name: str, sentence: str) -> None:
        self.notes("{name}: {note}", name=name, note=sentence)

    def _recipe(self) -> list[dict[str, Any]]:
        """Describe the nodes of ours before this one: their provenance, as far as it was recorded, or their names."""
        prompt, extra = self.hidden.prompt, self.hidden.extra_pnginfo
        known = extra.get(KEY) if isinstance(extra, dict) else None
        recorded = [entry for entry in known if isinstance(entry, dict)] if isinstance(known, list) else []
        recipe: list[dict[str, Any]] = []
        for node_id, kind, _ in upstream_nodes(prompt if isinstance(prompt, dict) else {}, str(self.hidden.unique_id)):
            own = [entry for entry in recorded if str(entry.get("node_id")) == node_id]
            recipe = [*own, *recipe] if own else recipe
            if not own and str(kind).startswith("Flowcore") and kind not in UNTOLD:
                recipe = [{"node": kind}, *recipe]
        return recipe


def _named_pictures(source: Any) -> list[Path]:
    """Find the files of the input folder that a text names, one per line."""
    paths: list[Path] = []
    for name in filter(None, map(str.strip, str(source).splitlines())):
        if (path := input_path(name)) is None:
            raise FlowError(
                "{source}: there is no picture {name} in the input folder. Correct or remove it.",
                source=Argument("source"),
                name=shown(name),
            )
        paths.append(path)
    return paths
