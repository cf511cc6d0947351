"""Seeds, splits and orders: every random draw has a generator seeded by a hash of its purpose."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from nas_moreau.errors import InputError


def seed_for(seed: int, purpose: str, *numbers: int) -> int:
    """Returns a 63-bit seed that depends on all arguments and on nothing else.

    Two purposes, epochs or steps never share a stream, and a resumed run needs no stored generator state.

    Args:
        seed: The user's seed, any integer.
        purpose: What is drawn, for example "augment".
        numbers: Any further integers, for example epoch and step.
    """
    key = repr((int(seed), str(purpose), *(int(number) for number in numbers)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """Returns a fresh generator on the CPU, seeded by `seed_for(seed, purpose, *numbers)`."""
    return torch.Generator(device="cpu").manual_seed(seed_for(seed, purpose, *numbers))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within this context the global generators of Python, numpy and torch draw from a seed; then as before."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def stratified_split(labels: Tensor, fractions: Mapping[str, float], seed: int) -> dict[str, Tensor]:
    """Returns disjoint, sorted index tensors, one a part, that together cover all samples.

    Each part holds its fraction of every class to within one sample (rounded so that the parts' totals come
    out right too).

    Args:
        labels: (n,) integer labels.
        fractions: Fraction of each part by name; they add up to 1. A part of fraction 0 is empty.
        seed: The user's seed.

    Returns:
        int64 index tensors on the device of `labels`.

    Raises:
        InputError: The fractions do not add up to 1, or a part that should hold something would be empty.
    """
    values = list(fractions.values())
    if not values or any(not math.isfinite(v) or v < 0 for v in values) or abs(sum(values) - 1) > 1e-6:
        raise InputError(
            f"The split fractions {dict(fractions)} do not add up to 1.",
            "Give fractions of at least 0 with a sum of 1.",
        )
    on_cpu = labels.detach().to("cpu")
    parts: list[list[Tensor]] = [[] for _ in values]
    placed = [0] * len(values)
    seen = 0
    for label in torch.unique(on_cpu).tolist():
        members = torch.nonzero(on_cpu == label).flatten()
        count = len(members)
        seen += count
        members = members[torch.randperm(count, generator=generator_for(seed, "split", label), device="cpu")]
        sizes = [math.floor(v * count + 1e-9) for v in values]
        # What rounding leaves over goes to the parts that lag most behind their share of all samples so far.
        lag = [v * seen - done - size for v, done, size in zip(values, placed, sizes)]
        for part in sorted(range(len(values)), key=lambda i: (-lag[i], i))[: count - sum(sizes)]:
            sizes[part] += 1
        start = 0
        for i, size in enumerate(sizes):
            parts[i].append(members[start : start + size])
            placed[i] += size
            start += size
    for name, value, size in zip(fractions, values, placed):
        if value > 0 and size == 0:
            raise InputError(
                f"The part '{name}' ({value:g} of {seen} images) would be empty.",
                "Use more images, or a larger fraction (search.split, retrain.validation).",
            )
    empty = torch.empty(0, dtype=torch.int64, device=on_cpu.device)
    return {name: torch.cat([empty, *part]).sort().values.to(labels.device) for name, part in zip(fractions, parts)}


def epoch_order(indices: Tensor, seed: int, purpose: str, epoch: int) -> Tensor:
    """Returns `indices` in the shuffled order of one epoch: of (seed, purpose, epoch), equal on every device."""
    order = torch.randperm(len(indices), generator=generator_for(seed, purpose, epoch), device="cpu")
    return indices[order.to(indices.device)]
