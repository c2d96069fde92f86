"""The colorize task: many colourings, all of them on the picture's own luma, whatever its size; hints; latents; clips.

Most tests run on a tiny colorizer with random parameters: what they claim holds for every model.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import flowcore
from flowcore import (
    Cancelled,
    FlowError,
    Hints,
    ImageError,
    ShapeError,
    apply_chroma,
    colorize,
    colorize_video,
    decode_colors,
    encode_colors,
    transfer_palette,
)
from flowcore.checkpoints.file import read, save
from flowcore.images import color
from flowcore.images.color import NEUTRAL
from flowcore.inference.plan import planned
from flowcore.models import build, configure
from flowcore.prior import sample_latents
from flowcore.tasks import chroma as task
from flowcore.tasks import refine
from flowcore.tasks.chroma import schedule
from flowcore.tasks.colorize import memory_required
from flowcore.tasks.hints import combine_hints, hints_from_points, hints_from_strokes, palette_from, parse_points
from flowcore.tasks.refine import refine_latents
from flowcore.tasks.runner import Runner, RunOptions

from .laws import perturbed
from .photographs import photograph

TINY = {
    "steps": (1, 1),
    "hidden": (8, 8),
    "widths": (8, 8, 16),
    "merged": 8,
    "features": 4,
    "working_size": 32,
    "temperatures": (0.9, 0.3),
}
WANTED = (0.62, 0.5, 0.42)  # a mild colour that a middle grey has room for


def tiny(**fields):
    """All parameters random, the couplings' too; started on hinted photographs, so that the condition is heard."""
    torch.manual_seed(0)
    flow = perturbed(build("colorizer", configure("colorizer", {**TINY, **fields})), 0.1).eval()
    generator = torch.Generator().manual_seed(1)
    chroma = NEUTRAL + 0.05 * torch.randn(12, 2, 16, 16, generator=generator)
    hints = torch.cat([torch.ones(12, 1, 1, 1), 0.2 * torch.randn(12, 2, 1, 1, generator=generator)], dim=1)
    told = torch.cat([torch.ones(12, 1, 1, 1), 0.1 * torch.randn(12, 3, 1, 1, generator=generator)], dim=1)
    told[::2], hints = 0, hints.repeat(1, 1, 64, 64)
    hints[:8, :, 20:], hints[4:, :, :, :20] = 0, 0
    source = torch.cat([grey(64, 64, batch=12, seed=90), hints, told.expand(-1, -1, 64, 64)], dim=1)
    with torch.no_grad():
        flow.initialize(chroma, flow.encode_condition(source))
    return flow


@pytest.fixture(scope="module")
def flow():
    return tiny()


@pytest.fixture(scope="module")
def shipped():
    return flowcore.load("color-photos")


def picture(height=40, width=56, batch=1, seed=0):
    """Photographs in colour, (B, 3, H, W)."""
    arrays = [np.asarray(photograph(height, width, seed=seed + k)) for k in range(batch)]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def grey(height=40, width=56, batch=1, seed=0):
    """The luma of photographs, (B, 1, H, W)."""
    return color.luma(picture(height, width, batch, seed))


def middle(height=32, width=32, batch=1):
    """A middle grey with a little structure, which leaves room for colours."""
    return 0.5 + 0.04 * (grey(height, width, batch) - 0.5)


def chroma_of(pictures):
    return color.split(pictures[:, :3])[1]


def luma_error(result, image):
    repeats = len(result) // len(image)
    expected = image if image.shape[1] == 1 else color.luma(image[:, :3])
    return float((color.luma(result[:, :3]) - expected.repeat_interleave(repeats, 0)).abs().max())


def seen_by_encoder(flow, call):
    """What the encoder was given, call by call: luma, hints, palette."""
    seen = []
    hook = flow.encoder.register_forward_pre_hook(lambda _, inputs: seen.append([t.clone() for t in inputs]))
    try:
        call()
    finally:
        hook.remove()
    return seen


# --- luma -------------------------------------------------------------------------------------------------------------


def test_every_way_to_colour_keeps_luma(flow):
    """Black, white and strong colours included."""
    image = grey(44, 61, batch=2)
    image[:, :, :9, :9], image[:, :, 9:18, :9] = 0, 1
    strokes = hints_from_strokes(picture(44, 61, seed=5), torch.ones(1, 1, 44, 61), lock=True)
    latents = encode_colors(flow, picture(44, 61, seed=6))
    results = {
        "samples": colorize(flow, image, samples=3, temperature=2.0, detail=1.0),
        "saturation": colorize(flow, image, saturation=3.0),
        "hints": colorize(flow, image, hints=Hints(coverage=strokes.coverage, chroma=strokes.chroma), hint_steps=3),
        "lock": colorize(flow, image, hints=strokes, hint_steps=0, saturation=2.0),
        "video": colorize_video(flow, image, carry=0.5, saturation=2.0),
        "transfer": transfer_palette(flow, image, picture(30, 40), saturation=2.0),
        "decode": decode_colors(flow, latents, image, saturation=3.0),
        "apply": apply_chroma(image, picture(22, 90), saturation=3.0),
    }
    for way, result in results.items():
        assert luma_error(result, image) <= 1e-6, way
        assert 0 <= result.min() < result.max() <= 1, way
        assert chroma_of(result).abs().max() > 0.05, way


def test_the_luma_of_a_grey_8_bit_picture_survives_8_bits(flow):
    image = (grey(64, 48) * 255).round().to(torch.uint8)
    stored = (colorize(flow, image, samples=2, saturation=2.0) * 255).round().double()
    assert torch.equal(color.luma(stored).round(), image.double().expand(2, -1, -1, -1))


def test_clip_cuts_off_and_changes_luma(flow):
    image = grey()
    saturation = 4.0
    mild = chroma_of(colorize(flow, middle(40, 56), saturation=0.05)) / 0.05
    assert mild.abs().max() > 0.05  # the model does colour
    raw = chroma_of(colorize(flow, image, saturation=1e-3)) * 1e3
    result = colorize(flow, image, saturation=saturation, gamut="clip")
    inside = (color.merge(image, raw * saturation) - result).abs().amax(1, keepdim=True) < 1e-3
    assert inside.any()
    assert (~inside).any()
    assert luma_error(result, image) > 0.02
    assert 0 <= result.min() < result.max() <= 1


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_a_seed_is_a_picture_whatever_its_place(flow):
    image = grey(batch=2)
    many = colorize(flow, image, samples=10, seed=5)  # more than are decoded at once
    assert many.shape == (20, 3, 40, 56)
    assert torch.equal(many, colorize(flow, image, samples=10, seed=5))
    for number in range(2):
        for sample in range(10):
            alone = colorize(flow, image[number : number + 1], seed=5 + sample)
            assert (many[10 * number + sample] - alone[0]).abs().max() < 1e-5, (number, sample)
    distance = (many[:10, None] - many[None, :10]).abs().amax((2, 3, 4)) + torch.eye(10)
    assert distance.min() > 0.02


def test_hinted_seeds_are_pictures_whatever_their_place(flow):
    image = middle(batch=2)
    hints = hints_from_points([(9, 12, WANTED)], (32, 32), radius=6)
    many = colorize(flow, image, samples=9, seed=3, hints=hints, hint_steps=5)
    for number, sample in [(0, 8), (1, 0), (1, 8)]:
        alone = colorize(flow, image[number : number + 1], seed=3 + sample, hints=hints, hint_steps=5)
        assert (many[9 * number + sample] - alone[0]).abs().max() < 1e-4


def test_seeds_go_around_at_2_to_the_64_and_no_further(flow):
    image = middle()
    both = colorize(flow, image, seed=2**64 - 1, samples=2)
    assert (both[1:] - colorize(flow, image, seed=0)).abs().max() < 1e-5
    many = colorize(flow, image, seed=2**64 - 8, samples=9)
    assert (many[8:] - colorize(flow, image, seed=0)).abs().max() < 1e-5
    for seed in (-1, 2**64):
        with pytest.raises(FlowError, match="seed"):
            colorize(flow, image, seed=seed)
        with pytest.raises(FlowError, match="seed"):
            colorize_video(flow, image, seed=seed)


def test_without_temperature_the_seed_does_not_matter(flow):
    image = grey()
    one, two = (colorize(flow, image, temperature=0, detail=0, seed=seed) for seed in (1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, colorize(flow, image, temperature=0, detail=0.5, seed=1))
    assert not torch.equal(one, colorize(flow, image, temperature=0.5, detail=0, seed=1))


def test_temperatures_go_geometrically_from_detail_to_palette():
    assert schedule(1.0, 0.25, 3) == pytest.approx([0.25, 0.5, 1.0])
    assert schedule(0.7, 0.3, 2) == pytest.approx([0.3, 0.7])
    assert schedule(0.9, 0.0, 4) == pytest.approx([0, 0, 0, 0.9])
    assert schedule(0.0, 0.3, 3) == pytest.approx([0.3, 0, 0])
    assert schedule(0.8, 0.1, 1) == [0.8]


@pytest.mark.parametrize(
    ("arguments", "taus"), [({}, (0.9, 0.3)), ({"temperature": 0.5}, (0.5, 0.3)), ({"detail": 0.0}, (0.9, 0.0))]
)
def test_the_palette_has_the_coarsest_latents_and_the_model_knows_its_temperatures(flow, arguments, taus):
    image = middle(32, 48)
    drawn = sample_latents(flow.latent_shapes(8, 12), 1, [taus[1], taus[0]], seed=7)
    expected = decode_colors(flow, drawn, image)
    assert (colorize(flow, image, seed=7, **arguments) - expected).abs().max() < 1e-5
    assert (colorize_video(flow, image, seed=7, **arguments) - expected).abs().max() < 1e-5


# --- size -------------------------------------------------------------------------------------------------------------


def test_the_colours_do_not_depend_on_the_size_of_the_photograph(shipped):
    large = picture(1024, 1024, seed=2)
    small = F.avg_pool2d(large, 2)
    tall, short = (chroma_of(colorize(shipped, color.luma(image), seed=4, samples=2)) for image in (large, small))
    assert short.square().mean().sqrt() > 0.02  # colours at all
    assert (F.avg_pool2d(tall, 2) - short).abs().mean() < 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (7, 13), (97, 131), (32, 32), (3, 500), (300, 2)])
