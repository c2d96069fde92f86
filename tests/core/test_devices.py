"""Devices that are not here: every task on stand-ins of them, their memory, and float32 that is float32."""

import ast
import functools
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import every_task
import pytest
import torch
from builders import random_image as noise
from small_flows import flow as small_flow
from stand_in import stand_in

import flowcore
from flowcore import device as devices
from flowcore.engine import compiled
from flowcore.engine.compiled import CompiledFlow, checksums, drop_compiled
from flowcore.flows.transforms import InvertibleConv

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30

# Name, whether it has float64, and where images and latents are.
STAND_INS = {
    "apple": ("mps", False, "mps"),
    "directml": ("privateuseone", False, "cpu"),
    "intel": ("xpu", False, "cpu"),
    "nvidia": ("cuda", True, "cuda"),
}


def real(name):
    place = {"mps": torch.backends.mps, "xpu": torch.xpu, "cuda": torch.cuda}.get(name)
    return place is not None and place.is_available()


class Driver:
    """What torch.cuda, torch.xpu and torch.mps say about memory."""

    def __init__(self, patch):
        self.free, self.total, self.allocated, self.reserved, self.fraction = 6 * GIB, 8 * GIB, 0, 0, 1.0
        self.integrated, self.emptied = False, []
        for name in ("cuda", "xpu"):
            for function, answer in {
                "mem_get_info": lambda device: (self.free, self.total),
                "memory_allocated": lambda device: self.allocated,
                "memory_reserved": lambda device: self.reserved,
                "get_per_process_memory_fraction": lambda device: self.fraction,
                "get_device_properties": lambda device: types.SimpleNamespace(is_integrated=self.integrated),
                "is_initialized": lambda: True,
                "empty_cache": lambda name=name: self.emptied.append(name),
            }.items():
                patch.setattr(getattr(torch, name), function, answer, raising=False)
        patch.setattr(torch.mps, "current_allocated_memory", lambda: self.allocated)
        patch.setattr(torch.mps, "driver_allocated_memory", lambda: self.reserved)
        patch.setattr(torch.mps, "recommended_max_memory", lambda: self.total)
        patch.setattr(torch.mps, "empty_cache", lambda: self.emptied.append("mps"))


@pytest.fixture
def driver(monkeypatch):
    devices.supports_float64.cache_clear()
    yield Driver(monkeypatch)
    devices.supports_float64.cache_clear()
    drop_compiled()


def on(kind):
    name, wide, inputs = STAND_INS[kind]
    if real(name):
        pytest.skip(f"There is a real {name} here; a stand-in would be mistaken for it.")
    return stand_in(name, float64=wide), every_task.Place(name, inputs)


@pytest.fixture(scope="module")
def expected():
    return functools.cache(lambda task: every_task.run(task, every_task.Place("cpu", "cpu")))


# Images lie on the CPU (directml) or on the device (apple); the other two differ from these in few places.
WITHOUT_IMAGES = ("plain flows", *(task for task in every_task.TASKS if task.startswith("sample")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "kind"),
    [(task, "directml") for task in every_task.TASKS]
    + [(task, "apple") for task in every_task.TASKS if task not in WITHOUT_IMAGES]
    + [(task, kind) for task in ("upscale", "colorize", "score") for kind in ("intel", "nvidia")],
)
def test_every_task_gives_what_the_cpu_gives(task, kind, driver, expected):
    context, place = on(kind)
    with context:
        made = every_task.run(task, place)
    assert every_task.largest_difference(made, expected(task)) < 1e-4


@pytest.mark.parametrize("kind", STAND_INS)
def test_checksums_of_weights_are_computed_where_the_weights_are(kind, driver):
    context, place = on(kind)
    known = small_flow("small-glow")
    numbers = [number for *_, number in checksums(known)]
    with context as device:
        flow = place.flow("small-glow")
        first = checksums(flow)
        with device.watched():
            assert checksums(flow) == first
            assert device.waits == {"_to_copy": 1}  # of all sums at once
        kernel = max(flow.parameters(), key=torch.numel)
        kernel.data.view(-1)[7] *= 1.000001
        assert checksums(flow) != first
    assert len({number for *_, number in first}) == len(set(numbers))  # equal for equal tensors only


