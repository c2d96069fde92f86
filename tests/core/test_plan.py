"""A plan equals its flow: the same images, latents and logdets, whatever the model, the strips and the condition."""

import copy
import functools
import gc
import itertools
import math
import weakref

import every_task
import pytest
import torch
from builders import MODELS, assemble, build_model, build_tiny, build_upscaler, random_image, sides_of, source_of

import flowcore
from flowcore import testing as laws
from flowcore.condition import Condition
from flowcore.errors import ConditionError, FlowError, PrecisionError
from flowcore.flow import Level
from flowcore.inference import strips
from flowcore.inference.condition_cache import ConditionStore
from flowcore.inference.convolutions import Conv
from flowcore.inference.fold import Mixing
from flowcore.inference.plan import PLANS, Plan, checksums, forget_plan, planned
from flowcore.inference.strips import observed
from flowcore.model import FlowModel
from flowcore.models import build, configure
from flowcore.networks import Conditioner
from flowcore.prior import sample_latents
from flowcore.testing import close, perturbed, tensors
from flowcore.training.stage import PeakMemory
from flowcore.transforms import ActNorm, Chain, Injector, MultiScaleFeatures, Permutation, Squeeze

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
def plan_of(model, dtype=torch.float64, strip_bytes=0):
    return Plan(flow_of(model, dtype), strip_bytes=strip_bytes)


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


def check_equal(plan, model, cond, tolerance, dtype=torch.float64):
    """Compare all that a plan computes with the reference."""
    image, latents, logdet, shares = reference(model, dtype)
    close(plan.inverse(latents_of(model, dtype), cond), image, tolerance)
    with torch.no_grad():
        encoded, change = plan(image, cond)
        again, amounts = plan.forward_with_logdet_map(image, cond)
    close(change, logdet, tolerance)
    for found, expected in ((encoded, latents), (again, latents), (amounts, shares)):
        for actual, wanted in zip(found[:-1], expected[:-1], strict=True):
            close(actual, wanted, tolerance)
        # the deviation from an anchor is in units of its standard deviation, exp(-6)
        close(found[-1], expected[-1], tolerance * (math.exp(6) if plan.predicts_lr else 1))


def held_tensors(module):
    """All tensors that the parts of a module hold, those included that torch does not know of."""

    def within(value):
        if isinstance(value, torch.Tensor):
            return [value]
        if isinstance(value, dict):
            return [t for part in value.values() for t in within(part)]
        return [t for part in value for t in within(part)] if isinstance(value, (list, tuple)) else []

    return [t for part in module.modules() for t in within(vars(part))]


def test_every_model_is_tested_in_several_strips_on_every_grid():
    for model in MODELS:
        height, width = sides(model)
        rows = [shape[1] for shape in flow_of(model).latent_shapes(height, width)]
        fits = min(rows) > 8 and any(n % 8 for n in rows) and height != width
        assert fits or model.startswith("class_conditional"), model


@pytest.mark.parametrize(
    ("model", "strip_bytes", "dtype"),
    [(model, LOW, torch.float64) for model in MODELS] + [(model, DEFAULT, torch.float32) for model in FEW],
)
def test_plan_computes_what_its_flow_computes(model, strip_bytes, dtype):
    flow, plan = flow_of(model, dtype), plan_of(model, dtype, strip_bytes)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    check_equal(plan, model, condition_of(plan, model, dtype), tolerance, dtype)
    assert (plan.precision, plan.dtype) == ("float32", dtype)  # the flow's own
    for name in ("architecture", "config", "channels", "size_multiple", "condition_scale", "classes", "image_size"):
        assert getattr(plan, name) == getattr(flow, name)
    assert (plan.fixed_size, plan.predicts_lr) == (flow.fixed_size, flow.predicts_lr)
    assert plan.capabilities == flow.capabilities
    assert plan.latent_shapes(*sides(model)) == flow.latent_shapes(*sides(model))


def test_a_permutation_alone_stays_one():
    parts = list(plan_of("class_conditional").levels.modules())
    assert any(isinstance(part, Permutation) for part in parts)
    assert not any(isinstance(part, Mixing) and len(part.to_latent[1]) > 4 for part in parts)


