"""The score task: the same number however it is computed, parts that sum to it, and its settings beside it."""

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import build_tiny
from PIL import Image, features

from flowcore import ConditionError, FlowError, ImageError, Score, ShapeError, Transform, load, score
from flowcore.flows.dequantization import (
    Gaussian,
    Quantization,
    Uniform,
    VariationalDequantizer,
    quantization,
    to_integers,
)
from flowcore.flows.likelihood import bits_per_dim, effective_samples, importance_weighted
from flowcore.flows.testing import perturbed
from flowcore.flows.transforms import Chain
from flowcore.images import lossless
from flowcore.images.files import read_rgb
from flowcore.images.lossless import lossless_bits
from flowcore.tasks.score import image_seeds, ranking_key

from .bounds import log_weights

PICTURES = Path(__file__).parents[2] / "workflows" / "pictures"


def build(architecture="glow", **fields):
    flow = build_tiny(architecture, seed=1, **fields)
    # bring pixels to the scale of the latents, as actnorm does when it sees data
    size = flow.image_size if flow.fixed_size else (16, 16)
    flow.initialize(picture(8, flow.channels, *size), labels(flow, [0] * 8) if flow.classes else None)
    return perturbed(flow, 0.05)


def labels(flow, values):
    return flow.encode_condition(torch.tensor(values))


