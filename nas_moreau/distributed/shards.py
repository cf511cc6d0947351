"""This rank's part of the work: its rows of a batch, and its device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from nas_moreau.distributed.process_group import group, rank, world_size
from nas_moreau.errors import InputError

if TYPE_CHECKING:
    import torch


class Shard(NamedTuple):
    """Rows `start` to `stop` of a batch of `total` images."""

    start: int
    stop: int
    total: int


def own_shards(batch_size: int, parts: int = 1) -> list[Shard]:
    """Returns this rank's shard of a batch, in `parts` pieces of equal size.

    Args:
        batch_size: Images in the batch, over all ranks.
        parts: Pieces in which this rank passes its shard through the network.

    Raises:
        InputError: The batch cannot be divided evenly.
    """
    pieces = world_size() * parts
    if batch_size % pieces:
        raise InputError(
            f"A batch of {batch_size} images cannot be divided evenly among {world_size()} "
            f"process{'es' * (world_size() > 1)}{f' in {parts} parts each' if parts > 1 else ''}.",
            f"Use a batch_size that is a multiple of {pieces}.",
        )
    size, first = batch_size // pieces, rank() * parts
    return [Shard(size * i, size * (i + 1), batch_size) for i in range(first, first + parts)]


def own_device(device: torch.device) -> torch.device:
    """Returns the device of this rank: the accelerator of its local rank, or the CPU.

    Raises:
        InputError: The machine has fewer accelerators than processes, or one was named for all.
    """
    if group() is None or device.type == "cpu":
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
