"""Flicker of enlarged clips: one seed for all frames, temperature 0, and each frame guided by the previous one.

    python -m benchmarks.video FOLDER [--limit 6] [--frames 6]                photographs, panned and zoomed
    python -m benchmarks.video --clip FILE [--start 0] [--frames 48]    center crops of a video's frames; needs PyAV

Flicker is the rms difference between a frame and the previous one, moved by the true motion, in 1/255. For a video the
motion is estimated on its own frames, and used where forward and backward motion agree within half a pixel. LR frames
are antialiased bicubic, rounded to 8 bits. The feature distance is given for all frames, the first and the last.
"""

import json
import math
import sys
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import flowcore
from flowcore.flows.flow import Flow
from flowcore.images import files
from flowcore.images.color import as_stored
from flowcore.images.metrics import psnr
from flowcore.images.motion import estimate_motion, move, sample_at
from flowcore.images.resize import downsample
from flowcore.training.evaluation.feature_distance import feature_distance
from flowcore.training.evaluation.image_set import list_images

from .measure import arguments, markdown, means, say

SIDE = 256  # of the frames
SPEED, ZOOM = 2.3, 0.0036  # pixels and change of size per frame
MARGIN = 16  # pixels at the border whose motion comes from outside
AGREEMENT = 0.5  # pixels
MEASURES = {"flicker": 2, "PSNR": 2, "feature distance": 3, "first": 3, "last": 3}  # and their digits


def pan(photograph: Tensor, number: int, frames: int) -> tuple[Tensor, list[Tensor]]:
    """Pan and zoom over a photograph ``(1, 3, H, W)``; return frames, and the motions from each to the last."""
    angle, growth = 2.4 * number, ZOOM * (-1) ** number
    middle = torch.arange(SIDE) - (SIDE - 1) / 2
    grid = torch.stack(torch.meshgrid(middle, middle, indexing="xy"))[None]  # (1, 2, SIDE, SIDE), from the middle
    speed = SPEED * torch.tensor([math.cos(angle), math.sin(angle)]).view(1, 2, 1, 1)
    corner = [(side - SIDE) // 2 for side in photograph.shape[-2:]]
    views: list[Tensor] = []
    for t in range(frames):
        motion = torch.zeros(1, 2, *photograph.shape[-2:])
        window = (..., slice(corner[0], corner[0] + SIDE), slice(corner[1], corner[1] + SIDE))
        motion[window] = speed * t + growth * t * grid
        views.append(move(photograph, motion)[window])
    motions = [(speed + growth * grid) / (1 + growth * (t - 1)) for t in range(1, frames)]
    return torch.cat(views).clamp(0, 1), motions


def film(path: Path, start: int, frames: int) -> Tensor:
    """Read center crops of a video's frames, ``(frames, 3, SIDE, SIDE)``."""
    import av

    with av.open(str(path)) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in islice(container.decode(video=0), start, start + frames)]
    top, left = ((side - SIDE) // 2 for side in pictures[0].shape[:2])
    views = [torch.from_numpy(p[top : top + SIDE, left : left + SIDE].copy()) for p in pictures]
    return torch.stack(views).permute(0, 3, 1, 2).float() / 255


def flicker(frames: Tensor, motions: list[Tensor], where: list[Tensor]) -> float:
    """Measure the rms of the difference that motion does not explain, in 1/255."""
    squares = weights = 0.0
    x, y = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy")
    for before, after, motion, mask in zip(frames[:-1], frames[1:], motions, where, strict=True):
        grid = torch.stack([x + motion[0, 0], y + motion[0, 1]], -1)[None]
        moved = F.grid_sample(before[None], (2 * grid + 1) / SIDE - 1, mode="bicubic", align_corners=False)
        inner = mask[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
        squares += float(((after - moved[0])[:, MARGIN:-MARGIN, MARGIN:-MARGIN].square().mean(0) * inner).sum())
        weights += float(inner.sum())
    return 255 * (squares / weights) ** 0.5


def methods(flow: Flow, lr: Tensor, steadiness: list[float]) -> dict[str, Tensor]:
    """Enlarge a clip in all ways."""
    result = {"one seed": torch.cat([flowcore.upscale(flow, frame) for frame in lr.split(1)])}
    result["temperature 0"] = torch.cat([flowcore.upscale(flow, frame, temperature=0.0) for frame in lr.split(1)])
    return result | {f"steadiness {a:g}": flowcore.upscale_video(flow, lr, steadiness=a) for a in steadiness}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, "video")
    option = parser.add_argument
    option("folder", nargs="?", type=Path, help="photographs")
    option("--limit", type=int, default=6, help="of photographs (default: 6)")
    option("--clip", type=Path, metavar="FILE", help="a film, in place of photographs")
    option("--start", type=int, default=0, help="of the film, the first frame")
    option("--frames", type=int, help="per clip (default: 6 of photographs, 48 of a film)")
    option("--model", default="srflow-x4")
    option("--steadiness", type=float, nargs="+", default=[0.9])
    option("--out", type=Path, metavar="FOLDER", help="where the frames are kept, as PNG files")
    options = parser.parse_args()
    if (options.folder is None) == (options.clip is None):
        parser.error("give a folder of photographs, or --clip FILE")
    torch.set_num_threads(1)
    flow = flowcore.load(options.model)
    clips: dict[str, tuple[Tensor, list[Tensor], list[Tensor]]] = {}
    if options.clip is not None:
        hr = film(options.clip, options.start, options.frames or 48)
        pairs = list(zip(hr[1:].split(1), hr[:-1].split(1), strict=True))
        motions = [estimate_motion(after, before) for after, before in pairs]
        back = [estimate_motion(before, after) for after, before in pairs]
        apart = [there + sample_at(again, there) for there, again in zip(motions, back, strict=True)]
        clips[options.clip.name] = hr, motions, [(d.norm(dim=1) < AGREEMENT).float() for d in apart]
    else:
        for number, path in enumerate(list_images(options.folder)[: options.limit]):
            hr, motions = pan(files.read(path.read_bytes(), path.name).pixels, number, options.frames or 6)
            clips[path.name] = hr, motions, [torch.ones(1, SIDE, SIDE)] * len(motions)
    measured: dict[str, dict[str, list[float]]] = {}
    for name, (hr, motions, where) in clips.items():
        frames = {"truth": hr} | methods(flow, as_stored(downsample(hr, flow.condition_scale)), options.steadiness)
        measured[name] = {}
        for method, made in frames.items():
            made = as_stored(made)
            distances = feature_distance(made, hr)
            fidelity = math.nan if method == "truth" else float(psnr(made, hr).mean())
            ends = (float(distances.mean()), float(distances[0]), float(distances[-1]))
            measured[name][method] = [flicker(made, motions, where), fidelity, *ends]
            if options.out is not None:
                for k, frame in enumerate(made):
                    target = options.out / Path(name).stem / method.replace(" ", "-") / f"{k:03d}.png"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(files.encode(frame))
        say(f"{name}: {json.dumps(measured[name])}")
    rows: list[list[str]] = []
    for method in next(iter(measured.values())):
        rows.append([method, *means([row[method] for row in measured.values()], MEASURES.values())])
    sys.stdout.write(markdown(["frames", *MEASURES], rows) + "\n" + json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
