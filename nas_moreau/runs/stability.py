"""How long the derived cell has stood still: from the softmax weights of every epoch in alphas.csv."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_moreau.architecture.spaces.derivation import Table, strongest_genotype
from nas_moreau.architecture.spaces.space import SearchSpace
from nas_moreau.errors import InputError
from nas_moreau.runs.tables import read_table

WINDOW = 5


def stability(space: SearchSpace, history: Sequence[Mapping[str, Table]]) -> dict[str, Any]:
    """Returns for how many epochs the derived cell has been what it is, and how much of it stood before.

    By the weights of the operations alone: edge weights (`+pc`) are not in alphas.csv.

    `epochs`: how many there were. `epochs_unchanged`: so many last ones gave the last one's cell. `edges_unchanged`: of
    the cell's edges, the share that stood with the same operation in all of the last `window` epochs.

    Args:
        space: The space of the search.
        history: For every epoch cell name -> (edges, operations) softmax weights; at least one.
    """
    cells = [strongest_genotype(space, weights) for weights in history]
    unchanged = next((i for i, cell in enumerate(reversed(cells)) if cell != cells[-1]), len(cells))
    edges = [{(name, *edge) for name, cell in found.cells.items() for edge in cell.edges} for found in cells[-WINDOW:]]
    return {
        "epochs": len(cells), "epochs_unchanged": unchanged, "window": len(edges),
        "edges_unchanged": len(set.intersection(*edges)) / len(edges[-1]),
    }  # fmt: skip


def read_history(folder: str | os.PathLike[str], space: SearchSpace) -> list[dict[str, Table]]:
    """Returns the softmax weights of a search's epochs from its alphas.csv; [] where there is none.

    Raises:
        InputError: The file is damaged, or belongs to another space.
    """
    path = Path(folder) / "alphas.csv"
    edges = {f"{a}-{b}": i for i, (a, b) in enumerate(space.edges)}
    epochs: dict[int, dict[str, Table]] = {}
    rows = read_table(path)
    try:
        for row in rows:
            tables = epochs.setdefault(
                int(row["epoch"]),
                {cell: [[0.0] * len(space.operations) for _ in edges] for cell in space.cells},
            )
            tables[row["cell"]][edges[row["edge"]]][space.operations.index(row["operation"])] = float(row["weight"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} does not hold weights of the space '{space.name}' ({error}).", "Restore the file."
        ) from None
    return list(epochs.values())
