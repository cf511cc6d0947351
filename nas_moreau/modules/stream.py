"""The parts of the data as streams of batches: reproducible at every step, fetched ahead by worker processes."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from nas_moreau import distributed
from nas_moreau.config import Config
from nas_moreau.data import seed_for
from nas_moreau.data.splitting import epoch_order, seeded
from nas_moreau.distributed import Shard
from nas_moreau.errors import InputError
from nas_moreau.modules.samples import BATCH_SIZE, Samples, open_samples, split, to_device


class Stream:
    """Batches of a part of the samples, reproducible at every step without the steps before it.

    The order of a pass depends on (seed, purpose, pass), random numbers of a Dataset on (seed, purpose, step).

    Args:
        samples: The data.
        numbers: Samples of the part.
        batch_size: Samples of a batch, at most those of the part. The last, smaller batch of a pass is left out.
        seed: The run's seed.
        purpose: Name of this stream of random draws.
        shard: Rows of every batch to give.
        device: Where batches are put.
    """

    def __init__(
        self,
        samples: Samples,
        numbers: list[int],
        batch_size: int,
        seed: int,
        purpose: str,
        shard: Shard,
        device: torch.device,
    ):
        self.samples, self.numbers, self.seed, self.purpose = samples, numbers, seed, purpose
        self.batch_size, self.device = min(batch_size, len(numbers)), device
        self.shard = shard if self.batch_size == shard.total else Shard(0, self.batch_size, self.batch_size)
        self._fetch = _Fetch(samples.fetch, samples.draws, seed, purpose)
        self._pass, self._order = -1, numbers
        self._next, self._ahead = -1, iter(())

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self.numbers) // self.batch_size

    def _of_pass(self, number: int) -> list[int]:
        if self.samples.order is None:
            every = torch.tensor(self.numbers, dtype=torch.int64, device="cpu")
            return epoch_order(every, self.seed, f"order of {self.purpose}", number).tolist()
        own = set(self.numbers)
        found = [n for n in self.samples.order(seed_for(self.seed, f"order of {self.purpose}", number)) if n in own]
        # a sampler may draw fewer than a pass needs
        return [(found or self.numbers)[i % max(1, len(found or self.numbers))] for i in range(len(self.numbers))]

    def batch(self, step: int) -> Any:
        """Returns this process's part of the batch of a step, counted from the beginning of the run.

        Where the data have worker processes, they fetch those of the next steps meanwhile, until `close`.
        """
        if not self.samples.workers:
            return self.at(step)
        if step != self._next:
            self.close()
            keys = map(self._key, itertools.count(step))
            self._ahead = fetched(self._fetch, keys, self.samples.workers)
        self._next = step + 1
        return to_device(next(self._ahead), self.device)

    def at(self, step: int) -> Any:
        """Returns the batch of a step, fetched in this process."""
        return to_device(self._fetch(self._key(step)), self.device)

    def first(self) -> Any:
        """Returns the first sample of the part as a batch."""
        return to_device(self._fetch((self.numbers[:1], 0)), self.device)

    def all(self) -> Iterator[tuple[Any, int]]:
        """Yields every sample of the part once, in batches, each with its number of samples."""
        places = range(0, len(self.numbers), self.batch_size)
        keys = [(self.numbers[place : place + self.batch_size], place) for place in places]
        for (numbers, _), batch in zip(keys, fetched(self._fetch, keys, self.samples.workers)):
            yield to_device(batch, self.device), len(numbers)

    def close(self) -> None:
        """Ends the worker processes."""
        self._next, self._ahead = -1, iter(())

    def _key(self, step: int) -> tuple[list[int], int]:
        """Returns the numbers of this process's samples of a step, and the step."""
        number, place = divmod(step, len(self))
        if number != self._pass:
            self._order, self._pass = self._of_pass(number), number
        whole = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        return whole[self.shard.start : self.shard.stop], step


@dataclass(frozen=True)
class _Fetch:
    """(numbers, step) -> those samples as a batch; random numbers of a Dataset are those of the step."""

    fetch: Callable[[list[int]], Any]
    draws: bool
    seed: int
    purpose: str

    def __call__(self, key: tuple[list[int], int]) -> Any:
        numbers, step = key
        if not self.draws:
            return self.fetch(numbers)
        with seeded(seed_for(self.seed, f"samples of {self.purpose}", step)):
            return self.fetch(numbers)


