"""Published Glows: what they have in common, and the programs of OpenAI, rosinality, y0ast and chaiyujin.

All of them are ``models.glow`` with different settings, and a table per program says where every tensor is. Conversions
only reorder and change signs, so that nothing is rounded. In our order the rows of a coupling's last convolution and of
a prior alternate: shift, raw scale, ...; mean, log-deviation, ...
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...models.glow import GlowConfig
from ..file import build_on_meta
from .source import (
    LACKS_LAYERS,
    PER_CHANNEL,
    PER_OUTPUT,
    SAME,
    Check,
    Checkpoint,
    Form,
    Layout,
    Origin,
    Source,
    count_levels,
    missing_field,
    take,
    take_all,
    take_conv,
)

LICENSE = "MIT for the program; none is stated with published weights: check the license of your file"

# Fields that programs fix, mostly at our defaults. They count as detected, so that no override may contradict them.
FIXED = ("edge", "network", "actnorm", "scaled", "split_prior", "last_mixing", "learned_top", "classes")
SETTINGS = {name: getattr(GlowConfig(), name) for name in FIXED}

# Errors of checks.
UNTRAINED = (
    "says that this network was never initialized from a batch: its program would do that on first use, and the file "
    "holds no trained model. Give the file of a trained one."
)
NOT_ZERO = (
    "is expected to be zero, because the top prior is computed from it, and is not. The file is of a changed program, "
    "which is not supported."
)
CHANGED = "is not what the program makes of it. The file is damaged, or of a changed program, which is not supported."


# --- what they have in common -----------------------------------------------------------------------------------------

NAME = re.compile(r"(?:levels\.(\d+)\.)?(?:steps\.transforms\.(\d+)\.transforms\.)?(.+)")
NETWORK = "2.conditioner"


def glow_layout(
    config: GlowConfig, table: Iterable[Origin], values: Mapping[str, Tensor] = {}, **layout: Any
) -> Layout:
    """Look up our tensors in a table, except those in ``values`` and the channel reversals.

    Our names in the table are without the number of the level, and those of a step begin with 0 for the actnorm, 1 for
    the mixing, and 2 for the coupling. Published ones refer to ``{level}``, 0 for the finest; ``{k}``, the number of a
    step in data-to-latent direction; ``{deep}`` and ``{back}``, both counted from the other end; and ``{layer}``, the
    index in one list of a squeeze, the steps and the split of every level.
    """
    rows, origins = {row.ours: row for row in table}, list[Origin]()
    ours = build_on_meta("glow", config).state_dict()
    if config.mixing == "reverse":
        values = {name: torch.arange(len(t)).flip(0) for name, t in ours.items() if name.endswith(".1.order")}
    for name in ours:
        level, k, part = NAME.fullmatch(name).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if part in rows and name not in values:
            # Without a level it is of the top prior, the deepest; without a step, of a split, after the last one.
            level, k = int(level or config.levels - 1), int(k or config.steps)
            numbers = {"level": level, "k": k, "deep": config.levels - 1 - level, "back": config.steps - 1 - k}
            numbers["layer"] = level * (config.steps + 2) + 1 + k
            names = [published.format(**numbers) for published in rows[part].names]
            origins.append(replace(rows[part], ours=name, names=names))
    return Layout(architecture="glow", config=config, origins=origins, values=values, **layout)


def take_lu(ours: str, published: str, names: str) -> Iterator[Origin]:
    """Take a mixing held as LU factors; what its program masks out of the triangles is arbitrary and dropped."""
    permutation, sign, lower, upper, log = names.split()
    yield from take_all(ours, f"{published}.", {"permutation": permutation, "sign": sign, "log_diagonal": log})
    yield take(f"{ours}.lower", f"{published}.{lower}", SAME.then(lambda t: t.tril(-1)))
    yield take(f"{ours}.upper", f"{published}.{upper}", SAME.then(lambda t: t.triu(1)))


def actnorm(ours: str, published: str) -> Iterator[Origin]:
    """Take an ``ActNorm``."""
    return take_all(ours, f"{published}.", {"bias": "bias", "log_scale": "logs"}, PER_CHANNEL)


def zero_conv(ours: str, published: str, conv: str = "") -> Iterator[Origin]:
    """Take a ``ScaledConv``; ``conv`` is the suffix of its kernel's name."""
    yield from take_conv(ours, published + conv)
    yield take(f"{ours}.log_scale", f"{published}.logs", PER_OUTPUT)