@in_strips([*CONDITIONAL, "srflow with shallow conditioners", "srflow without injector"])
def test_conditions_of_flow_and_plan_serve_both_prepared_or_not(model, strip_bytes):
    flow, plan = flow_of(model), plan_of(model, strip_bytes=strip_bytes)
    own, foreign = condition_of(plan, model), condition_of(flow, model)
    for cond in (own.prepare(plan), foreign, foreign.prepare(plan)):
        check_equal(plan, model, cond, 1e-9)
    for cond in (own, own.prepare(plan)):
        with torch.no_grad():
            check_equal(flow, model, cond, 1e-9)
    close(plan.inverse(latents_of(model), own.prepare(plan)), plan.inverse(latents_of(model), own), 1e-12)


@in_strips(CONDITIONAL)
def test_one_image_serves_many_samples(model, strip_bytes):
    plan = plan_of(model, strip_bytes=strip_bytes)
    latents, one = latents_of(model, batch=3), condition_of(plan, model, batch=1)
    image = torch.cat([plan.inverse([z[i : i + 1] for z in latents], one) for i in range(3)])
    assert not torch.allclose(image[0], image[1])
    each = plan(image[:1], one)[1]
    for cond in (one, one.expand(3), one.prepare(plan), one.expand(3).prepare(plan), one.prepare(plan).expand(3)):
        close(plan.inverse(latents, cond), image, 1e-9)
        encoded, change = plan(image, cond)
        close(change[:1], each, 1e-9)
        for z, expected in zip(encoded, latents, strict=True):
            close(z, expected, 1e-9)
    assert one.expand(3).prepare(plan).nbytes <= one.prepare(plan).nbytes


def test_a_prepared_condition_holds_the_terms_of_every_step():
    plan = plan_of("srflow x4 residual")
    cond = condition_of(plan, "srflow x4 residual")
    ready, image = cond.prepare(plan), reference("srflow x4 residual")[0]
    assert ready.nbytes - cond.nbytes == 2 * plan.prepared_bytes(*image.shape[2:])
    assert ready.batch == 2
    assert torch.equal(ready.origin, cond.origin)
    for level, plain, feature in zip(plan.levels, cond.features, ready.features, strict=True):
        assert isinstance(plain, MultiScaleFeatures)
        assert plain.precomputed is None
        networks = [part.network for part in level.affine]
        assert [network.conv_flow is None for network in networks] == [True, False] * 2  # injectors, couplings
        outputs = [n.outputs if n.conv_flow is None else n.condition.outputs for n in networks]
        assert [t.shape[1] for t in feature.precomputed] == outputs
    assert all(not t.requires_grad for t in tensors(ready.features))


def test_features_that_are_enlarged_stay_small():
    plan, flow = plan_of("srflow x8"), flow_of("srflow x8")
    small, large = condition_of(plan, "srflow x8"), condition_of(flow, "srflow x8")
    assert [[factor for _, factor in f.sources] for f in small.features] == [[1, 4], [1, 2], [1, 1], [1, 1]]
    assert small.nbytes < 0.6 * large.nbytes


@pytest.mark.parametrize("strip_bytes", [DEFAULT, LOW])
def test_samples_of_one_lr_image_share_its_features(strip_bytes):
    model = "hcflow"
    plan = plan_of(model, strip_bytes=strip_bytes)
    one = condition_of(plan, model, batch=1)
    shapes = flow_of(model).latent_shapes(*sides(model))
    drawn = [z.double() for z in sample_latents(shapes, 3, 0.7, 3, predicts_lr=True)]
    drawn[-1] = drawn[-1][:1].expand(3, -1, -1, -1)
    batches: list[tuple[int, int]] = []
    for number, level in enumerate(plan.levels):
        level.details.extractor.conv_first.register_forward_pre_hook(
            lambda _m, args, number=number: batches.append((number, len(args[0][0][0])))
        )
    together = plan.inverse(drawn, one)
    assert set(batches) == {(0, 3), (1, 1)}  # the deepest level's once, the finer one's for every sample
    batches.clear()
    apart = [plan.inverse([z[i : i + 1] for z in drawn], one) for i in range(3)]
    close(together, torch.cat(apart), 1e-9)
    for level in plan.levels:
        level.details.extractor.conv_first._forward_pre_hooks.clear()


