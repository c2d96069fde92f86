"""How surely pictures are traced to their seed or mark (``flowcore.verify``), by damage, model and size of the picture.

    python -m benchmarks.traceable FOLDER [FOLDER ...] [--models srflow-x4] [--side 320] [--limit 8]

draws a picture from the middle of each image of the folders: an enlargement of the middle shrunk, a coloring, a
restored picture, or a sample; damages it, and prints z, the smallest and the mean. The last rows are other seeds,
other pictures and other phrases, of which the largest |z| is printed.

    python -m benchmarks.traceable FOLDER --pairs 1000 [--side 192]

compares each of up to 100 images with seeds that have nothing to do with it, and counts.

    python -m benchmarks.traceable FOLDER --unedited [--side 320]

prints how much of the map of edits glows though nothing was edited, by damage: mean agreement and largest share.

    python -m benchmarks.traceable FOLDER --calibrate 300 [--side 128]

measures the band of ``flowcore.audit`` on as many crops of held-out photographs: the quantile from every second one,
and its coverage of each of the others; and the fine detail of the crops and of their bicubic enlargements.

    python -m benchmarks.traceable FOLDER --audit WHEEL [--side 320]

enlarges images by RealESRGAN x4plus and tells how well invention finds the fifth of their 8x8 blocks that is most
wrong (area under the ROC curve).

    python -m benchmarks.traceable FOLDER --guesses 2000 [--side 320]

times how long it takes to try one phrase on a marked picture, by how many latents are compared, and prints z of the
right one and the largest |z| of the others.

    python -m benchmarks.traceable FOLDER [FOLDER ...] --trace [--side 320] [--limit 100]

records enlargements of the first images, and counts how many are traced home by damage, how many of their originals
are claimed, and how many of the next 1,000 images. What is left fills the record, up to 10,000.
"""

import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

import flowcore
from flowcore import FlowModel
from flowcore.batch.record import Entry, RecordFile, candidates, thumbnail
from flowcore.flows.mark import mark_key, mark_noise
from flowcore.images.color import as_stored, luma
from flowcore.images.resize import downsample, enlarge, resize
from flowcore.models.identity import DIGITS, model_sha256
from flowcore.tasks.audit import expected, fine_detail
from flowcore.training.evaluation.image_set import list_images, read_cropped
from flowcore.training.recipe import held_out_names
from flowcore.training.teacher import read_realesrgan

from .measure import arguments, as_image, markdown, means, middle, say
from .upscalers import Change, add_noise, compress

COVERAGE = 0.95  # of photographs, by the band of ``audit``
RECORDS, FOREIGN = 10_000, 1000  # recorded pictures, and others, that ``--trace`` tries
SEED, OTHER, PHRASE = 5, 1000, "a phrase of the benchmark"


def resized(image: Tensor, ratio: float, then: Change = as_stored) -> Tensor:
    """Resize by Pillow's Lanczos, as another program may."""
    height, width = (round(side * ratio) for side in image.shape[-2:])
    smaller = as_image(image[0]).resize((width, height), Image.Resampling.LANCZOS)
    return then(_pixels(smaller))


def back(image: Tensor, ratio: float) -> Tensor:
    """Resize, and back to the size before."""
    return as_stored(resize(resized(image, ratio), *image.shape[-2:]).clamp(0, 1))


def blurred(image: Tensor) -> Tensor:
    """Blur by a Gaussian, as another program may."""
    return _pixels(as_image(image[0]).filter(ImageFilter.GaussianBlur(1)))


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


DAMAGES: dict[str, Change] = {
    "8 bits": as_stored,
    "JPEG 95 4:4:4": partial(compress, quality=95, subsampling="4:4:4"),
    "JPEG 85 4:2:0": partial(compress, quality=85),
    "JPEG 75 4:2:0": partial(compress, quality=75),
    "JPEG 60 4:2:0": partial(compress, quality=60),
    "WebP 80": partial(compress, quality=80, format="WEBP"),
    "3/4 and back": partial(back, ratio=0.75),
    "half and back": partial(back, ratio=0.5),
    "3/4, JPEG 80": partial(resized, ratio=0.75, then=partial(compress, quality=80)),
    "half, JPEG 90": partial(resized, ratio=0.5, then=partial(compress, quality=90)),
    "blur of 1 pixel": blurred,
    "noise of 8/255": add_noise,
    "brighter by 10 %": lambda x: as_stored(x * 1.1),
    "mirrored, JPEG 85": lambda x: compress(x.flip(-1), 85),
}


