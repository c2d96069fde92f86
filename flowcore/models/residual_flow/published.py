"""Checkpoints of rtqichen/residual-flows, the program of the authors of Residual Flow: its models of images.

Detected by ``transforms.SCALE.chain.N.nnet.``; blocks of the flattened image are ``nnet.nnet``. The norms of layers are
measured by vectors in the file, which ``flow.normalize()`` renews where they do not belong to these weights: published
files hold averaged weights, but the vectors of the last ones.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any

import torch

from ..source import (
    UNTRAINED,
    Check,
    Checkpoint,
    Layout,
    Origin,
    Shape,
    Source,
    missing_field_error,
    take,
    take_all,
    unchanged,
)
from .model import ResidualFlowConfig

ELEMENT = r"transforms\.\d+\.chain\.\d+\."
UNUSED = re.compile(
    ELEMENT + r"(geom_p|lamb|last_n_samples|last_firmom|last_secmom|(fc_module\.)?initialized"
    r"|nnet\.(nnet\.)?\d+\.(initialized|spatial_dims|scale))"
)
IMAGES = {1: (1, False), 3: (3, False), 4: (1, True), 12: (3, True)}  # channels of the first block: image, squeezed


def _layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    learned = next((name for name in checkpoint.shapes if re.search(r"\.(co)?domain$", name)), None)
    if learned is not None:
        raise checkpoint.error(
            f"has learned norms ({learned[:100]}), which are not supported.",
            "Supported: spectral norms, the default of its models of images.",
        )
    blocks = [
        _blocks(checkpoint, level, r"nnet\.\d") for level in sorted(checkpoint.indices(r"transforms\.(\d+)\.chain\."))
    ]
    if not blocks or not all(blocks):
        raise checkpoint.error("lacks the convolutional blocks of a scale, such as transforms.0.chain.2.nnet.")
    last = len(blocks) - 1
    full = _blocks(checkpoint, last, r"nnet\.nnet\.\d")
    first = f"transforms.0.chain.{blocks[0][0]}.nnet"
    layers = _layers(checkpoint, first)
    hidden, inputs = checkpoint.shape(f"{first}.{layers[0]}.weight", 4)[:2]
    if inputs not in IMAGES:
        raise checkpoint.error(
            f"has {inputs} channels in its first block; expected 3 or 1, or 12 or 4 for images that are squeezed first."
        )
    channels, squeeze_first = IMAGES[inputs]
    others = [f"transforms.{s}.chain.{j}.nnet" for s, level in enumerate(blocks) for j in level][1:]
    others += [f"transforms.{last}.chain.{j}.nnet.nnet" for j in full]
    detected: dict[str, Any] = {
        "channels": channels,
        "blocks": tuple(map(len, blocks)),
        "hidden": hidden,
        "full_blocks": len(full),
        "kernels": tuple(checkpoint.shape(f"{first}.{k}.weight", 4)[2] for k in layers),
        "activation": "lipswish" if checkpoint.has(ELEMENT + r"nnet\.(nnet\.)?\d+\.beta") else "elu",
        "leading": not others or _layers(checkpoint, others[0])[0] == 1,
        "first_leading": layers[0] == 1,
        "lipschitz": "grid",
        "factor_out": last > 0 and _weight(checkpoint, f"transforms.1.chain.{blocks[1][0]}.nnet", 4)[1] == 2 * inputs,
        "squeeze_first": squeeze_first,
        "first_actnorm": "transforms.0.chain.1.bias" in checkpoint.shapes,
        "image_size": _image_size(checkpoint, first, layers, 1 + squeeze_first, overrides),
    }
    if full:
        detected["full_hidden"] = _weight(checkpoint, f"transforms.{last}.chain.{full[0]}.nnet.nnet", 2)[0]
    defaults = {"coefficient": 0.98, "alpha": 0.05 if channels == 3 else 1e-6, "n_bits": 8, "grid": "bins"}
    config: ResidualFlowConfig = checkpoint.config("residual_flow", detected, defaults, overrides)
    return Layout(
        architecture="residual_flow",
        config=config,
        origins=[*residual_flow_origins(config)],
        unused=UNUSED,
        checks=[Check(ELEMENT + r".*\binitialized", lambda t: bool((t == 1).all()), UNTRAINED)],
    )


def _blocks(checkpoint: Checkpoint, level: int, network: str) -> list[int]:
    return sorted(checkpoint.indices(rf"transforms\.{level}\.chain\.(\d+)\.{network}"))


def _layers(checkpoint: Checkpoint, network: str) -> list[int]:
    layers = sorted(checkpoint.indices(re.escape(network) + r"\.(\d+)\.weight$"))
    if not layers or layers != list(range(layers[0], layers[0] + 2 * len(layers), 2)) or layers[0] > 1:
        raise checkpoint.error(f"has linear layers at {layers[:16]} in {network}; expected every other one.")
    return layers


def _weight(checkpoint: Checkpoint, network: str, dimensions: int) -> Shape:
    return checkpoint.shape(f"{network}.{_layers(checkpoint, network)[0]}.weight", dimensions)


def _image_size(
    checkpoint: Checkpoint, network: str, layers: list[int], factor: int, overrides: Mapping[str, Any]
) -> tuple[int, int]:
    """Read the grid of the first scale from a layer of the first block, times a factor."""
    for k in layers:
        outputs, _, kernel, _ = checkpoint.shape(f"{network}.{k}.weight", 4)
        if kernel == 1:
            continue
        positions = checkpoint.shape(f"{network}.{k}.u", 1)[0] // outputs
        stored = checkpoint.state.get(f"{network}.{k}.spatial_dims")
        stored_sides = [] if stored is None or stored.is_meta else stored.flatten().tolist()
        is_pair = len(stored_sides) == 2 and all(0 < side < 2**14 for side in stored_sides)
        height, width = stored_sides if is_pair else (0, 0)
        if height * width != positions or height % 1 or width % 1:
            height = width = math.isqrt(positions)
        if height * width != positions:
            raise checkpoint.error(f"holds no sides of a grid of {positions} positions in {network}.{k}.spatial_dims.")
        return int(height) * factor, int(width) * factor
    if "image_size" in overrides:
        return overrides["image_size"]
    raise missing_field_error(
        "image_size", "height and width of the training images.", "(32, 32)", "32,32", "is refused or gives wrong bits"
    )


def residual_flow_origins(config: ResidualFlowConfig) -> Iterator[Origin]:
    """Pair every parameter of ours with the published one."""
    assert config.image_size is not None
    last = len(config.blocks) - 1
    channels = config.channels * 4 if config.squeeze_first else config.channels
    height, width = (side // (1 + config.squeeze_first) for side in config.image_size)
    for level, blocks in enumerate(config.blocks):
        if level:
            channels, height, width = channels * (2 if config.factor_out else 4), height // 2, width // 2
        ours = (f"levels.{level}.steps.transforms.{k}" for k in count())
        published = (f"transforms.{level}.chain.{k}" for k in count())
        if level == 0:
            next(published)  # the logit
            if config.first_actnorm:
                yield from _actnorm(next(ours), next(published))
        for k in range(blocks):
            leading = config.first_leading if level == k == 0 else config.leading
            network = f"{next(published)}.nnet"
            yield from _network(next(ours), network, channels, config.hidden, leading, config, (height, width))
            yield from _actnorm(next(ours), next(published))
        if level == last and config.full_blocks:
            next(ours)  # the flattening
            for _ in range(config.full_blocks):
                elements, network = channels * height * width, f"{next(published)}.nnet.nnet"
                yield from _network(next(ours), network, elements, config.full_hidden, config.leading, config)
                yield from _actnorm(next(ours), f"{next(published)}.fc_module")


def _network(
    ours: str,
    published: str,
    channels: int,
    hidden: int,
    leading: bool,
    config: ResidualFlowConfig,
    sides: Shape | None = None,
) -> Iterator[Origin]:
    """Take a network, of convolutions on a grid or, without ``sides``, of matrices."""
    widths = [channels, *[hidden] * (len(config.kernels) - 1), channels]
    for k, kernel in enumerate(config.kernels):
        place = 2 * k + leading
        layer, theirs = f"{ours}.network.layers.{place}", f"{published}.{place}"
        yield take(f"{layer}.weight", f"{theirs}.weight", unchanged if sides else lambda t: t[:, :, None, None])
        yield take(f"{layer}.bias", f"{theirs}.bias")
        grid = (1, 1) if sides is None or kernel == 1 else sides
        for name, width in (("u", widths[k + 1]), ("v", widths[k])):
            yield take(f"{layer}.{name}", f"{theirs}.{name}", partial(torch.reshape, shape=(width, *grid)))
    if config.activation == "lipswish":
        for place in range(1 - leading, 2 * len(widths) - 3 + leading, 2):
            yield take(f"{ours}.network.layers.{place}.beta", f"{published}.{place}.beta")


def _actnorm(ours: str, published: str) -> Iterator[Origin]:
    return take_all(ours, f"{published}.", {"bias": "bias", "log_scale": "weight"})


RESIDUAL_FLOW = Source(
    name="Residual Flow",
    licence="MIT for the program; none is stated with published weights, and CIFAR-10, ImageNet and CelebA restrict "
    "use: check the license of your file",
    detect=re.compile(ELEMENT + r"nnet\."),
    layout=_layout,
    integers=re.compile(r".*\.initialized"),
)
