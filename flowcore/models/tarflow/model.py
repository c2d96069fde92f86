"""TarFlow: patches of an image, each predicted from those before it by a transformer.

Source: Zhai, Zhang, Nakkiran, Berthelot, Gu, Zheng, Chen, Bautista, Jaitly, Susskind, "Normalizing flows are capable
generative models" (2024).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from ...errors import FlowError
from ...flows.condition import Condition
from ...flows.flow import Level
from ...flows.model import Capabilities, FlowModel, Task
from ...flows.transforms import Autoregression, FixedAffine, Squeeze, Transform, Variances
from ..fields import Range, check_fields, short_repr, size_tuple
from ..inputs import label_weights
from .causal_transformer import CausalTransformer


@dataclass(frozen=True, kw_only=True)
class TarFlowConfig:
    """Configuration of a TarFlow; the defaults are the published network for 256x256 pixels, without labels."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"sample"})

    channels: Literal[1, 3] = 3
    image_size: tuple[int, int] = (256, 256)  # height and width, or a square's side; the model accepts no other size
    patch: Annotated[int, Range(1, 256)] = 8  # side of a patch in pixels
    width: Annotated[int, Range(1, 16384)] = 768  # channels of the transformers' features
    blocks: Annotated[int, Range(1, 256)] = 8  # transformers; every other one begins with the last patch
    layers: Annotated[int, Range(1, 256)] = 8  # layers of a transformer
    head: Annotated[int, Range(1, 1024)] = 64  # width of an attention head, a divisor of ``width``
    hidden: Annotated[int, Range(1, 65536)] = 3072  # width of the perceptrons
    scale: bool = True  # whether patches are scaled, too, or only shifted
    variances: bool = False  # whether the variances of the latents are learned, which scale = false needs
    classes: Annotated[int, Range(0, 10_000)] = 0  # labels, 0 for none; ``classes`` itself means "unlabeled"
    labels: tuple[str, ...] = ()  # their names, or none
    # Standard deviation of the Gaussian noise of the training images, where black is -1 and white 1; 0 for uniform
    # dequantization.
    noise: Annotated[float, Range(0, 1)] = 0.0
    n_bits: Annotated[int, Range(1, 8)] = 8  # bits per subpixel of the images that it models
    grid: Literal["bins", "levels"] = "bins"  # where pixel values lie in [0, 1]; see ``GlowConfig``

    def __post_init__(self) -> None:
        check_fields(self)
        size = size_tuple(self.image_size, self.patch)
        if size is None:
            raise FlowError(f"image_size must be given, e.g. 256: a patch's place is learned; got {self.image_size!r}.")
        object.__setattr__(self, "image_size", size)
        if self.width % self.head:
            raise FlowError(f"width must be a multiple of head, {self.head}; got {self.width}.")
        if self.labels and len(self.labels) != self.classes:
            raise FlowError(f"labels must be {self.classes} names, one for each class; got {short_repr(self.labels)}.")


def tarflow(config: TarFlowConfig) -> FlowModel[TarFlowConfig]:
    """Build a TarFlow of images ``(B, channels, H, W)`` in [0, 1]; with ``classes``, it is conditioned on labels."""
    height, width = (side // config.patch for side in config.image_size)
    channels = config.channels * config.patch**2
    steps: list[Transform] = [
        Autoregression(
            CausalTransformer(
                channels,
                2 * channels if config.scale else channels,
                positions=height * width,
                width=config.width,
                layers=config.layers,
                head=config.head,
                hidden=config.hidden,
                classes=config.classes,
            ),
            scale=config.scale,
            reverse=block % 2 == 1,
        )
        for block in range(config.blocks)
    ]
    if config.variances:
        steps.append(Variances(channels, height, width))
    source = "labels" if config.classes else "none"
    # Memory: keys and values of all layers of a block, or features of one; of all where a gradient removes noise.
    decoding = (2 if config.classes else 1) * config.layers * 2 * config.width
    features = 8 * config.width + 2 * config.hidden
    floats = max(decoding, features, config.layers * (features - 4 * config.width) if config.noise else 0)
    return FlowModel(
        [Level(steps, None, squeeze=Squeeze(config.patch), downscale=config.patch)],
        channels=config.channels,
        config=config,
        architecture="tarflow",
        capabilities=Capabilities(
            source=source, tasks=config.tasks, floats_per_pixel=floats / config.patch**2, guided=config.classes > 0
        ),
        preprocess=FixedAffine(0.5, 0.5),
        condition_encoder=_encode_labels if config.classes else None,
        classes=config.classes,
        image_size=config.image_size,
        fixed_size=True,
    )


def _encode_labels(flow: FlowModel, labels: Tensor) -> Condition:
    if labels.ndim == 1 and not labels.is_floating_point() and bool((labels == flow.classes).any()):
        weights = label_weights(labels, flow.classes + 1)
        weights = weights[:, :-1] + weights[:, -1:] / flow.classes  # unlabeled items: the mean over all classes
    else:
        weights = label_weights(labels, flow.classes)
    return Condition(features=(None,), labels=weights.to(next(flow.parameters()).dtype))
