"""How much memory a computation keeps for its backward passes."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Kept:
    """A tensor that autograd keeps; a weak reference to it tells when it is let go."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def peak_saved_bytes(run: Callable[[], Any]) -> int:
    """Returns the most bytes that `run()` had autograd keep at one time, parameters among them, storages counted once.

    It is exact and the same on every machine, where the memory of a process tells nothing of a net this small.
    """
    held: Counter[int] = Counter()
    total = peak = 0

    def let_go(place: int, size: int) -> None:
        nonlocal total
        held[place] -= 1
        if not held[place]:
            total -= size

    def pack(tensor: Tensor) -> _Kept:
        nonlocal total, peak
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not held[place]:
            total += size
            peak = max(peak, total)
        held[place] += 1
        kept = _Kept(tensor)
        weakref.finalize(kept, let_go, place, size)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        run()
    return peak
