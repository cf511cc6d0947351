"""The user's data: samples by number, and batches of any structure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
    default_collate,
)

from nas_moreau.data.splitting import generator_for, seeded
from nas_moreau.errors import InputError, first_line, quoted
from nas_moreau.modules.content import content, digest_of, form_of

BATCH_SIZE = 64
"""Samples of a batch where the data do not say."""

PASSES = 20
"""Passes of a sampler, at most, in which the samples are found that it may draw."""

WORKERS = ("num_workers", "prefetch_factor", "pin_memory", "timeout", "multiprocessing_context", "worker_init_fn")
"""What is taken over from a DataLoader with worker processes."""

_FORMS = "Give a Dataset, a DataLoader, or a tuple of tensors with one row a sample."


@dataclass(frozen=True)
class Samples:
    """Data as samples by number.

    Attributes:
        what: "train" or "validation", for messages.
        members: Numbers of the samples: all of the data, or those that the sampler of a DataLoader draws.
        fetch: Numbers -> batch.
        batch_size: That of a DataLoader; None where the data do not say.
        order: Seed -> the numbers of one pass, of a DataLoader with a sampler that is not plain shuffling; or None.
        draws: Whether fetching may draw random numbers (augmentation in a Dataset).
        digest: Of the content of tensors and arrays, in a Dataset too; of other data the number of samples and the form
            of the first one.
        origin: Equal for two parts of the same data.
        workers: What a DataLoader says of its worker processes, arguments of another one; {} if it has none.
    """

    what: str
    members: Sequence[int]
    fetch: Callable[[list[int]], Any]
    batch_size: int | None
    order: Callable[[int], list[int]] | None
    draws: bool
    digest: str
    origin: Any
    workers: Mapping[str, Any] = field(default_factory=dict)


def open_samples(data: Any, what: str) -> Samples:
    """Returns data as samples.

    Args:
        data: A Dataset with a length, a DataLoader of one, tensors (one, or in tuples, lists and dicts) with one row a
            sample, or a list of samples.
        what: "train" or "validation".

    Raises:
        InputError: The data have another form, or are empty.
    """
    if isinstance(data, DataLoader):
        return _of_loader(data, what)
    if isinstance(data, tuple | dict) and any(isinstance(part, np.ndarray) for part in _parts(data)):
        data = _as_tensors(data, what)
    if isinstance(data, Tensor) or (isinstance(data, tuple | dict) and _only_tensors(data)):
        return _of_tensors(data, what)
    if isinstance(data, IterableDataset):
        raise InputError(
            f"The {what} data are an IterableDataset, whose samples have no numbers: they cannot be split, shuffled by "
            "the seed or resumed exactly.",
            "Give a Dataset with __len__ and __getitem__; a list of samples is one.",
        )
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or isinstance(data, str | bytes | Mapping):
        raise InputError(f"The {what} data are {quoted(data)}.", _FORMS)
    return _of_dataset(data, what, default_collate)


def _parts(data: Any) -> list[Any]:
    return list(data.values() if isinstance(data, dict) else data)


def _as_tensors(data: Any, what: str) -> Any:
    """Returns arrays in a tuple or dict as tensors."""

    def tensor(part: Any) -> Tensor:
        return part if isinstance(part, Tensor) else torch.as_tensor(part, device="cpu")

    try:
        return {key: tensor(part) for key, part in data.items()} if isinstance(data, dict) else (*map(tensor, data),)
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"The {what} arrays cannot become tensors: {first_line(error)}.", _FORMS) from None


def _only_tensors(data: Any) -> bool:
    parts = _parts(data)
    return bool(parts) and all(isinstance(part, Tensor) for part in parts)


def _of_tensors(data: Any, what: str) -> Samples:
    parts = [data] if isinstance(data, Tensor) else list(data.values() if isinstance(data, dict) else data)
    counts = {len(part) if part.ndim else 0 for part in parts}
    if len(counts) != 1:
        raise InputError(
            f"The {what} tensors have {' and '.join(map(str, sorted(counts)))} rows.", "Give one row a sample in each."
        )
    (count,) = counts
    _refuse_empty(count, what)
    digest = digest_of(parts)
    return Samples(what, range(count), _Rows(data), None, None, False, digest, digest)


@dataclass(frozen=True)
class _Rows:
    """Numbers -> those rows of tensors."""

    data: Any

    def __call__(self, numbers: list[int]) -> Any:
        rows = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        return map_tensors(lambda tensor: tensor[rows.to(tensor.device)], self.data)


def _of_dataset(data: Any, what: str, collate: Callable[[list[Any]], Any]) -> Samples:
    _refuse_empty(len(data), what)
    with seeded(0):
        first = data[0]
    digest = digest_of([repr((len(data), form_of(first))), *content(data)])
    return Samples(what, range(len(data)), _Collated(data, what, collate), None, None, True, digest, _Same(data))


@dataclass(frozen=True)
class _Collated:
    """Numbers -> those samples of a Dataset as a batch; it can be sent to a worker process, as far as its parts can."""

    data: Any
    what: str
    collate: Callable[[list[Any]], Any]

    def __call__(self, numbers: list[int]) -> Any:
        samples = [self.data[number] for number in numbers]
        try:
            return self.collate(samples)
        except (TypeError, RuntimeError, ValueError) as error:
            raise InputError(
                f"The {self.what} samples cannot be put together to a batch: {first_line(error)}.",
                "Give a DataLoader with a collate_fn that does it.",
            ) from error


class _Same:
    """Equal to another one of the same object, which it keeps alive."""

    def __init__(self, of: Any):
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.of is self.of

    def __hash__(self) -> int:
        return id(self.of)


def _of_loader(loader: Any, what: str) -> Samples:
    if isinstance(loader.dataset, IterableDataset):
        return open_samples(loader.dataset, what)  # refuses it
    if loader.batch_size is None and loader.batch_sampler is None:
        raise InputError(f"The {what} DataLoader makes no batches (batch_size=None).", "Give it a batch_size.")
    workers = {name: getattr(loader, name) for name in WORKERS} if loader.num_workers else {}
    found = replace(_of_dataset(loader.dataset, what, loader.collate_fn), workers=workers)
    count, batches = len(found.members), loader.batch_sampler
    if type(batches) is BatchSampler and isinstance(batches.sampler, DistributedSampler):
        return replace(found, batch_size=batches.batch_size)  # processes share a batch in their own way
    if loader.batch_size is None:  # a batch sampler of the user
        drawn = _drawn(loader.batch_sampler, 0, count)
        size = max((len(batch) for batch in drawn), default=0)

        def order(seed: int) -> list[int]:
            return _numbers([n for batch in _drawn(loader.batch_sampler, seed, count) for n in batch], count, what)

    else:
        size, sampler = loader.batch_size, loader.sampler
        shuffling = isinstance(sampler, RandomSampler | SequentialSampler) and not getattr(
            sampler, "replacement", False
        )
        if shuffling and len(sampler.data_source) == count:
            return replace(found, batch_size=size)

        def order(seed: int) -> list[int]:
            return _numbers(_drawn(sampler, seed, count), count, what)

    members = _members(loader.sampler, order)
    if not members:
        raise InputError(f"The sampler of the {what} DataLoader draws nothing.", _FORMS)
    digest = digest_of([found.digest, *([] if len(members) == count else members)])
    return replace(found, members=members, batch_size=size, order=order, digest=digest)


def _members(sampler: Any, order: Callable[[int], list[int]]) -> list[int]:
    """Returns the numbers that a sampler may draw; others, such as those of the test part, are never used."""
    if isinstance(sampler, WeightedRandomSampler):
        return [number for number, weight in enumerate(sampler.weights.tolist()) if weight > 0]
    found: set[int] = set()
    for seed in range(PASSES):
        before = len(found)
        found.update(order(seed))
        if len(found) == before:
            break
    return sorted(found)


def _numbers(drawn: list[Any], count: int, what: str) -> list[int]:
    """Returns what a sampler drew as numbers of samples."""
    try:
        found = [int(number) for number in drawn]
    except (TypeError, ValueError):
        found = [-1]
    if any(not 0 <= number < count for number in found):
        raise InputError(
            f"The sampler of the {what} DataLoader draws other things than numbers from 0 to {count - 1}.",
            "Let it draw numbers of samples of its dataset.",
        )
    return found


def _drawn(sampler: Any, seed: int, count: int) -> list[Any]:
    """Returns what a sampler yields in a pass, drawn from this seed; of one without an end, `count` draws."""
    inner = getattr(sampler, "sampler", sampler)
    if isinstance(getattr(inner, "generator", None), torch.Generator):
        inner.generator.manual_seed(seed)
    with suppress(TypeError, NotImplementedError):
        count = len(sampler)
    with seeded(seed):
        return list(itertools.islice(iter(sampler), count))


def _refuse_empty(count: int, what: str) -> None:
    if count == 0:
        raise InputError(f"The {what} data are empty.", _FORMS)


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Returns the batch with every tensor in its tuples, lists and dicts replaced by function(tensor)."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        found = {key: map_tensors(function, value) for key, value in batch.items()}
        return found if type(batch) is dict else _rebuilt(batch, found)
    if isinstance(batch, tuple | list):
        parts = [map_tensors(function, part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _rebuilt(batch: Any, found: dict[Any, Any]) -> Any:
    try:
        return type(batch)(found)
    except TypeError:
        return found


def to_device(batch: Any, device: torch.device) -> Any:
    """Returns a batch on a device: tensors in tuples, lists and dicts, and objects that have a method `to`."""
    if not isinstance(batch, Tensor | Mapping | tuple | list) and callable(getattr(batch, "to", None)):
        return batch.to(device)
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)


def split(members: Sequence[int], fractions: Mapping[str, float], seed: int, what: str) -> dict[str, list[int]]:
    """Returns disjoint, sorted numbers of samples, one list a part, that together are all.

    Args:
        members: Numbers of the samples.
        fractions: Part -> share; they are divided by their sum.
        seed: The run's seed.
        what: "train" or "validation", for messages.

    Raises:
        InputError: There are fewer samples than parts.
    """
    count = len(members)
    if count < len(fractions):
        raise InputError(
            f"{count} {what} samples cannot be divided into {len(fractions)} parts ({', '.join(fractions)}).",
            "Give more samples; tensors with one row a sample are given in a tuple.",
        )
    order = torch.randperm(count, generator=generator_for(seed, "split"), device="cpu").tolist()
    total, begin, parts, passed = sum(fractions.values()), 0, {}, 0.0
    for left, (name, share) in zip(range(len(fractions) - 1, -1, -1), fractions.items()):
        passed += share
        end = min(max(round(count * passed / total), begin + 1), count - left)
        parts[name], begin = sorted(members[i] for i in order[begin:end]), end
    return parts
