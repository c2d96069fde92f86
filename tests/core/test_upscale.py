"""The upscale task: any size, any layout, one seed one picture, in tiles that cover it once."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from builders import build_hcflow, build_tiny, build_upscaler
from builders import random_image as picture
from torch import Tensor

from flowcore import CompiledFlow, Flow, FlowError, ImageError, match_source, temperature_grid, upscale
from flowcore.engine.compiled import compiled
from flowcore.engine.condition_cache import ConditionStore
from flowcore.engine.guide import MATCHING
from flowcore.engine.memory import memory_in_tiles, memory_required
from flowcore.engine.options import DrawSettings, RunOptions
from flowcore.engine.runner import Runner
from flowcore.engine.tiles import Latents, tile_grid
from flowcore.flows.networks.strips import minimum_memory
from flowcore.flows.prior import masked_temperature, sample_latents
from flowcore.images.metrics import lr_psnr
from flowcore.images.resize import back_project, enlarge, resize
from flowcore.tasks import upscale as task

flow = pytest.fixture(scope="module")(build_upscaler)


@pytest.fixture
def encoded(monkeypatch):
    """Sources that compiled flows have encoded."""
    sources, encode = list[Tensor](), CompiledFlow.encode_condition

    def recording(fast: CompiledFlow, source: Tensor) -> object:
        sources.append(source)
        return encode(fast, source)

    monkeypatch.setattr(CompiledFlow, "encode_condition", recording)
    return sources


def right_half(height: int, width: int) -> Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., width // 2 :] = 1
    return mask


@pytest.mark.parametrize(
    ("temperature", "calm_edges"), [(0.8, 0.0), (masked_temperature(right_half(33, 50), 0.8, 0.1), 0.0), (0.8, 0.75)]
)
def test_tiles_do_not_change_the_picture(flow, temperature, calm_edges):
    """With sides that no level divides, so that a map must end with the image and not with the padded one."""
    lr, options = picture(1, 3, 95, 83), {"seed": 1, "temperature": temperature, "calm_edges": calm_edges}
    whole = upscale(flow, lr, tile=95 + 83, **options)
    assert (upscale(flow, lr, tile=32, **options) - whole).abs().max() <= 1 / 255
    without_halo = upscale(flow, lr, tile=32, halo=0, **options)  # so that this test can fail
    assert (without_halo - whole).abs().max() > 1 / 255


@pytest.mark.parametrize("options", [{}, {"factor": 3.3, "match_source": True, "tile": 32}])
def test_gray_stays_gray(flow, options):
    gray, notes = picture(1, 1, 40, 36), list[str]()
    drawing: dict[str, Any] = {"temperature": 0.8, "samples": 2, **options}
    one = upscale(flow, gray, **drawing, notify=notes.append)
    assert one.shape[:2] == (2, 1)
    three = upscale(flow, gray.expand(-1, 3, -1, -1), **drawing, notify=notes.append)
    assert torch.equal(three, one.expand(-1, 3, -1, -1))
    color = picture(1, 3, 40, 36)
    mixed = upscale(flow, torch.cat([color, gray.expand(-1, 3, -1, -1)]), **drawing, notify=notes.append)
    assert torch.equal(mixed[:2], upscale(flow, color, **drawing))
    assert (mixed[:2, 0] != mixed[:2, 2]).any()
    assert torch.equal(mixed[2:], three)
    assert not any("gray" in note for note in notes)


def test_previews_of_gray_are_gray(flow):
    shown = list[Tensor]()

    def show(done: int, total: int, preview: Tensor | None = None) -> None:
        if preview is not None:
            shown.append(preview.clone())  # of a picture that is not finished

    upscale(flow, picture(1, 1, 6, 6).expand(-1, 3, -1, -1), progress=show)
    (preview,) = shown
    assert torch.equal(preview[:1].expand(3, -1, -1), preview)


def test_invalid_arguments_raise_readable_errors(flow):
    lr = picture(1, 3, 4, 4)
    for name, value, words in [
        ("temperature", math.nan, "nan"),
        ("temperature", [0.5], "2 levels"),
        ("temperature", torch.ones(3, 1, 4, 4), r"shape \(1 or 1, 1"),
        ("longest_side", 10**6, "at most 65536"),
    ]:
        with pytest.raises(FlowError, match=words):
            upscale(flow, lr, **{name: value})


def test_with_a_store_another_seed_skips_the_encoder(flow, encoded):
    store, lr = ConditionStore(), picture(2, 3, 10, 6)
    expected = [upscale(flow, lr, seed=seed, samples=2, temperature=0.7) for seed in (1, 2)]
    assert len(encoded) == 4  # one per image and call, whatever the number of samples
    encoded.clear()
    for seed in (1, 2):
        result = upscale(flow, lr, seed=seed, samples=2, temperature=0.7, store=store)
        assert torch.allclose(result, expected[seed - 1], atol=1e-5)
        assert len(encoded) == 2  # one per image, in the first call
    again = upscale(flow, lr, seed=1, temperature=[0.7, 0.2], store=store)
    assert torch.equal(again, upscale(flow, lr, seed=1, temperature=[0.7, 0.2], store=store))
    assert len(encoded) == len(store) == 2
    upscale(flow, lr + 1 / 255, store=store)  # other pictures
    assert len(encoded) == 4


def test_stored_conditions_belong_to_a_precision(flow):
    """And to weights, as test_compiled.py shows."""
    store, lr = ConditionStore(), picture(1, 3, 6, 6)
    exact, low = (upscale(flow, lr, precision=precision, store=store) for precision in ("float32", "bfloat16"))
    assert torch.allclose(low, upscale(flow, lr, precision="bfloat16"), atol=1e-2)
    assert not torch.equal(low, exact)
    assert len(store) == 2


def test_a_store_does_not_grow(flow):
    fast = compiled(flow)
    one = fast.encode_condition(picture(1, 3, 8, 8))
    prepared = one.prepare(fast).nbytes
    assert prepared == pytest.approx(one.nbytes + fast.prepared_bytes(32, 32), rel=0.01)
    for budget, count, conditions, nbytes in [
        (3 * prepared + 100, 10, 3, 3 * prepared),
        (prepared - 1, 1, 1, one.nbytes),  # prepared it does not fit, as encoded it does
        (one.nbytes - 1, 4, 0, 0),
        (2**30, 2, 2, 2 * prepared),
    ]:
        store = ConditionStore(budget=budget, count=count)
        for seed in range(5):
            upscale(flow, picture(1, 3, 8, 8, seed=seed), store=store)
            assert store.nbytes <= budget
        assert (len(store), store.nbytes) == (conditions, nbytes)
        store.clear()
        assert store.nbytes == 0


def test_a_store_forgets_what_was_used_longest_ago(flow, encoded):
    store = ConditionStore(count=2)
    a, b, c = (picture(1, 3, 6, 6, seed=seed) for seed in range(3))
    for lr in (a, b, a, c, a):
        upscale(flow, lr, store=store)
    assert len(encoded) == 3


def test_a_grid_is_every_temperature_with_every_seed_and_encodes_once(flow, encoded):
    lr = picture(2, 3, 6, 8)
    grid = temperature_grid(flow, lr, [0.0, 0.5, 0.9], seed=7, seeds=4)
    assert len(encoded) == 2  # twelve pictures of either image, more than go through the flow at once
    assert grid.shape == (24, 3, 24, 32)
    for item, image in enumerate(lr):
        for row, tau in enumerate([0.0, 0.5, 0.9]):
            alone = upscale(flow, image[None], temperature=tau, seed=7, samples=4)
            first = item * 12 + row * 4
            torch.testing.assert_close(grid[first : first + 4], alone, atol=1e-5, rtol=0)
    for temperatures, seeds in (([], 1), ([0.5], 0)):
        with pytest.raises(FlowError, match=r"at least one|^seeds"):
            temperature_grid(flow, lr, temperatures, seeds=seeds)


@pytest.mark.parametrize("residual", [True, False])
def test_progress_counts_up_and_previews_every_sample(residual):
    calls: list[tuple[int, int, Tensor | None]] = []
    options = {"samples": 2, "tile": 32, "progress": lambda d, t, p=None: calls.append((d, t, p))}
    result = upscale(build_upscaler(residual=residual), picture(2, 3, 40, 36), **options)
    counted = [done for done, _, _ in calls]
    assert max(after - before for before, after in pairwise([0, *counted])) < 0.05 * counted[-1]  # it never stands
    previews = [p for _, _, p in calls if p is not None]
    assert len(previews) == 4
    for preview, sample in zip(previews, result, strict=True):
        assert torch.equal(preview, sample)


def test_samples_come_one_by_one_and_a_known_image_takes_the_whole_bar(flow):
    store, lr = ConditionStore(), picture(1, 3, 12, 8)

    def shares(seed: int) -> tuple[list[float], list[float]]:
        calls: list[tuple[float, bool]] = []
        options = {"samples": 4, "seed": seed, "store": store}
        upscale(flow, lr, progress=lambda d, t, p=None: calls.append((d / t, p is not None)), **options)
        return [share for share, _ in calls], [share for share, shown in calls if shown]

    first, shown = shares(1)
    gaps = [after - before for before, after in pairwise(shown)]
    assert len(shown) == 4
    assert min(gaps) > 0.5 * max(gaps) > 0
    assert shown[0] > 0.3  # after the analysis of the image
    again, shown = shares(5)
    assert (first[-1], again[-1]) == (1, 1)
    assert shown[0] == pytest.approx(0.25, abs=0.05)


def test_out_of_memory_halves_the_tiles(flow, monkeypatch):
    """An encoder that raises what torch raises stands in for a device that is too small."""
    lr, sentences, encode = picture(1, 3, 16, 104), list[str](), CompiledFlow.encode_condition
    expected = upscale(flow, lr, tile=32)
    limit, message = 80, "CUDA out of memory. Tried to allocate a lot"

    def small_device(fast: CompiledFlow, source: Tensor) -> object:
        if source.shape[-1] > limit:
            raise RuntimeError(message)
        return encode(fast, source)

    monkeypatch.setattr(CompiledFlow, "encode_condition", small_device)
    result = upscale(flow, lr, notify=sentences.append)
    assert (result - expected).abs().max() <= 1 / 255
    assert "minimum memory" in sentences[0]
    assert "tiles of 52" in sentences[1]
    limit = 0
    with pytest.raises(FlowError, match=r"Out of memory.*tile"):
        upscale(flow, lr, notify=sentences.append)
    message = "something else"
    with pytest.raises(RuntimeError, match="something else"):
        upscale(flow, lr)


def test_memory_estimate_grows_with_the_image_and_falls_with_tiles(flow):
    small, large = (memory_required(flow, 1, n, 64) for n in (64, 128))
    assert large == pytest.approx(2 * small, rel=1e-6)
    assert memory_in_tiles(flow, 2048, 2048, 64) < memory_in_tiles(flow, 2048, 2048, 2048) / 10
    guided, alone = (memory_in_tiles(flow, 64, 64, 64, guided=on) for on in (True, False))
    assert guided - alone == 2 * (4 * 3 * 256 * 256)  # the guide, and its change to shrink to the image


def test_a_constant_map_equals_the_number(flow):
    coarse = build_upscaler(2, steps=1)  # whose latents are all coarser than the image
    for size, resolution in (((6, 8), (1, 1)), ((1, 1), (61, 47))):
        lr, tau = picture(1, 3, *size), torch.full((1, 1, *resolution), 0.7)
        for model in (flow, coarse):
            one, other = (upscale(model, lr, temperature=each) for each in (tau, 0.7))
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("resolution", [(160, 256), (10, 16)])
def test_each_half_of_a_map_has_its_temperature(flow, resolution):
    lr, mask = picture(1, 3, 40, 64), right_half(*resolution)
    high, low = (upscale(flow, lr, temperature=tau, samples=2, seed=1) for tau in (0.8, 0.2))
    half = upscale(flow, lr, temperature=masked_temperature(mask, 0.8, 0.2), samples=2, seed=1)
    far = 14 * 4  # from the seam, which a coarse mask blurs
    assert (half - low)[..., : 128 - far].abs().max() < 1 / 255
    assert (half - high)[..., 128 + far :].abs().max() < 1 / 255
    assert (half - high)[..., : 128 - far].abs().max() > 0.05


def test_a_map_covers_the_image_and_not_the_padded_one(flow):
    """With 9 columns padded to 10, the middle of the map is column 4.5 of the image."""
    lr, drawn = picture(1, 3, 8, 9), [DrawSettings(temperature=right_half(8, 90))]
    latents = Latents(Runner(flow, RunOptions(), ""), task.TILING, lr, (0, 1, 0, 0), drawn)
    tau = latents.taus[0][0]
    assert isinstance(tau, Tensor)
    assert tau.shape[-1] == 10 * 2
    assert tau[0, 0, 0, :8].tolist() == [0.0] * 8
    assert tau[0, 0, 0, 8:10].sum() == pytest.approx(1)  # the seam is after column 9 of 18
    assert tau[0, 0, 0, 10:].tolist() == pytest.approx([1.0] * 10)


def test_every_image_may_have_a_map_and_every_level_a_temperature(flow):
    lr = picture(2, 3, 12, 16)
    masks = torch.cat([right_half(12, 16), 1 - right_half(12, 16)])
    taus = [masked_temperature(masks, 0.9, 0.1), masked_temperature(masks, 0.6, 0.0)]
    both = upscale(flow, lr, temperature=taus, samples=2, seed=3)
    for k in range(2):
        alone = upscale(flow, lr[k : k + 1], temperature=[tau[k : k + 1] for tau in taus], samples=2, seed=3)
        torch.testing.assert_close(both[2 * k : 2 * k + 2], alone, atol=1e-6, rtol=0)
    mixed = upscale(flow, lr, temperature=[taus[0], 0.5])
    assert (mixed - both[::2]).abs().max() > 1e-3


UPSCALERS = {
    "srflow": build_upscaler,
    "hcflow": build_hcflow,
    "srflow x8": lambda: build_upscaler(8),
    "srflow_da": lambda: build_tiny("srflow_da"),
}


def guided_by(flow: Flow, lr: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Another enlargement, which shrinks to the image as guides are changed to, and the picture that it guides."""
    lr = 0.3 + 0.4 * lr  # far from black and white, to which a picture is clamped
    guide = match_source(upscale(flow, lr, temperature=0.3, seed=99), lr)
    return guide, upscale(flow, lr, guide=guide, **options)


