"""Our file format: safetensors, with everything but the tensors as JSON in its header.

The header key ``flowcore`` holds ``{"architecture", "format", "config", "provenance"}``. Format 1 holds each tensor of
the flow under its name; in format 2 kernels of networks may be quantized to int8, with their scales beside them. Files
are untrusted: names, types and shapes are checked before tensors are read, and until then reading takes at most 5 s,
and 256 MiB plus eight times the size of the file. Tensors are copied out of the file, which may change later.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError, FlowError, say
from ..flows.model import FlowModel
from ..flows.networks.conditioner import NormalizedConv, ZeroConv
from ..flows.networks.residual import WeightNormConv
from .registry import build, configure
from .writing import write_atomic

FORMAT = 2  # the newest; a file without int8 kernels says 1, so that earlier versions can read it
KEY = "flowcore"
MAX_HEADER = 4 * 2**20  # bytes: 30,000 tensors; the largest published flow has 0.2 MiB
MAX_TENSORS = 8_000  # tensors of a configuration; the largest published one has 3,000
FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("I64", "I32", "I16", "U8")
NOT_SAVED = "It was not saved, since it could not be loaded again."

# Kernels in int8
SCALE = ".scale"  # suffix of a kernel's name; no tensor of a flow has it
BLOCK = 64  # weights of an output channel that share a scale
MIN_SIZE = 1024  # weights; smaller kernels would save little


@dataclass(frozen=True)
class Header:
    """Header of a model file: provenance is where the weights come from (source, sha256, license, metrics)."""

    architecture: str
    format: int
    config: dict[str, Any]
    provenance: dict[str, Any]


def read_header(path: str | Path) -> Header:
    """Read the header of a file, but no tensor; CheckpointError if it is damaged, not ours, or of a newer flowcore."""
    name, metadata = Path(path).name, _metadata(Path(path))
    if KEY not in metadata:
        raise CheckpointError(
            f"{name} is a safetensors file without a flowcore header, so not a converted model. "
            "If it holds a published flow (docs/published-weights.md lists them), convert it: python -m flowcore "
            "convert IN OUT."
        )
    with header_errors(name, say("Fetch the file again.")):
        raw = json.loads(metadata[KEY])
        header = Header(raw["architecture"], raw["format"], dict(raw["config"]), dict(raw["provenance"]))
        if type(header.architecture) is not str:
            raise TypeError(f"architecture {header.architecture!r}")
        check_format(name, header.format, FORMAT)
    return header


def read_config(path: str | Path) -> Any:
    """Read the configuration of a model from its file's header; None if there is no valid header."""
    try:
        header = read_header(path)
        return configure(header.architecture, header.config)
    except FlowError:
        return None


def is_flowcore_file(path: str | Path, key: str = KEY) -> bool:
    """Return True for a safetensors file with a flowcore header: that of a model, or another ``key``."""
    try:
        return key in _metadata(Path(path))
    except CheckpointError:
        return False


