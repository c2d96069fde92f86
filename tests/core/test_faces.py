"""Faces are found where they are; aligned, eyes land where the data have them, and what is cut out goes back."""

import math
from pathlib import Path

import pytest
import torch
from builders import build_upscaler
from torch.nn.functional import interpolate

from flowcore import ImageError, ShapeError, find_faces, upscale
from flowcore.images.color import luma
from flowcore.images.faces import cut_face, eyes_from_landmarks, eyes_from_mask, is_profile, locate_face, paste_face
from flowcore.images.files import read
from flowcore.images.resize import resize
from flowcore.tasks import faces as faces_task
from flowcore.tasks.faces import align_faces, eyes_from_meshes, find_eyes, paste_faces, restore_faces
from flowcore.tasks.finders import faces as face_finder
from flowcore.tasks.finders.faces import network

PICTURES = Path(__file__).parents[2] / "workflows" / "pictures"
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


def test_eyes_land_where_the_data_have_them():
    for size in (None, 48, 64, 177, 400):
        for eye, x in ((LEFT_EYE, 0.377), (RIGHT_EYE, 0.614)):
            face = cut_face(spot(*eye), place(), size)
            assert face.shape[-1] == (size or 178)
            assert middle(face) == pytest.approx((x, 0.447), abs=0.002)


def test_a_face_that_leans_is_upright():
    for degrees in (-80, -30, 0, 45, 85):
        a = math.radians(degrees)
        found = place(*((150 + s * 20 * math.cos(a), 120 + s * 20 * math.sin(a)) for s in (-1, 1)))
        assert found.roll == pytest.approx(degrees)
        below = (150 - 40 * math.sin(a), 120 + 40 * math.cos(a))  # a mouth
        expected = (0.4955, 0.447 + 40 * 0.237 / 40)
        assert middle(cut_face(spot(*below), found, 100)) == pytest.approx(expected, abs=0.002)


def test_eyes_in_any_order_are_the_same_face_and_points_come_back_exactly():
    assert place(LEFT_EYE, RIGHT_EYE) == place(RIGHT_EYE, LEFT_EYE)
    points = torch.rand(50, 2, dtype=torch.float64) * 300
    torch.testing.assert_close(place().to_picture(place().to_crop(points)), points)


def test_an_upright_face_on_the_pixel_grid_is_copied():
    """100 pixels of side, its corner at (60, 40): no resampling at all."""
    picture = torch.rand(2, 3, HEIGHT, WIDTH)
    found = place((60 + 37.7, 40 + 44.7), (60 + 61.4, 40 + 44.7))
    torch.testing.assert_close(cut_face(picture, found), picture[..., 40:140, 60:160], atol=1e-4, rtol=0)


def test_shrinking_does_not_alias_and_edges_are_continued():
    """Stripes of two pixels become gray, not other stripes."""
    stripes = (torch.arange(WIDTH) % 2).float().expand(1, 1, HEIGHT, WIDTH)
    face = cut_face(stripes, place(), 40)
    assert (face[..., 4:-4, 4:-4] - 0.5).abs().max() < 0.001
    picture = torch.full((1, 3, HEIGHT, WIDTH), 0.25)
    found = place((10, 40), (60, 40))
    assert 0.5 < found.inside < 1
    torch.testing.assert_close(cut_face(picture, found), torch.full((1, 3, 211, 211), 0.25))


def test_an_unchanged_face_gives_the_picture_back():
    picture = smooth()
    for eyes in ((LEFT_EYE, RIGHT_EYE), ((14.0, 60.5), (54.0, 70.0)), ((266.2, 190.0), (307.0, 180.0))):
        for size in (None, 256):
            pasted = paste_face(picture, cut_face(picture, place(*eyes), size), place(*eyes), feather=0.0)
            assert (pasted - picture).abs().max() < 1 / 255  # without detail, resampling costs less than a step


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


