"""Mix the weights of a fine-tuned model with those that it started from.

    python -m benchmarks.mix_weights START TRAINED --encoder 0.85 --flow 0.5 -o MIXED.safetensors

Encoder and flow are weighted means: the given share of the trained weights plus the rest of the start's.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (CVPR 2022): on other data, weights between those
before and after fine-tuning can be better than both.
"""

from pathlib import Path

import torch

from flowcore.models.model_file import read, read_header, save

from .measure import arguments


def main() -> None:
    """Mix, and write."""
    parser = arguments(__doc__)
    parser.add_argument("start", type=Path)
    parser.add_argument("trained", type=Path)
    parser.add_argument("--encoder", type=float, default=1.0, help="share of the trained encoder")
    parser.add_argument("--flow", type=float, default=1.0, help="share of the trained flow")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    trained, provenance = read(options.trained), read_header(options.trained).provenance
    start, mixed = read(options.start).state_dict(), trained.state_dict()
    for name, tensor in mixed.items():
        if tensor.is_floating_point():
            share = options.encoder if name.startswith("encoder.") else options.flow
            mixed[name] = torch.lerp(start[name], tensor, share)
    trained.load_state_dict(mixed)
    provenance.pop("metrics", None)  # of the trained weights
    provenance["source"] += f"; mixed with {options.start.stem}: encoder {options.encoder:g}, flow {options.flow:g}"
    save(trained, options.out, provenance=provenance)


if __name__ == "__main__":
    main()
