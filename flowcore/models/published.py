"""Public checkpoints, converted to a ``FlowModel`` in memory.

Here the file is read and its ``Source`` found; the ``published.py`` of each family describes its layouts. Files are
untrusted: they are read as tensors only (``torch_file.py``), and names and shapes are compared with a model on torch's
meta device before anything is allocated.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError, FlowError, say
from ..flows.model import FlowModel
from .family import sources
from .identity import fingerprint
from .model_file import KEY, open_safetensors
from .source import Source, State
from .torch_file import read_archive, read_old_file

INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def convert(path: str | Path, overrides: Mapping[str, Any] | None = None) -> FlowModel:
    """Read and convert a published checkpoint, ``.pth``, ``.pt`` or ``.safetensors``, recognized by content.

    ``overrides`` are configuration fields that the file does not determine. The flow is in float32 and evaluation mode,
    on the CPU. CheckpointError if the file is missing, damaged, of an unknown layout, or would run code.
    """
    path = Path(path)
    try:
        source, state = _find(_read(path))
        _check_tensors(source, state, path.stat().st_size)
        flow = source.load(state, overrides or {})
        flow.provenance = {
            "source": f"converted from {path.name} ({source.name})",
            "sha256": fingerprint(path),
            "licence": source.licence,
        }
    except OSError as error:
        raise CheckpointError(f"{path.name[:100]} cannot be read: {error.strerror or error}.") from error
    except FlowError as error:
        named = str(error).startswith(path.name[:100])  # errors of ``open_safetensors`` start with the name
        message = error.message if named else say("{file}: {error}", file=path.name[:100], error=error)
        raise CheckpointError(message) from error
    return flow


# --- files ------------------------------------------------------------------------------------------------------------


def _unsupported_error(problem: str) -> CheckpointError:
    programs = ", ".join(sorted(source.name for source in sources()))
    return CheckpointError(
        f"{problem} Supported: flowcore models (.safetensors) and the checkpoints of {programs} (.pth, .pt, "
        ".safetensors); docs/published-weights.md lists the files."
    )


# Wrappers and prefixes that training programs add to the names of a network.
PREFIXES = re.compile(r"^((module|_orig_mod|model|netG|generator|params_ema|params|state_dict)\.)+")
MAX_DEPTH = 3  # depth of nested dictionaries
MAX_CANDIDATES = 8  # state dicts in one file
MAX_NAME = 1000  # characters of a tensor's name

FIRST_BYTES = {
    b"version https://git-lfs": "a Git LFS pointer, which stands for the file (git lfs pull fetches it)",
    b"<": "a web page, as failed downloads often are",
}

# Names that are typical of an architecture, tried in this order.
FOREIGN_LAYOUTS = (
    (r"blocks\.\d+\.dnn\.(encoder|init_proj|pos_emb)", "Jet, a transformer flow, which flowcore does not build"),
    (r"flows\.(next\.)*steps\.\d+\.(norm|conv|coup)\.", "Glow by chrischute, a variant that is not supported"),
    (
        r"l\d\.steps\.\d+\.(w|w_rev|an_scale|an_bias)",
        "HCFlow as hcflow-rs stores it, folded; give the file that it was converted from, such as "
        "SR_DF2K_X4_HCFlow++.pth",
    ),
    (r"levels\.0\.steps\.", "a flowcore model without its header (write it with flowcore.models.save)"),
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


def _read(path: Path) -> Any:
    """Read the content of a file, mapped where possible."""
    if path.is_dir():
        raise _unsupported_error("this is a folder; give the file in it.")
    if not path.is_file():
        raise CheckpointError(f"there is no such file in {path.parent}. Check the name.")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError("the file is empty, as after a download that failed. Fetch it again.")
    if head.startswith(b"PK\x03\x04"):
        return read_archive(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**31:  # a safetensors header
        with open_safetensors(path, "Fetch it again.") as file:
            if KEY in (file.metadata() or {}):
                raise CheckpointError(
                    "this is a flowcore model already; there is nothing to convert. Load it as it is."
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if head.startswith(b"\x80"):
        return read_old_file(path)
    looks = (what for first, what in FIRST_BYTES.items() if head.lstrip().startswith(first))
    raise _unsupported_error(f"this is {next(looks, 'not a model file')}.")


class _Tensors(NamedTuple):
    keys: tuple[str, ...]  # keys of nested dictionaries, down to the one that holds these tensors
    names: list[str]  # their names in the file
    source: Source | None  # None if their layout is not known
    state: State  # its names have lost their prefixes


def _find(loaded: Any) -> tuple[Source, State]:
    """Find the one state dict of a known layout in the content of a file."""
    if not isinstance(loaded, dict):
        raise _unsupported_error(f"this file holds a {type(loaded).__name__}, not a dictionary of tensors.")
    names: list[str] = []
    candidates: list[_Tensors] = []
    for tensors in _dictionaries(loaded):
        names += tensors.names
        if tensors.source is not None:
            candidates.append(tensors)
        if len(candidates) == MAX_CANDIDATES:
            break
    if {c.keys[-1] for c in candidates if c.keys} == {"params", "params_ema"}:
        candidates = [c for c in candidates if c.keys[-1:] == ("params_ema",)]  # the averaged weights
    if len(candidates) == 1 and candidates[0].source is not None:
        return candidates[0].source, candidates[0].state
    keys = ", ".join(_shown(key) for key in list(loaded)[:8])
    if candidates:
        paths = [".".join(candidate.keys) for candidate in candidates[:4]]
        lookup = "".join(f"[{key!r}]" for key in candidates[-1].keys)
        raise CheckpointError(
            f"this is a trainer's checkpoint with the keys {keys}, and {' and '.join(paths)} hold the weights of a "
            "model each. Extract the one you want, for example: "
            f"torch.save(torch.load(FILE, weights_only=True){lookup}, 'model.pth')."
        )
    if not names:
        raise _unsupported_error(
            f"this file holds no weights, only {keys or 'an empty dictionary'}: the state of a trainer or of its "
            "optimizer. Give the file of the network itself."
        )
    looks = next((what for pattern, what in FOREIGN_LAYOUTS if any(re.search(pattern, name) for name in names)), "")
    guess = f"They look like {looks}." if looks else "No architecture that flowcore knows has such names."
    first_names = ", ".join(name[:100] for name in names[:3]) + (", ..." if len(names) > 3 else "")
    wrapped = any(not isinstance(value, Tensor) for value in dict.values(loaded))
    content = f"has the keys {keys}, and in them" if wrapped else "holds"
    raise _unsupported_error(f"this file {content} {len(names)} tensors: {first_names}. {guess}")


def _dictionaries(loaded: dict[Any, Any]) -> Iterator[_Tensors]:
    """List the dictionaries with tensors, but no optimizer's, and none inside one of a known layout."""
    queue: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), loaded)]
    visited: set[int] = set()
    for keys, dictionary in queue:
        entries = list(dict.items(dictionary))  # a hostile OrderedDict may shadow the method
        stored = {key: t for key, t in entries if isinstance(key, str) and isinstance(t, Tensor)}
        state = _without_prefixes(stored)
        source = next((source for source in sources() if any(map(source.detect.match, state))), None)
        if state:
            yield _Tensors(keys, list(stored), source, state)
        if source is None and len(keys) < MAX_DEPTH and id(dictionary) not in visited:
            visited.add(id(dictionary))  # shared dictionaries would be walked millions of times
            inner = [((*keys, _shown(key)), value) for key, value in entries if isinstance(value, dict)]
            queue += [(path, value) for path, value in inner if "optim" not in path[-1]]


