"""How the host manages models and devices, and its Cancel button."""

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

# Called when the host takes a model off its device or drops the last one, to free what was derived from models.
release_callbacks: list[Callable[[], None]] = []
# Called when a person frees the host's memory, to free what was kept for the next run.
free_callbacks: list[Callable[[], None]] = []
model_lock = threading.RLock()  # held while the host moves a model of ours, and while a live picture uses one

_patchers: set[int] = set()  # ids of those that exist; without any, the host has dropped our last model


class _Patcher(comfy.model_patcher.ModelPatcher):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _patchers.add(id(self))
        # The host drops a model that no workflow uses any more without detaching it first.
        weakref.finalize(self, _forget, id(self)).atexit = False

    def detach(self, unpatch_all: bool = True) -> Any:
        with model_lock:
            if unpatch_all:  # False when the host only reloads the same model
                _call(release_callbacks)
                if get_executing_context() is None:  # a person freed memory, not a node that needs room
                    free_kept()
            return super().detach(unpatch_all)


def _forget(patcher: int) -> None:
    _patchers.discard(patcher)
    if not _patchers:  # another thread, because the garbage collector may call this while any lock is held
        threading.Thread(target=_call, args=(release_callbacks,), daemon=True).start()


def free_kept() -> None:
    """Free what was kept for the next run."""
    _call(free_callbacks)


def _call(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()


def wrap(model: torch.nn.Module) -> Any:
    """Hand a model on the CPU to the host, which moves it between devices; return the host's ModelPatcher."""
    # Not CoreModelPatcher, which can move only layers made with `comfy.ops`.
    return _Patcher(model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device())


def load_to_device(patcher: Any, working_memory: int) -> None:
    """Load all of a model onto its device, and keep this many bytes free besides."""
    with model_lock:
        management.load_models_gpu([patcher], memory_required=working_memory, force_full_load=True)


@contextlib.contextmanager
def freed_device() -> Generator[str, None, None]:
    """Unload all models, for work that the host does not manage, such as training; yield the host's device."""
    management.unload_all_models()
    management.soft_empty_cache()
    try:
        yield str(management.get_torch_device())
    finally:
        management.soft_empty_cache()


def to_host_image(image: torch.Tensor) -> torch.Tensor:
    """Move a result to the device and dtype in which the host passes images between nodes."""
    return image.to(device=management.intermediate_device(), dtype=management.intermediate_dtype())


def stop_if_cancelled() -> bool:
    """Raise the host's own interruption after a press on Cancel; else return False. Made for `cancelled` of a task."""
    management.throw_exception_if_processing_interrupted()
    return False
