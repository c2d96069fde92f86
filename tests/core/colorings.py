"""A tiny colorizer, pictures and hints for it, for the tests of colorizing."""

import numpy as np
import torch
import torch.nn.functional as F
from builders import build_tiny

from flowcore import Hints
from flowcore.engine.runner import Runner, RunOptions
from flowcore.flows.testing import perturbed
from flowcore.images import color
from flowcore.images.color import NEUTRAL
from flowcore.tasks import chroma

from .photographs import photograph

WANTED = (0.62, 0.5, 0.42)  # a mild color that a middle gray has room for
THREE_LEVELS = {"steps": (1, 1, 1), "hidden": (8, 8, 8), "widths": (8, 8, 8, 16)}


def tiny_colorizer(**fields):
    """All parameters random, the couplings' too; initialized on hinted photographs, so that the condition matters."""
    flow = perturbed(build_tiny("colorizer", **{"temperatures": (0.9, 0.3), **fields}), 0.1).eval()
    generator = torch.Generator().manual_seed(1)
    x = NEUTRAL + 0.05 * torch.randn(12, 2, 16, 16, generator=generator)
    hints = torch.cat([torch.ones(12, 1, 1, 1), 0.2 * torch.randn(12, 2, 1, 1, generator=generator)], dim=1)
    palette = torch.cat([torch.ones(12, 1, 1, 1), 0.1 * torch.randn(12, 3, 1, 1, generator=generator)], dim=1)
    palette[::2], hints = 0, hints.repeat(1, 1, 64, 64)
    hints[:8, :, 20:], hints[4:, :, :, :20] = 0, 0
    source = torch.cat([gray(64, 64, batch=12, seed=90), hints, palette.expand(-1, -1, 64, 64)], dim=1)
    with torch.no_grad():
        flow.initialize(x, flow.encode_condition(source))
    return flow


def colored(height=40, width=56, batch=1, seed=0):
    """Photographs in color, (B, 3, H, W)."""
    arrays = [np.asarray(photograph(height, width, seed=seed + k)) for k in range(batch)]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def gray(height=40, width=56, batch=1, seed=0):
    """The luma of photographs, (B, 1, H, W)."""
    return color.luma(colored(height, width, batch, seed))


def middle(height=32, width=32, batch=1):
    """A middle gray with a little structure, which leaves room for colors."""
    return 0.5 + 0.04 * (gray(height, width, batch) - 0.5)


def chroma_of(pictures):
    return color.split(pictures[:, :3])[1]


def luma_error(result, image):
    expected = image if image.shape[1] == 1 else color.luma(image[:, :3])
    repeats = len(result) // len(image)
    return float((color.luma(result[:, :3]) - expected.repeat_interleave(repeats, 0)).abs().max())


def colorization(flow, image, **options):
    """A coloring under way."""
    return chroma.Colorization(Runner(flow, RunOptions(), ""), flow, image, None, **options)


def uniform_hints(coverage, chroma, size=(4, 4), **fields):
    planes = torch.full((1, 1, *size), float(coverage)), torch.full((1, 2, *size), float(chroma))
    return Hints(coverage=planes[0], chroma=planes[1], **fields)


def squares(**fields):
    """Hints of two squares of 8x8 pixels; the rest of 32x32 is free."""
    wanted = chroma_of(torch.tensor([WANTED, (0.44, 0.5, 0.6)])[:, :, None, None])
    coverage, chroma = torch.zeros(1, 1, 32, 32), torch.zeros(1, 2, 32, 32)
    for corner, target in zip((4, 20), wanted, strict=True):
        coverage[..., corner : corner + 8, corner : corner + 8] = 1
        chroma[..., corner : corner + 8, corner : corner + 8] = target
    return Hints(coverage=coverage, chroma=chroma, **fields)


def hint_error(pictures, hints):
    """Root mean square distance to the wanted chroma, over cells of 4x4 pixels that are covered."""
    cells = F.adaptive_avg_pool2d(hints.coverage, 8) > 0.99
    assert cells.any()
    missed = F.avg_pool2d(chroma_of(pictures) - hints.chroma, 4)
    return float((missed.square().sum(1, keepdim=True) * cells).sum().div(len(pictures) * cells.sum()).sqrt())
