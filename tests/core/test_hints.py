"""Hints: made of strokes, points and palettes, laid over each other, and met by colorings, exactly where locked."""

import copy
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F

from flowcore import FlowError, Hints, ImageError, ShapeError, colorize, colorize_video, decode_colors, encode_colors
from flowcore.engine.progress import Cancelled
from flowcore.images import color
from flowcore.images.strokes import MAX_POINTS, Stroke, paint_colors, paint_mask, parse_strokes
from flowcore.models.model_file import read, save
from flowcore.tasks import chroma
from flowcore.tasks.hints import (
    HINT_WEIGHT,
    NEIGHBORS,
    combine_hints,
    hints_from_points,
    hints_from_strokes,
    minimize_energy,
    palette_from,
    parse_points,
    spread_hints,
)

from .colorings import (
    WANTED,
    chroma_of,
    colored,
    gray,
    hint_error,
    luma_error,
    middle,
    squares,
    tiny_colorizer,
    uniform_hints,
)

flow = pytest.fixture(scope="module")(tiny_colorizer)


def test_points_cover_discs_and_the_first_counts():
    hints = hints_from_points([(5, 3, "#ff0000"), (7.9, 3, (0, 0, 1.0))], (9, 12), radius=2)
    assert (hints.coverage.shape, hints.chroma.shape) == ((1, 1, 9, 12), (1, 2, 9, 12))
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(12), indexing="ij")
    first = (rows - 3) ** 2 + (columns - 5) ** 2 <= 4
    second = ((rows - 3) ** 2 + (columns - 7) ** 2 <= 4) & ~first
    assert (first.sum(), second.sum()) == (13, 8)
    assert torch.equal(hints.coverage[0, 0], (first | second).float())
    for disc, rgb in ((first, [1.0, 0, 0]), (second, [0, 0, 1.0])):
        wanted = chroma_of(torch.tensor(rgb)[None, :, None, None])[0, :, :, 0]
        assert (hints.chroma[0, :, disc] - wanted).abs().max() < 1e-6
    assert not hints.lock
    assert hints_from_points([], (4, 4), lock=True).lock
    single = hints_from_points([(11, 8, "#fff")], (9, 12), radius=0).coverage[0, 0]
    assert single.nonzero().tolist() == [[8, 11]]
    assert hints_from_points([(6, 6, "#fff")], (40, 40)).coverage[0, 0, 6].sum() == 15  # radius 8, cut by the border


OUTSIDE = r"Hint 2 is at x .*, y .*, outside the image of 12x9 pixels. Move it inside"
INVALID_POINTS = [
    *(((*at, "#123456"), 8, ImageError, OUTSIDE) for at in [(12, 3), (-1, 3), (3, 9), (3, -0.5), (math.nan, 3)]),
    *(((1, 1, wrong), 8, ImageError, "Expected a color") for wrong in ["reddish", (0.1, 0.2), (0, 0, 1.5)]),
    ((1, 1, (0.1, 0.2, math.nan)), 8, ImageError, "Expected a color"),
    *(((1, 1, "#123456"), radius, FlowError, "radius") for radius in [-1, math.nan, math.inf]),
]


def test_invalid_points_are_refused():
    for point, radius, error, words in INVALID_POINTS:
        with pytest.raises(error, match=words):
            hints_from_points([(0, 0, "#123456"), point], (9, 12), radius=radius)


def test_strokes_are_where_the_mask_is_or_where_there_is_color():
    strokes = torch.full((2, 3, 8, 10), 0.4)
    strokes[0, :, 2:4, 3:7] = torch.tensor(WANTED)[:, None, None]
    strokes[1, :, 5, 5] = torch.tensor([0.41, 0.4, 0.4])  # almost gray
    strokes[1, :, 7, 2] = torch.tensor([0.3, 0.5, 0.3])  # green: both parts of the chroma are negative
    hints = hints_from_strokes(strokes)
    expected = torch.zeros(2, 1, 8, 10)
    expected[0, :, 2:4, 3:7] = expected[1, :, 7, 2] = 1
    assert torch.equal(hints.coverage, expected)
    assert torch.equal(hints_from_strokes((strokes * 255).round().to(torch.uint8)).coverage, expected)
    mask = torch.zeros(1, 1, 8, 10)
    mask[..., :4, :] = 0.5
    masked = hints_from_strokes(strokes, mask, lock=True)
    assert torch.equal(masked.coverage, mask.expand(2, -1, -1, -1))
    assert (hints.lock, masked.lock) == (False, True)
    for made in (hints, masked):
        assert torch.equal(made.chroma, chroma_of(strokes))


