"""One picture file of a batch: the file's bytes in, the bytes of its results out."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..engine.model_input import prepare_input, resize_to_own
from ..engine.options import options_of
from ..engine.progress import Progress
from ..errors import FlowError
from ..flows.model import FlowModel
from ..images import files
from ..images.color import NEUTRAL, as_gray, to_uint8
from ..images.files import DecodedImage, Format
from ..images.folders import is_image_name
from ..images.metadata import NOT_SIGNED, lost_on_save
from ..models import load
from ..models.colorizer.color_memory import ColorMemory
from ..models.identity import describe, fingerprint, model_fingerprint, model_sha256
from ..tasks.chroma import chroma_and_condition
from ..tasks.colorize import hints_of
from ..tasks.ranking import By, ranked
from ..tasks.score import score
from ..tasks.table import tasks
from ..tasks.video import ColorizeVideoSettings, UpscaleVideoSettings, colorize_video, upscale_video
from .clip_state import ClipState
from .credentials import Signer, sign
from .provenance import CLIP, KEY, Provenance, picture_fingerprint

IRRELEVANT = {"tile"}  # settings that change memory and time, not the picture
ID_PREFIX = "f10c0de5"  # prefix of the EXIF ImageUniqueID of our results; cameras write that tag, too
COMMAND = "command"  # the node_id in the provenance of results of a batch
CLIPS = {"upscale": (upscale_video, UpscaleVideoSettings), "colorize": (colorize_video, ColorizeVideoSettings)}


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What to do with every picture, in values that can be sent to another machine."""

    command: str
    model: str  # its name, for the provenance
    scale: int = 1  # factor from a picture to its results, for upscaling and rescaling models
    # keyword arguments of the task, and some that ``Worker`` takes out: "points", "radius" and "lock" of hints, a
    # palette's "colours", a reference's "strength", the "sensitivity" to scratches, "face_model" and "face_sha256",
    # the "fit" of ``score``, and "frames", which is "video" if the frames of a clip depend on each other
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    # what the model's file states for settings that are None
    model_defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0  # seed of the first sample
    samples: int = 1  # samples of each picture; for ``score``, draws
    keep: int = 0  # ``colorize``: how many samples of each picture are kept, best first; 0 for all, by seed
    by: By = "consensus"  # criterion of ``keep``
    reference: bytes | None = None  # content of a picture file whose palette ``colorize`` applies
    memory: ColorMemory | None = None  # photographs whose colors it takes over; None for none
    # files that workers open are absolute: their own folder may be another
    guide: Path | None = None  # ``upscale``: a picture file for all, or a folder of one of each name
    mask: Path | None = None  # ``repair``: like ``guide``
    face_model: Path | None = None  # ``faces``: the file of ``settings["face_model"]``, unless that is shipped
    format: Format = "png"  # format of the results
    bits: int | None = 8  # bits per channel of the results; None: those of the picture, where the format has them
    quality: int | None = None  # quality of the results, for lossy formats
    credentials: bool = False  # whether results are signed, with the settings of the machine that makes them

    @property
    def is_video(self) -> bool:
        """Whether pictures are frames of a clip, whose results depend on the frames before."""
        return self.settings.get("frames") == "video"

    def guide_and_mask(self, name: str) -> dict[str, bytes]:
        """Read guide and mask of a picture file of that name; FlowError if a folder of them has not exactly one."""
        contents: dict[str, bytes] = {}
        for kind, place in (("guide", self.guide), ("mask", self.mask)):
            if place is None:
                continue
            if place.is_dir():
                stem = Path(name).stem
                named = _by_stem(place, place.stat().st_mtime_ns).get(stem, [])
                if len(named) != 1:
                    raise FlowError(
                        f"Expected one {kind} named {stem} in {place}; got {len(named)}. Give it the picture's name."
                    )
                place = named[0]
            contents[kind] = files.read_bytes(place)
        return contents

    def ids(self, picture: bytes, model: str, name: str = "") -> list[str]:
        """Fingerprint the results of a picture, from those of model, settings, seed, the picture itself and its guide.

        The payload is a format: results are known again only as long as its names and values stay the same.
        """
        settings = {**self.settings, **self.model_defaults}
        payload = {key: value for key, value in settings.items() if key not in IRRELEVANT}
        payload |= {"command": self.command, "model": model, "format": self.format, "bits": self.bits_of(picture)}
        payload |= {"quality": self.quality, "picture": picture, "reference": self.reference}
        payload |= {} if self.memory is None else {"memory": self.memory}
        payload = describe(payload | self.guide_and_mask(name))
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

    def size_of(self, picture: bytes | Path, size: tuple[int, int] | None = None) -> tuple[int, int] | None:
        """Compute height and width of the results of a picture, its content or its file; None if it is unreadable.

        ``size`` is the picture's own, if it is known. FlowError if they would be too large.
        """
        size = size or files.upright_size(picture)
        if size is None or self.command not in tasks():  # ``score``
            return size
        return tasks()[self.command].size(self.scale, size, self.settings, picture)