def draw(flow: FlowModel, hr: Tensor, **options: Any) -> Tensor:
    """Make a picture of an image ``(1, 3, H, W)``, with the seed ``SEED``; samples have nothing of it but the size."""
    able = flow.capabilities.tasks
    if "upscale" in able:
        return flowcore.upscale(flow, as_stored(downsample(hr, flow.condition_scale)), seed=SEED, **options)
    if "colorize" in able:
        return flowcore.colorize(flow, luma(hr), seed=SEED, **options)
    if "rescale" in able:
        return flowcore.restore(flow, flowcore.shrink(flow, hr), temperature=0.5, seed=SEED, **options)
    height, width = flow.image_size or hr.shape[-2:]
    return flowcore.sample(flow, 1, size=(height, width), seed=SEED, snapped=True, **options)


OLD = {"temperature": 0.8, "calm_edges": 0.0, "guide_strength": 0.0}, {"temperature": 0.8, "guide_strength": 0.6}


def measure(flow: FlowModel, images: list[Tensor]) -> dict[str, list[float]]:
    """Measure z by row of the table, of every image."""
    rows: dict[str, list[float]] = {}

    def add(name: str, pictures: Tensor, **options: Any) -> None:
        options = {"seed": SEED, **options}
        rows.setdefault(name, []).append(float(flowcore.verify(flow, pictures, **options).z))

    for number, hr in enumerate(images):
        made, marked = draw(flow, hr), draw(flow, hr, mark=PHRASE)
        size = (made.shape[-2], made.shape[-1])
        for name, damage in DAMAGES.items():
            add(name, damage(made), size=size if "half" in name or "3/4" in name else None)
        add("3/4, JPEG 80, size not given", DAMAGES["3/4, JPEG 80"](made))
        if "upscale" in flow.capabilities.tasks:
            for settings in OLD:
                named = ", ".join(f"{key} {value}" for key, value in settings.items())
                add(f"{named}; JPEG 85", compress(draw(flow, hr, **settings), 85))
            add("Match Source, JPEG 85", compress(draw(flow, hr, match_source=True), 85))
        if flow.capabilities.source != "luma" and min(size) >= 224:
            for side in (128, 192):
                part = made[..., 21 : 21 + side, 35 : 35 + side]
                add(f"crop of {side}, 8 bits", as_stored(part), size=size)
                add(f"crop of {side}, JPEG 85", compress(part, 85), size=size)
        for name in ("8 bits", "JPEG 85 4:2:0", "JPEG 75 4:2:0", "half and back"):
            add(f"mark alone, {name}", DAMAGES[name](marked), mark=PHRASE, size=size)
        add("other seed", as_stored(made), seed=OTHER + number, search=False)
        add("other picture", as_stored(middle(hr, max(size))), search=False, size=size)
        add("other phrase", as_stored(marked), mark=f"another {number}", search=False)
        add("no mark", as_stored(made), mark=PHRASE, search=False)
        say(f"image {number + 1} of {len(images)}")
    return rows


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Write z by damage and model: the smallest and the mean; of others the largest |z|."""
    lines: list[list[str]] = []
    for row in dict.fromkeys(row for result in results.values() for row in result):
        cells = [row]
        for result in results.values():
            z = result.get(row, [])
            if row.startswith(("other", "no mark")):
                cells.append(f"|z| up to {max(map(abs, z)):.1f}" if z else "")
            else:
                cells.append(f"{min(z):.1f}, {sum(z) / len(z):.1f}" if z else "")
        lines.append(cells)
    return markdown(["smallest and mean z", *results], lines)


def false_alarms(flow: FlowModel, images: list[Tensor], pairs: int) -> str:
    """Compare images, as they are and enlarged by the model, with seeds that they were not made from."""
    values: list[float] = []
    pictures = [as_stored(picture) for hr in images for picture in (hr, draw(flow, hr))]
    for number in range(pairs):
        result = flowcore.verify(flow, pictures[number % len(pictures)], seed=OTHER + number, search=False)
        values.append(float(result.z))
        if number % 50 == 49:
            say(f"{number + 1} of {pairs}: |z| up to {max(map(abs, values)):.2f}")
    z = torch.tensor(values)
    return (
        f"{len(values)} pairs: |z| up to {float(z.abs().max()):.2f}, mean {float(z.mean()):.3f}, deviation "
        f"{float(z.std()):.3f}; {int((z > 3).sum())} above 3, {int((z > 4.5).sum())} above 4.5"
    )


def unedited(flow: FlowModel, images: list[Tensor]) -> str:
    """Measure by damage how far pictures agree with their noise, and how much of them glows though unedited."""
    lines, pictures = list[list[str]](), [draw(flow, hr) for hr in images]
    for name, damage in DAMAGES.items():
        size = (pictures[0].shape[-2], pictures[0].shape[-1]) if "half" in name or "3/4" in name else None
        found = [flowcore.verify(flow, damage(picture), seed=SEED, size=size) for picture in pictures]
        levels = [float(each.agreement.mean()) for each in found if each.verified]
        shares = [100 * float(each.edited_share) for each in found if each.verified]
        wrong = sum(bool(each.is_edited) for each in found)
        lines.append(
            [name, f"{min(levels):.2f} to {max(levels):.2f}", f"{max(shares):.2f} %", f"{wrong} of {len(shares)}"]
        )
        say(" | ".join(lines[-1]))
    return markdown(["damage", "mean agreement", "largest share that glows", "taken for edited"], lines)


def calibrate(flow: FlowModel, files: list[Path], crops: int, side: int) -> str:
    """Measure the quantile of errors in deviations on half of the crops, its coverage of the others, and detail."""
    generator, ratios, detail = torch.Generator().manual_seed(0), list[Tensor](), list[list[float]]()
    for number in range(crops):
        image = read_cropped(files[number % len(files)], 1)
        top, left = (int(torch.randint(max(1, n - side), (), generator=generator)) for n in image.shape[-2:])
        hr = image[..., top : top + side, left : left + side]
        hr = hr[..., : hr.shape[-2] // 16 * 16, : hr.shape[-1] // 16 * 16].expand(-1, 3, -1, -1)
        small = as_stored(downsample(hr, flow.condition_scale))
        likely, deviation, samples = expected(flow, small)
        ratios.append(((hr - likely).abs().mean(1, keepdim=True) / deviation).flatten())
        usual = fine_detail(samples).square().mean().sqrt()
        pictures = torch.cat([hr, enlarge(small, flow.condition_scale).clamp(0, 1), likely])
        detail.append((fine_detail(pictures) / usual).tolist())
        if number % 20 == 19:
            say(f"{number + 1} of {crops}")
    pooled = torch.cat(ratios[::2]).double().numpy()
    quantile = float(np.quantile(pooled, COVERAGE))
    covered = np.array([float((ratio <= quantile).double().mean()) for ratio in ratios[1::2]])
    low, middle_, high = (100 * float(np.quantile(covered, q)) for q in (0.1, 0.5, 0.9))
    spread = [[f"{np.quantile(kind, q):.2f}" for q in (0, 0.05, 0.5, 0.95, 1)] for kind in zip(*detail, strict=True)]
    return (
        f"{model_sha256(flow)[:DIGITS]}: quantile {quantile:.3f}; of the {len(covered)} other crops it covers "
        f"{100 * covered.mean():.1f} %, each {low:.1f} to {high:.1f} (10th to 90th percentile; median {middle_:.1f}). "
        f"Detail (least, 5th percentile, median, 95th, most): photographs {', '.join(spread[0])}; bicubic "
        f"{', '.join(spread[1])}; temperature 0 {', '.join(spread[2])}"
    )


def audits(flow: FlowModel, images: list[Tensor], wheel: Path) -> str:
    """Compare what finds the worst fifth of the 8x8 blocks of another upscaler's pictures."""
    other, lines, rows = read_realesrgan(wheel), list[list[str]](), list[list[float]]()
    for hr in images:
        small = as_stored(downsample(hr, flow.condition_scale))
        theirs = as_stored(other(small))
        found = flowcore.audit(flow, theirs, small)
        blocks = F.avg_pool2d((theirs - hr).abs().mean(1, keepdim=True), 8).flatten()
        wrong = blocks >= blocks.quantile(0.8)
        contradiction = F.interpolate(found.contradiction, found.invention.shape[-2:], mode="nearest")
        plain = (theirs - enlarge(small, flow.condition_scale)).abs().mean(1, keepdim=True)
        measures = (found.invention, plain, contradiction, found.invention / found.band)
        aucs = [area_under_curve(F.avg_pool2d(measure, 8).flatten(), wrong) for measure in measures]
        rows.append([*aucs, float(found.lr_psnr[0]), float(found.detail[0])])
        own = flowcore.audit(flow, as_stored(flowcore.upscale(flow, small, seed=SEED)), small)
        rows[-1] += [float(own.lr_psnr[0]), float(own.detail[0])]
        lines.append([f"{value:.3f}" for value in aucs] + [f"{value:.2f}" for value in rows[-1][4:]])
        say(" | ".join(lines[-1]))
    heads = ["AUC: invention", "|theirs - bicubic|", "contradiction", "invention / band"]
    heads += ["LR-PSNR", "detail", "LR-PSNR of ours", "detail of ours"]
    return markdown(heads, [*lines, means(rows, (3, 3, 3, 3, 1, 2, 1, 2))])


