"""Aligned faces: eyes land where the faces of the data have them, what is cut out goes back, bad points are refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import interpolate

from flowcore.errors import ImageError, ShapeError
from flowcore.images.faces import (
    FacePlace,
    cut_face,
    eyes_from_landmarks,
    eyes_from_mask,
    is_profile,
    locate_face,
    paste_face,
)
from flowcore.tasks.faces import align_faces, eyes_from_meshes, paste_faces

HEIGHT, WIDTH = 240, 320
LEFT_EYE, RIGHT_EYE = (120.3, 90.8), (160.9, 102.1)  # 42.1 pixels apart, leaning by 15.6 degrees


def smooth(height=HEIGHT, width=WIDTH, channels=3, seed=0):
    """A picture without detail near the pixel grid, so that resampling loses next to nothing."""
    coarse = torch.rand(1, channels, height // 20, width // 20, generator=torch.Generator().manual_seed(seed))
    return 0.2 + 0.6 * interpolate(coarse, (height, width), mode="bilinear")


def spot(x, y, radius=3.0, height=HEIGHT, width=WIDTH):
    """A bright, round, smooth spot on black."""
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))[None, None]


def middle(image):
    """Center of brightness, as shares of the sides: x, y."""
    weights = image[0, 0].double()
    rows = (torch.arange(weights.shape[0]) + 0.5) / weights.shape[0]
    columns = (torch.arange(weights.shape[1]) + 0.5) / weights.shape[1]
    total = weights.sum()
    return float((weights * columns).sum() / total), float((weights * rows[:, None]).sum() / total)


def place(one=LEFT_EYE, other=RIGHT_EYE, height=HEIGHT, width=WIDTH):
    return locate_face(one, other, height, width)


# --- where the eyes land ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 48, 64, 177, 400])
def test_eyes_land_where_the_data_have_them(size):
    for eye, x in ((LEFT_EYE, 0.377), (RIGHT_EYE, 0.614)):
        face = cut_face(spot(*eye), place(), size)
        assert face.shape[-1] == (size or 178)
        assert middle(face) == pytest.approx((x, 0.447), abs=0.002)


@pytest.mark.parametrize("degrees", [-80, -30, 0, 45, 85])
def test_a_face_that_leans_is_upright(degrees):
    a = math.radians(degrees)
    one, other = ((150 + s * 20 * math.cos(a), 120 + s * 20 * math.sin(a)) for s in (-1, 1))
    found = place(one, other)
    assert found.roll == pytest.approx(degrees)
    below = (150 - 40 * math.sin(a), 120 + 40 * math.cos(a))  # a mouth
    x, y = middle(cut_face(spot(*below), found, 100))
    assert x == pytest.approx(0.4955, abs=0.002)
    assert y == pytest.approx(0.447 + 40 * 0.237 / 40, abs=0.002)


def test_eyes_in_any_order_are_the_same_face():
    assert place(LEFT_EYE, RIGHT_EYE) == place(RIGHT_EYE, LEFT_EYE)


def test_points_go_to_the_crop_and_back_exactly():
    points = torch.rand(50, 2, dtype=torch.float64) * 300
    torch.testing.assert_close(place().to_picture(place().to_crop(points)), points)


def test_an_upright_face_on_the_pixel_grid_is_copied():
    """100 pixels of side, its corner at (60, 40): no resampling at all."""
    picture = torch.rand(2, 3, HEIGHT, WIDTH)
    found = place((60 + 37.7, 40 + 44.7), (60 + 61.4, 40 + 44.7))
    torch.testing.assert_close(cut_face(picture, found), picture[..., 40:140, 60:160], atol=1e-4, rtol=0)
    torch.testing.assert_close(paste_face(picture, cut_face(picture, found), found), picture, atol=1e-4, rtol=0)


def test_a_face_that_shrinks_is_not_aliased():
    """Stripes of two pixels become gray, not other stripes."""
    stripes = (torch.arange(WIDTH) % 2).float().expand(1, 1, HEIGHT, WIDTH)
    face = cut_face(stripes, place(), 40)
    assert (face[..., 4:-4, 4:-4] - 0.5).abs().max() < 0.001


def test_beyond_the_edge_the_edge_is_continued():
    picture = torch.full((1, 3, HEIGHT, WIDTH), 0.25)
    found = place((10, 40), (60, 40))
    assert 0.5 < found.inside < 1
    torch.testing.assert_close(cut_face(picture, found), torch.full((1, 3, 211, 211), 0.25))


# --- back into the picture --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 256])
@pytest.mark.parametrize(
    "eyes", [(LEFT_EYE, RIGHT_EYE), ((14.0, 60.5), (54.0, 70.0)), ((266.2, 190.0), (307.0, 180.0))]
)
def test_an_unchanged_face_gives_the_picture_back(eyes, size):
    picture, found = smooth(), place(*eyes)
    pasted = paste_face(picture, cut_face(picture, found, size), found, feather=0.0)
    assert (pasted - picture).abs().max() < 1 / 255  # on a picture without detail, resampling costs less than a step


def test_outside_the_crop_the_picture_stays_bit_for_bit():
    picture, found = torch.rand(1, 3, HEIGHT, WIDTH), place()
    pasted = paste_face(picture, torch.ones(1, 3, 64, 64), found)
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    shares = found.to_crop(torch.stack([columns, rows], -1))
    outside = ((shares < 0) | (shares > 1)).any(-1)
    assert 0.3 < outside.double().mean() < 0.8
    assert torch.equal(pasted[..., outside], picture[..., outside])
    inner = ((shares > 0.16) & (shares < 0.84)).all(-1)
    torch.testing.assert_close(pasted[..., inner], torch.ones(1, 3, int(inner.sum())))
    assert not torch.equal(pasted[..., ~outside & ~inner], picture[..., ~outside & ~inner])


def test_the_border_is_soft():
    """Along a line through the face, brightness rises over the feather, and never by a jump."""
    found = place((100, 100), (147.4, 100))  # 200 pixels of side
    pasted = paste_face(torch.zeros(1, 1, HEIGHT, WIDTH), torch.ones(1, 1, 50, 50), found, feather=0.2)
    row = pasted[0, 0, 110]
    left = 100 - 0.377 * 200
    assert row[int(left) - 1] == 0
    assert 0.3 < row[int(left) + 20] < 0.7
    assert row[int(left) + 42] > 0.999
    assert row.diff().abs().max() < 0.05


@pytest.mark.parametrize("factor", [4, 1.5, 0.5])
def test_a_face_is_pasted_into_an_enlarged_picture(factor):
    height, width = round(HEIGHT * factor), round(WIDTH * factor)
    eye = (LEFT_EYE[0] * factor, LEFT_EYE[1] * factor)
    face = cut_face(spot(*LEFT_EYE, radius=6), place(), 600)
    pasted = paste_face(torch.zeros(1, 1, height, width), face, place())
    x, y = middle(pasted)
    assert (x * width, y * height) == pytest.approx(eye, abs=0.1 * factor)


def test_several_faces_make_several_pictures_and_alpha_stays():
    picture, faces = torch.rand(1, 4, HEIGHT, WIDTH), torch.rand(3, 3, 40, 40)
    pasted = paste_face(picture, faces, place())
    assert pasted.shape == (3, 4, HEIGHT, WIDTH)
    assert torch.equal(pasted[:, 3], picture[:, 3].expand(3, -1, -1))
    for k in range(3):
        assert torch.equal(pasted[k : k + 1], paste_face(picture, faces[k : k + 1], place()))
    before = picture.clone()
    paste_face(picture, faces[:1], place())
    assert torch.equal(picture, before)  # not written into


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "size", "words"),
    [
        ((-1, 50), (50, 50), (HEIGHT, WIDTH), "Both eyes must be in the picture"),
        ((50, 50), (50, 241), (HEIGHT, WIDTH), "Both eyes must be in the picture"),
        ((math.nan, 50), (50, 50), (HEIGHT, WIDTH), "Both eyes must be in the picture"),
        ((50, 50), (50, 50), (HEIGHT, WIDTH), "0 pixels apart"),
        ((50, 50), (51.5, 50), (HEIGHT, WIDTH), "at least 8"),
        ((1, 1), (3, 1), (4, 4), "of the face is in the picture of 4x4"),
        ((2, 2), (100, 2), (HEIGHT, WIDTH), "of the face is in the picture"),
    ],
)
def test_bad_points_are_refused(one, other, size, words):
    with pytest.raises(ImageError, match=words):
        locate_face(one, other, *size)


def test_what_does_not_fit_is_refused():
    picture, face = torch.rand(2, 3, HEIGHT, WIDTH), torch.rand(1, 3, 40, 40)
    for arguments, words in (
        ((picture[..., :-30], face, place()), "other proportions"),
        ((picture, face[..., :-1], place()), "square"),
        ((picture, face.expand(3, -1, -1, -1), place()), "as many pictures as faces"),
        ((picture, face[:, :2], place()), "3 channels"),
    ):
        with pytest.raises(ShapeError, match=words):
            paste_face(*arguments)
    with pytest.raises(ShapeError, match="Locate it in this picture"):
        cut_face(picture[..., :-1], place())


# --- marked and found eyes --------------------------------------------------------------------------------------------


def dots(*centers, radius=4, height=120, width=160):
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    mask = torch.zeros(height, width)
    for x, y in centers:
        mask[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = 1
    return mask


def test_two_dots_of_a_mask_are_eyes():
    """Of half the picture's size; the order does not matter."""
    eyes = sorted(eyes_from_mask(dots((40, 50), (60, 45)), HEIGHT, WIDTH))
    assert eyes[0] == pytest.approx((80, 100), abs=0.5)
    assert eyes[1] == pytest.approx((120, 90), abs=0.5)


