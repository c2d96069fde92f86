"""The pictures of docs/how-flows-work.md.

    python -m benchmarks.figures docs/how-flows-work       two minutes on one core

and the icon and the banner of the registry's page, `docs/icon.png` and `docs/banner.png`, beside that folder.

A flow of eight couplings learns two half-moons in the plane: an "image" of one pixel with two channels. Nothing here is
special to it: the same transforms, the same law, the same loss as for photographs.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

import flowcore
from flowcore.tasks.sample import dequantized_image
from flowcore.transforms import Coupling

STEPS, BATCH, COUPLINGS = 3000, 512, 8
SIDE, REACH = 180, 3.4  # pixels of a panel; what it shows goes from -REACH to REACH


def main() -> None:
    """Train, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    couplings = train()
    unfolding(couplings).save(folder / "two-moons.png", optimize=True)
    density(couplings).save(folder / "density.png", optimize=True)
    grey_levels().save(folder / "dequantization.png", optimize=True)
    icon(couplings).save(folder.parent / "icon.png", optimize=True)
    banner(couplings).save(folder.parent / "banner.png", optimize=True)


def moons(count: int) -> Tensor:
    """Two half-circles with a little noise, (count, 2, 1, 1)."""
    angle = math.pi * torch.rand(count)
    upper = torch.rand(count) < 0.5
    x = torch.where(upper, angle.cos() - 0.5, 0.5 - angle.cos())
    y = torch.where(upper, angle.sin() - 0.25, 0.25 - angle.sin())
    points = 1.4 * torch.stack([x, y], dim=1) + 0.09 * torch.randn(count, 2)
    return points[:, :, None, None]


def network() -> nn.Module:
    """What a coupling asks how to shift and scale one coordinate, given the other."""
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 1), nn.Tanh(), nn.Conv2d(64, 64, 1), nn.Tanh(), nn.Conv2d(64, 2, 1)]
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return nn.Sequential(*layers)


def train() -> nn.ModuleList:
    """Maximise the likelihood: of every point, that of its latent, and the logdet."""
    couplings = nn.ModuleList(Coupling(network(), scaling="atan", swap=k % 2 == 1) for k in range(COUPLINGS))
    optimiser = torch.optim.Adam(couplings.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        z, logdet = moons(BATCH), torch.zeros(BATCH)
        for coupling in couplings:
            z, change = coupling(z)
            logdet = logdet + change
        loss = (z.square().sum((1, 2, 3)) / 2 - logdet).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return couplings


@torch.no_grad()
def unfolding(couplings: nn.ModuleList) -> Image.Image:
    """Draw latents, colored by direction, and what every second coupling has made of them on the way back."""
    z, colours = noise(60_000)
    panels = [dots(z, colours)]
    for number, coupling in reversed(list(enumerate(couplings))):
        z = coupling.inverse(z)
        if number % 2 == 0:
            panels.append(dots(z, colours))
    return picture(torch.cat(panels, dim=2))


@torch.no_grad()
def icon(couplings: nn.ModuleList) -> Image.Image:
    """Draw the half-moons, 400x400."""
    z, colours = noise(200_000)
    for coupling in reversed(couplings):
        z = coupling.inverse(z)
    return picture(dots(1.5 * z, colours, 400))


@torch.no_grad()
def banner(couplings: nn.ModuleList) -> Image.Image:
    """Draw noise, the way to the half-moons, and the name; 21:9."""
    z, colours = noise(120_000)
    panels = [dots(z, colours, 252)]
    for number, coupling in reversed(list(enumerate(couplings))):
        z = coupling.inverse(z)
        if number % 2 == 0:
            panels.append(dots(z, colours, 252))
    whole = Image.new("RGB", (1260, 540))
    whole.paste(picture(torch.cat(panels, dim=2)), (0, 60))
    draw = ImageDraw.Draw(whole)
    draw.text((630, 400), "flowcore", fill="white", anchor="mm", font=ImageFont.load_default(84))
    draw.text((630, 470), "normalizing flows for artists", fill="white", anchor="mm", font=ImageFont.load_default(34))
    return whole


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
    return picture(torch.cat([data, *panels], dim=2))


def plane() -> Tensor:
    """List the points that the pixels of a panel show, (SIDE * SIDE, 2, 1, 1)."""
    line = torch.linspace(-REACH, REACH, SIDE)
    return torch.stack([line.expand(SIDE, SIDE), -line[:, None].expand(SIDE, SIDE)], dim=-1).reshape(-1, 2, 1, 1)


def noise(count: int) -> tuple[Tensor, Tensor]:
    """Draw latents, (count, 2, 1, 1), and colors by their direction, (count, 3)."""
    z = torch.randn(count, 2, 1, 1)
    direction = torch.atan2(z[:, 1], z[:, 0]).flatten()
    return z, torch.stack([0.5 + 0.5 * torch.cos(direction - turn) for turn in (0.0, 2.1, 4.2)], dim=1)


def dots(points: Tensor, colours: Tensor, side: int = SIDE) -> Tensor:
    """Add up colored dots, (3, side, side)."""
    xy = ((points.flatten(1) / REACH + 1) / 2 * side).long()
    inside = ((xy >= 0) & (xy < side)).all(1)
    place = (side - 1 - xy[inside, 1]) * side + xy[inside, 0]
    canvas = torch.zeros(side * side, 3).index_add_(0, place, colours[inside])
    return (1 - torch.exp(-canvas / 3)).T.reshape(3, side, side)


def grey_levels() -> Image.Image:
    """Draw a digit and some shades as they are stored, and with the noise of one of 32 bins."""
    flow = flowcore.load("mnist-styles")
    drawn = flowcore.sample(flow, 1, seed=5, labels=5, temperature=0.7, snapped=True)
    noisy = dequantized_image(flow, drawn, seed=0)
    shades = torch.linspace(0, 0.25, 28).expand(1, 1, 28, 28)
    coarse = (shades * 31).round() / 31
    parts = [drawn, noisy, coarse * 4, dequantized_image(flow, coarse, seed=1) * 4]
    row = torch.cat([part[0] for part in parts], dim=2).clamp(0, 1).expand(3, -1, -1)
    return picture(row).resize((row.shape[2] * 5, row.shape[1] * 5), Image.Resampling.NEAREST)


def picture(pixels: Tensor) -> Image.Image:
    """Make an image of (3, H, W) in [0, 1]."""
    return Image.fromarray(np.ascontiguousarray((pixels * 255).round().byte().permute(1, 2, 0).numpy()))


if __name__ == "__main__":
    main()