def test_a_face_is_pasted_into_an_enlarged_picture():
    face = cut_face(spot(*LEFT_EYE, radius=6), place(), 600)
    for factor in (4, 1.5, 0.5):
        height, width = round(HEIGHT * factor), round(WIDTH * factor)
        x, y = middle(paste_face(torch.zeros(1, 1, height, width), face, place()))
        expected = (LEFT_EYE[0] * factor, LEFT_EYE[1] * factor)
        assert (x * width, y * height) == pytest.approx(expected, abs=0.1 * factor)


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


def test_bad_points_are_refused():
    points = ((-1, 50), (50, 50)), ((math.nan, 50), (50, 50)), ((50, 50), (50, 50)), ((50, 50), (51.5, 50))
    for one, other, size in (
        *((*pair, (HEIGHT, WIDTH)) for pair in (*points, ((2, 2), (100, 2)))),
        ((1, 1), (3, 1), (4, 4)),
    ):
        with pytest.raises(ImageError):
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
    with pytest.raises(ShapeError):
        cut_face(picture[..., :-1], place())


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
    for centers, count in (((), "0"), (((40, 50),), "1"), (((40, 50), (60, 50), (90, 52)), "3")):
        with pytest.raises(ImageError, match=f"it has {count}"):
            eyes_from_mask(dots(*centers), HEIGHT, WIDTH)


def mesh(count=478, nose=(140, 130)):
    """Points of a face mesh, all at the nose but those that say where the eyes are."""
    points = [list(nose) for _ in range(count)]
    for k, point in {33: (110, 90), 133: (130, 90), 362: (150, 94), 263: (170, 94)}.items():
        points[k] = list(point)
    if count == 478:
        points[468], points[473] = list(LEFT_EYE), list(RIGHT_EYE)
    return points


def test_eyes_and_profile_of_a_face_mesh():
    assert eyes_from_landmarks(mesh()) == (LEFT_EYE, RIGHT_EYE)
    assert eyes_from_landmarks(mesh(468)) == ((120, 90), (160, 94))
    with pytest.raises(ImageError, match="478 points"):
        eyes_from_landmarks(mesh()[:68])
    assert not is_profile(mesh(), place())
    assert is_profile(mesh(nose=(100, 115)), place())


def test_a_face_of_each_picture_is_chosen_by_its_size():
    large, small = mesh(), [[x / 2, y / 2] for x, y in mesh()]
    lines: list[str] = []
    frames = [[{"landmarks_xy": small}, {"landmarks_xy": large}], [{"landmarks_xy": large}]]
    assert eyes_from_meshes(frames, notify=lines.append) == [[(LEFT_EYE, RIGHT_EYE)]] * 2
    assert lines == ["2 faces were found; this is number 1, the largest is 1."]
    half = tuple((x / 2, y / 2) for x, y in (LEFT_EYE, RIGHT_EYE))
    assert eyes_from_meshes(frames[:1], 2) == [[half]]
    assert eyes_from_meshes([[]]) == [[]]
    assert eyes_from_meshes([*frames, []], 0) == [[(LEFT_EYE, RIGHT_EYE), half], [(LEFT_EYE, RIGHT_EYE)], []]
    assert eyes_from_meshes(frames[:1], 0, smallest=100) == [[(LEFT_EYE, RIGHT_EYE)]]
    for frame, words in (
        ([{"landmarks_xy": [[1, 2]] * 5}], "478 points"),
        ([{"points": []}], "landmarks_xy"),
        ([5], "landmarks_xy"),
    ):
        with pytest.raises(ImageError, match=words):
            eyes_from_meshes([frame])


