"""One picture file of a batch: the file's bytes in, the bytes of its results out."""

import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from ..checkpoints import load
from ..checkpoints.color_memory import ColorMemory
from ..checkpoints.latents_file import model_sha256
from ..errors import FlowError
from ..evaluation.colorization import chroma_on_grid
from ..evaluation.image_set import resize_to_own
from ..flow import Flow
from ..images import files
from ..images.color import NEUTRAL, luma, to_uint8, truncate_16_bits
from ..images.files import DecodedImage, Format
from ..images.metadata import FIRST_TAKEN, losses
from ..provenance import KEY, Provenance, fingerprint, source
from ..tasks import Progress
from ..tasks.brighten import brighten
from ..tasks.colorize import colorize, transfer_palette
from ..tasks.faces import restore_faces
from ..tasks.hints import Hints, combine_hints, hints_from_points, palette_from, parse_points
from ..tasks.intake import validate_image
from ..tasks.ranking import By, ranked
from ..tasks.repair import find_scratches, repair
from ..tasks.score import score
from ..tasks.subject import prepare_subject
from ..tasks.upscale import restore, shrink, upscale
from ..tasks.video import colorize_video, upscale_video
from .clips import ClipState

Command = Literal["upscale", "colorize", "brighten", "repair", "shrink", "restore", "faces", "score"]
IRRELEVANT = {"tile"}  # settings that change memory and time, not the picture
MARK = "f10c0de5"  # prefix of the EXIF ImageUniqueID of our results; cameras write that tag, too
COMMAND = "command"  # the node_id in the provenance of results of a batch
SIZE = "flowcore-size"  # text chunk of a picture that was shrunk: width and height of the photograph