@pytest.mark.parametrize(
    ("centers", "count"), [((), "none"), (((40, 50),), "1"), (((40, 50), (60, 50), (90, 52)), "3")]
)
def test_other_numbers_of_dots_are_refused(centers, count):
    with pytest.raises(ImageError, match=f"two dots, one on each eye; it has {count}"):
        eyes_from_mask(dots(*centers), HEIGHT, WIDTH)


def mesh(count=478, nose=(140, 130)):
    """Points of a face mesh, all at the nose but those that say where the eyes are."""
    points = [list(nose) for _ in range(count)]
    for k, point in {33: (110, 90), 133: (130, 90), 362: (150, 94), 263: (170, 94)}.items():
        points[k] = list(point)
    if count == 478:
        points[468], points[473] = list(LEFT_EYE), list(RIGHT_EYE)
    return points


def test_eyes_of_a_face_mesh():
    assert eyes_from_landmarks(mesh()) == (LEFT_EYE, RIGHT_EYE)
    assert eyes_from_landmarks(mesh(468)) == ((120, 90), (160, 94))
    with pytest.raises(ImageError, match="478 points"):
        eyes_from_landmarks(mesh()[:68])


def test_a_profile_is_told_by_its_nose():
    assert not is_profile(mesh(), place())
    assert is_profile(mesh(nose=(100, 115)), place())