def test_faces_of_several_pictures_go_back_into_their_own():
    """Two faces in the first picture, one in the second, none in the third; of each face as many samples."""
    pictures, second = torch.rand(3, 4, HEIGHT, WIDTH), ((250.0, 40.0), (270.0, 41.0))
    eyes = [[(LEFT_EYE, RIGHT_EYE), second], [((150.0, 120.0), (190.0, 121.0))], []]
    faces, places = align_faces(pictures, eyes, size=32)
    assert faces.shape == (3, 3, 32, 32)
    samples = torch.rand(6, 3, 32, 32)
    pasted = paste_faces(pictures, samples, places)
    assert pasted.shape == (6, 4, HEIGHT, WIDTH)
    for sample in (0, 1):
        both = paste_face(pictures[:1, :3], samples[sample : sample + 1], places[0])
        both = paste_face(both, samples[2 + sample : 3 + sample], places[1])
        assert torch.equal(pasted[sample : sample + 1, :3], both)
        alone = paste_face(pictures[1:2, :3], samples[4 + sample : 5 + sample], places[2])
        assert torch.equal(pasted[2 + sample : 3 + sample, :3], alone)
    assert torch.equal(pasted[4:], pictures[2:].expand(2, -1, -1, -1))
    assert torch.equal(paste_faces(pictures.repeat_interleave(2, 0), samples, places), pasted)  # samples of both
    with pytest.raises(ShapeError):
        align_faces(pictures, eyes[:2])
    with pytest.raises(ShapeError):
        paste_faces(pictures.repeat_interleave(3, 0), samples, places)
    with pytest.raises(ShapeError):
        paste_faces(pictures[:2], samples, places)


def test_picked_faces_go_where_they_look_alike():
    pictures = torch.cat([smooth(), smooth(seed=1)])
    eyes = [[(LEFT_EYE, RIGHT_EYE), ((240.0, 60.0), (270.0, 61.0))], [((150.0, 120.0), (190.0, 121.0))]]
    faces, places = align_faces(pictures, eyes, size=64)
    brighter = interpolate(faces[[2, 1]], scale_factor=2) + 0.05
    pasted = paste_faces(interpolate(pictures, scale_factor=2), brighter, places)
    expected = interpolate(pictures, scale_factor=2)
    expected[:1] = paste_face(expected[:1], brighter[1:], places[1])
    expected[1:] = paste_face(expected[1:], brighter[:1], places[2])
    assert torch.equal(pasted, expected)


def test_small_faces_keep_their_pixels():
    """Of size 0: windows as large as the largest face; of a smaller one only itself is pasted."""
    picture = torch.rand(1, 3, HEIGHT, WIDTH)
    faces, places = align_faces(picture, [[((60.2, 60.3), (66.1, 61.9)), ((200.4, 90.1), (209.3, 92.0))]])
    assert faces.shape[-1] == 39
    for face, found in zip(faces, places, strict=True):
        left, top, side = (int(at) for at in found.window)
        torch.testing.assert_close(face, picture[0, :, top : top + side, left : left + side], atol=1e-5, rtol=0)
    pasted = paste_faces(picture, torch.ones(2, 3, 312, 312), places)
    changed = [int((pasted != picture)[0, 0, :, a:b].any(0).sum()) for a, b in ((0, 130), (130, WIDTH))]
    assert changed == pytest.approx([places[0].face, places[1].face], abs=1.5)
    _, (turned,) = align_faces(picture, [[((60.0, 60.0), (64.0, 68.0))]])
    assert turned.window is None


def test_crops_without_a_face_are_noted():
    portrait = read((PICTURES / "portrait-1.jpg").read_bytes(), "portrait").pixels
    side = portrait.shape[-1]
    eyes = ((0.377 * side, 0.447 * side), (0.614 * side, 0.447 * side))
    below = tuple((x, y + 0.3 * side) for x, y in eyes)
    for image, points, wanted in ((portrait, eyes, False), (portrait, below, True), (0 * portrait, eyes, True)):
        lines: list[str] = []
        align_faces(image, [[points]], notify=lines.append)
        assert any("hardly looks like a face" in line for line in lines) == wanted


