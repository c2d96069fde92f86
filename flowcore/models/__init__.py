"""What can be loaded: families of models, one folder each; our files, public checkpoints, and the shipped models."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..device import check_device
from ..errors import CheckpointError
from ..flows.model import FlowModel
from . import catalog, colorizer, ffjord, glow, hcflow, llflow, realnvp, residual_flow, srflow, tarflow
from .family import Family, register, register_source
from .model_file import is_flowcore_file, read, read_config, read_header, save
from .published import convert
from .registry import ARCHITECTURES, Architecture, build, configure

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Family",
    "build",
    "catalog",
    "colorizer",
    "configure",
    "convert",
    "ffjord",
    "glow",
    "hcflow",
    "llflow",
    "load",
    "read",
    "read_config",
    "read_header",
    "realnvp",
    "register",
    "register_source",
    "residual_flow",
    "save",
    "srflow",
    "tarflow",
]


def load(path: str | Path, device: str | torch.device = "cpu", **config_overrides: Any) -> FlowModel:
    """Load a model: a shipped one by name, a file in our format, or a public checkpoint, which is converted in memory.

    Args:
        path: Name of a shipped model (see ``catalog.names``), or else a file.
        device: Device of the model.
        config_overrides: Configuration fields that replace the file's, or that a public checkpoint does not determine,
            e.g. ``stacked_blocks=(1, 8, 15, 22)`` or ``n_bits=5``.

    Returns:
        The flow, in float32 and evaluation mode.

    Raises:
        CheckpointError: If there is no such model, or flowcore cannot read the file.
        FlowError: If there is no such device.
    """
    device = check_device(device)
    name, file = str(path), Path(path)
    if catalog.is_shipped(name):
        file = catalog.path(name)
        if not is_flowcore_file(file):
            raise catalog.unusable(name, "is damaged, or only stands for it (Git LFS)")
    try:
        file = file.expanduser()
        exists = file.exists()
    except (OSError, ValueError, RuntimeError):  # name too long, zero byte, unknown ~user
        exists = False
    if not exists:
        shipped = ", ".join(catalog.names()) or "none"
        raise CheckpointError(
            f"There is no file {str(file)[:200]}, and no shipped model of that name (shipped: {shipped}). Check "
            "the name."
        )
    flow = read(file, config_overrides) if is_flowcore_file(file) else convert(file, config_overrides)
    return flow.to(device)


class _CallableModule(ModuleType):
    """``flowcore.models``: the architectures; called, it lists the shipped models."""

    __call__ = staticmethod(catalog.models)


sys.modules[__name__].__class__ = _CallableModule
