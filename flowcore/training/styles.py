"""Style directions: how digits are written, measured on images, as directions among a model's latents.

A class-conditional flow is told the digit, so its latents hold what is left: the hand. Attributes of the training
images (how bold, how wide, how slanted, how messy), with what the digit explains taken away, are regressed on:
``direction_k`` is what the latents differ by, on average, when attribute k is one standard deviation higher and the
others stay as they are.

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

STYLES = ("bold", "wide", "slanted", "messy")


def attributes(images: Tensor) -> Tensor:
    """Measure how digits are written.

    - bold: width of the stroke, twice the ink over the length of its outline;
    - wide: horizontal standard deviation of the ink, in pixels;
    - slanted: how far the ink leans to the right for every pixel that it rises;
    - messy: length of the outline over that of the same digit with its roughness smoothed away.

    Args:
        images: ``(B, 1, H, W)`` in [0, 1], ink is 1.

    Returns:
        ``(B, 4)``, in the order of ``STYLES``.
    """
    ink = images[:, 0].double().clamp(0, 1)
    mass = ink.sum((1, 2)).clamp_min(1e-6)
    rows = torch.arange(ink.shape[1], dtype=ink.dtype)[:, None]
    columns = torch.arange(ink.shape[2], dtype=ink.dtype)[None]
    y = rows - ((ink * rows).sum((1, 2)) / mass)[:, None, None]
    x = columns - ((ink * columns).sum((1, 2)) / mass)[:, None, None]
    spread = (ink * x * x).sum((1, 2)) / mass
    height = ((ink * y * y).sum((1, 2)) / mass).clamp_min(1e-6)
    lean = -(ink * x * y).sum((1, 2)) / mass / height  # rows count downwards
    outline = _outline(ink)
    smooth = F.avg_pool2d(ink[:, None], 3, 1, 1)[:, 0]
    return torch.stack([2 * mass / outline, spread.sqrt(), lean, outline / _outline(smooth)], dim=1)


@torch.no_grad()
def measure_styles(
    flow: Flow,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    batch: int = 500,
    log: Callable[[str], None] | None = None,
) -> Flow:
    """Measure the directions of ``STYLES`` on labelled images, and put them into a model.

    Args:
        flow: A class-conditional model.
        images: ``(N, 1, H, W)`` in [0, 1].
        labels: ``(N,)``, whole numbers below the model's number of classes.
        seed: Of the dequantization noise.
        batch: Images encoded at once.
        log: Called with a sentence on how much of each attribute the latents explain linearly.

    Returns:
        The same model with ``styles``; strengths are in standard deviations of the attribute within a digit.

    Raises:
        FlowError: If the model is not class-conditional.
    """
    if flow.architecture != "class_conditional":
        raise FlowError(f"Styles are measured on class_conditional models; got a {flow.architecture} model.")
    bins = quantization(flow)
    generator = torch.Generator("cpu").manual_seed(seed)
    wanted = _within_classes(attributes(images), labels)  # (N, 4)
    latents: list[Tensor] = []
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        k = to_integers(x, bins.n_bits)[0]
        noisy = bins.place(k, torch.rand(k.shape, generator=generator))
        latents.append(torch.cat([z.flatten(1) for z in flow(noisy, flow.encode_condition(y))[0]], dim=1))
    z = _within_classes(torch.cat(latents).double(), labels, scaled=False)
    shared = wanted.T @ z / len(z)  # (4, D): covariance with the latents
    directions = torch.linalg.solve(wanted.T @ wanted / len(z), shared)
    if log is not None:
        explained = directions.square().sum(1)  # of unit variance each, since latents are nearly independent
        log(
            "variance of the attribute along its direction: "
            + ", ".join(f"{name} {float(value):.2f}" for name, value in zip(STYLES, explained, strict=True))
        )
    return with_styles(flow, STYLES, directions.float())


def with_styles(flow: Flow, names: tuple[str, ...], directions: Tensor) -> Flow:
    """Copy a class-conditional model with named directions among its latents.

    Args:
        flow: The model.
        names: S names.
        directions: ``(S, D)``.

    Returns:
        A model that shares the weights.
    """
    with torch.device("meta"):
        copy = build(flow.architecture, dataclasses.replace(flow.config, styles=names))
    copy.load_state_dict({**flow.state_dict(), "style_directions": directions}, assign=True)
    copy.provenance = flow.provenance
    return copy.eval()


def _outline(ink: Tensor) -> Tensor:
    across = (ink[:, :, 1:] - ink[:, :, :-1])[:, :-1]
    down = (ink[:, 1:] - ink[:, :-1])[:, :, :-1]
    return torch.sqrt(across.square() + down.square() + 1e-12).sum((1, 2)).clamp_min(1e-6)


def _within_classes(values: Tensor, labels: Tensor, *, scaled: bool = True) -> Tensor:
    """Take the mean of every class away, and bring what is left to unit variance."""
    values = values.clone()
    for label in labels.unique():
        values[labels == label] -= values[labels == label].mean(0)
    return values / values.square().mean(0).sqrt() if scaled else values