def test_a_face_of_each_picture_is_chosen_by_its_size():
    large, small = mesh(), [[x / 2, y / 2] for x, y in mesh()]
    lines: list[str] = []
    frames = [[{"landmarks_xy": small}, {"landmarks_xy": large}], [{"landmarks_xy": large}]]
    assert eyes_from_meshes(frames, notify=lines.append) == [(LEFT_EYE, RIGHT_EYE)] * 2
    assert lines == ["2 faces were found; this is number 1, the largest is 1."]
    assert eyes_from_meshes(frames[:1], 2) == [tuple((x / 2, y / 2) for x, y in (LEFT_EYE, RIGHT_EYE))]
    for frame, words in (
        ([], "No face was found"),
        ([{"landmarks_xy": [[1, 2]] * 5}], "478 points"),
        ([{"points": []}], "landmarks_xy"),
        ([5], "landmarks_xy"),
    ):
        with pytest.raises(ImageError, match=words):
            eyes_from_meshes([frame])


def test_faces_of_several_pictures_go_back_into_their_own():
    pictures, eyes = torch.rand(2, 4, HEIGHT, WIDTH), [(LEFT_EYE, RIGHT_EYE), ((150.0, 120.0), (190.0, 121.0))]
    faces, places = align_faces(pictures, eyes, size=32)
    assert faces.shape == (2, 3, 32, 32)
    samples = faces.repeat_interleave(3, 0)
    pasted = paste_faces(pictures, samples, places)
    assert pasted.shape == (6, 4, HEIGHT, WIDTH)
    for k in (0, 2, 3, 5):
        alone = paste_face(pictures[k // 3, :3][None], samples[k : k + 1], places[k // 3])
        assert torch.equal(pasted[k : k + 1, :3], alone)
    with pytest.raises(ShapeError, match="eyes of one or all of 2 images"):
        align_faces(pictures, eyes * 2)
    with pytest.raises(ShapeError, match="for each of 2 pictures"):
        paste_faces(pictures, samples[:3], places)


def test_a_place_says_how_large_the_face_is():
    found = FacePlace(left_eye=(37.7, 44.7), right_eye=(61.4, 44.7), height=100, width=100)
    assert found.side == pytest.approx(100)
    assert found.inside == 1
    assert found.roll == 0
