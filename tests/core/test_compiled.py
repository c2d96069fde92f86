"""A compiled flow equals its flow: the same images, latents and logdets, whatever model, strips and condition."""

import functools
import gc
import math
import weakref

import every_task
import pytest
import torch
from builders import MODELS, assemble, build_model, build_tiny, sides_of, source_of
from flowcore.testing import close, perturbed, tensors

import flowcore
from flowcore import CompiledFlow, Condition, ConditionError, FlowError, FlowModel, PrecisionError
from flowcore.engine.compiled import CACHE, compiled, drop_compiled
from flowcore.engine.fold import Mixing
from flowcore.flows import testing as laws
from flowcore.flows.flow import Level
from flowcore.flows.networks import strips
from flowcore.flows.networks.conditioner import Conditioner
from flowcore.flows.networks.convolutions import Conv
from flowcore.flows.networks.strips import observed
from flowcore.flows.prior import sample_latents
from flowcore.flows.transforms import ActNorm, Chain, Injector, Permutation, Squeeze
from flowcore.models import build, configure
from flowcore.training.stage import PeakMemory

ROWS = 10  # of the coarsest grid: strips have at least 8, so that there are several on every grid, and a lower last one
FEW = ("srflow x4 residual", "hcflow", "glow with labels", "realnvp", "colorizer")
CONDITIONAL = ["srflow x8", "srflow_da s", "srflow on imdn", "llflow", "class_conditional", "glow by table"]
CONDITIONAL += [model for model in FEW if model != "realnvp"]
LOW, DEFAULT = 1, 0  # bytes of a strip; the lowest strips are where errors show

some_models = pytest.mark.parametrize("model", FEW)


def in_strips(models):
    """Models in low strips, and one as usual."""
    cases = [*((model, LOW) for model in models), ("srflow x4 residual", DEFAULT)]
    return pytest.mark.parametrize(("model", "strip_bytes"), cases)


def fresh(model, dtype=torch.float64, seed=4):
    return build_model(model, rows=ROWS, seed=seed).to(dtype).eval()


flow_of = functools.cache(fresh)


def sides(model):
    return sides_of(flow_of(model), ROWS)


@functools.cache
def compiled_of(model, dtype=torch.float64, strip_bytes=0):
    return CompiledFlow(flow_of(model, dtype), strip_bytes=strip_bytes)


def condition_of(encoder, model, dtype=torch.float64, batch=2):
    source = source_of(flow_of(model), *sides(model), batch)
    if source is None:
        return None
    with torch.no_grad():
        return encoder.encode_condition(source.to(dtype) if source.is_floating_point() else source)


def latents_of(model, dtype=torch.float64, batch=2):
    latents = sample_latents(flow_of(model, dtype).latent_shapes(*sides(model)), batch, 0.7, 3)
    return [z.to(dtype) for z in latents]


@functools.cache
def reference(model, dtype=torch.float64):
    """What the flow computes: an image from noise, its latents, logdet, and shares of the log density."""
    flow, cond = flow_of(model, dtype), condition_of(flow_of(model, dtype), model, dtype)
    with torch.no_grad():
        image = flow.inverse(latents_of(model, dtype), cond)
        return image, *flow(image, cond), flow.forward_with_logdet_map(image, cond)[1]


def check_equal(fast, model, cond, tolerance, dtype=torch.float64):
    """Compare all that a compiled flow computes with the reference."""
    image, latents, logdet, shares = reference(model, dtype)
    close(fast.inverse(latents_of(model, dtype), cond), image, tolerance)
    with torch.no_grad():
        encoded, change = fast(image, cond)
        again, amounts = fast.forward_with_logdet_map(image, cond)
    close(change, logdet, tolerance)
    for found, expected in ((encoded, latents), (again, latents), (amounts, shares)):
        for actual, wanted in zip(found[:-1], expected[:-1], strict=True):
            close(actual, wanted, tolerance)
        # the deviation from an anchor is in units of its standard deviation, exp(-6)
        close(found[-1], expected[-1], tolerance * (math.exp(6) if fast.predicts_lr else 1))


