"""Parameters and multiply-adds: of a module, of each operation of a search space, and expected under the alphas."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nas_moreau.architecture.networks.network import Network
from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.space import SearchSpace
from nas_moreau.errors import InputError

Cost = tuple[int, int]
"""Parameters and multiply-adds."""
BuildNetwork = Callable[[Genotype], Network]
"""Makes the network of a genotype; called on the meta device, so that nothing is computed."""


def parameter_count(module: nn.Module) -> int:
    """Returns the number of trainable scalars of `module`, an auxiliary head included if it has one."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def multiply_adds(module: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> int:
    """Returns the multiply-adds of one image in evaluation mode: convolutions and linear layers, nothing else.

    A convolution counts kernel area * input channels a group * output elements, a linear layer its weights; norms,
    activations, pooling and biases count nothing, and neither does an auxiliary head (it does not run in evaluation).

    Args:
        module: Takes (1, *input_size); its mode and parameters are left as they were.
        input_size: (channels, height, width).
    """
    total = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += layer.weight[0].numel() * output.numel()
        elif isinstance(layer, nn.Linear):
            total += layer.weight.numel()

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    reference = next(module.parameters())
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            module(torch.zeros((1, *input_size), dtype=reference.dtype, device=reference.device))
    finally:
        for part, mode in modes:
            part.training = mode
        for hook in hooks:
            hook.remove()
    return total


def network_costs(
    space: SearchSpace, build: BuildNetwork, input_size: tuple[int, int, int], *, excluded: bool = False
) -> tuple[Cost, dict[tuple[str, int, str], Cost]]:
    """Returns the cost of the network without any operation, and what each operation adds on each edge of each cell.

    Args:
        space: Cells, edges and operations.
        build: Makes the network of a genotype.
        input_size: (channels, height, width) of an image.
        excluded: Also measure operations that the derivation excludes.
    """
    # with `none` on its edges a cell is there and costs nothing
    empty = {cell: Cell((("none", 0, space.inputs),), space.concat) for cell in space.cells}

    def cost(cells: Mapping[str, Cell]) -> Cost:
        with torch.device("meta"):
            network = build(space.genotype(cells))
        return parameter_count(network), multiply_adds(network, input_size)

    base = cost(empty)
    added: dict[tuple[str, int, str], Cost] = {}
    known: dict[tuple[str, bool, str], Cost] = {}
    names = space.candidates if excluded else space.edge_choices
    for cell, (number, edge) in itertools.product(space.cells, enumerate(space.edges)):
        for name in names(cell, number):
            # an operation costs the same on all edges that leave an input, and on all others
            key = (cell, edge[0] < space.inputs, name)
            if key not in known:
                whole = base if name == "none" else cost({**empty, cell: Cell(((name, *edge),), space.concat)})
                known[key] = (whole[0] - base[0], whole[1] - base[1])
            added[cell, number, name] = known[key]
    return base, added


def relative_costs(space: SearchSpace, added: Mapping[tuple[str, int, str], float], kind: str) -> dict[str, Tensor]:
    """Returns cell name -> (edges, operations), float64 on the CPU: the cost of an operation relative to the maximum.

    Columns beyond an edge's own candidates are 0.

    The maximum is the sum, over all edges of all cells, of the cost of the edge's most expensive operation. The cost of
    the network without any operation (stem, preprocessing, head) is left out, since no choice changes it.

    Args:
        space: Cells, edges and operations.
        added: (cell, edge number, operation) -> its cost, of all candidates (`added_costs`, `operation_latencies`).
        kind: Key of `search.penalty`, for the message.

    Raises:
        InputError: No operation of the space costs anything.
    """
    tables = {cell: torch.zeros(space.alpha_shape, dtype=torch.float64, device="cpu") for cell in space.cells}
    for cell, table in tables.items():
        for number in range(len(space.edges)):
            for k, name in enumerate(space.candidates(cell, number)):
                table[number, k] = added[cell, number, name]
    largest = sum(float(table.max(-1).values.sum()) for table in tables.values())
    if not largest:
        raise InputError(
            f"No operation of the space '{space.name}' costs {kind}, so there is nothing to penalise.",
            f"Set search.penalty.{kind}=0.",
        )
    return {cell: table / largest for cell, table in tables.items()}


def added_costs(
    space: SearchSpace, build: BuildNetwork, input_size: tuple[int, int, int], kind: str
) -> dict[tuple[str, int, str], float]:
    """Returns what every operation, excluded ones too, adds to the network on each edge of each cell.

    Args:
        space: Cells, edges and operations.
        build: Makes the network of a genotype.
        input_size: (channels, height, width) of an image.
        kind: "parameters" or "macs".
    """
    _, added = network_costs(space, build, input_size, excluded=True)
    return {key: float(cost[("parameters", "macs").index(kind)]) for key, cost in added.items()}


def expected_cost(logits: Sequence[Tensor], costs: Mapping[str, Tensor]) -> Tensor:
    """Returns the mean cost, a scalar, of cells whose operations are drawn edge by edge by softmax(logits).

    Linear in the weights, so the sum of the means of the edges is the mean over all cells of the space.

    Args:
        logits: (edges, operations) for every cell, in the order of `costs`.
        costs: From `relative_costs`; the result is then between 0 and 1.
    """
    terms = [(torch.softmax(rows, -1) * table.to(rows)).sum() for rows, table in zip(logits, costs.values())]
    return torch.stack(terms).sum()
