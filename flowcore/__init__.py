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
from importlib.util import LazyLoader, find_spec, module_from_spec
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

from .engine.compiled import CompiledFlow
from .engine.progress import Cancelled
from .errors import CheckpointError, ConditionError, FlowError, ImageError, PrecisionError, ShapeError
from .flows.condition import Condition, Guidance
from .flows.flow import Flow
from .flows.latents import interpolate, mix_levels, normalize
from .flows.model import FlowModel
from .flows.transforms import Transform
from .models import catalog, load
from .models.colorizer.color_memory import ColorMemory
from .models.family import Family, register, register_source
from .models.identity import VERSION as __version__
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
from .tasks.upscale import temperature_grid, upscale
from .tasks.verify import Verification, verify
from .tasks.video import colorize_video, upscale_video

__all__ = [
    "Audit",
    "Cancelled",
    "CheckpointError",
    "ColorMemory",
    "CompiledFlow",
    "Condition",
    "ConditionError",
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
    "match_source",
    "mix_levels",
    "normalize",
    "ranked",
    "register",
    "register_source",
    "remember",
    "repair",
    "restore",
    "sample",
    "save",
    "score",
    "shrink",
    "temperature_grid",
    "transfer_palette",
    "upscale",
    "upscale_video",
    "upscaler_for",
    "verify",
]

if TYPE_CHECKING:
    from .flows import testing as testing
    from .models.catalog import models as models
else:
    # ``flowcore.testing`` is ``flows/testing.py``, imported when one of its names is first asked for.
    _spec = find_spec(".flows.testing", __name__)
    _spec.loader = LazyLoader(_spec.loader)
    testing = sys.modules[_spec.name] = sys.modules[f"{__name__}.testing"] = module_from_spec(_spec)
    _spec.loader.exec_module(testing)

    class _CallableModule(ModuleType):
        """``flowcore.models``: the architectures; called, it lists the shipped models."""

        __call__ = staticmethod(catalog.models)

    sys.modules[f"{__name__}.models"].__class__ = _CallableModule
