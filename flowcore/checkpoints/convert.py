"""Public checkpoints: from the file that someone published to our Flow, in memory.

One ``Source`` for each published layout. This is the only place that guesses hyper-parameters from tensor names and
shapes. The files are from strangers: they are opened with ``weights_only=True`` and nothing else, names and shapes are
compared with a model on torch's meta device before anything is allocated, and a refusal says what was seen.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..flow import Flow
from ..models import build, configure
from ..models.srflow import SRFlowConfig
from ..transforms import CheckpointError, FlowError
from .file import KEY, refuse_mismatch

State = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published layout.

    Attributes:
        name: Of the published program.
        licence: Note on the licence of the published weights, for the provenance of what is converted from them.
        detect: Whether tensor names and shapes are of this layout, possibly incomplete or damaged.
        convert: From a state dict of this layout and configuration overrides to a flow; raises FlowError with the
            reason if it cannot.
    """

    name: str
    licence: str
    detect: Callable[[Shapes], bool]
    convert: Callable[[State, Mapping[str, Any]], Flow]


def convert(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Flow:
    """Read a published checkpoint.

    Args:
        path: A ``.pth`` or ``.pt`` file as ``torch.save`` writes it, or a ``.safetensors`` file; told apart by content.
            ``module.`` and similar prefixes, wrapping dictionaries and ``params_ema`` are seen through.
        overrides: Configuration fields that the file cannot tell, e.g. ``{"stacked_blocks": (1, 8, 15, 22)}``, or that
            it tells wrongly.

    Returns:
        The flow, in float32 and evaluation mode, on the CPU, with its provenance.

    Raises:
        CheckpointError: If the file is missing, no checkpoint, damaged, of another architecture, or would run code;
            says what was seen, what is supported, and which field is missing.
    """
    path = Path(path)
    try:
        source, state = _find(_read(path))
        _refuse_odd(state, path.stat().st_size)
        flow = source.convert(state, overrides or {})
        flow.provenance = {
            "source": f"converted from {path.name} ({source.name})",
            "sha256": _sha256(path),
            "licence": source.licence,
        }
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    except FlowError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    return flow


# --- SRFlow -----------------------------------------------------------------------------------------------------------

# What no file tells: which encoder blocks are stacked, by (scale, blocks). The released configurations.
STACKED_BLOCKS = {(4, 23): (1, 8, 15, 22), (8, 23): (1, 3, 5, 7), (8, 8): (1, 3, 5, 7)}


def srflow_names(config: SRFlowConfig) -> Iterator[tuple[str, str]]:
    """Pair our parameter names with those of the published SRFlow.

    The published program counts all layers of the flow in one list: per level a squeeze (without parameters), plain
    steps, coupled steps, a split. Shapes differ: ``(1, C, 1, 1)`` or ``(C, 1, 1)`` there where we have ``(C,)``.

    Args:
        config: Of the model.

    Yields:
        (our name, published name), for every parameter.
    """
    convs = [
        ("conv_first", "conv_first"),
        ("conv_trunk", "trunk_conv"),
        ("conv_hr", "HRconv"),
        ("conv_last", "conv_last"),
    ]
    convs += [(f"conv_up.{k}", f"upconv{k + 1}") for k in range(config.scale.bit_length() - 1)]
    convs += [
        (f"blocks.{n}.dense.{d}.convs.{k}", f"RRDB_trunk.{n}.RDB{d + 1}.conv{k + 1}")
        for n in range(config.encoder_blocks)
        for d in range(3)
        for k in range(5)
    ]
    for ours, published in convs:
        for part in ("weight", "bias"):
            yield f"encoder.{ours}.{part}", f"RRDB.{published}.{part}"

    layer = 0
    for level in range(config.levels):
        layer += 1  # the squeeze
        for step in range(config.transition_steps + config.steps):
            ours, published = f"levels.{level}.steps.transforms.{step}.transforms", f"flowUpsamplerNet.layers.{layer}"
            yield from _actnorm_names(f"{ours}.0", f"{published}.actnorm")
            yield f"{ours}.1.weight", f"{published}.invconv.weight"
            if step >= config.transition_steps:
                yield from _subnet_names(f"{ours}.2.conditioner", f"{published}.affine.fFeatures", config.hidden_layers)
                yield from _subnet_names(f"{ours}.3.conditioner", f"{published}.affine.fAffine", config.hidden_layers)
            layer += 1
        if level + 1 < config.levels - 1:
            yield from _scaled_conv_names(f"levels.{level}.split.conditioner", f"flowUpsamplerNet.layers.{layer}.conv")
            layer += 1


def _subnet_names(ours: str, published: str, hidden_layers: int) -> Iterator[tuple[str, str]]:
    for k in range(hidden_layers + 1):
        yield f"{ours}.hidden.{k}.weight", f"{published}.{2 * k}.weight"  # the odd indices are activations
        yield from _actnorm_names(f"{ours}.hidden.{k}.actnorm", f"{published}.{2 * k}.actnorm")
    yield from _scaled_conv_names(f"{ours}.last", f"{published}.{2 * (hidden_layers + 1)}")


def _actnorm_names(ours: str, published: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.bias", f"{published}.bias"
    yield f"{ours}.log_scale", f"{published}.logs"


def _scaled_conv_names(ours: str, published: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.weight", f"{published}.weight"
    yield f"{ours}.bias", f"{published}.bias"
    yield f"{ours}.log_scale", f"{published}.logs"


def srflow_shape(published: str, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Say which shape a parameter has in the published SRFlow.

    Args:
        published: Its published name.
        ours: Its shape in our model.

    Returns:
        The published shape.
    """
    if ".actnorm." in published:
        return (1, *ours, 1, 1)
    return (*ours, 1, 1) if published.endswith(".logs") else ours


def _srflow_detect(shapes: Shapes) -> bool:
    return any(name.startswith("flowUpsamplerNet.") for name in shapes)


def _srflow_convert(state: State, overrides: Mapping[str, Any]) -> Flow:
    # Never used by the published program either: a head that nothing reads.
    shapes = {name: tuple(t.shape) for name, t in state.items() if not name.startswith("flowUpsamplerNet.f.")}
    config = _srflow_config(shapes, overrides)
    with torch.device("meta"):
        flow = build("srflow", config)
    ours = {name: tuple(t.shape) for name, t in flow.state_dict().items()}
    names = dict(srflow_names(config))
    assert names.keys() == ours.keys()
    refuse_mismatch(
        "this SRFlow checkpoint", {names[o]: srflow_shape(names[o], shape) for o, shape in ours.items()}, shapes
    )
    # A copy, since the file's tensors are views of the file.
    weights = {o: state[names[o]].to(torch.float32, copy=True).reshape(shape) for o, shape in ours.items()}
    flow.load_state_dict(weights, assign=True)
    return flow.eval()


def _srflow_config(shapes: Shapes, overrides: Mapping[str, Any]) -> SRFlowConfig:
    levels, transition_steps, steps, coupled = _srflow_layers(shapes)
    subnet = f"flowUpsamplerNet.layers.{coupled}.affine.fFeatures."
    convs = [name for name in shapes if name.startswith(subnet) and name.endswith(".weight")]
    hidden_layers = len(convs) - 2
    hidden, condition = _shape(shapes, f"{subnet}0.weight", 4)[:2]
    blocks = _indices(shapes, r"RRDB\.RRDB_trunk\.(\d+)\.")
    detected: dict[str, Any] = {
        "scale": 2 ** min(8, len(_indices(shapes, r"RRDB\.upconv(\d+)\."))),
        "levels": levels,
        "steps": steps,
        "transition_steps": transition_steps,
        "hidden": hidden,
        "hidden_layers": hidden_layers,
        "hidden_kernel": _shape(shapes, f"{subnet}2.weight", 4)[-1] if hidden_layers > 0 else 1,
        "encoder_blocks": max(blocks, default=-1) + 1,
        "encoder_width": _shape(shapes, "RRDB.conv_first.weight", 4)[0],
        "encoder_growth": _shape(shapes, "RRDB.RRDB_trunk.0.RDB1.conv1.weight", 4)[0],
    }
    fields = {**detected, **overrides}
    fields["stacked_blocks"] = _stacked_blocks(detected, condition, overrides.get("stacked_blocks"))
    return configure("srflow", fields)


def _srflow_layers(shapes: Shapes) -> tuple[int, int, int, int]:
    """Read levels, plain steps and coupled steps per level, and the index of a coupled step, off the layer list."""
    kinds: dict[int, str] = {}
    for name in shapes:
        match = re.match(r"flowUpsamplerNet\.layers\.(\d{1,4})\.(actnorm|invconv|affine|conv)\.", name)
        if match:
            kind = {"affine": "c", "conv": "d"}.get(match[2], "p")
            kinds[int(match[1])] = min(kind, kinds.get(int(match[1]), kind))  # c comes before p
    sequence = "".join(kinds.get(k, "s") for k in range(max(kinds, default=-1) + 1))
    parts = [re.fullmatch(r"(p*)(c+)(d?)", part) for part in sequence.split("s")[1:]]
    shape = {(len(part[1]), len(part[2])) for part in parts if part}
    splits = [bool(part[3]) for part in parts if part]
    regular = sequence.startswith("s") and None not in parts and len(shape) == 1
    if not regular or splits != [number < len(parts) - 1 for number in range(1, len(parts) + 1)]:
        raise CheckpointError(
            "the layers of this SRFlow checkpoint are not those of a known variant. Expected per level a squeeze (s), "
            "as many plain (p) and coupled (c) steps as in every other level, and a split (d) after every level but "
            f"the last two; came {sequence[:100] or 'none'}. The file lacks layers, or the variant is not supported."
        )
    ((transition_steps, steps),) = shape
    return len(parts), transition_steps, steps, sequence.index("c")


def _stacked_blocks(detected: Mapping[str, Any], condition: int, given: Any) -> tuple[int, ...]:
    scale, blocks, width = detected["scale"], detected["encoder_blocks"], detected["encoder_width"]
    count, rest = divmod(condition - width, width) if width else (-1, 0)
    if rest or count < 0:
        raise CheckpointError(
            f"the condition in this SRFlow checkpoint has {condition} channels, which is no multiple of the encoder's "
            f"width, {width}. The file is damaged, or the variant is not supported."
        )
    if given is not None:
        stacked = (given,) if isinstance(given, int) else given
        if not isinstance(stacked, (list, tuple)):
            raise CheckpointError(f"stacked_blocks must be block indices such as (1, 8, 15, 22); got {given!r}.")
        if len(stacked) != count:
            raise CheckpointError(
                f"stacked_blocks={tuple(stacked)} names {len(stacked)} blocks, but the condition in this checkpoint "
                f"has {condition} channels: {width} native ones and {width} of each of {count} blocks. "
                f"Give {count} indices."
            )
        return tuple(stacked)
    known = STACKED_BLOCKS.get((scale, blocks), ())
    if len(known) == count:
        return known
    if count == 0:
        return ()
    example = [max(0, (k + 1) * blocks // count - 1) for k in range(min(count, 16))]
    raise CheckpointError(
        f"the field stacked_blocks is missing: which {count} of the encoder's {blocks} blocks every level sees. No "
        f"checkpoint holds it, and no released {scale}x model has {blocks} blocks and stacks {count} of them. Find it "
        f"in the training configuration and give it, for example: flowcore.load(..., stacked_blocks={tuple(example)}) "
        f"or, on the command line, --set stacked_blocks={','.join(map(str, example))}. A wrong guess loads, and gives "
        "wrong pictures."
    )


def _indices(shapes: Shapes, pattern: str) -> set[int]:
    found = (re.match(pattern, name) for name in shapes)
    return {int(match[1][:9]) for match in found if match}


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != dimensions:
        came = "it is missing" if shape is None else f"it has shape {shape}"
        raise CheckpointError(
            f"an SRFlow checkpoint has a tensor {name} of {dimensions} dimensions; {came}. "
            "The file is damaged or incomplete; fetch it again."
        )
    return shape


SRFLOW = Source(
    name="SRFlow",
    licence="SRFlow's published weights: CC BY-NC-SA 4.0, research use only; check the licence of your file",
    detect=_srflow_detect,
    convert=_srflow_convert,
)

SOURCES = (SRFLOW,)

# --- files ------------------------------------------------------------------------------------------------------------

SUPPORTED = (
    "Supported: flowcore models (.safetensors) and the checkpoints of "
    f"{', '.join(source.name for source in SOURCES)} (.pth, .pt, .safetensors)."
)

# What training programs put around or in front of the names of a network.
PREFIXES = ("module.", "_orig_mod.", "model.", "netG.", "generator.", "params_ema.", "params.", "state_dict.")
DEPTH = 3  # of dictionaries within dictionaries

FIRST_BYTES = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"RIFF": "a WebP image or a sound",
    b"GGUF": "a GGUF language model",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"version https://git-lfs": "a Git LFS pointer, which stands for the file (git lfs pull fetches it)",
    b"<": "a web page, as failed downloads often are",
    b"{": "a JSON text",
}

# Names that give an architecture away, tried in this order.
LOOKS = (
    (r"levels\.0\.steps\.", "a flowcore model without its header (write it with flowcore.checkpoints.save)"),
    (r"lora_(up|down|A|B)\b|\.lora_", "a LoRA"),
    (r"diffusion_model\.|first_stage_model\.|cond_stage_model\.|conditioner\.embedders\.", "Stable Diffusion"),
    (r"down_blocks\.\d+\.|mid_block\.", "a diffusion model"),
    (r"double_blocks\.\d+\.|joint_blocks\.\d+\.|transformer_blocks\.\d+\.", "a diffusion transformer"),
    (r"text_model\.|token_embd|embed_tokens", "a text encoder"),
    (
        r"RRDB_trunk\.\d+\.RDB|body\.\d+\.rdb\d|sub\.\d+\.RDB\d",
        "ESRGAN (RRDB), or the encoder of an SRFlow without its flow",
    ),
    (r"(encoder\.down|decoder\.up)\.\d+\.", "an autoencoder"),
    (r"invconv|inv_conv|actnorm|act_norm", "a flow of another program"),
)

# What pickles of plain tensors import.
HARMLESS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.\w+Storage|torch\.storage\.\w+|torch\.(b?float|u?int|bool)\w*|torch\.Size"
)


def _read(path: Path) -> Any:
    """Read what is in the file, as views of it where that is possible."""
    if path.is_dir():
        raise CheckpointError(f"this is a folder; give the file in it. {SUPPORTED}")
    if not path.is_file():
        raise CheckpointError(f"there is no such file in {path.parent}. Check the name.")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError("the file is empty, as after a download that failed. Fetch it again.")
    if head.startswith(b"PK\x03\x04"):
        return _read_torch(path, _pickle_of_archive(path), mmap=True)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**31:
        return _read_safetensors(path)
    if head.startswith(b"\x80"):
        with path.open("rb") as file:
            return _read_torch(path, file.read(2**20), mmap=False)
    looks = next(
        (f"this is {what}" for first, what in FIRST_BYTES.items() if head.lstrip().startswith(first)),
        "this is not a model file",
    )
    raise CheckpointError(f"{looks}. {SUPPORTED}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if KEY in (file.metadata() or {}):
                raise CheckpointError(
                    "this is a flowcore model already; there is nothing to convert. Load it as it is."
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"this safetensors file is truncated or damaged ({error}). Fetch it again.") from error


def _pickle_of_archive(path: Path) -> bytes:
    """Find the pickle of a torch archive, and refuse other and dubious archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointError(
                    f"this archive unpacks to more than its own size, which no checkpoint does. {SUPPORTED}"
                )
            names = [entry.filename for entry in entries]
            pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
            if not pickles:
                models = [name for name in names if name.endswith((".pth", ".pt", ".safetensors"))]
                inside = f"; it holds {', '.join(models[:3])}" if models else ""
                raise CheckpointError(
                    f"this is a zip archive, not a checkpoint{inside}. Unpack it and give the file in it. {SUPPORTED}"
                )
            if any(name.split("/")[-1] == "constants.pkl" for name in names):
                raise CheckpointError(f"this is a TorchScript program, not a state dict. {SUPPORTED}")
            return archive.read(pickles[0])
    except CheckpointError:
        raise
    except Exception as error:  # of many classes, if the bytes are hostile
        raise CheckpointError(
            "this torch checkpoint is truncated or damaged: its table of contents cannot be read. Fetch it again."
        ) from error


def _read_torch(path: Path, pickled: bytes, *, mmap: bool) -> Any:
    try:
        if path.suffix == ".safetensors":  # torch would believe the suffix
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # of many classes, if the bytes are hostile
        imports = [name for name in _imports(pickled) if not HARMLESS.fullmatch(name)]
        if imports:
            raise CheckpointError(
                f"reading this pickle would import {', '.join(imports[:3])}, which could run code; it was not read. "
                "Supported are files of tensors only. If you trust it, write those anew where the file comes from: "
                "torch.save(model.state_dict(), 'model.pth')."
            ) from error
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"this is a truncated or damaged torch checkpoint, or none ({reason}). Fetch it again. {SUPPORTED}"
        ) from error


def _imports(pickled: bytes) -> list[str]:
    """List what pickles, one after the other, would import; without unpickling anything."""
    stream = io.BytesIO(pickled)
    found: dict[str, None] = {}
    try:
        while True:
            strings: list[str] = []
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    found[str(argument).replace(" ", ".")] = None
                elif opcode.name == "STACK_GLOBAL":
                    found[".".join(strings[-2:])] = None
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # the end, or what is not a pickle
        return list(found)


def _find(loaded: Any) -> tuple[Source, State]:
    """Find the one state dict of a known layout in what a file holds."""
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"this file holds a {type(loaded).__name__}, not a dictionary of tensors. {SUPPORTED}")
    tensors: list[str] = []
    candidates = list(_candidates(loaded, (), tensors))
    if {where[-1] for where, _, _ in candidates if where} == {"params", "params_ema"}:
        candidates = [c for c in candidates if c[0][-1:] == ("params_ema",)]  # the averaged weights are those to use
    if len(candidates) == 1:
        return candidates[0][1:]
    keys = ", ".join(str(key)[:60] for key in list(loaded)[:8])
    if candidates:
        places = [".".join(where) for where, _, _ in candidates]
        lookup = "".join(f"[{key!r}]" for key in candidates[-1][0])
        raise CheckpointError(
            f"this is a trainer's checkpoint with the keys {keys}, and {' and '.join(places)} hold the weights of a "
            "model each. Extract the one you want, for example: "
            f"torch.save(torch.load(FILE, weights_only=True){lookup}, 'model.pth')."
        )
    if not tensors:
        raise CheckpointError(
            f"this file holds no weights, only {keys or 'an empty dictionary'}: the state of a trainer or of its "
            f"optimizer. Give the file of the network itself. {SUPPORTED}"
        )
    looks = next((what for pattern, what in LOOKS if any(re.search(pattern, name) for name in tensors)), "")
    looks = f"They look like {looks}." if looks else "No architecture that flowcore knows has such names."
    wrapped = any(not isinstance(value, Tensor) for value in loaded.values())
    some = ", ".join(name[:100] for name in tensors[:3]) + (", ..." if len(tensors) > 3 else "")
    raise CheckpointError(
        f"this file {f'has the keys {keys}, and in them' if wrapped else 'holds'} {len(tensors)} tensors: {some}. "
        f"{looks} {SUPPORTED}"
    )


def _candidates(
    loaded: Mapping[Any, Any], where: tuple[str, ...], tensors: list[str]
) -> Iterator[tuple[tuple[str, ...], Source, State]]:
    """Walk through dictionaries of dictionaries, and collect the names of all tensors but those of optimizers."""
    state = {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Tensor)}
    tensors.extend(state)
    bare = _without_prefixes(state)
    shapes = {name: tuple(t.shape) for name, t in bare.items()}
    source = next((source for source in SOURCES if source.detect(shapes)), None)
    if source is not None:
        yield where, source, bare
    elif len(where) < DEPTH:
        for key, value in loaded.items():
            if isinstance(value, Mapping) and "optim" not in str(key):
                yield from _candidates(value, (*where, str(key)), tensors)


def _without_prefixes(state: State) -> State:
    bare: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
            name = name[len(prefix) :]
        if name in bare:
            raise CheckpointError(
                f"this file holds two tensors of the name {name}, with different prefixes. Keep one set of them."
            )
        bare[name] = value
    return bare


def _refuse_odd(state: State, size: int) -> None:
    """Refuse tensors that are no plain numbers, or that are views which would grow beyond the file when copied."""
    odd = [
        name for name, t in state.items() if not t.is_floating_point() or t.layout != torch.strided or t.is_quantized
    ]
    if odd:
        raise CheckpointError(
            f"{odd[0]} is a {state[odd[0]].dtype} {state[odd[0]].layout} tensor; expected plain floating point."
        )
    claimed = sum(t.numel() * t.element_size() for t in state.values())
    if claimed > size:
        raise CheckpointError(f"the tensors claim {claimed} bytes in a file of {size}. The file is damaged.")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
