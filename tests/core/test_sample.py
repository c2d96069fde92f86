"""Samples, styles, encoding and decoding, films and harmonized images: one seed one image, an exact way back."""

import math

import pytest
import torch
from builders import build_tiny, encode_source, random_image, source_of
from PIL import Image

from flowcore import (
    CompiledFlow,
    ConditionError,
    FlowError,
    ImageError,
    PrecisionError,
    ShapeError,
    decode,
    encode,
    interpolate,
    normalize,
    sample,
)
from flowcore.flows import latents as la
from flowcore.flows import prior
from flowcore.flows.dequantization import quantize
from flowcore.flows.prior import sample_latents
from flowcore.images.resize import downsample, pad_symmetric
from flowcore.tasks.sample import dequantized_image, morph, normalize_image_latents
from flowcore.tasks.styles import MESSY_RATE, apply_style

LABELED = ["glow of classes", "digits"]
KINDS = {
    "glow": ("glow", {"image_size": (8, 12)}),
    "any size": ("glow", {"steps": 1, "mixing": "conv"}),
    "glow of classes": ("glow", {"classes": 3, "image_size": (8, 12)}),
    "realnvp": ("realnvp", {"hidden": 8}),
    "ffjord": ("ffjord", {}),
    "residual_flow": ("residual_flow", {}),
    "digits": ("class_conditional", {"steps": 3, "hidden": 16, "styles": ("bold", "wide")}),
    "srflow": ("srflow", {"scale": 2, "levels": 2}),
}


def make(kind):
    """A flow whose parameters are all random."""
    architecture, fields = KINDS[kind]
    flow = build_tiny(architecture, seed=3, perturb=0.05, **fields)
    if kind == "digits":
        with torch.no_grad():
            flow.style_directions.copy_(0.1 * torch.randn(flow.style_directions.shape))
    return flow


def images(n=2, channels=3, height=8, width=12, seed=0, dtype=torch.float32):
    return random_image(n, channels, height, width, seed=seed).to(dtype)


def condition(flow, n):
    """A condition of n images of 8x12, for models of each kind."""
    return encode_source(flow, source_of(flow, 8, 12, n))


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance


@pytest.fixture(scope="module")
def flows():
    return {kind: make(kind) for kind in KINDS}


@pytest.fixture
def glow(flows):
    return flows["glow"]


def test_a_sample_is_the_decoded_noise_of_its_seed(glow):
    z = sample_latents(glow.latent_shapes(8, 12), 2, 1.0, 7)
    for arguments, tau in (({"temperature": 0.4}, 0.4), ({"temperature": [0.2, 0.9]}, [0.2, 0.9]), ({}, 0.7)):
        result = sample(glow, 2, seed=7, **arguments)
        with torch.no_grad():
            close(result, glow.inverse(la.scale(z, tau)).clamp(0, 1))
        assert result.dtype == torch.float32
        assert not result.requires_grad
    assert sample(glow, 3, temperature=3.0).aminmax() == (0, 1)
    calm = sample(glow, 3, temperature=0)
    close(calm, calm[:1].expand(3, -1, -1, -1))
    with pytest.raises(ShapeError):
        sample(glow, 1, temperature=[0.2, 0.9, 1])


def test_low_precision_stays_near_and_compiled_flows_have_their_own(glow):
    wide, narrow = sample(glow, 2, seed=3), sample(glow, 2, seed=3, precision="bfloat16")
    assert 0 < (wide - narrow).abs().mean() < 0.02
    assert torch.equal(sample(glow, 2, seed=3, precision="tf32"), wide)  # no tensor cores on a CPU
    with pytest.raises(FlowError, match="precision"):
        sample(glow, 1, precision="half")
    for precision, expected in (("float32", wide), ("bfloat16", narrow)):
        assert torch.equal(sample(CompiledFlow(glow, precision), 2, seed=3), expected)


def test_sizes_are_the_models_own_or_any_that_fit(flows):
    assert sample(flows["glow"], 1, size=(16, 8)).shape == (1, 3, 16, 8)
    assert sample(flows["any size"], 1, size=8).shape == (1, 3, 8, 8)
    with pytest.raises(ShapeError):
        sample(flows["digits"], 1, size=16, labels=0)
    for size, words in (
        (None, r"which size it was made for. Give one: size=\(height, width\), multiples of 4"),
        ((8, 10), "divisible by 4; got 8x10"),
        *((size, "size must be") for size in ((8,), (8, 8.0), (8, 8, 8))),
    ):
        with pytest.raises(FlowError, match=words):
            sample(flows["any size"], 1, size=size)