def test_any_size_is_coloured(flow, size):
    image = grey(*size, batch=2)
    result = colorize(flow, image, samples=2)
    assert result.shape == (4, 3, *size)
    assert result.isfinite().all()
    assert luma_error(result, image) <= 1e-6
    assert colorize_video(flow, image).shape == (2, 3, *size)
    latents = encode_colors(flow, picture(*size))
    assert decode_colors(flow, latents, image).shape == (2, 3, *size)


@pytest.mark.parametrize(
    ("size", "arguments", "working"),
    [
        ((64, 96), {}, (32, 48)),
        ((96, 64), {}, (48, 32)),
        ((16, 20), {}, (32, 40)),
        ((97, 131), {}, (32, 44)),  # 43.2, on the grid of 4 pixels
        ((64, 96), {"working_size": 64}, (64, 96)),
        ((50, 1000), {}, (8, 128)),  # 6.4: a strip is no longer than 4 times the working size
    ],
)
def test_luma_is_resized_to_the_working_size_and_continued_symmetrically(flow, size, arguments, working):
    image = grey(*size)
    for call in (colorize, colorize_video):
        ((luma, _, _),) = seen_by_encoder(flow, lambda call=call: call(flow, image, **arguments))
        small = F.interpolate(image, working, mode="bilinear", antialias=True)
        height, width = (-(-side // 16) * 16 for side in working)
        assert luma.shape == (1, 1, height, width)
        assert (luma[..., : working[0], : working[1]] - small).abs().max() < 1e-6
        right, below = min(width - working[1], working[1]), min(height - working[0], working[0])
        if right:
            beyond = luma[..., : working[0], working[1] : working[1] + right]
            assert (beyond - small[..., -right:].flip(-1)).abs().max() < 1e-6
        if below:
            beyond = luma[..., working[0] : working[0] + below, : working[1]]
            assert (beyond - small[..., -below:, :].flip(-2)).abs().max() < 1e-6


@pytest.mark.parametrize("size", [15, 4097, 0, -1, math.nan])
def test_working_sizes_that_make_no_sense_are_refused(flow, size):
    for call in (colorize, colorize_video):
        with pytest.raises(FlowError, match="working_size must lie between 16 and 4096"):
            call(flow, grey(), working_size=size)
    with pytest.raises(FlowError, match="working_size"):
        encode_colors(flow, picture(), working_size=size)


# --- saturation -------------------------------------------------------------------------------------------------------


def test_saturation_0_is_grey_and_chroma_grows_with_it(flow):
    image = middle(40, 56)
    none = colorize(flow, image, saturation=0)
    assert torch.equal(none[:, :1].expand(-1, 3, -1, -1), none)
    assert (none[:, :1] - image).abs().max() < 1e-6
    whole = chroma_of(colorize(flow, image))
    for call in (colorize, colorize_video):
        assert (chroma_of(call(flow, image, saturation=0.5)) - whole / 2).abs().max() < 1e-6
    assert whole.abs().max() > 0.05


def test_saturation_comes_before_the_gamut(flow):
    image = grey()
    raw = chroma_of(colorize(flow, middle(40, 56), saturation=0.1))
    assert raw.abs().max() > 0.005
    image = 0.04 + 0.1 * image  # hardly any room
    raw = chroma_of(colorize(flow, image, saturation=0.01)) * 100
    vivid = chroma_of(color.compress(image, raw))
    for saturation, gamut, fit in [
        (3.0, "compress", color.compress),
        (3.0, "clip", color.clip),
        (0.5, "compress", color.compress),
    ]:
        expected = fit(image, saturation * raw)
        assert (expected - color.merge(image, vivid * min(saturation, 1))).abs().max() > 0.02
        result = colorize(flow, image, saturation=saturation, gamut=gamut)
        assert (result - expected).abs().max() < 1e-3


# --- hints ------------------------------------------------------------------------------------------------------------


def test_points_cover_discs_and_the_first_counts():
    hints = hints_from_points([(5, 3, "#ff0000"), (7.9, 3, (0, 0, 1.0))], (9, 12), radius=2)
    assert hints.coverage.shape == (1, 1, 9, 12)
    assert hints.chroma.shape == (1, 2, 9, 12)
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(12), indexing="ij")
    first = (rows - 3) ** 2 + (columns - 5) ** 2 <= 4
    second = ((rows - 3) ** 2 + (columns - 7) ** 2 <= 4) & ~first
    assert first.sum() == 13
    assert second.sum() == 8
    assert torch.equal(hints.coverage[0, 0], (first | second).float())
    red, blue = (color.split(torch.tensor(c)[None, :, None, None])[1].flatten() for c in ([1.0, 0, 0], [0, 0, 1.0]))
    assert (hints.chroma[0, :, first] - red[:, None]).abs().max() < 1e-6
    assert (hints.chroma[0, :, second] - blue[:, None]).abs().max() < 1e-6
    assert not hints.lock
    assert hints_from_points([], (4, 4), lock=True).lock
    single = hints_from_points([(11, 8, "#fff")], (9, 12), radius=0).coverage[0, 0]
    assert single.nonzero().tolist() == [[8, 11]]
    assert hints_from_points([(6, 6, "#fff")], (40, 40)).coverage[0, 0, 6].sum() == 15  # radius 8, cut by the border


@pytest.mark.parametrize("point", [(12, 3), (-1, 3), (3, 9), (3, -0.5), (math.nan, 3)])
def test_a_point_outside_the_image_is_named(point):
    with pytest.raises(ImageError, match=r"Hint 2 is at x .*, y .*, outside the image of 12x9 pixels. Move it inside"):
        hints_from_points([(0, 0, "#123456"), (*point, "#123456")], (9, 12))


def test_points_of_no_colour_or_radius_are_refused():
    for colour in ("reddish", (0.1, 0.2), (0.1, 0.2, 1.5), (0.1, 0.2, math.nan)):
        with pytest.raises(ImageError, match="Expected a color"):
            hints_from_points([(1, 1, colour)], (4, 4))
    for radius in (-1, math.nan, math.inf):
        with pytest.raises(FlowError, match="radius"):
            hints_from_points([(1, 1, "#123456")], (4, 4), radius=radius)


def test_strokes_are_where_the_mask_is_or_where_there_is_colour():
    strokes = torch.full((2, 3, 8, 10), 0.4)
    strokes[0, :, 2:4, 3:7] = torch.tensor(WANTED)[:, None, None]
    strokes[1, :, 5, 5] = torch.tensor([0.41, 0.4, 0.4])  # hardly coloured
    strokes[1, :, 7, 2] = torch.tensor([0.3, 0.5, 0.3])  # green: both parts of the chroma are negative
    chroma = chroma_of(strokes)
    hints = hints_from_strokes(strokes)
    expected = torch.zeros(2, 1, 8, 10)
    expected[0, :, 2:4, 3:7] = expected[1, :, 7, 2] = 1
    assert torch.equal(hints.coverage, expected)
    assert torch.equal(hints.chroma, chroma)
    mask = torch.zeros(1, 1, 8, 10)
    mask[..., :4, :] = 0.5
    masked = hints_from_strokes(strokes, mask, lock=True)
    assert torch.equal(masked.coverage, mask.expand(2, -1, -1, -1))
    assert torch.equal(masked.chroma, chroma)
    assert masked.lock
    assert not hints.lock
    assert torch.equal(hints_from_strokes((strokes * 255).round().to(torch.uint8)).coverage, expected)


def test_a_mask_of_another_size_is_resized():
    mask = torch.zeros(1, 1, 4, 5)
    mask[..., :2, :] = 1
    coverage = hints_from_strokes(picture(8, 10), mask).coverage
    assert coverage.shape == (1, 1, 8, 10)
    assert (coverage[..., :3, :] > 0.99).all()
    assert (coverage[..., 5:, :] < 0.01).all()


def test_of_strokes_on_a_transparent_sheet_only_the_opaque_ones_count():
    strokes = torch.cat([torch.tensor(WANTED)[None, :, None, None].expand(1, 3, 6, 6), torch.zeros(1, 1, 6, 6)], dim=1)
    strokes[:, 3, :2], strokes[:, 3, 2:4] = 1, 0.5
    coverage = hints_from_strokes(strokes).coverage
    assert coverage[0, 0, :, 0].tolist() == [1, 1, 0.5, 0.5, 0, 0]
    assert hints_from_strokes(strokes, torch.ones(1, 1, 6, 6)).coverage.min() == 1


def test_resized_strokes_keep_their_colour_up_to_the_edge():
    """Averaging with the unpainted surroundings would fade it."""
    strokes = torch.tensor([0.1, 0.9, 0.1])[None, :, None, None].repeat(1, 1, 16, 16)  # a colour that is masked off
    strokes[..., 3:9, 3:9] = torch.tensor(WANTED)[None, :, None, None]
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:9, 3:9] = 1
    hints = hints_from_strokes(strokes, mask, size=(8, 6))
    assert hints.coverage.shape == (1, 1, 8, 6)
    assert hints.chroma.shape == (1, 2, 8, 6)
    painted = hints.coverage[0, 0] > 0.02
    assert 4 <= painted.sum() < 24
    wanted = chroma_of(torch.tensor(WANTED)[None, :, None, None])[0, :, :, 0]
    assert (hints.chroma[0, :, painted] - wanted).abs().max() < 1e-5
    assert hints.coverage.mean() == pytest.approx(36 / 256, abs=0.02)


