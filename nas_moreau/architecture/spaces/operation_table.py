"""The table of operations: which exist, and of what kind they are. Imports no torch.

`networks.operations` builds modules from the kind and the kernel size; `register_operation` adds a row with a builder
of the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from nas_moreau.errors import InputError, meant, quoted

Build = TypeVar("Build", bound=Callable[..., Any])


@dataclass(frozen=True)
class OperationInfo:
    """A row of the table.

    Attributes:
        name: What search spaces and genotypes call the operation.
        kind: How it is computed: "none", "skip", "max_pool", "avg_pool", "separable" (ReLU, depthwise and pointwise
            convolution, norm, twice), "dilated" (that once, dilation 2), "factorised" (ReLU, a row and a column, norm),
            "convolution" (ReLU, convolution, norm), "noise", or "own" for one with a builder of the user.
        kernel: Kernel size.
        build: The user's builder, `(channels, stride, norm) -> nn.Module`; None for the built-in operations.
    """

    name: str
    kind: str
    kernel: int = 1
    build: Callable[..., Any] | None = None

    @property
    def is_pool(self) -> bool:
        """Whether it has no convolution and no parameters: what it computes is the same for many edges."""
        return self.kind in ("max_pool", "avg_pool")


_BUILT_IN = (
    OperationInfo("none", "none"),
    OperationInfo("skip_connect", "skip"),
    OperationInfo("max_pool_3x3", "max_pool", 3),
    OperationInfo("avg_pool_3x3", "avg_pool", 3),
    OperationInfo("sep_conv_3x3", "separable", 3),
    OperationInfo("sep_conv_5x5", "separable", 5),
    OperationInfo("sep_conv_7x7", "separable", 7),
    OperationInfo("dil_conv_3x3", "dilated", 3),
    OperationInfo("dil_conv_5x5", "dilated", 5),
    OperationInfo("conv_7x1_1x7", "factorised", 7),
    OperationInfo("conv_3x1_1x3", "factorised", 3),
    OperationInfo("nor_conv_1x1", "convolution", 1),
    OperationInfo("nor_conv_3x3", "convolution", 3),
    OperationInfo("noise", "noise"),
)
OPERATIONS: dict[str, OperationInfo] = {info.name: info for info in _BUILT_IN}


def register_operation(name: str) -> Callable[[Build], Build]:
    """Makes an operation known by name, so that a search space can list it; a decorator.

    The decorated function `(channels, stride, norm) -> nn.Module` returns a module that maps (n, channels, h, w) to
    (n, channels, h/stride, w/stride); `norm(channels)` makes the BatchNorm that fits the place (without affine
    parameters in a supernet, with them in a network).

    Raises:
        InputError: The name is taken.

    Example:
        >>> from torch import nn
        >>> from nas_moreau.architecture.networks.operations import build_operation
        >>> @register_operation("doctest_conv")
        ... def doctest_conv(channels, stride, norm):
        ...     return nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, stride, 1, bias=False), norm(channels))
        >>> build_operation("doctest_conv", 4, 1, nn.BatchNorm2d).name
        'doctest_conv'
    """
    if name in OPERATIONS:
        raise InputError(f"An operation named '{name}' exists already.", "Choose another name.")

    def register(build: Build) -> Build:
        OPERATIONS[name] = OperationInfo(name, "own", build=build)
        return build

    return register


def unknown_operations(names: Iterable[str]) -> list[str]:
    """Returns one problem, with the nearest known name, for each name that is not in the table."""
    return [
        f"unknown operation {quoted(name)}{meant(name, OPERATIONS)}"
        for name in dict.fromkeys(names)
        if name not in OPERATIONS
    ]


def check_operations(names: Iterable[str], where: str) -> None:
    """Raises InputError, beginning with `where`, when a name is not in the table."""
    if problems := unknown_operations(names):
        raise InputError(
            f"{where}: {'; '.join(problems)}.",
            "See `nas-moreau list operations`; --import FILE.py makes operations of your own known.",
        )
