"""Independent pieces of work, of which every rank takes the next one when it is free."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from nas_moreau.distributed.process_group import detecting_lost_ranks, group

T = TypeVar("T")


def work_queue(count: int, name: str) -> Iterator[int]:
    """Yields the numbers below `count`, each on one rank: the one that asks next.

    Args:
        count: Number of pieces of work.
        name: Of the queue, the same on all ranks.
    """
    own = group()
    if own is None:
        yield from range(count)
        return
    while (number := own.store.add(name, 1) - 1) < count:
        yield number


def gather_at_end(value: T, check_stop: Callable[[], None]) -> list[T]:
    """Returns the values of all ranks, by rank, however long the last of them takes.

    Args:
        value: This rank's value, plain data or dataclasses.
        check_stop: Called while waiting; may raise.
    """
    own = group()
    if own is None:
        return [value]
    own.store.set(f"end/{own.rank}", pickle.dumps(value).hex())
    names = [f"end/{other}" for other in range(own.size)]
    with detecting_lost_ranks():
        while not own.store.check(names):
            check_stop()
            time.sleep(0.1)
        return [pickle.loads(bytes.fromhex(own.store.get(name).decode())) for name in names]
