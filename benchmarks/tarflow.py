"""Time and memory of a TarFlow of the published width, from one block of it with random weights.

python -m benchmarks.tarflow
"""

import time

import torch

from flowcore.engine.compiled import CompiledFlow
from flowcore.models.tarflow import TarFlowConfig, tarflow
from flowcore.training.stage import PeakMemory

from .measure import say


def main() -> None:
    """Measure decoding by layers and pictures, encoding, and the memory of both."""
    torch.set_num_threads(1)
    for layers, pictures in ((8, 1), (2, 1), (2, 2), (2, 4)):
        flow = tarflow(TarFlowConfig(blocks=1, layers=layers, classes=3)).eval()
        compiled, cond = CompiledFlow(flow), flow.encode_condition(torch.zeros(pictures, dtype=torch.long))
        latents = [torch.randn(pictures, *flow.latent_shapes(256, 256)[0])]
        start = time.process_time()
        images = compiled.inverse(latents, cond)
        decoded = time.process_time()
        compiled.encode(images, cond)
        encoded = time.process_time()
        taken = f"decode {decoded - start:.1f} s, encode {encoded - decoded:.1f} s"
        say(f"1 block of {layers} layers, {pictures} pictures: {taken}")
    flow = tarflow(TarFlowConfig(blocks=1, classes=3)).eval()
    compiled, cond = CompiledFlow(flow), flow.encode_condition(torch.zeros(2, dtype=torch.long))
    with torch.no_grad(), PeakMemory() as decoding:
        step = compiled.levels[0].steps.transforms[0].network.stepwise(torch.full((4, 3), 1 / 3))  # pyright: ignore
        step(torch.zeros(4, 192))
    with PeakMemory() as denoising:
        compiled.gradient(torch.rand(2, 3, 256, 256), cond)
    say(f"2 pictures: guided {decoding.peak / 1e6:.0f} MB, their noise removed {denoising.peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
