"""Clips: frames colored alike, with colors carried along, whatever is decoded at once."""

import pytest
import torch

from flowcore import Hints, colorize, colorize_video
from flowcore.images.color import NEUTRAL
from flowcore.inference.plan import planned
from flowcore.tasks.hints import hints_from_points

from .colorings import WANTED, chroma_of, gray, middle, tiny_colorizer


@pytest.fixture(scope="module")
def flow():
    return tiny_colorizer()


@pytest.fixture
def decoded(flow, monkeypatch):
    """What the plan decodes between its levels, as a list of (level, before, after)."""
    seen = []
    plan = planned(flow)
    inverse = plan.inverse

    def watched(z, cond, between):
        def both(level, x):
            seen.append((level, x, between(level, x)))
            return seen[-1][2]

        return inverse(z, cond, both)

    monkeypatch.setattr(plan, "inverse", watched)
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
    coarsest = flow.prelude.inverse(decoded[0][2] / 2) - NEUTRAL
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
