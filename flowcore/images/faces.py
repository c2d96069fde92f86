"""Aligned faces: located by two eye points, cut out of a picture, and pasted back where they came from.

The crop is a square, rotated so that the eyes are level, at the position at which shipped models were trained.
Points are ``(x, y)`` in pixels from the top left corner of the picture; the middle of its first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ImageError, ShapeError
from .resize import downsample, keys_cubic, resize, sample_points

LEFT, RIGHT, EYE_LINE = 0.377, 0.614, 0.447  # shares of the crop's side
MIN_SIDE = 8.0  # pixels of the crop's side; smaller ones hold no face
MIN_INSIDE = 0.5  # share of the crop's area within the picture
MARGIN = 4  # pixels around what is resampled, for the cubic kernel
SEPARATE = 2.0  # pixels between the dots of a mask

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class FacePlace:
    """Where a face is, or a crop with it, in a picture of a height and width."""

    left_eye: Point  # the iris on the left in the picture
    right_eye: Point
    height: int
    width: int
    window: tuple[float, float, float] | None = None  # left, top and side of a crop along the picture's pixels
    image: int = 0  # number of the picture in its batch
    images: int = 1  # pictures in that batch
    pasted: bool = True  # whether a result is pasted there

    @property
    def face(self) -> float:
        """Side of the face's square, in pixels of the picture."""
        return math.dist(self.left_eye, self.right_eye) / (RIGHT - LEFT)

    @property
    def side(self) -> float:
        """Of the crop, in pixels of the picture: that of the face, unless there is a window."""
        return self.window[2] if self.window else self.face

    @property
    def roll(self) -> float:
        """By how many degrees the head leans, clockwise as seen."""
        (x, y), (u, v) = self.left_eye, self.right_eye
        return math.degrees(math.atan2(v - y, u - x))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the face's square, as far as it lies in the picture, in whole pixels."""
        top, bottom, left, right = _box(replace(self, window=None), 0)
        return left, top, right, bottom

    @property
    def inside(self) -> float:
        """Share of the crop that lies in the picture, estimated at 64x64 points."""
        steps = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
        points = self.to_picture(_grid(steps, steps))
        limit = torch.tensor([self.width, self.height], dtype=torch.float64)
        return float(((points >= 0) & (points <= limit)).all(-1).double().mean())

    def to_picture(self, points: Tensor) -> Tensor:
        """Convert points ``(..., 2)`` from shares of the crop's side to pixels of the picture."""
        axes, corner = self._frame()
        return points.double() @ axes + corner

    def to_crop(self, points: Tensor) -> Tensor:
        """Convert points ``(..., 2)`` from pixels of the picture to shares of the crop's side."""
        axes, corner = self._frame()
        return (points.double() - corner) @ axes.T / self.side**2

    def scaled(self, height: int, width: int) -> FacePlace:
        """Return the same place in an enlarged or shrunk copy of the picture."""
        x, y = width / self.width, height / self.height
        if abs(self.height * x - height) > max(1, x) and abs(self.width * y - width) > max(1, y):  # more than rounding
            raise ShapeError(
                "The face was cut out of a picture of {size}, and is to be pasted into one of {other_size}, which has "
                "other proportions. Paste it into the same picture, or an enlargement.",
                size=f"{self.width}x{self.height}",
                other_size=f"{width}x{height}",
            )
        eyes = [(eye[0] * x, eye[1] * y) for eye in (self.left_eye, self.right_eye)]
        window = self.window and (self.window[0] * x, self.window[1] * y, self.window[2] * x)
        return replace(self, left_eye=eyes[0], right_eye=eyes[1], height=height, width=width, window=window)

    def along_pixels(self, size: int) -> FacePlace:
        """Return the place with a crop of ``size`` pixels along the picture's: neither resampled nor turned."""
        left, top = (round(center - size / 2) for center in self.to_picture(torch.tensor([0.5, 0.5])).tolist())
        return replace(self, window=(left, top, size))

    def _frame(self) -> tuple[Tensor, Tensor]:
        """Rows: the crop's x and y axes, as long as its side; and its top left corner; in pixels of the picture."""
        if self.window:
            *corner, side = self.window
            return side * torch.eye(2, dtype=torch.float64), torch.tensor(corner, dtype=torch.float64)
        left, right = (torch.tensor(eye, dtype=torch.float64) for eye in (self.left_eye, self.right_eye))
        x, y = (right - left) / (RIGHT - LEFT)
        axes = torch.stack([torch.stack([x, y]), torch.stack([-y, x])])
        return axes, left - torch.tensor([LEFT, EYE_LINE], dtype=torch.float64) @ axes


