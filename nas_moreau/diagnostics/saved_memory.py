"""How much memory a computation keeps for its backward passes."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class _Kept:
    """A tensor that autograd keeps; a weak reference to this object shows when it is released."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def peak_saved_bytes(run: Callable[[], Any], known: Iterable[Tensor] = ()) -> int:
    """Returns the maximum number of bytes that autograd keeps at one time during `run()`; storages count once.

    The number is exact and the same on every machine, unlike the memory of a process.

    Args:
        run: What is measured.
        known: Tensors whose storages do not count, such as parameters and images.
    """
    apart = {tensor.untyped_storage().data_ptr() for tensor in known}
    held: Counter[int] = Counter()
    total = peak = 0

    def release(place: int, size: int) -> None:
        nonlocal total
        held[place] -= 1
        if not held[place]:
            total -= size

    def pack(tensor: Tensor) -> _Kept:
        nonlocal total, peak
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in apart:
            return _Kept(tensor)
        if not held[place]:
            total += size
            peak = max(peak, total)
        held[place] += 1
        kept = _Kept(tensor)
        weakref.finalize(kept, release, place, size)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        run()
    return peak
