"""FlowModel: a flow with its configuration, what it can do, and the networks around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from ..errors import ConditionError, FlowError, say
from .condition import Condition
from .flow import Flow, Level
from .stated import Facts, Recommendations
from .transforms import Transform

SourceKind = Literal["none", "low_resolution", "luma", "labels", "low_light"]
Task = Literal["upscale", "colorize", "sample", "rescale", "brighten"]
TASKS: dict[Task, tuple[str, str]] = {  # the task in messages, and a model that is made for it
    "upscale": (say("upscale"), say("a model that enlarges images, such as srflow-x4")),
    "colorize": (say("colorize"), say("a colorizer, such as color-photos")),
    "sample": (say("sample"), say("a model that makes images from latents alone, such as glow-photos")),
    "rescale": (say("rescale"), say("a model that shrinks images and restores them, such as rescale-x4")),
    "brighten": (say("brighten"), say("a low-light model, such as brighten-photos")),
}
UNGUIDED = "Guidance is for models with labels that were made for it, such as TarFlow"


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a model can do and what it needs, as stated by its builder. Any flow encodes, decodes and scores."""

    source: SourceKind  # what its condition is encoded from; "luma" has hints, too, "low_light" is a dark photograph
    tasks: frozenset[Task]  # what it is made for
    floats_per_pixel: float = 0.0  # peak working memory of its networks, per pixel of the image; 0 if negligible
    guided: bool = False  # whether decoding takes classifier-free guidance; see ``transforms.Guidance``