def test_masks_of_another_size_are_resized():
    mask = torch.tensor([1.0, 1, 0, 0]).view(1, 1, 4, 1).expand(-1, -1, -1, 5)
    coverage = hints_from_strokes(colored(8, 10), mask).coverage
    expected = F.interpolate(mask, (8, 10), mode="nearest")
    assert ((coverage - expected).abs() < 0.01)[..., [0, 1, 2, 5, 6, 7], :].all()


def test_transparent_strokes_do_not_count():
    strokes = torch.cat([torch.tensor(WANTED)[None, :, None, None].expand(1, 3, 6, 6), torch.zeros(1, 1, 6, 6)], dim=1)
    strokes[:, 3, :2], strokes[:, 3, 2:4] = 1, 0.5
    assert hints_from_strokes(strokes).coverage[0, 0, :, 0].tolist() == [1, 1, 0.5, 0.5, 0, 0]
    assert hints_from_strokes(strokes, torch.ones(1, 1, 6, 6)).coverage.min() == 1


def test_resized_strokes_keep_their_color_up_to_the_edge():
    """Averaging with the unpainted surroundings would fade it."""
    strokes = torch.tensor([0.1, 0.9, 0.1])[None, :, None, None].repeat(1, 1, 16, 16)  # a color that is masked off
    strokes[..., 3:9, 3:9] = torch.tensor(WANTED)[None, :, None, None]
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:9, 3:9] = 1
    hints = hints_from_strokes(strokes, mask, size=(8, 6))
    assert (hints.coverage.shape, hints.chroma.shape) == ((1, 1, 8, 6), (1, 2, 8, 6))
    painted = hints.coverage[0, 0] > 0.02
    assert 4 <= painted.sum() < 24
    wanted = chroma_of(torch.tensor(WANTED)[None, :, None, None])[0, :, :, 0]
    assert (hints.chroma[0, :, painted] - wanted).abs().max() < 1e-5
    assert hints.coverage.mean() == pytest.approx(36 / 256, abs=0.02)


def test_strokes_and_masks_that_do_not_fit_are_refused():
    strokes = colored(8, 8, batch=2)
    with pytest.raises(ImageError, match="colors"):
        hints_from_strokes(strokes[:, :1])
    for mask in (torch.ones(3, 1, 8, 8), torch.ones(2, 2, 8, 8), torch.ones(8, 8), torch.full((1, 1, 8, 8), math.nan)):
        with pytest.raises(ImageError, match="mask"):
            hints_from_strokes(strokes, mask)


def test_points_are_read_from_lines_or_json():
    for text in (
        "120, 80, #c03020; 3.5,4, 8af",
        "\n120 80 #c03020\r\n\n3.5 4 8af ;",
        ' [[120, 80, "#c03020"], ["3.5", 4, "8af"]] ',
    ):
        assert parse_points(text) == [(120, 80, "#c03020"), (3.5, 4, "8af")]
    assert parse_points(" \n ; ") == parse_points("[]") == []


@pytest.mark.parametrize("text", ["120, 80; 3.5, 4, 8af", '[[120, 80], [3.5, 4, "8af"]]'])
def test_points_without_a_color_have_a_common_one(text):
    assert parse_points(text, "#c03020") == [(120, 80, "#c03020"), (3.5, 4, "8af")]


INVALID_LINES = ["1, 2, #fff\n3, #abc", "a, 2, #fff", "1, 2, #fff, 4", "1, 2"]
INVALID_JSON = ["[[1, 2]]", '[1, 2, "#fff"]', '[[1, 2, "#fff"]', '[["a", 2, "#fff"]]', "[[null, 1, 2]]"]


