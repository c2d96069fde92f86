"""Checkpoints of published programs: the recorded ones, and seeded ones of any layout.

Seeded checkpoints are the same on every machine: NumPy's ``RandomState`` and torch's uniform draws are exact.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import hcflow_checkpoint, srflow_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from flowcore import Flow
from flowcore.models import build, configure
from flowcore.models.model_file import build_on_meta
from flowcore.models.source import Origin, Source

HERE = Path(__file__).parent
Shapes = dict[str, tuple[int, ...]]
PRECISIONS = ("float32", "float64")

RECORDED = {
    "scale": 4, "levels": 3, "steps": 2, "transition_steps": 2, "hidden": 64,
    "encoder_blocks": 4, "encoder_width": 64, "encoder_growth": 32, "stacked_blocks": (0, 1, 2, 3),
}  # fmt: skip
SMALL = {
    "scale": 4, "levels": 3, "steps": 1, "transition_steps": 1, "hidden": 6,
    "encoder_blocks": 4, "encoder_width": 8, "encoder_growth": 4, "stacked_blocks": (2, 0, 3, 1),
}  # fmt: skip

_TINY = {"scale": 4, "detail_steps": 2, "detail_hidden": 16}
_TINY |= {"extractor_blocks": (2, 1), "extractor_width": 16, "extractor_growth": 8}
HCFLOWS = {
    "tiny4x": {**_TINY, "steps": 3, "hidden": 16},
    "tiny_rescaling4x": {**_TINY, "steps": 4, "hidden": 8, "rescaling": True},
}

EXTRACTOR = r"_condFlow\.(conv_first|RRDB_trunk|trunk_conv1)"  # of HCFlow

# In every published SRFlow, and read by nothing: their values must not matter.
UNREAD = {"RRDB.upconv2": (64, 64, 3, 3), "RRDB.HRconv": (64, 64, 3, 3), "RRDB.conv_last": (3, 64, 3, 3)}
UNREAD |= {"flowUpsamplerNet.f.0": (96, 320, 3, 3)}


def recording(*names: str) -> dict[str, Tensor]:
    """What was recorded of a program, by names of files such as "glow/layouts"."""
    return {key: t for name in names for key, t in load_file(HERE / f"{name}.safetensors").items()}


def keys(program: str) -> dict[str, Any]:
    """Names and shapes of the tensors of a program's published files."""
    return json.loads(gzip.decompress((HERE / program / "keys.json.gz").read_bytes()))


def recorded_srflow() -> dict[str, Tensor]:
    """The weights of the recorded SRFlow, bit for bit: noise from a seed per tensor, rounded to float16.

    Only the 1x1 convolutions are stored.
    """
    state = recording("srflow/tiny4x_mixings")
    for name, shape in srflow_shapes(**RECORDED).items():
        if not name.endswith("invconv.weight"):
            state[name] = torch.from_numpy(_noise(name, shape, r"^RRDB\.", r"\.(4|conv)\.weight$").astype(np.float16))
    return with_unread(state, UNREAD)