class Config(Protocol):
    """A model's frozen dataclass of JSON types; see ``models``."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


C = TypeVar("C", bound=Config, default=Any)


class FlowModel(Flow, Generic[C]):
    """A flow that was built from a configuration, with the networks around it; ``load`` and the models return it.

    >>> flow = flowcore.load("glow-photos")
    >>> flow.architecture, sorted(flow.capabilities.tasks)
    ('glow', ['sample'])
    >>> flow.log_prob(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2])

    Attributes:
        config: The frozen configuration that the model was built from.
        architecture: Its registered name; see ``models.register``.
        capabilities: What it can do.
        encoder: Network that ``condition_encoder`` uses, if any.
        condition_encoder: From this model and the source to the condition; None for an unconditional model.
        source_input: From a whole source to what tiles are cut from, where a tile alone would not do; None elsewhere.
        condition_scale: Integer factor from the source's sides to the image's.
        classes: Number of labels that the model is conditioned on; 0 for none.
        dequantizer: Model of the dequantization noise that is trained with the flow; not part of the bijection.
        styles: Named directions in the latent space of ``image_size``, which are stored with the weights.
        guide: Network from the source to a plain HR image, whose latents may guide those that are drawn; not part of
            the bijection.
        provenance: Source, license and metrics, as its file states them.
    """

    style_directions: Tensor

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        channels: int,
        config: C,
        architecture: str,
        capabilities: Capabilities,
        preprocess: Transform | None = None,
        top_prior: Transform | None = None,
        image_size: int | Sequence[int] | None = None,
        fixed_size: bool = False,
        encoder: nn.Module | None = None,
        condition_encoder: Callable[[FlowModel[C], Tensor], Condition] | None = None,
        source_input: Callable[[Tensor], Tensor] | None = None,
        condition_scale: int = 1,
        classes: int = 0,
        predicts_lr: bool = False,
        dequantizer: nn.Module | None = None,
        styles: Sequence[str] = (),
        guide: nn.Module | None = None,
    ) -> None:
        """Assemble a model, as the builders in ``models`` do: from the arguments of ``Flow``, and attributes above.

        ``styles`` are the names of directions, whose values are zero until they are loaded.
        """
        super().__init__(
            levels,
            channels=channels,
            preprocess=preprocess,
            top_prior=top_prior,
            image_size=image_size,
            fixed_size=fixed_size,
            predicts_lr=predicts_lr,
        )
        self.config, self.architecture, self.capabilities = config, architecture, capabilities
        self.encoder, self.condition_encoder, self.condition_scale = encoder, condition_encoder, condition_scale
        self.source_input, self.conditional = source_input, condition_encoder is not None
        self.classes, self.dequantizer, self.guide = classes, dequantizer, guide
        self.provenance: dict[str, Any] = {}
        self._style_names = tuple(styles)
        if styles:
            assert self.image_size is not None
            dimensions = sum(math.prod(shape) for shape in self.latent_shapes(*self.image_size))
            self.register_buffer("style_directions", torch.zeros(len(styles), dimensions))

    @property
    def facts(self) -> Facts:
        """What the configuration states about purpose and training."""
        return Facts.of(self.config)

    @property
    def recommended(self) -> Recommendations:
        """How to sample, as the configuration states it."""
        return Recommendations.of(self.config)

    @staticmethod
    def of(flow: Flow) -> FlowModel:
        """Return a model unchanged; make one without a configuration of a flow that was assembled by hand."""
        if isinstance(flow, FlowModel):
            return flow
        model = FlowModel[Any](
            flow._levels(),
            channels=flow.channels,
            config=None,
            architecture="custom",
            capabilities=Capabilities(source="none", tasks=frozenset({"sample"})),
            preprocess=flow.preprocess,
            top_prior=flow.top_prior,
            image_size=flow.image_size,
            fixed_size=flow.fixed_size,
            predicts_lr=flow.predicts_lr,
        )
        # the same list of levels: they share a cached compiled flow
        model.conditional, model.levels = flow.conditional, flow.levels
        return model

    def encode_condition(self, source: Tensor) -> Condition:
        """Encode the condition from its source; once per image, for any number of samples.

        Args:
            source: As the model's builder says (SRFlow: LR image, ``(B, 3, h, w)`` in [0, 1]; class-conditional models:
                labels, whole numbers ``(B,)`` or weights ``(B, classes)``).

        Returns:
            The condition for ``forward`` and ``inverse``.

        Raises:
            ConditionError: If the flow is unconditional.
            ShapeError: If the model does not accept a source of that shape, or there is none.
            PrecisionError: If an image is not in the precision of the model's parameters.
        """
        if self.condition_encoder is None:
            raise ConditionError(f"This {self.architecture} model is unconditional; call it without a condition.")
        if self.capabilities.source != "labels":
            self._check_values(source)
        return self.condition_encoder(self, source)

    def require(self, task: Task) -> None:
        """Raise FlowError unless the model is made for a task; the message names a model that is."""
        tasks = self.capabilities.tasks
        if task not in tasks:
            (name, suitable), purposes = TASKS[task], [TASKS[each][0] for each in sorted(tasks)]
            raise FlowError(
                "{task} needs {suitable}; got a model{purpose} ({architecture}).",
                task=name,
                suitable=suitable,
                purpose=say(" made to {tasks}", tasks=purposes) if tasks else "",
                architecture=self.architecture,
            )

    @property
    def styles(self) -> dict[str, list[Tensor]]:
        """Named directions in latent space, each a list of latents of batch 1; see ``latents.add``."""
        if not self._style_names:
            return {}
        assert self.image_size is not None
        shapes = self.latent_shapes(*self.image_size)
        sizes = [math.prod(shape) for shape in shapes]
        return {
            name: [part.reshape(1, *shape) for part, shape in zip(direction.split(sizes), shapes, strict=True)]
            for name, direction in zip(self._style_names, self.style_directions, strict=True)
        }

    def reduce(self, x: Tensor) -> Tensor:
        """Compute the flow's own LR image ``(B, C, h, w)``, not clamped: its last output, without a condition.

        Raises:
            ShapeError: If the model does not accept images of that shape.
            ConditionError: If the flow does not predict it.
        """
        self._check_image(x)
        if not self.predicts_lr:
            raise ConditionError(f"The last level of a {self.architecture} model is not an image; encode it instead.")
        x = x if self.preprocess is None else self.preprocess(x)[0]
        for level in self._levels():
            x = level.steps(level.squeeze(x)[0])[0]
            x = x if level.split is None else level.split(x)[0][0]
        return x

    def _check_condition(self, cond: Condition | None, batch: int) -> Condition:
        checked = super()._check_condition(cond, batch)
        labels, is_assembled_by_hand = checked.labels, self.conditional is None
        if labels is not None and labels.shape[1:] != (self.classes,) and not is_assembled_by_hand:
            raise ConditionError(
                f"Expected labels of {self.classes} classes; the condition has labels of shape {tuple(labels.shape)}. "
                "Use this model's encode_condition, with one label per image."
            )
        if checked.guidance is not None and not self.capabilities.guided:
            raise ConditionError(f"{UNGUIDED}; got a {self.architecture} model.")
        return checked
