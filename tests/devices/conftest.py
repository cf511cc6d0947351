"""A device that is none: its tensors keep their numbers in the CPU's memory, but say that they lie elsewhere.

Under `Elsewhere` every operator runs on the CPU, after two looks at it: tensors of both places must not meet (as on a
GPU), and whatever a GPU could only do by waiting for the device is counted, with the line of the package that asked.
"""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("lazy")  # its backward passes need no driver
CPU = torch.device("cpu")
aten = torch.ops.aten

# what needs the numbers themselves to know its result's shape, or hands a number to Python
WAITS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten.unique_consecutive,
    aten._unique2,
    aten.unique_dim,
    aten.bincount,
    aten.is_nonzero,
    aten.repeat_interleave,
}
MAY_MIX = {aten.copy_, aten._to_copy}


class Far(torch.Tensor):
    """A tensor on the device; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} met a tensor of the device after the device was gone")

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self):
        raise TypeError("can't convert a tensor of the device to numpy; use Tensor.cpu() first")


class Elsewhere(TorchDispatchMode):
    """While it is entered, `DEVICE` can be used; `waits` counts by package line what a device would be waited for."""

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        far = [t for t in tensors if isinstance(t, Far)]
        packet = func.overloadpacket
        if far and packet not in MAY_MIX and any(t.dim() for t in tensors if not isinstance(t, Far)):
            raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
        target = kwargs.get("device")
        target = target if target is None else torch.device(target)
        if far and (packet in WAITS or _masks(packet, args)):
            self.waits[_asked_by()] += 1
        if packet is aten._to_copy and far and target == CPU:
            self.waits[_asked_by()] += 1
            return func(*_near((args, kwargs))[0], **_near(kwargs))
        if packet is aten.copy_ and far and not isinstance(args[0], Far):
            self.waits[_asked_by()] += 1
        if target == DEVICE:
            kwargs["device"] = CPU
        out = func(*_near(args), **_near(kwargs))
        if not far and target != DEVICE:
            return out
        if packet is aten.copy_ and not isinstance(args[0], Far):
            return args[0]
        known = {id(t.held): t for t in far}

        def sent(value):
            if not isinstance(value, torch.Tensor):
                return value
            return known[id(value)] if id(value) in known else Far(value)

        return tree_map(sent, out)


class Generator(torch.Generator):
    """A generator of the device is one of the CPU."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, CPU if torch.device(device) == DEVICE else device)


def _near(value):
    return tree_map(lambda t: t.held if isinstance(t, Far) else t, value)


def _masks(packet, args):
    """Whether it is an indexing by a mask, which has to count first."""
    if packet not in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        return False
    return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])


def _asked_by():
    """Returns the innermost line of the package on the stack, as file:function."""
    frame = sys._getframe(1)
    while frame is not None and "/nas_moreau/" not in frame.f_code.co_filename.replace("\\", "/"):
        frame = frame.f_back
    if frame is None:
        return "tests"
    return f"{frame.f_code.co_filename.replace(chr(92), '/').rpartition('/nas_moreau/')[2]}:{frame.f_code.co_name}"


@pytest.fixture
def elsewhere(monkeypatch):
    """The device, entered; yields the mode."""
    make = torch.tensor

    # torch.tensor goes past the mode on its way to a device
    def there(*args, device=None, **more):
        return make(*args, **more).to(device or torch.empty(0).device)

    monkeypatch.setattr(torch, "tensor", there)
    monkeypatch.setattr(torch, "Generator", Generator)
    with Elsewhere() as mode:
        yield mode