def area_under_curve(scores: Tensor, positives: Tensor) -> float:
    """Compute the chance that a positive has a higher score than a negative."""
    order = scores.argsort().argsort().double() + 1
    p, n = int(positives.sum()), int((~positives).sum())
    return (float(order[positives].sum()) - p * (p + 1) / 2) / (p * n)


def guesses(flow: FlowModel, hr: Tensor, count: int) -> str:
    """Try phrases on a marked picture: an attacker encodes it once, and compares its first latents with each."""
    marked, lines = as_stored(draw(flow, hr, mark=PHRASE)), list[list[str]]()
    with torch.no_grad():
        cond = flow.encode_condition(as_stored(downsample(marked, flow.condition_scale)))
        latents = flow.encode(marked, cond)[0].flatten().clamp(-4, 4)
    for n in (1000, 8000):
        z = latents[:n] / latents[:n].square().sum().sqrt()

        def compare(phrase: str, z: Tensor = z) -> float:
            return float(z @ mark_noise(mark_key(phrase), [(1, 1, len(z))])[0].flatten())

        start = time.process_time()
        others = max(abs(compare(f"another {number}")) for number in range(count))
        each = (time.process_time() - start) / count
        lines.append([str(n), f"{1e6 * each:.0f}", f"{compare(PHRASE):.1f}", f"{others:.1f}"])
    return markdown(["latents", "us a guess", "z of the phrase", "largest of others"], lines)


