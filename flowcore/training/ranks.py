"""Ranks: the processes that train one model together, each on its share of every batch.

Start them with ``torchrun --nproc-per-node N -m flowcore train ...``. All of them read the same data and the same run
folder (several machines need a shared one); the first alone writes.
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
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: Number of this process, from 0.
        world: How many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    def share(self, batch: int) -> slice:
        """Say which items of a batch are this process's.

        Args:
            batch: B, of the whole batch.

        Returns:
            A slice of ``B / world`` items.

        Raises:
            FlowError: If the batch cannot be shared equally, which the mean over processes needs.
        """
        if batch % self.world:
            raise FlowError(
                f"A batch of {batch} cannot be shared equally by {self.world} processes. Start a number of processes "
                f"that divides {batch}, or change the recipe's batch."
            )
        each = batch // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, value: Tensor) -> Tensor:
        """Average over the processes, differentiably.

        Args:
            value: A tensor of the same shape in every process.

        Returns:
            The mean, the same in every process.
        """
        return differentiable.all_reduce(value) / self.world if self.several else value

    def agree(self, wish: bool, device: str) -> bool:
        """Say whether any process wishes something, so that all do the same.

        Args:
            wish: This process's.
            device: Where the processes meet.

        Returns:
            Whether one of them does.
        """
        if not self.several:
            return wish
        wishes = torch.tensor(float(wish), device=device)
        dist.all_reduce(wishes)
        return bool(wishes > 0)

    def wait(self) -> None:
        """Wait until every process has come this far."""
        if self.several:
            dist.barrier()


@contextmanager
def joined(device: str) -> Generator[tuple[Ranks, str], None, None]:
    """Join the other processes that torchrun started; alone, do nothing.

    Args:
        device: "cpu" (they meet by gloo) or "cuda" (by nccl, a GPU each).

    Yields:
        This process's place, and its device, e.g. "cuda:1".
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(), device
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