def test_devices_that_cannot_sum_are_read(monkeypatch, driver):
    def sums(tensors):
        raise RuntimeError("Int64 is not supported")

    monkeypatch.setattr(compiled, "_sums", sums)
    context, place = on("directml")
    with context:
        made = [number for *_, number in checksums(place.flow("small-glow"))]
    assert made == [number for *_, number in checksums(small_flow("small-glow"))]


def test_precisions_on_devices_without_float64(driver):
    context, place = on("apple")
    known = flowcore.upscale(small_flow("small-srflow"), noise(1, 3, 8, 8), seed=2)
    with context:
        for precision in ("bfloat16", "float16", "auto", "tf32"):
            made = flowcore.upscale(place.flow("small-srflow"), noise(1, 3, 8, 8), seed=2, precision=precision)
            difference = float((made - known).abs().max())
            if precision in ("auto", "tf32"):
                assert difference < 1e-5  # float32
            else:
                assert 1e-5 < difference < 5e-3


@pytest.mark.parametrize("name", ["small-srflow", "small-color", "small-glow", "small-digits", "realnvp"])
def test_a_decode_does_not_wait_for_the_device(name, driver):
    """On a GPU, the host would stand still until everything before is computed."""
    context, place = on("nvidia")
    with context as device:
        flow = place.flow(name)
        compiled = CompiledFlow(flow)
        source = every_task.source_of(flow, 1)
        source = None if source is None else source.to(device.device)
        z = [noise(1, *shape).to(device.device) for shape in flow.latent_shapes(*every_task.sides(flow))]
        with device.watched():
            cond = None if source is None else compiled.encode_condition(source)
            cond = None if cond is None else cond.prepare(compiled)
            picture = compiled.inverse(z, cond)
        assert device.operations > 20
        assert not device.waits
        float(picture.sum())
        assert device.waits  # so that this test can fail


@pytest.fixture
def main_memory(monkeypatch):
    def available(count):
        memory = types.ModuleType("psutil")
        memory.virtual_memory = lambda: types.SimpleNamespace(available=count)
        monkeypatch.setitem(sys.modules, "psutil", memory)

    return available


def test_main_memory_with_and_without_psutil(monkeypatch, main_memory):
    main_memory(3 * GIB)
    assert devices.free_memory("cpu") == 3 * GIB
    monkeypatch.setitem(sys.modules, "psutil", None)  # importing it raises ImportError
    linux = Path("/proc/meminfo").exists()
    assert (devices.free_memory("cpu") is not None) == linux
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert devices.free_memory("cpu") is None
    assert devices.free_memory("privateuseone") is devices.free_memory("meta") is None


VERSION_2 = "0::/", "memory.max", "memory.current", "inactive_file"
VERSION_1 = "3:cpu,memory:/job", "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"


