"""The pictures of docs/how-flows-work.md.

    python -m benchmarks.figures docs/how-flows-work       four minutes on one core

Also makes the icon and banner of the registry's page, `docs/icon.png` and `docs/banner.png`.

Three small flows learn two half-moons in the plane, "images" of one pixel with two channels, with the same transforms,
law and loss as for photographs.
"""

import argparse
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

import flowcore
from flowcore.flows.transforms import ODE, ActNorm, Chain, Coupling, LevelCondition, Probes, Residual, path_costs
from flowcore.images.files import read
from flowcore.models.ffjord.vector_field import VectorField
from flowcore.models.residual_flow.contractive import ContractiveNetwork
from flowcore.tasks.sample import dequantized_image

from .measure import as_image, say

SIDE, REACH = 180, 3.4  # pixels of a panel; what it shows goes from -REACH to REACH
COUPLINGS = 8
SOLVER_STEPS = 10  # of the ODE; the picture has a panel for every second one
PENALTY = 0.1  # on speed along the paths of the ODE
BLOCKS, TERMS = 6, 5  # contractive blocks, and terms of the series of their logdet
ROUNDS = (0, 1, 2, 4, 8, 32)  # of the fixed-point iteration, a panel each
COMPARED = 4000  # points that are decoded to rounding, too
CUT = 40  # rows of a panel that are left out above and below


def main() -> None:
    """Train, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)

    def save(image: Image.Image, path: Path) -> None:
        image.save(path, optimize=True, quality=90)
        say(f"wrote {path}")

    couplings = train_couplings()
    save(as_image(unfolding(couplings, 60_000, SIDE)), folder / "two-moons.png")
    save(density(couplings), folder / "density.png")
    save(gray_levels(), folder / "dequantization.png")
    save(guided(), folder / "guide.jpg")
    save(icon(couplings), folder.parent / "icon.png")
    save(banner(couplings), folder.parent / "banner.png")
    save(drift(train_ode()), folder / "continuous-time.png")
    save(fixed_point(train_contractive()), folder / "fixed-point.png")


# --- what all three share ---------------------------------------------------------------------------------------------


def moons(count: int) -> Tensor:
    """Two half-circles with a little noise, (count, 2, 1, 1)."""
    angle = math.pi * torch.rand(count)
    upper = torch.rand(count) < 0.5
    x = torch.where(upper, angle.cos() - 0.5, 0.5 - angle.cos())
    y = torch.where(upper, angle.sin() - 0.25, 0.25 - angle.sin())
    points = 1.4 * torch.stack([x, y], dim=1) + 0.09 * torch.randn(count, 2)
    return points[:, :, None, None]


def noise(count: int) -> tuple[Tensor, Tensor]:
    """Draw latents, (count, 2, 1, 1), and colors by their direction, (count, 3)."""
    z = torch.randn(count, 2, 1, 1)
    direction = torch.atan2(z[:, 1], z[:, 0]).flatten()
    return z, torch.stack([0.5 + 0.5 * torch.cos(direction - turn) for turn in (0.0, 2.1, 4.2)], dim=1)


def plane() -> Tensor:
    """List the points that the pixels of a panel show, (SIDE * SIDE, 2, 1, 1)."""
    line = torch.linspace(-REACH, REACH, SIDE)
    return torch.stack([line.expand(SIDE, SIDE), -line[:, None].expand(SIDE, SIDE)], dim=-1).reshape(-1, 2, 1, 1)


def dots(points: Tensor, colors: Tensor, side: int = SIDE) -> Tensor:
    """Add up colored dots, (3, side, side)."""
    xy = ((points.flatten(1) / REACH + 1) / 2 * side).long()
    inside = ((xy >= 0) & (xy < side)).all(1)
    place = (side - 1 - xy[inside, 1]) * side + xy[inside, 0]
    canvas = torch.zeros(side * side, 3).index_add_(0, place, colors[inside])
    return (1 - torch.exp(-canvas / 3)).T.reshape(3, side, side)


def minimize(model: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float, after: Any = lambda: None) -> None:
    """Train with Adam, at a rate that falls to 0; ``after`` is called after every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        after()
        schedule.step()


# --- couplings --------------------------------------------------------------------------------------------------------