@pytest.mark.parametrize(
    ("model", "strip_bytes", "dtype"),
    [(model, LOW, torch.float64) for model in MODELS] + [(model, DEFAULT, torch.float32) for model in FEW],
)
def test_a_compiled_flow_computes_what_its_flow_computes(model, strip_bytes, dtype):
    flow, fast = flow_of(model, dtype), compiled_of(model, dtype, strip_bytes)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    check_equal(fast, model, condition_of(fast, model, dtype), tolerance, dtype)
    assert (fast.precision, fast.dtype) == ("float32", dtype)  # the flow's own
    for name in ("architecture", "config", "channels", "size_multiple", "condition_scale", "classes", "image_size"):
        assert getattr(fast, name) == getattr(flow, name)
    assert (fast.fixed_size, fast.predicts_lr) == (flow.fixed_size, flow.predicts_lr)
    assert fast.capabilities == flow.capabilities
    assert fast.latent_shapes(*sides(model)) == flow.latent_shapes(*sides(model))


def test_a_permutation_alone_stays_one():
    parts = list(compiled_of("class_conditional").levels.modules())
    assert any(isinstance(part, Permutation) for part in parts)
    assert not any(isinstance(part, Mixing) and len(part.to_latent[1]) > 4 for part in parts)


@in_strips([*CONDITIONAL, "srflow with shallow conditioners", "srflow without injector"])
def test_conditions_of_flow_and_compiled_flow_serve_both_prepared_or_not(model, strip_bytes):
    flow, fast = flow_of(model), compiled_of(model, strip_bytes=strip_bytes)
    own, foreign = condition_of(fast, model), condition_of(flow, model)
    for cond in (own.prepare(fast), foreign, foreign.prepare(fast)):
        check_equal(fast, model, cond, 1e-9)
    for cond in (own, own.prepare(fast)):
        with torch.no_grad():
            check_equal(flow, model, cond, 1e-9)
    close(fast.inverse(latents_of(model), own.prepare(fast)), fast.inverse(latents_of(model), own), 1e-12)


@in_strips(CONDITIONAL)
def test_one_image_serves_many_samples(model, strip_bytes):
    fast = compiled_of(model, strip_bytes=strip_bytes)
    latents, one = latents_of(model, batch=3), condition_of(fast, model, batch=1)
    image = torch.cat([fast.inverse([z[i : i + 1] for z in latents], one) for i in range(3)])
    assert not torch.allclose(image[0], image[1])
    each = fast(image[:1], one)[1]
    for cond in (one, one.expand(3), one.prepare(fast), one.expand(3).prepare(fast), one.prepare(fast).expand(3)):
        close(fast.inverse(latents, cond), image, 1e-9)
        encoded, change = fast(image, cond)
        close(change[:1], each, 1e-9)
        for z, expected in zip(encoded, latents, strict=True):
            close(z, expected, 1e-9)
    assert one.expand(3).prepare(fast).nbytes <= one.prepare(fast).nbytes


@pytest.mark.parametrize("strip_bytes", [DEFAULT, LOW])
def test_samples_of_one_lr_image_share_its_features(strip_bytes):
    fast = CompiledFlow(flow_of("hcflow"), strip_bytes=strip_bytes)
    one = condition_of(fast, "hcflow", batch=1)
    drawn = latents_of("hcflow", batch=3)
    drawn[-1] = drawn[-1][:1].expand(3, -1, -1, -1)
    batches: list[tuple[int, int]] = []
    for number, level in enumerate(fast.levels):
        level.details.extractor.conv_first.register_forward_pre_hook(
            lambda _m, args, number=number: batches.append((number, len(args[0][0][0])))
        )
    together = fast.inverse(drawn, one)
    assert set(batches) == {(0, 3), (1, 1)}  # the deepest level's once, the finer one's for every sample
    apart = [fast.inverse([z[i : i + 1] for z in drawn], one) for i in range(3)]
    close(together, torch.cat(apart), 1e-9)


