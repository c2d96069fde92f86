"""A contact sheet: pictures in rows and columns, with a label for each row and column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import ShapeError
from .resize import resize

LONGEST = 8192  # pixels of a sheet's side; larger pictures are shrunk
SMALLEST = 48  # pixels that a picture keeps for its label's sake, whatever the sheet's side
GAP = 6
INK, PAPER = (32, 32, 32), (255, 255, 255)
LARGE, SMALL = 40, 9  # of the font, in pixels

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def contact_sheet(pictures: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Lay pictures out in a labelled table.

    Args:
        pictures: ``(rows * columns, 3, H, W)`` in [0, 1]: the first row from left to right, then the second.
        rows: A label for each.
        columns: A label for each.

    Returns:
        ``(3, height, width)`` float32 in [0, 1], on the CPU. Pictures are shrunk where the sheet would be longer than
        8192 pixels, and small ones are enlarged where their labels need it.

    Raises:
        ShapeError: If the pictures are not rows * columns.
    """
    if len(pictures) != len(rows) * len(columns):
        raise ShapeError(
            f"Expected {len(rows)} x {len(columns)} pictures for as many labels; got {len(pictures)}. Pass one label "
            "per row and per column."
        )
    height, width = _cell(pictures.shape[2], pictures.shape[3], len(rows), len(columns))
    font = _fitting(columns, width, min(LARGE, max(SMALL, height // 8)))
    across = max(_extent(text, font)[0] for text in rows)
    line = max(_extent(text, font)[1] for text in (*rows, *columns))
    margin = GAP + across + GAP, GAP + line + GAP
    # A column is never narrower than its label.
    step = max(width, *(_extent(text, font)[0] for text in columns)) + GAP, height + GAP
    size = margin[0] + len(columns) * step[0], margin[1] + len(rows) * step[1]
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(columns):
        draw.text((margin[0] + column * step[0], GAP), text, fill=INK, font=font)
    for row, text in enumerate(rows):
        top = margin[1] + row * step[1]
        draw.text((GAP, top + (height - line) // 2), text, fill=INK, font=font)
        for column in range(len(columns)):
            one = resize(pictures[row * len(columns) + column, None].cpu(), height, width).clamp(0, 1)[0]
            pixels = one.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
            sheet.paste(Image.fromarray(pixels), (margin[0] + column * step[0], top))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).float() / 255


def _cell(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Size of a picture on the sheet: its own, unless the sheet or its label asks for another."""
    room = min(LONGEST / (height * rows), LONGEST / (width * columns))
    factor = min(1.0, room)
    if max(height, width) * factor < SMALLEST:
        factor = SMALLEST / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _fitting(labels: Sequence[str], width: int, size: int) -> Font:
    """Give the largest font in which every label fits above its column; the smallest readable one if none does."""
    while size > SMALL and max(_extent(text, _font(size))[0] for text in labels) > width:
        size -= 1
    return _font(size)


def _font(size: int) -> Font:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # before Pillow 10.1, or one built without FreeType: a font of one size
        return ImageFont.load_default()


def _extent(text: str, font: Font) -> tuple[int, int]:
    """Width and height of a line, from where it is drawn."""
    _, _, right, bottom = font.getbbox(text or " ")
    return round(right + 0.5), round(bottom + 0.5)
