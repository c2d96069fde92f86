"""Validation of the averaged weights on held-out images: metrics, and the columns of a sample sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..condition import Condition
from ..device import autocast
from ..flow import Flow
from ..images.color import NEUTRAL, compress
from ..images.resize import enlarge
from ..networks import LumaEncoder
from ..networks.luma import CHROMA_UNIT, STRIDE, split_source
from ..prior import Temperature, sample_latents
from ..quality.metrics import lr_psnr, psnr
from ..tasks.chroma import schedule
from .data import Data
from .objective import PLAIN, Rescaling, bits_by_level, lr_encoder, make_objective
from .recipe import Recipe, Stage

LOSSES = {
    "l1": "validation_l1",
    "chroma": "validation_mse",
    "likelihood": "validation_bits_per_dim",
    "rescale": "validation_l1",
}
CROPS = {"low_resolution": 8, "low_light": 32, "luma": 64}  # by the source of the condition; of the others, 256
UPSCALER_TEMPERATURES = (0.0, 0.8, 0.8)
TEMPERATURES = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)
ROWS = 8  # images of a sheet

Validation = tuple[dict[str, float], list[Tensor]]


@torch.no_grad()
def validate(flow: Flow, data: Data, recipe: Recipe, stage: Stage, *, device: str, precision: str) -> Validation:
    """Measure a model on held-out images: metrics, the loss first, and columns of crops, ``(B, C, H, W)``.

    The precision is for the loss alone, so that it compares with that of training.
    """
    kind = flow.capabilities.source
    size = recipe.evaluate or CROPS.get(kind, 256)
    x, source = data.batch(size, stage.crop, 0, 0, held_out=True)
    x, source = x.to(device), None if source is None else source.to(device)
    # without terms that only training has, and with the same noise every time
    objective = make_objective(flow, dataclasses.replace(PLAIN, objective=stage.objective))
    noise = objective.noise(tuple(x.shape), torch.Generator("cpu").manual_seed(recipe.seed * 1_000_003))
    with autocast(x.device, torch.bfloat16 if precision == "bfloat16" else torch.float32):
        loss = float(objective(x, source, noise))
    metrics = {LOSSES[stage.objective]: round(loss, 4)}
    if isinstance(objective, Rescaling):
        assert source is not None
        more, columns = _rescale(objective, x, source)
    elif source is not None and kind == "low_resolution":
        more, columns = _upscale(flow, stage, recipe.sheet or UPSCALER_TEMPERATURES, x, source)
    elif source is not None and kind == "low_light":
        more, columns = _brighten(flow, x, source)
    elif source is not None and kind == "luma":
        more, columns = (_predict_chroma if stage.objective == "chroma" else _colorize)(flow, x, source)
    else:
        more, columns = {}, _sample(flow, recipe.sheet or TEMPERATURES, x[:ROWS], labeled=source is not None)
    return metrics | more, [column[:: max(1, len(column) // ROWS)] for column in columns]


def _sample(flow: Flow, temperatures: tuple[float, ...], x: Tensor, *, labeled: bool) -> list[Tensor]:
    """A row per seed, a column per temperature, and real images last."""
    labels = torch.arange(len(x), device=x.device) % max(1, flow.classes)
    cond = flow.encode_condition(labels) if labeled else None
    return [*(_decode(flow, cond, x, tau) for tau in temperatures), x]


def _predict_chroma(flow: Flow, x: Tensor, source: Tensor) -> Validation:
    """A row per photograph: its luma, the original, and the chroma that the encoder predicts."""
    assert isinstance(flow.encoder, LumaEncoder)
    parts = [flow.encoder.predict_chroma(*split_source(part))[0] for part in source.split(ROWS)]
    chroma = F.interpolate(torch.cat(parts) * CHROMA_UNIT, x.shape[2:], mode="bicubic")
    rows = slice(None, None, max(1, len(x) // ROWS))
    y = F.avg_pool2d(source[rows, :1], STRIDE)
    columns = [y.expand(-1, 3, -1, -1), compress(y, x[rows] - NEUTRAL), compress(y, chroma[rows])]
    return {"of_gray": _of_gray(chroma, x)}, columns


def _colorize(flow: Flow, x: Tensor, source: Tensor) -> Validation:
    """A row per photograph: its luma, the original, the coloring at temperature 0, and five seeds."""
    noise = torch.rand(x.shape, generator=torch.Generator("cpu").manual_seed(0))
    cond = flow.encode_condition(source)
    by_level = bits_by_level(flow, x, cond, noise).mean(1)
    metrics = {f"validation_level{k + 1}": round(float(bits), 4) for k, bits in enumerate(by_level)}
    rows = slice(None, None, max(1, len(x) // ROWS))
    y = F.avg_pool2d(source[rows, :1], STRIDE)
    palette, detail = flow.config.temperatures
    columns = [y.expand(-1, 3, -1, -1), compress(y, x[rows] - NEUTRAL)]
    for k in range(6):
        taus = schedule(palette, detail, len(by_level)) if k else 0.0
        chroma = _decode(flow, cond, x, taus, seed=k * len(x)) - NEUTRAL
        if k < 2:
            metrics["of_gray_sample" if k else "of_gray_tau0"] = _of_gray(chroma, x)
        columns.append(compress(y, chroma[rows]))
    return metrics, columns


def _of_gray(chroma: Tensor, x: Tensor) -> float:
    """RMSE of chroma relative to that of gray, means over images."""
    truth = x - NEUTRAL
    errors = (chroma - truth).square().mean((1, 2, 3)).sqrt().mean()
    return round(float(errors / truth.square().mean((1, 2, 3)).sqrt().mean()), 4)


def _rescale(objective: Rescaling, hr: Tensor, lr: Tensor) -> Validation:
    """A row per crop: the thumbnail and the small picture, both enlarged by bicubic resize, restored, and original."""
    small, restored = objective.restore(hr)
    scale = objective.flow.condition_scale
    columns = [enlarge(lr, scale), enlarge(small.clamp(0, 1), scale), restored, hr]
    pairs = {"psnr_bicubic": (columns[0], hr), "psnr_restored": (restored, hr), "psnr_small": (small, lr)}
    return {name: _over_batch(psnr, *pair) for name, pair in pairs.items()}, columns


def _brighten(flow: Flow, x: Tensor, dark: Tensor) -> Validation:
    """A row per crop: dark, with the single gain that fits best, at temperature 0, a sample, and the original."""
    cond = flow.encode_condition(dark)
    gains = (x * dark).sum((1, 2, 3), keepdim=True) / dark.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-6)
    columns = [dark, gains * dark, _decode(flow, cond, x, 0.0), _decode(flow, cond, x, 0.8), x]
    names = ("psnr_gain", "psnr_tau0", "psnr_tau0.8")
    metrics = {name: _over_batch(psnr, column, x) for name, column in zip(names, columns[1:], strict=False)}
    return metrics, columns


def _upscale(flow: Flow, stage: Stage, temperatures: tuple[float, ...], hr: Tensor, lr: Tensor) -> Validation:
    """A row per crop: bicubic, the encoder's enlargement or a sample per temperature, and the original."""
    columns, names = [enlarge(lr, flow.condition_scale)], ["bicubic"]
    if stage.objective == "l1":
        columns.append(lr_encoder(flow).enlargement(lr))
        names.append("l1")
    else:
        cond = flow.encode_condition(lr)
        for k, tau in enumerate(temperatures):
            columns.append(_decode(flow, cond, hr, tau, seed=k * len(hr), anchored=flow.anchored))
            names.append(f"tau{tau}")
    metrics: dict[str, float] = {}
    for name, column in zip(names, columns, strict=True):
        if f"psnr_{name}" not in metrics:  # or it is another sample at the same temperature
            metrics[f"psnr_{name}"] = _over_batch(psnr, column, hr)
            metrics[f"lr_psnr_{name}"] = _over_batch(lr_psnr, column, lr)
    return metrics, [*columns, hr]


def _decode(
    flow: Flow, cond: Condition | None, like: Tensor, tau: Temperature, *, seed: int = 0, anchored: bool = False
) -> Tensor:
    """Decode latents drawn at a temperature to images of the shape of others."""
    shapes = flow.latent_shapes(*like.shape[-2:])
    latents = sample_latents(shapes, len(like), tau, seed=seed, anchored=anchored)
    return flow.inverse([z.to(like) for z in latents], cond)


def _over_batch(measure: Callable[[Tensor, Tensor], Tensor], x: Tensor, target: Tensor) -> float:
    """Measure the entire batch at once: the PSNR of a single crop can be infinite."""
    return round(float(measure(*(t.clamp(0, 1).flatten(0, 1)[None] for t in (x, target)))), 2)