def train_couplings() -> nn.ModuleList:
    """Maximize the likelihood of every point: that of its latent, plus the logdet."""
    torch.manual_seed(0)
    couplings = nn.ModuleList(Coupling(network(), scaling="atan", swap=k % 2 == 1) for k in range(COUPLINGS))

    def loss() -> Tensor:
        z, logdet = moons(512), torch.zeros(512)
        for coupling in couplings:
            z, change = coupling(z)
            logdet = logdet + change
        return (z.square().sum((1, 2, 3)) / 2 - logdet).mean()

    minimize(couplings, loss, steps=3000, rate=2e-3)
    return couplings


def network() -> nn.Module:
    """Build a coupling's network, which shifts and scales one coordinate given the other."""
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 1), nn.Tanh(), nn.Conv2d(64, 64, 1), nn.Tanh(), nn.Conv2d(64, 2, 1)]
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return nn.Sequential(*layers)


@torch.no_grad()
def unfolding(couplings: nn.ModuleList, count: int, side: int) -> Tensor:
    """Draw latents, colored by direction, and where every second coupling moves them when decoding."""
    z, colors = noise(count)
    panels = [dots(z, colors, side)]
    for number, coupling in reversed(list(enumerate(couplings))):
        z = coupling.inverse(z)
        if number % 2 == 0:
            panels.append(dots(z, colors, side))
    return torch.cat(panels, dim=2)


@torch.no_grad()
def density(couplings: nn.ModuleList) -> Image.Image:
    """Draw data, the model's density, and the logdet that turns one into the other."""
    z, logdet = plane(), torch.zeros(SIDE * SIDE)
    for coupling in couplings:
        z, change = coupling(z)
        logdet = logdet + change
    log_prob = -z.square().sum((1, 2, 3)) / 2 - math.log(2 * math.pi) + logdet
    data = dots(moons(60_000), torch.ones(60_000, 3))
    shown = [log_prob.exp() / log_prob.exp().max(), ((logdet + 4) / 8).clamp(0, 1)]
    panels = [value.reshape(1, SIDE, SIDE).expand(3, -1, -1) for value in shown]
    return as_image(torch.cat([data, *panels], dim=2))


@torch.no_grad()
def icon(couplings: nn.ModuleList) -> Image.Image:
    """Draw the half-moons, 400x400."""
    z, colors = noise(200_000)
    for coupling in reversed(couplings):
        z = coupling.inverse(z)
    return as_image(dots(1.5 * z, colors, 400))


def banner(couplings: nn.ModuleList) -> Image.Image:
    """Draw noise, the way to the half-moons, and the name; 21:9."""
    whole = Image.new("RGB", (1260, 540))
    whole.paste(as_image(unfolding(couplings, 120_000, 252)), (0, 60))
    draw = ImageDraw.Draw(whole)
    draw.text((630, 400), "flowcore", fill="white", anchor="mm", font=ImageFont.load_default(84))
    draw.text((630, 470), "normalizing flows for artists", fill="white", anchor="mm", font=ImageFont.load_default(34))
    return whole


def gray_levels() -> Image.Image:
    """Draw a digit and some shades, without and with the noise of one of 32 bins."""
    flow = flowcore.load("mnist-styles")
    drawn = flowcore.sample(flow, 1, seed=5, labels=5, temperature=0.7, snapped=True)
    noisy = dequantized_image(flow, drawn, seed=0)
    shades = torch.linspace(0, 0.25, 28).expand(1, 1, 28, 28)
    coarse = (shades * 31).round() / 31
    parts = [drawn, noisy, coarse * 4, dequantized_image(flow, coarse, seed=1) * 4]
    row = torch.cat([part[0] for part in parts], dim=2).clamp(0, 1).expand(3, -1, -1)
    return as_image(row).resize((row.shape[2] * 5, row.shape[1] * 5), Image.Resampling.NEAREST)


def guided() -> Image.Image:
    """Draw a bad JPEG, guided with strengths 0, 0.3, 0.6, 0.8 and 1."""
    pixels = read((Path(__file__).parents[1] / "workflows/pictures/parrots.jpg").read_bytes(), "parrots.jpg").pixels
    lr = pixels[..., 38:78, 20:60]  # (1, 3, 40, 40)
    flow = flowcore.load("srflow-x4-photo")
    parts = [flowcore.upscale(flow, lr, seed=1, guide_strength=a) for a in (0.0, 0.3, 0.6, 0.8, 1.0)]
    return as_image(torch.cat(parts, dim=3)[0])