@pytest.mark.parametrize("text", INVALID_LINES + INVALID_JSON)
def test_invalid_points_in_text_are_refused(text):
    quoted = "" if text in INVALID_JSON else text.splitlines()[-1]
    with pytest.raises(FlowError, match=f"A point is `x, y, #rrggbb`.*got `{quoted}"):
        parse_points(text)


def test_palettes_are_made_of_colors_or_of_an_image():
    image = colored(6, 8, batch=2)
    assert torch.equal(palette_from(image=image), color.palette_from_chroma(chroma_of(image)))
    two = palette_from(["#ff0000", (0, 0, 1.0)])
    assert two.shape == (1, 4)
    pixels = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]).T[None, :, None]
    assert torch.allclose(two, color.palette_from_chroma(chroma_of(pixels)))
    assert torch.equal(palette_from(["#abc"], None), palette_from(colors=["#aabbcc"]))
    for arguments in ({}, {"colors": []}, {"colors": ["#fff"], "image": image}):
        with pytest.raises(FlowError, match="of colors or of an image"):
            palette_from(**arguments)
    with pytest.raises(ImageError, match="Expected a color"):
        palette_from(["reddish"])


def test_the_first_covering_hint_wins():
    over, under = uniform_hints(0, 0.3), uniform_hints(1, 0.1)
    over.coverage[..., :2], over.coverage[..., 0, 3] = 1, 0.5
    under.coverage[..., 3, :] = 0
    both = combine_hints(over, under)
    assert torch.equal(both.coverage[0, 0, 3], torch.tensor([1.0, 1, 0, 0]))
    assert torch.equal(both.coverage[0, 0, 1], torch.ones(4))
    assert torch.allclose(both.chroma[0, 1, 1], torch.tensor([0.3, 0.3, 0.1, 0.1]))
    assert both.chroma[0, 0, 0, 3] == pytest.approx(0.2)  # half covered
    third = combine_hints(None, over, None, under, uniform_hints(1, -0.4))
    assert torch.allclose(third.chroma[0, 1, 3], torch.tensor([0.3, 0.3, -0.4, -0.4]))
    half = combine_hints(uniform_hints(0.5, 0.2), uniform_hints(0, 0.0))  # over nothing: it does not fade
    assert torch.allclose(half.chroma, torch.full((1, 2, 4, 4), 0.2))
    assert torch.equal(half.coverage, torch.full((1, 1, 4, 4), 0.5))


def test_combining_keeps_palette_and_lock_and_needs_one_size():
    hint, locked = uniform_hints(1, 0.1), uniform_hints(1, 0.1, lock=True)
    assert combine_hints() is combine_hints(None, None) is None
    warm, cold = palette_from(["#ff8040"]), palette_from(["#4080ff"])
    both = combine_hints(Hints(palette=warm), uniform_hints(1, 0.1, palette=cold))
    assert torch.equal(both.palette, warm)
    assert torch.equal(both.coverage, torch.ones(1, 1, 4, 4))
    assert not both.lock
    assert torch.equal(combine_hints(hint, Hints(palette=cold)).palette, cold)
    assert combine_hints(hint, locked).lock
    with pytest.raises(ShapeError):
        combine_hints(hint, uniform_hints(1, 0.1, size=(6, 4)))


WITHOUT_SPREADING = [(colorize, {"hint_steps": 0}), (colorize_video, {})]


