"""Class-conditional flow: the label determines which digit, the latents how it is written.

Source: Ardizzone, Lüth, Kruse, Rother, Köthe, "Guided Image Generation with Conditional Invertible Neural Networks"
(2019), section 4.1 and its MNIST implementation: fixed permutations of all pixels between two-sided couplings with
fully connected networks, which see the label. Style directions are ours: see ``training.styles``.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...errors import FlowError
from ...flows.condition import Condition
from ...flows.flow import Level
from ...flows.model import Capabilities, FlowModel, Task
from ...flows.networks.conditioner import MLPConditioner
from ...flows.transforms import Coupling, FixedAffine, Flatten, Permutation, Transform
from ..fields import Range, check_fields, short_repr, size_tuple
from ..inputs import label_weights


@dataclass(frozen=True, kw_only=True)
class ClassConditionalConfig:
    """Configuration of a class-conditional flow; the defaults are a third of the published network."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"sample"})

    channels: Literal[1, 3] = 1
    image_size: tuple[int, int] = (28, 28)  # height and width, or the side of a square; the model accepts no other size
    classes: Annotated[int, Range(1, 1000)] = 10  # labels; the label ``classes`` means "unlabeled"
    steps: Annotated[int, Range(1, 64)] = 10  # pairs of couplings
    hidden: Annotated[int, Range(1, 4096)] = 256  # width of their networks
    shift: Annotated[float, Range(-10, 10, open=True)] = 0.128  # pixel value that becomes 0
    width: Annotated[float, Range(1e-6, 100, open=True)] = 0.305  # difference in pixel value that becomes 1
    n_bits: Annotated[int, Range(1, 8)] = 8  # bits per subpixel of the images that it models
    grid: Literal["bins", "levels"] = "bins"  # where pixel values lie in [0, 1]; see ``GlowConfig``
    styles: tuple[str, ...] = ()  # names of the style directions stored with the weights

    def __post_init__(self) -> None:
        check_fields(self)
        size = size_tuple(self.image_size, 1)
        if size is None or self.channels * size[0] * size[1] > 2**16:
            raise FlowError(
                f"image_size must be given, and have at most 65536 subpixels; got {short_repr(self.image_size)}."
            )
        object.__setattr__(self, "image_size", size)


def class_conditional(config: ClassConditionalConfig) -> FlowModel[ClassConditionalConfig]:
    """Build a flow of images ``(B, channels, H, W)`` in [0, 1]; its condition is encoded from labels."""
    size = config.channels * config.image_size[0] * config.image_size[1]
    inputs, outputs = size // 2, size - size // 2
    label_inputs = config.classes + 1
    steps: list[Transform] = []
    for _ in range(config.steps):
        steps += [
            Permutation(torch.randperm(size)),
            Coupling(MLPConditioner(inputs + label_inputs, config.hidden, 2 * outputs), scaling="atan"),
            Coupling(MLPConditioner(outputs + label_inputs, config.hidden, 2 * inputs), scaling="atan", swap=True),
        ]
    return FlowModel(
        [Level(steps, None, squeeze=Flatten(config.channels, *config.image_size), downscale=0)],
        channels=config.channels,
        config=config,
        architecture="class_conditional",
        capabilities=Capabilities(source="labels", tasks=config.tasks),
        preprocess=FixedAffine(config.shift, config.width),
        condition_encoder=_encode_labels,
        classes=config.classes,
        image_size=config.image_size,
        fixed_size=True,
        styles=config.styles,
    )


def _encode_labels(flow: FlowModel, labels: Tensor) -> Condition:
    if labels.ndim == 2 and labels.shape[1] == flow.classes:  # weights of the classes alone
        labels = torch.cat([labels, labels.new_zeros(len(labels), 1)], dim=1)
    weights = label_weights(labels, flow.classes + 1).to(next(flow.parameters()).dtype)
    return Condition(features=(weights[:, :, None, None],))  # couplings read features, not ``labels``
