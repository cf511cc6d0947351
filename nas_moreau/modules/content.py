"""What the user's data are, by content: digests that a resumed search compares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

LARGE, ROWS = 2**28, 1024
"""Bytes of a tensor or array in a Dataset beyond which a number of its rows is read: it may be a file of tokens."""


def content(data: Any) -> Iterator[Any]:
    """Yields tensors, arrays and plain values that a Dataset holds, also those of Datasets within it."""
    if isinstance(data, Subset):
        yield repr(list(data.indices))
        yield from content(data.dataset)
    elif isinstance(data, list | tuple):
        for part in data:
            yield from content(part)
    elif isinstance(data, dict):
        yield from content([*data.items()])
    elif isinstance(data, Tensor | np.ndarray) and data.nbytes > LARGE:
        yield repr(data.shape)
        yield data[:: max(1, len(data) // ROWS)]
    elif isinstance(data, Tensor | np.ndarray | int | float | str):
        yield data
    elif isinstance(data, Dataset):
        for _, value in sorted(vars(data).items()):
            several = isinstance(value, tuple | list) and all(isinstance(part, Tensor | Dataset) for part in value)
            if several or isinstance(value, Tensor | np.ndarray | Dataset):
                yield from content(value)


def digest_of(parts: Sequence[Any]) -> str:
    """Returns a digest of tensors, arrays and plain values."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor) and part.layout is torch.strided:
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            found.update(part.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(part, np.ndarray) and not part.dtype.hasobject:
            found.update(f"{part.dtype} {part.shape}".encode() + part.tobytes())
        elif isinstance(part, int | float | str):
            found.update(f"{type(part).__name__} {part!r}".encode())
    return found.hexdigest()[:16]


def form_of(sample: Any) -> Any:
    """Returns plain data on the structure of a sample: types and shapes."""
    if isinstance(sample, Tensor | np.ndarray):
        return str(sample.dtype), len(sample.shape)
    if isinstance(sample, Mapping):
        return {str(key): form_of(value) for key, value in sample.items()}
    if isinstance(sample, tuple | list):
        return [form_of(part) for part in sample]
    return type(sample).__name__