@some_models
def test_plans_obey_the_law_and_give_no_gradients(model):
    """Of the others, the first test says that they compute what their flows do, which obey it."""
    plan, image = plan_of(model, strip_bytes=1), reference(model)[0]
    cond = condition_of(plan, model)
    laws.check_round_trip(plan, image, cond)
    laws.check_logdet_map(plan, image, cond)
    laws.check_items_independent(plan, image, cond)
    latents, logdet = plan(image.clone().requires_grad_(), cond)
    _, shares = plan.forward_with_logdet_map(image.clone().requires_grad_(), cond)
    results = [*latents, logdet, *shares, plan.inverse([z.requires_grad_() for z in latents_of(model)], cond)]
    assert not any(t.requires_grad for t in results)


@in_strips(FEW)
def test_running_a_plan_changes_neither_plan_nor_condition(model, strip_bytes):
    plan, image = Plan(fresh(model), strip_bytes=strip_bytes), reference(model)[0]
    cond = condition_of(plan, model)
    for given in (cond, None if cond is None else cond.prepare(plan)):
        before = [t.clone() for t in (*held_tensors(plan), *tensors(given))]
        laws.check_untouched(plan, image, given)
        results = [plan.inverse(latents_of(model), given) for _ in range(2)]
        assert torch.equal(*results)
        assert len(before) > 3
        assert all(map(torch.equal, before, [*held_tensors(plan), *tensors(given)]))


@some_models
def test_autocast_reaches_networks_only(model):
    plan, image = plan_of(model, torch.float32), reference(model, torch.float32)[0]
    laws.check_precision(plan, image, condition_of(plan, model, torch.float32))
    mixings = [part for part in plan.modules() if isinstance(part, Mixing)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = [part(image.new_ones(2, len(part.to_latent[1]), 3, 4))[0] for part in mixings]
    assert {z.dtype for z in mixed} <= {torch.float32}


@some_models
def test_making_a_plan_leaves_the_flow_and_the_random_state_alone(model):
    flow = fresh(model)

    def state():
        ts = [*flow.state_dict().values(), torch.get_rng_state()]
        versions = [t._version for t in (*flow.parameters(), *flow.buffers())]
        return [t.clone() for t in ts], versions, [part.training for part in flow.modules()]

    before = state()
    plan = Plan(flow)
    cond = condition_of(plan, model)
    if cond is not None:
        cond.prepare(plan)
    after = state()
    assert all(map(torch.equal, before[0], after[0]))
    assert before[1:] == after[1:]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in flow.parameters())


@pytest.mark.parametrize(
    ("model", "precision"), [*((model, "bfloat16") for model in FEW), ("srflow x4 residual", "float16")]
)
def test_images_of_low_precision_are_float32_and_close(model, precision):
    plan = Plan(flow_of(model, torch.float32), precision, strip_bytes=1)
    assert plan.dtype == getattr(torch, precision)
    image, cond = reference(model, torch.float32)[0], condition_of(plan, model, torch.float32)
    again = plan.inverse(latents_of(model, torch.float32), cond)
    assert again.dtype == torch.float32
    assert float((again - image).abs().max()) < 0.05 * max(1.0, float(image.abs().max()))
    if cond is not None:
        close(plan.inverse(latents_of(model, torch.float32), cond.prepare(plan)), again, 0.02)
    if MODELS[model][0] == "srflow":  # and the low precision is used
        assert {t.dtype for t in tensors(cond) if t is not cond.origin} == {plan.dtype}
        assert {t.dtype for t in tensors(cond.prepare(plan).features)} == {plan.dtype}
        assert not torch.allclose(again, image, atol=1e-5)


@pytest.fixture(autouse=True)
def _no_cached_plan():
    forget_plan()
    yield
    forget_plan()