@pytest.mark.parametrize("kind", UPSCALERS)
def test_strength_0_is_the_picture_without_a_guide_and_1_is_the_guide(kind):
    lr, upscaler = picture(2, 3, 9, 7), UPSCALERS[kind]()
    expected = upscale(upscaler, 0.3 + 0.4 * lr, seed=3, samples=2, temperature=0.7)
    for strength in (0, 0.0, torch.zeros(1, 1, 5, 5)):
        _, same = guided_by(upscaler, lr, guide_strength=strength, seed=3, samples=2, temperature=0.7)
        assert torch.equal(same, expected)
    for strength in (1, torch.ones(1, 1, 5, 5)):
        guide, result = guided_by(upscaler, lr, guide_strength=strength, seed=3, samples=2, temperature=0.7)
        torch.testing.assert_close(result, guide.repeat_interleave(2, 0), atol=2e-4, rtol=0)


@pytest.mark.parametrize("match", [0.0, 0.5, 1.0])
def test_a_guide_is_changed_to_shrink_to_the_image_as_far_as_the_model_states(match):
    model, lr = build_upscaler(guide_match=match), 0.3 + 0.4 * picture(2, 3, 9, 7)
    guide = (enlarge(lr, 4) + 0.1).clamp(0, 1)  # in another tone
    matched = torch.cat([back_project(guide[k, None], lr[k, None], MATCHING, check=lambda: None) for k in range(2)])
    assert lr_psnr(matched, lr).min() > 45 > 25 > lr_psnr(guide, lr).max()
    result = upscale(model, lr, guide=guide, guide_strength=1)
    torch.testing.assert_close(result, guide.lerp(matched, match), atol=2e-3, rtol=0)


