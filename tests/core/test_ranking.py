"""Ranking samples: the map of their differences, the order of the best, the sheet that shows them."""

import pytest
import torch
from builders import build_upscaler, random_image

import flowcore
from flowcore import FlowError, ShapeError, ranked
from flowcore.flows import likelihood
from flowcore.flows.prior import log_density
from flowcore.flows.transforms import Haar
from flowcore.images import color
from flowcore.images.contact_sheet import MAX_SIDE, contact_sheet
from flowcore.images.metrics import colorfulness, diversity
from flowcore.images.resize import enlarge
from flowcore.tasks.ranking import diversity_map

from .colorings import colorization, gray, tiny_colorizer

flow = pytest.fixture(scope="module")(build_upscaler)


def test_maps_are_standard_deviations_without_alpha_and_their_mean_the_diversity():
    samples = torch.rand(5, 3, 6, 8)
    result = diversity_map(samples)
    assert result.shape == (1, 1, 6, 8)
    assert torch.allclose(result[0, 0], samples.std(0, correction=0).mean(0))
    assert float(result.mean()) * 255 == pytest.approx(diversity(samples))
    assert not diversity_map(samples[:1].repeat(4, 1, 1, 1)).any()
    samples = torch.rand(6, 4, 5, 7)
    result = diversity_map(samples, 3)
    assert torch.equal(result, torch.cat([diversity_map(samples[:3, :3]), diversity_map(samples[3:, :3])]))
    for images, samples in ((1, 0), (4, 1), (4, 3), (2, 4)):
        with pytest.raises(ShapeError):
            diversity_map(torch.rand(images, 3, 4, 4), samples)


def test_the_most_consistent_come_first_and_equal_ones_keep_their_order():
    source = torch.rand(2, 3, 6, 8) * 0.6 + 0.2
    good = enlarge(source, 4).clamp(0, 1)
    images = torch.stack([(good + shift).clamp(0, 1) for shift in (0.1, 0.0, 0.05)], 1).flatten(0, 1)
    scores, order = ranked(images, source)
    assert order.tolist() == [[1, 2, 0]] * 2
    assert (scores[:, 1] > scores[:, 2]).all()
    assert (scores[:, 2] > scores[:, 0]).all()
    source, said = torch.rand(1, 3, 4, 4), []
    level = enlarge(source, 2).clamp(0, 1).repeat(5, 1, 1, 1)
    assert ranked(level, source, notify=said.append)[1].tolist() == [[0, 1, 2, 3, 4]]
    assert said == ["The samples are level: their consistency differs by 0 dB. Choose likelihood, or by eye."]


def test_no_flow_may_be_passed_as_none():
    source, samples = torch.rand(1, 3, 6, 8), torch.rand(2, 3, 24, 32)
    assert torch.equal(ranked(samples, source, "consistency", None)[0], ranked(samples, source)[0])
    with pytest.raises(FlowError, match="got a NoneType"):
        flowcore.sample(None, 1)


def test_the_likeliest_come_first(flow):
    source = random_image(2, 3, 6, 8)
    kinds = [flowcore.upscale(flow, source, temperature=tau, seed=3) for tau in (0.9, 0.0, 0.5)]
    images = torch.stack(kinds, 1).flatten(0, 1)
    scores, order = ranked(images, source, "likelihood", flow)
    assert order.tolist() == [[1, 2, 0]] * 2
    for k in range(2):
        cond = flow.encode_condition(source[k : k + 1])
        alone = flowcore.score(flow, images[3 * k : 3 * k + 3], cond).bits_per_dim
        assert torch.allclose(scores[k], alone.float())


def test_invalid_arguments_raise_readable_errors(flow):
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


def test_pictures_lie_in_rows_and_columns():
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


@pytest.mark.parametrize(
    ("height", "width", "columns"), [(1, 1, 1), (1, 1, 40), (8, 200, 4), (200, 8, 40), (500, 700, 4)]
)
def test_no_label_runs_into_the_next_or_out_of_the_sheet(height, width, columns):
    labels = [f"temperature {k / 40:g}" for k in range(columns)]
    sheet = contact_sheet(torch.ones(2 * columns, 3, height, width), ["seed 18446744073709551615", "seed 0"], labels)
    dark = (sheet < 0.5).all(0)
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


def test_large_pictures_are_shrunk_to_a_sheet_of_bounded_size():
    sheet = contact_sheet(torch.rand(8, 3, 30, 9000), ["x"] * 2, ["y"] * 4)
    assert sheet.shape[2] <= MAX_SIDE + 200
    with pytest.raises(ShapeError):
        contact_sheet(torch.rand(3, 3, 8, 8), ["a", "b"], ["c", "d"])


colorizer = pytest.fixture(scope="module")(tiny_colorizer)


def tinted(chroma: list[tuple[float, float]], y: torch.Tensor) -> torch.Tensor:
    """Colorings of a photograph, each in one color."""
    planes = [torch.tensor(c).view(1, 2, 1, 1).expand(1, 2, *y.shape[2:]) for c in chroma]
    return color.compress(y.expand(len(planes), -1, -1, -1), torch.cat(planes))


