"""How long the derived cell has stood still: from the softmax weights of every epoch in alphas.csv."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas_moreau.architecture.spaces.alpha_table import AlphaTable
from nas_moreau.architecture.spaces.derivation import derive
from nas_moreau.architecture.spaces.space import SearchSpace
from nas_moreau.errors import InputError
from nas_moreau.runs.tables import read_table

WINDOW = 5


def stability(space: SearchSpace, history: Sequence[AlphaTable]) -> dict[str, Any]:
    """Returns for how many epochs the derived cell has been what it is, and how much of it stood before.

    `epochs`: how many there were. `epochs_unchanged`: so many last ones gave the last one's cell. `edges_unchanged`: of
    the cell's edges, the share that stood with the same operation in all of the last `window` epochs.

    Args:
        space: The space of the search.
        history: The weights of every epoch; at least one.
    """
    cells = [derive(space, table) for table in history]
    unchanged = next((i for i, cell in enumerate(reversed(cells)) if cell != cells[-1]), len(cells))
    edges = [{(name, *edge) for name, cell in found.cells.items() for edge in cell.edges} for found in cells[-WINDOW:]]
    return {
        "epochs": len(cells), "epochs_unchanged": unchanged, "window": len(edges),
        "edges_unchanged": len(set.intersection(*edges)) / len(edges[-1]),
    }  # fmt: skip


def read_history(folder: str | os.PathLike[str], space: SearchSpace) -> list[AlphaTable]:
    """Returns the softmax weights of a search's epochs from its alphas.csv; [] where there is none.

    Raises:
        InputError: The file is damaged, or belongs to another space.
    """
    path = Path(folder) / "alphas.csv"
    try:
        tables = list(AlphaTable.from_rows(read_table(path)).values())
        for table in tables:
            table.check(space)
    except InputError as error:
        raise InputError(
            f"{path} does not hold weights of the space '{space.name}': {error.cause}", "Restore the file."
        ) from None
    return tables
