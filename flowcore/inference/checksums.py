r"""Checksums of weights, to know whether a plan still belongs to its flow.

Addresses and version counters of tensors are not enough: ``p.data.copy_(...)`` and writes in inference mode leave both
as they were, and freed memory is used again. So the bytes themselves are read: 10 ms of processor time for the 20 MB of
``srflow-x4``.

    python -m timeit -p -n 20 -s "import flowcore; from flowcore.inference.checksums import checksums" \
        -s "flow = flowcore.load('srflow-x4')" "checksums(flow)"
"""

from __future__ import annotations

import zlib
from functools import cache

import torch
from torch import Tensor, nn

Checksums = tuple[tuple[object, ...], ...]

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MIXERS = (-0x61C8864680B583EB, -0x40A7B892E31B1A47)  # odd; of splitmix64, as signed numbers


def checksums(module: nn.Module) -> Checksums:
    """Describe the parameters and buffers of a module: type, device, shape and a checksum of each.

    Equal for equal weights, and different, but for one chance in 2^32 or fewer, if any tensor differs in any bit.
    """
    tensors = [t.detach() for t in (*module.parameters(), *module.buffers())]
    sums = iter(_sums([t for t in tensors if _sums_alike(t.device)]))
    return tuple(
        (str(t.device), t.dtype, tuple(t.shape), next(sums) if _sums_alike(t.device) else _crc(t)) for t in tensors
    )


def _crc(t: Tensor) -> int:
    if t.device.type == "meta":
        return 0
    return zlib.crc32(t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


@cache
def _sums_alike(device: torch.device) -> bool:
    """Tell whether an accelerator computes ``_sums`` as the CPU does, so that weights need not be copied to the CPU."""
    if device.type in ("cpu", "meta"):
        return False
    words = torch.arange(-8, 8, dtype=torch.int32) * 2**27
    try:
        return _sums([words.to(device)]) == _sums([words])
    except (RuntimeError, TypeError):  # without 64-bit integers, such as DirectML
        return False


def _sums(tensors: list[Tensor]) -> list[int]:
    """Sum the words of tensors where they are, and fetch all sums at once.

    Every word is multiplied by an odd number of its own, so that a changed word changes its product, and so the sum
    modulo 2^64.
    """
    if not tensors:
        return []
    odd = _odd_numbers(max(t.numel() for t in tensors), tensors[0].device)
    sums: list[Tensor] = []
    for t in tensors:
        words = t.contiguous().reshape(-1).view(WORDS[t.element_size()]).long()
        sums.append((words * odd[: len(words)]).sum())
    return torch.stack(sums).tolist()


def _odd_numbers(count: int, device: torch.device) -> Tensor:
    """Odd pseudorandom numbers of 64 bits, always the same: the positions, mixed as in splitmix64."""
    x = torch.arange(1, count + 1, device=device)
    for mixer in MIXERS:
        x = x * mixer
        x = x ^ (x >> 29)
    return x | 1
