"""Labeled contact sheets, and maps of numbers in colors."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import ShapeError
from .color import luma, to_uint8
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
    font_size = min(MAX_FONT, max(MIN_FONT, height // 8))
    while font_size > MIN_FONT and _text_size(columns, _font(font_size))[0] > width:
        font_size -= 1  # until every label fits its column
    font = _font(font_size)
    line = _text_size([*rows, *columns], font)[1]
    left, top = GAP + _text_size(rows, font)[0] + GAP, GAP + line + GAP  # where the images start
    across, down = max(width, _text_size(columns, font)[0]) + GAP, height + GAP  # steps from one image to the next
    sheet = Image.new("RGB", (left + len(columns) * across, top + len(rows) * down), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(columns):
        draw.text((left + column * across, GAP), text, fill=TEXT, font=font)
    for row, text in enumerate(rows):
        draw.text((GAP, top + row * down + (height - line) // 2), text, fill=TEXT, font=font)
    for number, image in enumerate(images.split(1)):
        row, column = divmod(number, len(columns))
        pixels = to_uint8(resize(image.cpu(), height, width)[0]).permute(1, 2, 0).contiguous().numpy()
        sheet.paste(Image.fromarray(pixels), (left + column * across, top + row * down))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).float() / 255


def _font(size: int) -> Font:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # before Pillow 10.1 or without FreeType: a font of fixed size
        return ImageFont.load_default()


def _text_size(texts: Sequence[str], font: Font) -> tuple[int, int]:
    boxes = [font.getbbox(text or " ") for text in texts]
    return round(max(box[2] for box in boxes) + 0.5), round(max(box[3] for box in boxes) + 0.5)


# Inferno of matplotlib at ten places (van der Walt and Smith, CC0): perceptually uniform, also in gray.
COLORS = (
    *((0, 0, 4), (27, 12, 65), (74, 12, 107), (120, 28, 109), (165, 44, 96)),
    *((207, 68, 70), (237, 105, 37), (251, 155, 6), (247, 209, 61), (252, 255, 164)),
)


def heat_map(maps: Tensor) -> Tensor:
    """Color maps ``(B, H, W)`` in [0, 1] by a perceptually uniform scale, dark for 0: ``(B, 3, H, W)``."""
    places = np.linspace(0, 1, len(COLORS))
    channels = [np.interp(maps.cpu().numpy(), places, channel) for channel in zip(*COLORS, strict=True)]
    return torch.from_numpy(np.stack(channels, 1)).float() / 255


def glow(pictures: Tensor, maps: Tensor) -> Tensor:
    """Show where maps ``(B, 1, H, W)`` in [0, 1] are high, in colors over dimmed gray pictures ``(B, 3, H, W)``."""
    dim = 0.6 * luma(pictures).expand(-1, 3, -1, -1)
    return torch.lerp(dim, heat_map(maps[:, 0]).to(dim), maps.to(dim).sqrt())
