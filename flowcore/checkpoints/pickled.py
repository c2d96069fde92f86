"""Check what a torch pickle would do, before torch reads it; conversions can be understood without this file.

``weights_only=True`` prevents code from running, but not a small file from claiming gigabytes (a storage larger than
the file) or hours (a dictionary key of nested tuples that share their parts, whose hash visits every copy). So the
opcodes are interpreted first, with names in place of imports and sizes in place of tensors.
"""

import math
import pickletools
import re
from typing import Any

from ..errors import CheckpointError

MAX_OPCODES = 500_000  # 20,000 tensors, ten times as many as the largest published flow has
MAX_TUPLE = 10_000  # parts of a tuple, counted as its hash visits them
MAX_PICKLES = 5  # in an old torch file: magic number, protocol, system, objects, keys of storages

# What pickles of plain tensors import; nothing else is accepted.
HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|sparse_tensor)"
    r"|torch\.serialization\._get_layout"
    r"|torch\.\w+Storage|torch\.storage\.(Untyped|Typed)Storage"
    r"|torch\.(b?float|double|half|u?int|long|short|bool|complex)\w*|torch\.(Size|device)"
)
DAMAGED = "this is not a torch checkpoint, or it is truncated or damaged: its pickle cannot be read. Fetch it again."
TRAINERS = ("argparse.Namespace", "lib.utils.ExponentialMovingAverage")  # programs that pickle their own objects
# Averaged weights, where there are some, are the better ones.
RESCUE = (
    "c = torch.load(FILE, weights_only=False); "
    "torch.save({**c['state_dict'], **getattr(c.get('ema'), 'shadow_params', {})}, 'model.pth')."
)
RESAVE = "torch.save(model.state_dict(), 'model.pth')."
EXCESS = (
    "this pickle {}, which no checkpoint needs. It was not read. If you trust it, save its tensors again: " + RESAVE
)


