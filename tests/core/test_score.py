"""The score task: the same number however it is asked for, parts that sum to it, and a contract beside it."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image, features

from flowcore import Cancelled, ConditionError, FlowError, ImageError, ShapeError
from flowcore.dequantization import Gaussian, Quantization, Uniform, VariationalDequantizer, quantization, to_integers
from flowcore.likelihood import bits_per_dim, importance_weighted, log_weights
from flowcore.models import build, configure
from flowcore.tasks import score as task
from flowcore.tasks.score import Score, lossless_bits, score, typicality

from .laws import perturbed
from .test_likelihood import Sigmoid, narrow, oracle

SMALL = {"levels": 2, "steps": 2, "hidden": 8}


def glow(**fields):
    torch.manual_seed(1)
    flow = build("glow", configure("glow", {**SMALL, **fields}))
    # bring pixels to the scale of the latents, as actnorm does when it sees data
    flow.initialize(picture(8, flow.channels, 16, 16), None if flow.classes == 0 else labels(flow, [0] * 8))
    return perturbed(flow, 0.05)


def labels(flow, values):
    return flow.encode_condition(torch.tensor(values))


def picture(batch=3, channels=3, height=8, width=12, seed=0):
    """Smooth, coloured and a little noisy, on the 8-bit grid, float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    noisy = 0.9 * smooth + 0.1 * torch.rand(batch, channels, height, width, generator=generator)
    return (noisy * 255).round() / 255


def as_bytes(image):
    return (image * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def flow():
    return glow()


def same(one, two, tolerance=0.0, leave=()):
    for field in dataclasses.fields(Score):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if field.name in leave:
            continue
        if isinstance(a, torch.Tensor):
            assert torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True), field.name
        else:
            assert a == b, field.name


# --- against what is known --------------------------------------------------------------------------------------------


def test_the_oracle_of_uniform_noise():
    values, t, gaussian = oracle()
    image = t["x"].to(torch.uint8)
    for count, expected in values["uniform_iw_bpd"].items():
        came = score(gaussian, image, noise=t["u"][: int(count)])
        assert came.bits_per_dim.tolist() == pytest.approx(expected, abs=1e-9)
        assert came.samples == int(count)
        assert came.bound
    assert came.mean.tolist() == pytest.approx(values["uniform_elbo_bpd_mc64"], abs=1e-9)
    nodes = torch.tensor([0.5 - 0.5 / math.sqrt(3), 0.5 + 0.5 / math.sqrt(3)], dtype=torch.float64)
    came = score(gaussian, image, noise=nodes.view(2, 1, 1, 1, 1).expand(2, *image.shape))
    assert came.mean.tolist() == pytest.approx(values["uniform_elbo_bpd_analytic"], abs=1e-9)


def test_the_oracle_of_other_noise():
    values, t, gaussian = oracle()
    for count, expected in values["vardeq"]["iw_bpd"].items():
        came = score(gaussian, t["x"] / 255, dequantization=Sigmoid(), noise=t["e"][: int(count)])
        assert came.bits_per_dim.tolist() == pytest.approx(expected, abs=1e-9)
    assert came.mean.tolist() == pytest.approx(values["vardeq"]["elbo_mc64"], abs=1e-9)
    assert came.dequantization == "oracle"


def test_many_draws_come_near_the_exact_number():
    values, t, gaussian = oracle()
    came = score(gaussian, t["x"].to(torch.uint8), samples=2000, seed=4)
    assert came.bits_per_dim.tolist() == pytest.approx(values["exact_discrete_bpd"], abs=3e-3)
    assert came.mean.tolist() == pytest.approx(values["uniform_elbo_bpd_analytic"], abs=3e-3)


