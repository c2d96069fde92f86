"""Operations on latents: mix, vary, scale and normalize them, and find directions with a meaning.

Every function takes a list of latents, finest first, each ``(B, C_l, H_l, W_l)``, standard normal under the model, and
returns new ones. Two lists are compatible when they come from the same model and image size; a batch of 1 is broadcast
to the other list.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import float64, require_full_precision
from ..errors import FlowError, ShapeError
from .prior import Shape, sample_latents

Direction = list[Tensor]  # latents of batch 1, finest first, to be added to others
Mode = Literal["slerp", "linear", "norm"]
Per = Literal["level", "channel", "local"]

MIN_ANGLE = 1e-6  # radians; at smaller angles, an arc and its chord agree to 1e-12
OPPOSITE = 1e-3  # radians; at angles this close to pi, the plane of the arc is numerically undefined
MIN_STD = 1e-3  # least standard deviation that latents are divided by
MIN_POSITIONS = 16  # fewer numbers have no meaningful mean and standard deviation


# --- mixing two lists -------------------------------------------------------------------------------------------------


def interpolate(
    a: Sequence[Tensor], b: Sequence[Tensor], t: float | Sequence[float], *, mode: Mode = "slerp"
) -> list[Tensor]:
    """Interpolate between two lists of latents, level by level and item by item.

    With x and y one level of one item of ``a`` and ``b``, flattened, and w the angle between them::

        linear   (1 - t) x + t y
        slerp    sin((1 - t) w) / sin(w) x + sin(t w) / sin(w) y
        norm     m ((1 - t) |x| + t |y|) / |m|   with m = (1 - t) x + t y

    Independent normal latents have norms near sqrt(D) and are nearly orthogonal, so their linear midpoint has the norm
    sqrt(D / 2): a temperature of 0.71, smooth and poor in detail. slerp preserves equal norms; norm interpolates the
    norms even where they differ, as those of encoded photographs do. slerp is linear where there is no arc: at angles
    below ``MIN_ANGLE``, within ``OPPOSITE`` of pi, and for a zero vector.

    >>> a, b = [torch.randn(1, 6, 8, 8), torch.randn(1, 12, 4, 4)], [torch.randn(1, 6, 8, 8), torch.randn(1, 12, 4, 4)]
    >>> [len(z) for z in flowcore.interpolate(a, b, [0.3, 0.7])]
    [1, 1]
    >>> all(torch.equal(*pair) for pair in zip(flowcore.interpolate(a, b, 1.0), b))
    True

    Args:
        a: Latents at t = 0.
        b: Latents at t = 1.
        t: One position for all levels, or one per level, finest first; a larger one for the deepest changes coarse
            structure first. 0 and 1 give ``a`` and ``b`` bit for bit. Outside [0, 1], the formulas extrapolate.
        mode: As above.

    Returns:
        Latents of the larger batch.

    Raises:
        FlowError: If t is not finite or the mode is unknown.
        ShapeError: If the lists are incompatible, or the number of t is not that of levels.

    Source: Shoemake, "Animating rotation with quaternion curves" (slerp); Kingma & Dhariwal, "Glow", section 6
    (linear).
    """
    pairs = _pairs(a, b)
    if mode not in _MIX:
        raise FlowError(f"mode must be one of {', '.join(_MIX)}; got {mode!r}.")
    positions = _per_level(t, len(pairs), "t")
    return [_exact_ends(x, y, p, _MIX[mode](x, y, p)) for (x, y), p in zip(pairs, positions, strict=True)]


def mix_levels(a: Sequence[Tensor], b: Sequence[Tensor], weights: float | Sequence[float]) -> list[Tensor]:
    """Mix two lists level by level: the structure of one image with the detail of another.

    ``sqrt(1 - w) a + sqrt(w) b``, which is standard normal again when a and b are independent standard normals. If
    they are correlated, its norm is too large; use ``interpolate`` with one t per level instead.

    >>> a, b = [torch.randn(1, 6, 8, 8), torch.randn(1, 12, 4, 4)], [torch.randn(1, 6, 8, 8), torch.randn(1, 12, 4, 4)]
    >>> fine, coarse = flowcore.mix_levels(a, b, [0.0, 1.0])
    >>> torch.equal(fine, a[0]), torch.equal(coarse, b[1])
    (True, True)

    Args:
        a: Latents at weight 0.
        b: Latents at weight 1.
        weights: Weight of b: one in [0, 1], or one per level. 0 and 1 give a and b bit for bit.

    Returns:
        Latents of the larger batch.

    Raises:
        FlowError: If a weight lies outside [0, 1].
        ShapeError: If the lists are incompatible, or the number of weights is not that of levels.
    """
    pairs = _pairs(a, b)
    shares = _per_level(weights, len(pairs), "weights")
    if any(not 0 <= share <= 1 for share in shares):
        raise FlowError(f"A weight must lie in [0, 1]; got {shares}. 0 gives a, 1 gives b.")
    return [
        _exact_ends(x, y, share, math.sqrt(1 - share) * x + math.sqrt(share) * y)
        for (x, y), share in zip(pairs, shares, strict=True)
    ]


# --- one list ---------------------------------------------------------------------------------------------------------


def scale(latents: Sequence[Tensor], temperature: float | Sequence[float]) -> list[Tensor]:
    """Multiply by a temperature, one or one per level: below 1, an encoded image becomes calmer, above, livelier."""
    checked = _check(latents)
    taus = _per_level(temperature, len(checked), "temperatures")
    if min(taus) < 0:
        raise FlowError(f"Temperature must be >= 0; got {taus}. 0 is the calmest, 1 changes nothing.")
    return [tau * z for tau, z in zip(taus, checked, strict=True)]


def vary(
    latents: Sequence[Tensor],
    seed: int,
    strength: float | Sequence[float],
    *,
    temperature: float | Sequence[float] = 1.0,
) -> list[Tensor]:
    """Make a variation: rotate the latents toward fresh noise.

    ``cos(theta) z + sin(theta) tau e``, with e standard normal and ``theta = strength pi / 2``. If z is tau N(0, I) and
    independent of e, so is the result: a variation is as probable as the original. Pass the
    temperature that the latents were drawn with, and a different seed (item i draws with ``seed + i``). A strength, one
    or one per level, is in [0, 1]: 0 changes nothing (bit for bit), 1 leaves only the fresh noise.
    """
    checked = _check(latents)
    strengths = _per_level(strength, len(checked), "strengths")
    if any(not 0 <= s <= 1 for s in strengths):
        raise FlowError(f"strength must lie in [0, 1]; got {strengths}. 0 changes nothing, 1 is only fresh noise.")
    shapes: list[Shape] = [(z.shape[1], z.shape[2], z.shape[3]) for z in checked]
    noise = [e.to(z) for e, z in zip(sample_latents(shapes, checked[0].shape[0], 1.0, seed), checked, strict=True)]
    if any(strengths):
        _refuse_same_noise(checked, noise, seed)
    fresh = scale(noise, temperature)
    return [
        _exact_ends(z, e, s, math.cos(s * math.pi / 2) * z + math.sin(s * math.pi / 2) * e)
        for z, e, s in zip(checked, fresh, strengths, strict=True)
    ]


def normalize(latents: Sequence[Tensor], strength: float = 1.0, per: Per = "level", *, window: int = 9) -> list[Tensor]:
    """Bring latents to the statistics that the prior expects: ``z + strength ((z - mean) / std - z)``.

    An image that the model finds unlikely (pasted, compressed, blurred) has latents whose mean and standard deviation
    are not 0 and 1. Corrected and decoded, it looks more like the model's training images. Both are computed per item:

    * "level": over the entire level;
    * "channel": over the positions of each channel;
    * "local": per channel, over the ``window x window`` positions around each position, cut off at the border.

    Where a channel has fewer than ``MIN_POSITIONS`` positions (the deepest levels of small images), "channel" and
    "local" use the statistics of the level. A standard deviation below ``MIN_STD`` counts as that.

    >>> (z,) = flowcore.normalize([5 + 2 * torch.randn(1, 12, 8, 8)])
    >>> bool(z.mean().abs() < 1e-5), bool((z.std(correction=0) - 1).abs() < 1e-5)
    (True, True)

    Args:
        latents: Finest first.
        strength: In [0, 1]: 0 changes nothing (bit for bit), 1 normalizes fully.
        per: As above.
        window: Side of the local window in positions of the level, odd, at least 5.

    Returns:
        The normalized latents.

    Raises:
        FlowError: If an argument is out of its range.

    Source: Lugmayr et al., "SRFlow", latent space normalization; the blending, the window's treatment at the border and
    the floor of the standard deviation are ours.
    """
    checked = _check(latents)
    if not 0 <= strength <= 1:
        raise FlowError(f"strength must lie in [0, 1]; got {strength}. 0 changes nothing, 1 normalizes fully.")
    if per not in ("level", "channel", "local"):
        raise FlowError(f"per must be level, channel or local; got {per!r}.")
    if window < 5 or window % 2 == 0:
        raise FlowError(f"window must be an odd number of positions, at least 5; got {window}.")
    if strength == 0:
        return [z.clone() for z in checked]
    result: list[Tensor] = []
    for z in checked:
        wide = float64(z)
        mean, std = _moments(wide, per, window)
        target = (wide - mean) / std.clamp_min(MIN_STD)
        result.append((wide + strength * (target - wide)).to(z))
    return result


@dataclass(frozen=True, kw_only=True)
class LevelStatistics:
    """Statistics of one level of latents per item, ``(B,)``, to compare with what the prior expects."""

    mean: Tensor  # 0 is expected
    std: Tensor  # standard deviation of the population; 1 is expected
    radius: Tensor  # |z| / sqrt(D); 1 is expected, with a standard deviation of 1 / sqrt(2 D)
    dimensions: int  # D, of one item


def statistics(latents: Sequence[Tensor]) -> list[LevelStatistics]:
    """Measure mean, standard deviation and norm of every level, in float64."""
    result: list[LevelStatistics] = []
    for z in _check(latents):
        flat = float64(z).flatten(1)  # (B, D)
        mean, std, radius = flat.mean(1), flat.std(1, correction=0), flat.square().mean(1).sqrt()
        result.append(LevelStatistics(mean=mean, std=std, radius=radius, dimensions=flat.shape[1]))
    return result


# --- directions -------------------------------------------------------------------------------------------------------


def attribute_direction(positives: Iterable[Sequence[Tensor]], negatives: Iterable[Sequence[Tensor]]) -> Direction:
    """Find the direction of an attribute: mean latents with it minus mean latents without it, float32, on the CPU.

    Source: Kingma & Dhariwal, "Glow", section 6.
    """
    return [(p - n).float() for p, n in _pairs(_mean("with", positives), _mean("without", negatives))]


def _mean(side: str, batches: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Average over all items, in float64 on the CPU and in the memory of one."""
    sums, count = list[Tensor](), 0
    for batch in batches:
        checked = _check(batch)
        if not all(z.isfinite().all() for z in checked):
            raise FlowError(
                "The latents contain values that are not finite numbers. Leave out the image they come from."
            )
        parts = [float64(z).sum(0, keepdim=True).cpu() for z in checked]
        sums = [before + new for before, new in _pairs(sums, parts)] if sums else parts
        count += checked[0].shape[0]
    if not count:
        raise FlowError(f"There are no latents {side} the attribute. A direction needs at least one on each side.")
    return [total / count for total in sums]


