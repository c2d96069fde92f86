"""The loss curve of a run, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ..checkpoints.writing import replacing

WIDTH, HEIGHT = 960, 480  # pixels of a panel
MARGIN = 56


def draw_curve(training: Sequence[Mapping[str, str]], held_out: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw the loss of every stage against its steps, a panel per stage, with dots for the held-out images.

    It takes the rows of ``history.csv`` and ``held_out.csv``, where the first measure of a step is its loss.
    """
    stages = list(dict.fromkeys(row["stage"] for row in training))
    image = Image.new("RGB", (WIDTH * max(1, len(stages)), HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for number, stage in enumerate(stages):
        rows = [row for row in training if row["stage"] == stage]
        line = [(int(row["step"]), float(row["loss"])) for row in rows]
        losses = {int(row["step"]): float(row["value"]) for row in reversed(held_out) if row["stage"] == stage}
        _draw_panel(draw, number * WIDTH, f"{stage}: {rows[0]['unit']}", line, sorted(losses.items()))
    with replacing(path) as partial:
        image.save(partial, "PNG")


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    left: int,
    title: str,
    line: Sequence[tuple[int, float]],
    dots: Sequence[tuple[int, float]],
) -> None:
    """Draw one stage. The first, large losses are cut off: all above twice the range of the later half."""
    finite = [(x, y) for x, y in [*line, *dots] if abs(y) < float("inf")]
    if not finite:
        return
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    later = ys[len(line) // 2 :] or ys
    low = min(ys)
    high = min(max(ys), max(later) + 2 * (max(later) - low) + 1e-9)

    def place(point: tuple[int, float]) -> tuple[float, float]:
        across = (point[0] - min(xs)) / max(1, max(xs) - min(xs))
        up = (min(point[1], high) - low) / max(high - low, 1e-12)
        return left + MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    frame = [left + MARGIN, MARGIN, left + WIDTH - MARGIN, HEIGHT - MARGIN]
    draw.rectangle(frame, outline="#999999")
    for k in range(5):
        value = low + (high - low) * k / 4
        y = place((min(xs), value))[1]
        draw.line([frame[0], y, frame[2], y], fill="#e5e5e5")
        draw.text((left + 4, y - 6), f"{value:.4g}", fill="#444444")
    draw.text((frame[0], HEIGHT - MARGIN + 8), f"step {min(xs)}", fill="#444444")
    draw.text((frame[2] - 70, HEIGHT - MARGIN + 8), f"step {max(xs)}", fill="#444444")
    draw.text((frame[0], MARGIN - 20), f"{title}; line: training, dots: held out", fill="#000000")
    if len(line) > 1:
        draw.line([place(point) for point in line], fill="#1f6fb4", width=2)
    for point in dots:
        x, y = place(point)
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill="#d1495b")