def test_tiles_and_strips_do_not_change_a_guided_picture(flow):
    lr, options = picture(1, 3, 95, 83), {"seed": 1, "temperature": 0.8, "guide_strength": right_half(33, 50)}
    guide, whole = guided_by(flow, lr, tile=95 + 83, **options)
    _, tiled = guided_by(flow, lr, tile=32, **options)
    assert (tiled - whole).abs().max() <= 1 / 255
    with minimum_memory():
        torch.testing.assert_close(guided_by(flow, lr, tile=95 + 83, **options)[1], whole, atol=1e-5, rtol=0)
    drawn = upscale(flow, 0.3 + 0.4 * lr, seed=1, temperature=0.8)
    assert (whole - drawn)[..., :104].abs().max() < 1 / 255
    assert (whole - guide)[..., -104:].abs().max() < 1 / 255
    assert (whole - drawn)[..., -104:].abs().max() > 0.05


@torch.no_grad()
def test_the_latents_of_a_guided_picture_correlate_with_the_guide_by_its_strength():
    flow = build_upscaler(guide_match=0.0)
    lr = 0.4 + 0.2 * picture(1, 3, 32, 32)
    guide = upscale(flow, lr, seed=11, temperature=0.2)
    cond = flow.encode_condition(lr)
    own = flow.encode(guide, cond)
    for strength in (0.3, 0.8):
        result = upscale(flow, lr, seed=5, temperature=0.2, guide=guide, guide_strength=strength)
        for kept, z in zip(own, flow.encode(result, cond), strict=True):
            assert torch.corrcoef(torch.stack([kept.flatten(), z.flatten()]))[0, 1] == pytest.approx(strength, abs=0.05)
            assert z.std() == pytest.approx(0.2, rel=0.05)


