"""On an NVIDIA or AMD GPU: what the CPU makes, without waiting, and when memory runs out. Skipped without one."""

import copy
from concurrent.futures import ThreadPoolExecutor

import every_task
import pytest
import torch
from builders import random_image as noise
from small_flows import flow as small_flow

import flowcore
from flowcore import device as devices
from flowcore.engine.compiled import CompiledFlow, drop_compiled
from flowcore.engine.condition_cache import ConditionStore
from flowcore.flows.prior import sample_latents

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
TOLERANCE = 2e-3
MIB = 2**20
SMALL = (1, 3, 24, 20)


@pytest.fixture(autouse=True)
def left_as_found():
    """Every test starts and ends without a compiled flow, without memory held by torch, and without a limit."""
    yield
    drop_compiled()
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)
    devices.empty_cache()


@pytest.fixture
def upscaler():
    return copy.deepcopy(small_flow("small-srflow")).requires_grad_(False).to(DEVICE)


def decoding(flow, batch=1):
    """A compiled flow with a prepared condition, and latents."""
    compiled, source = CompiledFlow(flow), every_task.source_of(flow, batch)
    cond = None if source is None else compiled.encode_condition(source.to(DEVICE)).prepare(compiled)
    drawn = sample_latents(flow.latent_shapes(*every_task.sides(flow)), batch, seed=1)
    return compiled, cond, [z.to(DEVICE) for z in drawn]


@pytest.mark.parametrize(
    ("task", "inputs"),
    [(task, DEVICE) for task in every_task.TASKS] + [(task, "cpu") for task in ("upscale", "colorize", "score")],
)
def test_every_task_gives_what_the_cpu_gives(task, inputs):
    """In float32, also where other programs have allowed TF32 for everything."""
    expected = every_task.run(task, every_task.Place("cpu", "cpu"))
    before = devices._float32_settings()
    try:
        devices._set_float32(["tf32", "high"] if len(before) == 2 else ["tf32", "tf32", *before[2:]])
        made = every_task.run(task, every_task.Place(DEVICE, inputs))
    finally:
        devices._set_float32(before)
    relative = [(a - b).abs().max() / b.abs().max().clamp_min(1) for a, b in zip(made, expected, strict=True)]
    # the networks of the readable flows run as the process is set: in TF32 here
    assert max(relative) < (TOLERANCE if task != "plain flows" else 0.05)


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "tf32", "auto"])
def test_reduced_precisions_are_near_float32(upscaler, precision):
    lr = noise(*SMALL).to(DEVICE)
    exact = flowcore.upscale(upscaler, lr, seed=3)
    made = flowcore.upscale(upscaler, lr, seed=3, precision=precision)
    assert (made - exact).abs().mean() < 0.02
    actual = devices.actual_precision(precision, torch.device(DEVICE, 0))
    drop_compiled()
    assert torch.equal(made, flowcore.upscale(upscaler, lr, seed=3, precision=actual))
    assert torch.equal(made, exact) == (actual == "float32")


def test_a_decode_is_captured_in_a_graph(upscaler):
    """A CUDA graph replays all kernels at once; it refuses whatever waits, and memory that moves."""
    compiled, cond, z = decoding(upscaler)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm-up, as torch asks for
        for _ in range(2):
            compiled.inverse(z, cond)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        picture = compiled.inverse(z, cond)
    for seed in (7, 8):
        fresh = [t.to(DEVICE) for t in sample_latents([tuple(t.shape[1:]) for t in z], 1, seed=seed)]
        for held, drawn in zip(z, fresh, strict=True):
            held.copy_(drawn)
        graph.replay()
        assert torch.allclose(picture, compiled.inverse(fresh, cond), atol=1e-5)


def test_two_streams_do_not_disturb_each_other(upscaler):
    images = [noise(*SMALL, seed=seed).to(DEVICE) for seed in (1, 2)]
    alone = [flowcore.upscale(upscaler, image, seed=5) for image in images]

    def work(number):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(10):
                made = flowcore.upscale(upscaler, images[number], seed=5)
                assert (made - alone[number]).abs().max() <= 1e-5

    torch.cuda.synchronize()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))


def test_memory_that_torch_holds_is_free_up_to_a_limit():
    before = devices.free_memory(DEVICE)
    held = torch.empty(256 * MIB, dtype=torch.uint8, device=DEVICE)
    assert devices.free_memory(DEVICE) < before - 200 * MIB
    del held
    assert devices.free_memory(DEVICE) > before - 50 * MIB  # in torch's cache
    devices.empty_cache()
    assert devices.free_memory(DEVICE) > before - 50 * MIB
    limited(300)
    assert devices.free_memory(DEVICE) <= 300 * MIB


def limited(megabytes):
    """Let torch have so much more than it has allocated."""
    devices.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + megabytes * MIB) / total)


def test_lack_of_memory_is_got_around(upscaler):
    """Compiled for much memory, which another program then takes."""
    lr = noise(1, 3, 192, 192).to(DEVICE)
    known = flowcore.upscale(upscaler, lr, samples=4, seed=3)
    drop_compiled()
    flowcore.upscale(upscaler, lr, samples=4, seed=3)  # its compiled flow has wide strips
    limited(24)
    made = flowcore.upscale(upscaler, lr, samples=4, seed=3)
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert (made - known).abs().max() <= 1 / 255


def test_lasting_lack_of_memory_raises_an_error_with_advice(upscaler):
    lr = noise(1, 3, 256, 256).to(DEVICE)
    limited(1)
    filled = []
    try:  # the rest of what may be allocated
        while True:
            filled.append(torch.empty(2**18, dtype=torch.uint8, device=DEVICE))
    except torch.OutOfMemoryError:
        pass
    with pytest.raises(flowcore.FlowError, match=r"Out of memory.*tile"):
        flowcore.upscale(upscaler, lr, seed=3)


@pytest.mark.parametrize("store", [None, ConditionStore()], ids=["alone", "with a store"])
def test_the_host_moves_a_model_away_and_back(upscaler, store):
    lr = noise(*SMALL)
    first = flowcore.upscale(upscaler, lr, seed=3, store=store)
    held = torch.cuda.memory_allocated()
    upscaler.to("cpu")
    # with a new compiled flow: the old one lies on the GPU
    on_cpu = flowcore.upscale(upscaler, lr, seed=3, store=store)
    assert (on_cpu - first).abs().max() < TOLERANCE
    devices.empty_cache()
    assert store is not None or torch.cuda.memory_allocated() < held
    upscaler.to(DEVICE)
    assert torch.equal(flowcore.upscale(upscaler, lr, seed=3, store=store), first)
