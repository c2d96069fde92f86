"""flowcore: normalizing flows for images, self-contained.

    image -> task -> flow (+ condition) -> latents -> flow -> image

>>> flow, small = flowcore.load("srflow-x4"), torch.rand(1, 3, 12, 16)
>>> flowcore.upscale(flow, small, temperature=0.8, seed=1).shape
torch.Size([1, 3, 48, 64])
>>> flowcore.temperature_grid(flow, small, [0.0, 0.5, 0.8]).shape
torch.Size([3, 3, 48, 64])
>>> flowcore.upscale_video(flow, torch.rand(2, 3, 12, 16)).shape
torch.Size([2, 3, 48, 64])
>>> flowcore.colorize_video(flowcore.load("color-photos"), torch.rand(2, 1, 48, 64)).shape
torch.Size([2, 3, 48, 64])
>>> flowcore.CompiledFlow(flow).encode_condition(small).batch  # an optimized flow, as tasks run it
1
>>> flowcore.save(flow, "mine.safetensors", provenance={"source": "my own"})

``CONTRIBUTING.md`` lists the folders, and an order for a first reading. ``testing.py`` checks transforms and models of
your own.
"""

import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if (
    _is_command := sys.orig_argv[1:3] == ["-m", "flowcore"]
    or "".join(sys.argv[:1]).endswith(("flowcore", "flowcore.exe"))
) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports without a traceback; ``cli.main`` resets it

if _missing := ", ".join(
    name for name in ("torch", "numpy", "PIL", "safetensors", "filelock", "tqdm") if not find_spec(name)
):
    _advice = f"flowcore needs {_missing}. Outside ComfyUI, install them all, in a clone: pip install -e '.[python]'"
    if _is_command:  # a command shows no traceback
        sys.exit(_advice)
    raise ImportError(_advice)

from .errors import VERSION as __version__

__all__ = [
    "Audit",
    "Cancelled",
    "CheckpointError",
    "ColorMemory",
    "CompiledFlow",
    "Condition",
    "ConditionError",
    "Credentials",
    "Face",
    "Family",
    "Flow",
    "FlowError",
    "FlowModel",
    "Guidance",
    "Hints",
    "ImageError",
    "PrecisionError",
    "Score",
    "ShapeError",
    "Trace",
    "Transform",
    "Verification",
    "__version__",
    "apply_chroma",
    "audit",
    "brighten",
    "clean",
    "colorize",
    "colorize_video",
    "decode",
    "decode_colors",
    "encode",
    "encode_colors",
    "find_faces",
    "find_scratches",
    "interpolate",
    "load",
    "load_plugins",
    "looks",
    "match_source",
    "mix_levels",
    "normalize",
    "ranked",
    "read_credentials",
    "register",
    "register_source",
    "remember",
    "repair",
    "restore",
    "sample",
    "save",
    "score",
    "shrink",
    "sign_picture",
    "temperature_grid",
    "trace",
    "transfer_palette",
    "upscale",
    "upscale_video",
    "upscaler_for",
    "verify",
]

# Names that are not public, and the folders in which the public ones are.
_LAZY = ("catalog", "device", "engine", "flows", "images", "models", "tasks")

# The public names, by the module that has them. They are imported, all at once, when one is first asked for: torch
# takes seconds, and ``flowcore --help`` needs none.
_NAMES = {
    "batch.credentials": "Credentials read_credentials sign_picture",
    "batch.record": "Trace trace",
    "engine.compiled": "CompiledFlow",
    "engine.looks": "looks",
    "engine.progress": "Cancelled",
    "errors": "CheckpointError ConditionError FlowError ImageError PrecisionError ShapeError",
    "flows.condition": "Condition Guidance",
    "flows.flow": "Flow",
    "flows.latents": "interpolate mix_levels normalize",
    "flows.model": "FlowModel",
    "flows.transforms": "Transform",
    "models": "load",
    "models.colorizer.color_memory": "ColorMemory",
    "models.family": "Family register register_source",
    "models.model_file": "save",
    "models.plug_ins": "load_plugins",
    "tasks.audit": "Audit audit",
    "tasks.brighten": "brighten",
    "tasks.clean": "clean",
    "tasks.colorize": "apply_chroma colorize decode_colors encode_colors transfer_palette",
    "tasks.consistency": "match_source",
    "tasks.finders.faces": "Face find_faces",
    "tasks.finders.scratches": "find_scratches",
    "tasks.hints": "Hints",
    "tasks.model_choice": "upscaler_for",
    "tasks.ranking": "ranked",
    "tasks.remember": "remember",
    "tasks.repair": "repair",
    "tasks.rescale": "restore shrink",
    "tasks.sample": "decode encode sample",
    "tasks.score": "Score score",
    "tasks.temperature_grid": "temperature_grid",
    "tasks.upscale": "upscale",
    "tasks.verify": "Verification verify",
    "tasks.video": "colorize_video upscale_video",
}

if TYPE_CHECKING:
    from .batch.credentials import Credentials, read_credentials, sign_picture
    from .batch.record import Trace, trace
    from .engine.compiled import CompiledFlow
    from .engine.looks import looks
    from .engine.progress import Cancelled
    from .errors import CheckpointError, ConditionError, FlowError, ImageError, PrecisionError, ShapeError
    from .flows import testing as testing
    from .flows.condition import Condition, Guidance
    from .flows.flow import Flow
    from .flows.latents import interpolate, mix_levels, normalize
    from .flows.model import FlowModel
    from .flows.transforms import Transform
    from .models import load
    from .models.catalog import models as models
    from .models.colorizer.color_memory import ColorMemory
    from .models.family import Family, register, register_source
    from .models.model_file import save
    from .models.plug_ins import load_plugins
    from .tasks.audit import Audit, audit
    from .tasks.brighten import brighten
    from .tasks.clean import clean
    from .tasks.colorize import apply_chroma, colorize, decode_colors, encode_colors, transfer_palette
    from .tasks.consistency import match_source
    from .tasks.finders.faces import Face, find_faces
    from .tasks.finders.scratches import find_scratches
    from .tasks.hints import Hints
    from .tasks.model_choice import upscaler_for
    from .tasks.ranking import ranked
    from .tasks.remember import remember
    from .tasks.repair import repair
    from .tasks.rescale import restore, shrink
    from .tasks.sample import decode, encode, sample
    from .tasks.score import Score, score
    from .tasks.temperature_grid import temperature_grid
    from .tasks.upscale import upscale
    from .tasks.verify import Verification, verify
    from .tasks.video import colorize_video, upscale_video
else:

    class _Testing(ModuleType):
        """``flowcore.testing``, which is ``flows/testing.py``, imported when one of its names is first asked for."""

        def __getattr__(self, name: str) -> object:
            if name.startswith("__") and name != "__all__":  # those of all modules are looked at by ``inspect``
                raise AttributeError(name)
            module = import_module(".flows.testing", __package__)
            self.__dict__.update(vars(module))
            return getattr(module, name)

    testing = sys.modules[f"{__name__}.testing"] = _Testing(f"{__name__}.testing")

    def __getattr__(name: str) -> object:
        if name in __all__ or name in _LAZY:
            for home, names in _NAMES.items():
                module = import_module(f".{home}", __name__)
                globals().update((each, getattr(module, each)) for each in names.split())
            globals()["catalog"] = import_module(".models.catalog", __name__)
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_LAZY})
