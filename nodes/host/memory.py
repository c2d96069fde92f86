"""The host's care for models and devices, and its Cancel button."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false

import contextlib
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import torch
from comfy_execution.utils import get_executing_context

Interrupted: type[BaseException] = management.InterruptProcessingException  # no Exception; see `stop_if_cancelled`

# Called when the host takes a model off its device, or has dropped the last, to free what was derived from models.
on_release: list[Callable[[], None]] = []
# Called when a person frees the host's memory, to free what was kept for the next run.
on_free: list[Callable[[], None]] = []
moving = threading.RLock()  # held while the host moves a model of ours, and by whoever computes with one outside a run

_alive: set[int] = set()


class _Patcher(comfy.model_patcher.ModelPatcher):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _alive.add(id(self))
        # The host drops a model that no workflow uses any more without detaching it, and frees nothing for it later.
        weakref.finalize(self, _gone, id(self)).atexit = False

    def detach(self, unpatch_all: bool = True) -> Any:
        with moving:
            if unpatch_all:  # False when the host reloads the same model
                _release()
                if get_executing_context() is None:  # or else a node makes room for another model
                    free_kept()
            return super().detach(unpatch_all)


def _gone(patcher: int) -> None:
    _alive.discard(patcher)
    if not _alive:  # in a thread of its own, since Python collects garbage wherever it is, with any lock held
        threading.Thread(target=_release, daemon=True).start()


def free_kept() -> None:
    """Free what was kept for the next run."""
    for free in on_free:
        free()


def _release() -> None:
    for release in on_release:
        release()


def wrap(model: torch.nn.Module) -> Any:
    """Hand a model on the CPU to the host, which moves it between devices; return the host's ModelPatcher."""
    # Not CoreModelPatcher: that one may move only layers made by `comfy.ops`.
    return _Patcher(model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device())


def load_to_device(patcher: Any, working_memory: int) -> None:
    """Load all of a model onto its device, with so many bytes to work besides the weights."""
    with moving:
        management.load_models_gpu([patcher], memory_required=working_memory, force_full_load=True)


@contextlib.contextmanager
def freed_device() -> Generator[str, None, None]:
    """Unload all models for work outside the host's care, such as training; yield the host's device."""
    management.unload_all_models()
    management.soft_empty_cache()
    try:
        yield str(management.get_torch_device())
    finally:
        management.soft_empty_cache()


def to_host_image(image: torch.Tensor) -> torch.Tensor:
    """Move a result to the device and dtype in which the host passes images between nodes."""
    dtype = management.intermediate_dtype()
    return image.to(device=management.intermediate_device(), dtype=dtype)


def stop_if_cancelled() -> bool:
    """Raise the host's own interruption after a press on Cancel; otherwise return False."""
    management.throw_exception_if_processing_interrupted()
    return False
