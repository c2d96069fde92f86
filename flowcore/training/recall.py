"""A colorizer's memory in training: filled with the photographs, and looked up so that none finds itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FlowError
from ..flow import Flow
from ..networks import LumaEncoder
from ..networks.memory import NEIGHBORS, SIDE, CellMemory
from ..tasks import Progress
from ..tasks.remember import cells_of
from .photographs import Photographs

SERIES = 0.95  # similarity of entire photographs from which on they count as one series
PARTS = ((1.0, 0.1), (0.15, 0.6), (0.04, 0.3))  # share of the photographs that a step looks at, and how often


class Recall:
    """Looks up crops in a memory, each in that of all other photographs and series.

    Every step looks at another part of the memory, of another size, as samples do and as smaller memories are.
    """

    def __init__(self, flow: Flow, data: Photographs) -> None:
        """Take the memory of a model that was filled with the photographs to train on."""
        # a copy, since the thread that makes batches uses it while the model trains
        self.encoder, self.memory = _encoder_and_memory(copy.deepcopy(flow))
        self.cells = self.memory.all_cells()
        self.numbers = {name: number for number, name in enumerate(_names(data))}
        means = torch.zeros(len(self.numbers), self.cells.keys.shape[1])
        means.index_add_(0, self.cells.photograph, self.cells.keys)
        means = F.normalize(means, dim=1)
        self.series = means @ means.T > SERIES  # (photographs, photographs)
        self.series.fill_diagonal_(True)

    @torch.no_grad()
    def __call__(self, y: Tensor, names: Sequence[str], rng: np.random.Generator | None) -> Tensor:
        """Look up crops of luma ``(B, 1, H, W)``, see ``CellMemory.look_up``: ``(B, 5, H / 16, W / 16)``.

        Without ``rng``, crops of photographs that are not trained on are looked up in all of the memory.
        """
        described = self.encoder.describe(y)
        if rng is None:
            return self.memory.look_up(described, self.cells)
        shares, chances = zip(*PARTS, strict=True)
        share = float(rng.choice(shares, p=chances))
        neighbors = round(NEIGHBORS * share**0.58)  # 20 at 0.15
        part = self.cells.among(self.memory.part(int(rng.integers(2**62)), share))
        found: list[Tensor] = []
        for one, name in zip(described.split(1), names, strict=True):
            others = ~self.series[self.numbers[name]][part.photograph]
            found.append(self.memory.look_up(one, part.among(others), neighbors))
        return torch.cat(found)


@torch.no_grad()
def fill_memories(flows: Sequence[Flow], data: Photographs, progress: Progress | None = None) -> None:
    """Fill the memory of copies of a colorizer with as many cells as it has, as many of every training photograph."""
    encoder, memory = _encoder_and_memory(flows[0])
    names, total = _names(data), memory.cells
    if total < len(names):
        raise FlowError(
            f"memory must be at least the number of photographs to train on, {len(names)}, so that each has a cell in "
            f"it; got {total}."
        )
    nearest: dict[str, tuple[int, int]] = {}  # of a photograph in several sizes
    for place, entry in enumerate(data.training):
        found = abs(min(entry.height, entry.width) - SIDE), place
        nearest[entry.name] = min(nearest.get(entry.name, found), found)
    rng = np.random.default_rng(0)
    described, chroma, photograph = list[Tensor](), list[Tensor](), list[int]()
    for number, name in enumerate(names):
        pixels = data.cache.images(data.training[nearest[name][1]])[0]
        rgb = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().div_(255)
        features, colors = cells_of(encoder, rgb)
        count = (number + 1) * total // len(names) - number * total // len(names)
        chosen = torch.from_numpy(rng.choice(len(features), count, replace=count > len(features)))
        described.append(features[chosen])
        chroma.append(colors[chosen])
        photograph += [number] * count
        if progress is not None:
            progress(number + 1, len(names))
    memory.fill(torch.cat(described), torch.cat(chroma), torch.tensor(photograph))
    for flow in flows[1:]:
        _encoder_and_memory(flow)[1].load_state_dict(memory.state_dict())


def _encoder_and_memory(flow: Flow) -> tuple[LumaEncoder, CellMemory]:
    encoder = flow.encoder
    assert isinstance(encoder, LumaEncoder)
    assert encoder.memory is not None
    return encoder, encoder.memory


def _names(data: Photographs) -> list[str]:
    return sorted({entry.name for entry in data.training})
