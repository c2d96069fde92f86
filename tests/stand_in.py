"""A device that this machine does not have, played by the CPU: it refuses what the real one refuses.

Inside ``StandIn(...)`` tensors can be moved to the device and made on it. They keep their values in a CPU tensor, and
everything that is done to them passes through ``StandIn.__torch_dispatch__``, which knows what the device lacks.
"""

import sys
import types
from collections import Counter
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
TRANSFERS = {aten._to_copy.default, aten.copy_.default}
TAKE_CPU_INDICES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}  # on every device of torch
MISSING = {"_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "grid_sampler_3d"}  # in older versions on Apple's
READ_BY_HOST = {  # their results or the shapes of these are values, so the host has to wait for them
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
}


def mapped(change, value):
    """Change what is in lists, tuples and dictionaries; torch's tree_map is slower than the operations here."""
    if type(value) in (list, tuple):
        return type(value)([mapped(change, item) for item in value])
    if type(value) is dict:
        return {name: mapped(change, item) for name, item in value.items()}
    return change(value)


class Elsewhere(torch.Tensor):
    """A tensor on the stand-in; to torch's own code one on "meta", which has no values to slip through to."""

    @staticmethod
    def __new__(cls, held, place):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), **layout, device="meta")

    def __init__(self, held, place):
        self.held, self.place = held, place

    @property
    def device(self):
        return self.place.device

    @property
    def is_meta(self):
        return False  # it has values

    def data_ptr(self):
        return self.held.data_ptr()

    def __deepcopy__(self, memo):
        made = self.detach().clone()
        memo[id(self)] = made = torch.nn.Parameter(made, self.requires_grad) if hasattr(self, "_is_param") else made
        return made

    def __repr__(self):
        return f"Elsewhere({self.held!r}, {self.device})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__setitem__ and not isinstance(args[2], torch.Tensor):
            x, index, value = args  # torch would make a tensor of the number without asking anyone
            args = x, index, x.place.holding(torch.tensor(value, dtype=x.dtype))
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError(f"can't convert {args[0].device} device type tensor to numpy. Use Tensor.cpu() first.")
        with torch._C.DisableTorchFunctionSubclass():  # whose default would call results on the CPU ours
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the context of its device.")


class StandIn(TorchDispatchMode):
    """Plays a device, of a type as torch writes it, while the context lasts; without float64 it has no linear algebra.

    ``waits`` counts how often the host waited for values, by operation, and ``operations`` those run on the device.
    """

    def __init__(self, name, *, float64):
        super().__init__()
        self.device, self.float64 = torch.device(name, 0), float64
        self.waits, self.operations = Counter(), 0

    @contextmanager
    def watched(self):
        """Count from 0 inside this context."""
        self.waits.clear()
        self.operations = 0
        yield self

    def holding(self, held):
        """A tensor on this device with the values of one on the CPU."""
        return Elsewhere(held, self)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        here, plain, wrappers = [], [], {}

        def hold(value):
            if isinstance(value, Elsewhere):
                here.append(value)
                wrappers[id(value.held)] = value
                return value.held
            if isinstance(value, torch.Tensor):
                plain.append(value)
            return value

        held = [mapped(hold, value) for value in args]
        options = {name: mapped(hold, value) for name, value in (kwargs or {}).items()}
        goes = None if options.get("device") is None else torch.device(options["device"]).type
        # "meta" is where torch believes our tensors to be, and asks for more
        lands = goes in (self.device.type, "meta") or (bool(here) and goes is None)
        if func is aten.copy_.default:
            lands = isinstance(args[0], Elsewhere)
        if not here and not lands:
            return func(*args, **(kwargs or {}))
        self._check(func, held, here, plain, lands, options)
        if goes is not None:
            options["device"] = torch.device("cpu")
        made = func(*held, **options)
        if func is aten._to_copy.default and not lands and id(made) in wrappers:
            made = made.clone()

        def place(value):
            if not isinstance(value, torch.Tensor):
                return value
            if value.dtype == torch.float64 and not self.float64:
                raise TypeError(f"{func} would make float64 on {self.device.type}, which does not support float64.")
            return wrappers.get(id(value)) if id(value) in wrappers else Elsewhere(value, self)

        return mapped(place, made) if lands else made

    def _check(self, func, held, here, plain, lands, kwargs):
        self.operations += 1
        name = func.overloadpacket.__name__
        if here and any(t.ndim for t in plain) and func not in TRANSFERS | TAKE_CPU_INDICES:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {self.device} and cpu ({func})"
            )
        leaves = func in TRANSFERS and bool(here) and not lands
        if leaves or func in READ_BY_HOST:
            self.waits[name] += 1
            if kwargs.get("non_blocking"):
                raise RuntimeError("Read before it is there: copied to the CPU without waiting for the device.")
        if self.float64:
            return
        wide = any(t.dtype == torch.float64 and t.ndim for t in plain)
        narrowed = func is aten._to_copy.default and not here and kwargs.get("dtype", torch.float64) != torch.float64
        if (wide and not narrowed) or kwargs.get("dtype") == torch.float64:
            raise TypeError(
                f"Cannot convert a {self.device.type} Tensor to float64 dtype as it doesn't support float64 ({func}). "
                "Please use float32 instead."
            )
        border = name == "grid_sampler_2d" and held[3] == 1
        if name in MISSING or border or (name.startswith(("linalg_", "_linalg_")) and name != "linalg_vector_norm"):
            raise NotImplementedError(f"The operator {func} is not implemented on {self.device.type}.")


class Python(TorchFunctionMode):
    """What has to be caught in Python because torch asks the real device's driver, or asks nobody."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))

        def number(value):  # "mps" to "mps:0", which torch would ask the driver about
            named = isinstance(value, (str, torch.device)) and str(value) == self.place.device.type
            return self.place.device if named else value

        args = tuple(number(value) for value in args)
        kwargs = {name: number(value) for name, value in (kwargs or {}).items()}
        if func is torch.tensor and kwargs.get("device") == self.place.device:
            return self.place.holding(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


@contextmanager
def stand_in(name, *, float64=False):
    """Play a device, without what torch would do to start a real one of that type."""
    module = sys.modules.get(f"torch.{name}")
    before = getattr(module, "_lazy_init", None)
    if module is None:  # DirectML registers no module: torch.autocast finds none either
        sys.modules[f"torch.{name}"] = types.ModuleType(f"torch.{name}")
    sys.modules[f"torch.{name}"]._lazy_init = lambda: None
    try:
        with torch.no_grad(), StandIn(name, float64=float64) as device, Python(device):
            yield device
    finally:
        if module is None:
            del sys.modules[f"torch.{name}"]
        elif before is not None:
            module._lazy_init = before
        else:
            del module._lazy_init