def test_a_bounded_guide_deviates_little_more_than_drawn_latents(flow):
    lr = 0.3 + 0.4 * picture(1, 3, 12, 10)
    cond = flow.encode_condition(lr)
    loud = flow.inverse([4 * z for z in sample_latents(flow.latent_shapes(48, 40), 1, 0.02)], cond).detach()
    asked = {"guide": loud, "guide_strength": 1.0, "temperature": 0.02}
    kept, bounded = (upscale(flow, lr, **asked, guide_bounded=bound) for bound in (False, True))
    deviations = [[float(z.detach().std()) / 0.02 for z in flow(made, cond)[0]] for made in (kept, bounded)]
    assert min(deviations[0]) > 3 > 1.5 > max(deviations[1])


def test_guides_are_encoded_once_per_picture_and_stand_for_themselves(flow, monkeypatch):
    lr, guides, count = picture(2, 3, 8, 6), torch.rand(2, 3, 32, 24), list[Tensor]()
    encode = CompiledFlow.encode_guide
    monkeypatch.setattr(CompiledFlow, "encode_guide", lambda fast, x, cond: count.append(x) or encode(fast, x, cond))
    options: dict[str, Any] = {"guide_strength": 0.7, "seed": 2}
    both = upscale(flow, lr, guide=guides, temperature=0.5, samples=3, **options)
    assert len(count) == 2
    for k in range(2):
        alone = upscale(flow, lr[k, None], guide=guides[k, None], temperature=0.5, samples=3, **options)
        torch.testing.assert_close(both[3 * k : 3 * k + 3], alone, atol=1e-5, rtol=0)
    grid = temperature_grid(flow, lr, [0.0, 0.5], seeds=3, guide=guides, **options)
    torch.testing.assert_close(grid[3:6], both[:3], atol=1e-5, rtol=0)
    of_one = upscale(flow, lr, guide=guides[:1], temperature=0.5, samples=3, **options)
    torch.testing.assert_close(of_one[:3], both[:3])
    assert (of_one[3:] - both[3:]).abs().max() > 1e-2
    assert torch.equal(upscale(flow, lr, guide=guides), upscale(flow, lr, guide=guides, guide_strength=0.5))