@pytest.mark.parametrize(("call", "options"), WITHOUT_SPREADING)
def test_the_encoder_reads_coverage_covered_chroma_and_palette(flow, call, options):
    """As ``luma`` describes them, in pixels of the working size."""
    hints = uniform_hints(0, 0.2, size=(64, 96), palette=palette_from(["#ff8040"]))
    hints.coverage[..., 8:24, 16:40] = 1
    hints.coverage[..., 40:, :] = 0.25
    image, seen = gray(64, 96, batch=2), []
    flow = copy.deepcopy(flow)  # a compiled flow copies its flow with its hooks, once
    flow.encoder.register_forward_pre_hook(lambda _, inputs: seen.append([t.clone() for t in inputs[:3]]))
    call(flow, image, hints=hints, **options)
    hinted = list(seen)
    call(flow, image[:1])
    expected = torch.zeros(1, 32, 48)
    expected[:, 4:12, 8:20], expected[:, 20:] = 1, 0.25
    inner = F.max_pool2d(expected, 3, 1, 1) == -F.max_pool2d(-expected, 3, 1, 1)
    for _, planes, palette in hinted:
        assert ((planes[:, :1] - expected) * inner).abs().max() < 1e-5
        assert (planes[:, 1:] - 0.2 * planes[:, :1]).abs().max() < 1e-5
        assert torch.allclose(palette, hints.palette.expand(len(planes), -1), atol=1e-5)
    _, planes, palette = seen[-1]
    assert planes.abs().max() == palette.abs().max() == 0


@pytest.mark.parametrize(("call", "options"), [(colorize, {"hint_steps": 2}), (colorize_video, {})])
def test_every_image_has_its_own_hints(flow, call, options):
    image = middle(batch=3)
    colors = [palette_from([c]) for c in ("#f84", "#48f", "#8f4")]
    own = [uniform_hints(k / 2, 0.03 * k, (32, 32), palette=palette) for k, palette in enumerate(colors)]
    many = Hints(**{name: torch.cat([getattr(h, name) for h in own]) for name in ("coverage", "chroma", "palette")})
    together = call(flow, image, hints=many, seed=1, **options)
    for k in range(3):
        alone = call(flow, image[k : k + 1], hints=own[k], seed=1, **options)
        assert (together[k] - alone[0]).abs().max() < 1e-4
    assert (together[0] - together[2]).abs().max() > 0.01


@pytest.mark.parametrize("lock", [False, True])
def test_one_mask_goes_with_many_colors_and_one_color_with_many_masks(flow, lock):
    image = middle(batch=2)
    few = uniform_hints(1, 0.04, (32, 32))
    masks, many = torch.cat([few.coverage, torch.zeros(1, 1, 32, 32)]), torch.cat([few.chroma, -few.chroma])
    for coverage, wanted in ((few.coverage, many), (masks, few.chroma)):
        together = colorize(flow, image, hints=Hints(coverage=coverage, chroma=wanted, lock=lock), hint_steps=0)
        pairs = zip(coverage.expand(2, -1, -1, -1).split(1), wanted.expand(2, -1, -1, -1).split(1), strict=True)
        for k, (own, its) in enumerate(pairs):
            alone = colorize(flow, image[k : k + 1], hints=Hints(coverage=own, chroma=its, lock=lock), hint_steps=0)
            assert (together[k] - alone[0]).abs().max() < 1e-5


def test_hints_that_do_not_fit_are_refused(flow):
    ones, zeros = torch.ones(1, 1, 8, 8), torch.zeros
    for call, hints in itertools.product(
        (colorize, colorize_video),
        (
            *(Hints(coverage=ones, chroma=planes) for planes in (None, zeros(2, 2, 8, 8), zeros(1, 2, 8, 9))),
            *(Hints(coverage=ones, chroma=zeros(1, 3, 8, 8)), Hints(palette=zeros(2, 4)), Hints(palette=zeros(1, 3))),
        ),
    ):
        with pytest.raises(ShapeError):
            call(flow, gray(batch=3), hints=hints)


def test_hints_are_met_and_seeds_still_differ_elsewhere(flow):
    image, hints = middle(), squares()
    free, followed = colorize(flow, image, samples=4), colorize(flow, image, samples=4, hints=hints)
    assert hint_error(followed, hints) < hint_error(free, hints) / 4
    vivid = colorize(tiny_colorizer(saturation=1.5), image, samples=4, hints=hints)
    assert hint_error(vivid, hints) < hint_error(free, hints) / 4  # its own factor is on what is drawn
    elsewhere = F.max_pool2d(hints.coverage, 9, 1, 4) == 0
    spread = [(chroma_of(result).std(0) * elsewhere).sum() / elsewhere.sum() for result in (free, followed)]
    assert spread[1] > spread[0] / 2
    nothing = uniform_hints(0, 0.1, (32, 32))
    assert torch.equal(*(colorize(flow, image, hints=nothing, hint_steps=steps) for steps in (0, 20)))


