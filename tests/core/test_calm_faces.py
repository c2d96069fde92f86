"""Faces of 24 to 120 pixels are drawn at a lower temperature than what is around, unless a temperature is given."""

from pathlib import Path

import pytest
import torch
from builders import build_upscaler
from torch import Tensor

from flowcore import save, upscale, upscale_video
from flowcore.batch.provenance import read as read_provenance
from flowcore.engine.runner import Runner, RunOptions
from flowcore.images.files import read
from flowcore.images.resize import resize
from flowcore.tasks import calm_faces
from flowcore.tasks.calm_faces import face_map, limit_within, lower_within
from flowcore.tasks.upscale import UpscaleSettings

from .commands import photograph, run

PICTURES = Path(__file__).parents[2] / "workflows" / "pictures"


def scene(side: int) -> Tensor:
    """A portrait of so many pixels in the middle of a gray picture, 192 pixels wide and 160 high."""
    portrait = read((PICTURES / "portrait-1.jpg").read_bytes(), "portrait").pixels
    picture = torch.full((1, 3, 160, 192), 0.5)
    top, left = (160 - side) // 2, (192 - side) // 2
    picture[..., top : top + side, left : left + side] = resize(portrait, side, side).clamp(0, 1)
    return picture


def mapped(picture: Tensor, notes: list[str] | None = None) -> Tensor | None:
    tell = [].append if notes is None else notes.append
    return face_map(Runner(None, RunOptions(notify=tell), ""), picture)


def no_search(*_: object, **_options: object) -> None:
    raise AssertionError("faces are looked for")


def test_a_face_is_mapped_with_a_soft_edge_and_counted():
    notes = list[str]()
    faces = mapped(scene(64), notes)
    assert faces is not None
    assert notes == ["1 face is kept calm: less is invented there."]
    assert faces.shape == (1, 1, 160, 192)
    assert faces[0, 0, 70:100, 88:104].min() == 1  # from the brows to the lips
    assert faces[0, 0, :40].max() == faces[0, 0, 130:].max() == faces[..., :50].max() == faces[..., 142:].max() == 0
    assert faces.diff(dim=-1).abs().max() < 0.3


def test_faces_that_are_smaller_or_larger_are_left_alone():
    assert mapped(scene(20)) is None
    assert mapped(scene(150)) is None


def test_a_face_is_calmer_than_around_it_by_default_and_the_rest_stays():
    flow, picture, notes = build_upscaler(temperature=0.8, calm_edges=0.0), scene(64), list[str]()
    smooth = upscale(flow, picture, temperature=0.0)
    lively = upscale(flow, picture, seed=7, calm_faces=0.0)
    calm = upscale(flow, picture, seed=7, notify=notes.append)
    assert len(notes) == 1
    factor = calm.shape[-1] // picture.shape[-1]
    face = (..., slice(75 * factor, 95 * factor), slice(90 * factor, 102 * factor))
    assert (calm - smooth)[face].std() < 0.7 * (lively - smooth)[face].std()
    torch.testing.assert_close(calm[..., : 20 * factor, :], lively[..., : 20 * factor, :], atol=1e-4, rtol=0)
    torch.testing.assert_close(calm[face], upscale(flow, picture, seed=7, temperature=0.4)[face], atol=0.02, rtol=0)


def test_a_given_temperature_is_drawn_as_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calm_faces, "faces_of", no_search)
    flow, picture = build_upscaler(temperature=0.8), scene(64)
    upscale(flow, picture, temperature=0.8)
    with pytest.raises(AssertionError, match="faces are looked for"):
        upscale(flow, picture, temperature=0.8, calm_faces=0.5)


def test_nothing_is_searched_where_nothing_would_be_lowered_and_in_clips(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calm_faces, "faces_of", no_search)
    upscale(build_upscaler(temperature=0.4), scene(64))
    upscale_video(build_upscaler(temperature=0.8), scene(64)[..., 40:120, 60:140], steadiness=0.0)


def test_the_default_lowers_to_a_fixed_temperature_whatever_the_boldness():
    flow = build_upscaler(temperature=0.8, boldest_temperature=1.6)
    for given, share in (
        ({}, 0.5),
        ({"boldness": 1.0}, 0.75),
        ({"boldness": 0.2}, 0.0),
        ({"temperature": 0.8}, 0.0),
        ({"temperature": 0.8, "calm_faces": 0.3}, 0.3),
    ):
        assert UpscaleSettings(**given).resolved(flow).calm_faces == share


def test_the_command_line_records_it_and_names_only_a_given_one(tmp_path: Path):
    model, out = tmp_path / "own.safetensors", tmp_path / "out"
    save(build_upscaler(temperature=0.8, calm_edges=0.0), model)
    words = ["upscale", photograph(tmp_path / "photo.png", (10, 7)), "-o", out, "--model", model]
    for options, name, recorded in (
        ([], "photo_own_tau0.8_seed0.png", 0.5),
        (["--calm-faces", "0"], "photo_own_tau0.8_faces0_seed0.png", None),
        (["--temperature", "0.7", "--calm-faces", "0.2"], "photo_own_tau0.7_faces0.2_seed0.png", 0.2),
        (["--temperature", "0.7"], "photo_own_tau0.7_seed0.png", None),
        (["--temperature", "0.8"], "photo_own_tau0.8_faces0_seed0.png", None),  # not the default, which has calm faces
        (["--boldness", "0.5"], "photo_own_tau0.8_seed0.png", 0.5),  # the default, there already
        (["--boldness", "0.4"], "photo_own_tau0.64_faces0.375_seed0.png", 0.375),
    ):
        assert run(*words, *options) == 0
        (entry,) = read_provenance(out / name)
        assert entry.settings.get("calm_faces") == recorded
    assert run(*words, "--steadiness", "0.5", "--calm-faces", "0.2") == 2


def test_temperatures_of_levels_and_places_are_lowered():
    faces = torch.zeros(2, 1, 4, 4)
    faces[1, ..., 2:] = 1
    fine, coarse = lower_within([1.0, torch.full((1, 1, 2, 2), 0.6)], faces, 0.5)
    assert torch.equal(fine, 1 - 0.5 * faces)
    torch.testing.assert_close(coarse, 0.6 - 0.3 * faces)


def test_the_guide_is_limited_within_faces():
    faces = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert limit_within(0.2, faces, 0.3) == 0.2
    for strength in (0.9, torch.full((1, 1, 1, 1), 0.9)):
        limited = limit_within(strength, faces, 0.3)
        assert isinstance(limited, Tensor)
        assert torch.allclose(limited.flatten(), torch.tensor([0.9, 0.6, 0.3]))


def test_the_own_guide_of_a_model_is_weaker_within_faces_and_a_given_one_is_not(monkeypatch: pytest.MonkeyPatch):
    prepared, picture = list[object](), scene(64)

    def note(run, flow, rgb, strengths, *_, **__):
        prepared.extend(strengths)

    monkeypatch.setattr("flowcore.tasks.upscale.prepare_guide", note)
    flow = build_upscaler(temperature=0.8)
    upscale(flow, picture, guide_strength=0.9)
    upscale(flow, picture, guide_strength=0.9, guide=torch.rand(1, 3, 64, 64))
    own, given = prepared
    assert isinstance(own, Tensor)
    assert [round(float(own.aminmax()[k]), 3) for k in (0, 1)] == [0.3, 0.9]
    assert given == 0.9
