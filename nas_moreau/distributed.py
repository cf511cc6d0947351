"""Several processes under torchrun: the same loop in each, on its share of every batch; the first alone writes.

Without torchrun, and with one process, everything here is a no-op: `processes()` is 1 and values come back as they are.
Imports torch only where a group is started. What the processes agree on goes through gloo on the CPU, gradients through
the accelerator's own backend where there is one.
"""

from __future__ import annotations

import json
import os
import pickle
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nas_moreau.errors import InputError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

# The longest wait for the others: they wait while the first evaluates and derives. A process that dies is noticed at
# once by its closed connections; this bounds the wait for one that hangs.
TIMEOUT = timedelta(hours=1)
MEETING = timedelta(minutes=5)
# What torchrun sets for its processes, and a process started by one of them must not take for its own.
_NAMES = {
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
}  # fmt: skip


class Lost(RuntimeError):
    """Another process of the group has ended or cannot be reached."""


class _Group(NamedTuple):
    rank: int
    size: int
    store: Any


_group: _Group | None = None
_speaks: bool | None = None  # whether this process is the one that says why the group failed


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ


def processes() -> int:
    """Returns how many processes share the work."""
    return _group.size if _group else 1


def rank() -> int:
    """Returns this process's number, from 0."""
    return _group.rank if _group else int(os.environ["RANK"]) if launched() else 0


def speaks() -> bool:
    """Whether this process is to say what went wrong: one of the group does."""
    return rank() == 0 if _speaks is None else _speaks


@contextmanager
def session() -> Iterator[None]:
    """While it is open the processes that torchrun started are a group, and all but the first are silent.

    Raises:
        InputError: The environment is not torchrun's, or the others cannot be reached.
    """
    global _group, _speaks
    if not launched():
        yield
        return
    _group = _start()
    try:
        if _group.rank == 0:
            yield
        else:
            with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
    except BaseException:
        _speaks = _first_to_fail(_group)
        raise
    finally:
        import torch.distributed as dist

        _group = None
        dist.destroy_process_group()


def _start() -> _Group:
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        backend = f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator)}"
    try:
        store, number, size = next(rendezvous("env://", timeout=MEETING))
        store = dist.PrefixStore(_meet(store, number, size), store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        reason = first_line(error).rstrip(".")
        raise InputError(
            f"The {os.environ['WORLD_SIZE']} processes of this run do not find each other: {reason}.",
            "Start them with torchrun, or unset WORLD_SIZE and RANK.",
        ) from error
    return _Group(number, size, store)


def _meet(store: Any, number: int, size: int) -> str:
    """Returns a name for the group that all its processes know and no earlier one had.

    After a restart torchrun hands out the same store, with the addresses of processes that are gone in it, and its
    count of restarts is each node's own. So every process leaves a fresh word in the store, and the first answers it.
    """
    mine, until = uuid.uuid4().hex, time.monotonic() + MEETING.total_seconds()
    if number:
        store.set(f"word/{number}", mine)
        name = store.get(f"answer/{mine}").decode()  # waits
        store.add(f"met/{name}", 1)
        return name
    answered = set()
    while store.add(f"met/{mine}", 0) < size - 1:
        for key in [f"word/{other}" for other in range(1, size)]:
            if store.check([key]) and (word := store.get(key).decode()) not in answered:
                store.set(f"answer/{word}", mine)
                answered.add(word)
        if time.monotonic() > until:
            raise RuntimeError(f"some did not come within {MEETING}")
        time.sleep(0.01)
    return mine


def _first_to_fail(group: _Group) -> bool:
    """Whether no other process has failed before; one that was lost with its store has nobody left to ask."""
    mine = str(group.rank)
    try:
        return group.store.compare_set("failed", "", mine).decode() == mine
    except RuntimeError:
        return group.rank == 0


@contextmanager
def noticing_loss() -> Iterator[None]:
    """Turns what a broken connection raises in an exchange of tensors into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if _group is None or isinstance(error, Lost) or not _of_connection(error):
            raise
        raise Lost(
            "Another process of this run has ended or cannot be reached; the last checkpoint stands "
            "(torchrun --max-restarts with --resume goes on by itself)."
        ) from error


def _of_connection(error: RuntimeError) -> bool:
    import torch.distributed as dist

    words = ("gloo", "connection", "nccl", "timed out")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


# --- exchange --------------------------------------------------------------------------------------------------------


def averaged(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the mean over all processes of each tensor: one flat all-reduce for each type among them.

    The results are parts of that flat tensor, laid out in memory as what they are the mean of.
    """
    if _group is None or not tensors:
        return list(tensors)
    import torch
    import torch.distributed as dist

    # a dense tensor as the row of numbers that it is in memory, in which the layouts of weights make no difference
    dense = [t.detach() if _is_dense(t) else t.detach().contiguous() for t in tensors]
    result = list(dense)
    for kind in dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors):
        places = [i for i, tensor in enumerate(tensors) if (tensor.dtype, tensor.device) == kind]
        flat = torch.cat([dense[i].as_strided((dense[i].numel(),), (1,)) for i in places])
        with noticing_loss():
            dist.all_reduce(flat)
        flat /= _group.size
        begin = 0
        for i in places:
            result[i] = flat.as_strided(dense[i].shape, dense[i].stride(), begin)
            begin += dense[i].numel()
    return result


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor's numbers fill a piece of memory in one of the two usual orders."""
    import torch

    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def gathered(tensor: Tensor) -> Tensor:
    """Returns the tensors of all processes, stacked by rank; they must have one shape."""
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(tensor) for _ in range(processes())]
    with noticing_loss():
        dist.all_gather(parts, tensor)
    return torch.stack(parts)