SMALL = ((60.2, 60.3), (66.1, 61.9))  # a face of 26 pixels, the other has 178


def test_faces_larger_than_a_model_is_made_for_are_left_out_and_counted():
    lines: list[str] = []
    faces, (found,) = align_faces(smooth(), [[(LEFT_EYE, RIGHT_EYE), SMALL]], largest=36, notify=lines.append)
    assert faces.shape[-1] == 26
    assert found.left_eye == SMALL[0]
    assert lines[0].startswith("Of 2 faces, 1 of more than 36 pixels: left to the upscaler of the picture")


def test_a_picture_whose_faces_are_all_too_large_stays_as_it_is():
    image, lines = smooth(), list[str]()
    faces, places = align_faces(image, [[(LEFT_EYE, RIGHT_EYE)]], largest=36, notify=lines.append)
    assert len(lines) == 1  # nothing of a face that is not pasted
    assert faces.shape == (1, 3, 36, 36)  # for nodes that expect one
    assert torch.equal(paste_faces(image, torch.rand(2, 3, 288, 288), places), image.expand(2, -1, -1, -1))


def test_a_picture_without_a_face_stays_as_it_is():
    image = torch.rand(2, 3, 20, 50, generator=torch.Generator().manual_seed(61))
    faces, places = align_faces(image, [[]], size=64)
    torch.testing.assert_close(faces, image[:1, :, :, 15:35], atol=1e-5, rtol=0)  # for nodes that expect one
    assert torch.equal(paste_faces(image, torch.rand(1, 3, 168, 168), places), image)


def test_faces_are_searched_before_anything_is_enlarged_and_none_is_no_error(monkeypatch):
    order, notes = list[str](), list[str]()
    monkeypatch.setattr(faces_task, "find_eyes", lambda image, **_: order.append("search") or [[]] * len(image))
    monkeypatch.setattr(faces_task, "upscale", lambda flow, image, **_: order.append("enlarge") or image)
    flow, image = build_upscaler(), smooth()
    assert torch.equal(restore_faces(flow, flow, image, samples=2, notify=notes.append), image.expand(2, -1, -1, -1))
    assert order == ["search", "enlarge"]
    assert notes == ["No face was found, so none is restored there. If there is one, mark the eyes in ComfyUI."]
    restore_faces(flow, flow, image.expand(2, -1, -1, -1), smallest=20, notify=notes.append)
    assert notes[1].startswith("No face was found in 2 of 2 pictures, so")
    assert "lower smallest, or mark" in notes[1]


def pasted_over(*faces, photograph):
    """What becomes of samples of a face where an enlarged picture shows it, and what is told."""
    lines: list[str] = []
    _, places = align_faces(photograph, [[SMALL]])
    large = interpolate(photograph, scale_factor=4, mode="bilinear")
    pasted = paste_faces(large, torch.cat(faces), places, photograph=photograph, notify=lines.append)
    return [bool((one != large[0]).any()) for one in pasted], lines


def test_a_face_with_specks_or_unlike_the_photograph_is_left_out_and_counted():
    """Each sample for itself: like the picture, with powder, of another brightness."""
    photograph = smooth()
    cut, _ = align_faces(photograph, [[SMALL]])
    face = interpolate(cut, scale_factor=8, mode="bilinear")
    powder = (torch.rand(1, 1, *face.shape[-2:], generator=torch.Generator().manual_seed(1)) < 0.05) * 0.3
    changed, lines = pasted_over(face, face + powder, face * 0.5, photograph=photograph)
    assert changed == [True, False, False]
    assert lines == ["2 of 3 pasted faces had specks, or were unlike the photograph: the picture was kept there."]
    assert pasted_over(face, photograph=photograph) == ([True], [])