@in_strips(FEW)
def test_running_a_compiled_flow_changes_neither_it_nor_condition_and_gives_no_gradients(model, strip_bytes):
    fast, image = CompiledFlow(fresh(model), strip_bytes=strip_bytes), reference(model)[0]
    cond = condition_of(fast, model)
    for given in (cond, None if cond is None else cond.prepare(fast)):
        laws.check_untouched(fast, image, given)
    latents, logdet = fast(image.clone().requires_grad_(), cond)
    image = fast.inverse([z.requires_grad_() for z in latents_of(model)], cond)
    assert not any(t.requires_grad for t in (*latents, logdet, image))


@some_models
def test_autocast_reaches_networks_only(model):
    fast, image = compiled_of(model, torch.float32), reference(model, torch.float32)[0]
    laws.check_precision(fast, image, condition_of(fast, model, torch.float32))
    mixings = [part for part in fast.modules() if isinstance(part, Mixing)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = [part(image.new_ones(2, len(part.to_latent[1]), 3, 4))[0] for part in mixings]
    assert {z.dtype for z in mixed} <= {torch.float32}


@pytest.mark.parametrize(
    ("model", "precision"), [*((model, "bfloat16") for model in FEW), ("srflow x4 residual", "float16")]
)
def test_images_of_low_precision_are_float32_and_close(model, precision):
    fast = CompiledFlow(flow_of(model, torch.float32), precision, strip_bytes=1)
    assert fast.dtype == getattr(torch, precision)
    image, cond = reference(model, torch.float32)[0], condition_of(fast, model, torch.float32)
    again = fast.inverse(latents_of(model, torch.float32), cond)
    assert again.dtype == torch.float32
    assert float((again - image).abs().max()) < 0.05 * max(1.0, float(image.abs().max()))
    if cond is not None:
        close(fast.inverse(latents_of(model, torch.float32), cond.prepare(fast)), again, 0.02)
    if MODELS[model][0] == "srflow":  # and the low precision is used
        assert {t.dtype for t in tensors(cond) if t is not cond.origin} == {fast.dtype}
        assert {t.dtype for t in tensors(cond.prepare(fast).features)} == {fast.dtype}
        assert not torch.allclose(again, image, atol=1e-5)


@pytest.fixture(autouse=True)
def _no_cached_copy():
    drop_compiled()
    yield
    drop_compiled()


def test_compiled_returns_the_same_copy_while_nothing_changes():
    flow = fresh("srflow x2")
    fast = compiled(flow)
    assert isinstance(fast, CompiledFlow)
    with torch.no_grad():
        flow.inverse(latents_of("srflow x2"), condition_of(flow, "srflow x2"))
    fast.inverse(latents_of("srflow x2"), condition_of(fast, "srflow x2").prepare(fast))
    for parameter in flow.parameters():
        parameter.data = parameter.data.clone()  # elsewhere, and the same
    assert compiled(flow) is compiled(flow, "float32") is compiled(fast) is fast


def test_compiled_makes_a_new_copy_after_a_change_of_any_tensor_or_without_a_part():
    flow = fresh("class_conditional of one class")
    fast = compiled(flow)
    for name, t in {**dict(flow.named_parameters()), **dict(flow.named_buffers())}.items():
        t = t.detach()
        t.copy_(torch.nextafter(t, t + 1) if t.is_floating_point() else t.roll(1))
        new = compiled(flow)
        assert new is not fast, name
        assert new.identity != fast.identity
        assert compiled(flow) is new
        fast = new
    assert len(CACHE) == 1
    assert compiled(flow.float()).dtype == torch.float32
    flow = build_tiny("realnvp")
    assert not [*flow.preprocess.state_dict()]
    assert compiled(flow).preprocess is not None
    flow.preprocess = None
    assert compiled(flow).preprocess is None


def test_two_models_take_turns_without_new_copies_where_memory_allows(monkeypatch):
    one, two, three = (fresh("glow", torch.float32, seed=seed) for seed in (4, 5, 6))
    first, second = compiled(one), compiled(two)
    assert compiled(one) is first
    assert compiled(two) is second
    compiled(three)  # in place of the first, which was used less lately
    assert compiled(two) is second
    assert compiled(one) is not first
    assert len(CACHE) == 2
    monkeypatch.setattr("flowcore.engine.compiled.free_memory", lambda _: 1000)
    third = compiled(three)
    assert len(CACHE) == 1
    assert compiled(three) is third


def test_a_cached_copy_does_not_outlive_its_flow():
    one, two = fresh("glow", torch.float32), fresh("realnvp", torch.float32)
    first, low = compiled(one), compiled(one, "bfloat16")
    assert low is not first
    assert low.precision == "bfloat16"
    assert compiled(one, "bfloat16") is low
    flow, fast = weakref.ref(two), weakref.ref(compiled(two))
    del two
    gc.collect()
    assert flow() is fast() is None
    assert len(CACHE) == 1
    fast = weakref.ref(compiled(one))
    drop_compiled()
    gc.collect()
    assert fast() is None


def test_what_a_compiled_flow_cannot_do_is_refused():
    for make, precision in ((CompiledFlow, "float64"), (CompiledFlow, None), (compiled, torch.bfloat16)):
        with pytest.raises(FlowError, match="precision"):
            make(flow_of("glow"), precision)
    fast, image = compiled_of("glow", torch.float32), reference("glow", torch.float32)[0]
    assert next(fast.parameters()).dtype == torch.float32
    for move in (fast.double, fast.cpu, lambda: fast.to("cpu")):
        with pytest.raises(FlowError, match="stays"):
            move()
    with pytest.raises(FlowError, match="trained"):
        fast.initialize(image)
    for precision in ("bfloat16", "float16", "tf32"):
        fast = CompiledFlow(flow_of("glow", torch.float32), precision)
        for encode in (fast, fast.forward_with_logdet_map):
            with pytest.raises(PrecisionError):
                encode(image)
    level = compiled_of("srflow x2").levels[0]
    with pytest.raises(ConditionError):
        level.steps.inverse(torch.zeros(2, 12, 8, 6, dtype=torch.float64), None)


def test_strips_are_lower_where_memory_is_short(monkeypatch):
    for free, expected in ((None, 2**23), (2**40, 2**23), (2**26, 2**22), (0, 2**20)):
        monkeypatch.setattr(strips, "free_memory", lambda device, free=free: free)
        assert CompiledFlow(flow_of("glow")).budget.strip == expected


def test_a_flow_without_parameters_has_a_compiled_flow():
    flow = assemble([Level([Squeeze()], None, squeeze=Chain())], channels=3)
    x = torch.rand(1, 3, 4, 6)
    assert torch.equal(CompiledFlow(flow)(x)[0][0], flow(x)[0][0])


def test_a_flow_assembled_by_hand_is_folded_with_its_condition():
    flow = assemble([Level([ActNorm(12), Injector(Conditioner(4, 8, 24))])], channels=3)
    flow = perturbed(flow)
    x, cond = torch.rand(2, 3, 8, 12), Condition(features=(torch.rand(2, 4, 4, 6),))
    latents, logdet = flow(x, cond)
    (again,), folded = CompiledFlow(flow)(x, cond)
    assert torch.allclose(again, latents[0], atol=1e-5)
    assert torch.allclose(folded, logdet, atol=1e-3)
    plain = assemble([Level([ActNorm(12)])], channels=3)
    assert flowcore.score(plain, x).bits_per_dim.isfinite().all()
    assert compiled(FlowModel.of(plain)) is compiled(FlowModel.of(plain))  # for all tasks
    for call in (flow, CompiledFlow(flow)):
        with pytest.raises(ConditionError):
            call(x)


def compiled_with(flow, size):
    fast = CompiledFlow(flow, strip_bytes=size)
    fast.budget.usual_dense = size
    return fast


def peak(flow, rows, *, samples=1):
    """The most that an encoding and a decode of an LR image with so many rows hold, in bytes."""
    lr = torch.rand(1, 3, rows, 32)
    latents = sample_latents(flow.latent_shapes(4 * rows, 128), samples, 0.8, 1)
    with torch.no_grad(), PeakMemory() as memory:
        cond = flow.encode_condition(lr)
        flow.inverse(latents, cond if samples == 1 else cond.expand(samples))
    return memory.peak


@pytest.fixture(scope="module")
def published():
    """The published network's layout of features at a quarter of its width."""
    fields = {"steps": 4, "hidden": 16, "encoder_blocks": 4, "encoder_width": 16, "encoder_growth": 8}
    return build("srflow", configure("srflow", {**fields, "stacked_blocks": (0, 1, 2, 3)})).eval()


def test_memory_in_strips_is_flat_and_samples_of_one_image_share_its_condition(published):
    """In bytes per pixel: 73 in strips, 177 with the whole canvas at once, 263 for the plain flow; 38 per sample."""
    fast = compiled_with(published, 1)
    few, many = peak(fast, 64), peak(fast, 96)
    assert (many - few) / (16 * 32 * 32) <= 80
    assert few / (16 * 32 * 64) <= 90  # there is almost no fixed cost
    assert many < 0.5 * peak(compiled_with(published, 2**40), 96)
    assert many < 0.33 * peak(published, 96)
    assert (peak(fast, 64, samples=4) - few) / 3 / (16 * 32 * 64) <= 42


def test_nothing_waits_for_the_garbage_collector(published):
    """A cycle of references would hold what a strip was computed from until Python looks for cycles."""
    fast = compiled_with(published, 1)
    lr = torch.rand(2, 3, 16, 16)
    latents = sample_latents(fast.latent_shapes(64, 64), 2, 0.8, 1)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)  # what is collected is listed
    try:
        with torch.no_grad():
            fast.inverse(latents, fast.encode_condition(lr[:1]).expand(2))
        gc.collect()
        assert not [found for found in gc.garbage if isinstance(found, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("architecture", ["glow", "srflow", "realnvp", "colorizer"])
def test_all_units_of_work_are_reported(architecture):
    """A run takes units that are missing for work that was skipped, so that its progress would not tell."""
    flow = build_tiny(architecture)
    fast, source = CompiledFlow(flow), every_task.source_of(flow, 1)
    latents = sample_latents(fast.latent_shapes(*every_task.sides(flow)), 1, 0.7, 0)
    reports, cond = [], None
    with observed(reports.append):
        if source is not None:
            cond = fast.encode_condition(source)
            assert sum(reports) == fast.encoder_units > 0
            cond.prepare(fast)
            assert sum(reports) == fast.encoder_units + fast.prepare_units > fast.encoder_units
        reports.clear()
        x = fast.inverse(latents, cond)
        assert sum(reports) == fast.units > 0
        assert reports.count(0) > fast.units  # before every convolution
        for encode in (fast, fast.forward_with_logdet_map):
            reports.clear()
            encode(x, cond)
            assert sum(reports) == fast.units
    reports.clear()
    fast.inverse(latents, cond)
    assert not reports


def test_no_convolution_processes_a_whole_image_uninterruptibly(monkeypatch):
    flow, rows, run = build_model("srflow on imdn"), list[int](), Conv.forward
    monkeypatch.setattr(Conv, "forward", lambda conv, x, *span: rows.append(span[1] - span[0]) or run(conv, x, *span))
    fast = CompiledFlow(flow, strip_bytes=1)
    fast.budget.usual_dense = 1
    fast.encode_condition(torch.rand(1, 3, 64, 8))
    assert max(rows) < 64


@pytest.mark.parametrize(
    ("model", "layout"), [*((model, torch.contiguous_format) for model in FEW), ("hcflow", torch.channels_last)]
)
def test_a_compiled_flow_leaves_the_flow_alone_and_holds_the_weights_of_that_moment(model, layout):
    flow = fresh(model).to(memory_format=layout).train()
    fast = CompiledFlow(flow)
    assert all(part.training for part in flow.modules())
    assert all(p.requires_grad and p.grad is None for p in flow.parameters())

    def results():
        latents = latents_of(model)
        cond = condition_of(fast, model)
        x = fast.inverse(latents, cond)
        return [x, *fast(x, cond)[0]]

    before = results()
    for t in [*flow.parameters(), *flow.buffers()]:
        t.data.zero_()
    assert all(torch.equal(a, b) for a, b in zip(results(), before, strict=True))
