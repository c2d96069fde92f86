"""Train the network that finds scratches and dust, and measure it on damage that is drawn in another way.

    python -m benchmarks.scratches train FOLDER [FOLDER ...] --run runs/scratch-finder [--minutes 90]
    python -m benchmarks.scratches pack runs/scratch-finder/checkpoint.pt flowcore/weights/scratch-finder.safetensors
    python -m benchmarks.scratches measure FOLDER [FOLDER ...] [--limit 40]

``train`` uses photographs that are not held out, ``measure`` the others. Training draws specks, hairs, scratches, tears
and creases with soft edges onto crops, then adds grain, blur and JPEG, which are no damage. ``measure`` draws long bent
lines of 1 to 2 pixels and dots of 1 to 4 pixels, white or black at 85 %, onto photographs with grain of 4/255.
"""

import io
import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from flowcore.images.files import read_bytes, read_rgb
from flowcore.models.model_file import write_network
from flowcore.tasks.finders.scratches import look_twice
from flowcore.tasks.finders.unet import UNet
from flowcore.training.evaluation.image_set import list_images
from flowcore.training.recipe import held_out_names

from .measure import arguments, markdown, say

CROP, BATCH = 160, 8
FINE = 3  # subpixels of a pixel along a side, for soft edges
CLEAN = 0.15  # share of crops without any damage
THIN = 0.08  # share of crops onto which thin things that are no damage are drawn: railings, grids, letters
HARD = 0.15  # share of crops that are taken where clean pixels were marked before
HARD_POOL = 400  # places that are remembered
DAMAGED, DUSTY = 4.0, 16.0  # weight of damaged pixels, and of dust, which has few
VISIBLE, FAINT = 0.06, 0.02  # contrast from which a pixel is damaged, and up to which it is clean; between is neither
RATE = 2e-3
LICENSE = "MIT; trained on freely licensed photographs, named in flowcore/weights/SOURCES.tsv"

Draw = ImageDraw.ImageDraw
Point = tuple[float, float]


# --- damage -----------------------------------------------------------------------------------------------------------