def add(latents: Sequence[Tensor], direction: Sequence[Tensor], strength: float | Sequence[float]) -> list[Tensor]:
    """Move along a direction: ``z_l + strength_l d_l``; negative strengths move the other way, 0 changes no bit."""
    pairs = _pairs(latents, direction)
    strengths = _per_level(strength, len(pairs), "strengths")
    return [z.clone() if s == 0 else z + s * d for (z, d), s in zip(pairs, strengths, strict=True)]


# --- one level of one pair --------------------------------------------------------------------------------------------


def _slerp(x: Tensor, y: Tensor, t: float) -> Tensor:
    one, two = float64(x).flatten(1), float64(y).flatten(1)  # (B, D)
    angle = ((one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))).acos()  # (B,)
    # the angle is NaN where a norm is zero, or rounding makes the cosine exceed 1; there is no arc then
    arc = (angle > MIN_ANGLE) & (angle < math.pi - OPPOSITE)
    angle = torch.where(arc, angle, 1.0)
    first = torch.where(arc, ((1 - t) * angle).sin() / angle.sin(), 1 - t)
    second = torch.where(arc, (t * angle).sin() / angle.sin(), t)
    return _item_weights(first, x) * x + _item_weights(second, y) * y


def _norm(x: Tensor, y: Tensor, t: float) -> Tensor:
    mixed = (1 - t) * x + t * y
    norm_x, norm_y, norm_mixed = (float64(z).flatten(1).norm(dim=1) for z in (x, y, mixed))  # each (B,)
    target = ((1 - t) * norm_x + t * norm_y).clamp_min(0)
    defined = norm_mixed > 1e-6 * (norm_x + norm_y)
    return _item_weights(torch.where(defined, target / torch.where(defined, norm_mixed, 1.0), 1.0), x) * mixed


