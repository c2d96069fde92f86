"""Data-parallel training: the processes that train one model together, each on its share of every batch.

Start them with ``torchrun --nproc-per-node N -m flowcore train ...``. All processes read the same data and the same run
folder (on several machines, a shared one); only the main process writes.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor

from ..errors import FlowError


@dataclass(frozen=True)
class Distributed:
    """This process among those that train together; by default it is alone."""

    rank: int = 0  # number of this process, from 0
    world_size: int = 1  # number of processes

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and logs."""
        return self.rank == 0

    @property
    def is_active(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    def shard(self, batch: int) -> slice:
        """Select this process's share of a batch; all shares must be equal, for the mean over processes."""
        if batch % self.world_size:
            raise FlowError(
                f"A batch of {batch} cannot be shared equally by {self.world_size} processes. Start a number of "
                f"processes that divides {batch}, or change the recipe's batch."
            )
        each = batch // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, value: Tensor) -> Tensor:
        """Average a tensor over the processes, differentiably."""
        return differentiable.all_reduce(value) / self.world_size if self.is_active else value

    def any(self, condition: bool, device: str) -> bool:
        """Return True in every process if the condition holds in one of them."""
        return bool(self.mean(torch.tensor(float(condition), device=device)) > 0)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.is_active:
            dist.barrier()


@contextmanager
def init_distributed(device: str) -> Generator[tuple[Distributed, str], None, None]:
    """Join the processes that torchrun started, if any: on "cpu" by gloo, on "cuda" by nccl with a GPU each.

    It yields this process's place, and its device, e.g. "cuda:1".
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Distributed(), device
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Distributed(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
