"""What the published Glows have in common: how a table of names becomes the origins of all tensors, and first fields.

All of them are ``models.glow`` with different settings; each program's module says which, and holds its table.
Conversions only reorder and change signs, so that nothing is rounded. In our order the rows of a coupling's last
convolution and of a prior alternate: shift, raw scale, ...; mean, log-deviation, ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...models.glow import GlowConfig
from ..file import build_on_meta
from .source import PER_CHANNEL, PER_OUTPUT, SAME, Checkpoint, Layout, Origin, missing_field, take, take_all, take_conv

LICENSE = "MIT for the program; none is stated with published weights: check the license of your file"

# Fixed by the programs of y0ast and chaiyujin, and but for some fields by the others.
SETTINGS = {
    "edge": "zeros",
    "network": "actnorm",
    "actnorm": "log",
    "scaled": True,
    "split_prior": "conv",
    "last_mixing": "",
    "learned_top": True,
    "classes": 0,
}

# Errors of checks.
UNTRAINED = (
    "says that this network was never initialized from a batch: its program would do that on first use, and the file "
    "holds no trained model. Give the file of a trained one."
)
CHANGED = "is not what the program makes of it. The file is damaged, or of a changed program, which is not supported."


# --- names ------------------------------------------------------------------------------------------------------------

NAME = re.compile(r"(?:levels\.(\d+)\.)?(?:steps\.transforms\.(\d+)\.transforms\.)?(.+)")


def glow_layout(config: GlowConfig, table: Iterable[Origin], given: Mapping[str, Tensor] = {}, **layout: Any) -> Layout:
    """Look all of our tensors up in a table, but those that are ``given``, or that channel reversals determine.

    Our names in the table are without the number of the level, and those of a step begin with 0 for the actnorm, 1 for
    the mixing, and 2 for the coupling. Published ones refer to ``{level}``, 0 for the finest; ``{k}``, the number of a
    step in data-to-latent direction; ``{deep}`` and ``{back}``, both counted from the other end; and ``{layer}``, the
    index in one list of a squeeze, the steps and the split of every level.
    """
    rows, origins = {row.ours: row for row in table}, list[Origin]()
    ours = build_on_meta("glow", config).state_dict()
    if config.mixing == "reverse":
        given = {name: torch.arange(len(t)).flip(0) for name, t in ours.items() if name.endswith(".1.order")}
    for name in ours:
        level, k, part = NAME.fullmatch(name).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if part in rows and name not in given:
            level, k = int(level or config.levels - 1), int(k or config.steps)
            numbers = {"level": level, "k": k, "deep": config.levels - 1 - level, "back": config.steps - 1 - k}
            numbers["layer"] = level * (config.steps + 2) + 1 + k
            names = [published.format(**numbers) for published in rows[part].names]
            origins.append(replace(rows[part], ours=name, names=names))
    return Layout(architecture="glow", config=config, origins=origins, given=given, **layout)


def lu_factors(ours: str, published: str, names: str) -> Iterator[Origin]:
    """Take a mixing held as LU factors; what its program masks out of the triangles is arbitrary and dropped.

    ``names`` are, separated by spaces, those of the permutation, the signs of the diagonal, the lower factor, the upper
    factor, and the logarithm of the diagonal.
    """
    permutation, sign, lower, upper, log = names.split()
    yield from take_all(ours, f"{published}.", {"permutation": permutation, "sign": sign, "log_diagonal": log})
    yield take(f"{ours}.lower", f"{published}.{lower}", SAME.then(lambda t: t.tril(-1)))
    yield take(f"{ours}.upper", f"{published}.{upper}", SAME.then(lambda t: t.triu(1)))


def actnorm(ours: str, published: str) -> Iterator[Origin]:
    """Take an ``ActNorm``."""
    return take_all(ours, f"{published}.", {"bias": "bias", "log_scale": "logs"}, PER_CHANNEL)


def zero_conv(ours: str, published: str, conv: str = "") -> Iterator[Origin]:
    """Take a ``ScaledConv``; ``conv`` is from its name to that of its kernel."""
    yield from take_conv(ours, published + conv)
    yield take(f"{ours}.log_scale", f"{published}.logs", PER_OUTPUT)


# --- order of rows ----------------------------------------------------------------------------------------------------


def alternate(t: Tensor) -> Tensor:
    """Reorder rows a0, a1, ..., b0, b1, ... to a0, b0, a1, b1, ..."""
    return torch.stack(t.chunk(2), dim=1).flatten(0, 1)


def alternate_swapped(t: Tensor) -> Tensor:
    """Reorder rows a0, a1, ..., b0, b1, ... to b0, a0, b1, a1, ..."""
    return torch.stack(t.chunk(2)[::-1], dim=1).flatten(0, 1)


# --- hyper-parameters -------------------------------------------------------------------------------------------------


def first_step(
    found: Checkpoint, bias: str, hidden: str, last: str, axes: tuple[int, int, int] = (1, 0, 0)
) -> dict[str, Any]:
    """Derive image channels, width and coupling from three tensors of the first step, and an axis of each.

    These are the actnorm's bias, whose channels count, and the first and last kernel of the coupling, whose outputs do.
    """
    channels, width, outputs = (
        found.shape(name, 4)[axis] for name, axis in zip((bias, hidden, last), axes, strict=True)
    )
    if channels not in (4, 12):
        raise CheckpointError(
            f"the first step of this checkpoint of {found.program} has {channels} channels; expected 12, for color "
            "images, or 4, for gray ones. The file is damaged, or the variant is not supported."
        )
    if outputs not in (channels, channels // 2):
        raise CheckpointError(
            f"the network of the first coupling of this checkpoint of {found.program} has {outputs} outputs for "
            f"{channels} channels; expected {channels} (affine) or {channels // 2} (additive). The file is damaged, or "
            "the variant is not supported."
        )
    coupling = "affine" if outputs == channels else "additive"
    return {"channels": channels // 4, "hidden": width, "coupling": coupling}


def levels_and_steps(found: Checkpoint, pattern: str) -> dict[str, int]:
    """Count levels and steps per level, the two groups of a pattern that matches the start of names."""
    seen: dict[int, set[int]] = {}
    for name in found.shapes:
        if match := re.match(pattern, name):
            seen.setdefault(int(match[1]), set()).add(int(match[2]))
    steps = len(seen.get(0, ()))
    if sorted(seen) != list(range(len(seen))) or any(numbers != set(range(steps)) for numbers in seen.values()):
        counts = ", ".join(f"{len(numbers)} in level {level}" for level, numbers in sorted(seen.items())[:8])
        raise CheckpointError(
            f"the levels of this checkpoint of {found.program} do not have the same number of steps each: {counts}. "
            "The file lacks tensors; fetch it again."
        )
    return {"levels": len(seen), "steps": steps}


def require_bits(found: Checkpoint, usual: str, detected: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Raise an error if ``n_bits``, which no tensor determines, is not among the overrides."""
    if "n_bits" not in overrides:
        raise missing_field(
            "n_bits",
            f"the bits per subpixel that this model ({detected['levels']} levels of {detected['steps']} steps, "
            f"{detected['coupling']}) was trained on. No checkpoint of {found.program} holds it; the program uses "
            f"{usual}.",
            "5",
            "5",
            "gives wrong bits per dimension",
        )


# --- values -----------------------------------------------------------------------------------------------------------


def is_identity(t: Tensor) -> bool:
    """Return True if a matrix is the identity."""
    return torch.equal(t.float(), torch.eye(len(t)))