def alternate(t: Tensor) -> Tensor:
    """Reorder rows a0, a1, ..., b0, b1, ... to a0, b0, a1, b1, ..."""
    return torch.stack(t.chunk(2), dim=1).flatten(0, 1)


def alternate_swapped(t: Tensor) -> Tensor:
    """Reorder rows a0, a1, ..., b0, b1, ... to b0, a0, b1, a1, ..."""
    return torch.stack(t.chunk(2)[::-1], dim=1).flatten(0, 1)


def check_identity(names: str) -> Check:
    """Check that matrices are the identity."""
    return Check(names, lambda t: torch.equal(t.float(), torch.eye(len(t))), CHANGED)


def check_trained(names: str) -> Check:
    """Check that flags of data-dependent initialization are set."""
    return Check(names, lambda t: bool(t.all()), UNTRAINED)


def first_step(
    checkpoint: Checkpoint, bias: str, hidden: str, last: str, axes: tuple[int, int, int] = (1, 0, 0)
) -> dict[str, Any]:
    """Derive image channels, width and coupling from an actnorm's bias and a coupling's first and last kernel."""
    channels, width, outputs = (
        checkpoint.shape(name, 4)[axis] for name, axis in zip((bias, hidden, last), axes, strict=True)
    )
    if channels not in (4, 12):
        raise checkpoint.error(
            f"has {channels} channels in its first step; expected 12, for color images, or 4, for gray ones."
        )
    if outputs not in (channels, channels // 2):
        raise checkpoint.error(
            f"has a first coupling whose network has {outputs} outputs for {channels} channels; expected {channels} "
            f"(affine) or {channels // 2} (additive)."
        )
    coupling = "affine" if outputs == channels else "additive"
    return {"channels": channels // 4, "hidden": width, "coupling": coupling}


def levels_and_steps(checkpoint: Checkpoint, pattern: str) -> dict[str, int]:
    """Count levels and steps per level, the two groups of a pattern that matches the start of names."""
    levels: dict[int, set[int]] = {}
    for name in checkpoint.shapes:
        if match := re.match(pattern, name):
            levels.setdefault(int(match[1]), set()).add(int(match[2]))
    steps = len(levels.get(0, ()))
    if sorted(levels) != list(range(len(levels))) or any(numbers != set(range(steps)) for numbers in levels.values()):
        counts = ", ".join(f"{len(numbers)} in level {level}" for level, numbers in sorted(levels.items())[:8])
        raise checkpoint.error(
            f"does not have the same number of steps in each level: {counts}.",
            "The file lacks tensors; fetch it again.",
        )
    return {"levels": len(levels), "steps": steps}


def _config_with_bits(
    checkpoint: Checkpoint, usual: str, detected: Mapping[str, Any], overrides: Mapping[str, Any]
) -> GlowConfig:
    """Make the configuration of a program that leaves ``n_bits``, which no tensor determines, to the user."""
    if "n_bits" not in overrides:
        raise missing_field(
            "n_bits",
            f"the bits per subpixel that this model ({detected['levels']} levels of {detected['steps']} steps, "
            f"{detected['coupling']}) was trained on. No checkpoint of {checkpoint.program} holds it; the program uses "
            f"{usual}.",
            "5",
            "5",
            "gives wrong bits per dimension",
        )
    return checkpoint.config("glow", detected, {"grid": "bins", "pixels": "centred"}, overrides)


# --- openai/glow, the authors' program: TensorFlow variables under their own names ------------------------------------

# TensorFlow's kernels are (height, width, in, out); its vectors are rows.
HWIO = Form(lambda s: (s[2], s[3], s[1], s[0]), lambda t: t.permute(3, 2, 0, 1))
ROW = Form(lambda s: (1, *s), torch.flatten)
ROW_4D = Form(lambda s: (1, 1, 1, *s), torch.flatten)
TRANSPOSED = Form(lambda s: s[::-1], lambda t: t.T)
# Of a kernel whose inputs are 2C channels of zeros and the border flag; ours, (2C, 1, 3, 3), sees the flag only.
FLAG_OF_HWIO = Form(lambda s: (s[2], s[3], s[0] + 1, s[0]), lambda t: t.permute(3, 2, 0, 1)[:, -1:])

# What else a TensorFlow checkpoint holds: counters, optimizer slots, moving averages of the weights.
TRAINER = re.compile(
    r"global_step|Variable(_\d+)?|adam_t|beta[12]_power|opt(imizer)?/.*|.*/(Adam|Adamax)(_\d+)?"
    r"|.*_adam_(m|v|m1|m2)|.*/ExponentialMovingAverage"
)


def _openai_actnorm(ours: str, published: str) -> Iterator[Origin]:
    return take_all(ours, f"{published}/actnorm_", {"bias": "center/b", "log_scale": "scale/logs"}, ROW_4D)


def _openai_zero_conv(ours: str, published: str) -> Iterator[Origin]:
    yield take(f"{ours}.weight", f"{published}/W", HWIO)
    yield take(f"{ours}.bias", f"{published}/b", ROW_4D)
    yield take(f"{ours}.log_scale", f"{published}/logs", ROW)


OPENAI_STEP = "model/{level}/{k}"
OPENAI_TABLE = (
    *_openai_actnorm("0", OPENAI_STEP),
    take("1.weight", f"{OPENAI_STEP}/invconv/W", TRANSPOSED),  # it multiplies rows by the matrix from the right
    take("1.order", f"{OPENAI_STEP}/shuffle/indices"),
    take(f"{NETWORK}.hidden.0.weight", f"{OPENAI_STEP}/f1/l_1/W", HWIO),
    *_openai_actnorm(f"{NETWORK}.hidden.0.actnorm", f"{OPENAI_STEP}/f1/l_1"),
    take(f"{NETWORK}.hidden.1.weight", f"{OPENAI_STEP}/f1/l_2/W", HWIO),
    *_openai_actnorm(f"{NETWORK}.hidden.1.actnorm", f"{OPENAI_STEP}/f1/l_2"),
    *_openai_zero_conv(f"{NETWORK}.last", f"{OPENAI_STEP}/f1/l_last"),
    *_openai_zero_conv("split.conditioner", "model/pool{level}/conv"),
    # A convolution of zeros: only its kernel for the border is read. Means come first, then log-deviations.
    take("top.prior.constants.weight", "model/prior/p/W", FLAG_OF_HWIO.then(alternate)),
    take("top.prior.constants.bias", "model/prior/p/b", ROW_4D.then(alternate)),
    take("top.prior.constants.log_scale", "model/prior/p/logs", ROW.then(alternate)),
    take("top.prior.by_label.weight", "model/prior/y_emb/W", TRANSPOSED.then(alternate)),
    take("top.prior.by_label.bias", "model/prior/y_emb/b", ROW.then(alternate)),
    take("top.prior.by_label.log_scale", "model/prior/y_emb/logs", ROW.then(alternate)),
)


def _openai_layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    """Convolutions see the border as one more channel, the last; log-scales are stored divided by 3."""
    checkpoint = checkpoint.without(TRAINER)
    parts = checkpoint.parts(r"model/\d+/\d+/")
    mixings = {"conv": "invconv/W", "shuffle": "shuffle/indices"}
    detected = {
        **SETTINGS,
        **levels_and_steps(checkpoint, r"model/(\d{1,4})/(\d{1,4})/"),
        **first_step(
            checkpoint, "model/0/0/actnorm_center/b", "model/0/0/f1/l_1/W", "model/0/0/f1/l_last/W", (3, 3, 3)
        ),
        "mixing": next((mixing for mixing, part in mixings.items() if part in parts), "reverse"),
        "learned_top": checkpoint.has("model/prior/p/"),
        "classes": checkpoint.shape("model/prior/y_emb/W", 2)[0] if checkpoint.has("model/prior/y_emb/") else 0,
        "edge": "flag",
        "actnorm": "log3",
    }
    config = _config_with_bits(checkpoint, "8 for CIFAR-10, LSUN and ImageNet, 5 for CelebA-HQ", detected, overrides)
    unused = rf"model/classifier/.*|model/\d+/\d+/shuffle/indices_inverse|{TRAINER.pattern}"
    return glow_layout(config, OPENAI_TABLE, unused=re.compile(unused))


OPENAI = Source(
    name="Glow by OpenAI",
    licence=LICENSE,
    detect=re.compile(r"model/\d+/\d+/"),
    layout=_openai_layout,
    integers=re.compile(rf".*/shuffle/indices(_inverse)?|{TRAINER.pattern}"),
    rename=lambda state: {name.removesuffix(":0"): t for name, t in state.items()},  # a variable's only output
)


# --- rosinality/glow-pytorch ------------------------------------------------------------------------------------------

ROSINALITY_STEP = r"blocks\.\d+\.flows\.\d+"
MATRIX_AS_KERNEL = Form(lambda s: (*s, 1, 1), lambda t: t[:, :, 0, 0])


def _rosinality_table(rows: Callable[[Tensor], Tensor]) -> Iterator[Origin]:
    """``rows`` reorders the rows of a coupling's last convolution, which begin with the raw scales."""
    step, prior = "blocks.{level}.flows.{k}", "blocks.{level}.prior"
    yield take("0.bias", f"{step}.actnorm.loc", PER_CHANNEL)
    yield take("0.scale", f"{step}.actnorm.scale", PER_CHANNEL)
    yield take("1.weight", f"{step}.invconv.weight", MATRIX_AS_KERNEL)
    yield from take_lu("1", f"{step}.invconv", "w_p s_sign w_l w_u w_s")
    yield from take_conv(f"{NETWORK}.hidden.0", f"{step}.coupling.net.0")
    yield from take_conv(f"{NETWORK}.hidden.1", f"{step}.coupling.net.2")
    zero_convs = [(f"{NETWORK}.last", f"{step}.coupling.net.4", rows)]
    zero_convs += [("split.conditioner", prior, alternate), ("top.prior.constants", prior, alternate)]
    for ours, published, order in zero_convs:
        yield from take_conv(ours, f"{published}.conv", SAME.then(order))
        yield take(f"{ours}.log_scale", f"{published}.scale", PER_CHANNEL.then(order))


def _rosinality_layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    """The last level holds LU factors even where the others hold matrices; zero convolutions are padded with ones."""
    first, step = "blocks.0.flows.0", ROSINALITY_STEP
    shape = levels_and_steps(checkpoint, r"blocks\.(\d{1,4})\.flows\.(\d{1,4})\.")
    network = f"{first}.coupling.net"
    mixing = "conv" if "weight" in checkpoint.parts(r"blocks\.0\.flows\.\d+\.invconv\.") else "lu"
    detected = {
        **SETTINGS,
        **shape,
        **first_step(checkpoint, f"{first}.actnorm.loc", f"{network}.0.weight", f"{network}.4.conv.weight"),
        "mixing": mixing,
        "last_mixing": "lu" if mixing == "conv" and shape["levels"] > 1 else "",
        "edge": "ones",
        "network": "plain",
        "actnorm": "signed",
    }
    config = _config_with_bits(checkpoint, "5 by default", detected, overrides)
    return glow_layout(
        config,
        _rosinality_table(alternate_swapped if config.coupling == "affine" else lambda t: t),
        unused=re.compile(rf"{step}\.(actnorm\.initialized|invconv\.(l_mask|u_mask|l_eye))"),
        checks=(
            check_trained(rf"{step}\.actnorm\.initialized"),
            Check(rf"{step}\.invconv\.l_mask", lambda t: torch.equal(t, torch.ones_like(t).tril(-1)), CHANGED),
            Check(rf"{step}\.invconv\.u_mask", lambda t: torch.equal(t, torch.ones_like(t).triu(1)), CHANGED),
            check_identity(rf"{step}\.invconv\.l_eye"),
        ),
    )


ROSINALITY = Source(
    name="Glow by rosinality",
    licence=LICENSE,
    detect=re.compile(rf"{ROSINALITY_STEP}\."),
    layout=_rosinality_layout,
    integers=re.compile(r".*\.(initialized|l_mask|u_mask|l_eye)"),
)


# --- y0ast/Glow-PyTorch and chaiyujin/glow-pytorch: one design under two sets of names --------------------------------

SHUFFLE_INDICES = re.compile(r"(__extra__\.)?flow\.layers\.\d+\.shuffle\.indices")


class Naming(NamedTuple):
    """Pixel conventions and names in which the two programs differ."""

    grid: str
    pixels: str
    network: str  # of a coupling
    conv: str  # from a convolution with a scale or an actnorm to its kernel
    linear: str  # from the linear map of labels to its matrix
    factors: str  # see ``take_lu``
    top: str  # the learned constants


def _y0ast_table(naming: Naming) -> Iterator[Origin]:
    step, conv, linear = "flow.layers.{layer}", naming.conv, f"project_ycond{naming.linear}"
    yield from actnorm("0", f"{step}.actnorm")
    yield take("1.weight", f"{step}.invconv.weight")
    yield from take_lu("1", f"{step}.invconv", naming.factors)
    yield take("1.order", f"{step}.shuffle.indices")
    for place in (0, 1):
        hidden, published = f"{NETWORK}.hidden.{place}", f"{step}.{naming.network}.{2 * place}"
        yield take(f"{hidden}.weight", f"{published}{conv}.weight")
        yield from actnorm(f"{hidden}.actnorm", f"{published}.actnorm")
    yield from zero_conv(f"{NETWORK}.last", f"{step}.{naming.network}.4", conv)
    yield from zero_conv("split.conditioner", f"{step}.conv", conv)
    # Means in the first half of the rows, log-deviations in the second.
    yield take("top.prior.constants.bias", f"{naming.top}{conv}.bias", SAME.then(alternate))
    yield take("top.prior.constants.log_scale", f"{naming.top}.logs", PER_OUTPUT.then(alternate))
    names = {"weight": f"{linear}.weight", "bias": f"{linear}.bias", "log_scale": "project_ycond.logs"}
    yield from take_all("top.prior.by_label", "", names, SAME.then(alternate))


def _y0ast_layout(naming: Naming, checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    """Where there are no 1x1 convolutions, permutations come from ``shuffle.indices``, or from the caller."""
    overrides = dict(overrides)
    permutations = overrides.pop("permutations", None)
    sequence = checkpoint.layers(r"flow\.layers\.(\d{1,4})\.(conv\.)?", {"conv.": "d"})
    levels, steps, _ = count_levels(sequence, undivided=1)
    if not steps:
        raise checkpoint.error(
            "has other layers than the known variants. Expected per level a squeeze (s), as many steps (p) as in every "
            f"other level, and a split (d) after every level but the last; got {sequence[:100] or 'none'}.",
            LACKS_LAYERS,
        )
    network, conv = f"flow.layers.1.{naming.network}", naming.conv
    detected: dict[str, Any] = {
        "levels": levels,
        "steps": steps,
        **first_step(
            checkpoint, "flow.layers.1.actnorm.bias", f"{network}.0{conv}.weight", f"{network}.4{conv}.weight"
        ),
        **SETTINGS,
        "learned_top": checkpoint.has(rf"{naming.top}\."),
    }
    if checkpoint.has(r"project_ycond\."):
        detected["classes"] = checkpoint.shape(f"project_ycond{naming.linear}.weight", 2)[1]
    shuffled = permutations is not None or any(map(SHUFFLE_INDICES.fullmatch, checkpoint.shapes))
    if mixing := checkpoint.parts(r"flow\.layers\.\d+\.invconv\."):
        detected["mixing"] = "conv" if "weight" in mixing else "lu"
        if shuffled:
            raise CheckpointError(
                "permutations are given, but this network mixes its channels by 1x1 convolutions. Leave them out."
            )
    elif shuffled:
        detected["mixing"] = "shuffle"
    elif overrides.get("mixing") != "reverse":
        raise missing_field(
            "permutations",
            f"the order that each of the {levels * steps} steps ({levels} levels of {steps}) puts its channels in. "
            f"This network has no 1x1 convolutions, and {checkpoint.program} does not save the order. If it was "
            'trained with flow_permutation "reverse", give mixing="reverse" (--set mixing=reverse) instead. If it was '
            '"shuffle", there is one list of indices per step, finest level first.',
            "[[3, 0, ...], ...]",
            "'[[3,0,...],...]'",
            "gives noise for pictures",
        )
    if "prior_h" in checkpoint.shapes:
        detected["image_size"] = tuple(side * 2**levels for side in checkpoint.shape("prior_h", 4)[2:])
    defaults = {"n_bits": 8, "grid": naming.grid, "pixels": naming.pixels}
    config = checkpoint.config("glow", detected, defaults, overrides)
    # Zero padding makes the top prior's convolution of zeros a constant, so its kernel is never read.
    values, unused = dict[str, Tensor](), rf"prior_h|project_class\..*|{naming.top}{re.escape(conv)}\.weight"
    if permutations is not None:
        values, unused = _orders(permutations, config), f"{unused}|{SHUFFLE_INDICES.pattern}"
    return glow_layout(
        config,
        _y0ast_table(naming),
        values,
        unused=re.compile(unused),
        checks=(Check("prior_h", lambda t: not bool(t.any()), NOT_ZERO),),
    )


def _orders(permutations: Any, config: GlowConfig) -> dict[str, Tensor]:
    """Validate channel orders given by the caller: one list per step, finest level first."""
    count = config.levels * config.steps
    if not isinstance(permutations, Sequence) or len(permutations) != count:
        actual = f"{len(permutations)}" if isinstance(permutations, Sequence) else repr(permutations)[:60]
        raise CheckpointError(
            f"permutations must be {count} lists of indices, one for each of {config.steps} steps on {config.levels} "
            f"levels, finest level first; got {actual}."
        )
    orders: dict[str, Tensor] = {}
    for number, order in enumerate(permutations):
        level, k = divmod(number, config.steps)
        channels = config.channels * 4 * 2**level
        integers = isinstance(order, (list, tuple)) and all(type(index) is int for index in order)
        if not integers or sorted(order) != list(range(channels)):
            raise CheckpointError(
                f"permutations[{number}], of step {k} on level {level}, must list each of 0 to {channels - 1} once; "
                f"got {str(order)[:80]}."
            )
        orders[f"levels.{level}.steps.transforms.{k}.transforms.1.order"] = torch.tensor(order)
    return orders


def _y0ast_source(name: str, naming: Naming) -> Source:
    return Source(
        name=name,
        licence=LICENSE,
        detect=re.compile(rf"flow\.layers\.\d+\.{naming.network}\."),
        layout=partial(_y0ast_layout, naming),
        integers=SHUFFLE_INDICES,
        rename=lambda state: {name.removeprefix("__extra__."): t for name, t in state.items()},
    )


Y0AST = _y0ast_source(
    "Glow by y0ast",
    Naming("bins", "centred", "block", ".conv", ".linear", "p sign_s lower upper log_s", "learn_top_fn"),
)
CHAIYUJIN = _y0ast_source("Glow by chaiyujin", Naming("levels", "unit", "f", "", "", "p sign_s l u log_s", "learn_top"))
