"""Where a stage computes: its device, torch's settings, mixed precision, and gradients averaged over processes.

Parameters, alphas, theta, momentum and losses are float32 whatever the precision: autocast wraps forward passes alone,
and the gradients that come back have the type of their parameters.
"""

from __future__ import annotations

import copy
import inspect
import resource
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from nas_moreau import distributed
from nas_moreau.architecture.networks.batch_shard import Gather
from nas_moreau.config import Config, PerformanceConfig
from nas_moreau.errors import InputError, first_line

_running = threading.RLock()
_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Returns the device of that name; "auto" is the accelerator if there is one that supports float64, else the CPU.

    Raises:
        InputError: The device does not exist here, or does not support float64, in which sums are kept.
    """
    if name == "auto":
        # a build for an accelerator names it even on a machine that has none
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        try:
            return _tried(found) if found else torch.device("cpu")
        except (RuntimeError, TypeError):
            return torch.device("cpu")
    try:
        return _tried(torch.device(name))
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = first_line(error).rstrip(".")
        if reason.startswith("Expected one of"):  # torch lists every kind of device that it has ever known
            reason = "torch knows no device of that name"
        elif "aten::" in reason or "driver" in reason or "not compiled" in reason:
            reason = "this machine, or this build of torch, has none"
        raise InputError(
            f"Device '{name}' cannot be used: {reason}.", "Use --device auto (the accelerator of this machine) or cpu."
        ) from None


def _tried(device: torch.device) -> torch.device:
    if device.type == "meta":
        raise RuntimeError("it holds no numbers")
    torch.empty(1, dtype=torch.float64, device=device)
    return device


def set_up_device(config: Config) -> torch.device:
    """Returns this process's device, and applies the `performance` section to torch."""
    device = distributed.own_device(pick_device(config.device))
    set_up_torch(config.performance, device)
    return device


def set_up_torch(performance: PerformanceConfig, device: torch.device) -> None:
    """Sets the number of torch's threads, and whether float32 products may be computed in TF32, for the process."""
    if performance.threads:
        torch.set_num_threads(performance.threads)
    tf32 = uses_tf32(performance, device)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def torch_settings_restored() -> Iterator[None]:
    """Restores the caller's threads, TF32 settings and random numbers at the end; decorates what sets them.

    A notebook that calls a stage has other work for torch afterwards, whose random numbers must not be the same after
    every call. The caller's `no_grad`, `inference_mode` and `autocast` do not reach inside. Only one thread at a time
    may be within: threads, settings and the random numbers of operations belong to the whole process.

    Raises:
        InputError: Another thread is within.
    """
    if not _running.acquire(blocking=False):
        raise InputError(
            "Another thread of this process is searching, training or evaluating, and torch's random numbers and "
            "settings belong to the whole process: both would give other results than alone.",
            "Wait until it ends, or start this one in a separate process.",
        )
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    drawn, first = (torch.get_rng_state(), np.random.get_state()), torch.initial_seed()
    on_devices = _generators_of_accelerators()
    try:
        with torch.inference_mode(False), torch.enable_grad(), _without_autocast():
            yield
    finally:
        torch.set_rng_state(drawn[0])
        np.random.set_state(drawn[1])
        _restore_accelerators(on_devices, first)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions
        _running.release()


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Within this context no precision but that of the configuration counts."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    with ExitStack() as stack:
        for kind in ("cpu", *(() if found is None else (found.type,))):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _accelerator() -> Any:
    """Returns torch's module of the accelerator in use, if its generators can be read; None where there is none."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    module = None if found is None else getattr(torch, found.type, None)
    in_use = module is not None and hasattr(module, "get_rng_state_all") and module.is_initialized()
    return module if in_use else None


def _generators_of_accelerators() -> list[torch.Tensor] | None:
    """Returns the states of the accelerators' generators; None if no accelerator is in use yet."""
    module = _accelerator()
    return None if module is None else module.get_rng_state_all()


def _restore_accelerators(states: list[torch.Tensor] | None, seed: int) -> None:
    """Restores the states; generators that had none get the seed with which torch would have begun them."""
    module = _accelerator()
    if module is None:
        return
    if states is None:
        module.manual_seed_all(seed)
    else:
        module.set_rng_state_all(states)


def uses_tf32(performance: PerformanceConfig, device: torch.device) -> bool:
    """Returns whether float32 products may be computed in TF32; "auto" means on accelerators only."""
    return device.type != "cpu" if performance.tf32 == "auto" else performance.tf32


def autocast(device_type: str, precision: str) -> AbstractContextManager[Any]:
    """Returns the context of a forward pass in `precision`; "float32" changes nothing."""
    return torch.autocast(device_type, _HALVES[precision]) if precision in _HALVES else nullcontext()


def refuse_float16(performance: PerformanceConfig) -> None:
    """Raises InputError if the configuration asks for a search in float16."""
    if performance.precision == "float16":
        raise InputError(
            "A search does not run in float16: its direction is a difference of gradients, which would need one common "
            "loss scale for the three losses.",
            "Set performance.precision=bfloat16 or float32; float16 is for `retrain`.",
        )


def batchnorm_gather(config: Config) -> Gather | None:
    """Returns how BatchNorm's statistics are gathered from all processes; None if each uses its own."""
    synchronised = config.distributed.sync_batchnorm and distributed.world_size() > 1
    return distributed.all_gather if synchronised else None


def average_gradients(forward: Any, network: nn.Module, image: tuple[int, int, int]) -> Any:
    """Returns `forward` in torch's DistributedDataParallel, unchanged in a single process.

    Gradients then become means over all processes; running statistics are left to the caller.

    Args:
        forward: The network, possibly compiled.
        network: In training mode.
        image: Channels, height and width.
    """
    if distributed.world_size() == 1:
        return forward
    from torch.nn.parallel import DistributedDataParallel

    # one of a 1x1 convolution, whose strides have two names; the memory is the same
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    known = inspect.signature(DistributedDataParallel).parameters
    leave: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    unused = has_unused_parameters(network, image)
    with distributed.detecting_lost_ranks():
        return DistributedDataParallel(forward, find_unused_parameters=unused, **leave)


def has_unused_parameters(network: nn.Module, image: tuple[int, int, int]) -> bool:
    """Returns whether a parameter gets no gradient, as behind a node that reaches no output. Computes nothing."""
    twin: Any = copy.deepcopy(network).to("meta")
    twin.checkpointing = False
    output = twin(torch.empty((2, *image), device="meta"))
    sum(part.sum() for part in (output if isinstance(output, tuple) else (output,))).backward()
    return any(p.grad is None for p in twin.parameters() if p.requires_grad)


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the peak memory so far: of the allocator on accelerators that count it, else of the process."""
    count = getattr(getattr(torch, device.type, None), "max_memory_allocated", None)
    if device.type != "cpu" and count is not None:
        return count(device)
    try:  # on Linux ru_maxrss includes the peak of the process that started this one
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        pass
    # kilobytes elsewhere, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
