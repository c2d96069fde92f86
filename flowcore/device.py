"""Everything that depends on the device: free memory, out-of-memory errors, and the precision of arithmetic."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .errors import PrecisionError

Precision = Literal["float32", "bfloat16", "float16", "tf32"]
LOW_PRECISION = (torch.float16, torch.bfloat16)
OUT_OF_MEMORY = (  # how CUDA and Apple, Linux, Windows, and CUDA's libraries word it
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


# --- memory -----------------------------------------------------------------------------------------------------------


def free_memory(device: torch.device | str) -> int | None:
    """Query how many bytes are free on a CUDA device, else in main memory; None if neither torch nor the system tells.

    Args:
        device: Any device.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def is_out_of_memory(error: Exception) -> bool:
    """Tell running out of memory from other errors, on every device and system.

    Args:
        error: What torch or Python raised.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


def empty_cache() -> None:
    """Return freed memory to the device: collect garbage, then empty CUDA's cache if CUDA is in use."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next allocation, instead of returning it to the system after every step.

    Otherwise each large tensor is mapped anew and its pages are cleared at first use, in every step again. This is a
    setting of the process, so it is for programs of their own, such as the command line, and not for a host's process.
    What it saves depends on the machine: on one core of a busy AMD EPYC nothing (1.08 and 1.07 s of processor time per
    training step of ``srflow-x4`` with it and without; ``python -m benchmarks.malloc --data FOLDER``).

    Returns:
        Whether it took effect; False where the allocator is not glibc's.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # another C library
        return False
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4  # constants of malloc.h
    without_mmap = libc.mallopt(mmap_threshold, 2**30) or libc.mallopt(mmap_max, 0)  # old glibc refuses the former
    return bool(without_mmap and libc.mallopt(trim_threshold, 2**31 - 1) and libc.mallopt(top_pad, 2**28))


# --- precision --------------------------------------------------------------------------------------------------------


def float64(x: Tensor) -> Tensor:
    """Widen a tensor for determinants, inverses and statistics; on the CPU where the device has no float64 (Apple).

    Args:
        x: Any tensor.
    """
    return x.to("cpu", torch.float64) if x.device.type == "mps" else x.double()


def require_full_precision(dtype: torch.dtype) -> None:
    """Refuse everything but float32 and float64 for parameters and latents: a flow is invertible in these only.

    Args:
        dtype: Of the parameters or latents.

    Raises:
        PrecisionError: For any other type.
    """
    if dtype not in (torch.float32, torch.float64):
        raise PrecisionError(
            f"A flow keeps its parameters and latents in float32 or float64; got {dtype}. For speed, run its "
            "conditioners in low precision instead: precision='bfloat16' in upscale, or torch.autocast."
        )


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Make torch run convolutions and matrix products in a precision: autocast for a low one, none for a wide one.

    Args:
        device: Where they run.
        dtype: The precision.

    Returns:
        A context manager.
    """
    low = dtype in LOW_PRECISION
    return torch.autocast(device.type, dtype if low else None, enabled=low)


def no_autocast(device: torch.device) -> torch.autocast:
    """Turn autocast off for code that stays in float32 or wider, whatever the caller has turned on.

    Args:
        device: Where it runs.

    Returns:
        A context manager.
    """
    return torch.autocast(device.type, enabled=False)


@contextmanager
def tf32_convolutions(device: torch.device, allowed: bool) -> Generator[None, None, None]:
    """Allow or forbid TF32 in the convolutions of an NVIDIA GPU, and restore the setting; elsewhere, do nothing.

    Args:
        device: Where they run.
        allowed: Whether they may use TF32, which keeps 10 bits of the mantissa.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=allowed,
    ):
        yield


@cache
def preferred_precision(device: torch.device) -> Precision:
    """Choose the fastest precision for conditioners on a device.

    Args:
        device: Where the flow runs.

    Returns:
        "float16" on an NVIDIA GPU; "bfloat16" on a CPU that convolves in it at least 1.5 times as fast as in float32
        (measured once); else "float32".
    """
    if device.type == "cuda":
        return "float16"
    if device.type != "cpu":
        return "float32"
    seconds = {dtype: _convolution_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return "bfloat16" if seconds[torch.float32] >= 1.5 * seconds[torch.bfloat16] else "float32"


def _convolution_seconds(dtype: torch.dtype) -> float:
    """Time a typical convolution on the CPU; the best of four."""
    x = torch.zeros(1, 64, 64, 64, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    times: list[float] = []
    for _ in range(4):
        start = time.perf_counter()
        torch.conv2d(x, weight, padding=1)
        times.append(time.perf_counter() - start)
    return min(times)