def test_planned_returns_the_same_plan_while_nothing_changes():
    flow = fresh("srflow x2")
    plan = planned(flow)
    assert isinstance(plan, Plan)
    with torch.no_grad():
        flow.inverse(latents_of("srflow x2"), condition_of(flow, "srflow x2"))
    plan.inverse(latents_of("srflow x2"), condition_of(plan, "srflow x2").prepare(plan))
    for parameter in flow.parameters():
        parameter.data = parameter.data.clone()  # elsewhere, and the same
    assert planned(flow) is planned(flow, "float32") is planned(plan) is plan


def test_planned_makes_a_new_plan_after_a_change_of_any_tensor():
    flow = fresh("class_conditional of one class")
    plan = planned(flow)
    for name, t in {**dict(flow.named_parameters()), **dict(flow.named_buffers())}.items():
        t = t.detach()
        t.copy_(torch.nextafter(t, t + 1) if t.is_floating_point() else t.roll(1))
        new = planned(flow)
        assert new is not plan, name
        assert new.identity != plan.identity
        assert planned(flow) is new
        plan = new
    assert len(PLANS) == 1
    assert planned(flow.float()).dtype == torch.float32


def test_planned_makes_a_new_plan_after_a_part_without_weights_is_gone():
    flow = build_tiny("realnvp")
    assert not [*flow.prelude.state_dict()]
    assert planned(flow).prelude is not None
    flow.prelude = None
    assert planned(flow).prelude is None


def test_two_models_take_turns_without_new_plans_where_memory_allows(monkeypatch):
    one, two, three = (fresh("glow", torch.float32, seed=seed) for seed in (4, 5, 6))
    first, second = planned(one), planned(two)
    assert planned(one) is first
    assert planned(two) is second
    planned(three)  # in place of the first, which was used less lately
    assert planned(two) is second
    assert planned(one) is not first
    assert len(PLANS) == 2
    monkeypatch.setattr("flowcore.inference.plan.free_memory", lambda _: 1000)
    third = planned(three)
    assert len(PLANS) == 1
    assert planned(three) is third


def test_a_cached_plan_does_not_outlive_its_flow():
    one, two = fresh("glow", torch.float32), fresh("realnvp", torch.float32)
    first, low = planned(one), planned(one, "bfloat16")
    assert low is not first
    assert low.precision == "bfloat16"
    assert planned(one, "bfloat16") is low
    flow, plan = weakref.ref(two), weakref.ref(planned(two))
    del two
    gc.collect()
    assert flow() is plan() is None
    assert len(PLANS) == 1
    plan = weakref.ref(planned(one))
    forget_plan()
    gc.collect()
    assert plan() is None


def test_what_a_plan_cannot_do_is_refused():
    for make, precision in itertools.product((Plan, planned), ("float8", "float64", "", None, torch.bfloat16)):
        with pytest.raises(FlowError, match="precision must be float32, bfloat16, float16, tf32; got"):
            make(flow_of("glow"), precision)
    plan, image = plan_of("glow", torch.float32), reference("glow", torch.float32)[0]
    assert next(plan.parameters()).dtype == torch.float32
    for move in (plan.double, plan.cpu, lambda: plan.to("cpu")):
        with pytest.raises(FlowError, match="A plan stays where and as it was made"):
            move()
    with pytest.raises(FlowError, match="cannot be trained"):
        plan.initialize(image)
    for precision in ("bfloat16", "float16", "tf32"):
        plan = Plan(flow_of("glow", torch.float32), precision)
        for encode in (plan, plan.forward_with_logdet_map):
            with pytest.raises(PrecisionError, match=f"runs in {precision}.*Make a plan in float32"):
                encode(image)
    level = plan_of("srflow x2").levels[0]
    with pytest.raises(ConditionError, match=r"needs a condition; got none.*encode_condition"):
        level.steps.inverse(torch.zeros(2, 12, 8, 6, dtype=torch.float64), None)


