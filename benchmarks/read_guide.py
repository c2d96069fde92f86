"""Read a published upscaler, check it against a recording of its program, and store it in a model file as its guide.

    python -m benchmarks.read_guide WEIGHTS.safetensors srflow-x4-photo TARGET.safetensors --strength 0.6

WEIGHTS hold ``realesr-general-x4v3`` and ``realesr-general-wdn-x4v3`` of release v0.2.5.0 of the repository
xinntao/Real-ESRGAN, under the BSD 3-Clause License, in float16, as ``general.*`` and ``wdn.*``: ``conv0.weight`` to
``conv33.bias``, and slopes ``prelu0`` to ``prelu32``. Their program mixes both by the denoising that is wanted; half of
either is its default, and stored here, rounded to float16 again. All else of the model file stays as it is.
"""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from flowcore.checkpoints import catalog
from flowcore.checkpoints.file import KEY, read, read_header
from flowcore.checkpoints.writing import write_atomic
from flowcore.networks import CompactUpscaler

from .measure import arguments

RECORDING = Path(__file__).parents[1] / "tests" / "conformance" / "realesr_general.safetensors"
LAYERS, WIDTH = 34, 64
ROUNDING = 4e-3  # of the mean to float16, in the enlargement; published are float16 numbers


@torch.no_grad()
def main() -> int:
    """Read, check, write."""
    parser = arguments(__doc__, "read_guide")
    parser.add_argument("weights", type=Path)
    parser.add_argument("model", help="file, or shipped one by name")
    parser.add_argument("target", type=Path)
    parser.add_argument("--strength", type=float, required=True, help="part of the guide's latents that is to be kept")
    options = parser.parse_args()
    state, weights, recording = load_file(options.weights), dict[str, Tensor](), load_file(RECORDING)
    for name, tensor in state.items():
        network, key = name.split(".", 1)
        if network == "general":
            ours = re.sub(r"prelu(\d+)", r"activations.\1.weight", re.sub(r"conv(\d+)", r"convs.\1", key))
            weights[ours] = ((tensor.float() + state[f"wdn.{key}"].float()) / 2).to(tensor.dtype)
    network = CompactUpscaler(4, LAYERS, WIDTH)
    network.load_state_dict(weights)
    difference = float((network.double()(recording["lr"]) - recording["sr"]).abs().max())
    sys.stdout.write(f"largest difference from the recording {difference:.1e}\n")
    if difference > ROUNDING:
        return 1
    file = catalog.path(options.model) if options.model in catalog.names() else Path(options.model)
    header, tensors = asdict(read_header(file)), load_file(file)
    header["config"] |= {"guide_layers": LAYERS, "guide_width": WIDTH, "guide_strength": options.strength}
    licence, notice = header["provenance"]["licence"], "guide: realesr-general-x4v3, BSD-3-Clause"
    header["provenance"]["licence"] = licence if notice in licence else f"{licence}; {notice}"
    tensors |= {f"guide.{name}": tensor for name, tensor in weights.items()}
    write_atomic(options.target, serialize(tensors, {KEY: json.dumps(header)}))
    read(options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