# --- continuous time --------------------------------------------------------------------------------------------------


def train_ode() -> ODE:
    """Maximize the likelihood, with short and straight paths."""
    torch.manual_seed(0)
    ode = ODE(velocity(), steps=SOLVER_STEPS)

    def loss() -> Tensor:
        x = moons(256)
        signs = torch.randint(0, 2, x.shape).float() * 2 - 1
        with path_costs(ode) as costs:
            z, logdet = ode(x, LevelCondition(probes=Probes(vectors=(signs,), coefficients=((),))))
        return (z.square().sum((1, 2, 3)) / 2 - logdet).mean() + PENALTY * costs[0].sum(0).mean()

    minimize(ode, loss, steps=450, rate=1e-2)
    return ode


def velocity() -> VectorField:
    """Build a velocity with 1x1 convolutions: every pixel is a separate point."""
    widths = (48, 48)
    field = VectorField(2, widths, activation="tanh")
    convs = [nn.Conv2d(1 + inputs, outputs, 1) for inputs, outputs in pairwise((2, *widths, 2))]  # 1 is the time
    nn.init.zeros_(convs[-1].weight)
    nn.init.zeros_(convs[-1].bias)  # pyright: ignore[reportArgumentType]
    for layer, conv in zip(field.layers, convs, strict=True):
        layer.conv = conv
    return field


@torch.no_grad()
def drift(ode: ODE) -> Image.Image:
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
        moved, logdet = grid, grid.new_zeros(len(grid))  # from where the remaining steps take the points
        for rest in range(number, ode.steps):
            moved, change, _ = ode.step(moved, rest, None)
            logdet = logdet + change.sum((1, 2))
        value = torch.exp(logdet - moved.square().sum((1, 2, 3)) / 2 - math.log(2 * math.pi))
        below.append((value / value.max()).reshape(1, SIDE, SIDE).expand(3, -1, -1))
    return as_image(torch.cat([torch.cat(above, 2), torch.cat(below, 2)], 1))


# --- contractive blocks -----------------------------------------------------------------------------------------------


def train_contractive() -> Chain:
    """Maximize the likelihood of half-moons, given as the pixels of one image."""
    torch.manual_seed(0)
    blocks = [Residual(ContractiveNetwork(2, 32, kernels=(1, 1, 1), leading=False)) for _ in range(BLOCKS)]
    for number, residual in enumerate(blocks):
        residual.number = number
    chain = Chain(*[part for residual in blocks for part in (residual, ActNorm(2))])
    chain.initialize(moons(256).transpose(0, 2))

    def loss() -> Tensor:
        x = moons(256).transpose(0, 2)  # (1, 2, 256, 1)
        signs = tuple(torch.randint(0, 2, x.shape).float() * 2 - 1 for _ in blocks)
        probes = Probes(vectors=signs, coefficients=((1.0,) * TERMS,) * BLOCKS, neumann=True)
        z, logdet = chain(x, LevelCondition(probes=probes))
        return (z.square().sum() / 2 - logdet.sum()) / 256

    minimize(chain, loss, steps=800, rate=5e-3, after=lambda: [residual.normalize(1e-3) for residual in blocks])
    return chain


@torch.no_grad()
def fixed_point(chain: Chain) -> Image.Image:
    """Draw decoded noise for several numbers of iterations per block, colored by where it started."""
    z, colors = noise(60_000)
    z = z.transpose(0, 2).contiguous()
    exact = chain.inverse(z[:, :, :COMPARED])
    panels: list[Tensor] = []
    for rounds in ROUNDS:
        decoded = decode(chain, z, rounds)
        missed = (decoded[:, :, :COMPARED] - exact).square().sum(1).sqrt()
        say(f"{rounds} rounds: {COMPARED} points are off by {missed.mean():.2g} on average, at most {missed.max():.2g}")
        panels.append(dots(decoded.transpose(0, 2), colors)[:, CUT:-CUT])
    return as_image(torch.cat(panels, 2))


def decode(chain: Chain, z: Tensor, rounds: int) -> Tensor:
    """Invert a chain, with a fixed number of iterations per block."""
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
