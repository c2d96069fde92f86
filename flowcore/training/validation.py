"""Validation of the averaged weights on held-out images: metrics, and the columns of a sample sheet."""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import autocast
from ..flows.condition import Condition
from ..flows.model import FlowModel
from ..flows.prior import Temperature, sample_latents
from ..images.color import NEUTRAL, compress
from ..images.metrics import lr_psnr, psnr
from ..images.resize import enlarge
from ..models.colorizer.luma import CHROMA_UNIT, STRIDE, LumaEncoder, split_source
from ..tasks.chroma import schedule
from .data import Data
from .evaluation.feature_distance import feature_distance
from .objective import NO_PENALTIES, Imitation, Rescaling, bits_by_level, lr_encoder, make_objective
from .recipe import Recipe, Stage

CROPS = {"low_resolution": 8, "low_light": 32, "luma": 64}  # crops by the source of the condition; 256 for others
UPSCALER_TEMPERATURES = (0.0, 0.8, 0.8)
TEMPERATURES = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)
ROWS = 8  # images of a sheet
Validation = tuple[dict[str, float], list[Tensor]]


@torch.no_grad()
def validate(flow: FlowModel, data: Data, recipe: Recipe, stage: Stage, *, device: str, precision: str) -> Validation:
    """Measure a model on held-out images: metrics, the loss first, in training's precision, and columns of crops."""
    kind = flow.capabilities.source
    size = recipe.evaluate or CROPS.get(kind, 256)
    x, source = data.batch(size, stage.crop, 0, 0, held_out=True)
    x, source = x.to(device), None if source is None else source.to(device)
    # without terms that only training has, and with the same noise every time
    objective = make_objective(flow, dataclasses.replace(NO_PENALTIES, objective=stage.objective))
    noise = objective.noise(tuple(x.shape), torch.Generator("cpu").manual_seed(recipe.seed * 1_000_003))
    with autocast(x.device, torch.bfloat16 if precision == "bfloat16" else torch.float32):
        loss = float(objective(x, source, tuple(t.to(device) for t in noise)))
    # validation_l1, validation_mse or validation_bits_per_dim
    metrics = {f"validation_{objective.unit.lower().replace('/', '_per_')}": round(loss, 4)}
    if source is not None and isinstance(objective, Rescaling):
        more, columns = _rescale(objective, x, source)
    elif source is not None and isinstance(objective, Imitation):
        more, columns = _imitate(objective, x, source)
    elif source is None or kind not in CROPS:
        more, columns = {}, _sample(flow, x[:ROWS], labeled=source is not None)
    elif kind == "low_resolution":
        more, columns = _upscale(flow, stage, x, source)
    elif kind == "low_light":
        more, columns = _brighten(flow, x, source)
    else:
        more, columns = _colorize(flow, stage, x, source)
    return metrics | more, [column[:: max(1, len(column) // ROWS)] for column in columns]


def _sample(flow: FlowModel, x: Tensor, *, labeled: bool) -> list[Tensor]:
    """A row per seed, a column per temperature, and real images last."""
    cond = flow.encode_condition(torch.arange(len(x), device=x.device) % max(1, flow.classes)) if labeled else None
    return [*(_decode(flow, cond, x, tau) for tau in TEMPERATURES), x]


def _colorize(flow: FlowModel, stage: Stage, x: Tensor, source: Tensor) -> Validation:
    """A row per photograph: its luma, the original, and what the encoder predicts, or temperature 0 and five seeds."""
    metrics: dict[str, float] = {}
    y, chromas = F.avg_pool2d(source[:, :1], STRIDE), [x - NEUTRAL]
    if stage.objective == "chroma":
        assert isinstance(flow.encoder, LumaEncoder)
        parts = [flow.encoder.predict_chroma(*split_source(part))[0] for part in source.split(ROWS)]
        chromas.append(F.interpolate(torch.cat(parts) * CHROMA_UNIT, x.shape[2:], mode="bicubic"))
        metrics["of_gray"] = _of_gray(chromas[1], x)
    else:
        noise = torch.rand(x.shape, generator=torch.Generator("cpu").manual_seed(0))
        cond = flow.encode_condition(source)
        by_level = bits_by_level(flow, x, cond, noise).mean(1)
        metrics = {f"validation_level{k + 1}": round(float(bits), 4) for k, bits in enumerate(by_level)}
        palette, detail = flow.config.temperatures
        for k in range(6):
            taus = schedule(palette, detail, len(by_level)) if k else 0.0
            chromas.append(_decode(flow, cond, x, taus, seed=k * len(x)) - NEUTRAL)
        metrics |= {"of_gray_tau0": _of_gray(chromas[1], x), "of_gray_sample": _of_gray(chromas[2], x)}
    return metrics, [y.expand(-1, 3, -1, -1), *(compress(y, chroma) for chroma in chromas)]


def _of_gray(chroma: Tensor, x: Tensor) -> float:
    """Mean RMSE of chroma, relative to the mean RMSE of gray pictures."""
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


def _imitate(objective: Imitation, enlarged: Tensor, lr: Tensor) -> Validation:
    """A row per crop: bicubic, the guide, and the teacher, to which distances are measured."""
    columns = [enlarge(lr, objective.guide.scale), objective.guide(lr).clamp(0, 1), enlarged]
    metrics = {"feature_distance": round(float(feature_distance(columns[1], enlarged).mean()), 4)}
    for name, column in zip(("bicubic", "guide"), columns, strict=False):
        metrics[f"psnr_{name}"] = _over_batch(psnr, column, enlarged)
    return metrics, columns


def _brighten(flow: FlowModel, x: Tensor, dark: Tensor) -> Validation:
    """A row per crop: dark, with the single gain that fits best, at temperature 0, a sample, and the original."""
    cond = flow.encode_condition(dark)
    gains = (x * dark).sum((1, 2, 3), keepdim=True) / dark.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-6)
    columns = [dark, gains * dark, _decode(flow, cond, x, 0.0), _decode(flow, cond, x, 0.8), x]
    names = ("psnr_gain", "psnr_tau0", "psnr_tau0.8")
    return {name: _over_batch(psnr, column, x) for name, column in zip(names, columns[1:], strict=False)}, columns


def _upscale(flow: FlowModel, stage: Stage, hr: Tensor, lr: Tensor) -> Validation:
    """A row per crop: bicubic, the encoder's enlargement or a sample per temperature, and the original."""
    columns, names = [enlarge(lr, flow.condition_scale)], ["bicubic"]
    if stage.objective == "l1":
        columns.append(lr_encoder(flow).enlargement(lr))
        names.append("l1")
    else:
        cond = flow.encode_condition(lr)
        for k, tau in enumerate(UPSCALER_TEMPERATURES):
            columns.append(_decode(flow, cond, hr, tau, seed=k * len(hr), predicts_lr=flow.predicts_lr))
            names.append(f"tau{tau}")
    metrics: dict[str, float] = {}
    for name, column in zip(names, columns, strict=True):
        if f"psnr_{name}" not in metrics:  # unless it is another sample at the same temperature
            metrics[f"psnr_{name}"] = _over_batch(psnr, column, hr)
            metrics[f"lr_psnr_{name}"] = _over_batch(lr_psnr, column, lr)
    return metrics, [*columns, hr]


def _decode(
    flow: FlowModel, cond: Condition | None, like: Tensor, tau: Temperature, *, seed: int = 0, predicts_lr: bool = False
) -> Tensor:
    """Decode latents drawn at a temperature to images of the shape of others."""
    shapes = flow.latent_shapes(*like.shape[-2:])
    latents = sample_latents(shapes, len(like), tau, seed=seed, predicts_lr=predicts_lr)
    return flow.inverse([z.to(like) for z in latents], cond)


def _over_batch(measure: Callable[[Tensor, Tensor], Tensor], x: Tensor, target: Tensor) -> float:
    """Measure the batch as one tall image, ``(1, B C, H, W)``: the PSNR of a single crop can be infinite."""
    return round(float(measure(*(t.clamp(0, 1).flatten(0, 1)[None] for t in (x, target)))), 2)