def test_faces_left_out_are_counted_out_of_all_pictures():
    photographs, lines = torch.cat([smooth(), smooth(seed=1)]), list[str]()
    cut, places = align_faces(photographs, [[SMALL]])
    faces = 0.5 * interpolate(cut, scale_factor=8, mode="bilinear")
    large = interpolate(photographs, scale_factor=4, mode="bilinear")
    paste_faces(large, faces, places, photograph=photographs, notify=lines.append)
    assert [line.split(" pasted")[0] for line in lines] == ["2 of 2"]


def test_noise_that_a_model_removes_does_not_make_its_face_unlike_the_photograph():
    photograph = smooth()
    cut, _ = align_faces(photograph, [[SMALL]])
    noisy = photograph + 8 / 255 * torch.randn(photograph.shape, generator=torch.Generator().manual_seed(2))
    face = interpolate(cut, scale_factor=8, mode="bilinear")
    assert pasted_over(face, photograph=noisy) == ([True], [])


def test_restoring_without_limit_and_check_pastes_every_face():
    flow, image = build_upscaler(), picture("group.png")
    large = upscale(flow, image, factor=2)
    for options, same in (({"largest": 20}, True), ({"largest": 0, "check": False}, False)):
        assert torch.equal(restore_faces(flow, flow, image, factor=2, **options), large) == same


def test_a_gray_photograph_stays_gray_with_and_without_a_face():
    flow, notes = build_upscaler(), []
    for image in (luma(picture("group.png")), torch.zeros(1, 1, 40, 40)):
        one = restore_faces(flow, flow, image, factor=2, notify=notes.append)
        assert one.shape[1] == 1
        three = restore_faces(flow, flow, image.expand(-1, 3, -1, -1), factor=2)
        assert torch.equal(three, one.expand(-1, 3, -1, -1))
    assert [note.startswith("No face was found,") for note in notes].count(True) == 1


def test_gray_faces_paste_gray_into_gray_pictures_only():
    gray, colored = smooth(channels=1).expand(-1, 3, -1, -1), smooth()
    cut, places = align_faces(torch.cat([gray, colored]), [[SMALL], [SMALL]])
    faces = luma(interpolate(cut, scale_factor=2.0, mode="bilinear")).expand(-1, 3, -1, -1)
    one, other = paste_faces(torch.cat([gray, colored]), faces, places)
    assert torch.equal(one[:1].expand(3, -1, -1), one)
    assert not torch.equal(other[:1].expand(3, -1, -1), other)


GROUP = [((28.5, 27.0), (36.2, 27.7)), ((65.8, 15.4), (71.2, 16.2)), ((138.6, 30.0), (145.8, 30.9))]  # by hand


def picture(name):
    return read((PICTURES / name).read_bytes(), name).pixels


def test_another_default_type_at_the_first_search_changes_no_later_one():
    expected = find_faces(picture("group.png"))
    network.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert len(find_faces(picture("group.png"))[0]) == 3
    finally:
        torch.set_default_dtype(torch.float32)
    assert find_faces(picture("group.png")) == expected


def test_small_faces_of_a_group_are_found_the_largest_first():
    (faces,) = find_faces(picture("group.png"))
    assert len(faces) == 3
    assert [face.width for face in faces] == sorted((face.width for face in faces), reverse=True)
    for face, eyes in zip(sorted(faces, key=lambda face: face.box), GROUP, strict=True):
        assert 16 < face.width < 20
        assert face.score > 0.5
        assert torch.tensor(face.eyes) == pytest.approx(torch.tensor(eyes), abs=1.2)
        (left, top, right, bottom), (x, y) = face.box, face.mouth
        assert left < x < right
        assert max(eyes[0][1], eyes[1][1]) < face.nose[1] < y < bottom
        assert top < face.nose[1]