def test_progress_of_a_guided_picture_counts_its_pass(flow):
    shares = list[float]()
    guided_by(flow, picture(1, 3, 40, 36), tile=32, progress=lambda d, t, p=None: shares.append(d / t))
    assert shares == sorted(set(shares))
    assert shares[-1] == 1
    assert max(after - before for before, after in pairwise([0, *shares])) < 0.05


def test_a_guide_that_does_not_fit_is_reported_or_refused(flow):
    lr = picture(1, 3, 6, 8)
    guide, notes = enlarge(lr, 4).clamp(0, 1), list[str]()
    exact = upscale(flow, lr, guide=guide, notify=notes.append)
    assert not notes
    larger = upscale(flow, lr, guide=resize(guide, 48, 64).clamp(0, 1), guide_strength=0.5, notify=notes.append)
    assert "64x48" in notes[0]
    assert (larger - exact).abs().mean() < 0.05
    upscale(flow, lr, guide=1 - guide, notify=notes.append)
    assert "shows something other" in notes[1]
    upscale(flow, lr, guide_strength=0.5, notify=notes.append)
    assert "there is no guide" in notes[2]
    wrong: list[tuple[type[FlowError], str, dict[str, Any]]] = [
        (ImageError, "C = 1, 3 or 4", {"guide": torch.rand(1, 5, 24, 32)}),
        (ImageError, "NaN", {"guide": torch.full_like(guide, math.nan)}),
        (ImageError, "empty", {"guide": guide[:0]}),
        (ImageError, "each of 1 images; got 2", {"guide": guide.repeat(2, 1, 1, 1)}),
        (FlowError, r"\[0, 1\]; got 1.5", {"guide": guide, "guide_strength": 1.5}),
        (FlowError, r"\[0, 1\]; got -0.5", {"guide": guide, "guide_strength": torch.full((1, 1, 2, 2), -0.5)}),
        (FlowError, "guide strengths must have the shape", {"guide": guide, "guide_strength": torch.ones(2, 1, 4, 4)}),
    ]
    for error, words, arguments in wrong:
        with pytest.raises(error, match=words):
            upscale(flow, lr, **arguments)