@pytest.mark.parametrize(
    "dequantization", ["uniform", "gaussian", VariationalDequantizer(3, hidden=4, steps=1).double()]
)
def test_a_score_is_the_bound_of_the_formulas(flow, dequantization):
    """The flow's own forward pass and prior, dequantized by hand, give the same number as the task's levels."""
    wide = perturbed(flow, 0).double()
    image = picture()
    came = score(wide, image, dequantization=dequantization, samples=5, seed=3)
    q = {"uniform": Uniform(), "gaussian": Gaussian()}.get(dequantization if isinstance(dequantization, str) else "")
    w = log_weights(wide, to_integers(image)[0], dequantizer=q or dequantization, samples=5, seed=3)
    dimensions = image[0].numel()
    expected = bits_per_dim(importance_weighted(w), dimensions)
    assert torch.allclose(came.bits_per_dim, expected, rtol=1e-12, atol=1e-11)
    assert torch.allclose(came.mean, bits_per_dim(w.mean(1), dimensions), rtol=1e-12, atol=1e-11)
    assert torch.allclose(came.spread, bits_per_dim(w, dimensions).std(1), rtol=1e-9, atol=1e-11)
    assert torch.allclose(
        bits_per_dim(came.log_prob, dimensions, quantization(wide).width), came.bits_per_dim, rtol=1e-12, atol=0
    )
    assert (came.bits_per_dim < came.mean).all()
    assert (came.effective_samples > 1).all()
    assert (came.effective_samples < 5).all()


