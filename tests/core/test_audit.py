"""Audit: what an enlargement contains that its small image does not support."""

from itertools import combinations

import pytest
import torch
from builders import build_upscaler

import flowcore
from flowcore import ShapeError, audit
from flowcore.images import files
from flowcore.images.resize import downsample, enlarge
from flowcore.tasks.audit import CALIBRATIONS

from .commands import run
from .golden_pictures import photo


@pytest.fixture(scope="module")
def flow():
    return flowcore.load("srflow-x4")


@pytest.fixture(scope="module")
def small():
    return photo(32, 40)


def test_what_was_painted_in_is_the_invention_and_the_largest_box(flow, small):
    calm = flowcore.upscale(flow, small, temperature=0.0, guide_strength=0.0)
    painted = calm.clone()
    generator = torch.Generator().manual_seed(2)
    stripes = 0.25 * torch.randn(1, 3, 24, 24, generator=generator)
    painted[..., 80:104, 112:136] = (painted[..., 80:104, 112:136] + stripes).clamp(0, 1)
    before, after = audit(flow, calm, small), audit(flow, painted, small)
    assert float(before.invention.max()) < 1e-3
    assert before.outside.tolist() == [0]
    assert before.boxes == [[]]
    left, top, right, bottom = after.boxes[0][0]
    assert left < 124 < right
    assert top < 92 < bottom
    changed = (painted - calm).abs().mean(1, keepdim=True)
    assert torch.allclose(after.invention, changed, atol=1e-3)
    assert "at the bottom right" in after.sentences[0]
    assert after.bits_per_dim > before.bits_per_dim


def test_a_picture_that_contradicts_its_source_is_said_to(flow, small):
    plain = enlarge(small, 4).clamp(0, 1)
    darker = audit(flow, 0.8 * plain, small)
    assert "It contradicts the small image" in darker.sentences[0]
    corners = [(left, top) for left, top, _, _ in darker.boxes[0]]  # of squares of 20 pixels that do not overlap
    assert [max(abs(a - c), abs(b - d)) >= 20 for (a, b), (c, d) in combinations(corners, 2)] == [True] * 3
    assert float(darker.contradiction.mean()) == pytest.approx(0.2 * float(small.mean()), rel=0.1)
    assert "contradicts" not in audit(flow, flowcore.match_source(plain, small), small).sentences[0]


def test_samples_belong_to_their_source_and_other_sizes_are_resized(small):
    flow, told = build_upscaler(4), list[str]()
    sources = torch.cat([small[..., :8, :8], small[..., 8:16, 8:16]])
    pictures = enlarge(sources, 4).clamp(0, 1).repeat_interleave(2, 0)
    whole = audit(flow, pictures, sources, notify=told.append)
    assert whole.invention.shape == (4, 1, 32, 32)
    assert whole.contradiction.shape == (4, 1, 8, 8)
    alone = audit(flow, pictures[2:3], sources[1:], notify=told.append)
    assert torch.allclose(whole.invention[2:3], alone.invention, atol=1e-5)
    assert torch.equal(whole.outside[2:3], alone.outside)
    assert told == ["The band was not calibrated for this model, so it is a rough one."] * 2
    inverted = torch.zeros(1, 3, 24, 24)
    inverted[..., 16:, :] = 1
    other = audit(flow, inverted, sources[:1], notify=told.append)
    assert any("resized (bicubic) for the comparison" in line for line in told)
    assert other.invention.shape == (1, 1, 32, 32)
    assert other.boxes[0]
    for left, top, right, bottom in other.boxes[0]:  # 16 of 32 pixels either way, in the picture's own
        assert 0 <= left < right <= 24
        assert 0 <= top < bottom <= 24
        assert (right - left, bottom - top) == (12, 12)


def test_band_and_bits_are_compared_with_samples_of_the_model(flow, small):
    settings, told = {"calm_edges": 0.0, "guide_strength": 0.0}, list[str]()
    likely = flowcore.upscale(flow, small, temperature=0.0, **settings)
    samples = flowcore.upscale(flow, small, temperature=1.0, samples=6, **settings)
    found = audit(flow, torch.cat([enlarge(small, 4).clamp(0, 1), samples[:1], likely]), small, notify=told.append)
    rms = (samples - likely).square().mean((0, 1)).sqrt()
    expected = CALIBRATIONS["fc3484189a1a"].quantile * (
        rms[60:67, 70:77].mean() + 1 / 255
    )  # the window around (63, 73)
    assert float(found.band[0, 0, 63, 73]) == pytest.approx(float(expected), rel=1e-3)
    assert told == []
    own, bits = found.own_bits_per_dim.tolist(), found.bits_per_dim.tolist()
    assert own == [pytest.approx(bits[1], abs=1e-3)] * 3
    assert min(abs(bits[1] - bits[0]), abs(bits[1] - bits[2])) > 0.05


def test_a_blur_is_called_smoother_and_the_truth_as_detailed_as_a_photograph(flow):
    truth = photo(128, 160)
    small = downsample(truth, 4)
    blur = enlarge(small, 4).clamp(0, 1)
    grain = (truth + 0.15 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    found = audit(flow, torch.cat([truth, blur, grain]), small)
    assert [line.split(":")[0] for line in found.sentences] == [
        "As detailed as a photograph",
        "Smoother than a photograph",
        "Harsher than a photograph",
    ]
    assert found.detail[1] < 0.2 < found.detail[0] < found.detail[2]


def test_what_cannot_be_audited_is_refused(small):
    with pytest.raises(ShapeError):
        audit(build_upscaler(4), small, small)


def test_the_command_writes_a_map_and_numbers(model, tmp_path, capsys):
    generator = torch.Generator().manual_seed(1)
    source = torch.rand(3, 12, 16, generator=generator)
    (tmp_path / "small.png").write_bytes(files.encode(source))
    (tmp_path / "large.png").write_bytes(files.encode(enlarge(source[None], 4)[0].clamp(0, 1)))
    words = ["audit", tmp_path / "large.png", tmp_path / "small.png", "--model", model]
    assert run(*words, "--map", tmp_path / "map.png", "--json") == 0
    assert '"outside":' in capsys.readouterr().out
    assert files.read((tmp_path / "map.png").read_bytes(), "map.png").pixels.shape == (1, 3, 48, 64)
    assert run(*words) == 0
    assert "Smoother than a photograph" in capsys.readouterr().out