@pytest.mark.parametrize("kind", LABELED)
def test_labels_say_what_to_show_and_invalid_ones_are_refused(flows, kind):
    flow = flows[kind]
    each = sample(flow, 3, labels=[0, 1, 2], seed=9)
    assert torch.equal(each, sample(flow, 3, labels=torch.tensor([0, 1, 2]), seed=9))
    close(each, sample(flow, 3, labels=torch.eye(3, dtype=torch.float64), seed=9))
    close(each, sample(flow, 3, labels=[0, 1, 2], seed=9, batch=2))
    for label in range(3):
        for labels in (label, [label], torch.tensor(label)):
            same = sample(flow, 3, labels=labels, seed=9)
            close(same[label], each[label])
            assert all((same[i] - each[i]).abs().max() > 1e-4 for i in range(3) if i != label)
    for labels, words in (
        (None, "labels 0 to 2; got none"),
        ([0, 1, 2], "Got 3 labels for 2 images"),
        *((wrong, "expected one whole number") for wrong in (0.5, True, [], [[0, 1]], torch.zeros(2, 4))),
        *((unknown, None) for unknown in (7, -1)),
    ):
        with pytest.raises(ConditionError, match=words):
            sample(flow, 2, labels=labels)


def test_what_models_cannot_sample_is_refused(flows):
    digits = flows["digits"]
    assert sample(digits, 2, labels=digits.classes).shape == (2, 1, 8, 12)  # its label for no class
    with pytest.raises(ConditionError):
        sample(flows["glow"], 2, labels=1)
    with pytest.raises(FlowError):
        sample(flows["glow"], 1, temperature=-1)


def test_samples_are_drawn_in_a_style(flows):
    digits, options = flows["digits"], {"temperature": 0.5, "seed": 3, "labels": [0, 1]}
    drawn = sample_latents(digits.latent_shapes(8, 12), 2, 0.5, 3)
    z = [x + 2 * d for x, d in zip(drawn, digits.styles["bold"], strict=True)]
    expected = decode(digits, z, digits.encode_condition(torch.tensor([0, 1]))).clamp(0, 1)
    close(sample(digits, 2, styles={"bold": 2.0}, **options), expected, 1e-6)
    assert not torch.equal(expected, sample(digits, 2, **options))
    with pytest.raises(FlowError, match="bold"):
        sample(digits, 2, labels=[0, 1], styles={"curly": 1.0})


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"), [*((kind, torch.float64, 1e-11) for kind in KINDS), ("glow", torch.float32, 1e-4)]
)
def test_decode_inverts_encode(kind, dtype, tolerance):
    flow = make(kind).to(dtype)
    image = images(2, flow.channels, dtype=dtype)
    if kind not in ("realnvp", "ffjord", "residual_flow"):  # their logit ends at 0 and 1
        image = 1.4 * image - 0.2  # not clamped on the way
    cond = condition(flow, 2)
    latents = encode(flow, image, cond)
    assert [tuple(z.shape[1:]) for z in latents] == flow.latent_shapes(8, 12)
    assert {z.dtype for z in latents} == {dtype}
    with torch.no_grad():
        for x, y in zip(latents, flow(image, cond)[0], strict=True):
            close(x, y, tolerance)
    back = decode(flow, latents, cond)
    assert back.dtype == dtype
    assert not back.requires_grad
    close(back, image, tolerance)
    assert (torch.cat([z.flatten(1) for z in latents], 1) - image.flatten(1)).abs().max() > 0.1


def test_8_bit_images_are_divided_by_255_and_come_back_exactly(glow):
    image = (images() * 255).round()
    latents = encode(glow, image.byte())
    assert all(torch.equal(x, y) for x, y in zip(latents, encode(glow, image / 255), strict=True))
    assert torch.equal((decode(glow, latents) * 255).round(), image)


def test_dequantized_images_are_noisy_within_their_bins_and_quantize_back():
    flow = make("digits")
    image = (images(3, 1) * 255).round() / 255
    noisy = dequantized_image(flow, image, seed=4)
    assert 0 < (noisy - image).abs().max() <= 1 / 255
    close(quantize(flow, noisy), image, 1e-6)
    assert torch.equal(dequantized_image(flow, image[1:], seed=5), noisy[1:])  # whatever the place in the batch
    assert not torch.equal(dequantized_image(flow, image, seed=5), noisy)


