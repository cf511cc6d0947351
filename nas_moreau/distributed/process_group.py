"""The group of processes that torchrun started: its beginning and end, ranks, and what happens when one is lost."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, NamedTuple

from nas_moreau.errors import InputError, first_line

TIMEOUT = timedelta(hours=1)
"""Collective timeout: all ranks wait while rank 0 evaluates and derives. A process that dies is detected at once by its
closed connections; this bounds the wait for one that hangs."""
START_TIMEOUT = timedelta(minutes=5)
"""How long the processes wait for each other at the start."""
# set by torchrun for its processes; a process started by one of them must not take them for its own
_TORCHRUN = {
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "ROLE_NAME",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "WORLD_SIZE",
}


class RankLost(RuntimeError):
    """Another process of the group has ended or cannot be reached."""


class ProcessGroup(NamedTuple):
    """The group: this process's rank, the world size, and torch's key-value store that all ranks share."""

    rank: int
    size: int
    store: Any


_group: ProcessGroup | None = None
_reports: bool | None = None  # whether this process reports why the group failed


def group() -> ProcessGroup | None:
    """Returns the group, None in a single process."""
    return _group


def launched() -> bool:
    """Returns whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ


def world_size() -> int:
    """Returns the number of processes."""
    return _group.size if _group else 1


def rank() -> int:
    """Returns the number of this process, from 0."""
    return _group.rank if _group else int(os.environ["RANK"]) if launched() else 0


def reports_errors() -> bool:
    """Returns whether this process reports the error that ended the group: the first rank that failed does."""
    return rank() == 0 if _reports is None else _reports


@contextmanager
def session() -> Iterator[None]:
    """Within this context the processes that torchrun started are a group, and all but rank 0 print nothing.

    Raises:
        InputError: The environment is not torchrun's, or the other processes cannot be reached.
    """
    global _group, _reports
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
        _reports = _first_to_fail(_group)
        raise
    finally:
        import torch.distributed as dist

        _group = None
        dist.destroy_process_group()


def _start() -> ProcessGroup:
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        backend = f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator)}"
    try:
        store, number, size = next(rendezvous("env://", timeout=START_TIMEOUT))
        store = dist.PrefixStore(_fresh_prefix(store, number, size), store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        reason = first_line(error).rstrip(".")
        raise InputError(
            f"The {os.environ['WORLD_SIZE']} processes of this run do not find each other: {reason}.",
            "Start them with torchrun, or unset WORLD_SIZE and RANK.",
        ) from error
    return ProcessGroup(number, size, store)


def _fresh_prefix(store: Any, number: int, size: int) -> str:
    """Returns a name of the group that all its ranks know and no earlier group had.

    After a restart torchrun hands out the same store, which still holds the addresses of processes that have ended, and
    every node counts restarts for itself. So every rank writes a fresh key to the store, and rank 0 answers it.
    """
    mine, until = uuid.uuid4().hex, time.monotonic() + START_TIMEOUT.total_seconds()
    if number:
        store.set(f"key/{number}", mine)
        name = store.get(f"answer/{mine}").decode()  # waits
        store.add(f"met/{name}", 1)
        return name
    answered = set()
    while store.add(f"met/{mine}", 0) < size - 1:
        for key in [f"key/{other}" for other in range(1, size)]:
            if store.check([key]) and (other := store.get(key).decode()) not in answered:
                store.set(f"answer/{other}", mine)
                answered.add(other)
        if time.monotonic() > until:
            raise RuntimeError(f"some did not come within {START_TIMEOUT}")
        time.sleep(0.01)
    return mine


def _first_to_fail(group: ProcessGroup) -> bool:
    """Returns whether no other rank has failed before; when the store is lost too, rank 0 reports."""
    mine = str(group.rank)
    try:
        return group.store.compare_set("failed", "", mine).decode() == mine
    except RuntimeError:
        return group.rank == 0


@contextmanager
def detecting_lost_ranks() -> Iterator[None]:
    """Turns the error of a broken connection in a collective into RankLost."""
    try:
        yield
    except RuntimeError as error:
        if _group is None or isinstance(error, RankLost) or not _of_connection(error):
            raise
        raise RankLost(
            "Another process of this run has ended or cannot be reached; the last checkpoint is kept "
            "(torchrun --max-restarts with --resume continues by itself)."
        ) from error


def _of_connection(error: RuntimeError) -> bool:
    import torch.distributed as dist

    signs = ("gloo", "connection", "nccl", "timed out")
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in signs)


def launch_command() -> list[str]:
    """Returns the arguments that start this group again, but for the address where the nodes meet."""
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    several = [] if nodes == "1" else [f"--nnodes={nodes}", "--rdzv-endpoint=HOST:PORT"]
    return ["torchrun", *several, f"--nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', '1')}"]


def child_environment() -> dict[str, str]:
    """Returns the environment without torchrun's variables, for a child process that is not part of the group."""
    return {k: v for k, v in os.environ.items() if k not in _TORCHRUN and not k.startswith("TORCHELASTIC_")}
