"""Commands that make images: upscale, brighten, shrink, restore, faces, sample, interpolate."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import FlowError
from .options import (
    CALM_EDGES,
    add_again,
    add_batch,
    add_file_format,
    add_manifest,
    add_megapixels,
    add_model,
    add_output,
    add_precision,
    parse_fields,
)
from .output import log, write_result

if TYPE_CHECKING:
    from ..batch.job import Command
    from ..flow import Flow


def add_upscale(command: argparse.ArgumentParser) -> None:
    add_pictures(command, _upscale)
    option = command.add_argument
    text = "0 is calm, 1 the model's own spread (default: what the model's file states)"
    option("--temperature", type=float, help=text)
    text = "of a clip, an animated image or a folder of numbered frames: how much of a frame guides the next, 0 to 1"
    option("--steadiness", type=float, metavar="PART", help=text)
    option("--calm-edges", type=float, metavar="SHARE", help=CALM_EDGES)
    text = "another enlargement of the picture, or a folder of one of each name, of whose latents a part is kept"
    option("--guide", type=Path, metavar="FILE_OR_FOLDER", help=text)
    text = "that part, 0 to 1: 1 gives the guide back (default: what the model's file states, or 0.5)"
    option("--guide-strength", type=float, metavar="PART", help=text)
    _add_draws(command, "enlargements per image", tiles="LR pixels")
    add_megapixels(command)
    add_precision(command)
    add_file_format(command)


def add_brighten(command: argparse.ArgumentParser) -> None:
    add_pictures(command, _brighten, model="brighten-photos")
    option = command.add_argument
    text = "0 is the picture that the model expects, above come other exposures (default: what the model's file states)"
    option("--temperature", type=float, help=text)
    text = "stops by which the results are lighter than the model draws them, -4 to 4 (default: 0)"
    option("--exposure", type=float, default=0.0, metavar="STOPS", help=text)
    _add_draws(command, "exposures per image", tiles="pixels")
    add_precision(command)
    add_file_format(command)


def add_shrink(command: argparse.ArgumentParser) -> None:
    _add_rescaling(command, _shrink)
    command.set_defaults(seed=0, samples=1, bits=8)


def add_restore(command: argparse.ArgumentParser) -> None:
    _add_rescaling(command, _restore)
    option = command.add_argument
    text = "0 is the mean of what is possible (default: what the model's file states)"
    option("--temperature", type=float, help=text)
    _add_draws(command, "pictures each", tiles="pixels of the small picture")
    option("--bits", type=int, choices=[8, 16], default=8, help="per channel (default: 8)")
    add_precision(command)
    add_megapixels(command)


def add_faces(command: argparse.ArgumentParser) -> None:
    add_pictures(command, _faces)
    option = command.add_argument
    text = "a model file, or a shipped model by name, of the faces (default: srflow-faces-x8)"
    option("--face-model", default="srflow-faces-x8", metavar="MODEL", help=text)
    option("--factor", type=float, default=8.0, help="total enlargement (default: 8)")
    option("--smallest", type=float, default=0, metavar="PIXELS", help="side of the smallest face, hair included")
    option("--number", type=int, default=0, metavar="N", help="faces of each picture at most, largest first; 0: all")
    option("--temperature", type=float, help="of the faces (default: what their model's file states)")
    _add_draws(command, "pictures each", tiles="LR pixels")
    add_megapixels(command)
    add_precision(command)
    add_file_format(command)


def _add_rescaling(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    add_pictures(command, run, model="rescale-x4")
    command.set_defaults(format="png", quality=None)
    command.epilog = "The results are PNG files."


def add_pictures(
    command: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    *,
    model: str = "srflow-x4",
    out: str | None = None,
) -> None:
    """Add what all commands share that make pictures of pictures."""
    command.set_defaults(run_command=run)
    add_batch(command, out)
    add_manifest(command)
    add_model(command, model)


def _add_draws(command: argparse.ArgumentParser, samples: str, *, tiles: str) -> None:
    option = command.add_argument
    option("--seed", type=int, default=0)
    option("--samples", type=int, default=1, help=f"{samples}, with seeds SEED, SEED + 1, ...")
    option("--tile", type=int, default=0, help=f"side of the tiles in {tiles}; 0 chooses by free memory")


def add_sample(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_sample)
    add_output(command)
    add_model(command, "glow-photos")
    option = command.add_argument
    option("-o", "--out", type=Path, default=Path("output"), help="folder for the results (default: output), or a file")
    add_again(command)
    option("--samples", type=int, default=8, help="images, with seeds SEED, SEED + 1, ...")
    option("--temperature", type=float, default=0.7, help="0 is calm, 1 the model's own spread")
    option("--seed", type=int, default=0)
    option("--size", type=int, nargs="+", metavar="PIXELS", help="side, or height and width")
    option("--labels", nargs="+", help="numbers or names, for models that have them; repeated in turn")
    text = "how far images are led to their labels, by models made for it: 0 for not, 1 to 3 are usual (default: 0)"
    option("--guidance", type=float, default=0.0, metavar="W", help=text)
    text = "keep the Gaussian noise that a model draws because it was trained with it"
    option("--keep-noise", action="store_true", help=text)
    text = "for models with styles, e.g. bold=2"
    option("--style", action="append", default=[], metavar="NAME=STRENGTH", help=text)
    add_precision(command)


def add_interpolate(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run_command=_interpolate)
    add_output(command)
    command.add_argument("images", nargs=2, type=Path, metavar="IMAGE")
    add_model(command, "glow-photos")
    option = command.add_argument
    option("-o", "--out", type=Path, default=Path("output"), help="folder for the frames (default: output), or a file")
    add_again(command)
    option("--frames", type=int, default=16)
    option("--mode", default="slerp", choices=["slerp", "linear", "norm"])


def _upscale(options: argparse.Namespace) -> None:
    from ..tasks.intake import resolve
    from ..tasks.tiles import own_strength
    from ..tasks.upscale import sampling_settings
    from .batches import load_model

    flow = load_model(options)
    temperature, calm_edges = sampling_settings(flow, options.temperature, options.calm_edges)
    given = {"guide": options.guide, "guide_strength": options.guide_strength}
    strength = own_strength(flow, None, resolve(flow, given)["guide_strength"])
    label = f"tau{temperature:g}" + (f"_calm{calm_edges:g}" if calm_edges else "")
    label += f"_guided{strength:g}" if strength else ""
    settings: dict[str, Any] = {"temperature": temperature, "calm_edges": calm_edges}
    if options.steadiness is None:
        settings |= {"guide_strength": strength} if strength or flow.guide is not None else {}
    else:
        if options.samples > 1 or options.ray or options.ray_address or given != dict.fromkeys(given):
            raise FlowError("Frames of a video depend on each other: leave --samples, --ray and --guide out.")
        settings |= {"frames": "video", "steadiness": options.steadiness}
    _make_samples(options, flow, "upscale", label, settings, guide=options.guide)


def _brighten(options: argparse.Namespace) -> None:
    from ..tasks.intake import resolve
    from .batches import load_model

    flow = load_model(options, "brighten")
    settings = resolve(flow, {"temperature": options.temperature})
    label = "light_tau{temperature:g}".format(**settings)
    if options.exposure:
        settings, label = settings | {"exposure": options.exposure}, f"{label}_exposure{options.exposure:g}"
    _make_samples(options, flow, "brighten", label, settings)


def _shrink(options: argparse.Namespace) -> None:
    from .batches import load_model, make_images, seed_names

    flow = load_model(options, "rescale")
    _check_png(options, "shrink")
    make_images(options, flow, "shrink", {}, lambda stem: [f"{stem}{_small(options)}"], seed_names(options))


def _restore(options: argparse.Namespace) -> None:
    from ..tasks.intake import resolve
    from .batches import load_model

    flow = load_model(options, "rescale")
    _check_png(options, "restore")
    settings, small = resolve(flow, {"temperature": options.temperature}), _small(options)
    label = "restored_tau{temperature:g}".format(**settings)
    _make_samples(options, flow, "restore", label, settings, original=lambda stem: stem.removesuffix(small))


def _faces(options: argparse.Namespace) -> None:
    from .. import load
    from ..checkpoints.latents_file import model_sha256
    from .batches import load_model

    flow, faces = load_model(options, "upscale"), load(options.face_model)
    faces.require("upscale")
    temperature = faces.config.temperature if options.temperature is None else options.temperature
    settings = {name: getattr(options, name) for name in ("factor", "smallest", "number", "face_model")}
    settings |= {"face_sha256": model_sha256(faces), "temperature": temperature}
    _make_samples(options, flow, "faces", f"faces_tau{temperature:g}", settings)


def _small(options: argparse.Namespace) -> str:
    """How the names of small pictures end."""
    return f"_{Path(options.model).stem}_small"


def _check_png(options: argparse.Namespace, command: str) -> None:
    from .batches import named_format

    if named_format(options.out) not in (None, "png"):
        raise FlowError(f"The results of {command} are PNG files, which lose nothing; got {options.out.name}.")


def _make_samples(
    options: argparse.Namespace,
    flow: Flow,
    command: Command,
    label: str,
    settings: dict[str, Any],
    *,
    original: Callable[[str], str] = str,
    guide: Path | None = None,
) -> None:
    """Make all samples of every image, each in a file whose name ends in the model, the label and the seed."""
    from .batches import describe, make_images, seed_names

    settings = {**settings, "tile": options.tile, "precision": options.precision}
    seeds, made_by = seed_names(options), describe(options, label)

    def names(stem: str) -> list[str]:
        return [stem] if "frames" in settings else [f"{original(stem)}_{made_by}_{seed}" for seed in seeds]

    make_images(options, flow, command, settings, names, seeds, guide=guide)


def _sample(options: argparse.Namespace) -> None:
    from .. import load, sample
    from ..tasks.subject import label_number
    from .batches import describe, seed_names

    flow = load(options.model, options.device, **parse_fields(options.set))
    flow.require("sample")
    size = flow.sides(options.size and (options.size[0] if len(options.size) == 1 else tuple(options.size)))
    numbers = [label_number(flow, label) for label in options.labels or ()]
    labels = [numbers[i % len(numbers)] for i in range(options.samples)] if numbers else None
    styles = parse_fields(options.style)

    make = partial(
        sample,
        flow,
        options.samples,
        size=size,
        temperature=options.temperature,
        seed=options.seed,
        labels=labels,
        styles=styles,
        snapped=True,
        guidance=options.guidance,
        denoise=not options.keep_noise,
        precision=options.precision,
    )
    parts = [f"{height}x{width}" for height, width in [size] if size != flow.image_size]
    parts += [f"{name}{strength}" for name, strength in styles.items()]
    parts += [f"guided{options.guidance:g}"] * (options.guidance > 0) + ["noisy"] * options.keep_noise
    made_by = describe(options, "_".join([*parts, f"tau{options.temperature:g}"]))
    seeds = seed_names(options)
    names = [f"label{label}_{seed}" for label, seed in zip(labels, seeds, strict=True)] if labels else seeds
    settings = {"height": size[0], "width": size[1], "precision": options.precision, "styles": ", ".join(options.style)}
    settings["labels"] = ", ".join(map(str, numbers))
    settings |= {"guidance": options.guidance} if options.guidance else {}
    settings |= {"denoise": False} if options.keep_noise else {}
    values = {"temperature": options.temperature, "seed": options.seed, "samples": options.samples, **settings}
    entry: dict[str, Any] = {"node": "FlowcoreSample", "values": values}
    _save(options, flow, make, size, made_by, names, entry)


def _interpolate(options: argparse.Namespace) -> None:
    from .. import decode, encode, interpolate, load
    from ..evaluation.image_set import read_upright, resize_to_own
    from ..provenance import source

    flow = load(options.model, options.device, **parse_fields(options.set))
    ends = [resize_to_own(flow, read_upright(path)) for path in options.images]

    def make() -> Tensor:
        first, last = (encode(flow, image[None]) for image in ends)
        parts = [k / max(1, options.frames - 1) for k in range(options.frames)]
        frames = [decode(flow, interpolate(first, last, t, mode=options.mode), clamp=True) for t in parts]
        return torch.cat(frames)

    stem = "_".join([*(path.stem for path in options.images), Path(options.model).stem, options.mode])
    names = [f"{k:03d}" for k in range(options.frames)]
    values = {"temperature": 0.0, "seed": 0, "samples": options.frames, "mode": options.mode, "frames": options.frames}
    entry: dict[str, Any] = {"node": "interpolate", "values": values}
    entry["sources"] = {name: source(image) for name, image in zip(("first", "last"), ends, strict=True)}
    height, width = ends[0].shape[-2:]
    _save(options, flow, make, (height, width), stem, names, entry)


def _save(
    options: argparse.Namespace,
    flow: Flow,
    make: Callable[[], Tensor],
    size: tuple[int, int],
    stem: str,
    names: Sequence[str],
    entry: dict[str, Any],
) -> None:
    """Make images ``(B, C, H, W)`` of a size unless they are there, and save them with their provenance.

    ``stem`` begins the names of their files unless ``--out`` names one, ``names`` distinguish them, and ``entry`` are
    fields of their ``Provenance``, with all ``values``.
    """
    from ..batch.folders import targets_done
    from ..batch.job import picture_id
    from ..checkpoints.latents_file import model_sha256
    from ..checkpoints.writing import write_atomic
    from ..images.color import to_uint8
    from ..images.files import encode
    from ..provenance import Provenance
    from ..tasks import duration
    from .batches import named_format, numbered

    start, sha = time.monotonic(), model_sha256(flow)
    format = named_format(options.out)
    targets = numbered(options.out, list(names)) if format else [options.out / f"{stem}_{k}.png" for k in names]
    values = entry.pop("values")
    same = {**entry, **values, "samples": None}  # more of them leave the first as they are
    ids = [picture_id({**same, "model": sha, "name": name}) for name in names]
    if targets_done(targets, ids, size, again=options.again):
        write_result(options, None, targets)
        log(f"{len(targets)} of {len(targets)} were there already (--again makes them anew).")
        return
    images = make()
    common = {"node_id": "command", "model": options.model, "model_sha256": sha}
    text = Provenance.of(values, flow, map(to_uint8, images), **common, **entry).text()
    for target, image, id in zip(targets, images, ids, strict=True):
        write_atomic(target, encode(image, format=format or "png", unique_id=id, text=text))
    write_result(options, None, targets, seconds=round(time.monotonic() - start, 2))
    log(f"{len(targets)} done, in {duration(time.monotonic() - start)}.")