def traced(flow: FlowModel, name: str, files: list[Path], side: int, limit: int) -> str:
    """Count the recorded enlargements that are traced home after damage, and other pictures that are claimed."""
    images = [middle(read_cropped(file, 16), side) for file in files[:limit]]
    foreign, more = files[limit : limit + FOREIGN], files[limit + FOREIGN :]
    damages: dict[str, Change] = {each: DAMAGES[each] for each in ("JPEG 75 4:2:0", "mirrored, JPEG 85")}
    damages |= {"half": partial(resized, ratio=0.5), "half, JPEG 90": DAMAGES["half, JPEG 90"]}
    damages["half of its area, JPEG 90"] = lambda x: compress(x[..., : 3 * x.shape[-2] // 4, x.shape[-1] // 3 :], 90)
    with tempfile.TemporaryDirectory() as folder:
        book = RecordFile(Path(folder, "record"))
        pictures = [as_stored(draw(flow, hr)) for hr in images]
        settings: dict[str, Any] = {}

        def record(shown: Tensor, source: str, seed: int) -> Entry:
            size = shown.shape[-2], shown.shape[-1]
            return Entry("made", source, name, model_sha256(flow), seed, *size, settings, 0.0, thumbnail(shown))

        entries = [record(picture, f"{number}", SEED) for number, picture in enumerate(pictures)]
        for file in more:
            shown = as_stored(read_cropped(file, 16))
            entries += [record(shown, file.name, seed) for seed in range(3)]  # as three samples are recorded
        book.add_entries(entries[:RECORDS])
        seconds: list[float] = []

        def home(picture: Tensor) -> str | None:
            start = time.process_time()
            candidates(picture, book.entries())
            seconds.append(time.process_time() - start)
            found = flowcore.trace(picture, book.path, load=lambda _: flow)
            return None if found is None else found.entry.source

        say(f"{len(entries[:RECORDS])} records")
        lines: list[list[str]] = []
        for damage, change in damages.items():
            sources = [home(change(picture)) for picture in pictures]
            right = sum(source == f"{number}" for number, source in enumerate(sources))
            wrong = sum(source not in (None, f"{number}") for number, source in enumerate(sources))
            lines.append([damage, f"{right} of {len(pictures)}", f"{wrong}"])
            say(" | ".join(lines[-1]))
        others = [as_stored(hr) for hr in images], map(read_cropped, foreign, [16] * len(foreign))
        for kind, pixels in zip(("their originals", "pictures of other origin"), others, strict=True):
            claims = [home(each) is not None for each in pixels]
            lines.append([kind, f"{sum(claims)} of {len(claims)}", ""])
            say(" | ".join(lines[-1]))
    say(f"search of candidates: {np.median(seconds):.2f} s each, at most {max(seconds):.2f} s")
    return markdown(["damage", "traced", "to another picture"], lines)


def main() -> None:
    """Measure, and print a table."""
    parser = arguments(__doc__, "traceable")
    option = parser.add_argument
    option("folders", type=Path, nargs="+", metavar="FOLDER")
    option("--models", nargs="+", default=["srflow-x4"], metavar="MODEL")
    option("--side", type=int, default=320, help="of the pictures, default 320")
    option("--limit", type=int, default=8, help="most images, default 8")
    option("--pairs", type=int, default=0, help="count false alarms among so many pairs instead")
    option("--unedited", action="store_true", help="measure how much of unedited pictures glows instead")
    option("--calibrate", type=int, default=0, metavar="CROPS", help="measure the band of audit instead")
    option("--guesses", type=int, default=0, help="time so many guesses of the phrase of a marked picture instead")
    option("--trace", action="store_true", help="count how many recorded pictures are traced home instead")
    option("--audit", type=Path, metavar="WHEEL", help="audit RealESRGAN x4plus, from this file, instead")
    options = parser.parse_args()
    if options.calibrate:
        held_out = list_images(options.folders, only=held_out_names("standard"))
        for name in options.models:
            line = calibrate(flowcore.load(name), held_out, options.calibrate, options.side)
            sys.stdout.write(f"{name}: {line}\n")
        return
    if options.trace:
        name, files = options.models[0], list_images(options.folders)
        sys.stdout.write(traced(flowcore.load(name), name, files, options.side, options.limit) + "\n")
        return
    limit = min(100, options.pairs) if options.pairs else options.limit
    files = list_images(options.folders, limit=limit)
    images = [middle(read_cropped(file, 16), options.side) for file in files]
    if options.unedited:
        sys.stdout.write(unedited(flowcore.load(options.models[0]), images) + "\n")
        return
    if options.audit:
        sys.stdout.write(audits(flowcore.load(options.models[0]), images, options.audit) + "\n")
        return
    if options.guesses:
        sys.stdout.write(guesses(flowcore.load(options.models[0]), images[0], options.guesses) + "\n")
        return
    if options.pairs:
        for name in options.models:
            sys.stdout.write(f"{name}: {false_alarms(flowcore.load(name), images, options.pairs)}\n")
        return
    results: dict[str, dict[str, list[float]]] = {}
    for name in options.models:
        results[name] = measure(flowcore.load(name), images)
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    main()