def test_strokes_and_masks_that_do_not_fit_are_refused(flow):
    strokes = picture(8, 8, batch=2)
    with pytest.raises(ImageError, match="Strokes need colors"):
        hints_from_strokes(strokes[:, :1])
    for mask in (torch.ones(3, 1, 8, 8), torch.ones(2, 2, 8, 8), torch.ones(8, 8), torch.full((1, 1, 8, 8), math.nan)):
        with pytest.raises(ImageError, match=r"Expected a mask \(1 or 2, 1, h, w\) of finite numbers"):
            hints_from_strokes(strokes, mask)
    one_mask = hints_from_strokes(strokes, torch.ones(1, 1, 4, 4), size=(16, 16))
    assert colorize(flow, grey(batch=2), hints=one_mask, hint_steps=1).isfinite().all()


@pytest.mark.parametrize(
    "text",
    [
        "120, 80, #c03020\n 3.5,4, 8af\n",
        "120, 80, #c03020; 3.5,4, 8af",
        "\n120 80 #c03020\r\n\n3.5 4 8af ;",
        '[[120, 80, "#c03020"], [3.5, 4, "8af"]]',
        ' [[120, 80, "#c03020"], ["3.5", "4", "8af"]] ',
    ],
)
def test_points_are_read_from_lines_or_json(text):
    assert parse_points(text) == [(120, 80, "#c03020"), (3.5, 4, "8af")]
    assert parse_points(" \n ; ") == parse_points("[]") == []


@pytest.mark.parametrize("text", ["1, 2, #fff\n3, #abc", "a, 2, #fff", "1, 2, #fff, 4", "1, 2"])
def test_a_line_that_is_no_point_is_named(text):
    with pytest.raises(FlowError, match="A point is `x, y, #rrggbb`.*got `" + text.splitlines()[-1]):
        parse_points(text)


@pytest.mark.parametrize(
    "text", ["[[1, 2]]", '[1, 2, "#fff"]', '[[1, 2, "#fff"]', '[["a", 2, "#fff"]]', "[[null, 1, 2]]"]
)
def test_json_that_is_no_list_of_points_is_named(text):
    with pytest.raises(FlowError, match="Points as JSON are"):
        parse_points(text)


def test_a_palette_is_made_of_colours_or_of_an_image():
    image = picture(6, 8, batch=2)
    assert torch.equal(palette_from(image=image), color.palette_from_chroma(chroma_of(image)))
    two = palette_from(["#ff0000", (0, 0, 1.0)])
    pixels = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]).T[None, :, None]
    assert two.shape == (1, 4)
    assert torch.allclose(two, color.palette_from_chroma(chroma_of(pixels)))
    assert torch.equal(palette_from(["#abc"], None), palette_from(colors=["#aabbcc"]))
    for arguments in ({}, {"colors": []}, {"colors": ["#fff"], "image": image}):
        with pytest.raises(FlowError, match="of colors or of an image"):
            palette_from(**arguments)
    with pytest.raises(ImageError, match="Expected a color"):
        palette_from(["reddish"])


def colorization(flow, image, **options):
    """A coloring under way."""
    return task.Colorization(Runner(flow, RunOptions(), ""), flow, image, None, **options)


def plain(value, chroma, size=(4, 4), **fields):
    return Hints(
        coverage=torch.full((1, 1, *size), float(value)), chroma=torch.full((1, 2, *size), float(chroma)), **fields
    )


def test_of_combined_hints_the_first_that_covers_counts():
    over, under = plain(0, 0.3), plain(1, 0.1)
    over.coverage[..., :2], over.coverage[..., 0, 3] = 1, 0.5
    under.coverage[..., 3, :] = 0
    both = combine_hints(over, under)
    assert torch.equal(both.coverage[0, 0, 3], torch.tensor([1.0, 1, 0, 0]))
    assert torch.equal(both.coverage[0, 0, 1], torch.ones(4))
    assert torch.allclose(both.chroma[0, 1, 1], torch.tensor([0.3, 0.3, 0.1, 0.1]))
    assert both.chroma[0, 0, 0, 3] == pytest.approx(0.2)  # half covered
    third = combine_hints(None, over, None, under, plain(1, -0.4))
    assert torch.allclose(third.chroma[0, 1, 3], torch.tensor([0.3, 0.3, -0.4, -0.4]))


def test_half_covered_is_as_colourful_over_nothing():
    """A soft edge of strokes does not fade towards hints that are elsewhere."""
    both = combine_hints(plain(0.5, 0.2), plain(0, 0.0))
    assert torch.allclose(both.chroma, torch.full((1, 2, 4, 4), 0.2))
    assert torch.equal(both.coverage, torch.full((1, 1, 4, 4), 0.5))


def test_combining_keeps_palette_and_lock_and_needs_one_size():
    assert combine_hints() is None
    assert combine_hints(None, None) is None
    warm, cold = palette_from(["#ff8040"]), palette_from(["#4080ff"])
    told = combine_hints(Hints(palette=warm), plain(1, 0.1, palette=cold))
    assert torch.equal(told.palette, warm)
    assert torch.equal(told.coverage, torch.ones(1, 1, 4, 4))
    assert not told.lock
    assert torch.equal(combine_hints(plain(1, 0.1), Hints(palette=cold)).palette, cold)
    assert combine_hints(plain(1, 0.1), plain(1, 0.1, lock=True)).lock
    assert combine_hints(plain(1, 0.1, lock=True), None).lock
    assert combine_hints(plain(1, 0.1)).palette is None
    with pytest.raises(ShapeError, match=r"4x6 and 4x4 pixels do not go together"):
        combine_hints(plain(1, 0.1), plain(1, 0.1, size=(6, 4)))


def test_the_model_is_told_coverage_coloured_planes_and_the_palette(flow):
    """As ``networks.luma`` describes them, in pixels of the working size."""
    hints = plain(0, 0.2, size=(64, 96))
    hints.coverage[..., 8:24, 16:40] = 1
    hints.coverage[..., 40:, :] = 0.25
    image = grey(64, 96, batch=2)
    told = Hints(coverage=hints.coverage, chroma=hints.chroma, palette=palette_from(["#ff8040"]))
    for call in (colorize, colorize_video):
        seen = seen_by_encoder(flow, lambda call=call: call(flow, image, hints=told, **STILL[call]))
        for _, planes, wanted in seen:
            expected = torch.zeros(len(planes), 1, 32, 48)
            expected[..., 4:12, 8:20], expected[..., 20:, :] = 1, 0.25
            inner = torch.ones(32, 48, dtype=torch.bool)
            for edge in (4, 12, 20):
                inner[edge - 1 : edge + 1] = False
            for edge in (8, 20):
                inner[:, edge - 1 : edge + 1] = False
            assert ((planes[:, :1] - expected) * inner).abs().max() < 1e-5
            assert (planes[:, 1:] - 0.2 * planes[:, :1]).abs().max() < 1e-5
            assert torch.allclose(wanted, told.palette.expand(len(planes), -1), atol=1e-5)
    ((_, planes, wanted),) = seen_by_encoder(flow, lambda: colorize(flow, image[:1]))
    assert planes.abs().max() == wanted.abs().max() == 0


STILL = {colorize: {"hint_steps": 0}, colorize_video: {}}


@pytest.mark.parametrize("call", [colorize, colorize_video])
def test_every_image_has_hints_of_its_own(flow, call):
    image = middle(batch=3)
    many = Hints(
        coverage=torch.cat([plain(k / 2, 0, (32, 32)).coverage for k in range(3)]),
        chroma=torch.cat([plain(1, 0.03 * k, (32, 32)).chroma for k in range(3)]),
        palette=torch.cat([palette_from([c]) for c in ("#f84", "#48f", "#8f4")]),
    )
    arguments = {colorize: {"hint_steps": 2}, colorize_video: {}}[call]
    together = call(flow, image, hints=many, seed=1, **arguments)
    for k in range(3):
        own = Hints(coverage=many.coverage[k : k + 1], chroma=many.chroma[k : k + 1], palette=many.palette[k : k + 1])
        alone = call(flow, image[k : k + 1], hints=own, seed=1, **arguments)
        assert (together[k] - alone[0]).abs().max() < 1e-4
    assert (together[0] - together[2]).abs().max() > 0.01