def save(
    flow: FlowModel,
    path: str | Path,
    *,
    provenance: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    exact: str | None = None,
) -> None:
    """Write a model atomically, after checking that the written file loads.

    Args:
        flow: The model.
        path: The file, which is replaced if it exists.
        provenance: Provenance to record; None for ``flow.provenance``.
        dtype: Precision of the stored tensors; loading widens them again. float16 halves the file. int8 halves it
            again: large kernels of networks are stored in 8 bits, the rest in float16.
        exact: Name of a part, such as "encoder.backbone", that stays in float32 whatever ``dtype`` says: published
            weights are then stored as published.

    Raises:
        SavingError: If the file cannot be written; the disk may be full.
        FlowError: If it is no model with a configuration, the file is no .safetensors file, or it could not be read
            again: a value is too large for ``dtype`` or not finite, a transform has no inverse, or anything else. The
            file that is there stays.
    """
    if not isinstance(flow, FlowModel) or flow.config is None:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise FlowError(
            f"Expected a flow that was loaded or built from a configuration; got a {type(flow).__name__}. Save the "
            'weights of others, torch.save(flow.state_dict(), "mine.pt"), and load them into the same flow: '
            'flow.load_state_dict(torch.load("mine.pt")). docs/plug-ins.md registers models of your own.'
        )
    path = Path(path)
    if path.suffix != ".safetensors":
        raise FlowError(f"A model is written as a .safetensors file; got {path.name}. Rename it.")
    state = {name: t.detach().cpu() for name, t in flow.state_dict().items()}
    check_finite(path.name, state, NOT_SAVED)
    check_invertible(path.name, flow, NOT_SAVED)
    quantizable = _quantizable(flow) if dtype == torch.int8 else set[str]()
    float_type = torch.float16 if dtype == torch.int8 else dtype
    tensors: dict[str, Tensor] = {}
    for name, t in state.items():
        if not t.is_floating_point() or (exact and name.startswith(f"{exact}.")):
            tensors[name] = t.contiguous()
        elif name in quantizable and t.numel() >= MIN_SIZE:
            tensors[name], tensors[name + SCALE] = _quantize(t)
        else:
            tensors[name] = t.to(float_type).contiguous()
            if not tensors[name].isfinite().all():
                raise FlowError(f"{name} holds numbers that are too large for {float_type}. Save it in torch.float32.")
    provenance = flow.provenance if provenance is None else provenance
    version = 2 if len(tensors) > len(state) else 1  # 2 if there are scales
    header = vars(Header(flow.architecture, version, dataclasses.asdict(flow.config), provenance))
    # save_file would set permissions 0600
    write_atomic(path, serialize(tensors, metadata={KEY: json.dumps(header)}), check=read)


def reconfigure(path: str | Path, target: str | Path, fields: Mapping[str, Any]) -> FlowModel:
    """Rewrite or copy a model file with other configuration fields, and the tensors as they are stored."""
    path = Path(path)
    flow = read(path, dict(fields))
    header = vars(read_header(path)) | {"config": dataclasses.asdict(flow.config)}
    with open_safetensors(path, f"Fetch {path.name} again.") as file:
        content = serialize({name: file.get_tensor(name) for name in file.keys()}, {KEY: json.dumps(header)})  # noqa: SIM118
    write_atomic(Path(target), content, check=read)
    return flow


def read(path: str | Path, overrides: dict[str, Any] | None = None) -> FlowModel:
    """Read a model in our format, in float32 and evaluation mode, on the CPU; ``overrides`` replace fields."""
    path = Path(path)
    header = read_header(path)
    try:
        config = configure(header.architecture, {**header.config, **(overrides or {})})
        flow = build_on_meta(header.architecture, config)
    except FlowError as error:
        raise CheckpointError("{file}: {error}", file=path.name, error=error) from error
    with open_safetensors(path, f"Fetch {path.name} again.") as file:
        state = _read_tensors(file, path.name, flow, header.format)
    check_finite(path.name, state)
    flow.load_state_dict(state, assign=True)
    check_invertible(path.name, flow)
    flow.provenance = header.provenance
    return flow.eval()


def _read_tensors(file: Any, filename: str, flow: FlowModel, version: int) -> dict[str, Tensor]:
    """Read the tensors of a model on the meta device from its open file, in float32, once names and shapes fit."""
    ours = flow.state_dict()
    shapes, types = shapes_and_types(file)
    quantized = {name for name in _quantizable(flow) if types.get(name) == "I8"} if version > 1 else set[str]()
    expected = {name: tuple(t.shape) for name, t in ours.items()}
    for name in quantized:
        outputs, *others = expected[name]
        expected[name + SCALE] = outputs, math.ceil(math.prod(others) / BLOCK)
    check_shapes(filename, expected, shapes)
    for name, kind in types.items():
        allowed = INTEGERS if name in ours and not ours[name].is_floating_point() else FLOATS
        if kind not in allowed and name not in quantized:
            raise CheckpointError(
                f"{name} in {filename} is of type {kind}; expected {', '.join(allowed[:-1])} or {allowed[-1]}. The "
                "file is damaged."
            )
    tensors: dict[str, Tensor] = {}
    for name, t in ours.items():
        stored = file.get_tensor(name)
        if name not in quantized:  # copied: safetensors maps the file, which may be replaced or truncated
            tensors[name] = stored.to(torch.float32 if t.is_floating_point() else t.dtype, copy=True)
            continue
        scale = file.get_tensor(name + SCALE)
        if bool((scale.isfinite() & (scale <= 0)).any()):  # ``check_finite`` finds others in the kernel
            raise CheckpointError(f"{name}{SCALE} in {filename} is not positive. The file is damaged; fetch it again.")
        tensors[name] = _dequantize(stored, scale)
    return tensors