def _item_weights(weights: Tensor, z: Tensor) -> Tensor:
    """Shape one weight per item, (B,), for multiplication with a level."""
    return weights.to(z)[:, None, None, None]


def _exact_ends(x: Tensor, y: Tensor, t: float, between: Tensor) -> Tensor:
    """Return x for t = 0 and y for t = 1, bit for bit."""
    return x.clone() if t == 0 else y.clone() if t == 1 else between


_MIX: dict[Mode, Callable[[Tensor, Tensor, float], Tensor]] = {
    "slerp": _slerp,
    "linear": lambda x, y, t: (1 - t) * x + t * y,
    "norm": _norm,
}


def _moments(z: Tensor, per: Per, window: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over level, channel or window, in a shape that broadcasts to z."""
    if per == "level" or z.shape[2] * z.shape[3] < MIN_POSITIONS:
        return z.mean((1, 2, 3), keepdim=True), z.std((1, 2, 3), correction=0, keepdim=True)
    if per == "channel":
        return z.mean((2, 3), keepdim=True), z.std((2, 3), correction=0, keepdim=True)
    mean, second = (
        F.avg_pool2d(t, window, stride=1, padding=window // 2, count_include_pad=False) for t in (z, z.square())
    )
    return mean, (second - mean.square()).clamp_min(0).sqrt()


def _refuse_same_noise(latents: Sequence[Tensor], noise: Sequence[Tensor], seed: int) -> None:
    """Reject latents that were drawn with this seed: mixed with the same noise they would only be rescaled."""
    same = torch.ones(latents[0].shape[0], dtype=torch.bool, device=float64(latents[0]).device)  # (B,)
    empty = torch.ones_like(same)
    for z, e in zip(latents, noise, strict=True):
        one, two = float64(z).flatten(1), float64(e).flatten(1)
        zero = (one == 0).all(1)  # drawn at temperature 0, which says nothing about the seed
        same &= zero | (F.cosine_similarity(one, two, dim=1) > 1 - 1e-6)
        empty &= zero
    if bool((same & ~empty).any()):
        raise FlowError(
            f"The latents were themselves drawn with seed {seed} (or seed + i): their own noise would only rescale "
            "them. Choose another seed for the variation."
        )


# --- checks -----------------------------------------------------------------------------------------------------------


def _check(latents: Sequence[Tensor]) -> list[Tensor]:
    levels: list[Any] = [] if isinstance(latents, Tensor) else list(latents)
    if not levels or any(not isinstance(z, Tensor) or z.ndim != 4 or 0 in z.shape for z in levels):
        actual: Any = [tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__ for z in levels]
        if isinstance(latents, Tensor):
            actual = f"a tensor of shape {tuple(latents.shape)}"
        raise ShapeError(f"Expected a list of latents, finest first, each (B, C, H, W); got {actual}.")
    for z in levels:
        require_full_precision(z.dtype)
    batches = [z.shape[0] for z in levels]
    if len(set(batches)) > 1:
        raise ShapeError(
            f"All levels must be of one batch; got {batches} items, finest level first. Take the same items of every "
            "level."
        )
    return levels


def _pairs(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Check that two lists are compatible; give both the larger batch, the wider precision and the device of a."""
    one, two = _check(a), _check(b)
    shapes = [[tuple(z.shape[1:]) for z in levels] for levels in (one, two)]
    if shapes[0] != shapes[1]:
        raise ShapeError(
            f"These latents do not fit together: expected levels of shapes {shapes[0]}, finest first; got {shapes[1]}. "
            "Make both with the same model, from images of the same size."
        )
    batches = one[0].shape[0], two[0].shape[0]
    if batches[0] != batches[1] and 1 not in batches:
        raise ShapeError(
            "These latents do not fit together: {items} items and {others}. Give as many of one as of the other, or a "
            "single one.",
            items=batches[0],
            others=batches[1],
        )
    pairs: list[tuple[Tensor, Tensor]] = []
    for x, y in zip(one, two, strict=True):
        dtype = torch.promote_types(x.dtype, y.dtype)
        size = (max(batches), *x.shape[1:])
        pairs.append((x.to(dtype).expand(size), y.to(x.device, dtype).expand(size)))
    return pairs


def _per_level(value: float | Sequence[float], levels: int, name: str) -> list[float]:
    """List one number per level, from one number or one per level."""
    values = [float(value)] * levels if isinstance(value, (int, float)) else [float(v) for v in value]
    if len(values) != levels:
        raise ShapeError(f"These latents have {levels} levels; got {len(values)} {name}. Give one, or one per level.")
    if not all(math.isfinite(v) for v in values):
        raise FlowError(f"{name} must be finite numbers; got {values}.")
    return values
