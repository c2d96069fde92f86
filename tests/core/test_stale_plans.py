"""No result mixes weights of two moments, in whatever way the weights are changed."""

import copy

import pytest
import torch
from builders import build_tiny, build_upscaler, random_image
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import flowcore
from flowcore.inference.condition_cache import ConditionStore
from flowcore.inference.plan import Plan, planned

from .test_plan import condition_of, fresh, latents_of, some_models


def set_data(flow, new):
    for p, value in zip(flow.parameters(), new.parameters(), strict=True):
        p.data.copy_(value)


def swap_storage(flow, new):
    """As averages of weights are swapped in for validation, and out again."""
    for p, value in zip(flow.parameters(), new.parameters(), strict=True):
        p.data = value.data.clone()


def fill_vector(flow, new):
    """The second vector lies where the first did, and so do the parameters, which are views of it."""
    vector = parameters_to_vector(flow.parameters()).detach().clone()
    vector_to_parameters(vector, flow.parameters())
    planned(flow)
    vector.copy_(parameters_to_vector(new.parameters()).detach())
    vector_to_parameters(vector, flow.parameters())


def reversed_in_place(flow, new):
    """Sums and norms stay: what sees the values alone, and not their places, sees nothing."""
    for p in flow.parameters():
        if p.ndim == 4 and p.shape[-1] > 1:
            p.data.copy_(p.data.flip(3))


def in_inference_mode(flow, new):
    with torch.inference_mode():
        for p, value in zip(flow.parameters(), new.parameters(), strict=True):
            p.copy_(value)


WRITES = {
    "data.copy_": set_data,
    "data": swap_storage,
    "vector_to_parameters": fill_vector,
    "reversed": reversed_in_place,
    "inference mode": in_inference_mode,
    "load_state_dict": lambda flow, new: flow.load_state_dict(new.state_dict()),
    "load_state_dict, assigned": lambda flow, new: flow.load_state_dict(new.state_dict(), assign=True),
}
TASKS = {
    "upscale": lambda flow, store: flowcore.upscale(flow, random_image(1, 3, 6, 5), temperature=0.5, store=store),
    "sample": lambda flow, store: flowcore.sample(flow, 2, size=(8, 12), temperature=0.5),
    "score": lambda flow, store: flowcore.score(flow, random_image(2, 3, 8, 12)).bits_per_dim,
    "colorize": lambda flow, store: flowcore.colorize(flow, random_image(1, 1, 32, 40)),
}


@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("task", TASKS)
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


@some_models
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
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
    from flowcore.inference.plan import checksums

    flow = build_tiny("glow", perturb=0.05).cuda()
    first = checksums(flow)
    assert checksums(flow) == first
    kernel = max(flow.parameters(), key=torch.numel).data
    kernel.copy_(kernel.flip(0))
    second = checksums(flow)
    kernel.view(-1)[7] *= 1.0000001
    assert len({first, second, checksums(flow)}) == 3
    image = random_image(1, 3, 8, 12)
    assert torch.allclose(planned(flow).inverse(flow(image.cuda())[0]).cpu(), image, atol=1e-3)
