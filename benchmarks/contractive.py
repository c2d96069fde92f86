"""The picture of contractive blocks in docs/how-flows-work.md.

    python -m benchmarks.contractive docs/how-flows-work       half a minute on one core

Residual blocks learn the two half-moons of ``benchmarks/figures.py``; then noise is decoded with more and more rounds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from flowcore.networks import ContractiveNetwork
from flowcore.transforms import ActNorm, Chain, Probes, Residual

from .figures import dots, moons, noise, picture
from .measure import say

BLOCKS, WIDTH = 6, 32
STEPS, BATCH, TERMS = 800, 256, 5
ROUNDS = (0, 1, 2, 4, 8, 32)
COMPARED = 4000  # points that are decoded to rounding, too
CUT = 40  # rows of a panel that are left out above and below


def main() -> None:
    """Train, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.manual_seed(0)
    chain = Chain(*[part for _ in range(BLOCKS) for part in (block(), ActNorm(2))])
    train(chain)
    draw(chain).save(folder / "fixed-point.png", optimize=True)


def block() -> Residual:
    """Make a residual block of single pixels."""
    return Residual(ContractiveNetwork(2, WIDTH, kernels=(1, 1, 1), leading=False))


def train(chain: Chain) -> None:
    """Maximize the likelihood of half-moons, given as the pixels of one image."""
    blocks = [part for part in chain.parts() if isinstance(part, Residual)]
    for number, residual in enumerate(blocks):
        residual.number = number
    chain.initialize(moons(BATCH).transpose(0, 2))
    optimizer = torch.optim.Adam(chain.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        x = moons(BATCH).transpose(0, 2)  # (1, 2, BATCH, 1)
        signs = tuple(torch.randint(0, 2, x.shape).float() * 2 - 1 for _ in blocks)
        probes = Probes(vectors=signs, coefficients=((1.0,) * TERMS,) * BLOCKS, neumann=True)
        z, logdet = chain(x, probes)
        loss = (z.square().sum() / 2 - logdet.sum()) / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for residual in blocks:
            residual.normalize(1e-3)
        schedule.step()


@torch.no_grad()
def draw(chain: Chain) -> Image.Image:
    """Draw what noise decodes to if every block gets so many rounds, colored by where it started."""
    z, colors = noise(60_000)
    z = z.transpose(0, 2).contiguous()
    exact = chain.inverse(z[:, :, :COMPARED])
    panels: list[Tensor] = []
    for rounds in ROUNDS:
        decoded = decode(chain, z, rounds)
        missed = (decoded[:, :, :COMPARED] - exact).square().sum(1).sqrt()
        say(f"{rounds} rounds: {COMPARED} points are off by {missed.mean():.2g} on average, at most {missed.max():.2g}")
        panels.append(dots(decoded.transpose(0, 2), colors)[:, CUT:-CUT])
    return picture(torch.cat(panels, 2))


def decode(chain: Chain, z: Tensor, rounds: int) -> Tensor:
    """Invert a chain, with a fixed number of rounds for every block."""
    for part in reversed(chain.parts()):
        if isinstance(part, Residual):
            x = z
            for _ in range(rounds):
                x = z - part.network(x)
            z = x
        else:
            z = part.inverse(z)
    return z


if __name__ == "__main__":
    main()