@functools.lru_cache(maxsize=4)
def _by_stem(folder: Path, _changed: int) -> dict[str, list[Path]]:
    """List the images of a folder by their names without suffix, again when the folder has changed."""
    by_stem: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if is_image_name(path.name):
            by_stem.setdefault(path.stem, []).append(path)
    return by_stem


def picture_id(payload: dict[str, Any]) -> str:
    """Fingerprint what makes a result: 32 hexadecimal digits that begin with ``ID_PREFIX``."""
    return ID_PREFIX + fingerprint(payload)[: 32 - len(ID_PREFIX)]


class Result(NamedTuple):
    """What a file of results holds, and the seed that it was drawn with; None if it depends on none."""

    content: bytes
    seed: int | None = None


@dataclass(frozen=True)
class _Opened:
    """A picture file as a task takes it."""

    photograph: DecodedImage
    image: Tensor  # its pixels (1, 1, 3 or 4, H, W), gray in one channel; or all frames of a film
    companions: dict[str, Tensor]  # pixels of the guide and the mask
    bits: int  # bits per channel of the results
    is_film: bool  # one file of many frames, whereas a clip is a folder of frames


class Worker:
    """Does a ``JobSpec``, with the model in memory."""

    def __init__(self, spec: JobSpec, flow: FlowModel) -> None:
        self.spec, self.flow, self.model_sha256 = spec, flow, model_sha256(flow)
        self._model = model_fingerprint(flow, self.model_sha256)
        self._device = next(flow.parameters()).device
        self._reference = None if spec.reference is None else files.read(spec.reference, "the reference")
        face_model = spec.settings.get("face_model")
        self._faces = None if face_model is None else load(spec.face_model or face_model, self._device)
        self._signer = Signer.load() if spec.credentials else None
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
    ) -> list[Result]:
        """Process the content of one picture file, of a clip: a file per sample that is kept; for ``score``, JSON.

        1. Read the picture with its guide and mask. 2. Prepare the state of its clip. 3. Run the task. 4. Record what
        made the results. 5. Choose the best samples, if only some are kept. 6. Store each as a file.
        """
        spec, ids = self.spec, self.ids(picture, name)
        if spec.command == "score":
            return [Result(json.dumps({**self._score(picture, name), "id": ids[0]}).encode())]
        opened = self._read(picture, name, notify)
        if spec.is_video:
            self._enter(clip, name, opened)
        task_options = {"progress": progress, "notify": notify, "cancelled": cancelled}
        pictures = self._make(picture, opened.image, opened.companions, task_options)
        seeds, text = self._record(pictures, opened)
        if spec.keep:
            order = ranked(pictures, opened.photograph.pixels, spec.by, self.flow, notify=notify)[1][0, : spec.keep]
            seeds = [seeds[int(number)] for number in order]
            kept = f"Kept of {len(pictures)}, best first, by {spec.by}: seed {', '.join(map(str, seeds))}."
            notify(kept)
            pictures = pictures[order]
        contents = self._store(pictures, opened, picture, ids, text, notify)
        self._state.add(ids[0])
        return [*map(Result, contents, seeds)]

    def _read(self, picture: bytes, name: str, notify: Callable[[str], None]) -> _Opened:
        """Decode a picture with its guide and mask; an unsuitable format of the results is rejected before the work."""
        spec, bits = self.spec, self.spec.bits_of(picture)
        is_film = spec.command == "upscale" and spec.is_video and files.frame_count(picture) > 1
        photograph = files.read(picture, name, all_frames=is_film)
        image = photograph.pixels
        files.check_format(spec.format, bits, spec.quality, alpha=image.shape[1] == 4)
        if is_film:
            image = files.read_frames(picture, name)
            image = image if bool((image[:, 3] < 1).any()) else image[:, :3]
        elif photograph.gray and tasks()[spec.command].keeps_gray and image.shape[1] == 3:
            image = image[:, :1]
        for note in photograph.notes:
            if self._signer is None or note != NOT_SIGNED:
                notify(note)
        contents = spec.guide_and_mask(name).items()
        companions = {kind: files.read(data, f"the {kind} of {name}").pixels for kind, data in contents}
        return _Opened(photograph, image, companions, bits, is_film)

    def _enter(self, clip: Path | None, name: str, opened: _Opened) -> None:
        """Load the state of a clip unless it is the present one's, and prepare it for a frame, or a film."""
        if clip != self._clip:
            self._state = ClipState() if clip is None else ClipState.load(clip, self._device)
        self._clip = clip
        self._state.enter(name if opened.is_film else "", *opened.image.shape)

    def _record(self, pictures: Tensor, opened: _Opened) -> tuple[list[int | None], dict[str, str]]:
        """Return the seed of each file, and the texts that a PNG file holds: what made all of these pictures."""
        spec, first, frame, task = self.spec, self.spec.seed, dict[str, int](), tasks()[self.spec.command]
        is_clip = spec.is_video and spec.command == "upscale"
        if spec.is_video and not opened.is_film:
            frame["frame"] = int(self._state.tensors[0]) if is_clip else self._state.frames
            first += frame["frame"] if is_clip else 0  # see ``upscale_video``
        seeds: list[int | None] = [(first + number) % 2**64 for number in range(spec.samples)]
        own = {"seed": first % 2**64, "samples": spec.samples, **frame}
        recipe = Provenance.of(
            {"temperature": 0.0, **spec.settings, **spec.model_defaults, **own},
            self.flow,
            pictures,
            bits=opened.bits,
            node_id=COMMAND,
            node=CLIP if is_clip else task.node,
            model=spec.model,
            model_sha256=self.model_sha256,
            sources=describe({"image": opened.photograph.pixels, **opened.companions}),
        )
        return seeds if task.draws else [None], task.text(opened.image) | recipe.text()

    def _store(
        self,
        pictures: Tensor,
        opened: _Opened,
        source: bytes,
        ids: Sequence[str],
        text: dict[str, str],
        notify: Callable[[str], None],
    ) -> list[bytes]:
        """Encode results as files, one for each of ``ids``, with the metadata of their picture."""
        spec, photograph, is_film = self.spec, opened.photograph, opened.is_film
        options: dict[str, Any] = {"format": spec.format, "bits": opened.bits, "quality": spec.quality, "text": text}
        keeps_gray = photograph.gray and not is_film and tasks()[spec.command].keeps_gray
        if keeps_gray and opened.image.shape[1] == 4:
            pictures = as_gray(pictures)
        # a loss of bits deserves a note unless ``--bits`` asks for it; ``shrink`` has 8 by its method
        by_method = len(tasks()[spec.command].lossless) == 1
        original_bits = photograph.bits if by_method or spec.bits is None else opened.bits
        for loss in lost_on_save(photograph.metadata, pictures.shape[1], original_bits, opened.bits, spec.format):
            notify(loss)
        if is_film:
            options |= {"more_frames": pictures[1:], "times": files.frame_times(source)}
            pictures = pictures[:1]
        named = zip(pictures, ids, strict=True)
        contents = [files.encode(result, photograph.metadata, unique_id=id, **options) for result, id in named]
        if self._signer is None:
            return contents
        signing: dict[str, Any] = {"signer": self._signer, "sources": [source], "notify": notify}
        recipe, digests = json.loads(text[KEY]), [picture_fingerprint(result, opened.bits) for result in pictures]
        return [sign(each, recipe, picture=digest, **signing) for each, digest in zip(contents, digests, strict=True)]

    def ids(self, picture: bytes, name: str = "") -> list[str]:
        """Fingerprint the results of a picture, see ``JobSpec.ids``."""
        return self.spec.ids(picture, self._model, name)

    def save_state(self) -> None:
        """Save what the next frame of the present clip needs, if there is one."""
        if self._clip is not None:
            self._state.save(self._clip)

    def _make(self, content: bytes, image: Tensor, companions: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
        """Run the task on an image; ``content`` is its file's, ``options`` those that all tasks have."""
        spec, flow = self.spec, self.flow
        settings: dict[str, Any] = {"seed": spec.seed, "samples": spec.samples, **spec.settings, **companions}
        settings |= options
        settings |= {"face_flow": self._faces, "memory": spec.memory}
        settings["reference"] = None if self._reference is None else self._reference.pixels
        if not spec.is_video:
            return tasks()[spec.command].make(flow, image, content, settings)
        settings |= {"before": self._state.tensors, "hints": hints_of(settings, *image.shape[-2:])}
        task, kind = CLIPS[spec.command]
        names = {option.name for option in options_of(kind)} & settings.keys()
        return task(flow, image, **{name: settings[name] for name in names})

    def _score(self, picture: bytes, name: str) -> dict[str, Any]:
        flow = self.flow
        settings: dict[str, Any] = {"samples": self.spec.samples, "seed": self.spec.seed, **self.spec.settings}
        fit = settings.pop("fit", "resize")
        photograph, cond = files.read(picture, name), None
        notes = [*photograph.notes]
        if flow.capabilities.source == "luma":
            chroma, cond = chroma_and_condition(flow, files.read_rgb(picture, name))
            pixels, settings["complexity"] = chroma + NEUTRAL, False
        elif flow.image_size is not None and fit == "resize" and flow.capabilities.source == "none":
            pixels = resize_to_own(flow, files.read_rgb(picture, name))[None]
        else:
            prepared = prepare_input(flow, photograph.pixels, fit=fit, notify=notes.append)
            pixels, cond = to_uint8(prepared.pixels), prepared.condition(flow, notify=notes.append)
        result = score(flow, pixels, cond, **settings)
        (height, width), (rows, columns) = photograph.pixels.shape[-2:], pixels.shape[-2:]
        enlarged = rows > height or columns > width
        if flow.capabilities.source == "luma":
            how = "enlarged" if enlarged else "shrunk"
            scored = f"the chroma of {width}x{height}, {how} to {columns}x{rows}, given its luma."
        else:
            resized = flow.image_size is not None and fit == "resize" and min(height - rows, width - columns) > 0
            part = "all of" if (rows, columns) == (height, width) else f"{columns}x{rows} pixels in the middle of"
            how = f", resized so that it covers {columns}x{rows}" if resized else ""
            how = f", enlarged so that it covers {columns}x{rows}, and not ranked" if enlarged else how
            scored = f"{part} {width}x{height}{how}."
        corrected, spread = result.complexity_corrected, float(result.spread)
        return {
            "bits_per_dim": float(result.bits_per_dim),
            "complexity_corrected": None if corrected is None else float(corrected),
            "per_level": result.per_level[0].tolist(),
            "scored": scored,
            "notes": [*notes, *result.notes],
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
    """Encode a picture ``(C, H, W)`` in [0, 1] with the metadata of the file that it was made from; gray if both are.

    ``bits`` None takes those of the original. In the provenance in ``text``, the fingerprint of the picture as the
    host would store it is replaced by that of the picture as this file stores it. ``notify`` gets a note on what the
    file cannot store.
    """
    chosen = bits or (original.bits if original and format in files.DEEP else 8)
    if KEY in text:
        text = {**text, KEY: text[KEY].replace(picture_fingerprint(picture), picture_fingerprint(picture, chosen))}
    if original and original.gray:
        picture = as_gray(picture)
    before = 0 if bits or original is None else original.bits
    for loss in lost_on_save(original.metadata, len(picture), before, chosen, format) if original else ():
        notify(loss)
    return files.encode(picture, original and original.metadata, format=format, bits=chosen, quality=quality, text=text)
