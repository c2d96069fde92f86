"""Style directions: attributes of images, as directions among a model's latents.

``direction_k`` is the average difference of the latents when attribute k is one standard deviation higher and the
others are unchanged: the latents, minus the mean of their digit or source, are regressed on all attributes at once.
With more latents than images, most of such a difference is chance. So each place of a level is shrunk toward 0 by the
ratio of noise to signal around it (James & Stein, "Estimation with quadratic loss", 1961).
Sources: Ardizzone et al. (2019), section 4.1; Kingma & Dhariwal, "Glow" (2018), section 5.2.
"""

import csv
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.model_input import prepare_input
from ..errors import FlowError
from ..flows.dequantization import quantization, to_integers
from ..flows.model import FlowModel
from ..flows.prior import Shape
from ..images import files
from ..models.glow.class_conditional import ClassConditionalConfig
from ..models.registry import build

STYLES = ("bold", "wide", "slanted", "messy")
BATCH_OF_DIGITS = 500  # images encoded at once


def attributes(images: Tensor) -> Tensor:
    """Measure how digits ``(B, 1, H, W)`` in [0, 1] are written, ink is 1: ``(B, 4)``, in the order of ``STYLES``.

    - bold: width of the stroke, twice the ink over the length of its outline;
    - wide: horizontal standard deviation of the ink, in pixels;
    - slanted: how many pixels the ink leans to the right per pixel upward;
    - messy: length of the outline over that of the same digit, smoothed.
    """
    ink = images[:, 0].double().clamp(0, 1)
    mass = ink.sum((1, 2)).clamp_min(1e-6)
    rows = torch.arange(ink.shape[1], dtype=ink.dtype)[:, None]
    columns = torch.arange(ink.shape[2], dtype=ink.dtype)[None]
    y = rows - ((ink * rows).sum((1, 2)) / mass)[:, None, None]
    x = columns - ((ink * columns).sum((1, 2)) / mass)[:, None, None]
    variance_x = (ink * x * x).sum((1, 2)) / mass
    variance_y = ((ink * y * y).sum((1, 2)) / mass).clamp_min(1e-6)
    slant = -(ink * x * y).sum((1, 2)) / mass / variance_y  # rows count downward
    outline = _outline(ink)
    smooth = F.avg_pool2d(ink[:, None], 3, 1, 1)[:, 0]
    return torch.stack([2 * mass / outline, variance_x.sqrt(), slant, outline / _outline(smooth)], dim=1)


@torch.no_grad()
def measure_styles(
    flow: FlowModel, images: Tensor, labels: Tensor, *, log: Callable[[str], None] | None = None
) -> FlowModel:
    """Measure ``STYLES`` on labeled images, in deviations within a digit, and add them to a class-conditional model."""
    if not isinstance(flow.config, ClassConditionalConfig):
        raise FlowError(f"Styles are measured on class_conditional models; got a {flow.architecture} model.")
    generator = torch.Generator("cpu").manual_seed(0)
    targets = center_groups(attributes(images), labels)
    targets = targets / targets.square().mean(0).sqrt()  # (N, 4), unit variance within a digit
    latents: list[Tensor] = []
    for x, y in zip(images.split(BATCH_OF_DIGITS), labels.split(BATCH_OF_DIGITS), strict=True):
        levels, _ = flow(_dequantized(flow, x, generator), flow.encode_condition(y))
        latents.append(torch.cat([level.flatten(1) for level in levels], dim=1))
    z = center_groups(torch.cat(latents).double(), labels)
    directions = torch.linalg.solve(targets.T @ targets / len(z), targets.T @ z / len(z))  # (4, D)
    if log is not None:
        explained = directions.square().sum(1)  # latents are nearly independent, of unit variance each
        values = ", ".join(f"{name} {float(value):.2f}" for name, value in zip(STYLES, explained, strict=True))
        log(f"variance of the attribute along its direction: {values}")
    return with_styles(flow, STYLES, directions.float())


def _dequantized(flow: FlowModel, images: Tensor, generator: torch.Generator) -> Tensor:
    """Round images to the bins of a flow, and place each value at random within its bin."""
    bins = quantization(flow)
    k = to_integers(images, bins.n_bits)[0]
    return bins.place(k, torch.rand(k.shape, generator=generator))


def with_styles(flow: FlowModel, names: tuple[str, ...], directions: Tensor) -> FlowModel:
    """Copy a model, with S named directions ``(S, D)`` among its latents; weights are shared."""
    with torch.device("meta"):
        copy = build(flow.architecture, dataclasses.replace(flow.config, styles=names))
    copy.load_state_dict({**flow.state_dict(), "style_directions": directions}, assign=True)
    copy.provenance = flow.provenance
    return copy.eval()


