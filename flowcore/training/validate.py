"""Validation: what the averaged weights make of held-out images, in numbers and in columns of a sheet."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import Flow
from ..images.color import NEUTRAL, compress
from ..images.resize import enlarge
from ..networks.luma import STRIDE
from ..prior import sample_latents
from ..quality.metrics import lr_psnr, psnr
from ..tasks.chroma import schedule
from .data import Colours, Data, Photographs
from .objective import bits_by_level, lr_encoder, objective
from .recipe import Recipe, Stage

UPSCALER_SHEET = (0.0, 0.8, 0.8)
SHEET = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)
ROWS = 8  # images of a sheet


@torch.no_grad()
def validate(
    flow: Flow, data: Data, recipe: Recipe, stage: Stage, *, device: str, precision: str
) -> tuple[dict[str, float], list[Tensor]]:
    """Measure a model on held-out images.

    Args:
        flow: The model.
        data: With held-out images that the stage's crop fits into.
        recipe: How many crops to measure, and which temperatures to show.
        stage: What is trained at the moment.
        device: Where the model is.
        precision: Of conditioners and encoder, for the loss alone, which is compared with that of training.

    Returns:
        Measures, that of the loss first; and pictures of the same images, ``(B, C, H, W)`` each, column by column.
    """
    upscaler = isinstance(data, Photographs) and data.scale > 1
    size = recipe.evaluate or (8 if upscaler else 64 if isinstance(data, Colours) else 256)
    x, source = data.batch(size, stage.crop, 0, 0, held_out=True)
    x, source = x.to(device), None if source is None else source.to(device)
    # without what only training adds, and always with the same noise
    loss = objective(flow, dataclasses.replace(stage, lr_consistency=0.0, balanced=False))
    noise = loss.noise(tuple(x.shape), torch.Generator("cpu").manual_seed(recipe.seed * 1_000_003))
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        value = float(loss(x, source, noise))
    metrics = {"validation_l1" if stage.objective == "l1" else "validation_bits_per_dim": round(value, 4)}
    if upscaler and source is not None:
        return _upscaler(flow, stage, recipe.sheet or UPSCALER_SHEET, x, source, metrics)
    if isinstance(data, Colours) and source is not None:
        return _colorizer(flow, x, source, metrics)
    shown = min(ROWS, size)
    if source is not None:
        source = torch.arange(shown, device=device) % max(1, flow.classes)
    cond = None if source is None else flow.encode_condition(source)
    shapes = flow.latent_shapes(*x.shape[-2:])
    columns: list[Tensor] = []
    for tau in recipe.sheet or SHEET:  # a row a seed, a column a temperature
        latents = [z.to(device) for z in sample_latents(shapes, shown, tau)]
        columns.append(flow.inverse(latents, cond))
    return metrics, [*columns, x[:shown]]


def _colorizer(
    flow: Flow, x: Tensor, source: Tensor, metrics: dict[str, float]
) -> tuple[dict[str, float], list[Tensor]]:
    cond = flow.encode_condition(source)
    noise = torch.rand(x.shape, generator=torch.Generator("cpu").manual_seed(0))
    by_level = bits_by_level(flow, x, cond, noise).mean(1)
    metrics |= {f"validation_level{k + 1}": round(float(bits), 4) for k, bits in enumerate(by_level)}
    each = max(1, len(x) // ROWS)
    shown = source[::each]
    y = F.avg_pool2d(shown[:, :1], STRIDE)
    cond, shapes = flow.encode_condition(shown), flow.latent_shapes(*x.shape[-2:])
    palette, detail = flow.config.temperatures
    columns = [y.expand(-1, 3, -1, -1), compress(y, x[::each] - NEUTRAL)]
    for k in range(6):  # a row a photograph, a column a seed
        taus = schedule(palette, detail, len(shapes)) if k else 0.0
        latents = [z.to(x) for z in sample_latents(shapes, len(shown), taus, seed=k * len(shown))]
        columns.append(compress(y, flow.inverse(latents, cond) - NEUTRAL))
    return metrics, columns


def _upscaler(
    flow: Flow, stage: Stage, taus: tuple[float, ...], hr: Tensor, lr: Tensor, metrics: dict[str, float]
) -> tuple[dict[str, float], list[Tensor]]:
    pictures, names = [enlarge(lr, flow.config.scale)], ["bicubic"]
    if stage.objective == "l1":
        pictures.append(lr_encoder(flow).picture(lr))
        names.append("l1")
    else:
        cond, shapes = flow.encode_condition(lr), flow.latent_shapes(*hr.shape[-2:])
        for k, tau in enumerate(taus):
            latents = [z.to(hr) for z in sample_latents(shapes, len(hr), tau, seed=k * len(hr))]
            pictures.append(flow.inverse(latents, cond))
            names.append(f"tau{tau}")
    for name, picture in zip(names, pictures, strict=True):
        if f"psnr_{name}" in metrics:
            continue  # another sample at the same temperature
        # over the whole batch at once, since a crop of its own may be met exactly
        sr, target, small = (t.flatten(0, 1)[None] for t in (picture.clamp(0, 1), hr, lr))
        metrics[f"psnr_{name}"] = round(float(psnr(sr, target)), 2)
        metrics[f"lr_psnr_{name}"] = round(float(lr_psnr(sr, small)), 2)
    return metrics, [*pictures, hr]