def test_the_coloring_nearest_to_the_others_comes_first():
    y = torch.full((1, 1, 20, 30), 0.5)
    warm = [(-0.05, 0.05), (-0.045, 0.055), (-0.05, 0.045)]
    scores, order = ranked(tinted([(0.06, -0.04), *warm, (0.05, 0.05)], y), y, "consensus")
    assert set(order[0, :3].tolist()) == {1, 2, 3}
    a, b = torch.tensor([0.06, -0.04]), torch.tensor([[*warm[0]], [*warm[1]], [*warm[2]], [0.05, 0.05]])
    expected = ((a - b).square().sum(1) / (a.norm() * b.norm(dim=1))).mean()
    assert float(scores[0, 0]) == pytest.approx(float(expected), rel=1e-4)


def test_consensus_is_the_same_for_calm_and_vivid_ones_and_defined_for_gray():
    y, base = (
        torch.full((1, 1, 24, 24), 0.5),
        0.1 * (torch.rand(5, 2, 24, 24, generator=torch.Generator().manual_seed(1)) - 0.5),
    )
    scores = [ranked(color.merge(y.expand(5, -1, -1, -1), base * s), y, "consensus")[0] for s in (0.5, 1.0, 2.0)]
    assert torch.allclose(scores[0], scores[1], rtol=1e-3)
    assert torch.allclose(scores[2], scores[1], rtol=1e-3)
    twice = torch.cat([base[:1] / 2, base[:1], base[:1] * 2])  # the middle one is nearest to both others
    order = ranked(color.merge(y.expand(3, -1, -1, -1), twice), y, "consensus")[1]
    assert order[0, 0] == 1
    y = random_image(2, 1, 9, 500)
    scores, order = ranked(y.repeat_interleave(3, 0), y, "consensus")
    assert scores.tolist() == [[0, 0, 0]] * 2
    assert order.tolist() == [[0, 1, 2]] * 2
    assert ranked(tinted([(0.1, 0.1)], y[:1]), y[:1], "consensus")[0].tolist() == [[0]]


def test_likelihood_of_colorings_is_that_of_the_coarsest_grid(colorizer):
    y = gray(32, 48)
    images = flowcore.colorize(colorizer, y, samples=3, seed=4)  # too few for a trend
    scores = ranked(images, y, "likelihood", colorizer)[0]
    job = colorization(colorizer, y, notes=False)
    chroma = torch.cat([job.chroma_on_grid(one, slice(0, 1)) for one in images.split(1)])
    strength = chroma.square().sum(1).mean((1, 2)).sqrt()
    chroma = chroma * (strength.median() / strength)[:, None, None, None]
    cond = colorizer.encode_condition(color.luma(y.expand(-1, 3, -1, -1)))
    x = colorizer.preprocess(chroma + color.NEUTRAL)[0]
    coarse = Haar()(x)[0][:, :2]  # two grids: the means of the finer one are the coarser one
    z, logdet = colorizer.levels[1].steps(Haar()(coarse)[0], cond.expand(3).at_level(1))
    log_prob = (logdet + log_density(z).flatten(1).sum(1)).double()
    size = z[0].numel()
    whitening = colorizer.preprocess(chroma)[1].double() * size / chroma[0].numel()
    bits = likelihood.bits_per_dim(log_prob + whitening, size, 1 / 255)
    assert torch.allclose(scores[0], bits.detach(), atol=1e-4)


def test_likelihood_of_colorings_is_not_their_colorfulness(colorizer):
    y = gray(32, 48, batch=2)
    images = flowcore.colorize(colorizer, y, samples=8, seed=1, temperature=1.5)
    reports = list[tuple[int, int]]()
    scores, order = ranked(images, y, "likelihood", colorizer, progress=lambda d, t, p=None: reports.append((d, t)))
    job = colorization(colorizer, y)
    chroma = [job.chroma_on_grid(images[k::8], slice(0, 2)) for k in range(8)]
    strength = torch.stack([colorfulness(c) for c in chroma], dim=1).log()
    for bits, logs in zip(scores, strength.double(), strict=True):
        assert abs(float(torch.corrcoef(torch.stack([bits, logs]))[0, 1])) < 1e-3
        assert float(bits.std()) > 1e-3
    assert order.tolist() == scores.argsort(1).tolist()
    assert reports[-1] == (18, 18)
    again = ranked(images[8:], y[1:], "likelihood", colorizer)[0]
    assert torch.allclose(again, scores[1:], atol=1e-4)


def test_colorings_of_a_single_grid_have_a_likelihood():
    y, flow = gray(32, 48), tiny_colorizer(structure="single")
    scores = ranked(flowcore.colorize(flow, y, samples=4), y, "likelihood", flow)[0]
    assert scores.isfinite().all()
    assert float(scores.std()) > 0


def test_rankings_that_do_not_fit_colorings_are_refused_or_noted(colorizer):
    y, images, notes = torch.rand(1, 1, 16, 16), torch.rand(2, 3, 16, 16), list[str]()
    for arguments in [(images[..., :12], y, "consensus"), (images[..., :12], y, "likelihood", colorizer)]:
        with pytest.raises(ShapeError):
            ranked(*arguments)
    with pytest.raises(FlowError, match="3 images for 2 sources"):
        ranked(torch.rand(3, 3, 8, 8), torch.rand(2, 3, 8, 8), "consensus")
    ranked(images, y, notify=notes.append)
    assert "consensus" in notes[0]