def locate_face(one_eye: Point, other_eye: Point, height: int, width: int) -> FacePlace:
    """Find the place of a face from its eyes, in any order; the head may lean by up to 90 degrees.

    ImageError if they are outside, too close, or most of the face is outside.
    """
    for x, y in (one_eye, other_eye):
        if not (0 <= x <= width and 0 <= y <= height):  # NaN fails this, too
            raise ImageError(
                "Both eyes must be in the picture, which has {size} pixels; got ({x}, {y}). Give points in pixels from "
                "its top left corner.",
                size=f"{width}x{height}",
                x=f"{x:.5g}",
                y=f"{y:.5g}",
            )
    left, right = sorted([one_eye, other_eye], key=lambda eye: eye[0])
    place = FacePlace(left_eye=left, right_eye=right, height=height, width=width)
    if place.side < MIN_SIDE:
        raise ImageError(
            "The eyes are {distance} pixels apart, so the face has {face} pixels; it must have at least {least}. Give "
            "the middle of each eye, or a larger picture.",
            distance=f"{math.dist(left, right):.2g}",
            face=f"{place.side:.2g}",
            least=f"{MIN_SIDE:g}",
        )
    if place.inside < MIN_INSIDE:
        raise ImageError(
            "Only {share} of the face is in the picture of {size}: its square would have {side} pixels. At least "
            "{least} must be. Check the points.",
            share=f"{place.inside:.0%}",
            size=f"{width}x{height}",
            side=f"{place.side:.0f}",
            least=f"{MIN_INSIDE:.0%}",
        )
    return place


def cut_face(picture: Tensor, place: FacePlace, size: int | None = None) -> Tensor:
    """Cut a face out of a picture ``(B, C, H, W)`` in [0, 1], upright: bicubic, antialiased, the edge continued."""
    if tuple(picture.shape[-2:]) != (place.height, place.width):
        raise ShapeError(
            f"The face is at a place in a picture of {place.width}x{place.height}; got one of {picture.shape[-1]}x"
            f"{picture.shape[-2]}. Locate it in this picture."
        )
    size = max(1, round(place.side)) if size is None else size  # the result's side
    supersampling = max(1, math.ceil(place.side / size - 0.01))
    steps = (torch.arange(size * supersampling, dtype=torch.float64) + 0.5) / (size * supersampling)
    points = place.to_picture(_grid(steps, steps))
    top, bottom, left, right = _box(place, MARGIN)
    region = picture[..., top:bottom, left:right]
    corner = torch.tensor([left, top], dtype=torch.float64)
    return downsample(sample_points(region, points - corner - 0.5, keys_cubic), supersampling).clamp(0, 1)