@dataclass(frozen=True)
class ModuleData:
    """The parts of the data, as batches.

    Attributes:
        lower: Trains the weights.
        upper: Trains the alphas.
        held_out: Used by neither level.
        digest: Of the data.
    """

    lower: Stream
    upper: Stream
    held_out: Stream
    digest: str

    def close(self) -> None:
        """Ends the worker processes."""
        for stream in (self.lower, self.upper):
            stream.close()


def module_data(
    train: Any, validation: Any, batch_size: int | None, config: Config, device: torch.device
) -> ModuleData:
    """Returns the parts of the data: weights, architecture and held out.

    Without validation data the training data are divided by `search.split`; otherwise they train the weights, and the
    validation data are divided between the other two.

    Args:
        train, validation: See `samples.open_samples`; validation may be None.
        batch_size: Samples of a batch; by default those of the DataLoader, else 64.
        config: Seed and split.
        device: Where batches are put.

    Raises:
        InputError: The data cannot be used.
    """
    fractions = config.search.split.model_dump()
    first = open_samples(train, "train")
    second = first if validation is None else open_samples(validation, "validation")
    if validation is None:
        parts = split(first.members, fractions, config.seed, "train")
    else:
        both = set(first.members) & set(second.members) if first.origin == second.origin else set()
        if both:
            raise InputError(
                f"{len(both):,} samples are in both the train and the validation data, so that none would be held out.",
                "Leave validation out: a part of the training data is taken for it.",
            )
        parts = {"weights": list(first.members)}
        rest = {name: fractions[name] for name in ("architecture", "held_out")}
        parts |= split(second.members, rest, config.seed, "validation")

    def stream(samples: Samples, name: str) -> Stream:
        size = batch_size or samples.batch_size or BATCH_SIZE
        size = min(size, len(parts[name]))
        if distributed.world_size() > 1:
            size -= size % distributed.world_size()
        if size < 1:
            raise InputError(f"The part '{name}' has fewer samples than there are processes.", "Give more samples.")
        (shard,) = distributed.own_shards(size)
        return Stream(samples, parts[name], size, config.seed, name, shard, device)

    digest = hashlib.sha256(f"{first.digest} {'' if validation is None else second.digest}".encode()).hexdigest()[:16]
    return ModuleData(stream(first, "weights"), stream(second, "architecture"), stream(second, "held_out"), digest)


def fetched(fetch: Callable[[Any], Any], keys: Iterable[Any], options: Mapping[str, Any]) -> Iterator[Any]:
    """Yields fetch(key) of every key, in their order; worker processes work ahead. Closing it ends them.

    Args:
        fetch: Key -> batch; what it returns may depend on the key alone.
        keys: With or without an end; they are made in this process.
        options: `Samples.workers`; {} fetches in this process, when a batch is asked for.
    """
    if not options:
        yield from map(fetch, keys)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user's DataLoader has warned
        loader: DataLoader[Any] = DataLoader(
            _Fetched(fetch),
            batch_size=None,
            sampler=keys,
            collate_fn=_same,
            generator=torch.Generator(device="cpu"),  # the global one stays as it is, with workers or without
            **{**options, "worker_init_fn": _Begin(options["worker_init_fn"])},
        )
        batches = iter(loader)
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch


class _Fetched(Dataset[Any]):
    """fetch(key) as an item of a Dataset; torch cannot raise an InputError again, so it is handed over."""

    def __init__(self, fetch: Callable[[Any], Any]):
        self.fetch = fetch

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.fetch(key)
        except InputError as error:
            return error


def _same(batch: Any) -> Any:
    return batch


class _Begin:
    """Begins a worker: Ctrl-C on a terminal is for the main process, which saves its state and ends the workers."""

    def __init__(self, own: Callable[[int], None] | None):
        self.own = own

    def __call__(self, number: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(os, "setpgid"):  # signals to the group, such as a scheduler's, are for the main process too
            os.setpgid(0, 0)
        if self.own is not None:
            self.own(number)
