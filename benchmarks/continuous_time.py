"""The picture of continuous time in docs/how-flows-work.md.

    python -m benchmarks.continuous_time docs/how-flows-work       a minute on one core

An ODE learns the two half-moons of ``benchmarks/figures.py``, with the costs of its paths in the loss.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from flowcore.networks import VectorField
from flowcore.transforms import ODE, Probes, path_costs

from .figures import SIDE, dots, moons, noise, picture, plane

STEPS, BATCH = 450, 256
SOLVER_STEPS = 10  # the picture has a panel for every second one
PENALTY = 0.1


def main() -> None:
    """Train, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    ode = ODE(velocity(), steps=SOLVER_STEPS)
    train(ode)
    draw(ode).save(folder / "continuous-time.png", optimize=True)


def velocity() -> VectorField:
    """Build a velocity with 1x1 convolutions: every pixel is a point of its own."""
    widths = (48, 48)
    field = VectorField(2, widths, activation="tanh")
    convs = [nn.Conv2d(1 + inputs, outputs, 1) for inputs, outputs in pairwise((2, *widths, 2))]  # 1 is the time
    nn.init.zeros_(convs[-1].weight)
    nn.init.zeros_(convs[-1].bias)  # pyright: ignore[reportArgumentType]
    for layer, conv in zip(field.layers, convs, strict=True):
        layer.conv = conv
    return field


def train(ode: ODE) -> None:
    """Maximize the likelihood, with short and straight paths."""
    optimizer = torch.optim.Adam(ode.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        x = moons(BATCH)
        signs = torch.randint(0, 2, x.shape).float() * 2 - 1
        with path_costs(ode) as costs:
            z, logdet = ode(x, Probes(vectors=(signs,), coefficients=((),)))
        loss = (z.square().sum((1, 2, 3)) / 2 - logdet).mean() + PENALTY * costs[0].sum(0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def draw(ode: ODE) -> Image.Image:
    """Draw noise as it drifts to the half-moons, colored by where it started, and the density at the same times."""
    points, colors = noise(60_000)
    points = points.transpose(0, 2)  # one image of many pixels, which is much faster than many images
    grid = plane()
    above: list[Tensor] = []
    below: list[Tensor] = []
    for number in range(SOLVER_STEPS, -1, -1):
        if number < SOLVER_STEPS:
            points = ode.step_back(points, number)
        if number % 2:
            continue
        above.append(dots(points.transpose(0, 2), colors))
        value = density(ode, grid, number)
        below.append((value / value.max()).reshape(1, SIDE, SIDE).expand(3, -1, -1))
    return picture(torch.cat([torch.cat(above, 2), torch.cat(below, 2)], 1))


def density(ode: ODE, points: Tensor, first: int) -> Tensor:
    """Evaluate the density of points at the time before a step, from where the remaining steps take them."""
    logdet = points.new_zeros(len(points))
    for number in range(first, ode.steps):
        points, change, _ = ode.step(points, number, None)
        logdet = logdet + change.sum((1, 2))
    return torch.exp(logdet - points.square().sum((1, 2, 3)) / 2 - math.log(2 * math.pi))


if __name__ == "__main__":
    main()
