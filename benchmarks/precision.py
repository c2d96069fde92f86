"""Errors by precision: of the fast path against float64, and of stored models against the original.

The numbers of the nodes' help, of benchmarks/README.md and of flowcore/weights/README.md:

    python -m benchmarks.precision IMAGE [IMAGE ...] [--models MODEL ...]
    python -m benchmarks.precision FOLDER --stored --models MODEL [MODEL ...] [--limit 4] [--crop 192]

The first compares the fast path in every precision with the plain path in float64. An upscaler gets the center 96x96
pixels of a picture as LR, a colorizer the luma of the center 256x256, other models one seed per picture, at their
default temperature. For colorizers, chroma is compared.

The second stores models in float16 and in 8 bits. Upscalers enlarge center crops that were shrunk by antialiased
bicubic and rounded to 8 bits; colorizers color their gray versions; each with one seed, at temperature 0 and at the
default. PSNR against the originals is from the mean squared error over all images. For bits per dimension of other
models use ``python -m flowcore eval``.

Changes are in steps of 8 bits (1/255).
"""

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

import flowcore
from flowcore.engine.compiled import ActualPrecision, CompiledFlow
from flowcore.flows.flow import Flow
from flowcore.flows.prior import sample_latents
from flowcore.images.color import as_stored, luma
from flowcore.images.resize import downsample
from flowcore.models.model_file import save
from flowcore.tasks.chroma import schedule
from flowcore.training.evaluation.image_set import list_images, read_cropped, read_upright

from .measure import arguments, middle

MODELS = ("srflow-x4", "srflow-x8", "color-photos", "glow-photos", "mnist-styles")
PRECISIONS: tuple[ActualPrecision, ...] = ("float32", "tf32", "bfloat16", "float16")
DTYPES = {"float16": torch.float16, "8 bits": torch.int8}
CHANGES = ("mean", "RMS", "999 of 1000 below", "largest")


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("images", nargs="+", type=Path, help="files or folders")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL", help=f"(default: {' '.join(MODELS)})")
    parser.add_argument("--stored", action="store_true", help="what storing changes; of upscalers and colorizers")
    parser.add_argument("--limit", type=int, help="at most so many images of a folder, evenly spread over their names")
    parser.add_argument("--crop", type=int, default=320, help="with --stored, side of the central crops (default: 320)")
    parser.add_argument("--device", default="cpu", help="of the fast path")
    options = parser.parse_args()
    files = [f for p in options.images for f in (list_images(p, limit=options.limit) if p.is_dir() else [p])]
    if not options.stored:
        _print(["model", "precision", *CHANGES], rule=True)
        # on a CPU the others are float32
        precisions = ("float32", "bfloat16") if options.device == "cpu" else PRECISIONS
        for name in options.models:
            for precision, found in computed(name, files, options.device, precisions).items():
                _print([name, precision, *(f"{value:.2g}" for value in found.values())])
        return
    columns = (f"{head}, {tau}" for tau in ("tau 0", "default") for head in ("PSNR before", "PSNR", *CHANGES))
    _print(["model", "stored as", "MB", *columns], rule=True)
    originals = [middle(read_cropped(file, 16), options.crop) for file in files]
    for name in options.models:
        stored(name, originals)


def changes(before: list[Tensor], after: list[Tensor]) -> dict[str, float]:
    """Measure the differences of pictures, in 1/255, by ``CHANGES``."""
    apart = torch.cat([255 * (a.double() - b.double()).abs().flatten() for a, b in zip(after, before, strict=True)])
    most = np.quantile(apart.numpy(), 0.999)
    numbers = (apart.mean(), apart.square().mean().sqrt(), most, apart.max())
    return dict(zip(CHANGES, map(float, numbers), strict=True))


def _print(cells: list[str], *, rule: bool = False) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    if rule:
        sys.stdout.write(f"{'|---' * len(cells)}|\n")
    sys.stdout.flush()


# --- computing --------------------------------------------------------------------------------------------------------


def computed(name: str, files: Sequence[Path], device: str, precisions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Compare every precision of the fast path with the plain path in float64, by ``CHANGES``."""
    flow = flowcore.load(name)
    exact = copy.deepcopy(flow).double()
    cases = [_case(flow, path, seed) for seed, path in enumerate(files)]
    expected = [_decoded(exact, source, [t.double() for t in z], "cpu") for source, z in cases]
    flow.to(device)
    found: dict[str, dict[str, float]] = {}
    for precision in precisions:
        compiled = CompiledFlow(flow, cast(ActualPrecision, precision))
        found[precision] = changes(expected, [_decoded(compiled, source, z, device) for source, z in cases])
    return found


@torch.no_grad()
def _decoded(flow: Flow, source: Tensor | None, z: list[Tensor], device: str) -> Tensor:
    if source is not None:
        source = source.to(device, z[0].dtype if source.is_floating_point() else source.dtype)
    cond = None if source is None else flow.encode_condition(source)
    return flow.inverse([t.to(device) for t in z], cond).cpu().double().clamp(0, 1)


def _case(flow: Flow, path: Path, seed: int) -> tuple[Tensor | None, list[Tensor]]:
    """Source of the condition, and latents."""
    if flow.image_size is not None:
        labels = torch.tensor([seed % flow.classes]) if flow.classes else None
        return labels, sample_latents(flow.latent_shapes(*flow.image_size), 1, 0.7, seed=seed)
    colors = flow.architecture == "colorizer"
    side = 256 if colors else 96
    image = read_upright(path)
    if colors:
        image = ImageOps.fit(image, (2 * side, 2 * side))
    pixels = middle(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255, side)
    if not colors:
        scale = flow.condition_scale
        return pixels, sample_latents(flow.latent_shapes(side * scale, side * scale), 1, 0.8, seed=1)
    shapes = flow.latent_shapes(side // 4, side // 4)
    return luma(pixels), sample_latents(shapes, 1, schedule(*flow.config.temperatures, len(shapes)), seed=1)


# --- storing ----------------------------------------------------------------------------------------------------------


def stored(name: str, originals: list[Tensor]) -> None:
    """Print one row per storage type."""
    own = flowcore.load(name)
    before = {tau: [paint(own, hr, tau) for hr in originals] for tau in (0.0, None)}
    for title, dtype in DTYPES.items():
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            save(own, path, dtype=dtype)
            flow, size = flowcore.load(path), path.stat().st_size
        cells = [Path(name).stem, title, f"{size / 1e6:.2f}"]
        for tau, pictures in before.items():
            after = [paint(flow, hr, tau) for hr in originals]
            psnrs = [f"{_psnr(originals, images):.3f}" for images in (pictures, after)]
            cells += [*psnrs, *(f"{value:.2g}" for value in changes(pictures, after).values())]
        _print(cells)


def paint(flow: Flow, hr: Tensor, tau: float | None) -> Tensor:
    """Enlarge the shrunk image, or color its gray version."""
    if "colorize" in flow.capabilities.tasks:
        return flowcore.colorize(flow, luma(hr), temperature=tau, detail=tau)
    return flowcore.upscale(flow, as_stored(downsample(hr, flow.condition_scale)), temperature=tau)


def _psnr(originals: list[Tensor], images: list[Tensor]) -> float:
    errors = torch.cat([(image - hr).flatten() for image, hr in zip(images, originals, strict=True)])
    return float(-10 * errors.square().mean().log10())


if __name__ == "__main__":
    main()
