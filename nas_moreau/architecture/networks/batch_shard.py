"""Which part of a whole batch a pass sees, where a batch is shared out: by processes, or one after another.

Random draws inside a network (noise, drop-path) are made for the whole batch and the part takes its rows, so that they
do not depend on how the batch is shared out. With `gather` BatchNorm's statistics are those of all processes' parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

Gather = Callable[[Tensor], Tensor]


class Share(NamedTuple):
    """Rows `start` to `stop` of a batch of `total` images.

    `gather`: tensor -> the tensors of all processes, stacked; None where every process normalises on its own.
    """

    start: int
    stop: int
    total: int
    gather: Gather | None = None


# one for the whole process, not for a thread: an accelerator's backward pass runs in a thread of its own
_current: Share | None = None


@contextmanager
def sharing(share: Share) -> Iterator[None]:
    """While it is open every pass, forward and backward, is one on this share."""
    global _current
    former, _current = _current, share
    try:
        yield
    finally:
        _current = former


def gatherer() -> Gather | None:
    """Returns how BatchNorm's statistics are gathered, None where they are not."""
    return None if _current is None else _current.gather


def draw_rows(rows: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Returns draw(rows), or the share's rows of what is drawn for the whole batch."""
    if _current is None or _current.total == rows:
        return draw(rows)
    return draw(_current.total)[_current.start : _current.stop]