def picture(batch=3, channels=3, height=8, width=12, seed=0):
    """Smooth, colored and a little noisy, on the 8-bit grid, float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    noisy = 0.9 * smooth + 0.1 * torch.rand(batch, channels, height, width, generator=generator)
    return (noisy * 255).round() / 255


def as_bytes(image):
    return (image * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def flow():
    return build()


@pytest.fixture(scope="module")
def wide():
    return build().double()


def assert_same(one, two, tolerance=0.0, ignore=()):
    for field in dataclasses.fields(Score):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if field.name in ignore:
            continue
        if isinstance(a, torch.Tensor):
            assert torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True), field.name
        else:
            assert a == b, field.name


@pytest.mark.parametrize("name", ["uniform", "gaussian", "variational"])
def test_a_score_is_the_bound_of_the_formulas(wide, name):
    image, variational = picture(), VariationalDequantizer(3, hidden=4, steps=1).double()
    q = {"uniform": Uniform(), "gaussian": Gaussian(), "variational": variational}[name]
    result = score(wide, image, dequantization=q if q is variational else name, samples=5, seed=3)
    k = to_integers(image)[0]
    w = log_weights(wide, k, dequantizer=q, samples=5, seed=image_seeds(3, k))
    dimensions = image[0].numel()
    expected = bits_per_dim(importance_weighted(w), dimensions)
    assert torch.allclose(result.bits_per_dim, expected, rtol=1e-12, atol=1e-11)
    assert torch.allclose(result.mean, bits_per_dim(w.mean(1), dimensions), rtol=1e-12, atol=1e-11)
    assert torch.allclose(result.spread, bits_per_dim(w, dimensions).std(1), rtol=1e-9, atol=1e-11)
    assert torch.allclose(result.effective_samples, effective_samples(w))
    log_prob_bits = bits_per_dim(result.log_prob, dimensions, quantization(wide).width)
    assert torch.allclose(log_prob_bits, result.bits_per_dim, rtol=1e-12, atol=0)
    assert (result.bits_per_dim < result.mean).all()


@pytest.mark.parametrize(
    ("architecture", "fields", "constant"),
    [
        ("glow", {"levels": 3}, 8),
        ("glow", {"n_bits": 5}, 5),
        ("glow", {"grid": "levels"}, math.log2(255)),
        ("glow", {"classes": 4}, 8),
        ("realnvp", {"hidden": 6}, 8),
        ("class_conditional", {"channels": 3, "image_size": (8, 16), "classes": 4}, 8),
    ],
)
def test_levels_and_pixels_sum_to_the_total(architecture, fields, constant):
    flow, image = perturbed(build_tiny(architecture, **fields), 0.05), picture(2, 3, 8, 16)
    source = torch.tensor([1, 3]) if flow.classes else None
    cond = labels(flow, [1, 3]) if flow.classes else None
    result = score(flow, image, source, samples=3)
    assert result.constant == pytest.approx(constant)
    assert result.per_level.shape == (2, len(flow.latent_shapes(8, 16)))
    assert result.map.shape == (2, 8, 16)
    assert torch.allclose(result.per_level.sum(1), result.bits_per_dim, rtol=1e-12, atol=0)
    assert torch.allclose(result.map.flatten(1).sum(1), result.bits_per_dim, rtol=1e-12, atol=0)
    k = to_integers(image, result.n_bits)[0]
    w = log_weights(flow, k, cond, samples=3, seed=image_seeds(0, k))
    total = bits_per_dim(importance_weighted(w), image[0].numel())
    assert torch.allclose(result.bits_per_dim, total, rtol=1e-4, atol=1e-4)
    assert {t.dtype for t in vars(result).values() if isinstance(t, torch.Tensor)} == {torch.float64}


def test_levels_and_pixels_are_those_of_the_logdet_map():
    """The mean over the draws; what has no place is spread by dimensions, and evenly over the pixels."""
    flow = build(levels=3).double()
    image = picture(2, 3, 8, 16)
    noise = torch.rand(2, *image.shape)
    result = score(flow, image, noise=noise, dequantization="gaussian")
    k, q = to_integers(image)[0].double(), Gaussian()
    shares = [flow.forward_with_logdet_map(Quantization().place(k, q.draw(k, noise[s])[0]))[1] for s in range(2)]
    density = torch.stack([torch.stack(draw) for draw in shares]).mean(0)  # (levels, B, H, W), nats
    density = -density / (image[0].numel() * math.log(2))
    dimensions = torch.tensor([math.prod(shape) for shape in flow.latent_shapes(8, 16)], dtype=torch.float64)
    assert len(set(dimensions.tolist())) > 1
    rest = result.bits_per_dim - density.sum((0, 2, 3))
    levels = density.sum((2, 3)).T + rest[:, None] * dimensions / dimensions.sum()
    assert torch.allclose(result.per_level, levels, rtol=1e-10, atol=1e-10)
    assert torch.allclose(result.map, density.sum(0) + rest[:, None, None] / (8 * 16), rtol=1e-10, atol=1e-10)


class Cubed(Transform):
    """A transform that somebody wrote without ``forward_with_logdet_map``."""

    def forward(self, x, cond=None):
        return x + x**3, torch.log1p(3 * x**2).sum((1, 2, 3))


def test_a_transform_without_positions_is_scored_without_a_map():
    flow, image = build(), picture(2)
    flow.levels[0].steps = Chain(Cubed(), *flow.levels[0].steps.parts())
    result = score(flow, image)
    assert result.map is None
    assert any(note.startswith("No map: ") for note in result.notes)
    k = to_integers(image, result.n_bits)[0]
    expected = bits_per_dim(log_weights(flow, k, None, samples=1, seed=image_seeds(0, k))[:, 0], image[0].numel())
    assert torch.allclose(result.bits_per_dim, expected, atol=1e-4)
    assert torch.allclose(result.per_level.sum(1), result.bits_per_dim, rtol=1e-12, atol=0)


def test_scoring_again_gives_the_same_and_changes_nothing(flow):
    image = picture()
    before, state = image.clone(), {name: value.clone() for name, value in flow.state_dict().items()}
    random = torch.get_rng_state()
    one, two = (score(flow, image, samples=2, seed=1) for _ in range(2))
    assert_same(one, two)
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in flow.state_dict().items())
    assert not torch.allclose(one.bits_per_dim, score(flow, image, samples=2, seed=4).bits_per_dim, atol=1e-9)
    assert not one.bits_per_dim.requires_grad
    image = picture(2)
    one, three = (score(flow, image, samples=n, seed=5) for n in (1, 3))
    generators = [torch.Generator().manual_seed(own) for own in image_seeds(5, to_integers(image)[0])]
    own = [torch.stack([torch.rand(image.shape[1:], generator=g) for _ in range(3)]) for g in generators]
    noise = torch.stack(own, 1)  # every image's own generator makes its draws one after the other
    assert_same(score(flow, image, noise=noise, seed=5), three, 1e-6)
    assert_same(score(flow, image, noise=noise[:1], seed=5), one, 1e-6)
    assert one.spread.isnan().all()
    assert (three.spread > 0).all()
    image = picture()
    expected = score(flow, image)
    assert expected.notes == ()
    assert_same(score(flow, as_bytes(image)), expected)
    assert_same(score(flow, (image * 65535).round().to(torch.uint16)), expected, ignore=("notes",))
    assert_same(score(flow, image.double()), expected)
    assert_same(score(flow, image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), expected)


def test_the_place_in_a_batch_does_not_change_a_score(flow):
    a, b, c = picture(3).split(1)
    forward, backward = (score(flow, torch.cat(images), samples=2, seed=9) for images in ([a, b, c], [c, b, a]))
    parts = score(flow, torch.cat([a, b, c]), samples=2, seed=9, batch=4)
    for name in ("bits_per_dim", "spread", "map"):
        for other in (getattr(backward, name).flip(0), getattr(parts, name)):
            assert torch.allclose(getattr(forward, name), other, atol=1e-6), name
    assert len({*image_seeds(9, picture(3) * 255)}) == 3


def test_a_ranking_goes_by_corrected_bits_and_leaves_enlarged_images_out():
    rows = [(1.0, 0.9, False), (2.0, -0.5, False), (math.nan, math.nan, False), (0.1, -3.0, True)]
    assert sorted(rows, key=lambda row: ranking_key(*row)) == [rows[1], rows[0], rows[2], rows[3]]
    assert ranking_key(1.5, None, False) < ranking_key(2.0, None, False)


def test_five_bits_score_the_reduced_image():
    flow, image = build(n_bits=5), as_bytes(picture())
    result = score(flow, image)
    assert result.n_bits == 5
    assert any("5 bits" in note for note in result.notes)
    coarse = image // 8 * 8
    assert_same(score(flow, coarse), result)
    assert_same(score(flow, coarse + torch.randint(0, 8, coarse.shape).to(torch.uint8)), result)
    other = score(flow, (coarse + 8 * (image < 240)).to(torch.uint8))
    assert not torch.allclose(other.bits_per_dim, result.bits_per_dim)


def test_a_score_carries_its_settings(flow):
    result = score(flow, picture(), samples=2, seed=7, dequantization="gaussian")
    settings = {"n_bits": 8, "grid": "bins", "dequantization": "gaussian", "samples": 2, "bound": True, "seed": 7}
    assert {name: getattr(result, name) for name in settings} == settings
    assert score(flow, picture(), dequantization=Gaussian(0.1)).dequantization == "gaussian (std 0.1)"
    with pytest.raises(FlowError, match="no variational dequantizer"):
        score(flow, picture(), dequantization="variational")
    own = build(dequantizer_steps=1)
    result = score(own, picture(), dequantization="variational", samples=2)
    assert result.dequantization == "variational"
    assert_same(score(own, picture(), dequantization=own.dequantizer, samples=2), result)
    assert result.bound


def test_noise_outside_the_bin_is_no_bound(flow, wide):
    image = picture()
    noise = torch.randn(2, *image.shape) * 0.3 + 0.5
    result = score(flow, image, noise=noise)
    assert not result.bound
    assert any("neighboring bins" in note for note in result.notes)
    x = Quantization().place(to_integers(image)[0].double(), noise[0].double())
    log_prob = torch.stack([share.flatten(1).sum(1) for share in wide.forward_with_logdet_map(x)[1]]).sum(0)
    by_hand = bits_per_dim(log_prob, x[0].numel(), 1 / 256).detach()
    assert torch.allclose(score(wide, image, noise=noise[:1]).bits_per_dim, by_hand, rtol=0, atol=1e-9)
    inside = noise.clamp(0, 0.999)
    assert score(flow, image, noise=inside).bound
    inside[1, 2, 2, 7, 11] = 1.0
    assert not score(flow, image, noise=inside).bound


def test_changes_to_the_image_are_noted(flow):
    image = picture()
    plain, outside = score(flow, image), image.clone()
    outside[0, 0, 0, 0] = 1.5
    gray = image[:, :1].expand(-1, 3, -1, -1)
    for changed, word, expected in [
        (torch.cat([image, torch.rand(3, 1, 8, 12)], 1), "Alpha", plain),
        (image[:, :1], "gray", score(flow, gray)),
        ((image + 0.3 / 255).clamp(0, 1), "8-bit grid", plain),
        (outside, "clamped", score(flow, outside.clamp(0, 1))),
    ]:
        result = score(flow, changed)
        assert any(word in note for note in result.notes)
        assert_same(result, expected, ignore=("notes",))


def test_invalid_arguments_raise_readable_errors(flow):
    image = picture()
    with pytest.raises(ShapeError):
        score(flow, image[..., :10])
    for arguments, words in [
        ({"dequantization": "renyi"}, "renyi"),
        ({"noise": torch.zeros(3, 3, 8, 12)}, r"\(samples, 3, 3, 8, 12\)"),
        ({"noise": torch.zeros(2, 3, 3, 8, 12), "samples": 3}, r"\(3, 3, 3, 8, 12\)"),
        ({"noise": torch.full((1, 3, 3, 8, 12), math.nan)}, "finite"),
    ]:
        with pytest.raises(FlowError, match=words):
            score(flow, image, **arguments)
    with pytest.raises(ImageError, match="1 channels; got 3"):
        score(build(channels=1), image)
    with pytest.raises(ShapeError):
        score(build(image_size=(16, 16), split_prior="table"), image)
    assert score(build(image_size=(8, 8)), image).samples == 1  # convolutions take any size


def test_conditions_follow_their_images():
    flow = build(classes=3).double()
    image = picture()[[0, 0, 0]]
    noise = torch.rand(2, 1, 3, 8, 12).expand(-1, 3, -1, -1, -1)
    three = score(flow, image, labels(flow, [2, 0, 1]), noise=noise, batch=2)
    for i, label in enumerate([2, 0, 1]):
        alone = score(flow, image[:1], labels(flow, [label]), noise=noise[:, :1])
        assert torch.allclose(alone.bits_per_dim[0], three.bits_per_dim[i], rtol=0, atol=1e-10)
    assert len({round(bits, 6) for bits in three.bits_per_dim.tolist()}) == 3
    one = score(flow, image, labels(flow, [1]), noise=noise)
    assert one.bits_per_dim.tolist() == pytest.approx([three.bits_per_dim[2].item()] * 3)
    with pytest.raises(ConditionError):
        score(flow, image, labels(flow, [1, 2]))
    with pytest.raises(ConditionError):
        score(flow, image)
    with pytest.raises(ConditionError):
        score(build(), image, labels(flow, [1, 2, 0]))


def test_progress_counts_every_draw(flow):
    for complexity in (True, False):
        calls, total = [], 15 + 3 * complexity
        options = {"samples": 5, "batch": 4, "complexity": complexity}
        score(flow, picture(), progress=lambda done, total, preview=None, c=calls: c.append((done, total)), **options)
        assert calls == [(done, total) for done in (4, 8, 12, 15, *range(16, total + 1))]


def noise_image(side=64, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, channels, side, side), dtype=torch.uint8, generator=generator)


def test_lossless_bits_of_noise_photos_and_flat_images():
    for channels in (1, 3):
        photo = as_bytes(picture(1, channels, 64, 64))
        flat = torch.ones(1, channels, 64, 64, dtype=torch.uint8)
        images = noise_image(64, channels), photo, photo // 32 * 32, 200 * flat, 0 * flat
        noise, photo, smooth, gray, black = (lossless_bits(image[0]) / image[0].numel() for image in images)
        assert noise == pytest.approx(8, abs=0.1)
        assert 3 < photo < 7
        assert smooth < photo - 2
        assert gray < 0.01
        assert black == 0


def test_complexity_is_measured_on_the_scored_integers(flow):
    image = as_bytes(picture(2, 3, 16, 16))
    result = score(flow, image)
    for i in range(2):
        assert result.complexity[i].item() == pytest.approx(lossless_bits(image[i]) / 768)
    assert torch.equal(result.complexity_corrected, result.bits_per_dim - result.complexity)
    five = score(build(n_bits=5), image)
    assert five.complexity[0].item() == pytest.approx(lossless_bits(image[0] // 8) / 768)
    without = score(flow, image, complexity=False)
    assert (without.complexity, without.complexity_corrected) == (None, None)
    assert_same(without, result, ignore=("complexity", "complexity_corrected"))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_compressors_are_lossless(channels, monkeypatch):
    written, save = [], Image.Image.save

    def recording(self, file, name, **options):
        save(self, file, name, **options)
        written.append((name, Image.open(io.BytesIO(file.getvalue())).copy(), np.asarray(self)))

    monkeypatch.setattr(Image.Image, "save", recording)
    lossless_bits(noise_image(20, channels)[0, :, :17])
    monkeypatch.undo()
    names = {"PNG"} | {n for n, f in (("WEBP", "webp"), ("JPEG2000", "jpg_2000")) if features.check(f)}
    assert {name for name, _, _ in written} == names
    for name, decoded, before in written:
        array = np.asarray(decoded)
        if array.ndim > before.ndim:  # WebP has no gray
            assert (array == array[..., :1]).all()
            array = array[..., 0]
        assert np.array_equal(array, before), name


def test_compressors_that_pillow_lacks_are_skipped(monkeypatch):
    image = noise_image(16)[0]
    everything = lossless_bits(image)
    monkeypatch.setattr(lossless.features, "check", lambda _: False)
    lossless._black_sizes.cache_clear()
    try:
        assert lossless_bits(image) >= everything
    finally:
        monkeypatch.undo()
        lossless._black_sizes.cache_clear()


def test_the_retouched_patch_glows_in_its_sky():
    picture = read_rgb((PICTURES / "retouched.jpg").read_bytes(), "retouched.jpg")
    x = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 255
    bits = score(load("glow-photos"), x, seed=0).map
    assert bits is not None
    sky, patch = bits[0, 8:56, 20:120], bits[0, 24:36, 155:185]
    assert patch.mean() > sky.mean() + 2 * sky.std()
