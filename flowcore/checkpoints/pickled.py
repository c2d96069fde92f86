"""Check what a torch pickle would do, before torch reads it.

``weights_only=True`` keeps code from running. It does not keep a few hundred bytes from asking for gigabytes
(``bytearray(10**10)``, a storage or tensor larger than the file) or hours (a codec of quadratic time; a dictionary key
of nested tuples that share their parts, whose hash visits every copy). So Python's unpickler reads it first, with
stand-ins for what is imported, in time proportional to the pickle.
"""

import pickle
import pickletools
import re
from collections import OrderedDict
from typing import Any, ClassVar

from ..errors import CheckpointError

MAX_OPCODES = 500_000  # 20,000 tensors, ten times as many as the largest published flow has
MAX_TUPLE = 10_000  # parts of a tuple, counted as its hash visits them
MAX_PICKLES = 5  # in an old torch file: magic number, protocol, system, objects, keys of storages


class _Storage(str):
    """Stands for a storage of this name; immutable, so that no pickle can change what it claims."""


class _Tuple(tuple[Any, ...]):
    """A tuple whose own hash does not visit the parts; its size counts them."""

    __hash__ = object.__hash__
    size = 1


# What pickles of plain tensors import, and the first argument that it may be called with; nothing else is accepted.
HARMLESS: dict[str, tuple[type, ...]] = {
    r"collections\.OrderedDict": (list, dict, type(None)),
    r"collections\.Counter": (dict,),
    r"torch\._utils\._rebuild_tensor(_v2)?": (_Storage,),
    r"torch\._utils\._rebuild_(parameter|sparse_tensor)": (object,),
    r"torch\.device|torch\.serialization\._get_layout": (str,),
    r"torch\.Size": (list, tuple),
    r"torch\.(\w+Storage|storage\.(Untyped|Typed)Storage|(b?float|double|half|u?int|long|short|bool|complex)\w*)": (),
}
TRAINERS = ("argparse.Namespace", "lib.utils.ExponentialMovingAverage")  # programs that pickle their own objects
RESCUE = (  # averaged weights, where there are some, are the better ones
    "this file of a training program holds its settings beside the weights: reading it would import {}, which could "
    "run code; it was not read. If you trust the file, these two lines save its weights alone, where that program can "
    "be imported (that of FFJORD or Residual Flow): c = torch.load(FILE, weights_only=False); "
    "torch.save({{**c['state_dict'], **getattr(c.get('ema'), 'shadow_params', {{}})}}, 'model.pth')."
)
RESAVE = "torch.save(model.state_dict(), 'model.pth')."
FOREIGN = (
    "reading this pickle would import {}, which could run code; it was not read. Supported are files of tensors only. "
    f"If you trust it, save those again where the file comes from: {RESAVE}"
)
EXCESS = f"which no checkpoint needs. It was not read. If you trust it, save its tensors again: {RESAVE}"


def refuse_excess(stream: Any, size: int, *, many: bool = False) -> None:
    """Refuse a pickle that imports, allocates or computes what plain tensors do not need; other errors if damaged.

    ``stream`` is in memory or mapped, since a file would allocate whatever length it claims; ``size`` bytes of the file
    bound what all tensors together may claim; ``many`` pickles may follow each other in old torch files.
    """
    opcodes, storages = 0, dict[str, int]()
    for number in range(MAX_PICKLES if many else 1):
        start = stream.tell()
        for _ in pickletools.genops(stream):  # fails at a length beyond the end
            opcodes += 1
            if opcodes > MAX_OPCODES:
                raise CheckpointError(f"this pickle has more than {MAX_OPCODES} steps, {EXCESS}")
        stream.seek(start)
        reader = _Reader(stream, fix_imports=False, encoding="latin-1")
        reader.storages = storages
        if not isinstance(reader.load(), int) and number == 0:  # no magic number: torch reads no further either
            break
    if (claimed := sum(storages.values())) > size:
        raise CheckpointError(
            f"the tensors claim {claimed} numbers in a file of {size} bytes. The file is truncated or damaged; fetch "
            "it again."
        )


def _sized(load: Any) -> Any:
    def load_tuple(reader: Any) -> None:
        load(reader)
        reader.stack[-1] = made = _Tuple(reader.stack[-1])
        made.size += sum(part.size if isinstance(part, _Tuple) else 1 for part in made)
        if made.size > MAX_TUPLE:
            raise CheckpointError(f"this pickle nests tuples of more than {MAX_TUPLE} parts, {EXCESS}")

    return load_tuple


class _Reader(pickle._Unpickler):  # pyright: ignore[reportPrivateUsage]
    """Python's unpickler, with a ``_Storage`` for a storage, and None for a tensor and all else that is imported."""

    dispatch: ClassVar[dict[int, Any]] = {
        code: _sized(load) if load.__name__.startswith("load_tuple") else load
        for code, load in pickle._Unpickler.dispatch.items()  # pyright: ignore[reportPrivateUsage]
    }
    storages: dict[str, int]  # how many numbers each claims to hold

    def persistent_load(self, pid: Any) -> _Storage:
        kind, _, key, _, numbers = pid[:5]
        if kind != "storage" or type(key) is not str or numbers < 0:
            raise ValueError("no storage")
        self.storages[key] = max(numbers, self.storages.get(key, 0))
        return _Storage(key)

    def find_class(self, module: str, name: str) -> Any:
        name = f"{module}.{name}"
        allowed = next((kinds for pattern, kinds in HARMLESS.items() if re.fullmatch(pattern, name)), None)
        if allowed is None:
            raise CheckpointError((RESCUE if name in TRAINERS else FOREIGN).format(name[:80]))

        def call(first: Any = None, *rest: Any) -> Any:
            if not isinstance(first, allowed):
                raise CheckpointError(f"this pickle calls {name} in an unusual way, {EXCESS}")
            if isinstance(first, _Storage):
                offset, sides, strides = rest[:3]
                last = offset + sum((side - 1) * stride for side, stride in zip(sides, strides, strict=True))
                if last >= self.storages[first] and 0 not in sides:  # torch would enlarge the storage
                    raise CheckpointError(
                        f"a tensor of shape {str(sides)[:80]} does not fit into its {self.storages[first]} numbers. "
                        "The file is damaged; fetch it again."
                    )
            return OrderedDict[Any, Any]() if name.startswith("collections.") else None

        return call