MODELS = {
    "glow": ("glow", {**SMALL, "levels": 3}),
    "glow, 5 bits": ("glow", {**SMALL, "n_bits": 5}),
    "glow of levels": ("glow", {**SMALL, "grid": "levels"}),
    "glow with classes": ("glow", {**SMALL, "classes": 4}),
    "realnvp": ("realnvp", {"hidden": 6, "blocks": 1}),
    "class_conditional": (
        "class_conditional",
        {"channels": 3, "image_size": (8, 16), "classes": 4, "steps": 2, "hidden": 8},
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_levels_and_pixels_sum_to_the_total(name, dtype):
    torch.manual_seed(2)
    architecture, fields = MODELS[name]
    flow = perturbed(build(architecture, configure(architecture, fields)), 0.05).to(dtype)
    image = picture(2, 3, 8, 16)
    cond = labels(flow, [1, 3]) if flow.classes else None
    if cond is not None and dtype == torch.float64:
        cond = torch.tensor([1, 3])  # a source is encoded
    came = score(flow, image, cond, samples=3)
    tolerance = {"rtol": 1e-12, "atol": 0}
    assert came.per_level.shape == (2, len(flow.latent_shapes(8, 16)))
    assert came.map.shape == (2, 8, 16)
    assert torch.allclose(came.per_level.sum(1), came.bits_per_dim, **tolerance)
    assert torch.allclose(came.map.flatten(1).sum(1), came.bits_per_dim, **tolerance)
    dense = log_weights(
        flow, to_integers(image, came.n_bits)[0], labels(flow, [1, 3]) if flow.classes else None, samples=3
    )
    exact = {torch.float64: 1e-11, torch.float32: 1e-4}[dtype]
    total = bits_per_dim(importance_weighted(dense), image[0].numel())
    assert torch.allclose(came.bits_per_dim, total, rtol=exact, atol=exact)
    assert {t.dtype for t in vars(came).values() if isinstance(t, torch.Tensor)} == {torch.float64}


def test_the_constant_is_the_width_of_the_bins(flow):
    assert score(flow, picture()).constant == 8
    assert score(glow(grid="levels"), picture()).constant == pytest.approx(math.log2(255))
    assert score(glow(n_bits=5), picture()).constant == 5


def test_levels_and_pixels_by_hand():
    """The mean over the draws of what by_position says; everything else by dimensions, and evenly over the pixels."""
    flow = perturbed(glow(levels=3), 0).double()
    image = picture(2, 3, 8, 16)
    noise = torch.rand(2, *image.shape)
    came = score(flow, image, noise=noise, dequantization="gaussian")
    k, q = to_integers(image)[0].double(), Gaussian()
    shares = [flow.by_position(Quantization().place(k, q.draw(k, noise[s])[0]))[1] for s in range(2)]
    density = torch.stack([torch.stack(draw) for draw in shares]).mean(0)  # (levels, B, H, W), nats
    density = -density / (image[0].numel() * math.log(2))
    dimensions = torch.tensor([math.prod(shape) for shape in flow.latent_shapes(8, 16)], dtype=torch.float64)
    assert len(set(dimensions.tolist())) > 1
    rest = came.bits_per_dim - density.sum((0, 2, 3))
    levels = density.sum((2, 3)).T + rest[:, None] * dimensions / dimensions.sum()
    assert torch.allclose(came.per_level, levels, rtol=1e-10, atol=1e-10)
    assert torch.allclose(came.map, density.sum(0) + rest[:, None, None] / (8 * 16), rtol=1e-10, atol=1e-10)


def noise_of(image, seed):
    """The first uniform draw of every image, by hand."""
    return torch.stack(
        [torch.rand(image.shape[1:], generator=torch.Generator().manual_seed(seed + i)) for i in range(len(image))]
    ).double()


def test_the_map_shows_where_an_image_is_strange(flow):
    image = picture(1, 3, 16, 16)
    broken = image.clone()
    broken[:, :, 8:, 8:] = (torch.rand(1, 3, 8, 8) * 255).round() / 255
    difference = (score(flow, broken).map - score(flow, image).map)[0]
    assert difference[8:, 8:].sum() > 5 * difference[:4, :4].sum().abs()


# --- the same number however it is asked for --------------------------------------------------------------------------


@pytest.mark.parametrize("dequantization", ["uniform", "gaussian"])
def test_neither_batch_nor_neighbours_nor_order_change_a_score(flow, dequantization):
    wide = perturbed(flow, 0).double()
    image = picture(5)
    whole = score(wide, image, dequantization=dequantization, samples=4, seed=9)
    for batch in (1, 3, 20):
        same(score(wide, image, dequantization=dequantization, samples=4, seed=9, batch=batch), whole, 1e-10)
    for i in (0, 4):
        alone = score(wide, image[i : i + 1], dequantization=dequantization, samples=4, seed=9 + i)
        for name in ("bits_per_dim", "mean", "spread", "per_level", "map", "complexity", "log_prob"):
            assert torch.allclose(getattr(alone, name)[0], getattr(whole, name)[i], rtol=0, atol=1e-9), name
    twins = score(wide, image[[2, 1]], seed=0)
    assert not torch.allclose(twins.bits_per_dim[0], score(wide, image[[1, 2]], seed=0).bits_per_dim[1], atol=1e-9)


def test_asking_again_changes_nothing(flow):
    image = picture()
    before, state = image.clone(), {name: value.clone() for name, value in flow.state_dict().items()}
    random = torch.get_rng_state()
    one, two = (score(flow, image, samples=2, seed=1) for _ in range(2))
    same(one, two)
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in flow.state_dict().items())
    assert not torch.allclose(one.bits_per_dim, score(flow, image, samples=2, seed=4).bits_per_dim, atol=1e-9)
    assert not one.bits_per_dim.requires_grad


def test_more_draws_keep_the_first_ones(flow):
    image = picture(2)
    one, three = (score(flow, image, samples=n, seed=5) for n in (1, 3))
    noise = torch.stack(
        [torch.stack([torch.rand(3, 8, 12, generator=g) for _ in range(3)]) for g in generators(5, 2)], 1
    )
    same(score(flow, image, noise=noise, seed=5), three, 1e-6)
    same(score(flow, image, noise=noise[:1], seed=5), one, 1e-6)
    assert one.spread.isnan().all()
    assert (three.spread > 0).all()


def generators(seed, count):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def test_bytes_floats_and_layouts_score_alike(flow):
    image = picture()
    expected = score(flow, image)
    assert expected.notes == ()
    same(score(flow, as_bytes(image)), expected)
    same(score(flow, image.double()), expected)
    same(score(flow, image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), expected)
    with torch.inference_mode():
        same(score(flow, image.clone()), expected)


def test_float32_and_float64_agree_and_float64_is_float64(flow):
    image = picture()
    narrow_, wide = score(flow, image, samples=3), score(perturbed(flow, 0).double(), image, samples=3)
    for name in ("bits_per_dim", "per_level", "map", "log_prob"):
        assert torch.allclose(getattr(narrow_, name), getattr(wide, name), rtol=2e-4, atol=1e-4), name
    once_rounded = score(perturbed(flow, 0).double(), image, noise=noise_of(image, 0)[None])
    rounded = score(perturbed(flow, 0).double(), image, noise=noise_of(image, 0)[None] + 1e-12)
    assert 0 < (once_rounded.bits_per_dim - rounded.bits_per_dim).abs().max() < 1e-9  # float32 would lose 1e-12


# --- the contract -----------------------------------------------------------------------------------------------------


def test_five_bits_score_the_reduced_image():
    flow = glow(n_bits=5)
    image = as_bytes(picture())
    came = score(flow, image)
    assert came.n_bits == 5
    assert any("5 bits" in note for note in came.notes)
    coarse = image // 8 * 8
    same(score(flow, coarse), came)
    same(score(flow, coarse + torch.randint(0, 8, coarse.shape).to(torch.uint8)), came)
    assert not torch.allclose(score(flow, (coarse + 8 * (image < 240)).to(torch.uint8)).bits_per_dim, came.bits_per_dim)


def test_a_score_carries_its_contract(flow):
    came = score(flow, picture(), samples=2, seed=7, dequantization="gaussian")
    assert (came.n_bits, came.grid, came.dequantization, came.samples, came.seed, came.bound) == (
        8,
        "bins",
        "gaussian",
        2,
        7,
        True,
    )
    assert came.contract == {
        "n_bits": 8,
        "grid": "bins",
        "dequantization": "gaussian",
        "samples": 2,
        "bound": True,
    }
    assert score(flow, picture(), dequantization=Gaussian(0.1)).dequantization == "gaussian (std 0.1)"


def test_the_models_own_noise_is_asked_for_by_name(flow):
    with pytest.raises(FlowError, match="no variational dequantizer"):
        score(flow, picture(), dequantization="variational")
    own = glow(dequantizer_steps=1)
    came = score(own, picture(), dequantization="variational", samples=2)
    assert came.dequantization == "variational"
    same(score(own, picture(), dequantization=own.dequantizer, samples=2), came)
    noise = torch.stack(
        [torch.stack([torch.randn(3, 8, 12, generator=g) for _ in range(2)]) for g in generators(0, 3)], 1
    )
    same(score(own, picture(), dequantization="variational", noise=noise), came, 1e-5)
    assert came.bound


def test_noise_that_leaks_is_no_bound(flow):
    image = picture()
    noise = torch.randn(2, *image.shape) * 0.3 + 0.5
    came = score(flow, image, noise=noise)
    assert not came.bound
    assert any("neighboring bins" in note for note in came.notes)
    x = Quantization().place(to_integers(image)[0].double(), noise[0].double())
    wide = perturbed(flow, 0).double()
    by_hand = bits_per_dim(
        torch.stack([s.flatten(1).sum(1) for s in wide.by_position(x)[1]]).sum(0), x[0].numel(), 1 / 256
    )
    assert torch.allclose(score(wide, image, noise=noise[:1]).bits_per_dim, by_hand.detach(), rtol=0, atol=1e-9)
    assert score(flow, image, noise=noise.clamp(0, 0.999)).bound
    edge = noise.clamp(0, 0.999)
    edge[1, 2, 2, 7, 11] = 1.0
    assert not score(flow, image, noise=edge).bound


def test_what_was_done_to_the_image_is_said(flow):
    image = picture()
    plain = score(flow, image)
    rgba = score(flow, torch.cat([image, torch.rand(3, 1, 8, 12)], 1))
    assert any("Alpha" in note for note in rgba.notes)
    same(rgba, plain, leave=("notes",))
    grey = score(flow, image[:, :1])
    assert any("gray" in note for note in grey.notes)
    same(grey, score(flow, image[:, :1].expand(-1, 3, -1, -1)), leave=("notes",))
    off = score(flow, (image + 0.3 / 255).clamp(0, 1))
    assert any("8-bit grid" in note for note in off.notes)
    same(off, plain, leave=("notes",))
    outside = image.clone()
    outside[0, 0, 0, 0] = 1.5
    assert any("clamped" in note for note in score(flow, outside).notes)


def test_a_grey_model_takes_grey(flow):
    grey = glow(channels=1)
    assert score(grey, picture(2, 1)).map.shape == (2, 8, 12)
    with pytest.raises(ImageError, match="gray first"):
        score(grey, picture(2, 3))


def test_what_does_not_fit_is_refused(flow):
    image = picture()
    broken = image.clone()
    broken[0, 0, 0, :3] = math.nan
    for wrong, error, words in [
        (image[0], ImageError, r"\(3, 8, 12\)"),
        (image[:0], ImageError, "empty"),
        (image[:, :2], ImageError, "3 channels; got 2"),
        (broken, ImageError, "3 values"),
        (image.long(), ImageError, "int64"),
        (image[..., :10], ShapeError, r"divisible by 4; got 8x10\. Crop to 8x8"),
        (image[..., :3, :8], ShapeError, r"got 3x8\. Crop to 4x8"),
    ]:
        with pytest.raises(error, match=words):
            score(flow, wrong)
    for arguments, words in [
        ({"samples": 0}, "samples"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"batch": -1}, "batch"),
        ({"dequantization": "renyi"}, "renyi"),
        ({"noise": torch.zeros(3, 3, 8, 12)}, r"\(samples, 3, 3, 8, 12\)"),
        ({"noise": torch.zeros(2, 3, 3, 8, 12), "samples": 3}, r"\(3, 3, 3, 8, 12\)"),
        ({"noise": torch.full((1, 3, 3, 8, 12), math.nan)}, "finite"),
    ]:
        with pytest.raises(FlowError, match=words):
            score(flow, image, **arguments)
    with pytest.raises(ShapeError, match="images of 16x16 only; got 8x12"):
        score(glow(image_size=(16, 16), split_prior="table"), image)
    assert score(glow(image_size=(8, 8)), image).samples == 1  # convolutions take any size