@pytest.mark.parametrize("kind", ["glow", "digits", "srflow"])
def test_neither_batch_nor_autocast_change_anything(flows, kind):
    flow = flows[kind]
    image, cond = images(5, flow.channels), condition(flow, 5)
    latents = encode(flow, image, cond)
    for batch in (1, 2, 5):
        for x, y in zip(encode(flow, image, cond, batch=batch), latents, strict=True):
            close(x, y)
        close(decode(flow, latents, cond, batch=batch), image, 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(x, y) for x, y in zip(encode(flow, image, cond), latents, strict=True))
        back = decode(flow, latents, cond)
    assert torch.equal(back, decode(flow, latents, cond))


@pytest.mark.parametrize("kind", [*LABELED, "srflow"])
def test_one_condition_serves_many_images(flows, kind):
    flow = flows[kind]
    image, one = images(3, flow.channels), condition(flow, 1)
    latents = encode(flow, image, one, batch=2)
    for i in range(3):
        for x, y in zip(latents, encode(flow, image[i : i + 1], one), strict=True):
            close(x[i : i + 1], y)
    close(decode(flow, latents, one, batch=2), image, 1e-4)
    for call, given in ((encode, image), (decode, latents)):
        with pytest.raises(ConditionError):
            call(flow, given, condition(flow, 2))


def test_flows_in_low_precision_are_refused():
    flow = make("glow")
    latents = encode(flow, images())
    for parameter in flow.parameters():
        parameter.data = parameter.data.half()  # .half() itself is refused
    for call in (lambda: encode(flow, images()), lambda: decode(flow, latents), lambda: sample(flow, 1)):
        with pytest.raises(PrecisionError):
            call()


def test_images_and_conditions_that_do_not_fit_are_refused(flows):
    cond, beyond = condition(flows["digits"], 2), images(3)
    for kind, image, given, error, words in (
        ("srflow", images(), None, ConditionError, "a condition"),
        ("glow", images(), cond, ConditionError, "no condition"),
        *(("glow", image, None, ShapeError, r"\(B, 3, H, W\); got") for image in (images(2, 1), images()[0])),
        ("digits", images(), cond, ShapeError, "to gray"),
        ("glow", images(width=10), None, ShapeError, r"divisible by 4; got 8x10\. Crop \(to 8x8\)"),
    ):
        with pytest.raises(error, match=words):
            encode(flows[kind], image, given)
    beyond[1, 0, 0, 0] = 1.5
    with pytest.raises(ImageError, match="Image 1 "):
        encode(flows["realnvp"], beyond, batch=1)


def test_latents_that_do_not_fit_are_refused(flows):
    z = encode(flows["glow"], images())
    for latents, words in (
        *((wrong, "finest first") for wrong in ([], z[0], [z[0], z[1][:1]], [z[0][:0], z[1][:0]])),
        (z[::-1], "Expected latents of shapes"),
    ):
        with pytest.raises(ShapeError, match=words):
            decode(flows["glow"], latents)


def test_a_style_ends_where_the_model_has_seen_nothing():
    flow = build_tiny("class_conditional", styles=("bold",))
    way = torch.nn.functional.normalize(torch.randn(96), dim=0)
    flow.get_buffer("style_directions").copy_(2 * way[None])
    latents = [torch.randn(3, 96)]
    latents[0] += (torch.tensor([0.0, 4, -7]) - latents[0] @ way)[:, None] * way
    for strength, ends in ((2.0, [4.0, 5, -3]), (4.0, [5.0, 5, 1]), (-1.0, [-2.0, 2, -7]), ([-3.0], [-5.0, -2, -7])):
        (moved,) = apply_style(flow, [latents[0][..., None, None]], {"bold": strength})
        close(moved[..., 0, 0] @ way, torch.tensor(ends))
        difference = moved[..., 0, 0] - latents[0]
        close(difference, (difference @ way)[:, None] * way)  # along the style only


def test_messy_is_a_temperature_as_well():
    flow = build_tiny("class_conditional", styles=("messy", "bold"))
    flow.get_buffer("style_directions").copy_(0.1 * torch.randn(2, 96))
    latents = [torch.randn(2, 96, 1, 1)]
    messy, bold = (flow.styles[name][0] for name in ("messy", "bold"))
    assert MESSY_RATE > 0
    for strength in (1.0, -2):
        expected = math.exp(MESSY_RATE * strength) * latents[0] + strength * messy + 0.5 * bold
        close(apply_style(flow, latents, {"bold": 0.5, "messy": strength})[0], expected)
        close(apply_style(flow, latents, {"bold": [0.5], "messy": [strength]})[0], expected)


