"""A network that several processes train: torch's DistributedDataParallel, where there are several."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import torch
from torch import nn

from nas_moreau import distributed


def share_network(forward: Any, network: nn.Module, image: tuple[int, int, int]) -> Any:
    """Returns `forward` so that its gradients become the means over all processes; as it is where there is one.

    Running statistics are left to the caller, who averages them.

    Args:
        forward: The network, or what was compiled of it.
        network: In training mode.
        image: Channels, height and width.
    """
    if distributed.processes() == 1:
        return forward
    from torch.nn.parallel import DistributedDataParallel

    # one of a 1x1 convolution, whose strides have two names; the memory is the same
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    known = inspect.signature(DistributedDataParallel).parameters
    leave: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    unused = _leaves_some_unused(network, image)
    with distributed.noticing_loss():
        return DistributedDataParallel(forward, find_unused_parameters=unused, **leave)


def _leaves_some_unused(network: nn.Module, image: tuple[int, int, int]) -> bool:
    """Whether a parameter gets no gradient, as behind a cell's node that reaches no output. Computes nothing."""
    twin: Any = copy.deepcopy(network).to("meta")
    twin.checkpointing = False
    output = twin(torch.empty((2, *image), device="meta"))
    sum(part.sum() for part in (output if isinstance(output, tuple) else (output,))).backward()
    return any(p.grad is None for p in twin.parameters() if p.requires_grad)
