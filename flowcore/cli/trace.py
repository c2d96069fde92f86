"""Commands on the origin of pictures: verify tells which a model made from a seed, audit what an upscaler invented."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

from ..batch import folders, provenance, tables
from ..batch.job import picture_id
from ..batch.record import TRACED, Entry, RecordFile, thumbnail, trace
from ..engine.image_batch import ImageBatch
from ..errors import FlowError, printable
from ..flows.mark import mark_key
from ..flows.model import FlowModel
from ..images import files
from ..images.contact_sheet import glow
from ..images.resize import resize_bilinear
from ..models.identity import model_sha256
from ..models.writing import write_atomic
from ..tasks.audit import audit
from ..tasks.edits import Box, describe_edits
from ..tasks.model_choice import FOR_CLEAN
from ..tasks.verify import COLD, Verification, may_be_crops, verify
from .batches import load_model
from .output import ProgressBar, check_overwrite, log, to_json

MAP = picture_id({"command": "map"})  # identifies maps, which may replace each other, in their EXIF data


class _Recipe(NamedTuple):
    """What is known of how a picture was made; empty for nothing."""

    seeds: tuple[int, ...] = ()  # the picture's own, and that of its clip's first frame, whose noise still frames keep
    model: str | None = None
    sha256: str = ""
    source: tuple[int, int] | None = None  # height and width of what it was made from
    temperature: float = 1.0
    origin: str = ""  # file of the picture that it was made from
    note: str = ""  # on what made it otherwise


def prepare_verify(options: Namespace) -> Callable[[], None]:
    original = None if options.source is None else files.read(files.read_bytes(options.source), "the source").pixels
    if options.mark is not None:
        mark_key(options.mark)  # raises for an empty phrase

    @cache
    def load_once(model: str) -> FlowModel:
        return load_model(Namespace(**{**vars(options), "model": model}))

    if options.model is not None:
        load_once(options.model)
    pictures = folders.list_inputs(options.images, options.maps, log)
    if options.maps is None:
        jobs = [folders.Job(picture.path) for picture in pictures]
    else:
        jobs = folders.make_jobs(pictures, options.maps, lambda path, kind: [f"{path.stem}{kind}_edited.png"])
        for job in jobs:
            _check_map(job.targets[0], again=options.again)
    return partial(_verify, options, jobs, original, load_once)


def _verify(
    options: Namespace, jobs: list[folders.Job], original: Tensor | None, load_once: Callable[[str], FlowModel]
) -> None:
    bar, verified, edited = ProgressBar({job.source: files.upright_size(job.source) for job in jobs}), 0, 0
    for job in jobs:
        row: dict[str, Any] = {"input": printable(str(job.source)), "verified": None, "notes": []}
        started, result = time.monotonic(), None
        try:
            if job.problem:
                raise FlowError(job.problem)
            pixels = files.read(files.read_bytes(job.source), job.source.name).pixels
            recipe = _read_recipe(job.source, pixels)
            row["notes"] += filter(None, [recipe.note])
            seeds = _seeds(options, recipe)
            row["model"] = options.model or recipe.model or FOR_CLEAN
            flow = load_once(row["model"])
            _check_model(options, recipe, flow)
            size = tuple((options.size * 2)[:2]) if options.size else _size(recipe, flow)
            common: dict[str, Any] = {"mark": options.mark, "source": original, "size": size}
            common |= {"progress": bar.start(job.source), "notify": row["notes"].append}
            found, seed = _compare(flow, pixels, seeds, common)
            row |= {"seed": seed} if options.mark is None else {"mark": options.mark}
            row |= {name: getattr(found, name)[0].tolist() for name in ("verified", "offset", "size", "mirrored")}
            row["z"] = round(float(found.z[0]), 2)
            if not row["verified"] and size is None and original is None and may_be_crops(flow, pixels):
                row["notes"].append("If it is a crop, give --source, what it was made from, or --size, what it was.")
            row["edited"] = round(float(found.edited_share[0]), 5) if row["verified"] else None
            row["boxes"] = found.boxes[0]
            if found.is_edited[0]:
                row["notes"].append(describe_edits(float(found.edited_share[0]), float(found.agreement[0].mean())))
            verified, edited = verified + row["verified"], edited + bool(found.is_edited[0])
            for target in job.targets:  # the map's files
                write_atomic(target, files.encode(glow(ImageBatch(pixels).rgb, found.edited)[0], unique_id=MAP))
                row["map"] = str(target)
            result = folders.Outputs([], time.monotonic() - started)
        except (FlowError, OSError) as error:
            result, row["error"] = error, str(error)
        tqdm.write(to_json(row) if options.json else _line(row), file=sys.stdout)
        sys.stdout.flush()
        for note in row["notes"] if not options.json else ():
            log(f"{job.source.name}: {note}")
        bar.finish(job, result)
    bar.close()  # raises an error that lists those that could not be read
    if verified < len(jobs):
        raise FlowError(f"Not verified: {len(jobs) - verified} of {len(jobs)}.")
    if edited and options.strict:
        raise FlowError(f"{edited} of {len(jobs)} pictures were edited since, or may have been.")


def prepare_trace(options: Namespace) -> Callable[[], None]:
    if options.record is None and options.folders is None:
        raise FlowError("Nothing to look in: give --record FILE, or --in FOLDER.")
    if options.record is not None:
        RecordFile(options.record, new=False)  # raises if it is none

    @cache
    def load_once(model: str) -> FlowModel:
        return load_model(Namespace(**{**vars(options), "model": options.model or model}))

    made = [] if options.folders is None else folders.list_inputs(options.folders, None, log)
    return partial(_trace, options, folders.list_inputs(options.images, None, log), made, load_once)


def _trace(
    options: Namespace,
    pictures: list[folders.InputFile],
    made: list[folders.InputFile],
    load_once: Callable[[str], FlowModel],
) -> None:
    entries = [] if options.record is None else RecordFile(options.record, new=False).entries()
    entries += filter(None, [_entry(each.path, load_once) for each in tqdm(made, disable=options.quiet or None)])
    lost = 0
    for picture in pictures:
        row: dict[str, Any] = {"input": printable(str(picture.path)), "found": False, "notes": []}
        text = "Not found."
        try:
            pixels = files.read(files.read_bytes(picture.path), picture.path.name).pixels
            found = trace(pixels, entries, load=load_once, notify=row["notes"].append)
            if found is not None:
                entry, where = found.entry, found.verification
                row |= {"found": True, "z": round(found.z, 2), **entry._asdict(), "credentials": found.credentials}
                row |= {name: getattr(where, name)[0].tolist() for name in ("offset", "mirrored")}
                row["edited"], row["boxes"] = round(float(where.edited_share[0]), 5), where.boxes[0]
                del row["thumbnail"]
                row |= {name: printable(row[name]) for name in ("file", "source", "model")}
                text = f"{found.sentence} It is {row['file']}."
        except (FlowError, OSError) as error:
            row["error"] = str(error)
            log(f"{picture.path.name}: {error}")
        lost += not row["found"]
        sys.stdout.write(f"{to_json(row) if options.json else row['input'] + ': ' + text}\n")
        sys.stdout.flush()
        for note in row["notes"] if not options.json else ():
            log(f"{picture.path.name}: {note}")
    if lost:
        places = [each for each in (options.record, *(options.folders or ())) if each is not None]
        raise FlowError(f"{lost} of {len(pictures)} pictures are not found in {', '.join(map(str, places))}.")


def _entry(path: Path, load_once: Callable[[str], FlowModel]) -> Entry | None:
    """Describe a picture as a record does, by its own recipe or manifest; None if no noise is known that it has."""
    try:
        pixels = files.read(files.read_bytes(path), path.name).pixels
        recipe = _read_recipe(path, pixels)
        if not recipe.seeds or not recipe.model or recipe.temperature == 0:
            return None
        height, width = _size(recipe, load_once(recipe.model)) or pixels.shape[-2:]
    except (FlowError, OSError) as error:
        log(f"{path.name}: {error}")
        return None
    origin, settings = recipe.origin or _listed(path).origin, {"temperature": recipe.temperature}
    what = str(path), origin, recipe.model, recipe.sha256, recipe.seeds[0], height, width, settings
    return Entry(*what, path.stat().st_mtime, thumbnail(ImageBatch(pixels).rgb))


def prepare_audit(options: Namespace) -> Callable[[], None]:
    flow = load_model(options, "upscale")
    if options.map is not None:
        _check_map(options.map, again=options.again)
    pixels, small = (files.read(files.read_bytes(path), path.name).pixels for path in (options.picture, options.source))
    return partial(_audit, options, flow, pixels, small)


def _audit(options: Namespace, flow: FlowModel, pixels: Tensor, small: Tensor) -> None:
    found = audit(flow, pixels, small, notify=log)
    names = ("detail", "outside", "lr_psnr", "bits_per_dim", "own_bits_per_dim")
    row: dict[str, Any] = {"input": printable(str(options.picture)), "sentence": found.sentences[0]}
    row |= {name: round(float(getattr(found, name)[0]), 4) for name in names} | {"boxes": found.boxes[0]}
    if options.map is not None:
        maps = resize_bilinear(found.glow, pixels.shape[-2:])
        write_atomic(options.map, files.encode(glow(ImageBatch(pixels).rgb, maps)[0], unique_id=MAP))
    if options.json:
        sys.stdout.write(to_json(row) + "\n")
        return
    places = _places(found.boxes[0])
    sys.stdout.write(f"{row['sentence']}\n")
    distance = f"Shrunk, it is {row['lr_psnr']:.1f} dB from the small image"
    sys.stdout.write(f"{distance}. Largest places: {places or 'none'}.\n")
    own = f"a sample of {options.model} has {row['own_bits_per_dim']:.2f}"
    sys.stdout.write(f"It needs {row['bits_per_dim']:.2f} bits per dimension given the small image; {own}.\n")


def _check_map(target: Path, *, again: bool) -> None:
    check_overwrite(target, lambda path: files.unique_id(path.read_bytes()) == MAP, "map", again=again)


def _line(row: dict[str, Any]) -> str:
    state = {None: "unknown     ", True: "verified    ", False: "not verified"}[row["verified"]]
    if "z" not in row:
        return f"{state}           {row['input']}"
    where = f"  Most edited: {_places(row['boxes'])}." if row["boxes"] else ""
    return f"{state} {row['z']:8.1f}  {row['input']}{where}"


def _places(boxes: Sequence[Box]) -> str:
    return ", ".join(f"{left},{top} to {right},{bottom}" for left, top, right, bottom in boxes)


def _read_recipe(path: Path, pixels: Tensor) -> _Recipe:
    """Read what made a picture from its own PNG or EXR file, or from the manifest of a batch beside or above it."""
    with suppress(provenance.ProvenanceError):
        entries = [entry for entry in provenance.read(path) if entry.node in TRACED]
        if entries:
            digest = provenance.picture_fingerprint(pixels[0])
            entry = provenance.select(entries, digest)
            shape = entry.sources.get("image", {}).get("shape", ())
            # nodes used to describe images as (B, H, W, C)
            sides = shape[2:] if len(shape) == 4 and shape[1] in (1, 3, 4) else shape[1:3]
            source = (int(sides[0]), int(sides[1])) if len(shape) == 4 else None
            seeds = tuple(dict.fromkeys((entry.drawn_with(digest), entry.seed_of(digest))))
            note = provenance.drawn_otherwise(entry)
            return _Recipe(seeds, entry.model, entry.model_sha256, source, entry.temperature, note=note)
    return _listed(path)


def _listed(path: Path) -> _Recipe:
    """Read what the manifest of a folder says of a picture there or in a sub-folder."""
    absolute = path.absolute()
    for folder in absolute.parents:
        found = tables.find(folder / tables.NAME, absolute.relative_to(folder))
        if found is not None:
            seed, model, sha256, origin = found
            return _Recipe((seed,), model, sha256, origin=origin)
    return _Recipe()


def _seeds(options: Namespace, recipe: _Recipe) -> Sequence[int]:
    """Return the seeds that a picture may have: what was given, else those of the recipe; any for a mark."""
    if options.mark is not None:
        return (0,)
    if options.seed is not None:
        return options.seed if isinstance(options.seed, range) else (options.seed,)
    if not recipe.seeds:
        raise FlowError(f"recipe missing: give --seed, and --model unless it is {FOR_CLEAN}.")
    if recipe.temperature == 0:
        raise FlowError(COLD)
    return recipe.seeds


def _compare(
    flow: FlowModel, pixels: Tensor, seeds: Sequence[int], options: dict[str, Any]
) -> tuple[Verification, int]:
    """Verify a picture with the first seed that agrees as it is, or else with its own; and return that, too.

    A range of seeds is looked through.
    """
    if isinstance(seeds, range):
        found = verify(flow, pixels, among=seeds, **options)
        return found, found.seeds[0]
    for seed in seeds if len(seeds) > 1 else ():
        found = verify(flow, pixels, seed=seed, search=False, **options)
        if found.verified.all():
            return found, seed
    return verify(flow, pixels, seed=seeds[0], **options), seeds[0]


def _check_model(options: Namespace, recipe: _Recipe, flow: FlowModel) -> None:
    if options.model is None and recipe.sha256 and model_sha256(flow) != recipe.sha256:
        raise FlowError(
            f"The picture was made with another {recipe.model}: expected sha {recipe.sha256[:12]}; the one that is "
            f"here has sha {model_sha256(flow)[:12]}. Give the model that made it with --model."
        )


def _size(recipe: _Recipe, flow: FlowModel) -> tuple[int, int] | None:
    """Compute the size that a picture had when the model made it, if the recipe states that of its source."""
    if recipe.source is None:
        return None
    height, width = recipe.source
    return height * flow.condition_scale, width * flow.condition_scale
