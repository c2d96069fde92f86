"""Clips: frames colored alike, with colors carried along, and enlarged steadily, by the motion between pictures."""

import pytest
import torch
from builders import build_upscaler, random_image

from flowcore import Cancelled, Hints, colorize, colorize_video, upscale, upscale_video
from flowcore.engine.compiled import compiled
from flowcore.images.color import NEUTRAL
from flowcore.images.motion import blur, estimate_motion, move, sample_at
from flowcore.tasks.hints import hints_from_points

from .colorings import WANTED, chroma_of, gray, middle, tiny_colorizer

TAU = 0.1  # at which samples of the small upscaler are as near to each other as those of trained ones at 1


flow = pytest.fixture(scope="module")(tiny_colorizer)


@pytest.fixture
def decoded(flow, monkeypatch):
    """What the compiled flow decodes between its levels, as a list of (level, before, after)."""
    seen = []
    fast = compiled(flow)
    inverse = fast.inverse

    def watched(z, cond, between):
        def both(level, x):
            seen.append((level, x, between(level, x)))
            return seen[-1][2]

        return inverse(z, cond, both)

    monkeypatch.setattr(fast, "inverse", watched)
    return seen


def cut(first=3, second=3):
    """Frames of one still picture, and then of another."""
    return torch.cat([gray(seed=0).expand(first, -1, -1, -1), gray(seed=1).expand(second, -1, -1, -1)])


def test_still_frames_do_not_flicker_and_are_the_picture_of_the_seed(flow):
    still = gray().expand(5, -1, -1, -1)
    for carry in (0.0, 0.6):
        frames = colorize_video(flow, still, seed=3, carry=carry, chunk=2)
        assert frames.shape == (5, 3, 40, 56)
        assert (frames - colorize(flow, gray(), seed=3)).abs().max() < 1e-5
    assert (frames - colorize_video(flow, still, seed=4)).abs().max() > 0.02
    moving = gray(batch=3)
    assert (colorize_video(flow, moving, seed=6) - colorize(flow, moving, seed=6)).abs().max() < 1e-5
    assert colorize_video(flow, moving[:1], seed=6, carry=0.5).shape == (1, 3, 40, 56)


def test_carrying_softens_a_cut_and_fades(flow):
    frames = cut()
    steps = []
    for carry in (0.0, 0.5, 0.9):
        chroma = chroma_of(colorize_video(flow, frames, carry=carry, seed=2))
        without_past = chroma_of(colorize_video(flow, frames[3:], carry=carry, seed=2))
        steps.append(float((chroma[3] - without_past[0]).square().mean().sqrt()))
        later = float((chroma[5] - without_past[2]).square().mean().sqrt())
        assert later <= steps[-1]
    assert steps[0] < 1e-5
    assert 5e-4 < steps[1] < steps[2]
    assert later < steps[2]


def test_the_coarsest_chroma_is_carried_as_a_running_mean(flow, decoded):
    frames, carry = torch.cat([middle(32, 48) + 0.1 * k for k in range(4)]), 0.7
    colorize_video(flow, frames, carry=carry, chunk=3)
    coarsest = len(flow.levels) - 1
    assert all(torch.equal(before, after) for level, before, after in decoded if level != coarsest)
    own, carried = (torch.cat([entry[k] for entry in decoded if entry[0] == coarsest]) for k in (1, 2))
    assert len(own) == 4
    mean = own[0]
    for x, changed in zip(own, carried, strict=True):
        mean = carry * mean + (1 - carry) * x
        assert (changed - mean).abs().max() < 1e-5


def test_locked_colors_are_not_carried_into_the_next_frame(flow, decoded):
    wanted = torch.tensor([0.05, -0.05])[:, None, None, None].repeat(1, 2, 32, 32)
    hints = Hints(coverage=torch.ones(2, 1, 32, 32), chroma=wanted, lock=True)
    colorize_video(flow, middle().expand(2, -1, -1, -1), carry=0.9, hints=hints)
    coarsest = flow.preprocess.inverse(decoded[0][2] / 2) - NEUTRAL
    assert (coarsest - wanted[..., :4, :4]).abs().max() < 1e-5


@pytest.mark.parametrize("carry", [0.0, 0.5])
def test_neither_chunks_nor_parts_change_the_result(flow, carry):
    frames = torch.cat([cut(3, 2), gray(batch=4, seed=4)])
    hints = hints_from_points([(20, 20, WANTED)], (40, 56), lock=True)
    expected = colorize_video(flow, frames, carry=carry, chunk=100, hints=hints)
    for chunk in (1, 2, 4, 8):
        assert (colorize_video(flow, frames, carry=carry, chunk=chunk, hints=hints) - expected).abs().max() < 1e-5
    before = []
    parts = [colorize_video(flow, part, carry=carry, hints=hints, before=before) for part in frames.split(4)]
    assert (torch.cat(parts) - expected).abs().max() < 1e-5


upscaler = pytest.fixture(scope="module")(build_upscaler)