@pytest.mark.parametrize(("free", "expected"), [(None, 2**23), (2**40, 2**23), (2**26, 2**22), (0, 2**20)], ids=str)
def test_strips_are_lower_where_memory_is_short(free, expected, monkeypatch):
    monkeypatch.setattr(strips, "free_memory", lambda device: free)
    plan = Plan(flow_of("glow"))
    assert plan.budget.strip == expected
    with strips.minimum_memory():
        assert plan.budget.strip == 2**18
    assert plan.budget.strip == expected


def test_a_flow_without_parameters_has_a_plan():
    flow = assemble([Level([Squeeze()], None, squeeze=Chain())], channels=3)
    x = torch.rand(1, 3, 4, 6)
    assert torch.equal(Plan(flow)(x)[0][0], flow(x)[0][0])


def test_a_flow_assembled_by_hand_is_folded_with_its_condition():
    flow = assemble([Level([ActNorm(12), Injector(Conditioner(4, 8, 24))])], channels=3)
    flow = perturbed(flow)
    x, cond = torch.rand(2, 3, 8, 12), Condition(features=(torch.rand(2, 4, 4, 6),))
    latents, logdet = flow(x, cond)
    (again,), folded = Plan(flow)(x, cond)
    assert torch.allclose(again, latents[0], atol=1e-5)
    assert torch.allclose(folded, logdet, atol=1e-3)
    assert (logdet - flow(x, Condition(features=(torch.rand(2, 4, 4, 6),)))[1]).abs().min() > 1e-3
    assert not isinstance(flow, FlowModel)
    plain = assemble([Level([ActNorm(12)])], channels=3)
    assert flowcore.score(plain, x).bits_per_dim.isfinite().all()
    assert planned(FlowModel.of(plain)) is planned(FlowModel.of(plain))  # one plan for one task after the other
    for call in (flow, Plan(flow)):
        with pytest.raises(ConditionError):
            call(x)


def plan_with(flow, size):
    plan = Plan(flow, strip_bytes=size)
    plan.budget.usual_dense = size
    return plan


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


def test_memory_in_strips_is_flat(published):
    """Measured in bytes per pixel: 73 in strips, 177 with the whole canvas at once, 263 for the plain flow."""
    plan = plan_with(published, 1)
    few, many = peak(plan, 64), peak(plan, 96)
    assert (many - few) / (16 * 32 * 32) <= 80
    assert few / (16 * 32 * 64) <= 90  # there is almost no fixed cost
    assert many < 0.5 * peak(plan_with(published, 2**40), 96)
    assert many < 0.33 * peak(published, 96)


def test_samples_of_one_image_share_its_condition_in_memory(published):
    """Measured in bytes per pixel: 197 for four samples, 38 for each after the first; 82 for one alone."""
    plan = plan_with(published, 1)
    one, four = peak(plan, 48), peak(plan, 48, samples=4)
    assert (four - one) / 3 / (16 * 32 * 48) <= 42


