"""Real NVP: checkerboard and channelwise couplings in turn, with residual networks as conditioners.

Source: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP" (ICLR 2017). The fields ``batch_norm``,
``mask_channel`` and ``alpha`` let checkpoints of a re-implementation load, which has neither of the first two.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ...flows.flow import Level
from ...flows.model import Capabilities, FlowModel, Task
from ...flows.networks.residual import ResidualConditioner
from ...flows.transforms import (
    BatchNorm,
    Chain,
    CheckerboardCoupling,
    CheckerboardSqueeze,
    Coupling,
    Logit,
    Split,
    Squeeze,
    Transform,
    Unsqueeze,
)
from ..fields import Range, check_fields, size_tuple


@dataclass(frozen=True, kw_only=True)
class RealNVPConfig:
    """Configuration of a Real NVP; the defaults are the paper's CIFAR-10 network."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"sample"})

    channels: Literal[1, 3] = 3
    scales: Annotated[int, Range(1, 8)] = 2  # all but the last factor out half of the dimensions
    hidden: Annotated[int, Range(1, 4096)] = 64  # width at the first scale's checkerboards; doubles with every squeeze
    blocks: Annotated[int, Range(0, 64)] = 8  # residual blocks per network
    # Whether a batch norm of all channels follows every coupling; the authors normalize the transformed half only.
    batch_norm: bool = True
    mask_channel: bool = True  # whether checkerboard networks see their mask
    alpha: Annotated[float, Range(1e-6, 0.5, open=True)] = 0.05  # the logit's distance of pixels from 0 and 1
    n_bits: Annotated[int, Range(1, 8)] = 8  # bits per subpixel of the images that it models
    grid: Literal["bins", "levels"] = "bins"  # where pixel values lie in [0, 1]; see ``GlowConfig``
    image_size: tuple[int, int] | None = None  # height and width, or the side of a square, of the training images

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "image_size", size_tuple(self.image_size, 2 ** (self.scales - 1)))


def realnvp(config: RealNVPConfig) -> FlowModel[RealNVPConfig]:
    """Build a Real NVP with random weights; its images are ``(B, channels, H, W)`` in [0, 1]."""
    levels: list[Level] = []
    channels, hidden = config.channels, config.hidden
    for _ in range(config.scales - 1):
        steps = [_checkerboard(channels, hidden, parity, config) for parity in (0, 1, 0)]
        steps.append(Squeeze())
        steps += [_channelwise(4 * channels, 2 * hidden, swap, config) for swap in (True, False, True)]
        steps += [Unsqueeze(), CheckerboardSqueeze()]
        levels.append(Level(steps, Split(None), squeeze=Chain()))  # the last of the steps squeezes
        channels, hidden = 2 * channels, 2 * hidden
    last = [_checkerboard(channels, hidden, parity, config) for parity in (0, 1, 0, 1)]
    levels.append(Level(last, None, squeeze=Chain(), downscale=1))
    return FlowModel(
        levels,
        channels=config.channels,
        config=config,
        architecture="realnvp",
        capabilities=Capabilities(source="none", tasks=config.tasks, floats_per_pixel=4.0 * config.hidden),
        preprocess=Logit(config.alpha),
        image_size=config.image_size,
    )


def _checkerboard(channels: int, hidden: int, parity: int, config: RealNVPConfig) -> Transform:
    inputs = channels + config.mask_channel
    network = ResidualConditioner(inputs, hidden, channels, blocks=config.blocks, double=True, rescale=0.0)
    coupling = CheckerboardCoupling(network, parity=parity, mask_channel=config.mask_channel)
    return _with_batch_norm(coupling, channels, config)


def _channelwise(channels: int, hidden: int, swap: bool, config: RealNVPConfig) -> Transform:
    half = channels // 2  # channels are a multiple of 4 here
    network = ResidualConditioner(half, hidden, half, blocks=config.blocks, double=False, rescale=1.0)
    return _with_batch_norm(Coupling(network, scaling="exp", swap=swap), channels, config)


def _with_batch_norm(coupling: Transform, channels: int, config: RealNVPConfig) -> Transform:
    return Chain(coupling, BatchNorm(channels)) if config.batch_norm else coupling
