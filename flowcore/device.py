"""Everything that depends on the device: memory, float64, autocast, and the precision of arithmetic.

Capabilities are queried, never benchmarked, so a given machine always computes the same way.
"""

import gc
import platform
import re
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import FlowError, PrecisionError

ActualPrecision = Literal["float32", "bfloat16", "float16", "tf32"]
LOW_PRECISION = (torch.float16, torch.bfloat16)
FULL_PRECISION = (torch.float32, torch.float64)  # precisions in which a flow is invertible
OUT_OF_MEMORY = re.compile(  # errors of CUDA, ROCm and their libraries, Apple, Intel, DirectML, Linux and Windows
    "out of memory|can't allocate memory|not enough memory|could not allocate tensor|not enough gpu video memory"
    "|out_of_device_memory|out_of_host_memory|out_of_resources|status_alloc_failed|status_memory_error"
)
WITHOUT_FLOAT64 = ("mps", "privateuseone")  # Apple and DirectML
CGROUP_ROOT, PROCESS_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # Linux keeps containers' limits there
EXACT = "ieee"  # torch's name of float32 arithmetic that rounds no factor to fewer bits


def check_device(name: str | torch.device) -> torch.device:
    """Return the device of a name, e.g. "cpu" or "cuda:1"; FlowError if torch or this machine has none."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # the latter two: torch was built without it
        modules = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}
        available = ["cpu", *[kind for kind, module in modules.items() if module.is_available()]]
        raise FlowError(f"There is no device {str(name)!r} here. Choose from {', '.join(available)}.") from error
    return device


# --- memory -----------------------------------------------------------------------------------------------------------


def free_memory(device: torch.device | str) -> int | None:
    """Query how many bytes can be allocated on a device, including memory that torch's allocator caches.

    None if unknown (DirectML; main memory on Windows and macOS without psutil).
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _free_main_memory()
    if device.type == "mps":  # a GPU that shares main memory with everything else
        allocated, main = torch.mps.current_allocated_memory(), _free_main_memory()
        reserved = torch.mps.driver_allocated_memory()  # including torch's cache
        allowed = torch.mps.recommended_max_memory() - allocated
        return max(0, allowed if main is None else min(allowed, main + reserved - allocated))
    module: Any = getattr(torch, device.type, None)  # such as torch.cuda, which is also that of ROCm
    if device.type == "meta" or not hasattr(module, "mem_get_info"):
        return None
    free, total = module.mem_get_info(device)
    if getattr(module.get_device_properties(device), "is_integrated", False):
        free = max(free, _free_main_memory() or 0)  # memory shared with the CPU; the driver counts file caches as used
    allocated = module.memory_allocated(device)
    cached = module.memory_reserved(device) - allocated
    if hasattr(module, "get_per_process_memory_fraction"):
        total = round(module.get_per_process_memory_fraction(device) * total)
    return max(0, min(free + cached, total - allocated))


def _free_main_memory() -> int | None:
    """Query the bytes that this machine, and every limit on this process (of a container or a batch job), leave."""
    free = _free_by_cgroups()
    try:
        import psutil  # comes with ComfyUI
    except ImportError:
        meminfo = Path("/proc/meminfo")
        if meminfo.exists():
            lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
            free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    else:
        free.append(int(psutil.virtual_memory().available))
    return min(free, default=None)


def _free_by_cgroups() -> list[int]:
    free: list[int] = []
    for line in PROCESS_CGROUPS.read_text().splitlines() if PROCESS_CGROUPS.exists() else []:
        _, controllers, group = line.split(":", 2)
        is_version_1 = bool(controllers)
        if is_version_1 and "memory" not in controllers.split(","):
            continue
        root = CGROUP_ROOT / "memory" if is_version_1 else CGROUP_ROOT
        limit, usage = ("limit_in_bytes", "usage_in_bytes") if is_version_1 else ("max", "current")
        folder = root / group.lstrip("/")
        while folder.is_relative_to(root):  # a group obeys the limits of those above it
            try:
                most = int((folder / f"memory.{limit}").read_text())
                used = int((folder / f"memory.{usage}").read_text())
                counted = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                cached = int(counted.get("total_inactive_file") or counted.get("inactive_file") or 0)  # cached files
                free.append(max(0, most - max(0, used - cached)))
            except (OSError, ValueError):  # OSError: no such group in this container; ValueError: "max", no limit
                pass
            folder = folder.parent
    return free


