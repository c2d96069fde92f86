"""Colorize: several colorings, all with the picture's own luma, whatever its size; latents of colors; any input."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from flowcore import (
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
from flowcore.engine.memory import memory_required
from flowcore.flows.prior import sample_latents
from flowcore.images import color
from flowcore.images.color import NEUTRAL
from flowcore.images.scans import find_border, is_tinted
from flowcore.tasks.chroma import chroma_and_condition, schedule
from flowcore.tasks.hints import combine_hints, hints_from_strokes, palette_from

from .colorings import THREE_LEVELS, chroma_of, colored, colorization, gray, luma_error, middle, tiny_colorizer

BOTH = [colorize, colorize_video]


flow = pytest.fixture(scope="module")(tiny_colorizer)


def test_every_way_to_color_keeps_luma_black_and_white(flow):
    image = gray(44, 61, batch=4)
    image[:2, :, :9, :9], image[:2, :, 9:18, :9], image[2], image[3] = 0, 1, 0, 1
    strokes = hints_from_strokes(colored(44, 61, seed=5), torch.ones(1, 1, 44, 61), lock=True)
    latents = encode_colors(flow, colored(44, 61, seed=6))
    results = {
        "samples": colorize(flow, image, samples=3, temperature=2.0, detail=1.0),
        "saturation": colorize(flow, image, saturation=3.0),
        "hints": colorize(flow, image, hints=Hints(coverage=strokes.coverage, chroma=strokes.chroma), hint_steps=3),
        "lock": colorize(flow, image, hints=strokes, hint_steps=0, saturation=2.0),
        "video": colorize_video(flow, image, carry=0.5, saturation=2.0),
        "transfer": transfer_palette(flow, image, colored(30, 40), saturation=2.0),
        "decode": decode_colors(flow, latents, image, saturation=3.0),
        "apply": apply_chroma(image, colored(22, 90), saturation=3.0),
    }
    for way, result in results.items():
        given = image.repeat_interleave(len(result) // 4, 0)
        assert luma_error(result, image) <= 1e-6, way
        assert ((result - given).abs() * ((given == 0) | (given == 1))).max() < 1e-6, way
        assert 0 <= result.min() < result.max() <= 1, way
        assert chroma_of(result).abs().max() > 0.05, way


def test_temperatures_go_geometrically_from_detail_to_palette():
    assert schedule(1.0, 0.25, 3) == pytest.approx([0.25, 0.5, 1.0])
    assert schedule(0.9, 0.0, 4) == pytest.approx([0, 0, 0, 0.9])
    assert schedule(0.0, 0.3, 3) == pytest.approx([0.3, 0, 0])
    assert schedule(0.8, 0.1, 1) == [0.8]


@pytest.mark.parametrize(
    ("arguments", "taus"), [({}, (0.9, 0.3)), ({"temperature": 0.5}, (0.5, 0.3)), ({"detail": 0.0}, (0.9, 0.0))]
)
def test_temperature_is_of_the_coarsest_latents_and_the_model_has_defaults(flow, arguments, taus):
    image = middle(32, 48)
    drawn = sample_latents(flow.latent_shapes(8, 12), 1, [taus[1], taus[0]], seed=7)
    expected = decode_colors(flow, drawn, image)
    for call in BOTH:
        assert (call(flow, image, seed=7, **arguments) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("call", "size", "arguments", "working"),
    [
        (colorize, (96, 64), {}, (48, 32)),
        (colorize, (16, 20), {}, (32, 40)),
        (colorize, (97, 131), {}, (32, 44)),  # 43.2, on the grid of 4 pixels
        (colorize_video, (64, 96), {"working_size": 64}, (64, 96)),
        (colorize, (50, 1000), {}, (8, 128)),  # 6.4: a strip is no longer than 4 times the working size
    ],
)
def test_luma_is_resized_to_the_working_size_and_padded_symmetrically(flow, call, size, arguments, working):
    image, seen = gray(*size), []
    flow = copy.deepcopy(flow)  # a compiled flow copies its flow with its hooks, once
    flow.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    call(flow, image, **arguments)
    (luma,) = seen
    small = F.interpolate(image, working, mode="bilinear", antialias=True)
    padding = [(0, 0), (0, 0), *((0, -side % 16) for side in working)]
    expected = torch.from_numpy(np.pad(small.numpy(), padding, mode="symmetric"))
    assert luma.shape == expected.shape
    assert (luma - expected).abs().max() < 1e-6


def test_saturation_0_is_gray_and_chroma_is_proportional_to_it(flow):
    image = middle(40, 56)
    none = colorize(flow, image, saturation=0)
    assert torch.equal(none[:, :1].expand(-1, 3, -1, -1), none)
    assert (none[:, :1] - image).abs().max() < 1e-6
    full = chroma_of(colorize(flow, image))
    assert full.abs().max() > 0.05
    for call in BOTH:
        assert (chroma_of(call(flow, image, saturation=0.5)) - full / 2).abs().max() < 1e-6


def test_saturation_comes_before_the_gamut_and_clipping_changes_luma(flow):
    image = 0.04 + 0.1 * gray()  # little room for chroma
    raw = chroma_of(colorize(flow, image, saturation=0.01)) * 100
    vivid = chroma_of(color.compress(image, raw))
    for saturation, gamut in [(3.0, "compress"), (3.0, "clip"), (0.5, "compress")]:
        fit = color.compress if gamut == "compress" else color.clip
        expected = fit(image, saturation * raw)
        assert (expected - color.merge(image, vivid * min(saturation, 1))).abs().max() > 0.02
        result = colorize(flow, image, saturation=saturation, gamut=gamut)
        assert (result - expected).abs().max() < 1e-3
        assert 0 <= result.min() < result.max() <= 1
        assert (luma_error(result, image) > 0.02) == (gamut == "clip")


def test_divergence_ends_in_the_most_colorful_colors(flow):
    """On inputs unlike the training data a flow may leave all bounds: the picture stays finite, with its luma."""
    image = gray(batch=2)
    wild = [1e20 * (torch.rand(1, *shape) - 0.5) for shape in flow.latent_shapes(8, 12)]
    loud = copy.deepcopy(flow)
    with torch.no_grad():
        for name, parameter in loud.named_parameters():
            if name.endswith("last.weight"):
                parameter *= 30
    hints = Hints(coverage=torch.ones(1, 1, 8, 8), chroma=torch.full((1, 2, 8, 8), 0.5), palette=palette_from(["#f00"]))
    job = colorization(loud, image, hints=hints)
    with torch.no_grad():
        z = sample_latents(job.shapes, 2, 5.0)
        cond = job.condition(slice(0, 2), job.hint_planes(slice(0, 2)))
        assert not job.run.compiled.inverse(z, cond).isfinite().all()
    for result in (
        decode_colors(flow, wild, image),
        decode_colors(flow, [z * math.inf for z in wild], image),
        colorize_video(flow, image, latents=wild, carry=0.5),
        colorize(loud, image, temperature=5.0, detail=5.0, hints=hints, hint_steps=3, samples=2),
        colorize_video(loud, image, temperature=5.0, hints=hints),
    ):
        assert result.isfinite().all()
        assert luma_error(result, image) <= 1e-6


def test_latents_of_a_picture_give_its_own_chroma_back(flow):
    image = colored(32, 48, batch=2)
    y, chroma = color.split(image)
    latents = encode_colors(flow, image)
    assert [tuple(z.shape) for z in latents] == [(2, 6, 4, 6), (2, 8, 2, 3)]
    small_y, small = (F.interpolate(t, (8, 12), mode="bilinear", antialias=True) for t in (y, chroma))
    with torch.no_grad():
        cond = flow.encode_condition(F.interpolate(y, (32, 48), mode="bilinear", antialias=True))
        for one, two in zip(latents, flow(small + NEUTRAL, cond)[0], strict=True):
            assert torch.allclose(one, two, rtol=1e-4, atol=1e-4)
    expected = color.compress(y, color.enlarge_chroma(small, small_y, y))
    assert (decode_colors(flow, latents, image) - expected).abs().max() < 1e-4
    again = colorize(flow, image, latents=latents, latents_levels=0, seed=9, notify=lambda _: None)
    assert (again - expected).abs().max() < 1e-4


def visible(batch, height, width):
    """Alpha that leaves every pixel visible."""
    return 0.25 + 0.75 * torch.rand(batch, 1, height, width)


def test_latents_of_alpha_and_8_bit_pictures_are_those_of_their_colors(flow):
    image = (colored() * 255).round() / 255
    expected = encode_colors(flow, image)
    for other in (torch.cat([image, visible(1, 40, 56)], dim=1), (image * 255).round().to(torch.uint8)):
        assert all(torch.equal(a, b) for a, b in zip(encode_colors(flow, other), expected, strict=True))
    with pytest.raises(ImageError):
        encode_colors(flow, image[:, :1])
    with pytest.raises(FlowError, match="working_size"):
        encode_colors(flow, image, working_size=15)


@pytest.mark.parametrize(
    ("call", "levels", "strength"),
    [(colorize, 0, 0.0), (colorize, 1, 1.0), (colorize, 8, 0.25), (colorize_video, 0, 1.0), (colorize_video, 1, 0.25)],
)
def test_latents_are_blended_from_the_coarsest_level_on(flow, call, levels, strength):
    image = middle(32, 48)
    given = encode_colors(flow, colored(32, 48, seed=8))
    drawn = sample_latents(flow.latent_shapes(8, 12), 1, [0.3, 0.9], seed=7)
    mixed = [math.sqrt(strength) * a + math.sqrt(1 - strength) * b for a, b in zip(given, drawn, strict=True)]
    if levels == 1:
        mixed[0] = drawn[0]
    result = call(flow, image, latents=given, latents_strength=strength, latents_levels=levels, seed=7)
    assert (result - decode_colors(flow, mixed, image)).abs().max() < 1e-5
    if strength == 0:
        assert (result - call(flow, image, seed=7)).abs().max() < 1e-6


def test_by_default_two_levels_of_latents_are_used():
    flow = tiny_colorizer(**THREE_LEVELS)
    image = middle(32, 64)
    given = encode_colors(flow, colored(32, 64, seed=8))
    for call in BOTH:
        two = call(flow, image, latents=given, latents_levels=2)
        assert torch.equal(call(flow, image, latents=given), two)
        assert (two - call(flow, image, latents=given, latents_levels=0)).abs().max() > 0.01
    assert (transfer_palette(flow, image, colored(32, 64, seed=8)) - two).abs().max() < 1e-5


def test_latents_of_other_sizes_are_resized_by_the_nearest_position(flow):
    image = middle(32, 48)
    given = encode_colors(flow, colored(100, 40, seed=8))
    shapes = flow.latent_shapes(8, 12)
    nearest = [F.interpolate(z, shape[1:], mode="nearest") for z, shape in zip(given, shapes, strict=True)]
    assert [tuple(z.shape[2:]) for z in given] != [tuple(z.shape[2:]) for z in nearest]
    assert torch.equal(decode_colors(flow, given, image), decode_colors(flow, nearest, image))


def test_every_image_takes_its_own_latents(flow):
    image = middle(32, 48, batch=2)
    given = encode_colors(flow, colored(32, 48, batch=2, seed=8))
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
    image = gray(batch=3)
    good = encode_colors(flow, colored())
    other = encode_colors(tiny_colorizer(**THREE_LEVELS), colored())
    for latents in (other, good[::-1], good[:1], [], [z[0] for z in good]):
        for call in BOTH:
            with pytest.raises(ShapeError):
                call(flow, image, latents=latents)
    with pytest.raises(ShapeError):
        decode_colors(flow, [z.expand(2, -1, -1, -1) for z in good], image)
    with pytest.raises(ShapeError):
        decode_colors(flow, [good[0].expand(3, -1, -1, -1), good[1]], image)
    with pytest.raises(ShapeError):
        colorize_video(flow, image, latents=[z.expand(3, -1, -1, -1) for z in good])


def test_a_transfer_takes_the_coarse_latents_of_the_reference(flow):
    image, reference = middle(32, 48), colored(50, 30, seed=8)
    given = encode_colors(flow, reference, working_size=48)
    options = {"seed": 4, "samples": 2, "working_size": 48, "saturation": 0.8}
    for strength, levels in [(1.0, 2), (0.5, 1)]:
        result = transfer_palette(flow, image, reference, strength=strength, levels=levels, **options)
        expected = colorize(flow, image, latents=given, latents_strength=strength, latents_levels=levels, **options)
        assert torch.equal(result, expected)


def test_a_color_picture_is_reduced_to_luma_with_a_notice(flow, caplog):
    image, notes = colored(), []
    expected = colorize(flow, color.luma(image), notify=notes.append)
    colorize(flow, color.luma(image).expand(-1, 3, -1, -1), notify=notes.append)
    assert notes == []
    for number, call in enumerate(BOTH, start=1):
        assert (call(flow, image, notify=notes.append) - expected).abs().max() < 1e-5
        assert notes == ["The picture is in color: its luma is used, its colors are not."] * number
    assert not caplog.records
    colorize(flow, image)
    decode_colors(flow, encode_colors(flow, image), image)
    assert [record.getMessage() for record in caplog.records] == notes[:1]  # of colorize only


def tinted(y, tint, strength=1.0):
    """A tint that fades toward black and white, as of paper."""
    chroma = torch.tensor(tint).view(1, 2, 1, 1) * (4 * y * (1 - y)) * strength
    return color.compress(y, chroma)


@pytest.mark.parametrize(("call", "tint"), [(colorize, (-0.02, 0.005)), (colorize_video, (-0.06, 0.04))])
def test_the_tint_of_a_sepia_scan_is_ignored_without_a_word(flow, call, tint):
    y, notes = gray(64, 80), []
    scan = (tinted(y, tint) + 0.003 * torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    result = call(flow, scan, notify=notes.append)
    assert (result - call(flow, color.luma(scan))).abs().max() < 1e-5
    alpha = torch.cat([scan, visible(1, 64, 80)], dim=1)
    assert torch.equal(call(flow, alpha, notify=notes.append)[:, :3], result)
    assert notes == []


def test_photographs_in_muted_colors_are_not_called_tinted():
    for seed in range(6):
        image = colored(64, 80, seed=seed)
        y, chroma = color.split(image)
        muted = color.compress(y, 0.4 * chroma)
        assert not is_tinted(muted), seed
        assert not is_tinted(y.expand(-1, 3, -1, -1)), seed
        assert is_tinted(tinted(y, (-0.06, 0.04))), seed


def test_sixteen_bits_are_taken_at_their_own_scale(flow):
    """In 8 bits a soft ramp has bands; its luma keeps all of its levels."""
    levels = (12000 + 7 * torch.arange(40 * 56) % 40000).view(1, 1, 40, 56)
    image = levels.to(torch.uint16)
    result = colorize(flow, image)
    assert torch.equal(result, colorize(flow, levels.float() / 65535))
    assert torch.equal((65535 * color.luma(result.double())).round().long(), levels)
    with pytest.raises(ImageError, match="uint8 or uint16"):
        colorize(flow, levels.to(torch.int32))


def framed(photograph, frame, width=(7, 9, 6, 8)):
    """A photograph in a frame of one color, with some dust."""
    top, bottom, left, right = width
    height, columns = photograph.shape[-2] + top + bottom, photograph.shape[-1] + left + right
    image = torch.tensor(frame).view(1, 3, 1, 1).expand(len(photograph), 3, height, columns).clone()
    image += 0.02 * (torch.rand(image.shape, generator=torch.Generator().manual_seed(2)) - 0.5)
    image[..., 1, 3], image[..., -2, 5] = 0.5, 0.3
    image[..., top : top + photograph.shape[-2], left : left + photograph.shape[-1]] = photograph
    return image.clamp(0, 1)


FRAMES = {"white": (0.97, 0.97, 0.97), "black": (0.02, 0.02, 0.02), "paper": (0.9, 0.85, 0.7)}


@pytest.mark.parametrize("frame", ["black", "paper"])
def test_a_plain_border_stays_gray_and_casts_no_color(flow, frame):
    y, notes = gray(64, 80), []
    photograph = (0.15 + 0.6 * y).expand(-1, 3, -1, -1)
    scan = framed(photograph, FRAMES[frame])
    result = colorize(flow, scan, samples=2, notify=notes.append)
    assert notes == ["The picture has a plain border: it stays gray, and colors are decided without it."]
    assert luma_error(result, scan) <= 1e-6
    chroma = chroma_of(result)
    outside = torch.ones(chroma.shape[-2:], dtype=torch.bool)
    outside[7 : 7 + 64, 6 : 6 + 80] = False
    assert chroma[..., outside].abs().max() < 1e-6
    assert chroma[..., ~outside].abs().max() > 0.02
    other = chroma_of(colorize(flow, framed(photograph, FRAMES["black" if frame != "black" else "white"]), samples=2))
    assert (other - chroma).abs().max() < 1e-5  # whatever color the border has
    one_framed, alone = torch.cat([scan, scan * 0 + color.luma(colored(80, 94, seed=7))]), colorize(flow, scan)
    assert torch.allclose(colorize(flow, one_framed, notify=notes.append)[:1], alone, atol=1e-5)


def test_colors_of_a_framed_photograph_come_back_from_their_latents(flow):
    image = framed(color.compress(middle(64, 80), 0.3 * chroma_of(colored(64, 80, seed=3))), FRAMES["white"])
    back = chroma_of(decode_colors(flow, encode_colors(flow, image, working_size=160), image, working_size=160))
    rough = F.avg_pool2d(chroma_of(image) - back, 8)[..., 2:7, 2:9]
    assert rough.abs().mean() < 0.01
    assert back[..., 12:60, 12:74].abs().max() > 0.02
    assert back[..., :7, :].abs().max() < 1e-6


def test_what_only_looks_like_a_border_is_colored():
    sky = torch.full((1, 3, 60, 80), 0.6)
    bird = sky.clone()
    bird[..., 20:40, 30:34], bird[..., 28:30, 22:50] = 0.2, 0.1  # something in front of a plain background
    bars = gray(60, 80).expand(-1, 3, -1, -1).clone()
    bars[..., :8, :], bars[..., -8:, :] = 0, 0  # of two sides
    thin = framed(gray(60, 80).expand(-1, 3, -1, -1), FRAMES["white"], (1, 1, 1, 1))
    for image in (sky, bird, bars, thin, colored(60, 80), gray(60, 80).expand(-1, 3, -1, -1), sky[..., :3, :5]):
        assert find_border(image) is None


def test_low_precision_stays_near_and_float16_on_a_cpu_becomes_float32(flow):
    image, notes = gray(), []
    expected = colorize(flow, image)
    for call in BOTH:
        near = call(flow, image, precision="bfloat16")
        assert 0 < (near - expected).abs().mean() < 0.02
        assert luma_error(near, image) <= 1e-6
    assert torch.equal(colorize(flow, image, precision="float16", notify=notes.append), expected)
    assert notes == ["float16 is many times slower than float32 on a CPU: going on in float32."]


def test_the_memory_estimate_is_positive_and_grows(flow):
    small = memory_required(flow, 1, 256, 256)
    assert 0 < memory_required(flow, 1, 1, 1) < small < memory_required(flow, 1, 512, 256)
    assert small < memory_required(flow, 2, 256, 256) < memory_required(flow, 8, 256, 256)
    assert memory_required(flow, 64, 256, 256) == memory_required(flow, 80, 256, 256)  # no more at once
    assert memory_required(flow, 1, 256, 256, working_size=2048) > 4 * small
    per_pixel = memory_required(flow, 1, 40000, 60000) / (40000 * 60000)
    assert per_pixel == pytest.approx(4 * 24, rel=0.01)  # the merge; nothing else grows with the picture


def even(base, height, width, batch=1):
    """Pictures of constant luma with the chroma of photographs."""
    return color.merge(torch.full((batch, 1, height, width), base), 0.2 * chroma_of(colored(height, width, batch)))


def test_colors_of_one_size_are_put_on_the_luma_unchanged():
    y, colors = 0.4 + 0.2 * gray(24, 36, batch=2), even(0.5, 24, 36, batch=2)
    result = apply_chroma(y, colors)
    assert (chroma_of(result) - chroma_of(colors)).abs().max() < 1e-6
    assert (chroma_of(apply_chroma(y, colors, saturation=0.5)) - chroma_of(colors) / 2).abs().max() < 1e-6
    own = colored(24, 36)
    assert (apply_chroma(own, own) - own).abs().max() < 1e-6
    assert luma_error(apply_chroma(y, colors, saturation=9.0, gamut="clip"), y) > 0.01


def test_larger_colors_are_averaged_and_smaller_ones_follow_the_edges():
    y, colors = 0.4 + 0.2 * gray(24, 36), even(0.5, 24, 36)
    tripled = F.interpolate(colors, scale_factor=3, mode="nearest")
    expected = F.interpolate(chroma_of(tripled), (24, 36), mode="bilinear", antialias=True)
    assert (chroma_of(apply_chroma(y, tripled)) - expected).abs().max() < 1e-5
    mixed = apply_chroma(y, F.interpolate(colors, (48, 18), mode="nearest"))  # larger and smaller at once
    assert luma_error(mixed, y) <= 1e-6
    small = F.avg_pool2d(colors, 4)
    small_y = F.interpolate(y, (6, 9), mode="bilinear", antialias=True)
    expected = color.compress(y, color.enlarge_chroma(chroma_of(small), small_y, y))
    assert (apply_chroma(y, small) - expected).abs().max() < 1e-5
    same, darker = (apply_chroma(y, even(base, 8, 12)) for base in (0.5, 0.3))  # only their chroma counts
    assert (same - darker).abs().max() < 1e-5


def test_one_picture_goes_with_many_and_others_pair():
    y, colors = gray(12, 16, batch=3), colored(6, 8, batch=3, seed=4)
    pairs = apply_chroma(y, colors)
    for k in range(3):
        one = slice(k, k + 1)
        assert torch.allclose(pairs[one], apply_chroma(y[one], colors[one]), atol=1e-6)
        assert torch.allclose(apply_chroma(y[:1], colors)[one], apply_chroma(y[:1], colors[one]), atol=1e-6)
        assert torch.allclose(apply_chroma(y, colors[:1])[one], apply_chroma(y[one], colors[:1]), atol=1e-6)
    alpha = torch.rand(1, 1, 12, 16)
    many = apply_chroma(torch.cat([y[:1].expand(-1, 3, -1, -1), alpha], dim=1), colors)
    assert torch.equal(many[:, 3:], alpha.expand(3, -1, -1, -1))
    with pytest.raises(ImageError, match="pair"):
        apply_chroma(y, colors[:2])
    with pytest.raises(FlowError, match="saturation"):
        apply_chroma(y, colors, saturation=-1)


def test_global_randomness_and_arguments_stay_untouched(flow):
    image, reference = colored(batch=2), colored(30, 30, seed=3)
    strokes = hints_from_strokes(colored(32, 32), torch.full((1, 1, 32, 32), 0.7), lock=True)
    hints = combine_hints(strokes, Hints(palette=palette_from(image=reference)))
    latents = encode_colors(flow, reference)
    tensors = [image, reference, hints.coverage, hints.chroma, hints.palette, *latents, *flow.state_dict().values()]
    before = [t.clone() for t in tensors]
    state = torch.get_rng_state()
    for call, options in ((colorize, {"hint_steps": 2, "samples": 2}), (colorize_video, {"carry": 0.4})):
        call(flow, image, hints=hints, latents=latents, latents_strength=0.5, notify=lambda _: None, **options)
    transfer_palette(flow, image, reference, notify=lambda _: None)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, two) for one, two in zip(before, tensors, strict=True))


def test_the_condition_of_a_photograph_keeps_no_graph_of_the_encoder(flow):
    _, cond = chroma_and_condition(flow, Image.new("RGB", (40, 32)), 32)
    assert not any(level.requires_grad for level in cond.features)
