"""Style directions: attributes of handwriting, measured on images, as directions among a model's latents.

The label that conditions the flow explains the digit, so its latents hold the rest: the handwriting. Attributes of the
training images (how bold, wide, slanted and messy), minus the mean of their digit, are regressed on: ``direction_k`` is
the average difference of the latents when attribute k is one standard deviation higher and the others are unchanged.

Source: Ardizzone et al., "Guided Image Generation with Conditional Invertible Neural Networks" (2019), section 4.1,
finds such axes by principal components; measured attributes have names and signs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dequantization import quantization, to_integers
from ..errors import FlowError
from ..flow import Flow
from ..models import build
from ..models.class_conditional import ClassConditionalConfig

STYLES = ("bold", "wide", "slanted", "messy")
BATCH = 500  # images encoded at once


def attributes(images: Tensor) -> Tensor:
    """Measure how digits ``(B, 1, H, W)`` in [0, 1] are written, ink is 1: ``(B, 4)``, in the order of ``STYLES``.

    - bold: width of the stroke, twice the ink over the length of its outline;
    - wide: horizontal standard deviation of the ink, in pixels;
    - slanted: how many pixels the ink leans to the right per pixel upwards;
    - messy: length of the outline over that of the same digit, smoothed.
    """
    ink = images[:, 0].double().clamp(0, 1)
    mass = ink.sum((1, 2)).clamp_min(1e-6)
    rows = torch.arange(ink.shape[1], dtype=ink.dtype)[:, None]
    columns = torch.arange(ink.shape[2], dtype=ink.dtype)[None]
    y = rows - ((ink * rows).sum((1, 2)) / mass)[:, None, None]
    x = columns - ((ink * columns).sum((1, 2)) / mass)[:, None, None]
    variance_x = (ink * x * x).sum((1, 2)) / mass
    variance_y = ((ink * y * y).sum((1, 2)) / mass).clamp_min(1e-6)
    slant = -(ink * x * y).sum((1, 2)) / mass / variance_y  # rows count downwards
    outline = _outline(ink)
    smooth = F.avg_pool2d(ink[:, None], 3, 1, 1)[:, 0]
    return torch.stack([2 * mass / outline, variance_x.sqrt(), slant, outline / _outline(smooth)], dim=1)


@torch.no_grad()
def measure_styles(flow: Flow, images: Tensor, labels: Tensor, *, log: Callable[[str], None] | None = None) -> Flow:
    """Measure the directions of ``STYLES`` on labeled images, and add them to a class-conditional model.

    Strengths are in standard deviations of the attribute within a digit. The lines of ``log`` say how much of the
    variance of each attribute the latents explain linearly.
    """
    if not isinstance(flow.config, ClassConditionalConfig):
        raise FlowError(f"Styles are measured on class_conditional models; got a {flow.architecture} model.")
    bins = quantization(flow)
    generator = torch.Generator("cpu").manual_seed(0)
    targets = center_groups(attributes(images), labels)
    targets = targets / targets.square().mean(0).sqrt()  # (N, 4), unit variance within a digit
    latents: list[Tensor] = []
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        k = to_integers(x, bins.n_bits)[0]
        noisy = bins.place(k, torch.rand(k.shape, generator=generator))
        latents.append(torch.cat([z.flatten(1) for z in flow(noisy, flow.encode_condition(y))[0]], dim=1))
    z = center_groups(torch.cat(latents).double(), labels)
    covariance = targets.T @ z / len(z)  # (4, D)
    directions = torch.linalg.solve(targets.T @ targets / len(z), covariance)
    if log is not None:
        explained = directions.square().sum(1)  # latents are nearly independent, of unit variance each
        log(
            "variance of the attribute along its direction: "
            + ", ".join(f"{name} {float(value):.2f}" for name, value in zip(STYLES, explained, strict=True))
        )
    return with_styles(flow, STYLES, directions.float())


def with_styles(flow: Flow, names: tuple[str, ...], directions: Tensor) -> Flow:
    """Copy a model, with S named directions ``(S, D)`` among its latents; weights are shared."""
    with torch.device("meta"):
        copy = build(flow.architecture, dataclasses.replace(flow.config, styles=names))
    copy.load_state_dict({**flow.state_dict(), "style_directions": directions}, assign=True)
    copy.provenance = flow.provenance
    return copy.eval()


def _outline(ink: Tensor) -> Tensor:
    """Length of the outline: the total variation of the ink."""
    across = (ink[:, :, 1:] - ink[:, :, :-1])[:, :-1]
    down = (ink[:, 1:] - ink[:, :-1])[:, :, :-1]
    return torch.sqrt(across.square() + down.square() + 1e-12).sum((1, 2)).clamp_min(1e-6)


def center_groups(values: Tensor, groups: Tensor) -> Tensor:
    """Subtract from the rows of ``(N, ...)`` the mean of their group, ``(N,)``."""
    values = values.clone()
    for group in groups.unique():
        values[groups == group] -= values[groups == group].mean(0)
    return values
