"""Read IMDN as published, check it against a recording of its program, and write it as a safetensors file.

    python -m benchmarks.read_imdn imdn_baseline.pth TARGET.safetensors

The file is ``model_zoo/imdn_baseline.pth`` of the repository ofsoundof/NTIRE2022_ESR, under the MIT License; what is
written can be given to ``--encoder-from``. The shipped ``srflow-x4`` holds the same weights.
"""

import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowcore.networks import IMDN

RECORDING = Path(__file__).parents[1] / "tests" / "conformance" / "imdn.safetensors"
NAMES = (
    (r"model\.0\.", "conv_first."),
    (r"model\.1\.sub\.8\.", "conv_trunk."),
    (r"model\.2\.", "conv_last."),
    (r"model\.1\.sub\.(\d)\.conv1\.0\.", r"blocks.\1.convs.0."),
    (r"model\.1\.sub\.(\d)\.conv2\.0\.", r"blocks.\1.convs.1."),
    (r"model\.1\.sub\.(\d)\.conv3\.0\.", r"blocks.\1.convs.2."),
    (r"model\.1\.sub\.(\d)\.conv4\.", r"blocks.\1.convs.3."),
    (r"model\.1\.sub\.(\d)\.conv1x1\.", r"blocks.\1.fuse."),
)


@torch.no_grad()
def main(source: str, target: str) -> int:
    """Read, check, write."""
    state: dict[str, Tensor] = {}
    for name, tensor in torch.load(source, weights_only=True, map_location="cpu").items():
        pattern, ours = next((pattern, ours) for pattern, ours in NAMES if re.match(pattern, name))
        state[re.sub(pattern, ours, name)] = tensor
    network, recording = IMDN(scale=4, blocks=8, kept=16), load_file(RECORDING)
    network.load_state_dict(state)
    difference = float((network.double()(recording["lr"].double()) - recording["sr"]).abs().max())
    print(f"largest difference from the recording {difference:.1e}")
    if difference > 1e-9:
        return 1
    save_file(state, target, metadata={"source": "ofsoundof/NTIRE2022_ESR, imdn_baseline.pth", "licence": "MIT"})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
