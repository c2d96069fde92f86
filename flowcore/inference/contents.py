"""Checksums of weights, to know whether a plan is still its flow's.

Neither addresses nor version counters of tensors tell: ``p.data.copy_(...)`` and writes in inference mode leave both as
they were, and memory that was freed is used again. So the bytes themselves are read: 10 ms of processor time for the
20 MB of ``srflow-x4``.

    python -m timeit -p -n 20 -s "import flowcore; from flowcore.inference.contents import contents" \
        -s "flow = flowcore.load('srflow-x4')" "contents(flow)"
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

Contents = tuple[tuple[object, ...], ...]

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def contents(module: nn.Module) -> Contents:
    """Describe the parameters and buffers of a module: type, device, shape and a checksum of each.

    Args:
        module: Any.

    Returns:
        Equal for equal weights, and different, but for one chance in 2^32 or fewer, if any tensor differs in any bit.
    """
    tensors = [t.detach() for t in (*module.parameters(), *module.buffers())]
    sums = _checksums(tensors)
    return tuple((str(t.device), t.dtype, tuple(t.shape), number) for t, number in zip(tensors, sums, strict=True))


def _checksums(tensors: Iterable[Tensor]) -> list[int]:
    """Compute a number of each tensor; those on a GPU there, and with one transfer for all of them."""
    sums: list[int | Tensor] = []
    weights: dict[torch.device, Tensor] = {}
    for t in tensors:
        if t.is_meta:
            sums.append(0)
        elif t.is_cuda:
            words = t.contiguous().reshape(-1).view(WORDS[t.element_size()]).long()
            if t.device not in weights or len(weights[t.device]) < len(words):
                weights[t.device] = _odd_numbers(len(words)).to(t.device)
            sums.append((words * weights[t.device][: len(words)]).sum())
        else:
            sums.append(zlib.crc32(t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data))
    on_device = [number for number in sums if isinstance(number, Tensor)]
    fetched = torch.stack(on_device).tolist() if on_device else []
    fetched.reverse()
    return [fetched.pop() if isinstance(number, Tensor) else number for number in sums]


def _odd_numbers(count: int) -> Tensor:
    """Draw odd 64-bit numbers, always the same: a changed word changes its product, and so the sum modulo 2^64."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**62), 2**62, (count,), generator=generator) * 2 + 1