def draw_damage(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the damage of a crop: opacity, brightness, and opacity of dust alone, ``(side, side)`` in [0, 1]."""
    opacity, value, dust = (np.zeros((side, side), np.float32) for _ in range(3))
    mostly_white = rng.random()  # of a scan: it is scratched to white, or to black, or to both
    for kind, most in ((_dust, 3), (_scratch, 4), (_hair, 2), (_tear, 1), (_parallel, 1)):
        for _ in range(int(rng.integers(0, most + 1)) if rng.random() < 0.6 else 0):
            layer = Image.new("L", (side * FINE, side * FINE))
            kind(ImageDraw.Draw(layer), rng, side * FINE)
            small = np.asarray(layer.reduce(FINE), np.float32) / 255
            small = _blur(small, rng.uniform(0.2, 0.8) if rng.random() < 0.5 else 0)
            small = small * rng.uniform(0.35, 1.0) ** 0.7
            white = rng.random() < mostly_white
            bright = 1 - rng.uniform(0, 0.3) ** 1.5 if white else rng.uniform(0, 0.3) ** 1.5
            value = np.where(small > opacity, bright, value)
            opacity = np.maximum(opacity, small)
            dust = np.maximum(dust, small) if kind is _dust else dust
    return opacity, value.astype(np.float32), dust


def _width(rng: np.random.Generator, most: float) -> float:
    """Draw a width in subpixels, mostly narrow."""
    return FINE * (0.7 + (most - 0.7) * rng.random() ** 2)


def _dust(draw: Draw, rng: np.random.Generator, side: int) -> None:
    middle, spread = rng.uniform(0, side, 2), side * rng.uniform(0.1, 1.0)
    for _ in range(int(rng.integers(1, 14))):
        x, y = middle + rng.normal(0, spread, 2)
        size = _width(rng, 9 if rng.random() < 0.3 else 4.5) / 2
        count = int(rng.integers(5, 10))
        angles = np.sort(rng.uniform(0, 2 * math.pi, count)) if count > 6 else np.arange(8) * math.pi / 4
        radii = size * rng.uniform(0.6, 1.2, len(angles))
        stretch, turn = rng.uniform(0.5, 1), rng.uniform(0, math.pi)
        u, v = radii * np.cos(angles), stretch * radii * np.sin(angles)
        outline = zip(
            x + u * math.cos(turn) - v * math.sin(turn), y + u * math.sin(turn) + v * math.cos(turn), strict=True
        )
        draw.polygon([(float(a), float(b)) for a, b in outline], fill=int(rng.integers(150, 256)))


def _path(rng: np.random.Generator, start: Point, angle: float, length: float, bend: float, jag: float) -> list[Point]:
    """Make a path in steps of two pixels that turns smoothly by ``bend`` and at random by ``jag``, in radians."""
    step, points, curve = 2.0 * FINE, [start], rng.normal(0, bend)
    for _ in range(max(2, int(length / step))):
        curve = 0.97 * curve + rng.normal(0, bend * 0.25)
        angle += curve + rng.normal(0, jag)
        x, y = points[-1]
        points.append((x + step * math.cos(angle), y + step * math.sin(angle)))
    return points


def _stroke(draw: Draw, rng: np.random.Generator, points: list[Point], width: float, *, gaps: float) -> None:
    """Draw a path whose width and opacity vary along it, with gaps."""
    strength, drawn, phase = 1.0, True, rng.uniform(0, 2 * math.pi, 2)
    waves = rng.uniform(0.02, 0.3, 2)
    for number, (a, b) in enumerate(itertools.pairwise(points)):
        if rng.random() < gaps:
            drawn = not drawn
        if not drawn:
            continue
        strength = 0.75 + 0.25 * math.sin(waves[0] * number + phase[0])
        wide = width * (1 + 0.3 * math.sin(waves[1] * number + phase[1]))
        draw.line([a, b], fill=int(255 * strength), width=max(1, round(wide)))
        if wide > 2 * FINE:
            r = wide / 2
            draw.ellipse([b[0] - r, b[1] - r, b[0] + r, b[1] + r], fill=int(255 * strength))


def _scratch(draw: Draw, rng: np.random.Generator, side: int, angle: float | None = None) -> None:
    """A straight or slightly bent scratch, often upright, as from transport of a film."""
    if angle is None:
        upright = rng.random() < 0.35
        angle = math.pi / 2 + rng.normal(0, 0.05) if upright else rng.uniform(0, 2 * math.pi)
    length = side * rng.uniform(0.1, 1.6)
    x, y = rng.uniform(0, side, 2)
    start = (x - length / 2 * math.cos(angle), y - length / 2 * math.sin(angle))
    bend = rng.choice([0, 0.002, 0.01, 0.03])
    _stroke(draw, rng, _path(rng, start, angle, length, bend, 0.01), _width(rng, 4), gaps=rng.choice([0, 0.01, 0.06]))


def _parallel(draw: Draw, rng: np.random.Generator, side: int) -> None:
    angle = rng.uniform(0, 2 * math.pi)
    for _ in range(int(rng.integers(2, 6))):
        _scratch(draw, rng, side, angle + rng.normal(0, 0.03))


def _hair(draw: Draw, rng: np.random.Generator, side: int) -> None:
    start = tuple(map(float, rng.uniform(0, side, 2)))
    path = _path(rng, start, rng.uniform(0, 2 * math.pi), side * rng.uniform(0.08, 0.7), rng.uniform(0.03, 0.15), 0.03)
    _stroke(draw, rng, path, _width(rng, 2.5), gaps=0.0)


def _tear(draw: Draw, rng: np.random.Generator, side: int) -> None:
    """A tear or a crease: jagged, and wide in places."""
    start = tuple(map(float, rng.uniform(0, side, 2)))
    path = _path(rng, start, rng.uniform(0, 2 * math.pi), side * rng.uniform(0.2, 1.2), 0.01, rng.uniform(0.05, 0.4))
    _stroke(draw, rng, path, _width(rng, 8), gaps=rng.choice([0, 0.03]))


def draw_thin_things(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a railing, a grid, or letters onto a crop: thin and of high contrast, but no damage."""
    side = len(clean)
    layer = Image.new("L", (side * FINE, side * FINE))
    draw = ImageDraw.Draw(layer)
    length = side * FINE
    if rng.random() < 0.3:
        for _ in range(int(rng.integers(1, 5))):
            text = "".join(chr(int(c)) for c in rng.integers(65, 123, int(rng.integers(3, 14))))
            place = tuple(map(float, rng.uniform(0, 0.8 * length, 2)))
            draw.text(place, text, fill=255, font_size=FINE * rng.uniform(8, 30))
    else:
        period, wide = FINE * rng.uniform(4, 20), max(1, round(_width(rng, 3)))
        top, bottom = sorted(rng.uniform(-0.2, 1.2, 2) * length)
        lean = rng.uniform(-0.5, 0.5) * (rng.random() < 0.5)
        for x in np.arange(-length, 2 * length, period):
            draw.line([(x + lean * top, top), (x + lean * bottom, bottom)], fill=255, width=wide)
        for y in rng.uniform(top, bottom, 2) if rng.random() < 0.5 else np.arange(top, bottom, period):
            draw.line([(0, float(y)), (length, float(y))], fill=255, width=wide)
    opacity = np.asarray(layer.reduce(FINE), np.float32) / 255 * rng.uniform(0.3, 1)
    opacity = np.rot90(opacity, int(rng.integers(4)))
    return clean + opacity * (rng.random() - clean)


# --- crops ------------------------------------------------------------------------------------------------------------


class Crops:
    """Crops of the luma of photographs that are not held out, with damage and where it is."""

    def __init__(self, files: list[Path]) -> None:
        self.pictures = [_read_luma(file) for file in files]
        areas = np.array([math.sqrt(p.size) for p in self.pictures])
        self.shares = areas / areas.sum()
        self.hard: list[tuple[float, int, float, int, int]] = []  # marked share, picture, scale, row, column

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, list[tuple[int, float, int, int]]]:
        """Make luma, targets and weights of the pixels, all ``(BATCH, 1, CROP, CROP)``, and the places."""
        items, places = [], []
        for _ in range(BATCH):
            if self.hard and rng.random() < HARD:
                _, number, scale, row, column = self.hard[int(rng.integers(len(self.hard)))]
                row, column = (max(0, v + int(rng.integers(-40, 41))) for v in (row, column))
            else:
                number = int(rng.choice(len(self.pictures), p=self.shares))
                shortest = min(self.pictures[number].shape)
                scale = max(float(rng.uniform(0.3, 1.0)), min(1.0, (CROP + 1) / shortest))
                row = column = -1
            clean, row, column = _cut(self.pictures[number], scale, row, column, rng)
            items.append(spoil(clean, rng))
            places.append((number, scale, row, column))
        y, target, weight = (torch.from_numpy(np.stack(part))[:, None] for part in zip(*items, strict=True))
        return y, target, weight, places

    def remember(self, places: list[tuple[int, float, int, int]], marked: list[float]) -> None:
        """Remember the places where many clean pixels were marked."""
        self.hard += [(share, *place) for share, place in zip(marked, places, strict=True) if share > 0.003]
        if len(self.hard) > HARD_POOL:
            self.hard = self.hard[-HARD_POOL:]