def write_network(path: Path, network: nn.Module, provenance: Mapping[str, Any]) -> None:
    """Write a network that is no flow, such as a finder: kernels in int8 with scales, the rest in float16."""
    tensors: dict[str, Tensor] = {}
    for name, t in network.state_dict().items():
        if t.ndim > 1 and t.numel() >= MIN_SIZE:
            tensors[name], tensors[name + SCALE] = _quantize(t)
        else:
            tensors[name] = t.half().contiguous()
    write_atomic(path, serialize(tensors, {KEY: json.dumps(provenance)}))


def read_network(path: Path, network: nn.Module) -> None:
    """Fill in the float32 weights of a network on the CPU from a shipped file."""
    with open_safetensors(path, "Install flowcore again.") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    scales = {name: tensors.pop(name + SCALE) for name in [*tensors] if name + SCALE in tensors}
    state = {name: _dequantize(t, scales[name]) if name in scales else t.float() for name, t in tensors.items()}
    network.float().requires_grad_(False).eval().load_state_dict(state)


def build_on_meta(architecture: str, config: Any) -> FlowModel:
    """Build a model on torch's meta device, for its names and shapes; CheckpointError if it has too many tensors."""
    # The limit may abort torch.no_grad() before that has enabled gradients again.
    with torch.set_grad_enabled(torch.is_grad_enabled()), torch.device("meta"), _ConstructionLimit():
        return build(architecture, config)


def _square(rows: int) -> Tensor:
    return torch.empty(rows, rows)


def _unchanged(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


# On the meta device, for values that nobody reads, these functions would import torch's compiler: two seconds.
ONLY_SHAPES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.eye: _square,
    torch.randn: torch.empty,
    Tensor.flip: _unchanged,
    Tensor.normal_: _unchanged,
}


class _ConstructionLimit(TorchFunctionMode):
    """Aborts building a model of too many tensors, which no formula counts for all registered architectures."""

    calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        if self.calls > 5 * MAX_TENSORS:  # a tensor takes five calls on average
            raise CheckpointError(
                f"the configuration asks for more than {MAX_TENSORS} tensors, which no model has. Its numbers of "
                "steps, layers or blocks are too large."
            )
        return ONLY_SHAPES.get(func, func)(*args, **(kwargs or {}))


def check_finite(
    name: str,
    tensors: Mapping[str, Tensor],
    advice: str = "The training went wrong, or the file is damaged: fetch it again.",
) -> None:
    """Raise CheckpointError if tensors of the file ``name`` hold NaN or infinite values: how many, and where."""
    wrong: dict[str, int] = {}
    for key, t in tensors.items():
        # One pass without a copy; both extremes are NaN if any value is.
        has_values = t.is_floating_point() and t.numel() > 0 and not t.is_meta
        if has_values and not all(end.isfinite() for end in t.aminmax()):
            wrong[key] = int((~t.isfinite()).sum())
    if wrong:
        most = max(wrong, key=lambda key: wrong[key])
        raise CheckpointError(
            f"{name} holds {sum(wrong.values())} values that are not finite numbers, in {len(wrong)} of its tensors; "
            f"{wrong[most]} of them in {most}. {advice}"
        )


def check_invertible(name: str, flow: FlowModel, advice: str = "The file is damaged; fetch it again.") -> None:
    """Raise CheckpointError for values that make a transform not invertible, such as a singular matrix."""
    for path, module in flow.named_modules():
        check = getattr(module, "problem", None)  # transforms have it, and networks whose weights are bounded
        if check is not None and not any(t.is_meta for t in module.state_dict().values()) and (found := check()):
            tensor, problem = found
            raise CheckpointError(f"{path}.{tensor} in {name} {problem}. {advice}")


