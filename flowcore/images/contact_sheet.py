"""Labeled contact sheets, and maps of numbers in colors."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import ShapeError
from .color import to_uint8
from .resize import resize

MAX_SIDE = 8192  # pixels of the sheet; larger images are shrunk
MIN_CELL = 48  # pixels of an image's longer side, so that labels can be read; wins over MAX_SIDE
GAP = 6
TEXT, BACKGROUND = (32, 32, 32), (255, 255, 255)
MAX_FONT, MIN_FONT = 40, 9

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def contact_sheet(images: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Lay images ``(rows * columns, 3, H, W)`` in [0, 1] out in a labeled grid, row by row: ``(3, height, width)``."""
    if len(images) != len(rows) * len(columns):
        raise ShapeError(
            f"Expected {len(rows)} x {len(columns)} images, one per pair of labels; got {len(images)}. Pass one label "
            "per row and per column."
        )
    height, width = images.shape[-2:]
    factor = min(1.0, MAX_SIDE / (height * len(rows)), MAX_SIDE / (width * len(columns)))
    if max(height, width) * factor < MIN_CELL:
        factor = MIN_CELL / max(height, width)
    height, width = max(1, round(height * factor)), max(1, round(width * factor))
    points = min(MAX_FONT, max(MIN_FONT, height // 8))
    while points > MIN_FONT and max(_text_size(text, _font(points))[0] for text in columns) > width:
        points -= 1  # until every label fits its column
    font = _font(points)
    label_width = max(_text_size(text, font)[0] for text in rows)
    line = max(_text_size(text, font)[1] for text in (*rows, *columns))
    margin = GAP + label_width + GAP, GAP + line + GAP
    step = max(width, *(_text_size(text, font)[0] for text in columns)) + GAP, height + GAP
    size = margin[0] + len(columns) * step[0], margin[1] + len(rows) * step[1]
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(columns):
        draw.text((margin[0] + column * step[0], GAP), text, fill=TEXT, font=font)
    for row, text in enumerate(rows):
        top = margin[1] + row * step[1]
        draw.text((GAP, top + (height - line) // 2), text, fill=TEXT, font=font)
        for column in range(len(columns)):
            image = resize(images[row * len(columns) + column, None].cpu(), height, width).clamp(0, 1)[0]
            pixels = to_uint8(image).permute(1, 2, 0).contiguous().numpy()
            sheet.paste(Image.fromarray(pixels), (margin[0] + column * step[0], top))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).float() / 255


def _font(size: int) -> Font:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # before Pillow 10.1 or without FreeType: a font of fixed size
        return ImageFont.load_default()


def _text_size(text: str, font: Font) -> tuple[int, int]:
    _, _, right, bottom = font.getbbox(text or " ")
    return round(right + 0.5), round(bottom + 0.5)


# Inferno of matplotlib at ten places (van der Walt and Smith, CC0): perceptually uniform, also in gray.
COLORS = (
    *((0, 0, 4), (27, 12, 65), (74, 12, 107), (120, 28, 109), (165, 44, 96)),
    *((207, 68, 70), (237, 105, 37), (251, 155, 6), (247, 209, 61), (252, 255, 164)),
)


def heat_map(maps: Tensor) -> Tensor:
    """Color maps ``(B, H, W)`` in [0, 1] by a perceptually uniform scale, dark for 0: ``(B, 3, H, W)``."""
    table = torch.tensor(COLORS) / 255  # (10, 3)
    place = maps * (len(COLORS) - 1)
    below = place.floor().clamp(max=len(COLORS) - 2).long()
    share = (place - below)[..., None]
    return ((1 - share) * table[below] + share * table[below + 1]).permute(0, 3, 1, 2)  # (B, H, W, 3) -> (B, 3, H, W)
