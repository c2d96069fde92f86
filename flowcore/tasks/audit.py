"""Audit: what of an enlargement, by any upscaler, does the small image not support?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.image_batch import ImageBatch
from ..engine.model_input import prepare_input
from ..engine.options import ReportOptions
from ..engine.runner import runs_with
from ..errors import ShapeError, joined, say
from ..flows.model import FlowModel
from ..images.color import luma, to_uint8
from ..images.resize import downsample, resize
from ..models.identity import DIGITS, model_sha256
from .consistency import consistency, samples_per_source
from .edits import Box, largest_boxes
from .score import score
from .upscale import upscale

SAMPLES = 6  # samples show what the small image leaves open
WINDOW = 7  # pixels over which their deviation is averaged


class Calibration(NamedTuple):
    """What photographs that a model has not seen have, see ``python -m benchmarks.traceable FOLDER --calibrate``."""

    quantile: float  # half width of the band, in deviations: split conformal prediction
    detail: float  # median of their fine detail, over that of the model's samples
    least: float  # 5th percentile of fine detail, over the median
    most: float  # 95th percentile


# By the model's fingerprint: it belongs to the bijection, not to a file's recommendations.
CALIBRATIONS = {
    "fc3484189a1a": Calibration(2.684, 1.36, 0.42, 1.68),  # srflow-x4
    "ba7a112cf349": Calibration(5.372, 2.83, 0.27, 1.99),  # srflow-x4-photo
}
USUAL = Calibration(3.0, 1.0, 0.4, 2.0)
GLOWING = 0.1  # distance from the band at which a map is brightest
CONTRADICTS = 35.0  # dB between the shrunk enlargement and the small image, below which the text says so
PLACES = (  # whole, to be translated
    (say("at the top left"), say("at the top"), say("at the top right")),
    (say("at the left"), say("in the middle"), say("at the right")),
    (say("at the bottom left"), say("at the bottom"), say("at the bottom right")),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Audit:
    """What enlargements contain that their small image does not support. All tensors are on the CPU.

    Attributes:
        invention: Mean absolute difference of the channels from the most probable enlargement, that at temperature 0,
            ``(B, 1, H, W)`` in [0, 1], at the size that the model makes.
        band: Up to which ``invention`` 95 % of a photograph lies, on average over photographs, ``(B, 1, H, W)``.
        contradiction: The same difference between the enlargement, shrunk, and the small image, ``(B, 1, h, w)``.
        outside: Share of the pixels beyond the band, ``(B,)``. It compares enlargements of one small image; a single
            photograph has anything from 0 to 0.15, so it tells nothing by itself.
        detail: Fine detail (the rms Laplacian of luma), over what photographs with such a small image have, ``(B,)``:
            about 1 in photographs, below in what is smoother.
        lr_psnr: Between the enlargement, shrunk, and the small image, in dB, ``(B,)``, see ``consistency``.
        bits_per_dim: Of the enlargement given the small image, ``(B,)``.
        own_bits_per_dim: The same of a sample of the model, ``(B,)``.
        boxes: Of every picture the three places with most beyond the band, largest first: left, top, right and bottom
            in its pixels.
        sentences: What a person should know of every picture.
    """

    invention: Tensor
    band: Tensor
    contradiction: Tensor
    outside: Tensor
    detail: Tensor
    lr_psnr: Tensor
    bits_per_dim: Tensor
    own_bits_per_dim: Tensor
    boxes: list[list[Box]]
    sentences: list[str]

    @property
    def glow(self) -> Tensor:
        """How far invention exceeds the band, ``(B, 1, H, W)``: 0 within it, 1 from a tenth of the range beyond."""
        return ((self.invention - self.band) / GLOWING).clamp(0, 1)


@runs_with(ReportOptions)
def audit(flow: FlowModel, picture: Tensor, source: Tensor, settings: ReportOptions) -> Audit:
    """Audit enlargements by any upscaler: where they contradict the small image, and where they go beyond it.

    With x0 the model's enlargement at temperature 0, and s the rms deviation from it of six samples at temperature 1,
    averaged over 7 pixels, plus 1/255: the picture's distance ``|x - x0|`` is its invention, and photographs stay
    within ``q s`` in 95 % of their pixels, where q was calibrated on photographs that the model has not seen.

    >>> flow, small = flowcore.load("srflow-x4"), torch.rand(1, 3, 12, 16)
    >>> other = torch.nn.functional.interpolate(small, scale_factor=4.0)
    >>> flowcore.audit(flow, other, small).invention.shape
    torch.Size([1, 1, 48, 64])

    Args:
        flow: An upscaling model.
        picture: Enlargements ``(B * N, C, H, W)`` in [0, 1], N of each source. Other sizes than the model's are
            resized to it.
        source: The small images, ``(B, C, h, w)`` in [0, 1].
        settings: The options below, by name.

    Returns:
        The audit.

    Raises:
        FlowError: If the model does not upscale, or memory does not suffice.
        ShapeError: If the number of pictures is not a multiple of the number of sources, or they are no larger, or have
            other proportions.
        ImageError: If either is not a valid image.

    Source: Vovk et al., "Algorithmic Learning in a Random World" (2005), for the conformal band; the measures are ours.
    """
    flow.require("upscale")
    tell = settings.tell
    small, rgb = ImageBatch(source).extended_rgb.cpu(), ImageBatch(picture).extended_rgb.cpu()
    each, scale = samples_per_source(rgb, small), flow.condition_scale
    (height, width), own = (side * scale for side in small.shape[-2:]), (rgb.shape[-2], rgb.shape[-1])
    if rgb.shape[-2] <= small.shape[-2] or rgb.shape[-1] <= small.shape[-1]:
        raise ShapeError(
            "The picture must be larger than its source; got {size} for {source_size}. Swap the two, or pass what the "
            "picture was made from.",
            size=f"{rgb.shape[3]}x{rgb.shape[2]}",
            source_size=f"{small.shape[3]}x{small.shape[2]}",
        )
    _check_proportions(own, (small.shape[-2], small.shape[-1]))
    if rgb.shape[-2:] != (height, width):
        tell(
            "The picture has {size} pixels, and the model makes {made}: it was resized (bicubic) for the comparison.",
            size=f"{rgb.shape[3]}x{rgb.shape[2]}",
            made=f"{width}x{height}",
        )
        rgb = torch.cat([resize(one[None], height, width).clamp(0, 1) for one in rgb])
    parts: list[dict[str, Tensor]] = []
    usual = CALIBRATIONS.get(model_sha256(flow)[:DIGITS], USUAL)
    if usual is USUAL:
        tell("The band was not calibrated for this model, so it is a rough one.")
    for number, one in enumerate(small.split(1)):
        part = settings.part(number / len(small), 1 / len(small))
        likely, deviation, samples = expected(flow, one, **part)
        pictures = rgb[number * each : (number + 1) * each]
        invention = (pictures - likely).abs().mean(1, keepdim=True)
        band = (usual.quantile * deviation).expand_as(invention)
        bits = _bits(flow, torch.cat([pictures, samples[:1]]), one)
        shrunk = downsample(pictures, scale)
        parts.append(
            {
                "invention": invention,
                "band": band,
                "contradiction": (shrunk - one).abs().mean(1, keepdim=True),
                "outside": (invention > band).flatten(1).double().mean(1),
                "detail": fine_detail(pictures) / (usual.detail * fine_detail(samples).square().mean().sqrt()),
                "bits_per_dim": bits[:-1],
                "own_bits_per_dim": bits[-1:].expand(each),
            }
        )
    values: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    values["lr_psnr"] = consistency(rgb, small).double()
    values["boxes"] = [
        largest_boxes(excess, own) for excess in (values["invention"] - values["band"]).clamp_min(0)[:, 0]
    ]
    described = zip(values["detail"].tolist(), values["lr_psnr"].tolist(), values["boxes"], strict=True)
    return Audit(**values, sentences=[_sentence(detail, usual, db, boxes, own) for detail, db, boxes in described])


def _check_proportions(picture: tuple[int, int], source: tuple[int, int]) -> None:
    """Raise ShapeError unless a picture is its source enlarged, but for a pixel by which its sides were rounded."""
    (height, width), (h, w) = picture, source
    if abs(height / h - width / w) <= 1 / h + 1 / w:
        return
    if abs(height / w - width / h) <= 1 / h + 1 / w:
        raise ShapeError(
            "The picture has {size} pixels, and its source {source_size}: it lies on its side. Rotate it back.",
            size=f"{width}x{height}",
            source_size=f"{w}x{h}",
        )
    raise ShapeError(
        "The picture has {size} pixels, which are other proportions than those of its source, {source_size}. Crop the "
        "source as the picture was cropped, or pass the picture as it was before.",
        size=f"{width}x{height}",
        source_size=f"{w}x{h}",
    )


@runs_with(ReportOptions)
def expected(flow: FlowModel, small: Tensor, settings: ReportOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the most probable enlargement of one image, the deviation of samples from it, and these.

    ``(1, 3, H, W)``, ``(1, 1, H, W)`` and ``(6, 3, H, W)``; see ``audit``.
    """
    plain: dict[str, Any] = {"calm_edges": 0.0, "guide_strength": 0.0}
    likely = upscale(flow, small, temperature=0.0, **plain, **settings.part(0, 1 / (1 + SAMPLES)))
    rest = settings.part(1 / (1 + SAMPLES), SAMPLES / (1 + SAMPLES))
    samples = upscale(flow, small, temperature=1.0, samples=SAMPLES, **plain, **rest)
    rms = (samples - likely).square().mean((0, 1), keepdim=True).sqrt()
    padded = F.pad(rms, (WINDOW // 2,) * 4, mode="replicate")
    return likely, F.avg_pool2d(padded, WINDOW, stride=1) + 1 / 255, samples


def fine_detail(images: Tensor) -> Tensor:
    """Compute the rms Laplacian of the luma of images ``(B, 3, H, W)``: ``(B,)``, float64."""
    y = luma(images.double())
    around = y[..., :-2, 1:-1] + y[..., 2:, 1:-1] + y[..., 1:-1, :-2] + y[..., 1:-1, 2:]
    return (4 * y[..., 1:-1, 1:-1] - around).square().mean((1, 2, 3)).sqrt()


def _bits(flow: FlowModel, pictures: Tensor, small: Tensor) -> Tensor:
    """Score pictures given their small image, as far as the model takes their size."""
    prepared = prepare_input(flow, pictures, source=small, notify=lambda _: None)
    cond = prepared.condition(flow)
    return score(flow, torch.stack([*map(to_uint8, prepared.pixels)]), cond, complexity=False).bits_per_dim


def _sentence(detail: float, usual: Calibration, db: float, boxes: list[Box], size: tuple[int, int]) -> str:
    template = say("As detailed as a photograph: {share} of the fine detail expected, photographs {least} to {most}.")
    if detail < usual.least:
        template = say(
            "Smoother than a photograph: {share} of the fine detail expected, photographs {least} to {most}."
        )
    if detail > usual.most:
        template = say("Harsher than a photograph: {share} of the fine detail expected, photographs {least} to {most}.")
    share, least, most = (f"{100 * value:.0f} %" for value in (detail, usual.least, usual.most))
    parts: list[str] = [say(template, share=share, least=least, most=most)]
    if boxes:
        parts.append(say(" The small image supports it least {where}.", where=_place(boxes[0], size)))
    if db < CONTRADICTS:
        contradiction = say(" It contradicts the small image: shrunk, it is only {decibels} dB from it.")
        parts.append(say(contradiction, decibels=f"{db:.0f}"))
    return joined(parts)


def _place(box: Box, size: tuple[int, int]) -> str:
    left, top, right, bottom = box
    down, across = (min(2, int(3 * m)) for m in ((top + bottom) / 2 / size[0], (left + right) / 2 / size[1]))
    return PLACES[down][across]