def check_shapes(name: str, expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError if shapes by tensor name differ, in the file ``name``; it shows up to three differences."""
    wrong = [key for key in expected.keys() & actual.keys() if actual[key] != expected[key]]
    differences = [f"{key} is {str(actual[key])[:100]} instead of {expected[key]}" for key in wrong]
    differences += [f"{key} is missing" for key in expected.keys() - actual.keys()]
    differences += [f"{key[:100]} is not known" for key in actual.keys() - expected.keys()]
    if differences:
        shown = "; ".join(sorted(differences)[:3])
        raise CheckpointError(
            f"The tensors of {name} do not fit its configuration in {len(differences)} places: {shown}. "
            "The file is damaged, or a configuration field given for it is wrong."
        )


@contextlib.contextmanager
def open_safetensors(path: Path, advice: str) -> Generator[Any]:
    """Open an untrusted safetensors file, and turn every failure into a CheckpointError that ends with ``advice``."""
    try:
        regular = path.is_file()
        exists = regular or path.exists()
    except (OSError, ValueError) as error:  # name too long, zero byte, unreadable folder
        raise CheckpointError(
            f"The file {path.name[:80]!r} cannot be read ({_reason(error)}). Check the name."
        ) from error
    if not regular:
        problem = "is a folder or a device" if exists else "does not exist"
        raise CheckpointError(f"There is no file {path.name} in {path.parent}: it {problem}. Check the name.")
    try:
        with path.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
        if MAX_HEADER < length < path.stat().st_size:
            raise CheckpointError(
                f"{path.name} has a header of {length} bytes; that of a model has at most {MAX_HEADER}. {advice}"
            )
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            "{file} is not a safetensors file, or it is truncated or damaged ({reason}). {advice}",
            file=path.name,
            reason=_reason(error),
            advice=advice,
        ) from error


def shapes_and_types(file: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the shape and type, such as "F32", of each tensor of an open safetensors file, without reading it."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    return shapes, {name: str(part.get_dtype()) for name, part in slices.items()}


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)[:200]


@contextlib.contextmanager
def header_errors(name: str, advice: str) -> Generator[None]:
    """Turn what parsing the JSON of an untrusted header raises into a CheckpointError that ends with ``advice``."""
    try:
        yield
    except FlowError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"The header of {name} is damaged ({str(error)[:200]}). {advice}") from error


def check_format(name: str, version: object, newest: int) -> None:
    """Raise CheckpointError for a format that this version does not know, TypeError for no number of one."""
    if type(version) is not int or version < 1:
        raise TypeError(f"format {version!r}")
    if version > newest:
        raise CheckpointError(
            "{file} was written by a newer flowcore (format {format}; this one reads up to {newest}). Update flowcore.",
            file=name,
            format=version,
            newest=newest,
        )


def _metadata(path: Path) -> dict[str, str]:
    supported = (
        "Supported: flowcore models (.safetensors) and published checkpoints (.pth, .pt, .safetensors), which "
        "docs/published-weights.md lists."
    )
    with open_safetensors(path, supported) as file:
        return file.metadata() or {}


# --- kernels in int8: whole numbers from -127 to 127, and scales that multiply them -----------------------------------


def _quantizable(flow: FlowModel) -> set[str]:
    """Name the tensors that may be stored in 8 bits: not those that a flow inverts or keeps bounded."""
    names: set[str] = set()
    for path, module in flow.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, NormalizedConv, ZeroConv)):
            names.add(f"{path}.weight")
        elif isinstance(module, WeightNormConv):
            names.add(f"{path}.direction")
    return names & flow.state_dict().keys()  # a ZeroConv without inputs has no kernel


def _quantize(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Round a kernel ``(outputs, ...)`` to int8, with bfloat16 scales of its blocks.

    Products of the two are exact in float32, so that quantizing a loaded file again changes nothing.
    """
    rows = kernel.flatten(1).float()
    width = rows.shape[1]
    blocks = F.pad(rows, (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
    scale = (blocks.abs().amax(2) / 127).bfloat16()
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)  # blocks of zeros have scale 0
    values = (blocks / scale.float()[..., None]).round().clamp(-127, 127).to(torch.int8)
    return values.flatten(1)[:, :width].reshape(kernel.shape).contiguous(), scale


def _dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """Multiply a kernel of whole numbers by its scales, in float32."""
    kernel, scale = values.to(torch.float32, copy=True), scale.float()
    rows = kernel.flatten(1)
    whole = rows.shape[1] // BLOCK
    # In place, since one kernel may be most of a file.
    rows[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)).mul_(scale[:, :whole, None])
    rows[:, whole * BLOCK :].mul_(scale[:, whole:])
    return kernel