def two_things(height=12, width=16):
    """Features and luma of a left and a right thing, and a hint in the middle of the left one."""
    features, coverage = -torch.ones(1, 4, height, width), torch.zeros(1, 1, height, width)
    features[..., width // 2 :] = 1
    coverage[..., 5:7, 2:4] = 1
    return torch.full((1, 2, height, width), 0.1), coverage, features, 0.5 + 0 * coverage


def test_a_hint_fills_its_thing_and_stops_at_its_edge():
    added = spread_hints(*two_things(), 20)
    assert (added[..., 5:7, 2:4] - 0.1).abs().max() < 0.002
    assert added[..., :8].min() > 0.08
    assert added[..., 8:].abs().max() < 0.05
    missing, coverage, features, luma = two_things()
    luma[..., 8:] = 0.7  # an edge of luma, too
    assert spread_hints(missing, coverage, features, luma, 20)[..., 8:].abs().max() < 1e-4
    near = spread_hints(missing, coverage, features, luma, 3)
    assert near[..., 0, 7].max() < 0.07 < near[..., 5, 5].min() + 0.02


def cancelled():
    raise Cancelled("Stopped on request.")


def test_hints_stop_spreading_when_the_run_is_cancelled():
    with pytest.raises(Cancelled):
        spread_hints(*two_things(), 5.0, cancelled)


def test_what_is_continued_minimizes_the_energy():
    missing, coverage, features, luma = two_things()
    luma = luma + 0.02 * torch.randn(luma.shape, generator=torch.Generator().manual_seed(0))
    d = minimize_energy(missing, coverage, features, luma, 5.0, lambda: None).double().requires_grad_()
    energy = (HINT_WEIGHT * coverage * (d - missing).square()).sum() + d.square().sum() / 5.0**2
    for dy, dx in NEIGHBORS:
        here = [(slice(max(0, -k), side - max(0, k))) for k, side in ((dy, 12), (dx, 16))]
        there = [(slice(max(0, k), side - max(0, -k))) for k, side in ((dy, 12), (dx, 16))]
        f, y, own = (t[..., there[0], there[1]] - t[..., here[0], here[1]] for t in (features, luma, d))
        alike = torch.exp(-f.square().mean(1, keepdim=True) / 2 / 0.35**2 - y.square() / 2 / 0.03**2)
        energy = energy + (alike / (dy * dy + dx * dx) * own.square()).sum()
    energy.backward()
    assert d.grad.abs().max() < 1e-3


def test_hints_spread_in_inference_mode_with_a_model_loaded_in_it(flow, tmp_path):
    save(flow, tmp_path / "tiny.safetensors")
    expected = colorize(flow, middle(), hints=squares(lock=True), hint_steps=5)
    with torch.inference_mode():
        loaded = read(tmp_path / "tiny.safetensors")
        assert torch.equal(colorize(loaded, middle(), hints=squares(lock=True), hint_steps=5), expected)
    assert torch.equal(colorize(loaded, middle(), hints=squares(lock=True), hint_steps=5), expected)


POINTS = [(9, 12, WANTED), (40, 30, "#6d8079"), (55, 3, "#808078")]


@pytest.mark.parametrize(("saturation", "steps"), [(1.0, 5), (0.0, 5), (1.7, 0)])
def test_locked_points_are_met_at_every_covered_pixel(flow, saturation, steps):
    image = middle(40, 64, batch=2)
    hints = hints_from_points(POINTS, (40, 64), radius=4, lock=True)
    result = colorize(flow, image, hints=hints, hint_steps=steps, saturation=saturation, temperature=0.4, samples=2)
    frames = colorize_video(flow, image, hints=hints, saturation=saturation, chunk=1)
    free = colorize(flow, image, hints=Hints(coverage=hints.coverage, chroma=hints.chroma), hint_steps=0, samples=2)
    covered = hints.coverage > 0
    errors = [((chroma_of(pictures) - hints.chroma).abs() * covered).max() for pictures in (result, frames, free)]
    assert max(errors[:2]) < 1 / 255
    assert errors[2] > 10 / 255
    assert luma_error(result, image) <= 1e-6
    elsewhere = F.max_pool2d(hints.coverage, 5, 1, 2) == 0
    assert ((chroma_of(result).abs() * elsewhere).max() < 1e-6) == (saturation == 0)


def test_half_covered_pixels_are_not_locked(flow):
    half = uniform_hints(0.5, 0.3, (32, 32), lock=True)
    assert (chroma_of(colorize(flow, middle(), hints=half, hint_steps=0)) - 0.3).abs().mean() > 0.05


def test_locked_colors_reach_the_levels_below(flow, monkeypatch):
    """They are not only pasted at the end: the picture is decoded around them."""
    hints = squares()
    monkeypatch.setattr(chroma, "_lock", lambda chroma, *_: chroma)
    for call, options in WITHOUT_SPREADING:
        assert hint_error(call(flow, middle(), hints=squares(lock=True), **options), hints) < 0.01
    assert hint_error(colorize(flow, middle(), hints=hints, hint_steps=0), hints) > 0.03


def test_locks_fade_out_around_their_place():
    coverage = torch.zeros(1, 1, 256, 256)
    coverage[..., 100:140, 100:140] = 1
    row = chroma._lock(torch.zeros(1, 2, 256, 256), coverage, torch.full((1, 2, 256, 256), 0.1))[0, 1, 120]
    assert (row[100:140] == 0.1).all()
    assert row[96:100].tolist() == pytest.approx([0.1 / 9, 0.2 / 9, 0.3 / 9, 0.4 / 9])
    assert row[:95].abs().max() == row[145:].abs().max() == 0


def test_bounds_leave_the_most_colorful_pictures_alone(flow):
    """The corners of the RGB cube, whose chroma is as far out as chroma goes."""
    corners = torch.tensor([[i >> k & 1 for k in range(3)] for i in range(8)]).float()
    image = corners[torch.randperm(64) % 8].T.reshape(1, 3, 8, 8).repeat(1, 1, 1, 2)
    assert (decode_colors(flow, encode_colors(flow, image), image) - image).abs().max() < 1e-4


RED = (1.0, 0.0, 0.0)


def stroke(*points, size=0.2, **paint):
    return Stroke(points=points, size=size, **(paint or {"color": RED}))


def expected_coverage(way, radius, height, width):
    """Pixel by pixel: one minus what a soft edge of one pixel around the way leaves free."""
    result = torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            nearest = math.inf
            for (x, y), (u, v) in zip(way, way[1:] or way, strict=False):
                right, down, along = column + 0.5 - x, row + 0.5 - y, 0.0
                if (x, y) != (u, v):
                    along = (right * (u - x) + down * (v - y)) / ((u - x) ** 2 + (v - y) ** 2)
                along = min(1.0, max(0.0, along))
                nearest = min(nearest, math.hypot(right - along * (u - x), down - along * (v - y)))
            result[row, column] = min(1.0, max(0.0, radius + 0.5 - nearest))
    return result


@pytest.mark.parametrize(
    "shares", [[(0.5, 0.5)], [(0.1, 0.2), (0.9, 0.6)], [(0.2, 0.9), (0.5, 0.1), (0.5, 0.1), (1.2, 1)]]
)
def test_a_stroke_covers_what_lies_within_its_radius(shares):
    height, width, size = 13, 22, 0.3
    coverage, rgb = paint_colors([stroke(*shares, size=size)], (height, width))
    way = [(x * width, y * height) for x, y in shares]
    expected = expected_coverage(way, size * width / 2, height, width)
    assert (coverage[0, 0] - expected).abs().max() < 1e-5
    assert 0 < float(coverage.mean()) < 1
    assert torch.allclose(rgb[0, 0], (coverage[0, 0] > 0).float(), atol=1e-4)
    assert rgb[0, 1:].abs().max() == 0
    mask = paint_mask([stroke(*shares, size=size, amount=1.0)], (height, width))
    assert torch.equal(mask, coverage[0])


def test_strokes_lie_over_each_other_are_erased_and_may_be_outside_or_thin():
    whole, left = stroke((0.5, 0.5), size=2), stroke((0.0, 0.5), size=1, color=(0, 0, 1.0))
    coverage, rgb = paint_colors([whole, left], (8, 16))
    assert coverage.min() == 1
    assert rgb[0, :, 4, 1].tolist() == [0, 0, 1]
    assert rgb[0, :, 4, 14].tolist() == [1, 0, 0]
    coverage, rgb = paint_colors([whole, left, stroke((0, 0.5), size=0.5, color=None)], (8, 16))
    assert coverage[0, 0, 4, 0] == 0
    assert coverage[0, 0, 4, 8] == 1
    assert rgb[0, :, 4, 0].tolist() == [0, 0, 0]
    half = paint_mask(
        [stroke((0.5, 0.5), size=2, amount=0.5), stroke((0, 0.5), size=0.5, amount=None, color=None)], (8, 16), ground=1
    )
    assert half[0, 4, 0] == 1  # the ground again
    assert half[0, 4, 15] == 0.5
    outside = paint_colors([stroke((2.0, 2.0), (3, 3))], (9, 12))[0]
    assert outside.abs().max() == 0
    thin = paint_colors([stroke((0.5, 0.5), size=1e-6)], (9, 11))[0]
    assert thin.sum() == thin[0, 0, 4, 5] == 1
    assert paint_colors([], (4, 5))[0].sum() == 0


def test_text_is_read():
    read = parse_strokes(
        '[{"color": "#ff0000", "size": 0.05, "points": [[0.25, 0.5], [1, 0]]}, {"amount": 0.5, "size": 1, "points": '
        '[[0, 0]]}, {"erase": true, "size": 0.1, "points": [[0.5, 0.5]], "later": "ignored"}]'
    )
    assert read == [
        Stroke(points=((0.25, 0.5), (1.0, 0.0)), size=0.05, color=RED),
        Stroke(points=((0.0, 0.0),), size=1.0, amount=0.5),
        Stroke(points=((0.5, 0.5),), size=0.1),
    ]
    assert parse_strokes(" \n") == []


INVALID_STROKES = [
    *("red", "{}", "[" * 100_000, "[3]", '[{"color": "#fff", "size": 0.1}]'),
    *('[{"color": "#fff", "size": 0.1, "points": []}]', '[{"color": "#fff", "size": 0, "points": [[0, 0]]}]'),
    *('[{"color": "#fff", "size": 0.1, "points": [[0, NaN]]}]', '[{"size": 0.1, "points": [[0, 0]]}]'),
    '[{"color": "#fff", "amount": 1, "size": 0.1, "points": [[0, 0]]}]',
    '[{"amount": 2, "size": 0.1, "points": [[0, 0]]}]',
]


def test_invalid_strokes_are_refused():
    for text in INVALID_STROKES:
        with pytest.raises(FlowError, match="troke" if text.startswith("[{") else None):
            parse_strokes(text)


def test_what_does_not_fit_the_use_is_refused_and_painting_can_be_stopped():
    with pytest.raises(ImageError, match="#e0b080"):
        parse_strokes('[{"color": "red", "size": 0.1, "points": [[0, 0]]}]')
    with pytest.raises(FlowError, match=str(MAX_POINTS)):
        parse_strokes(json.dumps([{"erase": True, "size": 0.1, "points": [[0, 0]] * (MAX_POINTS + 1)}]))
    with pytest.raises(FlowError, match="Stroke 1 has an amount"):
        paint_colors([stroke((0, 0), amount=1.0)], (4, 4))
    with pytest.raises(FlowError, match="Stroke 2 has a color"):
        paint_mask([stroke((0, 0), amount=1.0), stroke((0, 0))], (4, 4))
    with pytest.raises(Cancelled):
        paint_mask([stroke((0, 0), (1, 1), amount=1.0)], (4, 4), cancelled=cancelled)
