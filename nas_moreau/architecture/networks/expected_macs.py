"""How many multiply-adds a relaxed cell stands for: the mean over the operations, each drawn by its softmax weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from nas_moreau.architecture.networks.budget import network_costs
from nas_moreau.architecture.networks.network import Network
from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.space import SearchSpace
from nas_moreau.errors import InputError


def relative_macs(
    space: SearchSpace, build: Callable[[Genotype], Network], input_size: tuple[int, int, int]
) -> dict[str, Tensor]:
    """Returns cell name -> (edges, operations), float64 on the CPU: an operation's share of the dearest cells' cost.

    The dearest cells have on every edge the operation with the most multiply-adds: their sum over all edges of all
    cells is 1. What the network costs without any operation (stem, preprocessing, head) is left out, since no choice
    changes it.

    Args:
        space: Cells, edges and operations.
        build: Makes the network of a genotype; called on the meta device.
        input_size: (channels, height, width) of an image.

    Raises:
        InputError: No operation of the space costs anything.
    """
    _, added = network_costs(space, build, input_size, space.operations)
    tables = {
        cell: torch.tensor(
            [[added[cell, number, name][1] for name in space.operations] for number in range(len(space.edges))],
            dtype=torch.float64,
            device="cpu",
        )
        for cell in space.cells
    }
    dearest = sum(float(table.max(-1).values.sum()) for table in tables.values())
    if not dearest:
        raise InputError(
            f"No operation of the space '{space.name}' costs multiply-adds, so there is nothing to penalise.",
            "Set search.macs_penalty=0.",
        )
    return {cell: table / dearest for cell, table in tables.items()}


def expected_macs(alphas: Sequence[Tensor], costs: Mapping[str, Tensor]) -> Tensor:
    """Returns the mean cost, a scalar, of cells whose operations are drawn edge by edge by softmax(alphas).

    Linear in the weights, so the sum over the edges of their own means is the mean over all cells that there are.

    Args:
        alphas: Logits (edges, operations) of every cell, in the order of `costs`.
        costs: From `relative_macs`; the result is then between 0 and 1.
    """
    terms = [(torch.softmax(logits, -1) * table.to(logits)).sum() for logits, table in zip(alphas, costs.values())]
    return torch.stack(terms).sum()
