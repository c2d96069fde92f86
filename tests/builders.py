"""Small flows of every architecture and random images, for all tests."""

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowcore import Condition, Flow
from flowcore.flows.flow import Level
from flowcore.flows.transforms import ActNorm, BatchNorm, ChannelWhitening, InvertibleConv
from flowcore.models import build, configure
from flowcore.models.hcflow.published import hcflow_origins
from flowcore.models.llflow.published import llflow_origins
from flowcore.models.srflow.published import srflow_da_origins, srflow_origins

ORIGINS = {"srflow": srflow_origins, "srflow_da": srflow_da_origins, "llflow": llflow_origins, "hcflow": hcflow_origins}

_COLORS = {"widths": (8, 8, 16), "merged": 8, "features": 4, "working_size": 32}
_EXTRACTOR = {"extractor_blocks": (1, 1), "extractor_width": 4, "extractor_growth": 3}
_RRDB = {"hidden": 8, "encoder_blocks": 2, "encoder_width": 8, "encoder_growth": 4, "stacked_blocks": (1,)}
TINY: dict[str, dict[str, Any]] = {
    "glow": {"levels": 2, "steps": 2, "hidden": 8},
    "realnvp": {"scales": 2, "hidden": 3, "blocks": 1},
    "ffjord": {"scales": 2, "blocks": 1, "hidden": (4, 5), "steps": 2},
    "residual_flow": {"blocks": (2, 1), "hidden": 6, "full_blocks": 1, "full_hidden": 4, "image_size": (8, 12)},
    "tarflow": {"image_size": (8, 12), "patch": 2, "width": 8, "head": 4, "hidden": 12, "blocks": 2, "layers": 1},
    "class_conditional": {"image_size": (8, 12), "classes": 3, "steps": 2, "hidden": 8},
    "srflow": {"levels": 3, "steps": 2, **_RRDB},
    "srflow_da": {"layers": "s2pccds2pc", "hidden_layers": 2, **_RRDB},
    "hcflow": {"steps": 2, "detail_steps": 1, "hidden": 6, "detail_hidden": 6, **_EXTRACTOR},
    "llflow": {"steps": 1, "transition_steps": 1, **_RRDB},
    "colorizer": {"steps": (1, 1), "hidden": (8, 8), **_COLORS},
}