def is_out_of_memory(error: Exception) -> bool:
    """Return True if an error of torch or Python says that memory ran out; not every backend has a class for it."""
    return isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error).lower()) is not None


def empty_cache() -> None:
    """Return freed memory to every device in use: collect garbage, then empty torch's caches."""
    gc.collect()
    for name in ("cuda", "xpu", torch._C._get_privateuse1_backend_name()):  # pyright: ignore[reportPrivateUsage]
        module: Any = getattr(torch, name, None)
        if hasattr(module, "empty_cache") and getattr(module, "is_initialized", lambda: True)():
            module.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


# --- precision --------------------------------------------------------------------------------------------------------


@cache
def supports_float64(device: torch.device) -> bool:
    """Return True if a device computes in float64: those of Apple and DirectML, and some of Intel, do not."""
    if device.type in ("cpu", "cuda", "meta"):
        return True
    if device.type in WITHOUT_FLOAT64:
        return False
    try:
        torch.ones(1, dtype=torch.float64, device=device).mul(2)
    except (RuntimeError, TypeError):
        return False
    return True


@cache
def supports_fused_optimizer(device: torch.device) -> bool:
    """Return True if torch has fused optimizers for a device: DirectML, for one, has none."""
    try:
        torch.optim.Adam([torch.zeros(1, device=device, requires_grad=True)], fused=True)
    except RuntimeError:
        return False
    return True