@pytest.mark.parametrize(
    ("lr", "factor", "longest", "expected"),
    [
        ((6, 8), 0, 0, (24, 32)),
        ((6, 8), 7, 0, (42, 56)),
        ((6, 8), 0.5, 0, (3, 4)),
        ((9, 5), 0, 100, (100, 56)),
        ((1, 200), 0, 50, (1, 50)),
    ],
)
def test_any_size_can_be_requested(flow, lr, factor, longest, expected):
    image, sentences = picture(1, 4, *lr), list[str]()
    assert task.target_size(flow.condition_scale, *lr, factor, longest) == expected
    result = upscale(flow, image, factor=factor, longest_side=longest, samples=2, notify=sentences.append)
    assert result.shape == (2, 4, *expected)
    assert 0 <= result.min() < result.max() <= 1
    plain = upscale(flow, image, samples=2)
    assert torch.equal(result[:, :3], resize(plain[:, :3], *expected).clamp(0, 1))
    assert torch.equal(result[:1, 3:], resize(image[:, 3:], *expected).clamp(0, 1))
    assert len(sentences) == (expected[0] > 4 * lr[0])
    assert all("ordinary resize" in sentence for sentence in sentences)


@pytest.mark.parametrize("size", [{}, {"factor": 6}, {"longest_side": 71}, {"factor": 0.5}])
def test_a_matched_picture_shrinks_to_the_image(flow, size):
    lr, sentences = enlarge(picture(2, 4, 6, 8), 4).clamp(0.2, 0.9), list[str]()
    plain = upscale(flow, lr, samples=2, **size)  # pyright: ignore
    matched = upscale(flow, lr, samples=2, match_source=True, notify=sentences.append, **size)  # pyright: ignore
    assert matched.shape == plain.shape
    assert torch.equal(matched[:, 3:], plain[:, 3:])
    if size == {"factor": 0.5}:  # smaller than the image
        assert torch.equal(matched, plain)
        assert "ignored" in sentences[0]
        return
    small = lr.repeat_interleave(2, 0)[:, :3]
    assert (lr_psnr(matched[:, :3], small) >= 60).all()
    assert (lr_psnr(plain[:, :3], small) < 60).all()


def test_a_tile_smaller_than_the_grid_is_refused() -> None:
    with pytest.raises(FlowError, match="at least 2"):
        tile_grid(8, 8, tile=1, halo=0, multiple=2)