def paste_face(picture: Tensor, face: Tensor, place: FacePlace, *, feather: float = 0.15) -> Tensor:
    """Paste a face ``(B or 1, C or 1, S, S)`` where it was cut out; the picture may have been resized since.

    Outside the crop and in its alpha, ``picture``, ``(1 or B, C, H, W)``, stays bit for bit. The face fades in over a
    border of ``feather`` of its side, up to 0.5.
    """
    place = place.scaled(*picture.shape[-2:])
    if face.ndim != 4 or face.shape[-1] != face.shape[-2]:
        raise ShapeError(f"A face is a square, (B, C, S, S); got {tuple(face.shape)}. Paste what was cut out.")
    count = max(len(picture), len(face))
    if min(len(picture), len(face)) not in (1, count):
        raise ShapeError(
            f"Expected as many pictures as faces, or one of them; got {len(picture)} and {len(face)}. Pass one picture."
        )
    colors = min(picture.shape[1], 3)
    if face.shape[1] not in (1, colors, picture.shape[1]):
        raise ShapeError(f"Expected a face of {colors} channels, as the picture has; got {face.shape[1]}.")
    side = max(1, round(place.side))
    if face.shape[-1] > side:
        face = resize(face, side, side)
    top, bottom, left, right = _box(place, 0)
    rows, columns = (torch.arange(a, b, dtype=torch.float64) + 0.5 for a, b in ((top, bottom), (left, right)))
    shares = place.to_crop(_grid(columns, rows))
    share = min(1.0, place.face / place.side)  # share of the crop's side: a window may be larger than the face
    # distance from the face's border, negative outside
    depth = torch.minimum(shares, 1 - shares).amin(-1) - (1 - share) / 2
    weight = (depth / max(feather * share, 0.5 / place.side)).clamp(0, 1)
    weight = (weight * weight * (3 - 2 * weight)).to(picture)  # smoothstep
    pasted = sample_points(face[:, :colors], shares * face.shape[-1] - 0.5, keys_cubic).clamp(0, 1).to(picture)
    result = picture.expand(count, -1, -1, -1).clone()
    region = result[:, :colors, top:bottom, left:right]
    region.copy_(torch.where(weight > 0, region + weight * (pasted - region), region))
    return result


def eyes_from_mask(mask: Tensor, height: int, width: int) -> tuple[Point, Point]:
    """Read the middles of two dots, one on each eye, above 0.5 in a mask ``(h, w)`` stretched over the picture."""
    rows, columns = torch.nonzero(mask > 0.5, as_tuple=True)
    points = torch.stack([columns + 0.5, rows + 0.5], -1).double()
    groups: list[Tensor] = []
    if len(points):
        centered = points - points.mean(0)
        axis = torch.linalg.eigh(centered.T @ centered)[1][:, -1]  # direction of the line between two dots
        along, order = (centered @ axis).sort()
        cuts = (along.diff() > SEPARATE).nonzero().flatten() + 1
        groups = list(points[order].tensor_split(cuts.cpu()))
    if len(groups) != 2:
        raise ImageError(
            "The mask must have two dots, one on each eye; it has {count}. Paint them anew: right-click Load Image, "
            "Open in MaskEditor.",
            count=len(groups),
        )
    scale = torch.tensor([width / mask.shape[1], height / mask.shape[0]], dtype=torch.float64)
    one, other = ((group.mean(0) * scale).tolist() for group in groups)
    return (one[0], one[1]), (other[0], other[1])


def eyes_from_landmarks(points: Sequence[Sequence[float]]) -> tuple[Point, Point]:
    """Read the eyes from MediaPipe's mesh: of 478 points the irises; of 468 the middles between their corners."""
    if len(points) < 468:
        raise ImageError(f"A face mesh has 478 points, or 468 without irises; got {len(points)}.")
    groups = ((468,), (473,)) if len(points) >= 478 else ((33, 133), (362, 263))
    one, other = (tuple(sum(float(points[k][i]) for k in group) / len(group) for i in (0, 1)) for group in groups)
    return (one[0], one[1]), (other[0], other[1])


def is_profile(points: Sequence[Sequence[float]], place: FacePlace) -> bool:
    """Tell whether a face is seen from the side: the tip of its nose is not between its eyes."""
    nose = place.to_crop(torch.tensor([float(points[1][0]), float(points[1][1])]))
    return not LEFT <= float(nose[0]) <= RIGHT


def _grid(x: Tensor, y: Tensor) -> Tensor:
    """All points of these columns and rows, ``(h, w, 2)``."""
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def _box(place: FacePlace, margin: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the part of the picture that the crop covers."""
    corners = place.to_picture(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]))
    (left, top), (right, bottom) = corners.amin(0).tolist(), corners.amax(0).tolist()
    top, bottom = max(0, math.floor(top) - margin), min(place.height, math.ceil(bottom) + margin)
    left, right = max(0, math.floor(left) - margin), min(place.width, math.ceil(right) + margin)
    return top, bottom, left, right