def or_on_cpu(operation: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Apply an operation on the tensors' device, or on the CPU if torch lacks it there, as older ones do on Apple's."""
    device = tensors[0].device
    try:
        return operation(*tensors)
    except RuntimeError as error:  # NotImplementedError is one, too
        if device.type in ("cpu", "cuda") or is_out_of_memory(error):
            raise
    return operation(*(tensor.cpu() for tensor in tensors)).to(device)


def float64(x: Tensor) -> Tensor:
    """Widen a tensor for determinants, inverses and statistics; on the CPU where the device has no float64."""
    return x.double() if supports_float64(x.device) else float64_on_cpu(x)


def float64_on_cpu(x: Tensor) -> Tensor:
    """Move a tensor to the CPU, then widen it, so that results do not depend on the device."""
    return x.cpu().double()  # two steps, because a device without float64 may be asked to widen before it copies


def require_full_precision(dtype: torch.dtype) -> None:
    """Raise PrecisionError unless the dtype is float32 or float64: a flow is invertible only in these."""
    if dtype not in FULL_PRECISION:
        raise PrecisionError(
            f"A flow keeps its parameters and latents in float32 or float64; got {dtype}. For speed, run its "
            "conditioners in low precision instead: precision='bfloat16' in upscale, or torch.autocast."
        )


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Run convolutions and matrix products in float16 or bfloat16 if torch can; any other dtype turns autocast off."""
    low = dtype in LOW_PRECISION
    if not _has_autocast(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype if low else None, enabled=low)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Turn autocast off for code that stays in float32 or wider, whatever the caller has turned on."""
    return autocast(device, torch.float32)


@cache
def _has_autocast(device_type: str) -> bool:
    try:
        torch.autocast(device_type, enabled=False)
    except (RuntimeError, AssertionError):  # torch has no autocast for this device
        return False
    return True


_FLOAT32_LOCK = threading.Lock()
_TF32_ALLOWED: dict[int, list[bool]] = {}  # whether a thread's nested contexts allow TF32, by thread
_PROCESS_SETTINGS: list[str] = []  # settings before the first context, restored after the last


@contextmanager
def float32_arithmetic(*, tf32_convolutions: bool = False) -> Generator[None, None, None]:
    """Force true float32 in matrix products and convolutions, overriding global settings; restore these at the end.

    Another program may have allowed TF32 or bfloat16, on GPUs and on CPUs. ``tf32_convolutions`` allows TF32 on
    NVIDIA's GPUs nevertheless. In each thread, the innermost context counts. Since the settings belong to the process,
    TF32 is allowed only while all threads in such contexts allow it.
    """
    thread = threading.get_ident()
    with _FLOAT32_LOCK:
        if not _TF32_ALLOWED:
            _PROCESS_SETTINGS[:] = _float32_settings()
        _TF32_ALLOWED.setdefault(thread, []).append(tf32_convolutions)
        _apply_contexts()
    try:
        yield
    finally:
        with _FLOAT32_LOCK:
            _TF32_ALLOWED[thread].pop()
            if not _TF32_ALLOWED[thread]:
                del _TF32_ALLOWED[thread]
            _apply_contexts()


def _apply_contexts() -> None:
    if not _TF32_ALLOWED:
        _set_float32(_PROCESS_SETTINGS)
        return
    allowed = all(contexts[-1] for contexts in _TF32_ALLOWED.values())
    _set_float32(["tf32" if allowed else EXACT, *[EXACT] * (len(_PROCESS_SETTINGS) - 1)])


def _float32_backends() -> list[Any]:
    """List what holds torch's settings: convolutions and matrix products of CUDA, then of oneDNN."""
    backends: Any = torch.backends
    return [backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul]


def _float32_settings() -> list[str]:
    if not hasattr(torch.backends, "fp32_precision"):  # before torch 2.9
        return ["tf32" if torch.backends.cudnn.allow_tf32 else EXACT, torch.get_float32_matmul_precision()]
    return [backend.fp32_precision for backend in _float32_backends()]


def _set_float32(settings: list[str]) -> None:
    if not hasattr(torch.backends, "fp32_precision"):
        convolutions, products = settings
        torch.backends.cudnn.allow_tf32 = convolutions == "tf32"
        torch.set_float32_matmul_precision("highest" if products == EXACT else products)
        return
    for backend, setting in zip(_float32_backends(), settings, strict=True):
        if backend.fp32_precision != setting:
            backend.fp32_precision = setting


def preferred_precision(device: torch.device) -> ActualPrecision:
    """Choose the fastest precision for conditioners that a device has hardware for."""
    if device.type == "cuda":
        has_tensor_cores = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (7, 0)
        return "float16" if has_tensor_cores else "float32"
    return "bfloat16" if has_bfloat16(device) else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Return True if bfloat16 is faster on a device: AMD's GPUs, NVIDIA's from Ampere on, CPUs with AMX or Arm's BF16.

    The instructions of AVX-512 BF16 alone make nothing faster: without AMX, one core of a Xeon made 1.08 training steps
    a second of an encoder of 64-channel 3x3 convolutions, and 1.70 in float32.
    """
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_has_bfloat16()


def actual_precision(precision: ActualPrecision | Literal["auto"], device: torch.device) -> ActualPrecision:
    """Resolve a precision on a device: CPUs replace float16 by float32; only NVIDIA GPUs keep tf32."""
    if precision == "auto":
        return preferred_precision(device)
    if precision == "float16" and device.type == "cpu":
        return "float32"
    nvidia = device.type == "cuda" and torch.version.hip is None
    return "float32" if precision == "tf32" and not nvidia else precision


@cache
def _cpu_has_bfloat16() -> bool:
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if amx is not None and amx():
        return True
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        return False
    listed = flags.read_text().split()
    return "amx_bf16" in listed or (platform.machine() == "aarch64" and "bf16" in listed)
