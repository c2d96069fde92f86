"""The picture at the top of README: what the shipped models make of the photographs in ``workflows``.

python -m benchmarks.hero docs/hero.jpg
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import flowcore
from flowcore.evaluation.image_set import read_cropped
from flowcore.images.color import luma
from flowcore.images.resize import shrink

from .measure import as_image

WORKFLOWS = Path(__file__).parents[1] / "workflows"
WIDTH, GAP, CAPTION = 1200, 6, 22
STYLES = {"": 0.0, "bold": 3.0, "wide": 2.0, "slanted": 3.0, "messy": 4.0, "faint": 0.0}
HEAT = ((13, 8, 60), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33))  # even steps of lightness


def main() -> None:
    """Draw all rows, and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", type=Path)
    target = parser.parse_args().target
    rows = [*upscaling(), colors(), digits_and_bits()]
    canvas = Image.new("RGB", (WIDTH, sum(row.height for row in rows) + GAP * (len(rows) - 1)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height + GAP
    canvas.save(target, quality=88)


def upscaling() -> list[Image.Image]:
    """One small photograph and four samples; one seed at five temperatures."""
    flow = flowcore.load("srflow-x4")
    lr = read("photo.png")[..., 10:70, 70:130]
    samples = flowcore.upscale(flow, lr, seed=11, samples=4)
    nearest = torch.nn.functional.interpolate(lr, scale_factor=4, mode="nearest")
    first = panels([nearest, *samples.split(1)], ["60x60 pixels", *(f"4x, seed {11 + k}" for k in range(4))])
    taus = (0.0, 0.4, 0.7, 0.9, 1.1)
    strip = [flowcore.upscale(flow, lr, temperature=tau, seed=3)[..., 60:180, 50:170] for tau in taus]
    return [first, panels(strip, [f"temperature {tau:g}" for tau in taus])]


def colors() -> Image.Image:
    """The luma of a photograph from about 1935, and four colorings."""
    gray = luma(read("house.jpg"))
    colored = flowcore.colorize(flowcore.load("color-photos"), gray, seed=4, samples=4)
    return panels([gray, *colored.split(1)], ["black and white", *(f"colors, seed {4 + k}" for k in range(4))])


def digits_and_bits() -> Image.Image:
    """One hand in six styles; and a photograph with a soft piece in it, found by its bits."""
    flow = flowcore.load("mnist-styles")
    options = {"seed": 700, "labels": list(range(10)), "temperature": 0.8, "snapped": True}
    hands: list[Tensor] = []
    for style, strength in STYLES.items():
        named = {"bold": -3.0} if style == "faint" else {style: strength} if style else None
        hands.append(torch.cat(list(flowcore.sample(flow, 10, styles=named, **options)), dim=2))
    table = torch.cat(hands, dim=1)[None]  # 6 rows of 10
    photo = read("alps.jpg")[..., 100:356, 440:696]
    soft = photo.clone()
    soft[..., 96:160, 90:170] = torch.nn.functional.interpolate(
        shrink(photo[..., 96:160, 88:168], 4), (64, 80), mode="bicubic"
    )
    score = flowcore.score(flowcore.load("glow-photos"), soft.clamp(0, 1), samples=8, seed=0)
    smooth = torch.nn.functional.avg_pool2d(score.map[:, None].float(), 9, 1, 4)
    low, high = (torch.quantile(smooth, share) for share in (0.02, 0.98))
    heat = paint(((smooth - low) / (high - low)).clamp(0, 1))
    first = "one hand: as drawn, bold, wide, slanted, messy, faint"
    return panels([table, soft, heat], [first, "a soft piece was pasted in", "where the bits are"], [2.0, 1.2, 1.2])


def paint(value: Tensor) -> Tensor:
    """Give (1, 1, H, W) in [0, 1] colors, (1, 3, H, W)."""
    table = torch.tensor(HEAT) / 255
    place = value[0, 0] * (len(HEAT) - 1)
    below = place.long().clamp(max=len(HEAT) - 2)
    return torch.lerp(table[below], table[below + 1], (place - below)[..., None]).permute(2, 0, 1)[None]


def read(name: str) -> Tensor:
    """Read a picture of ``workflows``, (1, 3, H, W) in [0, 1]."""
    return read_cropped(WORKFLOWS / name, 1)


def panels(pictures: list[Tensor], captions: list[str], shares: list[float] | None = None) -> Image.Image:
    """Lay pictures out in a row of the whole width, each under its caption."""
    shares = shares or [1.0] * len(pictures)
    room = WIDTH - GAP * (len(pictures) - 1)
    widths = [round(room * share / sum(shares)) for share in shares]
    height = max(round(w * p.shape[2] / p.shape[3]) for w, p in zip(widths, pictures, strict=True))
    row = Image.new("RGB", (WIDTH, height + CAPTION), "white")
    draw, left = ImageDraw.Draw(row), 0
    for pixels, caption, width in zip(pictures, captions, widths, strict=True):
        shown = as_image(pixels[0].expand(3, -1, -1))
        tall = round(width * shown.height / shown.width)
        row.paste(shown.resize((width, tall), Image.Resampling.LANCZOS), (left, CAPTION))
        draw.text((left + 2, 3), caption, fill="black", font=ImageFont.load_default(14))
        left += width + GAP
    return row


if __name__ == "__main__":
    main()
