"""Images in the size and channels that a model takes, with the labels or small images that it is conditioned on."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..device import or_on_cpu
from ..errors import Argument, ConditionError, FlowError, ImageError, ShapeError, say
from ..flows.condition import Condition
from ..flows.model import FlowModel
from ..images.color import luma
from ..images.files import fit as fit_image
from ..images.resize import downsample
from .image_batch import ImageBatch, require_tensor, to_float
from .options import ReportOptions
from .runner import Runner, runs_with

Fit = Literal["resize", "crop"]
Labels = int | str | Sequence[int | str] | Tensor

SOURCE_IGNORED = say("source is ignored: only upscaling models take a small image.")


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelInput:
    """Images in the size and channels of a model, and what it is conditioned on."""

    pixels: Tensor  # (B, C, H, W) in [0, 1]
    labels: Tensor | None  # (B,)
    source: Tensor | None  # small images of upscaling models, (1 or B, 3, h, w) in [0, 1]

    def condition(self, flow: FlowModel, **options: Any) -> Condition | None:
        """Encode the labels or small images; see ``condition_for``."""
        return condition_for(flow, self.labels, self.source, **options)


def prepare_input(
    flow: FlowModel,
    image: Tensor,
    *,
    fit: Fit = "resize",
    label: int = -1,
    source: Tensor | None = None,
    notify: Callable[[str], None],
) -> ModelInput:
    """Convert images of any size to the channels and a size that a model takes, and collect what it is conditioned on.

    ``fit`` "resize" covers the size that the model was made for and crops the middle; "crop" only crops, to the largest
    size that the model takes. ``label`` is that of all images, -1 for none; ``source``, for upscaling models, the small
    images that belong to these, None for the images themselves, shrunk.
    """
    require_whole_images(flow)
    upscales = flow.capabilities.source == "low_resolution"
    pixels, lr = _with_channels(image, flow.channels), None
    if upscales and source is not None:
        pixels, lr = _crop_pair(flow, pixels, _with_channels(source, 3))
    else:
        pixels = _fit_size(flow, pixels, fit)
        if source is not None:
            notify(SOURCE_IGNORED)
        if upscales:
            lr = downsample(pixels, flow.condition_scale).clamp(0, 1)
            notify(
                say(
                    "No source was given: the image, shrunk {scale} times, is used instead.", scale=flow.condition_scale
                )
            )
    labels = None
    if flow.classes:
        if not 0 <= label < flow.classes:
            raise ConditionError(
                "This model needs to know what an image shows: set label to 0 to {most}; got {label}.",
                most=flow.classes - 1,
                label=label,
            )
        labels = torch.full((len(pixels),), label)
    elif label >= 0:
        notify(say("label is ignored: this model has no labels."))
    return ModelInput(pixels=pixels, labels=labels, source=lr)


def require_whole_images(flow: FlowModel) -> None:
    """Raise FlowError for a colorizer or a low-light model, which do not make pictures from latents alone."""
    refused = {
        "luma": "A colorizer makes colors for the luma of a photograph. Load a model of whole images, such as "
        "glow-photos; or use Flow Colorize, which accepts latents, and Flow Encode Color, which encodes a picture's "
        "colors.",
        "low_light": "A low-light model makes pictures from a dark photograph only. Load a model such as glow-photos; "
        "or use Flow Brighten, or in Python flow.encode_condition(dark) with encode, decode and score.",
    }
    if flow.capabilities.source in refused:
        raise FlowError(refused[flow.capabilities.source])


@runs_with(ReportOptions)
def condition_for(
    flow: FlowModel, labels: Tensor | None, source: Tensor | None, *, settings: ReportOptions
) -> Condition | None:
    """Encode the labels or small images that a flow is conditioned on, in strips; None for unconditional models."""
    inputs = labels if flow.classes else source
    if inputs is None:
        return None
    run = Runner(flow, settings, say("Pass fewer or smaller images."), inputs)
    return run.retry_on_oom(lambda: run.compiled.encode_condition(run.to_device(inputs)))


def source_for_latents(
    flow: FlowModel, latents: Sequence[Tensor], source: Tensor | None, notify: Callable[[str], None]
) -> Tensor | None:
    """Check the small image under which latents of an upscaling model are decoded; None for other models."""
    if flow.capabilities.source != "low_resolution":
        if source is not None:
            notify(SOURCE_IGNORED)
        return None
    if source is None:
        raise ConditionError(
            "These latents of an upscaling model came without their small image. Connect it, or another one of its "
            "size, as source."
        )
    small = _with_channels(source, 3)
    sides = tuple(side // flow.condition_scale for side in size_of_latents(flow, latents))
    if tuple(small.shape[-2:]) != sides or len(small) not in (1, len(latents[0])):
        raise ShapeError(
            "source must be one image or {count}, of {expected_size} (height x width) for these latents; got {sources} "
            "of {source_size}. Resize or crop it to that.",
            count=len(latents[0]),
            expected_size=f"{sides[0]}x{sides[1]}",
            sources=len(small),
            source_size=f"{small.shape[-2]}x{small.shape[-1]}",
        )
    return small


def size_of_latents(flow: FlowModel, latents: Sequence[Tensor]) -> tuple[int, int]:
    """Compute height and width of the images that latents decode to."""
    if flow.fixed_size and flow.image_size is not None:
        return flow.image_size
    height, width = (side * flow.size_multiple for side in latents[-1].shape[-2:])
    return height, width


def _with_channels(image: Tensor, channels: int) -> Tensor:
    """Convert images to 1 or 3 channels in [0, 1], without alpha."""
    images = ImageBatch(image)
    if channels != 1:
        return images.rgb
    return images.rgb[:, :1] if images.channels == 1 else luma(images.rgb)


def _fit_size(flow: FlowModel, pixels: Tensor, fit: Fit) -> Tensor:
    height, width = pixels.shape[-2:]
    model_size = flow.image_size
    if model_size is not None and fit == "resize":
        factor = max(model_size[0] / height, model_size[1] / width)  # one side fits, the other is at least as long
        covering = max(model_size[0], round(height * factor)), max(model_size[1], round(width * factor))
        if covering != (height, width):
            pixels = or_on_cpu(partial(F.interpolate, size=covering, mode="bicubic", antialias=True), pixels).clamp(
                0, 1
            )
        return _middle(pixels, *model_size)
    multiple = math.lcm(flow.size_multiple, flow.condition_scale)
    target = height // multiple * multiple, width // multiple * multiple
    if model_size is not None and flow.fixed_size:
        target = model_size
    if min(target) < 1 or height < target[0] or width < target[1]:
        least = model_size or (multiple, multiple)
        raise ImageError(
            "This model takes images of at least {least} (height x width); got {size}, which cannot be cropped to "
            "that. {advice}",
            least=f"{least[0]}x{least[1]}",
            size=f"{height}x{width}",
            advice=say("Set {fit} to resize.", fit=Argument("fit")) if model_size else say("Pass a larger image."),
        )
    return _middle(pixels, *target)


def _middle(pixels: Tensor, height: int, width: int) -> Tensor:
    row, column = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    return pixels[..., row : row + height, column : column + width]


def _crop_pair(flow: FlowModel, pixels: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Crop large images and the small ones that belong to them, right and bottom, to sizes that the model takes."""
    factor = flow.condition_scale
    sides = tuple(factor * side for side in source.shape[-2:])
    if tuple(pixels.shape[-2:]) != sides or len(source) not in (1, len(pixels)):
        raise ShapeError(
            f"source must be {factor} times smaller than the image, and one image or as many: expected images of "
            f"{sides[0]}x{sides[1]} for a source of {source.shape[-2]}x{source.shape[-1]}; got {len(pixels)} images of "
            f"{pixels.shape[-2]}x{pixels.shape[-1]} and {len(source)} sources. Resize one of the two."
        )
    step = math.lcm(flow.size_multiple, factor) // factor
    height, width = (side // step * step for side in source.shape[-2:])
    if min(height, width) < 1:
        raise ImageError(
            f"This model takes sources of at least {step}x{step}; got {source.shape[-2]}x{source.shape[-1]}. Pass a "
            "larger image."
        )
    return pixels[..., : factor * height, : factor * width], source[..., :height, :width]


def check_labels(flow: FlowModel, labels: Labels | None, n: int) -> Tensor | None:
    """Convert labels to integers (n,) or weights (n, classes); the model checks whether they exist."""
    if not flow.classes:
        if labels is not None:
            raise ConditionError(f"This {flow.architecture} model is not conditioned on labels. Leave them out.")
        return None
    names = label_names(flow)
    known = f"labels 0 to {flow.classes - 1}" + (f" ({', '.join(names)})" if names else "")
    if labels is None:
        raise ConditionError(f"This model is conditioned on {known}; got none. Set labels.")
    if not isinstance(labels, Tensor):
        several = labels if isinstance(labels, Sequence) and not isinstance(labels, str) else [labels]
        if any(isinstance(label, str) for label in several):
            labels = [label_number(flow, label) for label in several]
    tensor = torch.as_tensor(labels)
    numbers = tensor.ndim < 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool
    weights = tensor.ndim == 2 and tensor.is_floating_point() and tensor.shape[1] == flow.classes
    if not (numbers or weights) or not tensor.numel():
        raise ConditionError(
            f"This model is conditioned on {known}: expected one whole number, several, or weights of shape (n, "
            f"{flow.classes}); got a {str(tensor.dtype).removeprefix('torch.')} tensor of shape {tuple(tensor.shape)}."
        )
    if numbers:
        tensor = tensor.long().reshape(-1)
    if len(tensor) not in (1, n):
        raise ConditionError(
            "Got {labels} labels for {images} images. Pass one for all, or one per image.", labels=len(tensor), images=n
        )
    return tensor.expand(n, *tensor.shape[1:])


def label_names(flow: FlowModel) -> tuple[str, ...]:
    """Return the names of a model's labels; none if it has none."""
    return flow.facts.labels


def label_number(flow: FlowModel, label: int | str) -> int:
    """Return the number of a label, which may be its name; ConditionError if the name is unknown."""
    names = [name.lower() for name in label_names(flow)]
    word = str(label).strip().lower()
    if word in names:
        return names.index(word)
    if not re.fullmatch(r"-?[0-9]{1,9}", word):
        numbers = f"0 to {flow.classes - 1}"
        raise ConditionError(f"This model knows the labels {', '.join([*names, numbers])}; got {word[:60]!r}.")
    return int(word)


def check_image(flow: FlowModel, image: Tensor) -> Tensor:
    """Convert images that the flow takes, uint8 or float in [0, 1], to its precision; values are not clamped."""
    require_tensor(image)
    if image.ndim != 4 or image.shape[1] != flow.channels:
        hint = " Convert color to gray first." if flow.channels == 1 and image.ndim == 4 else ""
        raise ShapeError(f"Expected images of shape (B, {flow.channels}, H, W); got {tuple(image.shape)}.{hint}")
    pixels = to_float(image, next(flow.parameters()).dtype)
    flow.latent_shapes(*pixels.shape[-2:])  # raises ShapeError for a size that does not fit
    return pixels


def check_latents(latents: Sequence[Tensor]) -> list[Tensor]:
    """Check that latents are a list of one batch; the flow checks whether they are its own."""
    levels: list[Any] = list(latents) if isinstance(latents, (list, tuple)) else []
    if wrong := [z for z in levels if not isinstance(z, Tensor) or z.is_meta]:
        raise ShapeError(f"Expected latents as tensors with values; got {wrong[0]!r:.60}.")
    if not levels or any(z.ndim != 4 or z.shape[0] != levels[0].shape[0] or 0 in z.shape for z in levels):
        shapes = [tuple(z.shape) for z in levels] or type(latents).__name__
        raise ShapeError(f"Expected a list of latents of one batch, finest first, each (B, C, H, W); got {shapes}.")
    return levels


def resize_to_own(flow: FlowModel, image: Image.Image) -> Tensor:
    """Resize an RGB image to cover a model's own size, and crop its middle: ``(C, H, W)`` uint8."""
    if flow.image_size is None:
        fixed = "Load it with image_size=..., e.g. 32 (--set image_size=32 on the command line)."
        advice = fixed if hasattr(flow.config, "image_size") else "Take one that has, such as glow-photos."
        raise FlowError(f"This {flow.architecture} model has no image size of its own. {advice}")
    return fit_image(image, flow.image_size, flow.channels)
