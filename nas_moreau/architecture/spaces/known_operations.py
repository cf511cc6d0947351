"""The names of the operations that exist; their code is in `operations`, which needs torch, and this does not."""

from __future__ import annotations

from collections.abc import Iterable

from nas_moreau.errors import InputError, meant, quoted

# an ordered set: the values mean nothing; `operations.register_operation` adds to it
KNOWN_OPERATIONS: dict[str, None] = dict.fromkeys((
    "none", "skip_connect", "max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7",
    "dil_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7", "conv_3x1_1x3", "nor_conv_1x1", "nor_conv_3x3", "noise",
))  # fmt: skip


def unknown_operations(names: Iterable[str]) -> list[str]:
    """Returns one problem, with the nearest known name, for each name that is no known operation."""
    return [
        f"unknown operation {quoted(name)}{meant(name, KNOWN_OPERATIONS)}"
        for name in dict.fromkeys(names)
        if name not in KNOWN_OPERATIONS
    ]


def check_operations(names: Iterable[str], where: str) -> None:
    """Raises InputError, beginning with `where`, when a name is no known operation."""
    if problems := unknown_operations(names):
        raise InputError(
            f"{where}: {'; '.join(problems)}.",
            "`nas-moreau list operations` names what exists; --import brings in operations of your own.",
        )
