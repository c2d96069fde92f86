"""Check what a torch pickle would do, before torch reads it.

``weights_only=True`` keeps code from running. It does not keep a few hundred bytes from asking for gigabytes
(``bytearray(10**10)``, a storage or tensor larger than the file) or hours (a codec of quadratic time; a dictionary key
of nested tuples that share their parts, whose hash visits every copy). So the opcodes are interpreted first, with
numbers, strings and sizes in place of the objects: nothing is built, and it takes time proportional to the pickle.
"""

from __future__ import annotations

import math
import pickletools
import re
from typing import Any, BinaryIO

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

# Which of them are called, with which first argument; storages and types are only named.
CALLED = {
    "collections.OrderedDict": (list, dict),
    "collections.Counter": (dict,),
    "torch._utils._rebuild_tensor": (tuple,),
    "torch._utils._rebuild_tensor_v2": (tuple,),
    "torch._utils._rebuild_parameter": (object,),
    "torch._utils._rebuild_sparse_tensor": (object,),
    "torch.serialization._get_layout": (str,),
    "torch.Size": (list, tuple),
    "torch.device": (str,),
}
DAMAGED = "this is a truncated or damaged torch checkpoint, or none: its pickle cannot be read. Fetch it again."
EXCESS = "which no checkpoint needs. It was not read. If you trust it, save its tensors again: "
TRAINERS = ("argparse.Namespace", "lib.utils.ExponentialMovingAverage")  # programs that pickle their own objects
# Averaged weights, where there are some, are the better ones.
RESCUE = (
    "c = torch.load(FILE, weights_only=False); "
    "torch.save({**c['state_dict'], **getattr(c.get('ema'), 'shadow_params', {})}, 'model.pth')."
)
RESAVE = "torch.save(model.state_dict(), 'model.pth')."


