"""The numbers of a search's steps by the names of metrics.csv, and their means over an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

COUNTS = frozenset({"lower_accuracy", "upper_accuracy"})
"""Right answers: counted in a step, shares of the batch where they are shown."""


def step_numbers(info: Any) -> dict[str, Tensor]:
    """Returns the step's 0-dim tensors by the names of metrics.csv (accuracies as counts)."""
    named = {"lower_loss": info.f, "upper_objective": info.F}
    for level, fit in (("upper", info.F_aux), ("lower", info.f_aux)):
        if fit is not None:
            named |= {f"{level}_loss": fit.loss, f"{level}_accuracy": fit.correct}
    named |= {"f_theta": info.f_theta, **(info.norms or {}), "cosine": info.cosine}
    if "distance" in named and info.c is not None:
        # R_k of the paper's (15) on this step's batches, theta in place of the proximal minimiser
        named["residual"] = info.c * torch.hypot(named["d_x"], named["d_y"])
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def epoch_means(sums: Mapping[str, Tensor], steps: int, batch_size: int) -> dict[str, float]:
    """Returns the means of an epoch's steps, in one wait for the device.

    Args:
        sums: Of `step_numbers` over the epoch.
        steps: How many.
        batch_size: Images of a step.
    """
    means = dict(zip(sums, (torch.stack([value.double() for value in sums.values()]) / steps).tolist()))
    return {name: mean / batch_size if name in COUNTS else mean for name, mean in means.items()}