# Smaller ones, for tests that compute Jacobians or compare networks one by one.
_ENCODER = {"encoder_blocks": 2, "encoder_width": 4, "encoder_growth": 3, "stacked_blocks": (1,)}
_TABLE = {"split_prior": "table", "image_size": (4, 8), "network": "plain"}
_X2, _X8 = {"scale": 2, "levels": 2}, {"scale": 8, "levels": 4}
MINIMAL: dict[str, dict[str, Any]] = {
    "srflow": {"steps": 1, "transition_steps": 1, "hidden": 4, **_ENCODER, "stacked_blocks": (1, 0)},
    "srflow_da": {"hidden": 4, "hidden_layers": 2, **_ENCODER},
    "hcflow": TINY["hcflow"],
    "llflow": {"steps": 1, "transition_steps": 1, "hidden": 4, **_ENCODER},
    "ffjord": {"channels": 1, "scales": 1, "blocks": 1, "hidden": (3,), "steps": 1, "how": "exact"},
    "residual_flow": {"blocks": (1, 1), "hidden": 3, "full_blocks": 1, "full_hidden": 3, "image_size": (4, 6)},
    "tarflow": {"image_size": (4, 6), "patch": 2, "width": 4, "head": 2, "hidden": 6, "blocks": 2, "layers": 1},
    "glow": {"levels": 2, "steps": 1, "hidden": 6},
    "realnvp": TINY["realnvp"],
    "class_conditional": {"image_size": (3, 4), "classes": 3, "steps": 2, "hidden": 6},
    "colorizer": {"steps": (1, 1), "hidden": (6, 6), "widths": (4, 4, 8), "merged": 8, "features": 2},
}
# By architecture and name: fields that differ from the minimal ones.
_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "srflow": {
        "": {},
        "x2": {**_X2, "steps": 2},
        "x4 residual": {"steps": 2, "residual": True},
        "x8": _X8,
        "on imdn": {"encoder": "imdn", "residual": True},
        "without injector": {"injector": False},
        "with deep conditioners": {"hidden_layers": 2, "hidden_kernel": 3},
        "with shallow conditioners": {**_X2, "hidden_layers": 0},
        "without transition steps": {"transition_steps": 0, "mixing": "principal"},
        "on one grid": {"levels": 1, "stacked_blocks": (1, 0, 1)},
        "x8 on two grids": {"scale": 8, "levels": 2},
        "with principal mixing": {"mixing": "principal", "affine_eps": 0.25, "residual": True},
    },
    "srflow_da": {
        "": {"scale": 2, "layers": "s2pcdc", "residual_blocks": 1},
        "x8": {"scale": 8, "layers": "s2pcds2pcds2c"},
        "s": {"scale": 8, "layers": "s4pcdcds2cs2c"},
        "d": {"layers": "s4pcdc", "hidden": 8, "hidden_layers": 6, "residual_blocks": 3},
    },
    "hcflow": {"": {}, "x8": {"scale": 8}, "for rescaling": {"rescaling": True}},
    "llflow": {"": {}},
    "ffjord": {
        "": {"scales": 2, "steps": 2},
        "with batch norm": {"batch_norm": True, "time": "concatsquash", "alpha": 1e-6},
        "with strides": {"hidden": (3, 3), "strides": (2, 1, -2), "alpha": 0.0, "image_size": (4, 6)},
    },
    "residual_flow": {
        "": {},
        "of two convolutions": {"channels": 1, "full_blocks": 0, "alpha": 1e-3, "kernels": (3, 3)},
        "of frequencies": {"full_blocks": 0, "lipschitz": "frequencies", "activation": "elu", "image_size": None},
        "squeezed first": {"squeeze_first": True, "blocks": (2,), "coefficient": 0.7, "leading": False},
        "factored": {"channels": 1, "factor_out": True, "squeeze_first": True, "image_size": (4, 8)},
        "without an actnorm": {"factor_out": True, "full_blocks": 0, "first_actnorm": False},
    },
    "tarflow": {
        "": {"layers": 2},
        "with labels": {"classes": 3, "labels": ("cat", "dog", "wild"), "noise": 0.07},
        "of shifts": {"channels": 1, "blocks": 3, "scale": False, "variances": True, "patch": 1, "image_size": (3, 2)},
    },
    "glow": {
        "": {"steps": 2, "mixing": "shuffle"},
        "additive": {"coupling": "additive", "mixing": "reverse", "learned_top": False},
        "log3": {"mixing": "conv", "actnorm": "log3", "edge": "flag", "last_mixing": "lu"},
        "principal": {"mixing": "conv", "mixing_start": "principal", "pixels": "unit", "steps": 2},
        "principal lu": {"mixing": "lu", "mixing_start": "principal", "steps": 2, "affine_eps": 0.1},
        "signed": {"actnorm": "signed", "mixing": "reverse", "last_mixing": "conv"},
        "plain": {"network": "plain", "last_mixing": "reverse"},
        "plain, not scaled": {"network": "plain", "scaled": False, "edge": "ones"},
        "not scaled": {"scaled": False, "levels": 3},
        "of gray": {"channels": 1, "levels": 1, "grid": "levels", "n_bits": 5},
        "with styles": {"image_size": (4, 8), "styles": ("smile",)},
        "with labels": {"channels": 1, "classes": 3, "dequantizer_steps": 1},
        "with labels alone": {"classes": 3, "learned_top": False, "edge": "flag"},
        "by table": {**_TABLE, "channels": 1, "classes": 3, "scaled": False},
        "by table without labels": _TABLE,
    },
    "realnvp": {
        "": {},
        "bare": {"channels": 1, "batch_norm": False, "mask_channel": False, "blocks": 0, "alpha": 1e-3},
        "of three scales": {"channels": 1, "scales": 3, "hidden": 2},
        "of one scale": {"channels": 1, "scales": 1},
    },
    "class_conditional": {
        "": {"styles": ("bold", "slanted")},
        "in color": {"image_size": (3, 5), "channels": 3, "shift": 0.0, "width": 2.0},
        "of one class": {"classes": 1},
    },
    "colorizer": {
        "": {},
        "on three grids": {"steps": (1, 2, 1), "hidden": (6, 5, 4), "widths": (4, 4, 4, 8), "dropout": 0.3},
        "on one grid": {"structure": "single", "steps": (2,), "hidden": (6,), "widths": (4, 4)},
    },
}
# The models on which the law is checked and whose compiled flows are compared with them: architecture and fields.
MODELS = {
    f"{architecture} {name}".rstrip(): (architecture, {**MINIMAL[architecture], **fields})
    for architecture, variants in _VARIANTS.items()
    for name, fields in variants.items()
}