def test_conditions_follow_their_images():
    flow = perturbed(glow(classes=3), 0.05).double()
    image = picture()[[0, 0, 0]]
    noise = torch.rand(2, 1, 3, 8, 12).expand(-1, 3, -1, -1, -1)
    three = score(flow, image, labels(flow, [2, 0, 1]), noise=noise, batch=2)
    for i, label in enumerate([2, 0, 1]):
        alone = score(flow, image[:1], labels(flow, [label]), noise=noise[:, :1])
        assert torch.allclose(alone.bits_per_dim[0], three.bits_per_dim[i], rtol=0, atol=1e-10)
    assert len({round(bits, 6) for bits in three.bits_per_dim.tolist()}) == 3
    one = score(flow, image, labels(flow, [1]), noise=noise)
    assert one.bits_per_dim.tolist() == pytest.approx([three.bits_per_dim[2].item()] * 3)
    with pytest.raises(ConditionError, match="2 items for 3 images"):
        score(flow, image, labels(flow, [1, 2]))
    with pytest.raises(ConditionError, match="takes a condition"):
        score(flow, image)
    with pytest.raises(ConditionError, match="takes no condition"):
        score(glow(), image, labels(flow, [1, 2, 0]))


def test_an_upscaler_scores_on_the_ordinary_grid():
    torch.manual_seed(0)
    fields = {
        "steps": 1,
        "hidden": 8,
        "encoder_blocks": 1,
        "encoder_width": 8,
        "encoder_growth": 4,
        "stacked_blocks": (0,),
    }
    flow = build("srflow", configure("srflow", fields))
    came = score(flow, picture(2, 3, 16, 24), torch.rand(2, 3, 4, 6), samples=2)
    assert came.grid == "levels"
    assert came.constant == pytest.approx(math.log2(255))
    assert torch.allclose(came.per_level.sum(1), came.bits_per_dim, rtol=1e-12, atol=0)


