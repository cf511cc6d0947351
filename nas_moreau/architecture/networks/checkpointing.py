"""Activation checkpointing cell by cell: activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

RunCell = Callable[[Any, list[Tensor]], Tensor]  # applies one cell, whatever its class, to its inputs


class _Body(nn.Module):
    """`run(cell, inputs)` as a module, so that the cell's tensors can be put in their places by name."""

    def __init__(self, cell: nn.Module, run: RunCell):
        super().__init__()
        self.cell, self.run = cell, run

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self.cell, list(inputs))


def run_checkpointed(cell: nn.Module, run: RunCell, inputs: list[Tensor]) -> Tensor:
    """Returns run(cell, inputs), keeping its inputs alone for the backward pass.

    The second computation sees the tensors of the first, also where a functional call had put others in the place of
    the cell's own. BatchNorm's running statistics move with the first computation only; random draws are repeated.
    """
    if not torch.is_grad_enabled():
        return run(cell, inputs)
    body = _Body(cell, run)
    parameters, buffers = dict(body.named_parameters()), dict(body.named_buffers())
    first = [True]

    def compute(*states: Tensor) -> Any:
        if first[0]:
            first[0] = False
            return body(*states)
        scratch = {name: buffer.clone() for name, buffer in buffers.items()}
        return functional_call(body, {**parameters, **scratch}, states)

    return checkpoint(compute, *inputs, use_reentrant=False)