class _BoundedStream:
    """Never reads more than the file holds: Python would allocate whatever length a pickle claims."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream = stream
        self.size = size
        self.readline = stream.readline
        self.tell = stream.tell

    def read(self, number: int) -> bytes:
        return self.stream.read(max(0, min(number, self.size - self.tell())))


class _Import:
    """Stands for an imported object."""

    def __init__(self, name: str) -> None:
        self.name = name


_MARK = (0, None)
_Item = tuple[int, Any]  # how many parts its hash visits; and the value, or a type in its place


def refuse_excess(stream: BinaryIO, size: int, *, many: bool = False) -> None:
    """Interpret a pickle, and refuse one that imports, allocates or computes what plain tensors do not need.

    Args:
        stream: Starts with the pickle.
        size: Bytes of the file: what all tensors together may claim.
        many: Whether further pickles may follow, as in old torch files.

    Raises:
        CheckpointError: Saying what is excessive.
    """
    interpreter, bounded = _Interpreter(size), _BoundedStream(stream, size)
    try:
        for number in range(MAX_PICKLES if many else 1):
            interpreter.start()
            for opcode, argument, _ in pickletools.genops(bounded):  # pyright: ignore[reportArgumentType]
                interpreter.step(opcode, argument)
            if number == 0 and many and not interpreter.magic:
                break  # torch reads no further either
    except CheckpointError:
        raise
    except Exception as error:  # of many classes, if the bytes are hostile
        interpreter.refuse_imports()
        raise CheckpointError(DAMAGED) from error
    interpreter.refuse_imports()


class _Interpreter:
    """Interprets pickles, with sizes and types in place of objects."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.opcodes = 0
        self.claimed = 0
        self.storages: dict[str | int, int] = {}
        self.imports: dict[str, None] = {}
        self.start()

    def start(self) -> None:
        self.stack: list[_Item] = []
        self.memo: dict[int, _Item] = {}
        self.magic = False

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        self.opcodes += 1
        if self.opcodes > MAX_OPCODES:
            raise CheckpointError(f"this pickle has more than {MAX_OPCODES} steps, {EXCESS}{RESAVE}")
        name, stack = opcode.name, self.stack
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name == "GLOBAL":
            stack.append((1, self._imported(str(argument).replace(" ", "."))))
        elif name == "STACK_GLOBAL":
            last, first = self._pop(), self._pop()
            stack.append((1, self._imported(f"{first[1]}.{last[1]}")))
        elif name == "TUPLE":
            stack.append(self._tuple(self._pop_to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(self._tuple([self._pop() for _ in range(int(name[-1]))][::-1]))
        elif name == "EMPTY_TUPLE":
            stack.append((1, ()))
        elif name == "REDUCE":
            arguments, function = self._pop(), self._pop()
            stack.append((arguments[0] + 1, self._called(function[1], arguments[1])))
        elif name in ("NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"):
            self._imported(f"a class ({name})")
            raise ValueError(name)
        elif name == "BINPERSID":
            stack.append((1, self._storage(self._pop()[1])))
        elif name == "BUILD":
            self._pop()
            if stack[-1][1] is not dict:
                raise CheckpointError(f"this pickle gives a state to what is no dictionary, {EXCESS}{RESAVE}")
        elif name == "STOP":
            self.magic = isinstance(stack[-1][1], int)
        else:
            self._other(opcode, argument)

    def _other(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply an opcode that only pops from the stack and pushes to it."""
        for taken in reversed(opcode.stack_before):
            if taken is pickletools.stackslice:
                self._pop_to_mark()
            elif taken is not pickletools.markobject:
                self._pop()
        for made in opcode.stack_after:
            if made is pickletools.pydict or made is pickletools.pylist:
                self.stack.append((1, made.obtype))
            elif isinstance(argument, (int, str, bytes)):
                self.stack.append((1, argument))
            else:
                self.stack.append((1, None))

    def refuse_imports(self) -> None:
        foreign = [name for name in self.imports if not HARMLESS.fullmatch(name)]
        if foreign:
            named = ", ".join(name[:80] for name in foreign[:3])
            if foreign[0] in TRAINERS:
                raise CheckpointError(
                    f"this file of a training program holds its settings beside the weights: reading it would import "
                    f"{named}, which could run code; it was not read. If you trust the file, these two lines save its "
                    f"weights alone, where that program can be imported (that of FFJORD or Residual Flow): {RESCUE}"
                )
            raise CheckpointError(
                f"reading this pickle would import {named}, which could run code; it was not read. Supported are files "
                f"of tensors only. If you trust it, save those again where the file comes from: {RESAVE}"
            )

    def _imported(self, name: str) -> _Import:
        self.imports[name] = None
        return _Import(name)

    def _pop(self) -> _Item:
        item = self.stack.pop()
        if item is _MARK:
            raise ValueError("a mark")
        return item

    def _pop_to_mark(self) -> list[_Item]:
        items: list[_Item] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _tuple(self, items: list[_Item]) -> _Item:
        within = 1 + sum(size for size, _ in items)
        if within > MAX_TUPLE:
            raise CheckpointError(f"this pickle nests tuples of more than {MAX_TUPLE} parts, {EXCESS}{RESAVE}")
        return within, tuple(value for _, value in items)

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Import) or not HARMLESS.fullmatch(function.name):
            return None  # the import is refused in the end
        first = arguments[0] if isinstance(arguments, tuple) and arguments else None
        kinds = CALLED.get(function.name, ())
        empty = arguments == () and function.name == "collections.OrderedDict"
        if not empty and not any(first is kind or isinstance(first, kind) for kind in kinds):
            raise CheckpointError(f"this pickle calls {function.name} in an unusual way, {EXCESS}{RESAVE}")
        if function.name.startswith("torch._utils._rebuild_tensor"):
            self._refuse_view(arguments)
        return dict if function.name.startswith("collections.") else None

    def _storage(self, fields: Any) -> tuple[int]:
        """Represent a storage by its number of elements; all of them must fit into the file."""
        kind, key, number = fields[0], fields[2], fields[4]
        if kind not in ("storage", b"storage") or type(key) not in (str, int) or type(number) is not int or number < 0:
            raise ValueError("no storage")
        self.claimed += max(0, number - self.storages.get(key, 0))
        self.storages[key] = max(number, self.storages.get(key, 0))
        if self.claimed > self.size:
            raise CheckpointError(
                f"the tensors claim {self.claimed} numbers in a file of {self.size} bytes. The file is truncated or "
                "damaged; fetch it again."
            )
        return (number,)

    def _refuse_view(self, arguments: tuple[Any, ...]) -> None:
        """Refuse a tensor that exceeds its storage, which torch would enlarge."""
        (number,), offset, sides, strides = arguments[:4]
        if not all(type(n) is int and n >= 0 for n in (offset, *sides, *strides)) or len(sides) != len(strides):
            raise ValueError("no view")
        last = offset + sum((side - 1) * stride for side, stride in zip(sides, strides, strict=True))
        if math.prod(sides) and last >= number:
            raise CheckpointError(
                f"a tensor of shape {str(sides)[:80]} does not fit into its {number} numbers. The file is damaged; "
                "fetch it again."
            )
