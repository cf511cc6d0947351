"""Copies of modules, whatever their forwards leave in them, and the tensors in their plain attributes."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from nas_moreau.errors import InputError, first_line


def copy_of(module: nn.Module) -> Any:
    """Returns a deep copy; tensors of a graph that a forward left in plain attributes are detached in it.

    Args:
        module: A module.

    Raises:
        InputError: It cannot be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in plain_tensors(module):
        if tensor.grad_fn is not None:
            memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise InputError(
            f"The module cannot be copied: {type(error).__name__}: {first_line(error)}.",
            "Keep no tensors with a graph, open files or locks in it.",
        ) from error


def plain_tensors(module: nn.Module) -> list[Tensor]:
    """Returns the tensors in attributes of a module that are neither parameters nor buffers."""
    found, seen = list[Tensor](), set[int]()

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))  # a list may hold itself
            for part in value.values() if isinstance(value, dict) else value:
                look(part)

    for part in module.modules():
        for key, value in list(vars(part).items()):
            if key not in ("_parameters", "_buffers", "_modules"):
                look(value)
    return found