# --- progress and cancelling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("complexity", [True, False])
def test_progress_counts_every_draw(flow, complexity):
    calls = []
    score(
        flow,
        picture(),
        samples=5,
        batch=4,
        complexity=complexity,
        progress=lambda done, total, preview=None: calls.append((done, total)),
    )
    total = 15 + 3 * complexity
    assert [done for done, _ in calls] == [4, 8, 12, 15, *range(16, total + 1)]
    assert {t for _, t in calls} == {total}


def test_cancel_stops_at_once_and_leaves_no_hook(flow):
    asked = []

    def soon():
        asked.append(1)
        return len(asked) > 5

    with pytest.raises(Cancelled):
        score(flow, picture(), samples=1000, batch=1, cancelled=soon)
    assert len(asked) == 6
    asked.clear()
    with pytest.raises(Cancelled):  # between the layers of one pass, not only between passes
        score(flow, picture(), cancelled=soon)
    assert len(asked) == 6
    assert all(not module._forward_pre_hooks for module in flow.modules())


# --- complexity -------------------------------------------------------------------------------------------------------


def noise_image(side=64, channels=3):
    return torch.randint(0, 256, (1, channels, side, side), dtype=torch.uint8, generator=generators(0, 1)[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_flat_is_simple_and_noise_is_not(channels):
    sizes = {
        "noise": noise_image(64, channels),
        "photograph": as_bytes(picture(1, channels, 64, 64)),
        "smooth": as_bytes(picture(1, channels, 64, 64)) // 32 * 32,
        "grey": torch.full((1, channels, 64, 64), 200, dtype=torch.uint8),
        "black": torch.zeros(1, channels, 64, 64, dtype=torch.uint8),
    }
    bits = {name: lossless_bits(image[0]) / image[0].numel() for name, image in sizes.items()}
    assert bits["noise"] == pytest.approx(8, abs=0.1)
    assert 3 < bits["photograph"] < 7
    assert bits["smooth"] < bits["photograph"] - 2
    assert bits["grey"] < 0.01
    assert bits["black"] == 0


def test_complexity_is_of_the_integers_that_are_scored(flow):
    image = as_bytes(picture(2, 3, 16, 16))
    came = score(flow, image)
    for i in range(2):
        assert came.complexity[i].item() == pytest.approx(lossless_bits(image[i]) / 768)
    assert torch.equal(came.complexity_corrected, came.bits_per_dim - came.complexity)
    five = score(glow(n_bits=5), image)
    assert five.complexity[0].item() == pytest.approx(lossless_bits(image[0] // 8) / 768)
    without = score(flow, image, complexity=False)
    assert without.complexity is None
    assert without.complexity_corrected is None
    same(without, came, leave=("complexity", "complexity_corrected"))


def test_a_flat_image_looks_less_normal_after_the_correction(flow):
    """It scores best of all; corrected, it is the strangest but for noise."""
    image = as_bytes(picture(4, 3, 32, 32, seed=8))
    flat = torch.full((1, 3, 32, 32), 120, dtype=torch.uint8)
    plain, blank = score(flow, image), score(flow, flat)
    assert blank.bits_per_dim.item() < plain.bits_per_dim.min()
    assert blank.complexity_corrected.item() > plain.complexity_corrected.max()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_compressors_lose_nothing(channels, monkeypatch):
    """What was written is what was to be scored, bit for bit, in every format."""
    written = []
    save = Image.Image.save

    def watching(self, file, name, **options):
        save(self, file, name, **options)
        written.append((name, Image.open(io.BytesIO(file.getvalue())).copy(), np.asarray(self)))

    monkeypatch.setattr(Image.Image, "save", watching)
    lossless_bits(noise_image(20, channels)[0, :, :17])
    monkeypatch.undo()
    names = {"PNG"} | {n for n, f in (("WEBP", "webp"), ("JPEG2000", "jpg_2000")) if features.check(f)}
    assert {name for name, _, _ in written} == names
    for name, back, before in written:
        array = np.asarray(back)
        if array.ndim > before.ndim:  # WebP knows no grey
            assert (array == array[..., :1]).all()
            array = array[..., 0]
        assert np.array_equal(array, before), name


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (300, 5)])
def test_any_size_compresses(size):
    image = torch.randint(0, 256, (3, *size))
    assert 0 <= lossless_bits(image) <= 8.6 * image.numel() + 400


def test_compressors_that_pillow_lacks_are_left_out(monkeypatch):
    image = noise_image(16)[0]
    everything = lossless_bits(image)
    monkeypatch.setattr(task.features, "check", lambda _: False)
    task._black_sizes.cache_clear()
    try:
        assert lossless_bits(image) >= everything
    finally:
        monkeypatch.undo()
        task._black_sizes.cache_clear()


# --- typicality -------------------------------------------------------------------------------------------------------


def test_typicality_is_two_sided():
    reference = torch.arange(1.0, 100)  # mean 50
    came = typicality(torch.tensor([50.0, 99.0, 1.0, 75.0, 300.0, -200.0]), reference)
    spread = reference.double().std().item()
    assert came.distance.tolist() == pytest.approx(
        [0, 49 / spread, 49 / spread, 25 / spread, 250 / spread, 250 / spread]
    )
    assert came.tail.tolist() == pytest.approx([1, 0.03, 0.03, 0.51, 0.01, 0.01])


def test_typicality_tails_are_uniform_among_equals():
    generator = generators(3, 1)[0]
    tails = typicality(torch.randn(4000, generator=generator), torch.randn(999, generator=generator)).tail
    for level in (0.05, 0.2, 0.5):
        assert (tails <= level).double().mean().item() == pytest.approx(level, abs=0.03)


def test_typicality_wants_scores_that_compare(flow):
    many, blank = score(flow, picture(8)), score(flow, torch.full((1, 3, 8, 12), 0.5))
    came = typicality(blank, many)
    assert came.distance.shape == (1,)
    by_hand = (blank.bits_per_dim - many.bits_per_dim.mean()).abs() / many.bits_per_dim.std()
    assert torch.allclose(came.distance, by_hand)
    with pytest.raises(FlowError, match="samples 2 and 1"):
        typicality(score(flow, picture(1), samples=2), many)
    for reference in ([1.0], [2.0, 2.0], []):
        with pytest.raises(FlowError, match="at least 2 different"):
            typicality([1.0], reference)
    with pytest.raises(FlowError, match="finite"):
        typicality([math.nan], [1.0, 2.0])


def test_the_optimum_has_no_spread():
    """On the narrow density uniform draws differ, and few of many carry the bound: both are reported."""
    k, mean, std, _ = narrow()
    from .test_likelihood import Optimal, gaussian_flow

    flow = gaussian_flow(mean, std)
    plain = score(flow, k.to(torch.uint8), samples=16)
    best = score(flow, k.to(torch.uint8), samples=16, dequantization=Optimal(mean, std, Quantization()))
    assert (plain.effective_samples < 12).all()
    assert (plain.spread > 0.02).all()
    assert best.effective_samples.tolist() == pytest.approx([16] * 4)
    assert best.spread.abs().max() < 1e-10
    assert (best.bits_per_dim < plain.bits_per_dim + 0.05).all()