def build_tiny(architecture: str, *, seed: int = 0, perturb: float = 0.0, **fields: Any) -> Flow:
    """Build a small flow of ``TINY`` with other fields, in evaluation mode, the same for the same arguments.

    ``perturb`` is the standard deviation of noise on every parameter. A coupling that starts at zero is nearly the
    identity and lets wrong code pass, so anything that is to be tested as a flow wants 0.05 to 0.1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = build(architecture, configure(architecture, {**TINY[architecture], **fields})).eval()
        with torch.no_grad():
            for parameter in flow.parameters() if perturb else ():
                parameter += perturb * torch.randn_like(parameter)
        flow.normalize()
    return flow


def build_upscaler(scale: int = 4, **fields: Any) -> Flow:
    """Build a small SRFlow whose samples are pictures, as those of trained models are: nothing overflows."""
    flow = build_tiny("srflow", **{"scale": scale, "levels": {2: 2, 4: 3, 8: 4}[scale], "residual": True, **fields})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if not name.startswith("encoder"):
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        next(m for m in flow.levels.modules() if isinstance(m, ActNorm)).log_scale += 3
    return flow


def build_hcflow(**fields: Any) -> Flow:
    """Build a small HCFlow whose samples are pictures: what it adds to the LR image is small."""
    flow = build_tiny("hcflow", perturb=0.02, **fields)
    with torch.no_grad():
        for level in flow.levels:
            prior = level.details.transform.parts()[-1]  # pyright: ignore
            prior.conditioner.bias[1::2] += 3  # log scales
    return flow


def assemble(levels: Sequence[Level], *, channels: int) -> Flow:
    """Assemble an unconditional flow of no architecture."""
    return Flow(levels, channels=channels)


def random_image(*shape: int, seed: int = 0) -> Tensor:
    """Draw an image, uniform in [0, 1), the same for the same arguments."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def png_header(width: int, height: int, bits: int, kind: int) -> bytes:
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, kind: int, rows: bytes) -> bytes:
    """A PNG of given bytes, which may be other than its header promises."""
    chunks = (png_header(width, height, bits, kind), png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def srflow_checkpoint(flow: Flow) -> dict[str, Tensor]:
    """Convert an SRFlow or a descendant of ours to a state dict of the published program."""
    ours, state = flow.state_dict(), {}
    for origin in ORIGINS[flow.architecture](flow.config):
        (name,) = origin.names
        t = origin.convert(ours[origin.ours])  # a change of sign, which undoes itself, or none
        if ".actnorm." in name:
            t = t.reshape(1, -1, 1, 1)
        elif name.endswith(".logs"):
            t = t.reshape(-1, 1, 1)
        state[name] = t.clone()
    return state


def hcflow_checkpoint(flow: Flow) -> dict[str, Tensor]:
    """Convert an HCFlow of ours to a state dict of the published program."""
    state = srflow_checkpoint(flow)
    for level in range(flow.config.levels if flow.config.rescaling else 0):
        signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).reshape(4, 1, 2, 2)
        state[f"flow.layers.{level * (flow.config.steps + 2)}.haar_weights"] = signs.repeat(3 * 2**level, 1, 1, 1)
    return state


