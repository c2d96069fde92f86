"""An index of colors: features of cells of photographs, with the chroma of these cells, which are looked up by them.

A cell covers 16 pixels of a photograph whose shorter side has 192. It is stored as 48 principal components of its
description (see ``luma.describe``), in 8 bits each. Similarity of two cells is the cosine between their
components. Each position looks up its k most similar cells, weighted by softmax(similarity / 0.1): their mean chroma,
its standard deviation, and the highest similarity.

Source: nearest neighbors over deep features as in He et al., "Deep exemplar-based colorization" (2018), section 3, of
many photographs instead of one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_CELLS = 2**20  # most cells of a memory
CELL = 16  # pixels of the luma
PHOTOGRAPH_SIDE = 192  # shorter side of the photographs, in pixels
COMPONENTS = 48
WIDTH = 793  # numbers that describe a cell, see ``luma.describe``
PLANES = 5  # mean chroma, its spread, similarity
SOFTNESS = 0.1  # temperature of the weights' softmax
NEIGHBORS = 60
SCARCE = 36  # cells of a memory per neighbor, at least: 60 of a single photograph's would mix all of its colors
FEWEST = 4  # neighbors, also of the smallest memory
CHUNK = 32  # cells whose maximum is taken first, so that only few are sorted
SEED_XOR = 0x5DEECE66D  # mixed into seeds: the choice of photographs does not depend on latents of that seed
MAX_INT8 = 127


def evenly_spaced(count: int, limit: int) -> Tensor:
    """Choose indices of at most ``limit`` of ``count`` cells, evenly spaced: the same share of every photograph."""
    chosen = min(count, limit)
    return ((torch.arange(chosen).double() + 0.5) * count / chosen).long()


def neighbors_among(cells: int) -> int:
    """Return how many neighbors are alike in a memory of so many cells, at most."""
    return max(FEWEST, cells // SCARCE)


def renumber(photograph_ids: Tensor) -> Tensor:
    """Renumber photographs from 0 without gaps, after some lost all of their cells."""
    return photograph_ids.unique(return_inverse=True)[1]


class Cells(NamedTuple):
    """Cells of a memory, ready to be compared with."""

    keys: Tensor  # unit vectors, (N, COMPONENTS)
    chroma: Tensor  # centered on 0, (N, 2)
    photograph_ids: Tensor  # numbers from 0, (N,)

    def select(self, chosen: Tensor) -> Cells:
        """Choose some, by a mask or by their indices."""
        return Cells(*(part[chosen] for part in self))


class CellMemory(nn.Module):
    """Cells of photographs with their chroma, to be looked up; the module's docstring has the formulas."""

    components: Tensor
    scale: Tensor
    keys: Tensor
    chroma: Tensor
    photograph: Tensor

    def __init__(self, cells: int) -> None:
        """Make a memory of N blank cells; ``load_state_dict`` or ``fill`` fill it."""
        super().__init__()
        self.cells = cells
        self.register_buffer("components", torch.zeros(COMPONENTS, WIDTH, dtype=torch.float32))
        # quantization step of each component
        self.register_buffer("scale", torch.ones(COMPONENTS, dtype=torch.float32))
        self.register_buffer("keys", torch.zeros(cells, COMPONENTS, dtype=torch.uint8))  # 8-bit steps, offset by 128
        self.register_buffer("chroma", torch.zeros(cells, 2, dtype=torch.uint8))  # Cb and Cr around 128, over 255
        self.register_buffer("photograph", torch.zeros(cells, dtype=torch.int32))  # ids; a key of files

    def fill(self, descriptors: Tensor, chroma: Tensor, ids: Tensor, basis: CellMemory | None = None) -> None:
        """Store cells ``(N, WIDTH)`` with their chroma ``(N, 2)``, centered on 0, and ids of photographs ``(N,)``.

        ``basis`` is the memory whose principal components are used, None for those of these cells.
        """
        if basis is None:
            # uncentered, as cosines are; the matrix of second moments does not grow with the number of cells
            moments = descriptors.T.double() @ descriptors.double()
            components = torch.linalg.eigh(moments)[1].flip(1)[:, :COMPONENTS].T.to(descriptors)
        else:
            components = basis.components
        self._store(components, descriptors @ components.T, chroma, ids)

    def join(self, other: CellMemory) -> CellMemory:
        """The cells of two, at most ``MAX_CELLS``, with the principal components of this one."""
        first, second = self.all_cells(), other.all_cells()
        keys = torch.cat([self._keys(), other._keys() @ (other.components @ self.components.T)])
        chroma = torch.cat([first.chroma, second.chroma])
        ids = torch.cat([first.photograph_ids, second.photograph_ids + int(first.photograph_ids.max()) + 1])
        chosen = evenly_spaced(len(keys), MAX_CELLS)
        joined = CellMemory(len(chosen))
        joined._store(self.components, keys[chosen], chroma[chosen], renumber(ids[chosen]))
        return joined

    def _store(self, components: Tensor, keys: Tensor, chroma: Tensor, photograph_ids: Tensor) -> None:
        self.components.copy_(components)
        scale = keys.abs().amax(0).clamp_min(1e-6) / MAX_INT8
        self.scale.copy_(scale)
        self.keys.copy_((keys / scale).round().clamp(-MAX_INT8, MAX_INT8) + 128)
        self.chroma.copy_((255 * chroma + 128).round().clamp(0, 255))
        self.photograph.copy_(photograph_ids)

    def all_cells(self) -> Cells:
        """Return all cells, with keys of length 1."""
        chroma = (self.chroma.to(self.scale) - 128) / 255
        return Cells(F.normalize(self._keys(), dim=1), chroma, self.photograph.long())

    def look_up(self, descriptors: Tensor, cells: Cells | None = None, neighbors: int = NEIGHBORS) -> Tensor:
        """Look up the chroma of the cells most similar to descriptors ``(B, WIDTH, h, w)``, among ``cells`` or all.

        Returns ``(B, 5, h, w)``: mean chroma (Cb, Cr) centered on 0, the standard deviation of either, and the highest
        similarity; zero where there is nothing to find.
        """
        cells = cells or self.all_cells()
        batch, _, height, width = descriptors.shape
        if not len(cells.keys):
            return descriptors.new_zeros(batch, PLANES, height, width)
        planes: list[Tensor] = []
        for one in descriptors.to(cells.keys):
            query = F.normalize(one.flatten(1).T @ self.components.T, dim=1)
            similarity, index = _topk(query @ cells.keys.T, min(neighbors, len(cells.keys)))  # (h * w, k)
            weight = F.softmax(similarity / SOFTNESS, dim=1)[..., None]
            near = cells.chroma[index]  # (h * w, k, 2)
            mean = (weight * near).sum(1)
            spread = (weight * (near - mean[:, None]).square()).sum(1).sqrt()
            planes.append(torch.cat([mean, spread, similarity[:, :1]], dim=1).T.unflatten(1, (height, width)))
        return torch.stack(planes).to(descriptors)

    def random_photographs(self, seed: int, share: float) -> Tensor:
        """Return a mask ``(N,)`` of the cells of a random share of the photographs."""
        ids = self.photograph.long()
        generator = torch.Generator("cpu").manual_seed(seed ^ SEED_XOR)
        chances = torch.rand(int(ids.max()) + 1, generator=generator, dtype=torch.float32)
        # at least one, and the same number for every seed
        count = max(1, round(share * len(chances)))
        return (chances <= chances.kthvalue(count)[0]).to(ids.device)[ids]

    def _keys(self) -> Tensor:
        return (self.keys.to(self.scale) - 128) * self.scale


def _topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return ``values.topk(count)``, found in the ``count`` chunks with the largest maxima.

    It takes less than half of the time among 130,000 cells, and a seventh among a million.
    """
    rows, length = values.shape
    chunks = length // CHUNK
    indices = torch.arange(length, device=values.device).expand(rows, -1)
    if chunks > count:
        whole = values[:, : chunks * CHUNK].view(rows, chunks, CHUNK)
        best = whole.amax(2).topk(count, dim=1).indices  # (rows, count)
        chosen = (best[..., None] * CHUNK + indices[:, None, :CHUNK]).flatten(1)
        indices = torch.cat([chosen, indices[:, chunks * CHUNK :]], dim=1)
    largest = values.gather(1, indices).topk(count, dim=1)
    return largest.values, indices.gather(1, largest.indices)
