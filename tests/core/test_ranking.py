"""Ranking samples: the map of their differences, the order of the best, the sheet that shows them."""

from __future__ import annotations

import pytest
import torch
from builders import build_upscaler, random_image

import flowcore
from flowcore.errors import FlowError, ShapeError
from flowcore.flow import Flow
from flowcore.images.contact_sheet import MAX_SIDE, contact_sheet
from flowcore.images.resize import enlarge
from flowcore.quality.metrics import diversity
from flowcore.tasks.ranking import diversity_map, ranked


@pytest.fixture(scope="module")
def flow() -> Flow:
    return build_upscaler()


def test_the_map_is_the_standard_deviation_and_its_mean_the_diversity() -> None:
    samples = torch.rand(5, 3, 6, 8)
    result = diversity_map(samples)
    assert result.shape == (1, 1, 6, 8)
    assert torch.allclose(result[0, 0], samples.std(0, correction=0).mean(0))
    assert float(result.mean()) * 255 == pytest.approx(diversity(samples))
    assert not diversity_map(samples[:1].repeat(4, 1, 1, 1)).any()


def test_maps_of_several_pictures_and_alpha_is_left_out() -> None:
    samples = torch.rand(6, 4, 5, 7)
    result = diversity_map(samples, 3)
    assert torch.equal(result, torch.cat([diversity_map(samples[:3, :3]), diversity_map(samples[3:, :3])]))


@pytest.mark.parametrize(("images", "samples"), [(1, 0), (4, 1), (4, 3), (2, 4)])
def test_a_map_needs_two_samples(images: int, samples: int) -> None:
    with pytest.raises(ShapeError, match="at least 2 samples"):
        diversity_map(torch.rand(images, 3, 4, 4), samples)


def test_the_most_consistent_come_first() -> None:
    source = torch.rand(2, 3, 6, 8) * 0.6 + 0.2
    good = enlarge(source, 4).clamp(0, 1)
    images = torch.stack([(good + shift).clamp(0, 1) for shift in (0.1, 0.0, 0.05)], 1).flatten(0, 1)
    scores, order = ranked(images, source)
    assert order.tolist() == [[1, 2, 0]] * 2
    assert (scores[:, 1] > scores[:, 2]).all()
    assert (scores[:, 2] > scores[:, 0]).all()


def test_equal_samples_keep_their_order() -> None:
    source = torch.rand(1, 3, 4, 4)
    assert ranked(enlarge(source, 2).clamp(0, 1).repeat(5, 1, 1, 1), source)[1].tolist() == [[0, 1, 2, 3, 4]]


def test_the_likeliest_come_first(flow: Flow) -> None:
    source = random_image(2, 3, 6, 8)
    kinds = [flowcore.upscale(flow, source, temperature=tau, seed=3) for tau in (0.9, 0.0, 0.5)]
    images, reports = torch.stack(kinds, 1).flatten(0, 1), list[tuple[int, int]]()
    scores, order = ranked(images, source, "likelihood", flow, progress=lambda d, t, p=None: reports.append((d, t)))
    assert order.tolist() == [[1, 2, 0]] * 2
    for k in range(2):
        cond = flow.encode_condition(source[k : k + 1])
        alone = flowcore.score(flow, images[3 * k : 3 * k + 3], cond).bits_per_dim
        assert torch.allclose(scores[k], alone.float())
    assert reports == sorted(reports)
    assert reports[-1][0] == reports[-1][1]


def test_invalid_arguments_raise_readable_errors(flow: Flow) -> None:
    source, images = torch.rand(1, 3, 4, 4), torch.rand(2, 3, 16, 16)
    for arguments, words in [
        ((images, source, "beauty"), "beauty"),
        ((images, source, "likelihood"), "got none"),
        ((images[..., :12], source, "likelihood", flow), "4 times as large"),
        ((torch.rand(2, 3, 12, 12), source[..., :3, :3], "likelihood", flow), "sides divisible by 2"),
        ((torch.rand(3, 3, 16, 16), source.repeat(2, 1, 1, 1)), "3 images for 2 sources"),
    ]:
        with pytest.raises(FlowError, match=words):
            ranked(*arguments)


# --- the sheet --------------------------------------------------------------------------------------------------------


def ink(sheet: torch.Tensor) -> torch.Tensor:
    return (sheet < 0.5).all(0)


def test_pictures_lie_in_rows_and_columns() -> None:
    colors = torch.linspace(0.2, 0.8, 6)
    pictures = colors.view(6, 1, 1, 1).expand(6, 3, 60, 90)
    sheet = contact_sheet(pictures, ["a", "b"], ["1", "2", "3"])
    there = [float(c) for c in colors if ((sheet - c).abs() < 0.003).all(0).sum() >= 60 * 90]
    assert there == pytest.approx(colors.tolist())
    first, last = (((sheet - c).abs() < 0.003).all(0).nonzero().float().mean(0) for c in (colors[0], colors[5]))
    assert (first < last).all()
    second = ((sheet - colors[1]).abs() < 0.003).all(0).nonzero().float().mean(0)
    assert second[0] == pytest.approx(float(first[0]), abs=1)  # the row from left to right
    assert second[1] > first[1]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 200), (200, 8), (64, 64), (500, 700)])
@pytest.mark.parametrize("columns", [1, 4, 40])
def test_no_label_runs_into_the_next_or_out_of_the_sheet(height: int, width: int, columns: int) -> None:
    labels = [f"temperature {k / 40:g}" for k in range(columns)]
    sheet = contact_sheet(torch.ones(2 * columns, 3, height, width), ["seed 18446744073709551615", "seed 0"], labels)
    dark = ink(sheet)
    assert not dark[:, -2:].any()
    assert not dark[-2:].any()
    assert dark.any()
    # In the line of the labels, a gap before every column but the first.
    line = dark[: dark.any(1).nonzero()[0] + 12]
    empty = (~line.any(0)).long()
    runs = torch.cat([torch.zeros(1), empty, torch.zeros(1)]).diff()
    gaps = (runs == -1).nonzero()[:, 0] - (runs == 1).nonzero()[:, 0]
    assert (gaps >= 4).sum() >= columns
    assert max(sheet.shape) <= MAX_SIDE + 60 * columns + 400


def test_large_pictures_are_shrunk_to_a_sheet_of_bounded_size() -> None:
    sheet = contact_sheet(torch.rand(8, 3, 30, 9000), ["x"] * 2, ["y"] * 4)
    assert sheet.shape[2] <= MAX_SIDE + 200


def test_every_picture_needs_a_label() -> None:
    with pytest.raises(ShapeError, match="2 x 2 images"):
        contact_sheet(torch.rand(3, 3, 8, 8), ["a", "b"], ["c", "d"])