def test_only_faces_in_boxes_are_taken_and_empty_boxes_are_counted():
    notes = []
    boxes = [[(50, 0, 90, 50), (0, 60, 10, 70)]]
    ((eyes,),) = find_eyes(picture("group.png"), boxes=boxes, notify=notes.append)
    assert torch.tensor(eyes) == pytest.approx(torch.tensor(GROUP[1]), abs=1.2)
    assert notes == ["No face was found in 1 of 2 boxes."]
    with pytest.raises(ShapeError):
        find_eyes(picture("group.png"), boxes=[[], []])


def test_a_small_face_that_is_hardly_seen_is_left_out_unless_it_is_in_a_box(monkeypatch):
    def face(score, x, apart):
        box = (x - apart, 20.0, x + 2 * apart, 20.0 + 3 * apart)
        return face_finder.Face(score=score, box=box, eyes=((x, 30.0), (x + apart, 30.0)), nose=(x, 33), mouth=(x, 36))

    large, clear, unclear = face(0.6, 80.0, 10.0), face(0.8, 20.0, 7.0), face(0.6, 50.0, 7.0)
    monkeypatch.setattr(faces_task, "find_faces", lambda *_, **__: [[large, clear, unclear]])
    image = torch.rand(1, 3, 90, 130)
    assert find_eyes(image) == [[large.eyes, clear.eyes]]
    assert find_eyes(image, boxes=[[unclear.box]]) == [[unclear.eyes]]


def test_a_face_whose_eye_the_border_cuts_off_is_no_error():
    (left, _), _, (_, right) = GROUP
    cropped = picture("group.png")[..., round(left[0]) + 2 : round(right[0])]
    (found,), (eyes,) = find_faces(cropped), find_eyes(cropped)
    outside = [face for face in found if not all(0 <= x <= cropped.shape[-1] for x, _ in face.eyes)]
    assert outside
    assert eyes == [face.eyes for face in found if face not in outside]


def test_faces_lying_sideways_are_found():
    upright = picture("portrait-1.jpg")
    (face,), *both = find_faces(torch.cat([upright, *(upright.rot90(turns, (-2, -1)) for turns in (1, 3))]))
    side = upright.shape[-1]
    expected = torch.tensor([*sorted(face.eyes), face.nose, face.mouth])
    for turns, (lying,) in zip((1, 3), both, strict=True):
        back = [(side - y, x) if turns == 1 else (y, side - x) for x, y in (*lying.eyes, lying.nose, lying.mouth)]
        torch.testing.assert_close(torch.tensor([*sorted(back[:2]), *back[2:]]), expected, atol=2.0, rtol=0)


def test_a_face_of_twenty_pixels_is_found_in_a_landscape():
    scene = picture("canyon.jpg").clone()
    scene[..., 40:60, 70:90] = resize(picture("portrait-1.jpg"), 20, 20).clamp(0, 1)
    ((face,),) = find_faces(scene)
    assert torch.tensor(face.eyes) == pytest.approx(torch.tensor([(77.5, 48.9), (82.3, 48.9)]), abs=1.0)


def test_a_face_counts_that_looks_like_one_from_near_whatever_its_mirror_image(monkeypatch):
    published = network()

    def unsure(squares):
        logits, numbers = published(squares)
        doubted = logits[1:] if len(squares) == 2 else logits  # of the mirror image of a crop, or at first sight
        doubted -= (doubted.max() + 0.6).clamp(min=0)
        return logits, numbers

    monkeypatch.setattr(face_finder, "network", lambda: unsure)
    ((face,),) = find_faces(picture("portrait-1.jpg"), turned=False, smallest=20)
    assert 0.5 < face.score < 0.7


def test_nothing_is_found_where_there_is_no_face():
    assert find_faces(torch.cat([picture("canyon.jpg"), picture("desert.jpg")])) == [[], []]
    assert find_faces(torch.zeros(1, 1, 1, 7)) == [[]]


def test_faces_that_are_too_small_or_uncertain_are_skipped():
    assert len(find_faces(picture("group.png"), smallest=18)[0]) == 2
    assert find_faces(picture("group.png"), score=0.95) == [[]]
