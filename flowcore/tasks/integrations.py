"""SRFlow as an upscaling model of spandrel, by which ComfyUI and others load these; imported only when it is needed.

Programs call such a model on overlapping tiles without saying where a tile lies. Above temperature 0, the noise of a
tile is drawn from the seed and the tile's own pixels: the same tile always gives the same picture, and overlapping
tiles differ where they overlap.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..engine.compiled import drop_compiled
from ..errors import CheckpointError, FlowError
from ..flows.flow import Level
from ..flows.model import FlowModel
from ..flows.transforms import Coupling
from ..images.color import to_uint8
from ..models import load
from ..models.family import sources
from ..models.model_file import read_header
from .upscale import UpscaleSettings, upscale

log = logging.getLogger("flowcore")

ID = "flowcore-srflow"
# No other architecture has all of these names: two tensors of an encoder, of RRDBs or an IMDN, and one of our flow.
FLOW = "levels.0.steps.transforms.0.transforms.0.log_scale"
OURS = [{FLOW, f"{part}.conv_first.weight", f"{part}.conv_trunk.weight"} for part in ("encoder", "encoder.backbone")]
LOW_LIGHT = "encoder.conv_color.weight"  # an LLFlow matches OURS, but also has this one
PUBLISHED = "flowUpsamplerNet.layers."
UPSCALERS = ("srflow", "srflow_da")

Files = Callable[[], Iterable[Path]]


class Upscaler(nn.Module):
    """An SRFlow as a module from images to images, at temperature 0 by default, which leaves no seams between tiles."""

    def __init__(
        self,
        flow: FlowModel,
        *,
        temperature: float | None = 0.0,
        calm_edges: float | None = None,
        seed: int = 0,
        cancelled: Callable[[], bool] | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        if "upscale" not in flow.capabilities.tasks:
            raise FlowError(
                f"An upscale model is made of an SRFlow; got a {flow.architecture} model. Load one such as srflow-x4."
            )
        self.flow = flow
        settings = UpscaleSettings(temperature=temperature, calm_edges=calm_edges).resolved(flow)
        self.temperature, self.calm_edges = settings.temperature, settings.calm_edges
        self.seed = seed
        self.cancelled, self.notify = cancelled, notify
        self._notified: set[str] = set()  # hosts call once per tile

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        return self.flow.condition_scale

    def forward(self, image: Tensor) -> Tensor:
        """Upscale images ``(B, 3, h, w)`` in [0, 1], and keep their precision and device."""
        options: dict[str, Any] = {"cancelled": self.cancelled, "notify": self._notify_once}
        if not self.temperature:
            return upscale(self.flow, image, temperature=0.0, **options).to(image.dtype)
        options |= {"temperature": self.temperature, "calm_edges": self.calm_edges}
        pictures = [upscale(self.flow, one, seed=self._seed(one), **options) for one in image.split(1)]
        return torch.cat(pictures).to(image.dtype)

    def _notify_once(self, sentence: str) -> None:
        if sentence not in self._notified:
            self._notified.add(sentence)
            (self.notify or log.warning)(sentence)

    def _seed(self, image: Tensor) -> int:
        # From 8-bit values: half precision, or rounding on another device, makes the same noise.
        steps = to_uint8(image.detach().float()).cpu().contiguous()
        digest = hashlib.blake2b(steps.numpy().tobytes(), digest_size=8)
        return (self.seed + int.from_bytes(digest.digest(), "little")) % 2**32

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Free compiled flows that were made for the previous device."""
        drop_compiled()
        return super()._apply(fn, recurse)


# --- spandrel ---------------------------------------------------------------------------------------------------------


