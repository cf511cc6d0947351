"""A cell with every candidate on every edge; what edges have in common is computed once.

What is shared, and why the result is exact:

* Edges that leave one state apply the same parameter-free work to it: one ReLU, one max pool and one average pool for
  each (state, stride) instead of one for each edge. The affine-free BatchNorm after a pool is the same for every edge,
  too.
* alpha * BN(z) is BN(z) with weight alpha, so the mixture needs no separate pass.
* `none` contributes nothing: it has its weight in the softmax and is never computed.
* Equal candidates on the edges that leave one state run as one wide operation (`stacked.py`).
* A caller who knows which candidates have weight can name them (`active`); the others are not computed either.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nas_moreau.architecture.networks.native import CellEdge, NativeCell, native_cell, run_native, usable
from nas_moreau.architecture.networks.operations import PREPARATIONS, Operation, PlainBatchNorm, build_operation
from nas_moreau.architecture.networks.stacked import (
    Copies,
    Gathered,
    Stack,
    gather,
    gather_lattices,
    has_hooks,
    keep_statistics,
    run_stack,
    stack_of,
)
from nas_moreau.architecture.spaces.operation_table import OPERATIONS
from nas_moreau.architecture.spaces.skeletons import NetworkPart
from nas_moreau.architecture.spaces.space import SearchSpace

Active = Sequence[Collection[int]]
"""For every edge of a cell, the numbers of the operations that are computed."""
Shared = dict[str | tuple[int, str], Tensor]
"""Results that edges have in common, computed at first use: pools by name, preparations by state and name."""


class Leaving(NamedTuple):
    """The edges that leave one state and their operations, by how these are computed.

    Attributes:
        edges: Numbers of the edges.
        targets: The nodes that they enter.
        stacks: Number of an operation -> all edges' together, as one wide operation.
        shared: Numbers of operations that are the same for all edges: pools and identities.
        single: (edge, number of an operation) of those that are computed edge by edge.
    """

    edges: list[int]
    targets: list[int]
    stacks: dict[int, Stack]
    shared: list[int]
    single: list[tuple[int, int]]


class MixedCell(nn.Module):
    """One cell with all candidates on all edges.

    Args:
        space: Edges, operations and the nodes to concatenate.
        part: Channels of the nodes, and the stride of the edges that leave an input.
        preprocess: One module for each input, or none at all.
        kernels: As for `Supernet`.
    """

    def __init__(self, space: SearchSpace, part: NetworkPart, preprocess: nn.ModuleList, kernels: str = "auto"):
        super().__init__()
        self.part, self.name, self.halves, channels = part, part.name, part.stride == 2, part.channels
        self.preprocess, self.concat = preprocess, space.concat
        self.inputs, self.nodes, self.channels = space.inputs, space.nodes, channels
        self.places = space.edges
        self.names = [space.candidates(part.name, edge) for edge in range(len(space.edges))]
        self.width = space.alpha_shape[1]  # columns of the mixture
        pool_norm = space.skeleton.pools_have_norm
        self.operations = nn.ModuleList()  # for every edge a ModuleDict of the operations that it does not share
        self.pools = nn.ModuleDict()  # "state_pool": what edges that leave one state share
        for (source, _), names in zip(self.places, self.names):
            stride = self.stride(source)
            own = nn.ModuleDict()
            for name in names:
                if OPERATIONS[name].is_pool:
                    key = f"{source}_{name}"
                    if key not in self.pools:
                        self.pools[key] = build_operation(name, channels, stride, PlainBatchNorm, pool_norm=pool_norm)
                elif name != "none":
                    own[name] = build_operation(name, channels, stride, PlainBatchNorm)
            self.operations.append(own)
        self.kernels, self.native = kernels, self._native()
        self.leaving = [self._leaving(source) for source in range(self.inputs + self.nodes)]
        self.stacks = [stack for leaving in self.leaving for stack in leaving.stacks.values()]

    def _leaving(self, source: int) -> Leaving:
        edges = [edge for edge, place in enumerate(self.places) if place[0] == source]
        found = Leaving(edges, [self.places[edge][1] for edge in edges], {}, [], [])
        if len({self.names[edge] for edge in edges}) > 1:  # edges with different candidates are not stacked
            found.single.extend(
                (edge, k) for edge in edges for k, name in enumerate(self.names[edge]) if name != "none"
            )
            return found
        for k, name in enumerate(self.names[edges[0]] if edges else ()):
            operations = [self.operation(edge, name) for edge in edges if name != "none"]
            if not operations:
                continue
            stack = None
            if OPERATIONS[name].is_pool or operations[0].is_identity:
                found.shared.append(k)
            elif stack := stack_of(operations):
                found.stacks[k] = stack
            else:
                found.single.extend((edge, k) for edge in edges)
        return found

    def _native(self, active: Active | None = None) -> NativeCell | None:
        """Returns this cell's plan for the native operator, or None if a part of it has to stay portable."""
        edges = [
            CellEdge(source, target, edge * self.width + k, self.operation(edge, name))
            for edge, (source, target) in enumerate(self.places)
            for k, name in enumerate(self.names[edge])
            if name != "none" and (active is None or k in active[edge])
        ]
        return native_cell(self.part, self.nodes, self.concat, edges)

    def operation(self, edge: int, name: str) -> Operation:
        """Returns the module of candidate `name` on edge number `edge`."""
        own: Any = self.operations[edge]
        shared: Any = self.pools
        return shared[f"{self.places[edge][0]}_{name}"] if OPERATIONS[name].is_pool else own[name]

    def stride(self, source: int) -> int:
        """Returns the stride of the edges that leave state `source`."""
        return 2 if self.halves and source < self.inputs else 1

    def forward(self, inputs: list[Tensor], mixture: Tensor, active: Active | None = None) -> Tensor:
        """Returns the concatenated nodes.

        Args:
            inputs: The input states.
            mixture: (edges, operations), the weight of every candidate, in the order of the space.
            active: The candidates to compute, edge by edge (all by default); the others contribute nothing, whatever
                their weight, and their running statistics do not move.
        """
        if len(self.preprocess):
            inputs = [module(x) for module, x in zip(self.preprocess, inputs)]
        if self.native is not None and usable(self.native, self.kernels, inputs, self.training):
            plan = self.native if active is None else self._native(active)
            assert plan is not None, "the whole cell has a plan, so a part of it has one"
            return run_native(plan, inputs, mixture.reshape(-1), self.training)
        by_stacks = active is None and not any(map(has_hooks, self.stacks))
        states = list(inputs)
        if by_stacks:
            self._sum_wide(states, mixture)
        else:
            self._sum_edges(states, mixture, active)
        return states[self.concat[0]] if len(self.concat) == 1 else torch.cat([states[i] for i in self.concat], 1)

    def _sum_wide(self, states: list[Tensor], mixture: Tensor) -> None:
        """Appends the nodes to `states`, what leaves a state computed for all edges together."""
        arrived: dict[int, Tensor] = {}
        rows = mixture.unbind()
        tensors = gather(self.stacks)
        in_order = iter(tensors)
        for i, leaving in enumerate(self.leaving):
            if i >= self.inputs:
                states.append(arrived[i] if i in arrived else self._nothing(states[0]))
            if not leaving.edges:
                continue
            weights = torch.stack([rows[edge] for edge in leaving.edges], 1)  # (operations, edges)
            of_stacks = dict(zip(leaving.stacks, islice(in_order, len(leaving.stacks))))
            found = list(zip(leaving.targets, self._leave(leaving, states[i], weights, of_stacks)))
            shared: Shared = {}
            for edge, k in leaving.single:
                weight = rows[edge][k]
                scale = weight.expand(self.channels).contiguous()
                x = self.add(None, edge, k, states[i], shared, weight, scale)
                found.append((self.places[edge][1], x))
            for target, x in found:
                arrived[target] = arrived[target] + x if target in arrived else x
        if self.training:
            keep_statistics(self.stacks, tensors)

    def _leave(self, leaving: Leaving, state: Tensor, weights: Tensor, tensors: dict[int, Gathered]) -> list[Tensor]:
        """Returns what stacks and shared operations send along each edge that leaves `state`."""
        edges = len(leaving.edges)
        total: Tensor | None = None
        apart: tuple[Tensor, int] | None = None
        wide: list[Tensor] = []
        # contiguous: batch_norm reads its weight as if it were
        scales = weights.unsqueeze(2).expand(-1, -1, self.channels).contiguous().flatten(1).unbind()
        copies, source = Copies(state, edges), self.places[leaving.edges[0]][0]
        for k, stack in leaving.stacks.items():
            x, lattices = run_stack(stack, tensors[k], copies, scales[k], self.training)
            if lattices == 1:
                wide = [wide[0].add_(x)] if wide else [x]
            else:
                apart = (x, lattices) if apart is None else (apart[0].add_(x), lattices)
        if apart is not None:
            wide.append(gather_lattices(*apart))
        for k in leaving.shared:
            name = self.names[leaving.edges[0]][k]
            x = self.pools[f"{source}_{name}"](state) if OPERATIONS[name].is_pool else state
            total = _add_weighted(total, x.permute(0, 2, 3, 1).unsqueeze(3), weights[k].unsqueeze(1))
        for x in wide:
            x = x.permute(0, 2, 3, 1).unflatten(3, (edges, self.channels))
            total = x if total is None else total + x
        return [] if total is None else [x.permute(0, 3, 1, 2) for x in total.unbind(3)]

    def _sum_edges(self, states: list[Tensor], mixture: Tensor, active: Active | None) -> None:
        """Appends the nodes to `states`, edge by edge; only `active` candidates, if given, are computed."""
        shared: Shared = {}
        # one unbind for all weights: a separate indexing for each would cost a backward kernel each
        weights = mixture.reshape(-1).unbind()
        scales = mixture.reshape(-1, 1).expand(-1, self.channels).contiguous().unbind()
        for node in range(self.inputs, self.inputs + self.nodes):
            total = None
            for edge, (source, target) in enumerate(self.places):
                if target != node:
                    continue
                for k, name in enumerate(self.names[edge]):
                    if name == "none" or (active is not None and k not in active[edge]):
                        continue
                    place = edge * self.width + k
                    total = self.add(total, edge, k, states[source], shared, weights[place], scales[place])
            states.append(self._nothing(states[0]) if total is None else total)

    def _nothing(self, x: Tensor) -> Tensor:
        """Returns the state of a node that no active candidate reaches."""
        return torch.zeros_like(x[:, :, ::2, ::2] if self.halves else x)

    def add(
        self, total: Tensor | None, edge: int, k: int, state: Tensor, shared: Shared, weight: Tensor, scale: Tensor
    ) -> Tensor:
        """Returns total + weight * operation(state), where what edges share is computed once and kept in `shared`.

        Args:
            total: The sum so far; None for none.
            edge: Number of the edge.
            k: Number of the operation among the candidates of the edge; not `none`.
            state: The state that the edge leaves.
            shared: Filled by earlier calls for the same states.
            weight: Scalar.
            scale: The same for every channel, (channels,), contiguous.
        """
        source, name = self.places[edge][0], self.names[edge][k]
        operation = self.operation(edge, name)
        if OPERATIONS[name].is_pool:
            pool = f"{source}_{name}"
            if pool not in shared:
                shared[pool] = operation(state)
            return _add_weighted(total, shared[pool], weight)
        key = (source, operation.prepare)
        if key not in shared:
            shared[key] = PREPARATIONS[operation.prepare](state, operation.stride)
        x = shared[key] if operation.body is None else operation.body(shared[key])
        if operation.norm is None:
            return _add_weighted(total, x, weight)
        x = operation.norm(x, scale)
        return x if total is None else total.add_(x)


def _add_weighted(total: Tensor | None, x: Tensor, weight: Tensor) -> Tensor:
    return x * weight if total is None else torch.addcmul(total, x, weight)
