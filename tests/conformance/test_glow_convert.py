"""Published Glows and Real NVPs: every layout is recognised and means the same, and what is not one is refused.

``Theirs`` below is a second implementation of the five Glow programs: it reads a state dict under its published names,
and shares no code with flowcore. It is itself held against the recorded numbers first. The layouts are the published
ones, made smaller.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowcore import likelihood
from flowcore.checkpoints import load
from flowcore.checkpoints.sources import CHAIYUJIN, CHRISCHUTE, NORMFLOWS, OPENAI, ROSINALITY, SOURCES, Y0AST
from flowcore.checkpoints.sources.normflows import normflows_layout
from flowcore.checkpoints.sources.openai import openai_layout
from flowcore.checkpoints.sources.realnvp import realnvp_layout
from flowcore.checkpoints.sources.rosinality import rosinality_layout
from flowcore.checkpoints.sources.y0ast import CHAIYUJIN_NAMES, Y0AST_NAMES, layers_layout
from flowcore.errors import CheckpointError
from flowcore.models.glow import GlowConfig
from flowcore.models.realnvp import RealNVPConfig

from .test_glow import RECORDED, weights_of

KEYS: dict[str, dict[str, tuple[list[int], str]]] = json.loads(
    gzip.decompress((RECORDED / "keys.json.gz").read_bytes())
)
FOREIGN = {"tarflow_afhq256": "TarFlow", "jet_pytorch_imagenet64_200m": "Jet"}


def refusal(action: Callable, *arguments, **overrides) -> str:
    with pytest.raises(CheckpointError) as caught:
        action(*arguments, **overrides)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


# --- the second implementation ----------------------------------------------------------------------------------------


def conv(x: Tensor, weight: Tensor, bias: Tensor | float = 0.0, around: float = 0.0) -> Tensor:
    pad = weight.shape[-1] // 2
    return F.conv2d(F.pad(x, (pad,) * 4, value=around), weight) + bias


class Layers:
    """y0ast and chaiyujin."""

    def __init__(self, state: dict[str, Tensor], orders: list[list[int]] | None = None) -> None:
        self.state, self.orders = state, orders
        numbers = {int(m[1]) for name in state if (m := re.match(r"flow\.layers\.(\d+)\.actnorm", name))}
        self.levels = sum(number - 1 not in numbers for number in numbers)  # each starts with a gap
        self.steps = len(numbers) // self.levels
        self.chaiyujin = any(".f.0." in name for name in state)
        self.centre = 0.0 if self.chaiyujin else 0.5

    def get(self, *names: str) -> Tensor:
        return next(self.state[name] for name in names if name in self.state)

    def layer(self, level: int, k: int) -> str:
        return f"flow.layers.{level * (self.steps + 2) + 1 + k}"

    def actnorm(self, level: int, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        name = f"{self.layer(level, k)}.actnorm"
        return (x + self.state[f"{name}.bias"]) * self.state[f"{name}.logs"].exp(), self.state[f"{name}.logs"].sum()

    def matrix(self, level: int, k: int, channels: int) -> Tensor:
        name = f"{self.layer(level, k)}.invconv"
        if f"{name}.weight" in self.state:
            return self.state[f"{name}.weight"]
        if f"{name}.p" in self.state:
            lower, upper = self.get(f"{name}.lower", f"{name}.l"), self.get(f"{name}.upper", f"{name}.u")
            return lu(self.state[f"{name}.p"], lower, upper, self.state[f"{name}.sign_s"], self.state[f"{name}.log_s"])
        if self.orders is None:
            return torch.eye(channels).double().flip(0)
        return torch.eye(channels).double()[self.orders[level * self.steps + k]]

    def zero_conv(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.get(f"{name}.conv.weight", f"{name}.weight"), self.get(f"{name}.conv.bias", f"{name}.bias")
        return conv(x, weight, bias[:, None, None]) * (3 * self.state[f"{name}.logs"]).exp()

    def network(self, level: int, k: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        name = self.layer(level, k) + (".f" if self.chaiyujin else ".block")
        for n in (0, 2):
            x = conv(x, self.get(f"{name}.{n}.conv.weight", f"{name}.{n}.weight"))
            x = (x + self.state[f"{name}.{n}.actnorm.bias"]) * self.state[f"{name}.{n}.actnorm.logs"].exp()
            x = x.clamp(min=0)
        return in_turn(self.zero_conv(x, f"{name}.4"), x, self.state[f"{self.layer(level, k)}.actnorm.bias"].shape[1])

    def split(self, level: int, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        raw = self.zero_conv(x, f"{self.layer(level, self.steps)}.conv")
        return raw[:, 0::2], raw[:, 1::2]

    def top(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        raw = torch.cat([torch.zeros_like(x)] * 2, 1)
        name = "learn_top" if self.chaiyujin else "learn_top_fn"
        if f"{name}.logs" in self.state:
            raw = self.zero_conv(raw, name)
        if y is not None:
            weight = self.get("project_ycond.linear.weight", "project_ycond.weight")
            bias = self.get("project_ycond.linear.bias", "project_ycond.bias")
            raw = raw + ((y @ weight.T + bias) * (3 * self.state["project_ycond.logs"]).exp())[:, :, None, None]
        return raw.chunk(2, 1)


def lu(p: Tensor, lower: Tensor, upper: Tensor, sign: Tensor, log: Tensor) -> Tensor:
    """Element by element, so that nothing masked can slip in."""
    n = len(p)
    left, right = torch.zeros_like(lower), torch.zeros_like(upper)
    for i in range(n):
        left[i, i], right[i, i] = 1, sign[i] * log[i].exp()
        left[i, :i], right[i, i + 1 :] = lower[i, :i], upper[i, i + 1 :]
    return p @ left @ right


def in_turn(raw: Tensor, like: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Shift and scale from alternating channels; no scale in additive couplings."""
    if raw.shape[1] < channels:
        return raw, None
    return raw[:, 0::2], 1 / (1 + torch.exp(-(raw[:, 1::2] + 2)))