def descriptor(upscaler: Upscaler, architecture: Any = None) -> Any:
    """Wrap a module as spandrel's ``ImageModelDescriptor``, which is ComfyUI's UPSCALE_MODEL."""
    spandrel = _spandrel()
    if architecture is None:
        architecture = support(lambda: ()).architecture
    finest = upscaler.flow.levels[0]
    assert isinstance(finest, Level)
    steps = sum(any(isinstance(part, Coupling) for part in step.modules()) for step in finest.steps.parts())
    return spandrel.ImageModelDescriptor(
        upscaler,
        upscaler.state_dict(),
        architecture,
        purpose="SR",
        tags=["flow", f"{steps} steps"],
        supports_half=False,  # a flow stays in float32
        supports_bfloat16=False,
        scale=upscaler.scale,
        input_channels=3,
        output_channels=3,
        tiling=spandrel.ModelTiling.INTERNAL,
    )


def support(files: Files, cancelled: Callable[[], bool] | None = None) -> Any:
    """Make spandrel's ``ArchSupport`` for SRFlow, published or ours, whose headers are looked up in ``files``."""
    spandrel = _spandrel()

    class SRFlow(spandrel.Architecture):
        def __init__(self) -> None:
            super().__init__(id=ID, name="SRFlow", detect=detect)

        def load(self, state_dict: Mapping[str, Any]) -> Any:
            return descriptor(Upscaler(flow_of(state_dict, files), cancelled=cancelled), self)

    return spandrel.ArchSupport.from_architecture(SRFlow())


def register(files: Files, cancelled: Callable[[], bool] | None = None) -> None:
    """Add SRFlow to spandrel in this process, see ``support``."""
    _spandrel().MAIN_REGISTRY.add(support(files, cancelled), ignore_duplicates=True)


def detect(state: Mapping[str, Any]) -> bool:
    """Return True if the names are those of an SRFlow, ours or published: loading it succeeds or says what is wrong."""
    ours = LOW_LIGHT not in state and any(state.keys() >= names for names in OURS)
    return ours or any(name.startswith(PUBLISHED) for name in state)


def flow_of(state: Mapping[str, Any], files: Files) -> FlowModel:
    """Make a flow from tensors that ``detect`` accepts; see ``support``."""
    if not any(state.keys() >= names for names in OURS):
        wrong = [name for name, t in state.items() if not _is_plain(t)]
        if wrong:
            raise CheckpointError(f"{wrong[0][:100]} is not a plain tensor. The file is damaged; fetch it again.")
        source = next(source for source in sources() if any(map(source.detect.match, state)))
        try:
            flow = source.load(state, {})
        except FlowError as error:
            raise CheckpointError(
                f"{error} Convert such a model once (python -m flowcore convert IN OUT --set FIELD=VALUE) and use the "
                "converted file instead."
            ) from error
        flow.provenance = {"source": f"converted from a checkpoint of {source.name}", "licence": source.licence}
        return flow
    for path in files():
        if _holds(path, state):
            return load(path)
    raise CheckpointError(
        "These are the tensors of an SRFlow of flowcore, but the header that says how it is built did not come with "
        "them. Put its file, as flowcore wrote it, into models/upscale_models, or use Load Flow Model and Flow As "
        "Upscale Model."
    )


def _holds(path: Path, state: Mapping[str, Any]) -> bool:
    """Return True if a file of ours holds exactly these tensors, which spandrel passes without the file's header."""
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return False
    try:
        if read_header(path).architecture not in UPSCALERS:
            return False
        with safe_open(path, "pt") as file:
            return (
                set(file.keys()) == set(state)
                and all(file.get_slice(name).get_shape() == list(t.shape) for name, t in state.items())
                and all(torch.equal(file.get_tensor(name), t.to("cpu")) for name, t in state.items())
            )
    except (CheckpointError, SafetensorError, OSError, RuntimeError, AttributeError):
        return False  # damaged, deleted, of another kind, or values that are not tensors


def _is_plain(t: Any) -> bool:
    """Return True for a tensor whose copy would not be larger than its storage."""
    strided = isinstance(t, Tensor) and t.layout == torch.strided
    return strided and t.numel() * t.element_size() <= t.untyped_storage().nbytes()


def _spandrel() -> Any:
    try:
        import spandrel  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]

        return spandrel
    except ImportError as error:
        raise FlowError(
            "The package spandrel, by which ComfyUI loads upscale models, is not installed here. Install what "
            "ComfyUI's requirements.txt names."
        ) from error
