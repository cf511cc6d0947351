"""Collectives: means, maxima and plain data over all ranks, work on rank 0, and errors that all ranks raise."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nas_moreau.distributed.process_group import detecting_lost_ranks, group, world_size
from nas_moreau.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def all_reduce_mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the mean of each tensor over all ranks, by one flat all-reduce per dtype and device.

    The results are views of the flat tensor, in the memory layout of their originals.
    """
    if group() is None or not tensors:
        return list(tensors)
    import torch
    import torch.distributed as dist

    # a dense tensor is sent as the row of numbers that it is in memory, so that memory layouts make no difference
    dense = [t.detach() if _is_dense(t) else t.detach().contiguous() for t in tensors]
    result = list(dense)
    for kind in dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors):
        places = [i for i, tensor in enumerate(tensors) if (tensor.dtype, tensor.device) == kind]
        flat = torch.cat([dense[i].as_strided((dense[i].numel(),), (1,)) for i in places])
        with detecting_lost_ranks():
            dist.all_reduce(flat)
        flat /= world_size()
        begin = 0
        for i in places:
            result[i] = flat.as_strided(dense[i].shape, dense[i].stride(), begin)
            begin += dense[i].numel()
    return result


def _is_dense(tensor: Tensor) -> bool:
    """Returns whether the numbers fill a block of memory in one of the two usual orders."""
    import torch

    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def all_gather(tensor: Tensor) -> Tensor:
    """Returns the tensors of all ranks, which have one shape, stacked by rank."""
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with detecting_lost_ranks():
        dist.all_gather(parts, tensor)
    return torch.stack(parts)


def all_reduce_max(number: int) -> int:
    """Returns the largest number of all ranks, so that a signal on one of them stops all at the same step."""
    if group() is None:
        return number
    import torch
    import torch.distributed as dist

    found = torch.tensor([number], device="cpu")
    with detecting_lost_ranks():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def all_gather_object(value: T) -> list[T]:
    """Returns the values (plain data) of all ranks, by rank."""
    if group() is None:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world_size()
    with detecting_lost_ranks():
        dist.all_gather_object(found, value)
    return found


def run_on_rank0(work: Callable[[], T]) -> T:
    """Returns on all ranks what `work` returns on rank 0; an exception on rank 0 is raised on all.

    `work` must not use a collective: the other ranks wait for its result.
    """
    own = group()
    if own is None:
        return work()
    if own.rank:
        value, error = _broadcast(None)
        if error is not None:
            raise error
        return value
    try:
        value = work()
    except BaseException as error:
        _broadcast((None, _portable(error)))
        raise
    _broadcast((value, None))
    return value


def _broadcast(value: Any) -> Any:
    import torch
    import torch.distributed as dist

    box = [value]
    with detecting_lost_ranks():
        dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
    return box[0]


def _portable(error: BaseException) -> BaseException:
    """Returns the error, or a plain one with its text if it cannot be pickled."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception's own constructor raises
        return RuntimeError(f"{type(error).__name__}: {error}")


def run_on_all_ranks(work: Callable[[], T]) -> T:
    """Returns what `work` returns on this rank, when all ranks have finished theirs.

    Raises:
        InputError: `work` raised one on some rank; all ranks raise that of the first of them.
    """
    if group() is None:
        return work()
    value, refused = None, None
    try:
        value = work()
    except InputError as error:
        refused = error.cause, error.cure
    for found in all_gather_object(refused):
        if found is not None:
            raise InputError(*found)
    return value  # type: ignore[return-value]


def check_equal(named: Mapping[str, Sequence[Tensor]]) -> None:
    """Raises RuntimeError if the ranks do not hold the same bytes, naming what differs and on which rank.

    Args:
        named: Tensors by name; the checksum of each list is compared.
    """
    if group() is None:
        return
    sums = all_gather_object({name: _checksum(tensors) for name, tensors in named.items()})
    for other, found in enumerate(sums):
        differing = [name for name, checksum in found.items() if sums[0][name] != checksum]
        if differing:
            raise RuntimeError(
                f"The {', '.join(differing)} of rank {other} differ from those of rank 0: the machines compute "
                "differently. Run all processes on equal hardware and software."
            )


def _checksum(tensors: Sequence[Tensor]) -> int:
    import torch

    checksum = 0
    for tensor in tensors:
        data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        checksum = zlib.crc32(data.numpy().tobytes(), checksum)
    return checksum