def build_minimal(architecture: str, *, seed: int = 4, **fields: Any) -> Flow:
    """Build a flow of an architecture as it starts, with fields that differ from ``MINIMAL``; the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(architecture, configure(architecture, {**MINIMAL[architecture], **fields}))


def build_model(name: str, *, rows: int | None = None, seed: int = 4) -> Flow:
    """Build a model of ``MODELS`` in training mode, float32, away from its start, buffers included.

    One that takes images of one size takes those with so many ``rows`` on the coarsest grid, if given.
    """
    architecture, fields = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = build(architecture, configure(architecture, fields))
        if rows and flow.image_size and architecture != "class_conditional":
            size = (rows * flow.size_multiple, 2 * flow.size_multiple)
            flow = build(architecture, configure(architecture, {**fields, "image_size": size}))
    move_away(flow, 0.03 if fields.get("scale") == 8 else 0.05, seed)
    return flow


def move_away(flow: Flow, strength: float, seed: int = 0) -> None:
    """Add noise to every parameter of a flow and give buffers values as of some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in flow.modules():
            for t in part.parameters(recurse=False):  # a wide mixing of much noise would be ill-conditioned
                far = strength / len(t) ** 0.5 if isinstance(part, InvertibleConv) else strength
                t += far * torch.randn(t.shape, generator=generator)
        if flow.styles:
            directions = flow.get_buffer("style_directions")
            directions.copy_(torch.randn(directions.shape, generator=generator))
    move_buffers(flow, seed)
    flow.normalize()


def move_buffers(module: nn.Module, seed: int = 9) -> Any:
    """Give batch norms and whitenings the moments of some training; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.mean.copy_(0.3 * torch.randn(part.mean.shape, generator=generator))
            part.var.copy_(0.5 + torch.rand(part.var.shape, generator=generator))
        if isinstance(part, ChannelWhitening):
            size = len(part.mean)
            part.mean.copy_(0.3 + 0.3 * torch.rand(size, generator=generator))
            part.matrix.copy_(2 * torch.eye(size) + torch.rand(size, size, generator=generator).tril())
    return module


def sides_of(flow: Flow, rows: int | None = None) -> tuple[int, int]:
    """Height and width of an image that a flow takes: as small as makes sense, or with so many rows on every grid."""
    m = math.lcm(flow.size_multiple, flow.condition_scale if flow.capabilities.source == "low_resolution" else 1)
    if flow.image_size:
        return flow.image_size
    if rows:
        return rows * m, 2 * m
    return {1: (3, 5), 2: (4, 6)}.get(m, (m, 2 * m))


def source_of(flow: Flow, height: int, width: int, batch: int = 2) -> Tensor | None:
    """Draw what the condition of images of these sides is encoded from; None for unconditional flows."""
    kind = flow.capabilities.source
    if kind == "low_resolution":
        return random_image(batch, 3, height // flow.condition_scale, width // flow.condition_scale, seed=5)
    if kind == "low_light":
        return random_image(batch, 3, height, width, seed=5) ** 3
    if kind == "luma":  # with hints and a palette
        given = random_image(batch, 8, 4 * height, 4 * width, seed=5)
        given[:, 4:] = given[:, 4:, :1, :1]
        return given
    if not flow.classes:
        return None
    last = flow.classes - (flow.architecture == "glow")  # of a class-conditional flow, no label
    return torch.tensor([last, 1, 0, 1] * batch)[:batch]


def encode_source(flow: Flow, source: Tensor | None) -> Condition | None:
    """Make the condition in the precision of the flow; None for None."""
    if source is not None and source.is_floating_point():
        source = source.to(next(flow.parameters()).dtype)
    return None if source is None else flow.encode_condition(source)