def _outline(ink: Tensor) -> Tensor:
    """Length of the outline: the total variation of the ink."""
    across, down = ink.diff(dim=2)[:, :-1], ink.diff(dim=1)[:, :, :-1]
    return torch.sqrt(across.square() + down.square() + 1e-12).sum((1, 2)).clamp_min(1e-6)


def center_groups(values: Tensor, groups: Tensor) -> Tensor:
    """Subtract from the rows of ``(N, ...)`` the mean of their group, ``(N,)``."""
    values = values.clone()
    for group in groups.unique():
        values[groups == group] -= values[groups == group].mean(0)
    return values


# --- of images, from a table ------------------------------------------------------------------------------------------

# columns of the data set faces; gains by eye
FACES = ("smile=lips_parted*4", "age=-birth_year*5", "gender=gender:F/M*2")
MIN_IMAGES = 8  # images that an attribute may rest on
BATCH = 32  # images encoded at once


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """A style, and where its values are in the table."""

    name: str
    column: str
    words: tuple[str, str] | None = None  # words that count as +1 and as -1; None for a column of numbers
    sign: int = 1  # -1 to reverse numbers
    gain: float = 1.0  # factor on the direction: the average difference of many images shows little on one

    def value(self, text: str) -> float:
        """Read a cell of the table; NaN if it is empty or another word."""
        text = text.strip()
        if self.words is not None:
            return {self.words[0]: 1.0, self.words[1]: -1.0}.get(text, math.nan)
        return self.sign * float(text) if text else math.nan


@dataclass(frozen=True, kw_only=True)
class AttributeTable:
    """Images, and what they show."""

    attributes: tuple[Attribute, ...]  # S of them
    paths: list[Path]  # paths of N images
    values: Tensor  # (N, S), NaN where unknown
    sources: Tensor  # (N,), whole numbers: images are compared within one source, their names up to the first "-"


def parse_attribute(text: str) -> Attribute:
    """Read NAME=COLUMN, NAME=-COLUMN if small numbers are strong, or NAME=COLUMN:POSITIVE/NEGATIVE; and ``*GAIN``."""
    match = re.fullmatch(r"([^=]+)=(-?)([^=:*]+)(?::([^/]+)/([^/*]+))?(?:\*(\d+(?:\.\d+)?))?", text.strip())
    if match is None or (match[2] and match[4]):
        raise FlowError(
            "An attribute is NAME=COLUMN, NAME=-COLUMN or NAME=COLUMN:WORD/WORD, such as smile=lips_parted, "
            f"age=-birth_year or gender=gender:F/M, with *GAIN at its end to make it stronger; got {text!r}."
        )
    name, minus, column, positive, negative, gain = match.groups()
    words = (positive, negative) if positive else None
    return Attribute(name=name, column=column, words=words, sign=-1 if minus else 1, gain=float(gain or 1))


def read_attribute_table(
    table: Path, attributes: Sequence[Attribute], *, held_out: frozenset[str] = frozenset(), keep: bool = False
) -> AttributeTable:
    """Read tab-separated text with a line of column names; ``file`` has paths relative to the table's folder.

    Images without a known attribute are left out. So are ``held_out`` ones; with ``keep``, only these are read.
    """
    paths, values, sources = list[Path](), list[list[float]](), list[str]()
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            columns = rows.fieldnames or []
            if missing := [name for name in ("file", *(a.column for a in attributes)) if name not in columns]:
                raise FlowError(
                    f"{table.name} has no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}. Expected "
                    "tab-separated columns with their names in the first line."
                )
            for number, row in enumerate(rows, start=2):
                path = table.parent / (row["file"] or "")
                if (path.name in held_out) != keep:
                    continue
                try:
                    cells = [attribute.value(row[attribute.column] or "") for attribute in attributes]
                except ValueError as error:
                    raise FlowError(f"{table.name}, line {number}: {error}. Expected a number or nothing.") from None
                if not all(map(math.isnan, cells)):
                    paths.append(path)
                    values.append(cells)
                    sources.append(path.name.partition("-")[0] if "-" in path.name else "")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FlowError(f"The table of attributes {table} could not be read ({error}).") from error
    numbers = {source: k for k, source in enumerate(sorted(set(sources)))}
    known = torch.tensor(values, dtype=torch.float64).reshape(-1, len(attributes))
    source_numbers = torch.tensor([numbers[source] for source in sources])
    return AttributeTable(attributes=tuple(attributes), paths=paths, values=known, sources=source_numbers)


