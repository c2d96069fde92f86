"""The upscale task: any size, any layout, one seed one picture."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flowcore
from flowcore import Cancelled, FlowError, ImageError, upscale
from flowcore.device import preferred_precision
from flowcore.flow import Flow
from flowcore.images.resize import enlarge, resize
from flowcore.inference.condition_cache import ConditionStore
from flowcore.inference.plan import Plan, planned
from flowcore.models.srflow import SRFlowConfig, srflow
from flowcore.networks.rrdb import RRDBEncoder
from flowcore.prior import painted, sample_latents
from flowcore.quality.metrics import lr_psnr
from flowcore.tasks import upscale as task
from flowcore.tasks.runner import SamplingOptions
from flowcore.transforms import ActNorm


def tiny(scale: int = 4, *, residual: bool = True) -> Flow:
    torch.manual_seed(0)
    levels = 3 if scale == 4 else 4
    config = SRFlowConfig(
        scale=scale,
        levels=levels,
        steps=2,
        hidden=8,
        encoder_blocks=2,
        encoder_width=8,
        encoder_growth=4,
        stacked_blocks=(1,),
        residual=residual,
    )
    flow = srflow(config).eval()
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if not name.startswith("encoder"):
                parameter += 0.02 * torch.randn_like(parameter)
        # as in trained models, most latents mean pictures: the guard looks on
        next(m for m in flow.levels.modules() if isinstance(m, ActNorm)).log_scale += 3
    return flow


@pytest.fixture(scope="module")
def flow() -> Flow:
    return tiny()


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (2, 2), (7, 8), (9, 5)])
@pytest.mark.parametrize("scale", [4, 8])
def test_any_size_comes_out_scaled(size: tuple[int, int], scale: int) -> None:
    result = upscale(tiny(scale), picture(1, 3, *size), temperature=0.5)
    assert result.shape == (1, 3, scale * size[0], scale * size[1])
    assert result.isfinite().all()
    assert result.min() >= 0
    assert result.max() <= 1


def test_samples_of_image_0_come_before_those_of_image_1(flow: Flow) -> None:
    lr = picture(2, 3, 6, 8)
    both = upscale(flow, lr, samples=3, seed=5, temperature=0.7)
    for image in range(2):
        for sample in range(3):
            alone = upscale(flow, lr[image : image + 1], seed=5 + sample, temperature=0.7)
            assert torch.allclose(both[3 * image + sample], alone[0], atol=1e-6)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_a_tile_changes_nothing(flow: Flow) -> None:
    lr = picture(1, 3, 95, 83)
    whole = upscale(flow, lr, seed=1, temperature=0.8, tile=95 + 83)
    for tile in (32, 48):
        assert (upscale(flow, lr, seed=1, temperature=0.8, tile=tile) - whole).abs().max() <= 1 / 255


def test_without_a_halo_tiles_do_show(flow: Flow) -> None:
    """So that the test above can fail."""
    lr = picture(1, 3, 64, 64)
    whole = upscale(flow, lr, seed=1, temperature=0.8, tile=64)
    assert (upscale(flow, lr, seed=1, temperature=0.8, tile=32, halo=0) - whole).abs().max() > 1 / 255


def test_temperature_0_ignores_the_seed_and_temperature_spreads(flow: Flow) -> None:
    lr = picture(1, 3, 8, 8)
    assert torch.equal(upscale(flow, lr, temperature=0, seed=1), upscale(flow, lr, temperature=0, seed=2))
    spreads = [upscale(flow, lr, temperature=tau, samples=6).std(0).mean() for tau in (0.2, 0.8)]
    assert spreads[0] < spreads[1]


def test_the_encoder_runs_once_per_image_whatever_the_number_of_samples(flow: Flow) -> None:
    calls: list[int] = []
    assert isinstance(flow.encoder, RRDBEncoder)
    hook = flow.encoder.conv_first.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        upscale(flow, picture(2, 3, 6, 6), samples=4)
    finally:
        hook.remove()
    assert len(calls) == 2


def test_with_a_store_another_seed_skips_the_encoder_and_gives_the_same_picture(flow: Flow) -> None:
    calls: list[int] = []
    assert isinstance(flow.encoder, RRDBEncoder)
    store, lr = ConditionStore(), picture(2, 3, 10, 6)
    expected = [upscale(flow, lr, seed=seed, samples=2, temperature=0.7) for seed in (1, 2)]
    hook = flow.encoder.conv_first.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        for seed, theirs in zip((1, 2), expected, strict=True):
            ours = upscale(flow, lr, seed=seed, samples=2, temperature=0.7, store=store)
            assert torch.allclose(ours, theirs, atol=1e-5)
            assert len(calls) == 2  # one per image, in the first call
        again = upscale(flow, lr, seed=1, temperature=[0.7, 0.2], store=store)
        assert torch.equal(again, upscale(flow, lr, seed=1, temperature=[0.7, 0.2], store=store))
        assert len(calls) == 2
        assert len(store) == 2
        upscale(flow, lr + 1 / 255, store=store)  # other pictures
        assert len(calls) == 4
    finally:
        hook.remove()


def test_what_is_kept_belongs_to_the_weights_and_the_precision(flow: Flow) -> None:
    store, lr, other = ConditionStore(), picture(1, 3, 6, 6), tiny()
    before = upscale(other, lr, store=store)
    with torch.no_grad():
        other.levels[0].steps.transforms[-1].transforms[-1].conditioner.last.bias += 0.3  # pyright: ignore
    after = upscale(other, lr, store=store)
    assert (after - before).abs().max() > 1e-3
    assert torch.allclose(after, upscale(other, lr), atol=1e-5)
    low = upscale(other, lr, precision="bfloat16", store=store)
    assert torch.allclose(low, upscale(other, lr, precision="bfloat16"), atol=1e-2)
    assert not torch.equal(low, after)
    assert len(store) == 3


def test_a_store_does_not_grow(flow: Flow) -> None:
    plan = planned(flow)
    one = plan.encode_condition(picture(1, 3, 8, 8))
    room = one.prepare(plan).nbytes
    assert room == pytest.approx(one.nbytes + plan.prepared_bytes(32, 32), rel=0.01)
    store, sizes = ConditionStore(budget=3 * room + 100, count=10), set[int]()
    for seed in range(40):
        upscale(flow, picture(1, 3, 8, 8, seed=seed), store=store)
        sizes.add(len(store))
        assert store.nbytes <= store.budget
    assert max(sizes) == 3
    store = ConditionStore(budget=room - 1)  # prepared it does not fit, as the encoder leaves it it does
    upscale(flow, picture(1, 3, 8, 8), store=store)
    assert store.nbytes == one.nbytes
    store = ConditionStore(budget=one.nbytes - 1)
    upscale(flow, picture(1, 3, 8, 8), store=store)
    assert len(store) == 0
    store = ConditionStore(count=2)
    for seed in range(5):
        upscale(flow, picture(1, 3, 8, 8, seed=seed), store=store)
    assert len(store) == 2
    store.clear()
    assert store.nbytes == 0


def test_alpha_is_enlarged_the_ordinary_way_and_grey_becomes_rgb(flow: Flow) -> None:
    rgba = picture(2, 4, 6, 10)
    result = upscale(flow, rgba, samples=2)
    assert result.shape == (4, 4, 24, 40)
    assert torch.allclose(result[:2, 3:], enlarge(rgba[:1, 3:], 4).clamp(0, 1).expand(2, -1, -1, -1))
    assert torch.equal(result[:, :3], upscale(flow, rgba[:, :3], samples=2))
    grey = picture(1, 1, 6, 6)
    assert torch.equal(upscale(flow, grey), upscale(flow, grey.expand(-1, 3, -1, -1)))


def test_layouts_precisions_and_ranges_of_the_input(flow: Flow) -> None:
    lr = (picture(1, 3, 8, 6) * 255).round() / 255
    plain = upscale(flow, lr)
    assert torch.equal(upscale(flow, (lr * 255).round().to(torch.uint8)), plain)
    assert torch.equal(upscale(flow, lr.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), plain)
    assert (upscale(flow, lr.half()) - plain).abs().max() < 0.05
    loud = lr.clone()
    loud[0, 0, 0, 0], loud[0, 1, 0, 0] = 7, -3
    clamped = loud.clamp(0, 1)
    assert torch.equal(upscale(flow, loud), upscale(flow, clamped))
    assert loud[0, 0, 0, 0] == 7
    with torch.inference_mode():
        assert torch.equal(upscale(flow, lr.clone()), plain)


def test_bad_input_is_named(flow: Flow) -> None:
    lr = picture(1, 3, 4, 4)
    broken = lr.clone()
    broken[0, 0, 0, :2] = math.nan
    for image, words in [
        (broken, "2 values"),
        (lr[:0], "empty"),
        (lr[:, :2], r"\(1, 2, 4, 4\)"),
        (lr[0], "Expected images"),
        (lr[..., :0], "no pixels"),
    ]:
        with pytest.raises(ImageError, match=words):
            upscale(flow, image)
    for arguments, words in [
        ({"temperature": -0.1}, "-0.1"),
        ({"temperature": math.nan}, "nan"),
        ({"temperature": [0.5]}, "2 levels"),
        ({"samples": 0}, "samples"),
        ({"seed": -1}, "seed"),
        ({"precision": "float8"}, "float8"),
    ]:
        with pytest.raises(FlowError, match=words):
            upscale(flow, lr, **arguments)


def test_bfloat16_conditioners_stay_near_float32(flow: Flow) -> None:
    lr = picture(1, 3, 8, 8)
    assert (upscale(flow, lr, precision="bfloat16") - upscale(flow, lr)).abs().mean() < 0.02


def test_automatic_precision_is_what_the_device_gains_from(flow: Flow) -> None:
    lr = picture(1, 3, 8, 8)
    chosen = preferred_precision(torch.device("cpu"))
    assert chosen in ("float32", "bfloat16")
    assert torch.equal(upscale(flow, lr, precision="auto"), upscale(flow, lr, precision=chosen))


def test_float16_on_a_cpu_becomes_float32_and_says_so(flow: Flow) -> None:
    lr, said = picture(1, 3, 8, 8), list[str]()
    assert torch.equal(upscale(flow, lr, precision="float16", notify=said.append), upscale(flow, lr))
    assert "float32" in said[0]


@pytest.mark.parametrize("residual", [True, False])
def test_progress_counts_up_and_previews_every_sample(residual: bool) -> None:
    calls: list[tuple[int, int, torch.Tensor | None]] = []
    result = upscale(
        tiny(residual=residual),
        picture(2, 3, 40, 36),
        samples=2,
        tile=32,
        progress=lambda d, t, p=None: calls.append((d, t, p)),
    )
    counted = [done for done, _, _ in calls]
    assert counted == sorted(set(counted))
    assert counted[-1] == calls[0][1]
    assert len(counted) > 0.4 * counted[-1]  # of the condition's convolutions half run: together, or one by one
    assert len({total for _, total, _ in calls}) == 1
    previews = [p for _, _, p in calls if p is not None]
    assert len(previews) == 4
    for preview, sample in zip(previews, result, strict=True):
        assert torch.equal(preview, sample)


def test_cancel_stops_between_layers_and_leaves_the_model_as_it_was(flow: Flow) -> None:
    lr = picture(1, 3, 8, 8)
    before = upscale(flow, lr)
    asked: list[int] = []

    def soon() -> bool:
        asked.append(1)
        return len(asked) > 5

    with pytest.raises(Cancelled):
        upscale(flow, lr, samples=50, cancelled=soon)
    assert len(asked) == 6
    assert all(not module._forward_pre_hooks for module in flow.modules())
    assert torch.equal(upscale(flow, lr), before)


def test_running_out_of_memory_halves_the_tile_and_says_so(flow: Flow) -> None:
    """A hook that raises what torch raises stands in for a device that is too small for the larger tiles."""
    assert isinstance(flow.encoder, RRDBEncoder)

    def small_device(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[-1] > 80:
            raise RuntimeError("CUDA out of memory. Tried to allocate a lot")

    said: list[str] = []
    lr = picture(1, 3, 16, 200)
    expected = upscale(flow, lr, tile=32)
    hook = flow.encoder.conv_first.register_forward_pre_hook(small_device)
    try:
        result = upscale(flow, lr, notify=said.append)
        assert (result - expected).abs().max() <= 1 / 255
        assert "minimum memory" in said[0]
        assert "tiles of 100" in said[1]
    finally:
        hook.remove()
    hook = flow.encoder.conv_first.register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory"))
    )
    try:
        with pytest.raises(FlowError, match=r"Out of memory at 200x16 pixels\. Set tile"):
            upscale(flow, lr, notify=said.append)
    finally:
        hook.remove()


def test_other_errors_are_not_taken_for_lack_of_memory(flow: Flow) -> None:
    assert isinstance(flow.encoder, RRDBEncoder)
    hook = flow.encoder.conv_first.register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(RuntimeError("something else"))
    )
    try:
        with pytest.raises(RuntimeError, match="something else"):
            upscale(flow, picture(1, 3, 4, 4))
    finally:
        hook.remove()


# --- painted temperature ----------------------------------------------------------------------------------------------


def right_half(height: int, width: int, batch: int = 1) -> torch.Tensor:
    mask = torch.zeros(batch, 1, height, width)
    mask[..., width // 2 :] = 1
    return mask


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 1)])
@pytest.mark.parametrize("resolution", [(1, 1), (6, 8), (61, 47)])
def test_a_constant_map_is_the_temperature(flow: Flow, size: tuple[int, int], resolution: tuple[int, int]) -> None:
    lr, tau = picture(1, 3, *size), torch.full((1, 1, *resolution), 0.7)
    torch.testing.assert_close(
        upscale(flow, lr, temperature=tau), upscale(flow, lr, temperature=0.7), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("resolution", [(40, 64), (160, 256), (10, 16)])
def test_half_a_map_is_calm_here_and_lively_there(flow: Flow, resolution: tuple[int, int]) -> None:
    lr, mask = picture(1, 3, 40, 64), right_half(*resolution)
    lively, calm = (upscale(flow, lr, temperature=tau, samples=2, seed=1) for tau in (0.8, 0.2))
    half = upscale(flow, lr, temperature=painted(mask, 0.8, 0.2), samples=2, seed=1)
    far = 14 * 4  # from the seam, which a coarse mask blurs
    assert (half - calm)[..., : 128 - far].abs().max() < 1 / 255
    assert (half - lively)[..., 128 + far :].abs().max() < 1 / 255
    assert (half - lively)[..., : 128 - far].abs().max() > 0.05


def test_a_tile_changes_nothing_of_a_painted_picture(flow: Flow) -> None:
    """Sides that no level divides, so that the map must end with the image and not with the padded one."""
    lr, tau = picture(1, 3, 95, 83), painted(right_half(33, 50), 0.8, 0.1)
    whole = upscale(flow, lr, seed=1, temperature=tau, tile=95 + 83)
    for tile in (32, 48):
        assert (upscale(flow, lr, seed=1, temperature=tau, tile=tile) - whole).abs().max() <= 1 / 255


def test_a_map_lies_over_the_image_and_not_over_the_padded_one(flow: Flow) -> None:
    """With 9 columns, 10 are worked on: the middle of the map is column 4.5 of the image."""
    lr = picture(1, 3, 8, 9)
    shapes = planned(flow).latent_shapes(32, 40)
    tau = task._Latents(shapes, lr, 8, 10, [right_half(8, 90)], SamplingOptions()).taus[0][0]
    assert isinstance(tau, torch.Tensor)
    assert tau.shape[-1] == 10 * 2
    assert tau[0, 0, 0, :8].tolist() == [0.0] * 8
    assert tau[0, 0, 0, 8:10].sum() == pytest.approx(1)  # the seam is after column 9 of 18
    assert tau[0, 0, 0, 10:].tolist() == pytest.approx([1.0] * 10)


def test_a_map_works_where_all_latents_are_coarser_than_the_image() -> None:
    torch.manual_seed(0)
    sizes = {"steps": 1, "hidden": 8, "encoder_blocks": 1, "encoder_width": 8, "encoder_growth": 4}
    small = srflow(SRFlowConfig(scale=2, levels=2, stacked_blocks=(0,), **sizes)).eval()
    lr, tau = picture(1, 3, 9, 7), painted(right_half(9, 7), 0.7, 0.7)
    torch.testing.assert_close(upscale(small, lr, temperature=tau), upscale(small, lr, temperature=0.7))


def test_every_image_may_have_a_map_and_every_level_a_temperature(flow: Flow) -> None:
    lr = picture(2, 3, 12, 16)
    masks = torch.cat([right_half(12, 16), 1 - right_half(12, 16)])
    taus = [painted(masks, 0.9, 0.1), painted(masks, 0.6, 0.0)]
    both = upscale(flow, lr, temperature=taus, samples=2, seed=3)
    for k in range(2):
        alone = upscale(flow, lr[k : k + 1], temperature=[tau[k : k + 1] for tau in taus], samples=2, seed=3)
        torch.testing.assert_close(both[2 * k : 2 * k + 2], alone, atol=1e-6, rtol=0)
    mixed = upscale(flow, lr, temperature=[taus[0], 0.5])
    assert (mixed - both[::2]).abs().max() > 1e-3
    with pytest.raises(FlowError, match="2 levels"):
        upscale(flow, lr, temperature=[taus[0]])
    with pytest.raises(FlowError, match=r"shape \(1 or 2, 1"):
        upscale(flow, lr, temperature=torch.ones(3, 1, 4, 4))


def test_a_painted_picture_that_overflows_is_mended(flow: Flow) -> None:
    said: list[str] = []
    tau = painted(right_half(24, 24), 60.0, 0.3)
    result = upscale(flow, picture(1, 3, 24, 24), temperature=tau, notify=said.append)
    assert "overflow" in said[0]
    assert result.isfinite().all()
    calm = upscale(flow, picture(1, 3, 24, 24), temperature=0.3)
    assert (result - calm)[..., :8].abs().max() < 1 / 255


# --- several temperatures at once -------------------------------------------------------------------------------------


def test_a_grid_is_every_temperature_with_every_seed_and_one_analysis(flow: Flow) -> None:
    calls: list[int] = []
    assert isinstance(flow.encoder, RRDBEncoder)
    lr = picture(2, 3, 6, 8)
    hook = flow.encoder.conv_first.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        grid = task.temperature_grid(flow, lr, [0.0, 0.5, 0.9], seed=7, seeds=4)
    finally:
        hook.remove()
    assert len(calls) == 2  # twelve pictures of either image, more than go through the flow at once
    assert grid.shape == (24, 3, 24, 32)
    for item, image in enumerate(lr):
        for row, tau in enumerate([0.0, 0.5, 0.9]):
            alone = upscale(flow, image[None], temperature=tau, seed=7, samples=4)
            first = item * 12 + row * 4
            torch.testing.assert_close(grid[first : first + 4], alone, atol=1e-5, rtol=0)
    for temperatures, seeds in (([], 1), ([0.5], 0)):
        with pytest.raises(FlowError, match="at least one temperature and one seed"):
            task.temperature_grid(flow, lr, temperatures, seeds=seeds)


# --- size and consistency ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lr", "factor", "longest", "expected"),
    [
        ((6, 8), 0, 0, (24, 32)),
        ((6, 8), 4, 0, (24, 32)),
        ((6, 8), 2.5, 0, (15, 20)),
        ((6, 8), 7, 0, (42, 56)),
        ((6, 8), 0.5, 0, (3, 4)),
        ((6, 8), 2, 33, (25, 33)),
        ((9, 5), 0, 100, (100, 56)),
        ((1, 7), 0, 3, (1, 3)),
        ((1, 200), 0, 50, (1, 50)),
    ],
)
def test_any_size_can_be_asked_for(lr: tuple[int, int], factor: float, longest: int, expected: tuple[int, int]) -> None:
    flow, said = tiny(), list[str]()
    image = picture(1, 4, *lr)
    assert task.target_size(flow, *lr, factor, longest) == expected
    result = upscale(flow, image, factor=factor, longest_side=longest, samples=2, notify=said.append)
    assert result.shape == (2, 4, *expected)
    assert result.min() >= 0
    assert result.max() <= 1
    plain = upscale(flow, image, samples=2)
    assert torch.equal(result[:, :3], resize(plain[:, :3], *expected).clamp(0, 1))
    assert torch.equal(result[:1, 3:], resize(image[:, 3:], *expected).clamp(0, 1))
    assert [line for line in said if "ordinary resize" in line] == said
    assert bool(said) == (expected[0] > 4 * lr[0])


@pytest.mark.parametrize(("factor", "longest"), [(-1, 0), (math.nan, 0), (math.inf, 0), (0, -5), (1e6, 0), (0, 10**6)])
def test_sizes_that_make_no_sense_are_refused(flow: Flow, factor: float, longest: int) -> None:
    with pytest.raises(FlowError, match=r"longest_side|most"):
        upscale(flow, picture(1, 3, 6, 8), factor=factor, longest_side=longest)


@pytest.mark.parametrize("size", [{}, {"factor": 6}, {"longest_side": 71}])
def test_a_matched_picture_is_the_image_again_when_it_is_shrunk(flow: Flow, size: dict[str, float]) -> None:
    lr = enlarge(picture(2, 4, 6, 8), 4).clamp(0.1, 0.9)
    plain, matched = (upscale(flow, lr, samples=2, match_source=on, **size) for on in (False, True))  # pyright: ignore
    assert matched.shape == plain.shape
    assert torch.equal(matched[:, 3:], plain[:, 3:])
    small = lr.repeat_interleave(2, 0)[:, :3]
    assert (lr_psnr(matched[:, :3], small) >= 60).all()
    assert (lr_psnr(plain[:, :3], small) < 60).all()


def test_what_is_smaller_than_the_image_is_not_matched_and_that_is_said(flow: Flow) -> None:
    said: list[str] = []
    lr = picture(1, 3, 6, 8)
    result = upscale(flow, lr, factor=0.5, match_source=True, notify=said.append)
    assert torch.equal(result, upscale(flow, lr, factor=0.5))
    assert "ignored" in said[0]


def test_memory_estimate_grows_with_the_image_and_falls_with_tiles(flow: Flow) -> None:
    small, large = (task.memory_required(flow, n, 64) - task.STRIPS for n in (64, 128))
    assert large == pytest.approx(2 * small, rel=1e-6)
    assert task.memory_required(flow, 2048, 2048, tile=64) < task.memory_required(flow, 2048, 2048) / 10


def test_public_names_are_there() -> None:
    for name in flowcore.__all__:
        assert hasattr(flowcore, name)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [3, 4])
def test_an_image_that_lies_on_a_gpu_gives_pictures_there(flow: Flow, channels: int) -> None:
    lr = picture(1, channels, 24, 20)
    expected = upscale(flow, lr, seed=3)
    try:
        result = upscale(flow.to("cuda"), lr.to("cuda"), seed=3)
    finally:
        flow.to("cpu")
    assert result.device.type == "cuda"
    assert (result.cpu() - expected).abs().max() <= 1 / 255


@pytest.mark.gpu
def test_the_same_picture_on_a_gpu(flow: Flow) -> None:
    lr = picture(1, 3, 24, 20)
    expected = upscale(flow, lr, seed=3)
    try:
        result = upscale(flow.to("cuda"), lr, seed=3)
    finally:
        flow.to("cpu")
    assert result.device.type == "cpu"
    assert (result - expected).abs().max() <= 1 / 255


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "float16", "bfloat16"])
def test_reduced_precision_on_a_gpu_is_near_float32(flow: Flow, precision) -> None:
    lr = picture(1, 3, 24, 20)
    try:
        flow.to("cuda")
        difference = upscale(flow, lr, seed=3, precision=precision) - upscale(flow, lr, seed=3)
    finally:
        flow.to("cpu")
    assert 0 < difference.abs().mean() < 0.02


@pytest.mark.gpu
def test_a_recorded_decoding_on_a_gpu_gives_the_same_picture(flow: Flow) -> None:
    try:
        plan = Plan(flow.to("cuda"))
        cond = plan.encode_condition(picture(1, 3, 24, 20).cuda()).prepare(plan)
        first, second = ([t.cuda() for t in sample_latents(plan.latent_shapes(96, 80), 2, seed=s)] for s in (1, 2))
        decode = plan.recorded(first, cond)
        for z in (first, second, first):
            torch.testing.assert_close(decode(z), plan.inverse(z, cond))
    finally:
        flow.to("cpu")


def test_elsewhere_a_recorded_decoding_is_the_ordinary_one(flow: Flow) -> None:
    plan = Plan(flow)
    cond = plan.encode_condition(picture(1, 3, 6, 4))
    z = sample_latents(plan.latent_shapes(24, 16), 1, seed=1)
    assert torch.equal(plan.recorded(z, cond)(z), plan.inverse(z, cond))


def test_tf32_is_float32_where_there_are_no_tensor_cores(flow: Flow) -> None:
    lr = picture(1, 3, 6, 4)
    assert torch.equal(upscale(flow, lr, precision="tf32"), upscale(flow, lr))


class NoWaiting(TorchDispatchMode):
    """Refuses operations for whose result the processor would have to wait for a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_to_copy")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        moved = name == "_to_copy" and "device" in (kwargs or {}) and kwargs["device"] != args[0].device
        if name in self.WAITING and (name != "_to_copy" or moved):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def test_decoding_waits_for_nothing(flow: Flow) -> None:
    plan = Plan(flow)
    lr, z = picture(1, 3, 6, 4), sample_latents(plan.latent_shapes(24, 16), 2, seed=1)
    with NoWaiting():
        cond = plan.encode_condition(lr)
        plan.inverse(z, cond)
        plan.inverse(z, cond.prepare(plan))
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):  # so that this test can fail
        float(lr.sum())