@pytest.mark.parametrize("lock", [False, True])
def test_one_mask_goes_with_many_colours_and_one_colour_with_many_masks(flow, lock):
    image = middle(batch=2)
    few, many = plain(1, 0.04, (32, 32)), torch.cat([plain(1, c, (32, 32)).chroma for c in (0.04, -0.04)])
    masks = torch.cat([few.coverage, torch.zeros(1, 1, 32, 32)])
    for coverage, chroma in ((few.coverage, many), (masks, few.chroma)):
        together = colorize(flow, image, hints=Hints(coverage=coverage, chroma=chroma, lock=lock), hint_steps=0)
        for k in range(2):
            own = Hints(coverage=coverage.expand(2, -1, -1, -1)[k, None], chroma=chroma.expand(2, -1, -1, -1)[k, None])
            own = Hints(coverage=own.coverage, chroma=own.chroma, lock=lock)
            alone = colorize(flow, image[k : k + 1], hints=own, hint_steps=0)
            assert (together[k] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("hints", "sentence"),
    [
        (Hints(coverage=torch.ones(2, 1, 8, 8), chroma=torch.zeros(2, 2, 8, 8)), "hints for 1 or 3 images; got 2"),
        (Hints(coverage=torch.ones(1, 1, 8, 8), chroma=torch.zeros(2, 2, 8, 8)), "hints for 1 or 3 images; got 2"),
        (Hints(palette=torch.ones(2, 4)), "palettes for 1 or 3 images; got 2"),
        (Hints(palette=torch.ones(1, 3)), r"palette of shape \(B, 4\); got \(1, 3\)"),
        (Hints(coverage=torch.ones(1, 1, 8, 8)), "coverage and chroma"),
        (Hints(coverage=torch.ones(1, 1, 8, 8), chroma=torch.zeros(1, 2, 8, 9)), r"\(1, 1, 8, 8\) and \(1, 2, 8, 9\)"),
        (Hints(coverage=torch.ones(1, 1, 8, 8), chroma=torch.zeros(1, 3, 8, 8)), r"chroma \(B, 2, H, W\)"),
    ],
)
def test_hints_that_do_not_fit_are_refused(flow, hints, sentence):
    for call in (colorize, colorize_video):
        with pytest.raises(ShapeError, match=sentence):
            call(flow, grey(batch=3), hints=hints)


def at_hints(pictures, hints):
    """Root mean square distance to what was wanted, over cells of 4x4 pixels that are covered."""
    cells = F.adaptive_avg_pool2d(hints.coverage, 8) > 0.99
    assert cells.any()
    missed = F.avg_pool2d(chroma_of(pictures) - hints.chroma, 4)
    return float((missed.square().sum(1, keepdim=True) * cells).sum().div(len(pictures) * cells.sum()).sqrt())


def squares():
    """Two squares of 8x8 pixels to be painted; the rest is free."""
    wanted = chroma_of(torch.tensor([WANTED, (0.44, 0.5, 0.6)])[:, :, None, None])
    coverage, chroma = torch.zeros(1, 1, 32, 32), torch.zeros(1, 2, 32, 32)
    for corner, colour in zip((4, 20), wanted, strict=True):
        coverage[..., corner : corner + 8, corner : corner + 8] = 1
        chroma[..., corner : corner + 8, corner : corner + 8] = colour
    return Hints(coverage=coverage, chroma=chroma)


def test_refined_latents_meet_the_hints_and_seeds_still_differ_elsewhere(flow):
    image, hints = middle(), squares()
    free = colorize(flow, image, samples=4)
    told = colorize(flow, image, samples=4, hints=hints, hint_steps=0)
    few = colorize(flow, image, samples=4, hints=hints, hint_steps=4)
    refined = colorize(flow, image, samples=4, hints=hints)
    assert at_hints(refined, hints) < at_hints(free, hints) / 4
    assert at_hints(told, hints) > at_hints(free, hints) / 2  # this random model does not listen by itself
    assert at_hints(refined, hints) < at_hints(few, hints) < at_hints(told, hints)
    elsewhere = F.max_pool2d(hints.coverage, 9, 1, 4) == 0
    spread = [(chroma_of(result).std(0) * elsewhere).sum() / elsewhere.sum() for result in (free, refined)]
    assert spread[1] > spread[0] / 2


def test_refinement_leaves_latents_as_they_were_drawn_where_nothing_is_wanted(flow):
    image = middle()
    nothing = plain(0, 0.1, (32, 32))
    told = colorize(flow, image, hints=nothing, hint_steps=0)
    assert (colorize(flow, image, hints=nothing, hint_steps=10) - told).abs().max() < 1e-6


def test_refinement_stays_near_what_was_drawn(flow):
    """Weak hints and the pull towards what was drawn come to terms."""
    image = middle()
    drawn = colorize(flow, image, seed=3)
    coverage = torch.ones(1, 1, 32, 32)
    job = colorization(flow, image)
    wanted = job.hint_planes(Hints(coverage=0.01 * coverage, chroma=0 * chroma_of(drawn)), slice(0, 1))
    z = sample_latents(job.shapes, 1, job.temperatures(None, None), seed=3)
    with torch.no_grad():
        moved = refine_latents(job, z, job.condition(slice(0, 1), wanted), wanted, 100)
        cond = job.condition(slice(0, 1), wanted)
    leaves = [t.clone().requires_grad_() for t in moved]
    covered, chroma = wanted.pooled(job.grid)
    missed = (covered * (flow.inverse(leaves, cond) - NEUTRAL - chroma).square()).sum() / (2 * 0.01**2)
    pulled = sum((a - b).square().sum() / 2 for a, b in zip(leaves, z, strict=True))
    (missed + pulled).backward()
    for leaf, start in zip(leaves, z, strict=True):  # at the best compromise both forces cancel
        assert leaf.grad.norm() < 0.5 * (leaf - start).norm()


def test_refinement_touches_neither_parameters_nor_gradients(flow):
    flow = copy.deepcopy(flow)
    for parameter in flow.parameters():
        parameter.requires_grad_(True)
    before = copy.deepcopy(flow.state_dict())
    result = colorize(flow, middle(), hints=squares(), hint_steps=3)
    assert not result.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in flow.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in flow.parameters())
    assert all(parameter.is_leaf for parameter in flow.parameters())


def test_refinement_works_in_inference_mode_with_a_model_that_was_loaded_in_it(flow, tmp_path):
    """As the host does it."""
    save(flow, tmp_path / "tiny.safetensors")
    image, hints = middle(), squares()
    expected = colorize(flow, image, hints=hints, hint_steps=5, samples=2)
    with torch.inference_mode():
        assert torch.equal(colorize(flow, image.clone(), hints=hints, hint_steps=5, samples=2), expected)
        loaded = read(tmp_path / "tiny.safetensors")
        assert any(parameter.is_inference() for parameter in loaded.parameters())
        inside = Hints(coverage=hints.coverage.clone(), chroma=hints.chroma.clone(), lock=False)
        assert torch.equal(colorize(loaded, image.clone(), hints=inside, hint_steps=5, samples=2), expected)
        made = hints_from_points([(9, 9, WANTED)], (32, 32), lock=True)
        assert colorize(loaded, image.clone(), hints=made).isfinite().all()
        assert colorize_video(loaded, image.clone(), hints=made).isfinite().all()
    assert torch.equal(colorize(loaded, image, hints=hints, hint_steps=5, samples=2), expected)


POINTS = [(9, 12, WANTED), (40, 30, "#6d8079"), (55, 3, "#808078")]


@pytest.mark.parametrize("saturation", [1.0, 0.0, 1.7])
@pytest.mark.parametrize("steps", [0, 5])
def test_locked_points_are_met_at_every_covered_pixel(flow, saturation, steps):
    image = middle(40, 64, batch=2)
    hints = hints_from_points(POINTS, (40, 64), radius=4, lock=True)
    result = colorize(flow, image, hints=hints, hint_steps=steps, saturation=saturation, temperature=0.4, samples=2)
    covered = hints.coverage > 0
    assert ((chroma_of(result) - hints.chroma).abs() * covered).max() < 1 / 255
    assert luma_error(result, image) <= 1e-6
    elsewhere = F.max_pool2d(hints.coverage, 5, 1, 2) == 0
    assert ((chroma_of(result).abs() * elsewhere).max() < 1e-6) == (saturation == 0)
    free = colorize(flow, image, hints=Hints(coverage=hints.coverage, chroma=hints.chroma), hint_steps=0, samples=2)
    assert ((chroma_of(free) - hints.chroma).abs() * covered).max() > 10 / 255
    frames = colorize_video(flow, image, hints=hints, saturation=saturation, chunk=1)
    assert ((chroma_of(frames) - hints.chroma).abs() * covered).max() < 1 / 255


