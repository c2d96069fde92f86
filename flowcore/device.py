"""All that depends on a device: free memory, what counts as running out of it, and which precision pays."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16", "float16", "tf32"]
LOW_PRECISION = (torch.float16, torch.bfloat16)
NO_MEMORY = (  # what it is called: CUDA and Apple, Linux, Windows, and libraries of CUDA
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def free_memory(device: str) -> int | None:
    """Say how much memory is free.

    Args:
        device: "cpu", or a CUDA device.

    Returns:
        Bytes; None where neither torch nor the system says.
    """
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def is_out_of_memory(error: Exception) -> bool:
    """Tell running out of memory from other errors, on every device and system.

    Args:
        error: What torch raised.

    Returns:
        Whether it is that.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in NO_MEMORY)


def float64(x: Tensor) -> Tensor:
    """Widen a tensor for what needs it: determinants and inverses.

    Args:
        x: Any tensor.

    Returns:
        The same in float64, on the CPU where the device has no such thing.
    """
    return x.to("cpu", torch.float64) if x.device.type == "mps" else x.double()  # Apple's device has no float64


@cache
def preferred_precision(device: torch.device) -> Precision:
    """Say in which precision conditioners are worth running on a device.

    Args:
        device: Where the flow lies.

    Returns:
        "float16" on a GPU, "bfloat16" on a processor that convolves in it at least 1.5 times as fast as in float32
        (measured once), else "float32".
    """
    if device.type == "cuda":
        return "float16"
    if device.type != "cpu":
        return "float32"
    seconds: list[float] = []
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.zeros(1, 64, 64, 64, dtype=dtype), torch.zeros(64, 64, 3, 3, dtype=dtype)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        times: list[float] = []
        for _ in range(4):
            start = time.perf_counter()
            torch.conv2d(x, weight, padding=1)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    return "bfloat16" if seconds[0] >= 1.5 * seconds[1] else "float32"