def _read_luma(file: Path) -> np.ndarray:
    return np.asarray(read_rgb(read_bytes(file), file.name).convert("L"))


def _cut(
    picture: np.ndarray, scale: float, row: int, column: int, rng: np.random.Generator
) -> tuple[np.ndarray, int, int]:
    """Cut a crop of a picture that is shrunk by ``scale``, at a random place if ``row`` is -1, turned at random."""
    height, width = picture.shape
    side = min(math.ceil(CROP / scale), height, width)
    row = int(rng.integers(height - side + 1)) if row < 0 else min(row, height - side)
    column = int(rng.integers(width - side + 1)) if column < 0 else min(column, width - side)
    part = Image.fromarray(picture[row : row + side, column : column + side])
    crop = np.asarray(part.resize((CROP, CROP), Image.Resampling.BICUBIC), np.float32) / 255
    crop = np.rot90(crop, int(rng.integers(4)))
    return (crop[:, ::-1] if rng.random() < 0.5 else crop), row, column


def spoil(clean: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Age a crop and damage it; return it, where it is damaged, and the weights of its pixels, 0 in doubt."""
    side = len(clean)
    low, high = rng.uniform(0, 0.25) * (rng.random() < 0.5), 1 - rng.uniform(0, 0.25) * (rng.random() < 0.5)
    if rng.random() < THIN:
        clean = draw_thin_things(clean, rng)
    y = (low + (high - low) * clean ** rng.uniform(0.6, 1.5)).astype(np.float32)
    y = _blur(y, rng.uniform(0, 1.2) if rng.random() < 0.4 else 0)
    if rng.random() < CLEAN:
        opacity, value, dust = (np.zeros_like(y) for _ in range(3))
    else:
        opacity, value, dust = draw_damage(rng, side)
    change = opacity * (value - y)
    spoiled = _blur(y + change, rng.uniform(0, 0.6) if rng.random() < 0.3 else 0)
    grain = rng.standard_normal((side, side)).astype(np.float32)
    coarse = rng.uniform(0.4, 1.0)
    grain = _blur(grain, coarse) * 2 * math.sqrt(math.pi) * coarse if rng.random() < 0.5 else grain
    spoiled = spoiled + grain * rng.uniform(0, 0.03) * (rng.random() < 0.7)
    pixels = (spoiled.clip(0, 1) * 255).round().astype(np.uint8)
    if rng.random() < 0.4:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(60, 96)))
        pixels = np.asarray(Image.open(file))
    contrast = np.abs(change)
    target = (contrast > VISIBLE) & (opacity > 0.25)
    weight = np.where(target, np.where(dust > 0.25, DUSTY, DAMAGED), contrast < FAINT)
    return pixels.astype(np.float32) / 255, target.astype(np.float32), weight.astype(np.float32)


def _blur(y: np.ndarray, sigma: float) -> np.ndarray:
    if sigma < 0.2:
        return y
    reach = math.ceil(3 * sigma)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = torch.from_numpy((kernel / kernel.sum()).astype(np.float32))
    x = F.pad(torch.from_numpy(np.ascontiguousarray(y))[None, None], (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, kernel[None, None, None, :]), kernel[None, None, :, None])[0, 0].numpy()


# --- training ---------------------------------------------------------------------------------------------------------


def train(files: list[Path], run: Path, minutes: float, seed: int) -> None:
    """Train for some minutes, resuming from the checkpoint of the run; the rate falls to 0 at the end."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    net, average = UNet(), UNet()
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average.load_state_dict(net.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-3)
    step, seconds = 0, 0.0
    if (run / "checkpoint.pt").exists():
        state = torch.load(run / "checkpoint.pt", weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    crops = Crops(files)
    say(f"{len(files)} photographs to train on")
    losses: list[float] = []
    last = time.monotonic()
    while seconds < 60 * minutes:
        part = seconds / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * part))
        y, target, weight, places = crops.batch(np.random.default_rng([seed, step]))
        logits = net(y.contiguous(memory_format=torch.channels_last))
        loss = _loss(logits, target, weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(value, 1 - min(0.998, (1 + step) / (10 + step)))
        false = ((logits.detach() > 0) & (target == 0) & (weight > 0)).float().mean((1, 2, 3)).tolist()
        crops.remember(places, false)
        losses.append(float(loss.detach()))
        step, now = step + 1, time.monotonic()
        seconds, last = seconds + now - last, now
        if step % 100 == 0:
            say(f"step {step}, {seconds / 60:.1f} minutes, loss {np.mean(losses[-100:]):.4f}")
        if step % 500 == 0:
            _save(run, net, average, optimizer, step, seconds)
    _save(run, net, average, optimizer, step, seconds)


def _save(run: Path, net: UNet, average: UNet, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    state = {"net": net.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "step": step, "seconds": seconds}, run / "checkpoint.part")
    (run / "checkpoint.part").replace(run / "checkpoint.pt")


def _loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted cross entropy, plus 1 - Dice's coefficient."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / weight.sum()
    p = logits.sigmoid() * (weight > 0)
    dice = (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return entropy + 0.5 * (1 - dice)


# --- measuring --------------------------------------------------------------------------------------------------------


def drawn(files: list[Path], side: int = 384) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Make damaged crops of photographs, and where lines are, dust is, and nothing is."""
    for number, file in enumerate(files):
        rng = np.random.default_rng([number, 77])
        picture = read_rgb(read_bytes(file), file.name).convert("L")
        factor = max(rng.uniform(0.4, 1.0), (side + 1) / min(picture.size))
        small = picture.resize(
            (round(picture.width * factor), round(picture.height * factor)), Image.Resampling.LANCZOS
        )
        left, top = (int(rng.integers(0, size - side + 1)) for size in small.size)
        y = np.asarray(small.crop((left, top, left + side, top + side)), np.float32) / 255
        line, dust = (np.zeros((side, side), np.float32) for _ in range(2))
        spoiled = y.copy()
        for alpha, count in ((line, int(rng.integers(3, 7))), (dust, int(rng.integers(20, 60)))):
            for _ in range(count):
                layer = Image.new("L", (8 * side, 8 * side))
                draw = ImageDraw.Draw(layer)
                if alpha is line:
                    ends = rng.uniform(0, 8 * side, (3, 2))
                    t = np.linspace(0, 1, 60)[:, None]
                    curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
                    draw.line(
                        [tuple(map(float, p)) for p in curve],
                        fill=255,
                        width=round(8 * rng.uniform(1, 2)),
                        joint="curve",
                    )
                else:
                    (x, z), r = rng.uniform(0, 8 * side, 2), 4 * rng.uniform(1, 4)
                    draw.ellipse([x - r, z - r, x + r, z + r], fill=255)
                one = 0.85 * np.asarray(layer.resize((side, side), Image.Resampling.BOX), np.float32) / 255
                spoiled = spoiled + one * (float(rng.integers(2)) - spoiled)
                np.maximum(alpha, one, out=alpha)
        noisy = spoiled + rng.normal(0, 4 / 255, spoiled.shape).astype(np.float32)
        seen = np.abs(spoiled - y) > VISIBLE
        yield (
            (noisy.clip(0, 1) * 255).round().astype(np.uint8),
            seen & (line > 0.4),
            seen & (dust > 0.4),
            line + dust == 0,
        )


def measure(files: list[Path], thresholds: list[float]) -> None:
    """Print the share of lines and dust that is marked, and of clean pixels, by threshold."""
    sums = {t: np.zeros(3) for t in thresholds}
    counts = np.zeros(3)
    for pixels, *parts in drawn(files):
        y = torch.from_numpy(pixels)[None, None].float() / 255
        with torch.inference_mode():
            p = look_twice(y).sigmoid()[0, 0].numpy()
        counts += [part.sum() for part in parts]
        for t in thresholds:
            sums[t] += [(p[part] > t).sum() for part in parts]
    rows = [
        [f"{t:g}", *(f"{v:.3f}" for v in (sums[t] / counts)[:2]), f"{(sums[t] / counts)[2]:.2%}"] for t in thresholds
    ]
    print(markdown(["threshold", "lines found", "dust found", "clean pixels marked"], rows))


def main() -> None:
    """Run one of the commands."""
    parser = arguments(__doc__, "scratches")
    parser.add_argument("command", choices=["train", "measure", "pack"])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--run", type=Path, default=Path("runs/scratch-finder"))
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--limit", type=int, default=40)
    options = parser.parse_args()
    if options.command == "pack":
        source, target = options.folders
        net = UNet()
        state = torch.load(source, weights_only=True)
        net.load_state_dict(state["average"])
        made = {"source": "trained by benchmarks.scratches", "licence": LICENSE, "steps": state["step"]}
        write_network(target, net, {**made, "minutes": state["seconds"] / 60})
        return
    names = held_out_names("standard")
    files = [f for f in list_images(options.folders) if (f.name in names) == (options.command == "measure")]
    if options.command == "train":
        train(files, options.run, options.minutes, options.seed)
        return
    measure(files[:: max(1, math.ceil(len(files) / options.limit))], [0.05, 0.1, 0.3, 0.5, 0.7, 0.9])


if __name__ == "__main__":
    sys.exit(main())