@torch.no_grad()
def measure_attributes(
    flow: FlowModel, table: AttributeTable, *, log: Callable[[str], None] | None = None
) -> FlowModel:
    """Measure the directions of attributes, and add them to an unconditional model as styles."""
    if flow.condition_encoder is not None or flow.image_size is None:
        raise FlowError(
            "Attributes are measured on unconditional models that state their image_size, such as glow-faces; got a "
            f"{flow.architecture} model."
        )
    names = tuple(attribute.name for attribute in table.attributes)
    targets = _standardize(table)
    generator = torch.Generator("cpu").manual_seed(0)
    latents: list[Tensor] = []
    for start in range(0, len(table.paths), BATCH):
        x = read_images(flow, table.paths[start : start + BATCH])
        noisy = _dequantized(flow, torch.cat([x, x.flip(-1)]), generator)
        z = torch.cat([level.flatten(1) for level in flow.encode(noisy)], dim=1)
        # mean of an image and its mirror image, which shows the same
        latents.append(z.unflatten(0, (-1, len(x))).mean(0))
    z = torch.cat(latents).double()  # (N, D)
    directions, noise = _regress(targets, z, table.sources)
    shrunk = _shrink(directions, noise, flow.latent_shapes(*flow.image_size))
    if log is not None:
        for name, target, short, d in zip(names, targets.T, shrunk, directions, strict=True):
            lengths = f"length {float(short.norm()):.2f} of {float(d.norm()):.2f} before shrinking"
            log(f"{name}: {int(target.isfinite().sum())} images, {lengths}")
    gains = torch.tensor([attribute.gain for attribute in table.attributes])
    return with_styles(flow, names, gains[:, None] * shrunk.float())


def read_images(flow: FlowModel, paths: Sequence[Path]) -> Tensor:
    """Read images at the size that a model was made for: resized to cover it, and cropped. ``(B, C, H, W)``."""
    pixels = (files.read(files.read_bytes(path), path.name).pixels for path in paths)
    return torch.cat([prepare_input(flow, image, notify=lambda _: None).pixels for image in pixels])


def _standardize(table: AttributeTable) -> Tensor:
    """Targets ``(N, S)``, of zero mean within a source and unit variance; NaN where unknown."""
    targets = table.values.clone()
    for k, attribute in enumerate(table.attributes):
        known = targets[:, k].isfinite()
        column = center_groups(targets[known, k], table.sources[known])
        spread = float(column.square().mean().sqrt()) if len(column) else 0.0
        if len(column) < MIN_IMAGES or spread < 1e-9:
            raise FlowError(
                f"Attribute {attribute.name} needs at least {MIN_IMAGES} images with different values within a source; "
                f"column {attribute.column} has {len(column)} values. Choose another column."
            )
        targets[known, k] = column / spread
    return targets


def _regress(targets: Tensor, z: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    """Directions ``(S, D)`` by least squares, each on the images of which it is known, and the variance of errors."""
    directions, noise = list[Tensor](), list[Tensor]()
    for k in range(targets.shape[1]):
        rows = targets[:, k].isfinite()
        t = center_groups(targets[rows].nan_to_num(0.0), sources[rows])  # (n, S)
        centered = center_groups(z[rows], sources[rows])  # (n, D)
        inverse = torch.linalg.pinv(t.T @ t)[k]  # pinv: an attribute that does not vary here is left out
        directions.append(inverse @ t.T @ centered)
        noise.append(inverse[k] * centered.square().mean(0))
    return torch.stack(directions), torch.stack(noise)


def _shrink(directions: Tensor, noise: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """Shrink every place by ``max(0, 1 - noise / signal)``, of means over channels and an eighth of a side around."""
    sizes = [math.prod(shape) for shape in shapes]
    result: list[Tensor] = []
    for d, n, shape in zip(directions.split(sizes, 1), noise.split(sizes, 1), shapes, strict=True):
        reach = [side // 8 for side in shape[1:]]
        around = partial(F.avg_pool2d, kernel_size=[2 * r + 1 for r in reach], stride=1, padding=reach)
        signal, chance = (
            around(part.unflatten(1, shape).mean(1, True), count_include_pad=False) for part in (d.square(), n)
        )
        factor = (1 - chance / signal.clamp_min(1e-30)).clamp_min(0)
        result.append((d.unflatten(1, shape) * factor).flatten(1))
    return torch.cat(result, dim=1)