def _without_prefixes(state: State) -> State:
    """Remove what training programs add to names."""
    bare: dict[str, Tensor] = {}
    for key, value in state.items():
        if len(key) > MAX_NAME:
            raise _unsupported_error(f"this file has a tensor whose name is longer than {MAX_NAME} characters.")
        name = PREFIXES.sub("", key)
        if name in bare:
            raise CheckpointError(
                f"this file holds two tensors of the name {name}, with different prefixes. Keep one set of them."
            )
        bare[name] = value
    return bare


def _shown(key: Any) -> str:
    return str(key)[:60] if isinstance(key, (str, int)) else type(key).__name__


def _check_tensors(source: Source, state: State, size: int) -> None:
    """Reject tensors that are not plain numbers, and views that would exceed the file when copied."""
    for name, t in state.items():
        integers = bool(source.integers.fullmatch(name))
        numeric = t.is_floating_point() or (integers and t.dtype in INTEGERS)
        if not numeric or t.layout != torch.strided or t.is_quantized or t.device.type != "cpu":
            expected = "plain integers" if integers else "plain floating point"
            raise CheckpointError(f"{name} is a {t.dtype} {t.layout} tensor; expected {expected}.")
    claimed = sum(t.numel() * t.element_size() for t in state.values())
    if claimed > size:
        raise CheckpointError(f"the tensors claim {claimed} bytes in a file of {size}. The file is damaged.")