@pytest.mark.parametrize(("group", "limit", "usage", "cached"), [VERSION_2, VERSION_1])
def test_the_limit_of_a_container_counts(group, limit, usage, cached, main_memory, tmp_path, monkeypatch):
    main_memory(64 * GIB)
    monkeypatch.setattr(devices, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(devices, "PROCESS_CGROUPS", tmp_path / "own")
    assert devices.free_memory("cpu") == 64 * GIB
    (tmp_path / "own").write_text(f"1:cpu:/\n{group}\n")
    assert devices.free_memory("cpu") == 64 * GIB
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text("max\n")
    (tmp_path / usage).write_text(f"{3 * GIB}\n")
    (tmp_path / limit).with_name("memory.stat").write_text(f"anon 1\n{cached} {GIB}\n")
    assert devices.free_memory("cpu") == 64 * GIB
    (tmp_path / limit).write_text(f"{4 * GIB}\n")
    assert devices.free_memory("cpu") == 2 * GIB  # file caches are given up


def test_free_memory_of_devices(driver, main_memory):
    driver.free, driver.allocated, driver.reserved = 2 * GIB, 1 * GIB, 4 * GIB
    assert devices.free_memory("cuda") == devices.free_memory("xpu") == 5 * GIB  # with what torch holds
    driver.free, driver.reserved, driver.fraction = 6 * GIB, 2 * GIB, 0.25
    assert devices.free_memory("cuda") == GIB  # up to the limit of the process
    driver.allocated = 3 * GIB
    assert devices.free_memory("cuda") == 0
    driver.allocated = driver.reserved = 0
    main_memory(20 * GIB)  # an integrated GPU has this: its driver counts the system's file caches as used
    driver.free, driver.total, driver.integrated, driver.fraction = GIB, 64 * GIB, True, 1.0
    assert devices.free_memory("cuda") == 20 * GIB
    main_memory(3 * GIB)
    driver.total, driver.allocated, driver.reserved = 8 * GIB, GIB, 2 * GIB
    assert devices.free_memory("mps") == 4 * GIB  # of main memory, and what torch holds
    main_memory(30 * GIB)
    assert devices.free_memory("mps") == 7 * GIB  # as much as the GPU may use


def test_caches_of_devices_in_use_are_emptied(driver, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    other = types.ModuleType("torch.privateuseone")
    other.empty_cache = lambda: driver.emptied.append("other")
    with monkeypatch.context() as patch:
        patch.setattr(torch, torch._C._get_privateuse1_backend_name(), other, raising=False)
        devices.empty_cache()
    assert driver.emptied == ["cuda", "xpu", "other", "mps"]
    for module in (torch.cuda, torch.xpu):
        monkeypatch.setattr(module, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    devices.empty_cache()
    assert len(driver.emptied) == 4


def test_out_of_memory_in_the_words_of_every_device():
    for words in (
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "MPS backend out of memory (MPS allocated: 8.00 GB)",
        "Could not allocate tensor with 4096 bytes. There is not enough GPU video memory available!",
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    ):
        assert devices.is_out_of_memory(RuntimeError(words)), words
    for words in ("CUDA error: an illegal memory access was encountered", "Expected all tensors on the same device"):
        assert not devices.is_out_of_memory(RuntimeError(words)), words


NEW = hasattr(torch.backends, "fp32_precision")  # the interface since torch 2.9
B = torch.backends


def settings():
    return devices._float32_settings()


@pytest.fixture
def restored():
    """The process's settings of float32 arithmetic, as they were, after the test."""
    before = settings()
    yield
    devices._set_float32(before)
    assert settings() == before


def set_new(place, setting):
    return lambda: setattr(place, "fp32_precision", setting)


LEFT_ON = {
    "matrix products, by the old name": lambda: setattr(B.cuda.matmul, "allow_tf32", True),
    "matrix products, medium": lambda: torch.set_float32_matmul_precision("medium"),
}
if NEW:
    LEFT_ON |= {
        "convolutions": set_new(B.cudnn.conv, "tf32"),
        "convolutions off, recurrent networks on": set_new(B.cudnn.conv, "ieee"),  # then the old names raise
        "matrix products": set_new(B.cuda.matmul, "tf32"),
        "oneDNN": set_new(B.mkldnn.conv, "bf16"),
        "oneDNN's products": set_new(B.mkldnn.matmul, "bf16"),
    }


@pytest.mark.parametrize("left_on", LEFT_ON)
def test_float32_settings_of_other_programs_apply_only_outside(left_on, restored):
    LEFT_ON[left_on]()
    outside = settings()
    with devices.float32_arithmetic():
        assert set(settings()) <= {"ieee", "none", "highest"}
        with devices.float32_arithmetic(tf32_convolutions=True):
            assert settings()[0] == "tf32"
            assert set(settings()[1:]) <= {"ieee", "none", "highest"}  # matrix products stay exact
        assert settings()[0] == "ieee"
    assert settings() == outside
    with pytest.raises(KeyError), devices.float32_arithmetic():
        raise KeyError
    assert settings() == outside


def test_pictures_do_not_change_with_the_settings_of_others(restored):
    flow, image, mixing = small_flow("small-srflow"), noise(1, 3, 16, 16), InvertibleConv(16)
    cond = flow.encode_condition(image)

    def make():
        drop_compiled()
        made = flowcore.upscale(flow, image, seed=3, match_source=True)
        latents, mixed = flowcore.encode(flow, noise(1, 3, 32, 32), cond)[0], mixing(noise(1, 16, 32, 32))[0]
        return made, latents, mixing.inverse(mixed)

    known = make()
    for leave_on in LEFT_ON.values():
        leave_on()
    assert all(map(torch.equal, make(), known))


def test_one_thread_that_needs_float32_keeps_tf32_off_for_all_and_the_last_to_leave_restores_the_settings(restored):
    LEFT_ON["matrix products, medium"]()
    before, brief, lasting = settings(), devices.float32_arithmetic(), devices.float32_arithmetic()
    with ThreadPoolExecutor(1) as other:
        with devices.float32_arithmetic(tf32_convolutions=True):
            for context in (brief, lasting):
                assert settings()[0] == "tf32"
                other.submit(context.__enter__).result()
                assert settings()[0] == "ieee"
                if context is brief:
                    other.submit(context.__exit__, None, None, None).result()
        assert set(settings()) <= {"ieee", "none", "highest"}  # the other still computes
        other.submit(lasting.__exit__, None, None, None).result()
    assert settings() == before


SLOWER = "x86_64", "avx512f avx512_bf16", False  # measured slower than float32
FASTER = ("x86_64", "avx512f avx512_bf16 amx_bf16", True), ("aarch64", "asimd bf16", True)


@pytest.mark.parametrize(("machine", "flags", "has"), [SLOWER, *FASTER])
def test_a_cpu_is_faster_in_bfloat16_with_amx_or_on_arm(machine, flags, has, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(devices, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: "avx512_bf16" in flags, raising=False)
    devices._cpu_has_bfloat16.cache_clear()
    try:
        assert devices.has_bfloat16(torch.device("cpu")) == has
    finally:
        devices._cpu_has_bfloat16.cache_clear()


CARDS = [((6, 1), None, "float32"), ((7, 5), None, "float16"), ((9, 4), "6.2", "float16")]


@pytest.mark.parametrize(("capability", "hip", "choice"), CARDS)
def test_tensor_cores_decide(capability, hip, choice, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert devices.actual_precision("auto", torch.device("cuda")) == choice
    assert devices.actual_precision("tf32", torch.device("cuda")) == ("float32" if hip else "tf32")


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_what_a_choice_means_without_tensor_cores(has_bfloat16, monkeypatch):
    monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: has_bfloat16)
    for choice, on_cpu, on_apple, on_directml in (
        ("auto", "bfloat16" if has_bfloat16 else "float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float32", "float16", "float16"),
        ("tf32", "float32", "float32", "float32"),
    ):
        made = [devices.actual_precision(choice, torch.device(name)) for name in ("cpu", "mps", "privateuseone")]
        assert made == [on_cpu, on_apple, on_directml], choice


ELSEWHERE = {
    "cli/options.py": {"cuda"},  # the default of --device
    "training/run.py": {"cuda"},  # one process, one GPU
}


def test_only_device_py_names_what_depends_on_the_device():
    """torch.cuda, torch.xpu, torch.mps, torch.backends and torch.autocast."""
    found = {}
    for path in sorted((ROOT / "flowcore").rglob("*.py")):
        room = str(path.relative_to(ROOT / "flowcore"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                named = node.attr in ("cuda", "xpu", "mps", "backends", "autocast", "accelerator")
                if named and room != "device.py" and node.attr not in ELSEWHERE.get(room, ()):
                    found.setdefault(room, set()).add(node.attr)
    assert found == {}
