"""Faces are found where they are, in pictures of any size and turn, and nowhere else."""

from pathlib import Path

import pytest
import torch

from flowcore import Cancelled, FlowError, find_faces
from flowcore.images.files import read

PICTURES = Path(__file__).parents[2] / "workflows" / "pictures"
GROUP = [((28.5, 27.0), (36.2, 27.7)), ((65.8, 15.4), (71.2, 16.2)), ((138.6, 30.0), (145.8, 30.9))]  # by hand


def picture(name):
    return read((PICTURES / name).read_bytes(), name).pixels


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


@pytest.mark.parametrize("turns", [1, 3])
def test_faces_of_people_who_lie_are_found_where_they_are(turns):
    upright = picture("portrait-1.jpg")
    (face,), (lying,) = find_faces(torch.cat([upright, upright.rot90(turns, (-2, -1))]))
    side = upright.shape[-1]
    back = [(side - y, x) if turns == 1 else (y, side - x) for x, y in (*lying.eyes, lying.nose, lying.mouth)]
    expected = torch.tensor([*sorted(face.eyes), face.nose, face.mouth])
    torch.testing.assert_close(torch.tensor([*sorted(back[:2]), *back[2:]]), expected, atol=2.0, rtol=0)


def test_nothing_is_found_where_there_is_no_face():
    assert find_faces(torch.cat([picture("canyon.jpg"), picture("desert.jpg")])) == [[], []]
    assert find_faces(torch.zeros(1, 1, 1, 7)) == [[]]


def test_faces_smaller_or_less_sure_than_asked_for_are_left_out():
    assert len(find_faces(picture("group.png"), smallest=18)[0]) == 2
    assert find_faces(picture("group.png"), score=0.95) == [[]]


def test_bad_arguments_are_refused_and_a_run_can_be_stopped():
    with pytest.raises(FlowError, match="score must lie between 0 and 1; got 1"):
        find_faces(picture("group.png"), score=1)
    with pytest.raises(FlowError, match="smallest must be at least 4 pixels; got 2"):
        find_faces(picture("group.png"), smallest=2)
    with pytest.raises(Cancelled):
        find_faces(picture("group.png"), cancelled=lambda: True)