@dataclass(frozen=True, kw_only=True)
class Work:
    """What to do with every picture, in values that can be sent to another machine."""

    command: Command
    model: str  # its name, for the provenance
    scale: int = 1  # between a picture and its results, for upscaling and rescaling models
    # keyword arguments of the task. Hints are given as "points", "radius" and "lock", a palette as "colours". "frames"
    # is "video" for a clip whose frames depend on each other
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    own: dict[str, Any] = field(default_factory=dict[str, Any])  # what the model states for those that are None
    seed: int = 0  # of the first sample
    samples: int = 1  # per picture; for ``score``, draws
    keep: int = 0  # of ``colorize``, how many samples of each picture are kept, best first; 0 for all, by seed
    by: By = "consensus"  # criterion of ``keep``
    reference: bytes | None = None  # content of a picture file whose palette ``colorize`` applies
    memory: ColorMemory | None = None  # photographs whose colors it takes over; None for none
    # files that workers open are absolute: their own folder may be another
    guide: Path | None = None  # of ``upscale``: a picture file for all, or a folder of one of each name
    mask: Path | None = None  # of ``repair``, likewise
    face_model: Path | None = None  # of ``faces``: the file of ``settings["face_model"]``, unless that is shipped
    format: Format = "png"  # of the results
    bits: int | None = 8  # per channel of the results; None for those of the picture, where the format can hold them
    quality: int | None = None  # of the results, for lossy formats

    @property
    def carries(self) -> bool:
        """Whether a result depends on the frames before it."""
        return self.settings.get("frames") == "video"

    def companions(self, name: str) -> dict[str, bytes]:
        """Read guide and mask of a picture file of that name; FlowError if a folder of them has not exactly one."""
        found: dict[str, bytes] = {}
        for kind, place in (("guide", self.guide), ("mask", self.mask)):
            if place is None:
                continue
            if place.is_dir():
                stem = Path(name).stem
                named = [p for p in place.iterdir() if p.stem == stem and p.suffix.lower() in files.IMAGE_SUFFIXES]
                if len(named) != 1:
                    raise FlowError(
                        f"Expected one {kind} named {stem} in {place}; got {len(named)}. Name it as its picture."
                    )
                place = named[0]
            found[kind] = files.read_bytes(place)
        return found

    def ids(self, picture: bytes, model: str, name: str = "") -> list[str]:
        """Fingerprint the results of a picture, from model, settings, seed, the picture itself and its guide."""
        payload = {name: value for name, value in {**self.settings, **self.own}.items() if name not in IRRELEVANT}
        payload |= {"command": self.command, "model": model, "format": self.format, "bits": self.bits_of(picture)}
        payload |= {"quality": self.quality, "picture": hashlib.sha256(picture).hexdigest()}
        payload |= {"reference": None if self.reference is None else hashlib.sha256(self.reference).hexdigest()}
        if self.memory is not None:
            payload["memory"] = self.memory.sha256
        payload |= {kind: hashlib.sha256(content).hexdigest() for kind, content in self.companions(name).items()}
        if self.command == "score":
            payloads = [{**payload, "seed": self.seed, "samples": self.samples, "seeded": "by content"}]
        elif self.keep:
            payload |= {"seed": self.seed, "samples": self.samples, "by": self.by}
            payloads = [{**payload, "rank": rank} for rank in range(self.keep)]
        else:
            payloads = [{**payload, "seed": seed} for seed in range(self.seed, self.seed + self.samples)]
        return [picture_id(each) for each in payloads]

    def bits_of(self, picture: bytes | Path) -> int:
        """Bits per channel of the results of a picture, its content or its file."""
        if self.bits is not None:
            return self.bits
        return files.bits_per_channel(picture) if self.format in files.DEEP else 8

    def size_of(self, picture: bytes | Path) -> tuple[int, int] | None:
        """Compute height and width of the results of a picture, its content or its file; None if it is unreadable."""
        size = files.upright_size(picture)
        if size is None or self.command in ("colorize", "brighten", "repair", "score"):
            return size
        if self.command == "shrink":
            return -(-size[0] // self.scale), -(-size[1] // self.scale)
        if self.command == "faces":
            factor = self.settings["factor"] or self.scale
            return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
        stated = stated_size(picture) if self.command == "restore" else None
        return stated or (size[0] * self.scale, size[1] * self.scale)

    def seeds(self) -> list[str]:
        """Name the seed of each result; of ranked ones, all seeds that were compared."""
        last = self.seed + self.samples - 1
        if self.command == "shrink":
            return [""]
        if self.keep:
            return [f"{self.seed}-{last}, best {rank}" for rank in range(1, self.keep + 1)]
        return [str(seed) for seed in range(self.seed, last + 1)]


def picture_id(payload: dict[str, Any]) -> str:
    """Fingerprint what makes a result: 32 hexadecimal digits that begin with ``MARK``."""
    digest = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
    return MARK + digest[: 32 - len(MARK)]


def stated_size(picture: bytes | Path) -> tuple[int, int] | None:
    """Height and width of the photograph that a picture was shrunk from, as its file states them."""
    with Image.open(picture if isinstance(picture, Path) else io.BytesIO(picture)) as opened:
        stated = re.fullmatch(r"(\d{1,6})x(\d{1,6})", str(opened.info.get(SIZE, "")))
    return None if stated is None else (int(stated[2]), int(stated[1]))


class Worker:
    """Does a ``Work``, with the model in memory."""

    def __init__(self, work: Work, flow: Flow) -> None:
        self.work, self.flow, self.model_sha256 = work, flow, model_sha256(flow)
        self._reference = None if work.reference is None else files.read(work.reference, "the reference")
        faces = work.settings.get("face_model")
        self._faces = None if faces is None else load(work.face_model or faces, next(flow.parameters()).device)
        self._clip: Path | None = None
        self._state = ClipState()

    def __call__(
        self,
        picture: bytes,
        name: str,
        clip: Path | None = None,
        *,
        notify: Callable[[str], None],
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[bytes]:
        """Process the content of one picture file, of a clip: a file per sample that is kept; for ``score``, JSON."""
        ids = self.work.ids(picture, self.model_sha256, name)
        if self.work.command == "score":
            return [json.dumps({**self._score(picture, name), "id": ids[0]}).encode()]
        photograph = files.read(picture, name)
        work, text, bits = self.work, dict[str, str](), self.work.bits_of(picture)
        # a format is refused before the work, not after it
        files.check_format(work.format, bits, work.quality, alpha=photograph.pixels.shape[1] == 4)
        animated = work.command == "upscale" and work.carries and files.frame_count(picture) > 1
        for note in photograph.notes:
            if not (animated and note.endswith(FIRST_TAKEN)):
                notify(note)
        following: Any = {"progress": progress, "notify": notify, "cancelled": cancelled}
        sampling: dict[str, Any] = {"seed": work.seed, "samples": work.samples, **work.settings, **following}
        image, sources = photograph.pixels, {"image": source(photograph.pixels)}
        if photograph.gray and work.command not in ("colorize", "shrink"):
            image = image[:, :1]
        if animated:
            image = files.read_frames(picture, name)
            image = image if bool((image[:, 3] < 1).any()) else image[:, :3]
        for kind, content in work.companions(name).items():
            sampling[kind] = files.read(content, f"the {kind} of {name}").pixels
            sources[kind] = source(sampling[kind])
        if video := sampling.pop("frames", "photographs") == "video":
            del sampling["samples"]
            if clip != self._clip:
                self._state = ClipState() if clip is None else ClipState.load(clip, next(self.flow.parameters()).device)
            self._clip = clip
            self._state.enter(name if animated else "", *image.shape)
            sampling["before"] = self._state.tensors
        if work.command == "upscale":
            pictures = (upscale_video if video else upscale)(self.flow, image, **sampling)
        elif self._faces is not None:
            sampling = {name: value for name, value in sampling.items() if not name.startswith("face_")}
            pictures = restore_faces(self.flow, self._faces, image, **sampling)
        elif work.command == "brighten":
            pictures = brighten(self.flow, image, **sampling)
        elif work.command == "repair":
            sampling.pop("precision")
            sensitivity = sampling.pop("sensitivity", 0.5)
            marked = sampling.pop("mask", None)
            mask = find_scratches(image, sensitivity=sensitivity) if marked is None else luma(validate_image(marked)[0])
            pictures = repair(self.flow, image, mask, **sampling)
        elif work.command == "restore":
            pictures = restore(self.flow, image, size=stated_size(picture), **sampling)
        elif work.command == "shrink":
            text[SIZE] = f"{image.shape[-1]}x{image.shape[-2]}"
            pictures = shrink(self.flow, image, **following)
        else:
            pictures = self._colorize(image, sampling, video=video)
        text |= Provenance.of(
            {"temperature": 0.0, **work.settings, **work.own, "seed": work.seed, "samples": work.samples},
            self.flow,
            map(truncate_16_bits if bits == 16 else to_uint8, pictures),
            node_id=COMMAND,
            # the node that makes the same picture
            node="FlowcorePasteFace" if self._faces else f"Flowcore{work.command.capitalize()}",
            model=work.model,
            model_sha256=self.model_sha256,
            sources=sources,
        ).text()
        options: dict[str, Any] = {"format": work.format, "bits": bits, "quality": work.quality, "text": text}
        # the pictures of ``shrink`` have 8 bits by the method, others where that was asked for
        before = photograph.bits if work.command == "shrink" or work.bits is None else bits
        for loss in losses(photograph.metadata, pictures.shape[1], before, bits):
            notify(loss)
        if len(pictures) > 1 and work.command == "upscale" and work.carries:
            options |= {"later": pictures[1:], "times": files.frame_times(picture)}
            pictures = pictures[:1]
        if work.keep:
            order = ranked(pictures, photograph.pixels, work.by, self.flow, notify=notify)[1][0, : work.keep]
            seeds = ", ".join(str((work.seed + int(number)) % 2**64) for number in order)
            notify(f"Kept of {len(pictures)}, best first, by {work.by}: seed {seeds}.")
            pictures = pictures[order]
        named = zip(pictures, ids, strict=True)
        results = [files.encode(result, photograph.metadata, unique_id=id, **options) for result, id in named]
        self._state.add(ids[0])
        return results

    def save_state(self) -> None:
        """Save what the next frame of the clip in work needs, if there is one."""
        if self._clip is not None:
            self._state.save(self._clip)

    def _colorize(self, image: Tensor, settings: dict[str, Any], *, video: bool) -> Tensor:
        points = [point for text in settings.pop("points", ()) for point in parse_points(text)]
        brush = {"radius": settings.pop("radius", 8.0), "lock": settings.pop("lock", False)}
        colors = settings.pop("colours", ())
        settings["hints"] = combine_hints(
            hints_from_points(points, (image.shape[-2], image.shape[-1]), **brush) if points else None,
            Hints(coverage=None, chroma=None, palette=palette_from(colors), lock=False) if colors else None,
        )
        if video:
            return colorize_video(self.flow, image, **settings)
        settings["memory"] = self.work.memory
        settings.pop("carry", None)
        strength = settings.pop("strength", 1.0)
        if self._reference is None:
            return colorize(self.flow, image, **settings)
        return transfer_palette(self.flow, image, self._reference.pixels, strength=strength, **settings)

    def _score(self, picture: bytes, name: str) -> dict[str, Any]:
        flow = self.flow
        drawing: dict[str, Any] = {"samples": self.work.samples, "seed": self.work.seed, **self.work.settings}
        fit = drawing.pop("fit", "resize")
        photograph, cond = files.read(picture, name), None
        notes = [*photograph.notes]
        if flow.capabilities.source == "luma":
            chroma, cond = chroma_on_grid(flow, files.read_rgb(picture, name))
            pixels, drawing["complexity"] = chroma + NEUTRAL, False
        elif flow.image_size is not None and fit == "resize" and flow.capabilities.source == "none":
            pixels = resize_to_own(flow, files.read_rgb(picture, name))[None]
        else:
            subject = prepare_subject(flow, photograph.pixels, fit=fit, notify=notes.append)
            pixels, cond = to_uint8(subject.pixels), subject.condition(flow, notify=notes.append)
        result = score(flow, pixels, cond, **drawing)
        (height, width), (rows, columns) = photograph.pixels.shape[-2:], pixels.shape[-2:]
        enlarged = rows > height or columns > width
        if flow.capabilities.source == "luma":
            how = "enlarged" if enlarged else "shrunk"
            said = f"the chroma of {width}x{height}, {how} to {columns}x{rows}, given its luma."
        else:
            resized = flow.image_size is not None and fit == "resize" and min(height - rows, width - columns) > 0
            part = "all of" if (rows, columns) == (height, width) else f"{columns}x{rows} pixels in the middle of"
            how = f", resized so that it covers {columns}x{rows}" if resized else ""
            how = f", enlarged so that it covers {columns}x{rows}, and not ranked" if enlarged else how
            said = f"{part} {width}x{height}{how}."
        corrected, spread = result.complexity_corrected, float(result.spread)
        return {
            "bits_per_dim": float(result.bits_per_dim),
            "complexity_corrected": None if corrected is None else float(corrected),
            "per_level": result.per_level[0].tolist(),
            "notes": [f"Scored: {said}", *notes, *result.notes],
            "spread": spread if math.isfinite(spread) else None,
            "enlarged": enlarged,
            "n_bits": result.n_bits,
            **dict(zip(("channels", "height", "width"), pixels.shape[-3:], strict=True)),
        }


def encode_like(
    original: DecodedImage | None,
    picture: Tensor,
    *,
    format: Format,
    bits: int | None,
    quality: int | None = None,
    text: dict[str, str],
    notify: Callable[[str], None],
) -> bytes:
    """Encode a picture ``(C, H, W)`` in [0, 1] with the metadata of the file that it was made of; gray if both are.

    ``bits`` None takes those of the original. Provenance in ``text`` knows the picture as the host would store it, and
    the file afterward. ``notify`` is told what the file cannot hold.
    """
    chosen = bits or (original.bits if original and format in files.DEEP else 8)
    if original and original.gray and len(picture) == 3 and bool((picture == picture[:1]).all()):
        picture = picture[:1]
    for loss in losses(original.metadata, len(picture), 0 if bits else original.bits, chosen) if original else ():
        notify(loss)
    if KEY in text:
        stored = truncate_16_bits(picture) if chosen == 16 else to_uint8(picture)
        text = {**text, KEY: text[KEY].replace(fingerprint(picture), fingerprint(stored))}
    return files.encode(picture, original and original.metadata, format=format, bits=chosen, quality=quality, text=text)
