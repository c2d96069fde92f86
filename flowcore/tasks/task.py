"""The row of a task: what commands, batches of files and ``verify`` read of it, so that none of them knows its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..engine.options import RunOptions, options_of
from ..flows.model import FlowModel
from ..flows.model import Task as ModelTask

Size = tuple[int, int]  # height and width
AUTO = "auto"  # the upscaler that suits each picture


def same_size(scale: int, size: Size, settings: Mapping[str, Any], picture: bytes | Path) -> Size:
    """Return the size of a picture for that of its result."""
    return size


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task that makes pictures of picture files.

    ``size`` computes the size of a result of a model's scale, a picture's size, settings, and the picture's file.
    ``check`` raises FlowError for a model that lacks something else. ``of_file`` runs it on a picture, with the content
    of its file and all values of a ``JobSpec`` by name; by default ``run`` gets those that are its options.
    """

    name: str  # its command's name
    settings: type[RunOptions]
    run: Callable[..., Any]
    needs: ModelTask  # what its model must be made for
    node: str  # class of the node that makes the same; without one, the task's name
    model: str = AUTO  # name of its command's default model
    label: str = ""  # part of the names of its results, before those of its options
    undoes: str = ""  # label of the task of whose results it takes; names of its own leave it out
    lossless: tuple[int, ...] = ()  # bits per channel of results that are PNG files only, the default first
    traced: bool = False  # whether ``verify`` takes the seed of its results from their provenance
    draws: bool = True  # whether it has samples, which seeds tell apart
    keeps_gray: bool = True  # whether it takes a gray picture in one channel, and its results are gray
    enlarges: bool = False  # whether to ask before results that are too large
    size: Callable[[int, Size, Mapping[str, Any], bytes | Path], Size] = same_size
    text: Callable[[Tensor], dict[str, str]] = lambda _: {}  # what PNG files of an image's results state
    check: Callable[[FlowModel], object] = lambda _: None
    of_file: Callable[[FlowModel, Tensor, bytes, dict[str, Any]], Tensor] | None = None

    def make(self, flow: FlowModel, image: Tensor, content: bytes, values: dict[str, Any]) -> Tensor:
        """Run the task on an image ``(B, C, H, W)``; see ``of_file``."""
        if self.of_file is not None:
            return self.of_file(flow, image, content, values)
        return self.run(flow, image, **self.chosen(values))

    def require(self, flow: FlowModel) -> None:
        """Raise FlowError if a model cannot do the task."""
        flow.require(self.needs)
        self.check(flow)

    def chosen(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Select the values that are options of the task."""
        names = {option.name for option in options_of(self.settings)}
        return {name: value for name, value in values.items() if name in names}