def pan(frames=4, side=32, step=2, seed=0):
    """LR frames of a smooth picture that moves to the left by whole pixels."""
    picture = blur(random_image(1, 3, side, side + step * frames, seed=seed), 4)
    picture = (picture - picture.amin()) / (picture.amax() - picture.amin())
    return torch.cat([picture[..., step * t : step * t + side] for t in range(frames)])


def test_a_still_clip_stands_still(upscaler):
    still = pan(1).expand(4, -1, -1, -1)
    made = upscale_video(upscaler, still, seed=5, temperature=TAU)
    assert made.shape == (4, 3, 128, 128)
    assert (made[:1] - upscale(upscaler, still[:1], seed=5, temperature=TAU)).abs().max() < 1e-5
    assert (made - made[:1]).abs().max() < 1 / 255


def test_steadiness_0_draws_every_frame_alone(upscaler):
    still = pan(1).expand(2, -1, -1, -1)
    made = upscale_video(upscaler, still, seed=5, steadiness=0)
    alone = torch.cat([upscale(upscaler, still[:1], seed=seed) for seed in (5, 6)])
    assert (made - alone).abs().max() < 1e-5


def test_detail_moves_with_the_picture(upscaler):
    frames = pan(step=2)

    def unsteadiness(made):
        return (made[1:, ..., 16:-24] - made[:-1, ..., 24:-16]).square().mean().sqrt()

    steady = unsteadiness(upscale_video(upscaler, frames, temperature=TAU, steadiness=0.95))
    one_seed = unsteadiness(torch.cat([upscale(upscaler, frame, temperature=TAU) for frame in frames.split(1)]))
    assert one_seed > 4 / 255
    assert steady < 0.5 * one_seed


def test_a_cut_is_not_dragged_along(upscaler):
    first, second = pan(2), 1 - pan(2, seed=1)
    made = upscale_video(upscaler, torch.cat([first, second]), seed=3, temperature=TAU)
    assert (made[2:3] - upscale(upscaler, second[:1], seed=5, temperature=TAU)).abs().max() < 1e-5


def test_uncovered_areas_are_redrawn(upscaler):
    frames = pan(2, step=0)
    frames[0, :, 16:26, 16:26] = 0
    made = upscale_video(upscaler, frames, seed=3, temperature=TAU)
    alone = upscale(upscaler, frames[1:], seed=4, temperature=TAU)
    middle = (..., slice(76, 92), slice(76, 92))
    assert (made[1:] - alone)[middle].abs().mean() < 0.5 / 255
    assert (made[1:] - alone)[..., :32].abs().mean() > 2 / 255


def test_parts_of_a_clip_give_the_clip(upscaler):
    frames = pan(5)
    expected = upscale_video(upscaler, frames, seed=2, temperature=TAU)
    before = []
    parts = [upscale_video(upscaler, part, seed=2, temperature=TAU, before=before) for part in frames.split(2)]
    assert torch.equal(torch.cat(parts), expected)
    assert (upscale_video(upscaler, frames, seed=2, temperature=TAU, tile=32) - expected).abs().max() < 1 / 255


def texture(height=90, width=75, seed=0):
    picture = sum(
        window * blur(random_image(1, 3, height, width, seed=seed + window), window) for window in (5, 15, 45)
    )
    return (picture - picture.amin()) / (picture.amax() - picture.amin())


def motion_of(height, width, right, down, growth=0.0):
    y, x = torch.meshgrid(torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij")
    return torch.stack([right + growth * x, down + growth * y])[None]


@pytest.mark.parametrize(("right", "down", "growth"), [(3.0, -2.0, 0.0), (-11.4, 7.3, 0.0), (0.6, 0.3, 0.03)])
def test_known_motion_is_recovered(right, down, growth):
    other = texture()
    true = motion_of(90, 75, right, down, growth)
    found = estimate_motion(move(other, true), other)
    assert (found - true)[..., 16:-16, 16:-16].norm(dim=1).mean() < 0.1


def test_between_equal_pictures_nothing_moves_even_where_they_are_flat():
    picture = texture()
    picture[..., 30:] = 0.5
    assert estimate_motion(picture, picture).abs().max() < 1e-4


def test_a_clip_can_be_cancelled_while_motion_is_estimated(upscaler, monkeypatch):
    begun = []
    name = "flowcore.tasks.video.estimate_motion"
    monkeypatch.setattr(name, lambda *given: begun.append(True) or estimate_motion(*given))
    with pytest.raises(Cancelled):
        upscale_video(upscaler, pan(2), cancelled=lambda: bool(begun))
    assert len(begun) == 1


def test_moving_by_whole_pixels_copies_and_by_fractions_does_not_blur():
    picture = texture()
    assert (move(picture, motion_of(90, 75, 4.0, -3.0))[..., 3:, :-4] - picture[..., :-3, 4:]).abs().max() < 1e-6
    half = motion_of(90, 75, 0.5, 0.5)
    inner = (..., slice(8, -8), slice(8, -8))
    back = move(move(picture, half), -half)
    bilinear = sample_at(sample_at(picture, half), -half)
    assert (back - picture)[inner].abs().mean() < 0.2 * (bilinear - picture)[inner].abs().mean()