@pytest.mark.parametrize("size", [None, (24, 100)])
def test_locked_strokes_are_met_too_and_may_be_of_another_size(flow, size):
    strokes = torch.full((2, 3, 48, 50), 0.5)
    strokes[0, :, 10:30, 5:25] = torch.tensor(WANTED)[:, None, None]
    strokes[1, :, 20:40, 20:40] = torch.tensor([0.45, 0.5, 0.57])[:, None, None]
    hints = hints_from_strokes(strokes, size=size, lock=True)
    image = middle(48, 50, batch=2)
    result = chroma_of(colorize(flow, image, hints=hints, hint_steps=0, saturation=1.3, temperature=0.4))
    for k, (rows, columns) in enumerate([(slice(13, 27), slice(8, 22)), (slice(23, 37), slice(23, 37))]):
        wanted = chroma_of(strokes[k : k + 1, :, rows, columns])
        assert (result[k : k + 1, :, rows, columns] - wanted).abs().max() < 1 / 255


def test_a_half_covered_pixel_is_not_locked(flow):
    image = middle()
    half = plain(0.5, 0.3, (32, 32), lock=True)
    assert (chroma_of(colorize(flow, image, hints=half, hint_steps=0)) - 0.3).abs().mean() > 0.05


def test_lock_puts_the_colour_into_every_level_as_the_flow_sees_it_there(flow):
    """The means of a constant picture, whitened, by the transforms of the flow itself."""
    wanted = torch.tensor([0.05, -0.03])[None, :, None, None]
    hints = Hints(coverage=torch.zeros(1, 1, 32, 32), chroma=wanted.expand(1, 2, 32, 32), lock=True)
    hints.coverage[..., :16, 8:] = 1
    job = colorization(flow, middle())
    between = job.locking(job.hint_planes(hints, slice(0, 1)))
    x = flow.prelude((wanted + NEUTRAL).expand(1, 2, 8, 8))[0]
    for number, (side, right) in enumerate([(8, 2), (4, 1)]):
        given = torch.randn(1, 2, side, side)
        locked = between(number, given)
        assert (locked[..., : side // 2, right:] - x[..., : side // 2, right:]).abs().max() < 1e-4
        assert torch.equal(locked[..., side // 2 :, :], given[..., side // 2 :, :])
        assert torch.equal(locked[..., :right], given[..., :right])
        x = flow.levels[number].squeeze(x)[0][:, :2]
    assert job.locking(job.hint_planes(Hints(coverage=hints.coverage, chroma=hints.chroma), slice(0, 1))) is None
    assert job.locking(None) is None


def test_locked_colours_reach_the_levels_below(flow, monkeypatch):
    """Not only pasted at the end: the picture is decoded around them."""
    image, hints = middle(), squares()
    locked = Hints(coverage=hints.coverage, chroma=hints.chroma, lock=True)
    monkeypatch.setattr(task, "_lock", lambda chroma, *_: chroma)
    assert at_hints(colorize(flow, image, hints=locked, hint_steps=0), hints) < 0.01
    assert at_hints(colorize_video(flow, image, hints=locked), hints) < 0.01
    assert at_hints(colorize(flow, image, hints=hints, hint_steps=0), hints) > 0.03


def test_a_lock_fades_out_around_its_place():
    coverage = torch.zeros(1, 1, 256, 256)
    coverage[..., 100:140, 100:140] = 1
    row = task._lock(torch.zeros(1, 2, 256, 256), coverage, torch.full((1, 2, 256, 256), 0.1))[0, 1, 120]
    assert (row[100:140] == 0.1).all()
    assert row[96:100].tolist() == pytest.approx([0.1 / 9, 0.2 / 9, 0.3 / 9, 0.4 / 9])
    assert row[:95].abs().max() == row[145:].abs().max() == 0


def test_what_runs_away_ends_in_the_most_colourful_colours(flow):
    """Unlike anything it was trained on, a flow may leave all bounds: the picture stays finite, with its luma."""
    image = grey(batch=2)
    wild = [1e20 * (torch.rand(1, *shape) - 0.5) for shape in flow.latent_shapes(8, 12)]
    loud = copy.deepcopy(flow)
    with torch.no_grad():
        for name, parameter in loud.named_parameters():
            if name.endswith("last.weight"):
                parameter *= 30
    hints = Hints(coverage=torch.ones(1, 1, 8, 8), chroma=torch.full((1, 2, 8, 8), 0.5), palette=palette_from(["#f00"]))
    job = colorization(loud, image)
    with torch.no_grad():
        z = sample_latents(job.shapes, 2, 5.0)
        assert not job.decode(z, job.condition(slice(0, 2), job.hint_planes(hints, slice(0, 2)))).isfinite().all()
    for result in (
        decode_colors(flow, wild, image),
        decode_colors(flow, [z * math.inf for z in wild], image),
        colorize_video(flow, image, latents=wild, carry=0.5),
        colorize(loud, image, temperature=5.0, detail=5.0, hints=hints, hint_steps=3, samples=2),
        colorize_video(loud, image, temperature=5.0, hints=hints),
    ):
        assert result.isfinite().all()
        assert luma_error(result, image) <= 1e-6


def test_what_runs_away_in_one_place_keeps_no_hint_from_being_met(flow):
    image, free = middle(64, 64), plain(0, 0.05, (64, 64))
    free.coverage[..., 36:60, 4:28] = 1
    options = {"working_size": 64, "latents_levels": 0, "hints": free}
    wild = [z[:1] for z in encode_colors(flow, 0.4 + 0.2 * picture(64, 64), working_size=64)]
    wild[0][..., 0, 7] = 1e30  # in the opposite corner
    met, missed = (
        (chroma_of(colorize(flow, image, latents=wild, hint_steps=steps, **options)) - 0.05)[..., 40:56, 8:24]
        for steps in (20, 0)
    )
    assert met.square().mean() < missed.square().mean() / 6
    wild[0][..., 0, 7] = math.inf  # some gradients are no numbers then, which is no reason to lose all colour
    kept = chroma_of(colorize(flow, image, latents=wild, hint_steps=2, **options))[..., 40:56, 8:24]
    assert kept.std() > 0.01


def test_refinement_decodes_within_the_same_bounds_as_the_picture(flow, monkeypatch):
    numbers = []
    for module in (task, refine):
        monkeypatch.setattr(module, "clamp_level", lambda flow, level, x: (numbers.append(level), x)[1])
    colorize(flow, middle(), hints=squares(), hint_steps=3)
    assert numbers == 4 * [1, 0]


def test_bounds_leave_the_most_colourful_pictures_as_they_are(flow):
    """The corners of the cube, whose chroma is as far out as chroma goes."""
    corners = torch.tensor([[i >> k & 1 for k in range(3)] for i in range(8)]).float()
    image = corners[torch.randperm(64) % 8].T.reshape(1, 3, 8, 8).repeat(1, 1, 1, 2)
    assert (decode_colors(flow, encode_colors(flow, image), image) - image).abs().max() < 1e-4
    job = colorization(flow, image, encoding=True)
    x = flow.prelude(chroma_of(image) + NEUTRAL)[0]
    for number in range(2):
        assert torch.equal(job.clamp(number, x), x)
        back = flow.prelude.inverse(job.clamp(number, 3 * x) / 2**number) - NEUTRAL
        beyond = flow.prelude.inverse(3 * x / 2**number) - NEUTRAL
        assert (back - beyond.clamp(-0.501, 0.501)).abs().max() < 1e-5
        x = flow.levels[number].squeeze(x)[0][:, :2]


# --- latents ----------------------------------------------------------------------------------------------------------


def test_latents_of_a_picture_give_its_own_chroma_back(flow):
    image = picture(32, 48, batch=2)
    y, chroma = color.split(image)
    latents = encode_colors(flow, image)
    assert [tuple(z.shape) for z in latents] == [(2, 6, 4, 6), (2, 8, 2, 3)]
    small_y, small = (F.interpolate(t, (8, 12), mode="bilinear", antialias=True) for t in (y, chroma))
    expected = color.compress(y, color.enlarge_chroma(small, small_y, y))
    assert (decode_colors(flow, latents, image) - expected).abs().max() < 1e-4
    again = colorize(flow, image, latents=latents, latents_levels=0, seed=9, notify=lambda _: None)
    assert (again - expected).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (8, 11), (13, 8)])
def test_a_picture_on_the_grid_of_its_chroma_comes_back_whole(flow, size):
    """8 pixels are what a working size of 32 has; sides of 11 are padded on their way."""
    image = 0.3 + 0.4 * picture(*size)
    result = decode_colors(flow, encode_colors(flow, image), image)
    assert (result - image).abs().max() < 1e-4


def test_latents_are_those_of_the_flow_itself(flow):
    image = picture(32, 32)
    y, chroma = color.split(image)
    cond = flow.encode_condition(y)
    with torch.no_grad():
        expected = flow(F.interpolate(chroma, (8, 8), mode="bilinear", antialias=True) + NEUTRAL, cond)[0]
    for one, two in zip(encode_colors(flow, image), expected, strict=True):
        assert (one - two).abs().max() < 1e-4


def test_latents_of_alpha_and_8_bit_pictures_are_those_of_their_colours(flow):
    image = (picture() * 255).round() / 255
    expected = encode_colors(flow, image)
    for other in (torch.cat([image, torch.rand(1, 1, 40, 56)], dim=1), (image * 255).round().to(torch.uint8)):
        assert all(torch.equal(a, b) for a, b in zip(encode_colors(flow, other), expected, strict=True))
    for other in (image[:, :1], image[0], image[:0]):
        with pytest.raises(ImageError):
            encode_colors(flow, other)


@pytest.mark.parametrize(
    ("levels", "strength"), [(0, 0.0), (0, 1.0), (1, 1.0), (1, 0.25), (2, 0.25), (0, 0.25), (8, 0.25)]
)
@pytest.mark.parametrize("call", [colorize, colorize_video])
def test_latents_are_mixed_in_from_the_coarsest_level_on(flow, call, levels, strength):
    image = middle(32, 48)
    given = encode_colors(flow, picture(32, 48, seed=8))
    drawn = sample_latents(flow.latent_shapes(8, 12), 1, [0.3, 0.9], seed=7)
    mixed = [math.sqrt(strength) * a + math.sqrt(1 - strength) * b for a, b in zip(given, drawn, strict=True)]
    if levels == 1:
        mixed[0] = drawn[0]
    result = call(flow, image, latents=given, latents_strength=strength, latents_levels=levels, seed=7)
    assert (result - decode_colors(flow, mixed, image)).abs().max() < 1e-5
    if strength == 0:
        assert (result - call(flow, image, seed=7)).abs().max() < 1e-6


def test_by_default_two_levels_are_taken_over():
    flow = tiny(steps=(1, 1, 1), hidden=(8, 8, 8), widths=(8, 8, 8, 16))
    image = middle(32, 64)
    given = encode_colors(flow, picture(32, 64, seed=8))
    two, all_ = (colorize(flow, image, latents=given, latents_levels=n) for n in (2, 0))
    assert torch.equal(colorize(flow, image, latents=given), two)
    assert torch.equal(
        colorize_video(flow, image, latents=given), colorize_video(flow, image, latents=given, latents_levels=2)
    )
    assert torch.equal(transfer_palette(flow, image, picture(32, 64, seed=8)), two)
    assert (two - all_).abs().max() > 0.01


def test_latents_of_other_sizes_are_brought_to_the_grid_by_the_nearest_position(flow):
    image = middle(32, 48)
    given = encode_colors(flow, picture(100, 40, seed=8))
    nearest = [
        F.interpolate(z, shape[1:], mode="nearest") for z, shape in zip(given, flow.latent_shapes(8, 12), strict=True)
    ]
    assert [tuple(z.shape[2:]) for z in given] != [tuple(z.shape[2:]) for z in nearest]
    assert torch.equal(decode_colors(flow, given, image), decode_colors(flow, nearest, image))
    assert decode_colors(flow, given, middle(7, 90)).isfinite().all()


def test_every_image_takes_its_own_latents(flow):
    image = middle(32, 48, batch=2)
    given = encode_colors(flow, picture(32, 48, batch=2, seed=8))
    both = decode_colors(flow, given, image)
    for k in range(2):
        alone = decode_colors(flow, [z[k : k + 1] for z in given], image[k : k + 1])
        assert (both[k] - alone[0]).abs().max() < 1e-5
    one = decode_colors(flow, [z[:1] for z in given], image)
    assert (one[0] - both[0]).abs().max() < 1e-5
    assert (one[1] - both[1]).abs().max() > 0.01
    samples = colorize(flow, image, latents=given, latents_levels=1, samples=3)
    assert torch.allclose(samples[4], colorize(flow, image, latents=given, latents_levels=1, seed=1)[1], atol=1e-5)


def test_latents_that_do_not_fit_are_refused(flow):
    image = grey(batch=3)
    good = encode_colors(flow, picture())
    other = encode_colors(tiny(steps=(1, 1, 1), hidden=(8, 8, 8), widths=(8, 8, 8, 16)), picture())
    for latents in (other, good[::-1], good[:1], [], [z[0] for z in good]):
        with pytest.raises(ShapeError, match=r"Expected 2 levels of latents with 6, 8 channels.*Encode them with this"):
            decode_colors(flow, latents, image)
        with pytest.raises(ShapeError, match="Expected 2 levels of latents"):
            colorize_video(flow, image, latents=latents)
    with pytest.raises(ShapeError, match="latents for 1 or 3 images; got 2"):
        decode_colors(flow, [z.expand(2, -1, -1, -1) for z in good], image)
    with pytest.raises(ShapeError, match=r"as many items on every level; got \[3, 1\]"):
        decode_colors(flow, [good[0].expand(3, -1, -1, -1), good[1]], image)
    with pytest.raises(ShapeError, match="latents of 1 picture; got those of 3"):
        colorize_video(flow, image, latents=[z.expand(3, -1, -1, -1) for z in good])
    for call in (colorize, colorize_video):
        for strength in (-0.1, 1.1, math.nan):
            with pytest.raises(FlowError, match="latents_strength"):
                call(flow, image, latents=good, latents_strength=strength)
        with pytest.raises(FlowError, match="latents_levels"):
            call(flow, image, latents=good, latents_levels=-1)


def test_a_transfer_takes_the_coarse_latents_of_the_reference(flow):
    image, reference = middle(32, 48), picture(50, 30, seed=8)
    given = encode_colors(flow, reference, working_size=48)
    options = {"seed": 4, "samples": 2, "working_size": 48, "saturation": 0.8}
    for strength, levels in [(1.0, 2), (0.5, 1)]:
        result = transfer_palette(flow, image, reference, strength=strength, levels=levels, **options)
        expected = colorize(flow, image, latents=given, latents_strength=strength, latents_levels=levels, **options)
        assert torch.equal(result, expected)


def test_a_transfer_brings_the_colours_of_the_reference(shipped):
    """A photograph is tinted two ways; the colours of another move towards either."""
    image, seeds = grey(256, 256, seed=3), 4
    free = chroma_of(colorize(shipped, image, samples=seeds)).mean((2, 3))
    for tint in ((0.05, -0.08), (-0.06, 0.07)):
        y = 0.3 + 0.4 * grey(256, 256, seed=5)
        reference = color.compress(y, torch.tensor(tint)[None, :, None, None].expand(-1, -1, 256, 256))
        result = chroma_of(transfer_palette(shipped, image, reference, levels=3, samples=seeds)).mean((2, 3))
        # what the reference's latents mean on this luma
        meant = chroma_of(decode_colors(shipped, encode_colors(shipped, reference), image)).mean((2, 3))
        assert (result - meant).norm(dim=1).mean() < (free - meant).norm(dim=1).mean()


# --- clips ------------------------------------------------------------------------------------------------------------


def cut(first=3, second=3):
    """Frames of one still picture, and then of another."""
    return torch.cat([grey(seed=0).expand(first, -1, -1, -1), grey(seed=1).expand(second, -1, -1, -1)])


def test_still_frames_do_not_flicker_and_are_what_the_seed_means(flow):
    still = grey().expand(5, -1, -1, -1)
    for carry in (0.0, 0.6):
        frames = colorize_video(flow, still, seed=3, carry=carry, chunk=2)
        assert frames.shape == (5, 3, 40, 56)
        assert (frames - frames[:1]).abs().max() < 1e-5
        assert (frames[:1] - colorize(flow, grey(), seed=3)).abs().max() < 1e-5
    assert (frames - colorize_video(flow, still, seed=4)).abs().max() > 0.02


def test_what_is_carried_makes_a_cut_softer(flow):
    frames = cut()
    steps = []
    for carry in (0.0, 0.5, 0.9):
        chroma = chroma_of(colorize_video(flow, frames, carry=carry, seed=2))
        cut_off = chroma_of(colorize_video(flow, frames[3:], carry=carry, seed=2))  # without a past
        steps.append(float((chroma[3] - cut_off[0]).square().mean().sqrt()))
        later = float((chroma[5] - cut_off[2]).square().mean().sqrt())
        assert later <= steps[-1]  # and the past fades
    assert steps[0] < 1e-5
    assert 5e-4 < steps[1] < steps[2]
    assert later < steps[2]


def test_the_coarsest_chroma_is_carried_as_a_running_mean(flow, monkeypatch):
    """Seen between the levels, where it happens."""
    frames, carry = torch.cat([middle(32, 48) + 0.1 * k for k in range(4)]), 0.7
    seen = []
    plan = planned(flow)
    inverse = plan.inverse

    def watching(z, cond, between):
        def both(number, x):
            changed = between(number, x)
            if number == len(flow.levels) - 1:
                seen.extend(zip(x, changed, strict=True))
            else:
                assert torch.equal(changed, x)
            return changed

        return inverse(z, cond, both)

    monkeypatch.setattr(plan, "inverse", watching)
    colorize_video(flow, frames, carry=carry, chunk=3)
    mean = seen[0][0]
    assert len(seen) == 4
    for own, changed in seen:
        mean = carry * mean + (1 - carry) * own
        assert (changed - mean).abs().max() < 1e-5


def test_locked_colours_are_not_carried_into_the_next_frame(flow, monkeypatch):
    frames, seen = middle().expand(2, -1, -1, -1), []
    hints = Hints(
        coverage=torch.ones(2, 1, 32, 32),
        chroma=torch.tensor([0.05, -0.05])[:, None, None, None].repeat(1, 2, 32, 32),
        lock=True,
    )
    plan = planned(flow)
    inverse = plan.inverse

    def watching(z, cond, between):
        return inverse(z, cond, lambda number, x: seen.append(between(number, x)) or seen[-1])

    monkeypatch.setattr(plan, "inverse", watching)
    colorize_video(flow, frames, carry=0.9, hints=hints)
    coarsest = flow.prelude.inverse(seen[0] / 2) - NEUTRAL
    assert (coarsest - hints.chroma[..., :4, :4]).abs().max() < 1e-5


@pytest.mark.parametrize("carry", [0.0, 0.5])
def test_chunks_are_a_matter_of_memory_only(flow, carry):
    frames = torch.cat([cut(3, 2), grey(batch=4, seed=4)])
    hints = hints_from_points([(20, 20, WANTED)], (40, 56), lock=True)
    whole = colorize_video(flow, frames, carry=carry, chunk=100, hints=hints)
    for chunk in (1, 2, 4, 8):
        assert (colorize_video(flow, frames, carry=carry, chunk=chunk, hints=hints) - whole).abs().max() < 1e-5


def test_every_frame_has_the_same_latents_as_a_picture_with_that_seed(flow):
    frames = grey(batch=3)
    assert (colorize_video(flow, frames, seed=6) - colorize(flow, frames, seed=6)).abs().max() < 1e-5
    assert colorize_video(flow, frames[:1], seed=6, carry=0.5).shape == (1, 3, 40, 56)


@pytest.mark.parametrize(
    "arguments",
    [{"carry": 1.0}, {"carry": -0.1}, {"carry": math.nan}, {"chunk": 0}, {"saturation": -1.0}, {"detail": -1}],
)
def test_clips_refuse_what_is_out_of_range(flow, arguments):
    with pytest.raises(FlowError, match=next(iter(arguments))):
        colorize_video(flow, cut(), **arguments)


# --- input ------------------------------------------------------------------------------------------------------------


def test_layouts_precisions_and_ranges_of_the_input(flow):
    image = (grey() * 255).round() / 255
    expected = colorize(flow, image)
    assert expected.dtype == torch.float32
    assert torch.equal(colorize(flow, (image * 255).round().to(torch.uint8)), expected)
    assert torch.equal(colorize(flow, image.double()), expected)
    assert (colorize(flow, image.half()) - expected).abs().max() < 0.01
    assert colorize(flow, image.half()).dtype == torch.float32
    assert (colorize(flow, image.expand(-1, 3, -1, -1)) - expected).abs().max() < 1e-5
    strided = image.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert (colorize(flow, strided) - expected).abs().max() < 1e-5
    loud = image.clone()
    loud[0, 0, 0, :2] = torch.tensor([7.0, -3.0])
    assert torch.equal(colorize(flow, loud), colorize(flow, loud.clamp(0, 1)))
    assert loud[0, 0, 0, 0] == 7
    with torch.inference_mode():
        assert torch.equal(colorize(flow, image.clone()), expected)


def test_alpha_is_kept_exactly(flow):
    alpha = torch.rand(2, 1, 40, 56)
    image = torch.cat([grey(batch=2).expand(-1, 3, -1, -1), alpha], dim=1)
    for result in (
        colorize(flow, image, samples=2)[::2],
        colorize_video(flow, image, chunk=1),
        transfer_palette(flow, image, picture()),
        decode_colors(flow, encode_colors(flow, picture()), image),
        apply_chroma(image, picture(20, 80)),
    ):
        assert result.shape == (2, 4, 40, 56)
        assert torch.equal(result[:, 3:], alpha)
    assert torch.equal(colorize(flow, image, samples=2)[1::2, 3:], alpha)
    assert torch.equal(colorize(flow, image)[:, :3], colorize(flow, image[:, :3]))
    assert torch.equal(
        colorize(flow, (image * 255).to(torch.uint8))[:, 3:], (alpha * 255).to(torch.uint8).float() / 255
    )


def test_of_a_picture_in_colour_the_luma_counts_and_that_is_said(flow, caplog):
    image, said = picture(), []
    expected = colorize(flow, color.luma(image), notify=said.append)
    colorize(flow, color.luma(image).expand(-1, 3, -1, -1), notify=said.append)
    assert said == []
    result = colorize(flow, image, notify=said.append)
    assert said == ["The picture is in color: its luma is used, its colors are not."]
    assert (result - expected).abs().max() < 1e-5
    colorize_video(flow, image, notify=said.append)
    assert len(said) == 2
    assert not caplog.records
    colorize(flow, image)
    assert [record.getMessage() for record in caplog.records] == said[:1]
    caplog.clear()
    decode_colors(flow, encode_colors(flow, image), image)
    assert not caplog.records


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_stay_as_they_are(flow, value):
    blank = torch.full((1, 1, 33, 47), value)
    strong = hints_from_points([(9, 12, "#ff0000")], (33, 47), lock=True)
    for result in (
        colorize(flow, blank, saturation=3.0, hints=strong, hint_steps=2),
        colorize_video(flow, blank, carry=0.5),
        apply_chroma(blank, picture(20, 20)),
    ):
        assert (result - value).abs().max() < 1e-6
    flat = blank.expand(-1, 3, -1, -1)
    assert (decode_colors(flow, encode_colors(flow, flat), flat) - value).abs().max() < 1e-6


def test_bad_input_is_named(flow):
    image = grey()
    broken = image.clone()
    broken[0, 0, 0, :2] = torch.tensor([math.nan, math.inf])
    for call in (colorize, colorize_video, lambda _, image: apply_chroma(image, picture())):
        for bad, words in [
            (broken, "2 values that are not finite"),
            (image[:0], "The batch is empty"),
            (image.expand(-1, 2, -1, -1), r"\(1, 2, 40, 56\)"),
            (image.expand(-1, 5, -1, -1), r"\(1, 5, 40, 56\)"),
            (image[0], "Expected images"),
            (image[..., :0], "no pixels"),
        ]:
            with pytest.raises(ImageError, match=words):
                call(flow, bad)
    for call in (colorize, colorize_video):
        for arguments in (
            {"temperature": -0.1},
            {"temperature": math.nan},
            {"detail": math.inf},
            {"saturation": -0.1},
            {"saturation": math.inf},
            {"gamut": "wrap"},
            {"precision": "float8"},
        ):
            with pytest.raises(FlowError, match=next(iter(arguments))):
                call(flow, image, **arguments)
    for arguments in ({"samples": 0}, {"hint_steps": -1}):
        with pytest.raises(FlowError, match=next(iter(arguments))):
            colorize(flow, image, **arguments)


def test_another_kind_of_model_is_refused():
    glow = build("glow", configure("glow", {"image_size": 8, "levels": 1, "steps": 1, "hidden": 4}))
    sentence = "colorize needs a colorizer, such as color-photos; got a glow model"
    for call in (
        lambda: colorize(glow, grey()),
        lambda: colorize_video(glow, grey()),
        lambda: encode_colors(glow, picture()),
        lambda: transfer_palette(glow, grey(), picture()),
        lambda: memory_required(glow, 8, 8),
    ):
        with pytest.raises(FlowError, match=sentence):
            call()


def test_low_precision_stays_near_and_float16_on_a_cpu_becomes_float32(flow):
    image, said = grey(), []
    plain_ = colorize(flow, image)
    near = colorize(flow, image, precision="bfloat16")
    assert 0 < (near - plain_).abs().mean() < 0.02
    assert luma_error(near, image) <= 1e-6
    assert 0 < (colorize_video(flow, image, precision="bfloat16") - plain_).abs().mean() < 0.02
    assert torch.equal(colorize(flow, image, precision="float16", notify=said.append), plain_)
    assert said == ["float16 is many times slower than float32 on a CPU: going on in float32."]


def test_a_flow_on_a_single_grid_colours_too():
    flow = tiny(structure="single", steps=(2,), hidden=(8,), widths=(8, 16))
    image = middle(20, 30)
    result = colorize(
        flow, image, samples=2, hints=hints_from_points([(9, 9, WANTED)], (20, 30), lock=True), hint_steps=2
    )
    assert luma_error(result, image) <= 1e-6
    assert (colorize_video(flow, image, carry=0.5, seed=1) - colorize(flow, image, seed=1)).abs().max() < 1e-5


# --- progress ---------------------------------------------------------------------------------------------------------


def follow(call, flow, *arguments, **options):
    reports = []
    result = call(flow, *arguments, progress=lambda d, t, p=None: reports.append((d, t, p)), **options)
    total = reports[0][1]
    assert [done for done, _, _ in reports] == list(range(1, total + 1))
    assert {whole for _, whole, _ in reports} == {total}
    return result, total, [preview for _, _, preview in reports if preview is not None]


def test_progress_reaches_its_total_with_previews(flow):
    image = middle(batch=2)
    result, total, previews = follow(colorize, flow, image, samples=10)
    assert total == 2 * (1 + 10)
    for preview, picture_ in zip(previews, result, strict=True):
        assert torch.equal(preview, picture_)
    assert follow(colorize, flow, torch.cat([image, image, image, image], dim=1))[2][0].shape[0] == 3  # no alpha
    told = follow(colorize, flow, image, samples=10, hints=squares(), hint_steps=3)
    assert told[1] == 2 * (1 + 10 + 2 * 3)
    assert follow(colorize, flow, image, hints=squares(), hint_steps=0)[1] == 4
    assert follow(colorize, flow, image, hints=Hints(palette=palette_from(["#f84"])))[1] == 4
    frames, total, previews = follow(colorize_video, flow, grey(batch=5), chunk=2)
    assert total == 6
    for preview, number in zip(previews, (1, 3, 4), strict=True):
        assert torch.equal(preview, frames[number])
    assert follow(transfer_palette, flow, image, picture(), samples=2)[1] == 6


def test_cancel_stops_before_the_next_layer_wherever_it_comes(flow):
    image, hints = middle(), squares()
    before = colorize(flow, image)
    calls = {
        "encode, refine, decode": lambda **o: colorize(flow, image, hints=hints, hint_steps=2, **o),
        "latents": lambda **o: encode_colors(flow, picture(), **o),
        "clip": lambda **o: colorize_video(flow, grey(batch=3), chunk=1, **o),
        "transfer": lambda **o: transfer_palette(flow, image, picture(), **o),
    }
    totals = {}
    for name, call in calls.items():
        asked = []
        call(cancelled=lambda asked=asked: bool(asked.append(1)))
        total = len(asked)
        assert total > 9, name
        totals[name] = total
        for last in {1, 2, total // 4, total // 2, total - 1, total}:
            asked = []

            def stop(asked=asked, last=last):
                asked.append(1)
                return len(asked) == last

            with pytest.raises(Cancelled):
                call(cancelled=stop)
            assert len(asked) == last, name
    assert totals["transfer"] > totals["latents"] + 5  # both of its parts ask
    assert all(not module._forward_pre_hooks for module in flow.modules())
    assert torch.equal(colorize(flow, image), before)


def test_refinement_can_be_cancelled_at_every_step(flow):
    steps = []
    with pytest.raises(Cancelled):
        colorize(
            flow,
            middle(),
            hints=squares(),
            hint_steps=1000,
            progress=lambda done, *_: steps.append(done),
            cancelled=lambda: len(steps) > 3,
        )
    assert steps == [1, 2, 3, 4]


# --- apply chroma -----------------------------------------------------------------------------------------------------


def test_colours_of_one_size_are_put_on_the_luma_as_they_are():
    y = 0.4 + 0.2 * grey(24, 36, batch=2)
    colours = color.merge(0.5 * torch.ones(2, 1, 24, 36), 0.1 * (waves_of(24, 36, 2) - 0.5))
    result = apply_chroma(y, colours)
    assert (chroma_of(result) - chroma_of(colours)).abs().max() < 1e-6
    assert luma_error(result, y) <= 1e-6
    assert (chroma_of(apply_chroma(y, colours, saturation=0.5)) - chroma_of(colours) / 2).abs().max() < 1e-6
    own = picture(24, 36)
    assert (apply_chroma(own, own) - own).abs().max() < 1e-6
    assert luma_error(apply_chroma(y, colours, saturation=9.0, gamut="clip"), y) > 0.01
    assert torch.equal(
        apply_chroma((y * 255).to(torch.uint8), colours), apply_chroma((y * 255).to(torch.uint8).float() / 255, colours)
    )


def waves_of(height, width, batch):
    rows, columns = torch.linspace(0, 6, height)[:, None], torch.linspace(0, 5, width)
    planes = [torch.sin(rows * (k + 1) + columns) * 0.5 + 0.5 for k in range(2 * batch)]
    return torch.stack(planes).unflatten(0, (batch, 2))


def test_larger_colours_are_averaged_and_smaller_ones_follow_the_edges():
    y = 0.4 + 0.2 * grey(24, 36)
    colours = color.merge(torch.full((1, 1, 24, 36), 0.5), 0.1 * (waves_of(24, 36, 1) - 0.5))
    doubled = F.interpolate(colours, scale_factor=3, mode="nearest")
    shrunk = apply_chroma(y, doubled)
    expected = F.interpolate(chroma_of(doubled), (24, 36), mode="bilinear", antialias=True)
    assert (chroma_of(shrunk) - expected).abs().max() < 1e-5
    mixed = apply_chroma(y, F.interpolate(colours, (48, 18), mode="nearest"))  # larger and smaller at once
    assert luma_error(mixed, y) <= 1e-6
    small = F.avg_pool2d(colours, 4)
    small_y = F.interpolate(y, (6, 9), mode="bilinear", antialias=True)
    expected = color.compress(y, color.enlarge_chroma(chroma_of(small), small_y, y))
    assert (apply_chroma(y, small) - expected).abs().max() < 1e-5


def test_a_luma_that_has_drifted_changes_no_colours():
    """What the colours come with may be darker: only their chroma counts."""
    y = 0.4 + 0.2 * grey(24, 36)
    chroma = 0.05 * (waves_of(8, 12, 1) - 0.5)
    same, darker = (color.merge(base * torch.ones(1, 1, 8, 12), chroma) for base in (0.5, 0.3))
    assert (apply_chroma(y, same) - apply_chroma(y, darker)).abs().max() < 1e-5


def test_one_picture_goes_with_many_and_others_pair():
    y, colours = grey(12, 16, batch=3), picture(6, 8, batch=3, seed=4)
    pairs = apply_chroma(y, colours)
    for k in range(3):
        one = slice(k, k + 1)
        assert torch.allclose(pairs[one], apply_chroma(y[one], colours[one]), atol=1e-6)
        assert torch.allclose(apply_chroma(y[:1], colours)[one], apply_chroma(y[:1], colours[one]), atol=1e-6)
        assert torch.allclose(apply_chroma(y, colours[:1])[one], apply_chroma(y[one], colours[:1]), atol=1e-6)
    alpha = torch.rand(1, 1, 12, 16)
    many = apply_chroma(torch.cat([y[:1].expand(-1, 3, -1, -1), alpha], dim=1), colours)
    assert torch.equal(many[:, 3:], alpha.expand(3, -1, -1, -1))
    with pytest.raises(ImageError, match="3 pictures for luma and 2 for colors do not pair"):
        apply_chroma(y, colours[:2])
    with pytest.raises(FlowError, match="saturation"):
        apply_chroma(y, colours, saturation=-1)


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_the_memory_estimate_is_positive_and_grows(flow, shipped):
    for model in (flow, shipped):
        small = memory_required(model, 256, 256)
        assert 0 < small < memory_required(model, 512, 256) < memory_required(model, 512, 512)
        assert small < memory_required(model, 256, 256, 2) < memory_required(model, 256, 256, 8)
        assert memory_required(model, 256, 256, 8) == memory_required(model, 256, 256, 80)  # no more at once
        assert memory_required(model, 1, 1) > 0
        assert memory_required(model, 256, 256, working_size=2048) > 4 * memory_required(model, 256, 256)
    assert memory_required(tiny(working_size=256), 256, 256) > memory_required(flow, 256, 256)
    assert memory_required(tiny(hidden=(256, 8)), 256, 256) > memory_required(flow, 256, 256)
    pixels = 4000 * 6000
    assert memory_required(shipped, 4000, 6000) > 4 * 3 * 4 * pixels


def test_global_randomness_and_arguments_stay_untouched(flow):
    image, reference = picture(batch=2), picture(30, 30, seed=3)
    hints = hints_from_strokes(picture(32, 32), torch.full((1, 1, 32, 32), 0.7), lock=True)
    hints = combine_hints(
        hints, hints_from_points([(3, 3, "#fff")], (32, 32)), Hints(palette=palette_from(image=reference))
    )
    latents = encode_colors(flow, reference)
    tensors = [image, reference, hints.coverage, hints.chroma, hints.palette, *latents, *flow.state_dict().values()]
    before = [t.clone() for t in tensors]
    torch.manual_seed(11)
    state = torch.get_rng_state()
    quiet = {"notify": lambda _: None}
    colorize(flow, image, hints=hints, hint_steps=2, latents=latents, latents_strength=0.5, samples=2, **quiet)
    colorize_video(flow, image, hints=hints, latents=latents, carry=0.4, **quiet)
    transfer_palette(flow, image, reference, **quiet)
    decode_colors(flow, encode_colors(flow, image), image)
    apply_chroma(image, reference)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, two) for one, two in zip(before, tensors, strict=True))


@pytest.mark.gpu
def test_the_same_colours_on_a_gpu(flow):
    image, hints = middle(), hints_from_points([(9, 12, WANTED)], (32, 32), lock=True)
    calls = [
        lambda move: colorize(flow, move(image), hints=hints, hint_steps=3, samples=2, seed=3),
        lambda move: colorize_video(flow, move(image), carry=0.5, hints=hints),
        lambda move: transfer_palette(flow, move(image), move(picture())),
    ]
    expected = [call(lambda t: t) for call in calls]
    try:
        flow.to("cuda")
        for call, result in zip(calls, expected, strict=True):
            for device in ("cpu", "cuda"):
                came = call(lambda t, device=device: t.to(device))
                assert came.device.type == device
                assert (came.cpu() - result).abs().max() <= 1 / 255
    finally:
        flow.to("cpu")


def test_lack_of_memory_is_a_sentence(flow):
    def full(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    handle = flow.encoder.stem.register_forward_pre_hook(full)
    try:
        with pytest.raises(FlowError, match=r"Out of memory at 56x40 pixels\. Ask for fewer at once"):
            colorize(flow, grey())
    finally:
        handle.remove()
    assert colorize(flow, grey()).isfinite().all()
