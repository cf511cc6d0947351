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


_OTHER_NAMES = {
    "skip_connect": "skip skipconnection identity id iden shortcut residual factorizedreduce",
    "none": "zero zeroise zeroize zeros null empty noconnection noconnect noop zerooperation",
    "max_pool_3x3": "maxpool maxpool3 maxpooling maxpooling3x3 pool3x3 mp3x3",
    "avg_pool_3x3": "avgpool avgpool3 averagepool averagepool3x3 avgpooling3x3 averagepooling3x3 meanpool3x3 ap3x3",
    "conv_7x1_1x7": "conv1x77x1 conv7x11x7 1x77x1 1x7then7x1",
    "conv_3x1_1x3": "conv1x33x1 conv3x11x3 1x33x1 1x3then3x1",
    "nor_conv_1x1": "conv1x1 conv1 normalconv1x1 convbnrelu1x1 reluconvbn1x1",
    "nor_conv_3x3": "conv3x3 conv3 normalconv3x3 convbnrelu3x3 reluconvbn3x3",
    **{
        f"sep_conv_{size}x{size}": " ".join(
            f"{kind}{size}{end}"
            for kind in ("sep", "sepconv", "separable", "separableconv", "depthwisesepconv", "dwsepconv")
            for end in ("", f"x{size}", f"x{size}2")
        )
        for size in (3, 5, 7)
    },
    **{
        f"dil_conv_{size}x{size}": " ".join(
            f"{kind}{size}{end}"
            for kind in ("dil", "dilconv", "dilated", "dilatedconv", "dilsepconv", "dilatedsepconv", "atrousconv")
            for end in ("", f"x{size}", f"x{size}2")
        )
        for size in (3, 5)
    },
}
_MEANT = {other: name for name, others in _OTHER_NAMES.items() for other in others.split()}
"""What other programs call an operation, in small letters and digits alone -> our name."""


def unknown_operations(names: Iterable[str]) -> list[str]:
    """Returns one problem, with the name that is probably meant, for each name that is not in the table."""
    return [
        f"unknown operation {quoted(name)}{_meant_operation(name)}"
        for name in dict.fromkeys(names)
        if name not in OPERATIONS
    ]


def _meant_operation(name: str) -> str:
    letters = _letters(name) if isinstance(name, str) else ""
    ours = {_letters(known): known for known in OPERATIONS}
    found = ours.get(letters) or _MEANT.get(letters)
    return f" (did you mean '{found}'?)" if found else meant(name, OPERATIONS)


def _letters(name: str) -> str:
    return "".join(character for character in name[:100].lower() if character.isalnum())


def check_operations(names: Iterable[str], where: str) -> None:
    """Raises InputError, beginning with `where`, when a name is not in the table."""
    if problems := unknown_operations(names):
        raise InputError(
            f"{where}: {'; '.join(problems)}.",
            "See `nas-moreau list operations`; --import FILE.py makes operations of your own known.",
        )