class Rosinality:
    """Ones around the border; halves, raw scales first."""

    centre = 0.5

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name.removeprefix("module."): t for name, t in state.items()}
        pairs = {m.groups() for name in self.state if (m := re.match(r"blocks\.(\d+)\.flows\.(\d+)\.", name))}
        self.levels, self.steps = (1 + max(int(pair[i]) for pair in pairs) for i in (0, 1))

    def actnorm(self, level: int, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        name = f"blocks.{level}.flows.{k}.actnorm"
        scale = self.state[f"{name}.scale"]
        return (x + self.state[f"{name}.loc"]) * scale, scale.abs().log().sum()

    def matrix(self, level: int, k: int, channels: int) -> Tensor:
        name = f"blocks.{level}.flows.{k}.invconv"
        if f"{name}.weight" in self.state:
            return self.state[f"{name}.weight"][:, :, 0, 0]
        return lu(*(self.state[f"{name}.{part}"] for part in ("w_p", "w_l", "w_u", "s_sign", "w_s")))

    def zero_conv(self, x: Tensor, name: str) -> Tensor:
        bias = self.state[f"{name}.conv.bias"][:, None, None]
        return conv(x, self.state[f"{name}.conv.weight"], bias, 1.0) * (3 * self.state[f"{name}.scale"]).exp()

    def network(self, level: int, k: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        name, half = f"blocks.{level}.flows.{k}.coupling.net", x.shape[1]
        for n in (0, 2):
            x = conv(x, self.state[f"{name}.{n}.weight"], self.state[f"{name}.{n}.bias"][:, None, None]).clamp(min=0)
        raw = self.zero_conv(x, f"{name}.4")
        return (raw, None) if raw.shape[1] == half else (raw[:, half:], torch.sigmoid(raw[:, :half] + 2))

    def split(self, level: int, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.zero_conv(x, f"blocks.{level}.prior").chunk(2, 1)

    def top(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.split(self.levels - 1, torch.zeros_like(x), y)


class OpenAI:
    """A channel that is 1 around the border; log-scales times 3; kernels (height, width, in, out)."""

    centre = 0.5

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        pairs = {m.groups() for name in state if (m := re.match(r"model/(\d+)/(\d+)/", name))}
        self.levels, self.steps = (1 + max(int(pair[i]) for pair in pairs) for i in (0, 1))

    def normalise(self, x: Tensor, name: str) -> Tensor:
        bias, logs = self.state[f"{name}/actnorm_center/b"], self.state[f"{name}/actnorm_scale/logs"]
        return (x + bias.reshape(-1, 1, 1)) * (3 * logs.reshape(-1, 1, 1)).exp()

    def actnorm(self, level: int, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.normalise(x, f"model/{level}/{k}"), 3 * self.state[f"model/{level}/{k}/actnorm_scale/logs"].sum()

    def matrix(self, level: int, k: int, channels: int) -> Tensor:
        name = f"model/{level}/{k}"
        if f"{name}/invconv/W" in self.state:
            return self.state[f"{name}/invconv/W"].T
        if f"{name}/shuffle/indices" in self.state:
            return torch.eye(channels).double()[self.state[f"{name}/shuffle/indices"].long()]
        return torch.eye(channels).double().flip(0)

    def conv(self, x: Tensor, kernel: Tensor) -> Tensor:
        """By hand: a sum over the kernel's positions of matrix products."""
        height, width = x.shape[2:]
        side = kernel.shape[0]
        if side > 1:
            outside = torch.ones(x.shape[0], 1, height + 2, width + 2).double()
            outside[:, :, 1:-1, 1:-1] = 0
            x = torch.cat([F.pad(x, (1, 1, 1, 1)), outside], 1)
        windows = [(i, j, x[:, :, i : i + height, j : j + width]) for i in range(side) for j in range(side)]
        return sum(torch.einsum("bchw,co->bohw", window, kernel[i, j]) for i, j, window in windows)

    def zero_conv(self, x: Tensor, name: str) -> Tensor:
        x = self.conv(x, self.state[f"{name}/W"]) + self.state[f"{name}/b"].reshape(-1, 1, 1)
        return x * (3 * self.state[f"{name}/logs"].reshape(-1, 1, 1)).exp()

    def network(self, level: int, k: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        name, half = f"model/{level}/{k}/f1", x.shape[1]
        for part in ("l_1", "l_2"):
            x = self.normalise(self.conv(x, self.state[f"{name}/{part}/W"]), f"{name}/{part}").clamp(min=0)
        return in_turn(self.zero_conv(x, f"{name}/l_last"), x, 2 * half)

    def split(self, level: int, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        raw = self.zero_conv(x, f"model/pool{level}/conv")
        return raw[:, 0::2], raw[:, 1::2]

    def top(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        raw = torch.cat([torch.zeros_like(x)] * 2, 1)
        if "model/prior/p/W" in self.state:
            raw = self.zero_conv(raw, "model/prior/p")
        if y is not None:
            weight, bias, logs = (self.state[f"model/prior/y_emb/{part}"] for part in ("W", "b", "logs"))
            raw = raw + ((y @ weight + bias) * (3 * logs).exp())[:, :, None, None]
        return raw.chunk(2, 1)


class Normflows:
    """Written from latent to image: deepest first, last step first."""

    centre = 0.0

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        pairs = {m.groups() for name in state if (m := re.match(r"flows\.(\d+)\.(\d+)\.", name))}
        self.levels, self.steps = (1 + max(int(pair[i]) for pair in pairs) for i in (0, 1))

    def block(self, level: int, k: int) -> str:
        return f"flows.{self.levels - 1 - level}.{self.steps - 1 - k}.flows"

    def actnorm(self, level: int, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = (self.state[f"{self.block(level, k)}.2.{part}"] for part in "st")
        return (x - t) / s.exp(), -s.sum()

    def matrix(self, level: int, k: int, channels: int) -> Tensor:
        name = f"{self.block(level, k)}.1"
        if f"{name}.W" in self.state:
            return self.state[f"{name}.W"]
        return lu(*(self.state[f"{name}.{part}"] for part in ("P", "L", "U", "sign_S", "log_S")))

    def network(self, level: int, k: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        name, half = f"{self.block(level, k)}.0.flows.1.param_map.net", x.shape[1]
        for n in (0, 2, 4):
            x = conv(x, self.state[f"{name}.{n}.weight"], self.state[f"{name}.{n}.bias"][:, None, None])
            x = x if n == 4 else x.clamp(min=0)
        shift, scale = in_turn(x, x, 2 * half)
        return -shift, scale

    def split(self, level: int, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        name = f"q0.{self.levels - 1 - level}"
        loc, log_scale = self.state[f"{name}.loc"], self.state[f"{name}.log_scale"]
        if f"{name}.loc_logs" in self.state:
            loc = loc * (3 * self.state[f"{name}.loc_logs"]).exp()
            log_scale = log_scale * (3 * self.state[f"{name}.log_scale_logs"]).exp()
            if y is not None:
                loc = loc + (y @ self.state[f"{name}.loc_cc"])[:, :, None, None]
                log_scale = log_scale + (y @ self.state[f"{name}.log_scale_cc"])[:, :, None, None]
        elif y is not None:
            loc, log_scale = (torch.einsum("chwk,bk->bchw", t, y) for t in (loc, log_scale))
        return loc, log_scale

    def top(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.split(self.levels - 1, x, y)


PROGRAMS = {Y0AST: Layers, CHAIYUJIN: Layers, ROSINALITY: Rosinality, OPENAI: OpenAI, NORMFLOWS: Normflows}


def encode(theirs, x: Tensor, y: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
    """Whitened latents, finest first, and the log density of x in [0, 1]."""
    x = x - theirs.centre
    latents, log_prob = [], torch.zeros(len(x)).double()

    def whiten(raw: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        z = (raw - mean) / log_std.exp()
        latents.append(z)
        return -(0.5 * z**2 + 0.5 * math.log(2 * math.pi) + log_std).sum((1, 2, 3))

    for level in range(theirs.levels):
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        for k in range(theirs.steps):
            x, change = theirs.actnorm(level, k, x)
            matrix = theirs.matrix(level, k, 4 * c)
            x = torch.einsum("oc,bchw->bohw", matrix, x)
            log_prob = log_prob + h * w / 4 * (change + matrix.det().abs().log())
            x1, x2 = x[:, : 2 * c], x[:, 2 * c :]
            shift, scale = theirs.network(level, k, x1)
            x2 = x2 + shift if scale is None else (x2 + shift) * scale
            log_prob = log_prob + (0 if scale is None else scale.log().sum((1, 2, 3)))
            x = torch.cat([x1, x2], 1)
        if level < theirs.levels - 1:
            x, gone = x[:, : 2 * c], x[:, 2 * c :]
            log_prob = log_prob + whiten(gone, *theirs.split(level, x, y))
    return latents, log_prob + whiten(x, *theirs.top(x, y))


def of_file(state: dict[str, Tensor]):
    """The source that a state dict is of."""
    bare = {name.removeprefix("module."): tuple(t.shape) for name, t in state.items()}
    found = [source for source in SOURCES if source.detect(bare)]
    assert len(found) == 1
    return found[0]


def second(state: dict[str, Tensor], **arguments):
    doubled = {name: t.double() if t.is_floating_point() else t for name, t in state.items()}
    return PROGRAMS[of_file(state)](doubled, **arguments)


RECORDED_BITS = {
    "y0ast_affine_lu_learntop": 1e-9,
    "y0ast_additive_nolu_ycond": 1e-9,
    "y0ast_affine_shuffle": 1e-9,
    "chaiyujin_affine_nolu": 1e-9,
    "rosinality_affine_lu_5bit": 1e-9,
    "rosinality_affine_nolu_8bit": 1e-8,
    "openai_affine_1x1_learntop_8bit": 2e-5,
    "normflows_glow_classcond_lu": 1e-9,
    "normflows_glowbase_additive_plain": 1e-9,
    "normflows_diagonal_grey": 1e-9,
}


@torch.no_grad()
@pytest.mark.parametrize("case", RECORDED_BITS)
def test_the_second_implementation_is_the_published_one(case):
    state, io = weights_of(case), load_file(RECORDED / f"{case}_io.safetensors")
    io = {k.removesuffix("_nhwc"): t.permute(0, 3, 1, 2) if k.endswith("_nhwc") else t for k, t in io.items()}
    n_bits = 5 if "5bit" in case else 8
    pixels = torch.floor(io["x_uint8"].double() / 2 ** (8 - n_bits))
    x = (
        pixels / 255 + io["noise_normal01"].double() / 256
        if "chaiyujin" in case
        else (pixels + io["u01"].double()) / 2**n_bits
    )
    y = io["y_onehot"].double() if "y_onehot" in io else None
    if "y" in io:
        classes = 3 if "glowbase" in case else 10
        y = F.one_hot(io["y"].long(), classes).double()
    arguments = {}
    if "shuffle" in case:
        indices = [name for name in state if name.endswith("shuffle.indices")]
        indices.sort(key=lambda name: int(name.split(".")[3]))
        arguments["orders"] = [state[name].tolist() for name in indices]
    log_prob = encode(second(state, **arguments), x, y)[1]
    bits = -log_prob / (x[0].numel() * math.log(2)) + n_bits
    assert (bits - io.get("bpd_f64", io.get("bpd_f32"))).abs().max() < RECORDED_BITS[case]


# --- published layouts, made smaller ----------------------------------------------------------------------------------


def shrunk(configuration: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """The first two steps of every level of a published configuration, with networks of width 6."""
    result = {}
    for name, (shape, dtype) in KEYS[configuration].items():
        if m := re.match(r"flow\.layers\.(\d+)\.(.*)", name):
            level, place = divmod(int(m[1]), 34)  # all of these have 32 steps
            if place not in (1, 2, 33):
                continue
            name = f"flow.layers.{4 * level + min(place, 3)}.{m[2]}"
        elif (m := re.match(r"(?:blocks\.\d+\.flows\.|model/\d+/|flows\.\d+\.)(\d+)[./]", name)) and int(m[1]) > 1:
            continue
        result[name] = (tuple({512: 6, 513: 7, 256: 6}.get(side, side) for side in shape), dtype)
    return result


def random_state(shapes: dict[str, tuple[tuple[int, ...], str]], seed: int = 0) -> dict[str, Tensor]:
    """Numbers that make every tensor matter, with junk where programs leave it."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, (shape, _) in shapes.items():
        last = re.split(r"[./]", name)[-1]
        noise = torch.randn(shape, generator=generator)
        if name == "prior_h":
            state[name] = torch.zeros(shape)
        elif last in ("p", "w_p", "P"):
            state[name] = torch.eye(shape[0])[torch.randperm(shape[0], generator=generator)]
        elif last in ("sign_s", "s_sign", "sign_S"):
            state[name] = noise.sign()
        elif last == "initialized":
            state[name] = torch.tensor(1, dtype=torch.uint8)
        elif last == "data_dep_init_done":
            state[name] = torch.tensor(1.0)
        elif last in ("l_mask", "u_mask"):
            state[name] = torch.ones(shape).tril(-1) if last == "l_mask" else torch.ones(shape).triu(1)
        elif last in ("l_eye", "eye"):
            state[name] = torch.eye(shape[0])
        elif last == "indices":
            state[name] = torch.randperm(shape[0], generator=generator).int()
        elif last == "indices_inverse":
            state[name] = state[name.removesuffix("_inverse")].argsort().int()
        elif name.endswith(("invconv.weight", "invconv/W")):
            state[name] = (torch.eye(shape[0]) + 0.1 * noise.reshape(shape[:2])).reshape(shape)
        elif name.endswith("actnorm.scale"):
            state[name] = noise.sign() * (1 + 0.1 * noise)
        else:
            rows = max(1, noise.numel() // max(shape))  # of a kernel or a matrix: numbers that one output adds up
            state[name] = (0.05 if "log" in last or last in ("s", "w_s", "scale") else 0.3 / rows**0.5) * noise
    return state


def openai_with_labels() -> dict[str, tuple[tuple[int, ...], str]]:
    shapes = shrunk("openai_cifar10_abl-1x1-add")
    for name, sides in {
        "prior/y_emb/W": (7, 96), "prior/y_emb/b": (1, 96), "prior/y_emb/logs": (1, 96),
        "classifier/W": (48, 7), "classifier/b": (1, 7), "classifier/logs": (1, 7),
    }.items():  # fmt: skip
        shapes[f"model/{name}"] = (sides, "float32")
    return shapes


def without(shapes: dict, pattern: str) -> dict:
    return {name: value for name, value in shapes.items() if not re.match(pattern, name)}


VARIANTS: dict[str, tuple[Callable[[], dict], dict]] = {
    name: (lambda name=name: shrunk(name), {"n_bits": 8} if name.startswith(("ros", "open")) else {})
    for name in KEYS
    if name not in FOREIGN and not name.startswith("chrischute") and "shuffle" not in name.replace("abl-shuffle", "")
}
VARIANTS["y0ast reversing"] = (lambda: shrunk("y0ast_cifar10_shuffle"), {"mixing": "reverse"})
VARIANTS["openai with labels"] = (openai_with_labels, {"n_bits": 5})
VARIANTS["openai with labels alone"] = (lambda: without(openai_with_labels(), "model/prior/p/"), {"n_bits": 8})
VARIANTS["openai with a standard normal"] = (
    lambda: without(shrunk("openai_lsun64_rnvp"), "model/prior/"),
    {"n_bits": 8},
)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layout_means_what_it_means_to_its_program(variant):
    make, overrides = VARIANTS[variant]
    state = random_state(make())
    flow = of_file(state).convert(state, overrides).double()
    generator = torch.Generator().manual_seed(2)
    multiple = 2**flow.config.levels
    size = flow.image_size if flow.fixed_size else (multiple, 2 * multiple)
    x = torch.rand(2, 3, *size, generator=generator, dtype=torch.float64)
    y, cond = None, None
    if flow.classes:
        y = F.one_hot(torch.tensor([1, flow.classes - 1]), flow.classes).double()
        cond = flow.encode_condition(y)
    theirs, log_prob = encode(second(state), x, y)
    ours, _ = flow(x, cond)
    assert len(ours) == len(theirs) == flow.config.levels
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-9
    assert (likelihood.log_prob(flow, x, cond) - log_prob).abs().max() < 1e-8
    assert log_prob.abs().max() < 1e6  # not so wild that a term could hide
    assert (flow.inverse(theirs, cond) - x).abs().max() < 1e-9


# --- published layouts, in full ---------------------------------------------------------------------------------------

CIFAR = {"levels": 3, "steps": 32, "hidden": 512}
ROSINALITY_ALL = {"edge": "ones", "network": "plain", "actnorm": "signed", "steps": 32, "hidden": 512}
OPENAI_ALL = {**CIFAR, "edge": "flag", "actnorm": "log3", "mixing": "conv"}
NORMFLOWS_ALL = {
    "levels": 3, "mixing": "lu", "network": "plain", "scaled": False, "split_prior": "table", "pixels": "unit",
    "classes": 10, "image_size": 32,
}  # fmt: skip

PUBLISHED: dict[str, tuple[dict, GlowConfig]] = {
    "y0ast_cifar10_published": ({}, GlowConfig(**CIFAR, image_size=(32, 32))),
    "y0ast_cifar10_additive_ycond": ({}, GlowConfig(**CIFAR, image_size=(32, 32), coupling="additive", classes=10)),
    "y0ast_cifar10_noLU_nolearntop": ({}, GlowConfig(**CIFAR, image_size=(32, 32), mixing="conv", learned_top=False)),
    "y0ast_cifar10_shuffle": ({"mixing": "reverse"}, GlowConfig(**CIFAR, image_size=(32, 32), mixing="reverse")),
    "chaiyujin_celeba64_published": (
        {},
        GlowConfig(**CIFAR, image_size=(64, 64), mixing="conv", learned_top=False, pixels="unit", grid="levels"),
    ),
    "chaiyujin_celeba64_LU_learntop_ycond": (
        {},
        GlowConfig(**CIFAR, image_size=(64, 64), classes=40, pixels="unit", grid="levels"),
    ),
    "rosinality_default_64_additive_lu": (
        {"n_bits": 5},
        GlowConfig(**ROSINALITY_ALL, levels=4, coupling="additive", n_bits=5),
    ),
    "rosinality_64_affine_lu": ({"n_bits": 5}, GlowConfig(**ROSINALITY_ALL, levels=4, n_bits=5)),
    "rosinality_64_affine_nolu": (
        {"n_bits": 8, "image_size": 64},
        GlowConfig(**ROSINALITY_ALL, levels=4, mixing="conv", last_mixing="lu", image_size=(64, 64)),
    ),
    "rosinality_cifar_3x32_affine_lu": ({"n_bits": 8}, GlowConfig(**ROSINALITY_ALL, levels=3)),
    "openai_cifar10_abl-1x1-aff": ({"n_bits": 8}, GlowConfig(**OPENAI_ALL)),
    "openai_cifar10_abl-1x1-add": ({"n_bits": 8}, GlowConfig(**{**OPENAI_ALL, "coupling": "additive"})),
    "openai_cifar10_abl-reverse-aff": ({"n_bits": 8}, GlowConfig(**{**OPENAI_ALL, "mixing": "reverse"})),
    "openai_cifar10_abl-shuffle-aff": ({"n_bits": 8}, GlowConfig(**{**OPENAI_ALL, "mixing": "shuffle"})),
    "openai_lsun64_rnvp": ({"n_bits": 8}, GlowConfig(**{**OPENAI_ALL, "steps": 48})),
    "normflows_glow_K32_h512": ({}, GlowConfig(**NORMFLOWS_ALL, steps=32, hidden=512)),
    "normflows_glow_notebook_cifar10": ({}, GlowConfig(**NORMFLOWS_ALL, steps=16, hidden=256)),
}

LAYOUTS: dict[str, Callable] = {
    "y0ast": lambda shapes, overrides: layers_layout(Y0AST_NAMES, shapes, overrides),
    "chaiyujin": lambda shapes, overrides: layers_layout(CHAIYUJIN_NAMES, shapes, overrides),
    "rosinality": rosinality_layout,
    "openai": openai_layout,
    "normflows": normflows_layout,
    "chrischute": lambda shapes, overrides: realnvp_layout(shapes, 0.05, overrides),
}

# What says nothing about the flow, by program; every other published tensor must be used.
UNUSED = {
    "y0ast": r"prior_h|project_class\.(linear\.weight|linear\.bias|logs)|learn_top_fn\.conv\.weight",
    "chaiyujin": r"prior_h|project_class\.(weight|bias|logs)|learn_top\.weight",
    "rosinality": r".*\.(initialized|l_mask|u_mask|l_eye)",
    "openai": r".*/indices_inverse",
    "normflows": r".*\.(data_dep_init_done|eye)",
    "chrischute": r"data_constraint|.*\.num_batches_tracked",
}


def meta(shapes: dict) -> dict[str, Tensor]:
    dtypes = {"float32": torch.float32, "int32": torch.int32, "int64": torch.int64, "uint8": torch.uint8}
    return {k: torch.empty(shape, device="meta", dtype=dtypes[dtype]) for k, (shape, dtype) in shapes.items()}


def test_every_published_configuration_is_looked_at():
    assert len(KEYS) == 20
    assert KEYS.keys() == PUBLISHED.keys() | FOREIGN.keys() | {"chrischute_realnvp_cifar10_published"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_layout_is_recognised(name):
    overrides, expected = PUBLISHED[name]
    state = meta(KEYS[name])
    source = of_file(state)
    flow = source.convert(state, overrides)
    assert flow.config == expected
    assert source.name.lower().endswith(name.split("_")[0])
    for key, t in state.items():  # what the reader of files asks before
        assert t.is_floating_point() or source.whole.fullmatch(key)


def test_the_published_real_nvp_is_recognised():
    state = meta(KEYS["chrischute_realnvp_cifar10_published"])
    state["data_constraint"] = torch.tensor([0.9])
    source = of_file(state)
    flow = source.convert(state, {})
    assert source is CHRISCHUTE
    alpha = (1 - float(torch.tensor(0.9))) / 2
    assert flow.config == RealNVPConfig(batch_norm=False, mask_channel=False, alpha=alpha, hidden=64, blocks=8)
    assert alpha == pytest.approx(0.05, abs=1e-7)


@pytest.mark.parametrize("name", [name for name in KEYS if name not in FOREIGN])
def test_every_tensor_is_used_or_known_to_say_nothing(name):
    program = name.split("_")[0]
    shapes = {key: tuple(shape) for key, (shape, _) in KEYS[name].items()}
    overrides = PUBLISHED[name][0] if name in PUBLISHED else {}
    used = {published for origin in LAYOUTS[program](shapes, overrides).origins for published in origin.names}
    assert used <= shapes.keys()
    assert all(re.fullmatch(UNUSED[program], key) for key in shapes.keys() - used)
    assert not any(re.fullmatch(UNUSED[program], key) for key in used)


@pytest.mark.parametrize("name", FOREIGN)
def test_transformer_flows_are_refused_by_name(tmp_path, name):
    save_file({key: torch.zeros(1) for key in KEYS[name]}, tmp_path / "model.safetensors")
    message = refusal(load, tmp_path / "model.safetensors")
    assert f"They look like {FOREIGN[name]}, a transformer flow" in message
    assert "Supported" in message


def test_real_nvp_of_three_scales():
    shapes = without(shrunk("chrischute_realnvp_cifar10_published"), r"flows\.next_block\.")
    levels = {"flows.": {name: shape for name, (shape, _) in shapes.items() if name.startswith("flows.")}}
    for depth in (1, 2):  # every level is the one before with twice the channels
        prefix = "flows." + "next_block." * depth
        levels[prefix] = {
            name: tuple(2 * side if n < 2 and side > 1 else side for n, side in enumerate(shape))
            for name, shape in levels["flows." + "next_block." * (depth - 1)].items()
        }
    state: dict[str, Tensor] = {"data_constraint": torch.tensor([0.8], dtype=torch.float64)}
    for prefix, level in levels.items():
        for name, shape in level.items():
            if not (prefix.count("next") == 2 and ".out_couplings." in name):
                state[name.replace("flows.", prefix)] = torch.empty(shape, device="meta")
    last = "flows.next_block.next_block.in_couplings."
    state |= {name.replace(".2.", ".3.", 1): t for name, t in state.items() if name.startswith(f"{last}2.")}
    config = CHRISCHUTE.convert(state, {"image_size": (32, 48)}).config
    assert (config.scales, config.channels, config.hidden, config.blocks) == (3, 3, 64, 8)
    assert config.alpha == pytest.approx(0.1, abs=1e-12)
    assert config.image_size == (32, 48)


# --- files ------------------------------------------------------------------------------------------------------------

Y0AST_FILE = "y0ast_affine_lu_learntop"
SMALL = {
    "y0ast": (Y0AST_FILE, {}),
    "chaiyujin": ("chaiyujin_affine_nolu", {}),
    "rosinality": ("rosinality_affine_nolu_8bit", {"n_bits": 8}),
    "openai": ("openai_affine_1x1_learntop_8bit", {"n_bits": 8}),
    "normflows": ("normflows_glow_classcond_lu", {}),
    "chrischute": ("chrischute_realnvp_2scale", {}),
}


def same(a, b) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return a.config == b.config and all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def expected():
    """Every small case, converted as it is."""
    return {
        program: of_file(weights_of(case)).convert(
            {name.removeprefix("module."): t for name, t in weights_of(case).items()}, overrides
        )
        for program, (case, overrides) in SMALL.items()
    }


WRAPPED = {
    "chaiyujin": lambda state: {
        "global_step": 45000,
        "graph": state,
        "optim": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]},
        "criterion": {"y_condition": {}},
    },
    "chrischute": lambda state: {"net": {f"module.{k}": t for k, t in state.items()}, "test_loss": 3.7, "epoch": 99},
    "rosinality": lambda state: {k: t for k, t in state.items() if not k.endswith("initialized")},
    "y0ast": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
    "openai": lambda state: {
        **{f"{k}:0": t for k, t in state.items()},
        **{f"{k}/{slot}": t + 1 for k, t in state.items() for slot in ("Adam", "Adam_1", "ExponentialMovingAverage")},
        "global_step": torch.tensor(7),
        "adam_t": torch.tensor(7.0),
        "Variable_12": torch.ones(2, 2),
        "beta1_power": torch.tensor(0.9),
    },
    "normflows": lambda state: {f"module.{k}": t for k, t in state.items()},
}


@pytest.mark.parametrize("program", SMALL)
def test_files_as_the_programs_write_them(tmp_path, expected, program):
    case, overrides = SMALL[program]
    torch.save(WRAPPED[program](weights_of(case)), tmp_path / "model.pt")
    flow = load(tmp_path / "model.pt", **overrides)
    assert same(flow, expected[program])
    assert program in flow.provenance["source"].lower()
    assert "model.pt" in flow.provenance["source"]
    assert "MIT for the program" in flow.provenance["licence"]
    assert "check the licence of your file" in flow.provenance["licence"]
    assert not flow.training


@pytest.mark.parametrize("program", SMALL)
def test_half_precision_is_widened_and_whole_numbers_may_be_of_any_width(tmp_path, program):
    case, overrides = SMALL[program]
    state = {
        name: t.half() if t.is_floating_point() and not name.endswith("data_constraint") else t.to(torch.int32)
        for name, t in weights_of(case).items()
        if name != "data_constraint"
    }
    state |= {name: t for name, t in weights_of(case).items() if name == "data_constraint"}
    save_file(state, tmp_path / "model.safetensors")
    flow = load(tmp_path / "model.safetensors", **overrides)
    assert {t.dtype for t in flow.state_dict().values()} == {torch.float32}


def test_both_spellings_of_weight_normalisation(expected):
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    state = {
        re.sub(r"weight_[gv]$", lambda m: new[m[0]], name): t for name, t in weights_of(SMALL["chrischute"][0]).items()
    }
    assert any("parametrizations" in name for name in state)
    assert same(CHRISCHUTE.convert(state, {}), expected["chrischute"])
    both = {**state, **weights_of(SMALL["chrischute"][0])}
    assert "is not known" in refusal(CHRISCHUTE.convert, both, {})


def test_the_bound_of_log_scales_has_a_sign():
    """Published as length and direction; of a single number, the direction is its sign, whatever its size."""
    state = weights_of(SMALL["chrischute"][0])
    state["flows.in_couplings.1.rescale.weight_g"] = torch.tensor([0.5, 2.0, -3.0]).reshape(3, 1, 1)
    state["flows.in_couplings.1.rescale.weight_v"] = torch.tensor([-7.0, 0.1, -0.2]).reshape(3, 1, 1)
    rescale = CHRISCHUTE.convert(state, {}).state_dict()["levels.0.steps.transforms.1.conditioner.rescale"]
    assert rescale.tolist() == [-0.5, 2.0, 3.0]


@pytest.mark.parametrize("program", SMALL)
def test_a_damaged_file(tmp_path, program):
    case, overrides = SMALL[program]
    save_file(weights_of(case), tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) - 100])
    assert "truncated or damaged" in refusal(load, tmp_path / "model.safetensors", **overrides)


# --- what no tensor tells ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "seen"),
    [
        ("rosinality", ["3 levels of 2 steps, affine", "5 unless it is told otherwise"]),
        ("openai", ["3 levels of 2 steps, affine", "5 for CelebA-HQ"]),
    ],
)
def test_missing_bits_are_asked_for(tmp_path, program, seen):
    save_file(weights_of(SMALL[program][0]), tmp_path / "model.safetensors")
    message = refusal(load, tmp_path / "model.safetensors")
    assert "the field n_bits is missing" in message
    assert "flowcore.load(..., n_bits=5)" in message
    assert "--set n_bits=5" in message
    assert all(part in message for part in seen)
    assert load(tmp_path / "model.safetensors", n_bits=5).config.n_bits == 5
    assert "n_bits must be" in refusal(load, tmp_path / "model.safetensors", n_bits=9)


@pytest.mark.parametrize("program", ["y0ast", "chaiyujin", "normflows", "chrischute"])
def test_other_programs_have_eight_bits_unless_told(program):
    state = weights_of(SMALL[program][0])
    assert of_file(state).convert(state, {}).config.n_bits == 8
    assert of_file(state).convert(state, {"n_bits": 5}).config.n_bits == 5


def shuffled() -> tuple[dict[str, Tensor], list[list[int]]]:
    """The network whose order is not in its state dict, and the order."""
    state = weights_of("y0ast_affine_shuffle")
    layers = sorted(int(name.split(".")[3]) for name in state if name.startswith("__extra__"))
    orders = [state.pop(f"__extra__.flow.layers.{layer}.shuffle.indices").tolist() for layer in layers]
    return state, orders


def test_missing_permutations_are_asked_for(tmp_path):
    state, orders = shuffled()
    save_file(state, tmp_path / "model.safetensors")
    message = refusal(load, tmp_path / "model.safetensors")
    assert "the field permutations is missing" in message
    assert "6 steps (2 levels of 3)" in message
    assert 'mixing="reverse"' in message
    assert "--set mixing=reverse" in message
    assert "flowcore.load(..., permutations=[[3, 0, ...], ...])" in message
    assert "--set permutations='[[3,0,...],...]'" in message
    given = load(tmp_path / "model.safetensors", permutations=orders)
    assert same(given, Y0AST.convert(weights_of("y0ast_affine_shuffle"), {}))
    assert given.config.mixing == "shuffle"
    assert same(load(tmp_path / "model.safetensors", permutations=tuple(map(tuple, orders))), given)
    reverse = load(tmp_path / "model.safetensors", mixing="reverse")
    for name, t in reverse.state_dict().items():
        if name.endswith(".order"):
            assert t.tolist() == list(range(len(t)))[::-1]


def test_permutations_may_be_saved_without_a_mark_and_given_ones_go_first():
    state, orders = shuffled()
    layers = [1, 2, 3, 6, 7, 8]
    saved = {f"flow.layers.{layer}.shuffle.indices": torch.tensor(o) for layer, o in zip(layers, orders, strict=True)}
    expected = Y0AST.convert(state, {"permutations": orders})
    assert same(Y0AST.convert({**state, **saved}, {}), expected)
    other = [order[::-1] for order in orders]
    given = Y0AST.convert({**state, **saved}, {"permutations": other})
    assert same(given, Y0AST.convert(state, {"permutations": other}))
    assert not same(given, expected)


def wrong_permutations():
    """What is given, and what is said."""
    orders = shuffled()[1]
    yield orders[:-1], "6 lists of indices, one for each of 3 steps on 2 levels, finest level first; got 5"
    yield 7, "got 7"
    yield [*orders[:-1], orders[0]], "permutations[5], of step 2 on level 1, must list each of 0 to 23 once"
    yield [[0] * 12, *orders[1:]], "permutations[0], of step 0 on level 0, must list each of 0 to 11 once"
    yield [[float(i) for i in orders[0]], *orders[1:]], "permutations[0]"
    yield "abcdef", "permutations[0]"


@pytest.mark.parametrize(("given", "says"), list(wrong_permutations()))
def test_wrong_permutations(given, says):
    assert says in refusal(Y0AST.convert, shuffled()[0], {"permutations": given})


def test_sizes_of_bases_without_pixels_are_asked_for():
    state = weights_of("normflows_glowbase_additive_plain")
    message = refusal(NORMFLOWS.convert, state, {})
    assert "the field image_size is missing" in message
    assert "GlowBase" in message
    assert "--set image_size=32" in message
    assert NORMFLOWS.convert(state, {"image_size": 16}).image_size == (16, 16)
    assert "multiples of 4" in refusal_of_any(NORMFLOWS.convert, state, {"image_size": 10})


def refusal_of_any(action: Callable, *arguments) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        action(*arguments)
    return str(caught.value)


# --- what contradicts the file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "overrides", "tells"),
    [
        ("y0ast", {"levels": 4}, "levels=3"),
        ("y0ast", {"coupling": "additive"}, "coupling='affine'"),
        ("y0ast", {"mixing": "conv"}, "mixing='lu'"),
        ("y0ast", {"image_size": 64}, "image_size=(32, 32)"),
        ("chaiyujin", {"learned_top": True}, "learned_top=False"),
        ("rosinality", {"last_mixing": ""}, "last_mixing='lu'"),
        ("rosinality", {"edge": "zeros"}, "edge='ones'"),
        ("openai", {"hidden": 512}, "hidden=24"),
        ("openai", {"classes": 10}, "classes=0"),
        ("normflows", {"image_size": (32, 64)}, "image_size=(32, 32)"),
        ("chrischute", {"scales": 3}, "scales=2"),
        ("chrischute", {"batch_norm": True}, "batch_norm=False"),
    ],
)
def test_a_field_that_contradicts_the_file(program, overrides, tells):
    case, needed = SMALL[program]
    state = {name.removeprefix("module."): t for name, t in weights_of(case).items()}
    message = refusal(of_file(state).convert, state, {**needed, **overrides})
    (name,) = overrides
    assert f"{name}={overrides[name]!r} was given" in message
    assert f"tell {tells}. Leave it out" in message


def test_fields_that_agree_with_the_file_or_that_it_does_not_tell():
    state = weights_of(Y0AST_FILE)
    config = Y0AST.convert(state, {"levels": 3, "image_size": 32, "pixels": "unit", "grid": "levels"}).config
    assert (config.levels, config.image_size, config.pixels, config.grid) == (3, (32, 32), "unit", "levels")


def test_fields_that_are_not_known_or_ask_for_more():
    state = weights_of(Y0AST_FILE)
    assert "'nbits'" in refusal(Y0AST.convert, state, {"nbits": 8})
    assert "no checkpoint of Glow by y0ast has" in refusal(Y0AST.convert, state, {"dequantizer_steps": 2})
    assert "permutations are given" in refusal(Y0AST.convert, state, {"permutations": [[0]]})
    rosinality = {name.removeprefix("module."): t for name, t in weights_of(SMALL["rosinality"][0]).items()}
    assert "'permutations'" in refusal(ROSINALITY.convert, rosinality, {"n_bits": 8, "permutations": []})


# --- tensors that do not fit ------------------------------------------------------------------------------------------

SOME = {
    "y0ast": [
        "flow.layers.1.actnorm.bias", "flow.layers.2.invconv.upper", "flow.layers.1.block.0.conv.weight",
        "flow.layers.3.block.4.logs", "flow.layers.4.conv.conv.bias", "learn_top_fn.logs",
    ],
    "chaiyujin": ["flow.layers.1.invconv.weight", "flow.layers.2.f.2.actnorm.logs", "flow.layers.1.f.4.weight"],
    "rosinality": [
        "blocks.0.flows.0.actnorm.loc", "blocks.0.flows.0.invconv.weight", "blocks.2.flows.1.invconv.w_p",
        "blocks.1.flows.0.coupling.net.4.scale", "blocks.2.prior.conv.weight",
    ],
    "openai": [
        "model/0/0/actnorm_center/b", "model/0/0/invconv/W", "model/1/1/f1/l_last/b", "model/pool1/conv/logs",
        "model/prior/p/b",
    ],
    "normflows": [
        "flows.0.1.flows.2.t", "flows.1.0.flows.1.log_S", "q0.1.loc",
        "flows.2.1.flows.0.flows.1.param_map.net.0.bias",
    ],
    "chrischute": [
        "flows.in_couplings.0.rescale.weight_v", "flows.in_couplings.0.st_net.in_norm.weight", "data_constraint",
        "flows.next_block.in_couplings.3.st_net.blocks.1.out_norm.running_var",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("program", "name"), [(program, name) for program, names in SOME.items() for name in names])
def test_a_missing_or_misshapen_tensor_is_named(program, name):
    case, overrides = SMALL[program]
    state = {key.removeprefix("module."): t for key, t in weights_of(case).items()}
    assert name in state
    source = of_file(state)
    message = refusal(source.convert, {key: t for key, t in state.items() if key != name}, overrides)
    assert name in message
    message = refusal(source.convert, {**state, name: torch.ones(5, 5, 5)}, overrides)
    assert name in message
    assert "(5, 5, 5)" in message or name == "data_constraint"


@pytest.mark.parametrize("program", SMALL)
def test_an_unknown_tensor_is_named(program):
    case, overrides = SMALL[program]
    state = {key.removeprefix("module."): t for key, t in weights_of(case).items()}
    message = refusal(of_file(state).convert, {**state, "extra.weight": torch.ones(2)}, overrides)
    assert "extra.weight is not known" in message


@pytest.mark.parametrize("program", SMALL)
@pytest.mark.parametrize("tensor", [torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)])
def test_whole_numbers_where_weights_belong(tmp_path, program, tensor):
    case, overrides = SMALL[program]
    state = weights_of(case)
    name = next(key for key, t in state.items() if t.is_floating_point() and key.endswith(("bias", "/b", ".t")))
    save_file({**state, name: tensor}, tmp_path / "model.safetensors")
    message = refusal(load, tmp_path / "model.safetensors", **overrides)
    assert name.removeprefix("module.") in message
    assert "expected plain floating point" in message


def test_odd_tensors_where_whole_numbers_belong(tmp_path):
    state = weights_of("y0ast_affine_shuffle")
    name = "__extra__.flow.layers.1.shuffle.indices"
    for odd in (state[name].to_sparse(), state[name].to(torch.complex64)):
        torch.save({**state, name: odd}, tmp_path / "model.pt")
        message = refusal(load, tmp_path / "model.pt")
        assert name in message
        assert "expected plain whole numbers" in message


NOT_AS_MADE = "is not what the program makes of it"
CHANGED = {
    "prior_h": ("y0ast", lambda t: t + 1e-3, "is expected to be zero"),
    "blocks.1.flows.1.actnorm.initialized": ("rosinality", lambda t: t * 0, "was never initialised"),
    "flows.1.1.flows.2.data_dep_init_done": ("normflows", lambda t: t * 0, "was never initialised"),
    "blocks.2.flows.0.invconv.l_mask": (
        "rosinality",
        lambda t: t.T.contiguous(),
        "is not what the program makes of it",
    ),
    "blocks.2.flows.0.invconv.u_mask": ("rosinality", lambda t: t * 2, NOT_AS_MADE),
    "blocks.2.flows.0.invconv.l_eye": ("rosinality", lambda t: t * 0, NOT_AS_MADE),
    "flows.0.0.flows.1.eye": ("normflows", lambda t: t + 1, NOT_AS_MADE),
}


@pytest.mark.parametrize("name", CHANGED)
def test_tensors_that_would_matter_if_they_were_not_as_usual(name):
    program, change, says = CHANGED[name]
    case, overrides = SMALL[program]
    state = {key.removeprefix("module."): t for key, t in weights_of(case).items()}
    message = refusal(of_file(state).convert, {**state, name: change(state[name])}, overrides)
    assert message.startswith(name)
    assert says in message


def test_indices_that_are_no_permutation():
    state = weights_of("y0ast_affine_shuffle")
    name = "__extra__.flow.layers.6.shuffle.indices"
    message = refusal(Y0AST.convert, {**state, name: torch.zeros(24, dtype=torch.int64)}, {})
    assert f"{name} is no permutation" in message
    shapes = shrunk("openai_cifar10_abl-shuffle-aff")
    state = random_state(shapes)
    state["model/0/1/shuffle/indices"] = state["model/0/1/shuffle/indices"] + 1
    assert "model/0/1/shuffle/indices is no permutation" in refusal(OPENAI.convert, state, {"n_bits": 8})


# --- variants that are not supported, and hostile names ---------------------------------------------------------------


def test_variants_of_normflows():
    state = weights_of("normflows_glow_classcond_lu")
    actnorm = "flows.0.0.flows.0.flows.1.param_map.net.1.actNorm.s"
    assert "net_actnorm" in refusal(NORMFLOWS.convert, {**state, actnorm: torch.ones(1, 24, 1, 1)}, {})
    affine = {k.replace("q0.0.loc", "q0.0.transform.s"): t for k, t in state.items()}
    message = refusal(NORMFLOWS.convert, affine, {})
    assert "q0.0 has log_scale, transform.s" in message
    assert "Supported: ClassCondDiagGaussian, DiagGaussian and GlowBase" in message


def test_images_of_an_odd_number_of_channels_and_networks_of_an_odd_width():
    state = weights_of(Y0AST_FILE)
    wide = {**state, "flow.layers.1.actnorm.bias": torch.ones(1, 16, 1, 1)}
    assert "has 16 channels; expected 12" in refusal(Y0AST.convert, wide, {})
    wide = {**state, "flow.layers.1.block.4.conv.weight": torch.ones(9, 24, 3, 3)}
    assert "has 9 outputs for 12 channels" in refusal(Y0AST.convert, wide, {})


@pytest.mark.parametrize("layer", [1, 4, 9, 13])
def test_a_missing_layer(layer):
    state = {k: t for k, t in weights_of(Y0AST_FILE).items() if not k.startswith(f"flow.layers.{layer}.")}
    assert re.search("lacks layers|is missing", refusal(Y0AST.convert, state, {}))


@pytest.mark.parametrize(
    ("program", "prefix"),
    [
        ("rosinality", "blocks.1.flows.0."),
        ("openai", "model/2/1/"),
        ("normflows", "flows.0.1."),
        ("openai", "model/0/"),
    ],
)
def test_a_missing_step(program, prefix):
    case, overrides = SMALL[program]
    state = {k.removeprefix("module."): t for k, t in weights_of(case).items()}
    source = of_file(state)
    state = {k: t for k, t in state.items() if not k.startswith(prefix)}
    assert "The file lacks tensors" in refusal(source.convert, state, overrides)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("y0ast", "flow.layers.9999.actnorm.bias"),
        ("y0ast", "flow.layers.99999999999999.actnorm.bias"),
        ("rosinality", "blocks.9999.flows.0.actnorm.loc"),
        ("rosinality", "blocks.99999999999999.flows.99999999999999.actnorm.loc"),
        ("openai", "model/0/9999/actnorm_center/b"),
        ("normflows", "flows.99999999999999.0.flows.2.t"),
        ("chrischute", "flows.in_couplings.0.st_net.blocks.999999.in_norm.weight"),
        ("chrischute", "flows." + "next_block." * 1000 + "in_couplings.0.st_net.in_norm.weight"),
    ],
)
def test_absurd_indices(program, name):
    case, overrides = SMALL[program]
    state = {k.removeprefix("module."): t for k, t in weights_of(case).items()}
    assert refusal_of_any(of_file(state).convert, {**state, name: torch.ones(1)}, overrides)


def test_a_tensor_larger_than_the_file(tmp_path):
    state = weights_of(SMALL["rosinality"][0])
    name = "module.blocks.0.flows.0.coupling.net.0.weight"
    torch.save({**state, name: torch.zeros(1).expand(4096, 2**20, 3, 3)}, tmp_path / "model.pt")
    assert "damaged" in refusal(load, tmp_path / "model.pt", n_bits=8)
