"""What the published Glows have in common: our names, orders of rows, and what is read off a first step.

All of them are ``models.glow`` with other settings; each program's module says which, and where its tensors go. Exact
reorderings are made there; numbers stay as they were stored, so that nothing is rounded. Our order everywhere: rows of
a coupling's last convolution and of a prior alternate, shift and raw scale, mean and log-deviation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...models.glow import GlowConfig
from .source import SAME, Origin, Shapes, missing_field, take

LICENCE = "MIT for the program; none is stated with published weights: check the licence of your file"

# What the programs of y0ast, chaiyujin and, but for two fields, OpenAI fix.
SETTINGS = {
    "edge": "zeros",
    "network": "actnorm",
    "actnorm": "log",
    "scaled": True,
    "split_prior": "conv",
    "last_mixing": "",
}

# What checks say.
UNTRAINED = (
    "says that this network was never initialised from a batch: its program would do that on first use, and the file "
    "holds no trained model. Give the file of a trained one."
)
NO_PERMUTATION = "is no permutation: it does not list every channel once. The file is damaged; fetch it again."
CHANGED = "is not what the program makes of it. The file is damaged, or of a changed program, which is not supported."


# --- our names --------------------------------------------------------------------------------------------------------


def step_name(level: int, k: int) -> str:
    """Name a step of our model.

    Args:
        level: 0 is the finest.
        k: Number of the step, in the data-to-latent direction.

    Returns:
        Its name, before the number of its part: 0 the actnorm, 1 the mixing, 2 the coupling.
    """
    return f"levels.{level}.steps.transforms.{k}.transforms"


def lu_factors(
    ours: str, published: str, *, lower: str, upper: str, log: str, permutation: str, sign: str
) -> Iterator[Origin]:
    """Take a mixing that is held as LU factors; what its program masks out of the triangles is arbitrary, and goes.

    Args:
        ours: Our name of the mixing.
        published: The published one.
        lower: What the triangular factor is called there.
        upper: Likewise.
        log: Likewise, of the logarithm of the diagonal.
        permutation: Likewise.
        sign: Likewise, of the signs of the diagonal.

    Yields:
        The origins.
    """
    yield take(f"{ours}.permutation", f"{published}.{permutation}")
    yield take(f"{ours}.sign", f"{published}.{sign}")
    yield take(f"{ours}.lower", f"{published}.{lower}", SAME.then(lambda t: t.tril(-1)))
    yield take(f"{ours}.upper", f"{published}.{upper}", SAME.then(lambda t: t.triu(1)))
    yield take(f"{ours}.log_diagonal", f"{published}.{log}")


def reversals(config: GlowConfig) -> dict[str, Tensor]:
    """Make the orders of a model whose steps reverse the channels.

    Args:
        config: Of the model.

    Returns:
        Our name to order.
    """
    return {
        f"{step_name(level, k)}.1.order": torch.arange(level_channels(config, level)).flip(0)
        for level in range(config.levels)
        for k in range(config.steps)
    }


def level_channels(config: GlowConfig, level: int) -> int:
    """Count the channels within a level.

    Args:
        config: Of the model.
        level: 0 is the finest.

    Returns:
        C.
    """
    return config.channels * 4 * 2**level


# --- orders of rows ---------------------------------------------------------------------------------------------------


def alternate(t: Tensor) -> Tensor:
    """Put rows that come in halves in turn.

    Args:
        t: Rows a0, a1, ..., b0, b1, ...

    Returns:
        Rows a0, b0, a1, b1, ...
    """
    return torch.stack(t.chunk(2), dim=1).flatten(0, 1)


def alternate_swapped(t: Tensor) -> Tensor:
    """Put rows that come in halves in turn, those of the second half first.

    Args:
        t: Rows a0, a1, ..., b0, b1, ...

    Returns:
        Rows b0, a0, b1, a1, ...
    """
    return torch.stack(t.chunk(2)[::-1], dim=1).flatten(0, 1)


# --- what a first step tells ------------------------------------------------------------------------------------------


def image_channels(program: str, wide: int) -> int:
    """Read the channels of the image off those of the first step.

    Args:
        program: Name of the published program.
        wide: Channels of the first step.

    Returns:
        1 or 3.

    Raises:
        CheckpointError: If it is neither.
    """
    if wide not in (4, 12):
        raise CheckpointError(
            f"the first step of this checkpoint of {program} has {wide} channels; expected 12, for colour images, or "
            "4, for grey ones. The file is damaged, or the variant is not supported."
        )
    return wide // 4


def coupling_kind(program: str, outputs: int, wide: int) -> str:
    """Tell affine from additive couplings.

    Args:
        program: Name of the published program.
        outputs: Channels that the first coupling's network gives.
        wide: Channels of the first step.

    Returns:
        "affine" or "additive".

    Raises:
        CheckpointError: If it can be neither.
    """
    if outputs not in (wide, wide // 2):
        raise CheckpointError(
            f"the network of the first coupling of this checkpoint of {program} has {outputs} outputs for {wide} "
            f"channels; expected {wide} (affine) or {wide // 2} (additive). The file is damaged, or the variant is not "
            "supported."
        )
    return "affine" if outputs == wide else "additive"


def parts_of(shapes: Shapes, pattern: str) -> set[str]:
    """Collect what some module is made of, over all steps: a damaged file may lack it in any one.

    Args:
        shapes: Of the file.
        pattern: Matches the start of a name, up to its part.

    Returns:
        The rests of the names.
    """
    found = ((name, re.match(pattern, name)) for name in shapes)
    return {name[match.end() :] for name, match in found if match}


def levels_and_steps(program: str, shapes: Shapes, pattern: str) -> tuple[int, int]:
    """Read levels and steps per level off names that hold both numbers.

    Args:
        program: Name of the published program.
        shapes: Of the file.
        pattern: Matches the start of such a name; its groups are level and step.

    Returns:
        Both.

    Raises:
        CheckpointError: If the numbers do not form a rectangle.
    """
    seen: dict[int, set[int]] = {}
    for name in shapes:
        if match := re.match(pattern, name):
            seen.setdefault(int(match[1]), set()).add(int(match[2]))
    steps = len(seen.get(0, ()))
    if sorted(seen) != list(range(len(seen))) or any(found != set(range(steps)) for found in seen.values()):
        counts = ", ".join(f"{len(found)} in level {level}" for level, found in sorted(seen.items())[:8])
        raise CheckpointError(
            f"the levels of this checkpoint of {program} do not have the same number of steps each: {counts}. "
            "The file lacks tensors; fetch it again."
        )
    return len(seen), steps


def missing_bits(program: str, habit: str, told: Mapping[str, Any]) -> CheckpointError:
    """Build the error for bits per subpixel that are not given.

    Args:
        program: Name of the published program.
        habit: What it uses when.
        told: What the file tells.

    Returns:
        The error, to be raised.
    """
    return missing_field(
        "n_bits",
        f"the bits per subpixel that this model ({told['levels']} levels of {told['steps']} steps, {told['coupling']}) "
        f"was trained on. No checkpoint of {program} holds it; the program uses {habit}.",
        "5",
        "5",
        "gives wrong bits per dimension",
    )


# --- what tensors must hold -------------------------------------------------------------------------------------------


def is_permutation(t: Tensor) -> bool:
    """Say whether a tensor lists each of 0 to C - 1 once.

    Args:
        t: Whole numbers, ``(C,)``.

    Returns:
        Whether it does.
    """
    return torch.equal(t.long().sort()[0], torch.arange(len(t)))


def is_identity(t: Tensor) -> bool:
    """Say whether a matrix is the identity.

    Args:
        t: ``(C, C)``.

    Returns:
        Whether it is.
    """
    return torch.equal(t.float(), torch.eye(len(t)))