class _Tuple:
    """Represents a tuple; its own hash does not visit the parts."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        self.size = 1 + sum(part.size if isinstance(part, _Tuple) else 1 for part in parts)
        if self.size > MAX_TUPLE:
            raise CheckpointError(EXCESS.format(f"nests tuples of more than {MAX_TUPLE} parts"))


# Which imports are called, with which first argument; storages and types are only named.
CALLED: dict[str, tuple[type, ...]] = {
    "collections.OrderedDict": (list, dict, type(None)),
    "collections.Counter": (dict,),
    "torch._utils._rebuild_tensor": (tuple,),
    "torch._utils._rebuild_tensor_v2": (tuple,),
    "torch._utils._rebuild_parameter": (object,),
    "torch._utils._rebuild_sparse_tensor": (object,),
    "torch.serialization._get_layout": (str,),
    "torch.Size": (list, _Tuple),
    "torch.device": (str,),
}


def check_pickle(stream: Any, size: int, *, many: bool = False) -> None:
    """Reject a pickle that imports, allocates or computes more than plain tensors need.

    ``stream`` is in memory or mapped, since a file would allocate whatever length it claims; all tensors together may
    claim ``size`` bytes; ``many`` pickles may follow each other in old torch files.
    """
    interpreter = _Interpreter(size)
    try:
        result = interpreter.run(stream)
        if many and isinstance(result, int):  # a magic number; else torch reads no further either
            for _ in range(MAX_PICKLES - 1):
                interpreter.run(stream)
    except CheckpointError:
        raise
    except Exception as error:  # of many classes, if the bytes are hostile
        interpreter.check_imports()
        raise CheckpointError(DAMAGED) from error
    interpreter.check_imports()


class _Interpreter:
    """Interprets opcodes symbolically: imports become names, storages ``(length,)``, tensors None."""

    def __init__(self, size: int) -> None:
        self.size, self.claimed, self.opcodes = size, 0, 0
        self.storages: dict[str | int, int] = {}
        self.imports: dict[str, None] = {}

    def run(self, stream: Any) -> Any:
        """Interpret a pickle, and return what represents its object."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        result = None
        for opcode, argument, _ in pickletools.genops(stream):
            self.opcodes += 1
            if self.opcodes > MAX_OPCODES:
                raise CheckpointError(EXCESS.format(f"has more than {MAX_OPCODES} steps"))
            if opcode.name.endswith("PUT") or opcode.name == "MEMOIZE":
                self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
                continue
            taken = self._pop_operands(opcode)
            result = taken[0] if opcode.name == "STOP" else None
            self.stack += [self._result_of(opcode, argument, taken) for _ in opcode.stack_after]
        return result

    def _pop_operands(self, opcode: pickletools.OpcodeInfo) -> list[Any]:
        """Pop what an opcode takes from the stack, without the mark."""
        taken: list[Any] = []
        for kind in reversed(opcode.stack_before):
            if kind is pickletools.stackslice:
                while (item := self.stack.pop()) is not pickletools.markobject:
                    taken.append(item)
            elif kind is not pickletools.markobject:
                taken.append(self.stack.pop())
        if pickletools.markobject in taken:
            raise ValueError("a mark")
        return taken[::-1]

    def _result_of(self, opcode: pickletools.OpcodeInfo, argument: Any, taken: list[Any]) -> Any:
        """Return what an opcode pushes onto the stack."""
        name, kind = opcode.name, opcode.stack_after[0]
        if name in ("NEWOBJ", "NEWOBJ_EX", "INST", "OBJ") or (name == "BUILD" and not isinstance(taken[0], dict)):
            raise ValueError(name)
        if name in ("GLOBAL", "STACK_GLOBAL"):
            imported = str(argument).replace(" ", ".") if name == "GLOBAL" else f"{taken[0]}.{taken[1]}"
            self.imports[imported] = None
            return imported
        if name == "REDUCE":
            return self._result_of_call(*taken)
        if name == "BINPERSID":
            return self._storage(taken[0])
        if name.endswith("GET"):
            return self.memo[int(argument)]
        if kind is pickletools.pytuple:
            return _Tuple(*taken)
        if name in ("EMPTY_DICT", "DICT"):
            return {}
        if name in ("EMPTY_LIST", "LIST"):
            return []
        # Opcodes that are left fill a dictionary or a list, and leave it on the stack; or push a constant or a mark.
        if taken:
            return taken[0]
        return kind if kind is pickletools.markobject else argument

    def _storage(self, fields: Any) -> tuple[int]:
        """Represent a storage by its number of elements; all of them must fit into the file."""
        kind, _, key, _, length = fields.parts[:5]
        if kind != "storage" or type(key) not in (str, int) or type(length) is not int or length < 0:
            raise ValueError("no storage")
        self.claimed += max(0, length - self.storages.get(key, 0))
        self.storages[key] = max(length, self.storages.get(key, 0))
        if self.claimed > self.size:
            raise CheckpointError(
                f"the tensors claim {self.claimed} numbers in a file of {self.size} bytes. The file is truncated or "
                "damaged; fetch it again."
            )
        return (length,)

    def _result_of_call(self, function: str, arguments: _Tuple) -> dict[Any, Any] | None:
        first = arguments.parts[0] if arguments.parts else None
        if HARMLESS.fullmatch(function) and not isinstance(first, CALLED.get(function, ())):
            raise CheckpointError(EXCESS.format(f"calls {function} in an unusual way"))
        if function.startswith("torch._utils._rebuild_tensor"):
            _check_view(*arguments.parts[:4])
        return {} if function.startswith("collections.") else None  # foreign imports are refused in the end

    def check_imports(self) -> None:
        foreign = [name for name in self.imports if not HARMLESS.fullmatch(name)]
        if not foreign:
            return
        named = ", ".join(name[:80] for name in foreign[:3])
        if foreign[0] in TRAINERS:
            raise CheckpointError(
                f"this file of a training program holds its settings beside the weights: it would import {named} when "
                "loaded, which could run code; it was not read. If you trust it, these two lines save its weights, "
                f"where that program can be imported (that of FFJORD or Residual Flow): {RESCUE}"
            )
        raise CheckpointError(
            f"this pickle would import {named} when loaded, which could run code; it was not read. Supported are files "
            f"of tensors only. If you trust it, save those again where the file comes from: {RESAVE}"
        )


def _check_view(storage: tuple[int], offset: Any, shape: _Tuple, strides: _Tuple) -> None:
    """Reject a tensor that exceeds its storage, which torch would enlarge."""
    sides, steps = shape.parts, strides.parts
    if not all(type(n) is int and n >= 0 for n in (offset, *sides, *steps)) or len(sides) != len(steps):
        raise ValueError("no view")
    last = offset + sum((side - 1) * step for side, step in zip(sides, steps, strict=True))
    if math.prod(sides) and last >= storage[0]:
        raise CheckpointError(
            f"a tensor of shape {str(sides)[:80]} does not fit into its {storage[0]} numbers. The file is damaged; "
            "fetch it again."
        )
