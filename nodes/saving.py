"""Save pictures with all of their bits, and with what the file held that they were made of."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

from ..flowcore import FlowError
from ..flowcore.batch.job import encode_like
from ..flowcore.checkpoints.writing import write_atomic
from ..flowcore.images.files import SUFFIXES, Format, check_format, read, read_bytes
from ..flowcore.tasks.intake import validate_image, with_alpha
from . import widgets
from .host.compat import io
from .host.paths import input_path, output_path
from .host.ui import png_texts
from .node import FlowNode
from .sockets import Image, Mask, from_mask, shown

BITS: dict[Any, int | None] = {"source": None, "8": 8, "16": 16}


class FlowcoreSave(FlowNode):
    """Pictures in files of their own, none of which is ever replaced."""

    MENU = "image"
    ALIASES = "save image, save picture, 16 bit, export image, tiff, exif, icc profile, alpha"
    HIDDEN = (io.Hidden.prompt, io.Hidden.extra_pnginfo)
    IS_OUTPUT_NODE = True

    @classmethod
    def validate_inputs(cls, source: Any = "", format: Any = "png", bits: Any = "8") -> bool | str:
        try:  # what cannot be saved is refused before the work; None comes along a wire
            _files(source or "")
            check_format(format or "png", 16 if bits == "16" else 8)
        except FlowError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, source: Any = "", **_: Any) -> list[str]:
        return [hashlib.sha256(read_bytes(file)).hexdigest() for file in _files(source or "")]  # as Flow Example

    def run(
        self,
        images: Image,
        filename_prefix: Annotated[str, partial(io.String.Input, default="flowcore/picture")],
        format: Annotated[str, widgets.choice(*SUFFIXES)],
        bits: Annotated[str, widgets.choice(*BITS)],
        source: widgets.Text,
        mask: Mask | None,
        quality: Annotated[int, widgets.integer(0, 0, 100, optional=True, advanced=True)],
    ) -> Any:
        records, kind = list[dict[str, str]](), cast("Format", format)
        rgb, alpha = validate_image(images.cpu())
        if mask is not None and bool(mask.any()):  # a mask of zeros is what loaders give where nothing is transparent
            alpha = 1 - from_mask(mask, len(mask) if len(rgb) % max(1, len(mask)) == 0 else len(rgb))
        pictures, files = with_alpha(rgb, alpha), _files(source) or [None]
        if len(pictures) % len(files):
            raise FlowError(f"source names {len(files)} pictures, and {len(pictures)} came. Name one, for all.")
        options: dict[str, Any] = {"format": kind, "bits": BITS[bits], "quality": quality or None}
        options |= {"text": png_texts(self.hidden), "notify": self.notes}
        for file, made in zip(files, pictures.unflatten(0, (len(files), -1)), strict=True):
            original = None if file is None else read(read_bytes(file), file.name)
            for picture in made:
                data = encode_like(original, picture, **options)
                prefix = filename_prefix.replace("%batch_num%", str(len(records)))
                path, record = output_path(prefix, SUFFIXES[kind], (picture.shape[-2], picture.shape[-1]))
                write_atomic(path, data)
                records.append(record)
        return self.output(images=records, text=self.notes.lines)


def _files(source: Any) -> list[Path]:
    """Find the pictures of the input folder that a text names, one a line."""
    names = [line.strip() for line in str(source).splitlines() if line.strip()]
    found = [(name, input_path(name)) for name in names]
    for name, path in found:
        if path is None:
            raise FlowError(
                f"source: there is no picture {shown(name)} in the input folder. Correct it or leave it out."
            )
    return [path for _, path in found if path is not None]