def test_unknown_styles_are_refused_naming_the_known_ones(flows):
    glow, digits = flows["glow"], flows["digits"]
    for flow, styles, error, words in (
        (digits, {"bold": 1, "italic": 1}, FlowError, "no style 'italic'; it has bold, wide"),
        (glow, {"bold": 1}, FlowError, "none at all"),
        (digits, {"bold": 1}, ShapeError, "fit together"),
    ):
        with pytest.raises(error, match=words):
            apply_style(flow, encode(glow, images()), styles)


def test_a_flow_by_itself_samples_the_decoded_noise_of_its_seed():
    flow = make("glow")
    z = prior.sample_latents(flow.latent_shapes(8, 12), 2, 0.7, seed=3)
    made = flow.sample(2, temperature=0.7, seed=3)
    assert torch.allclose(made, flow.inverse(z), atol=1e-5)
    assert not made.requires_grad


def test_samples_share_the_condition_of_one_image():
    flow = make("srflow")
    made = flow.sample(3, condition(flow, 1), size=(8, 12), seed=3)
    alone = flow.sample(1, condition(flow, 1), size=(8, 12), seed=4)
    assert made.shape == (3, 3, 8, 12)
    assert (made[1:2] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("loop", [False, True])
def test_every_image_stands_in_the_film_once(loop):
    flow, three = build_tiny("glow", seed=3), images(3)
    seen = []
    film = morph(flow, three, frames=4, loop=loop, progress=lambda *facts: seen.append(facts), notify=pytest.fail)
    assert len(film) == (9 if loop else 7)
    for k in range(3):
        torch.testing.assert_close(film[3 * k], three[k], atol=1e-4, rtol=0)
    latents = encode(flow, three)
    a, b = ([level[k : k + 1] for level in latents] for k in (0, 1))
    middle = decode(flow, interpolate(a, b, 1 / 3)).clamp(0, 1)
    torch.testing.assert_close(film[1:2], middle, atol=1e-5, rtol=0)
    done, total, _ = seen[-1]
    assert done == total
    assert [facts[0] for facts in seen] == sorted(facts[0] for facts in seen)


def test_images_of_different_sizes_stand_in_a_film_of_the_models_size():
    flow = build_tiny("glow", seed=3, image_size=16)
    film = morph(flow, [images(1, height=20, width=16), images(2, height=16, width=24)], frames=2)
    assert film.shape == (3, 3, 16, 16)
    torch.testing.assert_close(film[1:2], images(2, height=16, width=24)[:1, ..., 4:20], atol=1e-4, rtol=0)
    with pytest.raises(ImageError, match="size"):
        morph(flow, [images(1, height=20, width=16), images(2, height=16, width=24)], fit="crop")


def test_invalid_films_are_refused():
    with pytest.raises(ImageError, match="two"):
        morph(build_tiny("glow", seed=3), images(1, height=16, width=16))
    for pictures in (Image.new("RGB", (16, 16)), [Image.new("RGB", (16, 16))] * 2):
        with pytest.raises(ImageError, match="Expected images as a tensor"):
            morph(build_tiny("glow", seed=3), pictures)
    with pytest.raises(FlowError, match="frames"):
        morph(build_tiny("glow", seed=3), images(2, height=16, width=16), frames=1)


def test_harmonize_decodes_normalized_latents_under_the_small_image():
    flow = build_tiny("srflow", seed=2)
    step = flow.condition_scale * flow.size_multiple
    image = images(2, 3, 3 * step + 1, 2 * step + 3)
    padded = pad_symmetric(image, (0, 5, 0, 7))  # to sides that 8 divides
    torch.testing.assert_close(normalize_image_latents(flow, image, strength=0.0), image, atol=1e-4, rtol=0)
    changed = normalize_image_latents(flow, image, per="level")
    cond = flow.encode_condition(downsample(padded, flow.condition_scale).clamp(0, 1))
    wanted = decode(flow, normalize(encode(flow, padded, cond)), cond, clamp=True)
    torch.testing.assert_close(changed, wanted[..., : 3 * step + 1, : 2 * step + 3])
    assert (changed - image).abs().mean() > 1e-3
