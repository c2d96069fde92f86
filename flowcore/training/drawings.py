"""Drawings to train on, made at random: what photographs have little of."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER = 0.4, 0.3  # shares of what is drawn in black and in white; the rest has a random color
FINER = 3  # pixels that a pixel is drawn as, for smooth edges


def draw(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw flat shapes, lines and words over each other, as in comics and diagrams: ``(side, side, 3)`` uint8."""
    size = FINER * side

    def color() -> tuple[int, ...]:
        kind = rng.random()
        if kind < INK + PAPER:
            return (0, 0, 0) if kind < INK else (255, 255, 255)
        return tuple(rng.integers(256, size=3).tolist())

    image = Image.new("RGB", (size, size), color())
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(20, 80))):
        center, reach = rng.uniform(-0.1, 1.1, 2) * size, size * rng.random() ** 2
        points = center + rng.uniform(-reach, reach, (int(rng.integers(2, 7)), 2))
        places, width = [(float(x), float(y)) for x, y in points], int(rng.integers(2, 20))
        kind = rng.integers(4)
        if kind == 0:
            pen.polygon(places, color(), color(), width)
        elif kind == 1:
            (left, right), (top, bottom) = sorted(points[:2, 0].tolist()), sorted(points[:2, 1].tolist())
            pen.ellipse((left, top, right, bottom), color(), color(), width)
        elif kind == 2:
            pen.line(places, color(), width, joint="curve")
        else:
            letters = "".join(map(chr, rng.integers(33, 127, int(rng.integers(1, 12))).tolist()))
            pen.text(places[0], letters, color(), ImageFont.load_default(int(rng.integers(24, 120))))
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))