def test_nothing_waits_for_the_garbage_collector(published):
    """A cycle of references would hold what a strip was computed from until Python looks for cycles."""
    plan = plan_with(published, 1)
    lr = torch.rand(2, 3, 16, 16)
    latents = sample_latents(plan.latent_shapes(64, 64), 2, 0.8, 1)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)  # what is collected is listed
    try:
        with torch.no_grad():
            plan.inverse(latents, plan.encode_condition(lr[:1]).expand(2))
        gc.collect()
        assert not [found for found in gc.garbage if isinstance(found, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("architecture", ["glow", "srflow", "realnvp", "colorizer"])
def test_all_units_of_work_are_reported(architecture):
    flow = build_tiny(architecture)
    plan, (height, width), source = Plan(flow), every_task.sides(flow), every_task.source_of(flow, 1)
    reports, cond = [], None
    with observed(reports.append):
        if source is not None:
            cond = plan.encode_condition(source)
        assert sum(reports) == plan.encoder_units
        assert (plan.encoder_units > 0) == (source is not None)
        reports.clear()
        if cond is not None:
            cond.prepare(plan)
        assert sum(reports) == plan.prepare_units
        assert (plan.prepare_units > 0) == (source is not None)
        reports.clear()
        x = plan.inverse(sample_latents(plan.latent_shapes(height, width), 1, 0.7, 0), cond)
        assert sum(reports) == plan.units > 0
        assert reports.count(0) > plan.units  # before every convolution
        for encode in (plan, plan.forward_with_logdet_map):
            reports.clear()
            encode(x, cond)
            assert sum(reports) == plan.units
    reports.clear()
    plan.inverse(sample_latents(plan.latent_shapes(height, width), 1, 0.7, 0), cond)
    assert not reports


@pytest.mark.parametrize("model", ["srflow", "srflow on imdn"])
def test_no_convolution_processes_a_whole_image_uninterruptibly(model, monkeypatch):
    flow, rows, run = build_model(model), list[int](), Conv.forward
    monkeypatch.setattr(Conv, "forward", lambda conv, x, *span: rows.append(span[1] - span[0]) or run(conv, x, *span))
    plan = Plan(flow, strip_bytes=1)
    plan.budget.usual_dense = 1
    plan.encode_condition(torch.rand(1, 3, 64, 8))
    assert max(rows) < 64


def set_data(flow, new):
    """Addresses and version counters stay."""
    for p, value in zip(flow.parameters(), new.parameters(), strict=True):
        p.data.copy_(value)


def reversed_in_place(flow, new):
    """Sums and norms stay: what sees the values alone, and not their places, sees nothing."""
    for p in flow.parameters():
        if p.ndim == 4 and p.shape[-1] > 1:
            p.data.copy_(p.data.flip(3))


WRITES = {
    "in place": set_data,
    "reversed": reversed_in_place,
    "assigned": lambda flow, new: flow.load_state_dict(new.state_dict(), assign=True),
}
TASKS = {
    "upscale": lambda flow, store: flowcore.upscale(flow, random_image(1, 3, 6, 5), temperature=0.5, store=store),
    "sample": lambda flow, store: flowcore.sample(flow, 2, size=(8, 12), temperature=0.5),
    "score": lambda flow, store: flowcore.score(flow, random_image(2, 3, 8, 12)).bits_per_dim,
    "colorize": lambda flow, store: flowcore.colorize(flow, random_image(1, 1, 32, 40)),
}


@pytest.mark.parametrize(
    ("task", "way"), [*((task, "in place") for task in TASKS), ("sample", "reversed"), ("sample", "assigned")]
)
def test_a_task_after_a_change_computes_with_the_new_weights_alone(task, way):
    if task == "upscale":
        flow, new = build_upscaler(), build_upscaler(seed=1)
    else:
        architecture = "colorizer" if task == "colorize" else "glow"
        flow, new = (build_tiny(architecture, seed=seed, perturb=0.05) for seed in (0, 1))
    store = ConditionStore()
    before = TASKS[task](flow, store)
    WRITES[way](flow, new)
    after = TASKS[task](flow, store)
    assert torch.equal(after, TASKS[task](copy.deepcopy(flow), ConditionStore()))
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    ("model", "layout"), [*((model, torch.contiguous_format) for model in FEW), ("hcflow", torch.channels_last)]
)
def test_a_plan_holds_the_weights_of_the_moment_when_it_was_made(model, layout):
    flow = fresh(model).to(memory_format=layout)
    plan = Plan(flow)

    def results():
        latents = latents_of(model)
        cond = condition_of(plan, model)
        x = plan.inverse(latents, cond)
        return [x, *plan(x, cond)[0]]

    before = results()
    for t in [*flow.parameters(), *flow.buffers()]:
        t.data.zero_()
    assert all(torch.equal(a, b) for a, b in zip(results(), before, strict=True))


@pytest.mark.gpu
def test_checksums_on_a_gpu_see_a_bit_and_an_order():
    flow = build_tiny("glow", perturb=0.05).cuda()
    first = checksums(flow)
    assert checksums(flow) == first
    kernel = max(flow.parameters(), key=torch.numel).data
    kernel.copy_(kernel.flip(0))
    second = checksums(flow)
    kernel.view(-1)[7] *= 1.0000001
    assert len({first, second, checksums(flow)}) == 3
