"""What the configuration's `performance` section asks of torch: threads, TF32, and the precision of forward passes.

Parameters, alphas, theta, momentum and losses are float32 whatever the precision: autocast wraps forward passes alone,
and the gradients that come back have the type of what they belong to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from nas_moreau.config import PerformanceConfig
from nas_moreau.errors import InputError

_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def set_up(performance: PerformanceConfig, device: torch.device) -> None:
    """Sets torch's threads and whether float32 products may be computed in TF32, for the process: see `as_it_was`."""
    if performance.threads:
        torch.set_num_threads(performance.threads)
    tf32 = uses_tf32(performance, device)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def as_it_was() -> Iterator[None]:
    """Leaves behind the threads and TF32 settings of the caller; around every function that sets them for a stage.

    Who calls a stage from a notebook has other work for torch afterwards, and other threads for it.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


def uses_tf32(performance: PerformanceConfig, device: torch.device) -> bool:
    """Returns whether float32 products may be computed in TF32: "auto" says yes on an accelerator, no on a CPU."""
    return device.type != "cpu" if performance.tf32 == "auto" else performance.tf32


def autocast(device_type: str, precision: str) -> AbstractContextManager[Any]:
    """Returns the context in which a forward pass runs in `precision` ("float32": as it is)."""
    return torch.autocast(device_type, _HALVES[precision]) if precision in _HALVES else nullcontext()


def refuse_float16(performance: PerformanceConfig) -> None:
    """Raises InputError where a search is asked for in float16."""
    if performance.precision == "float16":
        raise InputError(
            "A search does not run in float16: its direction is a difference of gradients, which would need one common "
            "loss scale for the three losses.",
            "Set performance.precision=bfloat16 or float32; float16 is for `retrain`.",
        )