def largest(number: int) -> int:
    """Returns the largest of the processes' numbers: what one of them has seen, all of them see at the same step."""
    if _group is None:
        return number
    import torch
    import torch.distributed as dist

    found = torch.tensor([number], device="cpu")
    with noticing_loss():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def of_all(value: T) -> list[T]:
    """Returns the values (plain data) of all processes by rank."""
    if _group is None:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * _group.size
    with noticing_loss():
        dist.all_gather_object(found, value)
    return found


def on_first(work: Callable[[], T]) -> T:
    """Returns what `work` returns in the first process, in all of them; what it raises there is raised in all.

    `work` must not exchange anything with the others, who are waiting.
    """
    if _group is None:
        return work()
    if _group.rank:
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
    with noticing_loss():
        dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
    return box[0]


def _portable(error: BaseException) -> BaseException:
    """Returns the error, or a plain one with its text where it cannot be sent."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception's own constructor raises
        return RuntimeError(f"{type(error).__name__}: {error}")


def taking_turns(count: int, purpose: str) -> Iterator[int]:
    """Yields the numbers below `count`, each to one process: to whichever asks next."""
    if _group is None:
        yield from range(count)
        return
    while (number := _group.store.add(purpose, 1) - 1) < count:
        yield number


def in_the_end(value: T, check_stop: Callable[[], None]) -> list[T]:
    """Returns the values of all processes by rank, however long the last of them takes.

    Args:
        value: This process's: what JSON can say.
        check_stop: Called while waiting; may raise.
    """
    if _group is None:
        return [value]
    _group.store.set(f"end/{_group.rank}", json.dumps(value))
    names = [f"end/{other}" for other in range(_group.size)]
    with noticing_loss():
        while not _group.store.check(names):
            check_stop()
            time.sleep(0.1)
        return [json.loads(_group.store.get(name)) for name in names]


def together(work: Callable[[], T]) -> T:
    """Returns what `work` returns here, once all processes have done theirs.

    Raises:
        InputError: One of them met something that cannot be used; all raise what the first of these raised.
    """
    if _group is None:
        return work()
    value, refused = None, None
    try:
        value = work()
    except InputError as error:
        refused = error.cause, error.cure
    for found in of_all(refused):
        if found is not None:
            raise InputError(*found)
    return value  # type: ignore[return-value]


def check_equal(named: Mapping[str, Sequence[Tensor]]) -> None:
    """Raises RuntimeError where the processes do not hold the same bytes, naming what differs and where.

    Args:
        named: Tensors by what they are; each list's checksum is compared.
    """
    if _group is None:
        return
    sums = of_all({name: _checksum(tensors) for name, tensors in named.items()})
    for other, found in enumerate(sums):
        differing = [name for name, checksum in found.items() if sums[0][name] != checksum]
        if differing:
            raise RuntimeError(
                f"The {', '.join(differing)} of process {other} are no longer those of process 0: the machines compute "
                "differently. Run the processes on equal hardware and software."
            )


def _checksum(tensors: Sequence[Tensor]) -> int:
    import torch

    checksum = 0
    for tensor in tensors:
        data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        checksum = zlib.crc32(data.numpy().tobytes(), checksum)
    return checksum


# --- shares ----------------------------------------------------------------------------------------------------------


def own_rows(batch_size: int, parts: int = 1) -> list[tuple[int, int]]:
    """Returns begin and end of this process's rows of a batch, in `parts` pieces of equal size.

    Raises:
        InputError: The batch cannot be shared out evenly.
    """
    pieces = processes() * parts
    if batch_size % pieces:
        raise InputError(
            f"A batch of {batch_size} images cannot be shared evenly by {processes()} process{'es' * (processes() > 1)}"
            f"{f' in {parts} parts each' if parts > 1 else ''}.",
            f"Use a batch_size that is a multiple of {pieces}.",
        )
    size = batch_size // pieces
    return [(size * (rank() * parts + i), size * (rank() * parts + i + 1)) for i in range(parts)]


def own_device(device: torch.device) -> torch.device:
    """Returns the device of this process: of several accelerators of a machine each process has its own.

    Raises:
        InputError: The machine has fewer of them than processes, or one was named for all.
    """
    if _group is None or device.type == "cpu":
        return device
    import torch

    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if local > 1 and device.index is not None:
        raise InputError(f"{local} processes cannot share the device {device}.", f"Use --device {device.type}.")
    if number >= count:
        raise InputError(
            f"This machine has {count} devices of type {device.type}, fewer than its {local} processes.",
            f"Use --nproc-per-node {count}.",
        )
    torch.accelerator.set_device_index(number)
    return torch.device(device.type, number)


def launcher() -> list[str]:
    """Returns the words that start this group again, but for where the nodes meet."""
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    several = [] if nodes == "1" else [f"--nnodes={nodes}", "--rdzv-endpoint=HOST:PORT"]
    return ["torchrun", *several, f"--nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', '1')}"]


def plain_environment() -> dict[str, str]:
    """Returns the environment without what torchrun put there, for a process that is to be on its own."""
    return {k: v for k, v in os.environ.items() if k not in _NAMES and not k.startswith("TORCHELASTIC_")}
