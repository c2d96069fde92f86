"""Checksums of weights, to know whether a plan is still its flow's.

Neither addresses nor version counters of tensors tell: ``p.data.copy_(...)`` and writes in inference mode leave both as
they were, and memory that was freed is used again. So the bytes themselves are read: 10 ms of processor time for the
20 MB of ``srflow-x4``.

    python -m timeit -p -n 20 -s "import flowcore; from flowcore.inference.checksums import checksums" \
        -s "flow = flowcore.load('srflow-x4')" "checksums(flow)"
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

Checksums = tuple[tuple[object, ...], ...]

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksums(module: nn.Module) -> Checksums:
    """Describe the parameters and buffers of a module: type, device, shape and a checksum of each.

    Args:
        module: Any.

    Returns:
        Equal for equal weights, and different, but for one chance in 2^32 or fewer, if any tensor differs in any bit.
    """
    tensors = [t.detach() for t in (*module.parameters(), *module.buffers())]
    on_gpu = iter(_checksums_on_gpu([t for t in tensors if t.is_cuda]))
    return tuple((str(t.device), t.dtype, tuple(t.shape), next(on_gpu) if t.is_cuda else _checksum(t)) for t in tensors)


def _checksum(t: Tensor) -> int:
    if t.is_meta:
        return 0
    return zlib.crc32(t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _checksums_on_gpu(tensors: list[Tensor]) -> list[int]:
    """Compute them where the tensors are, and fetch all at once.

    Every word is multiplied by an odd number of its own, so that a changed word changes its product, and so the sum
    modulo 2^64. The numbers are random, always the same on a device, and drawn there.
    """
    if not tensors:
        return []
    device = tensors[0].device
    generator = torch.Generator(device).manual_seed(0)
    longest = max(t.numel() for t in tensors)
    odd = torch.randint(-(2**62), 2**62, (longest,), generator=generator, device=device) * 2 + 1
    sums: list[Tensor] = []
    for t in tensors:
        words = t.contiguous().reshape(-1).view(WORDS[t.element_size()]).long()
        sums.append((words * odd[: len(words)]).sum())
    return torch.stack(sums).tolist()
