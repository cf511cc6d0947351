"""Which rows of a batch a pass sees, where a batch is divided: among processes, or one part after another.

Random draws inside a network (noise, drop-path) are made for the whole batch and the pass takes its rows, so that they
do not depend on how the batch is divided. With `gather` BatchNorm uses the statistics of all processes' shards.

The shard is a variable of the process and no argument: it is needed deep inside modules whose `forward` has the
signature of any network, by autograd functions of the native kernels, and in the backward pass, where activation
checkpointing runs forward passes again in a thread of the device's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from nas_moreau.distributed import Shard

Gather = Callable[[Tensor], Tensor]
"""A tensor -> the tensors of all processes, stacked."""

_shard: Shard | None = None
_gather: Gather | None = None


@contextmanager
def on_shard(shard: Shard, gather: Gather | None = None) -> Iterator[None]:
    """Within this context every pass, forward and backward, is one on this shard.

    Args:
        shard: The rows of the whole batch.
        gather: How BatchNorm's statistics are gathered; None if every process normalises by its own rows.
    """
    global _shard, _gather
    former, (_shard, _gather) = (_shard, _gather), (shard, gather)
    try:
        yield
    finally:
        _shard, _gather = former


def gatherer() -> Gather | None:
    """Returns how BatchNorm's statistics are gathered, None where they are not."""
    return _gather


def draw_rows(rows: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Returns draw(rows), or the shard's rows of what is drawn for the whole batch."""
    if _shard is None or _shard.total == rows:
        return draw(rows)
    return draw(_shard.total)[_shard.start : _shard.stop]
