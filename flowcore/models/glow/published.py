"""Published Glows: what they have in common, and the programs of OpenAI, rosinality, y0ast and chaiyujin.

All of them are ``models.glow`` with different settings, and a function per program says where every tensor is.
Conversions only reorder and change signs, so that nothing is rounded. In our order the rows of a coupling's last
convolution and of a prior alternate: shift, raw scale, ...; mean, log-deviation, ...
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model_file import build_on_meta
from ..source import (
    MIT_PROGRAM,
    UNTRAINED,
    Check,
    Checkpoint,
    Layout,
    Origin,
    Source,
    alternate_swapped,
    missing_field_error,
    take,
    take_actnorm,
    take_all,
    take_conv,
    take_zero_conv,
    unchanged,
)
from .model import GlowConfig

# Fields that programs fix, mostly at our defaults. They count as detected, so that no override may contradict them.
FIXED_NAMES = ("edge", "network", "actnorm", "scaled", "split_prior", "last_mixing", "learned_top", "classes")
FIXED_FIELDS = {name: getattr(GlowConfig(), name) for name in FIXED_NAMES}

# Errors of checks.
NOT_ZERO = (
    "is expected to be zero, because the top prior is computed from it, and is not. The file is of a changed program, "
    "which is not supported."
)
CHANGED = "is not what the program makes of it. The file is damaged, or of a changed program, which is not supported."


# --- what they have in common -----------------------------------------------------------------------------------------


def steps_of(config: GlowConfig) -> Iterator[tuple[int, int, str]]:
    """List the level of each step, 0 for the finest; its number there, in data-to-latent direction; and our name."""
    for level in range(config.levels):
        for k in range(config.steps):
            yield level, k, f"levels.{level}.steps.transforms.{k}.transforms"


def glow_layout(
    config: GlowConfig, origins: Iterable[Origin], *, unused: re.Pattern[str], checks: Sequence[Check] = ()
) -> Layout:
    """Use those origins, of all that a program may have, whose tensors are in this model; reversals are in no file."""
    ours, values = build_on_meta("glow", config).state_dict(), dict[str, Tensor]()
    if config.mixing == "reverse":
        values = {name: torch.arange(len(t)).flip(0) for name, t in ours.items() if name.endswith(".1.order")}
    used = [origin for origin in origins if origin.ours in ours and origin.ours not in values]
    return Layout(architecture="glow", config=config, origins=used, values=values, unused=unused, checks=checks)


def take_lu(ours: str, published: str, names: str) -> Iterator[Origin]:
    """Take a mixing held as LU factors; what its program masks out of the triangles is arbitrary and dropped."""
    permutation, sign, lower, upper, log = names.split()
    yield from take_all(ours, f"{published}.", {"permutation": permutation, "sign": sign, "log_diagonal": log})
    yield take(f"{ours}.lower", f"{published}.{lower}", lambda t: t.tril(-1))
    yield take(f"{ours}.upper", f"{published}.{upper}", lambda t: t.triu(1))


def alternate(t: Tensor) -> Tensor:
    """Reorder rows a0, a1, ..., b0, b1, ... to a0, b0, a1, b1, ..."""
    return torch.stack(t.chunk(2), dim=1).flatten(0, 1)


def check_identity(names: str) -> Check:
    """Check that matrices are the identity."""
    return Check(names, lambda t: torch.equal(t.float(), torch.eye(len(t))), CHANGED)


def check_trained(names: str) -> Check:
    """Check that flags of data-dependent initialization are set."""
    return Check(names, lambda t: bool(t.all()), UNTRAINED)


def first_step(
    checkpoint: Checkpoint, bias: str, hidden: str, last: str, axes: tuple[int, int, int] = (1, 0, 0)
) -> dict[str, Any]:
    """Derive channels, width and coupling from ``axes`` of an actnorm's bias and a coupling's first and last kernel."""
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
        raise missing_field_error(
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


def _from_hwio(t: Tensor) -> Tensor:
    """Reorder a kernel of TensorFlow, (height, width, in, out)."""
    return t.permute(3, 2, 0, 1)


# What else a TensorFlow checkpoint holds: counters, optimizer slots, moving averages of the weights.
TRAINER = re.compile(
    r"global_step|Variable(_\d+)?|adam_t|beta[12]_power|opt(imizer)?/.*|.*/(Adam|Adamax)(_\d+)?"
    r"|.*_adam_(m|v|m1|m2)|.*/ExponentialMovingAverage"
)


def _openai_actnorm(ours: str, published: str) -> Iterator[Origin]:
    return take_all(ours, f"{published}/actnorm_", {"bias": "center/b", "log_scale": "scale/logs"}, torch.flatten)


def _openai_zero_conv(ours: str, published: str) -> Iterator[Origin]:
    yield take(f"{ours}.weight", f"{published}/W", _from_hwio)
    yield from take_all(ours, f"{published}/", {"bias": "b", "log_scale": "logs"}, torch.flatten)


def _openai_origins(config: GlowConfig) -> Iterator[Origin]:
    for level, k, ours in steps_of(config):
        published, network = f"model/{level}/{k}", f"{ours}.2.conditioner"
        yield from _openai_actnorm(f"{ours}.0", published)
        yield take(f"{ours}.1.weight", f"{published}/invconv/W", torch.t)  # it multiplies rows from the right
        yield take(f"{ours}.1.order", f"{published}/shuffle/indices")
        for place in (0, 1):
            hidden, layer = f"{network}.hidden.{place}", f"{published}/f1/l_{place + 1}"
            yield take(f"{hidden}.weight", f"{layer}/W", _from_hwio)
            yield from _openai_actnorm(f"{hidden}.actnorm", layer)
        yield from _openai_zero_conv(f"{network}.last", f"{published}/f1/l_last")
    for level in range(config.levels):
        yield from _openai_zero_conv(f"levels.{level}.split.conditioner", f"model/pool{level}/conv")
    # Means come first, then log-deviations. ``constants`` is a convolution of zeros and, last, the border's flag: only
    # the kernel for the flag is read.
    prior = "top.prior"
    yield take(f"{prior}.constants.weight", "model/prior/p/W", lambda t: alternate(_from_hwio(t)[:, -1:]))
    yield take(f"{prior}.by_label.weight", "model/prior/y_emb/W", lambda t: alternate(t.t()))
    for part, published in (("constants", "model/prior/p/"), ("by_label", "model/prior/y_emb/")):
        names = {"bias": "b", "log_scale": "logs"}
        yield from take_all(f"{prior}.{part}", published, names, lambda t: alternate(t.flatten()))


def _openai_layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    """Convolutions see the border as one more channel, the last; log-scales are stored divided by 3."""
    parts = checkpoint.parts(r"model/\d+/\d+/")
    mixings = {"conv": "invconv/W", "shuffle": "shuffle/indices"}
    detected = {
        **FIXED_FIELDS,
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
    return glow_layout(config, _openai_origins(config), unused=re.compile(unused))


OPENAI = Source(
    name="Glow by OpenAI",
    licence=MIT_PROGRAM,
    detect=re.compile(r"model/\d+/\d+/"),
    layout=_openai_layout,
    integers=re.compile(rf".*/shuffle/indices(_inverse)?|{TRAINER.pattern}"),
    rename=lambda state: {name.removesuffix(":0"): t for name, t in state.items()},  # a variable's only output
)


# --- rosinality/glow-pytorch ------------------------------------------------------------------------------------------

ROSINALITY_STEP = r"blocks\.\d+\.flows\.\d+"


def _rosinality_origins(config: GlowConfig) -> Iterator[Origin]:
    for level, k, ours in steps_of(config):
        published, network = f"blocks.{level}.flows.{k}", f"{ours}.2.conditioner"
        yield take(f"{ours}.0.bias", f"{published}.actnorm.loc", torch.flatten)
        yield take(f"{ours}.0.scale", f"{published}.actnorm.scale", torch.flatten)
        yield take(f"{ours}.1.weight", f"{published}.invconv.weight", lambda t: t.flatten(1))
        yield from take_lu(f"{ours}.1", f"{published}.invconv", "w_p s_sign w_l w_u w_s")
        yield from take_conv(f"{network}.hidden.0", f"{published}.coupling.net.0")
        yield from take_conv(f"{network}.hidden.1", f"{published}.coupling.net.2")
        rows = alternate_swapped if config.coupling == "affine" else unchanged  # published: raw scales first
        yield from _rosinality_zero_conv(f"{network}.last", f"{published}.coupling.net.4", rows)
    for level in range(config.levels):
        yield from _rosinality_zero_conv(f"levels.{level}.split.conditioner", f"blocks.{level}.prior", alternate)
    yield from _rosinality_zero_conv("top.prior.constants", f"blocks.{config.levels - 1}.prior", alternate)


def _rosinality_zero_conv(ours: str, published: str, rows: Callable[[Tensor], Tensor]) -> Iterator[Origin]:
    yield from take_conv(ours, f"{published}.conv", rows)
    yield take(f"{ours}.log_scale", f"{published}.scale", lambda t: rows(t.flatten()))


def _rosinality_layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    """The last level holds LU factors even where the others hold matrices; zero convolutions are padded with ones."""
    first, step = "blocks.0.flows.0", ROSINALITY_STEP
    shape = levels_and_steps(checkpoint, r"blocks\.(\d{1,4})\.flows\.(\d{1,4})\.")
    network = f"{first}.coupling.net"
    mixing = "conv" if "weight" in checkpoint.parts(r"blocks\.0\.flows\.\d+\.invconv\.") else "lu"
    detected = {
        **FIXED_FIELDS,
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
        _rosinality_origins(config),
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
    licence=MIT_PROGRAM,
    detect=re.compile(rf"{ROSINALITY_STEP}\."),
    layout=_rosinality_layout,
    integers=re.compile(r".*\.(initialized|l_mask|u_mask|l_eye)"),
)


# --- y0ast/Glow-PyTorch and chaiyujin/glow-pytorch: one design under two sets of names --------------------------------


class Naming(NamedTuple):
    """Pixel conventions and names in which the two programs differ."""

    network: str  # a coupling's network
    factors: str  # names for ``take_lu``
    top: str  # the learned constants
    conv: str = ""  # path from a convolution with a scale or an actnorm to its kernel
    linear: str = ""  # path from the linear map of labels to its matrix
    grid: str = "bins"
    pixels: str = "centred"


def _y0ast_origins(naming: Naming, config: GlowConfig) -> Iterator[Origin]:
    conv, layers_per_level = naming.conv, config.steps + 2  # a squeeze, the steps, and a split
    for level, k, ours in steps_of(config):
        published, network = f"flow.layers.{level * layers_per_level + 1 + k}", f"{ours}.2.conditioner"
        yield from take_actnorm(f"{ours}.0", f"{published}.actnorm")
        yield take(f"{ours}.1.weight", f"{published}.invconv.weight")
        yield from take_lu(f"{ours}.1", f"{published}.invconv", naming.factors)
        for place in (0, 1):
            hidden, layer = f"{network}.hidden.{place}", f"{published}.{naming.network}.{2 * place}"
            yield take(f"{hidden}.weight", f"{layer}{conv}.weight")
            yield from take_actnorm(f"{hidden}.actnorm", f"{layer}.actnorm")
        yield from take_zero_conv(f"{network}.last", f"{published}.{naming.network}.4", conv)
    for level in range(config.levels):
        split = f"flow.layers.{(level + 1) * layers_per_level - 1}"
        yield from take_zero_conv(f"levels.{level}.split.conditioner", f"{split}.conv", conv)
    # Means in the first half of the rows, log-deviations in the second.
    yield take("top.prior.constants.bias", f"{naming.top}{conv}.bias", alternate)
    yield take("top.prior.constants.log_scale", f"{naming.top}.logs", lambda t: alternate(t.flatten()))
    yield from take_conv("top.prior.by_label", f"project_ycond{naming.linear}", alternate)
    yield take("top.prior.by_label.log_scale", "project_ycond.logs", alternate)


def _y0ast_layout(naming: Naming, checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    sequence = checkpoint.layers(r"flow\.layers\.(\d{1,4})\.(conv\.)?", {"conv.": "d"})
    levels, steps, _ = checkpoint.count_levels(sequence, undivided=1, needed="p")
    network, conv = f"flow.layers.1.{naming.network}", naming.conv
    detected: dict[str, Any] = {
        "levels": levels,
        "steps": steps,
        **first_step(
            checkpoint, "flow.layers.1.actnorm.bias", f"{network}.0{conv}.weight", f"{network}.4{conv}.weight"
        ),
        **FIXED_FIELDS,
        "learned_top": checkpoint.has(rf"{naming.top}\."),
    }
    if checkpoint.has(r"project_ycond\."):
        detected["classes"] = checkpoint.shape(f"project_ycond{naming.linear}.weight", 2)[1]
    if mixing := checkpoint.parts(r"flow\.layers\.\d+\.invconv\."):
        detected["mixing"] = "conv" if "weight" in mixing else "lu"
    elif overrides.get("mixing") != "reverse":
        raise missing_field_error(
            "mixing",
            "this network has no 1x1 convolutions, and no tensor tells its flow_permutation. A network that was "
            'trained with "shuffle" cannot be read, since its program does not save the order of the channels.',
            '"reverse"',
            "reverse",
            "gives noise for pictures",
        )
    if "prior_h" in checkpoint.shapes:
        detected["image_size"] = tuple(side * 2**levels for side in checkpoint.shape("prior_h", 4)[2:])
    defaults = {"n_bits": 8, "grid": naming.grid, "pixels": naming.pixels}
    config = checkpoint.config("glow", detected, defaults, overrides)
    # Zero padding makes the top prior's convolution of zeros a constant, so its kernel is never read.
    unused = rf"prior_h|project_class\..*|{naming.top}{re.escape(conv)}\.weight"
    return glow_layout(
        config,
        _y0ast_origins(naming, config),
        unused=re.compile(unused),
        checks=(Check("prior_h", lambda t: not bool(t.any()), NOT_ZERO),),
    )


def _y0ast_source(name: str, naming: Naming) -> Source:
    return Source(
        name=name,
        licence=MIT_PROGRAM,
        detect=re.compile(rf"flow\.layers\.\d+\.{naming.network}\."),
        layout=partial(_y0ast_layout, naming),
    )


Y0AST = _y0ast_source(
    "Glow by y0ast",
    Naming(network="block", factors="p sign_s lower upper log_s", top="learn_top_fn", conv=".conv", linear=".linear"),
)
CHAIYUJIN = _y0ast_source(
    "Glow by chaiyujin",
    Naming(network="f", factors="p sign_s l u log_s", top="learn_top", grid="levels", pixels="unit"),
)