def with_unread(state: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights in float32, with convolutions that the program never reads, of arbitrary values."""
    state = {name: t.float() for name, t in state.items()}
    for name, shape in shapes.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.full(shape, 7.0), torch.full(shape[:1], 7.0)
    return state


def recorded_hcflow(case: str) -> dict[str, Tensor]:
    """The weights of a recorded HCFlow, "tiny4x" or "tiny_rescaling4x", bit for bit, as ``recorded_srflow``."""
    state = recording(f"hcflow/{case}_mixings")
    # when rescaling, couplings have five convolutions
    last = rf"_condFlow\.(f|.*conv3)\.weight|^flow\.layers\..*conv{5 if 'rescaling' in case else 3}\.weight"
    for name, t in hcflow_checkpoint(build("hcflow", configure("hcflow", HCFLOWS[case]))).items():
        if name.endswith("haar_weights"):
            state[name] = t
        elif name not in state:
            state[name] = torch.from_numpy(_noise(name, tuple(t.shape), EXTRACTOR, last).astype(np.float16))
    return state


def srflow_shapes(**fields) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an SRFlow's tensors in the published program."""
    flow = build_on_meta("srflow", configure("srflow", fields))
    return {name: tuple(t.shape) for name, t in srflow_checkpoint(flow).items()}


def _noise(name: str, shape: tuple[int, ...], encoder: str, last: str) -> np.ndarray:
    """Seeded by its name: gains that keep signals alive, less for encoders and the last convolutions of couplings."""
    inputs, encodes = math.prod(shape[1:]), re.search(encoder, name) is not None
    if name.endswith(".weight"):
        gain = 0.4 / math.sqrt(inputs) if re.search(last, name) else math.sqrt(2 / inputs)
        if encodes:
            gain = 0.5 * math.sqrt(2 / inputs) if ".RDB" in name else math.sqrt(1.5 / inputs)
    elif name.endswith(".bias"):
        gain = 0.05 if encodes else 0.1
    else:
        gain = 0.1 if ".affine." in name and ".actnorm." in name else 0.05
    noise = gain * np.random.RandomState(zlib.crc32(name.encode()) ^ (7 * 0x9E3779B1 % 2**32)).standard_normal(shape)
    if ".RDB" in name and name.endswith("conv5.weight"):
        noise[range(shape[0]), range(shape[0]), 1, 1] -= 2
    if name == "flow.layers.1.actnorm.bias":  # of HCFlow
        noise -= 0.5
    if name.endswith("_condFlow.f.bias"):
        noise[1::2] -= 1
    if re.fullmatch(r"flowUpsamplerNet\.layers\.(3|4|9|10|14|15)\.actnorm\.logs", name):  # of SRFlow's coupled steps
        noise += 0.19
    return noise


def recorded_glow(case: str) -> dict[str, Tensor]:
    """The weights of a recorded Glow or Real NVP, with arbitrary values where the program reads none."""
    state = recording(f"glow/{case}_weights")
    generator = torch.Generator().manual_seed(1)
    if "learn_top_fn.conv.bias" in state:
        channels = len(state["learn_top_fn.conv.bias"])
        state["learn_top_fn.conv.weight"] = torch.randn(channels, channels, 3, 3, generator=generator)
    if "model/prior/p/W" in state:
        flag = state["model/prior/p/W"]
        others = torch.randn(3, 3, flag.shape[3], flag.shape[3], generator=generator)
        state["model/prior/p/W"] = torch.cat([others, flag], dim=2)
    return state


def small_srflow(**fields) -> dict[str, Tensor]:
    """A small SRFlow under published names, with stacked blocks (2, 0, 3, 1) unless given."""
    return with_unread(random_state(srflow_shapes(**{**SMALL, **fields})), {"flowUpsamplerNet.f.0": (3, 4, 3, 3)})


def random_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Draw values with which every tensor matters, and arbitrary ones where programs leave them."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        last = re.split(r"[./]", name)[-1]
        noise = (2 * torch.rand(shape, generator=generator) - 1) * 3**0.5
        if name == "prior_h":
            state[name] = torch.zeros(shape)
        elif last in ("p", "w_p", "P"):
            state[name] = torch.eye(shape[0])[torch.randperm(shape[0], generator=generator)]
        elif last in ("sign_s", "s_sign", "sign_S"):
            state[name] = noise.sign()
        elif last in ("initialized", "data_dep_init_done"):
            state[name] = torch.tensor(1, dtype=torch.uint8 if last == "initialized" else torch.float32)
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
            inputs = max(1, noise.numel() // max(shape))
            gain = 0.05 if "log" in last or last in ("s", "w_s", "scale") else 0.3 / inputs**0.5
            state[name] = gain * noise
    return state


def meta(shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """A checkpoint without values, in float32 where no other type is named."""
    types = {name: getattr(torch, (dtypes or {}).get(name, "float32")) for name in shapes}
    return {name: torch.empty(tuple(shape), device="meta", dtype=types[name]) for name, shape in shapes.items()}


def as_ours(source: Source, state: Mapping[str, Tensor], precision: str, **fields) -> Flow:
    """Convert a recorded network to "float32" or "float64"."""
    return source.load(state, fields).to(dtype=getattr(torch, precision))


def near(ours: Tensor, theirs: Tensor, single: float = 1e-5) -> None:
    """Expect equal values within ``single`` in float32, else 1e-9, relative to the largest value (at least 1)."""
    assert ours.shape == theirs.shape
    tolerance = single if ours.dtype == torch.float32 else 1e-9
    assert float((ours.double() - theirs.double()).abs().max()) <= tolerance * max(1.0, float(theirs.abs().max()))


def given(flow: Flow, recorded: Mapping[str, Tensor], *names: str) -> tuple[Any, ...]:
    """How the precision of a flow is called in recordings, and recorded inputs in it."""
    dtype = next(flow.parameters()).dtype
    return ("f32" if dtype == torch.float32 else "f64", *(recorded[name].to(dtype) for name in names))


def check_gradients(flow: Flow, origins: Iterable[Origin], recorded: Mapping[str, Tensor], prefix: str = "") -> None:
    """Expect the recorded gradients: norms of those of all parameters, some whole, and none where none is recorded."""
    parameters, norms = dict(flow.named_parameters()), f"f64.{prefix}gradnorm."
    seen = set()
    for origin in origins:
        name, gradient = origin.names[0], parameters.pop(origin.ours).grad
        if gradient is None:
            assert f"f64.gradnorm_none.{name}" in recorded, f"{origin.ours} should have a gradient"
            continue
        near(gradient.norm().reshape(()), recorded[norms + name].reshape(()))
        seen.add(norms + name)
        if (theirs := recorded.get(f"f64.{prefix}grad.{name}")) is not None:
            near(gradient, origin.convert(theirs.reshape(gradient.shape)))
    assert not parameters
    assert seen == {key for key in recorded if key.startswith(norms)}


def initialized(
    flow: Flow, origins: Iterable[Origin], recorded: Mapping[str, Tensor], x: Tensor, cond: Any
) -> tuple[list[Tensor], Tensor]:
    """Expect the recorded actnorms of a data-dependent initialization; latents and logdet after it."""
    state = flow.state_dict()
    actnorms = [(origin.ours, origin.names[0]) for origin in origins if ".actnorm." in origin.names[0]]
    for ours, _ in actnorms:
        state[ours].zero_()
    latents = flow.initialize(x, cond)
    for ours, name in actnorms:
        near(state[ours], recorded[f"f64.init.{name}"].flatten())
    assert len(actnorms) == sum(key.startswith("f64.init.flow") for key in recorded)
    again, logdet = flow(x, cond)
    for first, second in zip(latents, again, strict=True):
        near(first, second)
    return again, logdet


def error(a: Tensor, b: Tensor) -> float:
    """The largest difference, whatever the shapes of as many numbers."""
    assert a.numel() == b.numel()
    return float((a.detach().double().flatten() - b.double().flatten()).abs().max())


def flat(latents: list[Tensor]) -> Tensor:
    return torch.cat([z.flatten(1) for z in latents], 1)


def unflat(z: Tensor, flow: Flow, image: Tensor) -> list[Tensor]:
    """The latents of an image of these sides, of which there are all numbers in ``z``."""
    shapes = flow.latent_shapes(*image.shape[-2:])
    parts = z.split([math.prod(shape) for shape in shapes], 1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def same(a, b) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return a.config == b.config and all(torch.equal(x, y) for x, y in pairs)


def image(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample_of(latents: list[Tensor]) -> list[Tensor]:
    """The pixel in the last corner of every level, all channels: ``(B, C)``."""
    return [z[:, :, -1, -1] for z in latents]


# Configuration to tensor name to (shape, dtype).
KEYS = keys("glow")


def shrink(configuration: str) -> Shapes:
    """The first two steps of every level of a published configuration, with networks of width 6."""
    result = {}
    for name, (shape, _) in KEYS[configuration].items():
        if m := re.match(r"flow\.layers\.(\d+)\.(.*)", name):
            level, place = divmod(int(m[1]), 34)  # all of these have 32 steps
            if place not in (1, 2, 33):
                continue
            name = f"flow.layers.{4 * level + min(place, 3)}.{m[2]}"
        elif (m := re.match(r"(?:blocks\.\d+\.flows\.|model/\d+/|flows\.\d+\.)(\d+)[./]", name)) and int(m[1]) > 1:
            continue
        result[name] = tuple({512: 6, 513: 7, 256: 6}.get(side, side) for side in shape)
    return result


# What does not matter to the flow, by program; every other published tensor must be used.
UNUSED = {
    "y0ast": r"prior_h|project_class\.(linear\.weight|linear\.bias|logs)|learn_top_fn\.conv\.weight",
    "chaiyujin": r"prior_h|project_class\.(weight|bias|logs)|learn_top\.weight",
    "rosinality": r".*\.(initialized|l_mask|u_mask|l_eye)",
    "openai": r".*/indices_inverse",
    "normflows": r".*\.(data_dep_init_done|eye)",
    "chrischute": r"data_constraint|.*\.num_batches_tracked",
    "tarflow": r"blocks\.\d\.attn_mask",
}
